"""Stacks: several images of one window end, and fields beside them, aligned, read, trained on and scored."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pricepix as pp

SPECS = ("jkx5", "jkx20")


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    """Bars in which the next five are told by the last five, with a size and a sector."""
    bars = pp.samples.simulate(
        8, 120, seed=5, delist_rate=0, split_rate=0, halt_rate=0, list_late=0, bayes_accuracy=0.9
    )
    number = pl.col("instrument").str.slice(1).cast(pl.Float64)
    cap = pl.when(number == 3).then(None).otherwise(number * 10 + 1)
    return pp.Panel.from_table(bars.with_columns(market_cap=cap), progress=False)


FIELDS: dict[str, Any] = {"market_cap": "rank", "sector": ({f"S000{i}": i % 3 for i in range(8)}, "code")}


@pytest.fixture(scope="module")
def stack(panel: Any) -> pp.Stack:
    return pp.Stack.from_panel(panel, SPECS, (5,), fields=FIELDS)


def test_every_image_is_that_of_its_own_set(panel: Any, stack: Any) -> None:
    assert stack.spec.shape == (32 + 64 + 2, 60)
    for images, part in zip(stack.sets, stack.parts, strict=True):
        for i in (0, 17, len(stack) - 1):
            own = images.read([images.locate(stack.index["instrument"][i], stack.index["time"][i])])[0]
            canvas = stack.read([i])[0]
            np.testing.assert_array_equal(
                canvas[part.top : part.top + part.height, part.left : part.left + part.width], own
            )
            assert not canvas[part.top : part.top + part.height, : part.left].any()
    # The last bars stand above each other.
    assert {part.left + part.width for part in stack.parts} == {60}


def test_windows_that_all_have(panel: Any, stack: Any) -> None:
    one, two = (set(zip(s.index["instrument"], s.index["time"], strict=True)) for s in stack.sets)
    assert list(zip(stack.index["instrument"], stack.index["time"], strict=True)) == sorted(
        one & two, key=lambda key: (key[1], key[0])
    )
    for name in ("ret_5", "exit_time_5"):
        joined = stack.index.join(stack.sets[1].index, on=["instrument", "time"], suffix="_other")
        assert joined[name].equals(joined[f"{name}_other"])


def test_fields_by_hand(panel: Any, stack: Any) -> None:
    strips = stack.read()[:, -2:]
    assert (strips == strips[:, :, :1]).all()
    number = np.array([int(name[1:]) for name in stack.index["instrument"]])
    np.testing.assert_array_equal(strips[:, 1, 0], number % 3 + 1)
    size = strips[:, 0, 0]
    assert (size[number == 3] == 0).all()
    assert size[number == 0].min() > 0
    whole = stack.time == stack.time[-1]
    order = np.argsort(number[whole & (number != 3)])
    assert (np.diff(size[whole & (number != 3)][order].astype(int)) > 30).all()


def test_stores_stack_as_drawn_images_do(panel: Any, stack: Any, tmp_path: Path) -> None:
    stores = [
        pp.render_universe(panel, spec, tmp_path / spec, horizons=(5,), chunk=64, progress=False)
        for spec in SPECS
    ]
    other = pp.Stack(stores, fields=FIELDS, panel=panel)
    np.testing.assert_array_equal(other.read(), stack.read())
    np.testing.assert_array_equal(other.returns(5), stack.returns(5))
    assert other.attrs["stack"] == stack.attrs["stack"]
    again = pickle.loads(pickle.dumps(pp.Stack(stores)))
    np.testing.assert_array_equal(again.read([3]), pp.Stack(stores).read([3]))
    assert "lookbacks 5, 20" in repr(other)


def test_daily_and_weekly_images_of_one_day(panel: Any) -> None:
    weekly = pp.ImageSpec.preset("jkx20").replace(lookback=25, aggregate=5)
    both = pp.Stack.from_panel(panel, ("jkx5", weekly), (5,))
    assert both.spec.lookback == 25
    assert len(both) == len(both.sets[1])


def _drawn(panel: Any, **options: Any) -> pp.PanelImages:
    return pp.PanelImages(panel, "jkx5", (5,), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda panel: pp.Stack([_drawn(panel, end="2000-02"), _drawn(panel, start="2000-03")]),
            r"the 2 sets have no window in common: panel images .* has .*; panel images .* Draw them of one panel",
        ),
        (lambda panel: pp.Stack([_drawn(panel), _drawn(panel, delay=1)]), "has another delay than .*: 1, not 0"),
        (lambda panel: pp.Stack(["jkx5"]), r"sets: give one set of images or more; Stack\.from_panel"),
        (lambda panel: pp.Stack([]), "sets: give one set"),
        (lambda panel: pp.Stack.from_panel(panel, "jkx5"), "specs='jkx5': give the specs of a stack"),
        (lambda panel: pp.Stack.from_panel(panel, SPECS, fields=["size"]), "no field 'size', it has adjustment_fac"),
        (lambda panel: pp.Stack.from_panel(panel, SPECS, fields={"market_cap": "ranks"}), "did you mean 'rank'"),
        (lambda panel: pp.Stack.from_panel(panel, SPECS, fields={"x": (np.ones(3), "code")}), r"fields\['x'\] is fl"),
    ],
)  # fmt: skip
def test_what_cannot_be_stacked(panel: Any, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(panel)


def test_a_code_is_a_whole_number() -> None:
    from pricepix.images.stack import _codes

    np.testing.assert_array_equal(_codes(np.array([0.0, np.nan, 254.0]), "x"), [1, 0, 255])
    with pytest.raises(ValueError, match=r"field 'x' holds .*0.5.*: a code is a whole number from 0 to 254"):
        _codes(np.array([0.5]), "x")


class TestTraining:
    def test_a_stack_of_three(self, panel: Any, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        pytest.importorskip("lightning")
        from pricepix import factor, train
        from pricepix.train.loop import Trainer

        specs = [
            train.CNNSpec(f"n{width}", height, width, (train.ConvBlock(4, stride=(1, stride), pool=(4, 1)),))
            for height, width, stride in ((32, 15, 1), (64, 60, 3), (96, 180, 3))
        ]
        bars = pp.samples.simulate(
            8, 240, seed=5, delist_rate=0, split_rate=0, halt_rate=0, list_late=0, bayes_accuracy=0.9
        )
        long = pp.Panel.of(bars)
        size: dict[str, Any] = {"size": ({f"S000{i}": float(i) for i in range(8)}, "rank")}
        stack = pp.Stack.from_panel(long, ("jkx5", "jkx20", "jkx60"), (5,), fields=size)

        def towers() -> Any:
            return train.Towers(specs, fields=1, dropout=0.2)

        options: dict[str, Any] = {
            "batch_size": 32, "epochs": 4, "lr": 3e-3, "progress": False, "checkpoint_minutes": 0.0,
            "test": ("2000-10-01", None), "validation": 0.2,
        }  # fmt: skip

        def fit(out: str, **more: Any) -> Any:
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return train.fit(stack, towers, 5, out=tmp_path / out, **(options | more))
            finally:
                torch.set_num_threads(before)

        run = fit("x")
        assert run.test["accuracy"] > 0.5 + 2 * run.test["standard_error"]
        original = Trainer.training_step

        def dying(trainer: Trainer, inputs: Any, target: Any) -> Any:
            if trainer.step == 5:
                raise RuntimeError("killed")
            return original(trainer, inputs, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "training_step", dying)
            with pytest.raises(RuntimeError, match="killed"):
                fit("y")
        again = fit("y", resume=True)
        assert all(
            torch.equal(a, b) for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True)
        )
        cache = factor.score(stack, run.out, None, module=towers, progress=False)
        np.testing.assert_allclose(cache.of_windows(stack)[run.test_index], run.predictions, atol=1e-6)
        assert factor.evaluate(cache, long, horizon=5, quantiles=4).figures["ic"]["rank"]["mean"] > 0.1
        other = pp.Stack.from_panel(long, ("jkx5", "jkx20", "jkx60"), (5,), fields=dict(size))
        assert other.digest == stack.digest
        swapped = pp.Stack.from_panel(long, ("jkx5", "jkx60", "jkx20"), (5,), fields=size)
        with pytest.raises(ValueError, match="was trained on another stack of images"):
            factor.score(swapped, run.out, None, module=towers, progress=False)
        with pytest.raises(ValueError, match=r"does not take a stack of 2 images of 32x15, 64x60 pixels"):
            train.fit(pp.Stack.from_panel(long, SPECS, (5,)), towers, 5, out=tmp_path / "z", progress=False)
