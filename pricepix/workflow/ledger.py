"""The bars that the last update used, kept as what each update changed."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix.bars.columns import BAR
from pricepix.bars.panel import Panel, panel_digest
from pricepix.location import METADATA_BYTES, Location, StoreLike

__all__ = ["Known", "Ledger"]

_VERSION: Final = 2
_FILE: Final = "ledger.json"
_BARS: Final = "bars"
# Updates after which all bars are written again, so that few files must be read.
_WHOLE_EVERY: Final = 64
_KEY: Final = ["instrument", "time"]


@dataclass(frozen=True)
class Known:
    """What is kept of the bars of the last update without reading them: enough to see which are the same."""

    instruments: list[str]
    rows: NDArray[np.int64]
    """int64 (instruments,): bars of each."""
    digests: NDArray[np.uint64]
    """uint64 (instruments, 2): 128 bits of the bars of each, as ``Panel.instrument_digests``."""
    last: int
    """Time of the newest bar, nanoseconds."""

    @classmethod
    def of(cls, panel: Panel) -> Known:
        """Return what is kept of a panel."""
        last = int(panel.calendar[-1]) if len(panel.calendar) else np.iinfo(np.int64).min
        rows = np.diff(panel.offsets).astype(np.int64)
        return cls(panel.instruments.tolist(), rows, panel.instrument_digests, last)

    @property
    def bars(self) -> int:
        """Bars of all instruments."""
        return int(self.rows.sum())

    def unchanged(self, panel: Panel) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Compare a panel with the bars that were known.

        Returns
        -------
        same : numpy.ndarray, bool (instruments of the panel,)
            The instrument's first bars are those that were known, and all others are later than any of those.
        rows : numpy.ndarray, int64 (instruments of the panel,)
            How many bars were known of it.
        """
        place = {name: i for i, name in enumerate(self.instruments)}
        code = np.array([place.get(name, -1) for name in panel.instruments.tolist()], np.int64)
        here = code >= 0
        rows = np.zeros(panel.n_instruments, np.int64)
        rows[here] = self.rows[code[here]]
        length = np.diff(panel.offsets)
        ends = panel.offsets[:-1] + np.minimum(rows, length)
        # Every instrument cut in two, at the end of its known bars, without a copy.
        cuts = np.append(np.stack([panel.offsets[:-1], ends], axis=1).reshape(-1), panel.offsets[-1])
        halves = Panel(panel.bars, cuts, np.repeat(panel.instruments, 2), panel.time, panel.tz, panel.fields)
        same = here & (rows <= length)
        same[here] &= (halves.instrument_digests[::2][here] == self.digests[code[here]]).all(axis=1)
        more = ends < panel.offsets[1:]
        same[more] &= panel.time[ends[more]] > self.last
        return same, rows


