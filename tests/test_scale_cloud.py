"""Stores in a bucket, over the S3 protocol, against moto's server on this machine."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pricepix as pp
from pricepix.location import Location

pytest.importorskip("obstore", reason="needs obstore: pip install 'pricepix[cloud]'")
moto_server = pytest.importorskip("moto.server", reason="needs moto's server: pip install 'moto[server]'")
boto3 = pytest.importorskip("boto3", reason="comes with moto")

OPTIONS: dict[str, Any] = {"horizons": (1, 5), "layout": "bits", "chunk": 64, "progress": False}


@pytest.fixture(scope="module")
def access() -> Iterator[dict[str, Any]]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="bucket")
    yield {
        "endpoint": endpoint,
        "access_key_id": "key",
        "secret_access_key": "secret",
        "region": "us-east-1",
        "client_options": {"allow_http": True},
        "retry_config": {"max_retries": 1},
    }
    server.stop()


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    return pp.Panel.from_table(pp.samples.simulate(12, 120, seed=5), adjust="multiply", progress=False)


@pytest.fixture(scope="module")
def half(panel: pp.Panel) -> pp.Panel:
    return panel.select(end=panel.stamp(int(panel.calendar[80])))


def objects(where: Location) -> dict[str, bytes]:
    return {key: bytes(where.get(key) or b"") for key in where.list() if key != "_appends.json"}


@pytest.mark.parametrize("shard", [None, 256])
def test_build_append_read_verify(
    access: dict[str, Any], panel: pp.Panel, half: pp.Panel, tmp_path: Path, shard: int | None
) -> None:
    url = f"s3://bucket/some/folder/{shard}.zarr"
    with pytest.raises(FileNotFoundError, match="no store at s3://bucket"):
        pp.open_store(url, access)
    old = pp.render_universe(half, "jkx5", url, storage_options=access, shard=shard, **OPTIONS)
    before = old.read()
    store = pp.append(url, panel, storage_options=access, progress=False)
    disk = pp.render_universe(panel, "jkx5", tmp_path / "s", shard=shard, **OPTIONS)
    assert objects(store.objects.location) == objects(disk.objects.location)
    assert np.array_equal(old.read(), before)
    assert store.verify(panel).ok
    assert np.array_equal(store.images[:].astype(bool), disk.read() > 0)
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read([5, 900]), disk.read([5, 900]))
    if shard:
        assert b"".join(map(bytes, store.read_shard(1))) == b"".join(map(bytes, disk.read_shard(1)))
    with pytest.raises(FileExistsError, match="exists already"):
        pp.render_universe(panel, "jkx5", url, storage_options=access, **OPTIONS)


def test_tables_in_a_bucket(access: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Access comes from the environment, as for every other program that reads a bucket."""
    for name, value in {
        "AWS_ENDPOINT_URL": access["endpoint"],
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    bars = pp.samples.simulate(5, 80, seed=1)
    where = Location.of("s3://bucket/tables", access)
    for name, part in bars.partition_by("instrument", as_dict=True).items():
        part.write_parquet(tmp_path / "part.parquet")
        where.put(f"daily/{name[0]}.parquet", (tmp_path / "part.parquet").read_bytes())
    where.put("daily/_done", b"")
    where.put("bars.csv", bars.write_csv().encode())
    expected = pp.Panel.from_table(bars, progress=False).digest
    for url in ("daily/", "daily/*.parquet", "*.parquet", "bars.csv"):
        panel = pp.Panel.from_table(f"s3://bucket/tables/{url}", progress=False)
        assert panel.digest == expected, url
    for url, error, says in (
        ("nothing/", FileNotFoundError, "nothing/: the folder holds no "),
        ("daily/*.csv", FileNotFoundError, "no object matches"),
        ("none.parquet", FileNotFoundError, r"s3://bucket/tables/none.parquet: there is no such object"),
        ("", ValueError, "files of several kinds"),
    ):
        with pytest.raises(error, match=says) as caught:
            pp.Panel.from_table(f"s3://bucket/tables/{url}", progress=False)
        assert "\n" not in str(caught.value)


def test_a_missing_and_a_swapped_object(access: dict[str, Any], panel: pp.Panel) -> None:
    url = "s3://bucket/damaged"
    store = pp.render_universe(panel, "jkx5", url, storage_options=access, **OPTIONS)
    one, two = (bytes(store.objects.location.get(f"images/c/{i}/0/0") or b"") for i in (1, 2))
    store.objects.location.put("images/c/1/0/0", two)
    with pytest.raises(ValueError, match="chunk images/c/1/0/0 of store s3://bucket/damaged is damaged"):
        store.read()
    store.objects.location.put("images/c/1/0/0", one)
    store.objects.location.delete("images/c/2/0/0")
    with pytest.raises(ValueError, match="chunk images/c/2/0/0 of store s3://bucket/damaged is missing"):
        store.read()
    assert "images/c/2/0/0 is missing" in store.verify(depth="metadata").problems[0]


def test_locked_and_resumed(
    access: dict[str, Any], panel: pp.Panel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pricepix.build.chunk_writer import ChunkWriter
    from pricepix.store.lock import WriteLock

    url = "s3://bucket/resumed"
    original, calls = ChunkWriter.write_images, []

    def images(self: ChunkWriter, first: int, last: int) -> Any:
        calls.append(first)
        if len(calls) > 3:
            raise OSError("the network went away")
        return original(self, first, last)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkWriter, "write_images", images)
        with pytest.raises(OSError, match="the network went away") as caught:
            pp.render_universe(panel, "jkx5", url, storage_options=access, workers=1, **OPTIONS)
    assert "3 of" not in caught.value.__notes__[0] or "mode='resume'" in caught.value.__notes__[0]
    where = Location.of(url, access)
    with WriteLock(where), pytest.raises(BlockingIOError, match="is being written by process"):
        pp.render_universe(panel, "jkx5", url, storage_options=access, mode="resume", **OPTIONS)
    store = pp.render_universe(panel, "jkx5", url, storage_options=access, mode="resume", **OPTIONS)
    disk = pp.render_universe(panel, "jkx5", tmp_path / "s", **OPTIONS)
    assert objects(store.objects.location) == objects(disk.objects.location)


def test_errors_of_the_far_side_are_one_line(access: dict[str, Any]) -> None:
    with pytest.raises(OSError, match=r"s3://nobucket/x cannot be reached or used: .*404") as caught:
        pp.open_store("s3://nobucket/x", access)
    assert "\n" not in str(caught.value)
    closed = {**access, "endpoint": "http://127.0.0.1:9", "retry_config": {"max_retries": 0}}
    with pytest.raises(OSError, match="cannot be reached or used"):
        pp.open_store("s3://bucket/x", closed)
    with pytest.raises(ValueError, match="cannot be opened with the options given"):
        pp.open_store("s3://bucket/x", {"colour": 1})
    with pytest.raises(ValueError, match="cannot be opened with the options given"):
        pp.open_store("nowhere://bucket/x")
