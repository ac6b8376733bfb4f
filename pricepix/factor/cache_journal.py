"""The journal of a factor cache: what each scoring replaced, and when, so that the factor can be read as it was known.

Every scoring that changes a cache is a commit. It has a time, ``known``, from which on its values were known, and how
far the cache's days then reached. Values on later days need no entry: undoing the commit drops the days. For every
other cell that the commit changed the journal keeps what stood there before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix.store.chunks import seal

__all__ = ["CHANGES", "COMMITS", "Commit", "Journal"]

_COMMIT_CHUNK: Final = 1024
_CHANGE_CHUNK: Final = 1 << 14

COMMITS: Final[Mapping[str, Any]] = {
    "known": np.int64,
    "last_day": np.int64,
    "windows": np.int64,
    "added": np.int64,
    "revised": np.int64,
    "removed": np.int64,
    "without_value": np.int64,
}
"""Arrays with a value a commit.

``known``: nanoseconds, when its values were known; ``last_day``: the cache's last day after it, since 1970;
``windows``: those of the store up to the last one scored; ``added``, ``revised``, ``removed``: values that it changed;
``without_value``: windows, of all that were scored, that the model gave no value.
"""
CHANGES: Final[Mapping[str, Any]] = {
    "commit": np.int32,
    "time": np.int64,
    "instrument": np.int32,
    "factor": np.float32,
    "spread": np.float32,
}
"""Arrays with a value a cell that a commit replaced.

``commit``: its number; ``time``: of the cell's bar, nanoseconds; ``instrument``: its place along the cache's axis;
``factor`` and ``spread``: what stood there before, NaN for nothing.
"""


class Commit(NamedTuple):
    """One scoring, as `COMMITS` describes it."""

    known: int
    last_day: int
    windows: int
    added: int
    revised: int
    removed: int
    without_value: int


@dataclass
class Journal:
    """The commits of a cache, and what they replaced.

    Of a cache that is being changed, chunks of changes that are full are not read: they stay as they are.
    """

    commits: dict[str, NDArray[Any]] = field(
        default_factory=lambda: {name: np.empty(0, kind) for name, kind in COMMITS.items()}
    )
    changes: dict[str, NDArray[Any]] = field(
        default_factory=lambda: {name: np.empty(0, kind) for name, kind in CHANGES.items()}
    )
    stored: int = 0
    """Changes before these, in chunks that stay as they are."""

    @classmethod
    def read(cls, group: Any, *, whole: bool = True) -> Journal:
        """Read the journal of a cache's group; if not the whole, the commits and the last chunk of the changes."""
        count = int(group["journal/commit"].shape[0])
        stored = 0 if whole else count // _CHANGE_CHUNK * _CHANGE_CHUNK
        return cls(
            {name: np.asarray(group[f"journal/{name}"][:]) for name in COMMITS},
            {name: np.asarray(group[f"journal/{name}"][stored:]) for name in CHANGES},
            stored,
        )

    def __len__(self) -> int:
        return len(self.commits["known"])

    def add(self, commit: Commit, changes: Mapping[str, NDArray[Any]]) -> None:
        """Add a commit and the cells that it replaced; `changes` has all of `CHANGES` but ``commit``."""
        for name, kind in COMMITS.items():
            value = np.array([getattr(commit, name)], kind)
            self.commits[name] = np.concatenate([self.commits[name], value])
        count = len(changes["time"])
        own = {"commit": np.full(count, len(self) - 1), **changes}
        self.changes = {
            name: np.concatenate([self.changes[name], np.asarray(own[name], kind)])
            for name, kind in CHANGES.items()
        }

    def commit_at(self, known: int) -> int:
        """Return the number of the last commit whose values were known at a time; -1 if there is none."""
        return int(np.searchsorted(self.commits["known"], known, side="right")) - 1

    def earliest(self, commit: int) -> int | None:
        """Return the time of the oldest cell that a commit, or a later one, replaced; None if there is none."""
        time = self.changes["time"][self.changes["commit"] >= commit]
        return int(time.min()) if len(time) else None

    def undone(self, after: int) -> dict[str, NDArray[Any]]:
        """Return what commits above `after` replaced, by name as in `CHANGES`.

        The latest comes first, so that who writes them in this order ends with what stood there after `after`.
        """
        later = self.changes["commit"] > after
        return {name: values[later][::-1] for name, values in self.changes.items()}

    def shapes(self) -> Iterator[tuple[str, int, int]]:
        """Yield name, length and chunk length of every array."""
        for name in COMMITS:
            yield f"journal/{name}", len(self), _COMMIT_CHUNK
        for name in CHANGES:
            yield f"journal/{name}", self.stored + len(self.changes["time"]), _CHANGE_CHUNK

    def dtypes(self) -> dict[str, tuple[Any, Any, str]]:
        """Return element type, fill value and axis of every array, by name."""
        found: dict[str, tuple[Any, Any, str]] = {
            f"journal/{name}": (kind, 0, "commit") for name, kind in COMMITS.items()
        }
        for name, kind in CHANGES.items():
            fill = np.nan if kind is np.float32 else 0
            found[f"journal/{name}"] = (kind, fill, "change")
        return found

    def encode(self) -> dict[str, list[bytes | None]]:
        """Return the stored chunks of every array; None for those that stay as they are."""
        found = {f"journal/{name}": _chunks(self.commits[name], _COMMIT_CHUNK, 0) for name in COMMITS}
        before: list[bytes | None] = [None] * (self.stored // _CHANGE_CHUNK)
        for name, kind in CHANGES.items():
            fill = np.nan if kind is np.float32 else 0
            found[f"journal/{name}"] = before + _chunks(self.changes[name], _CHANGE_CHUNK, fill)
        return found


def _chunks(values: NDArray[Any], size: int, fill: float) -> list[bytes | None]:
    found: list[bytes | None] = []
    for first in range(0, len(values), size):
        whole = np.full(size, fill, values.dtype)
        part = values[first : first + size]
        whole[: len(part)] = part
        found.append(seal(whole))
    return found
