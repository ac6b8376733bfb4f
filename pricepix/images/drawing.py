"""Drawing the windows of a panel: all at once, or batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import of_kind
from pricepix.bars.panel import Panel
from pricepix.render import fast, rules
from pricepix.render.draw import draw_params, fast_job, panel_arrays, render_rows, run_plain
from pricepix.render.memory import memory_for
from pricepix.render.reasons import REASONS
from pricepix.render.rules import WindowRows
from pricepix.spec import ImageSpec
from pricepix.windows.index import WindowIndex

# Most memory that a renderer takes for a copy of the panel with averages: 89 million bars.
TABLE_BYTES = 4 << 30


def render_panel(
    panel: Panel,
    windows: WindowIndex,
    spec: ImageSpec | str | Mapping[str, Any] | None = None,
    out: NDArray[np.uint8] | None = None,
    bits: bool = False,
    threads: int | None = None,
) -> NDArray[np.uint8]:
    """Draw the windows of an index, in its order.

    Parameters
    ----------
    panel : Panel
        The bars that the index was made from.
    windows : WindowIndex
        Which windows to draw. Part of an index (``windows[a:b]``) draws that part.
    spec : ImageSpec, str or dict, optional
        What to draw; the index's own spec by default. Another one must leave every window drawable.
    out : numpy.ndarray, optional
        Where to write: uint8, C-contiguous, of the result's shape. Allocated when not given, and then so that
        images begin where cache lines do; one that does not is written several times slower.
    bits : bool
        Return one bit a pixel, columns first, most significant bit first, instead of one byte.
    threads : int, optional
        Threads to draw with; all that Numba may use by default. ``1`` draws in the calling thread without the
        interpreter's lock, which is what worker threads and dask tasks want.

    Returns
    -------
    numpy.ndarray
        uint8 (n, height, width) of 0 and 255, or with `bits` uint8 (n, ceil(height * width / 8)).

    Raises
    ------
    ValueError
        If index, panel, spec and `out` do not belong together.
    """
    of_kind(panel, "panel", Panel, "a Panel: read one with Panel.from_table")
    of_kind(
        windows, "windows", WindowIndex, "a WindowIndex: make one with WindowIndex.from_panel(panel, spec)"
    )
    spec = windows.spec if spec is None else ImageSpec.of(spec)
    n = len(windows)
    shape = (n, spec.packed_bytes) if bits else (n, *spec.shape)
    if out is None:
        out = memory_for(shape)
    elif (
        of_kind(out, "out", np.ndarray, f"a uint8 array of shape {shape}").shape != shape
        or out.dtype != np.uint8
        or not out.flags.c_contiguous
    ):
        layout = "C-contiguous" if out.flags.c_contiguous else "not C-contiguous"
        raise ValueError(
            f"out is {out.dtype} {out.shape}, {layout}; expected a C-contiguous uint8 array of shape {shape}"
        )
    reason = np.empty(n, np.uint8)
    render_rows(panel, windows.row, spec, out, bits=bits, reason=reason, threads=threads)
    if reason.any():
        bad = int(np.flatnonzero(reason)[0])
        raise ValueError(
            f"{np.count_nonzero(reason)} of {n} windows cannot be drawn with this spec (first: window {bad}, "
            f"{REASONS[int(reason[bad])]}): make the index with WindowIndex.from_panel(panel, spec) of the "
            "same panel and spec"
        )
    return out


class BatchRenderer:
    """Draws windows of an index again and again, a batch at a time and one thread a call.

    What does not depend on the batch is found once, and the rest is compiled: of a batch of 256 images, finding
    their rows one by one in numpy would be a third of the time.

    Parameters
    ----------
    windows : WindowIndex
    table : numpy.ndarray, float64 (panel rows, 6), optional
        The `table` of a renderer of the same windows, in this process or another.

    Attributes
    ----------
    table : numpy.ndarray or None
        Bars and moving averages side by side, 48 bytes a bar, where drawing from them is faster: windows from
        anywhere in the panel, most of it used, one average.
    """

    def __init__(self, windows: WindowIndex, table: NDArray[np.float64] | None = None) -> None:
        panel, spec = windows.panel, windows.spec
        self._offsets, self._spec = panel.offsets, spec
        self._row, self._instrument = windows.row.view(), windows.instrument.view()
        # As they are where another process shares them: compiled code tells the two kinds of arrays apart.
        self._row.flags.writeable = self._instrument.flags.writeable = False
        self._arrays = panel_arrays(panel, spec)
        self._job = fast_job(self._arrays, spec)
        if table is None and self._job is not None and spec.ma and _should_interleave(windows):
            table = np.empty((len(panel.bars), fast.INTERLEAVED_COLUMNS))
            fast.interleave_averages(
                panel.bars, panel.offsets, spec.ma[0], draw_params(spec).partial_ma, table
            )
            table.flags.writeable = False
        self.table = table
        if table is not None:
            self._job = fast_job(self._arrays._replace(bars=table, averages=None), spec)

    def draw(self, which: NDArray[np.int64], out: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """Draw the windows at positions `which`, in any order, into `out`; return reasons, None if all are drawn.

        `out` is C-contiguous uint8 (n, height, width). Nothing is checked.
        """
        reason = np.empty(len(which), np.uint8)
        if self._job is not None:
            stores = fast.plain_stores(out)
            undrawn: Any = fast.render_selected(
                self._job,
                self._row,
                self._instrument,
                self._offsets,
                which,
                out.reshape(-1),
                stores,
                reason,
            )
            if undrawn == 0:
                return None
            left = np.flatnonzero(reason == fast.DEFERRED)
        else:
            left = np.arange(len(which))
        if len(left):
            row = self._row[which[left]]
            order = np.argsort(row)
            first = self._offsets[self._instrument[which[left]]]
            rows = WindowRows(first[order], row[order], left[order])
            run_plain(self._arrays, self._spec, rows, out, rules.PIXELS, reason, 1)
        return reason if reason.any() else None


def _should_interleave(windows: WindowIndex) -> bool:
    """Whether windows, such as those of every week, use most of a panel that is not too large to be kept twice."""
    rows = len(windows.panel.bars)
    return rows <= 8 * len(windows) and rows * fast.INTERLEAVED_COLUMNS * 8 <= TABLE_BYTES
