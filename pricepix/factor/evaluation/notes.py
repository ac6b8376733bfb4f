"""Sentences that qualify an evaluation: what a reader of its figures must know before believing them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from pricepix.factor.evaluation.evaluator import Evaluator

__all__ = ["evaluation_notes"]

# Published daily and monthly signals stay far below both.
_GOOD_IC: Final = 0.2
_GOOD_SHARPE: Final = 6.0


def evaluation_notes(
    evaluator: Evaluator, figures: dict[str, Any], mismatch: str | None, horizon_assumed: bool
) -> list[str]:
    """Return the sentences, in the order of their weight.

    Parameters
    ----------
    evaluator : Evaluator
    figures : dict
        With the entries ``data``, ``ic`` and ``portfolios``.
    mismatch : str or None
        How the panel differs from the one that was scored.
    horizon_assumed : bool
        Whether neither the caller nor the cache named the horizon.
    """
    notes = [] if mismatch is None else [mismatch]
    notes += _too_good(figures)
    notes += _training(evaluator, figures["data"])
    if horizon_assumed:
        notes.append(
            f"the horizon of {figures['horizon']} bars is assumed: neither horizon= nor the cache names one"
        )
    notes += _few_dates(figures)
    notes += _returns(evaluator, figures["data"])
    notes += _breaks(figures["data"])
    notes += _deaths(evaluator, figures)
    notes += _calendar(figures)
    notes += _holes(figures["data"])
    unapplied = evaluator.market.panel.report.counts.get("unapplied_factor", 0)
    if unapplied and "adjustment factor" not in (mismatch or ""):
        means = (
            "prices, and images of them, jump at splits; returns here are total returns, which need no factor"
            if evaluator.market.price == "total_return"
            else "prices jump where a split has none"
        )
        notes.append(
            f"{unapplied:,} rows of the panel have an adjustment factor that was not applied (adjust=None): {means}"
        )
    return notes


def _training(evaluator: Evaluator, data: dict[str, Any]) -> Iterator[str]:
    """Say which dates are not out of sample, or that it is not known."""
    training = evaluator.training
    if training.through is None:
        yield (
            "nothing is known of this model's training: a function, or a checkpoint without a record; whether any "
            "date is out of sample cannot be told"
        )
    if not data["dates_seen"]:
        return
    later = data["first_date_unseen"]
    remedy = "No date is: score later images" if later is None else f"Evaluate it with start={later!r}"
    more = (
        ""
        if training.whole
        else "; its checkpoint does not record what it validated on, which may reach further"
    )
    yield (
        f"{data['dates_seen']:,} of the {data['dates']:,} dates are not out of sample: the model has seen returns "
        f"through {data['seen_through']}, in training or validation{more}. {remedy}"
    )


def _few_dates(figures: dict[str, Any]) -> Iterator[str]:
    rank = figures["ic"]["rank"]
    long_short = figures["portfolios"]["equal"]["long_short"]["periods"]
    if rank["dates"] and not rank["dof"]:
        yield (
            f"the {rank['dates']:,} dates with returns span fewer than ten horizons of {figures['horizon']} bars: "
            "too few independent dates for a t or a p-value"
        )
    if long_short["periods"] and not long_short["dof"]:
        yield (
            f"the {long_short['periods']:,} holding periods span fewer than ten horizons: too few for a Sharpe ratio, "
            "a t or a p-value"
        )


def _returns(evaluator: Evaluator, data: dict[str, Any]) -> Iterator[str]:
    if values := data["values_without_level"]:
        unknown = data["instruments_without_level"]
        share = f"{values / data['values']:.1%} of the factor's values"
        if unknown:
            which = f"{unknown:,} of the {data['instruments']:,} instruments ({share}) have no total return"
        else:
            which = f"{share} come before their instrument's first total return"
        yield f"{which}: they are in no statistic and no portfolio. Bring total returns, or use price='close'"
    if bridged := data["returns_bridged_by_price"]:
        are = "total return is" if bridged == 1 else "total returns are"
        yield (
            f"{bridged:,} {are} missing beside a known price: portfolios take the price's own change there, without "
            "dividends"
        )


def _calendar(figures: dict[str, Any]) -> Iterator[str]:
    if thin := figures["data"]["thin_bars"]:
        yield (
            f"fewer of a period's instruments than period_end_share have a bar at {thin:,} of the panel's bars "
            "(thin_bars): no week, month or quarter ends there"
        )


def _breaks(data: dict[str, Any]) -> Iterator[str]:
    if breaks := data["returns_not_bridged"]:
        yield (
            f"{breaks:,} total returns are missing beside a price of another adjustment factor than the last one: "
            "returns across them are not known, and portfolios take 0% there"
        )


def _holes(data: dict[str, Any]) -> Iterator[str]:
    if longer := data["returns_longer_than_horizon"]:
        known = data["values_with_return"]
        yield (
            f"{longer:,} of the {known:,} returns ({longer / known:.1%}) span more bars of the market than the "
            "horizon, since rows of their instruments are absent: statistics (IC, sorts, decay, classification) "
            "count an instrument's own bars, portfolios those of the market"
        )


def _deaths(evaluator: Evaluator, figures: dict[str, Any]) -> Iterator[str]:
    data, held = figures["data"], figures["portfolios"]["equal"]["died_while_held"]
    if data["died_within_horizon"]:
        share = data["died_within_horizon"] / data["values"]
        if evaluator.market.delisting == "hold":
            treated = "their returns run to the last level and stay in cash (delisting='hold')"
        else:
            treated = (
                "their returns are missing, so that the statistics do not see the loss (delisting='missing')"
            )
        yield (
            f"{data['died_within_horizon']:,} of the factor's values ({share:.2%}) are of instruments whose rows end "
            f"within the horizon: {treated}"
        )
    if evaluator.market.delisting == "hold" and (unknown := data["died_without_return"]):
        yield (
            f"of {unknown:,} of these the return at the end is not known: they have none. Bring delisting returns in "
            "total_return"
        )
    if held["count"]:
        mean = f"with a mean return of {held['mean_return']:.1%} to the last level"
        if figures["convention"] == "paper":
            yield (
                f"{held['count']:,} of the entries ({held['share']:.2%}), {mean}, died before the next period's end: "
                "convention='paper' drops them before they are bought"
            )
        else:
            yield f"{held['count']:,} of the entries ({held['share']:.2%}) died while held, {mean}"


def _too_good(figures: dict[str, Any]) -> Iterator[str]:
    ic = figures["ic"]["rank"]["mean"]
    sharpe = figures["portfolios"]["equal"]["long_short"]["periods"]["sharpe"]
    found = []
    if np.isfinite(ic) and abs(ic) > _GOOD_IC:
        found.append(f"a mean rank IC of {ic:.2f}")
    if np.isfinite(sharpe) and abs(sharpe) > _GOOD_SHARPE:
        found.append(f"a Sharpe ratio of {sharpe:.1f}")
    if found:
        yield (
            f"{' and '.join(found)}: on real data this is too good; look for a leak, such as labels or fields that "
            "know later bars"
        )
