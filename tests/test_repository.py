"""What keeps the repository in order is in order itself: workflows, hooks, forms, citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
if not GITHUB.is_dir():
    pytest.skip("these are sources without the repository around them", allow_module_level=True)

WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(p for p in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml")


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    parts = (line.split("==") for line in lines if "==" in line)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in parts}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_may_do_little_and_end(path):
    workflow = load(path)
    assert set(workflow["permissions"].items()) <= {("contents", "read")}
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert 0 < job["timeout-minutes"] < 360, name
        assert set(job.get("permissions", {}).items()) <= {("contents", "read"), ("id-token", "write")}, name
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False, name


def test_only_publishing_shows_who_it_is():
    jobs = {(p.stem, n): j for p in WORKFLOWS for n, j in load(p)["jobs"].items()}
    assert [key for key, job in jobs.items() if "id-token" in job.get("permissions", {})] == [
        ("release", "publish")
    ]
    assert jobs["release", "publish"]["environment"] == "pypi"
    assert set(jobs["release", "publish"]["needs"]) == {"build", "demo"}


@pytest.mark.parametrize("path", [*WORKFLOWS, *GITHUB.glob("actions/*/action.yml")], ids=lambda p: p.name)
def test_actions_are_pinned(path):
    for used in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8")):
        assert used.startswith("./") or re.fullmatch(
            r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|pypa/gh-action-pypi-publish@v\d+\.\d+\.\d+", used
        )


def test_every_target_of_make_that_is_named_does_something():
    """Make does nothing, and says so with exit code 0, for a phony target that lost its recipe."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    rules = set(re.findall(r"^([a-z-]+):(?!=)", text, re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(phony.split()) == rules
    users = [*WORKFLOWS, ROOT / ".ci/run", ROOT / "CONTRIBUTING.md", ROOT / "README.md", ROOT / "Makefile"]
    calls = re.compile(r"(?:make|part|\$\(MAKE\))((?: [a-z-]+)+)(?= [A-Z]|[`\n])")
    for path in users:
        if not path.exists():
            continue
        for words in re.findall(
            r"^(?:[^#\n]*[`\s])?" + calls.pattern, path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            assert set(words.split()) <= rules, (path.name, words)


def test_hooks_use_the_pinned_versions():
    hooks = [hook for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    named = [need for hook in hooks for need in hook.get("additional_dependencies", [])]
    assert {need.split("==")[0] for need in named} == {"ruff", "typos"}
    for need in named:
        name, version = need.split("==")
        assert pins()[name] == version


def test_what_development_needs_is_pinned():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    needed = {
        re.split(r"[\[>=<~ ]", need)[0].lower()
        for group in groups.values()
        for need in group
        if isinstance(need, str)
    }
    assert not needed - pins().keys()


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.name)
def test_forms_ask_something(path):
    form = load(path)
    assert {"name", "description", "labels", "body"} <= form.keys()
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in asked}) == len(asked) > 0
    assert any(part.get("validations", {}).get("required") for part in asked)


def test_the_citation_names_the_paper():
    citation = load(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    # Written in one place: pricepix/_version.py.
    assert "version" not in citation
    (paper,) = citation["references"]
    assert paper["doi"] == "10.1111/jofi.13268"
    assert f"<https://doi.org/{paper['doi']}>" in (ROOT / "README.md").read_text(encoding="utf-8")
