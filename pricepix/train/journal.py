"""The log of one network's training: ``metrics.csv``, TensorBoard's events, and a progress bar."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pricepix._checks import whole_number_or_none
from pricepix.bars.progress import progress_bar
from pricepix.location import atomic_file, read_regular
from pricepix.store.sealed_files import checksum_text, extend_checksum

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise ImportError('training needs tensorboard: pip install "pricepix[train]"') from error

__all__ = ["METRICS", "Journal", "ProgressBar", "read_rows"]

METRICS = "metrics.csv"
_METRICS_BYTES = 16 << 20
_COLUMNS = (
    "step",
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "lr",
    "images_per_second",
    # crc32c of the file up to here, so that rows cannot change, be lost in the middle, or come from another file.
    "crc32c",
)
_HEADER = f"{','.join(_COLUMNS)}\r\n".encode()


class Journal:
    """A row of ``metrics.csv`` for every validation, and TensorBoard's curves, sample images and histograms.

    The rows and events that a killed run wrote after its last checkpoint are dropped when training resumes, since
    they come again. Lightning's ``CSVLogger`` deletes the whole file instead, and its ``TensorBoardLogger`` adds
    nothing to torch's ``SummaryWriter`` but a folder of its own naming.

    Parameters
    ----------
    folder : Path
        Where the files are written.
    every : int
        Steps between entries of TensorBoard's training curves.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self._path, self._folder, self._every = folder / METRICS, folder / "tensorboard", every
        self._rows: list[dict[str, Any]] = []
        self._writer: SummaryWriter | None = None
        self._images, self._since, self._rate = 0, time.monotonic(), math.nan
        # Sums of loss, right answers and images since the last validation.
        self._sums = np.zeros(3)
        # Step of the last row when the checkpoint was written that training resumes from.
        self._expected: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training continues from."""
        return {"sums": self._sums.tolist(), "last_row": self._last_step()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._sums = np.array(state["sums"])
        self._expected = whole_number_or_none(state["last_row"], "last_row", 0)

    def _last_step(self) -> int | None:
        return int(self._rows[-1]["step"]) if self._rows else None

    def open(self, step: int) -> None:
        """Open both logs at a step, without what they hold of later ones.

        Raises
        ------
        ValueError
            If rows up to that step are damaged or missing.
        """
        self._rows = self._rows_until(step)
        self._write_rows()
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)
        self._since = time.monotonic()

    def _rows_until(self, step: int) -> list[dict[str, Any]]:
        """Read the rows that the checkpoint at a step knows. Later ones, whole or cut off, come again."""
        rows, problem = read_rows(self._path) if self._path.exists() else ([], None)
        rows = [row for row in rows if int(row["step"]) <= step]
        last, expected = int(rows[-1]["step"]) if rows else None, self._expected
        if expected is not None and last != expected:
            if self._path.exists():
                raise ValueError(
                    f"{self._path} lacks the row of step {expected}, which the last checkpoint knows: "
                    f"{problem or 'it is of another time'}. Restore it, or remove it to resume without its rows"
                )
            warnings.warn(
                f"{self._path} is missing: training resumes, but the rows up to step {expected} are lost",
                UserWarning,
                stacklevel=2,
            )
        return rows

    def _write_rows(self) -> None:
        """Write the file anew: a kill leaves the one that was there, never half a row."""
        with atomic_file(self._path) as partial:
            partial.write_bytes(_encode(self._rows))

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def count(self, images: int) -> None:
        """Count the images of a step."""
        self._images += images

    def is_due(self, step: int) -> bool:
        """Whether TensorBoard gets the training curves at this step."""
        return step % self._every == 0

    def write_training(self, step: int, sums: NDArray[np.float64], lr: float) -> None:
        """Write the training curves; `sums` are of loss, right answers and images since the last time."""
        assert self._writer is not None
        self._sums += sums
        self.measure_rate()
        self._writer.add_scalar("train/loss", sums[0] / sums[2], step)
        self._writer.add_scalar("train/accuracy", sums[1] / sums[2], step)
        self._writer.add_scalar("train/lr", lr, step)
        self._writer.add_scalar("train/images_per_second", self._rate, step)

    def measure_rate(self) -> None:
        """Measure images a second up to here: time spent on validation is not training time."""
        now = time.monotonic()
        if self._images:
            self._rate, self._images = self._images / (now - self._since), 0
        self._since = now

    def write_images(self, step: int, images: Tensor) -> None:
        """Show sample images, uint8 (n, height, width)."""
        assert self._writer is not None
        self._writer.add_images("validation/images", images.unsqueeze(1), step)

    def write_validation(
        self,
        step: int,
        epoch: int,
        sums: NDArray[np.float64],
        lr: float,
        metrics: dict[str, float],
        scores: Tensor,
    ) -> None:
        """Write a row and the validation curves; `sums` as in `write_training`."""
        assert self._writer is not None
        # The means over all steps since the last validation.
        loss, right, count = self._sums + sums
        self._sums = np.zeros(3)
        row = {
            "step": step,
            "epoch": epoch,
            "train_loss": loss / count if count else math.nan,
            "train_accuracy": right / count if count else math.nan,
            **metrics,
            "lr": lr,
            "images_per_second": self._rate,
        }
        self._rows.append(row)
        self._write_rows()
        self._writer.add_scalar("validation/loss", metrics["val_loss"], step)
        self._writer.add_scalar("validation/accuracy", metrics["val_accuracy"], step)
        self._writer.add_histogram("validation/p_up", scores, step)
        self._writer.flush()
        self._since = time.monotonic()


def _encode(rows: list[dict[str, Any]]) -> bytes:
    found, crc = bytearray(_HEADER), extend_checksum(0, _HEADER)
    for row in rows:
        values = "".join(f"{row[name]}," for name in _COLUMNS[:-1]).encode()
        crc = extend_checksum(crc, values)
        end = f"{checksum_text(crc)}\r\n".encode()
        crc = extend_checksum(crc, end)
        found += values + end
    return bytes(found)


def read_rows(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Return the rows of a ``metrics.csv`` up to the first that is damaged, and what is wrong with that one."""
    lines = read_regular(path, _METRICS_BYTES).splitlines(keepends=True)
    if not lines or lines[0] != _HEADER:
        return [], "its header is damaged, or of another pricepix"
    rows: list[dict[str, Any]] = []
    crc = extend_checksum(0, _HEADER)
    for line in lines[1:]:
        values, _, end = line.rpartition(b",")
        crc = extend_checksum(crc, values + b",")
        cells = [*values.decode("ascii", "replace").split(","), checksum_text(crc)]
        whole = len(cells) == len(_COLUMNS) and cells[0].isdecimal() and len(cells[0]) < 19
        if not whole or end != f"{cells[-1]}\r\n".encode():
            return rows, f"row {len(rows) + 1} is damaged, cut off or edited"
        crc = extend_checksum(crc, end)
        rows.append(dict(zip(_COLUMNS, cells, strict=True)))
    return rows, None


