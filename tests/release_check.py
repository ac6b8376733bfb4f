"""Is this checkout fit to be released? Builds it, looks into what was built, installs it and draws with it.

    make release-check              # anywhere, any time; leaves the two files in dist/
    make release-check TAG=v0.2.0   # with the tag that is about to be pushed

What is checked:

* sdist and wheel are built twice, first from the checkout, then from the unpacked sdist. All bytes are the same:
  the sdist lacks nothing, and nothing depends on the time or the folder.
* ``twine check --strict`` takes the metadata.
* The wheel holds the files of the package, byte for byte, and no others.
* The wheel is installed into a new environment, with what it needs and no more, in the versions of constraints.txt.
  There, outside the checkout, the command line says its help and a window of bars becomes an image.
* With a tag: it is the version, and the changelog has a dated entry for it.

How to release:

1. Write the version into ``pricepix/_version.py``. In ``CHANGELOG.md`` put it over what is unreleased, with the date:
   ``## 0.2.0 (2026-01-31)``. Raise ``FORMAT_VERSION`` only if an older release would misread a new store.
2. ``make test`` and ``make release-check TAG=v0.2.0``. Look at the last nightly run.
3. Commit, and have the commit reviewed and merged as any other.
4. Tag the merged commit and push the tag: ``git tag -a v0.2.0 -m "pricepix 0.2.0"``, ``git push origin v0.2.0``.
5. The workflow ``release`` checks all this again, runs the demo from the wheel and waits for a maintainer to approve
   the environment ``pypi``. Then it publishes. No password is kept anywhere: the package index trusts this workflow
   of this repository (trusted publishing, to be set up there once by an owner).
6. Install the release from the index in a new environment and run ``pricepix-cli demo``.

A release is never replaced. If it is bad, it is yanked on the index, and the next patch version replaces it.
"""

from __future__ import annotations

import argparse
import email
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# What running leaves beside the sources.
LEFT = {".pyc", ".pyo", ".nbi", ".nbc"}
# The first moment that a zip file can tell: for checkouts without a history.
EARLIEST = "315532800"

# Prints where the package lies and its version; fails if a plain window is not drawn.
RENDER = """
import numpy as np
import pricepix as pp

bars = pp.samples.simulate(instruments=2, bars=60, seed=1)
panel = pp.Panel.from_table(bars, progress=False)
store = pp.render_universe(panel, "jkx5", "small.zarr", horizons=(5,), progress=False)
images = pp.open_store("small.zarr").read()
assert len(images) == len(store) > 0
assert images.shape[1:] == (32, 15)
assert set(np.unique(images)) == {0, 255}
print(pp.__file__)
print(pp.__version__)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command with nothing of this checkout in its environment, and return what it printed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed with exit status {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def source_date() -> str:
    """Time of the last commit, which every file in a build carries; a value that is set already wins."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return os.environ["SOURCE_DATE_EPOCH"]
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return EARLIEST
    return run(git, "log", "-1", "--format=%ct", cwd=ROOT).strip()


def build(source: Path, out: Path) -> None:
    """Build sdist and wheel, with the build backend of constraints.txt."""
    environment = {"SOURCE_DATE_EPOCH": source_date(), "PIP_CONSTRAINT": str(CONSTRAINTS)}
    run(sys.executable, "-m", "build", "--sdist", "--wheel", "--outdir", out, source, cwd=out, **environment)


def build_twice(out: Path, scratch: Path) -> tuple[Path, Path]:
    """Build the checkout into `out`, and again from the sdist, and compare; return sdist and wheel."""
    build(ROOT, out)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(scratch, filter="data")
    again = scratch / "again"
    again.mkdir()
    build(scratch / sdist.name.removesuffix(".tar.gz"), again)
    first, second = digests(out), digests(again)
    if first != second:
        sys.exit(f"two builds differ:\n  from the checkout: {first}\n  from the sdist:    {second}")
    for name, digest in first.items():
        print(f"sha256 {digest}  {name}")
    return sdist, wheel


def package_files() -> dict[str, bytes]:
    """Files of the package in the checkout by name, without what running leaves beside them."""
    found = (p for p in (ROOT / "pricepix").rglob("*") if p.is_file() and p.suffix not in LEFT)
    return {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in found if "__pycache__" not in p.parts}


def compare_contents(wheel: Path) -> str:
    """Compare the wheel with the package; return the version that its metadata name."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    about = {name: held.pop(name) for name in list(held) if name.split("/")[0].endswith(".dist-info")}
    expected = package_files()
    missing, extra = sorted(expected.keys() - held.keys()), sorted(held.keys() - expected.keys())
    changed = sorted(name for name in expected.keys() & held.keys() if expected[name] != held[name])
    if missing or extra or changed:
        sys.exit(f"{wheel.name} is not the package: missing {missing}, extra {extra}, changed {changed}")
    (metadata,) = (text for name, text in about.items() if name.endswith(".dist-info/METADATA"))
    if not any(name.endswith("/licenses/LICENSE") for name in about):
        sys.exit(f"{wheel.name} has no licence")
    print(f"{wheel.name} holds the {len(expected)} files of the package")
    return str(email.message_from_bytes(metadata)["Version"])


def check_tag(tag: str, version: str) -> None:
    """Compare a tag with the version, and look for its entry in the changelog."""
    if tag != f"v{version}":
        sys.exit(f"the tag is {tag}, the version {version}: expected the tag v{version}")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, flags=re.MULTILINE):
        sys.exit(f"CHANGELOG.md has no line '## {version} (YYYY-MM-DD)'")


def use(wheel: Path, version: str, scratch: Path) -> None:
    """Install the wheel into a new environment, and draw with it, outside the checkout."""
    home, empty = scratch / "bare", scratch / "empty"
    empty.mkdir()
    venv.create(home, with_pip=True)
    bin_ = home / ("Scripts" if os.name == "nt" else "bin")
    python = bin_ / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS, wheel, cwd=empty)
    run(python, "-m", "pip", "check", cwd=empty)
    if "build-store" not in run(bin_ / "pricepix-cli", "--help", cwd=empty):
        sys.exit("pricepix-cli --help does not name build-store")
    place, drawn_by = run(python, "-W", "error", "-c", RENDER, cwd=empty).splitlines()[-2:]
    if not Path(place).resolve().is_relative_to(home.resolve()):
        sys.exit(f"the package came from {place}, not from the wheel")
    if drawn_by != version:
        sys.exit(f"the wheel says that it is {version}, the package in it {drawn_by}")
    print(f"pricepix {version}, installed from the wheel, draws")


def main() -> None:
    """Check everything; stop with what is wrong first."""
    parser = argparse.ArgumentParser(description="Check that this checkout is fit to be released.")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="where sdist and wheel go (default: dist)"
    )
    parser.add_argument("--tag", help="tag of the release, such as v0.2.0")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    if out.is_dir() and any(p.suffix not in (".gz", ".whl") for p in out.iterdir()):
        sys.exit(f"{out} holds other things than releases, and would be emptied: name another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sdist, wheel = build_twice(out, scratch)
        print(run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, cwd=out).strip())
        version = compare_contents(wheel)
        if arguments.tag:
            check_tag(arguments.tag, version)
        use(wheel, version, scratch)


if __name__ == "__main__":
    main()
