"""Where and how training runs: devices, precision, and the processes that share them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

try:
    from lightning.fabric import Fabric
    from lightning.fabric.accelerators import CUDAAccelerator
except ImportError as error:
    raise ImportError('training needs lightning: pip install "pricepix[train]"') from error

__all__ = ["Device", "Fabric", "check_batch_size", "quiet_fabric"]


@dataclass(frozen=True)
class Device:
    """Where and how training runs: what changes speed, not what is learnt (except for rounding).

    Attributes
    ----------
    accelerator, devices, precision
        As in lightning's Fabric.
    channels_last : bool
        Memory format of a network on images.
    compile : bool
        Whether ``torch.compile`` compiles the network.
    """

    accelerator: str = "auto"
    devices: Any = "auto"
    precision: str = "32-true"
    channels_last: bool = False
    compile: bool = False

    def on(self, device: str) -> Device:
        """Return the same with the one device named: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``."""
        kind, _, number = str(device).partition(":")
        if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or (kind == "cpu" and number):
            raise ValueError(f"device is {device!r}; give 'cpu', 'cuda' or 'cuda:1'")
        if (self.accelerator, self.devices) != ("auto", "auto"):
            raise ValueError(
                f"device is {device!r} and accelerator, devices are {self.accelerator!r}, {self.devices!r}; "
                "give one or the other"
            )
        accelerator, devices = ("cpu", 1) if kind == "cpu" else ("gpu", [int(number)] if number else 1)
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {device!r}, but torch {torch.__version__} sees no GPU; give 'cpu'")
        return Device(accelerator, devices, self.precision, self.channels_last, self.compile)

    def fabric(self) -> Fabric:
        """Return lightning's Fabric: it places networks, converts precision and connects processes."""
        return Fabric(
            accelerator=self.accelerator,
            devices=self.devices,
            precision=self.precision,  # type: ignore[arg-type]
        )

    def ranks(self) -> int:
        """Return how many devices take part.

        Raises
        ------
        ValueError
            If lightning has no such accelerator, devices or precision.
        """
        try:
            with quiet_fabric(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self.fabric().world_size
        except Exception as error:  # of many kinds, one of them lightning's own
            raise ValueError(
                f"lightning does not train with accelerator={self.accelerator!r}, devices={self.devices!r} and "
                f"precision={self.precision!r}: {error}"
            ) from error

    def own(self) -> torch.device:
        """Return the device of this process: the run's only one, or the one with the number of its rank."""
        if self.accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
            return torch.device("cpu")
        every = CUDAAccelerator.auto_device_count() if self.devices == "auto" else self.devices
        numbers = CUDAAccelerator.parse_devices(every)
        if not numbers:
            return torch.device("cpu")
        return torch.device("cuda", numbers[int(os.environ.get("LOCAL_RANK", "0")) % len(numbers)])


def check_batch_size(batch_size: int, ranks: int) -> None:
    """Refuse a batch that the devices cannot share evenly."""
    if batch_size % ranks:
        raise ValueError(
            f"batch_size is {batch_size}, which {ranks} devices cannot share evenly; give a multiple of {ranks}"
        )


@contextmanager
def quiet_fabric() -> Iterator[None]:
    """Keep the notes of lightning's Fabric off the screen; its warnings stay.

    It writes a line for each process that joins and for the precision. The loggers are set to INFO when lightning is
    imported, whatever the user's logging is set to, and which of the two it writes to depends on what else was.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
