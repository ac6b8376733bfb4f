"""The replication on a simulated market, in which half of the names carry a pattern of known accuracy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from pricepix.bars.panel import Panel
from pricepix.factor.evaluation.universe import Universe
from pricepix.paper.cells import cells_of
from pricepix.paper.choice_of_tables import Tables
from pricepix.paper.replication import Replication, run_replication
from pricepix.paper.sections import Request
from pricepix.paper.training import Training
from pricepix.paper.truth import Truth
from pricepix.samples import simulate
from pricepix.train.hyper import Hyper
from pricepix.train.splits import RandomSplit, TimeSplit

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["demo", "planted_market"]

ACCURACY: Final = 0.70
HORIZON: Final = 5
_CELLS: Final = ("I5/R5", "I20/R5", "I5/R20", "I20/R20", "I60/R250")
_HYPER: Final = Hyper(lr=2e-3, batch_size=128, epochs=2, patience=2)


def demo(
    out: str | os.PathLike[str] = "paper-demo",
    *,
    names: int = 40,
    bars: int = 560,
    seeds: int = 2,
    client: Client | None = None,
    echo: Callable[[str], Any] = print,
) -> Replication:
    """Replicate the paper on a small simulated market: some minutes on two cores.

    Half of the names carry a pattern: the shadow of a bar tells the sign of the return over the next 5, in 70 of 100
    cases. The others are a random walk. The page says how often each network was right on either half.

    Parameters
    ----------
    out : str or path
        The folder; a demo that was interrupted is resumed.
    names, bars : int
        Size of the market.
    seeds : int
    client : distributed.Client, optional
    echo : callable
        Takes a line on what is planned and done.

    Returns
    -------
    Replication
    """
    table, signal = planted_market(names, bars)
    panel = Panel.from_table(table, progress=False)
    # Half trains: a third would be too few bars.
    tested = (panel.stamp(int(panel.calendar[len(panel.calendar) // 2]))[:10], None)
    request = Request(
        cells=cells_of(_CELLS),
        splits={"paper": RandomSplit(0.7, test=tested), "time": TimeSplit(test=tested)},
        models=("cnn", "cnn1d:image", "logistic:image"),
        seeds=seeds,
        tables=Tables(),
        universe=Universe(),
        markets={},
    )
    # Small networks that learn fast, on every bar: the market has a hundredth of CRSP's windows.
    training = Training(every="bar", hyper=_HYPER, channels=0.0625, threads=1)
    return run_replication(
        panel, Path(out), request, training, client, echo,
        title="(Re-)Imag(in)ing Price Trends on a simulated market", truth=Truth(signal, ACCURACY, HORIZON),
    )  # fmt: skip


def planted_market(names: int, bars: int, seed: int = 11) -> tuple[pl.DataFrame, np.ndarray]:
    """Simulate a market, half of whose names carry a pattern.

    Returns
    -------
    polars.DataFrame
        Bars by instrument and time, with total returns and market caps; planted names begin with ``P``.
    numpy.ndarray, int8 (rows,)
        The planted signal of each row, 0 where there is none.
    """
    half = names // 2
    shared: dict[str, Any] = {"split_rate": 0.0, "halt_rate": 0.0005, "halts": "absent", "correlation": 0.2}
    planted = simulate(
        half, bars, seed=seed, bayes_accuracy=ACCURACY, horizon=HORIZON, delist_rate=0.0, **shared
    )
    walk = simulate(names - half, bars, seed=seed + 1, **shared)
    parts = [
        planted.with_columns(instrument="P" + pl.col("instrument").str.slice(1)),
        walk.with_columns(instrument="W" + pl.col("instrument").str.slice(1), signal=pl.lit(0, pl.Int8)),
    ]
    table = pl.concat(parts, how="diagonal_relaxed").sort("instrument", "time")
    # Shares outstanding differ from name to name and stay: caps move with prices.
    rng = np.random.default_rng(seed)
    shares = dict(
        zip(table["instrument"].unique(maintain_order=True), np.exp(rng.normal(17, 1.5, names)), strict=True)
    )
    outstanding = table["instrument"].replace_strict(shares, return_dtype=pl.Float64)
    signal = table["signal"].to_numpy().astype(np.int8)
    return table.drop("signal").with_columns(market_cap=table["close"] * outstanding), signal
