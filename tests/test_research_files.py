"""Daily files of CRSP, Compustat and CSMAR as they are delivered: small ones of each shape, made here."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import pricepix as pp
from pricepix import Panel, forward_returns
from pricepix.bars.vendors.by_name import read_bars
from pricepix.bars.vendors.compustat import read_compustat
from pricepix.bars.vendors.crsp import read_crsp
from pricepix.bars.vendors.csmar import read_csmar
from pricepix.workflow.config import load_config
from pricepix.workflow.templates import init_config

NAN = float("nan")

# Five trading days of 2001 around a weekend. 10001 trades on, 10002 dies on the 4th for performance without DLRET,
# 10003 merges on the 4th with DLRET, 10004 is delisted on the last day, 10005 is a fund on another exchange, and
# 10006 is delisted in a row of its own.
CRSP = """PERMNO,date,SHRCD,EXCHCD,TICKER,DLSTCD,DLRET,BIDLO,ASKHI,PRC,VOL,RET,SHROUT,OPENPRC,CFACPR
10001,20010103,11,1,AAA,,,9.5,10.5,10,1000,C,2000,9.75,2
10001,20010104,11,1,AAA,,,10,11,-10.5,0,0.05,2000,,2
10001,20010105,11,1,AAA,,,0,0,0,,B,2000,0,2
10001,20010108,11,1,AAA,,,5,6,5.5,2000,-66,4000,5.25,1
10001,20010109,11,1,AAA,,,5.5,6,6,2100,0.090909,4000,5.5,1
10002,20010103,11,3,BBB,,,1,2,2,50,0.0,100,1.5,1
10002,20010104,11,3,BBB,574,A,1,2,1,60,-0.5,100,2,1
10003,20010103,10,2,CCC,,,20,21,20,50,0.0,100,20,1
10003,20010104,10,2,CCC,233,0.1,20,22,22,60,0.1,100,20,1
10004,20010108,11,1,DDD,,,30,31,30,50,0.0,100,30,1
10004,20010109,11,1,DDD,331,0.02,30,31,30,50,0.0,100,30,1
10005,20010103,73,4,EEE,,,40,41,40,50,0.0,100,40,1
10005,20010104,73,4,EEE,,,40,41,41,50,0.025,100,40,1
10006,20010103,11,1,FFF,,,7,8,7,50,0.0,100,7,1
10006,20010104,11,1,FFF,520,-0.4,,,,,,100,,1
"""


def crsp_file(folder: Path, text: str = CRSP) -> Path:
    (folder / "dsf.csv").write_text(text)
    return folder / "dsf.csv"


def rows(panel: Panel, name: str) -> dict[str, list]:
    own = panel.rows_of(name)
    days = [str(np.datetime64(int(t), "ns").astype("M8[D]"))[-2:] for t in panel.time[own]]
    return {
        "day": days,
        "close": panel.bars[own, 3].tolist(),
        "return": panel.fields["total_return"][own].tolist(),
    }


@pytest.fixture
def crsp(tmp_path: Path) -> Panel:
    return read_crsp(crsp_file(tmp_path)).panel()


def test_crsp_is_read_by_its_own_conventions(crsp):
    assert crsp.instruments.tolist() == [f"1000{k}" for k in range(1, 7)]
    own = crsp.rows_of("10001")
    np.testing.assert_array_equal(crsp.bars[own, 3], [10, 10.5, NAN, 5.5, 6])  # a midpoint, and no price
    np.testing.assert_array_equal(crsp.bars[own, 0], [9.75, NAN, NAN, 5.25, 5.5])
    np.testing.assert_array_equal(
        crsp.fields["total_return"][own], [NAN, 0.05, NAN, NAN, 0.090909]
    )  # C, B, -66
    np.testing.assert_array_equal(crsp.fields["market_cap"][own], [20e6, 21e6, NAN, 22e6, 24e6])
    np.testing.assert_array_equal(crsp.fields["adjustment_factor"][own], [2, 2, 2, 1, 1])
    assert crsp.fields["eligible"][own].all()
    assert not crsp.fields["eligible"][crsp.rows_of("10005")].any()
    assert crsp.report.notes["midpoint_price"] == 1
    said = str(crsp.report)
    assert "SHRCD is one of 10, 11" in said
    assert "EXCHCD is one of 1, 2, 3" in said


def test_delisting_returns_follow_the_last_price(crsp):
    # The merged firm's stands in the row of its last price: a row of its own on the market's next day.
    found = rows(crsp, "10003")
    assert found["day"] == ["03", "04", "08"]  # on the 5th nobody has a price
    np.testing.assert_array_equal(found["close"], [20, 22, NAN])
    np.testing.assert_array_equal(found["return"], [0.0, 0.1, 0.1])
    # Where it has a row without a price already, it stays there.
    assert rows(crsp, "10006") == {"day": ["03", "04"], "close": [7.0, pytest.approx(NAN, nan_ok=True)],
                                   "return": [0.0, pytest.approx(-0.4)]}  # fmt: skip
    # None is made up: the death for performance has none, and that of the last day waits.
    assert rows(crsp, "10002")["return"] == [0.0, -0.5]
    assert rows(crsp, "10004")["day"] == ["08", "09"]
    said = str(crsp.report)
    assert "4 delistings, 3 with a return (DLRET)" in said
    assert "1 delistings have no return (DLSTCD 574): their holders are left with the last level" in said
    assert "1 delistings on the table's last day" in said
    # So a label from the very last price holds it, too.
    label = forward_returns(crsp, np.array([crsp.locate("10003", "2001-01-04")]), 1)
    np.testing.assert_allclose(label.value, [0.1], rtol=1e-6)


@pytest.mark.parametrize(("exchange", "rate"), [(3, -0.55), (1, -0.3), (2, -0.3)])
def test_missing_delisting_returns_are_shumways_if_asked_for(tmp_path, exchange, rate):
    text = CRSP.replace("11,3,BBB", f"11,{exchange},BBB")
    panel = read_crsp(crsp_file(tmp_path, text), missing_delisting_returns="shumway").panel()
    assert rows(panel, "10002")["return"] == [0.0, -0.5, rate]
    assert rows(panel, "10003")["return"] == [0.0, 0.1, 0.1]
    said = str(panel.report)
    assert (
        "1 delistings for performance (DLSTCD 500, 520 to 584) without a return were given Shumway's" in said
    )
    assert "have no return" not in said


def test_delistings_may_be_a_file_of_their_own(tmp_path, crsp):
    frame = pl.read_csv(crsp_file(tmp_path), infer_schema=False)
    gone = pl.DataFrame(
        {
            "permno": [10001, 10002, 10003, 10004, 10006],
            "dlstdt": [
                dt.date(2001, 1, 9),
                *[dt.date(2001, 1, 4)] * 2,
                dt.date(2001, 1, 9),
                dt.date(2001, 1, 4),
            ],
            "dlstcd": [100, 574, 233, 331, 520],
            "dlret": [None, -99.0, 0.1, 0.02, -0.4],
        }
    )
    # Without its row of the delisting, which then is made.
    bars = frame.drop("DLSTCD", "DLRET").filter(~((pl.col("PERMNO") == "10006") & (pl.col("PRC").is_null())))
    panel = read_crsp(bars, gone).panel()
    for name in crsp.instruments:
        np.testing.assert_array_equal(rows(panel, name)["return"], rows(crsp, name)["return"])
    with pytest.raises(ValueError, match="has DLRET, too: leave delistings= out"):
        read_crsp(frame, gone)
    with pytest.raises(ValueError, match=r"is not CRSP's delisting file: it has no column DLSTDT"):
        read_crsp(bars, gone.drop("dlstdt"))


def test_numbers_and_dates_of_any_type_give_the_same(tmp_path, crsp):
    text = pl.read_csv(crsp_file(tmp_path), infer_schema=False)
    letters = pl.when(pl.col("RET").is_in(["B", "C"])).then(None).otherwise("RET")
    numbers = text.with_columns(
        pl.col("PERMNO").cast(pl.Int32), pl.col("date").str.to_date("%Y%m%d"), letters.cast(pl.Float64).alias("RET"),
        pl.col("DLRET").replace("A", None).cast(pl.Float64),
        pl.col("DLSTCD", "SHRCD", "EXCHCD").cast(pl.Float64), pl.col("PRC", "OPENPRC", "SHROUT").cast(pl.Float64),
    )  # fmt: skip
    numbers.write_parquet(tmp_path / "dsf.parquet")
    for source in (numbers, numbers.lazy(), numbers.to_pandas(), tmp_path / "dsf.parquet",
                   text.rename(str.lower), text.with_columns(pl.col("date").cast(pl.Int64))):  # fmt: skip
        assert read_crsp(source).panel().digest == crsp.digest


def test_crsp_that_is_none(tmp_path):
    frame = pl.read_csv(crsp_file(tmp_path), infer_schema=False)
    with pytest.raises(ValueError, match=r"is not CRSP's daily stock file: it has no column PERMNO, BIDLO"):
        read_crsp(frame.drop("PERMNO", "BIDLO"))
    with pytest.raises(ValueError, match="CRSP's format CIZ, whose DlyRet holds delisting returns already"):
        read_crsp(frame.rename({"date": "DlyCalDt"}))
    with pytest.raises(ValueError, match=r"RET.*x2"):
        read_crsp(frame.with_columns(RET=pl.col("RET").replace("0.05", "x2"))).panel()
    with pytest.raises(TypeError, match="share_codes='11': give whole numbers"):
        read_crsp(frame, share_codes="11")
    with pytest.raises(ValueError, match="missing_delisting_returns='drop' is not known"):
        read_crsp(frame, missing_delisting_returns="drop")
    with pytest.raises(ValueError, match="more than one column is named 'prc'"):
        read_crsp(frame.with_columns(prc=pl.col("PRC")))
    every = read_crsp(frame.drop("SHRCD"), exchange_codes=None)
    assert "eligible" not in every.panel().fields
    assert "the table has no SHRCD: windows may end at bars of every code" in every.remarks
    bare = read_crsp(frame.drop("DLRET", "DLSTCD"))
    assert "no delisting returns are there (DLRET)" in " ".join(bare.remarks)


# --------------------------------------------------------------------------------------------- Compustat

COMPUSTAT = """gvkey,iid,datadate,tic,tpci,exchg,prcod,prchd,prcld,prccd,cshtrd,cshoc,ajexdi,trfd
1690,01,2020-08-27,AAPL,0,14,508.57,509.94,495.33,500.04,38888096,4275634000,4,1.05
1690,01,2020-08-28,AAPL,0,14,504.05,505.77,498.31,499.23,46907479,4275634000,4,1.05
1690,01,2020-08-31,AAPL,0,14,127.58,131.00,126.00,129.04,225702688,17102536000,1,1.05
1690,01,2020-11-06,AAPL,0,14,118.32,119.20,116.13,118.69,114457922,17001802000,1,1.0519
2269,1,2020-08-27,XYZ,F,14,10,11,9,10,100,1000,1,
2269,1,2020-08-28,XYZ,F,14,,,,,,1000,1,
2269,1,2020-08-31,XYZ,F,14,10,11,9,11,100,1000,1,
"""


def test_compustat(tmp_path):
    (tmp_path / "secd.csv").write_text(COMPUSTAT)
    panel = read_compustat(tmp_path / "secd.csv").panel(adjust="divide", anchor="first")
    assert panel.instruments.tolist() == ["001690.01", "002269.01"]
    apple, other = panel.rows_of("001690.01"), panel.rows_of("002269.01")
    np.testing.assert_allclose(panel.bars[apple, 3], [500.04, 499.23, 516.16, 474.76])
    np.testing.assert_array_equal(panel.fields["adjustment_factor"][apple], [1, 1, 0.25, 0.25])
    expected = [499.23 / 500.04, 129.04 / (499.23 / 4), 118.69 / 129.04 * 1.0519 / 1.05]
    np.testing.assert_allclose(panel.fields["total_return"][apple][1:], np.array(expected) - 1)
    np.testing.assert_allclose(panel.fields["total_return"][other], [NAN, NAN, 0.1])
    np.testing.assert_allclose(panel.fields["market_cap"][apple][0], 500.04 * 4275634000)
    assert panel.fields["eligible"][apple].all()
    assert not panel.fields["eligible"][other].any()
    assert "Compustat has no delisting returns" in str(panel.report)
    with pytest.raises(ValueError, match="it has no column ajexdi"):
        read_compustat(pl.read_csv(tmp_path / "secd.csv").drop("ajexdi"))
    without = read_compustat(pl.read_csv(tmp_path / "secd.csv").drop("trfd"), issue_types=None)
    assert "total_return" not in without.panel().fields
    assert "the table has no trfd" in without.remarks[-1]


# ------------------------------------------------------------------------------------------------- CSMAR

CSMAR = """Stkcd,Trddt,Opnprc,Hiprc,Loprc,Clsprc,Dnshrtrd,Dsmvtll,Dretwd,Adjprcwd,Markettype,Trdsta
证券代码,交易日期,日开盘价,日最高价,日最低价,日收盘价,日个股交易股数,日个股总市值,考虑现金红利再投资的日个股回报率,复权价,市场类型,交易状态
没有单位,没有单位,元/股,元/股,元/股,元/股,股,千元,没有单位,元/股,没有单位,没有单位
000001,2020-01-02,16.65,16.95,16.55,16.87,153023187,327374000,0.025532,1687,4,1
000001,2020-01-03,16.94,17.31,16.92,17.18,111619481,333390000,0.018376,1718,4,1
600000,2020-01-02,12.47,12.64,12.45,12.47,51629079,366026000,0.008084,200,1,1
600000,2020-01-03,12.57,12.63,12.47,12.6,38018810,369841000,0.010425,202.085,1,2
900901,2020-01-02,0.5,0.5,0.5,0.5,100,1000,0,0.5,2,1
"""


def test_csmar(tmp_path):
    (tmp_path / "TRD_Dalyr.csv").write_text(CSMAR, encoding="utf-8-sig")
    panel = read_csmar(tmp_path / "TRD_Dalyr.csv").panel(adjust="multiply")
    assert panel.instruments.tolist() == ["000001", "600000", "900901"]
    first = panel.rows_of("000001")
    np.testing.assert_allclose(panel.bars[first, 3], [1687, 1718])
    np.testing.assert_allclose(panel.fields["total_return"][first], [0.025532, 0.018376])
    np.testing.assert_allclose(panel.fields["market_cap"][first], [327374e6, 333390e6])
    assert panel.fields["eligible"].tolist() == [True, True, True, False, False]  # ST, and B-shares
    assert "windows end at bars whose Trdsta is one of 1" in str(panel.report)
    everyone = read_csmar(tmp_path / "TRD_Dalyr.csv", market_types=None, trading_states=None).panel()
    assert "eligible" not in everyone.fields
    # A frame that has passed through a spreadsheet.
    rows_ = pl.read_csv(tmp_path / "TRD_Dalyr.csv", skip_rows_after_header=2, infer_schema_length=None)
    assert rows_["Stkcd"].dtype == pl.Int64
    assert read_csmar(rows_).panel(adjust="multiply").digest == panel.digest


# ------------------------------------------------------------------ by name, in configurations and commands


def test_a_vendor_by_name(tmp_path, crsp):
    path = crsp_file(tmp_path)
    assert read_bars(path, "crsp").digest == crsp.digest
    for how, message in (
        ({"vendor": "crps"}, "vendor='crps' is not known"),
        ({"vendor": "crsp", "vendor_options": {"share_code": [1]}}, "did you mean 'share_codes'"),
        ({"vendor": "crsp", "columns": {"close": "PRC"}}, "knows its columns and codes: leave columns out"),
        ({"vendor_options": {"share_codes": [1]}}, "belong to a vendor: name it"),
    ):
        with pytest.raises(ValueError, match=message):
            read_bars(path, **how)


def test_the_papers_configuration_reads_crsp(tmp_path, monkeypatch):
    """A market of many days in CRSP's shape runs through the configuration as it is written."""
    from pricepix.workflow.source import TableSource

    init_config("jkx", tmp_path / "run.yaml")
    config = load_config(tmp_path / "run.yaml")
    assert (config.data.vendor, config.data.source) == ("crsp", str(tmp_path / "crsp_daily.parquet"))
    simulated_crsp(tmp_path / "crsp_daily.parquet")
    source = TableSource(config, progress=False)
    panel = source.training_panel()
    assert {"total_return", "market_cap", "eligible"} <= set(panel.fields)
    windows = pp.WindowIndex.from_panel(panel, config.image.spec(), "month")
    assert len(windows) > 50
    assert windows.counts["masked"] > 0
    # A saved configuration, which spells out all defaults, reads the same.
    (tmp_path / "saved.yaml").write_text(config.to_yaml())
    again = TableSource(load_config(tmp_path / "saved.yaml"), progress=False).training_panel()
    assert again.digest == panel.digest


