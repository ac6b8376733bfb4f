"""Pages that are made, not written: one for every public name, the gallery, and the changelog."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

# mkdocs loads this file by its path: the module beside it is not found otherwise.
sys.path.insert(0, str(Path(__file__).parent))
import gallery

ROOT = Path(__file__).resolve().parents[2]
# Where public names are looked for: what users import, in the order of a first reading.
PACKAGES = (
    "pricepix",
    "pricepix.bars",
    "pricepix.samples",
    "pricepix.build",
    "pricepix.train",
    "pricepix.factor",
    "pricepix.paper",
    "pricepix.explore",
)


def public_names(package: str) -> dict[str, str]:
    """Return the full path of every public class and function of a package, by its name, from its stub."""
    stub = ROOT / Path(*package.split(".")) / "__init__.pyi"
    found = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        module = f"{package}.{node.module}" if node.level else node.module
        for alias in node.names:
            if not alias.name.startswith("_"):
                found[alias.name] = f"{module}.{alias.name}"
    return found


def reference() -> dict[str, list[tuple[str, str]]]:
    """Return (name, full path) pairs by package; a name that two packages share stands in the first."""
    seen: set[str] = set()
    pages: dict[str, list[tuple[str, str]]] = {}
    for package in PACKAGES:
        stub = ROOT / Path(*package.split(".")) / "__init__.pyi"
        if not stub.is_file():
            continue
        own = [(name, path) for name, path in public_names(package).items() if path not in seen]
        seen |= {path for _, path in own}
        pages[package] = own
    return pages


def displays() -> dict[str, Any]:
    """Return objects whose notebook page is shown on the page of their class."""
    import pricepix as pp

    panel = pp.Panel.from_table(pp.samples.bundled(), adjust="multiply", progress=False)
    return {
        "ImageSpec": pp.ImageSpec.preset("jkx20"),
        "Panel": panel,
        "WindowIndex": pp.WindowIndex.from_panel(panel, "jkx20", "week"),
        "PanelImages": pp.PanelImages(panel, "jkx20"),
        "ImageStore": pp.render_universe(panel, "jkx5", None, (5, 20), progress=False),
        "PanelReport": panel.report,
    }


def on_config(config: Any) -> Any:
    tree = [
        {package: [{name: f"reference/{name}.md"} for name, _ in sorted(names)]}
        for package, names in reference().items()
    ]
    at = next(k for k, entry in enumerate(config.nav) if "Design and formats" in entry)
    config.nav[at:at] = [{"Reference": tree}]
    at = next(k for k, entry in enumerate(config.nav) if "Gallery" in entry)
    shown = [{notebook.title: notebook.page} for notebook in gallery.notebooks()]
    config.nav[at] = {"Gallery": [{"All of them": "gallery.md"}, *shown]}
    config.nav.append({"Changelog": "changelog.md"})
    return config


def on_files(files: Files, config: Any) -> Files:
    shown = displays()
    for package, names in reference().items():
        for name, path in names:
            lines = [f"# {name}", "", f"```python\nfrom {package} import {name}\n```", ""]
            if name in shown:
                lines += [shown[name]._repr_html_(), ""]
            lines += [f"::: {path}", ""]
            files.append(File.generated(config, f"reference/{name}.md", content="\n".join(lines)))
    for path, content in gallery.pages().items():
        files.append(File.generated(config, path, content=content))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    changes = re.sub(r"\]\(docs/", "](", changes)
    files.append(File.generated(config, "changelog.md", content=changes))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    if page.file.src_uri == "gallery.md":
        page.meta["hide"] = ["toc"]
        return gallery.overview(markdown)
    # On the site the changelog is a page; in the repository it lies beside the folder of the documentation.
    return markdown.replace("](../CHANGELOG.md", "](changelog.md")
