"""From a factor cache and bars to the report of an evaluation."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pricepix.bars.panel import Panel
from pricepix.bars.vendors.by_name import read_bars
from pricepix.factor import DifferentPanelWarning, evaluate, write_report
from pricepix.store.image_store import open_images

if TYPE_CHECKING:
    from pricepix.factor.cache import FactorCache
    from pricepix.factor.evaluation.result import Evaluation
    from pricepix.images.image_set import ImageSet

__all__ = ["evaluation_bars", "report_on"]


def evaluation_bars(source: str, *, progress: bool = True, **reading: Any) -> Panel:
    """Read the bars to evaluate a factor on: a table, or a store that ``import_jkx`` made.

    The store's monthly returns are the bars then; options of ``read_bars`` make the source a table.
    """
    if Path(f"{source}.labels").is_dir() and not reading:
        from pricepix.build import jkx_panel

        return jkx_panel(source)
    return read_bars(source, progress=progress, **reading)


def report_on(
    cache: FactorCache | str,
    bars: Panel,
    path: str | os.PathLike[str],
    *,
    store: ImageSet | str | None = None,
    model: Any = None,
    **settings: Any,
) -> tuple[Evaluation, Path]:
    """Evaluate a factor and write the HTML report; return the evaluation and the file.

    Parameters
    ----------
    cache : FactorCache or str
    bars : Panel
    path : str or path
        The HTML file to write.
    store : ImageSet or str, optional
        Images, for sheets of the highest- and lowest-scored ones.
    model : optional
        Checkpoint or run, for attribution maps.
    **settings
        Of ``pricepix.factor.evaluate``.
    """
    with warnings.catch_warnings():
        # The evaluation's text and the report say it, too.
        warnings.simplefilter("ignore", DifferentPanelWarning)
        found = evaluate(cache, bars, **settings)
    images = None if store is None else open_images(store)
    return found, Path(write_report(found, path, store=images, model=model))
