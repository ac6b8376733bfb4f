"""Column names: which columns of a table hold prices, volume, names and times."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pricepix._checks import nearest
from pricepix.bars.vendors import akshare

PRICES = ("open", "high", "low", "close")
BAR = (*PRICES, "volume")
FLOAT_FIELDS = ("total_return", "adjustment_factor", "market_cap")
BOOL_FIELDS = ("up_limit", "down_limit", "eligible")
FIELDS = (*FLOAT_FIELDS, *BOOL_FIELDS)
KNOWN = ("instrument", "time", *BAR, *FIELDS)
REQUIRED = ("time", *PRICES)

#: Spellings of our names, compared without case, blanks, dots, dashes and underscores.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "instrument": (
        "instrument", "symbol", "ticker", "permno", "code", "stockid", "stockcode", "tscode", "secid", "sid", "asset",
    ),
    "time": (
        "time", "date", "datetime", "timestamp", "ts", "tradedate", "tradingdate", "tradetime", "dlycaldt", "opentime",
        "tsevent", "windowstart",
    ),
    "open": ("open", "o", "openprc", "openprice", "pxopen", "dlyopen"),
    "high": ("high", "h", "askhi", "highprice", "pxhigh", "dlyhigh"),
    "low": ("low", "l", "bidlo", "lowprice", "pxlow", "dlylow"),
    "close": ("close", "c", "prc", "last", "closeprice", "pxlast", "dlyclose", "dlyprc"),
    "volume": ("volume", "vol", "v", "pxvolume", "dlyvol"),
    "total_return": ("totalreturn", "ret", "dlyret"),
    "adjustment_factor": ("adjustmentfactor", "adjfactor", "cfacpr", "dlyfacprc"),
    "market_cap": ("marketcap", "mktcap", "dlycap"),
    "up_limit": ("uplimit", "limitup"),
    "down_limit": ("downlimit", "dnlimit", "limitdown"),
    "eligible": ("eligible", "mask"),
}  # fmt: skip
for _name, _spellings in akshare.NAMES.items():
    SYNONYMS[_name] += _spellings

#: Adjusted prices are not the prices that stand beside them: taken only when named.
LOOKALIKES: dict[str, tuple[str, ...]] = {
    name: (f"adj{name}", f"adjusted{name}", f"{name}adj", f"{name}adjusted") for name in BAR
}


def _casefolded(name: str) -> str:
    return re.sub(r"[\s_.\-]+", "", name).casefold()


def _listed(names: Sequence[str], limit: int = 40) -> str:
    shown = ", ".join(repr(n) for n in names[:limit])
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "") if names else "none at all"


def requested_columns(
    columns: Mapping[str, str | None] | None, instrument: str | None, time: str | None
) -> dict[str, str | None]:
    """Merge `columns`, `instrument` and `time` into one mapping of our names to the table's, checked."""
    if columns is not None and not isinstance(columns, Mapping):
        raise TypeError(
            f"columns is of type {type(columns).__name__}: give a mapping of pricepix names to the table's, such as "
            "{'close': 'PRC'}"
        )
    asked: dict[str, str | None] = {}
    for name, column in (columns or {}).items():
        if name not in KNOWN:
            raise ValueError(
                f"columns: {name!r} is not a name pricepix knows{nearest(str(name), KNOWN)}. The mapping goes from "
                f"pricepix names to the table's, as in {{'close': 'PRC'}}; known are {', '.join(KNOWN)}"
            )
        if column is not None and not isinstance(column, str):
            raise TypeError(f"columns[{name!r}] must be the name of a column or None, got {column!r}")
        if column is None and name in REQUIRED:
            raise ValueError(f"columns[{name!r}] is None, but every panel needs {', '.join(REQUIRED)}")
        asked[name] = column
    for name, column in (("instrument", instrument), ("time", time)):
        if column is None:
            continue
        if not isinstance(column, str):
            raise TypeError(f"{name} must be the name of a column, got {type(column).__name__}")
        if asked.get(name, column) != column:
            raise ValueError(
                f"{name}={column!r} contradicts columns[{name!r}]={asked[name]!r}: give one of them"
            )
        asked[name] = column
    return asked


def resolve_columns(
    found: Sequence[str], asked: Mapping[str, str | None], origin: str
) -> tuple[dict[str, str], list[str]]:
    """Return the table's column of each of our names, and remarks; one error names all that is unclear."""
    out: dict[str, str] = {}
    faults: list[str] = []
    remarks: list[str] = []
    plain = {c: _casefolded(c) for c in found}
    for name in KNOWN:
        if name in asked:
            column = asked[name]
            if column is None:
                continue
            if column not in plain:
                faults.append(f"- {name}: there is no column {column!r}{nearest(column, found)}")
            else:
                out[name] = column
            continue
        # A column that was given to another name is not free, but several prices may share one column.
        given = {c for other, c in asked.items() if not {other, name} <= set(PRICES)}
        fits = [c for c in found if plain[c] in SYNONYMS[name] and c not in given]
        alike = [c for c in found if plain[c] in LOOKALIKES.get(name, ())]
        if len(fits) > 1:
            faults.append(
                f"- {name}: any of {_listed(fits)} could be meant; say which: "
                f"columns={{{name!r}: {fits[0]!r}}}"
            )
        elif fits:
            out[name] = fits[0]
            if alike:
                remarks.append(
                    f"column {alike[0]!r} was not used: open, high, low and close are taken as they stand, {name} "
                    f"from {fits[0]!r}"
                )
        elif name in REQUIRED:
            like = alike or [c for c in found if name in plain[c]]
            hint = f"; {_listed(like)} looks like it" if like else ""
            value = like[0] if like else "NAME OF THE COLUMN"
            faults.append(
                f"- {name}: no column has this name or a usual synonym{hint}: columns={{{name!r}: {value!r}}}"
            )
    if faults:
        raise ValueError(
            f"cannot tell the columns of {origin}:\n"
            + "\n".join(faults)
            + f"\nColumns found: {_listed(found)}."
        )
    taken: dict[str, str] = {}
    for name, column in out.items():
        if column in taken and not {name, taken[column]} <= set(PRICES):
            raise ValueError(
                f"column {column!r} of {origin} is asked for both as {taken[column]!r} and as {name!r}"
            )
        taken[column] = name
    return out, remarks
