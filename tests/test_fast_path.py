"""The fast path draws what the plain kernels draw: same bytes, same reasons, nothing beside the images touched."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager

import numba
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pricepix import ImageSpec, Panel, WindowIndex, render_panel
from pricepix.render import draw as api
from pricepix.render import fast, kernels, rules, widen
from pricepix.render import memory as render_memory

NO_VALUES, NO_FLAGS, NO_AVERAGES = np.zeros(0), np.zeros(0, np.bool_), np.zeros((0, 0))
GUARD = 64


@contextmanager
def path(plain: bool, nontemporal: bool | None = None):
    """Choose the path that the dispatch takes, and whether stores go past the caches."""
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setattr(fast, "supports", lambda spec: False)
            patch.setattr(fast, "expands_bits", lambda height, width: False)
        if nontemporal is not None:
            patch.setattr(fast, "uses_nontemporal_stores", lambda out: nontemporal)
        yield


def arrays_of(bars, at_limit=None, averages=NO_AVERAGES):
    up, down = (NO_FLAGS, NO_FLAGS) if at_limit is None else at_limit
    return rules.PanelArrays(bars, NO_VALUES, up, down, averages)


def draw(spec, bars, windows, mode, averages=NO_AVERAGES, at_limit=None, shift=0, threads=1):
    """Images (or column bits) and reasons; asserts that no byte before or behind the output was touched."""
    first, row, dest = windows
    n = len(row)
    shape = {
        rules.PIXELS: (n, *spec.shape),
        rules.BITS: (n, spec.packed_bytes, 1),
        rules.DRY: (0, 0, 0),
    }[mode]
    size = int(np.prod(shape))
    room = np.full(size + 2 * GUARD, 7, np.uint8)
    out = room[GUARD - shift : GUARD - shift + size].reshape(shape)
    reason = np.full(n, 99, np.uint8)
    arrays = arrays_of(bars, at_limit, averages)
    api.run(arrays, spec, rules.WindowRows(first, row, dest), out, mode, reason, threads)
    assert (room[: GUARD - shift] == 7).all()
    assert (room[GUARD - shift + size :] == 7).all()
    return out, reason


def assert_equal(spec, bars, windows, nontemporal=None, shift=0, **options):
    """Both paths agree in pixels, column bits and reasons, and column bits widen to the pixels."""
    with path(plain=True):
        expected, expected_reason = draw(spec, bars, windows, rules.PIXELS, **options)
    with path(plain=False, nontemporal=nontemporal):
        images, reason = draw(spec, bars, windows, rules.PIXELS, shift=shift, **options)
        bits, bits_reason = draw(spec, bars, windows, rules.BITS, shift=shift, **options)
        _, dry_reason = draw(spec, bars, windows, rules.DRY, **options)
        widened = widen(bits[:, :, 0], *spec.shape)
    assert np.array_equal(reason, expected_reason)
    assert np.array_equal(bits_reason, expected_reason)
    assert np.array_equal(dry_reason, expected_reason)
    assert np.array_equal(images, expected)
    packed = np.packbits(expected.transpose(0, 2, 1).reshape(len(expected), -1) > 0, axis=1)
    assert np.array_equal(bits[:, :, 0], packed)
    assert np.array_equal(widened, expected)


# ---- made-up specs, bars and windows


def _numbers(draw, small, large):
    """Whole numbers of a small range, and seldom of a large one."""
    return draw(st.integers(*small)) if draw(st.integers(0, 15)) else draw(st.integers(*large))


@st.composite
def specs(draw):
    """Any spec that the fast path may take, mostly small."""
    style = draw(st.sampled_from(["jkx", "jkx", "image_trading", "cnn_for_trading"]))
    volume = draw(st.booleans())
    if style == "cnn_for_trading" and volume:
        height = draw(st.sampled_from([32, 64]))
    else:
        height = (
            draw(st.sampled_from([32, 64, 96])) if draw(st.booleans()) else _numbers(draw, (5, 80), (81, 512))
        )
    return ImageSpec(
        lookback=_numbers(draw, (2, 60), (61, 250)),
        height=height,
        style=style,
        ma=(_numbers(draw, (1, 30), (31, 512)),) if draw(st.booleans()) else (),
        ma_warmup="omit",
        volume=volume,
        max_missing=draw(st.sampled_from([None, None, 0, 2])),
    )


@st.composite
def bars(draw, rows):
    """Bars (rows, 5) of a walk on a grid of ticks, with everything in them that may go wrong."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    step = draw(st.sampled_from([1, 3, 30]))
    close = 3000 + np.cumsum(rng.integers(-step, step + 1, rows))
    open_ = close + rng.integers(-step, step + 1, rows)
    high = np.maximum(open_, close) + rng.integers(0, step + 1, rows)
    low = np.minimum(open_, close) - rng.integers(0, step + 1, rows)
    prices = np.stack([open_, high, low, close], axis=1)
    fault = draw(
        st.sampled_from(["none", "none", "disorder", "negative", "infinite", "still", "huge", "tiny"])
    )
    some = rng.random(rows) < draw(st.sampled_from([0.03, 0.5]))
    if fault == "disorder":
        prices[some] = rng.permuted(prices[some], axis=1)
    if fault == "still":
        # Flat stretches, of which one is longer than many windows.
        prices[some] = 3000
        prices[: rows // 3] = prices[0, 3]
    table = np.column_stack([prices * draw(st.sampled_from([0.01, 0.25])), rng.integers(0, 60, rows) * 100.0])
    spoiled = rng.random((rows, 5)) < 0.01
    if fault == "negative":
        table[some] *= -1
    elif fault == "infinite":
        table[spoiled] = np.inf
    elif fault in ("huge", "tiny"):
        table[:, draw(st.sampled_from([slice(0, 4), slice(4, 5)]))] *= 1e304 if fault == "huge" else 1e-322
    volume = draw(st.sampled_from(["as it is", "as it is", "none", "equal", "spikes"]))
    if volume == "none":
        table[:, 4] = 0.0
    elif volume == "equal":
        table[rows // 2 :, 4] = 700.0
    elif volume == "spikes":
        table[some, 4] += 1e12
    missing = draw(st.sampled_from([0.0, 0.0, 0.01, 0.4]))
    table[rng.random((rows, 5)) < missing] = np.nan
    table[rng.random(rows) < missing] = np.nan
    return np.ascontiguousarray(table)


@st.composite
def windows_of(draw, spec, limit=24):
    """Lengths of a few instruments, and (first, row, dest) of some windows of theirs, ascending by row."""
    lengths = [spec.lookback + draw(st.integers(0, 40)) for _ in range(draw(st.integers(1, 4)))]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ends = np.concatenate([np.arange(a + spec.lookback - 1, b) for a, b in itertools.pairwise(offsets)])
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, limit))
    if draw(st.booleans()):
        begin = int(rng.integers(len(ends)))
        row = ends[begin : begin + n]
    else:
        row = np.sort(rng.choice(ends, n))
    first = offsets[np.searchsorted(offsets, row, side="right") - 1]
    dest = np.arange(len(row)) if draw(st.booleans()) else rng.permutation(len(row))
    return offsets, (first, row.astype(np.int64), dest.astype(np.int64))


