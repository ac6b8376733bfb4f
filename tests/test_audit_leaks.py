"""Every leak that is planted is found by the check that is meant for it; markets without one pass."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from factor_files import change_attributes, change_values
from scipy import stats

import pricepix as pp
from pricepix.factor import score
from pricepix.render.draw import render_rows
from pricepix.windows.index import WindowIndex
from pricepix.windows.labels import forward_returns
from pricepix.workflow.audit.association import associate, date_ranks
from pricepix.workflow.audit.flags import check_flags, forward_change
from pricepix.workflow.audit.survivors import _at_most, check_survivors
from pricepix.workflow.audit.table_fields import check_fields


def market(seed, instruments=30, bars=200, **options):
    settings = {"split_rate": 0, "delist_rate": 0.0005, "halt_rate": 0.01, **options}
    return pp.samples.simulate(instruments, bars, seed=seed, **settings).drop("signal", strict=False)


def panel_of(frame):
    return pp.Panel.from_table(frame, progress=False)


def ink(images):
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


def shadow(images):
    """Read the planted pattern: whether the last bar's shadow is longer below its close than above."""
    stem, body = images[:, :25, 13] > 0, images[:, :25, 14].argmax(axis=1)
    above, below = body - stem.argmax(axis=1), 24 - stem[:, ::-1].argmax(axis=1) - body
    return (0.5 + 0.01 * np.clip(below - above, -24, 24)).astype(np.float32)


def audit(*arguments, **options):
    return pp.audit(*arguments, progress=False, **options)


@pytest.fixture(scope="module")
def frame():
    return market(3)


@pytest.fixture(scope="module")
def panel(frame):
    return panel_of(frame)


@pytest.fixture
def images(panel):
    return pp.PanelImages(panel, "jkx5", horizons=(5,))


def leaks(found):
    """Names of the checks that found something."""
    return {check.name for check in found.checks if check.result == "LEAK"}


def test_no_leak_no_finding(panel, images, tmp_path):
    cache = score(images, ink, tmp_path / "f.zarr", panel=panel, progress=False)
    found = audit(panel, images, cache, model=ink)
    assert found.ok, str(found)
    assert [check.name for check in found.checks] == [
        "images", "windows", "realised labels", "scores", "labels", "places", "memory", "training dates",
        "masks, flags", "table fields", "survivors",
    ]  # fmt: skip
    assert found.windows == found.scores == len(images)
    assert {check.name for check in found.checks if not check.known} == {
        "training dates", "masks, flags", "survivors",
    }  # fmt: skip


def test_labels_one_bar_early(panel, images, monkeypatch):
    """Made early wherever they are made: making them again shows nothing."""

    def early(self, h):
        return forward_returns(self.panel, self.windows.row - 1, h, self.delay).value

    monkeypatch.setattr(pp.PanelImages, "returns", early)
    found = audit(panel, images)
    assert leaks(found) == {"labels"}
    assert "they begin a bar early" in str(found["labels"].problems)


def test_cache_values_one_bar_early(panel, images, tmp_path):
    cache = score(images, ink, tmp_path / "f.zarr", panel=panel, progress=False)
    values = cache.factor[:]
    change_values(tmp_path / "f.zarr", np.concatenate([values[1:], np.full_like(values[:1], np.nan)]))
    cache = pp.factor.open_cache(tmp_path / "f.zarr")
    assert "scores" in leaks(audit(panel, images, cache, model=ink))
    # The same by a shift that says so, which every look at the cache follows.
    change_attributes(tmp_path / "f.zarr", {"shift": -1})
    cache = pp.factor.open_cache(tmp_path / "f.zarr")
    found = audit(panel, images, cache, model=ink)
    assert leaks(found) == {"places"}
    assert "shift is -1" in str(found["places"].problems)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_scores_tampered_with_after_some_date(panel, images, tmp_path, part):
    cache = score(images, ink, tmp_path / "f.zarr", panel=panel, progress=False)
    values = cache.factor[:]
    late = int(part * len(values))
    values[late:] += np.where(np.arange(len(values) - late) % 2, 0.01, -0.01)[:, None, None]
    change_values(tmp_path / "f.zarr", values)
    found = audit(panel, images, pp.factor.open_cache(tmp_path / "f.zarr"), model=ink)
    assert "scores" in leaks(found)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.97])
