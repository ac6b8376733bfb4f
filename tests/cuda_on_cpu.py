"""The GPU kernel's own source, compiled for the CPU: one thread a block, one block after the other.

CUDA's simulator runs many threads, but interprets them with Python's numbers. What Numba makes of the types, such
as integers that become floats when they meet, shows in compiled code alone; and that is fast enough for every
golden window. Shared memory begins as rubbish, as on a GPU.
"""

from __future__ import annotations

import math
import re
import types
from pathlib import Path

import numba
import numpy as np
import torch

from pricepix.render import cuda, cuda_kernels

# A kernel's words, and what they come to for the only thread of a block.
WORDS = {
    "@cuda.jit(device=True)": "@jit",
    "@cuda.jit\n": "@jit\n",
    "cuda.threadIdx.x": "np.int32(0)",
    "cuda.blockDim.x": "np.int32(1)",
    "cuda.blockIdx.x": "block",
    "cuda.syncthreads()": "pass",
    "words: Any, pixels: Any, reasons: Any,\n) -> None:": (
        "words: Any, pixels: Any, reasons: Any, shared: Any, block: Any,\n) -> None:"
    ),
}


def compiled_kernel():
    """``draw`` of ``cuda_kernels``, with shared memory and the number of the block as its last arguments."""
    source = Path(cuda_kernels.__file__).read_text(encoding="utf-8")
    for word, meaning in WORDS.items():
        assert word in source, f"the kernel does not say {word!r} any more: WORDS must follow it"
        source = source.replace(word, meaning)
    source = re.sub(r"cuda\.shared\.array\(0, (\w+)\)", r"shared.view(np.\1)", source)
    assert not re.search(r"\bcuda\.", source.partition("# ---- numbers")[2]), (
        "WORDS lacks a word of the kernel"
    )
    module = types.ModuleType("kernel_for_the_cpu")
    # Not cached: a cache would look for the source in a file.
    source = source.replace("SIMULATED =", 'jit = numba.njit(error_model="numpy")\nSIMULATED =')
    exec(compile(source, "kernel_for_the_cpu", "exec"), module.__dict__)
    return module.draw


class Cpu(cuda._Gpu):
    """In the place of a GPU: CPU tensors, and the compiled kernel."""

    def __init__(self, device):
        assert numba.config.ENABLE_CUDASIM == 0
        self.torch, self._kernels = torch, cuda_kernels
        # Memory is the simulator's: torch's, in the process.
        self.simulated = True
        self.device = torch.device("cpu")

    def threads(self, drawing):
        return 1

    def view(self, tensor, dtype, *shape):
        flat = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
        memory = flat.reshape(-1).view(torch.uint8).numpy()
        return cuda._DeviceArray(
            tensor, memory[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
        )

    def launch(self, shape, *arguments):
        arrays = [each.array if isinstance(each, cuda._DeviceArray) else each for each in arguments]
        images, _, shared = shape
        for block in range(images + 1):
            self._draw(*arrays, np.full(shared, 0xA5, np.uint8), block)


def install():
    """From here on, ``CudaRenderer`` draws with the compiled kernel."""
    Cpu._draw = staticmethod(compiled_kernel())
    cuda._Gpu = Cpu
