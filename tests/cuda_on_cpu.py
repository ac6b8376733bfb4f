"""The GPU kernel compiled for the CPU: one thread a block, one block after the other.

CUDA's simulator runs many threads, but interprets them with Python's numbers. What Numba makes of the types, such
as integers that become floats when they meet, shows only in compiled code; and that is fast enough for every
golden window. Here the kernel's functions are compiled from their own bytecode, with another module in the place of
``numba.cuda`` that says what its names come to for the only thread of a block. Shared memory begins as rubbish, as
on a GPU.
"""

from __future__ import annotations

import math
import types
from typing import NamedTuple

import numba
import numpy as np
import torch
from numba.extending import intrinsic, models, overload, overload_attribute, register_model

from pricepix.render import cuda, cuda_kernels

# More than any launch asks for.
SHARED = np.zeros(1 << 16, np.uint8)
BLOCK = np.zeros(1, np.int64)
ADDRESSES = {"shared": SHARED.ctypes.data, "block": BLOCK.ctypes.data}


@intrinsic
def memory_at(typingctx, address):
    """Pointer to an address."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return numba.types.voidptr(numba.types.uintp), codegen


def array(shape, dtype):
    """``cuda.shared.array(0, dtype)``: all of the shared memory as one type."""


@overload(array)
def _array(shape, dtype):
    address, size = np.uintp(ADDRESSES["shared"]), len(SHARED) // np.dtype(str(dtype.dtype)).itemsize
    return lambda shape, dtype: numba.carray(memory_at(address), size, dtype)


class BlockIdx(numba.types.Dummy):
    """``cuda.blockIdx``, whose x is the block that is being drawn."""


register_model(BlockIdx)(models.OpaqueModel)


@overload_attribute(BlockIdx, "x")
def _block(index):
    address = np.uintp(ADDRESSES["block"])
    return lambda index: numba.carray(memory_at(address), 1, np.int64)[0]


class X(NamedTuple):
    x: np.int32


def cuda_of_one_thread():
    """A module with the names of ``numba.cuda`` that the kernel uses."""
    module, shared = types.ModuleType("cuda"), types.ModuleType("shared")
    module.threadIdx, module.blockDim = X(np.int32(0)), X(np.int32(1))
    module.blockIdx = types.SimpleNamespace(_numba_type_=BlockIdx("blockIdx"))
    module.syncthreads = numba.njit(lambda: None)
    module.shared, shared.array = shared, array
    return module


def compiled_kernel():
    """``draw`` of ``cuda_kernels`` for the CPU."""
    # Not cached: what stands for numba.cuda has addresses of this process.
    jit = numba.njit(error_model="numpy")
    names = {**vars(cuda_kernels), "cuda": cuda_of_one_thread()}
    kernels = {
        name: value
        for name, value in vars(cuda_kernels).items()
        if isinstance(value, numba.cuda.dispatcher.CUDADispatcher)
    }
    assert kernels.keys() >= {"draw", "_measure", "_column", "_write"}
    for name, kernel in kernels.items():
        names[name] = jit(types.FunctionType(kernel.py_func.__code__, names, name))
    return names["draw"]


class Cpu(cuda._Gpu):
    """In the place of a GPU: CPU tensors, and the compiled kernel."""

    def __init__(self, device):
        assert numba.config.ENABLE_CUDASIM == 0
        self.torch, self._kernels = torch, cuda_kernels
        # Memory is the simulator's: torch's, in the process.
        self.simulated = True
        self.device = torch.device("cpu")

    def threads(self, params):
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
        assert shared <= len(SHARED)
        for block in range(images + 1):
            SHARED[:] = 0xA5
            BLOCK[0] = block
            self._draw(*arrays)


def install():
    """From here on, ``CudaRenderer`` draws with the compiled kernel."""
    Cpu._draw = staticmethod(compiled_kernel())
    cuda._Gpu = Cpu
