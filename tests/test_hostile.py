"""Files that mean harm: each is answered by one clear error of ours, soon and in little memory."""

from __future__ import annotations

import datetime as dt
import gzip
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from numcodecs.zstd import Zstd

import pricepix as pp
from pricepix.cli import main
from pricepix.factor.exports import write_csv
from pricepix.store import format as store_format
from pricepix.store.chunks import with_checksum
from pricepix.store.format import ROOT, dump, metadata_digest

HERE = Path(__file__).parent
PACKAGE = str(HERE.parent / "pricepix")
# Bounds against hostile files, not measurements: an idle machine takes a tenth.
SECONDS, MEGABYTES = 20, 200
FLIPS = 10 * int(os.environ["PRICEPIX_FUZZ"])


class Driver:
    """The process of hostile_driver.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "hostile_driver.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parent), "POLARS_MAX_THREADS": "2"},
        )  # fmt: skip

    def __call__(self, code: str, path: Path | str, **options: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([code, str(path), options]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if log := os.environ.get("PRICEPIX_HOSTILE_LOG"):
            with open(log, "a") as file:
                file.write(json.dumps({"test": os.environ.get("PYTEST_CURRENT_TEST"), **answer}) + "\n")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def run():
    driver = Driver()
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def refused(run: Driver) -> Callable[..., str]:
    """Function that runs code and returns the message of the one clear error in which it must end."""

    def check(code: str, path: Path | str, **options: Any) -> str:
        answer = run(code, path, **{"timeout": SECONDS, **options})
        assert answer["error"] in ("ValueError", "TypeError", "OSError", "MemoryError", "TimeoutError"), (
            answer
        )
        assert answer["raised_in"].startswith(PACKAGE), answer
        assert answer["megabytes"] < MEGABYTES, answer
        message = str(answer["message"])
        assert len(message) < 3000, answer
        assert all(c.isprintable() or c == "\n" for c in message), answer
        return message

    return check


# ---------------------------------------------------------------------------------------------------- stores


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    panel = pp.Panel.from_table(pp.samples.simulate(6, 60, seed=5), adjust="multiply", progress=False)
    made = tmp_path_factory.mktemp("sound") / "store"
    pp.render_universe(panel, "jkx5", made, horizons=(5,), layout="bits", chunk=64, progress=False)
    return made


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    target = tmp_path / "store"
    shutil.copytree(sound, target)
    return target


def set_attributes(store: Path, **changes: Any) -> None:
    """Change attributes of a store, and the digest with them, as whoever means harm would."""
    root = json.loads((store / ROOT).read_text())
    root["attributes"].update(changes)
    root["attributes"]["metadata_digest"] = metadata_digest(root)
    (store / ROOT).write_bytes(dump(root))


def set_checksum(store: Path, array: str, content: bytes) -> None:
    """Replace the only chunk of an array, and its checksum with it."""
    objects = pp.open_store(store).objects
    sums = objects.checksums.copy()
    sums[objects.geometry.checksum_slices()[array].start] = int.from_bytes(content[-4:], "little")
    (store / store_format.chunk_key(array, 0)).write_bytes(content)
    (store / store_format.chunk_key("checksums", 0)).write_bytes(
        with_checksum(bytes(Zstd(level=1).encode(sums.astype("<u4"))))
    )
    set_attributes(store, checksums_digest=store_format.checksums_digest(sums))


def zstd_bomb(size: int) -> bytes:
    """A zstd frame (RFC 8878) of `size` zeros: its header says so, and blocks of 128 kB repeat one byte."""
    blocks, rest = divmod(size, 1 << 17)
    sizes = [1 << 17] * blocks + ([rest] if rest else [])
    body = b"".join(
        (length << 3 | 1 << 1 | (i == len(sizes) - 1)).to_bytes(3, "little") + b"\0"
        for i, length in enumerate(sizes)
    )
    return b"\x28\xb5\x2f\xfd" + bytes([0b11_1_00000]) + size.to_bytes(8, "little") + body


def test_a_checksum_chunk_that_expands(refused, store: Path) -> None:
    (store / "checksums/c/0").write_bytes(with_checksum(zstd_bomb(4 << 30)))
    assert "checksums/c/0" in refused("pp.open_store(path)", store)


def test_a_header_of_two_billion_names(refused, store: Path) -> None:
    raw = (2**31 - 1).to_bytes(4, "little") + b"\0" * 100
    content = with_checksum(bytes(Zstd(level=1).encode(raw)))
    set_checksum(store, "instruments", content)
    assert "instruments/c/0" in refused("pp.open_store(path).instruments", store)


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": 10**18}, {"windows": -1}, {"windows": 10**12}, {"windows": "9"}, {"windows": None},
        {"windows": 1.5},
        {"instruments": 10**18}, {"instruments": -1}, {"instruments": [1]},
        {"chunk": 0}, {"chunk": -1}, {"chunk": 10**12}, {"chunk": 2**31}, {"chunk": None},
        {"shard": 10**15}, {"shard": -64}, {"shard": 63}, {"shard": "x"},
        {"layout": "gif"}, {"layout": None}, {"compressed": "no"},
        {"horizons": None}, {"horizons": [0]}, {"horizons": ["a"]}, {"horizons": [10**30]}, {"horizons": {"a": 1}},
        {"horizons": list(range(1, 20000))},
        {"spec": None}, {"spec": []}, {"spec": {"lookback": 10**9}}, {"spec": {"lookback": {}}},
        {"spec": {"lookback": 5, "height": 10**9}}, {"spec": {"lookback": 5, "ma": [[]]}},
        {"tz": "Mars/X"}, {"tz": 5}, {"tz": "../../etc/passwd"},
        {"drop_counts": 5}, {"drop_counts": {"a": "b"}},
        {"format_version": [1]}, {"complete": 0}, {"checksums_digest": 7},
    ],
    ids=str,
)  # fmt: skip
def test_attributes_that_cannot_be(refused, store: Path, changes: dict[str, Any]) -> None:
    set_attributes(store, **changes)
    message = refused(
        "from pricepix.store.summary import summary; print(summary(pp.open_store(path)))", store
    )
    assert str(store) in message


def test_an_append_that_deletes_elsewhere(run: Driver, store: Path, tmp_path: Path) -> None:
    for name, key in (("other", str(tmp_path / "other")), ("beside", "../beside")):
        (tmp_path / name).write_text("mine")
        set_attributes(store, pending={"delete": [key]})
        run("pp.open_store(path)", store)
        assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("pending", [5, {}, {"delete": 5}, {"delete": [5]}], ids=str)
def test_an_append_that_says_nothing(refused, store: Path, pending: Any) -> None:
    set_attributes(store, pending=pending)
    assert str(store) in refused("pp.open_store(path)", store)


@pytest.mark.parametrize(
    "key", ["zarr.json", "checksums/c/0", "time/c/0", "instruments/c/0", "images/c/0/0/0"]
)
@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "sparse", "empty"])
def test_what_is_no_regular_file(refused, store: Path, key: str, kind: str) -> None:
    (store / key).unlink()
    if kind == "pipe":
        os.mkfifo(store / key)
    elif kind == "zero":
        (store / key).symlink_to("/dev/zero")
    elif kind == "folder":
        (store / key).mkdir()
    else:
        with open(store / key, "wb") as file:
            file.truncate((1 << 40) if kind == "sparse" else 0)
    code = "s = pp.open_store(path); s.read([0]); s.index"
    assert key in refused(code, store)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{}", "[]", "null", "5", '{"zarr_format": 3, "node_type": "group", "attributes": 5}', "\0",
     '{"zarr_format": 3, "node_type": "group", "attributes": {"format_version": ' + "9" * 4000 + ', "spec": 1}}'],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_metadata_of_another_kind(refused, store: Path, text: str) -> None:
    (store / ROOT).write_text(text)
    assert str(store) in refused("pp.open_store(path)", store)


def test_images_that_expand(refused, store: Path) -> None:
    objects = pp.open_store(store).objects
    stored = bytearray((store / "images/c/0/0/0").read_bytes()[:-4])
    stored[4:8] = (2**31 - 1).to_bytes(4, "little")
    content = with_checksum(bytes(stored))
    sums = objects.checksums.copy()
    sums[0] = int.from_bytes(content[-4:], "little")
    (store / "images/c/0/0/0").write_bytes(content)
    (store / "checksums/c/0").write_bytes(with_checksum(bytes(Zstd(level=1).encode(sums))))
    set_attributes(store, checksums_digest=store_format.checksums_digest(sums))
    assert "images/c/0/0/0" in refused("pp.open_store(path).read([0])", store)


def test_names_of_which_one_is_long(refused, store: Path) -> None:
    count = 100_000
    raw = count.to_bytes(4, "little") + b"".join((1).to_bytes(4, "little") + b"x" for _ in range(count - 1))
    raw += (4000).to_bytes(4, "little") + b"y" * 4000
    set_attributes(store, instruments=count)
    set_checksum(store, "instruments", with_checksum(bytes(Zstd(level=1).encode(raw))))
    assert "max_bytes" in refused("pp.open_store(path).instruments", store)


# -------------------------------------------------------------------------------------------- factor caches


@pytest.fixture(scope="module")
def sound_cache(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pricepix.factor import score

    target = tmp_path_factory.mktemp("sound") / "factor"
    score(sound, white, target, progress=False)
    return target


def white(images: np.ndarray) -> np.ndarray:
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture
def cache(sound_cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_cache, tmp_path / "factor"))


READ_CACHE = "import pricepix.factor as f; c = f.open_cache(path); repr(c); c.matrix(); c.to_polars()"


def set_cache(cache: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the metadata of a cache, and the digest with them."""
    root = json.loads((cache / ROOT).read_text())
    change(root)
    root["attributes"]["metadata_digest"] = metadata_digest(root)
    (cache / ROOT).write_bytes(dump(root))


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": None}, {"spec": {"lookback": 10**9}}, {"windows": "9"}, {"windows": -1}, {"windows": 10**30},
        {"shift": -(10**30)}, {"shift": 10**30}, {"shift": None}, {"tz": "Mars/X"}, {"tz": 5}, {"model": None},
        {"model": {"name": 5}}, {"skipped": []}, {"without_value": "x"}, {"store_digest": 5}, {"format_version": [1]},
        {"checksums_digest": None}, {"values": []},
    ],
    ids=str,
)  # fmt: skip
def test_attributes_that_cannot_be_those_of_a_cache(refused, cache: Path, changes: dict[str, Any]) -> None:
    set_cache(cache, lambda root: root["attributes"].update(changes))
    assert str(cache) in refused(READ_CACHE, cache)