class Ledger:
    """The bars that updates used: the file ``ledger.json`` of a folder, and ``bars`` beside it.

    ``bars/000001.parquet`` and so on hold the rows that an update added or changed, and those that went, with the
    flag ``gone``; ``bars/000001.known.parquet`` has the number of bars and a digest of each instrument after it, by
    which most of them are known to be the same without being read. The file ``ledger.json`` says which of them count;
    it is replaced at once, last of all.
    """

    def __init__(self, where: Location | StoreLike) -> None:
        self._where = Location.of(where)
        self._known: Known | None = None
        self.entry: dict[str, Any] = {}
        """What the last update recorded; empty before the first."""
        content = self._where.get(_FILE, METADATA_BYTES)
        if content is not None:
            found = json.loads(bytes(content))
            version = found.get("version") if isinstance(found, dict) else None
            if version != _VERSION:
                raise ValueError(
                    f"{self._where.name}/{_FILE} has version {version}, this release reads version {_VERSION}: give "
                    "another out, to which the first update builds everything anew"
                )
            self.entry = found

    def __len__(self) -> int:
        return int(self.entry.get("updates", 0))

    @property
    def known(self) -> Known | None:
        """What the last update's bars are recognised by; None before the first.

        Raises
        ------
        ValueError
            If it is not what was written.
        """
        if not self.entry:
            return None
        if self._known is None:
            table = self._read(f"{len(self):06d}.known")
            digests = np.stack([table["low"].to_numpy(), table["high"].to_numpy()], axis=1)
            found = Known(
                table["instrument"].to_list(), table["bars"].to_numpy(), digests, int(self.entry["last"])
            )
            if self._digest_of(found) != self.entry["panel_digest"]:
                raise self._damaged(f"{len(self):06d}.known")
            self._known = found
        return self._known

    def read(self, instruments: list[str] | None = None) -> Panel | None:
        """Return the bars that the last update used, of all or of some instruments; None before the first.

        Raises
        ------
        ValueError
            If they are not those that were written.
        """
        known = self.known
        if known is None:
            return None
        numbers = range(self.entry["whole"], len(self) + 1)
        parts = [self._read(f"{number:06d}", instruments) for number in numbers]
        frame = pl.concat(parts, how="diagonal")
        frame = frame.unique(_KEY, keep="last", maintain_order=True).filter(~pl.col("gone")).sort(_KEY)
        found = _panel(frame.drop("gone"), self.entry["tz"], self.entry["fields"])
        wanted = set(known.instruments if instruments is None else instruments)
        there = [k for k, name in enumerate(known.instruments) if name in wanted]
        if found.instruments.tolist() != [known.instruments[k] for k in there] or not np.array_equal(
            found.instrument_digests, known.digests[there]
        ):
            raise self._damaged(f"{self.entry['whole']:06d}.parquet to {len(self):06d}")
        return found

    def _digest_of(self, known: Known) -> str:
        offsets = np.concatenate([[0], np.cumsum(known.rows)]).astype(np.int64)
        names = np.array(known.instruments, np.str_)
        return panel_digest(names, offsets, known.digests, self.entry["fields"], self.entry["tz"])

    def _damaged(self, name: str) -> ValueError:
        return ValueError(
            f"{self._where.name}/{_BARS}/{name}.parquet is not what the last update wrote: restore the folder, or give "
            "another out"
        )

    def commit(self, now: Panel, **entry: Any) -> None:
        """Record that an update used these bars, with whatever else is to be known of it."""
        number = len(self) + 1
        whole, known = self.entry.get("whole", number), self.known
        if known is None or self.entry["fields"] != list(now.fields) or number - whole >= _WHOLE_EVERY:
            delta, whole = _frame(now).with_columns(pl.lit(False).alias("gone")), number
        else:
            delta = self._difference(known, now)
        self._write(f"{number:06d}", delta)
        after = Known.of(now)
        self._write(
            f"{number:06d}.known",
            pl.DataFrame(
                {
                    "instrument": pl.Series(after.instruments, dtype=pl.String),
                    "bars": after.rows,
                    "low": after.digests[:, 0],
                    "high": after.digests[:, 1],
                }
            ),
        )
        self.entry = {
            "version": _VERSION, "updates": number, "whole": whole, "tz": now.tz, "fields": list(now.fields),
            "panel_digest": now.digest, "last": after.last, **entry,
        }  # fmt: skip
        self._where.put(_FILE, (json.dumps(self.entry, indent=2) + "\n").encode())
        self._known = after
        self.sweep()

    def sweep(self) -> None:
        """Delete files of bars that no longer count; whoever calls holds the lock of the folder."""
        whole = self.entry.get("whole", 0)
        for key in list(self._where.list(_BARS)):
            stem, _, kind = PurePosixPath(key).name.removesuffix(".parquet").partition(".")
            if stem.isdecimal() and int(stem) < (len(self) if kind else whole):
                self._where.delete(key)

    def _difference(self, known: Known, now: Panel) -> pl.DataFrame:
        """Return the rows that are new or changed, and those that went."""
        same, rows = known.unchanged(now)
        later = np.zeros(len(now), bool)
        for start, end in zip(
            (now.offsets[:-1] + rows)[same].tolist(), now.offsets[1:][same].tolist(), strict=True
        ):
            later[start:end] = True
        gone = pl.lit(False).alias("gone")
        parts = [_frame(now, later).with_columns(gone)]
        here = set(now.instruments.tolist())
        other = now.instruments[~same].tolist()
        before = self.read([*other, *(name for name in known.instruments if name not in here)])
        if before is not None:
            parts.append(_changed_rows(_frame(before), _frame(now, np.repeat(~same, np.diff(now.offsets)))))
        return pl.concat(parts)

    def _read(self, name: str, instruments: list[str] | None = None) -> pl.DataFrame:
        key = f"{_BARS}/{name}.parquet"
        if self._where.path is not None:
            source: Any = self._where.path / key
        else:
            content = self._where.get(key)
            if content is None:
                raise FileNotFoundError(
                    f"{self._where.name}/{key} is missing: restore it, or give another out"
                )
            source = io.BytesIO(bytes(content))
        if instruments is None:
            return pl.read_parquet(source)
        wanted = pl.Series(instruments, dtype=pl.String)
        return pl.scan_parquet(source).filter(pl.col("instrument").is_in(wanted.implode())).collect()

    def _write(self, name: str, table: pl.DataFrame) -> None:
        content = io.BytesIO()
        table.write_parquet(content)
        self._where.put(f"{_BARS}/{name}.parquet", content.getvalue())


