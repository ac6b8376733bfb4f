"""Training with ``fast=True``: timed once, remembered, resumed as it was started; without it nothing changes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import pricepix as pp  # noqa: E402
from pricepix import train  # noqa: E402
from pricepix.train import fast as fast_module  # noqa: E402
from pricepix.train.device import Device  # noqa: E402
from pricepix.train.fast import fastest  # noqa: E402
from pricepix.train.loop import Trainer  # noqa: E402

SMALL = train.CNNSpec("small", 32, 15, (train.ConvBlock(8), train.ConvBlock(8)))
QUICK: dict[str, Any] = {
    "batch_size": 64, "epochs": 2, "lr": 3e-3, "progress": False, "checkpoint_minutes": 0.0,
    "test": ("2000-05-15", None),
}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pricepix" / "training.json"


@pytest.fixture(scope="module")
def images() -> pp.PanelImages:
    bars = pp.samples.simulate(8, 110, seed=5, delist_rate=0, split_rate=0, halt_rate=0, list_late=0)
    return pp.PanelImages(bars, "jkx5", horizons=(5,))


def cpu() -> Device:
    return Device().on("cpu")


def test_it_is_timed_once_remembered_and_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = train.PriceCNN(SMALL).train()
    state, weights = torch.random.get_rng_state(), network.linear.weight.clone()
    with caplog.at_level(logging.INFO, "pricepix.train"):
        found = fastest(cpu(), network, 64)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(weights, network.linear.weight)
    content = json.loads(cache.read_text())
    assert content["version"] == 1
    (rates,) = content["rates"].values()
    assert {"plain", "channels last"} <= set(rates)
    assert found.channels_last == (max(rates.values()) >= 1.05 * rates["plain"])
    assert "small trains" in caplog.text
    assert "images a second plain" in caplog.text
    monkeypatch.setattr(fast_module, "_measure", lambda *_: pytest.fail("measured again"))
    assert fastest(cpu(), network, 64) == found
    # What is known of this network decides.
    for plain, other in ((100.0, 104.0), (100.0, 106.0)):
        key = next(iter(content["rates"]))
        content["rates"][key] = {"plain": plain, "channels last": other}
        cache.write_text(json.dumps(content))
        assert fastest(cpu(), network, 64).channels_last == (other == 106.0)


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 9, "rates": {}}', "rates"])
def test_a_damaged_memory_is_measured_again(cache: Path, damage: str) -> None:
    network = train.PriceCNN(SMALL)
    cache.parent.mkdir(parents=True)
    if damage == "rates":
        damage = json.dumps({"version": 1, "rates": {fast_module._key(network, 64): {"plain": "x"}}})
    cache.write_text(damage)
    fastest(cpu(), network, 64)
    (rates,) = json.loads(cache.read_text())["rates"].values()
    assert rates["plain"] > 0


def test_what_was_asked_for_stays(cache: Path) -> None:
    network = train.PriceCNN(SMALL)
    for asked in (Device("cpu", 1, channels_last=True), Device("cpu", 1, "bf16-mixed")):
        assert fastest(asked, network, 64) == asked
    series = train.SeriesCNN("logistic5")
    assert fastest(cpu(), series, 64) == cpu()
    assert not cache.exists()


def test_a_run_is_resumed_as_it_was_started(
    images: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, and resumed where the plain way is the faster one: the same weights as of a run in one go."""
    monkeypatch.setattr(fast_module, "_measure", lambda *_: {"plain": 1.0, "channels last": 9.0})
    whole = train.fit(images, SMALL, 5, out=tmp_path / "x", fast=True, device="cpu", **QUICK)
    assert whole.config["device"]["channels_last"] is True
    original = Trainer.training_step

    def dying(trainer: Trainer, inputs: Any, target: Any) -> Any:
        if trainer.step == 5:
            raise RuntimeError("killed")
        return original(trainer, inputs, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", dying)
        patch.setattr(Trainer, "_agree", lambda *_: (False, True))
        with pytest.raises(RuntimeError, match="killed"):
            train.fit(images, SMALL, 5, out=tmp_path / "y", fast=True, device="cpu", **QUICK)
    cache.unlink()
    monkeypatch.setattr(fast_module, "_measure", lambda *_: {"plain": 9.0, "channels last": 1.0})
    again = train.fit(images, SMALL, 5, out=tmp_path / "y", fast=True, device="cpu", resume=True, **QUICK)
    assert torch.equal(again.model.linear.weight, whole.model.linear.weight)
    assert np.array_equal(again.folds[0].predictions, whole.folds[0].predictions)


def test_without_fast_nothing_is_timed(
    images: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_module, "_measure", lambda *_: pytest.fail("measured"))
    run = train.fit(images, SMALL, 5, out=tmp_path / "x", device="cpu", **(QUICK | {"epochs": 1}))
    assert run.config["device"]["channels_last"] is False
    assert not cache.exists()
