"""Every parser of foreign bytes, on bytes that were sound until somebody changed them: an answer or a clear error.

The seeds are sound files and some that mean harm. Hypothesis changes them; PRICEPIX_FUZZ says how many times each.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pricepix as pp
from pricepix.bars import tables, values
from pricepix.bars.options import ReadOptions
from pricepix.location import Location, read_yaml
from pricepix.store import format as store_format
from pricepix.store.chunks import ChunkFormat, with_checksum
from pricepix.store.format import ROOT, metadata_digest
from pricepix.store.objects import HISTORY
from pricepix.store.summary import summary
from pricepix.workflow.config import load_config

PACKAGE = str(Path(pp.__file__).parent)
fuzzed = settings(max_examples=int(os.environ["PRICEPIX_FUZZ"]))

WORDS = [
    b"\0" * 4,
    b"\xff" * 4,
    b"\xff" * 8,
    b"[" * 200,
    b"9" * 50,
    b"-1",
    b"1e999",
    b"null",
    b"&a *a",
    b"\x1b]0;x\x07",
    b"\n",
    b",",
]
places = st.floats(0, 1, exclude_max=True)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), places, st.integers(0, 7)),
        st.tuples(st.just("put"), places, st.sampled_from(WORDS) | st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("insert"), places, st.sampled_from(WORDS)),
        st.tuples(st.just("cut"), places, st.integers(1, 64)),
        st.tuples(st.just("end"), places, st.none()),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


def changed(seed: bytes, steps: list[tuple[str, float, Any]]) -> bytes:
    content = bytearray(seed)
    for what, share, value in steps:
        at = int(share * len(content))
        if what == "flip" and content:
            content[at] ^= 1 << value
        elif what == "put":
            content[at : at + len(value)] = value
        elif what == "insert":
            content[at:at] = value
        elif what == "cut":
            del content[at : at + value]
        elif what == "end":
            del content[at:]
    return bytes(content)


def answers(parse: Callable[..., Any], *arguments: Any) -> None:
    """Run a parser: it may return, or raise one of our errors, raised by us."""
    found: Exception | None = None
    try:
        parse(*arguments)
    except (ValueError, TypeError, OSError) as error:
        found = error
    if found is not None:
        assert traceback.extract_tb(found.__traceback__)[-1].filename.startswith(PACKAGE), repr(found)
        assert all(c.isprintable() or c == "\n" for c in str(found)), repr(found)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    panel = pp.Panel.from_table(pp.samples.simulate(4, 40, seed=5), adjust="multiply", progress=False)
    made = tmp_path_factory.mktemp("fuzz") / "store"
    pp.render_universe(panel, "jkx5", made, horizons=(5,), layout="bits", chunk=64, progress=False)
    return made


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([0, -1, 2**31, 2**63, 10**18, "Mars/X", "bits", "\x1b[2J"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@fuzzed
@given(steps=changes)
def test_the_root_of_a_store(store: Path, tmp_path_factory: pytest.TempPathFactory, steps: Any) -> None:
    target = tmp_path_factory.mktemp("root") / "store"
    shutil.copytree(store, target)
    (target / ROOT).write_bytes(changed((store / ROOT).read_bytes(), steps))
    answers(lambda: summary(pp.open_store(target)))


@fuzzed
@given(name=st.data(), value=json_values)
def test_the_attributes_of_a_store(
    store: Path, tmp_path_factory: pytest.TempPathFactory, name: Any, value: Any
) -> None:
    target = tmp_path_factory.mktemp("attributes") / "store"
    shutil.copytree(store, target)
    root = json.loads((target / ROOT).read_text())
    root["attributes"][name.draw(st.sampled_from([*sorted(root["attributes"]), "pending", "shard"]))] = value
    root["attributes"]["metadata_digest"] = metadata_digest(root)
    (target / ROOT).write_text(json.dumps(root))
    answers(lambda: summary(pp.open_store(target)))


@fuzzed
@given(steps=changes, layout=st.sampled_from(["bits", "uint8"]))
def test_chunks_of_images(steps: Any, layout: str) -> None:
    form = ChunkFormat(layout, 32, 15, 64)
    bits = np.random.default_rng(3).integers(0, 256, (64, form.packed_bytes), np.uint8)
    bits[:, 10:] = 0
    # The checksum is made anew: whoever means harm does that too.
    stored = with_checksum(changed(form.encode(bits)[:-4], steps))
    with suppress(ValueError, RuntimeError):
        assert form.decode(stored, 64).shape == (64, 32, 15)


@fuzzed
@given(steps=changes, name=st.sampled_from(["time", "instruments", "checksums"]))
def test_chunks_of_the_index(steps: Any, name: str) -> None:
    seeds = {
        "time": (store_format.encode_column(store_format.columns(())[1], np.arange(100)), "<i8", 1 << 18),
        "instruments": (store_format.encode_strings(np.array(["A", "BB", "é"])), None, 3),
        "checksums": (store_format.encode_column(store_format.columns(())[0], np.arange(9)), "<u4", 1 << 18),
    }
    stored, dtype, count = seeds[name]
    with suppress(ValueError, RuntimeError):
        found = store_format.decode(name, dtype, with_checksum(changed(stored[:-4], steps)), count)
        assert len(found) == count


@fuzzed
@given(steps=changes)
def test_the_history_of_appends(store: Path, steps: Any) -> None:
    opened = pp.open_store(store).objects
    digest = opened.attrs["metadata_digest"]
    history = json.dumps(
        [{"before": "x", "after": digest, "kept": 5}, {"before": digest, "after": "y", "kept": 7}]
    )
    opened.location = Location.of("memory://fuzz")
    opened.location.put(HISTORY, changed(history.encode(), steps))
    assert 0 <= opened.shared_prefix_length(opened) <= len(opened)


YAML = """
out: runs/a
data: &data {sample: simulate, simulate: {instruments: 5}}
image: {preset: jkx5, ma: [5, 20]}
store: {horizons: [5, 20], start: 2020-01-01}
train: {model: jkx5, settings: {lr: 1.0e-4}}
"""


@fuzzed
@given(steps=changes)
def test_configurations(tmp_path_factory: pytest.TempPathFactory, steps: Any) -> None:
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_bytes(changed(YAML.encode(), steps))
    answers(read_yaml, path)
    answers(load_config, path)


@fuzzed
@given(text=st.text(alphabet="ab:&*!-[]{}<>,'\"? \n#|%@", max_size=60))
def test_yaml_of_no_sense(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(text)
    answers(read_yaml, path)


def read_table(path: Path) -> None:
    parts = tables.read(path, ReadOptions())
    if not any(part.rows for part in parts):
        return
    names = values.prepare_values(parts, ())
    tables.instrument_runs(parts)
    tables.read_times(parts, ReadOptions().times)
    for _ in values.blocks(parts, names):
        pass


@fuzzed
@given(steps=changes, suffix=st.sampled_from(["csv", "csv.gz", "parquet", "feather"]))
def test_tables(tmp_path_factory: pytest.TempPathFactory, steps: Any, suffix: str) -> None:
    frame, packed = pp.samples.simulate(2, 12, seed=1), io.BytesIO()
    if suffix in ("csv", "csv.gz"):
        packed.write(frame.write_csv().encode())
    elif suffix == "parquet":
        frame.write_parquet(packed)
    else:
        frame.write_ipc(packed)
    content = changed(packed.getvalue(), steps)
    path = tmp_path_factory.mktemp("table") / f"bars.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == "csv.gz" else content)
    answers(read_table, path)


@fuzzed
@given(steps=changes)
def test_headers_of_tables(tmp_path_factory: pytest.TempPathFactory, steps: Any) -> None:
    header = changed(b"instrument,date,open,high,low,close,volume\n", steps)
    path = tmp_path_factory.mktemp("table") / "bars.csv"
    path.write_bytes(header + b"A,2020-01-02,1,1,1,1,5\n")
    answers(read_table, path)


@fuzzed
@given(steps=changes)
def test_checkpoints(tmp_path_factory: pytest.TempPathFactory, steps: Any) -> None:
    torch = pytest.importorskip("torch")
    checkpoints = pytest.importorskip("pricepix.train.checkpoints")
    models = pytest.importorskip("pricepix.train.models")
    blocks = (models.ConvBlock(2),)
    model, packed = models.PriceCNN(models.CNNSpec("small", 8, 6, blocks)), io.BytesIO()
    # Version 1 has no checksum, which would find every change.
    content = checkpoints.describe(model) | {"version": 1, "state_dict": model.state_dict()}
    torch.save(content, packed)
    path = tmp_path_factory.mktemp("net") / "net.ckpt"
    path.write_bytes(changed(packed.getvalue(), steps))
    answers(checkpoints.load_model, path)