def simulated_crsp(path: Path, names: int = 12, days: int = 250) -> None:
    """Write a simulated market in the shape of CRSP's daily file."""
    bars = pp.samples.simulate(names, days, seed=4, delist_rate=0.001, halt_rate=0.01)
    code = {name: 10000 + k for k, name in enumerate(bars["instrument"].unique().sort().to_list())}
    frame = bars.select(
        PERMNO=pl.col("instrument").replace_strict(code, return_dtype=pl.Int64),
        date=pl.col("time").dt.date(),
        SHRCD=pl.when(pl.col("instrument") == bars["instrument"][0]).then(73).otherwise(11),
        EXCHCD=pl.lit(1),
        OPENPRC="open", ASKHI="high", BIDLO="low", PRC="close", VOL="volume", RET="total_return",
        SHROUT=pl.lit(1000.0), CFACPR=1 / pl.col("adjustment_factor"),
        DLSTCD=pl.lit(None, pl.Int64), DLRET=pl.lit(None, pl.Float64),
    )  # fmt: skip
    frame.write_parquet(path)


def test_the_command_line_reads_vendors(tmp_path):
    from click.testing import CliRunner

    from pricepix.cli import main

    simulated_crsp(tmp_path / "crsp.parquet")
    said = CliRunner().invoke(
        main,
        ["build-store", str(tmp_path / "crsp.parquet"), str(tmp_path / "s.zarr"), "--preset", "jkx5", "--horizon", "5",
         "--vendor", "crsp", "--vendor-option", "share_codes=11,73", "--vendor-option", "exchange_codes=none",
         "--adjust", "divide", "--anchor", "first", "--no-progress"],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    assert "SHRCD is one of 11, 73" in said.output
    expected = read_crsp(tmp_path / "crsp.parquet", share_codes=(11, 73), exchange_codes=None)
    panel = expected.panel(adjust="divide", anchor="first", progress=False)
    assert pp.open_store(tmp_path / "s.zarr").attrs["panel_digest"] == panel.digest
