"""Scoring with torch: folded networks and a batch a core on a CPU, whole batches on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pricepix.images.threads import map_ordered
from pricepix.train.engines.folded import cache_batch, fold_network
from pricepix.train.models import Network

__all__ = ["PRECISIONS", "TorchEngine"]

PRECISIONS: Final = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What networks compute in, by the names that training has for them."""

_PLAIN_BATCH: Final = 256


class TorchEngine:
    """Scores of the same inputs by one or several networks.

    On a CPU in float32, networks on images are folded where they can be, and each core takes batches of its own, which
    fit into its cache: cores never wait for each other, and the thread that decodes finds no spinning threads. All
    networks score a batch before the next is touched. Batches are filled up to one size, so that the score of an
    image depends neither on the images beside it nor on the number of threads.

    Parameters
    ----------
    members : sequence of Network
        On their device, in evaluation.
    batch : int, optional
        Inputs a forward pass; by default as many as fit into the cache of a CPU, at most 16, and 256 elsewhere.
    precision : {"32-true", "bf16-mixed", "16-mixed"}
    """

    def __init__(
        self, members: Sequence[Network], batch: int | None = None, precision: str = "32-true"
    ) -> None:
        self.members = list(members)
        self._dtype = PRECISIONS[precision]
        self._device = self.members[0].mean.device
        on_cpu = self._device.type == "cpu" and self._dtype is None
        folded = [fold_network(member) for member in self.members] if on_cpu else [None]
        self.is_folded = all(member is not None for member in folded)
        """Whether folded networks score: else torch's layers do, one after the other."""
        self._fast: list[Any] = folded if self.is_folded else []
        if batch is None:
            batch = cache_batch(self.members[0]) if self.is_folded else _PLAIN_BATCH
        self.batch = batch

    def predict(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the members' scores, float32 (members, n), or (members, n, heads) of networks with several heads.

        Parameters
        ----------
        inputs : numpy.ndarray
            Images uint8 (n, height, width), or series float32 (n, channels, bars).
        """
        # A chunk may be read-only memory, of which torch warns.
        inputs = np.require(inputs, requirements="W")
        if self.is_folded and len(inputs):
            return self._run(torch.from_numpy(inputs), lambda member, outputs: member.scores(outputs))
        with self._autocast():
            return np.stack([member.predict(inputs, self.batch) for member in self.members])

    def probabilities(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the members' class probabilities, float32 (members, n, classes), or (members, n, heads, classes)."""
        inputs = np.require(inputs, requirements="W")
        if self.is_folded and len(inputs):
            return self._run(
                torch.from_numpy(inputs), lambda member, outputs: member.by_head(outputs).softmax(-1)
            )
        with self._autocast():
            return np.stack([member.probabilities(inputs, self.batch) for member in self.members])

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return what the folded networks give, float32 (members, n, heads * outputs)."""
        return torch.from_numpy(self._run(inputs, lambda member, outputs: outputs))

    def _run(self, inputs: Tensor, final: Callable[[Any, Tensor], Tensor]) -> NDArray[np.float32]:
        """Return what `final` makes of the outputs of each folded network for each batch of the inputs."""
        size, lock = self.batch, threading.Lock()
        found: dict[int, NDArray[np.float32]] = {}
        starts = range(0, len(inputs), size)

        def score(start: int) -> None:
            _OneThread.begin()
            part = inputs[start : start + size]
            count = len(part)
            with torch.inference_mode():
                if count < size:
                    part = torch.cat([part, part.new_zeros((size - count, *part.shape[1:]))])
                for i, member in enumerate(self._fast):
                    given = final(member, member(part)).numpy()
                    if i not in found:
                        with lock:
                            found.setdefault(i, np.empty((len(inputs), *given.shape[1:]), np.float32))
                    found[i][start : start + count] = given[:count]

        workers = min(torch.get_num_threads(), len(starts))
        with _OneThread.restored():
            if workers > 1:
                with closing(map_ordered(score, starts, workers, 2 * workers, "pricepix-torch")) as scored:
                    for _ in scored:
                        pass
            else:
                for start in starts:
                    score(start)
        return np.stack([found[i] for i in range(len(self._fast))])

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype)


class _OneThread:
    """Threads of ours in which torch computes without threads of its own.

    torch keeps the number of threads for each thread and the last one set for those to come: that is put back.
    """

    _local = threading.local()

    @classmethod
    def begin(cls) -> None:
        """Let torch compute in this thread alone, from the first call on."""
        if not getattr(cls._local, "begun", False):
            torch.set_num_threads(1)
            cls._local.begun = True

    @classmethod
    def restored(cls) -> AbstractContextManager[Any]:
        """Put back torch's number of threads at the end."""
        return _Restored(cls._local)


class _Restored:
    def __init__(self, local: threading.local) -> None:
        self._local = local

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
        self._local.begun = False
