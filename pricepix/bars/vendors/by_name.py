"""Bars of a vendor that is named: how configurations and the command line read files of CRSP, Compustat and CSMAR."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from pricepix._checks import choice, nearest
from pricepix.bars.market_cache import MarketCache, is_market_cache
from pricepix.bars.panel import Panel
from pricepix.bars.vendors.compustat import read_compustat
from pricepix.bars.vendors.crsp import read_crsp
from pricepix.bars.vendors.csmar import read_csmar
from pricepix.bars.vendors.prepared import PreparedBars

__all__ = ["VENDORS", "read_bars"]

VENDORS: Final[Mapping[str, Callable[..., PreparedBars]]] = {
    "crsp": read_crsp,
    "compustat": read_compustat,
    "csmar": read_csmar,
}


def read_bars(
    source: Any, vendor: str | None = None, vendor_options: Mapping[str, Any] | None = None, **reading: Any
) -> Panel:
    """Read a table of bars, by a vendor's conventions if one is named.

    Parameters
    ----------
    source
        As in ``Panel.from_table``, or the folder of a market cache, of which `reading` may be `adjust`
        (``multiply``), `anchor`, `on_bad` and `progress`.
    vendor : {"crsp", "compustat", "csmar"}, optional
    vendor_options : mapping, optional
        Keyword arguments of ``read_crsp`` and the like.
    **reading
        Options of ``Panel.from_table``. For a vendor's table, in which columns are known, all but `columns`,
        `instrument`, `time`, `name` and `null_values`.
    """
    choice(vendor, "vendor", (None, *VENDORS))
    options = dict(vendor_options or {})
    if vendor is None:
        if options:
            raise ValueError(
                f"vendor_options={options} belong to a vendor: name it, one of {', '.join(VENDORS)}"
            )
        return (
            _market_bars(source, **reading)
            if is_market_cache(source)
            else Panel.from_table(source, **reading)
        )
    known = [name for name in inspect.signature(VENDORS[vendor]).parameters if name != "source"]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(
            f"vendor_options: {unknown[0]!r} is not an option of {vendor}{nearest(str(unknown[0]), known)}; "
            f"known are {', '.join(known)}"
        )
    for name in ("columns", "instrument", "time", "name", "null_values"):
        if reading.pop(name, None):
            raise ValueError(f"vendor={vendor!r} knows its columns and codes: leave {name} out, or vendor")
    return VENDORS[vendor](source, **options).panel(**reading)


def _market_bars(folder: Any, *, adjust: str | None = None, progress: bool = True, **reading: Any) -> Panel:
    """Read all of a market cache; which of its rows are missing or eligible is what ``MarketCache.panel`` says."""
    if other := sorted(set(reading) - {"anchor", "on_bad"}):
        raise ValueError(f"{folder} is a market cache: {', '.join(other)} are for tables; leave them out")
    if adjust not in (None, "multiply"):
        raise ValueError(
            f"adjust={adjust!r}: prices of a market cache are multiplied by their factor: multiply"
        )
    return MarketCache(folder).panel(adjust=adjust is not None, **reading)
