"""The demo: what it says and what it leaves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pricepix as pp
from pricepix.workflow import demo as module
from pricepix.workflow.config import Config
from pricepix.workflow.source import source_of

pytest.importorskip("bokeh_sampledata")


def test_demo_says_what_it_does_and_what_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without training, which has tests of its own."""
    asked: list[object] = []

    def warm_up(presets, parts, echo):
        asked.append(presets)
        echo("bars: 3 kernels compiled, 1.0 s")
        return pp.WarmUp(tmp_path, (), 1.0)

    monkeypatch.setattr(module, "warm_up", warm_up)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    lines: list[str] = []
    assert module.demo(tmp_path / "demo", echo=lines.append) == tmp_path / "demo"
    assert asked == [module.PRESETS]
    assert lines[:2] == [
        "compiling the kernels, once; later runs load them:",
        "  bars: 3 kernels compiled, 1.0 s",
    ]
    rates = [line for line in lines if "images/s to disk" in line]
    assert [line.split()[0] for line in rates] == list(module.PRESETS)
    assert all(re.search(r" in \d+\.\d+ s, [\d,]+ images/s", line) for line in rates)
    assert lines[-4] == "\nopen:"
    for line, name in zip(lines[-3:], ("jkx20.png", "AAPL.png", "jkx60.png"), strict=True):
        assert line.split()[0] == str(tmp_path / "demo" / name)
        assert (tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG")
    assert len(pp.open_store(tmp_path / "demo" / "jkx5.zarr")) > 10_000


def test_prices_of_the_simulated_market_are_adjusted(tmp_path: Path) -> None:
    """Else its evaluation warns of a factor that was not applied, of which a demo should have none."""
    config = Config.from_dict({"out": str(tmp_path), **module.SIMULATED})
    panel = source_of(config, progress=False).training_panel()
    assert isinstance(panel, pp.Panel)
    assert "unapplied_factor" not in panel.report.counts
    as_traded = pp.Panel.from_table(pp.samples.simulate(**config.data.simulate), progress=False)
    assert as_traded.report.counts["unapplied_factor"] > 0
