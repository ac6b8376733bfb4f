"""Other projects' configurations: every key taken or refused by name, and ours that come out of them run."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

import pricepix as pp
from pricepix.samples import simulate_market
from pricepix.workflow.config import Config, load_config
from pricepix.workflow.other_projects import run_translated, translate_config
from pricepix.workflow.project_files import project_of
from pricepix.workflow.templates import TEMPLATES, init_config

IMAGE_TRADING = """
MODEL: CNN49u
PATHS:
  COMMONCACHE_DIR: commoncache
  IMAGE_DATA_DIR: images
  PROJECT_DIR: project
DATA_FILES:
  OPEN: IntervalFull/IntervalFull.open.N49,0012f
  HIGH: IntervalFull/IntervalFull.high.N49,0012f
  LOW: IntervalFull/IntervalFull.low.N49,0012f
  CLOSE: IntervalFull/IntervalFull.close.N49,0012f
  VOLUME: IntervalFull/IntervalFull.volume.N49,0012f
  ASHARE_FILTER: AShareNST/AShareNST.N,0012c
  ADJ_FACTOR: ForwardAdjPrices/ForwardAdjPrices.S_DQ_ADJFACTOR.N,0012f
  UP_LIMIT: Limits/UplimPrice.N,0012f
  DN_LIMIT: Limits/DnlimPrice.N,0012f
  TRADE_DATES: _universe/dates.NI
  UNIVERSE_UID: _universe/uid.N128C
DATASET:
  LOOKBACK_WIN: 49
  START_DATE: 20211101
  END_DATE: 20211110
  MODE: train
  INDICATORS: {MA: {WIN: 98}}
  SHOW_VOLUME: true
  SAMPLE_RATE: 0.5
  PARALLEL_NUM: 2
TRAIN:
  PREDICT_WIN: 50
  LABEL: RET_LONG
  START_DATE: 20210104
  END_DATE: 20210115
  VALID_RATIO: 0.3
  BATCH_SIZE: 64
  NEPOCH: 1
  LEARNING_RATE: 0.001
  WEIGHT_DECAY: 0.01
  MODEL_SAVE_FILE: models/I49R50/model.tar
  LOG_SAVE_FILE: logs/I49R50/log.csv
  EARLY_STOP_EPOCH: 5
  EDITION: Edition_1_0_0
  LR_BASE_RATE: 0.0001
  WARMUP_EPOCH: 1
INFERENCE:
  START_DATE: 20210118
  END_DATE: 20210129
  FACTORS_SAVE_FILE: factors/I49R50.csv
"""

CNN_FOR_TRADING = """
MODEL: 'CNN20d'
DATASET:
  LOOKBACK_WIN: 20
  START_DATE: 20000101
  END_DATE: 20001231
  MODE: default
  INDICATORS:
    - NAME: MA
    - PARAM: 20 # using data augmentation
  SHOW_VOLUME: True
  SAMPLE_RATE: 0.5
  PARALLEL_NUM: 2
TRAIN:
  LABEL: RET5
  VALID_RATIO: 0.3
  BATCH_SIZE: 128
  NEPOCH: 1
  LEARNING_RATE: 0.00001
  WEIGHT_DECAY: 0.01
  MODEL_SAVE_FILE: models/I20R5.tar
  LOG_SAVE_FILE: logs/I20R5.csv
  EARLY_STOP_EPOCH: 4
TEST:
  START_DATE: 20010101
  END_DATE: 20010630
INFERENCE:
  FACTORS_SAVE_FILE: factors/I20R5.csv
