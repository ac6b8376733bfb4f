"""Whether a panel has the bars that a factor was scored from, by what the factor's cache keeps of them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from pricepix.bars.panel import Panel
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.images.image_set import ImageSet
from pricepix.images.rows import panel_rows
from pricepix.windows.labels import ReturnRule

if TYPE_CHECKING:
    from pricepix.factor.cache import FactorCache

__all__ = ["DifferentPanelWarning", "panel_labels", "panel_mismatch", "read_labels", "shape_digest"]

_GROUP: Final = "labels"
_BLOCKS: Final = 16
_WINDOWS: Final = 1 << 16
# Relative to what a position is worth. Returns of the same bars agree to 1e-7.
_TOLERANCE: Final = 1e-4


class DifferentPanelWarning(UserWarning):
    """A factor is evaluated on a panel whose bars differ from those that it was scored from."""


def _has_panel_returns(images: ImageSet) -> bool:
    """Return whether labels are returns of a panel's bars: images that were imported bring their own."""
    if images.panel is not None:
        return True
    objects: Any = images.objects  # type: ignore[attr-defined]
    # A store in memory has no digests; nothing is imported to there.
    return not objects.checked or bool(objects.instrument_digest.any())


def _shape(tz: str | None, fields: list[str], names: list[str], rows: list[int]) -> str:
    text = json.dumps([tz, fields, names, rows])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def shape_digest(images: ImageSet) -> str | None:
    """Return 32 hexadecimal digits for the panel's zone, fields, instruments and their numbers of rows.

    Two panels that agree in it and not in their digests differ in a time or a value. None where it cannot be
    known from the images.
    """
    if images.panel is not None:
        return _shape_of(images.panel)
    objects: Any = images.objects  # type: ignore[attr-defined]
    if not objects.checked or not _has_panel_returns(images) or images.attrs.get("panel_fields") is None:
        return None
    names, rows = images.instruments.tolist(), objects.instrument_rows.tolist()
    return _shape(images.tz, list(images.attrs["panel_fields"]), names, rows)


def _shape_of(panel: Panel) -> str:
    rows = np.diff(panel.offsets).tolist()
    return _shape(panel.tz, list(panel.fields), panel.instruments.tolist(), rows)


def panel_labels(images: ImageSet, horizon: int | None) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return some of the images' forward returns, which a new cache keeps as its subgroup ``labels``.

    They identify the bars whatever else of a panel differs: one that continues further, or begins later, gives
    the same returns. Up to 65,536 windows of 16 stretches; nothing of images without returns.

    Returns
    -------
    labels : dict
        ``time``, ``instrument`` and ``value`` of each return.
    attributes : dict
        ``horizon``, ``delay`` and ``price`` of them all.
    """
    if not images.horizons or not _has_panel_returns(images):
        return {}, {}
    horizon = horizon if horizon in images.horizons else max(images.horizons)
    stretches = -(-len(images) // INDEX_CHUNK)
    chosen = np.unique(np.linspace(0, stretches - 1, min(_BLOCKS, stretches)).round().astype(np.int64))
    rng = np.random.default_rng(0)
    found: dict[str, list[NDArray[Any]]] = {"time": [], "instrument": [], "value": []}
    for block in chosen.tolist():
        value = images.column(f"ret_{horizon}", block, block + 1)
        known = np.flatnonzero(~np.isnan(value))
        limit = _WINDOWS // len(chosen)
        kept = known if len(known) <= limit else np.sort(rng.choice(known, limit, replace=False))
        for name, column in (("time", "time"), ("instrument", "instrument_index")):
            found[name].append(images.column(column, block, block + 1)[kept])
        found["value"].append(value[kept])
    attributes = {"horizon": int(horizon), "delay": images.delay, "price": images.attrs["label_price"]}
    return {name: np.concatenate(parts) for name, parts in found.items()}, attributes


def read_labels(cache: FactorCache) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the labels that a cache keeps, as `panel_labels` made them."""
    return cache.labels()


def panel_mismatch(cache: FactorCache, panel: Panel, price: str) -> str | None:
    """Return a sentence if a panel's bars differ from those that a cache was scored from, else None.

    Panels may well differ: one was appended to, begins later, or has more instruments or fields. So different
    digests prove nothing; different returns of the same windows do. Where there are none to compare, different
    digests of panels that have the same instruments, rows and fields are reported.

    Parameters
    ----------
    cache : FactorCache
    panel : Panel
    price : str
        What returns are to be computed from, ``close`` or ``total_return``.
    """
    group, scored = cache.group, cache.attrs.get("panel_digest")
    if scored == panel.digest:
        return None
    compared, differ, largest = _compare_returns(group, cache.instruments, panel)
    label_price = group[_GROUP].attrs["price"] if compared else None
    if differ:
        found = f"{differ:,} of {compared:,} returns that its images are labelled with differ, {largest}"
    elif cache.attrs.get("panel_shape") == _shape_of(panel) and price != label_price:
        # Where returns were compared and agree, they are all that figures are made of: the panel may cover a day
        # more, or have different capitalisations.
        found = "instruments, rows and fields are the same, their times or values are not"
    else:
        return None
    unapplied = panel.report.notes.get("unapplied_factor", 0)
    hint = f"; {unapplied:,} of its rows have an adjustment factor that was not applied" if unapplied else ""
    return (
        f"the bars of the panel (digest {panel.digest}) differ from those that the factor was scored from (digest "
        f"{scored or 'not recorded'}): {found}. Read the bars with the same arguments as then (adjust, columns, "
        f"on_bad){hint}"
    )


def _compare_returns(group: zarr.Group, names: NDArray[np.str_], panel: Panel) -> tuple[int, int, str]:
    """Return how many returns both have, how many of them differ, and which differs most."""
    if _GROUP not in group:
        return 0, 0, ""
    labels: Any = group[_GROUP]
    label = labels.attrs
    if label["price"] == "total_return" and "total_return" not in panel.fields:
        return 0, 0, ""
    time, code, value = (np.asarray(labels[name][:]) for name in ("time", "instrument", "value"))
    row = panel_rows(panel, names, code, time)
    shared = np.flatnonzero(row >= 0)
    # Returns of instruments that ended change when one trades again, which is no different bar.
    rule = ReturnRule(int(label["delay"]), str(label["price"]), "missing")
    found = rule.returns(panel, row[shared], int(label["horizon"])).value
    known = ~np.isnan(found)
    shared, found = shared[known], found[known].astype(np.float64)
    kept = value[shared].astype(np.float64)
    distance = np.abs(found - kept) / (1.0 + np.abs(kept))
    differ = int(np.count_nonzero(distance > _TOLERANCE))
    if not differ:
        return len(shared), 0, ""
    worst = int(np.argmax(distance))
    k = shared[worst]
    largest = (
        f"most that of {names[code[k]]} over the {label['horizon']} bars after {panel.stamp(int(time[k]))}: "
        f"{kept[worst]:+.2%} there, {found[worst]:+.2%} here"
    )
    return len(shared), differ, largest
