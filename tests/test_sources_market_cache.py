"""Market caches: names, sizes, axes, adjustment, filter, limits, halts, and panels of a part of the days."""

from __future__ import annotations

import re

import numpy as np
import pytest

import pricepix as pp
from pricepix.bars import MarketArrays, MarketCache, Session, write_market_cache
from pricepix.bars.market_files import file_name, read_name
from pricepix.samples import simulate_market
from pricepix.samples.ashare import simulate_arrays


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return simulate_market(
        tmp_path_factory.mktemp("market") / "cache", 12, 9, seed=3, halt_rate=0.01, suspension_rate=0.05,
        split_rate=0.05, st_share=0.3, list_late=0.3,
    )  # fmt: skip


def tiny(folder, **changes):
    """Two stocks, three days (a weekend between the second and the third), nine bars: prices by hand.

    `changes` are other arrays, or arguments of `write_market_cache`.
    """
    options = {key: changes.pop(key) for key in ("dtype", "files", "session") if key in changes}
    shape = (3, 2, 9)
    close = np.full(shape, 10.0) + np.arange(9) / 100 + np.arange(3)[:, None, None]
    blocks = {
        "days": ["2021-01-07", "2021-01-08", "2021-01-11"],
        "instruments": ["600000.SH", "000001.SZ"],
        "open": close - 0.01,
        "high": close + 0.02,
        "low": close - 0.02,
        "close": close,
        "volume": np.full(shape, 100.0),
        "adjustment_factor": np.ones((3, 2)),
        "not_st": np.ones((3, 2), bool),
        "up_limit": np.full((3, 2), 99.0),
        "down_limit": np.full((3, 2), 1.0),
    }
    return write_market_cache(folder, MarketArrays(**(blocks | changes)), **{"dtype": np.float64, **options})


# ------------------------------------------------------------------------------------------ names and sizes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("IntervalFull.open.N49,5184f", (np.float32, 5184, 49)),
        ("x.N09,0300d", (np.float64, 300, 9)),
        ("AShareNST.N,5184c", (np.bool_, 5184, None)),
        ("dates.NI", (np.int32, None, None)),
        ("dates.NL", (np.int64, None, None)),
        ("x.Ni", (np.uint32, None, None)),
        ("uid.N128C", ("<U32", None, None)),
        ("uid.N32C", ("<U8", None, None)),
    ],
)
def test_names_of_files_carry_type_and_shape(name, expected):
    raw = read_name(name)
    assert (raw.dtype, raw.stocks, raw.intervals) == (np.dtype(expected[0]), *expected[1:])
    assert file_name(name.rpartition(".")[0], raw.dtype, raw.stocks, raw.intervals) == name


@pytest.mark.parametrize(
    ("name", "message"), [("open.N49,5184x", "128C text, not 'x'"), ("uid.N126C", "4-byte characters")]
)
def test_names_that_say_nothing_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        read_name(name)


def test_writing_and_reading_gives_the_same_arrays(tmp_path):
    market = simulate_arrays(5, 4, seed=1)
    written = write_market_cache(tmp_path, market, dtype=np.float64)
    again = MarketCache(tmp_path)
    assert again.files == written.files
    assert again.instruments.tolist() == market.instruments.tolist()
    assert (again.days == market.days).all()
    for key, field in (
        ("OPEN", "open"),
        ("CLOSE", "close"),
        ("VOLUME", "volume"),
        ("ADJ_FACTOR", "adjustment_factor"),
    ):
        np.testing.assert_array_equal(again.array(key), getattr(market, field))
    assert again.files["OPEN"].name == "IntervalFull.open.N49,0005d"
    with pytest.raises(FileExistsError, match="exists already"):
        write_market_cache(tmp_path, market, dtype=np.float64)
    with pytest.raises(TypeError, match=r"market is a dict: give MarketArrays\(days="):
        write_market_cache(tmp_path / "other", vars(market))


