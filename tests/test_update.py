"""An evening after the other: updates of a live folder, with everything that happens to a feed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

import pricepix as pp
from pricepix._checks import BadBarsError, RevisedHistoryError
from pricepix.cli import main
from pricepix.cli.group import exit_code
from pricepix.factor import open_cache, score
from pricepix.workflow.config import Config
from pricepix.workflow.feed import check_feed
from pricepix.workflow.ledger import Ledger
from pricepix.workflow.revisions import find_revisions

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small network; what it learned does not matter."""
    from pricepix.train.checkpoints import save_model
    from pricepix.train.models import PriceCNN
    from pricepix.train.network_spec import CNNSpec, ConvBlock

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "best.ckpt"
    save_model(PriceCNN(CNNSpec("small", 32, 15, (ConvBlock(2, pool=(4, 1)),))).eval(), path)
    return path


def bars_of(instruments: int = 6, bars: int = 30, seed: int = 1, **options: Any) -> pl.DataFrame:
    settings = {"split_rate": 0.0, "delist_rate": 0.0, "list_late": 0.0, "halt_rate": 0.0, **options}
    return pp.samples.simulate(instruments, bars, seed=seed, **settings)


class Live:
    """A folder that is updated from a file of bars."""

    def __init__(self, folder: Path, frozen: Path, **update: Any) -> None:
        self.folder, self.table = folder, folder / "bars.parquet"
        folder.mkdir(parents=True, exist_ok=True)
        self.values: dict[str, Any] = {
            "out": str(folder / "out"), "data": {"source": str(self.table)}, "image": {"preset": "jkx5"},
            "store": {"horizons": [1], "chunk": 64, "layout": "bits"}, "train": {"frozen": str(frozen)},
            "score": {"device": "cpu"},
            "update": {"exports": [{"path": str(folder / "exports" / "{date}.parquet")}], **update},
        }  # fmt: skip

    def feed(self, frame: pl.DataFrame) -> None:
        frame.write_parquet(self.table)

    def evening(self, frame: pl.DataFrame | None = None, now: str | None = None, **update: Any) -> Any:
        if frame is not None:
            self.feed(frame)
        self.values["update"] |= update
        moment = now or f"{pl.read_parquet(self.table)['time'].max():%Y-%m-%d} 20:00"
        return pp.update(Config.from_dict(self.values), now=moment)

    @property
    def store(self) -> pp.ImageStore:
        return pp.open_store(self.folder / "out" / "store.zarr")

    @property
    def cache(self) -> Any:
        return open_cache(self.folder / "out" / "factor.zarr")


def until(frame: pl.DataFrame, day: int) -> pl.DataFrame:
    return frame.filter(pl.col("time") <= frame["time"].unique().sort()[day])


def changed(frame: pl.DataFrame, name: str, day: int, column: str, factor: float) -> pl.DataFrame:
    hit = (pl.col("instrument") == name) & (pl.col("time") == frame["time"].unique().sort()[day])
    return frame.with_columns(
        pl.when(hit).then(pl.col(column) * factor).otherwise(pl.col(column)).alias(column)
    )


def rescaled(frame: pl.DataFrame, name: str, day: int, ratio: float) -> pl.DataFrame:
    """Divide the prices before a day, as a vendor does after a split."""
    hit = (pl.col("instrument") == name) & (pl.col("time") < frame["time"].unique().sort()[day])
    prices = [
        pl.when(hit).then(pl.col(c) / ratio).otherwise(pl.col(c)).alias(c)
        for c in ("open", "high", "low", "close")
    ]
    return frame.with_columns(prices)