@st.composite
def scenes(draw):
    """A spec, bars, windows and options of ``draw``."""
    spec = draw(specs())
    offsets, windows = draw(windows_of(spec))
    rows = int(offsets[-1])
    table = draw(bars(rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    options = {"nontemporal": draw(st.booleans()), "shift": draw(st.integers(0, 63))}
    if spec.ma and draw(st.integers(0, 2)) == 0:
        averages = table[:, 3:4] + rng.integers(-20, 21, (rows, 1)) / 8
        averages[rng.random((rows, 1)) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
        averages[rng.random((rows, 1)) < draw(st.sampled_from([0.0, 0.0, 0.01]))] = np.inf
        options["averages"] = averages
    if draw(st.booleans()):
        options["at_limit"] = tuple(rng.random((2, rows)) < draw(st.sampled_from([0.0, 0.02, 0.3])))
    return spec, offsets, table, windows, options


# ---- which path a spec takes


@pytest.mark.parametrize("preset", sorted(ImageSpec.presets()))
def test_every_preset_takes_the_fast_path(preset, make_walk):
    spec = ImageSpec.preset(preset)
    panel = Panel(make_walk(600), np.array([0, 600]), np.array(["A"]), np.arange(600))
    with pytest.MonkeyPatch.context() as patch:
        for plain in ("render_serial", "render_task"):
            patch.setattr(kernels, plain, None)
        index = WindowIndex.from_panel(panel, spec)
        assert len(index) > 300
        for threads in (1, 2, None):
            assert render_panel(panel, index, threads=threads).any()
            assert render_panel(panel, index, bits=True, threads=threads).any()


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec(1, 64),
        ImageSpec(2, 9),
        ImageSpec(10, 513),
        ImageSpec(513, 8),
        ImageSpec(5, 32, chart="pixel"),
        ImageSpec(5, 32, ma=(3, 5)),
        ImageSpec(5, 32, ma=(513,), ma_warmup="omit"),
        ImageSpec(6, 32, aggregate=2),
        ImageSpec(5, 32, rebuild="returns"),
        ImageSpec(9, 27, style="image_trading", scale="per_field"),
    ],
    ids=str,
)
def test_other_specs_are_drawn_by_the_plain_kernels(spec, make_walk):
    returns = np.full(700, 0.01)
    returns[::3] = -0.008
    panel = Panel(
        make_walk(700), np.array([0, 700]), np.array(["A"]), np.arange(700), fields={"total_return": returns}
    )
    assert not fast.supports(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "render_serial", None)
        index = WindowIndex.from_panel(panel, spec)
        images = render_panel(panel, index, threads=1)
        assert len(images) > 100
        bits = render_panel(panel, index, bits=True)
    # The bits may still be widened by the fast kernel.
    assert np.array_equal(widen(bits, *spec.shape), images)
    assert all(image.any() for image in images)


@pytest.mark.parametrize("spec", [ImageSpec.preset("jkx20"), ImageSpec(5, 32, chart="pixel")], ids=str)
def test_arrays_that_may_be_written_need_no_compilation_of_their_own(spec):
    """Panels may not be written, windows that come bar by bar may: each mixture would be compiled, for seconds."""
    found = set()
    for writeable in itertools.product([False, True], repeat=5):
        arrays = rules.PanelArrays(np.ones((30, 5)), np.ones(30), *np.ones((2, 30), bool), np.ones((30, 1)))
        for array, flag in zip(arrays, writeable, strict=True):
            array.flags.writeable = flag
        source = api.fast_job(arrays, spec) if fast.supports(spec) else api._plain_source(arrays, spec)
        found.add(numba.typeof(source))
    assert len(found) == 1


# ---- the same bytes


@settings(max_examples=int(os.environ["PRICEPIX_SCENES"]))
@given(scenes())
def test_both_paths_draw_the_same_bytes(scene):
    spec, _, table, windows, options = scene
    assert_equal(spec, table, windows, **options)


@given(scenes())
def test_both_paths_find_the_same_windows(scene):
    """As an index sees it: missing bars counted, reasons of a run without output."""
    spec, offsets, table, _, _ = scene
    panel = Panel(table, offsets, np.array([f"{i}" for i in range(len(offsets) - 1)]), np.arange(offsets[-1]))
    found = []
    for plain in (True, False):
        with path(plain):
            found.append(WindowIndex.from_panel(panel, spec))
    assert np.array_equal(found[0].row, found[1].row)
    assert found[0].counts == found[1].counts


@given(scenes(), st.integers(2, 4))
def test_neither_tasks_nor_threads_change_anything(scene, threads):
    spec, _, table, windows, options = scene
    nontemporal, shift = options.pop("nontemporal"), options.pop("shift")
    for mode in (rules.PIXELS, rules.BITS):
        with path(plain=False, nontemporal=nontemporal):
            one = draw(spec, table, windows, mode, shift=shift, **options)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fast, "TASK_WINDOWS", 3)
                more = draw(spec, table, windows, mode, shift=shift, threads=threads, **options)
        assert np.array_equal(one[0], more[0])
        assert np.array_equal(one[1], more[1])


