"""Numbers at the ends of what there is: one bar, a million instruments, 1e300, other centuries, places above 2**31."""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracle
import polars as pl
import pytest

import pricepix as pp
from pricepix.build.finish import empty_checksums, last_objects
from pricepix.factor import open_cache, score
from pricepix.factor.cache_format import (
    CHECKSUM_KEY,
    FORMAT,
    FORMAT_VERSION,
    CacheContent,
    checksum_table,
    object_checksum,
)
from pricepix.factor.cache_objects import cache_location
from pricepix.images.batches import EpochReader
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.location import Content, Location
from pricepix.render import draw, fast, rules
from pricepix.store.chunks import MAX_CHUNK_BYTES, ChunkFormat, checksum, seal
from pricepix.store.format import ROOT, Geometry, chunk_key, columns, dump, encode_column
from pricepix.store.image_store import _open
from pricepix.windows import kernels as window_kernels

PACKAGE = Path(pp.__file__).parent
ONE_BAR = pp.ImageSpec(lookback=1, height=32)
FAR = 1 << 31


def ink(images: np.ndarray) -> np.ndarray:
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


def bars_of(names: list[str], times: list[Any], scale: float = 1.0, seed: int = 1) -> pl.DataFrame:
    """A table of made-up bars, a row an instrument and time."""
    rng = np.random.default_rng(seed)
    n = len(names) * len(times)
    close = scale * np.exp(rng.normal(0, 0.1, n))
    open_ = scale * np.exp(rng.normal(0, 0.1, n))
    return pl.DataFrame(
        {
            "instrument": np.repeat(names, len(times)),
            "time": list(times) * len(names),
            "open": open_,
            "high": np.maximum(open_, close) * 1.01,
            "low": np.minimum(open_, close) * 0.99,
            "close": close,
            "volume": np.round(rng.uniform(1, 1000, n)),
        }
    )


def days_from(first: datetime, count: int) -> list[datetime]:
    return [first + timedelta(days=k) for k in range(count)]


# ------------------------------------------------------------------------------------------- few and many