def test_images_tampered_with_after_some_date(panel, images, monkeypatch, part):
    """A set whose images show a bar more from some window on, up to the last."""
    read = pp.PanelImages.read_into
    rows = np.minimum(images.windows.row + 1, panel.offsets[images.windows.instrument + 1] - 1)
    rows = np.where(np.arange(len(rows)) < part * len(rows), images.windows.row, rows)

    def later(self, positions, out):
        if self is not images:
            read(self, positions, out)
            return
        render_rows(self.panel, rows[positions], self.spec, out, reason=np.empty(len(positions), np.uint8))

    monkeypatch.setattr(pp.PanelImages, "read_into", later)
    assert "images" in leaks(audit(panel, images))


@pytest.mark.parametrize("span", [1, 5])
def test_a_mask_from_the_next_return(panel, span):
    mask = ~(forward_change(panel, span) < 0)
    images = pp.PanelImages(panel, "jkx5", horizons=(5,), mask=mask)
    found = audit(panel, images, mask=mask)
    assert leaks(found) == {"masks, flags"}
    assert "mask goes with the return over the next" in str(found["masks, flags"].problems)
    # One that looks back passes.
    past = np.roll(mask, span + 1)
    assert audit(panel, pp.PanelImages(panel, "jkx5", horizons=(5,), mask=past), mask=past).ok


@pytest.mark.parametrize("below", [0.0, -0.03, -0.05])
def test_an_eligible_field_from_the_next_return(frame, panel, below):
    """Also one that leaves out the worst few."""
    ahead = forward_change(panel, 1)
    leaky = panel_of(frame.with_columns(eligible=pl.Series(~(ahead < below))))
    found = audit(leaky, pp.PanelImages(leaky, "jkx5", horizons=(5,)))
    assert leaks(found) == {"masks, flags"}
    assert "eligible goes with the return over the next bar" in str(found["masks, flags"].problems)


def test_a_universe_of_survivors():
    frame = market(1, 250, 1200, delist_rate=0.0004)
    last = frame.group_by("instrument").agg(pl.col("time").max())
    alive = last.filter(pl.col("time") == pl.col("time").max())["instrument"]
    assert 60 < 250 - len(alive) < 120
    whole, survivors = panel_of(frame), panel_of(frame.filter(pl.col("instrument").is_in(alive.implode())))
    assert check_survivors(whole, 0.02, "").result == "ok"
    found = check_survivors(survivors, 0.02, "")
    assert found.result == "LEAK"
    assert f"0 of {len(alive)} names end in the panel" in found.problems[0]
    assert check_survivors(survivors, None, "").result == "not known"
    # A list of names that was drawn up in the middle and followed from there.
    middle = frame["time"].unique().sort()[700]
    listed = frame.filter(pl.col("time") == middle)["instrument"]
    late = panel_of(frame.filter(pl.col("instrument").is_in(listed.implode())))
    found = check_survivors(late, 0.02, "")
    assert found.result == "LEAK"
    assert "end in the first half of the panel" in found.problems[0]


def test_a_function_that_memorised_returns(panel, images, tmp_path):
    known = dict(zip(map(bytes, images.read()), images.returns(5).tolist(), strict=True))

    def oracle(pictures):
        found = np.array([known.get(bytes(picture), np.nan) for picture in pictures])
        return np.where(np.isnan(found), 0.5, 0.5 + 0.2 * np.tanh(20 * found)).astype(np.float32)

    def faint(pictures):
        """As `oracle`, but hardly better than chance: its rank IC is that of a good factor."""
        found = np.array([known.get(bytes(picture), np.nan) for picture in pictures])
        noise = np.array([picture.sum() % 97 / 97 for picture in pictures]) - 0.5
        return (0.5 + 0.1 * noise + np.where(np.isnan(found), 0, 0.2 * found)).astype(np.float32)

    for model in (oracle, faint):
        cache = score(images, model, None, panel=panel, model_id=model.__name__, progress=False)
        found = audit(panel, images, cache, model=model)
        assert leaks(found) == {"memory"}, str(found)
        assert "it knows these images by heart" in str(found["memory"].problems)

    def alike(pictures):
        """Remembers what images look like, of which the check says that it sees only what is too good."""
        few = pictures.reshape(len(pictures), -1)[:, ::7]
        near = [int(np.argmin((bank != picture).sum(axis=1))) for picture in few]
        return (0.5 + 0.2 * np.tanh(20 * values[near])).astype(np.float32)

    usable = ~np.isnan(images.returns(5))
    bank, values = images.read().reshape(len(images), -1)[usable][:, ::7], images.returns(5)[usable]
    cache = score(images, alike, None, panel=panel, model_id="alike", progress=False)
    found = audit(panel, images, cache, model=alike, limit=200)
    assert leaks(found) == {"memory"}, str(found)
    assert "too good to be foresight" in str(found["memory"].problems)


