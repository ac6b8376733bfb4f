"""What a run learns, from whatever a user calls a target: a kind, several horizons, values, or a function."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import short
from pricepix.images.rows import store_rows
from pricepix.windows.labels import NO_TIME, ReturnRule, bridged_returns
from pricepix.windows.targets import Targets, make_targets

if TYPE_CHECKING:
    from pricepix.bars.panel import Panel
    from pricepix.images.image_set import ImageSet

__all__ = ["average_uniqueness", "sample_weights", "targets_of", "trailing_volatility"]

_VOLATILITY_BARS = 20
_FEWEST_KNOWN = 0.5
_BLOCK_ROWS = 1 << 15


def targets_of(images: ImageSet, target: Any, horizons: Sequence[int], panel: Panel | None) -> Targets:
    """Make the targets of all windows.

    Parameters
    ----------
    images : ImageSet
    target : str, array_like (n,) or callable
        A kind of `make_targets`; ``scaled`` or ``barrier:K``, which need the panel; values of your own, one a
        window: whole numbers or booleans are classes from 0 on (-1: none), other numbers are learnt as numbers (NaN:
        none); or a function from the images' ``index`` to such values.
    horizons : sequence of int
        Several give a column each, and leave out windows that lack one of them.
    panel : Panel or None

    Raises
    ------
    ValueError
        If the target is unknown or needs a panel, or no window has one.
    """
    if not isinstance(target, str | None):
        if len(horizons) > 1:
            raise ValueError(
                "values of your own are one target: give one horizon, by which windows are purged"
            )
        given = target(images.index) if callable(target) else target
        # A window whose exit is not known could not be purged.
        return _own(images, given, callable(target), images.exit_time(horizons[0]) != NO_TIME)
    every = [_one(images, target, h, panel) for h in horizons]
    if len(every) == 1:
        return every[0]
    usable = np.logical_and.reduce([one.usable for one in every])
    if not usable.any():
        raise ValueError(
            f"no window has a target of kind {target!r} over all of {', '.join(map(str, horizons))} bars"
        )
    excluded = {
        f"{name}_{h}": n for h, one in zip(horizons, every, strict=True) for name, n in one.excluded.items()
    }
    values: Any = np.stack([one.values for one in every], axis=1)
    return replace(every[0], values=values, usable=usable, excluded=excluded)


def _one(images: ImageSet, target: Any, horizon: int, panel: Panel | None) -> Targets:
    # None is no target: `make_targets` says what is.
    kind, _, number = str(target).partition(":")
    returns = images.returns(horizon)
    if kind not in ("scaled", "barrier"):
        return make_targets(target, returns, images.time)
    if panel is None:
        raise ValueError(
            f"target {target!r} needs the bars before and after a window: give the store's panel"
        )
    width = _multiple(target, number) if kind == "barrier" else 1.0
    if kind == "scaled" and number:
        raise ValueError(f"target is {target!r}; give 'scaled'")
    rows = store_rows(images, panel)
    scale = trailing_volatility(panel, rows, images.attrs["label_price"]) * np.sqrt(horizon)
    known = np.isfinite(scale) & (scale > 0)
    if kind == "scaled":
        scaled = np.where(known, returns / np.where(known, scale, 1.0), np.nan).astype(np.float32)
        made = make_targets("return", scaled, images.time)
        without = int((np.isfinite(returns) & ~known).sum())
        excluded = make_targets("return", returns, images.time).excluded | {"no_volatility": without}
        return replace(made, kind=target, excluded=excluded)
    return _barrier(images, target, horizon, panel, rows, np.where(known, width * scale, np.nan))


def _multiple(target: str, number: str) -> float:
    try:
        width = float(number or "1")
    except ValueError:
        width = 0.0
    if not 0 < width < np.inf:
        raise ValueError(
            f"target is {target!r}; give 'barrier:K', K volatilities over the horizon, such as 'barrier:1'"
        )
    return width


def _barrier(
    images: ImageSet,
    target: str,
    horizon: int,
    panel: Panel,
    rows: NDArray[np.int64],
    width: NDArray[np.float64],
) -> Targets:
    """Which of two levels a holder's return reaches first, by the prices at bars: 0 the lower, 2 the upper, 1 none."""
    rule = ReturnRule.from_attributes(images.attrs)
    final = images.returns(horizon)
    unknown, infinite = np.isnan(final), np.isinf(final)
    usable = ~unknown & ~infinite & np.isfinite(width)
    touched = np.ones(len(images), np.int64)
    for h in range(1, horizon + 1):
        found = final if h == horizon else rule.returns(panel, rows, h).value
        open_yet = touched == 1
        # A bar whose return is not known touches nothing.
        touched[open_yet & (found <= -width)] = 0
        touched[open_yet & (found >= width)] = 2
    excluded = {
        "missing_return": int(unknown.sum()),
        "infinite_return": int(infinite.sum()),
        "no_volatility": int((~unknown & ~infinite & ~usable).sum()),
    }
    if not usable.any():
        raise ValueError(f"no window has a target of kind {target!r} ({excluded})")
    return Targets(target, 3, touched, usable, excluded)


