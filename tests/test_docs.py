"""The documentation does what it says: every block of code in it runs, every link leads somewhere.

Blocks marked ``python`` run in order, in one namespace a file and an empty folder; those with prompts are
compared with the output they show. Lines of ``bash`` blocks that call ``pricepix-cli`` run through the real
command line. The scripts in ``examples/`` run as a user runs them.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
# Those of the gallery that take no training; `make docs` runs all of them, and so do the nightly tests.
QUICK = {
    "01_first_images.py",
    "02_what_a_spec_changes.py",
    "05_ashare_five_minutes.py",
    "06_random_splits_leak.py",
}
# Examples that take minutes are run on less, and what they leave behind.
SMALLER = {"sweep_specs.py": "out --instruments 6 --bars 160 --epochs 1 --lookbacks 5 10"}
MADE = {"sweep_specs.py": ("out/sweep_specs.csv", "out/sweep_specs.png")}
WITHOUT_CODE = {"gallery.md", "performance.md"}
NEED_TORCH = {
    "every-evening.md",
    "gpu.md",
    "on-the-fly.md",
    "operations.md",
    "paper.md",
    "plain-torch.md",
    "training.md",
    "sweep_specs.py",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    language: str
    line: int
    """Line of the document, from 1, at which the code starts."""
    text: str


def blocks(document: Path) -> list[Block]:
    found = []
    language, start, lines = None, 0, []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.fullmatch(r"```(\w*)", line)
        if fence and language is None:
            language, start, lines = fence[1], number + 1, []
        elif fence:
            found.append(Block(language, start, "\n".join(lines) + "\n"))
            language = None
        else:
            lines.append(line)
    assert language is None, f"{document} line {start}: the block is not closed"
    return found


def run_prompts(block: Block, namespace: dict, document: Path) -> None:
    test = doctest.DocTestParser().get_doctest(
        block.text, namespace, name(document), str(document), block.line - 1
    )
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=report.append, clear_globs=False)
    # The test works on a copy of the namespace.
    namespace.update(test.globs)
    assert not runner.failures, "".join(report)


def run_commands(block: Block, document: Path) -> None:
    cli = pytest.importorskip("pricepix.cli")
    from click.testing import CliRunner

    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["pricepix-cli"]:
            result = CliRunner().invoke(cli.main, words[1:], catch_exceptions=False)
            assert result.exit_code == 0, f"{name(document)}: {line}\n{result.output}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_code_runs(document, tmp_path, monkeypatch):
    if document.name in NEED_TORCH:
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    ran = 0
    for block in blocks(document):
        if block.language == "python":
            ran += 1
            if block.text.lstrip().startswith(">>>"):
                run_prompts(block, namespace, document)
            else:
                # Empty lines before it, so that a traceback names the line of the document.
                source = "\n" * (block.line - 1) + block.text
                exec(compile(source, str(document), "exec"), namespace)
        elif block.language == "bash":
            run_commands(block, document)
    assert ran or document.name in WITHOUT_CODE, f"{name(document)} shows no code"


def marked(example: Path) -> object:
    slow = example.parent.name == "gallery" and example.name not in QUICK
    return pytest.param(example, id=name(example), marks=pytest.mark.nightly if slow else ())


@pytest.mark.parametrize("example", [marked(example) for example in EXAMPLES])
def test_example_runs(example, tmp_path):
    source = example.read_text(encoding="utf-8")
    if example.name in NEED_TORCH or "import torch" in source or "import train" in source:
        pytest.importorskip("torch")
    if "matplotlib" in source:
        pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example), *SMALLER.get(example.name, "").split()],
        cwd=tmp_path,
        # `plt.show()` opens no window.
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "template"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The cells of a notebook show pictures and values, which a script keeps to itself.
    assert done.stdout.strip() or example.parent.name == "gallery"
    for made in MADE.get(example.name, ()):
        assert (tmp_path / made).stat().st_size > 0


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=name)
def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = (document.parent / path).resolve() if path else document
            assert file.exists(), f"{name(document)} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
                slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
                assert anchor in slugs, f"{name(document)} links to {target}"


def test_the_map_names_every_document():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for document in (ROOT / "docs").glob("*.md"):
        assert document.name == "index.md" or f"({document.name})" in index
