"""Networks in files that other programs run: ONNX, and torch's own exported programs."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pricepix._checks import optional_module, printable, short
from pricepix._version import __version__
from pricepix.location import atomic_file
from pricepix.train.engines.folded import probe_inputs
from pricepix.train.models import Ensemble, Network, plain_values

__all__ = ["EXPORT_VERSION", "describe_export", "export_model", "onnx_bytes", "scores_of_file"]

EXPORT_VERSION: Final = 1
"""Of the description in an exported file."""

INPUT, SCORE, MEMBERS = "images", "score", "member_scores"
KEY: Final = "pricepix"
"""Name of the description: a metadata property of ONNX, a file in an archive of torch's."""

_SUFFIXES: Final = (".onnx", ".pt2")
_OPSET: Final = 18
_MOST_DIFFERENCE: Final = 1e-5


class Exported(nn.Module):
    """One or several networks as a program from inputs to scores: the mean, and those of each member."""

    def __init__(self, members: Sequence[Network], head: int | None) -> None:
        super().__init__()
        self.members, self.head = nn.ModuleList(members), head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n,) and (members, n) of images uint8 (n, height, width)."""
        found = []
        for member in self.members:
            score = member.scores(member(images))  # type: ignore[operator]
            found.append(score if self.head is None else score[:, self.head])
        every = torch.stack(found)
        return every.mean(dim=0), every


def export_model(
    model: Any,
    path: str | os.PathLike[str],
    *,
    horizon: int | None = None,
    module: Any = None,
    check: Any = None,
) -> dict[str, Any]:
    """Write a trained network as a program that runs without pricepix: ``.onnx``, or ``.pt2`` of torch.

    It takes images as they are stored, uint8 (n, height, width), row 0 at the top, any n, and normalises them itself.
    It gives ``score``, float32 (n,), the mean over the members of an ensemble, and ``member_scores``, (members, n).

    Parameters
    ----------
    model : path, Network, Ensemble or result of fit
        A checkpoint or the folder of a run; of a walk-forward run the folder of one fold.
    path : str or path
        A file whose name ends in ``.onnx`` or ``.pt2``; one that is there is replaced.
    horizon : int, optional
        Which of its horizons a network that learnt several answers for; all by default: scores are then
        (n, horizons).
    module : torch.nn.Module, class or function, optional
        As in `load_model`.
    check : ImageSet, numpy.ndarray or path, optional
        Images that the file and the network score: both must agree. By default a few made-up ones.

    Returns
    -------
    dict
        The description that the file holds under the name ``pricepix``: what it takes and gives, the spec of the
        images, the digest of the weights, the label that it learnt; and ``largest_difference`` of what was checked.

    Raises
    ------
    TypeError
        If `model` is not a network; a plain function has no weights to write.
    ValueError
        If the name ends otherwise, a network cannot be exported, or the file scores differently by more than 1e-5.
    ImportError
        If ``onnx`` is not installed; the message is the line that installs it.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"path is {printable(str(path))!r}: its name must end in {' or '.join(_SUFFIXES)}")
    members = members_of(model, module)
    head = _head(members[0], horizon)
    program, about = Exported(members, head).eval(), describe_export(members, head)
    given = _inputs_to_check(check, members[0])
    in_onnx = path.suffix == ".onnx"
    content = onnx_bytes(members, head, about) if in_onnx else _pt2_bytes(program, members[0], about)
    with torch.inference_mode():
        expected = program(torch.from_numpy(given))[0].numpy()
    with atomic_file(path) as temporary:
        Path(temporary).write_bytes(content)
        found = scores_of_file(temporary, given, path.suffix)
        about["largest_difference"] = float(np.abs(found - expected).max()) if len(given) else 0.0
        unit = float(members[0].scale.max()) if members[0].spec.outputs == 1 else 1.0
        if not about["largest_difference"] <= _MOST_DIFFERENCE * unit:
            raise ValueError(
                f"{path.name} would score {len(given)} images differently by up to {about['largest_difference']:.2g}, "
                f"more than {_MOST_DIFFERENCE:g}: nothing was written. Export to the other format"
            )
    return about


def members_of(model: Any, module: Any = None) -> list[Network]:
    """Return the networks of what a user calls a model, on the CPU, in evaluation."""
    from pricepix.train.checkpoints import load_model

    given = model
    if not isinstance(model, str | os.PathLike | nn.Module):
        module = getattr(model, "module", None) if module is None else module
        model = getattr(model, "out", model)
    if isinstance(model, str | os.PathLike):
        model = load_model(Path(model), module=module)
    if isinstance(model, Ensemble):
        return [member.cpu().eval() for member in model.members]  # type: ignore[misc]
    if isinstance(model, Network):
        return [model.cpu().eval()]
    if isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}, of which it is not known what it takes: train it with fit, and give "
            "the folder of the run"
        )
    what = (
        f"the function {getattr(given, '__qualname__', '')}"
        if callable(given)
        else f"a {type(given).__name__}"
    )
    raise TypeError(
        f"model is {printable(what)}, which has no weights to export: give a checkpoint, the folder of a run, a "
        "network or an Ensemble"
    )


def _head(network: Network, horizon: int | None) -> int | None:
    known = network.metadata.get("horizon")
    if horizon is None:
        return None
    if network.spec.heads == 1:
        if horizon != known:
            raise ValueError(
                f"horizon={horizon!r}, but the model was trained over {known} bars: leave it out"
            )
        return None
    if not isinstance(known, list) or horizon not in known:
        raise ValueError(f"horizon={horizon!r}: the model learnt {known} bars, choose one of them")
    return int(known.index(horizon))