"""


def values(text: str) -> dict:
    return yaml.safe_load(text)


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and key != "INDICATORS":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def changed(text: str, place: str, value) -> dict:
    tree = copy.deepcopy(values(text))
    *path, last = place.split(".")
    inner = tree
    for key in path:
        inner = inner.setdefault(key, {})
    if value is ...:
        inner.pop(last)
    else:
        inner[last] = value
    return tree


@pytest.mark.parametrize("text", [IMAGE_TRADING, CNN_FOR_TRADING])
def test_every_key_has_a_note(text):
    translation = translate_config(values(text))
    assert sorted(note.key for note in translation.notes) == sorted(leaves(values(text)))
    assert all(note.what for note in translation.notes)
    for note in translation.notes:
        assert str(note) in str(translation)
    # What comes out is a configuration of ours, also as YAML with the notes above it.
    Config.from_dict(translation.config)
    assert yaml.safe_load(translation.to_yaml()) == translation.config
    assert "# translated from" in translation.to_yaml()


def test_image_trading_in_our_words(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(IMAGE_TRADING)
    config = translate_config(path).config
    name = "Train_20210104_20210115-Infer_20210118_20210129"
    assert config["out"] == str(tmp_path / "project" / name / "Edition_1_0_0")
    assert config["data"]["market_cache"] == str(tmp_path / "commoncache")
    assert config["data"]["adjust"] == "multiply"
    assert len(config["data"]["files"]) == 11
    assert config["image"] == {"preset": "it49", "ma": [98], "volume": True}
    assert config["store"]["horizons"] == [1, 50]
    assert config["store"]["path"] == str(tmp_path / "images" / name / "it49.zarr")
    assert (config["store"]["start"], config["store"]["end"]) == ("2021-01-04", "2021-01-29")
    train = config["train"]
    assert (train["model"], train["horizon"], train["sample"]) == ("cnn49u", 50, 0.5)
    assert (train["train"], train["test"]) == ("2021-01-04:2021-01-15", "2021-01-18:2021-01-29")
    assert train["settings"] == {
        "epochs": 1, "batch_size": 64, "lr": 0.001, "weight_decay": 0.01, "warmup_epochs": 1.0,
        "warmup_from": 0.0001, "patience": 5,
    }  # fmt: skip
    short = translate_config(changed(IMAGE_TRADING, "TRAIN.LABEL", "RET_SHORT")).config
    assert (short["train"]["horizon"], short["evaluate"]["horizon"]) == (1, 1)


@pytest.mark.parametrize(("text", "bars"), [(IMAGE_TRADING, "market_cache"), (CNN_FOR_TRADING, "source")])
def test_paths_of_the_caller_are_the_callers(text, bars, tmp_path, monkeypatch):
    """They are taken from the working directory, and those that stand in the file from its folder."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "c.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    given = translate_config("conf/c.yaml", data="mine", out="results")
    assert given.config["data"][bars] == str(tmp_path / "mine")
    assert given.config["out"] == str(tmp_path / "results")
    assert given.exports["model"].startswith(str(tmp_path / "conf" / "models"))
    named = translate_config("conf/c.yaml").config
    assert all(path.startswith(str(tmp_path / "conf")) for path in (named["data"][bars], named["out"]))
    away = translate_config("conf/c.yaml", data="s3://bucket/mine").config
    assert away["data"][bars] == "s3://bucket/mine"


def test_the_projects_own_file_is_taken_as_it_is():
    """What stands in ImageTrading's config.yaml, which has no DATA_FILES."""
    tree = values(IMAGE_TRADING)
    del tree["DATA_FILES"]
    config = translate_config(tree).config
    assert "files" not in config["data"]
    assert config["data"]["adjust"] == "multiply"


def test_older_files_of_cnn_for_trading_have_no_test():
    tree = values(CNN_FOR_TRADING)
    del tree["TEST"], tree["INFERENCE"], tree["TRAIN"]["EARLY_STOP_EPOCH"]
    tree["DATASET"]["INDICATORS"] = None
    translation = translate_config(tree)
    assert "score" not in translation.config
    assert translation.config["train"]["settings"]["patience"] == 16
    Config.from_dict(translation.config)


@pytest.mark.parametrize(
    ("text", "none"), [(IMAGE_TRADING, {}), (CNN_FOR_TRADING, []), (CNN_FOR_TRADING, None)]
)
@pytest.mark.parametrize("left_out", [False, True])
def test_without_indicators_no_average_is_drawn(text, none, left_out):
    """Not even that of the preset."""
    tree = changed(text, "DATASET.INDICATORS", ... if left_out else none)
    assert Config.from_dict(translate_config(tree).config).image.spec().ma == ()


