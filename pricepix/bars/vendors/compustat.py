"""Compustat's daily security file (gvkey, iid, datadate, prccd, ajexdi, trfd, ...), North America or Global."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from pricepix.bars.vendors.prepared import PreparedBars, VendorTable, code_list

__all__ = ["read_compustat"]


def read_compustat(
    source: Any,
    *,
    exchange_codes: Sequence[int] | None = (11, 12, 14),
    issue_types: Sequence[str] | None = ("0",),
) -> PreparedBars:
    """Read Compustat's daily security file.

    Parameters
    ----------
    source
        Anything that ``Panel.from_table`` takes, with the columns gvkey, iid, datadate, prcod, prchd, prcld, prccd and
        ajexdi, and any of cshtrd, cshoc, trfd, exchg and tpci, in any case.
    exchange_codes : sequence of int, or None
        exchg of bars at which a window may end (the field ``eligible``): by default NYSE, American and Nasdaq. None
        for all.
    issue_types : sequence of str, or None
        tpci, likewise: by default "0", common shares.

    Returns
    -------
    PreparedBars
        An instrument is an issue, gvkey.iid. The adjustment factor is ajexdi, for ``adjust="divide"``. Total returns
        are the changes, from price to price, of prccd / ajexdi x trfd; without trfd there are none. The market cap is
        prccd times cshoc. ``remarks`` say what the file does not hold.

    Notes
    -----
    Compustat has no delisting returns: the holder of an issue that ends is left with its last level, which overstates
    what stocks in distress return. Where trfd is missing it is 1: no distribution yet.
    """
    table = VendorTable(source, "Compustat's daily security file")
    table.require("gvkey", "iid", "datadate", "prcod", "prchd", "prcld", "prccd", "ajexdi")
    exchanges = code_list(exchange_codes, "exchange_codes")
    if isinstance(issue_types, str):
        raise TypeError(f"issue_types={issue_types!r}: give a sequence such as ('0',), or None for all")
    prices = {"open": "prcod", "high": "prchd", "low": "prcld", "close": "prccd"}
    gvkey, factor = table.text("gvkey"), table.price("ajexdi")
    columns: dict[str, pl.Expr] = {
        # Files that passed through a spreadsheet have lost the zeros in front.
        "instrument": pl.concat_str([gvkey.str.zfill(6), pl.lit("."), table.text("iid").str.zfill(2)]),
        "time": table.date("datadate"),
        **{name: table.price(column) for name, column in prices.items()},
        "volume": table.number("cshtrd"),
        "adjustment_factor": factor,
    }
    remarks = ["Compustat has no delisting returns: holders of issues that end are left with the last level"]
    if "cshoc" in table:
        columns["market_cap"] = table.price("prccd") * table.price("cshoc")
    flags = []
    if exchanges is not None and "exchg" in table:
        flags.append(table.number("exchg").is_in([float(code) for code in exchanges]))
        remarks.append(
            f"windows end at bars whose exchg is one of {', '.join(map(str, exchanges))} (eligible)"
        )
    if issue_types is not None and "tpci" in table:
        flags.append(table.text("tpci").is_in([str(kind) for kind in issue_types]))
        remarks.append(
            f"windows end at bars whose tpci is one of {', '.join(map(str, issue_types))} (eligible)"
        )
    if flags:
        columns["eligible"] = pl.all_horizontal(flags).fill_null(False)
    bars = table.frame.select(
        **columns, level=table.price("prccd") / factor * table.number("trfd").fill_null(1.0)
    )
    if "trfd" in table:
        # Against the last price that there was, as a return is quoted.
        before = pl.col("level").forward_fill().shift(1).over("instrument", order_by="time")
        bars = bars.with_columns(total_return=pl.col("level") / before - 1.0)
    else:
        remarks.append(
            "the table has no trfd: there are no total returns, and those of prices leave out dividends"
        )
    return PreparedBars(bars.drop("level"), {}, tuple(remarks), table.origin)
