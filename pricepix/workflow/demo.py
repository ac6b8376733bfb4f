"""The whole road on sample data: bars in; image stores, pictures, a trained network and its report out."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from pricepix import samples
from pricepix.bars.panel import Panel
from pricepix.build.universe import render_universe
from pricepix.preview import contact_sheet

PRESETS: Final = ("jkx5", "jkx20", "jkx60")
# A market whose images say something about the next five bars, in 65 cases of 100.
SIMULATED: Final[dict[str, Any]] = {
    "data": {
        "sample": "simulate",
        "simulate": {"instruments": 60, "bars": 400, "bayes_accuracy": 0.65, "horizon": 5, "seed": 7},
    },
    "image": {"preset": "jkx5"},
    "store": {"horizons": [5], "layout": "bits"},
    "train": {
        "model": "jkx5",
        "horizon": 5,
        "test": "2001-02-01:",
        "hyper": "paper",
        "settings": {"lr": 1e-3, "epochs": 2},
    },
    "score": {"start": "2001-02-01"},
    "evaluate": {"quantiles": 5, "rebalance": "horizon"},
}


def demo(folder: str | Path = "demo", echo: Callable[[str], Any] = print) -> Path:
    """Render real bars into stores and pictures; train, score and evaluate on a simulated market.

    Parameters
    ----------
    folder : str or path
        Where everything goes; made if it is not there. What an earlier demo left there is replaced, but for
        the run on the simulated market, whose finished steps are skipped.
    echo : callable
        Takes each line of the report.

    Returns
    -------
    pathlib.Path
        The last thing made: the report on the factor, or, without torch, the folder.

    Raises
    ------
    ImportError
        If the sample data are not installed; the message is the line that installs them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    panel = Panel.from_table(samples.stocks())
    echo(f"real bars: {panel!r}")
    few = panel.select(instruments=["IBM"], start="2012-01-01")
    for preset in PRESETS:
        # Compile, or load what an earlier run compiled, before the clock starts.
        path = folder / f"{preset}.zarr"
        render_universe(few, preset, path, mode="overwrite", progress=False)
        began = perf_counter()
        store = render_universe(panel, preset, path, mode="overwrite", progress=False)
        seconds = perf_counter() - began
        dropped = ", ".join(f"{name} {count:,}" for name, count in store.attrs["drop_counts"].items())
        height, width = store.spec.shape
        sheet = contact_sheet(store, folder / f"{preset}.png", n=12)
        echo(
            f"{preset:8}  {len(store):,} images {height}x{width} of {store.attrs['candidates']:,} windows "
            f"(dropped: {dropped}), {len(store) / seconds:,.0f} images/s to disk, {_megabytes(path):.1f} MB"
        )
        echo(f"          {path}, contact sheet {sheet}")
    if find_spec("lightning") is None:
        echo("no training: pip install 'pricepix[train,report]' for the rest of the demo")
        return folder
    from pricepix.workflow.config import Config
    from pricepix.workflow.pipeline import run

    echo("simulated bars, of which the best classifier can tell 65%:")
    config = Config.from_dict({"out": str(folder / "simulated"), **SIMULATED})
    report = run(config, echo=lambda line: echo(f"  {line}"), progress=False)
    echo(f"report: {report}")
    return report


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
