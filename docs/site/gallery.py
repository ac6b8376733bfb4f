"""The gallery: notebooks kept as text, executed, and turned into pages with their output.

A notebook is a Python script in jupytext's percent format, in ``examples/gallery``: it runs as it stands, can be
compared line by line, and opens as a notebook in JupyterLab and VS Code. What its cells give is kept in
``build/gallery`` until the notebook or the package changes.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import jupytext
import nbformat

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "examples" / "gallery"
KEPT: Final = ROOT / "build" / "gallery"
SECONDS: Final = 120
_RUNNER: Final = Path(__file__).with_name("run_notebook.py")

# Figures become SVG inside the page. Lines and text that matplotlib would draw in black take the page's own colour,
# so that one figure serves light and dark; the colours of curves are readable on both.
INK: Final = "#102030"
CURVES: Final = ("#3d85c6", "#d9722e", "#2e9e73", "#b565a7", "#c29b1e", "#7f8792")
_SETTINGS: Final = {
    **dict.fromkeys(
        (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "xtick.color",
            "ytick.color",
            "legend.labelcolor",
        ),
        INK,
    ),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none"),
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_SETUP: Final = f"""
import matplotlib
from cycler import cycler
from IPython import get_ipython
from matplotlib_inline.backend_inline import set_matplotlib_formats
get_ipython().run_line_magic("matplotlib", "inline")
set_matplotlib_formats("svg")
matplotlib.rcParams.update({_SETTINGS!r})
matplotlib.rcParams["axes.prop_cycle"] = cycler(color={CURVES!r})
"""

# The table of docs/gallery.md, whose links lead to the scripts for those who read it in the repository.
ROW: Final = re.compile(r"^\| \[([^\]]+)\]\(\.\./examples/gallery/([\w.]+)\) \| (.+) \|$", re.MULTILINE)
TABLE: Final = re.compile(r"^\| question.*\n\|-.*\n(?:\|.*\n)+", re.MULTILINE)


class Notebook(NamedTuple):
    """One notebook of the gallery."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem.split("_", 1)[1].replace("_", "-")

    @property
    def page(self) -> str:
        return f"gallery/{self.name}.md"

    def read(self) -> nbformat.NotebookNode:
        """Return the notebook's cells, with names of their own that do not change from build to build."""
        found = jupytext.read(self.path, fmt="py:percent")
        for number, cell in enumerate(found.cells):
            cell.id = f"{self.name[:50]}-{number}"
        return found

    @property
    def title(self) -> str:
        return str(self.read().cells[0].source.splitlines()[0].removeprefix("# "))


def notebooks() -> list[Notebook]:
    """Return the notebooks in their order."""
    return [Notebook(path) for path in sorted(FOLDER.glob("[0-9]*.py"))]


def pages() -> dict[str, str | bytes]:
    """Return the files of the gallery by their path on the site, all notebooks executed."""
    found = notebooks()
    digest = package_digest()
    # Two at a time: each has a process of its own.
    with ThreadPoolExecutor(2) as pool:
        executed = list(pool.map(lambda notebook: execute(notebook, digest), found))
    made: dict[str, str | bytes] = {}
    for notebook, cells in zip(found, executed, strict=True):
        made[notebook.page] = page(notebook, cells)
        made[f"gallery/{notebook.name}.ipynb"] = downloadable(notebook).encode()
        made[f"gallery/{notebook.name}.py"] = notebook.path.read_bytes()
    return made


def overview(markdown: str) -> str:
    """Return the page that lists the notebooks, its table as cards with a picture each."""
    cards = []
    by_file = {notebook.path.name: notebook for notebook in notebooks()}
    digest = package_digest()
    for title, file, answer in ROW.findall(markdown):
        notebook = by_file[file]
        pictures = [
            shown(output, f"card-{notebook.name}")
            for cell in execute(notebook, digest).cells
            if "hide-output" not in cell.metadata.get("tags", ())
            for output in cell.get("outputs", ())
            if {"image/svg+xml", "image/png"} & set(output.get("data", ()))
        ]
        cards.append(
            f'<li markdown="1">\n[{title}]({notebook.page})\n\n{pictures[-1 if notebook.name != "first-images" else 0]}'
            f"\n\n{answer}\n</li>"
        )
    listed = '<ul class="gallery-cards" markdown="1">\n' + "\n".join(cards) + "\n</ul>\n"
    return TABLE.sub(lambda _: listed, markdown, count=1)


