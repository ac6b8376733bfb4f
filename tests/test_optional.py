"""Optional dependencies: what needs them says so with the line that installs them, and nothing else does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import pricepix as pp
from pricepix import factor
from pricepix._checks import optional_module
from pricepix.cli import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bars() -> Any:
    return pp.samples.simulate(3, 60, seed=1)


@pytest.fixture(scope="module")
def store(bars: Any) -> pp.ImageStore:
    return pp.render_universe(bars, "jkx5", horizons=(1,), progress=False)


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make a package one that is not installed, even if it was imported before."""
    for loaded in [name, *(module for module in sys.modules if module.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, loaded, None)


def needs(what: str, package: str, extra: str) -> Any:
    return pytest.raises(ImportError, match=rf"^{what} needs {package}: pip install 'pricepix\[{extra}\]'$")


def test_lazy_arrays_need_dask(store: pp.ImageStore, bars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "dask")
    for images in (store, pp.PanelImages(bars, "jkx5")):
        with needs("to_dask", "dask", "dask"):
            images.to_dask()


def test_datasets_need_xarray(
    store: pp.ImageStore, bars: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = factor.score(
        store, lambda images: images.mean(axis=(1, 2)) / 255, tmp_path / "f", progress=False
    )
    without(monkeypatch, "xarray")
    for images in (store, pp.PanelImages(bars, "jkx5"), scores):
        with needs("to_xarray", "xarray", "xarray"):
            images.to_xarray()  # type: ignore[attr-defined]


def test_clusters_need_distributed(bars: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "distributed")

    client: Any = object()
    with needs("client=", "distributed", "distributed"):
        pp.render_universe(bars, "jkx5", tmp_path / "s", client=client, progress=False)
    assert not (tmp_path / "s").exists()
    bars.write_parquet(tmp_path / "bars.parquet")
    words = ["build-store", "bars.parquet", "store", "--preset", "jkx5", "--scheduler", "tcp://nowhere:1"]
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(main, [*words, "--no-progress"])
    assert said.exit_code == 1
    assert "Error: --scheduler needs distributed: pip install 'pricepix[distributed]'" in said.output


def test_the_rest_needs_none_of_them(tmp_path: Path) -> None:
    """A store is built, appended to, read, verified and scored where only the required packages are installed."""
    code = """
import sys
for name in ("dask", "distributed", "xarray", "pandas", "exchange_calendars", "torch", "lightning"):
    sys.modules[name] = None
import pricepix as pp
from pricepix import factor
panel = pp.Panel.from_table(pp.samples.simulate(4, 90, seed=1), progress=False)
half = panel.select(end=panel.stamp(int(panel.calendar[60])))
pp.render_universe(half, "jkx5", "store", progress=False)
store = pp.append("store", panel, progress=False)
assert store.verify(panel).ok
ink = lambda images: images.mean(axis=(1, 2)) / 255
assert factor.score(store, ink, "factor", progress=False).to_polars().height == len(store)
"""
    command = [sys.executable, "-W", "error", "-c", code]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr


def test_extras_that_errors_name_exist_and_are_not_required() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}  # type: ignore[index]
    for package, extra in (
        ("dask", "dask"),
        ("xarray", "xarray"),
        ("dask", "xarray"),
        ("distributed", "distributed"),
        ("exchange-calendars", "calendars"),
        ("onnxruntime", "onnx"),
        ("openvino", "openvino"),
    ):
        assert any(line.startswith(package) for line in extras[extra])
        assert package not in required
        assert extra in extras["all"][0]


def test_a_module_that_is_there_is_returned() -> None:
    assert optional_module("json", "none", "nothing") is sys.modules["json"]
