"""What a factor came from: whether a panel's bars differ, and which dates its model has seen."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from factor_files import change_attributes, change_values
from markupsafe import escape

import pricepix as pp
from pricepix import cli
from pricepix.factor import DifferentPanelWarning, evaluate, open_cache, score
from pricepix.factor.panel_check import shape_digest
from pricepix.factor.training_overlap import training_overlap, training_summary

OPTIONS = {"quantiles": 5, "baselines": (), "progress": False}
DAYS = np.datetime64("2000-01-01", "ns") + np.arange(30) * np.timedelta64(1, "D")
CALENDAR = DAYS.astype(np.int64)


def ink(images: np.ndarray) -> np.ndarray:
    return (images > 0).mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def bars():
    """With splits, a factor to undo them, and no total returns."""
    return pp.samples.simulate(30, 200, seed=5, split_rate=0.004).drop("total_return")


@pytest.fixture(scope="module")
def adjusted(bars):
    return pp.Panel.from_table(bars, adjust="multiply", progress=False)


@pytest.fixture(scope="module")
def raw(bars):
    return pp.Panel.from_table(bars, progress=False)


@pytest.fixture(scope="module")
def on_disk(adjusted, tmp_path_factory):
    where = tmp_path_factory.mktemp("origin") / "store.zarr"
    return pp.render_universe(adjusted, "jkx5", where, horizons=(5,), progress=False)


@pytest.fixture(scope="module")
def caches(adjusted, on_disk):
    """Scores of the same images, wherever they lie."""
    options = {"panel": adjusted, "spec": "jkx5", "horizons": (5,)}
    images = {
        "store": on_disk,
        "loaded": on_disk.load(),
        "memory": pp.render_universe(store=None, progress=False, **options),
        "panel images": pp.PanelImages(**options),
        "no returns": pp.PanelImages(adjusted, "jkx5", horizons=()),
    }
    return {name: score(of, ink, None, progress=False) for name, of in images.items()}


GENERAL = (
    "nothing is known of",
    "the horizon of",
    "span fewer than",
    "of instruments whose rows end",
    "was not applied (adjust=None)",
)


def specific(found):
    """Notes of an evaluation, without those that any function on a short market has."""
    return [note for note in found.notes if not any(part in note for part in GENERAL)]


# ------------------------------------------------------------------------------------------------- bars


@pytest.mark.parametrize("kind", ["store", "loaded", "memory", "panel images", "no returns"])
def test_a_panel_read_without_its_adjustment_is_told(caches, adjusted, raw, kind, tmp_path):
    with pytest.warns(DifferentPanelWarning, match="rows have an adjustment factor that was not") as told:
        found = evaluate(caches[kind], raw, horizon=5, **OPTIONS)
    assert len(told) == 1
    (note,) = specific(found)
    assert str(told[0].message) == note
    assert raw.digest in note
    assert f"{raw.report.notes['unapplied_factor']} of its rows have an adjustment factor" in note
    assert (adjusted.digest if kind != "memory" else "not recorded") in note
    if kind == "no returns":
        assert "rows and fields are the same, their times or values are not" in note
    else:
        assert "returns that its images are labelled with differ" in note
    assert note in repr(found)
    page = pp.factor.write_report(found, tmp_path / "r.html").read_text()
    assert page.index(escape(note)) < page.index("mean rank IC")
    assert specific(evaluate(caches[kind], adjusted, horizon=5, **OPTIONS)) == []


def test_other_panels_with_the_same_bars_are_not_told(bars, adjusted, raw, caches):
    days = bars["time"].unique().sort()
    early = pp.Panel.from_table(bars.filter(pl.col("time") <= days[150]), adjust="multiply", progress=False)
    short = score(pp.PanelImages(early, "jkx5", horizons=(5,)), ink, None, progress=False)
    late = {"start": str(days[40]), "horizon": 5, **OPTIONS}
    cap = pl.Series("market_cap", np.arange(1.0, len(bars) + 1))
    more = pp.Panel.from_table(bars.with_columns(cap), adjust="multiply", progress=False)
    tenfold = bars.with_columns(pl.col("open", "high", "low", "close") * 10.0)
    assert specific(evaluate(short, adjusted, horizon=5, **OPTIONS)) == []
    for cache in (short, caches["store"], caches["no returns"]):
        assert specific(evaluate(cache, adjusted.select(start=str(days[30])), **late)) == []
        assert specific(evaluate(cache, more, **late)) == []
    # Panels of the same shape: the same returns from other prices, and the last 150 days a day later.
    scaled = pp.Panel.from_table(tenfold, adjust="multiply", progress=False)
    assert specific(evaluate(caches["store"], scaled, **late)) == []
    assert specific(evaluate(short, scaled, **late)) == []
    ever = bars.filter(pl.len().over("instrument") == len(days))
    rolling = [
        pp.Panel.from_table(
            ever.filter(pl.col("time").is_between(days[k], days[k + 150])), adjust="multiply", progress=False
        )
        for k in (40, 41)
    ]
    assert len(rolling[0]) == len(rolling[1]) > 151
    before = score(pp.PanelImages(rolling[0], "jkx5", horizons=(5,)), ink, None, progress=False)
    assert before.attrs["panel_shape"] == shape_digest(pp.PanelImages(rolling[1], "jkx5", horizons=(5,)))
    assert specific(evaluate(before, rolling[1], **late)) == []
    # What begins later and continues further is recognised by its returns all the same.
    with pytest.warns(DifferentPanelWarning, match="returns that its images are labelled with differ"):
        evaluate(short, raw.select(start=str(days[30])), **late)


def test_total_returns_that_agree_are_the_same_market():
    bars = pp.samples.simulate(10, 120, seed=5, split_rate=0.004)
    adjusted, raw = (pp.Panel.from_table(bars, adjust=how, progress=False) for how in ("multiply", None))
    cache = score(pp.PanelImages(adjusted, "jkx5", horizons=(5,)), ink, None, progress=False)
    assert specific(evaluate(cache, raw, horizon=5, **OPTIONS)) == []
    with pytest.warns(DifferentPanelWarning, match="their times or values are not"):
        evaluate(cache, raw, horizon=5, price="close", **OPTIONS)


def test_stores_and_panels_agree_on_the_shape(on_disk, adjusted, raw):
    assert shape_digest(on_disk) == shape_digest(pp.PanelImages(adjusted, "jkx5"))
    fewer = adjusted.select(adjusted.instruments[1:].tolist())
    assert shape_digest(on_disk) != shape_digest(pp.PanelImages(fewer, "jkx5"))


def test_caches_without_labels_say_nothing_of_bars(on_disk, raw, tmp_path):
    """They lack what a comparison needs, and are read as they were."""
    where = tmp_path / "f.zarr"
    score(on_disk, ink, where, progress=False)
    change_values(where, open_cache(where).factor[:], labels=False)
    model = {name: value for name, value in open_cache(where).attrs["model"].items() if name != "seen"}
    change_attributes(where, {"model": model}, removed=("panel_shape",))
    assert specific(evaluate(where, raw, horizon=5, **OPTIONS)) == []
    assert score(on_disk, ink, where, progress=False).attrs["complete"]


def test_the_command_line_says_it_once(bars, on_disk, tmp_path):
    bars.write_parquet(tmp_path / "bars.parquet")
    score(on_disk, ink, tmp_path / "f.zarr", progress=False)
    command = ["evaluate", *(str(tmp_path / name) for name in ("f.zarr", "bars.parquet", "r.html"))]
    command += ["--horizon", "5", "--quantiles", "5", "--no-progress"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = CliRunner().invoke(cli.main, command)
        assert done.exit_code == 0, done.output
        assert done.stdout.count("differ from those that the factor was scored from") == 1
        assert "unapplied_factor" in done.stderr
        done = CliRunner().invoke(cli.main, [*command, "--adjust", "multiply"])
    assert "differ" not in done.stdout
    assert "unapplied_factor" not in done.stderr


def test_images_bring_their_panel(adjusted, caches, on_disk):
    images = pp.PanelImages(adjusted, "jkx5", horizons=(5,))
    found = evaluate(caches["panel images"], images, horizon=5, **OPTIONS)
    assert found.figures["lineage"]["panel_digest"] == adjusted.digest
    with pytest.raises(ValueError, match=r"store .* has images and no bars: give the panel"):
        evaluate(caches["store"], on_disk, horizon=5, **OPTIONS)


# ------------------------------------------------------------------------------------------------- seen


def said(train, validation=None, through=None, **more):
    """What a checkpoint says of its training: days of the last images and of the last exit."""
    found = {"train": {"images": 1, "last": str(DAYS[train])[:10]}, **more}
    if validation is not None:
        found["validation"] = {"images": 1, "last": str(DAYS[validation])[:10]}
    if through is not None:
        found["seen_through"] = str(DAYS[through])[:10]
    return found


def seen_days(model, shift=0, first=0):
    seen, _, whole = training_overlap(model, CALENDAR[first:], CALENDAR, shift, None)
    return (np.flatnonzero(seen) + first).tolist(), whole


def test_out_of_sample_begins_at_the_last_exit_of_training_and_validation():
    whole = {"seen": [training_summary([said(5, 9, 14)], None)]}
    assert seen_days(whole) == (list(range(14)), True)
    # Folds and ensembles: the one that saw most decides.
    assert seen_days(
        {"seen": [training_summary([said(5, 9, 14), said(5, 12, 17), said(5, 6, 11)], None)]}
    ) == (
        list(range(17)),
        True,
    )
    # A value moved on by more than the horizon is still that of an image which was learned.
    assert seen_days(whole, shift=8, first=8) == (list(range(8, 18)), True)


def test_checkpoints_of_before_are_taken_to_have_seen_their_labels():
    early = said(5, horizon=3, delay=1)
    for model in ({"metadata": early}, {"seen": [training_summary([early], None)]}):
        assert seen_days(model) == (list(range(9)), False)
    assert seen_days({"metadata": said(5)}) == (list(range(6)), False)
    # Labels that end after the data do not reach further than them.
    assert seen_days({"metadata": said(28, horizon=20)}) == (list(range(29)), False)
    for unknown in ({"metadata": {}}, {"metadata": None}, {}, {"seen": []}):
        assert training_overlap(unknown, CALENDAR, CALENDAR, 0, None)[0].sum() == 0
    odd = {"train": {"last": "long ago"}, "validation": "some", "seen_through": None}
    assert training_overlap({"metadata": odd}, CALENDAR, CALENDAR, 0, None)[:2][1] is None


def test_folds_are_held_to_their_own_test_period():
    stages = [
        training_summary([said(4, 6, 10)], None, int(CALENDAR[10]), int(CALENDAR[19])),
        training_summary([said(12, 16, 22)], None, int(CALENDAR[20]), int(CALENDAR[29])),
    ]
    # The second has seen two days of its own period.
    assert seen_days({"seen": stages}) == ([20, 21], True)


def test_dates_that_trained_or_validated_are_told_everywhere(tmp_path):
    pytest.importorskip("lightning")
    from pricepix import train

    bars = pp.samples.simulate(12, 160, seed=1, delist_rate=0)
    panel = pp.Panel.from_table(bars, adjust="multiply", progress=False)
    images = pp.PanelImages(panel, "jkx5", horizons=(5,), delay=1)
    tiny = train.CNNSpec("tiny", 32, 15, (train.ConvBlock(2, pool=(4, 1)),))
    run = train.fit(
        images, tiny, test="2000-06-15:", out=tmp_path / "run", epochs=1, batch_size=64, ensemble=2,
        device="cpu", progress=False,
    )  # fmt: skip
    fold = run.folds[0].fold
    learned = np.concatenate([fold.train, fold.validation])
    through = int(images.exit_time(5)[learned].max())
    assert panel.as_time(run.model.metadata["seen_through"]) == through
    assert panel.as_time(run.model.metadata["validation"]["last"]) == images.time[fold.validation].max()

    cache = score(images, run, tmp_path / "f.zarr", progress=False)
    found = evaluate(cache, images, **OPTIONS)
    # Neither was given, and both are what the images were labelled with.
    assert (found.figures["horizon"], found.figures["delay"]) == (5, 1)
    data, (note,) = found.figures["data"], specific(found)
    assert data["dates_seen"] == np.count_nonzero(np.unique(images.time) < through)
    assert data["seen_through"] == data["first_date_unseen"] == "2000-06-15"
    assert note == (
        f"{data['dates_seen']} of the 152 dates are not out of sample: the model has seen returns through "
        "2000-06-15, in training or validation. Evaluate it with start='2000-06-15'"
    )
    assert note in repr(found)
    assert escape(note) in Path(pp.factor.write_report(found, tmp_path / "r.html")).read_text()
    later = evaluate(cache, panel, start=data["first_date_unseen"], **OPTIONS)
    assert specific(later) == []
    assert "out of sample" not in repr(later)
    within = evaluate(cache, panel, end="2000-05-01", **OPTIONS)
    assert "No date is: score later images" in specific(within)[0]

    bars.write_parquet(tmp_path / "bars.parquet")
    command = ["evaluate", *(str(tmp_path / name) for name in ("f.zarr", "bars.parquet", "c.html"))]
    done = CliRunner().invoke(
        cli.main, [*command, "--adjust", "multiply", "--quantiles", "5", "--no-progress"]
    )
    assert done.exit_code == 0, done.output
    assert note in done.stdout
    assert "Evaluation(horizon 5, delay 1, 146 dates with returns: " in done.stdout


def test_a_shift_is_part_of_the_delay(adjusted):
    images = pp.PanelImages(adjusted, "jkx5", horizons=(5,), delay=2)
    for shift, delay in ((0, 2), (1, 1), (2, 0), (3, 0)):
        cache = score(images, ink, None, shift=shift, progress=False)
        found = evaluate(cache, adjusted, **OPTIONS).figures
        # A function records no horizon.
        assert (found["horizon"], found["delay"]) == (20, delay)
    assert evaluate(cache, adjusted, horizon=3, delay=4, **OPTIONS).figures["delay"] == 4


class Wrapper:
    def __init__(self, network):
        self.network = network

    def __call__(self, images):
        return self.network.predict(images)


def test_a_network_wrapped_in_a_function_is_recognised(adjusted):
    pytest.importorskip("torch")
    import functools

    from pricepix.factor.wrapped_networks import wrapped_networks
    from pricepix.train.models import Ensemble, PriceCNN

    images = pp.PanelImages(adjusted, "jkx5", horizons=(5,))
    network = PriceCNN("jkx5")
    network.metadata = {
        "train": {"images": 10, "last": str(adjusted.calendar[60].astype("M8[ns]"))[:10]}, "horizon": 5,
    }  # fmt: skip

    def closure(batch):
        return network.predict(batch)

    def with_argument(batch, model):
        return model.predict(batch)

    def default(batch, model=network):
        return model.predict(batch)

    for function in (closure, functools.partial(with_argument, model=network), default, Wrapper(network),
                     Wrapper(network).__call__, Wrapper(Ensemble([network, network]))):  # fmt: skip
        assert wrapped_networks(function)[0] is network
    assert wrapped_networks(ink) == []
    cache = score(images, closure, None, model_id="wrapped", progress=False)
    plain = score(images, network, None, progress=False)
    found, expected = (evaluate(c, adjusted, horizon=5, **OPTIONS) for c in (cache, plain))
    assert found.figures["data"]["dates_seen"] == expected.figures["data"]["dates_seen"] > 30
    assert [n for n in found.notes if "dates are not out of sample" in n]
    assert not [n for n in found.notes if "nothing is known of this model's training" in n]