def test_the_next_bars_volume_in_the_table(frame):
    early = frame.with_columns(pl.col("volume").shift(-1).over("instrument").fill_null(0.0))
    leaky = panel_of(early)
    found = audit(leaky, pp.PanelImages(leaky, "jkx5", horizons=(5,)))
    assert leaks(found) == {"table fields"}
    assert "volume goes with the next bar's range" in str(found["table fields"].problems)


@pytest.mark.parametrize("name", ["total_return", "market_cap"])
@pytest.mark.parametrize("pattern", [None, 0.65])
def test_other_fields_one_bar_early(name, pattern):
    frame = market(3, bayes_accuracy=pattern).with_columns(market_cap=pl.col("close") * 1e6)
    assert check_fields(panel_of(frame), "").result == "ok"
    early = frame.with_columns(pl.col(name).shift(-1).over("instrument"))
    found = check_fields(panel_of(early), "")
    assert found.result == "LEAK"
    assert f"{name} goes with the next bar's return" in found.problems[0]


def test_windows_that_exist_only_because_trading_resumes(panel, monkeypatch):
    find = WindowIndex.from_panel.__func__

    def only_those_that_trade_again(cls, panel, *arguments, **options):
        index = find(cls, panel, *arguments, **options)
        bars = np.flatnonzero(~np.isnan(panel.bars[:, 3]))
        following = bars[np.minimum(np.searchsorted(bars, index.row, side="right"), len(bars) - 1)]
        again = (following > index.row) & (following < panel.offsets[index.instrument + 1])
        return WindowIndex(
            index.panel, index.spec, index.row[again], index.instrument[again], index.counts, index.schedule
        )

    monkeypatch.setattr(WindowIndex, "from_panel", classmethod(only_those_that_trade_again))
    for every in ("bar", "week"):
        found = audit(panel, pp.PanelImages(panel, "jkx5", horizons=(5,), every=every))
        assert "windows" in leaks(found)
        assert "depends on whether rows follow" in str(found["windows"].problems)


def test_a_network_trained_on_the_dates_it_scores(panel, tmp_path):
    torch = pytest.importorskip("torch")
    from pricepix.train.checkpoints import save_model
    from pricepix.train.models import PriceCNN

    images = pp.PanelImages(panel, "jkx5", horizons=(5,), every="week")
    torch.manual_seed(0)
    network = PriceCNN("jkx5")
    end = panel.stamp(int(panel.calendar[120]))
    network.metadata = {
        "train": {"first": "2000-01-10", "last": panel.stamp(int(panel.calendar[80]))},
        "validation": {
            "first": panel.stamp(int(panel.calendar[81])),
            "last": panel.stamp(int(panel.calendar[115])),
        },
        "seen_through": end,
        "horizon": 5,
        "delay": 0,
    }
    save_model(network, tmp_path / "m.ckpt")
    cache = score(images, tmp_path / "m.ckpt", tmp_path / "f.zarr", panel=panel, progress=False)
    found = audit(panel, images, cache, limit=200)
    assert leaks(found) == {"training dates"}
    assert f"the last return it saw ended {end[:10]}" in str(found["training dates"].problems)
    later = score(
        images, tmp_path / "m.ckpt", tmp_path / "g.zarr", panel=panel, start=end[:10], progress=False
    )
    assert audit(panel, images, later, limit=200).ok


# ---- no leak, no finding: 99 times of 100


