"""The bars and moving averages that windows draw: averaged, merged, rebuilt from returns.

The plain kernels prepare one window at a time. Other renderers keep a table: ``tabulate`` writes what a window
draws of each panel row, ``tabulate_rebuilt`` the bars of windows whose prices are their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pricepix.render.rules import CLOSE, HIGH, LOW, OPEN, VOLUME, DrawParams, jit


@jit
def moving_average(close: Any, lowest: int, window: int, step: int, partial: int, out: Any) -> None:
    """Average of every `step`-th of the last `window` closes, oldest added first, for the last rows of `close`.

    `out` holds the averages of the last ``len(out)`` rows. Rows before `lowest` do not count: an average
    that needs them is NaN, and so is one over a missing close. With `partial` (CNN-for-Trading's rolling mean
    with a minimum of one) it is the mean of the closes that exist.
    """
    terms = window // step
    shift = close.shape[0] - out.shape[0]
    for i in range(out.shape[0]):
        newest = shift + i
        total = 0.0
        found = 0
        for j in range(terms - 1, -1, -1):
            row = newest - j * step
            if row >= lowest and not (partial and np.isnan(close[row])):
                total += close[row]
                found += 1
        if found == terms or (partial and found > 0):
            out[i] = total / found
        else:
            out[i] = np.nan


@jit
def _rolling_mean_compensated(close: Any, count: int, terms: int, out: Any) -> None:
    """Mean of the last `terms` closes by adding and removing with Kahan's compensation, as pandas rolls.

    The authors' images depend on exactly this rounding. Missing closes are left out; fewer than `terms` give NaN.
    """
    total = 0.0
    lost_adding = 0.0
    lost_removing = 0.0
    found = 0
    same = 0
    previous = np.nan
    for i in range(count):
        if i >= terms and not np.isnan(close[i - terms]):
            found -= 1
            y = -close[i - terms] - lost_removing
            t = total + y
            lost_removing = t - total - y
            total = t
        value = close[i]
        if not np.isnan(value):
            found += 1
            y = value - lost_adding
            t = total + y
            lost_adding = t - total - y
            total = t
            same = same + 1 if value == previous else 1
            previous = value
        if found >= terms:
            out[i] = (previous * terms if same >= terms else total) / terms
        else:
            out[i] = np.nan


@jit
def _rebuild_from_returns(panel: Any, total_return: Any, first: int, last: int, prices: Any) -> None:
    """Rebuild the prices of rows first..last from total returns into `prices` (5, rows), scaled to 1 at row 0."""
    level = 1.0
    for i in range(last - first + 1):
        row = first + i
        close = abs(panel[row, CLOSE])
        prices[VOLUME, i] = abs(panel[row, VOLUME])
        if i == 0:
            # One division, where later rows divide and multiply: the authors do so, and it rounds differently.
            for field in range(3):
                prices[field, 0] = abs(panel[row, field]) / close
            prices[CLOSE, 0] = 1.0
            continue
        new_level = (1.0 + total_return[row]) * level
        if not np.isnan(new_level):
            level = new_level
        scale = new_level / close
        for field in range(3):
            prices[field, i] = abs(panel[row, field]) * scale
        prices[CLOSE, i] = new_level


@jit
def _merged_bar(prices: Any, start: int, k: int) -> tuple[float, float, float, float, float]:
    """Merge the bars start..start + k - 1 into one.

    Open of the first and close of the last as they are; highest high, lowest low and the sum of the volumes
    over the bars that have them.
    """
    high, low, volume = np.nan, np.nan, np.nan
    for i in range(start, start + k):
        if not np.isnan(prices[HIGH, i]) and not prices[HIGH, i] <= high:
            high = prices[HIGH, i]
        if not np.isnan(prices[LOW, i]) and not prices[LOW, i] >= low:
            low = prices[LOW, i]
        if not np.isnan(prices[VOLUME, i]):
            volume = prices[VOLUME, i] if np.isnan(volume) else volume + prices[VOLUME, i]
    return prices[OPEN, start], high, low, prices[CLOSE, start + k - 1], volume


@jit
def merge(prices: Any, count: int, k: int) -> None:
    """Merge every `k` of the first ``count * k`` bars into one, in place."""
    for d in range(count):
        open_, high, low, close, volume = _merged_bar(prices, d * k, k)
        prices[OPEN, d] = open_
        prices[HIGH, d] = high
        prices[LOW, d] = low
        prices[CLOSE, d] = close
        prices[VOLUME, d] = volume


@jit
def prepare_rebuilt(
    panel: Any, total_return: Any, first: int, last: int, windows: Any, params: DrawParams,
    scratch: Any, prices: Any, ma: Any,
) -> None:  # fmt: skip
    """Bars and averages of the window that ends at row `last`, from total returns."""
    k = params.aggregate
    start = last - params.lookback + 1
    has_history = start - params.history >= first
    begin = start - params.history if has_history else start
    _rebuild_from_returns(panel, total_return, begin, last, scratch)
    rows = last - begin + 1
    if k > 1:
        rows //= k
        merge(scratch, rows, k)
    skip = rows - params.bars
    unit = 1.0 / scratch[CLOSE, skip]
    for field in range(4):
        for i in range(rows):
            scratch[field, i] *= unit
    for n in range(windows.shape[0]):
        if has_history:
            _rolling_mean_compensated(scratch[CLOSE], rows, windows[n] // k, scratch[5])
            ma[n, :] = scratch[5, skip:rows]
        else:
            ma[n, :] = np.nan
    for field in range(5):
        prices[field, :] = scratch[field, skip:rows]


@jit
def tabulate(panel: Any, offsets: Any, given_ma: Any, windows: Any, params: DrawParams, table: Any) -> None:
    """Write what a window draws of each panel row, whatever the window: for renderers that keep it.

    ``table[:, row]`` is open, high, low and close of the drawn bar that ends at `row`, its volume if the spec
    draws any, and the moving averages; the window that ends at `row` draws every ``aggregate``-th row up to it.
    Not for rebuilt prices, which depend on the window.
    """
    k = params.aggregate
    for instrument in range(offsets.shape[0] - 1):
        first, count = offsets[instrument], offsets[instrument + 1] - offsets[instrument]
        prices = np.empty((5, count))
        averages = np.empty(count)
        for i in range(count):
            for field in range(5):
                prices[field, i] = abs(panel[first + i, field])
        for i in range(count):
            if i < k - 1:
                table[:, first + i] = np.nan
                continue
            open_, high, low, close, volume = _merged_bar(prices, i - k + 1, k)
            table[OPEN, first + i] = open_
            table[HIGH, first + i] = high
            table[LOW, first + i] = low
            table[CLOSE, first + i] = close
            if params.volume:
                table[VOLUME, first + i] = volume
        for n in range(windows.shape[0]):
            if given_ma.shape[0] > 0:
                for i in range(count):
                    averages[i] = abs(given_ma[first + i, n])
            else:
                moving_average(prices[CLOSE], 0, windows[n], k, params.partial_ma, averages)
            for i in range(count):
                table[4 + params.volume + n, first + i] = averages[i]


@jit
def tabulate_rebuilt(
    panel: Any, total_return: Any, first: Any, rows: Any, windows: Any, params: DrawParams, table: Any
) -> None:
    """Write the columns of ``tabulate``, one a drawn bar, of the windows that end at panel rows `rows`.

    ``first[i]`` is the first row of window i's instrument. Prices are rebuilt from total returns.
    """
    scratch = np.empty((6, params.lookback + params.history))
    prices = np.empty((5, params.bars))
    ma = np.empty((windows.shape[0], params.bars))
    for w in range(rows.shape[0]):
        prepare_rebuilt(panel, total_return, first[w], rows[w], windows, params, scratch, prices, ma)
        for d in range(params.bars):
            row = w * params.bars + d
            for field in range(4 + params.volume):
                table[field, row] = prices[field, d]
            for n in range(windows.shape[0]):
                table[4 + params.volume + n, row] = ma[n, d]