def rows(frame: pl.DataFrame) -> dict[tuple[str, Any], float]:
    return {(i, t): v for i, t, v in frame.select("instrument", "time", "factor").iter_rows()}


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file, but the note that appends leave for readers."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "_appends.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def assert_whole(live: Live, frame: pl.DataFrame, folder: Path) -> None:
    """The store is, byte for byte, and the cache, value for value, what a build from scratch makes of the bars."""
    fresh = pp.render_universe(
        frame,
        "jkx5",
        folder / "fresh.zarr",
        horizons=(1,),
        chunk=64,
        layout="bits",
        mode="overwrite",
        progress=False,
    )
    assert tree(folder / "fresh.zarr") == tree(live.folder / "out" / "store.zarr")
    cache = score(fresh, live.values["train"]["frozen"], None, progress=False)
    found, expected = rows(live.cache.to_polars()), rows(cache.to_polars())
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), [expected[key] for key in found], atol=1e-6)


# ------------------------------------------------------------------------------------------- evenings


def test_an_evening_adds_what_is_new_and_a_second_run_nothing(frozen: Path, tmp_path: Path) -> None:
    frame, live = bars_of(), Live(tmp_path, frozen)
    first = live.evening(until(frame, 20))
    assert first.counts["windows_added"] == first.counts["scores_added"] == len(live.store)
    second = live.evening(until(frame, 21))
    assert second.counts["windows_added"] == second.counts["scores_added"] == 6
    assert second.counts["returns_filled"] == 6
    assert "6 added" in str(second)
    before = tree(tmp_path)
    again = live.evening()
    assert again.nothing_new
    assert "nothing new" in str(again)
    assert tree(tmp_path) == before
    assert_whole(live, until(frame, 21), tmp_path)
    exported = pl.read_parquet(second.exports[0])
    assert rows(exported) == rows(live.cache.to_polars())
    # A lost export is written again, and nothing else.
    second.exports[0].unlink()
    assert not live.evening().nothing_new
    assert rows(pl.read_parquet(second.exports[0])) == rows(exported)


