"""Checked entry points over the kernels: check, plan tasks, choose a driver, run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from pricepix._checks import whole_number
from pricepix.bars import uncompiled
from pricepix.bars.compiling import announce_compiling
from pricepix.render import bits as render_bits
from pricepix.render import fast, kernels, rules
from pricepix.render.memory import memory_for
from pricepix.render.rules import DrawParams, PanelArrays, WindowRows
from pricepix.spec import ImageSpec

if TYPE_CHECKING:
    from pricepix.bars.panel import Panel

announce_compiling()

_STYLE_CODES = {
    "jkx": rules.JKX,
    "cnn_for_trading": rules.CNN_FOR_TRADING,
    "image_trading": rules.IMAGE_TRADING,
}
# Windows a task: enough to share the moving averages of a stretch, few enough to balance two threads.
_TASK_WINDOWS = 256
# Tasks that one thread draws before another would have started.
_FEW_TASKS = 2
# What one thread of a Zen 4 needs for a window, for its bytes, and to start another: how many threads are worth it.
_WINDOW_SECONDS = 8e-8
_BYTES_A_SECOND = 2e10
_THREAD_SECONDS = 2.5e-4
# What the interpreter needs for a bar of a window, without drawing it, and with, on a Zen 4 that does other work too.
_INTERPRETED_DRY, _INTERPRETED = 3e-5, 6e-5
# And for a step of a small loop over windows or rows.
_LOOP_SECONDS = 1e-6
# What NumPy needs for a pixel of column bits, and how many images it turns around at once.
_UNPACK_SECONDS, _UNPACKED_IMAGES = 3e-9, 1024
# Kinds of jobs whose renderer this process has found compiled; None is the plain one.
_compiled: set[Any] = set()
_NO_FLAGS = np.zeros(0, np.bool_)
_NO_VALUES = np.zeros(0)
_NO_MA = np.zeros((0, 0))


class RenderResult(NamedTuple):
    """What ``render_windows`` returns."""

    images: NDArray[np.uint8]
    """uint8 (N, height, width), 0 and 255, row 0 at the top; blank where there is no image."""
    reason: NDArray[np.uint8]
    """uint8 (N,): 0 for a valid window, else a code that ``REASONS`` names."""


def draw_params(spec: ImageSpec) -> DrawParams:
    """Translate a spec into the integers that kernels take."""
    height = spec.height
    if spec.style == "cnn_for_trading":
        # Its volume panel is 5 or 11 pixels high at heights 32 and 64, and prices may use all rows.
        volume_height, price_height = {32: 5, 64: 11}.get(height, 0), height
    else:
        volume_height = height // 5
        price_height = height - volume_height - 1 if spec.volume else height
    return DrawParams(
        style=_STYLE_CODES[spec.style],
        pixel_chart=int(spec.chart == "pixel"),
        per_field=int(spec.scale == "per_field"),
        volume=int(spec.volume),
        rebuild=int(spec.rebuild == "returns"),
        lookback=spec.lookback,
        aggregate=spec.aggregate,
        bars=spec.bars,
        height=height,
        width=spec.width,
        price_height=price_height,
        volume_height=volume_height,
        history=spec.history,
        partial_ma=int(spec.style == "cnn_for_trading"),
    )


def render_windows(
    ohlcv: Any, spec: ImageSpec | str | Mapping[str, Any], ma: Any = None, at_limit: Any = None
) -> RenderResult:
    """Draw windows that are given bar by bar.

    Parameters
    ----------
    ohlcv : array_like, float64 (N, L, 5)
        Open, high, low, close, volume of N windows of ``L = spec.lookback`` bars; NaN is missing. float32 is
        refused: it rounds prices off their tick grid, which moves pixels in up to one image of seven.
    spec : ImageSpec, str or dict
        What to draw, or the name of a preset.
    ma : array_like, float64 (N, L, n) or (N, L), optional
        The moving averages at each bar, in the order of ``spec.ma``. Required exactly if the spec draws any,
        since a window does not hold the history that they need.
    at_limit : array_like, bool (N, 2, L), optional
        True where a bar sits at its up-limit (0) or down-limit (1); style ``image_trading`` draws flat
        windows by it.

    Returns
    -------
    RenderResult
        ``images`` uint8 (N, height, width) and ``reason`` uint8 (N,).

    Raises
    ------
    TypeError
        If an array is not of a type that holds the numbers exactly.
    ValueError
        If a shape does not fit the spec.

    Examples
    --------
    >>> import numpy as np
    >>> spec = ImageSpec(lookback=2, height=3)
    >>> window = [[1.0, 3.0, 1.0, 2.0, 0.0], [2.0, 3.0, 2.0, 3.0, 0.0]]
    >>> render_windows([window], spec).images[0] // 255
    array([[0, 1, 0, 0, 1, 1],
           [0, 1, 1, 1, 1, 0],
           [1, 1, 0, 0, 0, 0]], dtype=uint8)
    """
    spec = ImageSpec.of(spec)
    if spec.rebuild is not None:
        raise ValueError(
            "rebuild='returns' needs the returns of a panel: use render_panel, or spec.replace(rebuild=None)"
        )
    arrays = checked_windows(ohlcv, spec, ma, at_limit)
    n = len(arrays.bars) // spec.lookback
    images = np.empty((n, *spec.shape), np.uint8)
    reason = np.empty(n, np.uint8)
    position = np.arange(n, dtype=np.int64)
    first = position * spec.lookback
    rows = WindowRows(first, first + (spec.lookback - 1), position)
    run(arrays, spec, rows, images, rules.PIXELS, reason, None)
    return RenderResult(images, reason)


def render_rows(
    panel: Panel,
    row: NDArray[np.int64],
    spec: ImageSpec,
    out: NDArray[np.uint8] | None,
    *,
    bits: bool = False,
    reason: NDArray[np.uint8],
    threads: int | None = None,
) -> None:
    """Draw the windows that end at panel rows `row`, in any order; ``out=None`` finds only the reasons."""
    offsets = panel.offsets
    if len(row) and (row.min() < 0 or row.max() >= offsets[-1]):
        raise ValueError(
            f"windows end at panel rows {row.min()} to {row.max()}, the panel has {offsets[-1]} rows: make "
            "the index from this panel"
        )
    row = np.ascontiguousarray(row, np.int64)
    # An index's rows are read-only, for which the kernels would be compiled once more.
    row, dest = _ascending(row if row.flags.writeable else row.copy())
    first = np.empty(len(row), np.int64)
    seconds = _LOOP_SECONDS * (len(row) + len(offsets))
    if uncompiled.call(kernels.first_rows, seconds, row, offsets, first) < spec.lookback and len(row):
        raise ValueError(
            f"a window is shorter than lookback={spec.lookback}: make the index with WindowIndex.from_panel"
        )
    if out is None:
        mode, target = rules.DRY, np.empty((0, 0, 0), np.uint8)
    elif bits:
        mode, target = rules.BITS, out[:, :, None]
    else:
        mode, target = rules.PIXELS, out
    run(panel_arrays(panel, spec), spec, WindowRows(first, row, dest), target, mode, reason, threads)


def panel_arrays(panel: Panel, spec: ImageSpec) -> PanelArrays:
    """Return what the kernels draw from; total returns only if the spec draws from them."""
    fields = panel.fields
    total_return = _NO_VALUES
    if spec.rebuild == "returns":
        if "total_return" not in fields:
            raise ValueError(
                "rebuild='returns' needs total returns, but the panel has "
                f"{', '.join(fields) or 'no optional fields'}: map a column to total_return, or use rebuild=None"
            )
        total_return = fields["total_return"]
    up, down = fields.get("up_limit", _NO_FLAGS), fields.get("down_limit", _NO_FLAGS)
    return PanelArrays(panel.bars, total_return, up, down, _NO_MA)


def _ascending(row: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows in ascending order, and the position of each in `row`."""
    n = len(row)
    if n < 2 or (row[1:] >= row[:-1]).all():
        return row, np.arange(n, dtype=np.int64)
    lowest, highest = int(row.min()), int(row.max())
    span = highest - lowest + 1
    if span <= 4 * n and n < 1 << 31:
        dest, ascending = np.empty(n, np.int64), np.empty(n, np.int64)
        place, seconds = np.empty(span, np.int32), _LOOP_SECONDS * (n + span)
        if uncompiled.call(kernels.sort_rows, seconds, row, lowest, place, dest, ascending) == n:
            return ascending, dest
    dest = np.argsort(row, kind="stable")
    return row[dest], dest


