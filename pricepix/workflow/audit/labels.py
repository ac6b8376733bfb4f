"""Labels, computed once more from the panel's rows, by other code than that which made them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.images.image_set import ImageSet
from pricepix.windows.labels import NO_TIME
from pricepix.workflow.audit.redraw import count_wrong
from pricepix.workflow.audit.report import Check

__all__ = ["check_labels"]


def check_labels(store: ImageSet, panel: Panel, row: NDArray[np.int64], dates: str) -> Check:
    """Compare every label whose bars are all known with the return over just these bars.

    Parameters
    ----------
    store : ImageSet
    panel : Panel
    row : numpy.ndarray, int64 (windows,)
        Each window's panel row.
    dates : str
        The windows' time, for the table.
    """
    check = Check(
        "labels",
        dates,
        "labels across missing bars or the end of an instrument; realised labels has those",
    )
    if not store.horizons:
        check.seen, check.known = "there are no labels", False
        return check
    end = panel.offsets[np.searchsorted(panel.offsets, row, side="right")]
    compared = 0
    for h in store.horizons:
        entry, leave = row + store.delay, row + store.delay + h
        inside = leave < end
        at, to = np.where(inside, entry, 0), np.where(inside, leave, 0)
        expected, known = _returns(panel, at, to, str(store.attrs["label_price"]))
        known &= inside
        old, exits = store.returns(h), store.exit_time(h)
        # float32 of a product: about 1e-6 of the gross return.
        wrong = known & (
            ~(np.abs(old - expected) <= 1e-5 * (1 + np.abs(expected))) | (exits != panel.time[to])
        )
        compared += int(known.sum())
        if wrong.any():
            names = store.instruments[store.instrument_index]
            early = _returns(
                panel, np.maximum(at - 1, 0), np.maximum(to - 1, 0), str(store.attrs["label_price"])
            )[0]
            shifted = wrong & (np.abs(old - early) <= 1e-5 * (1 + np.abs(early)))
            hint = ": they begin a bar early" if shifted.sum() > wrong.sum() / 2 else ""
            found = count_wrong(wrong, names, store.time, panel)
            check.problems.append(
                f"{found} returns over {h} bars are not the panel's from bar {store.delay} to bar {store.delay + h} "
                f"after the window{hint}"
            )
        check.known &= bool((exits != NO_TIME).any())
    check.seen = f"{compared:,} labels are the panel's returns over their own bars"
    check.known &= compared > 0
    return check


def _returns(
    panel: Panel, at: NDArray[np.int64], to: NDArray[np.int64], price: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return from row `at` to row `to`, and whether every bar between is known."""
    close = panel.bars[:, 3]
    missing = np.isnan(close)
    with np.errstate(invalid="ignore", divide="ignore"):
        if price == "total_return":
            total = panel.fields["total_return"]
            missing = missing | np.isnan(total) | (total <= -1)
            growth = np.append(
                0.0, np.cumsum(np.where(missing, 0.0, np.log1p(np.where(missing, 0.0, total))))
            )
            value = np.expm1(growth[to + 1] - growth[at + 1])
        else:
            value = close[to] / close[at] - 1
    count = np.append(0, np.cumsum(missing))
    return value, (count[to + 1] - count[at]) == 0
