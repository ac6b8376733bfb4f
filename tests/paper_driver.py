"""A small replication in a process of its own, which a test may kill: ``python paper_driver.py OUT``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import pricepix as pp
from pricepix import samples
from pricepix.paper import Training
from pricepix.train.hyper import Hyper

SMALL = pp.train.CNNSpec("small", 32, 15, (pp.train.ConvBlock(2, pool=(4, 1)),))
TRAINING = Training(
    every="bar",
    hyper=Hyper(lr=1e-3, batch_size=64, epochs=2, validations=2, patience=None),
    channels=0.03,
    networks={(32, 15): SMALL},
    device="cpu",
    threads=1,
    checkpoint_minutes=0.0,
)


def small_panel(bars: int = 200, seed: int = 6, **changes: Any) -> pp.Panel:
    table = samples.simulate(14, bars, seed=seed, list_late=0, delist_rate=0.0, split_rate=0.0, **changes)
    return pp.Panel.from_table(table.with_columns(market_cap=table["close"] * 1e6), progress=False)


def replicate(out: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "cells": ["I5/R5"], "seeds": 2, "splits": ["paper", "time"], "training": TRAINING, "echo": lambda line: None,
        "tables": ["I", "IV", "IX"], "controls": "cnn1d",
    }  # fmt: skip
    return pp.paper.replicate(changes.pop("panel", None) or small_panel(), out, **(settings | changes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    replicate(Path(sys.argv[1]))
