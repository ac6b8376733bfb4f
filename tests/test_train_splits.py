"""Splits and targets: nothing leaks from one part into another, nothing missing becomes a class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pricepix as pp
from pricepix.train.splits import RandomSplit, Samples, TimeSplit, WalkForward, overlap_share
from pricepix.train.targets import balanced, class_weights, make_targets

DAY = 86_400_000_000_000


def _market(
    instruments: int = 4, days: int = 1500, lookback: int = 5, horizon: int = 5, seed: int = 0
) -> Samples:
    """Daily windows since 2000-01-01 on every calendar day, ordered by (time, instrument)."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), instruments)
    time = np.datetime64("2000-01-01", "ns").astype(np.int64) + day * DAY
    return Samples(
        time,
        time + horizon * DAY,
        time - (lookback - 1) * DAY,
        np.tile(np.arange(instruments, dtype=np.int32), days),
        rng.random(len(time)) < 0.95,
    )


def _date(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


def _honest(samples: Samples, fold: Any, embargo: int = 0) -> None:
    for early, late in ((fold.train, fold.validation), (fold.train, fold.test), (fold.validation, fold.test)):
        if len(late):
            begin, end = samples.time[late].min(), samples.exit_time[late].max()
            apart = (samples.exit_time[early] <= begin - embargo) | (samples.time[early] >= end + embargo)
            assert apart.all()
    everyone = np.concatenate([fold.train, fold.validation, fold.test])
    assert len(np.unique(everyone)) == len(everyone)
    assert samples.usable[everyone].all()
    assert len(everyone) + sum(fold.dropped.values()) == len(samples.time)


class TestTimeSplit:
    def test_by_date_and_purged(self) -> None:
        samples = _market()
        (fold,) = TimeSplit("2000:2001", "2002", "2003-01:2003-06-30").folds(samples)
        _honest(samples, fold)
        # A label that is known by the first validation day is kept, one a day later is purged.
        assert samples.exit_time[fold.train].max() == _date("2002-01-01")
        assert samples.time[fold.validation].min() == _date("2002-01-01")
        assert samples.exit_time[fold.validation].max() == _date("2003-01-01")
        assert samples.time[fold.test].min() == _date("2003-01-01")
        assert samples.time[fold.test].max() == _date("2003-06-30")
        assert fold.dropped["purged"] == int(
            samples.usable[(samples.time > _date("2001-12-27")) & (samples.time < _date("2002-01-01"))].sum()
            + samples.usable[
                (samples.time > _date("2002-12-27")) & (samples.time < _date("2003-01-01"))
            ].sum()
        )
        # Purging looks at labels; these windows of 5 days still share 4 to 0 days with those 5 days on.
        assert fold.overlap == 0

    def test_validation_as_a_share(self) -> None:
        samples = _market()
        (fold,) = TimeSplit("2000:2001", 0.25, "2003").folds(samples)
        _honest(samples, fold)
        assert samples.time[fold.train].max() < samples.time[fold.validation].min()
        assert len(fold.validation) / (len(fold.train) + len(fold.validation)) == pytest.approx(
            0.25, abs=0.02
        )

    @pytest.mark.parametrize("embargo", [0, "10d"])
    def test_training_after_validation(self, embargo: Any) -> None:
        samples = _market()
        (fold,) = TimeSplit("2001:2002", "2000-06:2000-12", embargo=embargo).folds(samples)
        gap = 10 * DAY if embargo else 0
        _honest(samples, fold, gap)
        assert samples.time[fold.train].min() == _date("2001-01-05") + gap
        assert (fold.dropped["embargoed"] > 0) == bool(embargo)

    def test_empty_parts(self) -> None:
        samples = _market()
        for split, label in (
            (TimeSplit("1990:1991", "2002"), "training"),
            (TimeSplit("2000:2001", "2010"), "validation"),
            (TimeSplit("2000:2001", "2002", "2010"), "test"),
            (TimeSplit("2000-01-01:2000-01-04", "2000-01-05"), "training"),
        ):
            with pytest.raises(
                ValueError, match=rf"the {label} part .* is empty: .* run from 2000-01-01 to 2004-02-08"
            ):
                split.folds(samples)

    @pytest.mark.parametrize(
        ("split", "message"),
        [
            (TimeSplit("2000:2001:2002"), "period is '2000:2001:2002'"),
            (TimeSplit("2000:soon"), "'soon' is not a time"),
            (TimeSplit("2000:2001", 1.5), "validation is 1.5"),
            (TimeSplit("2000:2001", "2001:2002"), "overlap"),
            (TimeSplit("2000:2001", embargo="long"), "'long' is not a duration"),
            (WalkForward("2 years"), "train is '2 years'"),
            (WalkForward("0y"), "train is '0y'"),
            (WalkForward("20y"), "no fold fits"),
            (RandomSplit(1.0), "share is 1.0"),
        ],
    )
    def test_bad_input(self, split: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            split.folds(_market())


class TestWalkForward:
    @pytest.mark.parametrize("expanding", [False, True])
    def test_tests_tile_the_time_after_the_first_training(self, expanding: bool) -> None:
        samples = _market(days=2000)
        folds = WalkForward("2y", "1y", expanding=expanding).folds(samples)
        assert [fold.name for fold in folds] == ["2002-01-01", "2003-01-01", "2004-01-01", "2005-01-01"]
        for k, fold in enumerate(folds):
            _honest(samples, fold)
            start = 2000 if expanding else 2000 + k
            assert samples.time[fold.train].min() // DAY == _date(f"{start}-01-01") // DAY
            assert samples.time[fold.validation].max() < samples.time[fold.test].min()
        tested = np.concatenate([fold.test for fold in folds])
        expected = np.flatnonzero(samples.usable & (samples.time >= _date("2002-01-01")))
        np.testing.assert_array_equal(tested, expected)

    def test_step_and_months(self) -> None:
        samples = _market(days=800)
        folds = WalkForward("6m", "3m", step="1m", start="2000-01-31").folds(samples)
        assert folds[0].name == "2000-07-31"
        # A month after January 31 is February 29, and six months after that August 29.
        assert folds[1].name == "2000-08-29"
        for fold in folds:
            _honest(samples, fold)


class TestRandomSplit:
    def test_overlap_is_measured_and_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        samples = _market()
        (fold,) = RandomSplit(0.7, "2000:2001", "2003", seed=1).folds(samples)
        assert fold.overlap > 0.99
        assert f"{fold.overlap:.1%} of the validation images share bars" in capsys.readouterr().out
        assert len(fold.train) / (len(fold.train) + len(fold.validation)) == pytest.approx(0.7, abs=1e-3)
        assert samples.exit_time[np.concatenate([fold.train, fold.validation])].max() <= _date("2003-01-01")
        (again,) = RandomSplit(0.7, "2000:2001", "2003", seed=1).folds(samples)
        (other,) = RandomSplit(0.7, "2000:2001", "2003", seed=2).folds(samples)
        np.testing.assert_array_equal(again.train, fold.train)
        assert not np.array_equal(other.train, fold.train)


@given(st.integers(0, 10_000))
def test_overlap_share_by_brute_force(seed: int) -> None:
    samples = _market(3, 40, lookback=4, seed=seed)
    rng = np.random.default_rng(seed)
    part = rng.choice(3, len(samples.time), p=[0.1, 0.3, 0.6])
    train, validation = np.flatnonzero(part == 0), np.flatnonzero(part == 1)
    expected = [
        any(
            samples.instrument[i] == samples.instrument[j]
            and samples.start_time[i] <= samples.time[j]
            and samples.start_time[j] <= samples.time[i]
            for i in train
        )
        for j in validation
    ]
    assert overlap_share(samples, train, validation) == pytest.approx(
        np.mean(expected) if expected and len(train) else 0
    )


def test_samples_of_a_store(tmp_path: Any) -> None:
    table = pp.samples.simulate(6, 120, seed=1, halt_rate=0, split_rate=0)
    panel = pp.Panel.from_table(table)
    store = pp.render_universe(panel, "jkx20", None, horizons=(5,), progress=False)
    usable = np.isfinite(store.returns(5))
    exact = Samples.from_store(store, 5, usable, panel)
    for i in (0, len(store) // 2, len(store) - 1):
        times = panel.time[slice(*panel.offsets[store.instrument_index[i] :][:2])]
        assert exact.start_time[i] == times[np.searchsorted(times, store.time[i]) - 19]
    guessed = Samples.from_store(store, 5, usable)
    assert np.abs(guessed.start_time - exact.start_time).max() <= 3 * DAY
    with pytest.raises(KeyError, match="give the panel that the images were made from"):
        Samples.from_store(store, 5, usable, pp.Panel.from_table(table.filter(instrument="S0000")))


class TestTargets:
    returns = np.array([0.1, -0.1, 0.0, np.nan, 0.2, np.inf, -0.3, 0.05, 0.05], np.float32)
    time = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])

    def test_a_missing_return_is_no_class(self) -> None:
        target = make_targets("up", self.returns, self.time)
        assert target.excluded == {"missing_return": 1, "infinite_return": 1}
        np.testing.assert_array_equal(target.usable, np.isfinite(self.returns))
        np.testing.assert_array_equal(target.values[target.usable], [1, 0, 0, 1, 0, 1, 1])

    def test_terciles_and_ranks_by_date(self) -> None:
        target = make_targets("terciles", self.returns, self.time)
        assert target.classes == 3
        np.testing.assert_array_equal(target.values[target.usable], [2, 0, 1, 2, 0, 1, 1])
        rank = make_targets("rank", self.returns, self.time)
        # Of n returns the k-th stands at (k - 1/2) / n - 1/2; the two equal ones share their mean.
        np.testing.assert_allclose(
            rank.values[rank.usable], [1 / 3, -1 / 3, 0, 3 / 8, -3 / 8, 0, 0], atol=1e-7
        )

    def test_days_with_too_few_windows(self) -> None:
        target = make_targets("quantiles:4", self.returns, self.time)
        assert target.excluded["too_few_that_day"] == 3
        assert not target.usable[:4].any()
        np.testing.assert_array_equal(target.values[target.usable], [3, 0, 2, 2])

    def test_return(self) -> None:
        target = make_targets("return", self.returns, self.time)
        assert target.is_regression
        np.testing.assert_array_equal(target.values[target.usable], self.returns[target.usable])

    @given(st.integers(0, 1000), st.integers(2, 7))
    def test_quantiles_are_even(self, seed: int, k: int) -> None:
        rng = np.random.default_rng(seed)
        time = np.repeat(np.arange(5), k * 8)
        target = make_targets(f"quantiles:{k}", rng.standard_normal(len(time)), time)
        for day in range(5):
            np.testing.assert_array_equal(np.bincount(target.values[time == day]), np.full(k, 8))

    @pytest.mark.parametrize("kind", ["down", "quantiles:1", "quantiles:x", "quantiles"])
    def test_unknown_kind(self, kind: str) -> None:
        with pytest.raises(ValueError, match="choose 'up', 'terciles'"):
            make_targets(kind, self.returns, self.time)

    def test_nothing_to_learn(self) -> None:
        with pytest.raises(ValueError, match=r"no window has a target of kind 'up' \(missing_return 3\)"):
            make_targets("up", np.full(3, np.nan), np.arange(3))

    def test_balance(self) -> None:
        values = np.array([0] * 30 + [1] * 10 + [2] * 60)
        weights = class_weights(np.bincount(values))
        np.testing.assert_allclose(weights * np.bincount(values), 100 / 3, rtol=1e-6)
        index = np.arange(5, 100)
        kept = balanced(index, values, 3, seed=4)
        np.testing.assert_array_equal(np.bincount(values[kept]), [10, 10, 10])
        assert np.isin(kept, index).all()
        np.testing.assert_array_equal(balanced(index, values, 3, seed=4), kept)
        assert not np.array_equal(balanced(index, values, 3, seed=5), kept)
        with pytest.raises(ValueError, match=r"class counts are \[30, 0\]"):
            balanced(np.arange(30), values, 2, 0)
