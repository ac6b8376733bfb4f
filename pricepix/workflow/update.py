"""Every evening: read what is new, append it, score it with a model that stays, export, and report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import numpy as np

from pricepix._checks import BadBarsError, printable
from pricepix._version import __version__
from pricepix.bars.panel import Panel
from pricepix.bars.times import as_time, to_series
from pricepix.build.append import append
from pricepix.location import BUILD, Location, atomic_file
from pricepix.store.image_store import open_store
from pricepix.store.lock import WriteLock
from pricepix.workflow.config import Config, join_path, load_config
from pricepix.workflow.config import Update as Settings
from pricepix.workflow.feed import check_feed, feed_options
from pricepix.workflow.health import examine, memory_mb, read_alarms
from pricepix.workflow.health_page import health_page, prometheus_text
from pricepix.workflow.ledger import Known, Ledger
from pricepix.workflow.pipeline import is_there, store_path
from pricepix.workflow.revisions import CLASSES, Revisions, apply_policies, find_revisions
from pricepix.workflow.source import source_of

if TYPE_CHECKING:
    from pricepix.factor.cache import FactorCache
    from pricepix.store.image_store import ImageStore

__all__ = ["UpdateResult", "update"]

_LOG: Final = logging.getLogger(__name__)
VERSION: Final = 1
"""Of ``update.json``."""


@dataclass
class UpdateResult:
    """What an update did."""

    out: str | Path
    known: str
    """When its values became known."""
    bars_through: str = ""
    """Time of the newest bar."""
    nothing_new: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    """``bars_new``, ``windows``, ``windows_added``, ``returns_filled``; ``scores_added``, ``scores_revised``,
    ``scores_removed``, ``scores_kept``; ``instruments_expected``, ``instruments_present``, ``bars_forming``,
    ``steps_missing``; and the instruments of each class of revisions."""
    notes: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    """Limits of the section ``update.health`` that are passed, a sentence each."""
    exports: list[str | Path] = field(default_factory=list)
    model: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each step."""
    memory_mb: dict[str, float | None] = field(default_factory=dict)
    """The most memory that the process had held by the end of each step, in MB; None where that is not known."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "version": VERSION,
            "pricepix": __version__,
            "out": str(self.out),
            "known": self.known,
            "bars_through": self.bars_through,
            "nothing_new": self.nothing_new,
            **self.counts,
            "notes": self.notes,
            "alarms": self.alarms,
            "exports": [str(path) for path in self.exports],
            "model": self.model,
            "seconds": self.seconds,
            "memory_mb": self.memory_mb,
        }

    def __str__(self) -> str:
        if self.nothing_new:
            return printable(
                f"nothing new: bars through {self.bars_through} were used before\n" + self._notes()
            )
        counts = self.counts
        lines = [f"bars      {counts['bars_new']:,} new, through {self.bars_through}"]
        lines.append(
            f"images    {counts['windows_added']:,} added, {counts['returns_filled']:,} returns became known, "
            f"{counts['windows']:,} in all"
        )
        if "scores_added" in counts:
            parts = [
                f"{counts[f'scores_{name}']:,} {name}" for name in ("added", "revised", "removed", "kept")
            ]
            lines.append(f"scores    {', '.join(parts)}, by {self.model}")
        lines += [f"export    {path}" for path in self.exports]
        return printable("\n".join(lines) + "\n" + self._notes())

    def _notes(self) -> str:
        lines = [f"note      {note}" for note in self.notes] + [f"ALARM     {alarm}" for alarm in self.alarms]
        return "\n".join(lines)


def update(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    now: Any = None,
    echo: Callable[[str], Any] | None = None,
    client: Any = None,
    progress: bool = False,
) -> UpdateResult:
    """Bring the images and the factor of a configuration up to the bars that there are now.

    Reads the bars, holds them against those of the last update, appends what came to the store, scores what is new
    or revised, writes the exports, and says what it did. Running it again without new bars does nothing; one that
    was killed goes on where it stopped. Readers of the store and of the factor may have them open meanwhile.

    Parameters
    ----------
    config : Config, mapping, str or path
        A configuration, or its file, as ``run`` takes it. The section ``update`` says what happens to a feed that is
        not whole and to a history that was revised; ``train: {frozen: ...}`` names the model.
    now : str, datetime or int, optional
        The time, in the zone of the market; by default what the clock says. It is when the scores become known, and
        bars that end later are still forming.
    echo : callable, optional
        Takes a line on each step.
    client : distributed.Client, optional
        The first build and all scoring run on its workers; store and model must be where they can open them.
    progress : bool
        Show progress bars.

    Returns
    -------
    UpdateResult

    Raises
    ------
    BadBarsError
        Bars with faults, or a feed that is not whole.
    RevisedHistoryError
        A history that was revised in a way that the configuration does not let pass.
    BlockingIOError
        Another process updates the same folder.
    ValueError
        A configuration that cannot be updated, or a folder that was made with another.
    """
    if isinstance(config, (str, Path)):
        config = load_config(config)
    elif not isinstance(config, Config):
        config = Config.from_dict(config)
    where = Location.of(config.out)
    if where.path is not None:
        where.path.mkdir(parents=True, exist_ok=True)
    with WriteLock(where, "folder"):
        evening = _Evening(config, where, now, echo or (lambda line: None), progress)
        # What a process left that died while it wrote or swept; what it had done may be all that there is to do.
        where.delete_all(f"{BUILD}/tmp")
        evening.ledger.sweep()
        evening.client = client
        return evening.run()


class _Evening:
    """One update."""

    def __init__(
        self, config: Config, where: Location, now: Any, echo: Callable[[str], Any], progress: bool
    ) -> None:
        self.config, self.where, self.echo, self.progress = config, where, echo, progress
        self.settings = config.update or Settings()
        self.ledger = Ledger(where)
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float | None] = {}
        self.given_now = now
        self.client: Any = None
        self.changed_from: int | None = None
        """Time of the oldest bar that was there before and is another now."""
        self.out: str | Path = config.out if where.path is None else where.path

    def run(self) -> UpdateResult:
        with self._timed("read"):
            panel = self._read()
        now = _moment(self.given_now, panel.tz)
        result = UpdateResult(self.out, panel.stamp(now), seconds=self.seconds, memory_mb=self.memory)
        known = self.ledger.known
        with self._timed("check"):
            settings = self.settings.model_dump()
            feed = check_feed(panel, now=now, **feed_options(settings))
            result.notes += feed.notes
            panel, renames = self._follow(known, feed.panel, result)
        result.counts |= feed.counts
        result.bars_through = panel.stamp(int(panel.calendar[-1]))
        if known is not None and self._is_done(panel):
            result.nothing_new = True
            result.notes += self.ledger.entry.get("notes", []) if not result.notes else []
            # A scheduler that runs an update with an alarm again gets the same exit code.
            limits = self.settings.health
            result.alarms = [] if limits is None else read_alarms(self.where, limits)
            self._say(result)
            return result
        result.counts["bars_new"] = len(panel) - (0 if known is None else known.bars)
        with self._timed("images"):
            store = self._store(panel, result)
        cache = None
        if self.config.score is not None:
            with self._timed("scores"):
                cache = self._score(store, panel, renames, now, result)
            with self._timed("export"):
                self._export(cache, panel, result)
        with self._timed("health"):
            self._examine(store, cache, panel, result)
        with self._timed("record"):
            # The ledger comes last: killed between the two, the next call would have nothing new to tell.
            self.where.put("update.json", (json.dumps(result.to_dict(), indent=2) + "\n").encode())
            self.ledger.commit(
                panel, known=result.known, settings=self._settings(), exports=[str(p) for p in result.exports],
                counts=result.counts, notes=result.notes,
            )  # fmt: skip
        self._say(result)
        return result

    def _examine(
        self, store: ImageStore, cache: FactorCache | None, panel: Panel, result: UpdateResult
    ) -> None:
        """Measure how the factor does, and write what was found."""
        settings = self.settings.health
        if settings is None:
            return
        steps = {
            name: {"seconds": self.seconds[name], "memory_mb": self.memory[name]} for name in self.seconds
        }
        health = examine(
            self.where, store, cache, panel, settings, changed_from=self.changed_from, steps=steps
        )
        if settings.page:
            self.where.put("health.html", health_page(health, self.where.name).encode())
        if settings.prometheus is not None:
            with atomic_file(settings.prometheus) as partial:
                partial.write_text(prometheus_text(health, self.where.name, time.time()), encoding="utf-8")
        health.write(self.where)
        result.alarms = health.alarms

    def _read(self) -> Panel:
        try:
            return source_of(self.config, self.progress).panel
        except ValueError as error:
            raise BadBarsError(str(error)) from error

    def _follow(self, known: Known | None, now: Panel, result: UpdateResult) -> tuple[Panel, dict[str, str]]:
        """Return the bars to go on with, by the policies for what changed in the history."""
        if known is None:
            result.counts |= Revisions().counts()
            return now, {}
        tz, fields = self.ledger.entry["tz"], self.ledger.entry["fields"]
        if now.tz != tz or list(now.fields) != fields:
            raise BadBarsError(
                f"the bars have the zone {now.tz} and the fields {', '.join(now.fields) or 'none'}, those of the last "
                f"update {tz} and {', '.join(fields) or 'none'}: read them as then, or give another out"
            )
        same, _ = known.unchanged(now)
        names = set(now.instruments[same].tolist())
        # Only of the others are the bars of the last update read.
        before = self.ledger.read([name for name in known.instruments if name not in names])
        assert before is not None
        found = find_revisions(before, now, unchanged=names, last=known.last)
        self.changed_from = found.earliest
        result.counts |= {name: count for name, count in found.counts().items()}
        result.notes += [f"{line} ({self._policy(line)})" for line in found.lines(now)]
        policy = {name: getattr(self.settings, name) for name in CLASSES}
        return apply_policies(before, now, found, policy, self.settings.rename, last=known.last)

    def _policy(self, line: str) -> str:
        name = line.partition(":")[0]
        chosen = getattr(self.settings, name)
        if name == "renamed":
            old, _, rest = line.removeprefix("renamed: ").partition(" looks like ")
            if self.settings.rename.get(old) == rest.split(" from ")[0]:
                return "as rename says"
        return {"accept": "taken over", "keep": "left out", "stop": "stops"}[chosen]

    def _settings(self) -> dict[str, Any]:
        """Return what else decides what an update leaves behind."""
        train, score = self.config.train, self.config.score
        return {
            "score": None if score is None else score.model_dump(mode="json"),
            "train": None if train is None else train.model_dump(mode="json"),
            "exports": [one.model_dump(mode="json") for one in self.settings.exports],
        }

    def _is_done(self, panel: Panel) -> bool:
        """Whether everything was made from these bars already, by the same settings."""
        entry = self.ledger.entry
        if entry["panel_digest"] != panel.digest or entry.get("settings") != self._settings():
            return False
        try:
            store = open_store(store_path(self.config))
            done = store.attrs["panel_digest"] == panel.digest
            if self.config.score is not None:
                from pricepix.factor.cache import open_cache

                done &= open_cache(self.factor).attrs["store_digest"] == store.digest
        except (FileNotFoundError, ValueError):
            return False
        health = self.settings.health is None or self.where.get("health.json") is not None
        return done and health and all(_is_written(path) for path in entry["exports"])

    @property
    def factor(self) -> str | Path:
        return join_path(self.config.out, "factor.zarr")

    def _store(self, panel: Panel, result: UpdateResult) -> ImageStore:
        from pricepix.build.universe import render_universe

        path, spec = store_path(self.config), self.config.image.spec()
        options = self.config.store.arguments("path", "images", "memory")
        try:
            old = open_store(path)
        except (FileNotFoundError, ValueError):
            # A first build that was stopped; if the bars are others by now, from the start.
            modes = ("resume", "overwrite") if is_there(path) and not len(self.ledger) else ("create",)
            for mode in modes:
                try:
                    store = render_universe(
                        panel, spec, path, mode=mode, client=self.client, progress=self.progress, **options
                    )
                    break
                except ValueError:
                    if mode == modes[-1]:
                        raise
            result.counts |= {
                "windows": len(store),
                "windows_added": len(store),
                "returns_filled": _known(store),
            }
            return store
        self._check_store(old)
        had, known = len(old), _known(old)
        store = append(old, panel, on_revision="rebuild", progress=self.progress)
        result.counts |= {
            "windows": len(store),
            "windows_added": len(store) - had,
            "returns_filled": _known(store) - known,
        }
        return store

    def _check_store(self, store: ImageStore) -> None:
        """Refuse a store of other images than the configuration's."""
        settings = self.config.store
        wanted = {
            "spec_digest": self.config.image.spec().digest, "horizons": list(settings.horizons),
            "delay": settings.delay, "layout": settings.layout,
        }  # fmt: skip
        differ = [f"{k} {store.attrs[k]}, not {v}" for k, v in wanted.items() if store.attrs[k] != v]
        if store.attrs["schedule"]["every"] != settings.every:
            differ.append(f"every {store.attrs['schedule']['every']}, not {settings.every}")
        if differ:
            raise ValueError(
                f"store {store.location} holds other images than the configuration asks for: {'; '.join(differ)}. "
                "Give another out, or the settings that it was made with"
            )

    def _model(self, store: ImageStore, panel: Panel) -> Path:
        train = self.config.train
        assert train is not None
        if train.frozen:
            return Path(train.frozen)
        from pricepix.workflow.retraining import model_for

        if self.where.path is None:
            raise ValueError(
                f"out: {self.where.name} is an object store, and networks are trained into a folder: give "
                "train: {frozen: PATH}, or a folder as out"
            )
        return model_for(self.config, store, panel, self.where.path / "models", self.echo, self.progress)

    def _score(
        self, store: ImageStore, panel: Panel, renames: Mapping[str, str], now: int, result: UpdateResult
    ) -> FactorCache:
        from pricepix.factor import open_cache, score

        assert self.config.score is not None
        model, before = self._model(store, panel), None
        try:
            before = open_cache(self.factor)
        except (FileNotFoundError, ValueError):
            before = None
        renames = {} if before is None else dict(renames)
        if before is not None:
            # Of an update that was stopped after its scoring, the names are the new ones.
            renames = {old: new for old, new in renames.items() if old in before.instruments.tolist()}
        commits = 0 if before is None else len(before.scored_at)
        cache = score(
            store, model, self.factor, append=True, rename=renames, known=now, panel=panel, client=self.client,
            progress=self.progress, **self.config.score.arguments(),
        )  # fmt: skip
        history = cache.scored_at[commits:]
        for name in ("added", "revised", "removed"):
            result.counts[f"scores_{name}"] = int(history[name].sum())
        result.counts["scores_kept"] = int(cache.attrs["kept"])
        result.model = str(cache.attrs["model"]["name"])
        return cache

    def _export(self, cache: FactorCache, panel: Panel, result: UpdateResult) -> None:
        from pricepix.factor.export_files import export

        date = to_series(panel.calendar[-1:], panel.tz).dt.strftime("%Y-%m-%d")[0]
        for one in self.settings.exports:
            out = one.path.replace("{date}", date)
            result.exports.append(export(cache, out, **one.arguments("path")))

    def _say(self, result: UpdateResult) -> None:
        for line in str(result).strip().splitlines():
            self.echo(line)
        _LOG.info("update of %s", self.out, extra={"result": result.to_dict()})

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = round(time.perf_counter() - began, 3)
            self.memory[step] = memory_mb()


def _is_written(export: str) -> bool:
    """Whether an export is there: a file, or a folder or prefix with a file a day."""
    if "://" not in export:
        return Path(export).exists()
    folder, _, name = export.rpartition("/")
    where = Location.of(folder)
    return where.get_range(name, 0, 1) is not None or next(where.list(name), None) is not None


def _known(store: ImageStore) -> int:
    """Return how many forward returns of a store are known."""
    return sum(int(np.count_nonzero(~np.isnan(store.returns(h)))) for h in store.horizons)


def _moment(now: Any, tz: str | None) -> int:
    """Return the time in nanoseconds: of the clock in the market's zone, or on its wall where it has none."""
    if now is None:
        zone = None if tz is None else ZoneInfo(tz)
        clock = datetime.now(zone).replace(tzinfo=None, microsecond=0)
        return as_time(clock, tz)
    return as_time(now, tz, end=True)
