"""CSMAR's daily file of Chinese A-shares (Stkcd, Trddt, Opnprc, Clsprc, Dretwd, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from pricepix.bars.vendors.prepared import PreparedBars, VendorTable, code_list

__all__ = ["read_csmar"]


def read_csmar(
    source: Any,
    *,
    market_types: Sequence[int] | None = (1, 4, 16, 32),
    trading_states: Sequence[int] | None = (1,),
) -> PreparedBars:
    """Read CSMAR's file of daily stock returns (TRD_Dalyr).

    Parameters
    ----------
    source
        Anything that ``Panel.from_table`` takes, with the columns Stkcd, Trddt, Opnprc, Hiprc, Loprc and Clsprc, and
        any of Dnshrtrd, Dretwd, Adjprcwd, Dsmvtll, Markettype and Trdsta, in any case. The two lines that CSMAR writes
        under the header, names and units in Chinese, are left out.
    market_types : sequence of int, or None
        Markettype of bars at which a window may end (the field ``eligible``): by default the A-shares of Shanghai,
        Shenzhen, ChiNext and STAR. None for all.
    trading_states : sequence of int, or None
        Trdsta, likewise: by default 1, normal trading, which leaves out ST and *ST.

    Returns
    -------
    PreparedBars
        An instrument is the code of six digits. Total returns are Dretwd, with dividends reinvested. The adjustment
        factor is Adjprcwd / Clsprc, for ``adjust="multiply"``: it counts from the listing on, so that later events do
        not change earlier prices. The market cap, Dsmvtll, is in yuan (the file counts thousands).

    Notes
    -----
    CSMAR has no row where a stock is halted: ``gaps="missing"`` puts missing bars in. It has no delisting returns.
    """
    table = VendorTable(source, "CSMAR's file of daily returns")
    table.require("Stkcd", "Trddt", "Opnprc", "Hiprc", "Loprc", "Clsprc")
    # Names and units in Chinese stand where data begin.
    table.frame = table.frame.filter(table.text("Stkcd").str.contains(r"^\d+(\.0)?$"))
    prices = {"open": "Opnprc", "high": "Hiprc", "low": "Loprc", "close": "Clsprc"}
    columns: dict[str, pl.Expr] = {
        "instrument": table.text("Stkcd").str.replace(r"\.0$", "").str.zfill(6),
        "time": table.date("Trddt"),
        **{name: table.price(column) for name, column in prices.items()},
        "volume": table.number("Dnshrtrd"),
    }
    remarks = ["CSMAR has no delisting returns: holders of stocks that end are left with the last level"]
    if "Dretwd" in table:
        columns["total_return"] = table.number("Dretwd")
    if "Adjprcwd" in table:
        columns["adjustment_factor"] = table.price("Adjprcwd") / table.price("Clsprc")
    if "Dsmvtll" in table:
        columns["market_cap"] = table.price("Dsmvtll") * 1000.0
    flags = []
    for name, given, column in (
        ("market_types", market_types, "Markettype"),
        ("trading_states", trading_states, "Trdsta"),
    ):
        wanted = code_list(given, name)
        if wanted is not None and column in table:
            flags.append(table.number(column).is_in([float(code) for code in wanted]))
            remarks.append(
                f"windows end at bars whose {column} is one of {', '.join(map(str, wanted))} (eligible)"
            )
    if flags:
        columns["eligible"] = pl.all_horizontal(flags).fill_null(False)
    return PreparedBars(table.frame.select(**columns), {}, tuple(remarks), table.origin)
