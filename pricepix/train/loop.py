"""The training loop's parts on top of lightning: the task, its callbacks, and one network's training."""

from __future__ import annotations

import csv
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

try:
    import lightning.pytorch as lightning
    from lightning.pytorch.accelerators import CUDAAccelerator
    from lightning.pytorch.callbacks import (
        Callback,
        Checkpoint,
        EarlyStopping,
        ModelCheckpoint,
        TQDMProgressBar,
    )
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise ImportError('training needs lightning and tensorboard: pip install "pricepix[train]"') from error

from pricepix.train.checkpoints import describe
from pricepix.train.hyper import Hyper
from pricepix.train.loader import Loader, Reader
from pricepix.train.models import PriceCNN, SeriesCNN

__all__ = ["Device", "Interrupted", "train_member"]

ReaderOf = Callable[[str, int, int, str], Reader]
BEST, LAST, METRICS = "best.ckpt", "last.ckpt", "metrics.csv"
_COLUMNS = (
    "step",
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "lr",
    "images_per_second",
)


@dataclass(frozen=True)
class Device:
    """Where and how training runs: what changes speed, not what is learnt (but for rounding)."""

    accelerator: str = "auto"
    devices: Any = "auto"
    precision: str = "32-true"
    channels_last: bool = False
    compile: bool = False

    def ranks(self) -> int:
        """How many devices take part.

        Raises
        ------
        ValueError
            If lightning has no such accelerator, devices or precision.
        """
        try:
            with _quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return lightning.Trainer(
                    accelerator=self.accelerator,
                    devices=self.devices,
                    precision=self.precision,  # type: ignore[arg-type]
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                ).world_size
        except Exception as error:  # of many kinds, one of them lightning's own
            raise ValueError(
                f"lightning does not train with accelerator={self.accelerator!r}, devices={self.devices!r} and "
                f"precision={self.precision!r}: {error}"
            ) from error

    def own(self) -> torch.device:
        """The device of this process: the run's only one, or the one with the number of its rank."""
        if self.accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
            return torch.device("cpu")
        every = CUDAAccelerator.auto_device_count() if self.devices == "auto" else self.devices
        numbers = CUDAAccelerator.parse_devices(every)
        if not numbers:
            return torch.device("cpu")
        return torch.device("cuda", numbers[int(os.environ.get("LOCAL_RANK", "0")) % len(numbers)])


class Interrupted(Exception):  # noqa: N818
    """Training was asked to stop; a resumable checkpoint lies in the run."""


