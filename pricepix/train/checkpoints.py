"""Checkpoints of networks: ours, and those of other projects."""

from __future__ import annotations

import logging
import pickletools
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pricepix._checks import printable, short
from pricepix.location import Location, atomic_file, check_regular
from pricepix.store.sealed_files import check_archive, seal_archive
from pricepix.train.card import model_card
from pricepix.train.models import (
    PRESETS,
    SERIES_PRESETS,
    AnySpec,
    CNNSpec,
    Ensemble,
    ModuleSpec,
    Network,
    PriceCNN,
    SeriesCNN,
    SeriesSpec,
)
from pricepix.train.modules import (
    TIMM,
    MakeModule,
    ModuleNetwork,
    TimmModule,
    difference,
    make_module,
)
from pricepix.train.run_folder import missing_member

CHECKPOINT_VERSION = 2
"""Version 1 was the same without a checksum at the end, and is still read."""

_FORMAT = "pricepix-model"
_MOST_BYTES = 4 << 30

_log = logging.getLogger("pricepix.train")


def save_model(
    model: Network, path: str | Path, *, card: bool = False, results: Mapping[str, Any] | None = None
) -> None:
    """Save spec, weights, normalising statistics and metadata in one file of plain tensors and values.

    Parameters
    ----------
    model : Network
    path : str or Path
    card : bool
        Write a model card beside it, ``<path>.md``.
    results : mapping, optional
        Test metrics for the card, such as ``run.test``.
    """
    if results is not None and not card:
        raise ValueError("results are for the card: give card=True, or leave them out")
    write_checkpoint(describe(model) | {"state_dict": model.state_dict()}, path)
    if card:
        with atomic_file(f"{path}.md") as partial:
            partial.write_text(model_card(model, results), encoding="utf-8")


def write_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint, or replace it at once: a kill in the middle leaves the old one whole."""
    with atomic_file(path) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as error:
            why = printable(str(error).strip().partition("\n")[0])[:300]
            raise OSError(f"{path} cannot be written, as on a full disk: {why}") from error
        seal_archive(partial)


def describe(model: Network) -> dict[str, Any]:
    """Return what a checkpoint needs besides the weights to rebuild the model."""
    return {
        "format": _FORMAT,
        "version": CHECKPOINT_VERSION,
        "kind": model.kind,
        "spec": model.spec.to_dict(),
        "metadata": model.metadata,
    }


def load_model(
    path: str | Path,
    *,
    mean_std: tuple[float, float] | None = None,
    first_row: Literal["top", "bottom"] | None = None,
    module: nn.Module | MakeModule | None = None,
) -> Network | Ensemble:
    """Load a checkpoint, or a run's folder with one model or an ensemble.

    Parameters
    ----------
    path : str or Path
        A checkpoint of pricepix, or of another project whose layers are recognised by their names; or the
        folder of a run, whose members' best checkpoints ``member_*/best.ckpt`` are averaged.
    mean_std : (float, float), optional
        Mean and standard deviation of the pixels that a foreign network was trained with. Its checkpoint does
        not hold them.
    first_row : {"top", "bottom"}, optional
        Which row of an image a foreign network expects first, where it is not the family's usual one.
    module : torch.nn.Module, class or function, optional
        The module that the weights are of, or what makes one without arguments. Needed where a module of your own
        was trained: files are data, so that a checkpoint holds its weights and not its code. The module itself is
        left as it is.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or the folder lacks a member of its run.
    ValueError
        If the file is damaged, is not a checkpoint of a known architecture, or needs a module, or another one.
    """
    path = Path(path)
    if not path.is_dir():
        return _load_one(path, mean_std, first_row, module)
    found = sorted(path.glob("member_*/best.ckpt")) or sorted(path.glob("best.ckpt"))
    if not found:
        raise FileNotFoundError(
            f"{path} holds no member_*/best.ckpt; give a checkpoint or the folder of a run"
        )
    missing = missing_member(path)
    if missing is not None:
        raise FileNotFoundError(
            f"{missing / 'best.ckpt'} is missing, one of the networks that the run averages: resume the run, restore "
            "the file, or give a single checkpoint"
        )
    models = [_load_one(file, mean_std, first_row, module) for file in found]
    return models[0] if len(models) == 1 else Ensemble(models)


def load(path_or_url: str | Path, **options: Any) -> Network | Ensemble:
    """Load weights from a file, a run's folder, or a URL such as ``s3://bucket/best.ckpt``; nothing in them is run.

    Parameters
    ----------
    path_or_url : str or Path
        A URL needs ``pip install 'pricepix[cloud]'``, and names one file of at most 4 GiB.
    **options
        Of `load_model`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a checkpoint of a known architecture.
    """
    if "://" not in str(path_or_url):
        return load_model(path_or_url, **options)
    folder, _, name = str(path_or_url).rpartition("/")
    content = Location.of(folder).get(name, _MOST_BYTES)
    if content is None:
        raise FileNotFoundError(f"there is no checkpoint {path_or_url}")
    with tempfile.TemporaryDirectory() as place:
        own = Path(place) / (printable(name, "") or "checkpoint")
        own.write_bytes(content)
        return load_model(own, **options)


@dataclass(frozen=True)
class _Family:
    """How a foreign family names its layers; `{}` stands for the block's number."""

    name: str
    conv: str
    norm: str
    linear: str
    first: int
    # (blocks, features into the linear layer) -> preset
    presets: Mapping[tuple[int, int], str] = field(default_factory=dict)


