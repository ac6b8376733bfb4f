"""Short vectors: compiled, each instruction computes what its plain NumPy function does."""

from __future__ import annotations

import tomllib
import types
import warnings
from pathlib import Path

import numba
import numpy as np
import pytest

from pricepix.render import simd

N = 48
RNG = np.random.default_rng(0)
FLOATS = RNG.choice([1.5, np.nan, -np.inf, np.inf, 0.0, -0.0, 2.0, -7.25, 1e300, 3.0], (3, N))
INTS = RNG.choice([0, 1, -1, -(1 << 63), (1 << 63) - 1, 5, 1 << 40, -9], (5, N))
SHIFTS = RNG.choice([0, 1, 7, 31, 63, 64, 65, 1000, -1, -64, -(1 << 63)], N)
BYTES = RNG.integers(0, 256, (3, 64)).astype(np.uint8)


def four_floats(a, b, c, out):
    n = len(a)
    a, b, c = simd.pointer(a), simd.pointer(b), simd.pointer(c)
    for i in range(0, n, 4):
        x, y, z = simd.load_f(a, i), simd.load_f(b, i), simd.load_f(c, i)
        simd.store(out, i, x + y)
        simd.store(out, n + i, x - 2.5)
        simd.store(out, 2 * n + i, x * y)
        simd.store(out, 3 * n + i, x / y)
        simd.store(out, 4 * n + i, simd.lower_of(x, y))
        simd.store(out, 5 * n + i, simd.higher_of(x, y))
        simd.store(out, 6 * n + i, simd.absolute(x))
        simd.store(out, 7 * n + i, simd.where_nan(x, y, z))
        simd.store(out, 8 * n + i, simd.where_higher(x, y, z, simd.splat_f(0.5)))


def four_ints(a, b, shift, out):
    n = len(shift)
    for i in range(0, n, 4):
        x, y, k = simd.load_i(a, i), simd.load_i(b, i), simd.load_i(shift, i)
        simd.store(out, i, x + y)
        simd.store(out, n + i, x - 3)
        simd.store(out, 2 * n + i, x & y)
        simd.store(out, 3 * n + i, x | ~y)
        simd.store(out, 4 * n + i, simd.shift_up(x, k))
        simd.store(out, 5 * n + i, simd.shift_down(x, k))
        simd.store(out, 6 * n + i, simd.where_above(x, y, simd.splat(i), simd.count_from(i)))


def rearranged(a, b, c, d, e, f, out):
    for i in range(0, len(a), 4):
        v, w, x = simd.load_i(a, i), simd.load_i(b, i), simd.load_i(c, i)
        first, second, third = simd.interleave(v, w, x)
        simd.store(out, 6 * i, first)
        simd.store(out, 6 * i + 4, second)
        simd.store(out, 6 * i + 8, third)
        first, second, third = simd.chain(v, w, x, simd.load_i(d, i), simd.load_i(e, i))
        simd.store(out, 6 * i + 12, first)
        simd.store(out, 6 * i + 16, second)
        simd.store(out, 6 * i + 20, third)
        simd.store(out, 6 * len(a) + i, simd.bits_of(simd.load_f(f, i)))


def rows_to_columns(bars, wide, out):
    o, h, l, c, v = simd.load_bars(bars, 3)  # noqa: E741
    for k, column in enumerate((o, h, l, c, v)):
        simd.store(out, 4 * k, column)
    o, h, l, c, v, m = simd.load_wide_bars(wide, 5)  # noqa: E741
    for k, column in enumerate((o, h, l, c, v, m)):
        simd.store(out, 20 + 4 * k, column)


def many_bytes(a, b, out):
    for i in (0, 1, 31):
        simd.store(out, 64 * i, simd.ink(simd.load_b(a, i), simd.load_b(b, i)))
        simd.store(out, 64 * i + 32, simd.load_b(a, i) & simd.load_b(b, i) | simd.load_b(b, 0))


