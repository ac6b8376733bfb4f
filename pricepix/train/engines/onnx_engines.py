"""ONNX Runtime and OpenVINO: engines that run an exported network on a CPU."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from pricepix._checks import optional_module

__all__ = ["ENGINES", "OnnxRuntimeEngine", "OpenVinoEngine"]

_MEMBERS: Final = "member_scores"
# Images a call: measured with jkx20 on two cores, both engines are fastest from 16 to 64.
_BATCH: Final = 32


def _batches(inputs: NDArray[Any], size: int) -> list[NDArray[Any]]:
    """Return the inputs in batches; one that is empty where there are none, for its shape."""
    return [inputs[i : i + size] for i in range(0, max(1, len(inputs)), size)]


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU.

    Parameters
    ----------
    model : bytes
        An ONNX model, as ``pricepix.train.engines.exported.onnx_bytes`` makes it.
    batch : int, optional
        Images a call.

    Raises
    ------
    ImportError
        If onnxruntime is not installed; the message is the line that installs it.
    """

    extra: Final = "onnx"

    def __init__(self, model: bytes, batch: int | None = None) -> None:
        runtime = optional_module("onnxruntime", "onnx", "engine='onnxruntime'")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Else its threads spin between calls, where the thread that decodes needs the core.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input, self.batch = self._session.get_inputs()[0].name, batch or _BATCH

    def predict(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the members' scores, float32 (members, n), or (members, n, heads)."""
        found = [
            self._session.run([_MEMBERS], {self._input: np.ascontiguousarray(part)})[0]
            for part in _batches(inputs, self.batch)
            if len(part)
        ]
        return np.concatenate(found, axis=1) if found else self._nothing()

    def _nothing(self) -> NDArray[np.float32]:
        members, _, *heads = self._session.get_outputs()[1].shape
        return np.empty((members, 0, *heads), np.float32)


class OpenVinoEngine:
    """OpenVINO on the CPU, in float32 whatever the machine has.

    Parameters
    ----------
    model : bytes
        As of `OnnxRuntimeEngine`.
    batch : int, optional
        Images a request; as many requests as the machine serves at once are under way.

    Raises
    ------
    ImportError
        If openvino is not installed; the message is the line that installs it.
    """

    extra: Final = "openvino"

    def __init__(self, model: bytes, batch: int | None = None) -> None:
        openvino = optional_module("openvino", "openvino", "engine='openvino'")
        core = openvino.Core()
        settings = {
            # By itself it would round to bfloat16 where AMX is.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._compiled = core.compile_model(core.read_model(model=model), "CPU", settings)
        self._queue = openvino.AsyncInferQueue(self._compiled)
        self._queue.set_callback(self._take)
        self.batch = batch or _BATCH
        self._found: dict[int, NDArray[np.float32]] = {}

    def _take(self, request: Any, number: int) -> None:
        self._found[number] = np.array(request.get_output_tensor(1).data)

    def predict(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the members' scores, float32 (members, n), or (members, n, heads)."""
        self._found = {}
        if not len(inputs):
            members, _, *heads = (
                int(n.get_length()) if n.is_static else 0 for n in self._compiled.output(1).partial_shape
            )
            return np.empty((members, 0, *heads), np.float32)
        parts = _batches(inputs, self.batch)
        for number, part in enumerate(parts):
            self._queue.start_async([np.ascontiguousarray(part)], number)
        self._queue.wait_all()
        return np.concatenate([self._found[i] for i in range(len(parts))], axis=1)


ENGINES: Final[dict[str, Any]] = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}
"""Engines beside torch, by the names that ``score`` has for them, which are those of their packages."""
