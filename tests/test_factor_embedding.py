"""Embeddings: what a network has found before it decides, kept and appended to; neighbours in the past alone."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

torch = pytest.importorskip("torch")

import pricepix as pp  # noqa: E402
from pricepix import factor, train  # noqa: E402
from pricepix.cli import main  # noqa: E402
from pricepix.factor import embedding_format  # noqa: E402
from pricepix.factor.embedding_writer import EmbeddingWriter  # noqa: E402
from pricepix.store.format import metadata_digest  # noqa: E402

FLIPS = int(os.environ["PRICEPIX_FUZZ"])

SMALL = train.CNNSpec("small", 32, 15, (train.ConvBlock(4, pool=(8, 3)),))


@pytest.fixture(scope="module")
def bars() -> Any:
    return pp.samples.simulate(4, 90, seed=5, delist_rate=0, list_late=0)


@pytest.fixture(scope="module")
def images(bars: Any) -> pp.PanelImages:
    return pp.PanelImages(bars, "jkx5", horizons=(5,))


@pytest.fixture(scope="module")
def network() -> train.PriceCNN:
    torch.manual_seed(1)
    return train.PriceCNN(SMALL).eval()


@pytest.fixture(scope="module")
def whole(images: Any, network: Any, tmp_path_factory: pytest.TempPathFactory) -> factor.Embedding:
    return factor.embed(images, network, tmp_path_factory.mktemp("emb") / "e.zarr", progress=False)


def test_they_are_what_the_last_layer_sees(images: Any, network: Any, whole: Any) -> None:
    found = torch.from_numpy(whole.values[:])
    assert found.shape == (len(images), network.linear.in_features)
    with torch.no_grad():
        scores = network.scores(network.linear(found)).numpy()
    np.testing.assert_allclose(scores, network.predict(images.read()), atol=1e-6)
    np.testing.assert_array_equal(whole.time, images.time)
    names = np.array(whole.instruments)[whole.instrument_index]
    assert names.tolist() == images.index["instrument"].to_list()
    assert f"{len(images):,} windows, {found.shape[1]} features of 'small'" in repr(whole)


def test_xarray_reads_them(images: Any, whole: Any) -> None:
    xarray = pytest.importorskip("xarray")
    found = whole.to_xarray()
    assert found.embedding.shape == whole.values.shape
    np.testing.assert_array_equal(found.time.values, images.time.view("datetime64[ns]"))
    assert found.instrument.values.tolist() == images.index["instrument"].to_list()
    opened = xarray.open_zarr(whole.location, consolidated=False)
    assert opened.embedding.dims == ("window", "feature")


def test_appended_and_resumed(
    bars: Any, network: Any, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows that the images gain are added; a call that died goes on; the result is that of one call."""
    days = bars["time"].unique().sort()
    early = pp.PanelImages(bars.filter(bars["time"] <= days[60]), "jkx5", horizons=(5,))
    late = pp.PanelImages(bars, "jkx5", horizons=(5,))
    # Chunks of 16 rows, of which an append completes one and adds more.
    monkeypatch.setattr(embedding_format, "_CHUNK_BYTES", 16 * 4 * network.linear.in_features)
    opened = factor.embed(early, network, tmp_path / "e", progress=False)
    assert opened.values.chunks[0] == 16
    with pytest.raises(ValueError, match="append=True adds the rest"):
        factor.embed(late, network, tmp_path / "e", progress=False)
    before = tree(tmp_path / "e")
    monkeypatch.setattr(pp.PanelImages, "chunk", 32)
    original, calls = EmbeddingWriter._put, []

    def dying(writer: Any, key: str, stored: bytes) -> None:
        calls.append(key)
        if len(calls) == 3:
            raise OSError("killed")
        original(writer, key, stored)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingWriter, "_put", dying)
        with pytest.raises(OSError, match="killed"):
            factor.embed(late, network, tmp_path / "e", append=True, progress=False)
    # A reader sees what there was.
    assert len(factor.open_embedding(tmp_path / "e")) == len(early)
    assert before.items() <= tree(tmp_path / "e").items()
    with pytest.raises(ValueError, match="append=True adds the rest"):
        factor.embed(late, network, tmp_path / "e", progress=False)
    done = []
    embed = type(network).embed

    def counting(self: Any, inputs: Any, batch: int) -> Any:
        done.append(len(inputs))
        return embed(self, inputs, batch)

    monkeypatch.setattr(type(network), "embed", counting)
    again = factor.embed(late, network, tmp_path / "e", append=True, progress=False)
    assert sum(done) < len(late) - len(early), "what was done before the kill was done again"
    assert again.verify().ok
    assert not (tmp_path / "e" / "_build").exists()
    np.testing.assert_array_equal(again.time, whole.time)
    np.testing.assert_allclose(again.values[:], whole.values[:], atol=1e-6)
    # Who had it open reads what did not change, and is told of what did.
    np.testing.assert_array_equal(opened.values[:16], again.values[:16])
    with pytest.raises(
        ValueError, match=r"was appended to since it was opened, and embedding/c/\d+/0 changed"
    ):
        opened.values[:]
    before = tree(tmp_path / "e")
    factor.embed(late, network, tmp_path / "e", progress=False)
    assert tree(tmp_path / "e") == before