SHAPES: dict[str, Any] = {
    "names": {"factor": (1, 10**9), "instrument": (0, 10**9)},
    "days": {"factor": (0, 10**9), "day": (0, 10**9), "time": (0, 10**9)},
    "only values": {"factor": (1, 10**9)},
    "negative": {"factor": (1, -5)},
    "text": {"factor": (1, "x")},
    "huge": {"factor": (1, 10**30), "instrument": (0, 10**30)},
}


@pytest.mark.parametrize("blocks", [False, True], ids=["", "one chunk"])
@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_no_object_fills(refused, cache: Path, case: str, blocks: bool) -> None:
    """Of the issue: a cache of shape (192, 10^9, 1) that asked for 715 GiB."""

    def change(root: dict[str, Any]) -> None:
        members = root["consolidated_metadata"]["metadata"]
        for name, (axis, size) in SHAPES[case].items():
            members[name]["shape"][axis] = size
            if blocks and case == "names":
                members[name]["chunk_grid"]["configuration"]["chunk_shape"][axis] = size

    set_cache(cache, change)
    assert str(cache) in refused(READ_CACHE, cache)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: root.pop("consolidated_metadata"),
        lambda root: root["consolidated_metadata"].update(metadata=5),
        lambda root: root["consolidated_metadata"]["metadata"].pop("time"),
        lambda root: root["consolidated_metadata"]["metadata"]["time"].pop("codecs"),
        lambda root: root["consolidated_metadata"]["metadata"]["factor"].update(data_type="float64"),
        lambda root: root["consolidated_metadata"]["metadata"]["factor"].update(
            codecs=[{"name": "numcodecs.zlib"}]
        ),
        lambda root: root["consolidated_metadata"]["metadata"]["factor"].update(shape=[1] * 30),
        lambda root: root["consolidated_metadata"]["metadata"]["factor"]["chunk_grid"][
            "configuration"
        ].update(chunk_shape=[0, 0, 0]),
    ],
)
def test_arrays_that_cannot_be_those_of_a_cache(refused, cache: Path, change: Any) -> None:
    set_cache(cache, change)
    assert str(cache) in refused(READ_CACHE, cache)


