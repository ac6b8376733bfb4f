"""The training loop of one network: steps, validations, checkpoints, and resuming exactly.

The loop is ours, devices are lightning's: its Fabric starts the processes of several devices, averages their
gradients and converts precision.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from pricepix._checks import number, printable, short, whole_number
from pricepix.location import name_file
from pricepix.train.checkpoints import describe, read_checkpoint, write_checkpoint
from pricepix.train.device import Device, Fabric, quiet_fabric
from pricepix.train.engines.torch_engine import TorchEngine
from pricepix.train.hyper import Hyper
from pricepix.train.journal import Journal, ProgressBar
from pricepix.train.loader import Loader, Reader
from pricepix.train.models import Network
from pricepix.train.objective import Labels, Objective
from pricepix.train.tuning import Tuning
from pricepix.train.validations import Validations

__all__ = ["Interrupted", "LoopOptions", "Member", "Trainer", "train_member"]

BEST, LAST = "best.ckpt", "last.ckpt"
TRAINING_VERSION = 3
"""Of what ``last.ckpt`` holds to resume from. Version 1 was that of lightning's Trainer and had no number; 2 did not
know the rows of ``metrics.csv``."""

# Several devices agree on a checkpoint between validations now and then, since it takes a message between them.
_STEPS_BETWEEN_AGREEMENTS = 10
# Looking at the loss waits for a GPU.
_STEPS_BETWEEN_LOOKS_ON_GPU = 20

MakeReader = Callable[[str, int, int, str], Reader]
"""Makes the reader of part ``train`` or ``validation``, for a rank of so many ranks, on a device."""


@dataclass(frozen=True)
class Member:
    """One network to train: what it learns from and how, and the folder of its files.

    Attributes
    ----------
    network : Network
    make_reader : callable
        See `MakeReader`.
    targets : Tensor
        Targets of all windows.
    mirrored : Tensor or None
        Targets of windows that an augmentation mirrors.
    class_weights : Tensor or None
    hyper : Hyper
    seed : int
        Of dropout.
    folder : Path
        Training resumes from its ``last.ckpt`` if there is one.
    tuning : Tuning
        Learning rates by layer.
    loss : str
        As `Objective` takes it.
    weights, dates : Tensor or None
        Weights of all windows in the loss, and their dates.
    """

    network: Network
    make_reader: MakeReader
    targets: Tensor
    mirrored: Tensor | None
    class_weights: Tensor | None
    hyper: Hyper
    seed: int
    folder: Path
    tuning: Tuning = field(default_factory=Tuning)
    loss: str = "auto"
    weights: Tensor | None = None
    dates: Tensor | None = None


@dataclass(frozen=True)
class LoopOptions:
    """What the loop saves and shows: nothing that a network learns depends on it.

    Attributes
    ----------
    checkpoint_minutes : float
        Longest time between checkpoints to resume from.
    log_every : int
        Steps between entries of the TensorBoard log.
    progress : bool
        Whether to show bars.
    """

    checkpoint_minutes: float = 10.0
    log_every: int = 50
    progress: bool = True

    def __post_init__(self) -> None:
        number(self.checkpoint_minutes, "checkpoint_minutes")
        whole_number(self.log_every, "log_every", 1)


class Interrupted(Exception):  # noqa: N818
    """Training was asked to stop; a checkpoint to resume from lies in its folder."""


def train_member(member: Member, device: Device, options: LoopOptions) -> dict[str, Any]:
    """Train one network, resuming from the ``last.ckpt`` in its folder if there is one.

    Returns
    -------
    dict
        ``steps``, ``epochs``, ``seconds``; ``best_step``, ``val_loss`` and ``val_accuracy`` of the best
        checkpoint.

    Raises
    ------
    Interrupted
        On Ctrl-C or SIGTERM, after the step in hand and its checkpoint.
    ValueError
        If the loss becomes NaN or infinite, or ``last.ckpt`` is of another version.
    """
    member.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with quiet_fabric(), _StopRequest() as request, torch.random.fork_rng():
        fabric = device.fabric()
        report = fabric.launch(lambda fabric: Trainer(fabric, member, device, options, request).run())
        # Asked for after the last step: it must not be forgotten.
        if request.made and fabric.world_size == 1:
            raise Interrupted(member.folder)
    return report | {"seconds": round(time.monotonic() - started, 3)}


class Trainer:
    """Trains one network in this process: its steps, validations and checkpoints.

    Where training stands is one number, `step`: how many steps the optimiser has taken. The epoch and the batch
    in it, the learning rate, the order of images and the draws of dropout all follow from that number and the
    seed, so that a checkpoint holds no generators and no position of a reader.
    """

    def __init__(
        self, fabric: Fabric, member: Member, device: Device, options: LoopOptions, request: _StopRequest
    ) -> None:
        self.fabric, self.member, self.network = fabric, member, member.network
        self._request = request
        self._train_batches = make_loader(fabric, member, "train")
        self._validation_batches = make_loader(fabric, member, "validation")
        self._steps_per_epoch = len(self._train_batches)
        hyper = member.hyper
        # Evenly spaced, the last at the end of the epoch.
        self._validation_steps = {
            k * self._steps_per_epoch // hyper.validations for k in range(1, hyper.validations + 1)
        }
        if device.channels_last and self.network.takes == "images":
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compiled = device.compile
        if device.compile:
            self.network.compile()
        self._make_optimizer(hyper)
        self._objective = Objective(self.network, member.class_weights, member.loss).to(fabric.device)

        self.step = 0
        self._validations = Validations()
        # First step whose loss was not finite; and sums of loss, right answers and images since the last entry in
        # the log. On the device, never waited for.
        self._bad_step = torch.tensor(-1, device=fabric.device)
        self._sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
        self._journal = Journal(member.folder, options.log_every) if fabric.is_global_zero else None
        self._bar = ProgressBar(self._steps_per_epoch, shown=options.progress and fabric.is_global_zero)
        self._seconds_between_checkpoints = options.checkpoint_minutes * 60
        self._saved = time.monotonic()

    def _make_optimizer(self, hyper: Hyper) -> None:
        kind = torch.optim.Adam if hyper.optimizer == "adam" else torch.optim.AdamW
        groups = self.member.tuning.groups(self.network, hyper.lr)
        optimizer = kind(groups, lr=hyper.lr, weight_decay=hyper.weight_decay)
        self._schedule = LambdaLR(optimizer, lambda step: hyper.lr_at(step, self._steps_per_epoch) / hyper.lr)
        self._forward, self._optimizer = self.fabric.setup(self.network, optimizer)

    def run(self) -> dict[str, Any]:
        """Train to the end, from the last checkpoint if there is one; return the report of `train_member`."""
        self._resume()
        steps = self.member.hyper.epochs * self._steps_per_epoch
        try:
            if self._journal is not None and self.step < steps and not self._validations.stopped:
                self._journal.open(self.step)
            self.network.train()
            while self.step < steps and not self._validations.stopped:
                self._run_epoch()
        except OSError as error:
            # TensorBoard's own name no file, on a full disk for instance.
            name_file(error, str(self.member.folder))
            raise
        finally:
            self._bar.close()
            if self._journal is not None:
                self._journal.close()
        assert self._validations.best_metrics is not None
        return {
            "steps": self.step,
            "epochs": math.ceil(self.step / self._steps_per_epoch),
            "best_step": self._validations.best_step,
            **self._validations.best_metrics,
        }

    def _run_epoch(self) -> None:
        """Run the rest of the epoch that `step` is in, up to an early stop."""
        epoch, start = divmod(self.step, self._steps_per_epoch)
        self._bar.start(epoch, start)
        with closing(self._train_batches.epoch(epoch, start)) as batches:
            for batch, (inputs, target) in enumerate(batches, start + 1):
                loss = self.training_step(self._move(inputs), self._move(target))
                self._log_step(loss, len(target))
                if batch in self._validation_steps:
                    self._validate(epoch)
                    self._save_last()
                    stop = self._any_rank(self._request.made)
                else:
                    stop, due = self._agree(batch)
                    if stop or due:
                        self._save_last()
                if stop:
                    raise Interrupted(self.member.folder)
                if self._validations.stopped:
                    return

    def _move(self, tensor: Any) -> Any:
        return tensor.to(self.fabric.device, non_blocking=True)

    def training_step(self, inputs: Tensor, target: Tensor | Labels) -> Tensor:
        """Take one step of the optimiser on a batch; return the mean loss."""
        epoch, batch = divmod(self.step, self._steps_per_epoch)
        # Dropout is seeded by the position, so that no state of a generator need be saved.
        key = np.random.SeedSequence([self.member.seed, epoch, batch, self.fabric.global_rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        losses = self._objective(self._forward(inputs), target)
        loss = losses.loss / losses.weight
        self._note(loss.detach(), losses.right, len(target))
        if self.fabric.device.type == "cpu" or batch % _STEPS_BETWEEN_LOOKS_ON_GPU == 0:
            self._check_finite()
        self._optimizer.zero_grad()
        self.fabric.backward(loss)
        self._optimizer.step()
        self._schedule.step()
        self.step += 1
        return loss.detach()

    def _note(self, loss: Tensor, right: Tensor, count: int) -> None:
        bad = ~torch.isfinite(loss)
        self._bad_step = torch.where(bad & (self._bad_step < 0), self.step, self._bad_step)
        self._sums += torch.stack(
            [loss.double() * count, right.double(), torch.full_like(loss, count).double()]
        )

    def _check_finite(self) -> None:
        """Stop at the first loss that was NaN or infinite."""
        step = int(self._bad_step)
        if step >= 0:
            epoch, batch = divmod(step, self._steps_per_epoch)
            raise ValueError(
                f"the loss became NaN or infinite at batch {batch} of epoch {epoch} (step {step}); the checkpoints "
                f"{LAST} and {BEST}, if written, are from before. Lower lr, or use precision='32-true'"
            )

    def _take_sums(self) -> NDArray[np.float64]:
        sums = self._sums.cpu().numpy().copy()
        self._sums.zero_()
        return sums

    @property
    def _lr(self) -> float:
        """Rate of the step that comes next."""
        return float(self._schedule.get_last_lr()[0])

    def _log_step(self, loss: Tensor, count: int) -> None:
        images = count * self.fabric.world_size
        self._bar.step(loss, images)
        if self._journal is not None:
            self._journal.count(images)
            if self._journal.is_due(self.step):
                self._journal.write_training(self.step, self._take_sums(), self._lr)

    @torch.inference_mode()
    def _validate(self, epoch: int) -> None:
        """Validate, write it down, and keep the network if it is the best so far."""
        if self._journal is not None:
            self._journal.measure_rate()
        # Sums of losses, their weights, right answers and images.
        sums = torch.zeros(4, dtype=torch.float64, device=self.fabric.device)
        scores: list[Tensor] = []
        self.network.eval()
        engine = self._validation_engine()
        with closing(self._validation_batches.epoch()) as batches:
            for inputs, target in batches:
                if self._journal is not None and epoch == 0 and not scores and inputs.dtype == torch.uint8:
                    self._journal.write_images(self.step, inputs[:16])
                self.validation_step(self._move(inputs), self._move(target), sums, scores, engine)
        self.network.train()
        loss, weight, right, count = self._sum_ranks(sums).tolist()
        metrics = {"val_loss": loss / weight, "val_accuracy": right / count}
        self._bar.show_metrics(metrics)
        if self._journal is not None:
            self._journal.write_validation(
                self.step, epoch, self._take_sums(), self._lr, metrics, torch.cat(scores)
            )
        if self._validations.add(self.step, metrics, self.member.hyper):
            self._write(BEST, self._weights())

    def _validation_engine(self) -> TorchEngine | None:
        """Return what scores the validation images on a CPU in float32: the network as it is now, folded."""
        precision = self.fabric.strategy.precision.precision
        if self.fabric.device.type != "cpu" or precision != "32-true" or self._compiled:
            return None
        engine = TorchEngine([self.network])
        return engine if engine.is_folded else None

    def validation_step(
        self,
        inputs: Tensor,
        target: Tensor | Labels,
        sums: Tensor,
        scores: list[Tensor],
        engine: TorchEngine | None = None,
    ) -> None:
        """Add a batch to the sums and the scores."""
        # The network itself and not what connects it with those of other devices, which would exchange messages.
        with self.fabric.autocast():
            if engine is not None:
                logits = engine.outputs(inputs)[0]
            else:
                logits = self.network(self.fabric.strategy.precision.convert_input(inputs))
            losses = self._objective(logits, target)
            scores.append(self.network.scores(logits).cpu())
        count = torch.tensor(float(len(target)), device=sums.device)
        sums += torch.stack(
            [losses.loss.double(), losses.weight.double(), losses.right.double(), count.double()]
        )

    def _any_rank(self, asked: bool) -> bool:
        """Whether something is so on any of the devices."""
        if self.fabric.world_size == 1:
            return asked
        flag = torch.tensor(float(asked), device=self.fabric.device)
        return bool(self._sum_ranks(flag) > 0)

    def _sum_ranks(self, tensor: Tensor) -> Tensor:
        summed = self.fabric.all_reduce(tensor, reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def _agree(self, batch: int) -> tuple[bool, bool]:
        """Whether to stop after this batch, and whether a checkpoint is due, alike on all devices."""
        if self.fabric.world_size > 1 and batch % _STEPS_BETWEEN_AGREEMENTS:
            return False, False
        due = time.monotonic() - self._saved > self._seconds_between_checkpoints
        return self._any_rank(self._request.made), self._any_rank(due)

    def _weights(self) -> dict[str, Any]:
        """A checkpoint that serves for scoring."""
        return describe(self.network) | {
            "state_dict": self.network.state_dict(),
            "global_step": self.step,
        }

    def _save_last(self) -> None:
        self._check_finite()
        state = {
            "version": TRAINING_VERSION,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "validations": asdict(self._validations),
            "sums": self._sums.tolist(),
            "journal": self._journal.state_dict() if self._journal is not None else {},
        }
        self._write(LAST, self._weights() | {"training": state})
        self._saved = time.monotonic()

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if self.fabric.is_global_zero:
            write_checkpoint(content, self.member.folder / name)
        # No device continues, or ends, before the file is there.
        self.fabric.barrier()

    def _resume(self) -> None:
        path = self.member.folder / LAST
        if not path.exists():
            return
        content = read_checkpoint(path)
        state = content.get("training", {"version": 1})
        version = state.get("version") if isinstance(state, Mapping) else None
        if version != TRAINING_VERSION:
            raise ValueError(
                f"{path} is a training of version {short(version)}; this pricepix resumes version "
                f"{TRAINING_VERSION}. Finish the run with the pricepix that started it, or start a new one"
            )
        try:
            self._restore(content, state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{path} does not hold the training that this run would resume "
                f"({type(error).__name__}: {printable(str(error))[:300]}): remove it, and training starts again from "
                "the first step"
            ) from error

    def _restore(self, content: Mapping[Any, Any], state: Mapping[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.step = whole_number(content["global_step"], "global_step", 0)
        self.network.load_state_dict(content["state_dict"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self._validations = Validations(**state["validations"])
        if self._journal is not None:
            self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
            self._journal.load_state_dict(state["journal"])


def make_loader(fabric: Fabric, member: Member, part: str) -> Loader:
    """Return the batches of part ``train`` or ``validation`` that this process takes."""
    reader = member.make_reader(part, fabric.global_rank, fabric.world_size, str(fabric.device))
    return Loader(
        reader, member.targets, member.mirrored, weights=member.weights, dates=member.dates,
        pinned=fabric.device.type == "cuda",
    )  # fmt: skip


class _StopRequest:
    """Ctrl-C or SIGTERM: the first one lets the step in hand end and be saved; the second one stops at once."""

    made = False

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        # Only the main thread may say what signals do.
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._before[kind] = signal.signal(kind, self._note)
        return self

    def _note(self, kind: int, frame: Any) -> None:
        if self.made:
            raise KeyboardInterrupt
        self.made = True

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)
