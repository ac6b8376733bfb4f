"""An appended store is the one that a build from scratch gives, file by file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pricepix as pp
from pricepix import factor
from pricepix.build import append, append_plan, chunk_writer
from pricepix.store import format as store_format
from pricepix.store import objects, verify


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "_appends.json"
    }


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = tree(one), tree(other)
    assert mine.keys() == theirs.keys(), sorted(mine.keys() ^ theirs.keys())
    assert [name for name in mine if mine[name] != theirs[name]] == []


@pytest.fixture(autouse=True)
def small_index_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that stores of tests have more than one chunk of labels."""
    for module in (store_format, objects, verify, append, append_plan, chunk_writer):
        monkeypatch.setattr(module, "INDEX_CHUNK", 512)


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    return pp.samples.simulate(16, 120, seed=3)


def panel(frame: pl.DataFrame, last: int | None = None) -> pp.Panel:
    if last is not None:
        frame = frame.filter(pl.col("time") <= frame["time"].unique().sort()[last])
    return pp.Panel.from_table(frame, adjust="multiply", progress=False)


def check(frame: pl.DataFrame, cuts: tuple[int, ...], folder: Path, **options: Any) -> None:
    """Build up to the first cut, append up to each other, and compare with builds from scratch."""
    spec = options.pop("spec", "jkx20")
    mask = options.pop("mask", None)
    options = {"horizons": (1, 5, 20), "delay": 1, "chunk": 100, "progress": False} | options

    def given(of: pp.Panel) -> dict[str, Any]:
        return {} if mask is None else {"mask": mask(of)}

    first = panel(frame, cuts[0])
    pp.render_universe(first, spec, folder / "grown", **options, **given(first))
    for cut in cuts[1:]:
        new = panel(frame, cut)
        opened = pp.open_store(folder / "grown")
        before = opened.read()
        store = pp.append(folder / "grown", new, progress=False, **given(new))
        pp.render_universe(new, spec, folder / f"scratch{cut}", **options, **given(new))
        assert_same(folder / "grown", folder / f"scratch{cut}")
        assert store.verify(new).ok
        assert np.array_equal(opened.read(), before)


@pytest.mark.parametrize("layout", ["bits", "uint8"])
@pytest.mark.parametrize("shard", [None, 300])
def test_days(bars: pl.DataFrame, tmp_path: Path, layout: str, shard: int | None) -> None:
    check(bars, (60, 61, 90, 119), tmp_path, layout=layout, shard=shard)


def test_the_week_of_a_holiday_comes_as_of_its_end(tmp_path: Path) -> None:
    """Good Friday, 10 April 2020: that evening the week of Thursday is appended, and no bar is new."""
    days = pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 4, 24), eager=True)
    days = days.filter((days.dt.weekday() < 6) & (days != pl.Series(["2020-04-10"]).str.to_date()))
    rng = np.random.default_rng(1)
    frames = []
    for name in "ABC":
        close = 50 * np.exp(np.cumsum(rng.normal(0, 0.02, len(days))))
        prices = {"open": close, "high": close * 1.01, "low": close * 0.99, "close": close, "volume": close}
        frames.append(pl.DataFrame({"time": days, **prices}).with_columns(instrument=pl.lit(name)))
    bars = pl.concat(frames)

    def until(day: str) -> pp.Panel:
        return pp.Panel.from_table(bars.filter(pl.col("time") <= pl.lit(day).str.to_date()), progress=False)

    options: dict[str, Any] = {"every": "week", "horizons": (1, 5), "chunk": 8, "progress": False}
    pp.render_universe(until("2020-04-08"), "jkx5", tmp_path / "grown", **options)
    thursday = until("2020-04-09")
    store = pp.append(tmp_path / "grown", thursday, progress=False)
    assert store.attrs["drop_counts"]["period_open"] == 3
    for asof, panel in (
        ("2020-04-10", thursday),
        ("2020-04-10", thursday),
        ("2020-04-24", until("2020-04-24")),
    ):
        store = pp.append(tmp_path / "grown", panel, asof=asof, progress=False)
        pp.render_universe(
            panel, "jkx5", tmp_path / "scratch", periods={"asof": asof}, mode="overwrite", **options
        )
        assert_same(tmp_path / "grown", tmp_path / "scratch")
        assert "period_open" not in store.attrs["drop_counts"]
    with pytest.raises(ValueError, match=r"asof='2020-04-20' lies before that of store .*, 2020-04-24"):
        pp.append(tmp_path / "grown", until("2020-04-24"), asof="2020-04-20", progress=False)
    pp.render_universe(thursday, "jkx5", tmp_path / "bars", horizons=(1,), progress=False)
    with pytest.raises(ValueError, match="asof='2020-04-10' is for weeks, months and quarters"):
        pp.append(tmp_path / "bars", thursday, asof="2020-04-10", progress=False)


