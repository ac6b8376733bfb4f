"""The page that a notebook shows for a set of images: a few of them, their axes, size and lineage."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars import display
from pricepix.bars.times import format_times
from pricepix.images.chunking import INDEX_CHUNK

__all__ = ["image_set_page"]

_SHOWN: Final = 8


def image_set_page(images: Any) -> str:
    """Return a page of HTML. Three chunks of images are read at most; what is damaged is said, not raised."""
    n, (height, width) = len(images), images.spec.shape
    facts: dict[str, Any] = {
        "location": images.location,
        "images": f"(window {n:,}, y {height}, x {width}), uint8 0 and 255",
        "as pixels": f"{_size(n * height * width)}; {_size(n * images.spec.packed_bytes)} as bits",
        "instruments": len(images.instruments),
        "chunk": f"{images.chunk:,} windows",
    }
    attrs = images.attrs
    if n:
        first, last = (
            format_times(images.column("time", k, k + 1)[[end]], images.tz)[0]
            for k, end in ((0, 0), ((n - 1) // INDEX_CHUNK, -1))
        )
        facts |= {"first window ends": first, "last window ends": last}
    facts |= {
        "time zone": images.tz,
        "forward returns": ", ".join(f"ret_{h}" for h in images.horizons) or "none",
        "entry": f"{images.delay} bars after the window" if images.delay else "at the window's last close",
    }
    facts |= {
        name.replace("_", " "): attrs.get(name)
        for name in ("label_price", "delisting", "layout", "created_by")
    }
    facts |= {name: attrs[name] for name in ("format_version",) if name in attrs}
    for name in ("spec_digest", "panel_digest"):
        if attrs.get(name):
            facts[name.replace("_", " ")] = display.code(attrs[name])
    dropped = dict(sorted(dict(attrs.get("drop_counts") or {}).items(), key=lambda item: -item[1]))
    funnel = {
        "candidates": n + sum(dropped.values()),
        **{f"- {k}": v for k, v in dropped.items()},
        "images": n,
    }
    return display.page(
        type(images).__name__,
        f"{n:,} images {height} x {width} of {len(images.instruments):,} instruments",
        _thumbnails(images) if n else display.Html(""),
        display.columns(
            display.facts(facts), display.bars(funnel, ("candidates", "images"), of=funnel["candidates"] or 1)
        ),
        display.details("Spec", display.facts(images.spec.to_dict())),
    )


def _thumbnails(images: Any) -> display.Html:
    """Return images from the first, the middle and the last chunk."""
    places = _places(len(images), images.chunk)
    try:
        shown = images.read(places)
        # Only the stretches of the index that hold them are read.
        index = [
            int(images.column("instrument_index", p // INDEX_CHUNK, p // INDEX_CHUNK + 1)[p % INDEX_CHUNK])
            for p in places.tolist()
        ]
        time = [
            images.column("time", p // INDEX_CHUNK, p // INDEX_CHUNK + 1)[p % INDEX_CHUNK]
            for p in places.tolist()
        ]
    except (ValueError, OSError) as error:
        return display.notes([error])
    names = images.instruments[index]
    return display.pictures(shown, list(zip(names, format_times(np.array(time), images.tz), strict=True)))


def _places(n: int, chunk: int) -> NDArray[np.int64]:
    """Return up to 8 positions, ascending, that lie in three chunks."""
    if n <= _SHOWN:
        return np.arange(n)
    if n <= 3 * chunk:
        return np.arange(1, 2 * _SHOWN, 2) * n // (2 * _SHOWN)
    middle = n // chunk // 2 * chunk
    spans = ((0, chunk, 3), (middle, middle + chunk, 3), ((n - 1) // chunk * chunk, n, 2))
    found = [
        first + (last - first) * (2 * k + 1) // (2 * many) for first, last, many in spans for k in range(many)
    ]
    return np.unique(found)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
