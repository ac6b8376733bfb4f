"""The tables of docs/performance.md, made from what `make bench-page` measured.

    python benchmarks/report.py            # write the tables into the page
    python benchmarks/report.py --check    # fail where the page is not what this script makes

Every file of benchmarks/results/ is a run of ``benchmarks/test_render_speed.py`` on one kind of CPU, written by
``--results``; benchmarks/instructions.json is the table of `make bench-check`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
RESULTS = HERE / "results"
INSTRUCTIONS = HERE / "instructions.json"
BEGIN = "<!-- measured: made by benchmarks/report.py, do not edit -->\n"
END = "<!-- measured: end -->\n"
# What an image takes, in the order of the columns.
COLUMNS = (
    ("column bits", "bits"),
    ("images", "images"),
    ("by time", "images by time"),
    ("by time, 16 bytes off", "images by time, 16 bytes off"),
    ("bare streamed stores", "streamed"),
    ("`fill`", "fill"),
    ("plain kernel", "plain"),
)
PRESETS = ("jkx5", "jkx20", "jkx60", "it49")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page differs")
    given = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = with_tables(page)
    if made == page:
        print(f"{PAGE.name} is up to date")
        return 0
    if given.check:
        print(f"{PAGE.name} is not what benchmarks/report.py makes: run it", file=sys.stderr)
        return 1
    PAGE.write_text(made, encoding="utf-8")
    print(f"wrote the tables of {PAGE.name}")
    return 0


def with_tables(page: str) -> str:
    """Return the page with the tables in place of those that it has."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"{PAGE} lacks the lines {BEGIN.strip()!r} and {END.strip()!r} around its tables")
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    for run in runs:
        if run["format"] != 1:
            raise ValueError(f"results of format {run['format']}, this script reads format 1")
    counts = json.loads(INSTRUCTIONS.read_text(encoding="utf-8"))
    parts = [machines(runs), ratios(runs), *(nanoseconds(run) for run in runs), instructions(counts)]
    return before + BEGIN + "\n" + "\n".join(parts) + "\n" + END + after


def table(head: list[str], rows: list[list[str]]) -> str:
    """Lay out a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def machines(runs: list[dict[str, Any]]) -> str:
    """Name where each run was made."""
    rows = []
    for run in runs:
        where = run["machine"]
        settings = " ".join(f"{name}={value}" for name, value in where["settings"].items()) or "none"
        versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
        rows.append(
            [
                f"`{where['compiled_for']}`",
                f"{where['cpu']} (family/model {where['family_and_model']}), {where['cores']} cores",
                settings,
                f"Python {where['python']}, {versions}",
                f"{where['load_at_the_end']:.1f}",
            ]
        )
    return table(["compiled for", "machine", "settings", "versions", "load average"], rows)


def ratios(runs: list[dict[str, Any]]) -> str:
    """Return every ratio and its target, a column a run."""
    found = [{row["what"]: row for row in run["table"]} for run in runs]
    names = list(dict.fromkeys(what for rows in found for what in rows))
    lines = []
    for what in names:
        row = next(rows[what] for rows in found if what in rows)
        values = [f"{rows[what]['value']:.2f}" if what in rows else "" for rows in found]
        lines.append([what, *values, f"{row['bound']} {row['target']:.2f}"])
    return table(["what", *(f"`{run['machine']['compiled_for']}`" for run in runs), "target"], lines)


def nanoseconds(run: dict[str, Any]) -> str:
    """Return what an image of each preset takes."""
    rows = []
    for preset in PRESETS:
        values = [run["seconds"].get(f"{preset} {name}") for _, name in COLUMNS]
        rows.append([f"`{preset}`", *("" if v is None else f"{1e9 * v:,.0f}" for v in values)])
    head = [f"ns an image, `{run['machine']['compiled_for']}`", *(title for title, _ in COLUMNS)]
    return table(head, rows)


def instructions(counts: dict[str, Any]) -> str:
    """Return the instructions an image, of each preset and path."""
    ((cpu, found),) = counts["instructions_an_image"].items()
    paths = list(dict.fromkeys(case.split()[1] for case in found))
    presets = list(dict.fromkeys(case.split()[0] for case in found))
    rows = [[f"`{preset}`", *(f"{found[f'{preset} {path}']:,.0f}" for path in paths)] for preset in presets]
    return table([f"instructions an image, `{cpu}`", *paths], rows)


if __name__ == "__main__":
    sys.exit(main())
