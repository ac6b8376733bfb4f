"""Several images of one window end: sets of images of different specs, aligned, and panel fields beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, short
from pricepix.bars.panel import Panel
from pricepix.images.batches import DirectReader, EpochReader
from pricepix.images.chunking import INDEX_CHUNK, default_chunk
from pricepix.images.image_set import ImageSet
from pricepix.images.panel_images import PanelImages
from pricepix.images.rows import check_bars, store_rows
from pricepix.spec import ImageSpec

__all__ = ["Part", "Stack", "StackSpec"]

_LEVELS = 255


class Part(NamedTuple):
    """Where an image lies on the canvas of a stack, in pixels."""

    top: int
    left: int
    height: int
    width: int


class StackSpec:
    """What a stack shows: its specs and fields, and where they lie on the canvas.

    Attributes
    ----------
    specs : tuple of ImageSpec
    fields : dict
        Panel fields by name, each ``rank`` or ``code``.
    parts : tuple of Part
        Of the specs, in their order.
    shape : (int, int)
        Height and width of the canvas: images one below the other, their last bars at the right edge, then a row
        of pixels a field.
    lookback : int
        The longest of the specs.
    """

    def __init__(self, specs: Sequence[ImageSpec], fields: Mapping[str, str]) -> None:
        self.specs, self.fields = tuple(specs), dict(fields)
        width = max(spec.shape[1] for spec in specs)
        parts, top = [], 0
        for height, own in (spec.shape for spec in specs):
            parts.append(Part(top, width - own, height, own))
            top += height
        self.parts = tuple(parts)
        self.shape = (top + len(fields), width)
        self.main = max(specs, key=lambda spec: spec.lookback)
        self.lookback = self.main.lookback

    def describe(self) -> dict[str, Any]:
        """Return specs and fields as plain values."""
        return {"specs": [spec.to_dict() for spec in self.specs], "fields": dict(self.fields)}

    def to_dict(self) -> dict[str, Any]:
        """Return the spec of the longest lookback, as other sets return theirs; `describe` has all."""
        return self.main.to_dict()

    @property
    def digest(self) -> str:
        """32 hexadecimal digits of what `describe` returns."""
        return hashlib.blake2b(repr(self.describe()).encode(), digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StackSpec) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(self.digest)


class Stack(ImageSet):
    """Images of several specs that end at the same bar of the same instrument, as one set of images.

    An image of the stack is a canvas with all of them, so that it is read, previewed, trained on and scored as any
    image is. A module of your own gets the images one by one: ``forward(images5, images20, images60)``, each
    float32 (n, 1, height, width), and with fields a last argument (n, fields).

    Parameters
    ----------
    sets : sequence of ImageSet
        Stores, loaded ones or panel images, of different specs and one panel. Windows that all of them have are
        kept; index and forward returns are those of the first.
    fields : sequence of str or dict, optional
        Values known at the window's last bar, by name. ``rank`` (the default) or ``code`` is a field of the panel;
        ``(values, "rank")`` or ``(values, "code")`` are your own, float (panel rows,), or a dict by instrument. A
        rank is that among the windows of the time, in 255 steps, 0 where it is missing. A code is a whole number from
        0 to 254, such as a sector. A module sees ranks from 0 to 1, and a code as (code + 1) / 255, 0 where it is
        missing.
    panel : Panel, optional
        The bars, for fields; by default those of the first set.

    Raises
    ------
    ValueError
        If the sets have no window in common, or differ in panel, time zone or delay; or a field cannot be shown.

    Notes
    -----
    Batches are read window by window: load compressed stores (``store.load()``) before training on a stack of them.
    """

    kind = "stack"

    def __init__(
        self,
        sets: Sequence[ImageSet],
        *,
        fields: Sequence[str] | Mapping[str, Any] = (),
        panel: Panel | None = None,
    ) -> None:
        self.sets = tuple(sets)
        if len(self.sets) < 1 or not all(isinstance(images, ImageSet) for images in self.sets):
            raise ValueError("sets: give one set of images or more; Stack.from_panel makes them of specs")
        _check_alike(self.sets)
        first = self.sets[0]
        given = dict(fields) if isinstance(fields, Mapping) else {str(name): "rank" for name in fields}
        own = {
            name: value[0] for name, value in given.items() if isinstance(value, tuple) and len(value) == 2
        }
        how = {name: value[1] if name in own else value for name, value in given.items()}
        self.spec: Any = StackSpec([images.spec for images in self.sets], how)
        self.horizons = first.horizons
        self.panel = panel if panel is not None else first.panel
        self.location = f"of {' and '.join(str(images.location) for images in self.sets[:3])}"
        self._positions_of = _common(self.sets)
        self._columns: dict[str, NDArray[Any]] = {}
        self._strips = np.empty((len(self), 0), np.uint8)
        if how:
            self._strips = self._drawn_fields(how, own)

    @classmethod
    def from_panel(
        cls,
        panel: Any,
        specs: Sequence[ImageSpec | str],
        horizons: Sequence[int] = (5, 20, 60),
        *,
        fields: Sequence[str] | Mapping[str, Any] = (),
        **options: Any,
    ) -> Stack:
        """Stack the images of several specs of one panel, drawn as they are asked for.

        Parameters
        ----------
        panel : Panel or anything ``Panel.from_table`` takes
        specs : sequence of ImageSpec or str
            Such as ``("jkx5", "jkx20", "jkx60")``.
        horizons : sequence of int
        fields : sequence of str or dict, optional
            As in `Stack`.
        **options
            Of ``PanelImages``, alike for all specs: which windows to draw, and how returns are computed.
        """
        if isinstance(specs, str) or not len(specs):
            raise ValueError(f"specs={short(specs)}: give the specs of a stack, such as ('jkx5', 'jkx20')")
        panel = Panel.of(panel)
        return cls(
            [PanelImages(panel, spec, horizons, **options) for spec in specs], fields=fields, panel=panel
        )

    def _drawn_fields(self, how: Mapping[str, str], own: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Levels of the fields, uint8 (n, fields)."""
        if self.panel is None:
            raise ValueError(f"fields {', '.join(how)} are of the panel: give panel= the panel of the images")
        row = store_rows(self, self.panel)
        check_bars(self.sets[0], self.panel, store_rows(self.sets[0], self.panel))
        strips = np.empty((len(self), len(how)), np.uint8)
        for i, (name, kind) in enumerate(how.items()):
            choice(kind, f"fields[{name!r}]", ("rank", "code"))
            values = self._own_values(name, own[name], row) if name in own else self._panel_values(name, row)
            strips[:, i] = _codes(values, name) if kind == "code" else _rank_levels(values, self.time)
        return strips

    def _panel_values(self, name: str, row: NDArray[np.int64]) -> NDArray[np.float64]:
        assert self.panel is not None
        if name not in self.panel.fields:
            known = f"it has {', '.join(sorted(self.panel.fields))}" if self.panel.fields else "it has none"
            raise ValueError(
                f"the panel has no field {name!r}, {known}: name one of these, or give (values, 'rank') or "
                "(values, 'code')"
            )
        return np.asarray(self.panel.fields[name], np.float64)[row]

    def _own_values(self, name: str, values: Any, row: NDArray[np.int64]) -> NDArray[np.float64]:
        assert self.panel is not None
        if isinstance(values, Mapping):
            by_code = [values.get(str(instrument)) for instrument in self.instruments]
            found = np.array([np.nan if value is None else value for value in by_code], np.float64)
            return found[self.instrument_index]
        found = np.asarray(values)
        if found.shape != (len(self.panel),) or found.dtype.kind not in "biuf":
            raise ValueError(
                f"fields[{name!r}] is {found.dtype} {found.shape}: give a number a panel row, ({len(self.panel)},), or "
                "a dict by instrument"
            )
        return found.astype(np.float64)[row]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Where the images lie on the canvas."""
        return self.spec.parts

    def __len__(self) -> int:
        return len(self._positions_of[0])

    def __repr__(self) -> str:
        lookbacks = ", ".join(str(spec.lookback) for spec in self.spec.specs)
        return self._repr(f"lookbacks {lookbacks}", *(f"field {name}" for name in self.spec.fields))

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Those of the first set, with the stack's own windows, specs and fields."""
        own = {"windows": len(self), "stack": self.spec.describe(), "chunk": self.chunk, "layout": "stack"}
        return {**self.sets[0].attrs, **own, "spec": self.spec.to_dict(), "spec_digest": self.spec.digest}

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits of the sets, their specs, the fields and the windows in common."""
        hashed = hashlib.blake2b(digest_size=16)
        hashed.update(repr([*(images.digest for images in self.sets), self.spec.digest, len(self)]).encode())
        hashed.update(np.ascontiguousarray(self._strips).tobytes())
        return hashed.hexdigest()

    @property
    def chunk(self) -> int:
        """Images that are read together in a scan: 16 MB of them."""
        return default_chunk(*self.spec.shape)

    @property
    def instruments(self) -> NDArray[np.str_]:
        """Names of the first set's instruments; ``instrument_index`` points into them."""
        return self.sets[0].instruments

    def column(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        if name not in self._columns:
            self._columns[name] = self.sets[0].column(name)[self._positions_of[0]]
        whole = self._columns[name]
        part = whole[first * INDEX_CHUNK : None if last is None else last * INDEX_CHUNK]
        part.flags.writeable = False
        return part

    def read_into(self, positions: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        out[:] = 0
        for images, place, part in zip(self.sets, self._positions_of, self.parts, strict=True):
            found = images.read(place[positions])
            out[:, part.top : part.top + part.height, part.left : part.left + part.width] = found
        count = self._strips.shape[1]
        if count:
            out[:, -count:, :] = self._strips[positions][:, :, None]

    def _reader(self, selection: NDArray[np.int64] | None, **options: Any) -> EpochReader:
        return DirectReader(self, selection, **options)


def _check_alike(sets: Sequence[ImageSet]) -> None:
    """Refuse sets whose windows or returns do not mean the same."""
    first = sets[0]
    for other in sets[1:]:
        for name, one, two in (
            ("delay", first.delay, other.delay),
            ("time zone", first.tz, other.tz),
            ("panel", first.attrs.get("panel_digest"), other.attrs.get("panel_digest")),
        ):
            if one != two and not (name == "panel" and None in (one, two)):
                raise ValueError(
                    f"{other.kind} {other.location} has another {name} than {first.kind} {first.location}: {two!r}, "
                    f"not {one!r}; make the images of one panel, with the same arguments"
                )


def _common(sets: Sequence[ImageSet]) -> list[NDArray[np.int64]]:
    """Positions in each set of the windows that all have, in the order of (time, instrument) of the first."""
    names = [str(name) for name in sets[0].instruments]
    place = {name: i for i, name in enumerate(names)}
    keys: list[NDArray[np.int64]] = []
    times = np.unique(np.concatenate([images.time for images in sets]))
    for images in sets:
        code = np.array([place.get(str(name), -1) for name in images.instruments], np.int64)
        own = code[images.instrument_index]
        key = np.searchsorted(times, images.time) * max(len(names), 1) + own
        keys.append(np.where(own >= 0, key, -1))
    shared = keys[0]
    for key in keys[1:]:
        shared = np.intersect1d(shared, key[key >= 0])
    if not len(shared):
        raise ValueError(
            f"the {len(sets)} sets have no window in common: "
            + "; ".join(f"{images.kind} {images.location} has {len(images):,}" for images in sets)
            + ". Draw them of one panel, at the same bars (every=, start=, end=)"
        )
    found = []
    for key in keys:
        order = np.argsort(key, kind="stable")
        found.append(order[np.searchsorted(key[order], shared)])
    return found


def _rank_levels(values: NDArray[np.float64], time: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Levels 1 to 255 by the rank of a value among those of its time, equal values alike; 0 where it is missing."""
    level = np.zeros(len(values), np.uint8)
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return level
    order = known[np.lexsort((values[known], time[known]))]
    t, v = time[order], values[order]
    new_time = np.append(True, t[1:] != t[:-1])
    tie = np.cumsum(new_time | np.append(True, v[1:] != v[:-1])) - 1
    day = np.cumsum(new_time) - 1
    within = np.arange(len(order)) - np.flatnonzero(new_time)[day]
    mean = (np.bincount(tie, weights=within) / np.bincount(tie))[tie]
    share = (mean + 0.5) / np.bincount(day)[day]
    level[order] = 1 + np.floor(share * _LEVELS).clip(0, _LEVELS - 1).astype(np.uint8)
    return level


def _codes(values: NDArray[np.float64], name: str) -> NDArray[np.uint8]:
    known = np.isfinite(values)
    wrong = known & ((values < 0) | (values >= _LEVELS) | (values != np.floor(values)))
    if wrong.any():
        raise ValueError(
            f"field {name!r} holds {values[wrong][0]!r}: a code is a whole number from 0 to {_LEVELS - 1}; give 'rank' "
            "for numbers of other kinds"
        )
    return np.where(known, np.where(known, values, 0) + 1, 0).astype(np.uint8)
