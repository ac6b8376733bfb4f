"""Properties of rendering: what is drawn equals the oracle, and does not depend on anything but the bars."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricepix import ImageSpec, Panel, WindowIndex, render_panel, render_windows
from pricepix.render import draw as drawing
from pricepix.render import widen

CODES = {
    "valid": 0,
    "no_price": 1,
    "flat": 2,
    "infinite": 3,
    "missing_price": 4,
    "flat_field": 5,
    "constant_volume": 6,
    "skipped_flat_bars": 7,
}


# ---- made-up specs and bars


@st.composite
def specs(draw, rebuild=False):
    """Any spec that can be drawn, mostly small."""
    style = draw(st.sampled_from(["jkx", "jkx", "image_trading", "cnn_for_trading"]))
    scale = draw(st.sampled_from(["joint", "per_field"])) if style == "image_trading" else "joint"
    k = draw(st.sampled_from([1, 1, 1, 2, 3]))
    plain = scale == "per_field"
    volume = False if plain else draw(st.booleans())
    if style == "cnn_for_trading" and volume:
        height = draw(st.sampled_from([32, 64]))
    else:
        height = draw(st.one_of(st.integers(5 if volume else 2, 96), st.integers(97, 512)))
    ma = () if plain else draw(st.lists(st.integers(1, 7), max_size=3, unique=True).map(tuple))
    return ImageSpec(
        lookback=k * draw(st.integers(1, 12)),
        height=height,
        style=style,
        chart=draw(st.sampled_from(["bar", "pixel"])) if style == "jkx" else "bar",
        ma=tuple(k * n for n in ma),
        ma_warmup=draw(st.sampled_from(["drop", "omit"])),
        volume=volume,
        aggregate=k,
        scale=scale,
        rebuild=draw(st.sampled_from([None, "returns"])) if rebuild and style == "jkx" else None,
    )


@st.composite
def bars(draw, n):
    """Bars (n, 5) with positive prices on a grid of ticks, so that ties are common; some fields missing."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    step = draw(st.sampled_from([1, 2, 8, 8, 60]))
    tick = draw(st.sampled_from([0.01, 0.25, 1.0]))
    missing = draw(st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.4]))
    disorder = draw(st.sampled_from([0.0, 0.2]))
    close = 1000 + np.cumsum(rng.integers(-step, step + 1, n))
    open_ = close + rng.integers(-step, step + 1, n)
    high = np.maximum(open_, close) + rng.integers(0, step + 1, n)
    low = np.minimum(open_, close) - rng.integers(0, step + 1, n)
    prices = np.maximum(np.stack([open_, high, low, close], axis=1), 1)
    swapped = rng.random(n) < disorder
    prices[swapped] = rng.permuted(prices[swapped], axis=1)
    prices = prices * tick
    volume = rng.choice([0.0, 1.0, 40.0, 1000.0], n) * rng.integers(0, 30, n)
    if draw(st.booleans()):
        volume = rng.integers(1, 60, n) * 100.0
    table = np.column_stack([prices, volume])
    table[rng.random((n, 5)) < missing] = np.nan
    table[rng.random(n) < missing / 2] = np.nan
    return table


@st.composite
def spoiled_windows(draw, n=6):
    """A spec and windows for it with everything that may reach the drawer: also infinities, signs, limits."""
    spec = draw(specs())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(bars(n * spec.lookback)).reshape(n, spec.lookback, 5)
    rows[rng.random(rows.shape) < draw(st.sampled_from([0, 0, 0.003]))] = np.inf
    rows[rng.random(rows.shape) < draw(st.sampled_from([0, 0, 0.1]))] *= -1
    if draw(st.booleans()):
        rows[0, :, :4] = rows[0, 0, 0]  # flat, or missing
    if draw(st.booleans()):
        rows[1, :, 4] = rows[1, 0, 4]
    if draw(st.booleans()):
        rows[2, :, 1] = rows[2, 0, 1]
    ma = None
    if spec.ma:
        ma = rows[:, :, 3:4] + rng.integers(-20, 21, (n, spec.lookback, len(spec.ma))) / 8
        ma[rng.random(ma.shape) < draw(st.sampled_from([0.0, 0.2, 0.7]))] = np.nan
        ma[rng.random(ma.shape) < draw(st.sampled_from([0, 0, 0.01]))] = np.inf
    at_limit = rng.random((n, 2, spec.lookback)) < draw(st.sampled_from([0.0, 0.1]))
    return spec, rows, ma, at_limit if draw(st.booleans()) else None