@pytest.mark.parametrize("pattern", [None, 0.65], ids=["null", "planted pattern"])
def test_the_panels_checks_pass_markets_without_leaks(pattern):
    """Each check may find something in one market of 100: so many of 20 are one case in a thousand."""
    seeds = 20
    wrong = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        frame = market(100 + seed, bayes_accuracy=pattern, correlation=0.3 * (seed % 2))
        frame = frame.with_columns(
            market_cap=pl.col("close") * 1e6,
            eligible=pl.Series(rng.random(len(frame)) < 0.8),
            up_limit=pl.Series(rng.random(len(frame)) < 0.02),
        )
        panel = panel_of(frame)
        mask = panel.bars[:, 3] > 30
        for check in (
            check_flags(panel, mask, (5, 20), ""), check_fields(panel, ""), check_survivors(panel, 0.02, ""),
        ):  # fmt: skip
            wrong[check.name] = wrong.get(check.name, 0) + (check.result == "LEAK")
    most = stats.binom.ppf(0.999, seeds, 0.01)
    assert max(wrong.values()) <= most, wrong


@pytest.mark.parametrize(("pattern", "model"), [(None, ink), (0.65, shadow)], ids=["null", "planted pattern"])
def test_whole_audits_pass_markets_without_leaks(pattern, model):
    seeds = 6
    failed = []
    for seed in range(seeds):
        panel = panel_of(market(200 + seed, 20, 150, bayes_accuracy=pattern))
        images = pp.PanelImages(panel, "jkx5", horizons=(5,))
        cache = score(images, model, None, panel=panel, progress=False)
        found = audit(panel, images, cache, model=model, limit=2000)
        if not found.ok:
            failed.append(str(found))
    assert len(failed) <= stats.binom.ppf(0.999, seeds, 0.01), failed[0]


def test_ranks_by_date_are_those_of_scipy():
    rng = np.random.default_rng(0)
    time, values = rng.integers(0, 20, 500), np.round(rng.normal(0, 1, 500), 1)
    expected = np.empty(500)
    for t in range(20):
        own = time == t
        expected[own] = (stats.rankdata(values[own]) - 0.5) / own.sum() - 0.5
    np.testing.assert_allclose(date_ranks(values, time), expected, atol=1e-15)


def test_chances_of_few_ends_are_poissons():
    for n, mean in ((0, 0.0), (0, 5.0), (3, 5.2), (40, 30.0), (1500, 2000.0), (2500, 2000.0)):
        assert _at_most(n, mean) == pytest.approx(stats.poisson.cdf(n, mean), abs=1e-12)


def test_p_values_are_those_of_students_t():
    rng = np.random.default_rng(0)
    time, left, right = np.repeat(np.arange(12), 10), rng.normal(0, 1, 120), rng.normal(0, 1, 120)
    found = associate(left, right, time)
    products = [
        float(
            (
                date_ranks(left[time == t], time[time == t]) * date_ranks(right[time == t], time[time == t])
            ).sum()
        )
        for t in range(12)
    ]
    assert found.p == pytest.approx(stats.ttest_1samp(products, 0).pvalue, rel=0.02)
    assert found.dates == 12


def test_the_table_says_what_each_check_cannot_see(panel, images):
    found = audit(panel, images, limit=100, date=["2000-03-01", "2000-06-01"])
    text = str(found)
    lines = text.splitlines()
    assert lines[0] == "audit: no leak found; 2 of 7 could not tell"
    assert lines[2].split() == ["check", "dates", "result", "cannot", "see"]
    assert "windows that were not drawn again" in found["images"].cannot_see
    assert all(check.cannot_see.split()[0] in text for check in found.checks)
    with pytest.raises(KeyError, match="no check 'image': this audit has images, windows"):
        found["image"]
    assert max(map(len, lines)) <= 130


def test_the_command_prints_the_table_and_fails_on_a_leak(frame, panel, tmp_path):
    from click.testing import CliRunner

    from pricepix import cli

    leaky = frame.with_columns(eligible=pl.Series(~(forward_change(panel, 1) < 0)))
    for name, table, code in (("sound", frame, 0), ("leaky", leaky, 1)):
        table.write_parquet(tmp_path / f"{name}.parquet")
        pp.render_universe(
            tmp_path / f"{name}.parquet", "jkx5", tmp_path / name, horizons=(5,), every="week", progress=False
        )
        arguments = [str(tmp_path / f"{name}.parquet"), str(tmp_path / name), "--no-progress"]
        result = CliRunner().invoke(cli.main, ["audit", *arguments], catch_exceptions=False)
        assert result.exit_code == code, result.output
        assert "cannot see" in result.output
        assert ("audit: 1 of 7 checks found a leak" in result.output) == bool(code)