@given(scenes(), st.randoms(use_true_random=False))
def test_bars_beside_their_averages_give_the_same_bytes(scene, random):
    """As a drawer of random batches has them; windows that are deferred are drawn by the plain kernels."""
    spec, offsets, table, (first, row, _dest), options = scene
    assume(spec.ma and fast.supports(spec))
    with path(plain=True):
        expected, expected_reason = draw(
            spec, table, (first, row, np.arange(len(row))), rules.PIXELS, at_limit=options.get("at_limit")
        )
    beside = np.full((len(table), fast.INTERLEAVED_COLUMNS), 7.0)
    fast.interleave_averages(table, offsets, spec.ma[0], api.draw_params(spec).partial_ma, beside)
    assert np.array_equal(beside[:, :5], table, equal_nan=True)
    instrument = np.searchsorted(offsets, row, side="right").astype(np.int32) - 1
    for array in (beside, row, instrument):
        array.flags.writeable = False
    which = np.array(random.choices(range(len(row)), k=random.randint(1, 400)))
    out, reason = np.full((len(which), *spec.shape), 7, np.uint8), np.full(len(which), 99, np.uint8)
    undrawn = fast.render_selected(
        fast.job_of(arrays_of(beside, options.get("at_limit"), None), spec), row, instrument, offsets, which,
        out.reshape(-1), fast.Stores(options["nontemporal"], *fast._NO_STORES), reason,
    )  # fmt: skip
    assert undrawn == np.count_nonzero(reason)
    done = reason != fast.DEFERRED
    assert np.array_equal(reason[done], expected_reason[which[done]])
    assert np.array_equal(out[done], expected[which[done]])