def describe_export(members: Sequence[Network], head: int | None = None) -> dict[str, Any]:
    """Return what an exported file says of itself, as plain values."""
    first = members[0]
    about, spec = first.metadata, first.spec
    images = first.takes == "images"
    horizon = about.get("horizon")
    if head is not None and isinstance(horizon, list):
        horizon = horizon[head]
    return plain_values(
        {
            "format": "pricepix-export",
            "version": EXPORT_VERSION,
            "pricepix": __version__,
            "model": spec.name,
            "kind": first.kind,
            "digest": weights_digest(members),
            "members": len(members),
            "input": {
                "name": INPUT,
                "dtype": "uint8" if images else "float32",
                "shape": ["n", *first.input_shape],
                "takes": first.takes,
                "rows": "row 0 is the top of the image" if images else None,
                "pixels": "0 black, 255 white; normalised inside" if images else "normalised inside",
                "spec": about.get("image_spec"),
            },
            "output": {
                SCORE: "mean over the members, float32 (n,)",
                MEMBERS: "of each member, float32 (members, n)",
                "is": "probability of a rise" if spec.outputs == 2 else "score",
            },
            "label": {
                "target": about.get("target"),
                "horizon": horizon,
                "delay": about.get("delay"),
            },
            "seen_through": about.get("seen_through"),
        }
    )


def weights_digest(members: Sequence[Network]) -> str:
    """Return 32 hexadecimal digits of specs and weights, as a factor cache records them of a single network."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for member in members:
        digest.update(json.dumps(member.spec.to_dict(), sort_keys=True).encode())
        for name, value in sorted(member.state_dict().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def _inputs_to_check(check: Any, network: Network) -> NDArray[Any]:
    if check is None:
        return probe_inputs(network, 5).numpy()
    if isinstance(check, np.ndarray):
        return check
    if network.takes != "images":
        raise ValueError(
            "check takes images, but the model takes the numbers behind them: give an array of series"
        )
    from pricepix.store.image_store import open_images

    images = open_images(check)
    if images.spec.shape != network.input_shape:
        raise ValueError(
            f"check has images of {images.spec.shape[0]}x{images.spec.shape[1]}, the model takes "
            f"{network.input_shape[0]}x{network.input_shape[1]}: give images like those that it was trained on"
        )
    few = np.linspace(0, len(images) - 1, min(64, len(images))).astype(np.int64)
    return images.read(np.unique(few))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter, which notes each step and warns of its own parts, off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _example(network: Network) -> Tensor:
    # Two: torch takes a dimension of 1 for a constant.
    return probe_inputs(network, 2)


def onnx_bytes(
    members: Sequence[Network], head: int | None = None, about: Mapping[str, Any] | None = None
) -> bytes:
    """Return networks as an ONNX model, with its description among the metadata."""
    onnx = optional_module("onnx", "onnx", "a model in ONNX")
    optional_module("onnxscript", "onnx", "a model in ONNX")
    program = Exported(members, head).eval()
    shapes = ({0: torch.export.Dim("n", min=1)},)
    try:
        with _quiet(), torch.no_grad():
            made = torch.onnx.export(
                program, (_example(members[0]),), dynamo=True, dynamic_shapes=shapes, opset_version=_OPSET,
                input_names=[INPUT], output_names=[SCORE, MEMBERS], verbose=False, external_data=False,
            )  # fmt: skip
        assert made is not None
        model = made.model_proto
    except Exception as error:  # of any kind: what torch's exporter does not know
        raise _unexportable(members[0], "ONNX", error) from error
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(about if about is not None else describe_export(members, head))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _pt2_bytes(program: nn.Module, network: Network, about: Mapping[str, Any]) -> bytes:
    shapes = ({0: torch.export.Dim("n", min=1)},)
    buffer = io.BytesIO()
    try:
        with _quiet(), torch.no_grad():
            made = torch.export.export(program, (_example(network),), dynamic_shapes=shapes)
            torch.export.save(made, buffer, extra_files={f"{KEY}.json": json.dumps(about)})
    except Exception as error:  # of any kind, as above
        raise _unexportable(network, "torch's exported programs", error) from error
    return buffer.getvalue()


def _unexportable(network: Network, what: str, error: Exception) -> ValueError:
    why = printable(str(error).strip().partition("\n")[0])[:300]
    return ValueError(
        f"{network.spec.name} cannot be written as one of {what}: torch cannot follow its forward "
        f"({type(error).__name__}: {short(why, 300)}); leave out what depends on the values of a tensor"
    )


def scores_of_file(
    path: str | os.PathLike[str], inputs: NDArray[Any], suffix: str | None = None
) -> NDArray[Any]:
    """Return the scores of an exported file, by the program that reads it: torch, ONNX Runtime or OpenVINO."""
    if (suffix or Path(path).suffix) == ".pt2":
        with _quiet(), torch.inference_mode():
            program = torch.export.load(io.BytesIO(Path(path).read_bytes()))
            return np.asarray(program.module()(torch.from_numpy(inputs))[0].numpy())
    from pricepix.train.engines.onnx_engines import ENGINES

    content = Path(path).read_bytes()
    for name, kind in ENGINES.items():
        if importlib.util.find_spec(name) is not None:
            return np.asarray(kind(content).predict(inputs).mean(axis=0))
    optional_module("onnxruntime", "onnx", f"checking {Path(path).name}, one of {', '.join(ENGINES)},")
    raise AssertionError