def run(
    arrays: PanelArrays,
    spec: ImageSpec,
    rows: WindowRows,
    out: NDArray[np.uint8],
    mode: int,
    reason: NDArray[np.uint8],
    threads: int | None,
) -> None:
    """Cut the windows (ascending by row) into tasks and run them on the path and the driver that fit."""
    if len(rows.last) == 0:
        return
    threads = _checked_threads(threads)
    job = fast_job(arrays, spec)
    if _draw_uncompiled(arrays, spec, rows, out, mode, reason, job):
        return
    if job is not None:
        flat = out.reshape(-1, copy=False)
        every = mode == rules.PIXELS and len(rows.last) == len(out)
        stores = fast.stores_for(out) if every else fast.plain_stores(out)
        _drive(fast, job, fast.plan_tasks(len(rows.last)), (rows, flat, mode, stores, reason), threads)
        if len(stores.lines):
            fast.write_lines(stores, spec.height * spec.width, flat)
        deferred = np.flatnonzero(reason[rows.dest] == fast.DEFERRED)
        if len(deferred) == 0:
            return
        rows = WindowRows(*(values[deferred] for values in rows))
        if _draw_uncompiled(arrays, spec, rows, out, mode, reason, None):
            return
    run_plain(arrays, spec, rows, out, mode, reason, threads)


