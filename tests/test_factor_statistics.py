"""Statistics of a factor, against scipy, scikit-learn and statsmodels where installed, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pricepix.factor.evaluation.metrics import (
    auc,
    calibration,
    classification,
    classification_by_date,
    information_coefficient,
    mean_test,
    newey_west_lags,
    newey_west_t,
    rank,
    series_summary,
    student_p_value,
)
from pricepix.factor.evaluation.result import json_value


@pytest.fixture
def cross_sections():
    rng = np.random.default_rng(3)
    factor = np.round(rng.normal(size=(40, 30)), 1)  # rounded: ties
    returns = 0.3 * factor + rng.normal(size=factor.shape)
    factor[rng.random(factor.shape) < 0.2] = np.nan
    returns[rng.random(factor.shape) < 0.1] = np.nan
    return factor, returns


def test_ranks_share_ties_and_keep_missing():
    assert rank([3.0, 1.0, 3.0, np.nan, 2.0]).tolist()[:3] == [3.5, 1.0, 3.5]
    assert np.isnan(rank([3.0, 1.0, 3.0, np.nan, 2.0])[3])


def test_information_coefficients_equal_scipy(cross_sections):
    stats = pytest.importorskip("scipy.stats")
    factor, returns = cross_sections
    for method, reference in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        found = information_coefficient(factor, returns, method)
        for t in range(len(factor)):
            both = ~np.isnan(factor[t]) & ~np.isnan(returns[t])
            assert found[t] == pytest.approx(reference(factor[t][both], returns[t][both])[0], abs=1e-12)


def test_ic_of_few_or_constant_values_is_unknown():
    factor = np.array([[1.0, 2.0, np.nan, np.nan], [0.1, 0.1, 0.1, 0.1], [1.0, 2.0, 3.0, 4.0]])
    returns = np.array([[1.0, 2.0, 3.0, 4.0]] * 3)
    found = information_coefficient(factor, returns)
    assert np.isnan(found[:2]).all()
    assert found[2] == pytest.approx(1.0)


def test_newey_west_equals_statsmodels():
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(5)
    noise = rng.normal(size=300)
    x = 0.1 + np.convolve(noise, np.ones(5), "valid")
    for lags in (0, 1, 4, 12):
        fit = api.OLS(x, np.ones(len(x))).fit(
            cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": False}
        )
        assert newey_west_t(x, lags) == pytest.approx(float(fit.tvalues[0]), rel=1e-10)


def test_newey_west_lags_cover_the_overlap():
    assert newey_west_lags(100) == 4
    assert newey_west_lags(100, overlap=20) == 19
    assert newey_west_lags(3, overlap=20) == 2
    assert np.isnan(newey_west_t(np.ones(50)))


def test_summary_of_a_short_series_by_hand():
    found = series_summary([0.1, 0.3, np.nan, 0.2], lags=0)
    assert found["dates"] == 3
    assert found["mean"] == pytest.approx(0.2)
    assert found["ir"] == pytest.approx(2.0)
    assert found["positive"] == 1.0
    # Three dates say nothing of a mean.
    assert np.isnan([found[name] for name in ("t", "p_value", "newey_west_t")]).all()
    longer = series_summary([0.1, 0.3, np.nan, 0.2] * 4, lags=0)
    # Without lags Newey-West is the mean over its standard deviation (n), times the root of n.
    assert longer["newey_west_t"] == pytest.approx(0.2 / np.sqrt(0.02 / 3) * np.sqrt(12))
    assert longer["dof"] == 6


def test_the_t_of_a_mean_by_hand():
    x = np.random.default_rng(3).normal(0.1, 1, 120)
    found = mean_test(np.insert(x, 7, np.nan), overlap=4)
    assert found.dof == 15
    cosines = np.cos(np.pi * np.arange(1, 16)[:, None] * (np.arange(120) + 0.5) / 120)
    variance = 2.0 / 120 * ((cosines @ x) ** 2).mean()
    assert found.t == pytest.approx(x.mean() / np.sqrt(variance / 120), rel=1e-12)
    assert np.isnan(mean_test(x[:39], overlap=4).t)
    assert not np.isnan(mean_test(x[:40], overlap=4).t)
    assert np.isnan(mean_test(np.ones(50)).t)


def test_p_values_equal_scipy():
    stats = pytest.importorskip("scipy.stats")
    for dof in (1, 2, 3, 4, 5, 6, 7, 30, 31, 250, 1251):
        for t in (0.0, 0.3, 1.0, 2.0, -3.5, 10.0):
            assert student_p_value(t, dof) == pytest.approx(2 * stats.t.sf(abs(t), dof), abs=1e-12)


def noise_ics(rng, runs, dates, horizon, persistence, names=8):
    """Pearson ICs of AR(1) factors with the next `horizon` returns of random walks, on every date, (runs, dates)."""
    factor = rng.standard_normal((dates, runs, names))
    innovation = np.sqrt(1 - persistence**2)
    for t in range(1, dates):
        factor[t] = persistence * factor[t - 1] + innovation * factor[t]
    walk = np.cumsum(rng.standard_normal((dates + horizon, runs, names)), axis=0)
    returns = walk[horizon:] - walk[:-horizon]
    factor -= factor.mean(axis=2, keepdims=True)
    returns -= returns.mean(axis=2, keepdims=True)
    cross = np.einsum("tri,tri->rt", factor, returns)
    return cross / np.sqrt(
        np.einsum("tri,tri->rt", factor, factor) * np.einsum("tri,tri->rt", returns, returns)
    )


@pytest.mark.parametrize(
    ("dates", "horizon", "persistence"),
    [(250, 5, 0.95), (250, 20, 0.99), (650, 60, 0.95), (1250, 60, 0.99), (1250, 20, 0.0), (2500, 20, 0.97)],
)
def test_the_t_rejects_noise_as_often_as_it_says(dates, horizon, persistence):
    """At a nominal 5% it rejects 3 to 8%; Newey-West, whose table is the normal one, 9% to 14% if x persists."""
    rng = np.random.default_rng(dates + horizon)
    x = np.concatenate([noise_ics(rng, 250, dates, horizon, persistence) for _ in range(4)])
    found = [series_summary(row, horizon) for row in x]
    assert 0.03 < np.mean([f["p_value"] < 0.05 for f in found]) < 0.08
    if persistence >= 0.95:
        assert np.mean([abs(f["newey_west_t"]) > 1.96 for f in found]) > 0.085


def test_less_than_ten_horizons_have_no_t():
    x = noise_ics(np.random.default_rng(0), 1, 599, 60, 0.99)[0]
    found = series_summary(x, 60)
    assert np.isnan([found[name] for name in ("t", "p_value", "newey_west_t")]).all()
    assert np.isfinite([found[name] for name in ("mean", "std", "ir")]).all()


def test_classification_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(8)
    p = np.round(rng.random(500), 2)
    r = rng.normal(size=500) + (p - 0.5)
    r[::7] = 0.0
    p[3], r[5] = np.nan, np.nan
    known = ~np.isnan(p) & ~np.isnan(r)
    up, q = r[known] > 0, p[known]
    found = classification(p, r)
    assert found["n"] == 498
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(up, q > 0.5), abs=1e-12)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(up, q), abs=1e-9)
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(up, q), abs=1e-12)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(up, q), abs=1e-12)
    assert found["mcc"] == pytest.approx(metrics.matthews_corrcoef(up, q > 0.5), abs=1e-12)


def test_a_missing_return_is_no_class_and_a_zero_return_no_rise():
    found = classification([0.9, 0.9, 0.2], [np.nan, 0.0, -0.1])
    assert (found["n"], found["base_rate"], found["accuracy"]) == (2, 0.0, 0.5)
    assert np.isnan(found["auc"])
    assert np.isnan(found["mcc"])
    assert np.isnan(classification([np.nan], [0.1])["accuracy"])


def test_scores_outside_zero_to_one_are_no_probabilities():
    with pytest.raises(ValueError, match=r"-2 to 0\.5: a probability lies in 0 to 1"):
        classification([-2.0, 0.5], [0.1, 0.2])


def test_classification_by_date_is_classification_of_each_date(cross_sections):
    factor, returns = cross_sections
    p = 1 / (1 + np.exp(-factor))
    by_date = classification_by_date(p, returns)
    assert by_date["brier"][7] == pytest.approx(classification(p[7], returns[7])["brier"])
    assert by_date["n"].sum() == classification(p, returns)["n"]


def test_auc_counts_ties_half():
    assert auc([0.5, 0.5], [True, False]) == 0.5
    assert auc([0.2, 0.8, 0.8], [False, True, False]) == 0.75


def test_calibration_bins_hold_equally_many_and_never_part_ties():
    p = np.repeat([0.4, 0.5, 0.6, 0.7], 25)
    up = np.concatenate([np.repeat([1.0, -1.0], [k, 25 - k]) for k in (10, 12, 15, 20)])
    found = calibration(p, up, bins=4)
    assert found["count"] == [25, 25, 25, 25]
    assert found["predicted"] == pytest.approx([0.4, 0.5, 0.6, 0.7])
    assert found["observed"] == pytest.approx([0.4, 0.48, 0.6, 0.8])
    assert found["error"] == pytest.approx((0 + 0.02 + 0 + 0.1) / 4)
    assert calibration(np.full(10, 0.5), up[:10])["count"] == [10]


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"factor has shape \(2, 3\), returns have \(3, 2\)"):
        information_coefficient(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(
        ValueError, match="method='kendall' is not known: choose one of 'spearman', 'pearson'"
    ):
        information_coefficient(np.zeros((2, 3)), np.zeros((2, 3)), "kendall")


def test_plain_values_hold_no_nan():
    assert json_value({"a": np.array([1.0, np.nan]), "b": (np.int8(3), np.inf)}) == {
        "a": [1.0, None],
        "b": [3, None],
    }