class ProgressBar:
    """A bar for each epoch, with the loss, images a second and the last validation behind it."""

    refresh_steps = 10
    """Steps between looks at the loss, each of which waits for a GPU."""

    def __init__(self, steps: int, *, shown: bool) -> None:
        self._steps, self._shown = steps, shown
        self._bar: Any = None
        self._images, self._since, self._loss = 0, 0.0, math.nan
        self._metrics: dict[str, float] = {}

    def start(self, epoch: int, done: int) -> None:
        """Start an epoch of which `done` steps are done."""
        self.close()
        self._bar = progress_bar(self._steps, f"epoch {epoch}", "batch", self._shown, done=done)
        self._images, self._since = 0, time.monotonic()

    def step(self, loss: Tensor, images: int) -> None:
        """Count a step."""
        if not self._shown:
            return
        self._images += images
        self._bar.update(1)
        if math.isnan(self._loss) or self._bar.n % self.refresh_steps == 0 or self._bar.n == self._steps:
            self._loss = float(loss)
            self._show()

    def show_metrics(self, metrics: dict[str, float]) -> None:
        """Show the metrics of a validation, until the next one."""
        self._metrics = metrics
        if self._shown:
            self._show()

    def _show(self) -> None:
        figures = {
            "loss": f"{self._loss:.4f}",
            "images/s": f"{self._images / (time.monotonic() - self._since):,.0f}",
        } | {name: f"{value:.4f}" for name, value in self._metrics.items()}
        self._bar.set_postfix(figures)

    def close(self) -> None:
        """End the bar and leave it on the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