def oracle_window(spec, rows, ma=None, at_limit=None):
    """Oracle's image (blank if there is none) and reason code of one window given bar by bar."""
    k = spec.aggregate
    image, reason = oracle.draw(
        oracle.aggregate(np.abs(rows), k),
        None if ma is None else ma[k - 1 :: k],
        style=spec.style,
        height=spec.height,
        chart=spec.chart,
        volume=spec.volume,
        scale=spec.scale,
        at_limit=at_limit,
    )
    return np.zeros(spec.shape, np.uint8) if image is None else image, CODES[reason]


# ---- windows given bar by bar


@given(spoiled_windows())
def test_windows_equal_the_oracle(given_):
    spec, rows, ma, at_limit = given_
    result = render_windows(rows, spec, ma=ma, at_limit=at_limit)
    for i in range(len(rows)):
        image, reason = oracle_window(
            spec, rows[i], None if ma is None else ma[i], None if at_limit is None else at_limit[i]
        )
        assert result.reason[i] == reason
        assert np.array_equal(result.images[i], image)


@given(spoiled_windows(), st.randoms(use_true_random=False))
def test_windows_do_not_depend_on_their_neighbours(given_, random):
    spec, rows, ma, at_limit = given_
    whole = render_windows(rows, spec, ma=ma, at_limit=at_limit)
    order = list(range(len(rows)))
    random.shuffle(order)
    cut = random.randrange(len(rows) + 1)
    for part in (order[:cut], order[cut:]):
        ma_part, limit_part = (None if values is None else values[part] for values in (ma, at_limit))
        some = render_windows(rows[part], spec, ma=ma_part, at_limit=limit_part)
        assert np.array_equal(some.images, whole.images[part])
        assert np.array_equal(some.reason, whole.reason[part])


@given(spoiled_windows(), st.integers(-30, 30), st.integers(-30, 30))
def test_scale_of_prices_and_volumes_changes_no_pixel(given_, price_power, volume_power):
    """By powers of two, which multiply without rounding: any other factor may break a tie the other way."""
    spec, rows, ma, at_limit = given_
    scaled = rows * np.array([2.0**price_power] * 4 + [2.0**volume_power])
    before = render_windows(rows, spec, ma=ma, at_limit=at_limit)
    after = render_windows(scaled, spec, ma=None if ma is None else ma * 2.0**price_power, at_limit=at_limit)
    assert np.array_equal(before.images, after.images)
    assert np.array_equal(before.reason, after.reason)


@given(spoiled_windows())
def test_images_are_ink_or_paper_and_refused_ones_blank(given_):
    spec, rows, ma, at_limit = given_
    result = render_windows(rows, spec, ma=ma, at_limit=at_limit)
    assert np.isin(result.images, (0, 255)).all()
    assert not result.images[result.reason != 0].any()


# ---- windows of a panel


@st.composite
def markets(draw, least=1):
    """Bars of a few instruments by name: (n, 6) open, high, low, close, volume, return; lengths differ."""
    market = {}
    for name in "ABC"[: draw(st.integers(1, 3))]:
        rows = draw(bars(draw(st.integers(least, 45))))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        ret = np.round(rng.normal(0, 0.03, len(rows)), 4)
        ret[rng.random(len(rows)) < draw(st.sampled_from([0.0, 0.1]))] = np.nan
        limits = rng.random((len(rows), 2)) < draw(st.sampled_from([0.0, 0.1]))
        market[name] = np.column_stack([rows, ret, limits])
    return market


