"""A release can be made from this checkout: built, compared, installed where nothing else is, and used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import release_check

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.nightly
def test_a_release_can_be_made(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "release_check.py"), "--out", str(tmp_path / "dist")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "installed from the wheel, draws" in done.stdout
    assert sorted(p.suffix for p in (tmp_path / "dist").iterdir()) == [".gz", ".whl"]


def wheel_of(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel of these files, with the least metadata that the check reads."""
    path = folder / "pricepix-9.8.7-py3-none-any.whl"
    about = "pricepix-9.8.7.dist-info"
    with release_check.zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.4\nName: pricepix\nVersion: 9.8.7\n\nText\n"
        )
        archive.writestr(f"{about}/licenses/LICENSE", "BSD")
    return path


def test_a_wheel_that_is_not_the_package_is_refused(tmp_path):
    files = release_check.package_files()
    assert "pricepix/py.typed" in files
    assert release_check.compare_contents(wheel_of(tmp_path, files)) == "9.8.7"
    with pytest.raises(SystemExit, match=r"missing \[\], extra \['pricepix/scratch.py'\], changed \[\]"):
        release_check.compare_contents(wheel_of(tmp_path, {**files, "pricepix/scratch.py": b""}))
    with pytest.raises(SystemExit, match=r"missing \[\], extra \[\], changed \['pricepix/__init__.py'\]"):
        release_check.compare_contents(wheel_of(tmp_path, {**files, "pricepix/__init__.py": b"# other"}))
    del files["pricepix/py.typed"]
    with pytest.raises(SystemExit, match=r"missing \['pricepix/py.typed'\], extra \[\], changed \[\]"):
        release_check.compare_contents(wheel_of(tmp_path, files))


def test_a_tag_is_the_version_and_has_its_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(release_check, "ROOT", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.3.0 (unreleased)\n\n## 0.2.0 (2026-01-31)\n")
    release_check.check_tag("v0.2.0", "0.2.0")
    with pytest.raises(SystemExit, match=r"the tag is 0.2.0, the version 0.2.0: expected the tag v0.2.0"):
        release_check.check_tag("0.2.0", "0.2.0")
    with pytest.raises(SystemExit, match=r"no line '## 0.3.0 \(YYYY-MM-DD\)'"):
        release_check.check_tag("v0.3.0", "0.3.0")


def test_a_folder_of_other_things_is_not_emptied(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("keep")
    monkeypatch.setattr(sys, "argv", ["release_check.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds other things than releases"):
        release_check.main()
    assert (tmp_path / "notes.txt").read_text() == "keep"
