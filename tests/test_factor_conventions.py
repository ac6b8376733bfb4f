"""Both conventions of portfolios against transcriptions with pandas that share no code with the package."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_factor_evaluation import cache_of

import pricepix as pp
from pricepix.factor import evaluate

pd = pytest.importorskip("pandas")

NAMES, BARS, CUT, COST = 40, 300, 5, 0.001


@pytest.fixture(scope="module")
def market():
    """Prices, returns, caps and scores as frames (days, names): halts, deaths, missing caps, ties, volume 0."""
    rng = np.random.default_rng(21)
    days = pd.bdate_range("2015-01-02", periods=BARS)
    names = [f"N{i:02d}" for i in range(NAMES)]
    step = rng.normal(0.0003, 0.02, (BARS, NAMES))
    step[0] = np.nan
    close = 50 * np.cumprod(1 + np.nan_to_num(step), axis=0)
    dead = np.full(NAMES, BARS)
    dead[::7] = rng.integers(60, 250, len(dead[::7]))
    gone = np.arange(BARS)[:, None] >= dead
    score = np.round(rng.random((BARS, NAMES)), 3).astype(np.float32)
    score[rng.random(score.shape) < 0.05] = np.nan
    cap = close * rng.uniform(1e5, 1e7, NAMES)
    cap[rng.random(cap.shape) < 0.05] = np.nan
    volume = np.where(rng.random(close.shape) < 0.03, 0.0, 1000.0)
    frames = {"close": close, "step": step, "cap": cap, "volume": volume, "score": score.astype(np.float64)}
    return {k: pd.DataFrame(np.where(gone, np.nan, v), days, names) for k, v in frames.items()}


@pytest.fixture(scope="module")
def results(market, tmp_path_factory):
    import polars as pl

    parts = []
    for name in market["close"].columns:
        own = {
            k: f[name].dropna(how="all").reindex(market["close"][name].dropna().index)
            for k, f in market.items()
        }
        price = own["close"].to_numpy()
        parts.append(
            pl.DataFrame(
                {
                    "instrument": [name] * len(price),
                    "time": own["close"].index.to_numpy(),
                    **dict.fromkeys(("open", "high", "low", "close"), price),
                    "volume": own["volume"].to_numpy(),
                    "total_return": own["step"].to_numpy(),
                    "market_cap": own["cap"].to_numpy(),
                }
            )
        )
    panel = pp.Panel.from_table(pl.concat(parts), progress=False)
    cache = cache_of(
        panel, market["score"].to_numpy().astype(np.float32), tmp_path_factory.mktemp("c") / "f.zarr"
    )

    def of(convention, rebalance, delay=0):
        return evaluate(
            cache, panel, horizon={"week": 5, "month": 20}.get(rebalance, 7), quantiles=CUT, rebalance=rebalance,
            convention=convention, delay=delay, costs=(COST,), baselines=(), delays=(0,), horizons=(), progress=False,
        )  # fmt: skip

    return of


def last_days(index, every):
    period = index.to_period({"week": "W", "month": "M"}[every])
    return [index[period == p][-1] for p in period.unique()]


def authors(market, every, weighting):
    """The paper's table: period returns of deciles and high minus low, net of costs, and turnover a month."""
    ends = last_days(market["close"].index, every)
    level = (1 + market["step"].fillna(0)).cumprod().where(market["close"].notna())
    rows, turned, previous = [], [], None
    for now, following in itertools.pairwise(ends):
        stock = pd.DataFrame(
            {
                "up": market["score"].loc[now],
                "ret": level.loc[following] / level.loc[now] - 1,
                "cap": market["cap"].loc[now],
            }
        ).dropna()
        low = [np.percentile(stock.up, 100.0 * j / CUT) for j in range(CUT + 1)]
        books = []
        for j in range(CUT):
            above = stock.up >= low[0] if j == 0 else stock.up > low[j]
            book = stock[above & (stock.up <= low[j + 1])]
            size = book.cap if weighting == "value" else pd.Series(1.0, book.index)
            books.append((size / size.sum(), book.ret))
        row = [(w * r).sum() for w, r in books]
        rows.append([*row, row[-1] - row[0]])
        target = books[-1][0].sub(books[0][0], fill_value=0.0)
        if previous is not None:
            weight, ret = previous
            drifted = weight * (1 + ret) / (1 + (weight * ret).sum())
            turned.append(0.5 * target.sub(drifted, fill_value=0.0).abs().sum())
        previous = target, stock.ret[target.index]
    gross = np.array(rows)
    net = gross.copy()
    net[:, CUT - 1] -= 2 * COST
    net[:, 0] += 2 * COST
    net[:, CUT] = net[:, CUT - 1] - net[:, 0]
    return gross, net, np.mean(turned) * {"week": 4, "month": 1}[every]


