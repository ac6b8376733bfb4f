"""Configurations: what is accepted, what is refused and how it is said."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pricepix import ImageSpec
from pricepix.workflow.config import Config, load_config

MINIMAL: dict[str, Any] = {"out": "x", "data": {"sample": "stocks"}, "image": {"preset": "jkx5"}}


def test_image_is_a_preset_and_what_differs() -> None:
    config = Config.from_dict({**MINIMAL, "image": {"preset": "jkx20", "volume": False, "ma": []}})
    assert config.image.spec() == ImageSpec.preset("jkx20").replace(volume=False, ma=())
    assert Config.from_dict({**MINIMAL, "image": {"lookback": 7, "height": 20}}).image.spec() == ImageSpec(
        7, 20
    )


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    values = {
        **MINIMAL,
        "store": {"horizons": [5], "layout": "bits"},
        "train": {"model": "jkx5"},
        "score": {},
    }
    config = Config.from_dict(values)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    again = load_config(tmp_path / "c.yaml")
    assert again.out == str(tmp_path / "x")
    assert again.model_dump(exclude={"out"}) == config.model_dump(exclude={"out"})


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "out: runs/a\ndata: {source: [bars.csv, 's3://bucket/bars.parquet']}\nimage: {preset: jkx5}\n"
    )
    config = load_config(tmp_path / "c.yaml")
    assert config.out == str(tmp_path / "runs/a")
    assert config.data.source == [str(tmp_path / "bars.csv"), "s3://bucket/bars.parquet"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stor": {}}, "stor: no such key; did you mean 'store'?"),
        ({"store": {"horizonts": [5]}}, "store.horizonts: no such key; did you mean 'horizons'?"),
        ({"train": {"lr": 0.1}}, "train.lr: no such key"),
        ({"image": {"preset": "jkx2"}}, "did you mean 'jkx20'"),
        ({"image": {"height": 20}}, "needs lookback"),
        ({"data": {}}, "give either source"),
        ({"data": {"source": "a", "sample": "stocks"}}, "give either source"),
        ({"data": {"sample": "stocks", "simulate": {"bars": 5}}}, "belongs to sample: simulate"),
        ({"store": {"layout": "png"}}, "store.layout: Input should be 'uint8' or 'bits' (got 'png')"),
        ({"score": {}}, "score needs a trained model"),
        ({"train": {}, "evaluate": {}}, "evaluate needs a factor"),
        ({"version": 2}, "version: Input should be 1 (got 2)"),
        ({"evaluate": {"universe": {"topp": 5}}}, "evaluate.universe.topp: no such key; did you mean 'top'?"),
        (
            {"evaluate": {"universe": {"top": 0}}},
            "evaluate.universe.top: Input should be greater than or equal to 1",
        ),
        (
            {"evaluate": {"universe": {"min_price": "cheap"}}},
            "evaluate.universe.min_price: Input should be a valid number",
        ),
        ({"evaluate": {"universe": "top=5"}}, "evaluate.universe: Input should be a valid dictionary"),
    ],
)
def test_faults_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="the configuration has") as caught:
        Config.from_dict({**MINIMAL, **changes})
    assert message in str(caught.value)


def test_a_universe_is_handed_on_as_conditions() -> None:
    given = {"train": {}, "score": {}, "evaluate": {"universe": {"top": 500, "min_price": 5}, "quantiles": 5}}
    config = Config.from_dict({**MINIMAL, **given})
    assert config.evaluate is not None
    assert config.evaluate.arguments() == {"universe": {"top": 500, "min_price": 5.0}, "quantiles": 5}
    assert Config.from_dict(yaml.safe_load(config.to_yaml())).evaluate == config.evaluate


def test_the_largest_need_market_caps_before_any_work() -> None:
    from pricepix import Panel, samples
    from pricepix.workflow.pipeline import check_periods

    bare = samples.simulate(2, 30)
    given = {"train": {}, "score": {}, "evaluate": {"universe": {"top": 5}}}
    config = Config.from_dict({**MINIMAL, **given})
    with pytest.raises(ValueError, match=r"evaluate\.universe\.top: the 5 largest need market caps"):
        check_periods(config, Panel.from_table(bare, progress=False))
    caps = bare.with_columns(market_cap=bare["close"] * 1e6)
    check_periods(config, Panel.from_table(caps, progress=False))


def test_all_faults_at_once() -> None:
    with pytest.raises(ValueError, match="3 faults") as caught:
        Config.from_dict(
            {"outt": 1, "data": {"sample": "stocks"}, "image": {"preset": "jkx5"}, "store": {"delay": "x"}}
        )
    assert "out: missing, but required" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("- a\n", "holds a list"), ("out: x\n", "data: missing")]
)
def test_files_that_are_no_configuration(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "bars.parquet").write_bytes(b"PAR1\x15\x84\xff\xfe")
    with pytest.raises(ValueError, match=r"bars\.parquet is not YAML: it holds bytes, not text"):
        load_config(tmp_path / "bars.parquet")
    with pytest.raises(FileNotFoundError, match="no configuration at"):
        load_config(tmp_path / "none.yaml")


def test_tags_of_python_are_not_executed(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("out: !!python/object/apply:os.system ['touch owned']\n")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(tmp_path / "c.yaml")
