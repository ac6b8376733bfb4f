"""Every kind of source, spelling of a column and form of a time, and what is said of unreadable ones."""

from __future__ import annotations

import datetime as dt
import gzip
import importlib.util
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from pricepix.bars.panel import Panel

DAY = 86_400_000_000_000


def bars(n: int = 6, instruments: tuple[str, ...] = ("AAA", "BBB")) -> pl.DataFrame:
    """Clean daily bars, sorted, n of each instrument."""
    rng = np.random.default_rng(7)
    parts = []
    for name in instruments:
        close = np.round(50 + np.cumsum(rng.normal(0, 1, n)), 2)
        open_ = np.round(close + rng.normal(0, 0.3, n), 2)
        parts.append(
            pl.DataFrame(
                {
                    "symbol": [name] * n,
                    "date": [dt.date(2020, 3, 2) + dt.timedelta(days=k) for k in range(n)],
                    "open": open_,
                    "high": np.round(np.maximum(open_, close) + 0.5, 2),
                    "low": np.round(np.minimum(open_, close) - 0.5, 2),
                    "close": close,
                    "volume": rng.integers(100, 1000, n).astype(float),
                }
            )
        )
    return pl.concat(parts)


@pytest.fixture
def frame() -> pl.DataFrame:
    return bars()


@pytest.fixture
def expected(frame) -> Panel:
    return Panel.from_table(frame)


def ns(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


# --------------------------------------------------------------------------------------------------- sources


def test_what_a_frame_becomes(frame, expected):
    assert expected.instruments.tolist() == ["AAA", "BBB"]
    assert expected.instruments.dtype.kind == "U"
    assert expected.offsets.tolist() == [0, 6, 12]
    assert expected.offsets.dtype == np.int64
    assert expected.time[0] == ns("2020-03-02")
    assert expected.time.dtype == np.int64
    assert expected.tz is None
    assert expected.bars.dtype == np.float64
    assert expected.bars.flags.c_contiguous
    np.testing.assert_array_equal(
        expected.bars, frame.select("open", "high", "low", "close", "volume").to_numpy()
    )


def _pyarrow(frame):
    pytest.importorskip("pyarrow")
    return frame.to_arrow()


def _reader(frame):
    table = _pyarrow(frame)
    return type(table).from_batches(table.to_batches(max_chunksize=5)).to_reader()


def _pandas(frame):
    pytest.importorskip("pandas")
    return frame.to_pandas()


class _Stream:
    """Anything with the Arrow C stream and nothing else."""

    def __init__(self, frame):
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema=None):
        return self._frame.__arrow_c_stream__(requested_schema)


SOURCES = {
    "polars": lambda f: f,
    "polars in chunks": lambda f: pl.concat([f[:5], f[5:9], f[9:]], rechunk=False),
    "polars lazy": lambda f: f.lazy(),
    "polars categories": lambda f: f.with_columns(pl.col("symbol").cast(pl.Categorical)),
    "polars enum": lambda f: f.with_columns(pl.col("symbol").cast(pl.Enum(["BBB", "AAA"]))),
    "polars datetime": lambda f: f.with_columns(pl.col("date").cast(pl.Datetime("ms"))),
    "mapping": lambda f: {c: f[c].to_list() for c in f.columns},
    "numpy mapping": lambda f: {c: f[c].to_numpy() for c in f.columns},
    "pyarrow table": _pyarrow,
    "pyarrow reader": _reader,
    "arrow stream": _Stream,
    "pandas": _pandas,
    "pandas categories": lambda f: _pandas(f).astype({"symbol": "category"}),
    "pandas objects": lambda f: _pandas(f).astype({"symbol": object}),
    "pandas nullable": lambda f: _pandas(f).convert_dtypes(),
    "pandas seconds": lambda f: _pandas(f).astype({"date": "datetime64[s]"}),
    "pandas index": lambda f: _pandas(f).set_index(["symbol", "date"]),
    "pandas python dates": lambda f: _pandas(f).assign(date=[dt.date(2020, 3, 2 + k) for k in range(6)] * 2),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_panel(kind, frame, expected):
    panel = Panel.from_table(SOURCES[kind](frame))
    assert panel.digest == expected.digest
    assert panel.report.ok
    assert not panel.report.counts


def test_pandas_with_a_nameless_time_index():
    pd = pytest.importorskip("pandas")
    f = bars(instruments=("AAA",))
    table = f.drop("symbol", "date").to_pandas()
    table.index = pd.DatetimeIndex(f["date"].to_numpy())
    assert Panel.from_table(table, name="AAA").digest == Panel.from_table(f).digest


def test_pandas_columns_of_one_numpy_block():
    pd = pytest.importorskip("pandas")
    f = bars()
    block = pd.DataFrame(f.select("open", "high", "low", "close", "volume").to_numpy(), columns=list("ohlcv"))
    block["symbol"], block["date"] = f["symbol"].to_list(), f["date"].to_numpy()
    assert Panel.from_table(block).digest == Panel.from_table(f).digest


def test_pandas_column_levels_are_refused():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(
        np.ones((2, 2)), columns=pd.MultiIndex.from_tuples([("Open", "AAA"), ("Close", "AAA")])
    )
    with pytest.raises(ValueError, match=r"2 levels of columns.*stack"):
        Panel.from_table(table)


def test_pandas_series_is_refused():
    pd = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match="pandas Series; expected a pandas, polars or pyarrow table"):
        Panel.from_table(pd.Series([1.0]))


def test_pandas_with_two_columns_of_one_name(frame):
    table = _pandas(frame)
    table.columns = ["symbol", "date", "open", "high", "low", "close", "close"]
    with pytest.raises(ValueError, match="more than one column named 'close'"):
        Panel.from_table(table)


