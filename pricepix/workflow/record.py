"""What a run has finished: a file in its folder that names each step's digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from pricepix.store.sealed_files import read_sealed_json, write_sealed_json

__all__ = ["RECORD", "Record", "digest_of"]

RECORD: Final = "pipeline.json"


class Record:
    """Which steps of a run began and finished, and with which digest: the file ``pipeline.json`` of its folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD
        self._steps: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self._steps = read_sealed_json(self._path, "restore it, or give another `out`")["steps"]

    def done(self, step: str, digest: str, product: Path) -> bool:
        """Whether a step finished with this digest and its product is there."""
        entry = self._steps.get(step)
        return entry is not None and entry["digest"] == digest and entry["finished"] and product.exists()

    def check(self, step: str, digest: str, product: Path) -> bool:
        """Return whether a step began before; refuse what it left if its digest was different."""
        entry = self._steps.get(step)
        begun = product.exists()
        if begun and (entry is None or entry["digest"] != digest):
            raise ValueError(
                f"{product} was made with other settings or from other data: give another `out`, or move it away"
            )
        return begun

    def started(self, step: str, digest: str, product: Path | None) -> bool:
        """Note that a step begins; return whether it began before with the same digest."""
        begun = product is not None and self.check(step, digest, product)
        self._write(step, digest, finished=False)
        return begun

    def finish(self, step: str, digest: str) -> None:
        """Note that a step is finished."""
        self._write(step, digest, finished=True)

    def _write(self, step: str, digest: str, *, finished: bool) -> None:
        self._steps[step] = {"digest": digest, "finished": finished}
        write_sealed_json(self._path, {"version": 1, "steps": self._steps})


def digest_of(settings: Any, upstream: str) -> str:
    """Return the digest of a step's settings and of what it is made from."""
    text = json.dumps([settings, upstream], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
