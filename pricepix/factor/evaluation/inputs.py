"""What an evaluation reads: a cache's values on a panel's bars, and columns to compare them with."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.factor.cache import FactorCache
from pricepix.factor.calendar import list_times
from pricepix.factor.evaluation.market import Market
from pricepix.images.image_set import ImageSet
from pricepix.windows.labels import NO_TIME

__all__ = ["column_values", "one_or_several", "panel_of", "read_factor"]


def panel_of(source: Any) -> Panel:
    """Return the panel of panel images, a panel as it is, or one of anything ``Panel.from_table`` takes."""
    if isinstance(source, ImageSet):
        if source.panel is None:
            raise ValueError(
                f"{source.kind} {source.location} has images and no bars: give the panel that it was made from"
            )
        return source.panel
    return Panel.of(source)


def one_or_several(name: str, given: Any) -> tuple[Any, ...]:
    """Return an argument that is one value or a sequence as a tuple."""
    # An array without axes has __iter__, too; one of lists of several lengths has no number of axes.
    several = isinstance(given, list | tuple)
    if isinstance(given, str) or (not several and np.ndim(given) == 0 and hasattr(given, "__float__")):
        return (given,)
    try:
        return tuple(given)
    except TypeError:
        raise TypeError(
            f"{name}={given!r} is a {type(given).__name__}: give one value or a sequence"
        ) from None


def read_factor(
    cache: FactorCache, panel: Panel, start: Any = None, end: Any = None
) -> tuple[NDArray[np.int64], NDArray[np.str_], NDArray[np.float32]]:
    """Read a cache, checked to belong to a panel.

    Returns
    -------
    time : numpy.ndarray, int64 (dates,)
        Bars from `start` to `end` at which any value is known.
    instruments : numpy.ndarray of str (instruments,)
        Those with any value.
    values : numpy.ndarray, float32 (dates, instruments)
    """
    if cache.tz != panel.tz:
        raise ValueError(
            f"cache {cache.location} has times of zone {cache.tz}, the panel of {panel.tz}: give the panel that the "
            "images were made from"
        )
    first = None if start is None else panel.as_time(start)
    last = None if end is None else panel.as_time(end, end=True)
    time, values = cache.matrix(first=first, last=last)
    if len(time) == 0:
        if first is None and last is None:
            raise ValueError(
                f"cache {cache.location} has no values: score images for which the model gives some"
            )
        covered = np.sort(cache.time[cache.time != NO_TIME])
        raise ValueError(
            f"no date of the factor lies from start={start!r} to end={end!r}: the days of cache {cache.location} "
            f"run from {list_times(covered[:1], cache.tz)} to {list_times(covered[-1:], cache.tz)}"
        )
    # The panel need not have an instrument without any value.
    valued = ~np.isnan(values).all(axis=0)
    used = cache.instruments[valued]
    unknown_names = used[~np.isin(used, panel.instruments)]
    unknown_times = time[~np.isin(time, panel.calendar)]
    faults = []
    if len(unknown_names):
        spare_names = panel.instruments[~np.isin(panel.instruments, cache.instruments)]
        faults.append(f"instruments of the cache that the panel lacks: {_list_names(unknown_names)}")
        faults.append(f"instruments of the panel that the cache lacks: {_list_names(spare_names)}")
    if len(unknown_times):
        spare_times = panel.calendar[~np.isin(panel.calendar, cache.time)]
        faults.append(f"times of the cache that the panel lacks: {list_times(unknown_times, cache.tz)}")
        faults.append(
            f"times of the panel that the cache lacks: {list_times(spare_times, panel.tz) or 'none'}"
        )
    if faults:
        raise ValueError(
            f"cache {cache.location} and the panel do not belong together\n  " + "\n  ".join(faults) + "\n"
            "give the panel that the images were made from"
        )
    return time, used, values[:, valued]


def column_values(name: str, given: Any, market: Market) -> NDArray[np.float64]:
    """Lay a user's signal on the market's grid, float64 (bars, instruments).

    Parameters
    ----------
    name : str
        Its name, for errors.
    given : array, table or FactorCache
        A value a panel row; a table with the columns instrument, time and one more; or another factor.
    market : Market
    """
    if isinstance(given, FactorCache):
        return _values_of_cache(given, market)
    is_table = hasattr(given, "__arrow_c_stream__") or hasattr(given, "reset_index")
    if isinstance(given, pl.DataFrame) or is_table:
        given = _values_of_table(name, given, market.panel)
    column = np.asarray(given, np.float64)
    rows = len(market.panel)
    if column.shape != (rows,):
        raise ValueError(
            f"columns[{name!r}] has shape {column.shape}: give a value a panel row, ({rows},), a table with columns "
            "instrument, time and one more, or a FactorCache"
        )
    has_bar = market.row >= 0
    return np.where(has_bar, column[np.where(has_bar, market.row, 0)], np.nan)


def _values_of_cache(cache: FactorCache, market: Market) -> NDArray[np.float64]:
    time, values = cache.matrix()
    grid = np.full(market.row.shape, np.nan)
    shared_bars = np.isin(time, market.time)
    shared_names = np.flatnonzero(np.isin(cache.instruments, market.instruments))
    column_of = {str(x): j for j, x in enumerate(market.instruments)}
    column = np.array([column_of[str(x)] for x in cache.instruments[shared_names]], np.int64)
    bar = np.searchsorted(market.time, time[shared_bars])
    grid[np.ix_(bar, column)] = values[shared_bars][:, shared_names]
    return grid


def _values_of_table(name: str, given: Any, panel: Panel) -> NDArray[np.float64]:
    """Return the table's value for each row of the panel; NaN where it has none."""
    table = given if isinstance(given, pl.DataFrame) else pl.from_dataframe(given)
    extra = [c for c in table.columns if c not in ("instrument", "time")]
    if not {"instrument", "time"} <= set(table.columns) or len(extra) != 1:
        raise ValueError(
            f"columns[{name!r}] has the columns {', '.join(table.columns)}: give instrument, time and one more"
        )
    keys = panel.to_polars().select("instrument", "time")
    values = table.select(
        pl.col("instrument").cast(pl.String),
        pl.col("time").cast(keys.schema["time"]),
        pl.col(extra[0]).cast(pl.Float64),
    )
    rows = keys.join(values, on=["instrument", "time"], how="left", maintain_order="left")
    return rows[extra[0]].fill_null(float("nan")).to_numpy()


def _list_names(names: NDArray[np.str_], limit: int = 5) -> str:
    shown = ", ".join(repr(str(x)) for x in names[:limit]) or "none"
    return shown + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