def _draw_uncompiled(
    arrays: PanelArrays,
    spec: ImageSpec,
    rows: WindowRows,
    out: NDArray[np.uint8],
    mode: int,
    reason: NDArray[np.uint8],
    job: fast.Job | None,
) -> bool:
    """Draw in the interpreter if that is sooner than to compile what would; return whether it was done.

    `job` says which renderer is asked for, the plain one if None.
    """
    a_bar = _INTERPRETED_DRY if mode == rules.DRY else _INTERPRETED
    seconds = (
        a_bar * len(rows.last) * (spec.lookback + (spec.lookback + spec.history) * (spec.rebuild is not None))
    )
    kind = None if job is None else (job.banded, job.truncated, job.averages is None)
    if kind in _compiled or not uncompiled.patience.allows(seconds):
        return False
    starts = np.zeros(1, np.int64)  # no task
    source, rest = _plain_source(arrays, spec), (rows, out, mode, reason)
    if job is None:
        ready = uncompiled.is_compiled(kernels.render_serial, *source, starts, *rest)
    else:
        flat, stores = out.reshape(-1, copy=False), fast.plain_stores(out)
        ready = uncompiled.is_compiled(fast.render_serial, *job, starts, rows, flat, mode, stores, reason)
    if ready:
        _compiled.add(kind)
        return False
    uncompiled.patience.spend(seconds)
    done, _ = uncompiled.run_interpreted(kernels.render_serial, *source, _plain_tasks(rows, spec), *rest)
    return done


def fast_job(arrays: PanelArrays, spec: ImageSpec) -> fast.Job | None:
    """Return what the fast path's drivers draw from; None where only the plain kernels support the spec."""
    return fast.job_of(_read_only(arrays), spec) if fast.supports(spec) else None


def _read_only(arrays: PanelArrays) -> PanelArrays:
    """The same arrays, none of which may be written: a renderer is compiled again for each mixture of the two."""
    views = [None if array is None else array.view() for array in arrays]
    for view in views:
        if view is not None:
            view.flags.writeable = False
    return PanelArrays(*views)