def trailing_volatility(
    panel: Panel, rows: NDArray[np.int64], price: str = "close", bars: int = _VOLATILITY_BARS
) -> NDArray[np.float64]:
    """Standard deviation of the returns of the bars up to each row, known when that bar is.

    Parameters
    ----------
    panel : Panel
    rows : numpy.ndarray, int64 (n,)
        Panel row of each window's last bar.
    price : {"close", "total_return"}
        What returns are of.
    bars : int

    Returns
    -------
    numpy.ndarray
        float64 (n,), a bar; NaN where fewer than half of the returns are known.
    """
    found = np.full(len(rows), np.nan)
    first = panel.offsets[np.searchsorted(panel.offsets, rows, side="right") - 1]
    bridged = bridged_returns(panel) if price == "total_return" else None
    reach = np.arange(-bars, 1)
    # Window by window: sums over the whole panel would be rounded by what comes later.
    for a in range(0, len(rows), _BLOCK_ROWS):
        own, begin = rows[a : a + _BLOCK_ROWS, None] + reach, first[a : a + _BLOCK_ROWS, None]
        inside = own >= begin
        with np.errstate(invalid="ignore", divide="ignore"):
            if bridged is None:
                close = np.where(inside, panel.bars[np.maximum(own, 0), 3], np.nan)
                moves = close[:, 1:] / close[:, :-1] - 1
            else:
                moves = np.where(inside[:, :-1], bridged[np.maximum(own[:, 1:], 0)], np.nan)
        known = np.isfinite(moves)
        count = known.sum(axis=1)
        mean = np.where(known, moves, 0).sum(axis=1) / np.maximum(count, 1)
        square = (np.where(known, moves - mean[:, None], 0) ** 2).sum(axis=1)
        enough = count >= max(2, _FEWEST_KNOWN * bars)
        found[a : a + _BLOCK_ROWS] = np.where(enough, np.sqrt(square / np.maximum(count - 1, 1)), np.nan)
    return found


