"""Augmentations: what is drawn, bar by bar; labels that follow; the same whoever reads; never outside training."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pricepix as pp
from pricepix import Augment
from pricepix.images.augment import mirror

SPECS = {
    **{name: pp.ImageSpec.preset(name) for name in ("jkx5", "jkx20", "it9", "cnnft5")},
    "pixel": pp.ImageSpec(20, chart="pixel", ma=(5, 20), volume=True),
    "merged": pp.ImageSpec(20, height=31, aggregate=4, ma=(8,), ma_warmup="omit"),
    "per_field": pp.ImageSpec(9, style="image_trading", scale="per_field", max_missing=2),
    "rebuilt": pp.ImageSpec(20, ma=(20,), volume=True, rebuild="returns"),
}


@pytest.fixture(scope="module")
def panel() -> pp.Panel:
    """With halts, so that bars are missing."""
    table = pp.samples.simulate(8, 120, seed=3, halt_rate=0.02, list_late=0.4, delist_rate=0.004)
    return pp.Panel.from_table(table, progress=False)


def panel_of(bars: Any, **fields: Any) -> pp.Panel:
    """Daily bars of one instrument: rows of open, high, low, close, volume."""
    columns = np.asarray(bars, float).T[:, :, None]
    days = np.datetime64("2020-01-01") + np.arange(len(bars))
    extra = {name: np.asarray(values)[:, None] for name, values in fields.items()}
    return pp.Panel.from_arrays(*columns, time=days, instruments=["A"], progress=False, **extra)


def drawn(images: pp.PanelImages, augment: Any, epoch: int = 0, **options: Any) -> tuple[Any, Any, Any]:
    """Images, positions and flags of an epoch, in the order of the windows asked for."""
    batches = list(images.batches(augment=augment, shuffle=False, **options).epoch(epoch))
    return tuple(np.concatenate([np.array(batch[k]) for batch in batches]) for k in range(3))  # type: ignore[return-value]


class TestPixels:
    @pytest.mark.parametrize("spec", SPECS)
    def test_nothing_by_default(self, panel: pp.Panel, spec: str) -> None:
        images = pp.PanelImages(panel, SPECS[spec], horizons=())
        pixels, index, mirrored = drawn(images, Augment())
        np.testing.assert_array_equal(pixels, images.read())
        np.testing.assert_array_equal(index, np.arange(len(images)))
        assert not mirrored.any()

    def test_mirrored_by_hand(self) -> None:
        images = pp.PanelImages(
            panel_of([[1, 3, 1, 2, 0], [2, 3, 2, 3, 0]]), pp.ImageSpec(2, height=3), horizons=()
        )
        assert (images.read()[0] // 255).tolist() == [
            [0, 1, 0, 0, 1, 1],
            [0, 1, 1, 1, 1, 0],
            [1, 1, 0, 0, 0, 0],
        ]
        pixels, _, mirrored = drawn(images, Augment(invert=1.0))
        assert (pixels[0] // 255).tolist() == [[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 1, 1]]
        assert mirrored.tolist() == [True]

    def test_mirrored_numbers(self) -> None:
        bars = np.array(
            [[[2.0, 5.0, 1.0, 4.0, 7.0], [np.nan, np.nan, np.nan, np.nan, 0.0], [3.0, 9.0, np.nan, 3.0, 8.0]]]
        )
        expected = [[8.0, 9.0, 5.0, 6.0, 7.0], [np.nan] * 4 + [0.0], [7.0, np.nan, 1.0, 7.0, 8.0]]
        np.testing.assert_array_equal(mirror(bars)[0], expected)
        np.testing.assert_array_equal(mirror(mirror(bars)), bars)

    @given(data=st.data())
    def test_mirrored_is_upside_down(self, data: Any) -> None:
        """Prices on the image's own levels, averages too: then no rounding can go either way."""
        steps = st.integers(0, 12).map(lambda k: 2.0 * k)
        rows = []
        for _ in range(8):
            o, c, a, b = (data.draw(steps) for _ in range(4))
            rows.append(
                [o + 4, max(o, c, a, b) + 4, min(o, c, a, b) + 4, c + 4, data.draw(st.integers(1, 9))]
            )
        # Each window of 4 bars sees the highest and the lowest price.
        for row in rows[::2]:
            row[1], row[2] = 28.0, 4.0
        spec = pp.ImageSpec(4, height=32, ma=(2,), volume=True)
        images = pp.PanelImages(panel_of(rows), spec, horizons=())
        plain, (pixels, _, mirrored) = images.read(), drawn(images, Augment(invert=1.0))
        assert mirrored.all()
        prices = 32 - 32 // 5 - 1
        assert prices == 25
        np.testing.assert_array_equal(pixels[:, :prices], plain[:, :prices][:, ::-1])
        np.testing.assert_array_equal(pixels[:, prices:], plain[:, prices:])

    def test_limits_change_places(self) -> None:
        """A flat window is drawn by its limits: at the upper one upside down is at the lower one."""
        flat = [[5.0, 5.0, 5.0, 5.0, 1.0]] * 9
        up, down = np.ones(9, bool), np.zeros(9, bool)
        one = pp.PanelImages(panel_of(flat, up_limit=up, down_limit=down), "it9", horizons=())
        other = pp.PanelImages(panel_of(flat, up_limit=down, down_limit=up), "it9", horizons=())
        assert one.read().any()
        pixels, _, _ = drawn(one, Augment(invert=1.0))
        np.testing.assert_array_equal(pixels, other.read())

    def test_missing_bars_stay_missing(self, panel: pp.Panel) -> None:
        images = pp.PanelImages(panel, pp.ImageSpec(5, volume=True), horizons=())
        missing = np.isnan(panel.bars[images.windows.row[:, None] + np.arange(-4, 1), 1])
        assert missing.any()
        pixels, _, mirrored = drawn(images, Augment(invert=1.0, rescale_volume=(0.5, 2.0)))
        assert mirrored.all()
        columns = pixels.reshape(len(images), 32, 5, 3).any(axis=(1, 3))
        assert not columns[missing].any()
        assert columns[~missing].all()

    def test_dropped_bars(self, panel: pp.Panel) -> None:
        """Nothing of them is drawn, the average goes on, and the rest is drawn from the bars left."""
        alone = pp.ImageSpec(20, height=64)
        pixels, _, _ = drawn(pp.PanelImages(panel, alone, horizons=()), Augment(drop_bars=0.3))
        empty = ~pixels.reshape(len(pixels), 64, 20, 3).any(axis=(1, 3))
        assert 0.25 < empty.mean() < 0.36
        # By hand, what the first windows must look like.
        whole = pp.PanelImages(panel, alone, horizons=())
        for i in range(5):
            row = whole.windows.row[i]
            bars = panel.bars[row - 19 : row + 1].copy()
            bars[empty[i][:, None] & np.array([True, True, True, False, True])] = np.nan
            np.testing.assert_array_equal(pp.render_windows([bars], alone).images[0], pixels[i])
        clean = pp.samples.simulate(3, 80, halt_rate=0, list_late=0, delist_rate=0)
        images = pp.PanelImages(clean, pp.ImageSpec(20, ma=(20,), volume=True), horizons=())
        averages, _, _ = drawn(images, Augment(drop_bars=0.5))
        assert averages.reshape(len(images), 64, 20, 3)[:, :51].any(axis=(1, 3)).all()
        assert not averages.reshape(len(images), 64, 20, 3)[:, 52:].any(axis=(1, 3)).all()

    def test_windows_with_nothing_left_are_drawn_as_they_are(self) -> None:
        rows = [[1, 3, 1, 2, 0], [2, 3, 2, 3, 0], [2, 4, 2, 3, 0]]
        images = pp.PanelImages(panel_of(rows), pp.ImageSpec(2, height=3), horizons=())
        for epoch in range(40):
            pixels, _, mirrored = drawn(images, Augment(drop_bars=0.95, invert=1.0), epoch)
            assert pixels.any(axis=(1, 2)).all()
            plain = (pixels == images.read()).all(axis=(1, 2))
            assert plain[~mirrored].all()

    def test_without_averages(self, panel: pp.Panel) -> None:
        spec = SPECS["jkx20"]
        images = pp.PanelImages(panel, spec, horizons=())
        bare = np.empty_like(images.read())
        for i, row in enumerate(images.windows.row):
            bare[i] = pp.render_windows([panel.bars[row - 19 : row + 1]], spec.replace(ma=())).images[0]
        pixels, _, _ = drawn(images, Augment(ma=0.0))
        np.testing.assert_array_equal(pixels, bare)
        some, _, _ = drawn(images, Augment(ma=0.5))
        without = (some == bare).all(axis=(1, 2))
        assert 0.4 < without.mean() < 0.6
        np.testing.assert_array_equal(some[~without], images.read()[~without])

    def test_volumes(self, panel: pp.Panel) -> None:
        images = pp.PanelImages(panel, "jkx20", horizons=())
        # The same factor for all bars leaves their heights.
        same, _, _ = drawn(images, Augment(rescale_volume=(4.0, 4.0)))
        np.testing.assert_array_equal(same, images.read())
        pixels, _, _ = drawn(images, Augment(rescale_volume=(0.5, 2.0)))
        np.testing.assert_array_equal(pixels[:, :51], images.read()[:, :51])
        assert (pixels[:, 52:] != images.read()[:, 52:]).any(axis=(1, 2)).mean() > 0.95


