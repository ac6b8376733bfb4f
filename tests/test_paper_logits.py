"""Logits against maximum likelihood by hand, and Tables V to VIII of a small replication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("statsmodels")

from test_paper_tables import frames, make_tables, panel  # noqa: F401

from pricepix.paper.logits import fit_logit


def by_newton(up: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients, t and log likelihood of a logit with a constant, by Newton's steps."""
    design = np.column_stack([np.ones(len(x)), x])
    beta = np.zeros(design.shape[1])
    for _ in range(60):
        p = 1 / (1 + np.exp(-design @ beta))
        hessian = design.T @ (design * (p * (1 - p))[:, None])
        beta = beta + np.linalg.solve(hessian, design.T @ (up - p))
    p = 1 / (1 + np.exp(-design @ beta))
    likelihood = float(np.sum(np.where(up, np.log(p), np.log(1 - p))))
    return beta, beta / np.sqrt(np.diag(np.linalg.inv(hessian))), likelihood


def test_a_logit_is_that_of_maximum_likelihood() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (900, 3))
    up = rng.random(900) < 1 / (1 + np.exp(-(0.3 + x @ np.array([0.8, -0.5, 0.0]))))
    order = np.repeat(np.arange(90), 10)
    found = fit_logit(up, x, order)
    beta, t, likelihood = by_newton(up, x)
    np.testing.assert_allclose(found.coefficients, beta[1:], atol=1e-7)
    np.testing.assert_allclose(found.t, t[1:], atol=1e-5)
    share = up.mean()
    null = len(up) * (share * np.log(share) + (1 - share) * np.log(1 - share))
    assert found.r2 == pytest.approx(1 - likelihood / null, abs=1e-9)
    early = order < 45
    first, _, _ = by_newton(up[early], x[early])
    linear = first[0] + x[~early] @ first[1:]
    p, base = 1 / (1 + np.exp(-linear)), up[early].mean()
    model = np.sum(np.where(up[~early], np.log(p), np.log(1 - p)))
    guess = np.sum(np.where(up[~early], np.log(base), np.log(1 - base)))
    assert found.r2_out == pytest.approx(1 - model / guess, abs=1e-7)
    assert 0.05 < found.r2_out < 0.3


@pytest.mark.parametrize("case", ["one class", "collinear", "separated", "few"])
def test_what_cannot_be_fitted_is_not_known(case: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (200, 2))
    up = rng.random(200) < 0.5
    if case == "one class":
        up[:] = True
    elif case == "collinear":
        x[:, 1] = 2 * x[:, 0]
    elif case == "separated":
        up = x[:, 0] > 0
    else:
        x, up = x[:4], up[:4]
    found = fit_logit(up, x, np.arange(len(x)))
    assert np.isnan(found.r2)
    assert np.isnan(found.coefficients).all()


def test_the_tables_are_filled(panel: Any, tmp_path: Path) -> None:  # noqa: F811
    """Scores are made up: nothing is found in them, and everything has a place."""
    tables, _ = make_tables(panel, tmp_path, ("V", "VI", "VII", "VIII"))
    assert abs(tables["V"].value("", "Size", "I5/R5", "correlation")) < 0.1
    for number in ("VI", "VII"):
        assert 0 <= tables[number].value("", "R2", "I5/R5", "mcfadden_r2") < 0.05
        assert tables[number].value("", "Pairs", "I5/R5", "count") > 1000
        assert abs(tables[number].value("", "Size", "I5/R5", "t")) < 5
    assert abs(tables["VII"].value("", "CNN prediction", "I5/R5", "t")) < 5
    compared = [c for c in tables["VIII"].comparisons() if c.column == "I5/R5"]
    assert [c.published for c in compared] == ["35.16%"]
    grids = {grid.title: grid for grid in tables["VIII"].grids()}
    assert list(grids) == ["CNN prediction", "CNN prediction, lag by lag", "Return", "Return, lag by lag"]
    fit, lags = grids["CNN prediction"], grids["CNN prediction, lag by lag"]
    # Longer images have no row a lag, and a column of the fit all the same.
    assert [column for column, _ in fit.columns] == ["I5/R5", "I5/R20", "I20/R60"]
    assert [column for column, _ in lags.columns] == ["I5/R5", "I5/R20"]
    assert 0 < tables["VIII"].value("CNN prediction", "R2", "I5/R5", "mcfadden_r2") < 0.2
    assert abs(tables["VIII"].value("Return, lag by lag", "Open, lag 0", "I5/R5", "t")) < 6
    # These bars open where they close, and the average at the last one is that of the five closes.
    assert {"Open, lag 0", "Average, lag 1"} <= set(dict(lags.rows))
    assert not {"Close, lag 0", "Average, lag 0"} & set(dict(lags.rows))
    cells = dict(fit.rows)["R2"]
    assert len(cells) == 3
    assert all(text.endswith("%") or text == "-" for text in cells)
