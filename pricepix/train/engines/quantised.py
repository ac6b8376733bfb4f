"""Exported networks in whole numbers of 8 bits: weights, and what passes between layers."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import optional_module
from pricepix.train.engines.cpu import has_vnni

__all__ = ["LEAST_AGREEMENT", "quantise"]

LEAST_AGREEMENT = 0.999
"""Least rank correlation, by date, of scores of 8 bits with those of float32."""

_BATCH = 32


def quantise(model: bytes, images: NDArray[np.uint8]) -> bytes:
    """Return an ONNX model whose convolutions work in 8 bits, by the ranges that some images give.

    Weights are scaled by channel, and what passes between layers by its largest value. Sums stay in 32 bits, the
    last layer in float32.

    Parameters
    ----------
    model : bytes
        As ``pricepix.train.engines.exported.onnx_bytes`` makes it.
    images : numpy.ndarray, uint8 (n, height, width)
        Of training windows.

    Raises
    ------
    ImportError
        If onnxruntime or onnx is not installed; the message is the line that installs it.
    """
    onnx = optional_module("onnx", "onnx", "precision='int8'")
    tools = optional_module("onnxruntime.quantization", "onnx", "precision='int8'")
    given = onnx.load_from_string(model)
    name = given.graph.input[0].name

    class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined]
        """Hands the images out once, in batches."""

        def __init__(self) -> None:
            self._parts = iter(range(0, len(images), _BATCH))

        def get_next(self) -> dict[str, Any] | None:
            start = next(self._parts, None)
            return None if start is None else {name: np.ascontiguousarray(images[start : start + _BATCH])}

    with tempfile.TemporaryDirectory() as place, _quiet():
        made = Path(place) / "int8.onnx"
        tools.quantize_static(
            given, made, Reader(), quant_format=tools.QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["Conv"], activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            # Without VNNI sums of two products are kept in 16 bits, which weights of 8 bits overflow.
            reduce_range=not has_vnni(),
            extra_options={"ActivationSymmetric": False},
        )  # fmt: skip
        return made.read_bytes()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tool warns through the root logger that the model was not prepared by another tool of its own."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
