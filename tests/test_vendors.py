"""Bars as vendors hand them out go straight into a panel: each shape is made here, small, as its vendor writes it."""

from __future__ import annotations

import gzip
import zipfile
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from pricepix import Panel
from pricepix.bars import vendor_files
from pricepix.bars.vendors import qlib

PRICES = ("open", "high", "low", "close", "volume")
BARS = np.array(
    [
        [10.0, 12.0, 9.5, 11.25, 1000.0],
        [11.25, 11.5, 10.75, 11.0, 2000.0],
        [11.0, 13.0, 11.0, 12.5, 1500.0],
    ]
)
DAYS = ["2024-01-02", "2024-01-03", "2024-01-04"]


def read(source, **options):
    return Panel.from_table(source, progress=False, **options)


def same_bars(panel, instrument, expected=BARS, times=None):
    rows = panel.rows_of(instrument)
    np.testing.assert_array_equal(panel.bars[rows], expected)
    if times is not None:
        assert [panel.stamp(t) for t in panel.time[rows].tolist()] == times


def ms(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


# ---- yfinance


def wide(order, tickers=("AAPL", "BTC-USD"), scale=(1.0, 2.0), name="Date"):
    import pandas as pd

    fields = ["Close", "High", "Low", "Open", "Volume"]
    at = {"Open": 0, "High": 1, "Low": 2, "Close": 3, "Volume": 4}
    columns = pd.MultiIndex.from_product([fields, tickers], names=["Price", "Ticker"])
    values = {
        (f, t): BARS[:, at[f]] * (s if f != "Volume" else 1.0)
        for f in fields
        for t, s in zip(tickers, scale, strict=False)
    }
    frame = pd.DataFrame(values, index=pd.DatetimeIndex(DAYS, name=name)).reindex(columns=columns)
    return frame if order == "column" else frame.swaplevel(axis=1).sort_index(axis=1)


@pytest.mark.parametrize("order", ["column", "ticker"])
def test_yfinance_of_many_tickers(order):
    pytest.importorskip("pandas")
    panel = read(wide(order))
    assert panel.instruments.tolist() == ["AAPL", "BTC-USD"]
    same_bars(panel, "AAPL", times=DAYS)
    same_bars(panel, "BTC-USD", BARS * [2, 2, 2, 2, 1])


def test_yfinance_of_one_ticker_and_of_minutes():
    pytest.importorskip("pandas")
    one = wide("column", ("AAPL",))
    same_bars(read(one), "AAPL", times=DAYS)
    one.index = (one.index + np.timedelta64(15, "h")).tz_localize("UTC").rename("Datetime")
    panel = read(one, tz="America/New_York")
    assert panel.tz == "America/New_York"


def test_yfinance_rows_without_a_bar_of_the_ticker_are_left_out():
    pytest.importorskip("pandas")
    frame = wide("column")
    frame.loc["2024-01-03", [c for c in frame.columns if c[1] == "AAPL"]] = np.nan
    panel = read(frame)
    same_bars(panel, "AAPL", BARS[[0, 2]])
    assert len(panel) == 5
    assert any("1 rows of the pandas DataFrame without any value" in r for r in panel.report.remarks)


def test_yfinance_without_any_value():
    pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="every value is missing"):
        read(wide("column") * np.nan)


def test_other_frames_of_two_levels_are_still_refused():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("c", "d")]))
    with pytest.raises(ValueError, match="2 levels of columns"):
        read(frame)


# ---- ccxt and frames by symbol


def ohlcv(text=False):
    rows = [[ms(day), *map(str if text else float, bar)] for day, bar in zip(DAYS, BARS, strict=True)]
    return [[row[0], *row[1:]] for row in rows]


def test_ccxt_rows_by_symbol():
    panel = read({"BTC/USDT": ohlcv(), "ETH/USDT": ohlcv(text=True), "NEW/USDT": []})
    assert panel.instruments.tolist() == ["BTC/USDT", "ETH/USDT"]
    assert panel.tz == "UTC"
    same_bars(panel, "BTC/USDT")
    same_bars(panel, "ETH/USDT")
    assert panel.time[0] == ms(DAYS[0]) * 1_000_000


def test_ccxt_rows_of_one_symbol_with_a_name():
    same_bars(read(ohlcv(), name="BTC/USDT"), "BTC/USDT")
    same_bars(read(ohlcv()), "0")


