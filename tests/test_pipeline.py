"""Runs of a configuration: what is saved of it, what is refused, what a further process does."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

import pricepix as pp
from pricepix.build import build_market_store
from pricepix.samples import simulate_market
from pricepix.workflow.config import Config, load_config
from pricepix.workflow.pipeline import run

TABLE: dict[str, Any] = {
    "data": {"sample": "simulate", "simulate": {"instruments": 6, "bars": 90, "seed": 4}},
    "image": {"preset": "jkx5"},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_market(tmp_path_factory.mktemp("market") / "cache", 6, 12, every="30min", seed=3).folder


def sections(kind: str, cache: Path) -> dict[str, Any]:
    if kind == "table":
        return TABLE
    return {"data": {"market_cache": str(cache), "adjust": "multiply"}, "image": {"preset": "it9"}}


def quiet(config: Config) -> Path:
    return run(config, echo=lambda line: None, progress=False)


@pytest.mark.parametrize("kind", ["table", "market"])
def test_the_saved_file_is_the_configuration(kind: str, cache: Path, tmp_path: Path) -> None:
    """It can be loaded, says what was made, and finds everything done."""
    out = tmp_path / "out"
    config = Config.from_dict({"out": str(out), **sections(kind, cache)})
    store = pp.open_store(quiet(config))
    saved = load_config(out / "config.yaml")
    assert saved == config
    assert (tuple(saved.store.horizons), saved.store.layout) == (store.horizons, store.layout)
    lines: list[str] = []
    run(saved, echo=lines.append, progress=False)
    assert lines[-1].startswith("build     up to date")


@pytest.mark.parametrize(("kind", "build"), [("table", pp.render_universe), ("market", build_market_store)])
def test_defaults_are_those_of_the_build(kind: str, build: Any, cache: Path) -> None:
    """What a configuration leaves out and its saved file spells out is what the function takes by itself."""
    store = Config.from_dict({"out": "x", **sections(kind, cache)}).store
    defaults: dict[str, Any] = {}
    for name, parameter in inspect.signature(build).parameters.items():
        value = parameter.default
        # Keywords that belong together are one object.
        defaults |= vars(value) if dataclasses.is_dataclass(value) else {name: value}
    assert defaults.keys() >= {"horizons", "delay", "every", "seed", "layout"}
    for name, value in store.model_dump(exclude_none=True).items():
        if name in defaults:
            default = defaults[name]
            assert value == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("kind", ["table", "market"])
def test_what_is_refused_does_not_replace_the_saved_file(kind: str, cache: Path, tmp_path: Path) -> None:
    made = Config.from_dict({"out": str(tmp_path / "out"), **sections(kind, cache)})
    quiet(made)
    other = {"preset": made.image.preset, "ma": [7]}
    with pytest.raises(ValueError, match="was not made from this: spec_digest"):
        quiet(Config.from_dict({"out": made.out, **sections(kind, cache), "image": other}))
    assert load_config(tmp_path / "out" / "config.yaml") == made


def test_paths_in_the_saved_file_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths are the working directory's for who runs, and the file's for who loads it."""
    monkeypatch.chdir(tmp_path)
    pp.samples.simulate(4, 80, seed=4).write_parquet("bars.parquet")
    quiet(Config.from_dict({**TABLE, "out": "runs/a", "data": {"source": "bars.parquet"}}))
    saved = load_config("runs/a/config.yaml")
    assert (saved.out, saved.data.source) == (str(tmp_path / "runs/a"), str(tmp_path / "bars.parquet"))


def test_a_refused_step_is_told_before_any_work(tmp_path: Path) -> None:
    """A factor that was made otherwise is refused before a network is trained for it."""
    config = Config.from_dict({"out": str(tmp_path / "out"), **TABLE})
    quiet(config)
    (tmp_path / "out" / "factor.zarr").mkdir()
    more = Config.from_dict({"out": config.out, **TABLE, "train": {"model": "jkx5"}, "score": {}})
    with pytest.raises(ValueError, match=r"factor\.zarr was made with other settings"):
        quiet(more)
    assert load_config(tmp_path / "out" / "config.yaml") == config
    assert not (tmp_path / "out" / "run").exists()


@pytest.mark.parametrize("kind", ["table", "market"])
def test_further_processes_only_train(
    kind: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They write none of the files that all share, and read no market for a store that is there."""
    pytest.importorskip("lightning")
    from pricepix.bars import MarketCache

    train = {
        "model": "jkx5" if kind == "table" else "cnn9u", "horizon": 5 if kind == "table" else 1,
        "accelerator": "cpu", "settings": {"epochs": 1, "batch_size": 64},
    }  # fmt: skip
    config = Config.from_dict({"out": str(tmp_path / "out"), **sections(kind, cache), "train": train})
    assert quiet(config) == tmp_path / "out" / "run"
    files = [tmp_path / "out" / name for name in ("config.yaml", "pipeline.json")]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    (tmp_path / "out" / "pipeline.tmp").mkdir()  # which nobody can write to
    asked: list[Any] = []
    monkeypatch.setattr(MarketCache, "panel", lambda *arguments, **options: asked.append(options))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run(config, echo=asked.append, progress=False) == tmp_path / "out" / "run"
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before
    assert not asked


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"train": {"train": "1990:1995"}},
            r"train\.train: no bar lies in 1990:1995; the bars run from 2000-01-03",
        ),
        ({"train": {"test": "2050:"}}, r"train\.test: no bar lies in 2050:"),
        ({"train": {"horizon": 7}}, r"train\.horizon: .* no returns over 7 bars, only over 5, 20, 60"),
        (
            {"store": {"start": "2050-01-01"}},
            r"store\.start and store\.end: no bar lies in 2050-01-01 to None",
        ),
    ],
)
def test_periods_are_held_against_the_bars_before_anything_is_drawn(
    sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        quiet(Config.from_dict({"out": str(out), **TABLE, **sections}))
    assert not out.exists()


def test_runs_with_other_periods_share_their_images(tmp_path: Path) -> None:
    """The folder of images does not depend on what a run does with them, and a frozen model trains nothing."""
    pytest.importorskip("torch")
    from pricepix.train.checkpoints import save_model
    from pricepix.train.models import PriceCNN

    save_model(PriceCNN("jkx5").eval(), tmp_path / "model.ckpt")
    lines: list[str] = []
    for name, end in (("a", "2000-03-31"), ("b", "2000-04-30")):
        sections = {
            **TABLE, "out": str(tmp_path / name), "store": {"images": str(tmp_path / "images"), "horizons": [5]},
            "train": {"frozen": str(tmp_path / "model.ckpt")}, "score": {"end": end, "device": "cpu"},
        }  # fmt: skip
        run(Config.from_dict(sections), echo=lines.append, progress=False)
    assert len(list((tmp_path / "images").iterdir())) == 1
    assert sum(line.startswith("build     up to date") for line in lines) == 1
    assert sum(line.startswith("train     frozen") for line in lines) == 2
    assert not (tmp_path / "a" / "run").exists()