def _frame(panel: Panel, rows: NDArray[np.bool_] | None = None) -> pl.DataFrame:
    """Return the rows of a panel, or some of them, as they are written."""
    names = pl.Series("instrument", panel.instruments.tolist(), dtype=pl.String)
    kept: Any = slice(None) if rows is None else np.flatnonzero(rows)
    owner = np.repeat(np.arange(panel.n_instruments, dtype=np.uint32), np.diff(panel.offsets))[kept]
    columns = [names.gather(owner), pl.Series("time", panel.time[kept])]
    columns += [pl.Series(name, np.ascontiguousarray(panel.bars[kept, k])) for k, name in enumerate(BAR)]
    columns += [pl.Series(name, values[kept]) for name, values in panel.fields.items()]
    return pl.DataFrame(columns)


def _changed_rows(before: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of some instruments that are new or changed, and those that went."""
    values = [name for name in now.columns if name not in _KEY]
    joined = now.join(before, on=_KEY, how="left", suffix="_before", coalesce=True, maintain_order="left")
    marked = now.join(
        before.select(*_KEY, pl.lit(True).alias("known")), on=_KEY, how="left", maintain_order="left"
    )
    same = pl.lit(True)
    for name in values:
        a, b = pl.col(name), pl.col(f"{name}_before")
        same = same & a.eq_missing(b)
    kept = joined.select(same.alias("same"))["same"] & marked["known"].fill_null(False)
    gone = before.join(now, on=_KEY, how="anti")
    return pl.concat(
        [
            now.filter(~kept).with_columns(pl.lit(False).alias("gone")),
            gone.with_columns(pl.lit(True).alias("gone")),
        ]
    )


def _panel(frame: pl.DataFrame, tz: str | None, fields: list[str]) -> Panel:
    names = frame["instrument"].to_numpy() if len(frame) else np.empty(0, object)
    starts = np.flatnonzero(np.append(True, names[1:] != names[:-1])) if len(frame) else np.empty(0, np.int64)
    offsets = np.append(starts, len(frame)).astype(np.int64)
    bars = np.ascontiguousarray(frame.select(BAR).to_numpy().astype(np.float64))
    return Panel(
        bars,
        offsets,
        np.array(names[starts].tolist(), np.str_),
        np.ascontiguousarray(frame["time"].to_numpy()).astype(np.int64),
        tz,
        {name: np.ascontiguousarray(frame[name].to_numpy()) for name in fields},
    )
