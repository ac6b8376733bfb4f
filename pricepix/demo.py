"""The whole road on sample data: bars in, image stores and pictures out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from pricepix import samples
from pricepix.build import render_universe
from pricepix.panel import Panel
from pricepix.preview import contact_sheet

PRESETS: Final = ("jkx5", "jkx20", "jkx60")


def demo(folder: str | Path = "demo", echo: Callable[[str], Any] = print) -> Path:
    """Render real daily bars of five stocks into three stores and a contact sheet each.

    Parameters
    ----------
    folder : str or path
        Where stores and pictures go; made if it is not there. What an earlier demo left there is replaced.
    echo : callable
        Takes each line of the report.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ImportError
        If the sample data are not installed; the message is the line that installs them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    panel = Panel.from_table(samples.stocks())
    echo(f"bars      {panel!r}")
    few = panel.select(instruments=["IBM"], start="2012-01-01")
    for preset in PRESETS:
        # Compile, or load what an earlier run compiled, before the clock starts.
        render_universe(few, preset, None, progress=False)
        path = folder / f"{preset}.zarr"
        began = perf_counter()
        store = render_universe(panel, preset, path, mode="overwrite", progress=False)
        seconds = perf_counter() - began
        dropped = ", ".join(f"{name} {count:,}" for name, count in store.attrs["drop_counts"].items())
        height, width = store.spec.shape
        echo(
            f"{preset:8}  {len(store):,} images {height}x{width} of {store.attrs['candidates']:,} windows "
            f"(dropped: {dropped}), {len(store) / seconds:,.0f} images/s to disk, {_megabytes(path):.1f} MB"
        )
        sheet = contact_sheet(store, folder / f"{preset}.png", n=12)
        echo(f"          {path}  {sheet}")
    return folder


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
