"""End to end on sample data: bars in; image stores, pictures, a trained network and its report out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from pricepix import samples
from pricepix.bars.panel import Panel
from pricepix.build.universe import render_universe
from pricepix.preview import contact_sheet, enlarge
from pricepix.workflow.warm_up import warm_up

PRESETS: Final = ("jkx5", "jkx20", "jkx60")
# A market whose images say something about the next five bars, in 65 cases of 100.
SIMULATED: Final[dict[str, Any]] = {
    "data": {
        "sample": "simulate",
        "simulate": {"instruments": 60, "bars": 400, "bayes_accuracy": 0.65, "horizon": 5, "seed": 7},
        "adjust": "multiply",
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
        Where everything goes; made if it is not there. What an earlier demo left there is replaced, except for
        the run on the simulated market, whose finished steps are skipped.
    echo : callable
        Takes each line of the report.

    Returns
    -------
    pathlib.Path
        The last thing made: the report on the factor, or, without torch, the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    echo("compiling the kernels, once; later runs load them:")
    echo(str(warm_up(PRESETS, ("bars", "column bits", "stores"), echo=lambda line: echo(f"  {line}"))))
    panel, what = _bars()
    echo(f"\n{what}: {panel!r}")
    sheets = [_render(panel, preset, folder, echo) for preset in PRESETS]
    name = "AAPL" if "AAPL" in panel.instruments else str(panel.instruments[-1])
    last_day = panel.time[panel.rows_of(name).stop - 1]
    enlarged = enlarge(folder / "jkx20.zarr", name, int(last_day), folder / f"{name}.png", panel)
    pictures = [
        (sheets[PRESETS.index("jkx20")], "images of all stocks"),
        (enlarged, "one image beside its bars"),
    ]
    if find_spec("lightning") is None:
        echo("no training: pip install 'pricepix[train,report]' for the rest of the demo")
        _say_what_to_open([*pictures, (sheets[-1], "larger images")], echo)
        return folder
    from pricepix.workflow.config import Config
    from pricepix.workflow.pipeline import run

    echo("\nsimulated bars, of which the best classifier can tell 65%: build, train, score, evaluate")
    config = Config.from_dict({"out": str(folder / "simulated"), **SIMULATED})
    report = Path(run(config, echo=lambda line: echo(f"  {line}"), progress=False))
    _say_what_to_open([*pictures, (report, "what the trained network is worth")], echo)
    return report


def _bars() -> tuple[Panel, str]:
    """Return real bars where their package is installed, else those that come with pricepix; and what they are."""
    try:
        return Panel.from_table(samples.stocks(), progress=False), "real bars"
    except ImportError:
        panel = Panel.from_table(samples.bundled(), adjust="multiply", progress=False)
        return panel, "bars of made-up stocks (real ones: pip install 'pricepix[sample]')"


def _render(panel: Panel, preset: str, folder: Path, echo: Callable[[str], Any]) -> Path:
    """Draw all windows into a store and a contact sheet, and tell how fast; return the sheet."""
    path = folder / f"{preset}.zarr"
    # The first one loads what was compiled, which takes longer than to draw.
    for _ in range(2):
        began = perf_counter()
        store = render_universe(panel, preset, path, mode="overwrite", progress=False)
        seconds = perf_counter() - began
    dropped = ", ".join(f"{name} {count:,}" for name, count in store.attrs["drop_counts"].items())
    height, width = store.spec.shape
    echo(
        f"{preset:8}  {len(store):,} images {height}x{width} of {store.attrs['candidates']:,} windows "
        f"(dropped: {dropped}) in {seconds:.2f} s, {len(store) / seconds:,.0f} images/s to disk, "
        f"{_megabytes(path):.1f} MB in {path}"
    )
    return contact_sheet(store, folder / f"{preset}.png", n=12)


def _say_what_to_open(files: Sequence[tuple[Path, str]], echo: Callable[[str], Any]) -> None:
    echo("\nopen:")
    width = max(len(str(path)) for path, _ in files)
    for path, what in files:
        echo(f"  {path!s:{width}}  {what}")


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
