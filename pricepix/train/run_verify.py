"""Verifying the folder of a run, or one checkpoint: every file is read and compared with its own checksum."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pricepix.bars.progress import progress_bar
from pricepix.location import StrPath, opened
from pricepix.store.sealed_files import check_archive, extend_checksum, read_sealed_json
from pricepix.store.verify import VerifyReport
from pricepix.train.checkpoints import load_model, read_checkpoint
from pricepix.train.journal import METRICS, read_rows
from pricepix.train.loop import BEST, LAST
from pricepix.train.run_folder import CONFIG, DONE, SUMMARY, is_run, read_config

__all__ = ["verify_run"]

_TENSORBOARD: Final = "tensorboard"
_BLOCK_BYTES: Final = 4 << 20


def verify_run(path: StrPath, *, progress: bool = False) -> VerifyReport:
    """Read every file of a run, or one checkpoint, and compare it with its checksum.

    Parameters
    ----------
    path : str or Path
        A checkpoint, or the folder of a run, finished or not.
    progress : bool
        Show a progress bar.

    Returns
    -------
    VerifyReport
        Its ``problems`` name every file that is damaged, edited, or missing from a run that had it; its ``notes`` say
        whether the run is finished, and which files have no checksum.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is nothing at `path`, or a folder that holds no run.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is neither a run nor a checkpoint at {path}")
    if path.is_dir() and not is_run(path):
        raise ValueError(f"{path} holds no run: neither {CONFIG} nor the folder of a network (member_0)")
    report = VerifyReport(str(path), "files", 0)
    files = sum(len(names) for _, _, names in os.walk(path)) if path.is_dir() else 1
    with progress_bar(files, "verify", "file", progress) as bar:
        check = _Check(path, report, bar.update)
        if path.is_dir():
            check.run()
        else:
            check.checkpoint(path)
    return report


class _Check:
    """One run of ``verify_run``: reads the files and adds what it finds to the report."""

    def __init__(self, folder: Path, report: VerifyReport, update: Callable[[], Any]) -> None:
        self.folder, self.report, self._update = folder, report, update

    def read(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """Return what `read` makes of a file; None, and a problem, if it is missing or damaged."""
        found = None
        try:
            if path.exists():
                found = read(path)
            else:
                self.report.problems.append(f"{path} is missing: restore it")
                return None
        except (ValueError, OSError) as error:
            self.report.problems.append(str(error))
        self.report.files += 1
        self._update()
        return found

    def checkpoint(self, path: Path) -> Any:
        """Read a checkpoint and make its network; return the network."""
        model = self.read(path, load_model)
        if model is not None and not check_archive(path):
            self.report.notes.append(
                f"{path} has no checksum: its tensors fit, but their values cannot be checked"
            )
        return model

    def run(self) -> None:
        """Read all files of the run."""
        config = self.read(self.folder / CONFIG, lambda path: read_config(path.parent)) or {}
        finished = (self.folder / SUMMARY).exists()
        if finished:
            self.read(self.folder / SUMMARY, read_sealed_json)
        count = config.get("ensemble")
        states = [
            self.member(own, i, finished)
            for place in self._places(config)
            for i, own in enumerate(_members(place, count, finished))
        ]
        if not finished:
            done = states.count(True)
            self.report.notes.append(f"the run is not finished: {done} networks are; resume=True finishes it")

    def _places(self, config: Mapping[str, Any]) -> list[Path]:
        """Return the folders that must have members: that of the run, or of each fold."""
        folds = config.get("folds")
        names = (
            [str(fold.get("name")) for fold in folds if isinstance(fold, dict)]
            if isinstance(folds, list)
            else []
        )
        if len(names) == 1:
            return [self.folder]
        expected = {self.folder / f"fold_{name}" for name in names if Path(name).name == name}
        found = set(self.folder.glob("fold_*"))
        if not expected and not found:
            return [self.folder]
        return sorted(expected | found)

    def member(self, own: Path, number: int, finished: bool) -> bool:
        """Read the files of one network; return whether its training is finished."""
        done = self.read(own / DONE, read_sealed_json) if finished or (own / DONE).exists() else None
        ended = (own / DONE).exists()
        last: Any = {}
        if (own / LAST).exists():
            last = self.read(own / LAST, read_checkpoint) or {}
        elif ended:
            self.report.notes.append(f"{own / LAST} is missing: a network that is finished does not need it")
        training = last.get("training")
        training = training if isinstance(training, Mapping) else {}
        if (
            ended
            or finished
            or (own / BEST).exists()
            or _part(training, "validations", "best_step") is not None
        ):
            model = self.checkpoint(own / BEST)
            of = None if model is None else model.metadata.get("member", number)
            if of not in (None, number):
                self.report.problems.append(f"{own / BEST} is that of member {of}: restore it")
        self._metrics(own / METRICS, done, _part(training, "journal", "last_row"))
        self._events(own / _TENSORBOARD, ended)
        return ended

    def _metrics(self, path: Path, done: Any, last_row: Any) -> None:
        expected = done.get("steps") if isinstance(done, dict) else last_row
        if expected is None and not path.exists():
            return
        found = self.read(path, read_rows)
        if found is None:
            return
        rows, problem = found
        if problem is None and expected is not None and not any(row["step"] == str(expected) for row in rows):
            problem = f"it has no row of step {expected}, which was there"
        if problem is not None:
            self.report.problems.append(f"{path}: {problem}; restore it")

    def _events(self, folder: Path, ended: bool) -> None:
        files = sorted(folder.glob("*")) if folder.is_dir() else []
        if not files and ended:
            self.report.notes.append(f"{folder} holds no events: nothing but TensorBoard needs them")
        for path in files:
            cut = self.read(path, _read_events)
            if cut:
                text = f"{path} is cut off within its last record"
                # The process that wrote it was killed; a later one wrote a file of its own.
                whole = ended and path == files[-1]
                (self.report.problems if whole else self.report.notes).append(
                    f"{text}: restore it" if whole else f"{text}, as a kill leaves it"
                )


def _members(place: Path, count: Any, finished: bool) -> Iterator[Path]:
    """Yield the folders of the networks that are, or must be, in a folder; no more than one that is missing."""
    if not isinstance(count, int):
        count = sum(1 for _ in place.glob("member_*"))
    for i in range(count):
        own = place / f"member_{i}"
        if own.is_dir() or finished:
            yield own
        if not own.is_dir():
            return


def _part(training: Mapping[Any, Any], *keys: str) -> Any:
    found: Any = training
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _read_events(path: Path) -> bool:
    """Compare the records of TensorBoard's events with their checksums; return whether the last one is cut off.

    A record is its length in 8 bytes, their checksum, the content, and its checksum (TensorFlow's TFRecord).
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        while (start := file.tell()) < size:
            head = file.read(12)
            if len(head) < 12:
                return True
            rest = int.from_bytes(head[:8], "little")
            if _masked(extend_checksum(0, head[:8])) != head[8:]:
                raise ValueError(
                    f"{path} is damaged: the checksum of the record at byte {start} differs; restore it"
                )
            if start + 12 + rest + 4 > size:
                return True
            crc = 0
            while rest:
                block = file.read(min(rest, _BLOCK_BYTES))
                if not block:
                    return True
                crc, rest = extend_checksum(crc, block), rest - len(block)
            if _masked(crc) != file.read(4):
                raise ValueError(
                    f"{path} is damaged: the checksum of the record at byte {start} differs; restore it"
                )
    return False


def _masked(crc: int) -> bytes:
    """Return a crc32c as TFRecord stores it: rotated, and with a constant added."""
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")
