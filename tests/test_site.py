"""The site's made pages: every public name has one, and each leads to what it names."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import pricepix as pp

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_page(hooks):
    pages = hooks.reference()
    top = {name for name, _ in pages["pricepix"]}
    packages = {"bars", "build", "explore", "factor", "paper", "samples", "train", "workflow"}
    assert set(pp.__all__) - {"__version__"} <= top | packages
    pytest.importorskip("torch")
    for names in pages.values():
        for _, path in names:
            module, _, last = path.rpartition(".")
            if not hasattr(importlib.import_module(module), last):
                importlib.import_module(path)


def test_the_navigation_names_every_page():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = set(re.findall(r"[\w-]+\.md", str(config["nav"])))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")}
