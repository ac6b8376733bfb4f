"""Images of bars that are pushed one time after the other: those of a store, without new memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pricepix as pp
from pricepix._checks import BadBarsError
from pricepix.images.live import LiveImages


def universe(panel: pp.Panel, spec, **options) -> dict[tuple[str, int], bytes]:
    """Every image that a store of the bars holds."""
    store = pp.render_universe(panel, spec, None, horizons=(1,), progress=False, **options)
    images = store.read()
    names = store.instruments[store.instrument_index]
    return {(str(n), int(t)): i.tobytes() for n, t, i in zip(names, store.time, images, strict=True)}


def pushed(panel: pp.Panel, live: LiveImages, after: int | None = None) -> dict[tuple[str, int], bytes]:
    """Push the bars of a panel time by time, and gather the images."""
    owner = np.repeat(np.arange(panel.n_instruments), np.diff(panel.offsets))
    found = {}
    for time in panel.calendar.tolist():
        if after is not None and time <= after:
            continue
        rows = np.flatnonzero(panel.time == time)
        fields = {
            n: panel.fields[n][rows] for n in ("total_return",) if live.spec.rebuild and n in panel.fields
        }
        if len(live._recent.up):
            fields |= {n: panel.fields[n][rows] for n in ("up_limit", "down_limit")}
        batch = live.push(time, panel.bars[rows], owner[rows], **fields)
        for k, image in zip(batch.which.tolist(), batch.images, strict=True):
            found[str(live.instruments[k]), time] = image.tobytes()
    return found


def panel_of(
    seed: int, instruments: int = 5, bars: int = 60, hole: float = 0.05, missing: float = 0.05
) -> pp.Panel:
    """A market with late listings, delistings, holes, missing bars, and flat stretches."""
    rng = np.random.default_rng(seed)
    frame = pp.samples.simulate(instruments, bars, seed=seed, list_late=0.4, delist_rate=0.01, halt_rate=0.05)
    frame = frame.filter(pl.Series(rng.random(len(frame)) >= hole))
    blank = pl.Series(rng.random(len(frame)) < missing)
    columns = [
        pl.when(blank).then(None).otherwise(pl.col(c)).alias(c) for c in ("open", "high", "low", "close")
    ]
    return pp.Panel.from_table(frame.with_columns(columns), progress=False)


@pytest.mark.parametrize("preset", ["jkx5", "jkx20", "it9", "cnnft5"])
def test_pushed_bars_give_the_images_of_a_store(preset):
    panel = panel_of(3, bars=140)
    spec = pp.ImageSpec.preset(preset)
    options = {"limits": "up_limit" in panel.fields}
    assert pushed(panel, LiveImages(spec, panel.instruments, **options)) == universe(panel, spec)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    lookback=st.integers(2, 9),
    ma=st.sampled_from([(), (3,), (2, 6)]),
    warmup=st.sampled_from(["drop", "omit"]),
    volume=st.booleans(),
    max_missing=st.sampled_from([None, 1]),
    hole=st.sampled_from([0.0, 0.3]),
)
def test_any_spec_and_any_holes_give_the_images_of_a_store(
    seed, lookback, ma, warmup, volume, max_missing, hole
):
    panel = panel_of(seed, 3, 40, hole=hole, missing=hole)
    spec = pp.ImageSpec(lookback, 24, ma=ma, ma_warmup=warmup, volume=volume, max_missing=max_missing)
    try:
        expected = universe(panel, spec, max_gap="4d")
    except ValueError:  # no window can be drawn
        expected = {}
    assert pushed(panel, LiveImages(spec, panel.instruments, max_gap="4d")) == expected


def test_a_panel_is_continued():
    panel = panel_of(5, bars=90)
    cut = int(panel.calendar[50])
    before = pp.Panel.from_table(
        panel.to_polars().filter(pl.col("time").dt.timestamp("ns") <= cut), on_bad="keep", progress=False
    )
    live = LiveImages.from_panel("jkx5", before)
    assert live.instruments.tolist() == before.instruments.tolist()
    known = pp.Panel.from_table(
        panel.to_polars().filter(pl.col("instrument").is_in(before.instruments.tolist())),
        on_bad="keep",
        progress=False,
    )
    expected = {key: image for key, image in universe(known, "jkx5").items() if key[1] > cut}
    assert pushed(known, live, after=cut) == expected


def test_returns_rebuild_prices_bar_by_bar():
    panel = panel_of(7, hole=0.0, missing=0.0)
    spec = pp.ImageSpec.preset("jkx5").replace(rebuild="returns")
    assert pushed(panel, LiveImages(spec, panel.instruments)) == universe(panel, spec)
    with pytest.raises(ValueError, match="give total_return= of each bar"):
        LiveImages(spec, ["A"]).push("2024-01-01", [[1.0, 1, 1, 1, 1]])


def test_bad_bars_are_refused_and_nothing_is_pushed():
    live = LiveImages("jkx5", ["A", "B"])
    live.push("2024-01-01", np.ones((2, 5)))
    for bars, names, message in (
        ([[1, 1, 2, 1, 1]], ["A"], "A at 2024-01-02 .*the high is below the low"),
        ([[0, 1, 1, 1, 1]], ["B"], "a price is zero or negative"),
        ([[1, np.inf, 1, 1, 1]], ["B"], "infinite"),
        (np.ones((2, 5)), ["A", "A"], "stands twice"),
    ):
        with pytest.raises(BadBarsError, match=message):
            live.push("2024-01-02", bars, names)
    with pytest.raises(BadBarsError, match="not later than that of its last bar; nothing was pushed"):
        live.push("2024-01-01", np.ones((1, 5)), ["B"])
    assert live._recent.total.tolist() == [1, 1]
    with pytest.raises(ValueError, match="'C' is none of the 2 instruments"):
        live.push("2024-01-02", np.ones((1, 5)), ["C"])
    with pytest.raises(ValueError, match=r"bars has shape \(1, 5\), expected \(2, 5\)"):
        live.push("2024-01-02", np.ones((1, 5)))
    with pytest.raises(ValueError, match="1 of 2 instruments have a name that another has"):
        LiveImages("jkx5", ["A", "A"])


def test_names_may_come_in_any_order_and_a_model_scores():
    def ink(images):
        return (images > 0).mean(axis=(1, 2))

    panel = panel_of(9, hole=0.0, missing=0.0)
    live, other = (LiveImages("jkx5", panel.instruments, model=ink) for _ in range(2))
    owner = np.repeat(panel.instruments, np.diff(panel.offsets))
    for time in panel.calendar.tolist():
        rows = np.flatnonzero(panel.time == time)
        a = live.push(time, panel.bars[rows], owner[rows])
        back = rows[::-1]
        b = other.push(time, panel.bars[back], owner[back])
        assert a.which.tolist() == b.which.tolist()
        assert a.images.tobytes() == b.images.tobytes()
        assert np.array_equal(a.scores, ink(a.images))


def test_after_the_first_push_nothing_is_compiled_and_no_memory_is_taken():
    from numba.core import event

    rng = np.random.default_rng(1)
    peaks = {}
    for n in (500, 2000):
        live = LiveImages("jkx20", [f"S{k}" for k in range(n)])
        close = 50.0 * np.exp(np.cumsum(rng.normal(0, 0.02, (120, n)), axis=0))
        bars = np.stack([close, close * 1.01, close * 0.99, close, np.full_like(close, 1e6)], axis=2)
        for k in range(45):
            live.push(k + 1, bars[k])
        with event.install_recorder("numba:compile") as recorded:
            tracemalloc.start()
            live.push(46, bars[45])
            peaks[n] = 0
            for k in range(46, 120):
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                assert len(live.push(k + 1, bars[k]).images) == n
                peaks[n] = max(peaks[n], tracemalloc.get_traced_memory()[1] - before)
            tracemalloc.stop()
        assert not recorded.buffer
    # The scratch of a task of the renderer, whatever the number of instruments, and the positions that are returned.
    # An image an instrument would be 3,840 bytes each.
    assert peaks[500] < 128 << 10
    assert peaks[2000] - peaks[500] < 10 * 1500
