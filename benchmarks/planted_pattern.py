"""How well jkx5 learns a planted pattern whose best accuracy is known to be .65.

    python benchmarks/planted_pattern.py [--instruments 300] [--bars 700] [--threads 2]

Measured on one thread of a shared 2-core machine: 720 CPU seconds, 108,856 training images, one epoch,
accuracy .6468 on 39,177 later images (standard error .0024). Prints the same for this machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

import pricepix as pp
from pricepix import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instruments", type=int, default=300)
    parser.add_argument("--bars", type=int, default=700)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    table = pp.samples.simulate(
        options.instruments, options.bars, bayes_accuracy=0.65, horizon=5, seed=0, delist_rate=0, split_rate=0
    )
    store = pp.render_universe(table, "jkx5", None, horizons=(5,))
    cut = store.index["time"].unique().sort()[int(0.8 * (options.bars - 20))]
    torch.set_num_threads(options.threads)
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = train.fit(
            store, "jkx5", out=Path(folder) / "run", test=(str(cut.date()), None), lr=4e-4, epochs=1,
            schedule="cosine", warmup_epochs=0.05, validations=2, optimizer="adamw", weight_decay=0.01,
        )  # fmt: skip
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{len(result.folds[0].fold.train):,} training images, {wall:.0f} s, {cpu:.0f} CPU seconds")
    print(f"test: {result.test}")


if __name__ == "__main__":
    main()
