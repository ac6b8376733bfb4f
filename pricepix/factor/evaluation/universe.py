"""Which instruments a portfolio may hold: the largest, not the cheapest, by what is known when it is formed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import nearest_or_all, number, whole_number

if TYPE_CHECKING:
    from pricepix.bars.panel import Panel
    from pricepix.factor.evaluation.market import Market

__all__ = ["DOLLAR_VOLUME_BARS", "Universe", "average_dollar_volume"]

Mask = NDArray[np.bool_]

DOLLAR_VOLUME_BARS: Final = 20
"""Bars over which the dollar volume of a universe is averaged: a month of days."""


@dataclass(frozen=True)
class Universe:
    """The instruments of a date, by what is known at its close.

    An instrument that does not meet every condition given is in no portfolio of that date; what comes later never
    counts. Without any condition all instruments are in.

    Attributes
    ----------
    top : int or None
        So many of the largest by market cap, among those that meet the other conditions. Ties go to the instrument
        that comes first in the panel; those without a market cap are out.
    min_price : float or None
        Lowest close, in the panel's prices: adjusted ones if the panel was adjusted.
    min_dollar_volume : float or None
        Lowest mean of close times volume over the last 20 bars of the market; a bar without a trade counts as 0.
    min_age : int or None
        Bars of its own that an instrument must have, this one included.
    mask : array, callable or None
        bool (rows,), a value a panel row, or a function from the panel to one. It must know no more than its row does.
    """

    top: int | None = None
    min_price: float | None = None
    min_dollar_volume: float | None = None
    min_age: int | None = None
    mask: NDArray[Any] | Callable[[Panel], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("top", "min_age"):
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), name, 1)
        for name in ("min_price", "min_dollar_volume"):
            if getattr(self, name) is not None:
                number(getattr(self, name), name)

    @classmethod
    def parse(cls, text: str) -> Universe:
        """Read a universe as the command line writes it: ``top=500,min_price=5``.

        Raises
        ------
        ValueError
            It is not of that form, names no condition or one twice, or a number is none.
        """
        known = {"top": int, "min_price": float, "min_dollar_volume": float, "min_age": int}
        found: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not value:
                raise ValueError(
                    f"universe {text!r}: {part!r} is not of the form NAME=NUMBER, such as top=500"
                )
            if name not in known:
                raise ValueError(f"a universe has no condition {name!r}{nearest_or_all(name, list(known))}")
            if name in found:
                raise ValueError(f"universe {text!r} gives {name} twice")
            try:
                found[name] = known[name](value)
            except ValueError:
                kind = "a whole number" if known[name] is int else "a number"
                raise ValueError(f"universe: {name}={value} is not {kind}") from None
        return cls(**found)

    @classmethod
    def of(
        cls, given: Universe | Mapping[str, Any] | Callable[[Panel], Any] | NDArray[Any] | None
    ) -> Universe:
        """Return a universe, or one of a mapping of its attributes, a mask or a mask function; None is everything."""
        if given is None:
            return cls()
        if isinstance(given, Universe):
            return given
        if isinstance(given, Mapping):
            names = [field.name for field in fields(cls)]
            for name in given:
                if name not in names:
                    raise TypeError(f"a universe has no condition {name!r}{nearest_or_all(str(name), names)}")
            return cls(**given)
        if callable(given) or isinstance(given, np.ndarray):
            return cls(mask=given)
        raise TypeError(
            f"universe is a {type(given).__name__}: give a Universe, a mapping such as {{'top': 500}}, a mask of the "
            "panel's rows, or a function from the panel to one"
        )

    def __str__(self) -> str:
        parts = [
            "" if self.top is None else f"the {self.top:,} largest by market cap",
            "" if self.min_price is None else f"close of at least {self.min_price:g}",
            ""
            if self.min_dollar_volume is None
            else f"dollar volume of at least {self.min_dollar_volume:,.0f} a bar",
            "" if self.min_age is None else f"at least {self.min_age:,} bars old",
            "" if self.mask is None else "in the mask",
        ]
        return ", ".join(part for part in parts if part) or "all instruments"

    @property
    def is_everything(self) -> bool:
        """Whether there is no condition."""
        return all(getattr(self, field.name) is None for field in fields(self))

    def select(self, market: Market, at: NDArray[np.int64]) -> Mask:
        """Return which instruments are in at some positions of the calendar, bool (positions, instruments).

        Raises
        ------
        ValueError
            If `top` is asked for and the panel has no market caps, or the mask does not fit the panel.
        """
        row = market.row[at]
        there = row >= 0
        safe = np.where(there, row, 0)
        chosen = there.copy()
        panel = market.panel
        if self.min_price is not None:
            chosen &= panel.bars[safe, 3] >= self.min_price
        if self.min_dollar_volume is not None:
            chosen &= average_dollar_volume(market, at, DOLLAR_VOLUME_BARS) >= self.min_dollar_volume
        if self.min_age is not None:
            chosen &= safe - panel.offsets[market.code] + 1 >= self.min_age
        if self.mask is not None:
            chosen &= self._mask(panel)[safe]
        return chosen if self.top is None else _largest(market, at, chosen, self.top)

    def _mask(self, panel: Panel) -> Mask:
        given = self.mask(panel) if callable(self.mask) else self.mask
        mask = np.asarray(given)
        if mask.dtype != np.bool_ or mask.shape != (len(panel),):
            raise ValueError(
                f"the mask of the universe is {mask.dtype} {mask.shape}: give a bool a panel row, ({len(panel)},)"
            )
        return mask


def average_dollar_volume(market: Market, at: NDArray[np.int64], bars: int) -> NDArray[np.float64]:
    """Mean of close times volume over the market's last bars, float64 (positions, instruments).

    A bar at which an instrument did not trade counts as 0; so do those before it was listed.
    """
    out = np.empty((len(at), market.row.shape[1]))
    panel = market.panel
    for k, t in enumerate(at.tolist()):
        row = market.row[max(0, t - bars + 1) : t + 1]
        safe = np.where(row >= 0, row, 0)
        traded = panel.bars[safe, 3] * panel.bars[safe, 4]
        out[k] = np.where((row >= 0) & np.isfinite(traded), traded, 0.0).sum(axis=0) / bars
    return out


def _largest(market: Market, at: NDArray[np.int64], chosen: Mask, n: int) -> Mask:
    cap = market.cap_at(at)
    if cap is None:
        raise ValueError(
            f"a universe of the {n} largest needs market caps, and the panel has none: map a column to market_cap, or "
            "choose by min_dollar_volume"
        )
    known = chosen & (cap > 0)
    order = np.argsort(np.where(known, -cap, np.inf), axis=1, kind="stable")[:, :n]
    out = np.zeros(chosen.shape, bool)
    np.put_along_axis(out, order, True, axis=1)
    return out & known