@pytest.mark.parametrize(
    ("text", "place", "value", "message"),
    [
        (IMAGE_TRADING, "TRAIN.NEPOCHS", 3, r"TRAIN.NEPOCHS: no key .* did you mean TRAIN.NEPOCH\?"),
        (
            IMAGE_TRADING,
            "DATASET.INDICATORS",
            {"RSI": {"WIN": 14}},
            "DATASET.INDICATORS: the one indicator is MA",
        ),
        (IMAGE_TRADING, "DATASET.LOOKBACK_WIN", 9, "CNN49u sees 49 bars, not 9"),
        (IMAGE_TRADING, "TRAIN.LABEL", "RET_MID", "choose one of RET_SHORT, RET_LONG"),
        (IMAGE_TRADING, "TRAIN.PREDICT_WIN", 0, "TRAIN.PREDICT_WIN: give a whole number of at least 1"),
        (IMAGE_TRADING, "TRAIN.START_DATE", "soon", "a day is written YYYYMMDD"),
        (IMAGE_TRADING, "TRAIN.START_DATE", 20209999, r"there is no day 2020-99-99 \(got 20209999\)"),
        (IMAGE_TRADING, "TRAIN.END_DATE", "2021-02-29", "there is no day 2021-02-29"),
        (IMAGE_TRADING, "INFERENCE.END_DATE", "2021-1-105", "a day is written YYYYMMDD"),
        (CNN_FOR_TRADING, "TEST.END_DATE", 20011301, "there is no day 2001-13-01"),
        (IMAGE_TRADING, "TRAIN.VALID_RATIO", 1.5, "TRAIN.VALID_RATIO: give a number above 0"),
        (IMAGE_TRADING, "DATASET.SHOW_VOLUME", "no", "DATASET.SHOW_VOLUME: give true or false"),
        (IMAGE_TRADING, "DATASET.PARALLEL_NUM", 0, "DATASET.PARALLEL_NUM: give a whole number"),
        (IMAGE_TRADING, "PATHS.COMMONCACHE_DIR", ..., "PATHS.COMMONCACHE_DIR: missing, but required"),
        (IMAGE_TRADING, "DATA_FILES.VWAP", "x.N49,0012f", "DATA_FILES.VWAP: no key"),
        (
            CNN_FOR_TRADING,
            "DATASET.INDICATORS",
            [{"NAME": "RSI"}, {"PARAM": 14}],
            "the one indicator is NAME: MA",
        ),
        (CNN_FOR_TRADING, "TRAIN.LABEL", "RET60", "choose one of RET5, RET20"),
        (CNN_FOR_TRADING, "TEST.START_DATE", ..., "give both START_DATE and END_DATE"),
        (CNN_FOR_TRADING, "GPU", 1, "GPU: no key of cnn_for_trading"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(text, place, value, message):
    with pytest.raises(ValueError, match=message):
        translate_config(changed(text, place, value))


def test_all_faults_come_in_one_message():
    tree = changed(IMAGE_TRADING, "TRAIN.LABEL", "UP")
    tree["TRAIN"]["NEPOCH"] = -1
    tree["NEW"] = {"KEY": 1}
    with pytest.raises(ValueError, match="3 faults") as error:
        translate_config(tree)
    for name in ("TRAIN.LABEL", "TRAIN.NEPOCH", "NEW.KEY"):
        assert name in str(error.value)


def test_files_of_no_known_project(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration at"):
        translate_config(tmp_path / "none.yaml")
    path = tmp_path / "x.yaml"
    path.write_text("a: [1")
    with pytest.raises(ValueError, match="is not YAML"):
        translate_config(path)
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match="is not YAML"):
        translate_config(path)
    path.write_text("out: x")
    with pytest.raises(ValueError, match="neither a configuration of ImageTrading"):
        translate_config(path)
    assert project_of(values(IMAGE_TRADING)) == "image_trading"
    assert project_of(values(CNN_FOR_TRADING)) == "cnn_for_trading"
    assert project_of({"out": "x"}) is None
    assert project_of({"MODEL": ["CNN5d"]}) is None


@pytest.mark.parametrize("like", TEMPLATES)
def test_configurations_to_begin_with_load(like, tmp_path):
    text = init_config(like, tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == text
    assert "pricepix-cli run mine.yaml" in text
    assert text.count("#") > 5
    config = load_config(tmp_path / "mine.yaml")
    assert config.evaluate is not None
    with pytest.raises(FileExistsError, match="exists already"):
        init_config(like, tmp_path / "mine.yaml")


def test_there_is_nothing_like_others():
    with pytest.raises(ValueError, match="did you mean 'image_trading'"):
        init_config("imagetrading")


def test_image_trading_runs_from_its_own_file(tmp_path):
    """Builds, trains, scores and evaluates a simulated market; files stand where the configuration says."""
    pytest.importorskip("lightning")
    from pricepix.factor import open_cache

    # Half-hours and few days: the network for 147 pixels is too slow for a test.
    text = IMAGE_TRADING
    for there, here in (
        ("CNN49u", "CNN9u"), ("LOOKBACK_WIN: 49", "LOOKBACK_WIN: 9"), ("N49,", "N09,"),
        ("WIN: 98", "WIN: 18"), ("PREDICT_WIN: 50", "PREDICT_WIN: 5"), ("SAMPLE_RATE: 0.5", "SAMPLE_RATE: 0.3"),
    ):  # fmt: skip
        text = text.replace(there, here)
    cache = simulate_market(tmp_path / "commoncache", 12, 20, every="30min", seed=1, st_share=0.2)
    (tmp_path / "config.yaml").write_text(text)
    lines: list[str] = []
    translation = run_translated(tmp_path / "config.yaml", echo=lines.append, progress=False)
    assert lines[0] == str(translation)
    steps = ["data", "build", "train", "score", "evaluate", "wrote", "wrote", "wrote"]
    assert [line.split()[0] for line in lines[1:]] == steps
    config = Config.from_dict(translation.config)
    saved = (Path(config.out) / "translated.yaml").read_text()
    assert yaml.safe_load(saved) == translation.config
    store = pp.open_store(config.store.path)
    assert store.horizons == (1, 5)
    assert store.spec == pp.ImageSpec.preset("it9").replace(ma=(18,), volume=True)
    scores = open_cache(f"{config.out}/factor.zarr")
    assert scores.shape == (20, 12, 9)
    assert (tmp_path / "models/I49R50/model.tar").stat().st_size > 1000
    assert pl.read_csv(tmp_path / "factors/I49R50.csv").columns == ["instrument", "time", "factor"]
    assert "val_loss" in (tmp_path / "logs/I49R50/log.csv").read_text()
    # Scores stand one bar later: over lunch, night and weekend.
    assert_shifted(store, scores, cache)


def assert_shifted(store, scores, cache):
    calendar = cache.panel().calendar
    known = {}
    names = store.instruments[store.instrument_index]
    # Of the images from the first day of INFERENCE on.
    first = int(np.datetime64("2021-01-17T16:00", "ns").astype(np.int64))
    for name, time in zip(names, store.time.tolist(), strict=True):
        if time < first:
            continue
        after = calendar[np.searchsorted(calendar, time) + 1] if time < calendar[-1] else None
        if after is not None:
            known.setdefault(name, set()).add(int(after))
    time, values = scores.matrix()
    for j, name in enumerate(scores.instruments):
        assert {int(t) for t in time[~np.isnan(values[:, j])]} == known.get(name, set())


def test_cnn_for_trading_runs_from_its_own_file(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    # Five days and half a year: the network for 64x60 is too slow for a test.
    text = CNN_FOR_TRADING.replace("CNN20d", "CNN5d").replace("LOOKBACK_WIN: 20", "LOOKBACK_WIN: 5")
    text = text.replace("PARAM: 20", "PARAM: 5").replace("20001231", "20000430")
    text = text.replace("20010101", "20000501").replace("20010630", "20000531")
    bars = pp.samples.simulate(12, 130, seed=2, halt_rate=0, delist_rate=0, list_late=0)
    (tmp_path / "data").mkdir()
    bars.select(
        pl.col("instrument").alias("code"), pl.col("time").dt.strftime("%Y%m%d").cast(pl.Int64).alias("date"),
        "open", "high", "low", "close", "volume",
    ).write_csv(tmp_path / "data" / "tabularDf.csv")  # fmt: skip
    (tmp_path / "config.yaml").write_text(text)
    run_translated(tmp_path / "config.yaml", out=tmp_path / "out", echo=lambda line: None, progress=False)
    factors = pl.read_csv(tmp_path / "factors/I20R5.csv")
    assert factors["instrument"].n_unique() == 12
    assert factors["factor"].is_between(0, 1).all()
    store = pp.open_store(tmp_path / "out" / "store.zarr")
    assert store.spec.style == "cnn_for_trading"
    # A process for another device comes here while the first one scores: it exports nothing, and says nothing.
    for path in (tmp_path / "factors" / "I20R5.csv", tmp_path / "out" / "translated.yaml"):
        path.unlink()
    (tmp_path / "out" / "factor.zarr").rename(tmp_path / "elsewhere")
    lines: list[str] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    run_translated(tmp_path / "config.yaml", out=tmp_path / "out", echo=lines.append, progress=False)
    assert not lines
    assert not (tmp_path / "factors" / "I20R5.csv").exists()
    assert not (tmp_path / "out" / "translated.yaml").exists()
