"""How every network of a replication is trained: what may differ from the paper, in one object."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pricepix._checks import bars, choice, number, whole_number_or_none
from pricepix.bars.panel import Panel
from pricepix.train.hyper import Hyper
from pricepix.train.network_spec import CNNSpec

__all__ = ["Training"]


@dataclass(frozen=True)
class Training:
    """How networks are trained and scored.

    Attributes
    ----------
    every : {"period", "bar"}
        Which windows train and are scored: those at the ends of the periods at which portfolios are formed (weeks for
        horizons of 5 days, months for 20, quarters for 60, else every `horizon` bars), or those of all bars. All bars
        give so many times as many images, whose labels overlap.
    hyper : Hyper or str
        ``"paper"``: Adam, 1e-5, batches of 128, at most 50 epochs, patience of 2.
    channels : float
        Share of the authors' channels: 1 for their networks, less for smaller ones.
    networks : mapping of (height, width) to CNNSpec
        Networks for images of these sizes in place of the authors'.
    rebuild : {"auto", "returns", None}
        ``"returns"`` rebuilds the prices of every image from total returns, as the authors do; ``"auto"`` does so where
        the panel has them.
    delay : int
        Bars from an image's last bar to the entry, of labels and of portfolios.
    device : str, optional
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; by default a GPU where there is one.
    precision : str
        As in lightning's Fabric.
    threads : int, optional
        Threads that compute. Weights are the same bit by bit on CPUs of one kind with the same number.
    checkpoint_minutes : float
        Longest time between checkpoints from which an interrupted task resumes.
    stores : mapping of str to path
        Image stores by the name of the image, such as ``{"I20": "images/jkx20.zarr"}``: images are read from them; all
        others are drawn from the panel as they are needed. Pixels are the same, and so are weights. A store must show
        the panel's bars in the cell's own spec, with returns over its horizons, and on a cluster lie where every worker
        finds it.
    """

    every: Literal["period", "bar"] = "period"
    hyper: Hyper | str = "paper"
    channels: float = 1.0
    networks: Mapping[tuple[int, int], CNNSpec] = field(default_factory=dict)
    rebuild: Literal["auto", "returns"] | None = "auto"
    delay: int = 0
    device: str | None = None
    precision: str = "32-true"
    threads: int | None = None
    checkpoint_minutes: float = 10.0
    stores: Mapping[str, str | os.PathLike[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choice(self.every, "every", ("period", "bar"))
        choice(self.rebuild, "rebuild", ("auto", "returns", None))
        number(self.channels, "channels", above=True)
        bars(self.delay, "delay", 0)
        whole_number_or_none(self.threads, "threads", 1)
        object.__setattr__(self, "hyper", Hyper.of(self.hyper))
        if not all(isinstance(place, str | os.PathLike) for place in self.stores.values()):
            raise TypeError(
                "stores: give the paths of image stores by the name of the image, such as {'I20': 'jkx20.zarr'}: "
                "workers open them themselves"
            )
        object.__setattr__(self, "stores", {name: os.fspath(place) for name, place in self.stores.items()})

    @property
    def settings(self) -> Hyper:
        """The hyper-parameters."""
        return Hyper.of(self.hyper)

    def resolved(self, panel: Panel) -> Training:
        """Return it with ``rebuild="auto"`` resolved for a panel."""
        if self.rebuild != "auto":
            return self
        return replace(self, rebuild="returns" if "total_return" in panel.fields else None)

    def describe(self) -> dict[str, Any]:
        """Return what decides the weights and scores, as plain values."""
        return {
            "every": self.every,
            "hyper": asdict(self.settings),
            "channels": self.channels,
            "networks": {f"{h}x{w}": spec.to_dict() for (h, w), spec in sorted(self.networks.items())},
            "rebuild": self.rebuild,
            "delay": self.delay,
            "precision": self.precision,
        }
