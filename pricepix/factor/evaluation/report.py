"""The report on a factor: one HTML file that needs no network, with its pictures and its JSON beside it."""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pricepix.factor.evaluation.beside import side_by_side
from pricepix.factor.evaluation.figures import charts, pictures, png_bytes, several_long_short
from pricepix.factor.evaluation.formatting import format_number, format_percent
from pricepix.factor.evaluation.headline import headline
from pricepix.factor.evaluation.result import Evaluation
from pricepix.factor.evaluation.words import in_words, left_out
from pricepix.location import atomic_file

if TYPE_CHECKING:
    from jinja2 import Environment

    from pricepix.images.image_set import ImageSet

__all__ = ["check_installed", "write_report"]

_TEMPLATE: Final = "report.html.j2"
_OWN_NAME: Final = "this factor"


def write_report(
    evaluation: Evaluation,
    path: str | PathLike[str],
    *,
    beside: Mapping[str, Evaluation] | None = None,
    store: ImageSet | None = None,
    model: Any = None,
    title: str = "Factor report",
    sheet: int = 24,
    per_quantile: int = 50,
    seed: int = 0,
) -> Path:
    """Write the report on an evaluation. Needs the extra ``report``: jinja2 and matplotlib.

    Parameters
    ----------
    evaluation : Evaluation
    path : str or path
        The HTML file. Pictures go to a folder beside it, ``<name>_figures``, and everything machine-readable
        to ``<name>.json``.
    beside : mapping of name to Evaluation, optional
        Evaluations of other factors, such as the 1-D control of a CNN, made with the same horizon, delay, rebalancing,
        quantiles and convention. Their headline figures and long-short returns stand beside those of `evaluation`.
    store : ImageSet, optional
        The images that were scored; with them the report shows the images with the highest and lowest scores.
    model : checkpoint, run folder, PriceCNN or Ensemble, optional
        With it, and `store`, the report maps where the network looks: of an ensemble, its first member. Needs
        the extra ``attribution``.
    title : str
    sheet : int
        Images on a sheet.
    per_quantile : int
        Images over which a quantile's attribution map is averaged, drawn by `seed`.
    seed : int

    Returns
    -------
    pathlib.Path
        The HTML file.

    Raises
    ------
    ValueError
        A store or model that is not the one of the factor, or an evaluation beside it that was made otherwise.
    ImportError
        jinja2 or matplotlib is not installed, or a model is given and captum is not.
    """
    check_installed()
    path = Path(path)
    made = charts(evaluation)
    compared = None
    if beside:
        compared = side_by_side(_OWN_NAME, evaluation, beside)
        made = [several_long_short({_OWN_NAME: evaluation, **beside}), *made]
    if store is not None:
        made += pictures(evaluation, store, model, sheet=sheet, per_quantile=per_quantile, seed=seed)
    elif model is not None:
        raise ValueError("attribution maps need the images: pass store= with model=")
    folder = path.with_name(f"{path.stem}_figures")
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for chart in made:
        entry = {"heading": chart.heading, "caption": chart.caption, "narrow": None}
        entry["uri"] = _data_uri(chart.figure, folder / f"{chart.name}.png", chart.narrow is not None)
        if chart.narrow is not None:
            entry["narrow"] = _data_uri(chart.narrow, folder / f"{chart.name}_narrow.png", True)
        shown.append(entry)
    evaluation.to_json(path.with_suffix(".json"))
    figures = evaluation.figures
    page = (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            title=title,
            f=figures,
            charts=shown,
            tiles=headline(figures),
            compared=compared,
            words=in_words(figures),
            dropped=left_out(figures),
        )
    )
    with atomic_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _data_uri(figure: Any, path: Path, transparent: bool) -> str:
    """Write a figure beside the page, and return it as what the page holds."""
    png = png_bytes(figure, transparent=transparent)
    path.write_bytes(png)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def check_installed() -> None:
    """Raise ImportError, with the line that installs them, unless what reports need is there."""
    for name in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f'reports need {name}: pip install "pricepix[report]"') from error


def _environment() -> Environment:
    """Return the templates of this package. Instruments and models may bear any name: all text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pricepix.factor.evaluation", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": format_number,
        "percent": format_percent,
        "thousands": "{:,}".format,
        "words": lambda name: name.replace("_", " "),
        "portfolio": _portfolio_name,
        "plain_text": _plain_text,
        "json_text": _json_text,
    }
    return environment


def _portfolio_name(name: str) -> str:
    return {"short": "Short the lowest, as can be sold", "long_short": "Long-short"}.get(
        name, f"Quantile {name[1:]}"
    )


def _plain_text(value: Any) -> str:
    """Write a figure of the data: counts with their thousands apart, a mapping as its entries."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {part:g}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
