"""CRSP's daily stock file as WRDS delivers it (PERMNO, date, PRC, RET, DLSTCD, ...), with its delisting returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import polars as pl

from pricepix._checks import choice
from pricepix.bars.vendors.prepared import PreparedBars, VendorTable, code_list

__all__ = ["read_crsp"]

#: Letters that stand for a missing return; numbers below -1 do as well (-44, -55, -66, -77, -88, -99).
_MISSING: Final = ("A", "B", "C", "D", "E", "P", "S", "T")
_KEY: Final = ["instrument", "time"]
#: Shumway (1997) for the NYSE and AMEX, Shumway and Warther (1999) for Nasdaq, by EXCHCD.
_SHUMWAY: Final = {1: -0.30, 2: -0.30, 3: -0.55}


class _Delistings(NamedTuple):
    """The rows that delisting returns get."""

    rows: pl.DataFrame
    """instrument, time, delisting (float64): the return beside others of that row."""
    remarks: tuple[str, ...]


def read_crsp(
    source: Any,
    delistings: Any = None,
    *,
    share_codes: Sequence[int] | None = (10, 11),
    exchange_codes: Sequence[int] | None = (1, 2, 3),
    missing_delisting_returns: Literal["keep", "shumway"] = "keep",
) -> PreparedBars:
    """Read CRSP's daily stock file.

    Parameters
    ----------
    source
        Anything that ``Panel.from_table`` takes, with the columns PERMNO, date, OPENPRC, ASKHI, BIDLO and PRC, and any
        of VOL, RET, SHROUT, CFACPR, SHRCD, EXCHCD, DLSTCD and DLRET, in any case.
    delistings : table, optional
        CRSP's delisting file: PERMNO, DLSTDT, DLSTCD and DLRET; where `source` has no DLRET of its own.
    share_codes, exchange_codes : sequence of int, or None
        SHRCD and EXCHCD of bars at which a window may end (the field ``eligible``): by default ordinary common shares
        on the NYSE, AMEX and Nasdaq. None for all. Bars of other codes stay.
    missing_delisting_returns : {"keep", "shumway"}
        What a delisting for performance (DLSTCD 500 and 520 to 584) returns whose DLRET is missing. ``keep``: it is not
        known, and its holders are left with the last level. ``shumway``: -30% on the NYSE and AMEX, -55% on Nasdaq.

    Returns
    -------
    PreparedBars
        With total returns (RET), adjustment factor (CFACPR, for ``adjust="divide"``), market cap in dollars (PRC times
        SHROUT, which counts thousands) and ``eligible``, as far as their columns are there. ``remarks`` count the
        delistings and say what was done with them.

    Raises
    ------
    ValueError
        Columns that are missing, numbers that are none, or delistings that stand in both tables.

    Notes
    -----
    *Delisting returns.* DLRET is earned after the last price by who holds the stock at it. Where a delisting stands in
    a row without a price, that row has it as its total return; where it stands in the row of the last price, which is
    CRSP's delisting date, it gets a row of its own on the market's next day. So the forward return of the very last
    image holds it, too. One on the last day of the table waits for the next day's data.

    *Large files.* The table is read four times: for its delistings, its days, the rows around them, and the bars. Give
    Parquet, of which only the columns are read that are needed.

    *Missing values.* A price of 0 is missing; a negative one is the midpoint of bid and ask of a day without trades
    (``negative_prices="midpoint"``). Returns given as letters, or as numbers below -1, are missing.
    """
    choice(missing_delisting_returns, "missing_delisting_returns", ("keep", "shumway"))
    table = VendorTable(source, "CRSP's daily stock file")
    if "DlyCalDt" in table:
        raise ValueError(
            f"{table.origin} is in CRSP's format CIZ, whose DlyRet holds delisting returns already: give it to "
            "Panel.from_table"
        )
    table.require("PERMNO", "date", "OPENPRC", "ASKHI", "BIDLO", "PRC")
    shares, exchanges = code_list(share_codes, "share_codes"), code_list(exchange_codes, "exchange_codes")
    eligible, remarks = _eligible(table, shares, exchanges)
    prices = {"open": "OPENPRC", "high": "ASKHI", "low": "BIDLO", "close": "PRC"}
    columns: dict[str, pl.Expr] = {
        "instrument": table.column("PERMNO").cast(pl.Int64),
        "time": table.date("date"),
        **{name: table.price(column) for name, column in prices.items()},
        "volume": table.number("VOL"),
    }
    if "RET" in table:
        columns["total_return"] = _known(table.number("RET", _MISSING))
    if "CFACPR" in table:
        columns["adjustment_factor"] = table.price("CFACPR")
    if "SHROUT" in table:
        columns["market_cap"] = table.price("PRC").abs() * table.price("SHROUT") * 1000.0
    if eligible is not None:
        columns["eligible"] = eligible
    bars = table.frame.select(**columns)
    if "total_return" in columns:
        found = _delistings(table, delistings, missing_delisting_returns == "shumway")
        bars = _with_delistings(bars, found.rows)
        remarks += found.remarks
    return PreparedBars(bars, {"negative_prices": "midpoint"}, tuple(remarks), table.origin)


def _known(value: pl.Expr) -> pl.Expr:
    """Return returns, null where a number stands for a missing one."""
    return pl.when(value >= -1.0).then(value)


def _eligible(
    table: VendorTable, shares: list[int] | None, exchanges: list[int] | None
) -> tuple[pl.Expr | None, list[str]]:
    """Return whether a window may end at a bar, None for everywhere, and what to say of it."""
    flags, said = [], []
    for column, wanted in (("SHRCD", shares), ("EXCHCD", exchanges)):
        if wanted is None:
            continue
        if column not in table:
            said.append(f"the table has no {column}: windows may end at bars of every code")
            continue
        flags.append(table.number(column).is_in([float(code) for code in wanted]).fill_null(False))
        said.append(f"windows end at bars whose {column} is one of {', '.join(map(str, wanted))} (eligible)")
    return (pl.all_horizontal(flags) if flags else None), said


def _delistings(table: VendorTable, other: Any, shumway: bool) -> _Delistings:
    """Find the delistings, the rows in which their returns go, and what was decided about them."""
    if other is None:
        if "DLRET" not in table and "DLSTCD" not in table:
            return _Delistings(
                pl.DataFrame(schema={"instrument": pl.Int64, "time": pl.Date, "delisting": pl.Float64}),
                ("no delisting returns are there (DLRET): what holders of delisted stocks got is not known",),
            )
        source, date = table, "date"
    else:
        if "DLRET" in table:
            raise ValueError(f"{table.origin} has DLRET, too: leave delistings= out, or drop its column")
        source, date = VendorTable(other, "CRSP's delisting file"), "DLSTDT"
        source.require("PERMNO", "DLSTDT", "DLSTCD", "DLRET")
    found = (
        source.frame.select(
            instrument=source.column("PERMNO").cast(pl.Int64),
            time=source.date(date),
            code=source.number("DLSTCD"),
            delisting=_known(source.number("DLRET", _MISSING)),
        )
        # 100 is a stock that goes on.
        .filter(pl.col("delisting").is_not_null() | (pl.col("code") > 199))
        .collect()
        .unique(_KEY, keep="first", maintain_order=True)
    )
    missing = found["delisting"].is_null()
    replaced = 0
    if shumway and missing.any():
        found = found.join(_last_exchange(table, found["instrument"]), on="instrument", how="left")
        poor = (pl.col("code") == 500) | pl.col("code").is_between(520, 584)
        rate = pl.col("exchange").replace_strict(_SHUMWAY, default=None, return_dtype=pl.Float64)
        found = found.with_columns(
            delisting=pl.when(poor & pl.col("delisting").is_null()).then(rate).otherwise("delisting")
        )
        replaced = int(missing.sum()) - found["delisting"].null_count()
    rows, waiting = _next_rows(table, found.drop_nulls("delisting").select(*_KEY, "delisting"))
    return _Delistings(rows, tuple(_told(found, replaced, waiting)))


def _told(found: pl.DataFrame, replaced: int, waiting: int) -> list[str]:
    unknown = found["delisting"].null_count()
    said = [f"{len(found):,} delistings, {len(found) - unknown - replaced:,} with a return (DLRET)"]
    if replaced:
        said.append(
            f"{replaced:,} delistings for performance (DLSTCD 500, 520 to 584) without a return were given Shumway's: "
            "-30% on the NYSE and AMEX, -55% on Nasdaq"
        )
    if unknown:
        codes = ", ".join(
            str(int(code)) for code in found.filter(pl.col("delisting").is_null())["code"].unique().sort()
        )
        said.append(
            f"{unknown:,} delistings have no return (DLSTCD {codes}): their holders are left with the last level"
        )
    if waiting:
        said.append(
            f"{waiting:,} delistings on the table's last day: their returns come with the next day's bars"
        )
    return said


def _last_exchange(table: VendorTable, instruments: pl.Series) -> pl.DataFrame:
    """Return the last EXCHCD that is known of some stocks."""
    return (
        table.frame.select(
            instrument=table.column("PERMNO").cast(pl.Int64),
            time=table.date("date"),
            exchange=table.number("EXCHCD").cast(pl.Int64),
        )
        .filter(pl.col("instrument").is_in(instruments.unique().to_list()) & pl.col("exchange").is_not_null())
        .group_by("instrument")
        .agg(pl.col("exchange").sort_by("time").last())
        .collect()
    )


def _next_rows(table: VendorTable, found: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Move returns that stand beside a price to the market's next day; return how many lack one, too."""
    priced = table.frame.select(
        instrument=table.column("PERMNO").cast(pl.Int64), time=table.date("date"), price=table.price("PRC")
    ).filter(pl.col("price").is_not_null())
    days = priced.select(pl.col("time").unique().sort()).collect()["time"]
    own = (
        priced.filter(pl.col("instrument").is_in(found["instrument"].unique().to_list()))
        .select(_KEY)
        .collect()
    )
    beside = found.join(own, on=_KEY, how="semi")
    alone = found.join(own, on=_KEY, how="anti")
    after = days.search_sorted(beside["time"], side="right")
    moved = beside.with_columns(time=days.gather(after.clip(0, len(days) - 1))).filter(after < len(days))
    return pl.concat([alone, moved]), len(beside) - len(moved)


def _with_delistings(bars: pl.LazyFrame, rows: pl.DataFrame) -> pl.LazyFrame:
    """Put delisting returns into the rows of bars, and rows of their own where there is none."""
    if rows.is_empty():
        return bars
    own = (
        bars.filter(pl.col("instrument").is_in(rows["instrument"].unique().to_list())).select(_KEY).collect()
    )
    new = rows.join(own, on=_KEY, how="anti").rename({"delisting": "total_return"})
    both = (1.0 + pl.col("total_return").fill_null(0.0)) * (1.0 + pl.col("delisting")) - 1.0
    joined = bars.join(rows.lazy(), on=_KEY, how="left", maintain_order="left").with_columns(
        total_return=pl.when(pl.col("delisting").is_not_null()).then(both).otherwise("total_return")
    )
    return pl.concat([joined.drop("delisting"), new.lazy()], how="diagonal_relaxed")
