"""Column names: which columns of a table hold prices, volume, names and times."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pricepix._checks import nearest

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
        *(
            "instrument",
            "symbol",
            "ticker",
            "permno",
            "code",
            "stockid",
            "stockcode",
            "tscode",
            "secid",
            "sid",
        ),
        "asset",
    ),
    "time": (
        *("time", "date", "datetime", "timestamp", "ts", "tradedate", "tradingdate", "tradetime", "dlycaldt"),
        "opentime",
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
}

#: Adjusted prices are not the prices that stand beside them: taken only when named.
LOOKALIKES: dict[str, tuple[str, ...]] = {
    name: (f"adj{name}", f"adjusted{name}", f"{name}adj", f"{name}adjusted") for name in BAR
}


# ------------------------------------------------------------------------------------------------- columns


def _plain(name: str) -> str:
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
            f"columns must map pricepix names to the table's, such as {{'close': 'PRC'}}; got "
            f"{type(columns).__name__}"
        )
    asked: dict[str, str | None] = {}
    for ours, theirs in (columns or {}).items():
        if ours not in KNOWN:
            raise ValueError(
                f"columns: {ours!r} is not a name pricepix knows{nearest(str(ours), KNOWN)}. The mapping "
                f"goes from pricepix names to the table's, as in {{'close': 'PRC'}}; known are "
                f"{', '.join(KNOWN)}"
            )
        if theirs is not None and not isinstance(theirs, str):
            raise TypeError(f"columns[{ours!r}] must be the name of a column or None, got {theirs!r}")
        if theirs is None and ours in REQUIRED:
            raise ValueError(f"columns[{ours!r}] is None, but every panel needs {', '.join(REQUIRED)}")
        asked[ours] = theirs
    for ours, theirs in (("instrument", instrument), ("time", time)):
        if theirs is None:
            continue
        if not isinstance(theirs, str):
            raise TypeError(f"{ours} must be the name of a column, got {type(theirs).__name__}")
        if asked.get(ours, theirs) != theirs:
            raise ValueError(
                f"{ours}={theirs!r} contradicts columns[{ours!r}]={asked[ours]!r}: give one of them"
            )
        asked[ours] = theirs
    return asked


def resolve_columns(
    found: Sequence[str], asked: Mapping[str, str | None], origin: str
) -> tuple[dict[str, str], list]:
    """Return which column is which of our names, and remarks; one error names all that is unclear."""
    out: dict[str, str] = {}
    faults: list[str] = []
    remarks: list[str] = []
    plain = {c: _plain(c) for c in found}
    for ours in KNOWN:
        if ours in asked:
            theirs = asked[ours]
            if theirs is None:
                continue
            if theirs not in plain:
                faults.append(f"- {ours}: there is no column {theirs!r}{nearest(theirs, found)}")
            else:
                out[ours] = theirs
            continue
        # A column that was given to another name is not free, but several prices may share one column.
        given = {c for o, c in asked.items() if not {o, ours} <= set(PRICES)}
        fits = [c for c in found if plain[c] in SYNONYMS[ours] and c not in given]
        alike = [c for c in found if plain[c] in LOOKALIKES.get(ours, ())]
        if len(fits) > 1:
            faults.append(
                f"- {ours}: any of {_listed(fits)} could be meant; say which: "
                f"columns={{{ours!r}: {fits[0]!r}}}"
            )
        elif fits:
            out[ours] = fits[0]
            if alike:
                remarks.append(
                    f"column {alike[0]!r} was not used: open, high, low and close are taken as they stand, "
                    f"{ours} from {fits[0]!r}"
                )
        elif ours in REQUIRED:
            like = alike or [c for c in found if ours in plain[c]]
            hint = f"; {_listed(like)} looks like it" if like else ""
            value = like[0] if like else "NAME OF THE COLUMN"
            faults.append(
                f"- {ours}: no column has this name or a usual synonym{hint}: columns={{{ours!r}: {value!r}}}"
            )
    if faults:
        raise ValueError(
            f"cannot tell the columns of {origin}:\n"
            + "\n".join(faults)
            + f"\nColumns found: {_listed(found)}."
        )
    taken: dict[str, str] = {}
    for ours, theirs in out.items():
        if theirs in taken and not {ours, taken[theirs]} <= set(PRICES):
            raise ValueError(
                f"column {theirs!r} of {origin} is asked for both as {taken[theirs]!r} and as {ours!r}"
            )
        taken[theirs] = ours
    return out, remarks
