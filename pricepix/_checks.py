"""Checks of arguments and of optional dependencies, each with one clear error.

Only the standard library is imported, since ``ImageSpec`` needs nothing else.
"""

from __future__ import annotations

import difflib
import importlib
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, Final

MOST_BARS: Final = 1 << 31
"""The longest horizon or delay, in bars: exit times are found with 64-bit arithmetic that stays exact."""


class BadBarsError(ValueError):
    """Bars that cannot be used as they are: faults, a feed that is not whole."""


class RevisedHistoryError(ValueError):
    """Bars that were used before are different now, and nobody has said what to do about it."""


def printable(text: str, keep: str = "\n") -> str:
    """Return text with every character that is not printable written as an escape, except those of `keep`.

    Names out of files go through this on their way to a terminal: ``\\x1b]0;...\\x07`` in one would be a command to it.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def short(value: Any, limit: int = 100) -> str:
    """Return the repr of a value for an error: without what a terminal would obey, and cut where it is long."""
    if isinstance(value, str | bytes) and len(value) > limit:
        return f"{value[:limit]!r}... ({len(value):,} characters)"
    if isinstance(value, Sequence | Mapping) and not isinstance(value, str | bytes) and len(value) > limit:
        return f"a {type(value).__name__} of {len(value):,} values"
    if isinstance(value, int) and value.bit_length() > 4 * limit:
        return f"a number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of any type, numpy's included; True, False and arrays are not."""
    if isinstance(value, bool):
        return False
    try:
        # Not hasattr: arrays of any shape have __index__.
        operator.index(value)
    except TypeError:
        return False
    return True


def of_kind(value: Any, name: str, kinds: type | tuple[type, ...], expected: str) -> Any:
    """Return `value` if it is an instance of `kinds`; TypeError, which says what is `expected`, if not."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name} is a {type(value).__name__}; give {expected}")
    return value


def path_of(value: Any, name: str) -> Path:
    """Return a path; TypeError if `value` is none."""
    return Path(of_kind(value, name, (str, PathLike), "a path"))


def whole_number(
    value: Any,
    name: str,
    minimum: int | None = None,
    maximum: int | None = None,
    *,
    unit: str = "",
    otherwise: str = "",
) -> int:
    """Return an argument as a whole number, or raise an error that says what was expected.

    Parameters
    ----------
    value : object
        What the caller gave.
    name : str
        The argument's name, as the caller typed it.
    minimum, maximum : int, optional
        The smallest and the largest number that is allowed.
    unit : str
        What is counted, such as ``"bars"``.
    otherwise : str
        What else is allowed, such as ``"None for all"``.
    """
    if is_whole(value):
        number = operator.index(value)
        if (minimum is None or number >= minimum) and (maximum is None or number <= maximum):
            return number
    counted = f" of {unit}" if unit else ""
    if minimum is not None and maximum is not None:
        bound = f" from {minimum} to {maximum:,}"
    else:
        bound = "" if minimum is None else f" of at least {minimum}"
    raise ValueError(
        f"{name}={short(value)}: give a whole number{counted}{bound}{f', or {otherwise}' if otherwise else ''}"
    )


def whole_number_or_none(
    value: Any, name: str, minimum: int | None = None, *, unit: str = "", otherwise: str = "None"
) -> int | None:
    """Return an argument that may be None, else as ``whole_number`` does."""
    return None if value is None else whole_number(value, name, minimum, unit=unit, otherwise=otherwise)


def bars(value: Any, name: str, minimum: int) -> int:
    """Return an argument as a number of bars of at least `minimum`."""
    return whole_number(value, name, minimum, MOST_BARS, unit="bars")


def horizons(value: Any, name: str = "horizons") -> tuple[int, ...]:
    """Return one horizon or several as an ascending tuple of numbers of bars."""
    given = (value,) if is_whole(value) else value
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ValueError(f"{name}={short(value)} is not a sequence of horizons: give e.g. {name}=(5, 20)")
    checked = tuple(sorted(bars(h, "horizon", 1) for h in given))
    if len(set(checked)) != len(checked):
        raise ValueError(f"{name}={checked} names a horizon twice: give each once")
    return checked


def number(value: Any, name: str, *, above: bool = False) -> float:
    """Return an argument as a finite number of at least 0, or above 0."""
    known = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    if not known or value < 0 or (above and value == 0):
        raise ValueError(f"{name}={short(value)}: give a number {'above' if above else 'of at least'} 0")
    return float(value)


def fraction(value: Any, name: str) -> float:
    """Return an argument as a number above 0 and at most 1."""
    try:
        share = math.nan if isinstance(value, (bool, str)) else float(value)
    except TypeError:
        share = math.nan
    if not 0.0 < share <= 1.0:
        raise ValueError(f"{name}={short(value)}: give a number above 0 and at most 1")
    return share


def boolean(value: Any, name: str) -> bool:
    """Return an argument as True or False; numpy's booleans are taken too."""
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return bool(value)
    raise ValueError(f"{name}={short(value)} is not True or False")


def choice(value: Any, name: str, choices: Iterable[Any], otherwise: str = "") -> Any:
    """Return an argument that must be one of `choices`; `otherwise` names what else is allowed."""
    known = tuple(choices)
    if value not in known:
        near = difflib.get_close_matches(str(value)[:100], [str(c) for c in known], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        listed = f"{', '.join(map(repr, known))}{f', or {otherwise}' if otherwise else ''}"
        raise ValueError(f"{name}={short(value)} is not known{hint}: choose one of {listed}")
    return value


def nearest(word: str, words: Iterable[str], n: int = 3, cutoff: float = 0.6) -> str:
    """Return "; did you mean 'a' or 'b'?" for the words nearest to `word`, or nothing."""
    by_plain = {w.casefold(): w for w in words}
    close = difflib.get_close_matches(word[:100].casefold(), list(by_plain), n=n, cutoff=cutoff)
    return f"; did you mean {' or '.join(repr(by_plain[c]) for c in close)}?" if close else ""


def nearest_or_all(word: str, words: Sequence[str], cutoff: float = 0.6) -> str:
    """Return the word nearest to `word` and all that there are, as the end of an error."""
    near = nearest(word, words, 1, cutoff)
    return f"{near} Choose from {', '.join(words)}" if near else f"; choose from {', '.join(words)}"


def optional_module(name: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional dependency, or raise an error with the line that installs it.

    Parameters
    ----------
    name : str
        The module, such as ``"dask.array"``.
    extra : str
        The extra of pricepix that installs it.
    purpose : str
        What needs it, as the error begins: ``"to_dask"``.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs {name.partition('.')[0]}: pip install 'pricepix[{extra}]'"
        ) from error