def test_rows_of_binances_client():
    klines = [[*row, row[0] + 1, "1", 5, "1", "1", "0"] for row in ohlcv(text=True)]
    same_bars(read(klines, name="BTCUSDT"), "BTCUSDT")


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([[1, 2.0, 3.0, 1.0, 2.0, 1.0], [1, 2.0]], r"row 1 is \[1, 2\.0\]; expected 6 values"),
        ([[1, "x", 3.0, 1.0, 2.0, 1.0]], "a value is no number"),
        ([["x", 1.0, 3.0, 1.0, 2.0, 1.0]], "a value is no number"),
    ],
)
def test_rows_that_are_none(rows, match):
    with pytest.raises(ValueError, match=match):
        read({"BTC/USDT": rows})


def test_frames_by_symbol():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        BARS, columns=["Open", "High", "Low", "Close", "Volume"], index=pd.DatetimeIndex(DAYS)
    )
    table = pl.DataFrame({"date": DAYS, **{n: BARS[:, k] for k, n in enumerate(PRICES)}})
    panel = read({"AAPL": frame, "MSFT": table})
    assert panel.instruments.tolist() == ["AAPL", "MSFT"]
    same_bars(panel, "AAPL", times=DAYS)
    same_bars(panel, "MSFT", times=DAYS)


def test_two_keys_of_one_name():
    with pytest.raises(ValueError, match="two keys of the mapping are called '1'"):
        read({1: ohlcv(), "1": ohlcv()})


def test_a_mapping_of_columns_is_still_a_table():
    same_bars(read({"date": DAYS, **{n: BARS[:, k].tolist() for k, n in enumerate(PRICES)}}, name="A"), "A")


def test_an_answer_of_polygon():
    results = [
        {"t": ms(day), **dict(zip("ohlcv", bar.tolist(), strict=True)), "vw": 1.0, "n": 3}
        for day, bar in zip(DAYS, BARS, strict=True)
    ]
    same_bars(read({"ticker": "AAPL", "results": results, "status": "OK"}), "AAPL")
    with pytest.raises(ValueError, match="holds no results"):
        read({"ticker": "AAPL", "results": []})
    with pytest.raises(ValueError, match="result 0 lacks one of"):
        read({"ticker": "AAPL", "results": [{"t": 1}]})


# ---- files


