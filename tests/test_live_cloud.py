"""Evenings whose folder, images, factor and exports live in a bucket, against moto's server on this machine."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from clusters import local_client
from test_update import bars_of, changed, frozen, rescaled, rows, until

import pricepix as pp
from pricepix.cli import main
from pricepix.factor import export, open_cache, score
from pricepix.location import Location
from pricepix.workflow.config import Config

pytest.importorskip("obstore", reason="needs obstore: pip install 'pricepix[cloud]'")
moto_server = pytest.importorskip("moto.server", reason="needs moto's server: pip install 'moto[server]'")
boto3 = pytest.importorskip("boto3", reason="comes with moto")

__all__ = ["frozen"]

KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket, to which the environment has the keys, as for every program that reads one."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint, **KEYS).create_bucket(Bucket="bucket")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        yield "s3://bucket"
    server.stop()


def read(url: str) -> pl.DataFrame:
    folder, _, name = url.rpartition("/")
    return pl.read_parquet(io.BytesIO(bytes(Location.of(folder).get(name) or b"")))


def objects(url: str) -> dict[str, bytes]:
    where = Location.of(url)
    return {key: bytes(where.get(key) or b"") for key in where.list() if key != "_appends.json"}


def evenings(bucket: str, frozen: Path, folder: Path, count: int, client: Any = None) -> None:
    """Run evenings with revisions; at the end everything equals a build from scratch on disk."""
    table, name = folder / "bars.parquet", folder.name
    values = {
        "out": f"{bucket}/{name}/live", "data": {"source": str(table)}, "image": {"preset": "jkx5"},
        "store": {"horizons": [1], "chunk": 64, "layout": "bits"}, "train": {"frozen": str(frozen)},
        "score": {"device": "cpu"},
        "update": {
            "exports": [
                {"path": f"{bucket}/{name}/{{date}}.parquet"},
                {"path": f"{bucket}/{name}/days", "partition": True},
            ],
            "corrected": "accept", "removed": "keep", "partial": "note",
        },
    }  # fmt: skip
    config = Config.from_dict(values)
    frame = bars_of(8, 40, seed=3)
    exported: dict[str, dict[Any, float]] = {}
    for k in range(count):
        if k % 3 == 1:
            frame = rescaled(frame, f"S000{k % 8}", 20 + k, 2.0)
        elif k:
            frame = changed(frame, f"S000{k % 8}", 12 + k, "high", 1.2)
        until(frame, 20 + k).write_parquet(table)
        now = f"{frame['time'].unique().sort()[20 + k]:%Y-%m-%d}"
        result = pp.update(config, now=f"{now} 20:00", client=client)
        assert result.out == f"{bucket}/{name}/live"
        assert result.counts["scores_added"] == (8 if k else result.counts["windows"])
        exported[now] = rows(read(str(result.exports[0])))
        assert pp.update(config, now=f"{now} 20:00", client=client).nothing_new
    final = until(frame, 19 + count)
    fresh = pp.render_universe(
        final, "jkx5", folder / "fresh.zarr", horizons=(1,), chunk=64, layout="bits", progress=False
    )
    assert objects(str(folder / "fresh.zarr")) == objects(f"{bucket}/{name}/live/store.zarr")
    cache = open_cache(f"{bucket}/{name}/live/factor.zarr")
    assert cache.verify().ok
    found, expected = rows(cache.to_polars()), rows(score(fresh, frozen, None, progress=False).to_polars())
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), [expected[key] for key in found], atol=1e-6)
    for now, then in exported.items():
        assert rows(cache.as_of(now).to_polars()) == then
    keys = set(Location.of(f"{bucket}/{name}/live").list())
    assert {"ledger.json", "update.json", "health.json", "health.html", "health_days.parquet"} <= keys
    assert not [key for key in keys if "_build" in key]
    parts = [read(f"{bucket}/{name}/days/{key}") for key in Location.of(f"{bucket}/{name}/days").list()]
    assert rows(pl.concat(parts)) == found


def test_two_evenings_in_a_bucket(bucket: str, frozen: Path, tmp_path: Path) -> None:
    evenings(bucket, frozen, tmp_path, 2)
    # A lost export is written again.
    cache = f"{bucket}/{tmp_path.name}/live/factor.zarr"
    done = CliRunner().invoke(main, ["export", cache, f"{bucket}/x/factor.csv", "--last", "1"])
    assert done.exit_code == 0, done.output
    text = bytes(Location.of(f"{bucket}/x").get("factor.csv") or b"").decode()
    assert text.startswith("instrument,time,factor\n")
    assert len(text.splitlines()) == 9
    with pytest.raises(ValueError, match="image_trading writes a folder of this machine"):
        export(cache, f"{bucket}/x/it", format="image_trading")


def test_a_run_keeps_its_networks_in_a_folder(bucket: str) -> None:
    from pricepix.workflow.pipeline import run

    values = {"out": f"{bucket}/run", "data": {"sample": "stocks"}, "image": {"preset": "jkx5"}}
    with pytest.raises(ValueError, match=r"out: s3://bucket/run is an object store: .*give a folder as out"):
        run(Config.from_dict(values))


def test_an_endpoint_of_plain_http_says_how_to_allow_it(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pricepix.cli.group import exit_code

    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(OSError, match=r"plain http.* set AWS_ALLOW_HTTP=true") as caught:
        open_cache(f"{bucket}/none")
    # Nothing that a later try mends.
    assert exit_code(caught.value) == 1


@pytest.mark.nightly
def test_ten_evenings_in_a_bucket_with_two_workers(bucket: str, frozen: Path, tmp_path: Path) -> None:
    with local_client(2, processes=True) as client:
        evenings(bucket, frozen, tmp_path, 10, client)