def test_an_update_that_dies_at_its_very_end_has_told_what_it_did(
    frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, live = bars_of(), Live(tmp_path, frozen)
    live.evening(until(frame, 20))
    commit = Ledger.commit

    def dying(ledger: Ledger, *arguments: Any, **entry: Any) -> None:
        commit(ledger, *arguments, **entry)
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", dying)
        with pytest.raises(OSError, match="killed"):
            live.evening(until(frame, 21))
    again = live.evening()
    assert again.nothing_new
    told = json.loads((tmp_path / "out" / "update.json").read_text())
    assert (told["bars_through"], told["windows_added"]) == (again.bars_through, 6)


def test_one_update_a_folder(frozen: Path, tmp_path: Path) -> None:
    from pricepix.location import Folder
    from pricepix.store.lock import WriteLock

    live = Live(tmp_path, frozen)
    live.feed(bars_of())
    (tmp_path / "out").mkdir()
    with (
        WriteLock(Folder(tmp_path / "out")),
        pytest.raises(BlockingIOError, match=r"folder .* is being written by"),
    ):
        live.evening()


# ----------------------------------------------------------------------------------- revised histories


def test_each_class_of_revision_is_told_apart() -> None:
    frame = bars_of(8, 30)
    before = pp.Panel.from_table(until(frame, 25), progress=False)
    late = until(frame, 24).filter(
        ~((pl.col("instrument") == "S0007") & (pl.col("time") == frame["time"].unique().sort()[20]))
    )
    held = pp.Panel.from_table(
        pl.concat([late, until(frame, 25).filter(pl.col("time") == frame["time"].unique().sort()[25])]),
        progress=False,
    )
    now = rescaled(until(frame, 26), "S0000", 22, 2.0)
    now = changed(now, "S0001", 12, "high", 1.5)
    now = now.with_columns(pl.col("instrument").replace("S0002", "RENAMED"))
    now = now.filter(pl.col("instrument") != "S0003")
    now = now.filter(
        ~((pl.col("instrument") == "S0004") & (pl.col("time") == frame["time"].unique().sort()[5]))
    )
    found = find_revisions(before, pp.Panel.from_table(now, progress=False))
    assert list(found.rescaled) == ["S0000"]
    assert found.rescaled["S0000"] == pytest.approx(0.5)
    (one,) = found.corrected["S0001"]
    bar = frame.filter(
        (pl.col("instrument") == "S0001") & (pl.col("time") == frame["time"].unique().sort()[12])
    )
    assert (one.field, one.before, one.after) == ("high", bar["high"][0], bar["high"][0] * 1.5)
    assert found.renamed == {"S0002": "RENAMED"}
    assert before.stamp(found.since["S0002"]) == str(frame["time"].unique().sort()[26])[:10]
    assert found.removed == ["S0003"]
    assert found.withdrawn == {"S0004": 1}
    assert found.unchanged == 3
    lines = "\n".join(found.lines(before))
    assert "S0002 looks like RENAMED from" in lines
    again = find_revisions(held, pp.Panel.from_table(until(frame, 25), progress=False))
    assert again.late == {"S0007": 1}


def test_a_correction_stops_until_it_is_let_pass(frozen: Path, tmp_path: Path) -> None:
    frame, live = bars_of(), Live(tmp_path, frozen)
    live.evening(until(frame, 20))
    before = tree(tmp_path / "out")
    other = changed(until(frame, 21), "S0003", 15, "high", 1.25)
    with pytest.raises(
        RevisedHistoryError, match=r"corrected: S0003 .* high \S+ to \S+\. If .* corrected: accept"
    ):
        live.evening(other)
    assert tree(tmp_path / "out") == before
    result = live.evening(corrected="accept")
    assert result.counts["corrected"] == 1
    assert result.counts["scores_revised"] > 0
    assert any("corrected: S0003" in note for note in result.notes)
    assert_whole(live, other, tmp_path)
    # Left out, the history stays as it was, and the next evening as well.
    kept = Live(tmp_path / "kept", frozen, corrected="keep")
    kept.evening(until(frame, 20))
    kept.evening(other)
    assert_whole(kept, until(frame, 21), tmp_path)
    kept.evening(changed(until(frame, 22), "S0003", 15, "high", 1.25))
    assert_whole(kept, until(frame, 22), tmp_path)


def test_splits_renames_and_removals_follow_their_policies(frozen: Path, tmp_path: Path) -> None:
    frame, live = bars_of(), Live(tmp_path, frozen)
    live.evening(until(frame, 20))
    split = rescaled(until(frame, 21), "S0001", 21, 4.0)
    result = live.evening(split)
    assert result.counts["rescaled"] == 1
    assert result.counts["scores_revised"] == 0  # a power of two: the same pixels
    renamed = split.with_columns(pl.col("instrument").replace("S0002", "NEW"))
    with pytest.raises(RevisedHistoryError, match=r"S0002 looks like NEW.*rename: \{S0002: NEW\}"):
        live.evening(renamed)
    result = live.evening(renamed, rename={"S0002": "NEW"})
    assert result.counts["renamed"] == 1
    assert result.counts["scores_added"] == result.counts["scores_removed"] == 0
    assert "NEW" in live.cache.instruments
    gone = rescaled(until(frame, 22), "S0001", 21, 4.0).with_columns(
        pl.col("instrument").replace("S0002", "NEW")
    )
    whole = gone.filter((pl.col("instrument") != "S0005") | (pl.col("time") < gone["time"].max()))
    result = live.evening(gone.filter(pl.col("instrument") != "S0005"), min_share=0.5)
    assert result.counts["removed"] == 1
    assert_whole(live, whole, tmp_path)  # its bars are kept


def test_a_rescaled_history_may_be_kept_on_its_old_scale(frozen: Path, tmp_path: Path) -> None:
    frame, live = bars_of(), Live(tmp_path, frozen, rescaled="keep")
    live.evening(until(frame, 20))
    hit = pl.col("instrument") == "S0001"
    for day in (21, 22):
        quartered = until(frame, day).with_columns(
            [
                pl.when(hit).then(pl.col(c) / 4).otherwise(pl.col(c)).alias(c)
                for c in ("open", "high", "low", "close")
            ]
            + [pl.when(hit).then(pl.col("volume") * 4).otherwise(pl.col("volume")).alias("volume")]
        )
        result = live.evening(quartered)
        assert result.counts["rescaled"] == 1
        assert result.counts["scores_revised"] == 0
    assert_whole(live, until(frame, 22), tmp_path)


# ------------------------------------------------------------------------------------------------ feeds


def test_half_a_feed_stops_or_is_noted(frozen: Path, tmp_path: Path) -> None:
    frame, live = bars_of(10), Live(tmp_path, frozen)
    live.evening(until(frame, 20))
    day = until(frame, 21)
    half = day.filter((pl.col("time") < day["time"].max()) | pl.col("instrument").is_in(["S0001", "S0004"]))
    with pytest.raises(BadBarsError, match=r"2 of 10 instruments have a bar for .* less than min_share=0\.9"):
        live.evening(half)
    result = live.evening(half, partial="note")
    assert any("2 of 10 instruments have a bar" in note for note in result.notes)
    result = live.evening(day)
    assert result.counts["late"] == 8
    assert_whole(live, day, tmp_path)


def test_a_market_that_never_closes_has_its_holes_filled() -> None:
    start = np.datetime64("2024-01-01T00:00")
    hours = start + np.arange(24 * 10) * np.timedelta64(1, "h")
    gone_for_all, gone_for_one = hours[50:57], hours[100]
    frames = []
    for name in ("BTC", "ETH"):
        kept = np.array(
            [h for h in hours if h not in gone_for_all and not (name == "ETH" and h == gone_for_one)]
        )
        close = 100.0 + np.arange(len(kept))
        frames.append(
            pl.DataFrame(
                {
                    "instrument": name,
                    "time": kept.astype("datetime64[ns]"),
                    "open": close,
                    "high": close + 1,
                    "low": close - 1,
                    "close": close,
                    "volume": 1.0,
                }
            )
        )
    panel = pp.Panel.from_table(pl.concat(frames), tz="UTC", progress=False)
    feed = check_feed(panel)
    assert feed.counts["steps_missing"] == 15
    assert (
        "15 bars are missing, at 7 times for all instruments, of a market that never closes" in feed.notes[0]
    )
    assert len(feed.panel) == 2 * len(hours)
    assert np.isnan(feed.panel.bars).any(axis=1).sum() == 15
    assert np.array_equal(feed.panel.calendar, hours.astype("datetime64[ns]").astype(np.int64))
    noted = check_feed(panel, steps="note")
    assert noted.panel is panel
    # ccxt's last candle is named by its beginning, and still forms.
    now = int((hours[-1] + np.timedelta64(30, "m")).astype("datetime64[ns]").astype(np.int64))
    forming = check_feed(panel, now=now, stamp="open")
    assert forming.counts["bars_forming"] == 2
    assert forming.panel.calendar[-1] == hours[-2].astype("datetime64[ns]").astype(np.int64)
    assert check_feed(panel, now=now).counts["bars_forming"] == 0
    # A stock market's weekends are no holes.
    stocks = pp.Panel.from_table(bars_of(3, 40), progress=False)
    assert check_feed(stocks).counts["steps_missing"] == 0


def test_the_ledger_gives_back_the_bars(tmp_path: Path) -> None:
    frame, ledger = bars_of(4, 30, list_late=0.5), Ledger(tmp_path)
    assert ledger.read() is None
    for day in range(10, 20):
        now = changed(until(frame, day), "S0002", 3, "close", 1 + day / 100)
        if day > 15:
            now = now.filter(pl.col("instrument") != "S0001")
        panel = pp.Panel.from_table(now, progress=False, on_bad="keep")
        Ledger(tmp_path).commit(panel, known="now")
        before = Ledger(tmp_path).read()
        assert before is not None
        assert before.digest == panel.digest
        some = Ledger(tmp_path).read(["S0003", "S0000", "none"])
        assert some is not None
        assert some.instruments.tolist() == ["S0000", "S0003"]
        assert np.array_equal(some.instrument_digests, panel.instrument_digests[[0, -1]])
    assert len(Ledger(tmp_path)) == 10
    # What the next evening writes is what came and what changed.
    assert len(pl.read_parquet(tmp_path / "bars" / "000010.parquet")) < 10
    # Bars or digests that changed by themselves are never taken for those that were used.
    saved = (tmp_path / "bars" / "000001.parquet").read_bytes()
    damaged = pl.read_parquet(tmp_path / "bars" / "000001.parquet").with_columns(pl.col("low") * 2)
    damaged.write_parquet(tmp_path / "bars" / "000001.parquet")
    with pytest.raises(ValueError, match="is not what the last update wrote"):
        Ledger(tmp_path).read()
    (tmp_path / "bars" / "000001.parquet").write_bytes(saved)
    known = tmp_path / "bars" / "000010.known.parquet"
    pl.read_parquet(known).with_columns(pl.col("low") + 1).write_parquet(known)
    with pytest.raises(ValueError, match="is not what the last update wrote"):
        _ = Ledger(tmp_path).known


def test_a_full_disk_costs_nothing_but_time(frozen: Path, tmp_path: Path) -> None:
    from drivers import small_disk

    frame, disk = bars_of(12, 60), tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, "1500k"):
        live = Live(tmp_path / "live", frozen)
        live.values["out"] = str(disk / "out")
        live.values["data"]["source"] = str(tmp_path / "bars.parquet")
        live.table = tmp_path / "bars.parquet"
        live.evening(until(frame, 40))
        before = tree(disk / "out" / "store.zarr"), tree(disk / "out" / "factor.zarr")
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        with pytest.raises(OSError, match=r"[Nn]o space left") as caught:
            live.evening(until(frame, 41))
        assert exit_code(caught.value) == 7
        assert (tree(disk / "out" / "store.zarr"), tree(disk / "out" / "factor.zarr")) == before
        filler.unlink()
        assert live.evening().counts["scores_added"] == 12
        store, cache = pp.open_store(disk / "out" / "store.zarr"), open_cache(disk / "out" / "factor.zarr")
        assert store.verify().ok
        assert cache.verify().ok
        assert len(cache.to_polars()) == len(store)