class TestJitter:
    def test_ends_at_earlier_windows_of_the_selection(self, panel: pp.Panel) -> None:
        images = pp.PanelImages(panel, "jkx5", horizons=(5,))
        chosen = np.flatnonzero(np.random.default_rng(0).random(len(images)) < 0.7)
        pixels, index, _ = drawn(images, Augment(jitter_end=3), mask=chosen)
        row, instrument = images.windows.row, images.windows.instrument
        assert np.isin(index, chosen).all()
        np.testing.assert_array_equal(instrument[index], instrument[chosen])
        back = row[chosen] - row[index]
        assert set(back) == {0, 1, 2, 3}
        np.testing.assert_array_equal(pixels, images.read(index))
        # A quarter of the windows keeps its end, and so do those whose earlier window was not chosen.
        assert 0.25 < (back == 0).mean() < 0.6

    def test_the_label_is_that_of_the_window_drawn(self, panel: pp.Panel) -> None:
        images = pp.PanelImages(panel, "jkx5", horizons=(5,))
        whole = images.read()
        for batch in images.batches(augment=Augment(jitter_end=5), seed=1):
            np.testing.assert_array_equal(batch.images, whole[batch.index])


class TestChance:
    AUGMENT = Augment(jitter_end=2, rescale_volume=(0.5, 2.0), invert=0.5, drop_bars=0.1, ma=0.5)

    def by_window(self, reader: Any, epoch: int) -> dict[int, tuple[bytes, int, bool]]:
        asked = [index for index in reader._indices(epoch, 0)]
        found = {}
        for wanted, (pixels, index, mirrored) in zip(asked, reader.epoch(epoch), strict=True):
            for i, window in enumerate(wanted):
                found[int(window)] = (pixels[i].tobytes(), int(index[i]), bool(mirrored[i]))
        return found

    def test_the_same_whoever_reads(self, panel: pp.Panel) -> None:
        images = pp.PanelImages(panel, "jkx5", horizons=())
        options: dict[str, Any] = {"augment": self.AUGMENT, "seed": 5}
        expected = self.by_window(images.batches(**options, batch_size=64, prefetch=0), 3)
        assert len(expected) == len(images)
        for changed in (
            {"batch_size": 7}, {"threads": 3}, {"prefetch": 3}, {"shuffle": False}, {"batch_size": 1000},
        ):  # fmt: skip
            assert self.by_window(images.batches(**(options | changed)), 3) == expected
        shared: dict[int, Any] = {}
        for rank in range(2):
            for worker in range(2):
                reader = images.batches(**options, rank=rank, ranks=2, worker=worker, workers=2)
                shared |= self.by_window(pickle.loads(pickle.dumps(reader)), 3)
        assert shared == expected
        later = dict(zip(range(10**6), images.batches(**options, batch_size=64).epoch(3, 2), strict=False))
        whole = list(images.batches(**options, batch_size=64).epoch(3))
        np.testing.assert_array_equal(later[0].images, whole[2].images)

    def test_epochs_and_seeds_differ(self, panel: pp.Panel) -> None:
        images = pp.PanelImages(panel, "jkx5", horizons=())
        first = self.by_window(images.batches(augment=self.AUGMENT, seed=1), 0)
        for seed, epoch in ((1, 1), (2, 0)):
            other = self.by_window(images.batches(augment=self.AUGMENT, seed=seed), epoch)
            assert np.mean([first[i] == other[i] for i in first]) < 0.3

    def test_chances_are_those_asked_for(self, panel: pp.Panel) -> None:
        images = pp.PanelImages(panel, "jkx5", horizons=())
        flags = [drawn(images, Augment(invert=0.3), epoch)[2] for epoch in range(6)]
        assert abs(np.mean(flags) - 0.3) < 0.03
        assert abs(np.corrcoef(flags[0], flags[1])[0, 1]) < 0.15


