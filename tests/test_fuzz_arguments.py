"""Public functions with an argument that makes no sense: they work, or say in words of ours what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from drivers import drive

CALLS = 5 * int(os.environ["PRICEPIX_FUZZ"])


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    """PRICEPIX_FUZZ says how many of some 5,000 calls are made, drawn by PRICEPIX_KILL_SEED; see argument_driver.py."""
    pytest.importorskip("resource")
    found = drive("argument_driver.py", tmp_path / "made", str(CALLS), os.environ["PRICEPIX_KILL_SEED"])
    assert found["calls"] >= min(CALLS, 3000)
    assert found["faults"] == []