def panel_of(market) -> Panel:
    columns = ["open", "high", "low", "close", "volume", "total_return", "up_limit", "down_limit"]
    days = pl.date_range(pl.date(2020, 1, 1), pl.date(2021, 12, 31), eager=True)
    frames = [
        pl.DataFrame(rows, schema=columns, orient="row").with_columns(
            pl.lit(name).alias("instrument"),
            days.head(len(rows)).alias("time"),
            pl.col("up_limit", "down_limit").cast(pl.Boolean),
        )
        for name, rows in market.items()
    ]
    return Panel.from_table(pl.concat(frames), on_bad="keep", progress=False)


def oracle_panel_window(spec, rows, end):
    """Oracle's image and reason code of the window that ends at row `end`; None if history is too short."""
    k, start = spec.aggregate, end - spec.lookback + 1
    enough = start - spec.history >= 0
    if start < 0 or (spec.ma_warmup == "drop" and not enough):
        return None
    ma = np.full((spec.bars, len(spec.ma)), np.nan)
    if spec.rebuild:
        given_rows = rows[start - spec.history if enough else start : end + 1, :6]
        merged = oracle.rebuild_returns(given_rows, spec.lookback, k)
        for i, n in enumerate(spec.ma if enough else ()):
            ma[:, i] = oracle.moving_average_rebuilt(merged[:, 3], n // k)[-spec.bars :]
        merged = merged[-spec.bars :]
    else:
        merged = oracle.aggregate(rows[start : end + 1, :5], k)
        for i, n in enumerate(spec.ma):
            close = rows[end % k : end + 1 : k, 3]  # every k-th close, counted back from the window's last
            least = 1 if spec.style == "cnn_for_trading" else None
            ma[:, i] = oracle.moving_average(close, n // k, least)[-spec.bars :]
    image, reason = oracle.draw(
        merged,
        ma,
        style=spec.style,
        height=spec.height,
        chart=spec.chart,
        volume=spec.volume,
        scale=spec.scale,
        at_limit=rows[start : end + 1, 6:8].T.astype(bool),
    )
    return image, CODES[reason]


@given(specs(rebuild=True), markets())
def test_panel_equals_the_oracle(spec, market):
    panel = panel_of(market)
    index = WindowIndex.from_panel(panel, spec)
    images = render_panel(panel, index)
    drawn = dict(zip(index.row.tolist(), images, strict=True))
    for i, name in enumerate(panel.instruments):
        for end in range(len(market[name])):
            window = oracle_panel_window(spec, market[name], end)
            image = drawn.pop(int(panel.offsets[i]) + end, None)
            if window is None or window[1] != 0:
                assert image is None
            else:
                assert image is not None
                assert np.array_equal(image, window[0])
    assert not drawn


def test_rebuilt_price_that_stops_moving_is_flat():
    """Only the first row of the history differs. A running sum may keep a trace of it in the last place, and
    spread noise over a whole image unless equal closes count as their exact sum."""
    rng = np.random.default_rng(5)
    spec = ImageSpec(7, 32, ma=(7,), rebuild="returns")
    market = {}
    for i in range(200):
        rows = np.zeros((14, 8))
        rows[:, :4], rows[1, 5] = 20.0, abs(rng.normal(0, 0.1))
        market[f"{i:03}"] = rows
        assert oracle_panel_window(spec, rows, 13)[1] == CODES["flat"]
    index = WindowIndex.from_panel(panel_of(market), spec)
    assert len(index) == 0
    assert index.counts["flat"] == 200


@given(specs(rebuild=True), markets(), st.data())
def test_panel_images_depend_neither_on_threads_nor_on_parts_nor_on_layout(spec, market, data):
    panel = panel_of(market)
    index = WindowIndex.from_panel(panel, spec)
    n = len(index)
    images = render_panel(panel, index)
    for threads in (1, 2, 3):
        assert np.array_equal(render_panel(panel, index, threads=threads), images)
    cut = data.draw(st.integers(0, n))
    out = np.full_like(images, 7)
    for part in (slice(cut, n), slice(0, cut)):
        render_panel(panel, index[part], out=out[part], threads=1)
    assert np.array_equal(out, images)
    bits = render_panel(panel, index, bits=True)
    expected = np.packbits(images.transpose(0, 2, 1).reshape(n, spec.height * spec.width) > 0, axis=1)
    assert np.array_equal(bits, expected)
    assert np.array_equal(render_panel(panel, index, bits=True, threads=2), bits)
    assert np.array_equal(widen(bits, *spec.shape), images)


@given(specs(rebuild=True), markets(least=2), st.data())
def test_later_bars_change_no_earlier_image(spec, market, data):
    known = {name: rows[: data.draw(st.integers(1, len(rows)))] for name, rows in market.items()}
    images = {}
    for history in (known, market):
        panel = panel_of(history)
        index = WindowIndex.from_panel(panel, spec)
        named = zip(panel.instruments[index.instrument].tolist(), panel.time[index.row].tolist(), strict=True)
        images[history is market] = dict(zip(named, render_panel(panel, index), strict=True))
    first_day = np.datetime64("2020-01-01", "ns").astype(np.int64)
    early = {
        (name, time): image
        for (name, time), image in images[True].items()
        if (time - first_day) // (86400 * 10**9) < len(known[name])
    }
    assert images[False].keys() == early.keys()
    assert all(np.array_equal(image, early[key]) for key, image in images[False].items())


@pytest.mark.parametrize(("seconds", "started"), [(2.5e-4, 0), (1e-9, 1)])
def test_a_small_call_starts_no_thread(make_walk, monkeypatch, seconds, started):
    """To start one takes longer than to draw these images."""
    market = {n: np.column_stack([make_walk(700, seed), np.zeros((700, 3))]) for seed, n in enumerate("AB")}
    panel = panel_of(market)
    index = WindowIndex.from_panel(panel, ImageSpec(5, 32, ma=(5,), volume=True))
    pools = []

    def counted(*arguments):
        pools.append(arguments)
        return ThreadPoolExecutor(*arguments)

    monkeypatch.setattr(drawing, "ThreadPoolExecutor", counted)
    monkeypatch.setattr(drawing, "_THREAD_SECONDS", seconds)
    render_panel(panel, index, threads=2)
    assert len(pools) == started


def test_long_histories_equal_the_oracle(make_walk):
    """A thread takes some hundred windows of one instrument at a time: cross such borders."""
    spec = ImageSpec(5, 32, ma=(5,), volume=True)
    market = {n: np.column_stack([make_walk(700, seed), np.zeros((700, 3))]) for seed, n in enumerate("AB")}
    panel = panel_of(market)
    index = WindowIndex.from_panel(panel, spec)
    assert len(index) == 2 * (700 - 8)
    images = render_panel(panel, index)
    assert np.array_equal(render_panel(panel, index, threads=3), images)
    for i in range(0, len(index), 37):
        name = panel.instruments[index.instrument[i]]
        end = int(index.row[i] - panel.offsets[index.instrument[i]])
        image, _ = oracle_panel_window(spec, market[name], end)
        assert np.array_equal(images[i], image)


@pytest.mark.parametrize("preset", sorted(ImageSpec.presets()))
def test_presets_equal_the_oracle(preset, make_walk):
    spec = ImageSpec.preset(preset)
    rows = np.stack([make_walk(spec.lookback, seed=s, start=20.0 + s) for s in range(8)])
    ma = None
    if spec.ma:
        ma = np.stack([oracle.moving_average(w[:, 3], 3, min_count=1) for w in rows])
    result = render_windows(rows, spec, ma=ma)
    for i, window in enumerate(rows):
        image, reason = oracle_window(spec, window, None if ma is None else ma[i][:, None])
        assert result.reason[i] == reason
        assert np.array_equal(result.images[i], image)
