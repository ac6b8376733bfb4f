"""The factor cache: scores by day, instrument and time of day, in a Zarr v3 group that xarray opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store

from pricepix._checks import optional_module, printable
from pricepix.bars.times import as_time, format_time, to_series
from pricepix.factor import exports
from pricepix.factor.cache_format import (
    CHECKSUM_KEY,
    DIGESTS,
    FORMAT,
    FORMAT_VERSION,
    SOURCE_CHUNKS,
    CacheContent,
    checksum_table,
    object_checksum,
)
from pricepix.factor.cache_journal import Journal
from pricepix.factor.cache_objects import CacheObjects, cache_location
from pricepix.factor.cache_verify import verify_objects
from pricepix.factor.display import cache_page
from pricepix.location import METADATA_BYTES, Location
from pricepix.spec import ImageSpec
from pricepix.store.chunks import seal
from pricepix.store.format import ROOT
from pricepix.windows.labels import NO_TIME

if TYPE_CHECKING:
    import pandas
    import polars
    import xarray

    from pricepix.bars.panel import Panel
    from pricepix.images.image_set import ImageSet
    from pricepix.store.verify import VerifyReport

__all__ = ["FORMAT_VERSION", "CacheLike", "FactorCache", "is_factor_cache", "open_cache"]

CacheLike = str | PathLike[str] | Store


class FactorCache:
    """Scores of a model, laid out by day, instrument and time of day.

    Open one with ``open_cache``; ``pricepix.factor.score`` makes them. Values stand at the close of the
    image's last bar, when they are first known, moved on by ``shift`` bars of the market's calendar.

    Everything that is read is compared with the cache's checksums: an object that is missing, damaged or in
    another's place is an error that names it, never NaN. An open cache stays as it was opened: if it is appended to
    meanwhile, days that the append did not change can still be read, and anything else is an error that says so.
    """

    def __init__(self, objects: CacheObjects) -> None:
        self.objects = objects
        """The cache's objects, fetched and checked one at a time."""
        self.location = objects.url
        """Path or URL of the cache, ``memory`` for one that lives in memory."""
        self.attrs: dict[str, Any] = objects.attrs
        """The group's attributes: digests of store, model and spec, horizon, delay, shift, versions."""
        self.spec = ImageSpec.from_dict(self.attrs["spec"])
        self.group: zarr.Group = objects.group()
        """The Zarr group. What is read through it is compared with the cache's checksums."""
        members: dict[str, Any] = dict(self.group.arrays())
        missing = [
            name for name in ("factor", "day", "instrument", "interval", "time") if name not in members
        ]
        if missing:
            raise ValueError(f"cache {self.location} has no array {missing[0]!r}: it is foreign; score again")
        self._members = members

    def __repr__(self) -> str:
        days, instruments, intervals = self.shape
        windows = self.attrs["windows"] - self.attrs.get("skipped", 0)
        blank = self.attrs.get("without_value") or 0
        valued = f" ({blank:,} without a value)" if 0 < blank < windows else ""
        if blank and blank == windows:
            valued = " (none with a value)"
        return (
            f"FactorCache({self.location}: {days:,} days, {instruments:,} instruments, {intervals} a day, "
            f"{windows:,} windows{valued} of {self.attrs['model']['name']}, shift {self.shift})"
        )

    def _repr_html_(self) -> str:
        return cache_page(self)

    def summary(self) -> str:
        """Return what the cache holds and when it was scored, a line each."""
        commits, tz = self.journal().commits, self.tz
        days = [str(day) for day in self.days[[0, -1]]] if len(self.days) else []
        model = self.attrs["model"]
        lines = [
            repr(self),
            f"model     {model['name']}, {self.attrs['values']}, digest {model['digest'] or 'unknown'}",
            f"images    {self.attrs['store']}, spec {self.attrs['spec_digest']}",
            f"days      {' to '.join(days) or 'none'}",
        ]
        if len(commits["known"]):
            first, last = (format_time(int(commits["known"][k]), tz) for k in (0, -1))
            lines.append(
                f"scored    {len(commits['known']):,} times, first known {first}, last {last}: "
                f"{commits['added'].sum():,} values added, {commits['revised'].sum():,} revised, "
                f"{commits['removed'].sum():,} removed"
            )
        if self.attrs.get("kept"):
            lines.append(f"kept      {self.attrs['kept']:,} values of images that changed since")
        return printable("\n".join(lines), "\n")

    def values(self, name: str) -> zarr.Array[Any]:
        """Return an array of values by its name: ``factor``, ``spread`` or ``scored/image``."""
        found: Any = self._values(name) if name in self._members else self.group[name]
        return found

    @property
    def source_chunks(self) -> NDArray[np.int64]:
        """int64 (chunk,): checksums of the store's image chunks when it was scored last; none where it had none."""
        return np.asarray(self.group[SOURCE_CHUNKS][:])  # type: ignore[index]

    def labels(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the forward returns by which a panel's bars are recognised, and what they are; see `panel_check`."""
        if "labels" not in self.group:
            return {}, {}
        labels: Any = self.group["labels"]
        return {name: np.asarray(array[:]) for name, array in labels.arrays()}, dict(labels.attrs)

    def journal(self, *, whole: bool = True) -> Journal:
        """Return the cache's journal; if not the whole, with the latest changes only."""
        return Journal.read(self.group, whole=whole)

    @property
    def factor(self) -> zarr.Array[Any]:
        """The zarr array, float32 (day, instrument, interval); NaN where nothing is known."""
        return self._values("factor")

    @property
    def spread(self) -> zarr.Array[Any] | None:
        """Standard deviation over the members of an ensemble, as `factor`; None if it was not kept."""
        return self._values("spread") if "spread" in self._members else None

    def _values(self, name: str) -> zarr.Array[Any]:
        # The axes are read first: that there are so many days and names is what makes the shape worth its memory.
        _ = self.days, self.instruments, self.intervals, self.time
        found: zarr.Array[Any] = self._members[name]
        return found

    def _axis(self, name: str) -> Any:
        # Zarr asks for all of the memory first: the objects must hold what the shape says.
        self.objects.check_array(name)
        return self._members[name][:]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Days, instruments, times of day."""
        days, instruments, intervals = self._members["factor"].shape
        return days, instruments, intervals

    @property
    def shift(self) -> int:
        """Bars by which values were moved on from the close at which they are known."""
        return int(self.attrs["shift"])

    @property
    def tz(self) -> str | None:
        """Zone of the market; times are UTC where there is one, wall-clock times otherwise."""
        return self.attrs.get("tz")

    @property
    def is_probability(self) -> bool:
        """Whether values are probabilities of a rise; other scores can be ranked only."""
        return bool(self.attrs.get("values", "probability") == "probability")

    @cached_property
    def days(self) -> NDArray[np.datetime64]:
        """datetime64[D] (day,): the market's days."""
        return np.asarray(self._axis("day")).astype("datetime64[D]")

    @cached_property
    def instruments(self) -> NDArray[np.str_]:
        """Names along the second axis."""
        return np.array(self._axis("instrument").tolist(), np.str_)

    @cached_property
    def intervals(self) -> list[str]:
        """Times of day along the third axis, ``HH:MM`` in the market's zone; daily data have one."""
        return [str(x) for x in self._axis("interval").tolist()]

    @cached_property
    def time(self) -> NDArray[np.int64]:
        """int64 (day, interval) nanoseconds: the time of each bar; the smallest int64 where there is none."""
        return np.asarray(self._axis("time"))

    def matrix(
        self, name: str = "factor", *, first: int | None = None, last: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Read the values bar by bar.

        Parameters
        ----------
        name : {"factor", "spread"}
        first, last : int, optional
            First and last time, nanoseconds since 1970: days without a bar between them are not read.

        Returns
        -------
        time : numpy.ndarray, int64 (bars,)
            Bars at which any value is known, ascending.
        values : numpy.ndarray, float32 (bars, instruments)
        """
        if name not in self._members:
            raise ValueError(f"cache {self.location} holds no {name!r}: score an ensemble with spread=True")
        array = self._values(name)
        instruments = self.shape[1]
        wanted = self.time != NO_TIME
        if first is not None:
            wanted &= self.time >= first
        if last is not None:
            wanted &= self.time <= last
        days = np.flatnonzero(wanted.any(axis=1))
        day = slice(int(days[0]), int(days[-1]) + 1) if len(days) else slice(0, 0)
        block = np.asarray(array[day]).transpose(0, 2, 1).reshape(-1, instruments)
        time = self.time[day].reshape(-1)
        known = wanted[day].reshape(-1) & ~np.isnan(block).all(axis=1)
        return time[known], block[known]

    def of_windows(self, store: ImageSet) -> NDArray[np.float32]:
        """Return the value of each window of the store, float32 (n,); NaN where there is none."""
        calendar = np.sort(self.time[self.time != NO_TIME])
        time, values = self.matrix()
        at = np.searchsorted(calendar, store.time)
        # A window that ends at no bar of the cache has no value there, least of all that of the next bar.
        placed = at < len(calendar)
        placed[placed] = calendar[at[placed]] == store.time[placed]
        at += self.shift
        placed &= at < len(calendar)
        placed[placed] &= np.isin(calendar[at[placed]], time)
        place_of = {str(name): i for i, name in enumerate(self.instruments)}
        place = np.array([place_of.get(str(name), -1) for name in store.instruments], np.int64)
        column = place[store.instrument_index]
        placed &= column >= 0
        out = np.full(len(store), np.nan, np.float32)
        row = np.searchsorted(time, calendar[at[placed]])
        out[placed] = values[row, column[placed]]
        return out

    def at(self, instrument: str, time: Any) -> float:
        """Return the value of an instrument at a time (or on a day of one bar); NaN if unknown."""
        place = np.flatnonzero(self.instruments == str(instrument))
        if not len(place):
            raise KeyError(
                f"no instrument {instrument!r} in cache {self.location}, which has {self.shape[1]}"
            )
        first, last = as_time(time, self.tz, False), as_time(time, self.tz, True)
        found = np.argwhere((self.time >= first) & (self.time <= last))
        if len(found) != 1:
            raise KeyError(
                f"{len(found)} bars of cache {self.location} lie at {time!r}: give the time of one of them"
            )
        day, interval = found[0]
        value: Any = self.factor[int(day), int(place[0]), int(interval)]
        return float(value)

    def to_xarray(self) -> xarray.Dataset:
        """Return the cache as a lazy ``xarray.Dataset``, what ``xarray.open_zarr`` gives of its location.

        What is read through it is compared with the cache's checksums, which ``open_zarr`` does not do.
        """
        xr = optional_module("xarray", "xarray", "to_xarray")
        return xr.open_zarr(self.group.store, consolidated=False)

    def as_of(self, when: Any) -> FactorCache:
        """Return the factor as it was known at a time, as a cache in memory.

        A score that was revised since has the value that it had then; one that was not known is NaN, however old its
        bar is. ``scored_at`` lists when the cache changed.

        Parameters
        ----------
        when : str, date or datetime
            In the zone of the market; a day, month or year stands for its end, for the evening.

        Raises
        ------
        ValueError
            If nothing was known then: the cache was first scored later.
        """
        return _as_known(self, as_time(when, self.tz, end=True))

    @property
    def scored_at(self) -> pl.DataFrame:
        """A row a scoring that changed the cache: when it became known, and what it added, revised and removed."""
        commits = self.journal().commits
        columns = {name: values for name, values in commits.items() if name not in ("known", "last_day")}
        last_day = commits["last_day"].astype("datetime64[D]")
        return pl.DataFrame({"known": to_series(commits["known"], self.tz), "last_day": last_day, **columns})

    def verify(self, *, progress: bool = False) -> VerifyReport:
        """Read every object of the cache and compare it with the checksums.

        Parameters
        ----------
        progress : bool
            Show a progress bar.

        Returns
        -------
        VerifyReport
            Its ``problems`` name every object that is missing, damaged, edited, or not of the cache.
        """
        return verify_objects(self.objects, progress=progress)

    def to_polars(self) -> polars.DataFrame:
        """Return a long table, a row a known value: instrument, time, factor and, where kept, spread."""
        return long_table(self)

    def to_parquet(self, path: str | PathLike[str]) -> Path:
        """Write the long table of `to_polars` as Parquet."""
        self.to_polars().write_parquet(Path(path))
        return Path(path)

    def to_csv(self, path: str | PathLike[str], *, guard: bool = True) -> Path:
        """Write the long table of `to_polars` as CSV, times in ISO form.

        With `guard` an apostrophe is put before names that a spreadsheet would run as formulas: those that begin
        with ``=``, ``+``, ``-``, ``@``, a tab or a line end.
        """
        return exports.write_csv(self.to_polars(), path, guard=guard)

    def to_alphalens(self) -> pandas.Series:
        """Return a pandas Series ``factor``, indexed by (date, asset), as alphalens takes it."""
        return exports.to_alphalens(self.to_polars())

    def to_qlib(self) -> pandas.DataFrame:
        """Return a pandas frame, column ``score``, index (datetime, instrument), as Qlib takes it."""
        return exports.to_qlib(self.to_polars())

    def to_image_trading(self, folder: str | PathLike[str], panel: Panel | None = None) -> Path:
        """Write ImageTrading's raw float32 file and its index; see ``exports.to_image_trading``."""
        values = np.asarray(self.factor[:], np.float32)
        cube = exports.Cube(values, self.days, self.instruments, self.intervals, self.shift)
        if panel is None:
            return exports.to_image_trading(cube, folder)
        return exports.to_image_trading(cube, folder, panel.calendar, panel.tz)


def open_cache(location: CacheLike | Location) -> FactorCache:
    """Open a factor cache.

    Parameters
    ----------
    location : str, path or zarr store

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError
        If what is there is not a finished factor cache of a format that this release reads, or is damaged.
    """
    cache = FactorCache(CacheObjects.open(cache_location(location)))
    # Read here, the axes stay those of the values if the cache is appended to meanwhile. A damaged one is an error for
    # whoever reads it, and `verify` lists it.
    with suppress(ValueError):
        _ = cache.days, cache.instruments, cache.intervals, cache.time
    return cache


def is_factor_cache(location: CacheLike) -> bool:
    """Whether a location holds a factor cache, of any version and in any state."""
    try:
        root = json.loads(bytes(cache_location(location).get(ROOT, METADATA_BYTES) or b"{}"))
        return bool(root["attributes"]["format"] == FORMAT)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def long_table(cache: FactorCache, first: int | None = None, last: int | None = None) -> pl.DataFrame:
    """Return a row a known value, by time: instrument, time, factor and, where kept, spread.

    From time `first` to `last`, nanoseconds, both included; days outside are not read.
    """
    time, values = cache.matrix(first=first, last=last)
    bar, code = np.nonzero(~np.isnan(values))
    names = pl.Series(cache.instruments.tolist(), dtype=pl.String)
    columns: dict[str, Any] = {
        "instrument": names.gather(code),
        "time": to_series(time[bar], cache.tz),
        "factor": values[bar, code],
    }
    if cache.spread is not None:
        spread_time, spread = cache.matrix("spread", first=first, last=last)
        columns["spread"] = spread[np.searchsorted(spread_time, time)[bar], code]
    return pl.DataFrame(columns)


def _as_known(cache: FactorCache, known: int) -> FactorCache:
    """Return a cache in memory with the values that were known at a time, nanoseconds."""
    journal = cache.journal()
    commit = journal.commit_at(known)
    if commit < 0:
        first = journal.commits["known"][:1].tolist()
        begin = f"its first scores became known {format_time(first[0], cache.tz)}" if first else "it is empty"
        raise ValueError(f"cache {cache.location} knew nothing by {format_time(known, cache.tz)}: {begin}")
    days = cache.days.astype(np.int64)
    kept = int(np.searchsorted(days, journal.commits["last_day"][commit], side="right"))
    values = {"factor": np.asarray(cache.factor[:kept])}
    if cache.spread is not None:
        values["spread"] = np.asarray(cache.spread[:kept])
    undone = journal.undone(commit)
    places = undone["instrument"]
    if len(places) and (places.min() < 0 or places.max() >= cache.shape[1]):
        raise ValueError(
            f"the journal of cache {cache.location} names instruments that it lacks: it is damaged"
        )
    flat = cache.time[:kept].reshape(-1)
    order = np.argsort(flat, kind="stable")
    at = order[np.minimum(np.searchsorted(flat[order], undone["time"]), max(len(order) - 1, 0))]
    found = flat[at] == undone["time"]
    day, interval = np.divmod(at[found], max(len(cache.intervals), 1))
    for name, array in values.items():
        array[day, undone["instrument"][found], interval] = undone[name][found]
    names = cache.instruments.tolist()
    for number, old, new in reversed(cache.attrs.get("renamed", [])):
        if number > commit:
            names[names.index(new)] = old
    attributes = {name: value for name, value in cache.attrs.items() if name not in (*DIGESTS, "renamed")}
    attributes |= {
        "as_of": format_time(known, cache.tz),
        "windows": int(journal.commits["windows"][commit]),
        "without_value": int(journal.commits["without_value"][commit]),
    }
    content = CacheContent(
        days[:kept], cache.time[:kept], names, cache.intervals, "spread" in values, int(cache.factor.chunks[1]),
        *cache.labels(),
    )  # fmt: skip
    return _in_memory(content, attributes, values)


def _in_memory(
    content: CacheContent, attributes: dict[str, Any], values: Mapping[str, NDArray[np.float32]]
) -> FactorCache:
    """Return a cache in memory that holds these values, (day, instrument, interval)."""
    location = cache_location(None)
    objects: dict[str, bytes] = {}
    layouts, axes = content.layouts(), content.encode_axes()
    for layout in layouts:
        stored = zip(layout.object_keys(), axes.get(layout.name, ()), strict=False)
        objects |= {key: part for key, part in stored if part is not None}
    for name, array in values.items():
        layout = content.values_layout(name)
        for day, block in enumerate(array):
            for group, part in enumerate(content.encode_day(block)):
                if part is not None:
                    objects[layout.key(day, group, 0)] = part
    table = checksum_table(layouts, {key: object_checksum(part) for key, part in objects.items()})
    objects |= {CHECKSUM_KEY: seal(table)} | content.metadata(attributes, table)
    for key, part in objects.items():
        location.put(key, part)
    return open_cache(location)