def package_digest() -> str:
    """Return what the sources that a notebook runs on hash to."""
    sources = [*sorted((ROOT / "pricepix").rglob("*.py")), _RUNNER]
    return hashlib.sha256(b"".join([_SETUP.encode(), *(path.read_bytes() for path in sources)])).hexdigest()


def execute(notebook: Notebook, digest: str) -> nbformat.NotebookNode:
    """Return the notebook with what its cells gave; RuntimeError where one fails or complains."""
    key = hashlib.sha256(digest.encode() + notebook.path.read_bytes()).hexdigest()[:20]
    kept = KEPT / f"{notebook.name}-{key}.ipynb"
    if kept.is_file():
        return nbformat.read(kept, as_version=4)
    # The package is that of this checkout, whatever is installed.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT) as folder:
        result = Path(folder) / "result.ipynb"
        done = subprocess.run(
            [sys.executable, _RUNNER, notebook.path, result],
            input=_SETUP, cwd=folder, env={**os.environ, "PYTHONPATH": path}, timeout=SECONDS,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-5000:])
        found = nbformat.read(result, as_version=4)
    for cell in found.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{notebook.path.name} wrote to stderr: {output.text}")
    for old in KEPT.glob(f"{notebook.name}-*.ipynb"):
        old.unlink()
    nbformat.write(found, kept)
    return found


def downloadable(notebook: Notebook) -> str:
    """Return the notebook as JSON, without output; links to other pages of the site become plain words."""
    found = notebook.read()
    found.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for cell in found.cells:
        cell.metadata = {}
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", cell.source)
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def page(notebook: Notebook, executed: nbformat.NotebookNode) -> str:
    """Return the page of an executed notebook as Markdown."""
    name = notebook.name
    title, _, rest = executed.cells[0].source.partition("\n")
    links = f"[Notebook]({name}.ipynb){{ download }} · [Python script]({name}.py){{ download }}"
    # No table of contents: the code gets its width.
    parts = [
        "---\nhide: [toc]\n---",
        title,
        f'<p class="gallery-files" markdown="1">{links}</p>',
        rest.strip(),
    ]
    for number, cell in enumerate(executed.cells[1:]):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.source.strip():
            parts.append(f"```python\n{cell.source}\n```")
            if "hide-output" not in cell.metadata.get("tags", ()):
                parts += [shown(output, f"{name}-{number}-{k}") for k, output in enumerate(cell.outputs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def shown(output: nbformat.NotebookNode, key: str) -> str:
    """Return what one output of a cell looks like on the page: its richest form that needs no script."""
    if output.output_type == "stream":
        return block(f"<pre>{html.escape(output.text.rstrip())}</pre>", "text")
    data = output.data
    if "image/svg+xml" in data:
        return block(figure(data["image/svg+xml"], key), "figure")
    if "image/png" in data:
        return block(f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">', "figure")
    if "text/html" in data:
        found = data["text/html"]
        if 'class="dataframe"' in found:
            # The rules of polars are for every table of the page; ours are for our objects.
            found = re.sub(r"<style>.*?</style>", "", found, flags=re.DOTALL)
        return block(found, "html")
    return block(f"<pre>{html.escape(data['text/plain'])}</pre>", "text")


def block(content: str, kind: str) -> str:
    # Python-Markdown leaves HTML alone up to its first empty line; the search finds pages by their words, not figures.
    content = re.sub(r"\n\s*\n", "\n", content)
    return f'<div class="gallery-output {kind}" data-search-exclude>{content}</div>'


def figure(svg: str, key: str) -> str:
    """Return a figure of matplotlib to stand inside a page: without its rules for all of it, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # Names are those of one figure: a page has several.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)([^")]+)', rf"\1{key}-\2", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 var(--md-text-font-family, sans-serif)", svg)
    svg = svg.replace(INK, "currentColor").replace("#000000", "currentColor")
    return svg.replace("<svg ", '<svg role="img" stroke-linejoin="round" stroke-linecap="butt" ', 1)
