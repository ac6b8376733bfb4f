"""What an evaluation says and does not say, in words; and what it leaves out, with the reasons."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from pricepix.factor.evaluation.formatting import format_number, format_percent
from pricepix.factor.evaluation.headline import headline_cost

__all__ = ["LeftOut", "in_words", "left_out"]

_FIVE_PERCENT: Final = 0.05
_RARE: Final = 1e-4


class LeftOut(NamedTuple):
    """Something that is in no figure, or in some of them only."""

    what: str
    number: int
    of: int | None
    why: str


def in_words(figures: dict[str, Any]) -> str:
    """Return a paragraph on the headline figures: what they say, how sure that is, and what they do not say."""
    f, ic = figures, figures["ic"]["rank"]
    long_short = f["portfolios"]["equal"]["long_short"]
    sentences = [
        f"On {f['data']['dates']:,} dates from {f['data']['first'][:10]} to {f['data']['last'][:10]} the factor ranked "
        f"{f['data']['instruments']:,} instruments by their returns over the next {f['horizon']} bars with a mean rank "
        f"correlation of {format_number(ic['mean'], 4)}, {_how_sure(ic)}."
    ]
    cost = headline_cost(f)
    net = long_short if cost is None else long_short["net"][cost]
    after = "before costs" if cost is None else f"after costs of {float(cost):.2%} a side"
    earned = net["periods"]["annual_mean"]
    if math.isfinite(earned):
        verb = "earned" if earned >= 0 else "lost"
        sentences.append(
            f"Long the highest and short the lowest of {f['quantiles']} groups {verb} {format_percent(abs(earned))} a "
            f"year {after}, {_how_sure(net['periods'])}, and fell by {format_percent(-net['bars']['max_drawdown'])} at "
            f"the worst; {_on_costs(long_short)}"
        )
    sentences.append(_on_dates(f))
    if f["baselines"]:
        sentences.append(_on_baselines(f))
    sentences.append(
        "Not in these figures: the price impact of trading, what shorts cost to borrow, and how many other factors "
        "were tried before this one. Equal weights trade the smallest instruments as much as the largest."
    )
    return " ".join(sentences)


def _how_sure(summary: dict[str, Any]) -> str:
    p = summary["p_value"]
    if not math.isfinite(p):
        return "over too few independent dates to tell it from chance"
    if p < _FIVE_PERCENT:
        if p < _RARE:
            return f"which chance alone gives or exceeds less than once in {round(1 / _RARE):,} times"
        return f"which chance alone gives or exceeds once in {round(1 / p):,} times"
    return f"which chance alone gives or exceeds in {p:.0%} of cases: it cannot be told from none"


def _on_costs(long_short: dict[str, Any]) -> str:
    cost, turnover = long_short["break_even_cost"], format_percent(long_short["monthly_turnover"], 0)
    if not math.isfinite(cost):
        return f"it turns over {turnover} a month."
    if cost <= 0:
        return f"it loses before costs, too, at a turnover of {turnover} a month."
    return f"at a turnover of {turnover} a month, a cost of {format_percent(cost, 2)} a side takes all of it."


def _on_dates(figures: dict[str, Any]) -> str:
    data = figures["data"]
    if data["dates_seen"]:
        share = data["dates_seen"] / data["dates"]
        return (
            f"{share:.0%} of the dates are not out of sample: the model has seen returns through "
            f"{data['seen_through']}, so that the figures are better than they will be."
        )
    if data["seen_through"] is None:
        return "Whether the model has seen any of these dates is not known."
    return f"All dates lie behind {data['seen_through']}, the last return that the model has seen."


def _on_baselines(figures: dict[str, Any]) -> str:
    known = {
        name: abs(found["rank_correlation"]["mean"])
        for name, found in figures["baselines"].items()
        if found["values"] and math.isfinite(found["rank_correlation"]["mean"])
    }
    if not known:
        return "No simpler signal could be computed on these dates to compare it with."
    nearest = max(known, key=lambda name: known[name])
    other = figures["baselines"][nearest]
    return (
        f"Of the simpler signals {nearest} is nearest to it (mean rank correlation "
        f"{format_number(other['rank_correlation']['mean'], 2)}), with a mean rank IC of "
        f"{format_number(other['rank_ic']['mean'], 4)}."
    )


def left_out(figures: dict[str, Any]) -> list[LeftOut]:
    """Return what is in no statistic or no portfolio, with counts and reasons; nothing that is 0."""
    data, entries = figures["data"], figures["portfolios"]["equal"]["counts"]
    values, dates = data["values"], data["dates"]
    of_entries = entries.get("entries")
    rows = [
        LeftOut("values without a return", values - data["values_with_return"], values, "in no statistic: the return "
                "over the horizon is not known"),
        LeftOut("... of them: dates without any return", data["dates_without_returns"], dates, "the data end before"),
        LeftOut("... of them: deaths without a last return", data["died_without_return"], values,
                "the instrument ends within the horizon, at a value that is not known"),
        LeftOut("values of instruments without total returns", data["values_without_level"], values,
                "others have them: in no statistic and no portfolio"),
        LeftOut("values without a bar", data["values_without_bar"], values, "the panel has no row there"),
        LeftOut("dates with fewer instruments than quantiles", data["dates_with_fewer_instruments_than_quantiles"],
                dates, "they form no portfolios"),
        LeftOut("dates that are not out of sample", data["dates_seen"], dates,
                "NOT left out: the model has seen their returns"),
        *(
            LeftOut(f"entries: {name.replace('_', ' ')}", count, of_entries, _ENTRIES.get(name, ""))
            for name, count in entries.items()
            if name != "entries"
        ),
    ]  # fmt: skip
    return [row for row in rows if row.number]


_ENTRIES: Final = {
    "no_price": "no price at the entry",
    "no_cap": "no market cap, by which the portfolio weighs",
    "cannot_buy": "did not trade, or stood at its upper limit",
    "cannot_sell": "did not trade, or stood at its lower limit",
    "delayed": "entered later",
    "never_traded": "could not be entered in time",
}