def write(path, header, rows):
    lines = ([",".join(header)] if header else []) + [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_stooq_download_and_bulk(tmp_path):
    single = write(
        tmp_path / "aapl.us.csv", ["Date", "Open", "High", "Low", "Close", "Volume"],
        [[d, *b] for d, b in zip(DAYS, BARS, strict=True)],
    )  # fmt: skip
    same_bars(read(single), "aapl.us", times=DAYS)
    header = [
        "<TICKER>",
        "<PER>",
        "<DATE>",
        "<TIME>",
        "<OPEN>",
        "<HIGH>",
        "<LOW>",
        "<CLOSE>",
        "<VOL>",
        "<OPENINT>",
    ]
    rows = [["AAPL.US", "D", d.replace("-", ""), "000000", *b, 0] for d, b in zip(DAYS, BARS, strict=True)]
    same_bars(read(write(tmp_path / "aapl.txt", header, rows)), "AAPL.US", times=DAYS)
    rows = [["AAPL.US", "5", "20240102", f"{153000 + 500 * k}", *b, 0] for k, b in enumerate(BARS)]
    panel = read(write(tmp_path / "five.txt", header, rows), tz="Europe/Warsaw")
    same_bars(panel, "AAPL.US")
    assert panel.stamp(int(panel.time[1])).startswith("2024-01-02 15:35")
    rows[0][1] = "D"
    with pytest.raises(ValueError, match="bars of several lengths"):
        read(write(tmp_path / "mixed.txt", header, rows))


def klines(unit=1, header=False):
    rows = [
        [ms(d) * unit, *b, ms(d) * unit + 1, 1.5, 3, 0.5, 0.5, 0] for d, b in zip(DAYS, BARS, strict=True)
    ]
    names = [
        "open_time",
        *PRICES,
        "close_time",
        "quote_volume",
        "count",
        "taker_buy_volume",
        "taker_buy_quote_volume",
        "ignore",
    ]
    return (names if header else None), rows


@pytest.mark.parametrize("unit", [1, 1000], ids=["ms", "us"])
@pytest.mark.parametrize("header", [False, True])
def test_binance_klines(tmp_path, unit, header):
    path = write(tmp_path / "BTCUSDT-1d-2024-01.csv", *klines(unit, header))
    panel = read(path)
    assert panel.tz == "UTC"
    same_bars(panel, "BTCUSDT")
    assert panel.time[0] == ms(DAYS[0]) * 1_000_000


def test_binance_zips_of_several_months_and_units(tmp_path):
    for month, unit in (("2024-12", 1), ("2025-01", 1000)):
        name = f"ETHUSDT-1h-{month}"
        _, rows = klines(unit)
        if unit == 1000:
            rows = [[row[0] + 366 * 86_400_000_000, *row[1:]] for row in rows]
        text = write(tmp_path / "x.csv", None, rows).read_text()
        (tmp_path / "x.csv").unlink()
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr(f"{name}.csv", text)
    panel = read(tmp_path)
    assert panel.instruments.tolist() == ["ETHUSDT"]
    same_bars(panel, "ETHUSDT", np.vstack([BARS, BARS]))


def test_polygon_flat_file(tmp_path):
    header = ["ticker", "volume", "open", "close", "high", "low", "window_start", "transactions"]
    # Days begin at midnight in New York.
    rows = [
        ["AAPL", b[4], b[0], b[3], b[1], b[2], (ms(d) + 5 * 3_600_000) * 1_000_000, 3]
        for d, b in zip(DAYS, BARS, strict=True)
    ]
    path = write(tmp_path / "2024-01-02.csv", header, rows)
    packed = tmp_path / "2024-01-02.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        panel = read(file, tz="America/New_York")
        same_bars(panel, "AAPL")
        assert panel.stamp(int(panel.time[0])).startswith("2024-01-02")
    rows[1][6] = ""
    with pytest.raises(ValueError, match="'window_start', row 1 has no time"):
        read(write(path, header, rows))


def test_databento_ohlcv(tmp_path):
    header = ["ts_event", "rtype", "publisher_id", "instrument_id", *PRICES, "symbol"]
    raw = [
        [ms(d) * 1_000_000, 35, 1, 77, *(int(v * 1e9) for v in b[:4]), int(b[4]), "ESH4"]
        for d, b in zip(DAYS, BARS, strict=True)
    ]
    same_bars(read(write(tmp_path / "raw.csv", header, raw)), "ESH4")
    pretty = [
        [f"{d}T00:00:00.000000000Z", 35, 1, 77, *(f"{v:.9f}" for v in b[:4]), int(b[4]), "ESH4"]
        for d, b in zip(DAYS, BARS, strict=True)
    ]
    panel = read(write(tmp_path / "pretty.csv", header, pretty))
    same_bars(panel, "ESH4")
    assert panel.time[0] == ms(DAYS[0]) * 1_000_000
    panel = read(write(tmp_path / "unmapped.csv", header[:-1], [row[:-1] for row in raw]))
    assert panel.instruments.tolist() == ["77"]
    raw[1][4:8] = [2**63 - 1] * 4
    panel = read(write(tmp_path / "undefined.csv", header, raw))
    assert np.isnan(panel.bars[1, :4]).all()


def test_tushare_and_akshare_names():
    tushare = pl.DataFrame(
        {"ts_code": ["000001.SZ"] * 3, "trade_date": [d.replace("-", "") for d in DAYS],
         **{n: BARS[:, k] for k, n in enumerate(PRICES[:4])}, "pre_close": [1.0] * 3, "pct_chg": [0.5] * 3,
         "vol": BARS[:, 4], "amount": [1.0] * 3}
    )  # fmt: skip
    same_bars(read(tushare), "000001.SZ", times=DAYS)
    akshare = pl.DataFrame(
        {"日期": DAYS, "股票代码": ["000001"] * 3, "开盘": BARS[:, 0], "收盘": BARS[:, 3], "最高": BARS[:, 1],
         "最低": BARS[:, 2], "成交量": BARS[:, 4], "成交额": [1.0] * 3, "振幅": [1.0] * 3, "涨跌幅": [1.0] * 3,
         "换手率": [0.1] * 3}
    )  # fmt: skip
    same_bars(read(akshare), "000001", times=DAYS)
    minutes = akshare.drop("股票代码", "日期").with_columns(
        pl.Series("时间", [f"{DAYS[0]} 09:3{k}:00" for k in range(3)])
    )
    same_bars(read(minutes, name="sh600000"), "sh600000")


def qlib_folder(folder, first=1.0, days=("2024-01-01", *DAYS), volume=True):
    (folder / "calendars").mkdir(parents=True)
    (folder / "instruments").mkdir()
    (folder / "calendars" / "day.txt").write_text("\n".join(days) + "\n")
    (folder / "calendars" / "day_future.txt").write_text("2030-01-01\n")
    (folder / "instruments" / "all.txt").write_text("SH600000\t2024-01-02\t2024-01-04\n")
    own = folder / "features" / "sh600000"
    own.mkdir(parents=True)
    for k, name in enumerate(PRICES):
        if name != "volume" or volume:
            np.array([first, *BARS[:, k]], "<f4").tofile(own / f"{name}.day.bin")
    return folder


def test_a_folder_of_qlib(tmp_path):
    panel = read(qlib_folder(tmp_path / "cn_data"))
    same_bars(panel, "SH600000", times=DAYS)
    panel = read(qlib_folder(tmp_path / "no_volume", volume=False))
    assert np.isnan(panel.bars[:, 4]).all()


def test_gaps_and_several_frequencies_of_qlib(tmp_path):
    folder = qlib_folder(tmp_path / "q")
    own = folder / "features" / "sh600000"
    for name in PRICES:
        values = np.fromfile(own / f"{name}.day.bin", "<f4")
        values[2] = np.nan
        values.tofile(own / f"{name}.day.bin")
    same_bars(read(folder), "SH600000", BARS[[0, 2]])
    (folder / "calendars" / "1min.txt").write_text("2024-01-02 09:31:00\n")
    with pytest.raises(ValueError, match="calendars of 1min, day: choose one"):
        read(folder)
    assert read(qlib.read_folder(folder, "day")).instruments.tolist() == ["SH600000"]
    with pytest.raises(ValueError, match="no calendar of freq='5min'"):
        qlib.read_folder(folder, "5min")


@pytest.mark.parametrize("first", [2.0, -1.0, 0.5, np.nan])
def test_a_file_of_qlib_that_does_not_fit(tmp_path, first):
    with pytest.raises(ValueError, match="beyond the 4 times of the calendar"):
        read(qlib_folder(tmp_path / "q", first))


def lean_zip(path, member, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(member, "\n".join(",".join(map(str, row)) for row in rows))
    return path


def test_lean_zips(tmp_path):
    daily = [
        [f"{d.replace('-', '')} 00:00", *(int(v * 10_000) for v in b[:4]), int(b[4])]
        for d, b in zip(DAYS, BARS, strict=True)
    ]
    path = lean_zip(tmp_path / "equity" / "usa" / "daily" / "aapl.zip", "aapl.csv", daily)
    same_bars(read(path), "AAPL", times=DAYS)
    minute = [
        [34_200_000 + 60_000 * k, *(int(v * 10_000) for v in b[:4]), int(b[4])] for k, b in enumerate(BARS)
    ]
    folder = tmp_path / "equity" / "usa" / "minute" / "spy"
    for day in ("20240102", "20240103"):
        lean_zip(folder / f"{day}_trade.zip", f"{day}_spy_minute_trade.csv", minute)
    panel = read(folder, tz="America/New_York")
    same_bars(panel, "SPY", np.vstack([BARS, BARS]))
    assert panel.stamp(int(panel.time[4])).startswith("2024-01-03 09:31")
    crypto = [[f"{d.replace('-', '')} 00:00", *b] for d, b in zip(DAYS, BARS, strict=True)]
    same_bars(
        read(lean_zip(tmp_path / "crypto" / "daily" / "btcusd_trade.zip", "btcusd.csv", crypto)), "BTCUSD"
    )


def test_lean_prices_of_unknown_scale_and_quotes(tmp_path):
    row = [["20240102 00:00", 100_000, 120_000, 95_000, 112_500, 10]]
    with pytest.raises(ValueError, match="not known whether its prices are ten-thousandths"):
        read(lean_zip(tmp_path / "spy.zip", "spy.csv", row))
    path = tmp_path / "equity" / "20240102_quote.zip"
    lean_zip(path, "20240102_spy_minute_quote.csv", [[34_200_000, *row[0][1:]]])
    with pytest.raises(ValueError, match="holds quotes"):
        read(path)


def test_zips_that_are_none(tmp_path):
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match="not a readable zip"):
        read(broken)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as packed:
        packed.writestr("a.csv", "1")
        packed.writestr("b.csv", "1")
    with pytest.raises(ValueError, match="holds 2 files"):
        read(tmp_path / "two.zip")
    lean_zip(tmp_path / "other.zip", "x\x1b.csv", [["hello", "world"]])
    with pytest.raises(ValueError, match="neither of Binance's nor of Lean's") as caught:
        read(tmp_path / "other.zip")
    assert "\x1b" not in str(caught.value)


def test_a_zip_that_expands_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(vendor_files, "_SMALL_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.csv", "1," * 1_000_000)
    with pytest.raises(ValueError, match="expands beyond the"):
        read(tmp_path / "bomb.zip")


def test_whoever_names_columns_means_those_of_the_file(tmp_path):
    path = write(tmp_path / "BTCUSDT-1d-2024-01.csv", *klines(header=True))
    panel = read(path, columns={"time": "open_time"}, time_unit="ms")
    assert panel.instruments.tolist() == ["BTCUSDT-1d-2024-01"]


def test_a_value_that_is_no_number_is_named(tmp_path):
    header, rows = klines(header=True)
    rows[1][2] = "oops"
    with pytest.raises(ValueError, match="column 'high', row 1 holds 'oops', which is not a number"):
        read(write(tmp_path / "BTCUSDT-1d-2024-01.csv", header, rows))