@pytest.mark.parametrize(
    "key",
    ["zarr.json", "integrity/checksums/c/0", "day/c/0", "time/c/0/0", "instrument/c/0", "factor/c/9/0/0"],
)
@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "sparse", "empty", "bomb"])
def test_what_is_no_object_of_a_cache(refused, cache: Path, key: str, kind: str) -> None:
    replace_by(cache / key, kind)
    assert key in refused(READ_CACHE, cache)


def replace_by(path: Path, kind: str) -> None:
    """Put something else in the place of a file."""
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "bomb":
        path.write_bytes(with_checksum(zstd_bomb(4 << 30)))
    else:
        with open(path, "wb") as file:
            file.truncate((1 << 40) if kind == "sparse" else 0)


def set_cache_chunk(cache: Path, key: str, content: bytes) -> None:
    """Replace a chunk of a cache, and its checksum with it."""
    from pricepix.factor.cache_format import CHECKSUM_KEY, table_digest
    from pricepix.factor.cache_objects import CacheObjects, cache_location
    from pricepix.store.chunks import seal

    objects = CacheObjects.open(cache_location(cache))
    sums = {**objects.checksums, key: int.from_bytes(content[-4:], "little")}
    table = np.array(list(sums.values()), np.int64)
    (cache / key).write_bytes(content)
    (cache / CHECKSUM_KEY).write_bytes(seal(table))
    set_cache(cache, lambda root: root["attributes"].update(checksums_digest=table_digest(table)))


@pytest.mark.parametrize("key", ["day/c/0", "instrument/c/0", "interval/c/0", "factor/c/9/0/0"])
@pytest.mark.parametrize("what", ["bomb", "header"])
def test_chunks_of_a_cache_that_expand(refused, cache: Path, key: str, what: str) -> None:
    raw = (2**31 - 1).to_bytes(4, "little") + b"\0" * 100
    content = zstd_bomb(4 << 30) if what == "bomb" else bytes(Zstd(level=1).encode(raw))
    set_cache_chunk(cache, key, with_checksum(content))
    assert key in refused(READ_CACHE, cache)