@pytest.mark.parametrize("preset", sorted(ImageSpec.presets()))
@pytest.mark.parametrize("nontemporal", [False, True])
def test_long_histories_of_several_instruments(preset, nontemporal, make_walk):
    """Across the borders of tasks and instruments, in the order of time, and at random."""
    spec = ImageSpec.preset(preset)
    lengths = [900, spec.lookback, 300, 1500]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    table = np.concatenate([make_walk(n, seed=i) for i, n in enumerate(lengths)])
    table[np.random.default_rng(0).random(table.shape) < 0.0005] = np.nan
    row = np.concatenate([np.arange(a + spec.lookback - 1, b) for a, b in itertools.pairwise(offsets)])
    first = offsets[np.searchsorted(offsets, row, side="right") - 1]
    dest = np.argsort(np.argsort(row - first, kind="stable"), kind="stable")
    assert_equal(spec, table, (first, row, dest), nontemporal=nontemporal, threads=3)
    chosen = np.sort(np.random.default_rng(1).choice(len(row), 300, replace=False))
    windows = first[chosen], row[chosen], np.random.default_rng(2).permutation(300)
    assert_equal(spec, table, windows, nontemporal=nontemporal)


@pytest.mark.parametrize("shape", [(3, 64, 60), (1, 7, 5), (0, 64, 60), (3000, 64, 60)])
def test_memory_for_images_begins_at_a_cache_line(shape):
    """Several at once, so that none can do so by chance."""
    for memory in [render_memory.memory_for(shape) for _ in range(5)]:
        assert memory.shape == shape
        assert memory.dtype == np.uint8
        assert memory.flags.c_contiguous
        assert memory.flags.writeable
        assert memory.ctypes.data % render_memory.CACHE_LINE == 0 or not memory.size
        if memory.nbytes >= 2 * render_memory.HUGE_PAGE:
            assert memory.ctypes.data % render_memory.HUGE_PAGE == 0