def test_another_version_and_another_model_are_told(frozen: Path, tmp_path: Path) -> None:
    frame, live = bars_of(), Live(tmp_path, frozen)
    live.evening(until(frame, 20))
    ledger = tmp_path / "out" / "ledger.json"
    entry = json.loads(ledger.read_text())
    ledger.write_text(json.dumps(entry | {"version": 99}))
    with pytest.raises(ValueError, match="has version 99, this release reads version 2: give another out"):
        live.evening(until(frame, 21))
    ledger.write_text(json.dumps(entry))
    # Figures of health that another release wrote are measured anew.
    health = tmp_path / "out" / "health.json"
    health.write_text(json.dumps(json.loads(health.read_text()) | {"version": 99}))
    live.evening()
    assert json.loads(health.read_text())["version"] == 1


# ------------------------------------------------------------------------------------------ retraining


@pytest.mark.nightly
def test_a_model_is_trained_again_when_a_quarter_begins(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    frame, live = bars_of(6, 90, seed=5), Live(tmp_path, Path("none"), retrain="quarterly")
    live.values["train"] = {
        "model": "jkx5", "horizon": 1, "accelerator": "cpu",
        "settings": {"epochs": 1, "batch_size": 64, "log_every": 1000},
    }  # fmt: skip
    days = frame["time"].unique().sort()
    quarter = int(np.flatnonzero(days.dt.quarter().to_numpy() == 2)[0])
    live.evening(until(frame, quarter - 2))
    first = rows(live.cache.to_polars())
    live.evening(until(frame, quarter + 1))
    after = rows(live.cache.to_polars())
    assert first.items() <= after.items()
    stages = live.cache.attrs["model"]["stages"]
    assert len(stages) == 2
    assert stages[0]["digest"] != stages[1]["digest"]
    live.evening(until(frame, quarter + 2))
    assert len(live.cache.attrs["model"]["stages"]) == 2


# ------------------------------------------------------------------------------------- command line


def test_the_command_line_speaks_to_schedulers(frozen: Path, tmp_path: Path) -> None:
    import yaml

    frame, live = bars_of(), Live(tmp_path, frozen)
    live.feed(until(frame, 20))
    config = tmp_path / "live.yaml"
    config.write_text(yaml.safe_dump(live.values))
    call = CliRunner().invoke
    now = f"{frame['time'].max():%Y-%m-%d} 20:00"
    log = tmp_path / "log.jsonl"
    options = ["--json", "--log-file", str(log), "--log-format", "json"]
    done = call(main, [*options, "update", str(config), "--now", now])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["windows_added"] == found["scores_added"] == len(live.store)
    entry = json.loads(log.read_text().splitlines()[-1])
    assert entry["version"] == pp.__version__
    assert len(entry["run"]) == 12
    assert entry["result"]["windows_added"] == found["windows_added"]
    assert json.loads(call(main, ["--json", "update", str(config), "--now", now]).stdout)["nothing_new"]
    assert call(main, ["--quiet", "update", str(config), "--now", now]).output == ""
    live.feed(changed(until(frame, 21), "S0003", 15, "high", 1.25))
    refused = call(main, ["--json", "update", str(config), "--now", now])
    assert refused.exit_code == 4
    assert json.loads(refused.stdout.splitlines()[0])["kind"] == "RevisedHistoryError"
    (live.table).write_bytes(b"no bars")
    assert call(main, ["update", str(config), "--now", now]).exit_code == 3
    assert call(main, ["update"]).exit_code == 2


def test_commands_speak_json(frozen: Path, tmp_path: Path) -> None:
    frame = bars_of()
    table, store, cache = (str(tmp_path / name) for name in ("bars.parquet", "s.zarr", "f.zarr"))

    def call(*words: str, code: int = 0) -> dict[str, Any]:
        done = CliRunner().invoke(main, ["--json", *words])
        assert done.exit_code == code, done.output
        # Progress bars are for terminals.
        assert "img/s" not in done.output
        (line,) = done.stdout.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found

    until(frame, 20).write_parquet(table)
    built = call("build-store", table, store, "--preset", "jkx5", "--horizon", "1", "--chunk", "64")
    assert built["windows"] == len(pp.open_store(store))
    assert built["instruments"] == 6
    scored = call("score", store, str(frozen), cache, "--device", "cpu")
    assert scored["scores_added"] == built["windows"]
    until(frame, 21).write_parquet(table)
    appended = call("append", store, table)
    assert appended["windows_added"] == appended["returns_filled"] == 6
    assert appended["windows"] == built["windows"] + 6
    assert appended["chunks_written"] >= 1
    again = call("append", store, table)
    assert again["windows_added"] == again["returns_filled"] == again["chunks_written"] == 0
    scored = call("score", store, str(frozen), cache, "--append", "--device", "cpu")
    assert scored["scores_added"] == 6
    assert call("score", store, str(frozen), cache, "--device", "cpu")["scores_added"] == 0
    assert call("info", cache)["scorings"] == 2
    assert call("info", store)["windows"] == appended["windows"]
    assert call("export", cache, str(tmp_path / "x.csv"))["out"] == str(tmp_path / "x.csv")
    whole = call("verify", store)
    assert whole["ok"]
    assert whole["reports"][0]["kind"] == "image store"
    chunk = next((tmp_path / "s.zarr" / "images" / "c").rglob("0"))
    chunk = chunk if chunk.is_file() else next(p for p in chunk.rglob("*") if p.is_file())
    chunk.unlink()
    broken = call("verify", store, code=1)
    assert not broken["ok"]
    assert "missing" in broken["reports"][0]["problems"][0]


def test_messages_are_spelled_as_options() -> None:
    from pricepix.cli.group import spelled

    build, scoring = main.commands["build-store"], main.commands["score"]
    said = spelled("mode='resume' continues it; pass append=True, or give panel= as then (model_id=)", build)
    assert said == "--mode resume continues it; pass append=True, or give panel= as then (model_id=)"
    said = spelled("pass append=True, or give panel= as then (model_id=), spread=False", scoring)
    assert said == "pass --append, or give --panel as then (model_id=), spread=False"
    said = spelled("instrument= and horizons=(5,)", build)
    assert said == "--instrument-column and horizons=(5,)"
    assert exit_code(OSError(28, "full")) == 7
    assert exit_code(BlockingIOError("held")) == 5
    assert exit_code(ConnectionResetError("gone")) == 6
    assert exit_code(OSError("s3://x cannot be reached or used: why")) == 6
    assert exit_code(BadBarsError("x")) == 3
    assert exit_code(ValueError("x")) == 1


# ------------------------------------------------------------------------------------------ exports


def test_exports_have_the_forms_of_other_libraries(frozen: Path, tmp_path: Path) -> None:
    from pricepix.factor.export_files import export, qlib_name

    frame, live = bars_of(), Live(tmp_path, frozen)
    live.evening(until(frame, 20))
    live.evening(until(frame, 22))
    cache, whole = live.cache, rows(live.cache.to_polars())
    assert rows(pl.read_parquet(export(cache, tmp_path / "a.parquet"))) == whole
    times = sorted({time for _, time in whole})
    part = export(cache, tmp_path / "b.parquet", start=str(times[2])[:10], end=str(times[4])[:10])
    assert set(pl.read_parquet(part)["time"]) == set(times[2:5])
    assert set(pl.read_parquet(export(cache, tmp_path / "c.parquet", last=1))["time"]) == {times[-1]}
    old = export(cache, tmp_path / "d.parquet", as_of=str(times[-3])[:10])
    assert set(pl.read_parquet(old)["time"]) == set(times[:-2])
    listed = pl.read_csv(export(cache, tmp_path / "e.csv"))
    assert listed.columns == ["instrument", "time", "factor"]
    renamed = pl.read_csv(export(cache, tmp_path / "q.csv", format="qlib"))
    assert renamed.columns == ["datetime", "instrument", "score"]
    assert pl.read_parquet(export(cache, tmp_path / "al.parquet", format="alphalens")).columns == [
        "date",
        "asset",
        "factor",
    ]
    folder = export(cache, tmp_path / "days", partition=True)
    assert rows(pl.read_parquet(folder / "**" / "*.parquet", hive_partitioning=False)) == whole
    assert not list(tmp_path.rglob("*.tmp"))
    for name, expected in (
        ("600000.SH", "SH600000"), ("600000.XSHG", "SH600000"), ("000001", "SZ000001"), ("SZ300750", "SZ300750"),
        ("688981", "SH688981"), ("AAPL", "AAPL"),
    ):  # fmt: skip
        assert qlib_name(name) == expected
    raw = export(cache, tmp_path / "it", format="image_trading", start=str(times[2])[:10], last=2)
    index = json.loads((tmp_path / "it" / "indexing.json").read_text())
    assert index["DIDX"] == [int(f"{day:%Y%m%d}") for day in times[-2:]]
    cube = np.fromfile(next(Path(raw).parent.glob("CNN.*f")), np.float32).reshape(2, 6, 1)
    for k, day in enumerate(times[-2:]):
        for j, name in enumerate(index["Ticker"]):
            assert cube[k, j, 0] == np.float32(whole[name, day])
    with pytest.raises(ValueError, match=r"end the name in \.parquet or \.csv"):
        export(cache, tmp_path / "x.txt")
    done = CliRunner().invoke(main, ["export", str(cache.location), str(tmp_path / "f.csv"), "--last", "1"])
    assert done.exit_code == 0, done.output
    assert "6 added" not in done.output
    info = CliRunner().invoke(main, ["info", str(cache.location)])
    assert "scored    2 times" in info.output


# ----------------------------------------------------------------------------------- a year of evenings


def simulated_year(
    folder: Path, frozen: Path, evenings: int, instruments: int, seed: int, kills: int
) -> None:
    """Run evenings with every event at random, and kills; look at the end, and back at every evening."""
    rng = np.random.default_rng(seed)
    frame = bars_of(instruments, evenings + 40, seed=seed)
    days = frame["time"].unique().sort()
    live = Live(
        folder,
        frozen,
        corrected="accept",
        withdrawn="accept",
        renamed="accept",
        partial="note",
        removed="keep",
    )
    truth, exported, removed, held = frame, {}, {}, None
    killed = set(rng.choice(evenings, kills, replace=False).tolist())
    for k in range(evenings):
        day = 20 + k
        event = rng.choice(["none", "split", "correction", "rename", "removed", "late", "withdrawn"])
        names = sorted(set(truth["instrument"].unique()) - set(removed))
        name = str(rng.choice(names))
        if event == "split":
            truth = rescaled(truth, name, day, 2.0)
        elif event == "correction":
            truth = changed(truth, name, int(rng.integers(5, day)), "high", 1.2)
        elif event == "rename":
            truth = truth.with_columns(pl.col("instrument").replace(name, f"N{k:03d}"))
        elif event == "removed" and k and len(names) > instruments // 2:
            # A bar that was held back on the evening before never comes.
            removed[name] = day - (held == (name, day - 1))
        elif event == "withdrawn":
            gone = days[int(rng.integers(5, day))]
            truth = truth.filter(~((pl.col("instrument") == name) & (pl.col("time") == gone)))
        seen = until(truth, day)
        for other, since in removed.items():
            seen = seen.filter(pl.col("instrument") != other) if since <= day else seen
        if event == "late":
            seen = seen.filter((pl.col("instrument") != name) | (pl.col("time") < days[day]))
        held = (name, day) if event == "late" else None
        live.feed(seen)
        now = f"{days[day]:%Y-%m-%d} 20:00"
        if k in killed:
            kill_update(live, now, float(rng.uniform(0, 1)))
        live.evening(now=now)
        exported[now] = rows(pl.read_parquet(folder / "exports" / f"{days[day]:%Y-%m-%d}.parquet"))
    final = until(truth, 19 + evenings)
    for other, since in removed.items():
        final = final.filter((pl.col("instrument") != other) | (pl.col("time") < days[since]))
    if event == "late":
        final = final.filter((pl.col("instrument") != name) | (pl.col("time") < days[19 + evenings]))
    assert_whole(live, final, folder)
    assert live.cache.verify().ok
    for now, expected in exported.items():
        assert rows(live.cache.as_of(now).to_polars()) == expected, now


def kill_update(live: Live, now: str, share: float) -> None:
    """Update in a child that dies by SIGKILL before one of its file operations."""
    if not hasattr(os, "fork"):
        return
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from kill_driver import Operations\n"
        "import os, pricepix as pp\n"
        "from pricepix.workflow.config import Config\n"
        "values, now, at, folder = json.loads(sys.argv[1])\n"
        "log = os.open(os.devnull, os.O_WRONLY)\n"
        "Operations(Path(folder), at, log).start()\n"
        "pp.update(Config.from_dict(values), now=now)\n"
    )
    at = int(share * 60)
    argument = json.dumps([live.values, now, at, str(live.folder / "out")])
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr


def test_twelve_evenings_with_every_event(frozen: Path, tmp_path: Path) -> None:
    simulated_year(tmp_path, frozen, 12, 30, seed=7, kills=1)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_year_of_evenings(frozen: Path, tmp_path: Path, seed: int) -> None:
    simulated_year(tmp_path, frozen, 250, 200, seed=seed, kills=60)