def test_one_row() -> None:
    """Nothing to draw is said with its reason; and where one bar is an image, there is one, all the way."""
    panel = pp.Panel.from_table(bars_of(["A"], days_from(datetime(2020, 3, 2), 1)), progress=False)
    assert dict(pp.WindowIndex.from_panel(panel, "jkx5").counts) == {"too_short": 1}
    assert dict(pp.WindowIndex.from_panel(panel, ONE_BAR, every="week").counts) == {"period_open": 1}
    for make in (
        lambda: pp.render_universe(panel, "jkx5", None, progress=False),
        lambda: pp.PanelImages(panel, "jkx5"),
    ):
        with pytest.raises(ValueError, match=r"none of the 1 candidate windows .* \(dropped: too_short 1\)"):
            make()
    store = pp.render_universe(panel, ONE_BAR, None, horizons=(1,), progress=False)
    expected, _ = oracle.draw(panel.bars, height=32)
    np.testing.assert_array_equal(store.read(), expected[None])
    assert np.isnan(store.returns(1)).all()
    cache = score(store, ink, None, model_id="ink", progress=False)
    np.testing.assert_array_equal(cache.matrix()[1], ink(expected[None])[None])
    with pytest.raises(ValueError, match="no date has values of more than 1 instruments"):
        pp.factor.evaluate(cache, panel)


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.nightly)])
def test_instruments_of_one_bar_each(count: int) -> None:
    names = [f"I{k:07d}" for k in np.random.default_rng(2).permutation(count)]
    panel = pp.Panel.from_table(bars_of(names, days_from(datetime(2020, 3, 2), 1)), progress=False)
    assert panel.instruments.tolist() == sorted(names)
    assert dict(pp.WindowIndex.from_panel(panel, "jkx5").counts) == {"too_short": count}
    store = pp.render_universe(panel, ONE_BAR, None, horizons=(1,), progress=False)
    assert len(store) == count
    assert store.instruments[store.instrument_index].tolist() == sorted(names)
    for k in (0, 1, count // 2, count - 1):
        expected, reason = oracle.draw(panel.bars[k : k + 1], height=32)
        assert reason == "valid"
        np.testing.assert_array_equal(store.read([k])[0], expected)
    cache = score(store, ink, None, model_id="ink", progress=False)
    assert cache.shape == (1, count, 1)
    np.testing.assert_array_equal(cache.matrix()[1][0], ink(store.read()))


# --------------------------------------------------------------------------------------- small and large numbers


@pytest.mark.parametrize("scale", [1e-300, 1e-310, 1e300, 1.7e307, 1e308])
@pytest.mark.parametrize("volume", [0.0, 1.0, 1e18, 1e300])
def test_prices_and_volumes_of_any_size(scale: float, volume: float) -> None:
    """The fast path, the plain one and the oracle agree, and prices of any scale make the same image."""
    spec = pp.ImageSpec.preset("jkx20")
    names, lookback = ["A", "B"], 20
    frame = bars_of(names, days_from(datetime(2020, 1, 1), 45), scale)
    frame = frame.with_columns(pl.col("volume") * volume)
    panel = pp.Panel.from_table(frame, on_bad="keep", progress=False)
    row = np.concatenate(
        [np.arange(a + lookback - 1, b) for a, b in zip(panel.offsets, panel.offsets[1:], strict=False)]
    )
    first = np.repeat(panel.offsets[:-1], np.diff(row.searchsorted(panel.offsets)))
    windows = rules.WindowRows(first, row, np.arange(len(row)))
    arrays = draw.panel_arrays(panel, spec)
    assert draw.fast_job(arrays, spec) is not None
    found = []
    for run in (draw.run, draw.run_plain):
        images, reason = np.empty((len(row), *spec.shape), np.uint8), np.empty(len(row), np.uint8)
        run(arrays, spec, windows, images, rules.PIXELS, reason, 1)
        found.append((images, reason))
    np.testing.assert_array_equal(found[0][1], found[1][1])
    valid = found[0][1] == 0
    np.testing.assert_array_equal(found[0][0][valid], found[1][0][valid])
    for k, (begin, end) in enumerate(zip(first, row, strict=True)):
        average = oracle.moving_average(panel.bars[begin : end + 1, 3], 20)[-20:]
        expected, why = oracle.draw(panel.bars[end - 19 : end + 1], average, height=64, volume=True)
        assert (why == "valid") == valid[k], why
        if valid[k]:
            np.testing.assert_array_equal(found[0][0][k], expected)
    # Not drawn: what has averages that no float64 holds, and what lies below its normal numbers.
    assert valid.any() == (1e-300 <= scale < 1e307)


def test_returns_that_no_number_holds_are_none() -> None:
    times = days_from(datetime(2020, 1, 1), 12)
    frame = bars_of(["A"], times).with_columns(
        pl.when(pl.col("time") < times[8]).then(pl.col(c) * 1e-300).otherwise(pl.col(c) * 1e300).alias(c)
        for c in ("open", "high", "low", "close")
    )
    panel = pp.Panel.from_table(frame, on_bad="keep", progress=False)
    store = pp.render_universe(panel, ONE_BAR, None, horizons=(1,), progress=False)
    with np.errstate(over="ignore"):
        expected = (panel.bars[1:, 3] / panel.bars[:-1, 3] - 1).astype(np.float32)
    expected[7] = np.nan
    np.testing.assert_array_equal(store.returns(1), np.append(expected, np.float32(np.nan)))


# ------------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize("first", ["1683-10-11", "1904-03-07", "1969-12-01", "2260-08-27"])
def test_other_centuries(first: str) -> None:
    """Whole weeks away, everything but the times is the same."""
    start, base = datetime.fromisoformat(first), datetime(2020, 3, 2)
    base += timedelta(days=(start - base).days % 7)

    def made(day: datetime) -> tuple[Any, Any]:
        frame = bars_of(["A", "B", "C"], [t for t in days_from(day, 80) if t.weekday() < 5])
        store = pp.render_universe(frame, "jkx5", None, every="week", horizons=(5,), progress=False)
        return store, score(store, ink, None, model_id="ink", progress=False)

    (store, cache), (near, near_cache) = made(start), made(base)
    away = np.timedelta64((start - base).days, "D")
    np.testing.assert_array_equal(store.read(), near.read())
    np.testing.assert_array_equal(store.returns(5), near.returns(5))
    np.testing.assert_array_equal(store.time.view("M8[ns]"), near.time.view("M8[ns]") + away)
    np.testing.assert_array_equal(cache.days, near_cache.days + away)
    np.testing.assert_array_equal(cache.matrix()[1], near_cache.matrix()[1])
    fridays = store.time.view("M8[ns]").astype("M8[D]").astype(object)
    assert {day.weekday() for day in fridays} == {4}
    assert store.index["time"].dt.date().to_list() == fridays.tolist()


@pytest.mark.parametrize(
    "times",
    [
        ["2300-01-01", "2300-01-02"],
        ["2019-01-01", "2300-01-01"],
        ["01/01/2300 09:30", "02/01/2300 09:30"],
        ["2300-01-01T09:30:00+0800", "2300-01-02T09:30:00+0800"],
        [datetime(2300, 1, 1), datetime(2300, 1, 2)],
        [datetime(1500, 1, 1), datetime(2020, 1, 2)],
        [datetime(2300, 1, 1).date(), datetime(2300, 1, 2).date()],
        np.array(["2300-01-01", "2300-01-02"], "M8[ms]"),
        [22_000_101, 22_000_102],
    ],
    ids=["text", "late text", "format", "offset", "datetimes", "early", "dates", "numpy", "numbers"],
)
def test_times_that_nanoseconds_cannot_hold(times: Any) -> None:
    frame = bars_of(["A"], [0, 1]).with_columns(pl.Series("time", times))
    options = {"time_format": "%d/%m/%Y %H:%M"} if "/" in str(times[0]) else {}
    wanted = "is not a time" if isinstance(times[0], int) else "must lie between the years 1678 and 2262"
    with pytest.raises(ValueError, match=wanted):
        pp.Panel.from_table(frame, progress=False, **options)


@pytest.mark.parametrize("value", ["2300-01-01", "1500", datetime(2300, 1, 1), np.datetime64("9999-01-01")])
@pytest.mark.parametrize("name", ["start", "end"])
def test_periods_that_nanoseconds_cannot_hold(name: str, value: Any) -> None:
    """Numpy lets them become other times, without a word."""
    frame = bars_of(["A"], days_from(datetime(2020, 1, 1), 10))
    with pytest.raises(ValueError, match="between the years 1678 and 2262"):
        pp.WindowIndex.from_panel(frame, ONE_BAR, **{name: value})


def test_clocks_that_are_set_back() -> None:
    """Two half past ones of one night are two bars: in order, apart in images and labels, and refused by a cache."""
    moments = [datetime(2024, 11, 3, 4) + timedelta(minutes=30 * k) for k in range(8)]
    frame = bars_of(["A", "B"], moments)
    utc = frame.with_columns(pl.col("time").dt.replace_time_zone("UTC"))
    panel = pp.Panel.from_table(utc, tz="America/New_York", progress=False)
    plain = pp.Panel.from_table(frame, progress=False)
    np.testing.assert_array_equal(panel.time, plain.time)
    clock = [panel.stamp(int(t))[11:] for t in panel.calendar[2:6]]
    assert clock == ["01:00:00-04:00", "01:30:00-04:00", "01:00:00-05:00", "01:30:00-05:00"]
    store = pp.render_universe(panel, ONE_BAR, None, horizons=(1,), progress=False)
    same = pp.render_universe(plain, ONE_BAR, None, horizons=(1,), progress=False)
    np.testing.assert_array_equal(store.read(), same.read())
    np.testing.assert_array_equal(store.returns(1), same.returns(1))
    daily = pp.WindowIndex.from_panel(panel, ONE_BAR, every="day", periods={"complete": True})
    assert [panel.stamp(int(panel.time[row])) for row in daily.row] == ["2024-11-03 02:30:00-05:00"] * 2
    with pytest.raises(ValueError, match=r"two bars .* have the same day and time of day .* tz='UTC'"):
        score(store, ink, None, model_id="ink", progress=False)
    wall = utc.with_columns(
        pl.col("time").dt.convert_time_zone("America/New_York").dt.replace_time_zone(None)
    )
    with pytest.raises(ValueError, match=r"happens twice or never in America/New_York .* 8 such rows"):
        pp.Panel.from_table(wall, tz="America/New_York", progress=False)


# ------------------------------------------------------------------------------------------- positions above 2**31


@contextmanager
def sparse(path: Path, dtype: Any, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """An array in a file of which only what is written takes room."""
    array = np.memmap(path, dtype, "w+", shape=shape)
    try:
        yield array
    finally:
        del array
        path.unlink()


needs_sparse = pytest.mark.skipif(
    not hasattr(os, "posix_fallocate"), reason="needs files of which only what is written takes room"
)


@needs_sparse
@pytest.mark.parametrize("preset", ["jkx5", "jkx20", "plain"])
@pytest.mark.parametrize("mode", [rules.PIXELS, rules.BITS])
def test_rows_and_bytes_of_a_panel_far_out(preset: str, mode: int, tmp_path: Path) -> None:
    """Bars on both sides of row 2**31, images on both sides of byte 2**31 and 2**32: as if they lay at the front."""
    spec = pp.ImageSpec.preset("jkx20" if preset == "plain" else preset)
    if preset == "plain":
        spec = spec.replace(chart="pixel")
    assert fast.supports(spec) == (preset != "plain")
    need = spec.lookback + spec.history
    rows = np.ascontiguousarray(
        bars_of(["A"], days_from(datetime(2020, 1, 1), need + 40)).to_numpy()[:, 2:], float
    )
    size = int(np.prod(spec.shape)) if mode == rules.PIXELS else (int(np.prod(spec.shape)) + 7) // 8
    last = np.arange(need - 1, len(rows))
    start = FAR - len(rows) // 2
    near_image, far_image = np.arange(len(last)), (1 << 32) // size - len(last) // 2 + np.arange(len(last))
    far_image[: len(last) // 2] += FAR // size - (1 << 32) // size

    def drawn(run: Any, bars: np.ndarray, first: int, image: np.ndarray, out: np.ndarray) -> Any:
        nothing = np.zeros(0)
        arrays = rules.PanelArrays(
            bars, nothing, nothing.astype(bool), nothing.astype(bool), np.zeros((0, 0))
        )
        windows = rules.WindowRows(np.full(len(last), first), first + last, image)
        reason = np.full(len(out), 77, np.uint8)
        target = out.reshape(-1, *spec.shape) if mode == rules.PIXELS else out[:, :, None]
        run(arrays, spec, windows, target, mode, reason, 2)
        return out[image].copy(), reason[image]

    expected = drawn(draw.run_plain, rows, 0, near_image, np.zeros((len(last), size), np.uint8))
    assert (expected[1] == 0).any()
    images = int(far_image[-1]) + 1
    with (
        sparse(tmp_path / "bars", np.float64, (start + len(rows), 5)) as bars,
        sparse(tmp_path / "images", np.uint8, (images, size)) as out,
    ):
        bars[start:] = rows
        assert out.nbytes > 1 << 32
        for run in (draw.run, draw.run_plain):
            found = drawn(run, bars, start, far_image, out)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
            out[far_image] = 0


@needs_sparse
def test_windows_are_found_far_out(tmp_path: Path) -> None:
    """The loops over the rows of a panel, from row 2**31 - 20 on, against the same at the front."""
    n, start = 40, FAR - 20
    offsets = np.array([0, 15, n])
    time = np.concatenate([np.arange(15), np.arange(25)]).astype(np.int64)
    code = time.astype(np.int32)
    bars = np.ascontiguousarray(bars_of(["A"], list(range(n))).to_numpy()[:, 2:], float)
    schedule = (np.ones(25, bool), np.zeros(0, np.int32), np.zeros(0, np.int64), -1)
    limits = window_kernels.RowRules(-1, 99, 5, 3, 1.0, -1, 5)
    reason = np.empty(n, np.uint8)
    arguments = (schedule, limits, np.zeros(0, bool), np.zeros(2, np.uint64))
    kept = window_kernels.classify_rows(bars, time, offsets, code, *arguments, reason)
    assert kept == 26
    with (
        sparse(tmp_path / "bars", np.float64, (start + n, 5)) as far_bars,
        sparse(tmp_path / "time", np.int64, (start + n,)) as far_time,
        sparse(tmp_path / "code", np.int32, (start + n,)) as far_code,
        sparse(tmp_path / "reason", np.uint8, (start + n,)) as far_reason,
        sparse(tmp_path / "value", np.float64, (start + n,)) as returns,
    ):
        far_bars[start:], far_time[start:], far_code[start:] = bars, time, code
        far = start + offsets
        assert window_kernels.classify_rows(far_bars, far_time, far, far_code, *arguments, far_reason) == kept
        np.testing.assert_array_equal(far_reason[start:], reason)
        row = np.flatnonzero(reason == window_kernels.KEPT)
        instrument = (row >= 15).astype(np.int32)
        returns[start:] = bars[:, 3] / 100
        calendar, no_time = np.arange(25), -(1 << 63)
        for function, extra, far_extra in (
            (window_kernels.price_returns, (bars,), (far_bars,)),
            (window_kernels.total_returns, (bars[:, 3] / 100, bars), (returns, far_bars)),
        ):
            results = []
            for source, when, limit, rows in (
                (extra, time, offsets, row),
                (far_extra, far_time, far, start + row),
            ):
                value, leave = np.empty(len(row), np.float32), np.empty(len(row), np.int64)
                function(*source, when, limit, calendar, rows, instrument, 4, 1, value, leave, no_time)
                results.append((value, leave))
            np.testing.assert_array_equal(results[0][0], results[1][0])
            np.testing.assert_array_equal(results[0][1], results[1][1])
            assert np.isfinite(results[0][0]).any()
        found, same = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
        from pricepix.bars import kernels as bar_kernels

        bar_kernels.find_rows(time, offsets, instrument, time[row], same)
        bar_kernels.find_rows(far_time, far, instrument, time[row], found)
        np.testing.assert_array_equal(found, start + same)


class Repeated(Location):
    """Objects of which all chunks of an array are the same one."""

    def __init__(self, objects: dict[str, bytes], chunks: dict[str, bytes]) -> None:
        self.objects, self.chunks, self.name = objects, chunks, "repeated"

    def get(self, key: str, max_bytes: int | None = None) -> Content | None:
        array, _, number = key.partition("/c/")
        return self.objects.get(key, self.chunks.get(array) if number else None)

    def list(self, prefix: str = "") -> Iterator[str]:
        yield from self.objects


def test_a_store_of_more_windows_than_2_to_the_31() -> None:
    """Its index, its chunks and its readers, at the windows around 2**31 and at its end."""
    panel = pp.Panel.from_table(bars_of(["A", "B"], days_from(datetime(2020, 1, 1), 40)), progress=False)
    small = pp.render_universe(panel, "jkx5", None, horizons=(1,), progress=False)
    pixels, size = small.read(), 1 << 16
    windows = FAR + 3 * size + 5
    form = ChunkFormat("bits", *small.spec.shape, size)
    geometry = Geometry(form, windows, 2, (1,))
    bits = np.zeros((size, form.packed_bytes), np.uint8)
    bits[: len(pixels)] = np.packbits(pixels.transpose(0, 2, 1).reshape(len(pixels), -1) > 0, axis=1)
    chunks = {"images": form.encode(bits)}
    for column in columns((1,)):
        chunks[column.name] = encode_column(column, np.arange(INDEX_CHUNK) % 2)
    checks = empty_checksums(geometry)
    for name, part in geometry.checksum_slices().items():
        checks[part] = checksum(chunks[name]) if name in chunks else 0
    facts: Any = SimpleNamespace(
        instruments=panel.instruments, offsets=panel.offsets, instrument_digests=panel.instrument_digests,
        digest=panel.digest,
    )  # fmt: skip
    attributes = {**small.attrs, "layout": "bits", "chunk": size, "windows": windows, "compressed": True}
    attributes = {
        k: v for k, v in attributes.items() if k not in ("metadata_digest", "checksums_digest", "candidates")
    }
    objects, root = last_objects(geometry, attributes, facts, checks)
    store = _open(Repeated({**objects, ROOT: dump(root)}, chunks), finish=False)
    assert len(store) == windows
    assert store.objects.geometry.index_chunks == -(-windows // INDEX_CHUNK)
    last = form.chunks(windows) - 1
    assert last == FAR // size + 3
    assert len(store.objects.read_chunk(last)) == 5
    # The chunk that begins with window 2**31, and the one before.
    for chunk in (FAR // size - 1, FAR // size):
        assert chunk_key("images", chunk) == f"images/c/{chunk}/0/0"
        np.testing.assert_array_equal(store.objects.read_chunk(chunk, np.arange(len(pixels))), pixels)
    positions = np.array([0, FAR - size + 3, FAR - 1, FAR + 1, FAR + size + 7, windows - 1])
    expected = np.zeros((len(positions), *small.spec.shape), np.uint8)
    inside = positions % size < len(pixels)
    expected[inside] = pixels[positions[inside] % size]
    np.testing.assert_array_equal(store.read(positions), expected)
    index = store.objects.column("instrument_index", FAR // INDEX_CHUNK - 1, FAR // INDEX_CHUNK + 1)
    np.testing.assert_array_equal(index, np.arange(len(index)) % 2)


def test_epochs_of_more_images_than_2_to_the_31() -> None:
    """What every part reads of an epoch is counted in 64 bits: the parts are disjoint and make the whole."""

    class Counted(EpochReader):
        def _batches(self, epoch: int, start: int) -> Any:
            raise NotImplementedError

    total = 3 * FAR + 17
    parts = []
    for rank in range(3):
        reader = object.__new__(Counted)
        reader.positions, reader.batch_size, reader.drop_last = range(total), 256, False  # type: ignore[assignment]
        reader.part, reader.parts = rank, 3
        parts.append(reader)
    shares = [reader._share() for reader in parts]
    assert [share.start for share in shares[1:]] == [share.stop for share in shares[:-1]]
    assert (shares[0].start, shares[-1].stop) == (0, total)
    assert {len(reader) for reader in parts} == {math.ceil(math.ceil(total / 3) / 256)}


def test_a_factor_cache_of_more_cells_than_2_to_the_31() -> None:
    """3.8 thousand million cells, of which the last day has values."""
    days, instruments, intervals = 4000, 4000, 240
    minute = 60_000_000_000
    names = [f"I{k:04d}" for k in range(instruments)]
    time = np.arange(days)[:, None] * 1440 * minute + np.arange(intervals) * minute
    clock = [f"{k // 60:02d}:{k % 60:02d}" for k in range(intervals)]
    content = CacheContent(np.arange(days), time, names, clock, False, instruments, {}, {})
    values = np.arange(instruments * intervals, dtype=np.float32).reshape(instruments, intervals)
    layouts, layout = content.layouts(), content.values_layout("factor")
    assert np.prod(layout.shape, dtype=np.int64) > FAR
    (day,) = content.encode_day(values)
    assert day is not None
    objects: dict[str, bytes] = {layout.key(days - 1, 0, 0): day}
    for each in layouts:
        stored = zip(each.object_keys(), content.encode_axes().get(each.name, ()), strict=False)
        objects |= {key: part for key, part in stored if part is not None}
    table = checksum_table(layouts, {key: object_checksum(part) for key, part in objects.items()})
    attributes = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "store_digest": "0", "model": {"name": "m", "digest": "0"},
        "spec": ONE_BAR.to_dict(), "spec_digest": ONE_BAR.digest, "shift": 0, "windows": FAR + 5, "values": "score",
        "store": "there", "tz": None,
    }  # fmt: skip
    place = cache_location(None)
    for key, part in (objects | {CHECKSUM_KEY: seal(table)} | content.metadata(attributes, table)).items():
        place.put(key, part)
    cache = open_cache(place)
    assert cache.shape == layout.shape
    found_time, found = cache.matrix(first=int(time[-1, 0]))
    np.testing.assert_array_equal(found_time, time[-1])
    np.testing.assert_array_equal(found, values.T)
    assert cache.at("I3999", int(time[-1, -1])) == values[-1, -1]
    assert np.isnan(cache.factor[days - 2, 0, 0])


def test_chunks_are_never_larger_than_they_can_be() -> None:
    panel = pp.Panel.from_table(bars_of(["A"], days_from(datetime(2020, 1, 1), 40)), progress=False)
    most = MAX_CHUNK_BYTES // (32 * 15)
    with pytest.raises(ValueError, match=rf"more than the {MAX_CHUNK_BYTES:,} that a chunk can hold|chunk"):
        pp.render_universe(
            panel, "jkx5", "nowhere", layout="uint8", chunk=most + 1, horizons=(1,), progress=False
        )
    assert not Path("nowhere").exists()


def test_no_kernel_makes_a_number_of_32_bits() -> None:
    """Numba computes with 64 bits whatever it reads, unless a kernel asks for fewer: none does, but for named ones."""
    allowed = {("cuda_kernels.py", "uint32"), ("cuda_kernels.py", "int32")}
    narrow = {"int32", "uint32", "intc", "uintc", "int16", "uint16"}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        if "njit" not in source and "@jit" not in source and "@inlined" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in narrow
            ):
                assert (path.name, node.func.attr) in allowed, f"{path.name}:{node.lineno}"