class TestBadInput:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"jitter_end": -1}, "jitter_end=-1: give a whole number of bars from"),
            ({"jitter_end": 1.5}, r"jitter_end=1\.5"),
            ({"invert": 1.1}, r"invert=1\.1 is not a probability"),
            ({"invert": float("nan")}, "invert=nan"),
            ({"invert": "often"}, "invert='often'"),
            ({"drop_bars": 1.0}, "would leave no bar"),
            ({"ma": None}, "ma=None"),
            ({"rescale_volume": 2}, "rescale_volume=2 is not a range"),
            ({"rescale_volume": (2, 1)}, "is not a range of factors"),
            ({"rescale_volume": (0, 1)}, "is not a range of factors"),
        ],
    )
    def test_values(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Augment(**fields)

    def test_dicts(self) -> None:
        augment = Augment(jitter_end=2, rescale_volume=(0.5, 2), invert=0.5)
        assert Augment.of(augment.to_dict()) == augment == Augment.of(augment)
        with pytest.raises(TypeError, match="no augmentation 'inverted'; did you mean 'invert'"):
            Augment.of({"inverted": 0.5})
        with pytest.raises(TypeError, match="augment is a float"):
            Augment.of(0.5)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("augment", "spec", "message"),
        [
            (Augment(rescale_volume=(0.5, 2)), pp.ImageSpec(5), "the spec draws none"),
            (Augment(ma=0.5), pp.ImageSpec(5), "the spec draws none"),
            (Augment(invert=0.5), SPECS["rebuilt"], "makes them from returns"),
            (
                Augment(drop_bars=0.1),
                pp.ImageSpec.preset("cnnft20"),
                "style='cnn_for_trading' draws no window",
            ),
            (Augment(drop_bars=0.1), SPECS["per_field"], "scale='per_field' draws no window"),
        ],
    )
    def test_specs(self, panel: pp.Panel, augment: Augment, spec: pp.ImageSpec, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            pp.PanelImages(panel, spec, horizons=()).batches(augment=augment)

    @pytest.mark.parametrize("spec", [*pp.ImageSpec.presets(), "pixel", "merged"])
    def test_dropped_bars_show_in_every_style_that_takes_them(self, spec: str) -> None:
        """And hinder nothing else: as many windows are mirrored."""
        whole = pp.samples.simulate(4, 400, seed=1, halt_rate=0, delist_rate=0)
        images = pp.PanelImages(whole, SPECS.get(spec) or pp.ImageSpec.preset(spec), horizons=())
        if images.spec.style == "cnn_for_trading":
            pytest.skip("draws no window with a missing bar")
        found, which, mirrored = drawn(images, Augment(drop_bars=0.1, invert=0.5))
        assert abs(mirrored.mean() - 0.5) < 0.1
        _, _, alone = drawn(images, Augment(invert=0.5))
        np.testing.assert_array_equal(mirrored, alone)
        upright = ~mirrored
        differ = (found[upright] != images.read(which[upright])).any(axis=(1, 2))
        assert differ.mean() > 1 - 0.9**images.spec.bars - 0.1

    def test_jitter_without_neighbours(self, panel: pp.Panel) -> None:
        images = pp.PanelImages(panel, "jkx5", horizons=(), every=5)
        with pytest.raises(
            ValueError, match=r"jitter_end=2 takes windows .* none of the .* has such a neighbour"
        ):
            images.batches(augment=Augment(jitter_end=2))
        assert len(images.batches(augment=Augment(jitter_end=5))) > 0


class TestTraining:
    def test_weights_are_of_the_classes_as_seen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half of the windows mirrored: as many rise as fall, whatever the market did."""
        pytest.importorskip("torch")
        from pricepix import train
        from pricepix.train import run

        seen = []
        monkeypatch.setattr(run, "train_member", lambda member, *_: seen.append(member.class_weights) or {})
        panel = pp.samples.simulate(6, 150, seed=2, halt_rate=0, delist_rate=0)
        images = pp.PanelImages(panel, "jkx5", horizons=(5,))
        for chance in (0.0, 0.5, 1.0):
            with pytest.raises(FileNotFoundError):
                train.fit(
                    images,
                    "jkx5",
                    balance="weights",
                    augment=Augment(invert=chance),
                    out=tmp_path / str(chance),
                )
        plain, half, turned = seen
        assert plain[0] != plain[1]
        assert half.tolist() == pytest.approx([1, 1], abs=0.02)
        assert turned.tolist() == pytest.approx(plain.flip(0).tolist(), abs=0.02)

    def test_mirrored_labels(self, panel: pp.Panel) -> None:
        torch = pytest.importorskip("torch")
        from pricepix.train.loader import Loader
        from pricepix.train.targets import make_targets

        images = pp.PanelImages(panel, "jkx5", horizons=(5,))
        returns = images.returns(5).copy()
        returns[:50] = 0.0
        for kind in ("up", "return", "terciles"):
            targets, opposite = (make_targets(kind, sign * returns, images.time) for sign in (1, -1))
            reader = images.batches(mask=targets.usable, augment=Augment(invert=0.5), batch_size=64)
            flags = torch.from_numpy(np.concatenate([b.mirrored for b in reader.epoch(2)]))
            index = torch.from_numpy(np.concatenate([b.index for b in reader.epoch(2)]))
            values, other = torch.from_numpy(targets.values), torch.from_numpy(opposite.values)
            given = torch.cat([batch[1] for batch in Loader(reader, values, other).epoch(2)])
            assert torch.equal(given[~flags], values[index][~flags])
            found, before = given[flags], values[index][flags]
            if kind == "return":
                assert torch.equal(found, -before)
            elif kind == "up":
                # A return of 0 is no rise either way.
                still = torch.from_numpy(returns)[index][flags] == 0
                assert torch.equal(found[~still], 1 - before[~still])
                assert (found[still] == 0).all()
            else:
                assert (found == 2 - before).double().mean() > 0.8

    def test_recorded_resumed_and_only_in_training(self, tmp_path: Path, panel: pp.Panel) -> None:
        torch = pytest.importorskip("torch")
        pytest.importorskip("lightning")
        from pricepix import train
        from pricepix.train.loop import Trainer

        images = pp.PanelImages(panel, "jkx5", horizons=(5,))
        network = train.CNNSpec("small", 32, 15, (train.ConvBlock(4, pool=(4, 1)),))
        augment = Augment(jitter_end=1, invert=0.5, drop_bars=0.1)
        options: dict[str, Any] = {
            "epochs": 2, "batch_size": 64, "lr": 1e-3, "patience": None, "progress": False, "device": "cpu",
            "checkpoint_minutes": 0.0,
        }  # fmt: skip

        def weights(name: str) -> Any:
            return torch.load(tmp_path / name / "member_0" / "last.ckpt", weights_only=True)["state_dict"]

        def same(one: str, other: str) -> bool:
            a, b = weights(one), weights(other)
            return all(torch.equal(a[k], b[k]) for k in a)

        whole = train.fit(images, network, out=tmp_path / "whole", augment=augment, **options)
        assert whole.config["augment"] == augment.to_dict()
        assert whole.model.metadata["augment"] == augment.to_dict()
        train.fit(images, network, out=tmp_path / "plain", **options)
        assert not same("whole", "plain")
        original = Trainer.training_step

        def dying(trainer: Trainer, inputs: Any, target: Any) -> Any:
            if trainer.step == 9:
                raise RuntimeError("killed")
            return original(trainer, inputs, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "training_step", dying)
            with pytest.raises(RuntimeError, match="killed"):
                train.fit(images, network, out=tmp_path / "cut", augment=augment.to_dict(), **options)
        with pytest.raises(ValueError, match="was started with another augment"):
            train.fit(images, network, out=tmp_path / "cut", resume=True, **options)
        train.fit(images, network, out=tmp_path / "cut", augment=augment, resume=True, **options)
        assert same("cut", "whole")
        seen = []
        original_validation = Trainer.validation_step

        def watching(trainer: Trainer, inputs: Any, *others: Any) -> None:
            seen.append(inputs.numpy().copy())
            original_validation(trainer, inputs, *others)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "validation_step", watching)
            train.fit(images, network, out=tmp_path / "again", augment=augment, **(options | {"epochs": 1}))
        validation = whole.folds[0].fold.validation
        np.testing.assert_array_equal(np.concatenate(seen), images.read(validation))

    def test_a_store_has_its_images(self, panel: pp.Panel) -> None:
        pytest.importorskip("torch")
        from pricepix import train

        store = pp.render_universe(panel, "jkx5", horizons=(5,), progress=False)
        with pytest.raises(ValueError, match=r"store memory has its images: give PanelImages"):
            train.fit(store, "jkx5", augment=Augment(invert=0.5))