_FAMILIES = (
    _Family(
        "jkx (the authors' code)",
        "conv_layers.{}.0",
        "conv_layers.{}.1",
        "fc",
        0,
        {
            (2, 15_360): "jkx5",
            (3, 46_080): "jkx20",
            (4, 184_320): "jkx60",
            (1, 192): "cnn1d5",
            (2, 640): "cnn1d20",
            (3, 2_048): "cnn1d60",
        },
    ),
    _Family(
        "cnn_for_trading",
        "conv{}.Conv",
        "conv{}.BN",
        "FC",
        1,
        {(2, 15_360): "cnnft5", (3, 46_080): "cnnft20", (2, 175_232): "cnn49u", (2, 6_272): "cnn9u"},
    ),
    _Family("lich99", "layer{}.0", "layer{}.1", "fc1.1", 1, {(3, 46_080): "lich20"}),
)


def read_checkpoint(path: Path) -> Mapping[Any, Any]:
    """Return what a checkpoint of plain tensors and values holds; nothing in it is run.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, is not such a checkpoint, or would take more memory than the file has bytes.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    check_regular(path)
    sealed = check_archive(path)
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises UnpicklingError, RuntimeError, EOFError or others, by kind of damage, and pages of advice.
        why = printable(str(error).strip().partition("\n")[0])[:300]
        raise ValueError(
            f"{path} is not a checkpoint of plain tensors that torch can load safely: {why}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; a checkpoint is a dict of tensors")
    if not sealed and content.get("format") == _FORMAT and content.get("version") != 1:
        raise ValueError(
            f"{path} does not end in its checksum: it is damaged, or was changed by another program; restore it, or "
            "write it with pricepix.train.save_model"
        )
    return content


def _check_archive(path: Path) -> None:
    """Raise ValueError if a checkpoint's archive would expand, or makes memory that the file does not fill."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # torch stores records as they are, but reads compressed ones, of which 4 MB may hold 4 GB.
            if entry.file_size > entry.compress_size:
                raise ValueError(f"its record {short(entry.filename)} is compressed")
            if entry.filename.endswith("data.pkl"):
                for operation, argument, _ in pickletools.genops(archive.read(entry)):
                    # Harmless code, of which torch allows it: any number of bytes out of nothing.
                    if operation.name == "GLOBAL" and "bytearray" in str(argument):
                        raise ValueError("it holds a bytearray")