# ----------------------------------------------------------------------------------------------- checkpoints

torch = pytest.importorskip("torch")
LOAD = "import pricepix.train.checkpoints as c; c.load_model(path)"


def checkpoint(path: Path, spec: dict[str, Any] | None = None, **changes: Any) -> Path:
    from pricepix.train.checkpoints import describe
    from pricepix.train.models import PriceCNN

    model = PriceCNN("cnnft5")
    # Version 1 has no checksum: whoever means harm can make one.
    content = describe(model) | {"version": 1, "state_dict": model.state_dict()}
    content = {**content, "spec": {**content["spec"], **(spec or {})}, **changes}
    torch.save(content, path)
    return path


BLOCK = {"channels": 64}
SPECS: list[dict[str, Any]] = [
    {"height": 10**9}, {"height": 10**30}, {"height": 0}, {"height": "9"}, {"height": 32.5}, {"width": None},
    {"blocks": [BLOCK] * 100_000}, {"blocks": 5}, {"blocks": [5]}, {"blocks": [{}]}, {"blocks": "aa"},
    {"blocks": [BLOCK]},
    {"blocks": [{"channels": 10**9}]}, {"blocks": [{**BLOCK, "stride": [0, 0]}]},
    {"blocks": [{**BLOCK, "kernel": [10**9, 1]}]},
    {"blocks": [{**BLOCK, "padding": [10**6, 10**6]}]}, {"blocks": [{**BLOCK, "padding": [8000, 8000]}]},
    {"blocks": [{**BLOCK, "pool": [0, 0]}]}, {"blocks": [{**BLOCK, "dilation": 3}]}, {"blocks": [{**BLOCK, "what": 1}]},
    {"outputs": 10**10}, {"outputs": 0}, {"outputs": "2"}, {"dropout": "x"}, {"dropout": float("nan")},
    {"negative_slope": "x"}, {"conv_bias": float("inf")}, {"activation": []}, {"name": "\x1b]0;pwned\x07"}, {"name": 5},
    {"first_row": {}}, {"what": 1},
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec)[:60].encode("ascii", "replace").decode())
def test_checkpoints_of_networks_that_cannot_be(refused, tmp_path: Path, spec: dict[str, Any]) -> None:
    path = checkpoint(tmp_path / "net.ckpt", spec)
    assert str(path) in refused(LOAD, path)