def test_a_size_that_does_not_match_the_name_is_told_with_both_numbers(tmp_path):
    cache = tiny(tmp_path)
    path = cache.files["LOW"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(
        ValueError, match=re.escape("holds 424 bytes, but its name and the 3 trading days say 432")
    ):
        MarketCache(tmp_path)


def test_files_of_other_shapes_are_refused(tmp_path):
    cache = tiny(tmp_path)
    path = cache.files["VOLUME"]
    np.zeros((3, 3, 9)).tofile(path.with_name("IntervalFull.volume.N09,0003d"))
    path.unlink()
    with pytest.raises(
        ValueError, match=r"volume.N09,0003d says 3 stocks and 9 intervals, but .* says 2 stocks"
    ):
        MarketCache(tmp_path)


def test_missing_files_are_all_named(tmp_path):
    cache = tiny(tmp_path)
    cache.files["HIGH"].unlink()
    cache.files["CLOSE"].unlink()
    cache.files["UP_LIMIT"].unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks HIGH .*IntervalFull.high.* CLOSE"):
        MarketCache(tmp_path)
    with pytest.raises(FileNotFoundError, match="no market cache"):
        MarketCache(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"'OPNE' is not a file of a market cache; did you mean 'OPEN'"):
        MarketCache(tmp_path, {"OPNE": "x"})


def test_files_can_be_named(tmp_path):
    stems = {
        "OPEN": "o",
        "HIGH": "h",
        "LOW": "l",
        "CLOSE": "c",
        "TRADE_DATES": "axes/days",
        "UNIVERSE_UID": "axes/uid",
    }
    cache = tiny(tmp_path, files=stems)
    assert cache.files["OPEN"].name == "o.N09,0002d"
    named = {key: path.relative_to(tmp_path) for key, path in cache.files.items() if key in stems}
    assert len(MarketCache(tmp_path, named).panel(adjust=False)) == 54


@pytest.mark.parametrize(
    ("numbers", "message"),
    [([20210107, 20210108, 20210108], "must ascend"), ([20210107, 20211308, 20211309], "YYYYMMDD")],
)
def test_days_are_checked(tmp_path, numbers, message):
    cache = tiny(tmp_path)
    np.array(numbers, np.int32).tofile(cache.files["TRADE_DATES"])
    with pytest.raises(ValueError, match=message):
        MarketCache(tmp_path)


def test_names_are_checked_and_room_at_the_end_is_no_stock(tmp_path):
    cache = tiny(tmp_path)
    np.array(["A", ""], "<U32").tofile(cache.files["UNIVERSE_UID"])
    assert MarketCache(tmp_path).panel().instruments.tolist() == ["A"]
    np.array(["A", "A"], "<U32").tofile(cache.files["UNIVERSE_UID"])
    with pytest.raises(ValueError, match="'A' is named more than once"):
        MarketCache(tmp_path)
    np.array(["A", "B", "C"], "<U32").tofile(cache.files["UNIVERSE_UID"])
    with pytest.raises(ValueError, match="names 3 stocks"):
        MarketCache(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"high": np.zeros((3, 2, 8))}, "HIGH has shape"),
        ({"days": ["2021-01-08", "2021-01-07", "2021-01-11"]}, "ascend"),
        ({"instruments": ["A" * 33, "B"]}, "32 characters"),
        ({"instruments": ["A", "A"]}, "more than once"),
        ({"session": (("09:30", "10:00"),)}, "gives the session .* 9 bars a day"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- panels


def test_bars_stand_at_the_stamps_of_the_session(tmp_path):
    panel = tiny(tmp_path).panel()
    rows = panel.rows_of("000001.SZ")
    stamps = [panel.stamp(int(t)) for t in panel.time[rows]]
    clock = ["09:30", "10:00", "10:30", "11:00", "11:30", "13:30", "14:00", "14:30", "15:00"]
    assert stamps == [f"2021-01-{d:02d} {c}:00+08:00" for d in (7, 8, 11) for c in clock]
    # The bar after lunch follows the one before it, and Monday's first Friday's last.
    row = panel.locate("000001.SZ", "2021-01-07 11:30")
    assert panel.stamp(int(panel.time[row + 1])) == "2021-01-07 13:30:00+08:00"
    row = panel.locate("000001.SZ", "2021-01-08 15:00")
    assert panel.stamp(int(panel.time[row + 1])) == "2021-01-11 09:30:00+08:00"


def test_prices_are_multiplied_and_volume_divided_by_the_factor(tmp_path):
    factor = np.array([[1.0, 1.0], [2.0, 1.0], [2.0, 1.0]])
    cache = tiny(tmp_path, adjustment_factor=factor)
    raw, adjusted = cache.panel(adjust=False), cache.panel()
    rows = adjusted.rows_of("600000.SH")
    np.testing.assert_array_equal(adjusted.bars[rows][9:, :4], raw.bars[rows][9:, :4] * 2)
    np.testing.assert_array_equal(adjusted.bars[rows][9:, 4], 50.0)
    np.testing.assert_array_equal(adjusted.bars[rows][:9], raw.bars[rows][:9])


@pytest.mark.parametrize("factor", [0.0, np.nan, np.inf, -1.0])
def test_a_factor_that_is_none_is_named(tmp_path, factor):
    factors = np.ones((3, 2))
    factors[1, 1] = factor
    cache = tiny(tmp_path, adjustment_factor=factors)
    with pytest.raises(ValueError, match=r"factor of '000001.SZ' on 2021-01-08 is"):
        cache.panel()
    assert len(cache.panel(adjust=False)) == 54


def test_a_bar_is_at_its_limit_by_the_close_as_traded(tmp_path):
    up = np.full((3, 2), 99.0)
    up[1, 0] = 11.08 + 0.00009  # the last bar of day 1 closes at 11.08
    up[2, 0] = 12.08 + 0.00011
    factor = np.full((3, 2), 3.0)
    panel = tiny(tmp_path, up_limit=up, adjustment_factor=factor).panel()
    flagged = np.flatnonzero(panel.fields["up_limit"])
    assert flagged.tolist() == [panel.locate("600000.SH", "2021-01-08 15:00")]
    assert not panel.fields["down_limit"].any()
    assert len(panel) == 54
    assert not np.isnan(panel.bars[:, :4]).all(axis=1).any()


def test_the_filter_is_a_mask_and_bars_stay(tmp_path):
    not_st = np.ones((3, 2), bool)
    not_st[1, 0] = False
    panel = tiny(tmp_path, not_st=not_st).panel()
    assert len(panel) == 54
    windows = pp.WindowIndex.from_panel(panel, pp.ImageSpec(lookback=2, height=8))
    assert windows.counts == {"too_short": 2, "masked": 9}
    assert "9 bars that no window may end at (masked)" in panel.report.remarks
    assert MarketCache(tmp_path).panel(filtered=False).fields["eligible"].all()
    # A return reaches over the filtered day by bars, not by what is left.
    row = panel.locate("600000.SH", "2021-01-07 15:00")
    label = pp.forward_returns(panel, np.array([row]), 1)
    assert panel.stamp(int(label.exit_time[0])) == "2021-01-08 09:30:00+08:00"
    assert label.value[0] == np.float32(11.0 / 10.08 - 1)


def test_bars_of_no_trade_are_missing(tmp_path):
    close = np.full((3, 2, 9), 10.0)
    volume = np.full((3, 2, 9), 100.0)
    volume[0, 0, 3] = 0.0
    prices = {key: close.copy() for key in ("open", "high", "low", "close")}
    for values in prices.values():
        values[1, 0, 4] = 0.0
        values[2, 1, 8] = np.nan
    cache = tiny(tmp_path, **prices, volume=volume)
    panel = cache.panel()
    rows = panel.rows_of("600000.SH")
    assert np.flatnonzero(np.isnan(panel.bars[rows]).all(axis=1)).tolist() == [3, 13]
    kept = cache.panel(no_trade="keep")
    rows = kept.rows_of("600000.SH")
    assert np.flatnonzero(np.isnan(kept.bars[rows]).all(axis=1)).tolist() == [13]
    assert kept.bars[rows][3].tolist() == [10, 10, 10, 10, 0]
    # A stock's last bar without a price ends its rows.
    assert len(panel.bars[panel.rows_of("000001.SZ")]) == 26
    windows = pp.WindowIndex.from_panel(
        cache.panel(adjust=False), pp.ImageSpec(lookback=3, height=8, style="image_trading", max_missing=0)
    )
    assert windows.counts == {"too_short": 4, "masked": 2, "missing_bars": 4, "flat": 43}


def test_no_window_ends_at_a_bar_without_a_price(tmp_path):
    """Filter and prices each mask; volume 0 does where it means no trade; one price of four is a price."""
    prices = {key: np.full((3, 2, 9), 10.0) for key in ("open", "high", "low", "close")}
    volume = np.full((3, 2, 9), 100.0)
    volume[0, 0, 3] = 0.0
    not_st = np.ones((3, 2), bool)
    not_st[2, 0] = False
    for key, values in prices.items():
        values[1, 0, 4] = 0.0
        values[1, 0, 5] = np.nan
        if key != "close":
            values[1, 0, 6] = np.nan
    cache = tiny(tmp_path, **prices, volume=volume, not_st=not_st)

    def masked(**reading):
        panel = cache.panel(**reading)
        return np.flatnonzero(~panel.fields["eligible"][panel.rows_of("600000.SH")]).tolist()

    filtered = list(range(18, 27))
    assert masked() == [3, 13, 14, *filtered]
    assert masked(filtered=False) == [3, 13, 14]
    assert masked(no_trade="keep") == [13, 14, *filtered]


def test_faults_are_reported_as_in_any_panel(tmp_path):
    high = np.full((3, 2, 9), 1.0)
    with pytest.raises(ValueError, match="high_below_low"):
        tiny(tmp_path, high=high).panel()
    panel = MarketCache(tmp_path).panel(on_bad="drop_bar")
    assert np.isnan(panel.bars[:, :4]).all()


def test_decimals_give_float32_prices_back(tmp_path):
    market = simulate_arrays(3, 3, seed=2, split_rate=0)
    exact = write_market_cache(tmp_path / "d", market, dtype=np.float64).panel()
    narrow = write_market_cache(tmp_path / "f", market, dtype=np.float32)
    assert narrow.panel().report.counts["float32_input"] == len(exact)
    rounded = narrow.panel(decimals=2)
    assert "float32_input" not in rounded.report.counts
    np.testing.assert_array_equal(rounded.bars[:, :4], exact.bars[:, :4])


@pytest.mark.parametrize("days", [slice(0, 3), slice(4, 9), slice(2, 5), slice(8, 9)])
@pytest.mark.parametrize("no_trade", ["missing", "keep"])
def test_the_panel_of_some_days_has_the_rows_of_the_whole_one(cache, days, no_trade):
    whole, part = cache.panel(no_trade=no_trade), cache.panel(days, no_trade=no_trade)
    first = cache.days[days][0].astype("datetime64[ns]").astype(np.int64) - 8 * 3_600_000_000_000
    last = first + (cache.days[days][-1] - cache.days[days][0]).astype(np.int64) * 86_400_000_000_000
    inside = (whole.time >= first) & (whole.time < last + 86_400_000_000_000)
    assert part.instruments.tolist() == whole.instruments.tolist()
    np.testing.assert_array_equal(part.time, whole.time[inside])
    np.testing.assert_array_equal(part.bars, whole.bars[inside])
    for name, values in part.fields.items():
        np.testing.assert_array_equal(values, whole.fields[name][inside])


def test_days_and_stocks_are_found_by_date_and_name(cache):
    assert cache.day_range((cache.days[2], None)) == slice(2, 9)
    assert cache.day_range((None, "20210106")) == slice(0, 3)
    assert cache.day_range((20210106, 20210107)) == slice(2, 4)
    assert cache.stock_range(["600001.SH"]) == slice(2, 3)
    panel = cache.panel(stocks=cache.instruments[3:6].tolist())
    assert panel.instruments.tolist() == cache.instruments[3:6].tolist()
    with pytest.raises(ValueError, match=r"none of the cache's 9 days, 2021-01-04 to 2021-01-14"):
        cache.panel(days=("2022-01-01", None))
    with pytest.raises(KeyError, match=r"no stock '600001.SZ'.*did you mean '600001.SH'"):
        cache.panel(stocks="600001.SZ")
    with pytest.raises(ValueError, match="side by side"):
        cache.stock_range(cache.instruments[[0, 5]].tolist())
    with pytest.raises(ValueError, match="no_trade='drop'"):
        cache.panel(no_trade="drop")


def test_spans_are_those_of_a_plain_search(cache):
    for no_trade in ("missing", "keep"):
        first, stop = cache.spans(no_trade)
        close, volume = cache.array("CLOSE"), cache.array("VOLUME")
        known = ~np.isnan(close) & ((volume != 0) if no_trade == "missing" else True)
        for s in range(len(cache.instruments)):
            bars = np.flatnonzero(known[:, s].reshape(-1))
            assert (first[s], stop[s]) == (bars[0], bars[-1] + 1)


def test_the_simulated_market_keeps_its_limits():
    market = simulate_arrays(40, 30, seed=5, split_rate=0.05, suspension_rate=0.02)
    with np.errstate(invalid="ignore"):
        assert not (market.close > market.up_limit[:, :, None] + 1e-9).any()
        assert not (market.low < market.down_limit[:, :, None] - 1e-9).any()
        assert (np.abs(market.close - market.up_limit[:, :, None]) < 1e-4).sum() > 50
    np.testing.assert_allclose(market.close, np.round(market.close, 2), atol=1e-12)
    # Limits of special treatment are half as wide, and weekends and holidays have no bars.
    width = market.up_limit / market.down_limit
    assert width[~market.not_st].max() < 1.12 < width[market.not_st].min()
    assert not set(market.days.astype(str)) & {"2021-01-09", "2021-02-11", "2021-02-15"}
    # Prices times the factor move on over splits as over other nights.
    last = np.where(
        np.isnan(market.close[:, :, -1]), np.nan, market.close[:, :, -1] * market.adjustment_factor
    )
    night = market.open[1:, :, 0] * market.adjustment_factor[1:] / last[:-1] - 1
    assert np.nanmax(np.abs(night)) < 0.12
    assert (np.diff(market.adjustment_factor, axis=0) > 0).sum() > 10


def test_simulated_markets_are_reproducible_and_check_their_arguments(tmp_path):
    a, b = simulate_arrays(3, 3, seed=1), simulate_arrays(3, 3, seed=1)
    np.testing.assert_array_equal(a.close, b.close)
    for arguments in ({"instruments": 0}, {"days": 1}, {"halt_rate": 2}, {"limit": 0.01}, {"start": "soon"}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            simulate_market(tmp_path / "x", **({"instruments": 3, "days": 3} | arguments))


# -------------------------------------------------------------------------------------------------- sessions


def test_stamps_of_the_sessions():
    five = Session.of("ashare").stamps("5min")
    assert (len(five), five[:2], five[23:27], five[-1]) == (
        49, ["09:30", "09:35"], ["11:25", "11:30", "13:05", "13:10"], "15:00"
    )  # fmt: skip
    assert len(Session.of("ashare").stamps("30min")) == 9
    assert Session.of("us").stamps("1h") == ["10:30", "11:30", "12:30", "13:30", "14:30", "15:30", "16:00"]
    assert Session.of("ashare").stamps("1d") == ["15:00"]
    assert len(Session.of(None).stamps("5min")) == 288
    assert Session.of((("09:00", "10:00"),)).stamps("30min") == ["09:30", "10:00"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((("10:00", "09:00"),),), "must ascend"),
        (((("09:00", "9 o'clock"),),), "not a time of day"),
        (((("09:00",),),), "pairs"),
        ((None, None, "09:00"), "no opening auction"),
        (((("09:00", "10:00"),), None, "09:30"), "before the open"),
        (((("09:00", "10:00"),), "Shanghai"), "zone"),
    ],
)
def test_sessions_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Session(*arguments)


def test_sessions_of_exchanges():
    pytest.importorskip("exchange_calendars")
    assert Session.of("XHKG") == Session((("09:30", "12:00"), ("13:00", "16:00")), "Asia/Hong_Kong")
    assert Session.of("XNYS").periods == (("09:30", "16:00"),)
    assert Session.of("24/7").periods is None
    with pytest.raises(ValueError, match="neither one of ashare"):
        Session.of("NOWHERE")


def test_sessions_of_exchanges_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "exchange_calendars", None)
    with pytest.raises(ImportError, match="pip install exchange_calendars"):
        Session.of("XHKG")


@pytest.mark.parametrize("every", ["7h", "0min", "2d", "often"])
def test_lengths_of_bars_are_checked(every):
    with pytest.raises(ValueError, match=every):
        Session.of(None).stamps(every)