@pytest.mark.parametrize("every", ["week", "month", "quarter", "day", 3])
def test_schedules(bars: pl.DataFrame, tmp_path: Path, every: str | int) -> None:
    cuts = (66, 67, 90, 119) if every == "quarter" else (61, 62, 64, 90, 119)
    check(bars, cuts, tmp_path, layout="bits", every=every, spec="jkx5")


def test_intraday_windows_of_a_day_that_was_not_over(tmp_path: Path) -> None:
    frame = pp.samples.simulate(4, 100, seed=1, interval="30m")
    check(frame, (50, 53, 60, 99), tmp_path, layout="bits", every="day", spec="jkx5")


def test_listings_and_delistings(bars: pl.DataFrame, tmp_path: Path) -> None:
    times = bars["time"].unique().sort()
    name = pl.col("instrument")
    frame = bars.filter(
        ((name != "S0007") | (pl.col("time") > times[61]))
        & ((name != "S0010") | (pl.col("time") < times[80]))
    )
    check(frame, (60, 61, 62, 90, 119), tmp_path, layout="bits", spec="jkx5")


def test_late_bars_of_an_instrument_that_lagged_behind(bars: pl.DataFrame, tmp_path: Path) -> None:
    """Bars that came after others of their day insert windows between old ones."""
    times = bars["time"].unique().sort()
    late = bars.filter(
        (pl.col("instrument") != "S0004") | (pl.col("time") <= times[55]) | (pl.col("time") > times[90])
    )
    options: dict[str, Any] = {"horizons": (1, 5), "layout": "bits", "chunk": 100, "progress": False}
    pp.render_universe(panel(late, 60), "jkx5", tmp_path / "grown", **options)
    whole = panel(bars, 70)
    pp.append(tmp_path / "grown", whole, progress=False)
    pp.render_universe(whole, "jkx5", tmp_path / "scratch", **options)
    assert_same(tmp_path / "grown", tmp_path / "scratch")


@pytest.mark.parametrize(
    "options",
    [
        {"start": "2000-02-10", "end": "2000-05-20"},
        {"sample": 0.5, "seed": 7},
        {"max_gap": "4d"},
        {"mask": lambda of: of.bars[:, 3] > 30.0},
        {"price": "close", "delay": 0, "horizons": ()},
        {"spec": pp.ImageSpec.preset("it9"), "layout": "uint8"},
    ],
)
def test_choices_of_windows(bars: pl.DataFrame, tmp_path: Path, options: dict[str, Any]) -> None:
    check(bars, (60, 64, 119), tmp_path, **({"layout": "bits", "spec": "jkx5"} | options))


def test_nothing_new_changes_nothing(bars: pl.DataFrame, tmp_path: Path) -> None:
    whole = panel(bars)
    store = pp.render_universe(whole, "jkx5", tmp_path / "s", layout="bits", progress=False)
    before = tree(tmp_path / "s")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    pp.append(store, whole, progress=False)
    assert tree(tmp_path / "s") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()} == {
        path: at for path, at in times.items() if path.is_file()
    }


def test_only_what_changes_is_written(bars: pl.DataFrame, tmp_path: Path) -> None:
    pp.render_universe(
        panel(bars, 100), "jkx5", tmp_path / "s", layout="bits", chunk=100, horizons=(1,), progress=False
    )
    images = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "s/images/c").rglob("*") if path.is_file()
    }
    labels = {path: path.stat().st_mtime_ns for path in (tmp_path / "s/ret_1/c").rglob("*")}
    pp.append(tmp_path / "s", panel(bars, 101), progress=False)
    changed = sorted(path.parts[-3] for path, at in images.items() if path.stat().st_mtime_ns != at)
    assert changed == [str(len(images) - 1)]
    assert sum(path.stat().st_mtime_ns != at for path, at in labels.items()) <= 2


