"""Coverage-guided fuzzing of every parser of foreign bytes, with atheris; `make fuzz` runs each for a minute.

    python tests/fuzz_parsers.py store-root -max_total_time=3600     # any option of libFuzzer

A corpus of sound files is made anew; what fuzzing adds lies beside it, below --corpus if that is given. A parser may
answer, or raise a clear error of ours. Anything else is a crash, and so are ten seconds or a gigabyte.
"""

from __future__ import annotations

import importlib
import io
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

import atheris
import numpy as np

import pricepix as pp
from pricepix.bars import tables, values
from pricepix.bars.options import ReadOptions
from pricepix.factor import open_cache, score
from pricepix.store import format as store_format
from pricepix.store.chunks import ChunkFormat, with_checksum
from pricepix.store.format import ROOT, metadata_digest
from pricepix.store.sealed_files import (
    read_sealed_json,
    read_sealed_yaml,
    write_sealed_json,
    write_sealed_yaml,
)
from pricepix.store.summary import summary
from pricepix.train import checkpoints, models
from pricepix.train.journal import _encode, read_rows
from pricepix.workflow.config import load_config

# What looks into bytes. Compiled functions cannot be instrumented, so that these are one by one.
INSTRUMENTED = [
    "pricepix.location", "pricepix._checks", "pricepix.store.attributes", "pricepix.store.blosc",
    "pricepix.store.chunks", "pricepix.store.format", "pricepix.store.objects", "pricepix.store.sealed_files",
    "pricepix.factor.cache_attributes", "pricepix.factor.cache_objects", "pricepix.bars.columns",
    "pricepix.bars.expansion", "pricepix.bars.tables", "pricepix.bars.times", "pricepix.bars.values",
    "pricepix.workflow.config", "pricepix.train.checkpoints", "pricepix.train.network_spec",
    "pricepix.train.journal",
]  # fmt: skip
PACKAGE = str(Path(pp.__file__).parent)
DEFAULTS = [
    "-max_total_time=60",
    "-timeout=10",
    "-rss_limit_mb=2000",
    "-max_len=65536",
    "-print_final_stats=1",
]


class Target(NamedTuple):
    """Sound bytes to begin with, and what reads such bytes."""

    seeds: list[bytes]
    parse: Callable[[bytes], object]


def instrument() -> None:
    """Let atheris see which lines the parsers run."""
    for name in INSTRUMENTED:
        module = importlib.import_module(name)
        own = [value for value in vars(module).values() if getattr(value, "__module__", None) == name]
        inner = [value for owner in own if isinstance(owner, type) for value in vars(owner).values()]
        for function in [*own, *inner]:
            if isinstance(function, FunctionType):
                atheris.instrument_func(function)