def _own(images: ImageSet, values: Any, by_function: bool, ends: NDArray[np.bool_]) -> Targets:
    """Targets that a user gives: classes or numbers, one a window; none where it is not known when a label ends."""
    found = np.asarray(values)
    by = "the target function gives" if by_function else "target is"
    if found.shape != (len(images),) or found.dtype.kind not in "biuf":
        raise ValueError(f"{by} {found.dtype} {found.shape}; give a number a window, ({len(images)},)")
    digest = hashlib.blake2b(np.ascontiguousarray(found).tobytes(), digest_size=8).hexdigest()
    if found.dtype.kind == "f":
        usable = np.isfinite(found)
        excluded = {
            "missing_target": int(np.isnan(found).sum()),
            "infinite_target": int(np.isinf(found).sum()),
        }
        targets = Targets(f"own:{digest}", 1, np.where(usable, found, 0).astype(np.float32), usable, excluded)
    else:
        classes = found.astype(np.int64)
        usable = classes != -1
        excluded = {"missing_target": int((~usable).sum())}
        present = np.unique(classes[usable])
        if len(present) < 2 or present[0] < 0 or len(present) != present[-1] + 1:
            raise ValueError(
                f"{by} of the classes {short(present.tolist())}: give two or more, counted from 0 without a gap, and "
                "-1 for none; give floats to learn numbers"
            )
        targets = Targets(f"own:{digest}", len(present), np.where(usable, classes, 0), usable, excluded)
    excluded["no_exit"] = int((usable & ~ends).sum())
    usable &= ends
    if not usable.any():
        raise ValueError(f"{by} missing for every window")
    return targets


def sample_weights(
    weights: Any, index: NDArray[np.int64], images: ImageSet, exit_time: NDArray[np.int64]
) -> NDArray[np.float32] | None:
    """Weights of the samples of one part of a split, float32 (n of all windows,), of mean 1 over the part.

    Parameters
    ----------
    weights : None, "uniqueness", "date" or array_like (n,)
        ``uniqueness``: the average uniqueness of its label among those of its instrument in the part. ``date``: all
        dates weigh the same. Or your own, one a window, 0 or above.
    index : numpy.ndarray, int64
        The part's windows.
    images : ImageSet
    exit_time : numpy.ndarray, int64 (n,)

    Raises
    ------
    ValueError
        If weights of your own are of another length, negative, not finite, or all 0.
    """
    if weights is None or not len(index):
        return None
    if isinstance(weights, str):
        if weights == "uniqueness":
            own = average_uniqueness(images.time[index], exit_time[index], images.instrument_index[index])
        elif weights == "date":
            _, place, count = np.unique(images.time[index], return_inverse=True, return_counts=True)
            own = 1.0 / count[place]
        else:
            raise ValueError(f"weights={weights!r}: give 'uniqueness', 'date', or a number a window")
    else:
        given = np.asarray(weights)
        if given.shape != (len(images),) or given.dtype.kind not in "biuf":
            raise ValueError(
                f"weights is {given.dtype} {given.shape}; give a number a window, ({len(images)},)"
            )
        own = given[index].astype(np.float64)
        if not np.isfinite(own).all() or (own < 0).any() or not own.any():
            raise ValueError(
                "weights must be finite, 0 or above, and not all 0, for every window with a target"
            )
    full = np.zeros(len(images), np.float32)
    full[index] = own / own.mean()
    return full


def average_uniqueness(
    entry: NDArray[np.int64], exit_time: NDArray[np.int64], group: NDArray[Any]
) -> NDArray[np.float64]:
    """Mean over a label's bars of one over how many labels of its group run at that bar.

    A label runs from after its entry until its exit. Bars are the times at which any label of the group begins or
    ends. After Lopez de Prado, "Advances in Financial Machine Learning" (2018), section 4.4.

    Parameters
    ----------
    entry, exit_time : numpy.ndarray, int64 (n,)
    group : numpy.ndarray (n,)
        Such as the instrument.

    Returns
    -------
    numpy.ndarray
        float64 (n,), above 0 and at most 1; 1 for a label of no length.
    """
    found = np.ones(len(entry))
    order = np.argsort(group, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        times = np.unique(np.concatenate([entry[own], exit_time[own]]))
        a, b = np.searchsorted(times, entry[own]), np.searchsorted(times, exit_time[own])
        steps = np.bincount(a, minlength=len(times)) - np.bincount(b, minlength=len(times))
        running = np.cumsum(steps)
        share = np.concatenate([[0.0], np.cumsum(1.0 / np.maximum(running, 1))])
        length = b - a
        found[own] = np.where(length > 0, (share[b] - share[a]) / np.maximum(length, 1), 1.0)
    return found
