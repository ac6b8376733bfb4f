"""Makes ``bundled.parquet``, the sample table of bars that every installation has: simulated, reproducible."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import polars as pl

from pricepix.samples.daily import simulate

__all__ = ["NAMES", "make"]

NAMES: Final = (
    "ALDER",
    "BIRCH",
    "CEDAR",
    "ELM",
    "FIR",
    "HAZEL",
    "LARCH",
    "MAPLE",
    "OAK",
    "PINE",
    "ROWAN",
    "YEW",
)


def make() -> pl.DataFrame:
    """Return the table: twelve made-up stocks over 750 trading days, of a random walk without any pattern."""
    bars = simulate(
        len(NAMES),
        750,
        seed=20,
        start="2021-01-04",
        correlation=0.3,
        halt_rate=0.002,
        split_rate=0.0008,
        delist_rate=0.0003,
    )
    named = dict(zip((f"S{k:04d}" for k in range(len(NAMES))), NAMES, strict=True))
    return bars.with_columns(pl.col("instrument").replace_strict(named, return_dtype=pl.String)).rename(
        {"instrument": "symbol", "time": "date"}
    )


def write(path: Path) -> None:
    """Write the table as Parquet."""
    make().write_parquet(path, compression="zstd", compression_level=19, statistics=False)


if __name__ == "__main__":
    write(Path(__file__).with_name("bundled.parquet"))
