"""Rendering on a GPU: window numbers in, a torch tensor on the device out.

The panel lives on the device; a call moves nothing but the windows' rows. The drawing itself is in
``cuda_kernels.py``. torch and Numba's CUDA target are imported when a ``CudaRenderer`` is made, not before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix.render import rules, window_bars
from pricepix.render.draw import checked_windows, draw_params, panel_arrays
from pricepix.render.rules import PanelArrays
from pricepix.spec import ImageSpec

if TYPE_CHECKING:
    import torch

    from pricepix.bars.panel import Panel

INSTALL: Final = 'pip install "pricepix[cuda]"'
OUTSIDE: Final = rules.OUTSIDE
"""Reason code of a row on the device where no window of the panel ends; its image is blank."""

# Bytes of shared memory for an image, and for a strip of a larger one: a block gets 48 kB without asking for more, and
# small blocks leave room for others beside them.
_LARGEST_WHOLE = 24 << 10
_STRIP_BYTES = 16 << 10
# From this many blocks on, Numba does not warn of an idle GPU; those without an image end at once.
_FEWEST_BLOCKS = 256
_DTYPES = ("uint8", "bfloat16", "float16", "float32")


class CudaRenderer:
    """Draws windows of one panel on a GPU, the same bytes as ``render_panel`` on the CPU.

    Parameters
    ----------
    panel : Panel
        The bars. What the spec draws of them is copied to the device once: 8 bytes a bar for each price, the
        volume and each moving average that is drawn.
    spec : ImageSpec, str or dict
        What to draw, or the name of a preset.
    device : torch.device, str or int, optional
        Which GPU; torch's current one by default.

    Attributes
    ----------
    spec : ImageSpec
        What is drawn.
    device : torch.device
        Where.

    Raises
    ------
    ImportError
        If torch or Numba's CUDA target is missing; the message has the line that installs them.
    RuntimeError
        If there is no GPU that torch and Numba can use.
    ValueError
        If the spec needs fields that the panel does not have.

    Notes
    -----
    With ``rebuild="returns"`` every window has prices of its own: these are made on the CPU, batch by batch,
    and drawn on the GPU. Rows given on the device are then fetched, which waits for the device.

    With ``NUMBA_ENABLE_CUDASIM=1`` in the environment before Numba is imported, kernels run in CUDA's simulator
    on the CPU, thousands of times slower, and tensors are CPU tensors: for tests.
    """

    def __init__(
        self, panel: Panel, spec: ImageSpec | str | Mapping[str, Any], *, device: Any = None
    ) -> None:
        spec = ImageSpec.of(spec)
        self._prepare(panel_arrays(panel, spec), panel.offsets, spec, device)

    @classmethod
    def from_windows(
        cls,
        ohlcv: Any,
        spec: ImageSpec | str | Mapping[str, Any],
        ma: Any = None,
        at_limit: Any = None,
        *,
        device: Any = None,
    ) -> CudaRenderer:
        """Return a renderer of windows that are given bar by bar, as ``render_windows`` takes them.

        Window i ends at row ``(i + 1) * spec.lookback - 1``.

        Parameters
        ----------
        ohlcv : array_like, float64 (N, L, 5)
            Open, high, low, close, volume of N windows of ``L = spec.lookback`` bars; NaN is missing.
        spec : ImageSpec, str or dict
            What to draw, or the name of a preset; without ``rebuild``.
        ma : array_like, float64 (N, L, n) or (N, L), optional
            The moving averages at each bar. Required exactly if the spec draws any.
        at_limit : array_like, bool (N, 2, L), optional
            True where a bar sits at its up-limit (0) or down-limit (1).
        device : torch.device, str or int, optional
            Which GPU; torch's current one by default.
        """
        spec = ImageSpec.of(spec)
        if spec.rebuild is not None:
            raise ValueError(
                "rebuild='returns' needs the returns of a panel: use CudaRenderer(panel, spec), or "
                "spec.replace(rebuild=None)"
            )
        arrays = checked_windows(ohlcv, spec, ma, at_limit)
        offsets = np.arange(0, len(arrays.bars) + 1, spec.lookback, dtype=np.int64)
        self = cls.__new__(cls)
        self._prepare(arrays, offsets, spec, device)
        return self

    def _prepare(self, arrays: PanelArrays, offsets: NDArray[np.int64], spec: ImageSpec, device: Any) -> None:
        self.spec = spec
        self._gpu = _Gpu(device)
        self.device: torch.device = self._gpu.device
        self._params = draw_params(spec)
        self._threads = self._gpu.threads(self._params)
        self._plan, self._shared = self._gpu.plan(self._params, len(spec.ma), self._threads)
        self._averages = np.array(spec.ma, np.int64)
        self._offsets, self._arrays = offsets, arrays
        self._states_on_host = _states(offsets, spec, arrays)
        with self._gpu.context():
            self._states = self._gpu.upload(self._states_on_host)
            if not spec.rebuild:
                table = np.empty((self._fields, len(arrays.bars)))
                window_bars.tabulate(
                    arrays.bars, offsets, arrays.averages, self._averages, self._params, table
                )
                self._table = self._gpu.upload(table)
            # Stands where there is no output; never written, nor read.
            self._nothing = self._gpu.upload(np.zeros(8, np.uint8))

    @property
    def _fields(self) -> int:
        return 4 + self._params.volume + len(self.spec.ma)

    def render(
        self,
        rows: Any,
        *,
        dtype: Any = "uint8",
        channels_last: bool = False,
        mean: float = 0.0,
        std: float = 1.0,
        out: torch.Tensor | None = None,
        reason: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw the windows that end at panel rows `rows`, on torch's current stream, without waiting for it.

        Parameters
        ----------
        rows : numpy.ndarray or torch.Tensor, int64 (b,)
            Panel rows of the windows' last bars (``WindowIndex.row``), in any order. Rows from the host are
            checked. Rows on the device are not, since that would wait for the device: a row where no window ends
            gets a blank image and the reason ``OUTSIDE``.
        dtype : torch.dtype or str
            ``uint8`` for pixels of 0 and 255; ``bfloat16``, ``float16`` or ``float32`` for normalised ones.
        channels_last : bool
            Return floating images in the memory format ``torch.channels_last``.
        mean, std : float
            A floating pixel x is ``(x / 255 - mean) / std``, computed in float64 and converted by torch.
        out : torch.Tensor, optional
            Where to write: of the result's shape, dtype, device and memory format. Allocated when not given.
        reason : torch.Tensor, optional
            uint8 (b,) on the device, where the reason codes are written (see ``REASONS``).

        Returns
        -------
        torch.Tensor
            uint8 (b, height, width), or floating (b, 1, height, width), row 0 at the top; blank where the
            window has no image.

        Raises
        ------
        ValueError
            If no window of the panel ends at a row, or arguments contradict each other.
        TypeError
            If `rows` are not whole numbers, or `dtype` is not one of the four.
        """
        import torch

        name = str(dtype).removeprefix("torch.")
        if name not in _DTYPES:
            raise TypeError(
                f"dtype={dtype!r} cannot be rendered: choose one of {', '.join(map(repr, _DTYPES))}"
            )
        kind: torch.dtype = getattr(torch, name)
        floating = name != "uint8"
        if not floating and (mean != 0.0 or std != 1.0 or channels_last):
            raise ValueError(
                f"mean={mean}, std={std}, channels_last={channels_last} belong to floating images: leave them "
                "out, or give dtype='bfloat16', 'float16' or 'float32'"
            )
        if not (np.isfinite(mean) and np.isfinite(std) and std > 0):
            raise ValueError(f"mean={mean}, std={std} cannot normalise: give finite numbers, std above 0")
        ends = self._rows(rows)
        shape = (len(ends), 1, *self.spec.shape) if floating else (len(ends), *self.spec.shape)
        order = torch.channels_last if channels_last else torch.contiguous_format
        if out is None:
            out = torch.empty(shape, dtype=kind, device=self.device, memory_format=order)
        elif (
            out.shape != shape
            or out.dtype != kind
            or out.device != self.device
            or not out.is_contiguous(memory_format=order)
            or out.data_ptr() % 8
        ):
            raise ValueError(
                f"out is {out.dtype} {tuple(out.shape)} on {out.device}; expected {kind} {shape} on "
                f"{self.device}, contiguous in {order}, from an address that 8 divides"
            )
        self._run(ends, reason, out, _ink(name, float(mean), float(std)))
        return out

    def reasons(self, rows: Any) -> torch.Tensor:
        """Return the reason codes, uint8 (b,) on the device, of the windows that end at panel rows `rows`."""
        import torch

        ends = self._rows(rows)
        codes = torch.empty(len(ends), dtype=torch.uint8, device=self.device)
        self._run(ends, codes, None, _ink("uint8", 0.0, 1.0))
        return codes

    def _rows(self, rows: Any) -> torch.Tensor:
        """Return the rows as int64 on the device, checked if they come from the host."""
        import torch

        if isinstance(rows, torch.Tensor):
            if rows.device == self.device:
                if rows.dtype != torch.int64 or rows.ndim != 1:
                    raise TypeError(f"rows are {rows.dtype} {tuple(rows.shape)}, expected int64 (b,)")
                return rows.contiguous()
            rows = rows.cpu().numpy()
        array = np.asarray(rows)
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"rows are {array.dtype}, expected int64 panel rows, such as WindowIndex.row")
        if array.ndim != 1:
            raise ValueError(f"rows have shape {array.shape}, expected (b,)")
        # A copy: torch warns of read-only arrays.
        array = np.array(array, np.int64)
        states = self._states_on_host
        outside = (array < 0) | (array >= len(states))
        outside |= states[np.where(outside, 0, array)] & rules.WHOLE == 0 if len(states) else True
        if outside.any():
            raise ValueError(
                f"{outside.sum()} rows end no window of {self.spec.lookback} bars in this panel of "
                f"{len(states)} rows, first {array[outside][:3].tolist()}: take them from a WindowIndex of "
                "this panel and spec"
            )
        return self._gpu.send(array)

    def _run(
        self, ends: torch.Tensor, reason: torch.Tensor | None, out: torch.Tensor | None, ink: _Ink
    ) -> None:
        import torch

        n = len(ends)
        if reason is None:
            reason = torch.empty(n, dtype=torch.uint8, device=self.device)
        elif (
            reason.dtype != torch.uint8
            or reason.shape != (n,)
            or reason.device != self.device
            or not reason.is_contiguous()
        ):
            raise ValueError(
                f"reason is {reason.dtype} {tuple(reason.shape)} on {reason.device}; expected uint8 ({n},) on "
                f"{self.device}, contiguous"
            )
        if n == 0:
            return
        packed = self.spec.rebuild is not None
        plan = self._plan._replace(word_shift=ink.word_shift, packed=int(packed), dry=int(out is None))
        written = self._nothing.tensor if out is None else out
        bytes_written = written.numel() * written.element_size()
        # An output of less than a word has no words, and a view of zero elements may fail.
        in_words = written if bytes_written >= 8 else self._nothing.tensor
        view = self._gpu.view
        with self._gpu.context():
            if packed:
                rebuilt = self._rebuilt(ends)
                table = view(self._gpu.send(rebuilt), rebuilt.dtype, *rebuilt.shape)
            else:
                table = self._table
            self._gpu.launch(
                (n, self._threads, self._shared),
                table, self._states, view(ends, np.int64, n), self._params, plan, ink.paper, ink.flip,
                view(in_words, np.uint64, max(1, bytes_written // 8)),
                view(written, ink.pixel, bytes_written // ink.pixel.itemsize),
                view(reason, np.uint8, n),
            )  # fmt: skip

    def _rebuilt(self, ends: torch.Tensor) -> NDArray[np.float64]:
        """Rebuild the bars of the windows on the CPU; those of rows where no window ends are undefined."""
        rows = ends.cpu().numpy()
        states = self._states_on_host
        inside = (rows >= 0) & (rows < len(states))
        inside[inside] = states[rows[inside]] & rules.WHOLE != 0
        rows = rows[inside]
        first = self._offsets[np.searchsorted(self._offsets, rows, side="right") - 1]
        table = np.zeros((self._fields, len(inside), self._params.bars))
        drawn = np.empty((self._fields, len(rows) * self._params.bars))
        window_bars.tabulate_rebuilt(
            self._arrays.bars, self._arrays.total_return, first, rows, self._averages, self._params, drawn
        )
        table[:, inside] = drawn.reshape(self._fields, len(rows), self._params.bars)
        return table.reshape(self._fields, -1)


class _Ink(NamedTuple):
    """Pixels as words of 8 bytes: the blank word, and the bits that flip it to ink."""

    paper: np.uint64
    flip: np.uint64
    pixel: np.dtype[Any]
    """Unsigned integers of a pixel's size."""
    word_shift: int
    """Two to its power are the pixels in a word."""


@lru_cache(maxsize=64)
def _ink(dtype: str, mean: float, std: float) -> _Ink:
    """Return the two values that a pixel can have, rounded to their type by torch."""
    import torch

    values = torch.tensor([0, 255], dtype=torch.uint8)
    if dtype != "uint8":
        values = ((values.double() / 255 - mean) / std).to(getattr(torch, dtype))
    size = values.element_size()
    raw = values.view(torch.uint8).numpy().tobytes()
    paper, ink = (np.uint64(int.from_bytes(v * (8 // size), "little")) for v in (raw[:size], raw[size:]))
    return _Ink(paper, paper ^ ink, np.dtype(f"u{size}"), {1: 3, 2: 2, 4: 1}[size])


def _states(offsets: NDArray[np.int64], spec: ImageSpec, arrays: PanelArrays) -> NDArray[np.uint8]:
    """Return bits of every panel row: whether a window ends there, and whether it holds limits that are drawn."""
    states = np.full(offsets[-1], rules.WHOLE, np.uint8)
    for first, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        states[first : min(first + spec.lookback - 1, end)] = 0
    for flags, bit in ((arrays.up, rules.UP), (arrays.down, rules.DOWN)):
        if len(flags) and spec.style == "image_trading":
            count = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
            begin = np.maximum(np.arange(1, len(flags) + 1) - spec.lookback, 0)
            states[count[1:] > count[begin]] |= bit
    return states


class _View:
    """Memory of a torch tensor as an array of another type; torch's own interface refuses bfloat16."""

    def __init__(self, tensor: torch.Tensor, dtype: Any, count: int) -> None:
        self.tensor = tensor
        self.__cuda_array_interface__ = {
            "shape": (count,),
            "typestr": np.dtype(dtype).str,
            "data": (tensor.data_ptr(), False),
            "strides": None,
            "version": 2,
        }


class _DeviceArray(NamedTuple):
    """A tensor, and its memory as the array that a kernel takes."""

    tensor: torch.Tensor
    array: Any


def gpu_of(device: Any) -> torch.device:
    """Return a GPU as a torch device with its number; torch's current one where none is given.

    Parameters
    ----------
    device : torch.device, str, int or None
        As in `CudaRenderer`.

    Raises
    ------
    ImportError, RuntimeError, ValueError
        As in `CudaRenderer`.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"CudaRenderer needs torch: {INSTALL}") from error
    try:
        from numba import cuda

        from pricepix.render import cuda_kernels
    except ImportError as error:
        raise ImportError(f"CudaRenderer needs Numba's CUDA target: {INSTALL}") from error
    if cuda_kernels.SIMULATED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"torch {torch.__version__} sees no GPU: CudaRenderer needs one, and a torch that was built for "
            "it (https://pytorch.org/get-started); on the CPU, use render_panel"
        )
    wanted = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cuda")
    if wanted.type != "cuda":
        raise ValueError(
            f"device={device!r} is not a GPU: give 'cuda', 'cuda:1' or a number, or use render_panel"
        )
    found = torch.device("cuda", torch.cuda.current_device() if wanted.index is None else wanted.index)
    if not cuda.is_available():
        raise RuntimeError(
            f"torch sees {found}, but Numba's CUDA target does not: {INSTALL} (for a driver of CUDA 12, "
            'pip install "numba-cuda[cu12]")'
        )
    return found


class _Gpu:
    """One GPU as torch and Numba see it, or CUDA's simulator.

    When a tensor is freed, torch's allocator gives its memory to the next tensor of the stream where it was made.
    Work that other streams still have to do with it must be recorded: `launch` does so for all its arguments.
    """

    def __init__(self, device: Any) -> None:
        self.device = gpu_of(device)
        import torch
        from numba import cuda

        from pricepix.render import cuda_kernels

        self.torch, self._cuda, self._kernels = torch, cuda, cuda_kernels
        self.simulated = cuda_kernels.SIMULATED

    def threads(self, params: rules.DrawParams) -> int:
        """Threads a block, a power of two: a warp where that is enough to write the image."""
        size = params.height * params.width
        if self.simulated:
            return 4
        return 32 if size <= 8 << 10 else 64 if size <= 32 << 10 else 128

    def plan(self, params: rules.DrawParams, averages: int, threads: int) -> tuple[Any, int]:
        """Return the layout of a block's shared memory, and its bytes."""
        groups = 4 if params.per_field else 1 + params.volume
        counts_at = 2 * groups * threads
        image_at = counts_at + threads
        strip = params.height
        if strip * params.width > _LARGEST_WHOLE:
            strip = _STRIP_BYTES // params.width
        shared = 8 * (image_at + (strip * params.width + 7 + 7) // 8)
        return self._kernels.Plan(averages, counts_at, image_at, strip, word_shift=3, packed=0, dry=0), shared

    def context(self) -> AbstractContextManager[Any]:
        """Where Numba's calls reach this device: ``upload``, ``view`` and ``launch`` belong inside."""
        return nullcontext() if self.simulated else self._cuda.gpus[self.device.index]

    def upload(self, array: NDArray[Any]) -> _DeviceArray:
        """Copy an array to the device; every stream sees the copy when this returns.

        torch waits for the stream of a blocking copy, so no event is needed.
        """
        return self.view(self.torch.from_numpy(array).to(self.device), array.dtype, *array.shape)

    def send(self, array: NDArray[Any]) -> torch.Tensor:
        """Queue a copy to the device on torch's current stream, without waiting for it.

        Only from pinned memory does a copy not wait; torch reuses that memory when the copy is done.
        """
        tensor = self.torch.from_numpy(array)
        return tensor if self.simulated else tensor.pin_memory().to(self.device, non_blocking=True)

    def view(self, tensor: torch.Tensor, dtype: Any, *shape: int) -> _DeviceArray:
        """Return the beginning of a tensor's memory as an array of another type."""
        count = math.prod(shape)
        if self.simulated:
            from numba.cuda.cudadrv.devicearray import FakeCUDAArray

            flat = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
            memory = flat.reshape(-1).view(self.torch.uint8).numpy()
            array = FakeCUDAArray(memory[: count * np.dtype(dtype).itemsize].view(dtype))
        else:
            array = self._cuda.as_cuda_array(_View(tensor, dtype, count), sync=False)
        return _DeviceArray(tensor, array.reshape(*shape))

    def launch(self, shape: tuple[int, int, int], *arguments: Any) -> None:
        """Start the kernel over so many images, threads and bytes of shared memory, on torch's current stream."""
        images, threads, shared = shape
        arrays = [each.array if isinstance(each, _DeviceArray) else each for each in arguments]
        if self.simulated:
            self._kernels.draw[images, threads, 0, shared](*arrays)
            return
        blocks = max(images, _FEWEST_BLOCKS)
        current = self.torch.cuda.current_stream(self.device)
        handle = current.cuda_stream
        stream = self._cuda.external_stream(handle) if handle else self._cuda.legacy_default_stream()
        self._kernels.draw[blocks, threads, stream, shared](*arrays)
        for each in arguments:
            if isinstance(each, _DeviceArray):
                each.tensor.record_stream(current)
