"""The command line over the real library, on a small simulated market."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import polars as pl
import pytest
import yaml
from click.testing import CliRunner

import pricepix as pp
from pricepix import cli, samples

BARS = 60


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bars") / "bars.parquet"
    market = samples.simulate(4, BARS, seed=3, halt_rate=0, delist_rate=0, list_late=0, split_rate=0)
    market.write_parquet(path)
    return path


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def build(table: Path, store: Path, *options: object, code: int = 0) -> str:
    return call("build-store", table, store, "--preset", "jkx5", "--no-progress", *options, code=code)


def test_build_store_does_what_render_universe_does(table: Path, tmp_path: Path) -> None:
    said = build(table, tmp_path / "a.zarr", "--horizon", 2, "--horizon", 3, "--delay", 1, "--layout", "bits")
    built = pp.open_store(tmp_path / "a.zarr")
    expected = pp.render_universe(table, "jkx5", None, (2, 3), 1, layout="bits", progress=False)
    assert np.array_equal(built.read(), expected.read())
    for horizon in (2, 3):
        assert np.array_equal(built.returns(horizon), expected.returns(horizon), equal_nan=True)
    assert f"{len(built):,} of 32x15" in said
    assert "2, 3 bars, delay 1" in said


def test_build_store_takes_the_ends_of_periods_and_of_instruments(table: Path, tmp_path: Path) -> None:
    said = build(
        table, tmp_path / "a.zarr", "--every", "month", "--complete", "--asof", "2020-01-31",
        "--period-share", 0.8, "--delisting", "hold",
        "--gaps", "missing", "--horizon", 5,
    )  # fmt: skip
    attrs = pp.open_store(tmp_path / "a.zarr").attrs
    assert attrs["schedule"]["periods"] == {
        "share": 0.8, "exchange": None, "complete": True, "asof": "2020-01-31",
    }  # fmt: skip
    assert attrs["delisting"] == "hold"
    assert "held in cash to the horizon: 5 bars 0" in said
    missing = build(table, tmp_path / "b.zarr", "--delisting", "missing")
    assert "returns of instruments that end within a horizon are missing" in missing


def test_fields_of_the_spec_change_the_preset(table: Path, tmp_path: Path) -> None:
    build(table, tmp_path / "a.zarr", "--no-ma", "--no-volume", "--lookback", 6, "--height", 20, "--every", 7)
    store = pp.open_store(tmp_path / "a.zarr")
    assert store.spec == pp.ImageSpec(6, 20)
    assert store.attrs["schedule"]["every"] == 7
    build(table, tmp_path / "b.zarr", "--ma", 3, "--ma", 10, "--every", "week")
    assert pp.open_store(tmp_path / "b.zarr").spec == pp.ImageSpec.preset("jkx5").replace(ma=(3, 10))


def test_columns_of_the_table_can_be_named(tmp_path: Path, table: Path) -> None:
    renamed = pl.read_parquet(table).rename({"close": "Schluss", "instrument": "Wer"})
    renamed.write_csv(tmp_path / "bars.csv")
    build(
        tmp_path / "bars.csv", tmp_path / "a.zarr", "--column", "close=Schluss", "--instrument-column", "Wer"
    )
    build(table, tmp_path / "b.zarr")
    a, b = pp.open_store(tmp_path / "a.zarr"), pp.open_store(tmp_path / "b.zarr")
    assert np.array_equal(a.read(), b.read())


def test_a_store_that_is_there_is_kept(table: Path, tmp_path: Path) -> None:
    build(table, tmp_path / "a.zarr")
    assert "exists" in build(table, tmp_path / "a.zarr", code=1)
    build(table, tmp_path / "a.zarr", "--mode", "overwrite")
    build(table, tmp_path / "a.zarr", "--mode", "resume")


def test_append_brings_a_store_up_to_date(table: Path, tmp_path: Path) -> None:
    market = pl.read_parquet(table)
    market.filter(pl.col("time") < market["time"].unique().sort()[BARS - 10]).write_parquet(
        tmp_path / "old.parquet"
    )
    build(tmp_path / "old.parquet", tmp_path / "a.zarr")
    before = len(pp.open_store(tmp_path / "a.zarr"))
    call("append", tmp_path / "a.zarr", table, "--no-progress")
    build(table, tmp_path / "b.zarr")
    a, b = pp.open_store(tmp_path / "a.zarr"), pp.open_store(tmp_path / "b.zarr")
    assert len(a) == len(b) > before
    assert np.array_equal(a.read(), b.read())


def test_info_verify_preview_and_presets(table: Path, tmp_path: Path) -> None:
    build(table, tmp_path / "a.zarr")
    assert "4" in call("info", tmp_path / "a.zarr")
    assert "sound" in call("verify", tmp_path / "a.zarr", "--panel", table, "--sample", 10, "--no-progress")
    assert str(tmp_path / "sheet.png") in call(
        "preview", tmp_path / "a.zarr", tmp_path / "sheet.png", "--n", 4
    )
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    listed = call("presets")
    assert all(name in listed for name in pp.ImageSpec.presets())


def test_verify_fails_on_a_damaged_store(table: Path, tmp_path: Path) -> None:
    build(table, tmp_path / "a.zarr")
    chunk = tmp_path / "a.zarr" / pp.open_store(tmp_path / "a.zarr").objects.chunk_key(0)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    assert "images/c/0/0/0" in call("verify", tmp_path / "a.zarr", "--no-progress", code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build-store", "no.parquet", "x.zarr", "--preset", "jkx20"], "no.parquet"),
        (["build-store", "{table}", "x.zarr", "--preset", "jkx2o"], "did you mean 'jkx20'"),
        (["build-store", "{table}", "x.zarr"], "give --preset NAME"),
        (["build-store", "{table}", "x.zarr", "--preset", "jkx5", "--ma", "3", "--no-ma"], "contradict"),
        (["build-store", "{table}", "x.zarr", "--preset", "jkx5", "--column", "close"], "NAME=COLUMN"),
        (
            ["build-store", "{table}", "x.zarr", "--preset", "jkx5", "--start", "2090-01-01"],
            "no bar lies between",
        ),
        (["build-store", "{table}", "x.zarr", "--preset", "jkx60", "--lookback", "59"], "none of the"),
        (["info", "no.zarr"], "no store at"),
        (["preview", "no.zarr", "x.png"], "no store at"),
        (["run", "no.yaml"], "no configuration at"),
    ],
)
def test_errors_are_one_message_and_no_traceback(
    arguments: list[str], message: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, [a.format(table=table) for a in arguments])
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_options_are_keyword_arguments_of_the_functions() -> None:
    pytest.importorskip("torch")
    from pricepix.bars.vendors.by_name import read_bars
    from pricepix.build import import_jkx
    from pricepix.factor import evaluate, export, score, write_report
    from pricepix.factor.scorer import Scorer
    from pricepix.factor.scoring import ScoreOptions
    from pricepix.train import export_model, fit
    from pricepix.windows.schedule import Periods
    from pricepix.workflow.templates import init_config

    commands = {
        "audit": (pp.audit, pp.Panel.from_table, read_bars),
        "import-jkx": (import_jkx,),
        "init-config": (init_config,),
        "build-store": (pp.render_universe, pp.Panel.from_table, read_bars, pp.ImageSpec, Periods),
        "append": (pp.append, pp.Panel.from_table, read_bars),
        "preview": (pp.contact_sheet,),
        "verify": (pp.ImageStore.verify, pp.Panel.from_table, read_bars),
        "train": (fit, pp.Panel.from_table, read_bars),
        "score": (score, Scorer),
        "evaluate": (evaluate, write_report, pp.Panel.from_table, read_bars),
        "export": (export, export_model),
        "update": (pp.update,),
        "warm-up": (pp.warm_up,),
        "replicate": (
            pp.paper.replicate,
            pp.paper.Training,
            pp.factor.Universe,
            pp.Panel.from_table,
            read_bars,
        ),
    }
    # What only the command line knows: files, switches that stand for a value, and a cluster's address.
    own = {
        "store",
        "table_path",
        "preset",
        "no_ma",
        "scheduler",
        "settings",
        "report",
        "panel",
        "spec",
        "paths",
        "demo",
        "like",
    }
    for name, functions in commands.items():
        known = {p for f in functions for p in inspect.signature(f).parameters} | own
        # The keyword arguments that ``score`` takes as **options are listed by their type.
        known |= set(ScoreOptions.__annotations__) if name == "score" else set()
        command = cli.main.commands[name]
        options = {p.name for p in command.params if isinstance(p, click.Parameter)}
        assert options <= known, f"{name}: {sorted(options - known)}"


def test_shared_options_are_declared_once() -> None:
    """One object for each, so that they read the same everywhere."""
    texts: dict[str, set[str | None]] = {}
    for command in cli.main.commands.values():
        for option in command.params:
            if isinstance(option, click.Option):
                texts.setdefault(option.opts[0], set()).add(option.help)
    for name in (
        "--progress",
        "--seed",
        "--workers",
        "--panel",
        "--mode",
        "--layout",
        "--device",
        "--start",
        "--end",
    ):
        assert len(texts[name]) == 1, (name, texts[name])
    assert None not in set().union(*texts.values())


def test_python_m_pricepix_is_the_command_line() -> None:
    """Help loads nothing but the command line."""
    code = (
        "import runpy, sys; sys.argv = ['pricepix', '--help']\n"
        "try: runpy.run_module('pricepix', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code\n"
        "heavy = {'numpy', 'numba', 'polars', 'zarr', 'pydantic', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: python -m pricepix" in done.stdout
    assert "warm-up" in done.stdout


def test_data_and_out_are_for_other_projects_files(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("out: x\ndata: {sample: simulate}\nimage: {preset: jkx5}\n")
    said = call("run", tmp_path / "ours.yaml", "--data", "bars.csv", code=1)
    assert "--data and --out are for configurations of other projects: edit" in said


def test_an_error_is_printed_once() -> None:
    """In a process of its own: a log that nobody asked for goes to the terminal there, and not under pytest."""
    command = [sys.executable, "-m", "pricepix", "info", "nothing.zarr"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("no store at nothing.zarr") == 1


def test_a_reader_that_has_enough_is_no_error() -> None:
    """As with ``| head``: no message, whenever the pipe closes."""
    command = [sys.executable, "-c", "from pricepix.cli import main; main()", "presets"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_train_draws_a_table_while_it_learns(table: Path, tmp_path: Path) -> None:
    """With every option of `fit` for that; counts are printed as such."""
    pytest.importorskip("lightning")
    quick = (
        "--model",
        "jkx5",
        "--set",
        "epochs=1",
        "--set",
        "batch_size=16",
        "--no-progress",
        "--device",
        "cpu",
    )
    out = tmp_path / "drawn"
    said = call(
        "train", table, "--spec", "jkx5", "--adjust", "multiply", "--test", "2000-03-15:", "--threads", 1, "--out", out,
        "--augment", "invert=0.25", "--augment", "rescale_volume=0.8:1.25", *quick,
    )  # fmt: skip
    written = yaml.safe_load((out / "config.yaml").read_text())
    assert (written["horizon"], written["device"]["accelerator"]) == (5, "cpu")
    assert written["augment"]["invert"] == 0.25
    assert written["augment"]["rescale_volume"] == [0.8, 1.25]
    images = pp.PanelImages(pp.Panel.from_table(table, adjust="multiply", progress=False), "jkx5", (5,))
    assert written["store"]["digest"] == images.digest
    assert re.search(r"images \d+, loss \d\.\d{4}", said)
    # A store has its images, and its panel is read as it was.
    build(table, tmp_path / "s", "--adjust", "multiply", "--horizon", 5)
    assert "give PanelImages" in call("train", tmp_path / "s", "--augment", "invert=1", *quick, code=1)
    again = ("train", tmp_path / "s", *quick, "--model", "logistic", "--panel", table, "--adjust", "multiply")
    call(*again, "--out", tmp_path / "logistic")
    for wrong in (("--adjust", "multiply"), ("--panel", table, "--spec", "jkx5")):
        assert "--spec PRESET with a table" in call("train", tmp_path / "s", *wrong, *quick, code=2)
    assert "'epochs' is not of the form NAME=VALUE" in call("train", table, "--set", "epochs", code=2)
