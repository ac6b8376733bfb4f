"""The page of a replication: one HTML file that needs no network, the same byte for byte from the same results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pricepix._checks import optional_module
from pricepix.location import atomic_file
from pricepix.paper.charts import HEIGHT, WIDTH, Chart
from pricepix.paper.heat_maps import HeatMaps
from pricepix.paper.tables import Table

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Page", "Section", "check_installed", "write_page", "write_tables"]

_TEMPLATE: Final = "paper.html.j2"


class Section(NamedTuple):
    """Tables and charts of one split, or of one split of another market."""

    name: str
    """Letters and digits, of no other section."""
    title: str
    glance: Table | None
    """The main figures; None for none."""
    tables: list[Table]
    charts: list[Chart]
    differences: dict[str, str]
    maps: Sequence[HeatMaps] = ()


class Page(NamedTuple):
    """What the template shows."""

    title: str
    lead: str
    notes: Sequence[str]
    skipped: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def check_installed() -> None:
    """Raise ImportError, with the line that installs it, unless the page's template engine is there."""
    optional_module("jinja2", "paper", "paper.html")


def write_page(page: Page, path: Path) -> Path:
    """Write the page; nothing in it tells when, where or by whom it was made."""
    text = _environment().get_template(_TEMPLATE).render(**page._asdict(), width=WIDTH, height=HEIGHT)
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def write_tables(tables: Sequence[Table], folder: Path) -> None:
    """Write every table as CSV and as LaTeX."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        for suffix, text in ((".csv", table.to_csv()), (".tex", table.to_latex())):
            with atomic_file(folder / f"{table.name}{suffix}") as partial:
                partial.write_text(text, encoding="utf-8")


def _minus(text: str) -> str:
    """Return a number with a minus sign for its hyphen, and a dash for one that is not known."""
    return text.replace("-", "\N{EN DASH}" if text in ("-", "(-)") else "\N{MINUS SIGN}")


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("pricepix.paper", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["minus"] = _minus
    return found
