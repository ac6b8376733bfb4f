"""What is wrong in a store is found by every read that touches it, and by verify, which names it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pricepix as pp
from pricepix.store.chunks import ChunkFormat
from pricepix.store.pool_reader import BatchReader

CASES = ["bits", "uint8", "bits-sharded", "uint8-sharded"]


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    return pp.Panel.from_table(pp.samples.simulate(12, 120, seed=5), adjust="multiply", progress=False)


@pytest.fixture(scope="module")
def sound(panel: pp.Panel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for case in CASES:
        made[case] = tmp_path_factory.mktemp("sound") / case
        pp.render_universe(
            panel, "jkx5", made[case], horizons=(5,), layout=case.partition("-")[0], chunk=64,
            shard=256 if "sharded" in case else None, progress=False,
        )  # fmt: skip
    return made


@pytest.fixture(params=CASES)
def path(request: pytest.FixtureRequest, sound: dict[str, Path], tmp_path: Path) -> Path:
    target = tmp_path / "store"
    shutil.copytree(sound[request.param], target)
    return target


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 16
    file.write_bytes(content)


def flip_last(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def remove(file: Path) -> None:
    file.unlink()


def swap(file: Path) -> None:
    """Exchange it with its neighbour: the checksums inside both stay valid."""
    number = file.parents[1].name
    other = file.parents[2] / str(1 - int(number)) / "0" / "0"
    mine, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(mine)


@pytest.mark.parametrize("damage", [flip, flip_last, truncate, empty, remove, swap])
def test_images(path: Path, panel: pp.Panel, damage: Callable[[Path], None]) -> None:
    whole = pp.open_store(path)
    damage(path / "images/c/1/0/0")
    store = pp.open_store(path)
    report = store.verify(depth="checksums")
    assert any("images/c/1/0/0" in problem for problem in report.problems), report
    assert report.exit_code == 1
    # A flipped bit of a shard is in one chunk of it, all else in the shard as such.
    first = store.chunk_format.object_windows
    reads = [
        lambda s: s.read(slice(first, len(s))),
        lambda s: [s.read_chunk(i) for i in range(first // 64, 2 * first // 64)],
        lambda s: s.to_dask()[first:].compute(scheduler="synchronous"),
        lambda s: list(BatchReader(s.objects, shuffle=False, prefetch=0)),
        lambda s: list(BatchReader(s.objects, shuffle=True, prefetch=0)),
    ]
    if store.shards:
        reads.append(lambda s: s.read_shard(1))
    # Of two that were exchanged the first that is touched is named.
    named = "[01]" if damage is swap else "1"
    for opened in (store, whole):
        for read in reads:
            with pytest.raises(ValueError, match=rf"images/c/{named}/0/0 of store .* is (missing|damaged)"):
                read(opened)
    if damage is not swap:
        assert store.read(slice(0, first)).any(axis=(1, 2)).all()
    assert store.verify(depth="metadata").ok == (damage is not remove)


@pytest.mark.parametrize("damage", [flip, truncate, empty, remove])
@pytest.mark.parametrize("name", ["instrument_index", "time", "ret_5", "exit_time_5", "instruments"])
def test_index(
    sound: dict[str, Path], tmp_path: Path, panel: pp.Panel, damage: Callable[[Path], None], name: str
) -> None:
    target = tmp_path / "store"
    shutil.copytree(sound["bits"], target)
    damage(target / name / "c/0")
    store = pp.open_store(target)
    with pytest.raises(ValueError, match=rf"chunk {name}/c/0 of store .* is (missing|damaged)"):
        _ = store.index
    report = store.verify(panel)
    assert any(f"{name}/c/0" in problem for problem in report.problems), report


def test_swapped_index_chunks(sound: dict[str, Path], tmp_path: Path) -> None:
    """An index chunk that stands in for another of the same type is found, though it is sound in itself."""
    target = tmp_path / "store"
    shutil.copytree(sound["bits"], target)
    shutil.copy(target / "exit_time_5/c/0", target / "time/c/0")
    with pytest.raises(ValueError, match=r"chunk time/c/0 of store .* is damaged"):
        _ = pp.open_store(target).time


@pytest.mark.parametrize("damage", [flip, truncate, empty, remove])
def test_checksums_themselves(sound: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None]) -> None:
    target = tmp_path / "store"
    shutil.copytree(sound["bits"], target)
    damage(target / "checksums/c/0")
    with pytest.raises(ValueError, match=r"chunk checksums/c/0 of store .* is (missing|damaged)"):
        pp.open_store(target)


def test_other_checksums_with_a_valid_chunk(sound: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "store"
    shutil.copytree(sound["bits"], target)
    shutil.copy(sound["uint8"] / "checksums/c/0", target / "checksums/c/0")
    with pytest.raises(ValueError, match="its digest is not the one in the store's attributes"):
        pp.open_store(target)


def edit_horizon(root: dict) -> None:
    root["attributes"]["horizons"] = [20]


def edit_panel(root: dict) -> None:
    root["attributes"]["panel_digest"] = "0" * 32


def edit_counts(root: dict) -> None:
    root["attributes"]["drop_counts"]["too_short"] += 1


def edit_shape(root: dict) -> None:
    root["consolidated_metadata"]["metadata"]["images"]["shape"][0] -= 1


def edit_digest(root: dict) -> None:
    del root["attributes"]["metadata_digest"]


@pytest.mark.parametrize("edit", [edit_horizon, edit_panel, edit_counts, edit_shape, edit_digest])
def test_edited_metadata(sound: dict[str, Path], tmp_path: Path, edit: Callable[[dict], None]) -> None:
    target = tmp_path / "store"
    shutil.copytree(sound["bits"], target)
    root = json.loads((target / "zarr.json").read_text())
    edit(root)
    (target / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(ValueError, match=r"metadata of store .* were edited or damaged"):
        pp.open_store(target)


def test_reformatted_metadata_is_the_same(sound: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "store"
    shutil.copytree(sound["bits"], target)
    root = json.loads((target / "zarr.json").read_text())
    (target / "zarr.json").write_text(json.dumps(dict(reversed(root.items()))))
    assert pp.open_store(target).verify(depth="metadata").ok


def test_metadata_of_an_array_and_strangers(sound: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "store"
    shutil.copytree(sound["bits"], target)
    document = json.loads((target / "images/zarr.json").read_text())
    document["shape"][0] = 5
    (target / "images/zarr.json").write_text(json.dumps(document))
    (target / "ret_5/zarr.json").unlink()
    (target / "images/c/999").write_bytes(b"x")
    problems = "\n".join(pp.open_store(target).verify(depth="metadata").problems)
    assert "images/zarr.json is damaged or edited" in problems
    assert "ret_5/zarr.json is missing" in problems
    assert "1 objects do not belong to the store, the first is images/c/999" in problems


def test_render_depth_finds_a_wrong_image_with_all_checksums_right(panel: pp.Panel, tmp_path: Path) -> None:
    """Bars that were changed after the build give another digest; a builder's fault gives other images."""
    target = tmp_path / "store"
    original = ChunkFormat.encode

    def encode(self: ChunkFormat, bits: np.ndarray) -> bytes:
        wrong = bits.copy()
        wrong[3, 0] ^= 255
        return original(self, wrong)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChunkFormat, "encode", encode)
        pp.render_universe(panel, "jkx5", target, horizons=(5,), layout="bits", chunk=64, progress=False)
    store = pp.open_store(target)
    assert store.verify(depth="checksums").ok
    problems = store.verify(panel).problems
    assert "image 3 differs from the one that the panel gives" in problems
    bars = panel.bars.copy()
    bars[5, 1] += 1
    other = pp.Panel(bars, panel.offsets, panel.instruments, panel.time, panel.tz, panel.fields)
    assert "different bars" in store.verify(other).problems[0]


def test_report_prints_and_tells_an_exit_code(
    sound: dict[str, Path],
    panel: pp.Panel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = pp.open_store(sound["bits"])
    # Bars are for terminals.
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    report = store.verify(panel, progress=True)
    assert (report.ok, report.exit_code, report.rendered) == (True, 0, len(store))
    assert str(report).endswith("sound")
    assert "verify chunks" in capsys.readouterr().err
    with pytest.raises(ValueError, match="depth='deep' is not known"):
        store.verify(depth="deep")
    with pytest.raises(ValueError, match="give panel="):
        store.verify(depth="render")
    assert store.verify(panel, sample=7).rendered == 7
    assert store.verify(panel, depth="metadata").rendered == 0
