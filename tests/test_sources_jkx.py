"""The authors' public images: a small set of exactly their form, imported, checked, read, scored."""

from __future__ import annotations

import datetime as dt
import io
import shutil
import sys

import numpy as np
import polars as pl
import pytest

import pricepix as pp
from pricepix import samples
from pricepix.build import import_jkx, jkx_panel
from pricepix.build.jkx_dataset import _sessions, jkx_labels
from pricepix.build.jkx_files import find_years

STOCKS = (10001, 10107, 90319, 14593)


def write_set(folder, years=(1999, 2000, 2001), *, seed=0, **changes):
    """Write files of the authors' form: images of jkx20 at month ends, rows by stock and date."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    bars = samples.simulate(len(STOCKS), 400, seed=seed, halt_rate=0, list_late=0, delist_rate=0)
    store = pp.render_universe(bars, "jkx20", horizons=(), progress=False)
    pool, at = store.read(), 0
    out = {}
    for year in years:
        days = [
            np.busday_offset(f"{year}-{m + 1:02d}", 0, roll="forward") - np.timedelta64(1, "D")
            for m in range(1, 12)
        ]
        days = [np.busday_offset(d, 0, roll="backward") for d in days]
        rows = [(stock, day) for stock in STOCKS for day in days if rng.random() < 0.9]
        n = len(rows)
        images = pool[(at + np.arange(n)) % len(pool)]
        at += n
        labels = {
            "Date": pl.Series([day.astype(dt.datetime) for _, day in rows]).cast(pl.Datetime("ns")),
            "StockID": pl.Series([str(stock) for stock, _ in rows]).cast(pl.Int64),
            "MarketCap": rng.uniform(1e4, 1e6, n),
            "EWMA_vol": rng.uniform(1e-4, 1e-3, n).astype(np.float32),
            **{
                f"Ret_{k}": np.where(rng.random(n) < 0.1, np.nan, rng.normal(0, 0.1, n)).astype(np.float32)
                for k in ("5d", "20d", "60d", "month")
            },
        }
        frame = pl.DataFrame(labels).with_columns(**changes)
        stem = folder / f"20d_month_has_vb_[20]_ma_{year}"
        images.tofile(f"{stem}_images.dat")
        frame.write_ipc(f"{stem}_labels_w_delay.feather", compression="lz4")
        out[year] = (images, frame)
    return out


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jkx")
    return folder, write_set(folder / "monthly_20d")


@pytest.mark.parametrize(("layout", "chunk"), [("bits", None), ("bits", 7), ("uint8", 16)])
def test_every_image_and_return_is_there(dataset, tmp_path, layout, chunk):
    folder, years = dataset
    store = import_jkx(folder, tmp_path / "out.zarr", month=21, layout=layout, chunk=chunk, progress=False)
    assert store.spec == pp.ImageSpec.preset("jkx20")
    assert store.horizons == (5, 20, 21, 60)
    assert store.instruments.tolist() == [str(stock) for stock in sorted(STOCKS)]
    frames = pl.concat([frame for _, frame in years.values()])
    images = np.concatenate([images for images, _ in years.values()])
    assert len(store) == len(frames)
    order = np.lexsort((frames["StockID"].to_numpy(), frames["Date"].to_physical().to_numpy()))
    np.testing.assert_array_equal(store.read(), images[order])
    np.testing.assert_array_equal(store.time, frames["Date"].to_physical().to_numpy()[order])
    np.testing.assert_array_equal(
        store.instruments[store.instrument_index].astype(int), frames["StockID"].to_numpy()[order]
    )
    for h, name in ((5, "Ret_5d"), (20, "Ret_20d"), (60, "Ret_60d"), (21, "Ret_month")):
        np.testing.assert_array_equal(store.returns(h), frames[name].to_numpy()[order])
        assert np.isnan(store.returns(h)).any()
        assert store.attrs["label_columns"][str(h)] == name
    labels = jkx_labels(store)
    assert labels.columns == ["instrument", "time", "MarketCap", "EWMA_vol", "Ret_month"]
    np.testing.assert_array_equal(labels["MarketCap"].to_numpy(), frames["MarketCap"].to_numpy()[order])
    assert store.verify(depth="checksums").ok


def test_stores_do_not_depend_on_threads(dataset, tmp_path):
    folder, _ = dataset
    stores = [
        import_jkx(folder, tmp_path / f"{n}.zarr", chunk=16, threads=n, progress=False).objects.checksums
        for n in (1, 3)
    ]
    np.testing.assert_array_equal(*stores)


def test_exit_times_are_trading_days_of_new_york(dataset, tmp_path):
    folder, _ = dataset
    store = import_jkx(folder, tmp_path / "out.zarr", month=21, progress=False)
    first = np.flatnonzero(store.time == np.datetime64("2001-08-31", "ns").astype(np.int64))[0]

    def exits(h):
        return str(store.exit_time(h)[first].astype("datetime64[ns]").astype("datetime64[D]"))

    # Labor Day, then the four days after September 11.
    assert exits(5) == "2001-09-10"
    assert exits(20) == "2001-10-05"
    assert exits(21) == "2001-09-28"
    assert (store.exit_time(60) > store.exit_time(20)).all()


def test_the_calendar_is_that_of_the_exchange():
    """Days that the exchange was closed, or open against the rule of other years, named one by one."""
    sessions = _sessions(1990, 2025).astype("datetime64[ns]").astype("datetime64[D]")
    years = sessions.astype("datetime64[Y]").astype(int) + 1970
    assert ((years >= 1990) & (years <= 2025)).sum() == 9067
    assert sessions[0] < np.datetime64("1990-01-01")
    assert sessions[-1] > np.datetime64("2027-02-01")
    assert np.is_busday(sessions).all()
    closed = [
        *("1994-04-27", "2004-06-11", "2007-01-02", "2018-12-05", "2025-01-09"),  # days of mourning
        *("2001-09-11", "2001-09-12", "2001-09-13", "2001-09-14", "2012-10-29", "2012-10-30"),
        *("2000-04-21", "2008-03-21", "2025-04-18"),  # Good Friday
        *("1998-01-19", "2022-06-20", "2021-12-24", "2010-07-05"),  # new holidays, and holidays on weekends
    ]
    assert not np.isin(np.array(closed, "datetime64[D]"), sessions).any()
    # Before the holidays were introduced; and a New Year's Day on a Saturday is not made up for.
    opened = ["1997-01-20", "2021-06-18", "2010-12-31", "2021-12-31", "2001-09-10", "2001-09-17"]
    assert np.isin(np.array(opened, "datetime64[D]"), sessions).all()


def test_without_a_calendar_nothing_is_imported(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "exchange_calendars", None)
    expected = r"import_jkx needs exchange_calendars: pip install 'pricepix\[calendars\]'"
    with pytest.raises(ImportError, match=expected):
        import_jkx(dataset[0], tmp_path / "out.zarr", progress=False)
    assert not (tmp_path / "out.zarr").exists()


def test_years_can_be_chosen_and_lacking_ones_are_named(dataset, tmp_path):
    folder, years = dataset
    store = import_jkx(folder / "monthly_20d", tmp_path / "out.zarr", years=[2000], progress=False)
    assert len(store) == len(years[2000][1])
    with pytest.raises(FileNotFoundError, match=r"lacks files of 1998 \(images and labels\), 2002"):
        find_years(folder, range(1998, 2003))
    write_set(tmp_path / "holes", years=(1993, 1996))
    with pytest.raises(FileNotFoundError, match=r"lacks files of 1994 \(images and labels\), 1995 .*years="):
        find_years(tmp_path / "holes")
    assert [year.year for year in find_years(tmp_path / "holes", (1993, 1996))] == [1993, 1996]
    with pytest.raises(
        ValueError, match=r"years=\[\] names no year: leave it out for all, from 1999 to 2001"
    ):
        import_jkx(folder, tmp_path / "none.zarr", years=[], progress=False)
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_years(folder / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no file named like"):
        find_years(tmp_path)


def test_years_that_do_not_fit_are_all_named_with_both_numbers(tmp_path):
    years = write_set(tmp_path / "set")
    for year, cut in ((1999, 3840), (2001, 100)):
        path = tmp_path / "set" / f"20d_month_has_vb_[20]_ma_{year}_images.dat"
        path.write_bytes(path.read_bytes()[:-cut])
    n = {year: len(frame) for year, (_, frame) in years.items()}
    (tmp_path / "set" / "20d_month_has_vb_[20]_ma_2000_labels_w_delay.feather").unlink()
    with pytest.raises(FileNotFoundError, match=r"2000 \(labels\)"):
        import_jkx(tmp_path / "set", tmp_path / "out.zarr")
    with pytest.raises(ValueError, match=f"1999: {n[1999] - 1} images, but {n[1999]} rows") as error:
        import_jkx(tmp_path / "set", tmp_path / "out.zarr", years=[1999, 2001])
    assert f"2001: {n[2001] - 100 / 3840:.2f} images, but {n[2001]} rows" in str(error.value)
    assert not (tmp_path / "out.zarr").exists()


def test_faults_of_labels_are_named(tmp_path):
    folder = tmp_path / "set"
    write_set(folder, (1999,), Date=pl.lit(dt.date(2003, 1, 31)))
    with pytest.raises(ValueError, match="1999: row 0 is dated 2003-01-31"):
        import_jkx(folder, tmp_path / "out.zarr")
    write_set(folder, (1999,), Date=pl.lit(dt.date(1999, 1, 29)))
    with pytest.raises(ValueError, match="occurs twice at 1999-01-29"):
        import_jkx(folder, tmp_path / "out.zarr")
    write_set(folder, (1999,), StockID=pl.lit("A"))
    with pytest.raises(ValueError, match="StockID holds values other than whole numbers"):
        import_jkx(folder, tmp_path / "out.zarr")
    path = folder / "20d_month_has_vb_[20]_ma_1999_labels_w_delay.feather"
    pl.read_ipc(io.BytesIO(path.read_bytes())).drop("Ret_60d").write_ipc(path)
    with pytest.raises(ValueError, match="has no column Ret_60d; it has Date"):
        import_jkx(folder, tmp_path / "out.zarr")
    path.write_bytes(b"FEA1 of old")
    with pytest.raises(ValueError, match=r"is not a Feather file \(version 2\)"):
        import_jkx(folder, tmp_path / "out.zarr")


def test_dates_may_be_written_in_any_way(tmp_path):
    written = []
    for k, form in enumerate((pl.col("Date"), pl.col("Date").dt.strftime("%Y%m%d").cast(pl.Int64),
                              pl.col("Date").dt.strftime("%Y-%m-%d"), pl.col("Date").dt.date())):  # fmt: skip
        folder = tmp_path / str(k)
        frame = write_set(folder, (1999,))[1999][1].with_columns(form.alias("Date"))
        frame.write_ipc(folder / "20d_month_has_vb_[20]_ma_1999_labels_w_delay.feather")
        written.append(import_jkx(folder, tmp_path / f"{k}.zarr", progress=False))
    for store in written[1:]:
        np.testing.assert_array_equal(store.time, written[0].time)


def test_damaged_pixels_are_refused_and_blank_images_counted(tmp_path):
    folder = tmp_path / "set"
    images, frame = write_set(folder, (1999,))[1999]
    images = images.copy()
    images[3] = 0
    path = folder / "20d_month_has_vb_[20]_ma_1999_images.dat"
    images.tofile(path)
    store = import_jkx(folder, tmp_path / "blank.zarr", progress=False)
    assert (len(store), store.attrs["drop_counts"]) == (len(frame) - 1, {"no_price": 1})
    assert len(jkx_labels(store)) == len(store)
    images[5, 0, 0] = 7
    images.tofile(path)
    with pytest.raises(ValueError, match="image 5 holds pixels other than 0 and 255"):
        import_jkx(folder, tmp_path / "bad.zarr", progress=False)


def test_a_stopped_import_resumes(dataset, tmp_path, monkeypatch):
    from pricepix.build import jkx_dataset

    folder, _ = dataset
    whole = import_jkx(folder, tmp_path / "whole.zarr", chunk=16, progress=False)
    write = jkx_dataset._write_year
    seen = []

    def stops(writer, year, *rest):
        if year.year == 2001 and not seen:
            seen.append(year)
            write(writer, year, *rest)  # images are written, the block is not noted as done
            raise KeyboardInterrupt
        return write(writer, year, *rest)

    monkeypatch.setattr(jkx_dataset, "_write_year", stops)
    with pytest.raises(KeyboardInterrupt) as stopped:
        import_jkx(folder, tmp_path / "part.zarr", chunk=16, progress=False)
    assert (
        "part.zarr stopped with 2 of 3 years done; the same call with mode='resume'"
        in stopped.value.__notes__[0]
    )
    with pytest.raises(ValueError, match="not finished"):
        pp.open_store(tmp_path / "part.zarr")
    with pytest.raises(FileExistsError, match="unfinished build"):
        import_jkx(folder, tmp_path / "part.zarr", chunk=16, progress=False)
    with pytest.raises(ValueError, match="chunk is 32, the store's 16"):
        import_jkx(folder, tmp_path / "part.zarr", chunk=32, mode="resume", progress=False)
    monkeypatch.setattr(jkx_dataset, "_write_year", write)
    again = import_jkx(folder, tmp_path / "part.zarr", chunk=16, mode="resume", progress=False)
    np.testing.assert_array_equal(again.objects.checksums, whole.objects.checksums)
    assert again.attrs == whole.attrs
    assert (
        import_jkx(folder, tmp_path / "part.zarr", chunk=16, mode="resume", progress=False).attrs
        == whole.attrs
    )


def test_a_finished_import_is_compared_with_what_is_asked_for(tmp_path):
    folder = tmp_path / "set"
    years = write_set(folder, (1999,))
    options = {"chunk": 16, "month": 21, "mode": "resume", "progress": False}
    made = import_jkx(folder, tmp_path / "out.zarr", **options)
    assert import_jkx(folder, tmp_path / "out.zarr", **options).attrs == made.attrs
    for change, message in (
        ({"month": None}, r"horizons is \[5, 20, 60\] here, \[5, 20, 21, 60\] there"),
        ({"layout": "uint8"}, "layout is uint8 here, bits there"),
        ({"chunk": 32}, "chunk is 32 here, 16 there"),
    ):
        with pytest.raises(ValueError, match=f"is finished, and was not made from this: .*{message}"):
            import_jkx(folder, tmp_path / "out.zarr", **(options | change))
    write_set(folder, (1999, 2000))
    with pytest.raises(ValueError, match=r"years is \[1999, 2000\] here, \[1999\] there"):
        import_jkx(folder, tmp_path / "out.zarr", **options)
    # The same year, with another number of rows.
    images, frame = years[1999]
    images[1:].tofile(folder / "20d_month_has_vb_[20]_ma_1999_images.dat")
    frame[1:].write_ipc(folder / "20d_month_has_vb_[20]_ma_1999_labels_w_delay.feather")
    with pytest.raises(ValueError, match=f"candidates is {len(frame) - 1} here, {len(frame)} there"):
        import_jkx(folder, tmp_path / "out.zarr", years=[1999], **options)
    assert pp.open_store(tmp_path / "out.zarr").attrs == made.attrs


@pytest.mark.parametrize("deleted", [False, True])
def test_labels_are_those_of_the_store(dataset, tmp_path, deleted):
    """What an import before it left there is not taken for them."""
    folder, years = dataset
    store = import_jkx(folder, tmp_path / "out.zarr", month=21, progress=False)
    kept = tmp_path / "out.zarr.labels"
    (kept / "notes.parquet").write_text("of somebody else")
    if deleted:
        shutil.rmtree(tmp_path / "out.zarr")
    options = {"month": 21, "years": [2000], "progress": False}
    store = import_jkx(folder, tmp_path / "out.zarr", mode="create" if deleted else "overwrite", **options)
    assert len(jkx_labels(store)) == len(store) == len(years[2000][1])
    priced = ~np.isnan(jkx_panel(store).bars[:, 3])
    assert priced.sum() == len(store)
    assert sorted(path.name for path in kept.iterdir()) == ["2000.parquet", "notes.parquet"]
    # Labels of another store, or lost ones, are an error.
    (kept / "2000.parquet").rename(kept / "2001.parquet")
    pl.read_parquet(kept / "2001.parquet")[1:].write_parquet(kept / "2000.parquet")
    n = len(store)
    with pytest.raises(ValueError, match=f"holds {2 * n - 1} rows of labels, .* {n} images"):
        jkx_labels(tmp_path / "out.zarr")
    for path in kept.glob("2*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no labels at"):
        jkx_labels(store)


def test_arguments_are_checked(dataset, tmp_path):
    folder, _ = dataset
    for arguments, message in (
        ({"month": 20}, "month=20: give a number of days other than 5, 20 and 60"),
        ({"layout": "png"}, "png"),
        ({"mode": "x"}, "x"),
    ):
        with pytest.raises(ValueError, match=message):
            import_jkx(folder, tmp_path / "out.zarr", **arguments)


def test_monthly_bars_give_the_datasets_returns_back(dataset, tmp_path):
    folder, _ = dataset
    store = import_jkx(folder, tmp_path / "out.zarr", month=21, progress=False)
    panel = jkx_panel(store)
    row = np.array(
        [panel.locate(i, str(t)[:10]) for i, t in store.index.select("instrument", "time").iter_rows()]
    )
    assert len(np.unique(row)) == len(store) < len(panel)
    assert np.flatnonzero(~np.isnan(panel.bars[:, 3])).tolist() == np.sort(row).tolist()
    # One bar ahead lies the month's return, whether or not the next month has an image: all but the last month's.
    ahead = pp.forward_returns(panel, row, 1).value
    inside = store.time < store.time.max()
    np.testing.assert_array_equal(ahead[inside], store.returns(21)[inside])
    assert np.isnan(ahead[~inside]).all()
    followed = np.isin(row + 1, row)
    assert (~np.isnan(ahead) & ~followed).sum() > 5  # returns of those whose next month has no image
    # Further ahead, nothing is computed over a month whose return is not known.
    further = pp.forward_returns(panel, row, 2).value
    lost = np.isnan(panel.fields["total_return"])
    crosses = np.array([lost[r + 1 : r + 3].any() and not np.isin(r + 1, panel.offsets) for r in row])
    two = (
        np.isin(row + 2, row) & followed & ~np.isin(row + 1, panel.offsets) & ~np.isin(row + 2, panel.offsets)
    )
    assert np.isnan(further[crosses & two]).all()
    np.testing.assert_allclose(
        panel.fields["market_cap"][row], jkx_labels(store)["MarketCap"].to_numpy() * 1000
    )


def test_an_imported_store_is_scored_and_judged(dataset, tmp_path):
    from pricepix import factor

    folder, _ = dataset
    store = import_jkx(folder, tmp_path / "out.zarr", month=21, progress=False)
    panel = jkx_panel(store)

    def ink(images):
        return images.mean(axis=(1, 2)) / 255

    cache = factor.score(store, ink, tmp_path / "factor.zarr", progress=False)
    assert cache.shape == (len(np.unique(store.time)), len(STOCKS), 1)
    _, values = cache.matrix()
    assert (~np.isnan(values)).sum() == len(store)
    found = factor.evaluate(
        cache, panel, horizon=1, quantiles=2, baselines=(), delays=(0,), horizons=(1,), progress=False
    )
    assert found.figures["horizon"] == 1
    assert found.figures["data"]["dates"] > 20


def test_the_whole_way_on_the_command_line(dataset, tmp_path):
    """Imported, trained on, scored and judged, as a user does it."""
    pytest.importorskip("lightning")
    import yaml
    from click.testing import CliRunner

    from pricepix.cli import main
    from pricepix.factor import open_cache

    def pricepix(*words):
        result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    folder, _ = dataset
    store, run, cache = (tmp_path / name for name in ("jkx.zarr", "run", "factor.zarr"))
    pricepix("import-jkx", folder, store, "--month", 21, "--no-progress")
    pricepix(
        "train", store, "--model", "jkx20", "--horizon", 20, "--train", "1999:2000", "--test", "2001", "--out",
        run, "--set", "epochs=1", "--set", "batch_size=32", "--set", "lr=1e-3", "--no-progress",
    )  # fmt: skip
    pricepix("score", store, run, cache, "--start", "2001", "--no-progress")
    said = pricepix(
        "evaluate", cache, store, tmp_path / "report.html", "--horizon", 1, "--quantiles", 2, "--baseline",
        "STR", "--store", store, "--no-progress",
    )  # fmt: skip
    assert "Evaluation(horizon 1, " in said
    assert (tmp_path / "report.html").stat().st_size > 10_000
    # What has no return trains, validates and tests nothing, and is scored all the same.
    opened = pp.open_store(store)
    returns, config = opened.returns(20), yaml.safe_load((run / "config.yaml").read_text())
    assert np.isnan(returns).sum() == config["folds"][0]["dropped"]["no_target"] > 0
    later = opened.time >= np.datetime64("2001-01-01", "ns").astype(np.int64)
    assert config["folds"][0]["test"]["images"] == np.count_nonzero(~np.isnan(returns[later]))
    assert np.count_nonzero(~np.isnan(open_cache(cache).matrix()[1])) == later.sum()
