"""Where a replication's data and definitions are not the paper's, by letter."""

from __future__ import annotations

from collections.abc import Iterable

from pricepix.bars.times import format_time
from pricepix.factor.evaluation.market import Market
from pricepix.factor.evaluation.universe import Universe
from pricepix.paper.context import Context
from pricepix.train.hyper import HYPER

__all__ = ["differences"]


def differences(
    context: Context, market: Market, split: str, first: int, last: int, seeds: int, universe: Universe
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the differences by letter, and the letters that hold for models, for baselines, and for both.

    Parameters
    ----------
    first, last : int
        The first and the last time that is tested, int64 nanoseconds.
    """
    panel, training = context.panel, context.training
    begin, end = (format_time(int(t), panel.tz)[:10] for t in (panel.calendar[0], panel.calendar[-1]))
    tested = " to ".join(format_time(t, panel.tz)[:10] for t in (first, min(last, int(panel.calendar[-1]))))
    shared = [
        f"bars: {panel.n_instruments:,} instruments, {begin} to {end}, tested from {tested}; the paper has all "
        "stocks of CRSP, 1993 to 2019, tested from 2001"
    ]
    if market.price == "close":
        shared.append(
            "returns: from prices, without dividends and returns of delistings; the paper has total returns"
        )
    if not universe.is_everything:
        shared.append(f"universe: {universe}; the paper's holds all stocks")
    models = []
    if split != "paper":
        models.append(f"split: {split}; the paper validates on a random 30% of the training years")
    if seeds != 5:
        models.append(f"seeds: {seeds}; the paper averages 5 networks")
    if training.settings != HYPER["paper"]:
        changed = [
            f"{name}={value!r}" for name, value in training.settings.to_dict().items()
            if value != HYPER["paper"].to_dict()[name]
        ]  # fmt: skip
        models.append(f"training: {', '.join(changed)} in place of the paper's")
    if training.channels != 1 or training.networks:
        models.append(f"networks: not the paper's, {training.channels:g} of its channels")
    if training.every == "bar":
        models.append("windows: of every bar train, with labels that overlap")
    if training.rebuild is None:
        models.append("images: of prices as they are; the paper rebuilds them from total returns")
    if training.delay:
        models.append(f"entry: {training.delay} bars after the image; the paper enters at its last close")
    signals = [
        "signals: STR and WSTR are minus the returns of 1/12 and 1/52 of a year's bars, MOM is the return from 12 "
        "months to 1 month ago, TREND that of Han, Zhou and Zhu (2016); formed of every name with a bar"
    ]
    by_letter = _lettered([*shared, *models, *signals])
    of = {text: letter for letter, text in by_letter.items()}
    letters = {
        "model": "".join(of[text] for text in [*shared, *models]),
        "baseline": "".join(of[text] for text in [*shared, *signals]),
        "both": "".join(of[text] for text in [*shared, *models, *signals]),
    }
    return by_letter, letters


def _lettered(texts: Iterable[str]) -> dict[str, str]:
    return {chr(ord("a") + k): text for k, text in enumerate(texts)}
