"""Which image tells most? Twelve specs trained and compared without a store, on a market with a known answer.

    pip install ".[train]" matplotlib
    python examples/sweep_specs.py [FOLDER] [--instruments 64] [--bars 320] [--epochs 2] [--threads 1]

The bars are simulated: the last bar's shadow tells the sign of the next five bars' return, and no rule can be
right more often than in 65 of 100 cases. Writes sweep_specs.csv and sweep_specs.png into FOLDER, sweep_specs/
by default. Each spec's images are drawn while its network trains; only the panel is in memory.
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from time import perf_counter

import matplotlib
import numpy as np
import polars as pl
import torch

import pricepix as pp
from pricepix import train

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BEST = 0.65
HEIGHTS = {5: 32, 10: 48, 20: 64, 60: 96}


def network_for(spec: pp.ImageSpec) -> train.CNNSpec:
    """The same small network for every size: what differs is the image."""
    blocks = (
        train.ConvBlock(8, kernel=(5, 3), stride=(3, 1), padding=(2, 1), pool=(2, 1)),
        train.ConvBlock(16, kernel=(5, 3), padding=(2, 1), pool=(2, 1)),
    )
    return train.CNNSpec("sweep", *spec.shape, blocks, dropout=0.25)


def sweep(panel: pp.Panel, specs: list[pp.ImageSpec], options: argparse.Namespace) -> pl.DataFrame:
    """Train a network for each spec; return one row a spec."""
    calendar = panel.calendar
    # The same windows for all: they begin when the longest history is there, and the last fifth tests.
    warm = max(spec.lookback + spec.history for spec in specs) - 1
    cut = warm + int(0.8 * (len(calendar) - warm))
    start, test = (panel.stamp(int(calendar[i]))[:10] for i in (warm, cut))
    rows = []
    for spec in specs:
        began = perf_counter()
        images = pp.PanelImages(panel, spec, horizons=(5,), start=start)
        with tempfile.TemporaryDirectory() as folder:
            result = train.fit(
                images, network_for(spec), out=Path(folder) / "run", test=(test, None), embargo="7d",
                epochs=options.epochs, batch_size=128, lr=3e-3, optimizer="adamw", schedule="cosine",
                warmup_epochs=0.1, validation=0.1, patience=None, progress=False,
            )  # fmt: skip
        rows.append(
            {
                "lookback": spec.lookback, "ma": bool(spec.ma), "volume": spec.volume,
                "image": "x".join(map(str, spec.shape)), "trained on": len(result.folds[0].fold.train),
                "accuracy": result.test["accuracy"], "standard_error": result.test["standard_error"],
                "loss": result.test["loss"], "seconds": perf_counter() - began,
            }
        )  # fmt: skip
        row = rows[-1]
        print(f"{name(spec):24} accuracy {row['accuracy']:.3f}, {row['seconds']:.1f} s", flush=True)
    return pl.DataFrame(rows)


def name(spec: pp.ImageSpec) -> str:
    """What is drawn, in a few words."""
    extras = [word for word, drawn in (("MA", spec.ma), ("volume", spec.volume)) if drawn]
    return f"{spec.lookback} bars, {' + '.join(extras) or 'only prices'}"


def draw(panel: pp.Panel, specs: list[pp.ImageSpec], table: pl.DataFrame, path: Path) -> None:
    """One figure: the last image of the first instrument under every spec, and what a network made of it."""
    per_row = len({(bool(spec.ma), spec.volume) for spec in specs})
    lookbacks = list(dict.fromkeys(spec.lookback for spec in specs))
    figure = plt.figure(figsize=(12, 6.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    axes = left.subplots(len(lookbacks), per_row, squeeze=False)
    for ax, spec in zip(axes.flat, specs, strict=True):
        images = pp.PanelImages(panel, spec, horizons=())
        last = int(np.flatnonzero(images.instrument_index == 0)[-1])
        ax.imshow(images.read([last])[0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.set_axis_off()
        title = name(spec).partition(", ")[2]
        ax.set_title(f"{spec.lookback} bars\n{title}" if ax in axes[:, 0] else f"\n{title}", fontsize=7.5)
    left.suptitle("One window, twelve images" if len(specs) == 12 else "One window", fontsize=11)
    ax = right.subplots()
    place = np.arange(len(specs))[::-1]
    colours = plt.get_cmap("viridis")(np.linspace(0.15, 0.8, len(lookbacks)))
    for k, lookback in enumerate(lookbacks):
        own = (table["lookback"] == lookback).to_numpy()
        ax.errorbar(
            table["accuracy"].to_numpy()[own], place[own], xerr=1.96 * table["standard_error"].to_numpy()[own],
            fmt="o", color=colours[k], capsize=3, label=f"{lookback} bars",
        )  # fmt: skip
    ax.axvline(0.5, color="0.6", lw=1, ls=":")
    ax.axvline(BEST, color="0.3", lw=1, ls="--")
    top = len(specs) - 0.45
    ax.text(0.5, top, "a coin", ha="center", va="bottom", fontsize=8, color="0.4")
    ax.text(BEST, top, "the best there is", ha="center", va="bottom", fontsize=8, color="0.3")
    ax.set_yticks(place, [name(spec) for spec in specs], fontsize=8)
    ax.set_ylim(-0.6, len(specs) - 0.4)
    ax.set_xlim(
        min(0.48, float(table["accuracy"].min()) - 0.03), max(0.68, float(table["accuracy"].max()) + 0.03)
    )  # type: ignore[arg-type]
    ax.set_xlabel("accuracy on the last fifth of the calendar, with 95% bounds")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Simulate, sweep, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("sweep_specs"))
    parser.add_argument("--instruments", type=int, default=64)
    parser.add_argument("--bars", type=int, default=320, help="days of the simulated market")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lookbacks", type=int, nargs="+", default=[5, 10, 20], choices=sorted(HEIGHTS))
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; small networks gain little from more"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)

    began = perf_counter()
    bars = pp.samples.simulate(
        options.instruments, options.bars, bayes_accuracy=BEST, horizon=5, seed=0, split_rate=0, delist_rate=0,
        list_late=0,
    )  # fmt: skip
    panel = pp.Panel.from_table(bars, progress=False)
    specs = [
        pp.ImageSpec(lookback, height=HEIGHTS[lookback], ma=(lookback,) if ma else (), volume=volume)
        for lookback, ma, volume in itertools.product(options.lookbacks, (False, True), (False, True))
    ]
    table = sweep(panel, specs, options)
    print()
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=120, float_precision=3):
        print(table)
    table.write_csv(options.folder / "sweep_specs.csv")
    draw(panel, specs, table, options.folder / "sweep_specs.png")
    best = table.sort("accuracy", descending=True).row(0, named=True)
    print(
        f"best: {best['lookback']} bars, MA {'on' if best['ma'] else 'off'}, volume "
        f"{'on' if best['volume'] else 'off'}, {best['accuracy']:.3f} of at most {BEST}; "
        f"{len(specs)} specs in {perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
