"""What a request of the page asks for, read from its address and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pricepix._checks import choice, nearest_or_all, short, whole_number
from pricepix.explore.catalog import Catalog, Window
from pricepix.explore.sheets import CLASSES, ORDERS, Choice
from pricepix.spec import ImageSpec

__all__ = ["Query"]

T = TypeVar("T")
_LONGEST = 2000
_MOST_NAMES = 200


class Query:
    """The parameters of a request. Each is read once; `finish` refuses those that nobody read.

    Parameters
    ----------
    given : mapping of str to str
    """

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = dict(given)
        self._known: list[str] = []
        for name, value in self._given.items():
            if len(value) > _LONGEST:
                raise ValueError(f"{name[:40]} has {len(value):,} characters: give at most {_LONGEST:,}")

    def text(self, name: str, default: str | None = None) -> str | None:
        """Return a text; what is empty counts as not given."""
        self._known.append(name)
        return self._given.get(name) or default

    def _read(self, name: str, kind: Callable[[str], T], what: str, default: T) -> T:
        given = self.text(name)
        if given is None:
            return default
        try:
            return kind(given)
        except ValueError:
            raise ValueError(f"{name}={short(given)} is not {what}") from None

    def whole(self, name: str, default: int, lowest: int, highest: int) -> int:
        """Return a whole number within bounds."""
        return whole_number(self._read(name, int, "a whole number", default), name, lowest, highest)

    def share(self, name: str, default: float, lowest: float, highest: float) -> float:
        """Return a number within bounds."""
        found = self._read(name, float, "a number", default)
        if not lowest <= found <= highest:
            raise ValueError(f"{name}={found}: give a number from {lowest} to {highest}")
        return found

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        """Return one of some words, the first by default."""
        return str(choice(self.text(name, choices[0]), name, choices))

    def finish(self) -> None:
        """Refuse parameters that the request does not have."""
        if unknown := [name for name in self._given if name not in self._known]:
            raise ValueError(
                f"there is no parameter {unknown[0][:40]!r} here{nearest_or_all(unknown[0], self._known)}"
            )

    # ---- what several requests ask for

    def window(self, catalog: Catalog) -> Window:
        """Return the window of `instrument` that ends last by `time`; by default the last of all."""
        name, time = self.text("instrument"), self.text("time")
        if not len(catalog):
            raise LookupError("there is no image here")
        if name is None and time is None:
            return catalog.newest()
        return catalog.find(catalog.newest().instrument if name is None else name, time)

    def horizon(self, horizons: tuple[int, ...], default: int | None) -> int | None:
        """Return one of the horizons of the images."""
        found = self._read("horizon", int, "a whole number", default)
        if found is not None and found not in horizons:
            known = ", ".join(map(str, horizons)) or "none"
            raise ValueError(f"horizon={found}: these images have forward returns over {known} bars")
        return found

    def choice(self, catalog: Catalog, default_horizon: int | None) -> Choice:
        """Return which windows a sheet shows, and in which order."""
        names = [name.strip() for name in (self.text("instruments") or "").split(",")]
        names = [name for name in names if name]
        if len(names) > _MOST_NAMES:
            raise ValueError(
                f"instruments names {len(names):,}: give at most {_MOST_NAMES}, or patterns with *"
            )
        found = Choice(
            self.one_of("order", ORDERS),
            self.horizon(catalog.images.horizons, default_horizon),
            self.text("from"),
            self.text("to"),
            tuple(names),
            self.one_of("class", CLASSES),
            self.share("confidence", 0.5, 0.5, 1.0),
            self.whole("seed", 0, 0, 2**31),
        )
        like = self.window(catalog)
        return replace(found, like=like) if found.order == "similar" else found

    def spec(self, own: ImageSpec) -> ImageSpec:
        """Return a spec: that of the images with the fields that were given."""
        changes: dict[str, Any] = {}
        for name in ("lookback", "height", "aggregate"):
            if self.text(name) is not None:
                changes[name] = self._read(name, int, "a whole number", 0)
        for name in ("style", "chart", "scale", "ma_warmup"):
            if (word := self.text(name)) is not None:
                changes[name] = word
        if (flag := self.text("volume")) is not None:
            changes["volume"] = choice(flag, "volume", ("0", "1")) == "1"
        if (windows := self.text("ma")) is not None:
            parts = [] if windows == "none" else windows.split(",")
            try:
                changes["ma"] = tuple(int(part) for part in parts)
            except ValueError:
                raise ValueError(f"ma={short(windows)}: give numbers of bars such as 5,20, or none") from None
        return own.replace(**changes)