def run_plain(
    arrays: PanelArrays,
    spec: ImageSpec,
    rows: WindowRows,
    out: NDArray[np.uint8],
    mode: int,
    reason: NDArray[np.uint8],
    threads: int | None,
) -> None:
    """Draw with the plain kernels, which support every spec."""
    rest = (rows, out, mode, reason)
    _drive(kernels, _plain_source(arrays, spec), _plain_tasks(rows, spec), rest, threads)


def _plain_source(arrays: PanelArrays, spec: ImageSpec) -> tuple[Any, ...]:
    """First arguments of the plain kernels' driver."""
    return _read_only(arrays), np.array(spec.ma, np.int64), draw_params(spec)


def _plain_tasks(rows: WindowRows, spec: ImageSpec) -> NDArray[np.int64]:
    """Bounds of the plain kernels' tasks."""
    starts = np.empty(len(rows.last) + 1, np.int64)
    seconds = _LOOP_SECONDS * len(rows.last)
    tasks = uncompiled.call(
        kernels.plan_tasks, seconds, rows.last, rows.first, spec.lookback, _TASK_WINDOWS, starts
    )
    return starts[: tasks + 1]


def _drive(
    path: Any, source: tuple[Any, ...], starts: NDArray[np.int64], rest: tuple[Any, ...], threads: int | None
) -> None:
    """Run the tasks on as many threads as are allowed, of which the calling one is the first.

    Threads of Python over a kernel that releases the interpreter's lock, and not those of Numba: a kernel for these is
    compiled on its own, which takes as long as the renderer, two threads in them at once end the process, they do not
    survive a fork, and they change torch's number of threads.
    """
    allowed = _checked_threads(threads)
    tasks = len(starts) - 1
    # Starting a thread takes as long as drawing what 0.25 ms draw: 1,500 images of jkx5 in 0.12 ms, by two in 0.33.
    seconds = _WINDOW_SECONDS * int(starts[-1] - starts[0]) + rest[1].nbytes / _BYTES_A_SECOND
    allowed = min(allowed, max(1, int(seconds / _THREAD_SECONDS)))
    if allowed == 1 or tasks <= _FEW_TASKS:
        path.render_serial(*source, starts, *rest)
        return
    # Tasks are many and of similar size, so a few slices a thread balance well.
    cuts = np.linspace(0, tasks, min(tasks, 8 * allowed) + 1).astype(np.int64)
    slices = [starts[a : b + 1] for a, b in itertools.pairwise(cuts)]
    taken = itertools.count()

    def work() -> None:
        while (k := next(taken)) < len(slices):
            path.render_serial(*source, slices[k], *rest)

    others = min(allowed, len(slices)) - 1
    with ThreadPoolExecutor(others, "pricepix-render") as pool:
        helpers = [pool.submit(work) for _ in range(others)]
        work()
        for helper in helpers:
            helper.result()


def _checked_threads(threads: int | None) -> int:
    """Threads of a call, those that may be used by default."""
    return whole_number(
        _usable_threads() if threads is None else threads, "threads", 1, otherwise="None for all"
    )


def _usable_threads() -> int:
    """Threads of a call that does not say: ``NUMBA_NUM_THREADS``, by default the cores of this process."""
    settings: Any = numba.config
    return int(settings.NUMBA_NUM_THREADS)