def _load_one(
    path: Path,
    mean_std: tuple[float, float] | None,
    first_row: Literal["top", "bottom"] | None,
    module: nn.Module | MakeModule | None,
) -> Network:
    content = read_checkpoint(path)
    header = content.get("pricepix", content)
    model: Network
    if isinstance(header, Mapping) and header.get("format") == _FORMAT:
        model = _load_own(path, header, content.get("state_dict"), module)
        family = "pricepix"
    else:
        model, family = _load_foreign(path, content)
    if module is not None and not isinstance(model, ModuleNetwork):
        raise ValueError(
            f"{path} holds a network of pricepix, {model.spec.name}, which is made without a module: leave module out"
        )
    if first_row is not None and isinstance(model, PriceCNN):
        model.spec = model.spec.replace(first_row=first_row)
    if mean_std is not None:
        model.set_normalisation(*mean_std)
    model.family = family
    model.eval()
    _log.info("%s: recognised %s, architecture %s", path, family, model.spec.name)
    return model


def _load_own(
    path: Path, header: Mapping[str, Any], state: Any, module: nn.Module | MakeModule | None
) -> Network:
    if header.get("version") not in (1, CHECKPOINT_VERSION):
        raise ValueError(
            f"{path} is a model of format version {short(header.get('version'))}; "
            f"this pricepix reads versions 1 and {CHECKPOINT_VERSION}"
        )
    kinds: dict[str, type] = {"PriceCNN": CNNSpec, "SeriesCNN": SeriesSpec, "ModuleNetwork": ModuleSpec}
    kind, metadata = header.get("kind"), header.get("metadata")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{path} holds a network of kind {short(kind)}, expected one of {', '.join(kinds)}")
    if not isinstance(state, Mapping) or not isinstance(metadata, Mapping):
        wrong = "state_dict" if not isinstance(state, Mapping) else "metadata"
        raise ValueError(f"{path}: its {wrong} is {short(header.get(wrong, state))}, expected a dict")
    try:
        spec: AnySpec = kinds[kind].from_dict(header.get("spec"))  # type: ignore[attr-defined]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} describes a network that cannot be: {error}") from None
    if isinstance(spec, ModuleSpec):
        model: Network = _load_module(path, spec, state, module)
        model.metadata = dict(metadata)
        return model
    own = {_strip(str(key)): value for key, value in state.items()}
    known = _expected_tensors(spec)
    # A training loop's checkpoint has tensors of its own, but a layer too many is another network.
    layers = ("blocks.", "linear.")
    model = _filled(path, spec, {k: v for k, v in own.items() if k in known or k.startswith(layers)})
    model.metadata = dict(metadata)
    return model


def _load_module(
    path: Path, spec: ModuleSpec, state: Mapping[str, Any], made_by: nn.Module | MakeModule | None
) -> ModuleNetwork:
    """Make the network of a module that the caller gives, or timm, with the weights of a checkpoint."""
    if made_by is None:
        if not spec.source.startswith(TIMM):
            raise ValueError(
                f"{path} holds the weights of {spec.source}, a module of your own: its code is not in the file. Pass "
                f"the module, or what makes it: load_model(path, module={spec.name}), or score(images, run, cache, "
                f"module={spec.name})"
            )
        name, columns = spec.source.removeprefix(TIMM), spec.columns

        def made_by() -> nn.Module:
            return TimmModule(name, columns)

    with torch.random.fork_rng(devices=[]):
        module = make_module(made_by, spec)
        if wrong := difference(spec, module, state):
            raise ValueError(
                f"{path} holds the weights of {spec.source}; the module given is another: {wrong}. Pass the module "
                "that was trained"
            )
    network = ModuleNetwork(spec, module)
    own = network.state_dict()
    faults = [fault for key, value in own.items() if (fault := _fault(key, state.get(key), value))]
    if faults or set(state) - set(own):
        raise ValueError(
            f"{path} is damaged: {faults[0] if faults else 'it holds tensors of another network'}"
        )
    network.load_state_dict(dict(state))
    return network


def _expected_tensors(spec: CNNSpec | SeriesSpec) -> dict[str, Tensor]:
    """Return the tensors that a network has, without memory behind them: a spec may ask for more than there is."""
    with torch.device("meta"):
        return _blank(spec).state_dict()


def _blank(spec: CNNSpec | SeriesSpec) -> PriceCNN | SeriesCNN:
    """Make a network whose start values do not matter, without drawing from the caller's generator."""
    with torch.random.fork_rng(devices=[]):
        return PriceCNN(spec) if isinstance(spec, CNNSpec) else SeriesCNN(spec)