def mortal(n: int, days: int, seed: int = 0) -> pl.DataFrame:
    """Daily bars with returns from 1 January 2020 on, weekdays only; some stocks die, one comes back, one starts."""
    rng = np.random.default_rng(seed)
    dates = np.busday_offset("2020-01-01", np.arange(days), roll="forward")
    dates = dates[dates != np.datetime64("2020-04-10")]  # Good Friday
    tables = []
    for i in range(n):
        change = rng.normal(0, 0.02, len(dates))
        change[0] = np.nan
        close = np.round(50 * np.exp(np.cumsum(np.nan_to_num(change))), 2)
        price = {name: close.copy() for name in ("open", "high", "low", "close")}
        price["high"] += 0.5
        change[1:] = close[1:] / close[:-1] - 1
        keep = np.ones(len(dates), bool)
        if i % 4 == 1:
            last = 20 + 7 * i
            keep[last + 1 :] = False
            change[min(last, len(dates) - 1)] = -0.9
            for column in price.values():
                column[min(last, len(dates) - 1)] = np.nan
        if i == 2:
            keep[30:50] = False
        if i == 3:
            keep[:25] = False
        tables.append(
            pl.DataFrame({"time": dates, **price, "volume": 1000.0, "total_return": change})
            .with_columns(instrument=pl.lit(f"S{i:02}"))
            .filter(pl.Series(keep))
        )
    return pl.concat(tables)


@pytest.mark.parametrize("every", ["bar", "week", "month", "quarter"])
def test_a_store_that_is_appended_to_daily_is_the_one_from_scratch(tmp_path: Path, every: str) -> None:
    """Through deaths, a halt without rows, listings, a holiday at the end of a week; with the cache of scores."""
    frame = mortal(8, 95)
    times = frame["time"].unique().sort()
    options: dict[str, Any] = {
        "every": every, "horizons": (1, 5, 20), "delay": 1, "chunk": 16, "layout": "bits", "progress": False
    }  # fmt: skip

    def until(day: int) -> pp.Panel:
        return pp.Panel.from_table(frame.filter(pl.col("time") <= times[day]), progress=False)

    def ink(images: np.ndarray) -> np.ndarray:
        return images.mean(axis=(1, 2)) / 255

    first = 66 if every == "quarter" else 24
    pp.render_universe(until(first), "jkx5", tmp_path / "grown", **options)
    factor.score(tmp_path / "grown", ink, tmp_path / "grown.factor", progress=False)
    for day in range(first + 1, len(times)):
        store = pp.append(tmp_path / "grown", until(day), progress=False)
        factor.score(store, ink, tmp_path / "grown.factor", append=True, progress=False)
        if day % 6 == 0 or day in (70, 71, len(times) - 1):
            pp.render_universe(until(day), "jkx5", tmp_path / f"scratch{day}", **options)
            assert_same(tmp_path / "grown", tmp_path / f"scratch{day}")
    assert store.attrs["delisting"] == "hold"
    assert store.verify(until(len(times) - 1)).ok
    died = store.attrs["died_within_horizon"]
    # Over one bar, the row of the delisting itself is the exit: nothing is held after it.
    assert every != "bar" or (died["1"] == 0 and died["5"] > 0 and died["20"] > died["5"])
    expected = factor.score(store, ink, tmp_path / "scratch.factor", progress=False)
    found = factor.open_cache(tmp_path / "grown.factor")
    np.testing.assert_array_equal(np.sort(found.instruments), np.sort(expected.instruments))
    for one, other in zip(np.argsort(found.instruments), np.argsort(expected.instruments), strict=True):
        np.testing.assert_array_equal(found.matrix()[1][:, one], expected.matrix()[1][:, other])


def test_what_is_held_is_recorded_and_read_back(tmp_path: Path) -> None:
    whole = pp.Panel.from_table(mortal(8, 95), progress=False)
    options: dict[str, Any] = {"horizons": (5, 20), "layout": "bits", "progress": False}
    held = pp.render_universe(whole, "jkx5", tmp_path / "held", **options)
    missing = pp.render_universe(whole, "jkx5", tmp_path / "missing", delisting="missing", **options)
    assert (held.attrs["delisting"], missing.attrs["delisting"]) == ("hold", "missing")
    assert missing.attrs["died_within_horizon"] == {"5": 0, "20": 0}
    for h in (5, 20):
        died = ~np.isnan(held.returns(h)) & np.isnan(missing.returns(h))
        assert held.attrs["died_within_horizon"][str(h)] == died.sum() > 0
        assert held.returns(h)[died].min() < -0.8
        label = pp.forward_returns(whole, pp.WindowIndex.from_panel(whole, "jkx5"), h)
        np.testing.assert_array_equal(label.value, held.returns(h))
        np.testing.assert_array_equal(label.exit_time, held.exit_time(h))
        images = pp.PanelImages(whole, "jkx5", horizons=(5, 20))
        np.testing.assert_array_equal(images.returns(h), held.returns(h))
        assert images.attrs["died_within_horizon"] == held.attrs["died_within_horizon"]
    assert held.verify(whole).ok
    assert missing.verify(whole).ok
    with pytest.raises(ValueError, match="delisting is missing here, hold there"):
        pp.render_universe(whole, "jkx5", tmp_path / "held", mode="resume", delisting="missing", **options)
    prices = pp.Panel.from_table(mortal(8, 95).drop("total_return"), progress=False)
    assert (
        pp.render_universe(prices, "jkx5", **{"horizons": 5, "progress": False}).attrs["delisting"]
        == "missing"
    )