@pytest.mark.parametrize(
    "changes",
    [
        {"state_dict": None}, {"state_dict": 5}, {"state_dict": {}}, {"state_dict": {"a": 1}}, {"spec": None},
        {"spec": 5}, {"metadata": None}, {"kind": None}, {"kind": []}, {"version": None}, {"version": [1]},
        {"format": 5},
    ],
    ids=str,
)  # fmt: skip
def test_checkpoints_of_other_values(refused, tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "net.ckpt"
    content = torch.load(checkpoint(path), weights_only=True) | changes
    torch.save(content, path)
    assert str(path) in refused(LOAD, path)


def test_a_checkpoint_that_repeats_a_value(refused, tmp_path: Path) -> None:
    path = tmp_path / "net.ckpt"
    content = torch.load(checkpoint(path), weights_only=True)
    weight = content["state_dict"]["linear.weight"]
    content["state_dict"]["linear.weight"] = torch.zeros(1).expand(weight.shape)
    torch.save(content, path)
    assert "linear.weight" in refused(LOAD, path)


@pytest.mark.parametrize("layout", ["sparse", "meta", "complex", "int"])
def test_a_checkpoint_of_other_tensors(refused, tmp_path: Path, layout: str) -> None:
    path = tmp_path / "net.ckpt"
    content = torch.load(checkpoint(path), weights_only=True)
    weight = content["state_dict"]["linear.weight"]
    made = {
        "sparse": weight.to_sparse, "meta": lambda: weight.to("meta"), "complex": lambda: weight.to(torch.complex64),
        "int": weight.long,
    }  # fmt: skip
    content["state_dict"]["linear.weight"] = made[layout]()
    torch.save(content, path)
    assert str(path) in refused(LOAD, path)


def test_a_checkpoint_that_is_compressed(refused, tmp_path: Path) -> None:
    path, packed = tmp_path / "net.ckpt", tmp_path / "packed.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(300 << 18)}}, path)
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    path.unlink()
    assert packed.stat().st_size < 2_000_000
    assert "compressed" in refused(LOAD, packed)


def test_a_checkpoint_that_makes_bytes(refused, tmp_path: Path) -> None:
    path = tmp_path / "net.ckpt"
    pickled = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85R."
    torch.save({"a": 1}, path)
    with zipfile.ZipFile(path) as source:
        entries = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name, content in entries.items():
            target.writestr(name, pickled if name.endswith("data.pkl") else content)
    assert str(path) in refused(LOAD, path)


@pytest.mark.parametrize("kind", ["pipe", "zero", "truncated", "empty", "text"])
def test_what_is_no_checkpoint(refused, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "net.ckpt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "truncated":
        whole = checkpoint(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_text("" if kind == "empty" else "spec")
    assert str(path) in refused(LOAD, path)


def foreign(path: Path, **changes: Any) -> Path:
    """Save a checkpoint of the authors' architecture."""
    state = {
        "conv_layers.0.0.weight": torch.zeros(64, 1, 5, 3),
        "fc.weight": torch.zeros(2, 15_360),
        **changes,
    }
    torch.save({"model_state_dict": state}, path)
    return path


@pytest.mark.parametrize(
    "tensors",
    [{"fc.weight": lambda: torch.zeros(5)}, {"fc.weight": lambda: torch.zeros(1).expand(10**9, 15_360)},
     {"conv_layers.1.0.weight": lambda: torch.zeros(1)}],
    ids=["flat", "expanded", "scalar"],
)  # fmt: skip
def test_checkpoints_of_other_projects(refused, tmp_path: Path, tensors: dict[str, Any]) -> None:
    path = foreign(tmp_path / "net.ckpt", **{name: make() for name, make in tensors.items()})
    assert str(path) in refused(LOAD, path)


# ----------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """The files of a run of one network, as training leaves them."""
    from pricepix.store.sealed_files import write_sealed_json, write_sealed_yaml
    from pricepix.train.checkpoints import describe, write_checkpoint
    from pricepix.train.journal import _encode
    from pricepix.train.models import CNNSpec, ConvBlock, PriceCNN

    folder, own = tmp_path / "run", tmp_path / "run" / "member_0"
    own.mkdir(parents=True)
    model = PriceCNN(CNNSpec("small", 32, 15, (ConvBlock(2),)))
    content = describe(model) | {"state_dict": model.state_dict()}
    write_sealed_yaml(folder / "config.yaml", {"ensemble": 1, "folds": [{"name": "0"}]})
    write_sealed_json(folder / "summary.json", {"folds": []})
    write_sealed_json(own / "done.json", {"steps": 5})
    write_checkpoint(content, own / "best.ckpt")
    write_checkpoint(content | {"training": {}}, own / "last.ckpt")
    row = dict.fromkeys(
        ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "images_per_second"), 0.5
    )
    (own / "metrics.csv").write_bytes(_encode([{"step": 5, "epoch": 0, **row}]))
    return folder


RUN_FILES = {
    "config.yaml": "import pricepix.train.run_folder as r; from pathlib import Path\n"
    "r.find_run_folder(Path(path).parent, 'a', {'horizon': 5}, True)",
    "summary.json": "import pricepix.store.sealed_files as r; r.read_sealed_json(path)",
    "member_0/done.json": "import pricepix.store.sealed_files as r; r.read_sealed_json(path)",
    "member_0/best.ckpt": LOAD,
    "member_0/last.ckpt": "import pricepix.train.checkpoints as c; from pathlib import Path\n"
    "c.read_checkpoint(Path(path))",
    "member_0/metrics.csv": "from pathlib import Path; import pricepix.train.journal as j\n"
    "k = j.Journal(Path(path).parent, 50); k.load_state_dict({'sums': [0, 0, 0], 'last_row': 5}); k.open(5)",
}


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "sparse", "empty"])
def test_what_is_no_file_of_a_run(refused, run: Driver, run_folder: Path, name: str, kind: str) -> None:
    path = run_folder / name
    replace_by(path, kind)
    if not (kind == "folder" and path.suffix == ".ckpt"):
        assert str(path) in refused(RUN_FILES[name], path)
    named = f"any({str(path)!r} in problem for problem in report.problems)"
    code = f"import pricepix.train as t; report = t.verify_run(path); assert {named}, report"
    answer = run(code, run_folder)
    assert answer["error"] is None, answer
    assert answer["megabytes"] < MEGABYTES, answer


# -------------------------------------------------------------------------------------------- configurations

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(30)
)
MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i + 1}: &a{i + 1}\n  <<: [{', '.join([f'*a{i}'] * 10)}]\n  k{i}: 1\n" for i in range(30)
)
DOCUMENTS = {
    "laughs": LAUGHS,
    "merges": MERGES,
    "deep lists": "[" * 10_000,
    "deep maps": "{a: " * 10_000 + "1" + "}" * 10_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(2000)),
    "itself": "a: &a [*a]",
    "later": "a: *b\nb: &b 1",
    "many": "a: [" + "1, " * 200_000 + "1]",
    "many lines": "- 1\n" * 20_000,
    "date": "a: 2020-99-99",
    "year": "a: 0000-01-01",
    "tag": "a: !!python/object/apply:os.system [ls]",
    "timestamp": "a: !!timestamp x",
    "int": "a: !!int x",
    "float": "a: !!float x",
    "digits": "a: " + "9" * 5000,
    "key": "? [1]\n: 2",
    "binary": "a: !!binary x",
    "omap": "a: !!omap 5",
    "null": "",
    "bytes": "\x00",
    "escape": 'a: "\\e]0;pwned\\a"\n"\\e]0;pwned\\a": 1',
    "long": "a: " + "x" * 2_000_000,
    "two": "a: 1\n---\nb: 2",
    "text": "hello",
    "bool": "!!bool x: 1",
    "set": "!!set [1]",
    "pairs": "!!pairs {a: b}",
    "faults": "\n".join(f"k{i}: 1" for i in range(2000)),
}