def _strip(key: str) -> str:
    """Drop the prefixes that wrappers put before names: DataParallel, torch.compile, the training loop."""
    for prefix in ("module.", "network.", "_orig_mod.", "model."):
        key = key.removeprefix(prefix)
    return key


def _load_foreign(path: Path, content: Mapping[str, Any]) -> tuple[PriceCNN | SeriesCNN, str]:
    state: Any = content
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            state = content[key]
            break
    tensors = {_strip(str(key)): value for key, value in state.items() if isinstance(value, Tensor)}
    for family in _FAMILIES:
        blocks = 0
        while f"{family.conv.format(blocks + family.first)}.weight" in tensors:
            blocks += 1
        weight = tensors.get(f"{family.linear}.weight")
        if not blocks or weight is None or weight.ndim != 2:
            continue
        found = family.presets.get((blocks, weight.shape[1]))
        if found is None:
            raise ValueError(
                f"{path} names its layers as {family.name} does, but {blocks} blocks that end in "
                f"{weight.shape[1]} features are none of its networks: {', '.join(family.presets.values())}"
            )
        outputs = weight.shape[0]
        try:
            spec = (PRESETS if found in PRESETS else SERIES_PRESETS)[found].replace(outputs=outputs)
        except ValueError as error:
            raise ValueError(f"{path} holds a network that cannot be: {error}") from None
        model = _blank(spec.replace(outputs=1))
        renamed = {name: getattr(model, name).clone() for name in ("mean", "std", "scale")}
        for i in range(blocks):
            for part, prefix in (("0", family.conv), ("1", family.norm)):
                start = prefix.format(i + family.first) + "."
                names = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
                renamed |= {f"blocks.{i}.{part}.{k}": v for k, v in names.items()}
        renamed |= {
            f"linear.{k.removeprefix(family.linear + '.')}": v
            for k, v in tensors.items()
            if k.startswith(family.linear + ".")
        }
        return _filled(path, spec, renamed), family.name
    found_names = sorted(tensors)
    raise ValueError(
        f"{path} is a checkpoint of another architecture: its {len(found_names)} tensors "
        f"({', '.join(printable(name[:60], '') for name in found_names[:4])}, ...) are not named as in pricepix, "
        f"{', '.join(family.name for family in _FAMILIES)}"
    )


def _filled(path: Path, spec: CNNSpec | SeriesSpec, state: Mapping[str, Any]) -> PriceCNN | SeriesCNN:
    """Make the network of a spec with these weights; it is made only if they are those of the spec, and all there."""
    own = _expected_tensors(spec)
    wrong = [fault for key, value in own.items() if (fault := _fault(key, state.get(key), value))]
    extra = sorted(set(state) - set(own))
    if wrong or extra:
        problem = wrong[0] if wrong else f"{short(extra[0])} is not part of the network"
        raise ValueError(
            f"{path} is a checkpoint of another architecture than {spec.name}: {problem} "
            f"({len(wrong) + len(extra)} tensors differ)"
        )
    model = _blank(spec)
    model.load_state_dict(state)
    return model


def _fault(key: str, found: Any, expected: Tensor) -> str:
    """Return what is wrong with a tensor of a checkpoint, or nothing."""
    if found is None:
        return f"{key} is missing, expected {tuple(expected.shape)}"
    if not isinstance(found, Tensor):
        return f"{key} is {short(found)}, expected a tensor of {tuple(expected.shape)}"
    if found.shape != expected.shape:
        return f"{key} is {tuple(found.shape)}, expected {tuple(expected.shape)}"
    plain = found.layout == torch.strided and found.device.type == "cpu" and not found.is_quantized
    if not plain or found.is_floating_point() != expected.is_floating_point() or found.is_complex():
        return f"{key} is of type {found.dtype} in layout {found.layout}, expected plain {expected.dtype}"
    # A view may repeat a few stored values as often as it likes.
    if found.numel() * found.element_size() > found.untyped_storage().nbytes():
        return f"{key} claims more values than the file holds"
    return ""
