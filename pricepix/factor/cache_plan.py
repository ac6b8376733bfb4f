"""What a scoring that is under way is of, and how far it came: the objects from which a stopped one resumes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from pricepix.factor.cache import FactorCache
from pricepix.factor.cache_changes import source_chunks, source_form
from pricepix.factor.cache_objects import DONE, PLAN
from pricepix.factor.placement import Placement, StoreWindows
from pricepix.location import Location
from pricepix.store.format import dump

__all__ = ["Plan", "Progress"]


@dataclass(frozen=True)
class Progress:
    """What a scoring has written so far."""

    windows: int
    """Windows up to the last one that goes to a day that is written."""
    day: int
    """Days of the cache before the first that may be written still."""
    scored_digest: str
    """Of these windows."""
    counts: dict[str, int]
    """Values that were added, revised, removed, kept though their image changed, and windows without a value."""


@dataclass(frozen=True)
class Plan:
    """What a scoring is of: what it needs to be resumed, and what it is compared with then."""

    base: str | None
    """Digest of the cache that it changes, None for a new one."""
    attributes: dict[str, Any]
    days: list[int]
    instruments: list[str]
    intervals: list[str]
    block: int
    spread: bool
    on_revision: str
    first: int
    """First window to score."""
    source: dict[str, Any]
    """The store's: ``digest``, ``form``, and ``chunks``, the checksums of its image chunks."""

    def write(self, location: Location) -> None:
        """Write the plan, before anything is scored."""
        location.put(PLAN, dump(vars(self)))

    @staticmethod
    def source_of(windows: StoreWindows) -> dict[str, Any]:
        """Return what a plan keeps of a store."""
        chunks = source_chunks(windows.store).tolist()
        return {"digest": windows.store.digest, "form": source_form(windows.store), "chunks": chunks}

    @classmethod
    def read(cls, location: Location, base: FactorCache | None) -> Plan | None:
        """Read the plan of a stopped scoring; None if there is none for this state of the cache."""
        content = location.get(PLAN)
        if content is None:
            return None
        plan = json.loads(bytes(content))
        if plan["base"] != (None if base is None else base.attrs["metadata_digest"]):
            return None
        return cls(**plan)

    def progress(
        self, location: Location, placement: Placement, windows: StoreWindows
    ) -> tuple[Progress | None, dict[str, int]]:
        """Return how far the scoring came and the checksums that it wrote, of what still holds for these images.

        The images may have gained windows since, or been revised: what was scored of chunks that did not change
        holds.
        """
        reached: Progress | None = None
        checksums: dict[str, int] = {}
        if not np.array_equal(placement.day[: len(self.days)], self.days):
            return None, {}
        limit = self._unchanged(windows)
        after = [self.first, 0]
        for key in sorted(location.list(DONE)):
            done = json.loads(bytes(location.get(key) or b"{}"))
            if done.get("after") != after or done["progress"]["windows"] > limit:
                break
            reached = Progress(**done["progress"])
            after = [reached.windows, reached.day]
            checksums |= done["checksums"]
        if reached is None or windows.digest(reached.windows) != reached.scored_digest:
            return None, {}
        return reached, checksums

    def _unchanged(self, windows: StoreWindows) -> int:
        """Return how many windows at the front lie in chunks that did not change since."""
        now = self.source_of(windows)
        if now["digest"] == self.source["digest"]:
            return windows.count
        before, after = (np.array(source["chunks"], np.int64) for source in (self.source, now))
        if now["form"] != self.source["form"] or not len(before):
            return 0
        count = min(len(before), len(after))
        differ = np.flatnonzero(before[:count] != after[:count])
        return int(differ[0] if len(differ) else count) * windows.store.chunk

    @staticmethod
    def record(location: Location, after: Progress, progress: Progress, checksums: dict[str, int]) -> None:
        """Record that the days up to those of a progress are written, since those of the record before."""
        entry = {"after": [after.windows, after.day], "progress": vars(progress), "checksums": checksums}
        location.put(f"{DONE}/{progress.windows:015d}-{progress.day:09d}", dump(entry))
