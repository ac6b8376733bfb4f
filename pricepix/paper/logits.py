"""Tables VI to VIII: logits of predictions, and of returns, on characteristics and on the numbers in the image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import optional_module
from pricepix.factor.evaluation.metrics import rank
from pricepix.images.series import window_series
from pricepix.paper.context import Context
from pricepix.paper.results import CellResult, Signals
from pricepix.paper.tables import Figure

__all__ = [
    "MOST_WINDOWS",
    "Logit",
    "characteristic_figures",
    "fit_logit",
    "has_statsmodels",
    "market_data_figures",
]

Floats = NDArray[np.float64]

_SERIES: Final = ("Open", "High", "Low", "Close", "Average", "Volume")
MOST_WINDOWS: Final = 200_000
"""Windows of a logit on numbers, evenly spaced among more: those of 60 bars take 2.9 kB each."""

_SHOWN_BARS: Final = 5
"""Lags whose coefficients are printed one by one; of longer images only the fit is."""


class Logit(NamedTuple):
    """A fitted logit: coefficients after the constant, their t, and McFadden's R2 in and out of sample."""

    coefficients: Floats
    t: Floats
    r2: float
    r2_out: float
    rows: int


def fit_logit(up: NDArray[np.bool_], x: Floats, order: NDArray[np.int64]) -> Logit:
    """Fit a logit with a constant by maximum likelihood, as ``statsmodels.Logit`` does.

    Parameters
    ----------
    up : numpy.ndarray, bool (n,)
    x : numpy.ndarray, float64 (n, k)
    order : numpy.ndarray, int64 (n,)
        Time of each row. For the fit out of sample the rows of the earlier half of times are fitted, those of the later
        half judged: 1 less their log likelihood over that of the earlier half's share of rises.

    Returns
    -------
    Logit
        NaN where it cannot be fitted: one class only, columns that are collinear, or classes that are separated.
    """
    whole = _fitted(up, x)
    times = np.unique(order)
    early = order < times[len(times) // 2] if len(times) > 1 else np.zeros(len(order), bool)
    first, r2_out = _fitted(up[early], x[early]), float("nan")
    if first is not None and np.count_nonzero(~early) > 0:
        later = up[~early]
        linear = first.params[0] + x[~early] @ first.params[1:]
        model = float(-np.logaddexp(0.0, np.where(later, -linear, linear)).sum())
        share = float(up[early].mean())
        rises = int(np.count_nonzero(later))
        guess = rises * float(np.log(share)) + (len(later) - rises) * float(np.log1p(-share))
        r2_out = 1.0 - model / guess
    nothing = np.full(x.shape[1], np.nan)
    if whole is None:
        return Logit(nothing, nothing, float("nan"), r2_out, len(up))
    return Logit(whole.params[1:], whole.tvalues[1:], float(whole.prsquared), r2_out, len(up))


def has_statsmodels() -> bool:
    """Whether statsmodels is installed, which the logits need."""
    return find_spec("statsmodels") is not None


def _fitted(up: NDArray[np.bool_], x: Floats) -> Any:
    """Return statsmodels' result, None where there is none."""
    sm = optional_module("statsmodels.api", "paper", "Tables VI to VIII")
    design = np.column_stack([np.ones(len(x)), x])
    if (
        len(up) < 2 * design.shape[1]
        or up.all()
        or not up.any()
        or np.linalg.matrix_rank(design) < design.shape[1]
    ):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = sm.Logit(up.astype(float), design).fit(disp=0, maxiter=35)
        except (np.linalg.LinAlgError, ValueError):
            return None
    return found if found.mle_retvals["converged"] and np.isfinite(found.bse).all() else None


def characteristic_figures(
    results: Sequence[CellResult],
    signals: Mapping[str, Signals],
    found: Mapping[str, Mapping[str, Floats]],
    differs: str,
    of_returns: bool,
) -> Iterator[Figure]:
    """Tables VI and VII: a sign on the names' characteristics, ranked at each formation.

    Parameters
    ----------
    found : mapping of cell name to mapping of characteristic to numpy.ndarray, float64 (periods, instruments)
    of_returns : bool
        Table VII: the sign of the return to the next formation, on the CNN's prediction as well. Else Table VI: the
        sign that the CNN predicts.
    """
    for result in results:
        name = result.cell.name
        shared, values = signals[name], found[name]
        score = shared.models["cnn"]
        known, up = ~np.isnan(score), score > 0.5
        if of_returns:
            known &= ~np.isnan(shared.returns)
            up, values = shared.returns > 0, {"CNN prediction": score, **values}
        design, names = _ranked(values, known)
        up, order = up[known], np.nonzero(known)[0]
        yield from _figures(name, names, fit_logit(up, design, order), differs)
        if of_returns:
            alone = fit_logit(up, design[:, :1], order)
            for row, r2 in (("R2, CNN alone", alone.r2), ("R2 out of sample, CNN alone", alone.r2_out)):
                yield Figure("", row, name, "mcfadden_r2", r2, differs=differs)


def market_data_figures(
    results: Sequence[CellResult], signals: Mapping[str, Signals], context: Context, lookup: Any, differs: str
) -> Iterator[Figure]:
    """Table VIII: predictions, and returns, on the numbers behind the image in its scale, lag by lag.

    Of the windows at formations, as the other logits.
    """
    for result in results:
        image, name = result.cell.image, result.cell.name
        decided = context.panel.calendar[signals[name].formation.decision]
        own = np.flatnonzero(np.isin(result.time, decided))
        own = own[:: max(1, -(-len(own) // MOST_WINDOWS))]
        score, time, returns = result.scores["cnn"][own], result.time[own], result.returns[own]
        series = window_series(context.panel, image, result.row[own]).astype(np.float64)
        design = np.nan_to_num(series.reshape(len(series), -1))
        varies = _independent(design)
        lags = [f"{_SERIES[k // image.bars]}, lag {image.bars - k % image.bars - 1}" for k in varies]
        returned = ~np.isnan(returns)
        for target, up, kept in (
            ("CNN prediction", score > 0.5, np.ones(len(design), bool)),
            ("Return", returns > 0, returned),
        ):
            fit = fit_logit(up[kept], design[kept][:, varies], time[kept])
            known = lookup("VIII", name, "cnn", "", "market data in image scale", "mcfadden_r2")
            known = known if target == "CNN prediction" else float("nan")
            yield Figure(target, "R2", name, "mcfadden_r2", fit.r2, known, differs)
            yield Figure(target, "R2 out of sample", name, "mcfadden_r2", fit.r2_out, differs=differs)
            yield Figure(target, "Windows", name, "count", float(fit.rows), differs=differs)
            if image.bars <= _SHOWN_BARS:
                panel = f"{target}, lag by lag"
                for label, coefficient, t in zip(lags, fit.coefficients, fit.t, strict=True):
                    yield Figure(panel, label, name, "coefficient", float(coefficient), differs=differs)
                    yield Figure(panel, label, name, "t", float(t), differs=differs)


def _independent(x: Floats) -> NDArray[np.int64]:
    """Columns that vary and are no sum of those before them, such as the average of the image's own closes."""
    if len(x) < 2:
        return np.empty(0, np.int64)
    spread = x - x.mean(axis=0)
    scale = np.sqrt((spread**2).sum(axis=0))
    varies = np.flatnonzero(scale > 1e-9)
    left = np.abs(np.diag(np.linalg.qr(spread[:, varies] / scale[varies], mode="r")))
    # Numbers are those of float32: what is left of a sum is their rounding.
    return varies[: len(left)][left > 1e-5]


def _figures(column: str, names: Sequence[str], fit: Logit, differs: str) -> Iterator[Figure]:
    for name, coefficient, t in zip(names, fit.coefficients, fit.t, strict=True):
        yield Figure("", name, column, "coefficient", float(coefficient), differs=differs)
        yield Figure("", name, column, "t", float(t), differs=differs)
    yield Figure("", "R2", column, "mcfadden_r2", fit.r2, differs=differs)
    yield Figure("", "R2 out of sample", column, "mcfadden_r2", fit.r2_out, differs=differs)
    yield Figure("", "Pairs", column, "count", float(fit.rows), differs=differs)


def _ranked(values: Mapping[str, Floats], known: NDArray[np.bool_]) -> tuple[Floats, list[str]]:
    """Ranks at each formation among the names that count, from -1/2 to 1/2; 0 where one is missing.

    Columns that do not vary are left out.
    """
    columns, names = [], []
    for name, grid in values.items():
        own = np.where(known, grid, np.nan)
        count = np.count_nonzero(~np.isnan(own), axis=1)[:, None]
        place = (rank(own) - 0.5) / np.maximum(count, 1) - 0.5
        column = np.nan_to_num(place)[known]
        if column.std() > 1e-9:
            columns.append(column)
            names.append(name)
    return np.column_stack(columns) if columns else np.empty((int(known.sum()), 0)), names
