"""Every evening: read what is new, append it, score it with a model that stays, export, and report."""

from __future__ import annotations

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
from pricepix.bars.panel import Panel
from pricepix.bars.times import as_time, to_series
from pricepix.build.append import append
from pricepix.location import Folder, write_json
from pricepix.store.image_store import open_store
from pricepix.store.lock import WriteLock
from pricepix.workflow.config import Config, Export, load_config
from pricepix.workflow.config import Update as Settings
from pricepix.workflow.feed import check_feed, feed_options
from pricepix.workflow.ledger import Ledger
from pricepix.workflow.pipeline import store_path
from pricepix.workflow.revisions import CLASSES, Revisions, apply_policies, find_revisions
from pricepix.workflow.source import TableSource

if TYPE_CHECKING:
    from pricepix.factor.cache import FactorCache
    from pricepix.store.image_store import ImageStore

__all__ = ["UpdateResult", "update"]

_LOG: Final = logging.getLogger(__name__)


@dataclass
class UpdateResult:
    """What an update did."""

    out: Path
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
    exports: list[Path] = field(default_factory=list)
    model: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each step."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "out": str(self.out),
            "known": self.known,
            "bars_through": self.bars_through,
            "nothing_new": self.nothing_new,
            **self.counts,
            "notes": self.notes,
            "exports": [str(path) for path in self.exports],
            "model": self.model,
            "seconds": self.seconds,
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
        return "\n".join(f"note      {note}" for note in self.notes)


def update(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    now: Any = None,
    echo: Callable[[str], Any] | None = None,
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
    if config.data.market_cache is not None:
        raise ValueError(
            "update reads tables: give data.source; append to a store of a market_cache by itself"
        )
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with WriteLock(Folder(out), "folder"):
        return _Evening(config, out, now, echo or (lambda line: None), progress).run()


class _Evening:
    """One update."""

    def __init__(
        self, config: Config, out: Path, now: Any, echo: Callable[[str], Any], progress: bool
    ) -> None:
        self.config, self.out, self.echo, self.progress = config, out, echo, progress
        self.settings = config.update or Settings()
        self.ledger = Ledger(out)
        self.seconds: dict[str, float] = {}
        self.given_now = now

    def run(self) -> UpdateResult:
        with self._timed("read"):
            panel = self._read()
        now = _moment(self.given_now, panel.tz)
        result = UpdateResult(self.out, panel.stamp(now), seconds=self.seconds)
        with self._timed("check"):
            settings = self.settings.model_dump()
            feed = check_feed(panel, now=now, **feed_options(settings))
            result.notes += feed.notes
            before = self.ledger.read()
            panel, renames = self._follow(before, feed.panel, result)
        result.counts |= feed.counts
        result.bars_through = panel.stamp(int(panel.calendar[-1]))
        if before is not None and self._is_done(panel):
            result.nothing_new = True
            result.notes += self.ledger.entry.get("notes", []) if not result.notes else []
            self._say(result)
            return result
        result.counts["bars_new"] = len(panel) - (0 if before is None else len(before))
        with self._timed("images"):
            store = self._store(panel, result)
        if self.config.score is not None:
            with self._timed("scores"):
                cache = self._score(store, panel, renames, now, result)
            with self._timed("export"):
                self._export(cache, panel, result)
        with self._timed("record"):
            # The ledger comes last: killed between the two, the next call would have nothing new to tell.
            write_json(self.out / "update.json", result.to_dict())
            self.ledger.commit(
                before, panel, known=result.known, settings=self._settings(), exports=[str(p) for p in result.exports],
                counts=result.counts, notes=result.notes,
            )  # fmt: skip
        self._say(result)
        return result

    def _read(self) -> Panel:
        try:
            return TableSource(self.config, self.progress).panel
        except ValueError as error:
            raise BadBarsError(str(error)) from error

    def _follow(self, before: Panel | None, now: Panel, result: UpdateResult) -> tuple[Panel, dict[str, str]]:
        """Return the bars to go on with, by the policies for what changed in the history."""
        found = Revisions() if before is None else find_revisions(before, now)
        result.counts |= {name: count for name, count in found.counts().items()}
        if before is None:
            return now, {}
        if now.tz != before.tz or list(now.fields) != list(before.fields):
            raise BadBarsError(
                f"the bars have the zone {now.tz} and the fields {', '.join(now.fields) or 'none'}, those of the last "
                f"update {before.tz} and {', '.join(before.fields) or 'none'}: read them as then, or give another out"
            )
        result.notes += [f"{line} ({self._policy(line)})" for line in found.lines(now)]
        policy = {name: getattr(self.settings, name) for name in CLASSES}
        return apply_policies(before, now, found, policy, self.settings.rename)

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
        return done and all(Path(path).exists() for path in entry["exports"])

    @property
    def factor(self) -> Path:
        return self.out / "factor.zarr"

    def _store(self, panel: Panel, result: UpdateResult) -> ImageStore:
        from pricepix.build.universe import render_universe

        path, spec = store_path(self.config), self.config.image.spec()
        options = self.config.store.arguments("path", "images")
        try:
            old = open_store(path)
        except (FileNotFoundError, ValueError):
            # A first build that was stopped; if the bars are others by now, from the start.
            modes = ("resume", "overwrite") if path.exists() and not len(self.ledger) else ("create",)
            for mode in modes:
                try:
                    store = render_universe(panel, spec, path, mode=mode, progress=self.progress, **options)
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

        return model_for(self.config, store, panel, self.out / "models", self.echo, self.progress)

    def _score(
        self, store: ImageStore, panel: Panel, renames: Mapping[str, str], now: int, result: UpdateResult
    ) -> FactorCache:
        from pricepix.factor import open_cache, score

        assert self.config.score is not None
        model, before = self._model(store, panel), None
        if self.factor.exists():
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
            store, model, self.factor, append=True, rename=renames, known=now, panel=panel,
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
            result.exports.append(export(cache, _path_of(one, date), **one.arguments("path")))

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


def _path_of(export: Export, date: str) -> Path:
    return Path(export.path.replace("{date}", date))


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
