"""Portfolios: tiny cases by hand, and agreement with pandas, alphalens and empyrical."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricepix.factor.calendar import day_and_interval, interval_names
from pricepix.factor.evaluation.holding import Tradable, simulate_holding
from pricepix.factor.evaluation.metrics import information_coefficient
from pricepix.factor.evaluation.portfolio import (
    drawdown,
    performance,
    quantile_membership_change,
    quantile_returns,
    quantiles,
    turnover,
)
from pricepix.factor.evaluation.rebalancing import bars_per_year, rebalances, rebalances_per_year

DAY = 86_400_000_000_000


def days(first: str, last: str, *, weekends: bool = False) -> np.ndarray:
    all_days = np.arange(np.datetime64(first), np.datetime64(last))
    kept = all_days if weekends else all_days[np.is_busday(all_days)]
    return kept.astype("datetime64[ns]").astype(np.int64)


# ------------------------------------------------------------------------------------------ quantiles


def test_ties_stay_together_on_the_lower_side():
    factor = np.array([[1.0, 2.0, 2.0, 2.0, 3.0, np.nan]])
    assert quantiles(factor, 2).tolist() == [[1, 1, 1, 1, 2, 0]]
    assert quantiles(np.full((1, 6), 0.5), 3).tolist() == [[1, 1, 1, 1, 1, 1]]


def test_dates_with_too_few_names_have_no_quantiles():
    assert quantiles([[1.0, 2.0, np.nan], [1.0, 2.0, 3.0]], 3).tolist() == [[0, 0, 0], [1, 2, 3]]
    with pytest.raises(ValueError, match="quantiles=1: give a whole number from 2 to 100"):
        quantiles([[1.0, 2.0]], 1)


@given(n=st.integers(2, 12), names=st.integers(2, 60), seed=st.integers(0, 10**6))
def test_quantiles_are_of_nearly_equal_size_and_ordered(n, names, seed):
    values = np.random.default_rng(seed).permutation(names).astype(float)[None]
    group = quantiles(values, n)[0]
    if names < n:
        assert (group == 0).all()
        return
    sizes = np.bincount(group, minlength=n + 1)[1:]
    assert sizes.max() - sizes.min() <= 1
    assert (np.diff(group[np.argsort(values[0])]) >= 0).all()


def test_quantiles_equal_pandas_qcut():
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(2)
    for n in (2, 3, 5, 10):
        for names in range(n, 60):
            values = rng.normal(size=names)
            reference = pd.qcut(pd.Series(values), n, labels=False).to_numpy() + 1
            assert quantiles(values[None], n)[0].tolist() == reference.tolist()


# ----------------------------------------------------------------------------------- agreement: alphalens


@pytest.fixture(scope="module")
def alphalens_case():
    """A daily market without gaps, its factor, and what alphalens makes of them."""
    pd = pytest.importorskip("pandas")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        performance_module = pytest.importorskip("alphalens.performance")
        utils = pytest.importorskip("alphalens.utils")
    rng = np.random.default_rng(17)
    dates = pd.bdate_range("2021-01-04", periods=80)
    names = [f"N{i:02d}" for i in range(23)]
    prices = pd.DataFrame(100 * np.exp(np.cumsum(rng.normal(0, 0.02, (80, 23)), axis=0)), dates, names)
    factor = pd.DataFrame(rng.random((80, 23)), dates, names)
    factor = factor.mask(rng.random(factor.shape) < 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = utils.get_clean_factor_and_forward_returns(
            factor.stack().rename_axis(["date", "asset"]), prices, quantiles=5, periods=(1, 5), max_loss=0.9
        )
    # alphalens sorts the names that have every forward return: so must the factor given to us.
    used = table["factor"].unstack().reindex(index=dates[:75], columns=names)
    return performance_module, table, used.to_numpy(), prices.to_numpy()


def test_rank_ic_equals_alphalens(alphalens_case):
    reference, table, factor, prices = alphalens_case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference.factor_information_coefficient(table)
    for h, column in ((1, "1D"), (5, "5D")):
        forward = (prices[h:] / prices[:-h] - 1)[:75]
        found = information_coefficient(factor, forward)
        assert np.abs(found - expected[column].to_numpy()).max() < 1e-9
        assert found.mean() == pytest.approx(expected[column].mean(), abs=1e-9)


def test_quantile_returns_equal_alphalens(alphalens_case):
    reference, table, factor, prices = alphalens_case
    group = quantiles(factor, 5)
    for h, column in ((1, "1D"), (5, "5D")):
        forward = (prices[h:] / prices[:-h] - 1)[:75]
        found = quantile_returns(group, forward, 5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            by_date = reference.mean_return_by_quantile(table, by_date=True, demeaned=False)[0]
            overall = reference.mean_return_by_quantile(table, demeaned=False)[0]
        expected = by_date[column].unstack(0).to_numpy()
        assert np.abs(found - expected).max() < 1e-9
        assert np.abs(found.mean(axis=0) - overall[column].to_numpy()).max() < 1e-9


def test_membership_turnover_equals_alphalens(alphalens_case):
    reference, table, factor, _ = alphalens_case
    group = quantiles(factor, 5)
    for quantile in range(1, 6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = reference.quantile_turnover(table["factor_quantile"], quantile).to_numpy(float)
        found = quantile_membership_change(group, quantile)
        # alphalens marks the first date, which has no date before, as 1 or leaves it out, by version.
        assert np.abs(found[1:] - expected[-74:]).max() < 1e-9


# ----------------------------------------------------------------------------------- agreement: empyrical


@pytest.mark.parametrize("per_year", [252, 365, 52, 12])
def test_performance_equals_empyrical(per_year):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = pytest.importorskip("empyrical")
    returns = np.random.default_rng(per_year).normal(0.0005, 0.01, 700)
    returns[0] = -0.08
    found = performance(returns, per_year)
    assert found["sharpe"] == pytest.approx(reference.sharpe_ratio(returns, annualization=per_year), abs=1e-9)
    assert found["max_drawdown"] == pytest.approx(reference.max_drawdown(returns), abs=1e-9)
    assert found["annual_return"] == pytest.approx(
        reference.annual_return(returns, annualization=per_year), abs=1e-9
    )
    assert found["volatility"] == pytest.approx(
        reference.annual_volatility(returns, annualization=per_year), abs=1e-9
    )
    assert found["total_return"] == pytest.approx(reference.cum_returns_final(returns), abs=1e-9)


def test_drawdown_counts_the_start_as_a_high():
    assert drawdown([-0.5, 1.0, 0.1, -0.1]).tolist() == pytest.approx([-0.5, 0.0, 0.0, -0.1])
    flat = performance(np.zeros(5), 252)
    assert np.isnan(flat["sharpe"])
    assert flat["max_drawdown"] == 0.0


# ------------------------------------------------------------------------------------------- holding


def test_turnover_of_the_paper_by_hand():
    # Half in each; the first doubles, so that two thirds stand in it; back to halves moves a sixth.
    assert turnover([[0.5, 0.5]], [[0.5, 0.5]], [1.0, 0.0])[0] == pytest.approx(1 / 6)
    # Long and short change places: each leg is replaced in full, so 4 in sum and 2 by half.
    assert turnover([[1.0, -1.0]], [[-1.0, 1.0]], [0.0, 0.0])[0] == pytest.approx(2.0)
    # Weights of a long-short portfolio drift by the return on the capital, 1 + sum(w r).
    assert turnover([[1.0, -1.0]], [[1.0, -1.0]], [0.2, 0.1])[0] == pytest.approx(
        0.5 * (abs(1 - 1.2 / 1.1) + abs(-1 + 1.1 / 1.1))
    )


LEVEL = np.array(
    [
        [1.0, 1.0, 1.0, 1.0],
        [1.1, 1.0, 0.9, 1.0],
        [1.21, 1.0, 0.9, 0.8],
        [1.21, 1.5, 0.9, 0.8],
        [2.42, 1.5, 1.8, 0.4],
    ]
)
FACTOR = np.array([[0.9, 0.8, 0.2, 0.1], [0.1, 0.8, 0.9, 0.2]])


def test_holding_by_hand():
    book = simulate_holding(FACTOR, LEVEL, [0, 2], n=2, end=4)
    assert book.names == ("q1", "q2", "short", "long_short")
    assert book.bars.tolist() == [1, 2, 3, 4]
    # High names 0 and 1: (1.21 + 1.0) / 2. Low names 2 and 3: (0.9 + 0.8) / 2.
    assert book.period_returns[0] == pytest.approx([-0.15, 0.105, 0.15, 0.255])
    # Then high 1 and 2, low 0 and 3.
    assert book.period_returns[1] == pytest.approx([(2 + 0.5) / 2 - 1, (1.5 + 2) / 2 - 1, -0.25, 0.5])
    assert book.bar_returns[0] == pytest.approx([-0.05, 0.05, 0.05, 0.10])
    # Weights drift within a period: 1.1 and 1.0 become 1.21 and 1.0.
    assert book.bar_returns[1, 1] == pytest.approx(2.21 / 2.1 - 1)
    drifted = np.array([1.21, 1.0, 0, 0]) / 2.21
    assert book.turnover[0] == pytest.approx([0.5, 0.5, 0.5, 1.0])
    assert book.turnover[1, 1] == pytest.approx(0.5 * np.abs([0, 0.5, 0.5, 0] - drifted).sum())


def test_costs_fall_on_each_side_traded():
    book = simulate_holding(FACTOR, LEVEL, [0, 2], n=2, end=4)
    net = book.net_periods(0.001)
    # The first purchase buys everything once: one side of the whole, 10 basis points.
    assert net[0, 1] == pytest.approx(book.period_returns[0, 1] - 0.001)
    assert net[1, 1] == pytest.approx(book.period_returns[1, 1] - 2 * 0.001 * book.turnover[1, 1])
    bars = book.net_bars(0.001)
    assert bars[2, 1] == pytest.approx(book.bar_returns[2, 1] - 2 * 0.001 * book.turnover[1, 1])
    assert bars[3, 1] == book.bar_returns[3, 1]


def test_long_and_short_add_up_to_long_short_after_costs():
    rng = np.random.default_rng(5)
    level = np.exp(np.cumsum(rng.normal(0, 0.03, (60, 20)), axis=0))
    sell = rng.random(level.shape) < 0.8
    book = simulate_holding(
        rng.random((12, 20)),
        level,
        np.arange(0, 60, 5),
        n=4,
        cohorts=3,
        tradable=Tradable(np.ones_like(sell), sell),
    )
    for returns in (book.net_periods(0.002), book.net_bars(0.002), book.turnover):
        assert returns[:, 5] == pytest.approx(returns[:, 3] + returns[:, 4], abs=1e-15)
    # The short leg earns what its names lose, and pays for its own trades.
    assert (book.net_periods(0.002)[:, 4] < book.period_returns[:, 4]).all()


def test_the_ramp_up_of_overlapping_portfolios_is_told():
    """60 cohorts over 250 bars: the mean turnover with the ramp-up is a third and more above what it settles at."""
    rng = np.random.default_rng(6)
    level = np.exp(np.cumsum(rng.normal(0, 0.02, (250, 40)), axis=0))
    book = simulate_holding(rng.random((250, 40)), level, np.arange(250), n=4, cohorts=60)
    assert book.full == 59
    assert book.full_bar == 59
    settled = book.turnover[book.full + 1 :, -1].mean()
    assert settled == pytest.approx(book.turnover[150:, -1].mean(), rel=0.03)
    assert book.turnover[1:, -1].mean() > 1.3 * settled
    assert simulate_holding(rng.random((9, 40)), level, np.arange(9), n=4, cohorts=60).full == 8
    assert simulate_holding(rng.random((9, 40)), level, np.arange(9), n=4).full == 0


def test_value_weights_leave_out_missing_caps():
    caps = np.array([[3.0, 1.0, 1.0, np.nan], [1.0, 1.0, 1.0, 1.0]])
    book = simulate_holding(FACTOR, LEVEL, [0, 2], n=2, end=4, cap=caps)
    assert book.period_returns[0, 1] == pytest.approx(0.75 * 0.21)
    assert book.period_returns[0, 0] == pytest.approx(-0.1)
    assert book.counts["no_cap"] == 1


def test_entry_comes_late_by_the_delay():
    book = simulate_holding(FACTOR[:1], LEVEL, [0], n=2, end=4, delay=1)
    assert book.entry.tolist() == [1]
    assert book.period_returns[0, 1] == pytest.approx((2.42 / 1.1 + 1.5) / 2 - 1)


def test_untradable_entries_are_left_out_put_off_or_ignored():
    buy = np.ones(LEVEL.shape, bool)
    sell = buy.copy()
    buy[0, 0] = False  # limit-up at entry: cannot be bought
    sell[0:2, 3] = False  # limit-down: cannot be sold short
    tradable = Tradable(buy, sell)
    out = simulate_holding(FACTOR[:1], LEVEL, [0], n=2, end=4, tradable=tradable)
    assert out.period_returns[0, 1] == pytest.approx(0.5)  # name 1 alone
    assert out.period_returns[0, 0] == pytest.approx((1.8 + 0.4) / 2 - 1)  # as a long, quantile 1 is whole
    assert out.period_returns[0, 2] == pytest.approx(-0.8)  # as a short it is name 2 alone
    assert (out.counts["cannot_buy"], out.counts["cannot_sell"], out.counts["delayed"]) == (1, 1, 0)

    late = simulate_holding(FACTOR[:1], LEVEL, [0], n=2, end=4, tradable=tradable, untradable="delay")
    assert late.period_returns[0, 1] == pytest.approx((2.42 / 1.1 + 1.5) / 2 - 1)
    assert late.period_returns[0, 2] == pytest.approx(1 - (1.8 + 0.4 / 0.8) / 2)
    assert (late.counts["delayed"], late.counts["never_traded"]) == (2, 0)

    never = simulate_holding(
        FACTOR[:1], LEVEL, [0], n=2, end=4, tradable=tradable, untradable="delay", max_wait=1
    )
    assert never.counts["never_traded"] == 1
    assert never.period_returns[0, 2] == pytest.approx(1 - (1.8 + 1.0) / 2)  # half of it stays in cash

    ignored = simulate_holding(FACTOR[:1], LEVEL, [0], n=2, end=4, tradable=tradable, untradable="ignore")
    assert ignored.period_returns[0, 1] == pytest.approx((2.42 + 1.5) / 2 - 1)


def test_overlapping_cohorts_average_what_each_would_earn():
    rng = np.random.default_rng(4)
    level = np.exp(np.cumsum(rng.normal(0, 0.02, (40, 12)), axis=0))
    factor = rng.random((39, 12))
    at = np.arange(39)
    book = simulate_holding(factor, level, at, n=3, cohorts=5)
    assert book.cohorts == 5
    # A cohort alone, held for five bars.
    bar = 20
    alone = [
        simulate_holding(factor[[k]], level, [k], n=3, end=min(k + 5, 39)).bar_returns
        for k in range(bar - 4, bar + 1)
    ]
    expected = np.mean([a[bar - k][:4] for k, a in zip(range(bar - 4, bar + 1), alone, strict=True)], axis=0)
    assert book.bar_returns[bar][:4] == pytest.approx(expected, abs=1e-12)
    # A fifth of the book changes at most, apart from drift.
    assert book.turnover[10:, 2].max() < 0.25
    assert simulate_holding(factor, level, at, n=3).turnover[10:, 2].mean() > 0.5


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), cohorts=st.integers(1, 4))
def test_the_future_does_not_reach_back(seed, cohorts):
    rng = np.random.default_rng(seed)
    level = np.exp(np.cumsum(rng.normal(0, 0.02, (30, 8)), axis=0))
    factor = rng.random((15, 8))
    at = np.arange(0, 30, 2)
    first = simulate_holding(factor, level, at, n=2, cohorts=cohorts)
    later = level.copy()
    later[21:] *= rng.random((9, 8)) + 0.5
    changed = factor.copy()
    changed[11:] = rng.random((4, 8))
    second = simulate_holding(changed, later, at, n=2, cohorts=cohorts)
    assert np.array_equal(first.bar_returns[:20], second.bar_returns[:20])
    assert np.array_equal(first.turnover[:11], second.turnover[:11])


def test_a_delisted_name_keeps_its_last_value_until_it_is_sold():
    level = LEVEL.copy()
    level[2:, 0] = level[1, 0]
    book = simulate_holding(FACTOR[:1], level, [0], n=2, end=4)
    assert book.period_returns[0, 1] == pytest.approx((1.1 + 1.5) / 2 - 1)


def test_periods_that_do_not_close_are_left_out():
    book = simulate_holding(np.vstack([FACTOR, FACTOR]), LEVEL, [0, 1, 2, 4], n=2)
    assert book.decision.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="first decision stands at bar 4 of 5"):
        simulate_holding(FACTOR[:1], LEVEL, [4], n=2)
    with pytest.raises(ValueError, match="the data end before the first holding period does"):
        simulate_holding(FACTOR[:1], LEVEL, [2], n=2, end=9)
    with pytest.raises(
        ValueError, match="untradable='drop' is not known: choose one of 'exclude', 'delay', 'ignore'"
    ):
        simulate_holding(FACTOR[:1], LEVEL, [0], n=2, untradable="drop")


# ------------------------------------------------------------------------------------------- calendar


def test_bars_a_year_follow_the_calendar():
    assert bars_per_year(days("2020-01-01", "2022-01-01"), None) == 252
    assert bars_per_year(days("2020-01-01", "2022-01-01", weekends=True), None) == 365
    weeks = days("2020-01-03", "2023-01-01", weekends=True)[::7]
    assert bars_per_year(weeks, None) == 52
    months = np.arange("2015-01", "2020-01", dtype="datetime64[M]").astype("datetime64[ns]").astype(np.int64)
    assert bars_per_year(months, None) == 12
    hours = (days("2020-01-01", "2020-06-01", weekends=True)[:, None] + np.arange(24) * DAY // 24).ravel()
    assert bars_per_year(hours, "UTC") == 365 * 24
    session = (
        days("2020-01-01", "2020-06-01")[:, None] + np.arange(48) * 300 * 10**9 + 14 * DAY // 24
    ).ravel()
    assert bars_per_year(session, "America/New_York") == 252 * 48


def test_days_and_intervals_are_the_markets():
    time = np.array(["2021-03-12T20:59", "2021-03-15T19:59"], "datetime64[ns]").astype(np.int64)
    day, interval = day_and_interval(time, "America/New_York")
    assert day.tolist() == [18698, 18701]
    assert interval_names(interval) == ["15:59", "15:59"]  # over the change to summer time
    assert interval_names(np.array([0, 34_200_500_000_000])) == ["00:00:00.000000000", "09:30:00.500000000"]


def test_rebalances_take_the_last_known_bar_of_each_period():
    time = days("2021-01-01", "2021-03-10")
    known = np.arange(2, len(time))
    at = rebalances(known, time, None, "month", 20)
    assert time[at].astype("datetime64[ns]").astype("datetime64[D]").astype(str).tolist() == [
        "2021-01-29",
        "2021-02-26",
    ]
    # A factor that ends in mid-month has no end of that month, one that is known by the week may.
    cut = rebalances(np.arange(2, 30), time, None, "month", 20)
    assert cut.tolist() == at[:1].tolist()
    assert rebalances(np.arange(2, 40, 5), time, None, "month", 20).tolist() == [17, 37]
    assert rebalances(known, time, None, "horizon", 20).tolist() == [2, 22, 42]
    assert rebalances(known, time, None, 7, 20).tolist() == [2, 9, 16, 23, 30, 37, 44]
    weeks = rebalances(known, time, None, "week", 20)
    assert np.diff(weeks).tolist() == [5] * 8
    assert time[weeks[-1]].astype("datetime64[ns]") == np.datetime64("2021-03-05")
    stray = np.insert(time, 21, np.datetime64("2021-01-31", "ns").astype(np.int64))
    thin = np.zeros(len(stray), bool)
    thin[21] = True
    moved = rebalances(np.arange(len(stray)), stray, None, "month", 20, thin)
    assert moved.tolist() == [20, 41]
    assert np.array_equal(rebalances(known, time, None, "bar", 20), known)
    assert rebalances_per_year(weeks, "week", 252) == 52
    assert rebalances_per_year(at, "week", 252) == pytest.approx(252 / np.median(np.diff(at)))
    assert rebalances_per_year(rebalances(known, time, None, 7, 20), 7, 252) == 36
    for wrong in ("fortnight", 0, True):
        with pytest.raises(ValueError, match="rebalance="):
            rebalances(known, time, None, wrong, 20)
