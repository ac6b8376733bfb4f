"""The bars behind the images: a stretch of an instrument's history around one window."""

from __future__ import annotations

import functools
import os
import threading
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.market_cache import MarketCache
from pricepix.bars.panel import Panel
from pricepix.bars.times import DAY_NS
from pricepix.render.draw import render_rows
from pricepix.render.reasons import REASONS
from pricepix.spec import ImageSpec

__all__ = ["History", "Stretch"]

_MARKET_DAYS: Final = 128
"""Days of a market cache that are read at once for one stock."""
_KEPT: Final = 32


class Stretch:
    """Bars of one instrument around the last bar of a window.

    Attributes
    ----------
    panel : Panel
        Holds them.
    row : int
        The window's last bar in it.
    rows : slice
        All rows of the instrument.
    """

    def __init__(self, panel: Panel, row: int, rows: slice) -> None:
        self.panel, self.row, self.rows = panel, row, rows

    def draw(self, spec: ImageSpec) -> NDArray[np.uint8]:
        """Draw the window by a spec, uint8 (height, width).

        Raises
        ------
        ValueError
            If it cannot be drawn: too short a history, missing prices.
        """
        if self.row - self.rows.start < spec.lookback - 1:
            have = self.row - self.rows.start + 1
            raise ValueError(f"the bars begin {have:,} bars back, lookback={spec.lookback} needs more")
        image, reason = np.zeros((1, *spec.shape), np.uint8), np.zeros(1, np.uint8)
        render_rows(self.panel, np.array([self.row]), spec, image, reason=reason, threads=1)
        if reason[0]:
            raise ValueError(f"these bars give no image: {REASONS[int(reason[0])].replace('_', ' ')}")
        return image[0]

    def average(self, window: int, first: int, last: int) -> NDArray[np.float64]:
        """Moving average of the close at rows `first` until before `last`; NaN where it has a gap or no history."""
        begin = max(self.rows.start, first - window + 1)
        close = np.abs(self.panel.bars[begin:last, 3])
        out = np.full(last - first, np.nan)
        if len(close) >= window:
            means = np.lib.stride_tricks.sliding_window_view(close, window).mean(axis=1)
            out[len(out) - len(means) :] = means
        return out

    def alone(self) -> Panel:
        """Return the instrument's bars up to the window's last one as a panel, for whoever draws them changed."""
        own = slice(self.rows.start, self.row + 1)
        # Where a window may end was decided when the images were made.
        fields = {
            name: values[own].copy() for name, values in self.panel.fields.items() if name != "eligible"
        }
        bars, time = self.panel.bars[own].copy(), self.panel.time[own].copy()
        return Panel(bars, np.array([0, len(time)]), np.array(["window"]), time, self.panel.tz, fields)


class History:
    """Where bars come from: a panel, or a market cache of which an instrument is read when it is looked at.

    Parameters
    ----------
    source : Panel or MarketCache
    """

    def __init__(self, source: Panel | MarketCache) -> None:
        self.panel = source if isinstance(source, Panel) else None
        self.cache = source if isinstance(source, MarketCache) else None
        self._lock = threading.Lock()
        self._read = functools.lru_cache(_KEPT)(self._read_days)

    @classmethod
    def of(cls, source: Any) -> History:
        """Return the history of a panel, a market cache or its folder, or anything ``Panel.from_table`` takes."""
        from pricepix.workflow.estimate import is_market_cache

        if isinstance(source, str | os.PathLike) and is_market_cache(source):
            source = MarketCache(source)
        return cls(source if isinstance(source, MarketCache) else Panel.of(source))

    @property
    def tz(self) -> str | None:
        """Time zone of the bars."""
        if self.panel is not None:
            return self.panel.tz
        assert self.cache is not None
        return self.cache.session.tz

    def stretch(self, instrument: str, ns: int) -> Stretch:
        """Return the bars around the bar of an instrument at a time.

        Raises
        ------
        LookupError
            If there is no such instrument or bar.
        """
        panel = self.panel
        if panel is None:
            assert self.cache is not None
            if instrument not in self._stocks:
                raise LookupError(f"the bars have no instrument {instrument!r}")
            day = int(np.searchsorted(self._days, ns, side="right")) - 1
            with self._lock:
                panel = self._read(instrument, max(day, 0) // _MARKET_DAYS)
        rows = panel.rows_of(instrument)
        row = rows.start + int(np.searchsorted(panel.time[rows], ns))
        if row >= rows.stop or int(panel.time[row]) != ns:
            raise LookupError(f"the bars have none of {instrument!r} at {panel.stamp(ns)}")
        return Stretch(panel, row, rows)

    @functools.cached_property
    def _stocks(self) -> set[str]:
        assert self.cache is not None
        return {str(name) for name in self.cache.instruments}

    @functools.cached_property
    def _days(self) -> NDArray[np.int64]:
        assert self.cache is not None
        # In UTC a day of a market may begin on the day before.
        return self.cache.days.astype("datetime64[ns]").astype(np.int64) - DAY_NS // 2

    def _read_days(self, instrument: str, block: int) -> Panel:
        """Read a stock's bars of a block of days, and of as many before and after."""
        assert self.cache is not None
        first, last = (block - 1) * _MARKET_DAYS, (block + 2) * _MARKET_DAYS
        days = slice(max(first, 0), min(last, len(self.cache.days)))
        factor = "ADJ_FACTOR" in self.cache.files
        return self.cache.panel(days, instrument, adjust=factor, filtered=False, on_bad="keep")