def widen(
    bits: NDArray[np.uint8], height: int, width: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Turn column bits into images.

    Parameters
    ----------
    bits : numpy.ndarray, uint8 (n, ceil(height * width / 8))
        One bit a pixel, columns first, most significant bit first.
    height, width : int
        Size of the images.
    out : numpy.ndarray, uint8 (n, height, width), optional
        Where to write; allocated when not given.

    Returns
    -------
    numpy.ndarray
        uint8 (n, height, width) of 0 and 255, row 0 at the top.
    """
    expected = (height * width + 7) // 8
    if bits.ndim != 2 or bits.shape[1] != expected or bits.dtype != np.uint8:
        raise ValueError(
            f"bits is {bits.dtype} {bits.shape}, expected uint8 (n, {expected}) for {height}x{width} images"
        )
    if out is None:
        out = memory_for((len(bits), height, width))
    elif out.shape != (len(bits), height, width) or out.dtype != np.uint8:
        raise ValueError(f"out is {out.dtype} {out.shape}, expected uint8 {(len(bits), height, width)}")
    if len(bits) == 0:
        return out
    if fast.expands_bits(height, width) and bits.flags.c_contiguous and out.flags.c_contiguous:
        tables = fast.build_byte_tables(height, width)
        kernel: Any = fast.widen
        args: tuple[Any, ...] = (height, width, tables, out.reshape(-1), fast.plain_stores(out))
    else:
        kernel, args = render_bits.unpack_images, (out,)
    seconds = _UNPACK_SECONDS * out.size
    uncompiled.call(kernel, seconds, bits, *args, instead=lambda *_: _widen_by_numpy(bits, out))
    return out


def _widen_by_numpy(bits: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    n, height, width = out.shape
    for a in range(0, n, _UNPACKED_IMAGES):
        pixels = np.unpackbits(bits[a : a + _UNPACKED_IMAGES], axis=1, count=height * width)
        columns = pixels.reshape(-1, width, height)
        np.multiply(columns.transpose(0, 2, 1), rules.INK, out=out[a : a + len(columns)])


def checked_windows(ohlcv: Any, spec: ImageSpec, ma: Any, at_limit: Any) -> PanelArrays:
    """Check windows that are given bar by bar; return them as a panel of their bars end to end."""
    block = _exact_floats("ohlcv", ohlcv)
    if block.ndim != 3 or block.shape[1:] != (spec.lookback, 5):
        raise ValueError(
            f"ohlcv has shape {block.shape}, expected (N, {spec.lookback}, 5): N windows of lookback="
            f"{spec.lookback} bars with open, high, low, close and volume"
        )
    n = len(block)
    up, down = _limit_flags(at_limit, n, spec)
    return PanelArrays(block.reshape(-1, 5), _NO_VALUES, up, down, _given_averages(ma, n, spec))


def _exact_floats(name: str, values: Any) -> NDArray[np.float64]:
    array = np.asarray(values)
    if array.dtype == np.float64 or array.dtype.kind in "iub":
        return np.ascontiguousarray(array, np.float64)
    if array.dtype.kind == "f":
        raise TypeError(
            f"{name} is {array.dtype}, which rounds prices off their ticks and moves pixels: give float64 "
            f"read from the source, or {name}.astype('float64') if the rounding is accepted"
        )
    raise TypeError(f"{name} is {array.dtype}, expected float64")


def _given_averages(ma: Any, n: int, spec: ImageSpec) -> NDArray[np.float64]:
    if not spec.ma:
        if ma is not None:
            raise ValueError("ma is given but the spec draws none: drop it, or use spec.replace(ma=(...))")
        return _NO_MA
    expected = (n, spec.lookback, len(spec.ma))
    if ma is None:
        raise ValueError(
            f"the spec draws moving averages {spec.ma}: give ma of shape {expected}, or spec.replace(ma=())"
        )
    array = _exact_floats("ma", ma)
    if array.shape == expected[:2] and len(spec.ma) == 1:
        array = array[:, :, None]
    if array.shape != expected:
        raise ValueError(f"ma has shape {array.shape}, expected {expected} for the averages {spec.ma}")
    return array.reshape(n * spec.lookback, len(spec.ma))


def _limit_flags(at_limit: Any, n: int, spec: ImageSpec) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if at_limit is None:
        return _NO_FLAGS, _NO_FLAGS
    array = np.asarray(at_limit)
    if array.dtype != np.bool_ or array.shape != (n, 2, spec.lookback):
        raise ValueError(
            f"at_limit is {array.dtype} {array.shape}, expected bool {(n, 2, spec.lookback)}: up-limit and "
            "down-limit flags of each bar"
        )
    return array[:, 0].reshape(-1), array[:, 1].reshape(-1)
