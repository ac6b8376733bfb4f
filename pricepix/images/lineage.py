"""What images were made from: the attributes that a set of images carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pricepix._version import __version__
from pricepix.bars.panel import Panel
from pricepix.spec import ImageSpec
from pricepix.windows.index import WindowIndex
from pricepix.windows.labels import ReturnRule


@dataclass(frozen=True)
class Lineage:
    """What a set of images was made from, and how; ``attributes`` returns it as the set carries it."""

    spec: ImageSpec
    panel_fields: Sequence[str]
    tz: str | None
    windows: int
    instruments: int
    candidates: int
    drop_counts: Mapping[str, int]
    schedule: Mapping[str, Any]
    horizons: Sequence[int]
    rule: ReturnRule
    layout: str
    chunk: int
    died_within_horizon: Mapping[str, int] = field(default_factory=dict)
    """Forward returns, by horizon, of instruments that ended within it."""
    label_source: Mapping[str, Any] = field(default_factory=dict)
    """More attributes, for labels that were not computed from the panel."""

    def attributes(self) -> dict[str, Any]:
        """Return the attributes as JSON values; their order is part of a store's bytes."""
        return {
            "created_by": f"pricepix {__version__}",
            "spec": self.spec.to_dict(),
            "spec_digest": self.spec.digest,
            "panel_digest": None,
            "panel_fields": list(self.panel_fields),
            "windows": self.windows,
            "instruments": self.instruments,
            "candidates": self.candidates,
            "drop_counts": dict(self.drop_counts),
            "schedule": dict(self.schedule),
            "horizons": list(self.horizons),
            **self.label_source,
            "delay": self.rule.delay,
            "label_price": self.rule.price,
            "delisting": self.rule.delisting,
            "died_within_horizon": dict(self.died_within_horizon),
            "layout": self.layout,
            "chunk": self.chunk,
            "tz": self.tz,
        }


def lineage(
    panel: Panel,
    windows: WindowIndex,
    horizons: tuple[int, ...],
    rule: ReturnRule,
    layout: str,
    chunk: int,
) -> dict[str, Any]:
    """Return the attributes of images of a panel's windows: what they were made from, and how."""
    made = Lineage(
        spec=windows.spec,
        panel_fields=tuple(panel.fields),
        tz=panel.tz,
        windows=len(windows),
        instruments=panel.n_instruments,
        candidates=windows.candidates,
        drop_counts=windows.counts,
        schedule=windows.schedule,
        horizons=horizons,
        rule=rule,
        layout=layout,
        chunk=chunk,
        died_within_horizon=rule.deaths(panel, windows, horizons),
    )
    return made.attributes()
