"""Which windows there are: found by name and time without walking through all of them."""

from __future__ import annotations

import functools
import threading
from bisect import bisect_left
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import nearest
from pricepix.bars.times import DAY_NS, MINUTE_NS, as_time, format_time, to_series
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.images.image_set import ImageSet
from pricepix.windows.labels import NO_TIME

__all__ = ["Catalog", "Window"]

Positions = NDArray[np.int64]
_KEPT: Final = 256
"""Instruments whose positions are kept: those of 17 million windows are found in 8 ms, and a move asks for a few."""
_KEPT_BLOCKS: Final = 32
_PROBED: Final = 4096


class Window(NamedTuple):
    """One window of a set of images."""

    position: int
    instrument: str
    time: int
    """Nanoseconds of its last bar."""
    number: int
    """Which of the instrument's windows it is, from 0; -1 while that is not known yet."""
    windows: int
    """How many windows the instrument has; -1 while that is not known yet."""


class Catalog:
    """The index of a set of images, as far as it has been asked for.

    Times and instruments of all windows are read once, 12 bytes a window; `load` may do so ahead. Nothing else is read
    whole unless a sheet is sorted by it.

    Parameters
    ----------
    images : ImageSet
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.names: list[str] = [str(name) for name in images.instruments]
        """Instruments by code."""
        self.code = {name: i for i, name in enumerate(self.names)}
        self._lock = threading.Lock()
        self._loaded: tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], list[str]] | None = None
        self.positions = functools.lru_cache(_KEPT)(self._positions)
        """Ascending positions of the windows of an instrument, by its code."""
        self._block = functools.lru_cache(_KEPT_BLOCKS)(self._read_block)

    def __len__(self) -> int:
        return len(self.images)

    def load(self) -> None:
        """Read times and instruments of all windows, once."""
        with self._lock:
            if self._loaded is None:
                time, codes = self.images.time, self.images.instrument_index
                counts = np.bincount(codes, minlength=len(self.names))
                alive = sorted((self.names[i] for i in np.flatnonzero(counts)), key=_natural)
                self._loaded = time, codes, counts, alive

    @property
    def _all(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], list[str]]:
        if self._loaded is None:
            self.load()
        assert self._loaded is not None
        return self._loaded

    @property
    def time(self) -> NDArray[np.int64]:
        """int64 (n,): nanoseconds, ascending."""
        return self._all[0]

    @property
    def codes(self) -> NDArray[np.int32]:
        """int32 (n,): the instrument of each window."""
        return self._all[1]

    @property
    def alive(self) -> list[str]:
        """Names of the instruments that have windows, in alphabetical order."""
        return self._all[3]

    def _positions(self, code: int) -> Positions:
        return np.flatnonzero(self.codes == code)

    def window(self, position: int) -> Window:
        """Return the window at a position."""
        code = int(self.codes[position])
        own = self.positions(code)
        number = int(np.searchsorted(own, position))
        return Window(position, self.names[code], int(self.time[position]), number, len(own))

    def newest(self) -> Window:
        """Return the last window of all, without waiting for the whole index."""
        position = len(self) - 1
        if self._loaded is not None:
            return self.window(position)
        name = self.names[int(self.value("instrument_index", position))]
        return Window(position, name, int(self.value("time", position)), -1, -1)

    def find(self, instrument: str, time: str | None = None) -> Window:
        """Return the last window of an instrument that ends by a time, or its first one; by default its last one.

        Raises
        ------
        LookupError
            If there is no such instrument, or it has no window.
        ValueError
            If `time` is not one.
        """
        code = self.code.get(instrument)
        if code is None:
            hint = nearest(instrument, self.names) or f"; there are {len(self.names):,} others"
            raise LookupError(f"no instrument {instrument!r}{hint}")
        own = self.positions(code)
        if not len(own):
            raise LookupError(f"{instrument!r} has no window: see the drop counts of the images")
        number = len(own) - 1
        if time is not None:
            last = as_time(time, self.images.tz, end=True)
            number = max(0, int(np.searchsorted(self.time[own], last, side="right")) - 1)
        position = int(own[number])
        return Window(position, instrument, int(self.time[position]), number, len(own))

    def locate(self, instrument: str, ns: int) -> int:
        """Return the position of the window of an instrument that ends at a time; -1 if there is none."""
        code = self.code.get(instrument)
        if code is None:
            return -1
        a = int(np.searchsorted(self.time, ns))
        b = int(np.searchsorted(self.time, ns, side="right"))
        at = a + int(np.searchsorted(self.codes[a:b], code))
        return at if at < b and int(self.codes[at]) == code else -1

    def neighbours(self, window: Window) -> dict[str, str | None]:
        """Return the times of the instrument's windows before and after, and the instruments before and after."""
        own = self.positions(self.code[window.instrument])
        left = right = up = down = None
        if window.number:
            left = self.stamp(int(self.time[own[window.number - 1]]))
        if window.number + 1 < window.windows:
            right = self.stamp(int(self.time[own[window.number + 1]]))
        at = bisect_left(self.alive, _natural(window.instrument), key=_natural)
        if at:
            up = self.alive[at - 1]
        if at + 1 < len(self.alive):
            down = self.alive[at + 1]
        return {"left": left, "right": right, "up": up, "down": down}

    def search(self, text: str, limit: int) -> tuple[list[tuple[str, int]], int]:
        """Return instruments whose name begins with a text, then those that contain it, with their windows.

        Returns
        -------
        found : list of (name, windows)
            At most `limit`.
        total : int
            How many there are.
        """
        wanted = text.casefold()
        counts = self._all[2]
        begin: list[str] = []
        within: list[str] = []
        for name in self.alive:
            at = name.casefold().find(wanted)
            if at >= 0:
                (within if at else begin).append(name)
        found = [(name, int(counts[self.code[name]])) for name in [*begin, *within][:limit]]
        return found, len(begin) + len(within)

    def value(self, column: str, position: int) -> int | float:
        """Return one value of a column, reading the stretch of the index that holds it."""
        block, place = divmod(position, INDEX_CHUNK)
        found: int | float = self._block(column, block)[place].item()
        return found

    def _read_block(self, column: str, block: int) -> NDArray[np.generic]:
        return self.images.column(column, block, block + 1)

    def image(self, position: int) -> NDArray[np.uint8]:
        """Return one image, uint8 (height, width) of 0 and 255."""
        objects = getattr(self.images, "objects", None)
        if objects is None or not objects.chunk_format.columns_first:
            return self.images.read([position])[0]
        # The compiled kernels that make images of bits take half a second to load, as long as all else that stands
        # between a command and its first image; one image needs none.
        height, width = self.images.spec.shape
        chunk, row = divmod(position, self.images.chunk)
        pixels = np.unpackbits(objects.read_chunk_bits(chunk)[row], count=height * width)
        return np.ascontiguousarray(255 * pixels.reshape(width, height).T)

    def stamp(self, ns: int) -> str:
        """Return a time as text that names it exactly; see `stamps`."""
        return self.stamps(np.array([ns]))[0]

    def stamps(self, ns: NDArray[np.int64]) -> list[str]:
        """Return times as text that names them exactly: dates where no bar has a time of day."""
        tz = self.images.tz
        if not self._intraday:
            return to_series(ns, tz).dt.strftime("%Y-%m-%d").to_list()
        found = to_series(ns, tz).dt.strftime("%Y-%m-%d %H:%M").to_list()
        doubtful = range(len(ns)) if tz is not None else np.flatnonzero(ns % MINUTE_NS).tolist()
        for i in doubtful:
            # Seconds, and the hour that happens twice where clocks are set back, need the long form.
            if ns[i] != NO_TIME and as_time(found[i], tz) != ns[i]:
                found[i] = format_time(int(ns[i]), tz)
        return found

    @functools.cached_property
    def _intraday(self) -> bool:
        # Without waiting for the whole index: the first times and the last.
        last = (len(self) - 1) // INDEX_CHUNK
        blocks = [np.asarray(self._block("time", block), np.int64) for block in {0, last}]
        some = np.concatenate([block[:: max(1, len(block) // _PROBED)] for block in blocks])
        wall = to_series(some, self.images.tz).dt.replace_time_zone(None).to_physical().to_numpy()
        return bool((wall % DAY_NS != 0).any())


def _natural(name: str) -> tuple[str, str]:
    """Sort names without regard to case, and those that differ in it alone by their letters."""
    return name.casefold(), name
