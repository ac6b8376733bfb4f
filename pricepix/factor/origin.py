"""The bars that a factor came from: what its cache keeps of them, and whether a panel has others."""

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
from pricepix.windows.labels import forward_returns

if TYPE_CHECKING:
    from pricepix.factor.cache import FactorCache

__all__ = ["OtherBarsWarning", "keep_labels", "other_bars", "shape_digest"]

_GROUP: Final = "labels"
_BLOCKS: Final = 16
_MOST: Final = 1 << 16
# Relative to what a position is worth. Returns of the same bars agree to 1e-7.
_SAME: Final = 1e-4


class OtherBarsWarning(UserWarning):
    """A factor is judged on a panel that has other bars than the one that it was scored from."""


def _made_of_a_panel(images: ImageSet) -> bool:
    """Whether labels are returns of a panel's bars: images that were imported have their own."""
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

    Two panels that agree in it and not in their digests differ in a time or a value. None where the images do not
    tell.
    """
    if images.panel is not None:
        return _shape_of(images.panel)
    objects: Any = images.objects  # type: ignore[attr-defined]
    if not objects.checked or not _made_of_a_panel(images) or images.attrs.get("panel_fields") is None:
        return None
    names, rows = images.instruments.tolist(), objects.instrument_rows.tolist()
    return _shape(images.tz, list(images.attrs["panel_fields"]), names, rows)


def _shape_of(panel: Panel) -> str:
    rows = np.diff(panel.offsets).tolist()
    return _shape(panel.tz, list(panel.fields), panel.instruments.tolist(), rows)


def keep_labels(group: zarr.Group, images: ImageSet, horizon: int | None) -> None:
    """Keep some of the images' forward returns in the subgroup ``labels`` of a new cache.

    They tell another panel's bars apart whatever else differs: a panel that goes on, or begins later, gives the
    same returns. Up to 65,536 windows of 16 stretches; nothing of images without returns.
    """
    if not images.horizons or not _made_of_a_panel(images):
        return
    horizon = horizon if horizon in images.horizons else max(images.horizons)
    stretches = -(-len(images) // INDEX_CHUNK)
    chosen = np.unique(np.linspace(0, stretches - 1, min(_BLOCKS, stretches)).round().astype(np.int64))
    rng = np.random.default_rng(0)
    found: dict[str, list[NDArray[Any]]] = {"time": [], "instrument": [], "value": []}
    for block in chosen.tolist():
        value = images.column(f"ret_{horizon}", block, block + 1)
        known = np.flatnonzero(~np.isnan(value))
        most = _MOST // len(chosen)
        some = known if len(known) <= most else np.sort(rng.choice(known, most, replace=False))
        for name, column in (("time", "time"), ("instrument", "instrument_index")):
            found[name].append(images.column(column, block, block + 1)[some])
        found["value"].append(value[some])
    attributes = {"horizon": int(horizon), "delay": images.delay, "price": images.attrs["label_price"]}
    labels = group.create_group(_GROUP, attributes=attributes)
    for name, parts in found.items():
        values = np.concatenate(parts)
        array = labels.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=(max(1, len(values)),)
        )
        array[:] = values


def other_bars(cache: FactorCache, panel: Panel, price: str) -> str | None:
    """Return a sentence if a panel has other bars than the one that a cache was scored from, else None.

    Panels may well differ: one that was appended to, that begins later, has more instruments or fields. So other
    digests prove nothing; other returns of the same windows do. Where there are none to compare, other digests of
    panels that have the same instruments, rows and fields are told.

    Parameters
    ----------
    cache : FactorCache
    panel : Panel
    price : str
        What returns are to be computed from, ``close`` or ``total_return``.
    """
    group, scored = cache._group, cache.attrs.get("panel_digest")
    if scored == panel.digest:
        return None
    compared, differ, told = _compared(group, cache.instruments, panel)
    told_price = group[_GROUP].attrs["price"] if compared else None
    if differ:
        found = f"{differ:,} of {compared:,} returns that its images are labelled with differ, {told}"
    elif cache.attrs.get("panel_shape") == _shape_of(panel) and price != told_price:
        # Where returns were compared and agree, they are all that figures are made of: the panel may have moved on
        # by a day, or have other capitalisations.
        found = "instruments, rows and fields are the same, their times or values are not"
    else:
        return None
    unapplied = panel.report.notes.get("unapplied_factor", 0)
    hint = f"; {unapplied:,} of its rows have an adjustment factor that was not applied" if unapplied else ""
    return (
        f"the panel (digest {panel.digest}) has other bars than the one that the factor was scored from (digest "
        f"{scored or 'not recorded'}): {found}. Read the bars with the same arguments as then (adjust, columns, "
        f"on_bad){hint}"
    )


def _compared(group: zarr.Group, names: NDArray[np.str_], panel: Panel) -> tuple[int, int, str]:
    """Number of returns that both have, of those that differ, and the one that differs most."""
    if _GROUP not in group:
        return 0, 0, ""
    labels: Any = group[_GROUP]
    said = labels.attrs
    if said["price"] == "total_return" and "total_return" not in panel.fields:
        return 0, 0, ""
    time, code, value = (np.asarray(labels[name][:]) for name in ("time", "instrument", "value"))
    row = panel_rows(panel, names, code, time)
    held = np.flatnonzero(row >= 0)
    here = forward_returns(panel, row[held], said["horizon"], said["delay"], said["price"]).value
    both = ~np.isnan(here)
    held, here = held[both], here[both].astype(np.float64)
    there_value = value[held].astype(np.float64)
    distance = np.abs(here - there_value) / (1.0 + np.abs(there_value))
    differ = int(np.count_nonzero(distance > _SAME))
    if not differ:
        return len(held), 0, ""
    worst = int(np.argmax(distance))
    k = held[worst]
    return (
        len(held),
        differ,
        (
            f"most that of {names[code[k]]} over the {said['horizon']} bars after {panel.stamp(int(time[k]))}: "
            f"{there_value[worst]:+.2%} there, {here[worst]:+.2%} here"
        ),
    )
