"""Bars of a vendor that is named: how configurations and the command line read files of CRSP, Compustat and CSMAR."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from pricepix._checks import choice, nearest
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
        As in ``Panel.from_table``.
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
        return Panel.from_table(source, **reading)
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