def test_a_module_of_one_s_own(images: Any, tmp_path: Path) -> None:
    class Mine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lower, self.upper = torch.nn.Linear(480, 7), torch.nn.Linear(7, 2)

        def forward(self, pixels: Any) -> Any:
            return self.upper(self.lower(pixels.flatten(1)).relu())

    mine = Mine()
    found = factor.embed(images, mine, None, progress=False)
    with torch.no_grad():
        expected = mine.lower(torch.from_numpy(images.read()).flatten(1) / 255).relu()
    np.testing.assert_allclose(found.values[:], expected.numpy(), atol=1e-5)


class TestSimilar:
    def test_by_hand(self, images: Any, whole: Any) -> None:
        name, time = images.index["instrument"][200], images.index["time"][200]
        found = factor.similar(whole, name, time, k=5)
        values = whole.values[:].astype(float)
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        earlier = np.flatnonzero(images.time < images.time[200])
        best = earlier[np.argsort(-(unit[earlier] @ unit[200]), kind="stable")[:5]]
        assert found["instrument"].to_list() == images.index["instrument"][best].to_list()
        assert found["time"].to_list() == images.index["time"][best].to_list()
        assert found["similarity"].is_sorted(descending=True)
        far = factor.similar(whole, name, time, k=3, metric="euclidean", others_only=True)
        assert name not in far["instrument"].to_list()

    def test_nothing_later_changes_an_answer(
        self, images: Any, whole: Any, network: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Later embeddings are turned into the query itself: the answer stays."""
        name, time = images.index["instrument"][200], images.index["time"][200]
        later = np.flatnonzero(images.time >= images.time[200])
        later = later[later != 200]
        values = whole.values[:]
        values[later] = values[200]
        assert images.chunk >= len(images)
        monkeypatch.setattr(type(network), "embed", lambda self, inputs, batch: values)
        changed = factor.embed(images, network, None, progress=False)
        for before in (None, "2000-03-01"):
            expected = factor.similar(whole, name, time, before=before)
            assert factor.similar(changed, name, time, before=before).equals(expected)
            assert before is None or str(expected["time"].max())[:10] < before

    def test_what_cannot_be_asked(self, images: Any, whole: Any) -> None:
        name = images.index["instrument"][0]
        with pytest.raises(ValueError, match="is later than the window, which ends at 2000-03-01"):
            factor.similar(whole, name, "2000-03-01", before="2000-03-02")
        with pytest.raises(KeyError, match="no instrument 'S00' in the embeddings"):
            factor.similar(whole, "S00", "2000-03-01")
        with pytest.raises(KeyError, match=r"no window of .* ends at '1999-03-01'"):
            factor.similar(whole, name, "1999-03-01")
        with pytest.raises(ValueError, match="metric='cos' is not known"):
            factor.similar(whole, name, "2000-03-01", metric="cos")
        assert len(factor.similar(whole, name, images.index["time"][0])) == 0


def test_what_cannot_be_embedded(images: Any, network: Any, whole: Any, tmp_path: Path) -> None:
    place = whole.location
    with pytest.raises(ValueError, match="holds embeddings of another model"):
        factor.embed(images, train.PriceCNN(SMALL), place, progress=False)
    other = pp.PanelImages(
        pp.samples.simulate(4, 90, seed=6, delist_rate=0), "jkx5", horizons=(5,), start="2000-02"
    )
    with pytest.raises(ValueError, match="holds embeddings of other windows"):
        factor.embed(other, network, place, append=True, progress=False)
    with pytest.raises(ValueError, match=r"embed takes one network, .* is several"):
        factor.embed(images, train.Ensemble([network, train.PriceCNN(SMALL)]), None, progress=False)
    with pytest.raises(ValueError, match=r"embed takes one network, .* is a function"):
        factor.embed(images, lambda pixels: pixels.mean(axis=(1, 2)), None, progress=False)
    zarr.open_group(str(tmp_path / "z"), mode="w")
    with pytest.raises(FileExistsError, match="holds something else than embeddings"):
        factor.embed(images, network, tmp_path / "z", progress=False)
    with pytest.raises(ValueError, match="is a Zarr group, but not an embedding: it is something else"):
        factor.open_embedding(tmp_path / "z")
    with pytest.raises(FileNotFoundError, match=r"no embedding at .*: make one with pricepix\.factor\.embed"):
        factor.open_embedding(tmp_path / "nothing")
    (tmp_path / "file").write_text("here")
    with pytest.raises(FileExistsError, match="is a file; an embedding is a folder"):
        factor.embed(images, network, tmp_path / "file", progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("here")
    with pytest.raises(FileExistsError, match="holds something else than embeddings"):
        factor.embed(images, network, tmp_path / "mine", progress=False)
    copied = Path(shutil.copytree(place, tmp_path / "copied"))
    root = json.loads((copied / "zarr.json").read_text())
    root["attributes"]["format_version"] = 9
    (copied / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(ValueError, match="has format version 9, this release reads version 2"):
        factor.open_embedding(copied)


# ------------------------------------------------------------------------------------------------- integrity


def tree(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if "_build" not in path.parts}


def read_all(place: Path) -> None:
    found = factor.open_embedding(place)
    _ = found.values[:], found.time, found.instrument_index, found.instruments


def test_every_flipped_bit_is_found_and_the_file_named(whole: Any, tmp_path: Path) -> None:
    place = Path(shutil.copytree(whole.location, tmp_path / "e"))
    assert str(factor.open_embedding(place).verify()).endswith("sound")
    rng, files = random.Random(1), tree(place)
    assert len(files) == 12
    for name, content in files.items():
        size = 8 * len(content)
        for bit in [0, 7, size // 2, size - 1, *(rng.randrange(size) for _ in range(FLIPS // 2))]:
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            (place / name).write_bytes(changed)
            try:
                problems = factor.open_embedding(place).verify().problems
            except ValueError as error:
                problems = [str(error)]
            assert problems, (name, bit)
            assert any(name in problem for problem in problems), (name, bit, problems)
            # Of an array that lies beside its group's metadata, nothing is read.
            if name.endswith("/zarr.json"):
                continue
            with pytest.raises(ValueError, match=re.escape(name)):
                read_all(place)
        (place / name).write_bytes(content)
    assert factor.open_embedding(place).verify().ok


def test_missing_swapped_and_foreign_files(whole: Any, images: Any, network: Any, tmp_path: Path) -> None:
    place = Path(shutil.copytree(whole.location, tmp_path / "e"))
    files = tree(place)
    for name, content in files.items():
        (place / name).unlink()
        if name == "zarr.json":
            with pytest.raises(ValueError, match="holds no Zarr v3 group"):
                factor.open_embedding(place)
        elif name == "integrity/checksums/c/0":
            with pytest.raises(ValueError, match=r"integrity/checksums/c/0 .* is missing"):
                factor.open_embedding(place)
        else:
            assert any(
                f"{name} " in found and "missing" in found
                for found in factor.open_embedding(place).verify().problems
            )
        (place / name).write_bytes(content)
    (place / "time/c/0").write_bytes(files["instrument_index/c/0"])
    (problem,) = factor.open_embedding(place).verify().problems
    assert "time/c/0 of embedding" in problem
    assert "not the one that was written" in problem
    (place / "time/c/0").write_bytes(files["time/c/0"])
    (place / "time/c/1").write_bytes(b"?")
    assert "objects do not belong to the embedding" in str(factor.open_embedding(place).verify())
    done = CliRunner().invoke(main, ["verify", str(place)])
    assert done.exit_code == 1
    assert "time/c/1" in done.output
    (place / "time/c/1").unlink()
    done = CliRunner().invoke(main, ["verify", str(place)])
    assert done.exit_code == 0, done.output
    assert "sound" in done.output


@pytest.mark.parametrize(
    ("array", "key", "value", "message"),
    [
        ("embedding", "shape", [10**9, 60], "has the shape"),
        ("embedding", "shape", [2**40, 60], "the shape of embedding"),
        ("time", "shape", [10**9], "time has the shape"),
        ("embedding", "data_type", "float64", "the type of embedding"),
        ("instrument", "shape", [-1], "the shape of instrument"),
        ("embedding", "codecs", [{"name": "blosc"}], "is stored by"),
    ],
)
def test_metadata_are_not_believed(
    whole: Any, tmp_path: Path, array: str, key: str, value: Any, message: str
) -> None:
    """Whoever means harm writes a digest that fits."""
    place = Path(shutil.copytree(whole.location, tmp_path / "e"))
    root = json.loads((place / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"][array][key] = value
    root["attributes"]["metadata_digest"] = metadata_digest(root)
    (place / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(ValueError, match=f"the metadata of embedding .* cannot be right: .*{message}"):
        factor.open_embedding(place)


def test_one_writer_at_a_time(images: Any, network: Any, tmp_path: Path) -> None:
    from pricepix.location import Location
    from pricepix.store.lock import WriteLock

    with (
        WriteLock(Location.of(tmp_path / "e"), "embedding"),
        pytest.raises(BlockingIOError, match=r"embedding .* is being written"),
    ):
        factor.embed(images, network, tmp_path / "e", progress=False)
    assert len(factor.embed(images, network, tmp_path / "e", progress=False)) == len(images)