def test_duckdb_relation(frame, expected, tmp_path):
    """In a process of its own: DuckDB complains of its own leaks when the interpreter ends."""
    if importlib.util.find_spec("duckdb") is None:
        pytest.skip("duckdb is not installed")
    path = _write(frame, tmp_path / "x.parquet")
    code = """
import sys, duckdb
from pricepix.bars.panel import Panel
print(Panel.from_table(duckdb.read_parquet(sys.argv[1])).digest)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected.digest


@pytest.mark.parametrize("source", [3, 1.5, None, object(), b"bars"])
def test_other_sources_are_refused(source):
    with pytest.raises(
        TypeError, match=r"cannot read bars from .*; expected a pandas, polars or pyarrow table"
    ):
        Panel.from_table(source)


def test_a_panel_is_no_table(expected):
    with pytest.raises(TypeError, match=r"a Panel already; Panel\.of"):
        Panel.from_table(expected)


# ----------------------------------------------------------------------------------------------------- files


def _write(frame, path):
    name = path.name
    if name.endswith(".csv"):
        frame.write_csv(path)
    elif name.endswith(".tsv"):
        frame.write_csv(path, separator="\t")
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(frame.write_csv().encode()))
    elif name.endswith(".parquet"):
        frame.write_parquet(path, row_group_size=5)
    else:
        frame.write_ipc(path)
    return path


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.csv.gz", "x.parquet", "x.feather", "x.arrow"])
def test_every_file_format(name, frame, expected, tmp_path):
    path = _write(frame, tmp_path / name)
    assert Panel.from_table(path).digest == expected.digest
    assert Panel.from_table(str(path)).digest == expected.digest


@pytest.mark.parametrize("suffix", ["csv", "parquet", "feather"])
def test_glob_folder_and_list(suffix, frame, expected, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    one = _write(frame[:4], tmp_path / "in" / f"a.{suffix}")
    two = _write(frame[4:], tmp_path / "in" / "deep" / f"b.{suffix}")
    (tmp_path / "in" / f".hidden.{suffix}").write_text("not a table")
    for source in (tmp_path / "in", f"{tmp_path}/in/**/*.{suffix}", [one, str(two)], (two, one)):
        assert Panel.from_table(source).digest == expected.digest, source


@pytest.mark.parametrize("suffix", ["csv", "parquet", "feather"])
def test_one_file_an_instrument(suffix, frame, expected, tmp_path):
    for name in ("AAA", "BBB"):
        _write(frame.filter(symbol=name).drop("symbol"), tmp_path / f"{name}.{suffix}")
    assert Panel.from_table(tmp_path).digest == expected.digest
    assert Panel.from_table(f"{tmp_path}/*.{suffix}").digest == expected.digest


def test_one_file_is_named_by_its_stem(frame, tmp_path):
    path = _write(frame[:6].drop("symbol"), tmp_path / "BRK.B.csv")
    assert Panel.from_table(path).instruments.tolist() == ["BRK.B"]
    assert Panel.from_table(path, name="berkshire").instruments.tolist() == ["berkshire"]


def test_a_table_in_memory_without_instruments(frame):
    assert Panel.from_table(frame[:6].drop("symbol")).instruments.tolist() == ["0"]
    assert Panel.from_table(frame[:6].drop("symbol"), name="AAA").instruments.tolist() == ["AAA"]
    with pytest.raises(
        ValueError, match="no instrument column, or none that was recognised: pass instrument="
    ):
        Panel.from_table(frame.drop("symbol"))


def test_files_of_different_columns_and_types(frame, expected, tmp_path):
    first = frame.filter(symbol="AAA").with_columns(pl.col("volume").cast(pl.Int32))
    second = (
        frame.filter(symbol="BBB")
        .rename({"close": "PRC", "date": "Trade_Date"})
        .with_columns(extra=pl.lit("x"))
    )
    _write(first, tmp_path / "1.parquet")
    _write(second, tmp_path / "2.parquet")
    assert Panel.from_table(tmp_path).digest == expected.digest


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_folders_that_hold_a_column_in_their_names(suffix, frame, tmp_path):
    for name, rows in (("000001", frame[:6]), ("000002", frame[6:])):
        for year, part in (("2019", rows[:2]), ("2020", rows[2:])):
            folder = tmp_path / f"code={name}" / f"year={year}"
            folder.mkdir(parents=True)
            _write(part.drop("symbol"), folder / f"part-0.{suffix}")
    panel = Panel.from_table(tmp_path)
    assert panel.instruments.tolist() == ["000001", "000002"]
    np.testing.assert_array_equal(panel.bars, Panel.from_table(frame).bars)


def test_a_field_that_only_some_files_have(frame, tmp_path):
    _write(frame[:6].with_columns(ret=pl.lit(0.01), eligible=pl.lit(True)), tmp_path / "1.parquet")
    _write(frame[6:], tmp_path / "2.parquet")
    panel = Panel.from_table(tmp_path)
    np.testing.assert_array_equal(panel.fields["total_return"], [0.01] * 6 + [np.nan] * 6)
    np.testing.assert_array_equal(panel.fields["eligible"], [True] * 6 + [False] * 6)


def test_a_volume_that_only_some_files_have(frame, tmp_path):
    _write(frame[:6].drop("volume"), tmp_path / "1.parquet")
    _write(frame[6:], tmp_path / "2.parquet")
    panel = Panel.from_table(tmp_path)
    assert np.isnan(panel.bars[:6, 4]).all()
    assert not np.isnan(panel.bars[6:, 4]).any()


def test_csv_keeps_leading_zeros_and_any_delimiter(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("\ufeffcode;date;open;high;low;close\n000001;20200302;1;2;1;2\n000002;20200302;1;2;1;2\n")
    panel = Panel.from_table(path)
    assert panel.instruments.tolist() == ["000001", "000002"]
    assert np.isnan(panel.bars[:, 4]).all()


def test_csv_reads_missing_numbers_and_infinities_for_what_they_are(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(
        "symbol,date,open,high,low,close,volume\nA,2020-03-02,NA,2,1,,5\nA,2020-03-03,1,2,1,nan,N/A\n"
    )
    panel = Panel.from_table(path)
    np.testing.assert_array_equal(panel.bars, [[np.nan, 2, 1, np.nan, 5], [1, 2, 1, np.nan, np.nan]])
    path.write_text("symbol,date,open,high,low,close\nA,2020-03-02,1,inf,1,1\n")
    with pytest.raises(ValueError, match="1 infinite_price"):
        Panel.from_table(path)


def test_csv_codes_of_missing_returns_must_be_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(
        "PERMNO,date,OPENPRC,ASKHI,BIDLO,PRC,RET\n10107,20200302,1,2,1,2,C\n10107,20200303,1,2,1,2,0.5\n"
    )
    with pytest.raises(ValueError, match=r"column 'RET' .*total_return: 'C' in row 0 .*null_values=\['C'\]"):
        Panel.from_table(path)
    panel = Panel.from_table(path, null_values=["C"])
    np.testing.assert_array_equal(panel.fields["total_return"], [np.nan, 0.5])
    assert Panel.from_table(path, null_values="C").digest == panel.digest
    assert panel.instruments.tolist() == ["10107"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "feather"])
def test_no_rows(suffix, frame, tmp_path):
    with pytest.raises(ValueError, match="has no rows"):
        Panel.from_table(_write(frame[:0], tmp_path / f"x.{suffix}"))


def test_no_rows_in_memory(frame):
    for source in (frame[:0], frame[:0].lazy(), _pandas(frame[:0])):
        with pytest.raises(ValueError, match="has no rows"):
            Panel.from_table(source)


def test_files_without_rows_among_others(frame, expected, tmp_path):
    _write(frame[:0], tmp_path / "0.parquet")
    _write(frame, tmp_path / "1.parquet")
    assert Panel.from_table(tmp_path).digest == expected.digest


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: no such file or folder"):
        Panel.from_table(tmp_path / "nowhere.csv")
    with pytest.raises(FileNotFoundError, match="no file matches"):
        Panel.from_table(f"{tmp_path}/*.csv")
    with pytest.raises(FileNotFoundError, match=r"the folder holds no .csv"):
        Panel.from_table(tmp_path)
    with pytest.raises(ValueError, match="the list of paths is empty"):
        Panel.from_table([])
    with pytest.raises(TypeError, match="a list must hold only paths, got int"):
        Panel.from_table([3])


def test_files_that_are_no_tables(frame, tmp_path):
    (tmp_path / "x.parquet").write_text("no parquet")
    (tmp_path / "x.feather").write_text("no feather")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "x.xlsx").write_text("a spreadsheet")
    (tmp_path / "x.csv.gz").write_text("not packed")
    (tmp_path / "twice.csv").write_text("date,open,open\n")
    with pytest.raises(ValueError, match=r"x\.parquet: not a readable parquet file"):
        Panel.from_table(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.feather: not a readable ipc file"):
        Panel.from_table(tmp_path / "x.feather")
    with pytest.raises(ValueError, match=r"empty\.csv: the file is empty; expected a header line"):
        Panel.from_table(tmp_path / "empty.csv")
    with pytest.raises(ValueError, match=r"x\.xlsx: cannot tell its format; expected one of \.csv"):
        Panel.from_table(tmp_path / "x.xlsx")
    with pytest.raises(ValueError, match=r"x\.csv\.gz: not a readable csv file"):
        Panel.from_table(tmp_path / "x.csv.gz")
    with pytest.raises(ValueError, match="more than one column is named 'open'"):
        Panel.from_table(tmp_path / "twice.csv")
    with pytest.raises(ValueError, match=r"files of several kinds \(csv, ipc, parquet\); give a glob"):
        Panel.from_table(tmp_path)


def test_a_ragged_csv(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("symbol,date,open,high,low,close\nA,2020-03-02,1,2,1,2,9,9,9\n")
    with pytest.raises(ValueError, match=r"x\.csv: cannot be read: "):
        Panel.from_table(path)


def test_a_cut_parquet(frame, tmp_path):
    path = _write(frame, tmp_path / "x.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"x\.parquet: not a readable parquet file"):
        Panel.from_table(path)


def test_rows_arrive_in_blocks(monkeypatch, tmp_path):
    """Blocks of 7 rows cut runs of instruments and batches of the file anywhere."""
    f = bars(50, tuple(f"I{k}" for k in range(9)))
    whole = Panel.from_table(f)
    monkeypatch.setattr("pricepix.bars.values.BLOCK", 7)
    path = _write(f, tmp_path / "x.parquet")
    assert Panel.from_table(f).digest == whole.digest
    assert Panel.from_table(path).digest == whole.digest
    assert Panel.from_table(f.sample(fraction=1, shuffle=True, seed=0)).digest == whole.digest
    assert Panel.from_table(f.sort("date", maintain_order=True)).digest == whole.digest


# --------------------------------------------------------------------------------------------------- columns


SPELLINGS = [
    ("SYMBOL", "Date", "Open", "High", "Low", "Close", "Volume"),
    ("ticker", "datetime", "o", "h", "l", "c", "v"),
    ("PERMNO", "date", "OPENPRC", "ASKHI", "BIDLO", "PRC", "VOL"),
    ("StockID", "trade_date", "OPEN", "HIGH", "LOW", "last", "vol"),
    ("ts_code", "Trade Date", "open", "high", "low", "close", "vol"),
    ("code", "timestamp", "PX_OPEN", "PX_HIGH", "PX_LOW", "PX_LAST", "PX_VOLUME"),
    ("instrument", "ts", "open_price", "high_price", "low_price", "close_price", "volume"),
    ("PERMNO", "DlyCalDt", "DlyOpen", "DlyHigh", "DlyLow", "DlyClose", "DlyVol"),
]


@pytest.mark.parametrize("names", SPELLINGS)
def test_usual_spellings(names, frame, expected):
    panel = Panel.from_table(frame.rename(dict(zip(frame.columns, names, strict=True))))
    assert panel.digest == expected.digest


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("RET", "total_return", [0.5] * 12),
        ("total_return", "total_return", [0.5] * 12),
        ("CFACPR", "adjustment_factor", [2.0] * 12),
        ("ADJ_FACTOR", "adjustment_factor", [2.0] * 12),
        ("MarketCap", "market_cap", [1e9] * 12),
        ("mktcap", "market_cap", [1e9] * 12),
        ("up_limit", "up_limit", [True, False] * 6),
        ("dn_limit", "down_limit", [True, False] * 6),
        ("mask", "eligible", [True, False] * 6),
        ("Eligible", "eligible", [True, False] * 6),
    ],
)
def test_spellings_of_fields(name, field, values, frame):
    panel = Panel.from_table(frame.with_columns(pl.Series(name, values)))
    assert list(panel.fields) == [field]
    assert panel.fields[field].dtype == (np.bool_ if isinstance(values[0], bool) else np.float64)
    assert panel.fields[field].tolist() == values


def test_columns_by_name(frame, expected):
    odd = frame.rename({"symbol": "who", "date": "when", "close": "px"})
    assert Panel.from_table(odd, {"close": "px"}, "who", "when").digest == expected.digest
    assert (
        Panel.from_table(odd, {"close": "px", "instrument": "who", "time": "when"}).digest == expected.digest
    )


def test_one_column_for_several_prices(frame):
    panel = Panel.from_table(frame, dict.fromkeys(("open", "high", "low"), "close"))
    assert (panel.bars[:, :4] == panel.bars[:, [3]]).all()


def test_none_switches_a_column_off(frame):
    f = frame.with_columns(ret=pl.lit(0.0))
    panel = Panel.from_table(f, {"total_return": None, "volume": None})
    assert not panel.fields
    assert np.isnan(panel.bars[:, 4]).all()


def test_missing_columns_are_all_named_with_what_was_found(frame):
    with pytest.raises(ValueError, match="cannot tell the columns") as caught:
        Panel.from_table(frame.drop("open", "date").rename({"high": "day_high"}))
    text = str(caught.value)
    assert (
        "- time: no column has this name or a usual synonym: columns={'time': 'NAME OF THE COLUMN'}" in text
    )
    assert "- open: no column has this name" in text
    assert "- high: no column has this name or a usual synonym; 'day_high' looks like it" in text
    assert "columns={'high': 'day_high'}" in text
    assert "Columns found: 'symbol', 'day_high', 'low', 'close', 'volume'." in text
    assert "- low" not in text


@pytest.mark.parametrize(
    ("extra", "field"),
    [("PRC", "close"), ("datetime", "time"), ("PERMNO", "instrument"), ("vol", "volume"), ("OPEN", "open")],
)
def test_ambiguous_columns(extra, field, frame):
    own = {"close": "close", "time": "date", "instrument": "symbol", "volume": "volume", "open": "open"}[
        field
    ]
    f = frame.with_columns(pl.col(own).alias(extra))
    with pytest.raises(ValueError, match=f"- {field}: any of ") as caught:
        Panel.from_table(f)
    assert repr(own) in str(caught.value)
    assert repr(extra) in str(caught.value)
    assert f"columns={{{field!r}: " in str(caught.value)
    Panel.from_table(f, {field: own})


def test_adjusted_close_is_never_taken_silently(frame, expected):
    yahoo = frame.with_columns(pl.lit(1.0).alias("Adj Close"))
    panel = Panel.from_table(yahoo)
    assert panel.digest == expected.digest
    assert "column 'Adj Close' was not used" in str(panel.report)
    with pytest.raises(
        ValueError, match=r"close: no column has .*'Adj Close' looks like it.*\{'close': 'Adj Close'\}"
    ):
        Panel.from_table(yahoo.drop("close"))


def test_names_that_are_wrong(frame):
    with pytest.raises(ValueError, match="there is no column 'clsoe'; did you mean 'close'"):
        Panel.from_table(frame, {"close": "clsoe"})
    with pytest.raises(ValueError, match="there is no column 'Symbol'; did you mean 'symbol'"):
        Panel.from_table(frame, instrument="Symbol")
    with pytest.raises(ValueError, match="'clos' is not a name pricepix knows; did you mean 'close'"):
        Panel.from_table(frame, {"clos": "close"})
    with pytest.raises(ValueError, match=r"'PRC' is not a name .* goes from pricepix names to the table's"):
        Panel.from_table(frame, {"PRC": "close"})
    with pytest.raises(ValueError, match="instrument='symbol' contradicts columns"):
        Panel.from_table(frame, {"instrument": "date"}, "symbol")
    with pytest.raises(ValueError, match="every panel needs time, open, high, low, close"):
        Panel.from_table(frame, {"close": None})
    with pytest.raises(ValueError, match=r"'volume' of .* is asked for both as 'volume' and as 'market_cap'"):
        Panel.from_table(frame, {"market_cap": "volume", "volume": "volume"})
    with pytest.raises(TypeError, match="columns is of type list: give a mapping of pricepix names"):
        Panel.from_table(frame, ["close"])
    with pytest.raises(TypeError, match="must be the name of a column or None, got 3"):
        Panel.from_table(frame, {"close": 3})
    with pytest.raises(TypeError, match="instrument must be the name of a column, got int"):
        Panel.from_table(frame, instrument=3)


# ----------------------------------------------------------------------------------------------- instruments


@pytest.mark.parametrize("dtype", [pl.Int64, pl.UInt32, pl.Float64])
def test_numbers_as_instruments(dtype, frame):
    f = frame.with_columns(symbol=pl.Series([10107] * 6 + [9999] * 6, dtype=dtype))
    panel = Panel.from_table(f)
    assert panel.instruments.tolist() == ["10107", "9999"]


def test_instruments_ascend_whatever_their_order(frame):
    f = pl.concat([frame[6:], frame[:6]])
    panel = Panel.from_table(f)
    assert panel.instruments.tolist() == ["AAA", "BBB"]
    assert not panel.report.counts


def test_instruments_that_cannot_be_names(frame):
    with pytest.raises(ValueError, match="missing in 2 rows, the first is row 3 "):
        Panel.from_table(frame.with_columns(symbol=pl.Series(["A"] * 3 + [None, None] + ["A"] * 7)))
    with pytest.raises(ValueError, match="missing in 1 rows, the first is row 1 "):
        Panel.from_table(frame.with_columns(symbol=pl.Series([1.0, float("nan")] + [1.0] * 10)))
    with pytest.raises(ValueError, match=r"holds 1\.5 in row 0: expected names or whole numbers"):
        Panel.from_table(frame.with_columns(symbol=pl.lit(1.5)))
    with pytest.raises(ValueError, match="of type Date: expected text, categories or whole numbers"):
        Panel.from_table(frame.with_columns(symbol=pl.col("date")))


# ----------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("values", "first"),
    [
        (["2020-03-02", "2020-03-03"], "2020-03-02"),
        (["2020/03/02", "2020/03/03"], "2020-03-02"),
        (["20200302", "20200303"], "2020-03-02"),
        ([20200302, 20200303], "2020-03-02"),
        ([20200302.0, 20200303.0], "2020-03-02"),
        ([202003020935, 202003020940], "2020-03-02T09:35"),
        ([20200302093500, 20200302094000], "2020-03-02T09:35"),
        (["202003020935", "202003020940"], "2020-03-02T09:35"),
        (["20200302093501", "20200302094000"], "2020-03-02T09:35:01"),
        (["2020-03-02 09:35", "2020-03-02 09:40"], "2020-03-02T09:35"),
        (["2020-03-02T09:35:00", "2020-03-02T09:40:00"], "2020-03-02T09:35"),
        (["2020-03-02 09:35:00.000000001", "2020-03-02 09:35:00.5"], "2020-03-02T09:35:00.000000001"),
        (["20200302 09:35:00", "20200302 09:40:00"], "2020-03-02T09:35"),
        ([" 2020-03-02", "2020-03-03 "], "2020-03-02"),
        ([dt.datetime(2020, 3, 2, 9, 35), dt.datetime(2020, 3, 2, 9, 40)], "2020-03-02T09:35"),
        ([dt.date(2020, 3, 2), dt.date(2020, 3, 3)], "2020-03-02"),
    ],
)
def test_forms_of_times(values, first):
    panel = one_instrument(values)
    assert panel.tz is None
    assert panel.time[0] == ns(first)
    assert panel.time[1] > panel.time[0]


def one_instrument(values, **options) -> Panel:
    n = len(values)
    table = {"date": values, "open": [1.0] * n, "high": [2.0] * n, "low": [1.0] * n, "close": [2.0] * n}
    return Panel.from_table(pl.DataFrame(table, strict=False), **options)


def test_time_format():
    panel = one_instrument(["02/03/2020 09:35", "13/03/2020 09:35"], time_format="%d/%m/%Y %H:%M")
    assert panel.time[0] == ns("2020-03-02T09:35")
    with pytest.raises(
        ValueError, match=r"'02/03/2020' in row 0 is not a time pricepix can read; .*time_format="
    ):
        one_instrument(["02/03/2020"])
    with pytest.raises(ValueError, match=r"'2020-03-02' in row 0 .* with time_format='%d/%m/%Y'"):
        one_instrument(["2020-03-02"], time_format="%d/%m/%Y")


@pytest.mark.parametrize(("unit", "scale"), [("s", 10**9), ("ms", 10**6), ("us", 1000), ("ns", 1)])
def test_counts_since_1970_need_a_unit(unit, scale):
    stamps = [ns("2020-03-02T14:30") // scale, ns("2020-03-02T14:35") // scale]
    panel = one_instrument(stamps, time_unit=unit)
    assert panel.tz == "UTC"
    assert panel.time[0] == ns("2020-03-02T14:30")
    assert one_instrument(stamps, time_unit=unit, tz="America/New_York").tz == "America/New_York"
    with pytest.raises(ValueError, match=f"time_unit='{unit}'"):
        one_instrument(stamps)


def test_time_unit_is_for_whole_numbers():
    with pytest.raises(ValueError, match=r"time_unit='s' is for counts since 1970, but .* is String"):
        one_instrument(["2020-03-02"], time_unit="s")
    with pytest.raises(ValueError, match="time_unit='h' is not known: choose one of"):
        one_instrument([3], time_unit="h")


def test_times_that_cannot_be_read():
    with pytest.raises(
        ValueError, match=r"'02-30-2020' in row 2 .*not a time written like '2020-03-02' in row 0; 2 such"
    ):
        one_instrument(["2020-03-02", "2020-03-03", "02-30-2020", "soon"])
    with pytest.raises(ValueError, match="'2020-02-30' in row 1"):
        one_instrument(["2020-03-02", "2020-02-30"])
    with pytest.raises(ValueError, match="'20200230' in row 1"):
        one_instrument([20200302, 20200230])
    with pytest.raises(ValueError, match="'7' in row 0 is not a time"):
        one_instrument([7])
    with pytest.raises(ValueError, match="missing in 1 rows, the first is row 1"):
        one_instrument(["2020-03-02", None])
    with pytest.raises(ValueError, match="missing in 1 rows, the first is row 1"):
        one_instrument([dt.datetime(2020, 3, 2), None])
    with pytest.raises(ValueError, match="missing in every row"):
        one_instrument([None, None])
    with pytest.raises(ValueError, match="of type Time: expected dates"):
        one_instrument([dt.time(9, 35)])
    with pytest.raises(ValueError, match="of type Boolean: expected dates"):
        one_instrument([True])
    with pytest.raises(ValueError, match="between the years 1678 and 2262"):
        one_instrument([dt.datetime(3000, 1, 1)])


def test_times_missing_in_pandas(frame):
    pd = pytest.importorskip("pandas")
    table = _pandas(frame)
    table.loc[4, "date"] = pd.NaT
    with pytest.raises(
        ValueError, match=r"time column 'date' of the pandas DataFrame is missing in 1 rows, .* row 4"
    ):
        Panel.from_table(table)


# ---------------------------------------------------------------------------------------------------- zones


def test_wall_clock_and_zone():
    values = [dt.datetime(2020, 3, 6, 9, 30), dt.datetime(2020, 3, 9, 9, 30)]  # The clocks change between.
    plain = one_instrument(values)
    assert plain.tz is None
    assert plain.time.tolist() == [ns("2020-03-06T09:30"), ns("2020-03-09T09:30")]
    local = one_instrument(values, tz="America/New_York")
    assert local.tz == "America/New_York"
    assert local.time.tolist() == [ns("2020-03-06T14:30"), ns("2020-03-09T13:30")]
    assert local.stamp(local.time[1]) == "2020-03-09 09:30:00-04:00"


def test_aware_times_keep_their_instants():
    series = pl.Series([dt.datetime(2020, 3, 9, 9, 30)]).dt.replace_time_zone("America/New_York")
    own = one_instrument(series)
    assert own.tz == "America/New_York"
    assert own.time[0] == ns("2020-03-09T13:30")
    other = one_instrument(series, tz="Asia/Tokyo")
    assert other.tz == "Asia/Tokyo"
    assert other.time[0] == own.time[0]


def test_dates_in_a_zone_begin_at_its_midnight():
    panel = one_instrument([dt.date(2020, 3, 2)], tz="America/New_York")
    assert panel.time[0] == ns("2020-03-02T05:00")


def daily(zone: str, days: int = 40) -> pl.DataFrame:
    """Dates of bars, as midnights of a zone: over a change of the clocks in Europe, America and New Zealand."""
    start = dt.datetime(2020, 3, 2)
    time = pl.datetime_range(start, start + dt.timedelta(days=days - 1), "1d", time_unit="us", eager=True)
    price = pl.Series(np.full(days, 2.0))
    table = pl.DataFrame({"time": time, "open": price, "high": price, "low": price, "close": price})
    return table.with_columns(pl.col("time").dt.replace_time_zone(zone))


def _day(panel: Panel, row: int = 0) -> str:
    return panel.stamp(int(panel.time[row]))


def as_indexed(table: pl.DataFrame, folder):
    frame = table.to_pandas().set_index("time")
    frame.index.name = None
    return frame


def as_parquet(table: pl.DataFrame, folder):
    table.write_parquet(folder / "bars.parquet")
    return folder / "bars.parquet"


def as_feather(table: pl.DataFrame, folder):
    table.write_ipc(folder / "bars.feather")
    return folder / "bars.feather"


def as_csv(table: pl.DataFrame, folder):
    table.write_csv(folder / "bars.csv")
    return folder / "bars.csv"


SHIPPED = {
    "polars": lambda table, folder: table,
    "arrow": lambda table, folder: table.to_arrow(),
    "pandas": lambda table, folder: table.to_pandas(),
    "index": as_indexed,
    "parquet": as_parquet,
    "feather": as_feather,
    "csv": as_csv,
}


@pytest.mark.parametrize("way", SHIPPED)
def test_dates_at_midnight_of_another_zone_are_refused(way, tmp_path):
    """They would lie on the day before, or at hours that no bar has."""
    source = SHIPPED[way](daily("UTC"), tmp_path)
    with pytest.raises(
        ValueError,
        match=r"time column '\w+' of .*: the bars come at 00:00 of (UTC|their offset), as dates do; "
        r"tz='America/New_York' would put them at 19:00 or 20:00 of the day before \('?2020-03-02.00:00:00.* is "
        r"2020-03-01 19:00:00-05:00 there\).*tz='UTC'.*convert_time_zone\('America/New_York'\)",
    ):
        Panel.from_table(source, tz="America/New_York")
    # Days of a market that never closes are read as before.
    for zone in (None, "UTC"):
        panel = Panel.from_table(source, tz=zone)
        assert (panel.tz, _day(panel)) == ("UTC", "2020-03-02 00:00:00+00:00")


def test_what_is_advised_for_dates_of_another_zone(tmp_path):
    table, options = daily("UTC"), {"tz": "America/New_York"}
    dates = Panel.from_table(table.with_columns(pl.col("time").dt.replace_time_zone(None)), **options)
    assert _day(dates) == "2020-03-02 00:00:00-05:00"
    frame = table.to_pandas()
    frame["time"] = frame["time"].dt.tz_localize(None)
    assert Panel.from_table(frame, **options).digest == dates.digest
    moments = Panel.from_table(
        table.with_columns(pl.col("time").dt.convert_time_zone("America/New_York")), **options
    )
    assert _day(moments) == "2020-03-01 19:00:00-05:00"
    text = pl.read_csv(as_csv(table, tmp_path), infer_schema_length=0)
    assert (
        Panel.from_table(text.with_columns(pl.col("time").str.slice(0, 10)), **options).digest == dates.digest
    )
    instants = pl.col("time").str.to_datetime(time_zone="UTC").dt.convert_time_zone("America/New_York")
    assert Panel.from_table(text.with_columns(instants), **options).digest == moments.digest
    count = table.with_columns(pl.col("time").dt.epoch("s"))
    with pytest.raises(
        ValueError, match=r"of UTC, as dates do.*pl.from_epoch\(pl.col\('time'\), 's'\)\.dt\.date\(\)"
    ):
        Panel.from_table(count, time_unit="s", **options)
    since = pl.from_epoch("time", "s")
    assert Panel.from_table(count.with_columns(since.dt.date()), **options).digest == dates.digest
    instants = since.dt.replace_time_zone("UTC").dt.convert_time_zone("America/New_York")
    assert Panel.from_table(count.with_columns(instants), **options).digest == moments.digest
    assert Panel.from_table(count, time_unit="s").tz == "UTC"


ZONES = ("UTC", "America/New_York", "Europe/London", "Asia/Kolkata", "Asia/Shanghai", "Pacific/Auckland")


@pytest.mark.parametrize("asked", [None, *ZONES])
@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("came", ZONES)
def test_dates_keep_their_day_or_are_refused(came, written, asked):
    table = daily(came)
    if written:
        table = table.with_columns(pl.col("time").dt.strftime("%Y-%m-%d %H:%M:%S%:z"))
    zone = asked or ("UTC" if written else came)
    if zone == came:
        panel = Panel.from_table(table, tz=asked)
        assert [_day(panel, k)[:19] for k in range(2)] == ["2020-03-02 00:00:00", "2020-03-03 00:00:00"]
    else:
        with pytest.raises(ValueError, match=r"the bars come at 00:00 of .*, as dates do"):
            Panel.from_table(table, tz=asked)


def test_dates_with_an_offset_alone_are_refused():
    """No zone of the tz database in pandas: what is read as UTC would lie on the day before."""
    pd = pytest.importorskip("pandas")
    frame = daily("Asia/Kolkata").to_pandas()
    frame["time"] = frame["time"].dt.tz_convert(dt.timezone(dt.timedelta(hours=5, minutes=30)))
    assert Panel.from_table(frame, tz="Asia/Kolkata").tz == "Asia/Kolkata"
    with pytest.raises(
        ValueError, match=r"UTC, in which times with offsets are read, would put them at 18:30 of the day"
    ):
        Panel.from_table(frame)
    frame.loc[3, "time"] = pd.NaT
    with pytest.raises(ValueError, match="is missing in 1 rows, the first is row 3"):
        Panel.from_table(frame)


def test_arrays_of_dates_of_another_zone_are_refused():
    pd = pytest.importorskip("pandas")
    price = np.full((40, 1), 2.0)
    days = pd.DatetimeIndex(daily("UTC").to_pandas()["time"])
    with pytest.raises(ValueError, match="time of the arrays: the bars come at 00:00 of UTC, as dates do"):
        Panel.from_arrays(price, price, price, price, time=days, tz="Asia/Shanghai")
    assert Panel.from_arrays(price, price, price, price, time=days).tz == "UTC"


def test_a_bar_of_today_hides_no_dates():
    last = pl.datetime(2020, 4, 10, 14, 31, time_zone="UTC")
    table = daily("UTC").with_columns(time=pl.when(pl.int_range(pl.len()) == 39).then(last).otherwise("time"))
    with pytest.raises(ValueError, match="00:00 of UTC, as dates do"):
        Panel.from_table(table, tz="America/New_York")


@pytest.mark.parametrize(("step", "rows"), [("1h", 48_000), ("12h", 3000), ("5m", 300)])
@pytest.mark.parametrize("written", [False, True])
def test_bars_in_the_day_are_no_dates(step, rows, written):
    """Of hours round the clock, a sample may hit midnights alone: the 48th row of each two days."""
    start = dt.datetime(2015, 3, 2)
    times = pl.datetime_range(start, dt.datetime(2030, 1, 1), step, time_zone="UTC", eager=True)[:rows]
    if written:
        times = times.dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    panel = one_instrument(times, tz="America/New_York")
    assert _day(panel) == "2015-03-01 19:00:00-05:00"
    assert one_instrument(times).tz == "UTC"


def test_zones_of_the_same_clock_keep_dates():
    panel = Panel.from_table(daily("UTC"), tz="Africa/Abidjan")
    assert _day(panel) == "2020-03-02 00:00:00+00:00"


def test_offsets_in_text():
    panel = one_instrument(["2020-03-06 09:30:00-05:00", "2020-03-09T09:30:00-04:00".replace("T", " ")])
    assert panel.tz == "UTC"
    assert panel.time.tolist() == [ns("2020-03-06T14:30"), ns("2020-03-09T13:30")]
    assert one_instrument(["2020-03-06T14:30:00Z"]).time[0] == ns("2020-03-06T14:30")


def test_hours_that_happen_twice_or_never():
    with pytest.raises(
        ValueError, match=r"2020-11-01 01:30:00 in row 1 happens twice or never in America/New_York"
    ):
        one_instrument([dt.datetime(2020, 10, 31), dt.datetime(2020, 11, 1, 1, 30)], tz="America/New_York")
    with pytest.raises(ValueError, match="in row 0 happens twice or never"):
        one_instrument([dt.datetime(2020, 3, 8, 2, 30)], tz="America/New_York")


def test_mixed_zones_between_files(frame, tmp_path):
    aware = pl.col("date").cast(pl.Datetime("us")).dt.replace_time_zone
    _write(frame[:6].with_columns(aware("America/New_York")), tmp_path / "1.parquet")
    _write(frame[6:].with_columns(aware("UTC")), tmp_path / "2.parquet")
    with pytest.raises(
        ValueError, match=r"mixed time zones: America/New_York in .*1.parquet and UTC in .*2.parquet"
    ):
        Panel.from_table(tmp_path)
    _write(frame[6:].with_columns(pl.col("date").cast(pl.Datetime("us"))), tmp_path / "2.parquet")
    with pytest.raises(ValueError, match=r"America/New_York in .* and no time zone in .*tz_localize"):
        Panel.from_table(tmp_path)


def test_mixed_zones_in_text():
    with pytest.raises(
        ValueError, match=r"mixed time zones: .*'2020-03-02 09:30:00Z' in row 0 has a time zone, .* row 1"
    ):
        one_instrument(["2020-03-02 09:30:00Z", "2020-03-03 09:30:00"])
    with pytest.raises(ValueError, match=r"mixed time zones: .* in row 0 has none, .* in row 1 has one"):
        one_instrument(["2020-03-02 09:30:00", "2020-03-03 09:30:00+01:00"])


def test_mixed_zones_in_pandas(frame):
    pd = pytest.importorskip("pandas")
    table = _pandas(frame[:2])
    table["date"] = [pd.Timestamp("2020-03-02", tz="UTC"), pd.Timestamp("2020-03-03", tz="Asia/Tokyo")]
    with pytest.raises(ValueError, match=r"mixed time zones: Asia/Tokyo .* and UTC"):
        Panel.from_table(table)
    table["date"] = pd.Series(
        [pd.Timestamp("2020-03-02", tz="UTC"), pd.Timestamp("2020-03-03")], dtype=object
    )
    with pytest.raises(ValueError, match=r"mixed time zones: (no time zone|UTC) .* and (no time zone|UTC)"):
        Panel.from_table(table)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_aware_pandas_columns(unit, frame):
    table = _pandas(frame)
    table["date"] = table["date"].astype(f"datetime64[{unit}]").dt.tz_localize("America/New_York")
    panel = Panel.from_table(table)
    assert panel.tz == "America/New_York"
    assert panel.time[0] == ns("2020-03-02T05:00")
    table["date"] = table["date"].dt.tz_convert("+05:30")
    panel = Panel.from_table(table)
    assert panel.tz == "UTC"
    assert panel.time[0] == ns("2020-03-02T05:00")
    assert "read as UTC" in str(panel.report)


def test_zones_that_do_not_exist(frame):
    with pytest.raises(ValueError, match="tz='Mars/Base' is not a zone of the tz database"):
        Panel.from_table(frame, tz="Mars/Base")
    with pytest.raises(TypeError, match="tz must be the name of a time zone"):
        Panel.from_table(frame, tz=5)


# --------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [pl.Int64, pl.UInt8, pl.Float32, pl.Decimal(10, 2)])
def test_types_of_numbers(dtype, frame):
    f = frame.with_columns(pl.col("open", "high", "low", "close").round(0).cast(dtype))
    panel = Panel.from_table(f)
    np.testing.assert_array_equal(panel.bars[:, 3], f["close"].cast(pl.Float64).to_numpy())
    assert ("float32_input" in panel.report.counts) == (dtype == pl.Float32)


@pytest.mark.parametrize("kind", ["polars", "pandas", "csv", "parquet"])
def test_text_in_a_price_column(kind, frame, tmp_path):
    values = [str(v) for v in frame["close"]]
    values[4] = "12,5"
    values[7] = "halt"
    f = frame.with_columns(close=pl.Series(values))
    sources = {
        "polars": lambda: f,
        "pandas": lambda: _pandas(f),
        "csv": lambda: _write(f, tmp_path / "x.csv"),
        "parquet": lambda: _write(f, tmp_path / "x.parquet"),
    }
    with pytest.raises(
        ValueError, match=r"column 'close' of .* taken as close: '12,5' in row 4 .*is not a number; 2 such"
    ):
        Panel.from_table(sources[kind]())


def test_objects_in_a_pandas_price_column(frame):
    table = _pandas(frame).astype({"close": object})
    table.loc[3, "close"] = "halt"
    with pytest.raises(
        ValueError, match="column 'close' of the pandas DataFrame, taken as close: 'halt' in row 3"
    ):
        Panel.from_table(table)


@pytest.mark.parametrize(
    ("written", "advised"),
    [
        (
            "{:.2f}$",
            "they carry '$': convert the column before it is read, {}.str.replace('$', '', literal=True)",
        ),
        ("USD {:.2f}", "they carry 'USD': "),
        ("-€{:.2f}", "they carry '€': "),
        ("{:.2f}%", ".str.strip_chars().cast(pl.Float64) / 100"),
        (
            "{:.2f} kr",
            "; no value is one: strip what is not a number, or name another column: columns={'close': ...}",
        ),
        ("{:.2f}k", "; no value is one: "),
    ],
)
@pytest.mark.parametrize("kind", ["polars", "csv"])
def test_numbers_with_a_sign_are_no_missing_values(written, advised, kind, frame, tmp_path):
    prices = [written.format(x) for x in frame["close"]]
    wrong = frame.with_columns(close=pl.Series(prices))
    source = wrong if kind == "polars" else _write(wrong, tmp_path / "x.csv")
    with pytest.raises(ValueError, match="is not a number; 12 such rows") as told:
        Panel.from_table(source)
    message = str(told.value)
    assert (
        f"taken as close: {prices[0]!r} in row 0 (counting from 0) is not a number; 12 such rows" in message
    )
    assert advised.replace("{}", "pl.col('close')") in message
    assert "null_values" not in message
    if "convert the column before it is read, " in message:
        # What is advised makes numbers of them.
        mended = wrong.with_columns(eval(message.partition("is read, ")[2], {"pl": pl}))
        number = frame["close"] * (-1 if written.startswith("-") else 0.01 if "%" in written else 1)
        np.testing.assert_allclose(mended["close"].to_numpy(), number.to_numpy())


@pytest.mark.parametrize(
    ("prices", "numbers"),
    [
        (["1,234.50", "999.5"], [1234.5, 999.5]),
        (["$1,234.50", "$12"], [1234.5, 12.0]),
        (["12,5", "7", "103,25"], [12.5, 7.0, 103.25]),
        (["1,234,567", "1,000"], [1234567.0, 1000.0]),
    ],
)
def test_commas_in_numbers(prices, numbers):
    n = len(prices)
    days = [dt.date(2020, 3, k + 1) for k in range(n)]
    table = pl.DataFrame({"date": days, **dict.fromkeys(("open", "high", "low"), [1.0] * n), "close": prices})
    with pytest.raises(ValueError, match="convert the column before it is read") as told:
        Panel.from_table(table)
    mended = table.select(eval(str(told.value).partition("is read, ")[2], {"pl": pl}))
    assert mended["close"].to_list() == numbers
    doubtful = table.with_columns(close=pl.Series(["1,234"] * n))
    with pytest.raises(ValueError, match=r"where commas group thousands, .* where they are decimal points"):
        Panel.from_table(doubtful)


def test_one_word_throughout_may_be_a_missing_value(frame):
    with pytest.raises(ValueError, match=r"null_values=\['none yet'\]"):
        Panel.from_table(frame.with_columns(volume=pl.lit("none yet")))


def test_numbers_in_text_are_numbers(frame, expected):
    assert Panel.from_table(frame.with_columns(pl.col("close").cast(pl.String))).digest == expected.digest
    values = pl.Series([None if k == 2 else str(v) for k, v in enumerate(frame["close"])])
    panel = Panel.from_table(frame.with_columns(close=values))
    assert np.isnan(panel.bars[2, 3])


def test_dates_in_a_price_column(frame):
    with pytest.raises(ValueError, match=r"column 'close' .* is of type Date: expected numbers"):
        Panel.from_table(frame.with_columns(close=pl.col("date")))
    table = _pandas(frame)
    table["close"] = table["date"].astype("datetime64[ns]")
    with pytest.raises(ValueError, match=r"column 'close' .* is of type datetime64.*: expected numbers"):
        Panel.from_table(table)


@pytest.mark.parametrize(
    "values", [[1, 0], [1.0, 0.0], ["true", "False"], ["1", "0"], ["Y", "n"], [True, False]]
)
def test_forms_of_flags(values, frame):
    f = frame.with_columns(pl.Series("up_limit", values * 6))
    for source in (f, _pandas(f)):
        assert Panel.from_table(source).fields["up_limit"].tolist() == [True, False] * 6


def test_missing_flags_are_false(frame, tmp_path):
    f = frame.with_columns(eligible=pl.Series([True, None, False] * 4))
    for source in (f, _pandas(f), _write(f, tmp_path / "x.parquet"), _write(f, tmp_path / "x.csv")):
        assert Panel.from_table(source).fields["eligible"].tolist() == [True, False, False] * 4


def test_flags_that_are_none(frame):
    with pytest.raises(
        ValueError,
        match=r"taken as up_limit: 55\.5 in row 0 .*not a yes or no; 12 such.*limit price is not a flag",
    ):
        Panel.from_table(frame.with_columns(up_limit=pl.lit(55.5)))
    with pytest.raises(ValueError, match="taken as eligible: 'maybe' in row 0"):
        Panel.from_table(frame.with_columns(eligible=pl.lit("maybe")))
    with pytest.raises(ValueError, match="eligible, is of type Date: expected true and false"):
        Panel.from_table(frame.with_columns(eligible=pl.col("date")))