class Task(lightning.LightningModule):
    """Loss, metrics, optimiser and the determinism of one network's training."""

    _class_weights: Tensor | None
    _bad_step: Tensor
    _sums: Tensor
    _validation: Tensor

    def __init__(
        self,
        network: PriceCNN | SeriesCNN,
        hyper: Hyper,
        steps_per_epoch: int,
        seed: int,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._hyper, self._steps_per_epoch, self._seed = hyper, steps_per_epoch, seed
        self._regression = network.spec.outputs == 1
        self.register_buffer("_class_weights", class_weights, persistent=False)
        # First step whose loss was not finite, and sums since the last log; on the device, never waited for.
        self.register_buffer("_bad_step", torch.tensor(-1), persistent=False)
        self.register_buffer("_sums", torch.zeros(3, dtype=torch.float64), persistent=False)
        self.register_buffer("_validation", torch.zeros(4, dtype=torch.float64), persistent=False)
        self.scores: list[Tensor] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by the position, so that it needs no saved state to go on the same."""
        epoch, k = batch[2]
        if (epoch, k) != (self.current_epoch, batch_idx):
            raise RuntimeError(
                f"the loader gave batch {k} of epoch {epoch}, the trainer is at batch {batch_idx} "
                f"of epoch {self.current_epoch}"
            )
        key = np.random.SeedSequence([self._seed, epoch, k, self.global_rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def _losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the losses, sum of their weights, and number of right answers."""
        logits = logits.float()
        if self._regression:
            right = (logits[:, 0] > 0) == (target > 0)
            loss = functional.mse_loss(logits[:, 0], target / self.network.scale, reduction="sum")
            return loss, torch.tensor(float(len(target)), device=loss.device), right.sum()
        weights = self._class_weights
        loss = functional.cross_entropy(logits, target, weight=weights, reduction="sum")
        total = (
            weights[target].sum()
            if weights is not None
            else torch.tensor(float(len(target)), device=loss.device)
        )
        return loss, total, (logits.argmax(1) == target).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch."""
        inputs, target, _ = batch
        loss_sum, weight, right = self._losses(self.network(inputs), target)
        loss = loss_sum / weight
        bad = ~torch.isfinite(loss.detach())
        self._bad_step = torch.where(bad & (self._bad_step < 0), self.global_step, self._bad_step)
        with torch.no_grad():
            self._sums += torch.stack(
                [loss.double() * len(target), right.double(), torch.full_like(loss, len(target)).double()]
            )
        # Looking at the loss waits for a GPU; there it is looked at now and then, and before any checkpoint.
        if self.device.type == "cpu" or batch_idx % 20 == 0:
            self.check_finite()
        return loss

    def check_finite(self) -> None:
        """Stop at the first loss that was NaN or infinite."""
        step = int(self._bad_step)
        if step >= 0:
            epoch, batch = divmod(step, self._steps_per_epoch)
            raise ValueError(
                f"the loss became NaN or infinite at batch {batch} of epoch {epoch} (step {step}); the "
                f"checkpoints {LAST} and {BEST}, if written, are from before. Lower lr, or use "
                "precision='32-true'"
            )

    def take_sums(self) -> NDArray[np.float64]:
        """Sum of training losses, number of right answers and of images since last asked."""
        sums = self._sums.cpu().numpy().copy()
        self._sums.zero_()
        return sums

    def on_validation_epoch_start(self) -> None:
        """Start the sums."""
        self._validation.zero_()
        self.scores = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the sums."""
        inputs, target, _ = batch
        logits = self.network(inputs)
        loss, weight, right = self._losses(logits, target)
        count = torch.tensor(float(len(target)), device=loss.device)
        self._validation += torch.stack([loss.double(), weight.double(), right.double(), count.double()])
        self.scores.append(self.network._score(logits).cpu())

    def on_validation_epoch_end(self) -> None:
        """Log the means over all ranks."""
        sums = self.trainer.strategy.reduce(self._validation, reduce_op="sum")
        assert isinstance(sums, Tensor)
        loss, weight, right, count = (float(x) for x in sums)
        self.log("val_loss", loss / weight, rank_zero_only=False)
        self.log("val_accuracy", right / count, rank_zero_only=False)

    def configure_optimizers(self) -> Any:
        """Adam or AdamW, with the rate set each step by its definition."""
        kind = torch.optim.Adam if self._hyper.optimizer == "adam" else torch.optim.AdamW
        optimizer = kind(self.network.parameters(), lr=self._hyper.lr, weight_decay=self._hyper.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self._hyper.lr_at(step, self._steps_per_epoch) / self._hyper.lr
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the network, so that every checkpoint serves for scoring."""
        checkpoint["pricepix"] = describe(self.network)
        checkpoint["sums"] = self._sums.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the sums of the log."""
        self._sums.copy_(torch.tensor(checkpoint["sums"], dtype=torch.float64))


class _Resumable(Checkpoint):
    """Saves ``last.ckpt``: after each validation, every few minutes, and when training is asked to stop.

    Always at the end of a step and never where a validation is due, which lightning would leave out when it
    goes on from there; the checkpoint after that validation comes right then.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self._path, self._seconds = folder / LAST, minutes * 60
        self._saved = time.monotonic()
        self.asked = False

    def _save(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        assert isinstance(task, Task)
        task.check_finite()
        # The old one stays whole until the new one is: a kill while saving loses nothing.
        fresh = self._path.with_suffix(".tmp")
        trainer.save_checkpoint(fresh)
        if trainer.is_global_zero:
            os.replace(fresh, self._path)
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, task: lightning.LightningModule, *_: Any
    ) -> None:
        """Save when it is time."""
        step_in_epoch = trainer.fit_loop.epoch_loop.batch_idx + 1
        several = trainer.world_size > 1
        if several and step_in_epoch % 10:
            return
        stop = self.asked or trainer.received_sigterm
        due = stop or time.monotonic() - self._saved > self._seconds
        if several:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        validates = trainer.val_check_batch and step_in_epoch % trainer.val_check_batch == 0
        if due and not validates and step_in_epoch < trainer.num_training_batches:
            self._save(trainer, task)
            if stop:
                raise Interrupted

    def on_validation_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        """Save after each validation."""
        self._save(trainer, task)
        if trainer.strategy.reduce_boolean_decision(self.asked or trainer.received_sigterm, all=False):
            raise Interrupted


class _Journal(Callback):
    """CSV log and TensorBoard: losses, accuracy, rate, sample images, histogram of scores."""

    def __init__(self, folder: Path, log_every: int) -> None:
        self._folder, self._every = folder, log_every
        self._writer: SummaryWriter | None = None
        self._images, self._since = 0, time.monotonic()
        self._train = np.zeros(3)
        self._rate = math.nan

    def state_dict(self) -> dict[str, Any]:
        """Sums since the last validation."""
        return {"train": self._train.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self._train = np.array(state["train"])

    def on_train_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        """Open both; what a killed run logged after its last checkpoint is dropped, for it comes again."""
        if not trainer.is_global_zero:
            return
        path = self._folder / METRICS
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= trainer.global_step]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self._writer = SummaryWriter(str(self._folder / "tensorboard"), purge_step=trainer.global_step + 1)
        self._since = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        task: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count images; write now and then."""
        self._images += len(batch[1]) * trainer.world_size
        step = trainer.global_step
        if self._writer is None or step % self._every:
            return
        assert isinstance(task, Task)
        sums = task.take_sums()
        self._train += sums
        self._measure()
        self._writer.add_scalar("train/loss", sums[0] / sums[2], step)
        self._writer.add_scalar("train/accuracy", sums[1] / sums[2], step)
        self._writer.add_scalar("train/lr", trainer.optimizers[0].param_groups[0]["lr"], step)
        self._writer.add_scalar("train/images_per_second", self._rate, step)

    def _measure(self) -> None:
        now = time.monotonic()
        if self._images:
            self._rate, self._images = self._images / (now - self._since), 0
        self._since = now

    def on_validation_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        """Measure up to here: time spent validating is not training time."""
        self._measure()

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        task: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show sample images once."""
        if (
            self._writer is not None
            and batch_idx == 0
            and batch[0].dtype == torch.uint8
            and trainer.current_epoch == 0
        ):
            self._writer.add_images("validation/images", batch[0][:16].unsqueeze(1), trainer.global_step)

    def on_validation_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        """Write a row."""
        if self._writer is None:
            return
        assert isinstance(task, Task)
        # The means over all steps since the last validation.
        loss, right, count = self._train + task.take_sums()
        self._train = np.zeros(3)
        metrics = {name: float(trainer.callback_metrics[name]) for name in ("val_loss", "val_accuracy")}
        row = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "train_loss": loss / count if count else math.nan,
            "train_accuracy": right / count if count else math.nan,
            **metrics,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_second": self._rate,
        }
        with (self._folder / METRICS).open("a", newline="") as file:
            csv.DictWriter(file, _COLUMNS).writerow(row)
        self._writer.add_scalar("validation/loss", metrics["val_loss"], trainer.global_step)
        self._writer.add_scalar("validation/accuracy", metrics["val_accuracy"], trainer.global_step)
        self._writer.add_histogram("validation/p_up", torch.cat(task.scores), trainer.global_step)
        self._writer.flush()
        self._since = time.monotonic()

    def teardown(self, trainer: lightning.Trainer, task: lightning.LightningModule, stage: str) -> None:
        """Close."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _Bar(TQDMProgressBar):
    """Progress bar with the loss and images a second."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10, leave=True)
        self._seen, self._since, self._loss = 0, time.monotonic(), math.nan

    def on_train_epoch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Start counting."""
        self._seen, self._since = 0, time.monotonic()
        super().on_train_epoch_start(trainer, *args)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images."""
        self._seen += len(batch[1]) * trainer.world_size
        if math.isnan(self._loss) or (batch_idx + 1) % self.refresh_rate == 0:
            self._loss = float(outputs["loss"])
        super().on_train_batch_end(trainer, task, outputs, batch, batch_idx)

    def get_metrics(self, trainer: lightning.Trainer, task: Any) -> dict[str, Any]:
        """Return what stands behind the bar."""
        shown: dict[str, Any] = {
            "loss": f"{self._loss:.4f}",
            "images/s": f"{self._seen / (time.monotonic() - self._since):,.0f}",
        }
        for name in ("val_loss", "val_accuracy"):
            if name in trainer.callback_metrics:
                shown[name] = f"{float(trainer.callback_metrics[name]):.4f}"
        return shown


@contextmanager
def _stop_on_interrupt(resumable: _Resumable) -> Iterator[None]:
    """Let the first Ctrl-C end the step in hand and save; the second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if resumable.asked:
            raise KeyboardInterrupt
        resumable.asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_numba_threads() -> None:
    """Start the threads of compiled kernels, and leave torch the number of its own.

    Numba shares OpenMP with torch, and sets its number of threads when it starts its own, once a process: at
    the first kernel, which may come in the midst of a run.
    """
    before = torch.get_num_threads()
    numba.get_num_threads()
    torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lightning's hints about hardware and loaders, which do not apply here, off the screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in (
            "Checkpoint directory .* exists and is not empty",
            "The number of training batches .* is smaller than the logging interval",
            "Starting from v1.9.0, `tensorboardX` has been removed",
            ".*does not have many workers",
            "GPU available but not used",
            ".*The dirpath has changed from",
            # What is logged has been summed over the ranks.
            "It is recommended to use .*sync_dist=True",
            "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _Evenly(int):
    """How often an epoch validates, as lightning asks: a step is a multiple of it where validation is due.

    A plain number of steps would leave a rest of the epoch that is never validated, nor saved.
    """

    _due: frozenset[int]

    def __new__(cls, steps: int, times: int) -> _Evenly:
        made = super().__new__(cls, max(1, steps // times))
        made._due = frozenset(k * steps // times for k in range(1, times + 1))
        return made

    def __rmod__(self, step: int) -> int:
        return 0 if step in self._due else 1


class _Data(lightning.LightningDataModule):
    """Makes the loaders once the ranks are known."""

    def __init__(self, reader_of: ReaderOf, targets: Tensor, mirrored: Tensor | None) -> None:
        super().__init__()
        self._reader_of, self._targets, self._mirrored = reader_of, targets, mirrored

    def _loader(self, part: str) -> Loader:
        assert self.trainer is not None
        trainer = self.trainer
        device = trainer.strategy.root_device
        reader = self._reader_of(part, trainer.global_rank, trainer.world_size, str(device))
        return Loader(
            reader, self._targets, lambda: trainer.current_epoch if part == "train" else 0, self._mirrored,
            pinned=device.type == "cuda",
        )  # fmt: skip

    def train_dataloader(self) -> Loader:
        """Training batches of this rank."""
        return self._loader("train")

    def val_dataloader(self) -> Loader:
        """Validation batches of this rank."""
        return self._loader("validation")


def train_member(
    network: PriceCNN | SeriesCNN,
    reader_of: ReaderOf,
    targets: Tensor,
    hyper: Hyper,
    device: Device,
    folder: Path,
    *,
    seed: int,
    class_weights: Tensor | None,
    checkpoint_minutes: float,
    log_every: int,
    progress: bool,
    mirrored: Tensor | None = None,
) -> dict[str, Any]:
    """Train one network in `folder`, going on from its ``last.ckpt`` if there is one.

    `reader_of` makes the reader of part ``train`` or ``validation`` for a rank of ranks on a device. `mirrored`
    has the targets of windows that an augmentation mirrors.

    Returns
    -------
    dict
        ``steps``, ``epochs``, ``seconds``; ``best_step``, ``val_loss`` and ``val_accuracy`` of the best
        checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _start_numba_threads()
    steps_per_epoch = len(reader_of("train", 0, 1, "cpu"))
    if device.channels_last and isinstance(network, PriceCNN):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.compile:
        network.compile()
    monitor, mode = ("val_loss", "min") if hyper.monitor == "loss" else ("val_accuracy", "max")
    best = ModelCheckpoint(
        folder, BEST.removesuffix(".ckpt"), monitor=monitor, mode=mode, save_top_k=1, save_weights_only=True,
        enable_version_counter=False, save_on_train_epoch_end=False,
    )  # fmt: skip
    resumable = _Resumable(folder, checkpoint_minutes)
    callbacks: list[Callback] = [_Journal(folder, log_every)]
    if hyper.patience is not None:
        callbacks.append(
            EarlyStopping(
                monitor,
                min_delta=hyper.min_delta,
                patience=hyper.patience,
                mode=mode,
                check_on_train_epoch_end=False,
            )
        )
    if progress:
        callbacks.append(_Bar())
    callbacks += [best, resumable]
    started = time.monotonic()
    with _quiet(), _stop_on_interrupt(resumable), torch.random.fork_rng():
        trainer = lightning.Trainer(
            accelerator=device.accelerator,
            devices=device.devices,
            precision=device.precision,  # type: ignore[arg-type]
            max_epochs=hyper.epochs,
            num_sanity_val_steps=0,
            logger=False,
            callbacks=callbacks,
            enable_progress_bar=progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        # Its argument would be made a plain int.
        trainer.val_check_interval = _Evenly(steps_per_epoch, hyper.validations)
        task = Task(network, hyper, steps_per_epoch, seed, class_weights)
        last = folder / LAST
        trainer.fit(
            task,
            datamodule=_Data(reader_of, targets, mirrored),
            ckpt_path=last if last.exists() else None,
            weights_only=True,
        )
    score = best.best_model_score
    if score is None:
        raise ValueError(
            f"training in {folder} ended before its first validation, so that there is no best checkpoint"
        )
    state = torch.load(folder / BEST, map_location="cpu", weights_only=True)
    result = {
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "best_step": int(state["global_step"]),
        "seconds": round(time.monotonic() - started, 3),
    }
    with (folder / METRICS).open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["step"]) == result["best_step"]:
                result |= {name: float(row[name]) for name in ("val_loss", "val_accuracy")}
    return result