@pytest.mark.parametrize("every", ["week", "month"])
@pytest.mark.parametrize("weighting", ["equal", "value"])
def test_the_papers_convention(market, results, every, weighting):
    found = results("paper", every)
    gross, net, turned = authors(market, every, weighting)
    book = found.figures["portfolios"][weighting]
    np.testing.assert_allclose(found.series[f"portfolio_{weighting}"]["period_returns"], gross, atol=1e-12)
    a_year = {"week": 52, "month": 12}[every]
    for p, name in enumerate([*(f"q{k}" for k in range(1, CUT + 1)), "long_short"]):
        periods = book[name]["periods"]
        assert periods["annual_mean"] == pytest.approx(gross[:, p].mean() * a_year, abs=1e-12)
        assert periods["volatility"] == pytest.approx(gross[:, p].std(ddof=1) * np.sqrt(a_year), abs=1e-12)
        assert book[name]["net"]["0.001"]["periods"]["mean"] == pytest.approx(net[:, p].mean(), abs=1e-12)
    assert book["long_short"]["monthly_turnover"] == pytest.approx(turned, abs=1e-12)
    assert "short" not in book


def ours(market, every):
    """The default convention, equally weighted: gross and net returns of quantiles, short and both, turnover."""
    index = market["close"].index
    ends = last_days(index, every)
    level = (1 + market["step"].fillna(0)).cumprod().where(market["close"].notna()).ffill()
    step = int(np.median(np.diff([index.get_loc(d) for d in ends[:-1]])))
    ends = [d for d in ends[:-1] if market["score"].loc[d].notna().any()]
    stop = index.get_loc(ends[-1]) + step
    bounds = [*ends, index[stop]] if stop < len(index) else ends
    rows, turned, previous = [], [], [None] * (CUT + 1)
    for now, following in itertools.pairwise(bounds):
        score = market["score"].loc[now].dropna()
        group = pd.qcut(score.rank(method="max"), CUT, labels=False, duplicates="raise")
        edges = np.percentile(score, [100.0 * k / CUT for k in range(1, CUT)])
        group = pd.Series(np.searchsorted(edges, score, side="left"), score.index)
        trades = market["volume"].loc[now] > 0
        move = level.loc[following] / level.loc[now] - 1
        row, traded = [], []
        for j in [*range(CUT), 0]:
            book = group[(group == j) & trades[group.index]].index
            weight = pd.Series(1 / len(book), book)
            row.append((weight * move[book]).sum())
            p = len(row) - 1
            old = previous[p]
            if old is None:
                traded.append(0.5)
            else:
                past, ret = old
                drifted = past * (1 + ret) / (1 + (past * ret).sum())
                traded.append(0.5 * weight.sub(drifted, fill_value=0.0).abs().sum())
            previous[p] = weight, move[book]
        row[-1] = -row[-1]
        rows.append([*row, row[-2] + row[-1]])
        turned.append([*traded, traded[-2] + traded[-1]])
    gross, turned = np.array(rows), np.array(turned)
    return gross, gross - 2 * COST * turned, turned


@pytest.mark.parametrize("every", ["week", "month"])
def test_our_convention(market, results, every):
    found = results("pricepix", every)
    gross, net, turned = ours(market, every)
    series = found.series["portfolio_equal"]
    np.testing.assert_allclose(series["period_returns"], gross, atol=1e-12)
    np.testing.assert_allclose(series["turnover"], turned, atol=1e-12)
    book = found.figures["portfolios"]["equal"]
    for p, name in enumerate(series["names"]):
        assert book[name]["net"]["0.001"]["periods"]["mean"] == pytest.approx(net[:, p].mean(), abs=1e-12)
    a_year = {"week": 52, "month": 12}[every]
    expected = turned[1:, -1].mean() * a_year / 12
    assert book["long_short"]["monthly_turnover"] == pytest.approx(expected, abs=1e-12)


def test_a_delay_moves_entry_and_exit(results):
    found = results("paper", "week", 3)
    same = results("paper", "week")
    late, prompt = (f.series["portfolio_equal"] for f in (found, same))
    index = np.array(late["entry"], "datetime64[D]")
    assert np.busday_count(np.array(prompt["entry"], "datetime64[D]")[: len(index)], index).tolist() == [
        3
    ] * len(index)
    assert (
        found.figures["delays"][0]["long_short"]["mean"]
        == found.figures["portfolios"]["equal"]["long_short"]["periods"]["mean"]
    )


def test_the_paper_rebalances_by_calendar_periods(results):
    with pytest.raises(
        ValueError, match="rebalance=7: convention='paper' rebalances by week, month or quarter"
    ):
        results("paper", 7)
