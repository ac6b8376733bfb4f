"""Model cards: what a network was trained on, until when, and how good it was, in a page beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pricepix._checks import printable
from pricepix._version import __version__
from pricepix.train.models import Network

__all__ = ["model_card"]


def model_card(network: Network, results: Mapping[str, Any] | None = None) -> str:
    """Return a model card, in Markdown.

    Parameters
    ----------
    network : Network
        Its ``metadata`` says what it was trained on; what that does not say is called unknown, not left out.
    results : mapping, optional
        Test metrics as `FitResult.test` has them.

    Returns
    -------
    str
    """
    known = network.metadata
    lines = [f"# Model card: {_text(network.spec.name)}", "", "## Network", ""]
    lines += _table(
        {
            "kind": f"{network.kind}, {network.parameter_count:,} parameters",
            "weights from": network.family,
            "takes": f"{network.takes}, {' x '.join(map(str, network.input_shape))}",
            "gives": _gives(network),
            "code": getattr(network.spec, "source", "pricepix"),
            "image spec": known.get("stack", known.get("image_spec")),
            "started from": known.get("tuning"),
        }
    )
    universe = known.get("universe") or {}
    lines += ["", "## Data", ""]
    lines += _table(
        {
            "digest of the images": known.get("store_digest"),
            "universe": _universe(universe),
            "training": _part(known.get("train"), known.get("train_images")),
            "validation": _part(known.get("validation")),
            "seen through": known.get("seen_through"),
        }
    )
    seen = known.get("seen_through")
    warning = (
        f"Nothing before {_text(seen)} is out of sample."
        if seen
        else "It is not known what this network has seen: no date can be called out of sample."
    )
    lines += ["", warning, "", "## Target", ""]
    lines += _table(
        {
            "target": known.get("target"),
            "horizon, in bars": known.get("horizon"),
            "delay, in bars": known.get("delay"),
            "balance": known.get("balance"),
            "loss": known.get("loss", "auto") if known else None,
            "weights of samples": known.get("weights", "none") if known else None,
            "seed and member": f"{known['seed']}, {known['member']}"
            if {"seed", "member"} <= set(known)
            else None,
            "training": known.get("hyper"),
        }
    )
    lines += ["", "## Results", "", *_results(results), ""]
    lines += [
        f"Written by pricepix {__version__}; trained with {_text(known.get('pricepix', 'an unknown version'))}.",
        "",
    ]
    return "\n".join(lines)


def _results(results: Mapping[str, Any] | None) -> list[str]:
    if not results:
        return ["No results were given."]
    found = []
    for name, value in results.items():
        if name in ("standard_error", "heads"):
            continue
        shown = (
            f"{value:.4f}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else _text(value)
        )
        if name == "accuracy" and "standard_error" in results:
            shown += f" +- {results['standard_error']:.4f}"
        found.append((name.replace("_", " "), shown))
    note = (
        "On the test part, out of sample. The standard error takes images as independent: overlapping labels are "
        "not."
    )
    return [*_table(dict(found)), "", note]


def _table(values: Mapping[str, Any]) -> list[str]:
    rows = [f"| {name} | {_text('unknown' if value is None else value)} |" for name, value in values.items()]
    return ["| | |", "|---|---|", *rows]


def _text(value: Any) -> str:
    """A value on one line that neither ends a cell nor is markup: names may come out of files."""
    if isinstance(value, Mapping):
        value = ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
    text = printable(str(value), "")[:2000]
    for character in "\\|<>`*_[]":
        text = text.replace(character, f"\\{character}")
    return text


def _gives(network: Network) -> str:
    spec = network.spec
    each = "a number" if spec.outputs == 1 else f"{spec.outputs} classes"
    return each if spec.heads == 1 else f"{each} for each of {spec.heads} horizons"


def _universe(universe: Any) -> str | None:
    if not isinstance(universe, Mapping) or not universe:
        return None
    return f"{universe.get('instruments')} instruments, {universe.get('windows')} windows"


def _part(part: Any, images: Any = None) -> str | None:
    if not isinstance(part, Mapping) or "first" not in part:
        return None
    return f"{part['first']} to {part['last']}, {part.get('images') if images is None else images} images"