@pytest.mark.parametrize("reader", ["pipeline", "run", "project"])
@pytest.mark.parametrize("document", DOCUMENTS)
def test_configurations_that_mean_harm(refused, tmp_path: Path, document: str, reader: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(DOCUMENTS[document], encoding="utf-8")
    code = {
        "pipeline": "import pricepix.workflow.config as c; c.load_config(path)",
        "project": "import pricepix.workflow.other_projects as c; c.translate_config(path)",
        "run": "from pathlib import Path; import pricepix.train.run_folder as r\n"
        "r.find_run_folder(Path(path).parent, 'a', {'horizon': 5}, True)",
    }
    refused(code[reader], path)


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "sparse"])
def test_what_is_no_configuration(refused, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    assert str(path) in refused("import pricepix.workflow.config as c; c.load_config(path)", path)


# ---------------------------------------------------------------------------------------------------- tables

# Without the kernels, whose loading takes longer than any of these files does.
READ = """
from pricepix.bars import tables, values
from pricepix.bars.options import ReadOptions
parts = tables.read(path, ReadOptions())
names = values.prepare_values(parts, ())
tables.instrument_runs(parts)
tables.read_times(parts, ReadOptions().times)
for block in values.blocks(parts, names): pass
"""
HEADER = "instrument,date,open,high,low,close\n"


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    return pp.samples.simulate(3, 30, seed=1)


def test_a_header_that_expands(refused, tmp_path: Path) -> None:
    path = tmp_path / "bars.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(256):
            file.write(b"a" * (1 << 20))
    assert "max_bytes" in refused(READ, path)


def test_rows_that_expand(refused, tmp_path: Path) -> None:
    path = tmp_path / "bars.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(HEADER.encode())
        for _ in range(512):
            file.write(b"a" * (1 << 20))
    assert "max_bytes" in refused(READ, path)
    path = tmp_path / "bars.csv.zst"
    path.write_bytes(zstd_bomb(4 << 30))
    assert "max_bytes" in refused(READ, path)


@pytest.mark.parametrize("suffix", ["csv.gz", "csv.zst"])
@pytest.mark.parametrize("joined", [False, True])
def test_rows_in_the_middle_that_expand(
    refused, bars: pl.DataFrame, tmp_path: Path, suffix: str, joined: bool
) -> None:
    """After megabytes of honest rows, in the same compressed stream or in a second one behind it."""
    path, rng = tmp_path / f"bars.{suffix}", np.random.default_rng(1)
    rows = "".join(f"A,{i},{x:.17f},1,1,1\n" for i, x in enumerate(rng.random(120_000)))
    honest, bomb = (HEADER + rows).encode(), bytes(1 << 20)
    if suffix == "csv.gz":
        with open(path, "wb") as file:
            parts = [[honest], [bomb] * 512] if joined else [[honest, *[bomb] * 512]]
            for part in parts:
                with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
                    packed.writelines(part)
    elif joined:
        path.write_bytes(bytes(Zstd(level=1).encode(honest)) + zstd_bomb(4 << 30))
    else:
        # Raw blocks of honest rows in front of those of the bomb, in one frame without a size.
        blocks = [honest[a : a + (1 << 17)] for a in range(0, len(honest), 1 << 17)]
        raw = b"".join((len(block) << 3).to_bytes(3, "little") + block for block in blocks)
        path.write_bytes(b"\x28\xb5\x2f\xfd\x00\x38" + raw + zstd_bomb(4 << 30)[13:])
    assert path.stat().st_size < 8_000_000
    assert "max_bytes" in refused(READ, path)


def test_joined_gzip_files_are_read(bars: pl.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "bars.csv.gz"
    text = bars.write_csv().encode()
    half = text.index(b"\n", len(text) // 2) + 1
    path.write_bytes(gzip.compress(text[:half]) + gzip.compress(text[half:]))
    assert (
        pp.Panel.from_table(path, progress=False).digest == pp.Panel.from_table(bars, progress=False).digest
    )


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "csv.zst", "parquet", "feather"])
@pytest.mark.parametrize("kind", ["pipe", "zero", "empty", "sparse", "text", "binary"])
def test_what_is_no_table(refused, tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"bars.{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "text":
        path.write_text("a,b\n1,2\n")
    elif kind == "binary":
        path.write_bytes(np.random.default_rng(1).bytes(5000))
    else:
        with open(path, "wb") as file:
            file.truncate((1 << 36) if kind == "sparse" else 0)
    assert str(path) in refused(READ, path)


@pytest.mark.parametrize(
    "row",
    ["A,inf,1,1,1,1", "A,99999999999999999999,1,1,1,1", "A,0000-00-00,1,1,1,1", "A,,1,1,1,1",
     "A,2020-01-01,1e999x,1,1,1",
     'A,"2020', "A,\x00,1,1,1,1", "A,2020-01-01,\x1b]0;pwned\x07,1,1,1", "A,\x1b[2J,1,1,1,1"],
    ids=ascii,
)  # fmt: skip
def test_rows_that_cannot_be(refused, tmp_path: Path, row: str) -> None:
    path = tmp_path / "bars.csv"
    path.write_text(HEADER + row + "\n")
    refused(READ, path)


COLUMNS = {
    "date": {"inf": [float("inf")], "huge": [1e300], "decimal": [Decimal(10) ** 30], "list": [[1]], "binary": [b"x"],
             "time": [dt.time(1)], "duration": [dt.timedelta(1)], "far": [2**62]},
    "close": {"list": [[1.0]], "struct": [{"a": 1}], "date": [dt.date(2020, 1, 1)], "binary": [b"x"],
              "text": ["\x1b]0;pwned\x07"]},
    "instrument": {"list": [["A"]], "float": [1.5], "decimal": [Decimal(10) ** 30], "null": [None],
                   "inf": [float("inf")]},
}  # fmt: skip


@pytest.mark.parametrize(("column", "name"), [(c, n) for c, values in COLUMNS.items() for n in values])
def test_columns_of_other_types(refused, tmp_path: Path, column: str, name: str) -> None:
    path = tmp_path / "bars.parquet"
    frame = pl.DataFrame(
        {
            "instrument": ["A"],
            "date": [dt.date(2020, 1, 1)],
            **dict.fromkeys(("open", "high", "low", "close"), 1.0),
        }
    )
    frame.with_columns(pl.Series(column, COLUMNS[column][name])).write_parquet(path)
    refused(READ, path)


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_decimals_of_256_bits(refused, tmp_path: Path, suffix: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / f"bars.{suffix}"
    wide = pyarrow.array([Decimal(10) ** 60], pyarrow.decimal256(76, 0))
    table = pyarrow.table({"instrument": ["A"], "date": [dt.date(2020, 1, 1)], **dict.fromkeys(
        ("open", "high", "low", "close"), wide)})  # fmt: skip
    if suffix == "parquet":
        importlib.import_module("pyarrow.parquet").write_table(table, path)
    else:
        importlib.import_module("pyarrow.feather").write_feather(table, path)
    assert str(path) in refused(READ, path)


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_flipped_bits_of_tables(run: Driver, bars: pl.DataFrame, tmp_path: Path, suffix: str) -> None:
    """In one process, one after the other: a reader that panics must not stop the next one."""
    path = tmp_path / f"bars.{suffix}"
    (bars.write_parquet if suffix == "parquet" else bars.write_ipc)(path)
    code = f"""
import random
from pricepix.bars import tables, values
from pricepix.bars.options import ReadOptions
whole, rng = open(path, "rb").read(), random.Random(3)
for i in range({FLIPS}):
    content = bytearray(whole)
    content[rng.randrange(len(whole)) if i % 2 else -1 - rng.randrange(min(len(whole), 2500))] ^= 1 << rng.randrange(8)
    open(path, "wb").write(content)
    try:
        parts = tables.read(path, ReadOptions())
        if not any(part.rows for part in parts): continue
        names = values.prepare_values(parts, ())
        tables.instrument_runs(parts)
        tables.read_times(parts, ReadOptions().times)
        for block in values.blocks(parts, names): pass
    except (ValueError, OSError) as error:
        assert "pricepix" in __import__("traceback").extract_tb(error.__traceback__)[-1].filename, repr(error)
"""
    answer = run(code, path, timeout=300, traceback=True)
    assert answer["error"] is None, answer
    assert answer["megabytes"] < 500, answer


@pytest.fixture
def silence():
    """Address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("code", [READ, "pp.open_store(path)"], ids=["table", "store"])
def test_a_server_that_never_answers(refused, silence: str, code: str) -> None:
    pytest.importorskip("obstore")
    quick = "import pricepix.location as l; l._CLIENT_LIMITS.update(timeout='1s', connect_timeout='1s')\n"
    quick += "l._CLIENT_LIMITS['allow_http'] = 'true'; l._RETRY_LIMITS['max_retries'] = 1\n"
    message = refused(quick + code, f"http://{silence}/bars.csv", timeout=60)
    assert "cannot be reached" in message


@pytest.fixture
def stalling():
    """Address of a server that says how large every object is, and never sends one."""
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nAccept-Ranges: bytes\r\nLast-Modified: "
    said += b'Thu, 01 Jan 2026 00:00:00 GMT\r\nETag: "1"\r\n\r\n'
    held = []

    def answer(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            held.append(connection)
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        with suppress(OSError):
            while asked := connection.recv(65_536):
                if asked.startswith(b"HEAD"):
                    connection.sendall(said)

    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
    for connection in held:
        connection.close()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_server_that_stalls_after_the_probe(refused, stalling: str, suffix: str) -> None:
    pytest.importorskip("obstore")
    quick = "import pricepix.location as l; l._CLIENT_LIMITS['allow_http'] = 'true'\n"
    quick += "import pricepix.bars.remote as r; r.PATIENCE.update(seconds=0.5)\n"
    message = refused(quick + READ, f"http://{stalling}/bars.{suffix}", timeout=60)
    assert "the server stopped answering" in message


# ------------------------------------------------------------------------------------------------- terminals

EVIL = "\x1b]0;pwned\x07\u202e"


def command(*arguments: str) -> str:
    """Run the command line in this process and return all that it prints."""
    found = CliRunner().invoke(main, list(arguments))
    return found.output + (found.stderr if found.stderr_bytes else "")


def harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def test_names_of_a_store_do_not_command_the_terminal(store: Path) -> None:
    set_attributes(store, created_by=EVIL, label_price=EVIL, drop_counts={EVIL: 1, "a\nstore  fake": 2})
    said = command("info", str(store))
    assert "\\x1b]0;pwned\\x07\\u202e" in said
    assert harmless(said)
    assert not any(line.startswith("store  fake") for line in said.splitlines())
    assert harmless(command("verify", str(store), "--no-progress"))
    set_attributes(store, layout=EVIL)
    assert "\\x1b" in (said := command("info", str(store)))
    assert harmless(said)


@pytest.mark.parametrize("where", ["column", "instrument", "close", "date", "file"])
@pytest.mark.parametrize("flags", [[], ["--traceback"]], ids=["", "traceback"])
def test_names_of_bars_do_not_command_the_terminal(tmp_path: Path, where: str, flags: list[str]) -> None:
    rows = {"instrument": "A", "date": "2020-01-01", "open": "1", "high": "1", "low": "1", "close": "-1"}
    if where == "column":
        rows[EVIL] = rows.pop("close")
    elif where == "file":
        del rows["instrument"]
    elif where in rows:
        rows[where] = EVIL
    path = tmp_path / (f"{EVIL}.csv" if where == "file" else "bars.csv")
    pl.DataFrame({name: [value] for name, value in rows.items()}).write_csv(path)
    said = command(
        *flags, "build-store", str(path), str(tmp_path / "store"), "--preset", "jkx5", "--no-progress"
    )
    assert "pwned" in said
    assert harmless(said)
    if where == "instrument":
        with pytest.raises(ValueError, match="pwned") as caught:
            pp.Panel.from_table(path, progress=False)
        assert harmless(str(caught.value))


def test_reprs_do_not_command_the_terminal(store: Path, tmp_path: Path) -> None:
    moved = store.rename(tmp_path / EVIL)
    assert harmless(repr(pp.open_store(moved)))


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_cells_that_a_spreadsheet_would_run(tmp_path: Path, first: str) -> None:
    name = f"{first}cmd|' /C calc'!A0"
    table = pl.DataFrame(
        {"instrument": [name, "A-1"], "time": [dt.datetime(2020, 1, 1)] * 2, "factor": [-0.5, 0.5]}
    )
    assert pl.read_csv(write_csv(table, tmp_path / "a.csv"))["instrument"].to_list() == ["'" + name, "A-1"]
    assert pl.read_csv(tmp_path / "a.csv")["factor"].to_list() == [-0.5, 0.5]
    plain = pl.read_csv(write_csv(table, tmp_path / "b.csv", guard=False))
    assert plain["instrument"].to_list() == [name, "A-1"]


# ---------------------------------------------------------------------------------- found by `make fuzz`


def test_a_store_whose_digest_of_checksums_was_taken_away(store: Path, refused: Callable[..., str]) -> None:
    root = json.loads((store / ROOT).read_text())
    del root["attributes"]["checksums_digest"]
    root["attributes"]["metadata_digest"] = metadata_digest(root)
    (store / ROOT).write_bytes(dump(root))
    assert "its digest is not the one in the store's attributes" in refused("pp.open_store(path)", store)


@pytest.mark.parametrize(
    ("member", "key", "value"),
    [
        ("integrity/checksums", "codecs", [{"name": "bytes!"}]),
        ("integrity/checksums", "fill_value", "x"),
        ("factor", "dimension_names", 7),
        ("integrity", "zarr_format", 9),
    ],
)
def test_metadata_of_a_cache_that_zarr_does_not_know(
    sound: Path, tmp_path: Path, refused: Callable[..., str], member: str, key: str, value: Any
) -> None:
    place = tmp_path / "cache"
    pp.factor.score(sound, lambda images: images.mean(axis=(1, 2)) / 255, place, model_id="m", progress=False)
    root = json.loads((place / ROOT).read_text())
    root["consolidated_metadata"]["metadata"][member][key] = value
    root["attributes"]["metadata_digest"] = metadata_digest(root)
    (place / ROOT).write_bytes(dump(root))
    assert "cannot be right" in refused("pp.factor.open_cache(path)", place)
