"""The bars that the last update used, kept as what each update changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from pricepix.bars.columns import BAR
from pricepix.bars.panel import Panel
from pricepix.location import atomic_file, write_json

__all__ = ["Ledger"]

_VERSION: Final = 1
# Updates after which all bars are written again, so that few files must be read.
_WHOLE_EVERY: Final = 64
_KEY: Final = ["instrument", "time"]


class Ledger:
    """The bars that updates used: the file ``ledger.json`` of a folder, and ``bars`` beside it.

    ``bars/000001.parquet`` and so on hold the rows that an update added or changed, and those that went, with the
    flag ``gone``. The file ``ledger.json`` says which of them count; it is replaced at once, last of all.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._bars = folder / "ledger.json", folder / "bars"
        self.entry: dict[str, Any] = {}
        """What the last update recorded; empty before the first."""
        if self._path.exists():
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.get("version") != _VERSION:
                raise ValueError(
                    f"{self._path} has version {found.get('version') if isinstance(found, dict) else None}, this "
                    f"release reads version {_VERSION}: give another out"
                )
            self.entry = found

    def __len__(self) -> int:
        return int(self.entry.get("updates", 0))

    def read(self) -> Panel | None:
        """Return the bars that the last update used; None before the first."""
        if not self.entry:
            return None
        parts = [pl.read_parquet(self._file(n)) for n in range(self.entry["whole"], len(self) + 1)]
        frame = pl.concat(parts, how="diagonal")
        frame = frame.unique(_KEY, keep="last", maintain_order=True).filter(~pl.col("gone")).sort(_KEY)
        return _panel(frame.drop("gone"), self.entry["tz"], self.entry["fields"])

    def commit(self, before: Panel | None, now: Panel, **entry: Any) -> None:
        """Record that an update used these bars, with whatever else is to be known of it."""
        number = len(self) + 1
        frame, gone = _frame(now), pl.lit(False).alias("gone")
        whole = self.entry.get("whole", number)
        same_fields = before is not None and list(before.fields) == list(now.fields)
        if before is None or not same_fields or number - whole >= _WHOLE_EVERY:
            delta, whole = frame.with_columns(gone), number
        else:
            delta = _difference(_frame(before), frame)
        self._bars.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._file(number)) as partial:
            delta.write_parquet(partial)
        self.entry = {
            "version": _VERSION, "updates": number, "whole": whole, "tz": now.tz, "fields": list(now.fields),
            "panel_digest": now.digest, **entry,
        }  # fmt: skip
        write_json(self._path, self.entry)
        for path in self._bars.glob("*.parquet"):
            if path.stem.isdecimal() and int(path.stem) < whole:
                path.unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self._bars / f"{number:06d}.parquet"


def _frame(panel: Panel) -> pl.DataFrame:
    names = pl.Series("instrument", panel.instruments.tolist(), dtype=pl.String)
    owner = np.repeat(np.arange(panel.n_instruments, dtype=np.uint32), np.diff(panel.offsets))
    columns = [names.gather(owner), pl.Series("time", panel.time)]
    columns += [pl.Series(name, np.ascontiguousarray(panel.bars[:, k])) for k, name in enumerate(BAR)]
    columns += [pl.Series(name, values) for name, values in panel.fields.items()]
    return pl.DataFrame(columns)


def _difference(before: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that are new or changed, and those that went."""
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
