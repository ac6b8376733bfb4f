"""How bars are read, checked and repaired: the options that every way into a panel shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pricepix._checks import choice
from pricepix.bars.times import TimeOptions

ANCHORS: Final = ("given", "first")


@dataclass(frozen=True)
class ReadOptions:
    """How to read bars, checked; see `Panel.from_table` for the meaning of each option.

    `columns`, `name`, `null_values` and `gaps` apply only to tables.
    """

    on_bad: str = "raise"
    negative_prices: str = "error"
    adjust: str | None = None
    times: TimeOptions = field(default_factory=TimeOptions)
    progress: bool = True
    columns: Mapping[str, str | None] = field(default_factory=dict)
    name: str | None = None
    null_values: tuple[str, ...] = ()
    gaps: str = "keep"
    anchor: str = "given"

    def __post_init__(self) -> None:
        choice(self.on_bad, "on_bad", ("raise", "drop_bar", "keep"))
        choice(self.negative_prices, "negative_prices", ("error", "midpoint"))
        choice(self.adjust, "adjust", (None, "divide", "multiply"))
        choice(self.gaps, "gaps", ("keep", "missing"))
        choice(self.anchor, "anchor", ANCHORS)
        if self.anchor != "given" and self.adjust is None:
            raise ValueError(
                f"anchor={self.anchor!r} says at which bar adjusted prices are the quoted ones, but adjust=None leaves "
                "them unadjusted: give adjust='multiply' or 'divide', too"
            )

    @property
    def midpoint(self) -> bool:
        """Whether negative prices are midpoints of bid and ask."""
        return self.negative_prices == "midpoint"