def file_target(path: Path, seeds: list[bytes], read: Callable[[Path], object]) -> Target:
    def parse(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return Target(seeds, parse)


def with_digest(content: bytes) -> bytes:
    """Give metadata the digest that fits, as whoever means harm does; other bytes stay as they are."""
    try:
        root = json.loads(content)
        root["attributes"]["metadata_digest"] = metadata_digest(root)
        return json.dumps(root).encode()
    except Exception:
        return content


def store_targets(folder: Path) -> dict[str, Target]:
    panel = pp.Panel.from_table(pp.samples.simulate(3, 40, seed=5), adjust="multiply", progress=False)
    store, cache = folder / "store", folder / "cache"
    pp.render_universe(panel, "jkx5", store, horizons=(5,), layout="bits", chunk=64, progress=False)
    score(store, white, cache, progress=False)

    def root_target(place: Path, read: Callable[[], object]) -> Target:
        seed = (place / ROOT).read_bytes()

        def parse(content: bytes) -> object:
            (place / ROOT).write_bytes(with_digest(content))
            return read()

        return Target([seed], parse)

    def read_cache() -> None:
        found = open_cache(cache)
        repr(found)
        found.matrix()

    columns = store_format.columns(())
    names = store_format.encode_strings(np.array(["A", "BB", "é"]))
    sums = store_format.encode_column(columns[0], np.arange(9))
    forms = {name: ChunkFormat(name, 32, 15, 64) for name in ("bits", "uint8")}
    bits = np.zeros((64, forms["bits"].packed_bytes), np.uint8)
    bits[:, :10] = np.arange(10)
    found = {
        "store-root": root_target(store, lambda: summary(pp.open_store(store))),
        "cache-root": root_target(cache, read_cache),
        "names": Target(
            [names[:-4]], lambda c: store_format.decode("instruments", None, with_checksum(c), 3)
        ),
        "manifest": Target(
            [sums[:-4]], lambda c: store_format.decode("checksums", "<u4", with_checksum(c), 1 << 18)
        ),
    }
    for name, form in forms.items():
        found[f"chunk-{name}"] = Target(
            [form.encode(bits)[:-4]], lambda c, form=form: form.decode(with_checksum(c), 64)
        )
    return found


def white(images: np.ndarray) -> np.ndarray:
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


def run_targets(folder: Path) -> dict[str, Target]:
    write_sealed_json(folder / "a.json", {"steps": 5})
    write_sealed_yaml(folder / "a.yaml", {"ensemble": 1, "folds": [{"name": "0"}]})
    row = dict.fromkeys(
        ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "images_per_second"), 0.5
    )
    model, packed = models.PriceCNN(models.CNNSpec("small", 8, 6, (models.ConvBlock(2),))), io.BytesIO()
    content = checkpoints.describe(model) | {"version": 1, "state_dict": model.state_dict()}
    checkpoints.torch.save(content, packed)
    foreign = io.BytesIO()
    checkpoints.torch.save({"fc.weight": checkpoints.torch.zeros(2, 7)}, foreign)
    return {
        "run-json": file_target(folder / "b.json", [(folder / "a.json").read_bytes()], read_sealed_json),
        "run-yaml": file_target(folder / "b.yaml", [(folder / "a.yaml").read_bytes()], read_sealed_yaml),
        "run-metrics": file_target(folder / "m.csv", [_encode([{"step": 5, "epoch": 0, **row}])], read_rows),
        "checkpoint": file_target(
            folder / "net.ckpt", [packed.getvalue(), foreign.getvalue()], checkpoints.load_model
        ),
    }


def read_table(path: Path) -> None:
    parts = tables.read(path, ReadOptions())
    if any(part.rows for part in parts):
        names = values.prepare_values(parts, ())
        tables.instrument_runs(parts)
        tables.read_times(parts, ReadOptions().times)
        for _ in values.blocks(parts, names):
            pass


def table_targets(folder: Path) -> dict[str, Target]:
    frame, parquet = pp.samples.simulate(2, 12, seed=1), io.BytesIO()
    frame.write_parquet(parquet)
    config = (
        b"out: a\ndata: &d {sample: simulate, simulate: {instruments: 5}}\nimage: {preset: jkx5}\nstore: {}\n"
    )
    header = b"instrument,date,open,high,low,close,volume\n"
    return {
        "table-csv": file_target(folder / "a.csv", [frame.write_csv().encode(), header], read_table),
        "table-parquet": file_target(folder / "a.parquet", [parquet.getvalue()], read_table),
        "yaml": file_target(folder / "config.yaml", [config, b"a: &a [*a]\n"], load_config),
    }


def one_input(parse: Callable[[bytes], object], content: bytes) -> None:
    """Parse once; an error that is not ours, or not clear, is a crash."""
    try:
        parse(content)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if not traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE):
            # Of chunks, whose readers name them: the libraries' own.
            if type(error) in (ValueError, RuntimeError) and parse.__name__ == "<lambda>":
                return
            raise
        if not all(c.isprintable() or c == "\n" for c in str(error)):
            raise AssertionError(f"not printable: {error!r}") from error


def main() -> None:
    # An empty folder for each process: libFuzzer may start several.
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    targets = {**store_targets(folder), **run_targets(folder), **table_targets(folder)}
    if len(sys.argv) < 2 or sys.argv[1] not in targets:
        sys.exit(f"give one of {', '.join(targets)}, and options of libFuzzer")
    target = targets[sys.argv[1]]
    instrument()
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(target.seeds):
        (corpus / f"seed{i}").write_bytes(seed)
        one_input(target.parse, seed)
    atheris.Setup(
        [sys.argv[0], str(corpus), *DEFAULTS, *sys.argv[2:]], lambda content: one_input(target.parse, content)
    )
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
