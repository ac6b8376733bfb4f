"""The fastest way to train a network on a machine, found by timing a few steps, and remembered."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn import functional

from pricepix.location import write_json
from pricepix.train.device import Device
from pricepix.train.engines.cpu import cpu_name, has_amx
from pricepix.train.engines.folded import probe_inputs
from pricepix.train.models import Network

__all__ = ["fastest"]

VERSION: Final = 1
"""Of the file that remembers."""

_IMAGES: Final = 64
_ROUNDS: Final = 3
# A way that is not this much faster than the plain one is not worth other rounding.
_LEAST_GAIN: Final = 1.05

_log = logging.getLogger("pricepix.train")


def fastest(
    device: Device, network: Network, batch_size: int, before: Mapping[str, Any] | None = None
) -> Device:
    """Return a device whose memory format, and precision where AMX is, train a network fastest on this CPU.

    Parameters
    ----------
    device : Device
        As the caller asked; what it says of precision and memory format stays where it differs from the default. A GPU
        is left as it is.
    network : Network
        It is not changed.
    batch_size : int
    before : mapping, optional
        What the run that is resumed was started with: it goes on so, whatever is faster now.

    Notes
    -----
    Timed once for a machine, torch, number of threads, network and batch size: what was found stays in
    ``pricepix/training.json`` below ``$XDG_CACHE_HOME``, or ``~/.cache``. Other ways to compute round differently, so
    that what a seed gives depends on what was found.
    """
    if before is not None:
        return replace(
            device,
            channels_last=bool(before.get("channels_last")),
            precision=str(before.get("precision", device.precision)),
        )
    asked = device.channels_last or device.compile or device.precision != "32-true"
    if asked or device.own().type != "cpu" or network.takes != "images":
        return device
    key = _key(network, batch_size)
    rates = _remembered().get(key)
    if not _are_rates(rates):
        rates = _measure(network, min(batch_size, _IMAGES))
        _remember(key, rates)
    assert rates is not None
    best = max(rates, key=lambda name: rates[name])
    if rates[best] < _LEAST_GAIN * rates["plain"]:
        best = "plain"
    told = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    _log.info("%s trains %s on %s: images a second %s", network.spec.name, best, cpu_name(), told)
    return replace(
        device,
        channels_last=best != "plain",
        precision="bf16-mixed" if best == "channels last, bf16" else device.precision,
    )


def _measure(network: Network, count: int) -> dict[str, float]:
    """Return images a second of each way, by name; the shortest of a few steps of each in turn."""
    ways = {"plain": False, "channels last": False}
    if has_amx():
        ways["channels last, bf16"] = True
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        inputs = probe_inputs(network, count)
        steps: dict[str, Any] = {}
        for name, rough in ways.items():
            own = copy.deepcopy(network).train()
            if name != "plain":
                own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            steps[name] = (own, torch.optim.Adam(own.parameters(), lr=1e-5), rough)
        best = dict.fromkeys(ways, float("inf"))
        for i in range(_ROUNDS + 1):
            for name, (own, optimizer, rough) in steps.items():
                start = time.perf_counter()
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=rough):
                    given = own(inputs)
                functional.mse_loss(given.float(), torch.zeros_like(given, dtype=torch.float32)).backward()
                optimizer.step()
                if i:
                    best[name] = min(best[name], time.perf_counter() - start)
    return {name: round(count / seconds, 2) for name, seconds in best.items()}


def _key(network: Network, batch_size: int) -> str:
    spec = json.dumps(network.spec.to_dict(), sort_keys=True)
    what = (cpu_name(), platform.machine(), torch.__version__, torch.get_num_threads(), spec, batch_size)
    return hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest()


def _place() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "pricepix" / "training.json"


def _remembered() -> dict[str, Any]:
    """Return what was found before; nothing where the file is missing, damaged, or of another version."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(_place().read_text())
        if isinstance(content, dict) and content.get("version") == VERSION:
            rates = content.get("rates")
            return rates if isinstance(rates, dict) else {}
    return {}


def _are_rates(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and "plain" in found
        and set(found) <= {"plain", "channels last", "channels last, bf16"}
        and all(isinstance(rate, float | int) and rate > 0 for rate in found.values())
    )


def _remember(key: str, rates: dict[str, float]) -> None:
    # Where there is no home to write in, it is measured again.
    with contextlib.suppress(OSError):
        place = _place()
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, {"version": VERSION, "rates": {**_remembered(), key: rates}})