def words_to_bytes(words, source, out):
    simd.store_planes(words, 2, 8, out, 5, 40, 2)
    simd.store_planes(words, 3, 3, out, 700, 33, 4)
    simd.store_swapped(words, 1, out, 1111)
    for k in range(7):
        simd.store_word(out, 1150 + 9 * k, simd.load_word(source, 3 * k))


def past_the_cache(a, begin, out):
    for i in range(0, 64, 32):
        simd.prefetch(a, i)
        simd.store_nontemporal(out, begin + i, simd.load_b(a, i))
    simd.fence()


def parts_of_memory(out):
    words, floats, rest = simd.words_in(out, 8), simd.floats_in(out, 24), simd.bytes_in(out, 40)
    for k in range(2):
        words[k] = 1234567 + k
        floats[k] = 0.1 + k
    rest[3] = 5


def assert_compiled_equals_plain(kernel, *arguments):
    """Run a kernel as compiled and with the plain functions; the last argument is where it writes."""
    vectors = types.SimpleNamespace(**simd.PLAIN)
    plain = types.FunctionType(kernel.__code__, {**kernel.__globals__, "simd": vectors})
    *given, out = arguments
    expected = out.copy()
    with np.errstate(all="ignore"):
        plain(*given, expected)
    numba.njit(error_model="numpy")(kernel)(*given, out)
    assert len(np.unique(out)) > 2
    np.testing.assert_array_equal(out, expected)
    if out.dtype == np.float64:
        there = ~np.isnan(out)
        np.testing.assert_array_equal(np.signbit(out[there]), np.signbit(expected[there]))


def test_floats():
    assert_compiled_equals_plain(four_floats, *FLOATS, np.full(9 * N, 77.0))


def test_ints():
    assert_compiled_equals_plain(four_ints, INTS[0], INTS[1], SHIFTS, np.full(7 * N, 77))


def test_rearranging_lanes():
    assert_compiled_equals_plain(rearranged, *INTS, FLOATS[0], np.full(7 * N, 77))


def test_rows_to_columns():
    bars, wide = np.arange(25.0), np.arange(100.0, 130.0)
    out = np.full(44, 77.0)
    assert_compiled_equals_plain(rows_to_columns, bars, wide, out)
    assert out[:5].tolist() == [3.0, 8.0, 13.0, 18.0, 4.0]


def test_bytes():
    assert_compiled_equals_plain(many_bytes, BYTES[0], BYTES[1] & BYTES[2], np.full(64 * 32, 77, np.uint8))


def test_words_to_bytes():
    words = RNG.integers(-(1 << 63), 1 << 63, 40)
    assert_compiled_equals_plain(words_to_bytes, words, BYTES[0], np.full(1300, 77, np.uint8))


def test_stores_past_the_cache():
    room = np.full(160, 77, np.uint8)
    assert_compiled_equals_plain(past_the_cache, BYTES[0], -room.ctypes.data % 32, room)


def test_parts_of_memory():
    assert_compiled_equals_plain(parts_of_memory, np.full(51, 77, np.uint8))


def test_every_instruction_is_tested():
    kernels = (
        four_floats,
        four_ints,
        rearranged,
        rows_to_columns,
        many_bytes,
        words_to_bytes,
        past_the_cache,
        parts_of_memory,
    )
    assert {name for kernel in kernels for name in kernel.__code__.co_names} >= set(simd.PLAIN)


# ---- releases of Numba


def test_pyproject_asks_for_the_releases_that_were_tested():
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    (oldest, newest) = simd.TESTED_NUMBA
    assert f"numba>={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}" in project["dependencies"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simd.check_numba(numba.__version__)


def test_other_releases_of_numba_are_named():
    with pytest.raises(
        ImportError, match=r"Numba 0\.61\.2 is installed, .* need 0\.62 or newer: pip install"
    ):
        simd.check_numba("0.61.2")
    with pytest.warns(RuntimeWarning, match=r"Numba 0\.99\.0rc1 is newer than 0\.68, the newest .* tested"):
        simd.check_numba("0.99.0rc1")
    with pytest.warns(RuntimeWarning, match="newer than"):
        simd.check_numba("1.0.0")
