"""The command line of the replication: what it forwards, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

import pricepix as pp
from pricepix import cli, samples
from pricepix.paper import simulated


def call(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the functions behind the command were called with."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stand_in(name: str) -> Any:
        def replication(*args: Any, **options: Any) -> pp.paper.Replication:
            calls.append(((name, *args), options))
            why = {("paper", "I60/R60"): "too few bars"}
            return pp.paper.Replication(Path("out"), Path("out/paper.html"), [], why, [])

        return replication

    for name in ("replicate", "demo"):
        monkeypatch.setattr(pp.paper, name, stand_in(name))
    return calls


def test_what_was_made_is_told_as_json(called: Any, tmp_path: Path) -> None:
    samples.simulate(3, 30).write_parquet(tmp_path / "bars.parquet")
    for words in (["--demo", tmp_path / "out"], [tmp_path / "bars.parquet", tmp_path / "out"]):
        done = CliRunner().invoke(cli.main, ["--json", "replicate", *map(str, words)])
        assert json.loads(done.stdout) == {
            "page": "out/paper.html", "tables": 0,
            "skipped": [{"split": "paper", "cell": "I60/R60", "why": "too few bars"}],
        }  # fmt: skip


def test_options_are_forwarded(called: Any, tmp_path: Path) -> None:
    samples.simulate(3, 30).write_parquet(tmp_path / "bars.parquet")
    call(
        "replicate", tmp_path / "bars.parquet", tmp_path / "out", "--cell", "I20/R5", "--cell", "I7/R7", "--seeds", 3,
        "--split", "paper", "--split", "walk", "--table", "II", "--control", "logistic", "--top", 500, "--min-price", 5,
        "--every", "bar", "--channels", 0.5, "--set", "lr=1e-4", "--device", "cpu", "--threads", 1,
        "--store", "I20=images/jkx20.zarr",
    )  # fmt: skip
    (function, panel, out), given = called[0]
    assert (function, out) == ("replicate", str(tmp_path / "out"))
    assert panel.n_instruments == 3
    assert given["cells"] == ["I20/R5", "I7/R7"]
    assert (given["seeds"], given["splits"], given["tables"]) == (3, ["paper", "walk"], ["II"])
    assert given["controls"] == ["logistic"]
    assert given["universe"] == {"top": 500, "min_price": 5.0}
    training = given["training"]
    assert (training.every, training.channels, training.device, training.threads) == ("bar", 0.5, "cpu", 1)
    assert training.settings == pp.train.Hyper(lr=1e-4)
    assert training.stores == {"I20": "images/jkx20.zarr"}
    call("replicate", tmp_path / "bars.parquet", tmp_path / "out")
    assert called[1][1]["cells"] == "jkx"
    assert called[1][1]["training"] == pp.paper.Training()
    assert called[1][1]["universe"] is None


def test_the_demo_takes_a_folder(called: Any, tmp_path: Path) -> None:
    call("replicate", "--demo", tmp_path / "out", "--seeds", 1)
    (function, out), given = called[0]
    assert (function, out, given["seeds"]) == ("demo", str(tmp_path / "out"), 1)
    assert "brings its own bars" in call("replicate", "--demo", tmp_path / "out", "--cell", "I5/R5", code=2)
    for arguments in ([tmp_path / "out"], ["--demo", "a", "b"]):
        assert "give TABLE and OUT, or --demo and OUT" in call("replicate", *arguments, code=2)


def test_half_of_the_demos_names_carry_the_pattern() -> None:
    table, signal = simulated.planted_market(10, 120)
    planted = table["instrument"].str.starts_with("P").to_numpy()
    assert (signal[planted] != 0).all()
    assert (signal[~planted] == 0).all()
    assert table["instrument"].n_unique() == 10
    assert (table["market_cap"].drop_nulls() > 0).all()
