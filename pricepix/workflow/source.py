"""Where the bars of a run come from, and what each of its steps reads of them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pricepix import samples
from pricepix.bars.panel import Panel
from pricepix.bars.times import DAY_NS, as_time
from pricepix.bars.vendors.by_name import read_bars
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.spec import ImageSpec
from pricepix.workflow.config import Config, Store

if TYPE_CHECKING:
    from pricepix.store.image_store import ImageStore

__all__ = ["MarketSource", "Source", "TableSource", "source_of"]


class Source(Protocol):
    """Bars, as the steps of a run need them."""

    name: str
    """What the bars are, in a line."""

    @property
    def panel(self) -> Panel:
        """All bars, in memory."""

    def build(self, spec: ImageSpec, path: str | Path, store: Store, **options: Any) -> ImageStore:
        """Draw the bars into a store."""

    def training_panel(self) -> Panel | None:
        """Return the bars that a series model learns from; None where only images are learned from."""

    def scoring_panel(self) -> Any:
        """Return what a factor cache takes its calendar from."""

    def evaluation_panel(self, settings: dict[str, Any], store: ImageStore) -> Panel:
        """Return the bars that an evaluation with these settings looks at."""


def source_of(config: Config, progress: bool) -> Source:
    """Return the bars of a configuration."""
    return TableSource(config, progress) if config.data.market_cache is None else MarketSource(config)


class TableSource:
    """Bars of a table or a sample: one panel serves every step."""

    def __init__(self, config: Config, progress: bool) -> None:
        data = config.data
        table: Any = data.source
        if data.sample is not None:
            table = samples.stocks() if data.sample == "stocks" else samples.simulate(**data.simulate)
        reading = data.arguments("source", "sample", "simulate")
        if data.vendor is not None:
            # A saved file spells out the defaults of everything, where the vendor has some of its own.
            reading = {name: value for name, value in reading.items() if value != data.default(name)}
        self._panel = read_bars(table, progress=progress, **reading)
        self.name = repr(self._panel)

    @property
    def panel(self) -> Panel:
        """All bars."""
        return self._panel

    def build(self, spec: ImageSpec, path: str | Path, store: Store, **options: Any) -> ImageStore:
        from pricepix.build.universe import render_universe

        return render_universe(self._panel, spec, path, **store.arguments("path", "images"), **options)

    def training_panel(self) -> Panel:
        return self._panel

    def scoring_panel(self) -> Panel:
        return self._panel

    def evaluation_panel(self, settings: dict[str, Any], store: ImageStore) -> Panel:
        return self._panel


class MarketSource:
    """Bars of a market cache, which may be larger than memory: each step reads what it needs of them.

    The build reads a stretch of days at a time, scoring only their times, and the evaluation the days that
    are evaluated and those around them that horizons and baselines need. Networks learn from the store only;
    baselines on the numbers behind the images need all bars. An evaluation lays what it reads out on grids of
    bars by stocks: see the notes of ``evaluate``.
    """

    def __init__(self, config: Config) -> None:
        from pricepix.bars import MarketCache

        data = config.data
        self._cache = MarketCache(data.market_cache or "", data.files, session=data.session or "ashare")
        self._day = self._cache.day_range(data.days)
        given = data.arguments()
        self._reading: dict[str, Any] = {
            **{name: given[name] for name in ("no_trade", "filtered", "decimals") if name in given},
            "adjust": data.adjust is not None,
            "anchor": data.anchor,
            "on_bad": data.on_bad,
        }
        self._learns_series = config.train is not None and config.train.model.startswith(
            ("cnn1d", "logistic")
        )
        self.name = repr(self._cache)

    def build(self, spec: ImageSpec, path: str | Path, store: Store, **options: Any) -> ImageStore:
        from pricepix.build import MarketReading, StoreOptions, WindowChoice, build_market_store

        given = store.arguments("path", "images", "workers", "price", "delisting")

        def taken(kind: type) -> Any:
            """Return an option object of the keys that belong to it."""
            return kind(**{f.name: given.pop(f.name) for f in fields(kind) if f.name in given})

        return build_market_store(
            self._cache,
            spec,
            path,
            windows=taken(WindowChoice),
            reading=MarketReading(days=self._day, **self._reading),
            options=taken(StoreOptions),
            threads=1 if store.workers == 0 else store.workers,
            **given,
            **options,
        )

    @property
    def panel(self) -> Panel:
        """All bars, read into memory."""
        return self._cache.panel(self._day, **self._reading)

    def training_panel(self) -> Panel | None:
        return self.panel if self._learns_series else None

    def scoring_panel(self) -> Any:
        kind = {name: value for name, value in self._reading.items() if name == "no_trade"}
        return self._cache.calendar(self._day, **kind)

    def evaluation_panel(self, settings: dict[str, Any], store: ImageStore) -> Panel:
        """The days from `start` to `end`, or to the last one with an image, and those around them."""
        from pricepix.factor.evaluation.evaluate import bars_needed

        cache, all_days = self._cache, self._day
        per_year = 252.0 * cache.intervals if cache.session.periods is not None else 365.0 * cache.intervals
        before, after = bars_needed(per_year, **settings)
        edge = -(-len(store) // INDEX_CHUNK)
        head, tail = store.column("time", 0, 1), store.column("time", edge - 1, edge)
        shown = cache.days[all_days].astype("datetime64[ns]").astype(np.int64)
        first = int(head[0]) if settings.get("start") is None else as_time(settings["start"], store.tz)
        last = int(tail[-1]) if settings.get("end") is None else as_time(settings["end"], store.tz, end=True)
        # Days are those of the market's clock, at most one off from those of the world's.
        a, b = (int(np.searchsorted(shown, ns)) for ns in (first - DAY_NS, last + DAY_NS))
        a -= -(-(before + store.spec.lookback) // cache.intervals) + 1
        b += -(-after // cache.intervals) + 1
        days = slice(all_days.start + max(a, 0), min(all_days.start + b, all_days.stop))
        return cache.panel(days, **self._reading)