def revise(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    return frame.with_columns(
        pl.when(pl.col("instrument") == name).then(pl.col("high") * 2).otherwise(pl.col("high")).alias("high")
    )


def test_revised_history(bars: pl.DataFrame, tmp_path: Path) -> None:
    options: dict[str, Any] = {"horizons": (1, 5), "layout": "bits", "chunk": 50, "progress": False}
    target = tmp_path / "grown"
    pp.render_universe(panel(bars, 100), "jkx5", target, **options)
    before = tree(target)
    revised = panel(revise(revise(bars, "S0003"), "S0011"))
    with pytest.raises(ValueError, match=r"revised: bars of S0003, S0011 changed.*on_revision='rebuild'"):
        pp.append(target, revised, progress=False)
    assert tree(target) == before
    pp.append(target, revised, on_revision="rebuild", progress=False)
    pp.render_universe(revised, "jkx5", tmp_path / "scratch", **options)
    assert_same(target, tmp_path / "scratch")
    without = panel(bars.filter(pl.col("instrument") != "S0005"))
    with pytest.raises(ValueError, match=r"S0003, S0011 changed; bars of S0005 are gone"):
        pp.append(target, without, progress=False)
    pp.append(target, without, on_revision="rebuild", progress=False)
    pp.render_universe(without, "jkx5", tmp_path / "scratch2", **options)
    assert_same(target, tmp_path / "scratch2")
    with pytest.raises(ValueError, match="must hold the whole history"):
        pp.append(target, panel(bars).select(start="2000-03-01"), progress=False)


def test_refusals(bars: pl.DataFrame, tmp_path: Path) -> None:
    whole = panel(bars)
    pp.render_universe(panel(bars, 100), "jkx5", tmp_path / "s", layout="bits", progress=False)
    before = tree(tmp_path / "s")
    zoned = pp.Panel(
        whole.bars, whole.offsets, whole.instruments, whole.time, "America/New_York", whole.fields
    )
    with pytest.raises(ValueError, match=r"time zone is America/New_York, that of store .* None"):
        pp.append(tmp_path / "s", zoned, progress=False)
    bare = pp.Panel(whole.bars, whole.offsets, whole.instruments, whole.time, whole.tz)
    with pytest.raises(
        ValueError, match=r"the panel has the fields none, store .* was made from total_return"
    ):
        pp.append(tmp_path / "s", bare, progress=False)
    with pytest.raises(ValueError, match="was built without a mask: leave mask out"):
        pp.append(tmp_path / "s", whole, mask=np.ones(len(whole), bool), progress=False)
    with pytest.raises(ValueError, match="on_revision='ignore' is not known"):
        pp.append(tmp_path / "s", whole, on_revision="ignore", progress=False)
    with pytest.raises(FileNotFoundError, match="no store at"):
        pp.append(tmp_path / "none", whole, progress=False)
    memory = pp.render_universe(panel(bars, 100), "jkx5", progress=False)
    with pytest.raises(ValueError, match="lives in memory"):
        pp.append(memory, whole, progress=False)
    assert tree(tmp_path / "s") == before


def test_another_mask_over_old_bars(bars: pl.DataFrame, tmp_path: Path) -> None:
    old = panel(bars, 100)
    pp.render_universe(
        old, "jkx5", tmp_path / "s", layout="bits", mask=np.ones(len(old), bool), progress=False
    )
    whole = panel(bars)
    with pytest.raises(ValueError, match="was built with a mask: give mask="):
        pp.append(tmp_path / "s", whole, progress=False)
    with pytest.raises(ValueError, match="the mask has the digest"):
        pp.append(tmp_path / "s", whole, mask=whole.bars[:, 3] > 20, progress=False)
