"""Which tables a replication writes, and what the user adds to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice
from pricepix.factor.evaluation.inputs import column_values
from pricepix.factor.evaluation.market import Market
from pricepix.paper.characteristics import CHARACTERISTICS
from pricepix.paper.transfer import SCALES

__all__ = ["TABLES", "Tables"]

TABLES: Final = {
    "I": "One-week decile portfolios",
    "II": "Decile portfolios of longer horizons",
    "III": "What is earned when, within the holding period",
    "IV": "The largest names",
    "V": "Rank correlations of predictions with characteristics",
    "VI": "Logits of predicted signs on characteristics",
    "VII": "Logits of the signs of returns on predictions and characteristics",
    "VIII": "Logits on the numbers in the image, lag by lag",
    "IX": "Controls: the same numbers without the second dimension",
    "X": "Networks of another market",
    "XI": "Networks of five bars on images of 20 bars, merged by four",
    "XII": "Networks of five bars on images of 60 bars, merged by twelve",
}
"""The tables that can be written, by their number in the paper."""


@dataclass(frozen=True)
class Tables:
    """The tables of a replication.

    Attributes
    ----------
    numbers : tuple of str
        As in the paper; by default all that the networks of the cells fill, XI and XII left out.
    characteristics : mapping of str to array, table or FactorCache
        Characteristics of your own, by name, beside those of the bars in Tables V to VII: a value a panel row; a table
        with the columns ``instrument``, ``time`` and one more; or a factor. A value stands at the bar from whose close
        it is known, and counts at that bar only: carry forward what is reported once a quarter.
    """

    numbers: tuple[str, ...] = tuple(number for number in TABLES if number not in SCALES)
    characteristics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", tuple(self.numbers))
        for number in self.numbers:
            choice(number, "tables", TABLES)
        for name in self.characteristics:
            if not isinstance(name, str) or name in (*CHARACTERISTICS, "CNN prediction"):
                raise ValueError(
                    f"characteristics: {name!r} is one of the tables' own rows; give another name"
                )

    @classmethod
    def of(cls, given: Tables | Iterable[str] | None) -> Tables:
        """Return tables as they are, or those of some numbers; None for all that cells fill."""
        if given is None:
            return cls()
        if isinstance(given, str):
            return cls((given,))
        return given if isinstance(given, Tables) else cls(tuple(given))

    def own(self, market: Market) -> dict[str, NDArray[np.float64]]:
        """Lay the user's characteristics on a market's grid, float64 (bars, instruments) each.

        Raises
        ------
        ValueError
            One has another shape, or no value at any bar of the panel.
        """
        found = {}
        for name, given in self.characteristics.items():
            try:
                found[name] = column_values(name, given, market)
            except ValueError as error:
                raise ValueError(str(error).replace("columns[", "characteristics[", 1)) from None
            if np.isnan(found[name]).all():
                raise ValueError(
                    f"characteristics[{name!r}] has no value at any bar of the panel: its instruments and times must "
                    "be those of the bars"
                )
        return found
