"""Sheets: which windows are shown side by side, and in which order."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix._checks import nearest
from pricepix.bars.times import time_range
from pricepix.explore.catalog import Catalog, Window
from pricepix.explore.scores import CacheScores

if TYPE_CHECKING:
    from pricepix.factor.embedding import Embedding

__all__ = ["CLASSES", "MOST_SORTED", "ORDERS", "Choice", "Listing", "Sheets"]

ORDERS: Final = (
    "time", "random", "score", "lowest_score", "error", "return", "lowest_return", "similar",
)  # fmt: skip
CLASSES: Final = ("any", "up", "down", "unknown")
MOST_SORTED: Final = 10_000
"""A sheet goes so far down an order: nobody turns more pages, and 17 million need not be sorted."""
MOST_COMPARED: Final = 65_536
"""Images that are compared pixel by pixel with one; of more, whole chunks evenly spread through them."""
_KEPT: Final = 8
_KEPT_RETURNS: Final = 2

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """Which windows, and in which order.

    Attributes
    ----------
    order : str
        One of `ORDERS`.
    horizon : int or None
        Of the forward returns that classes, errors and returns speak of.
    start, end : str or None
        First and last time, both included; a day, month or year stands for all of it.
    instruments : tuple of str
        Names, or patterns with ``*``; empty for all.
    label : str
        One of `CLASSES`: what the forward return was.
    confidence : float
        Least probability of the likelier class, 0.5 for all.
    seed : int
        Of the order ``random``.
    like : Window or None
        The window that the order ``similar`` compares with.
    """

    order: str = "time"
    horizon: int | None = None
    start: str | None = None
    end: str | None = None
    instruments: tuple[str, ...] = ()
    label: str = "any"
    confidence: float = 0.5
    seed: int = 0
    like: Window | None = None


@dataclass(frozen=True)
class Listing:
    """Windows in the order of a sheet.

    Attributes
    ----------
    positions : numpy.ndarray, int64 (n,)
        At most `MOST_SORTED`.
    total : int
        Windows that the filters leave.
    value : numpy.ndarray or None
        What they were sorted by, float64 (n,).
    note : str
        What was not compared; empty if nothing.
    """

    positions: Positions
    total: int
    value: NDArray[np.float64] | None = None
    note: str = ""


class Sheets:
    """Makes listings of a set of images, and keeps the last ones.

    Parameters
    ----------
    catalog : Catalog
    scores : CacheScores, optional
    embedding : Embedding, optional
        Of these images: what "similar" means. Without it, it is the share of ink in the same place.
    """

    def __init__(
        self, catalog: Catalog, scores: CacheScores | None = None, embedding: Embedding | None = None
    ) -> None:
        self.catalog, self.scores, self.embedding = catalog, scores, embedding
        self._lock = threading.Lock()
        self._listing = functools.lru_cache(_KEPT)(self._make)
        self._returns = functools.lru_cache(_KEPT_RETURNS)(catalog.images.returns)

    def listing(self, choice: Choice) -> Listing:
        """Return the windows of a choice.

        Raises
        ------
        ValueError
            If a filter cannot be read, or the order needs scores or returns that there are none of.
        LookupError
            If no instrument has a name that was asked for.
        """
        # One at a time: each takes memory of the size of the index.
        with self._lock:
            return self._listing(choice)

    def _make(self, choice: Choice) -> Listing:
        chosen = self._chosen(choice)
        if choice.order == "similar":
            return self._similar(chosen, choice)
        if choice.order == "random":
            rng = np.random.default_rng(choice.seed)
            drawn = rng.choice(len(chosen), min(len(chosen), MOST_SORTED), replace=False)
            return Listing(chosen[drawn], len(chosen))
        if choice.order == "time":
            return Listing(chosen[:MOST_SORTED], len(chosen))
        values = self._sort_values(chosen, choice)
        known = np.flatnonzero(~np.isnan(values))
        best = known[_first(values[known], descending=not choice.order.startswith("lowest"))]
        lost = len(chosen) - len(known)
        what = "score" if "score" in choice.order else "return" if "return" in choice.order else "error"
        note = f"{lost:,} windows without a known {what} are left out." if lost else ""
        return Listing(chosen[best], len(known), values[best].astype(np.float64), note)

    # ---- filters

    def _chosen(self, choice: Choice) -> Positions:
        """Return the ascending positions of the windows that the filters leave."""
        time = self.catalog.time
        first, last = time_range(choice.start, choice.end, self.catalog.images.tz)
        a, b = int(np.searchsorted(time, first)), int(np.searchsorted(time, last, side="right"))
        keep: NDArray[np.bool_] | None = None
        if choice.instruments:
            named = np.zeros(len(self.catalog.names), bool)
            named[self._codes(choice.instruments)] = True
            keep = named[self.catalog.codes[a:b]]
        if choice.label != "any":
            returns = self._known_returns(choice.horizon)[a:b]
            is_label = {"up": returns > 0, "down": returns <= 0, "unknown": np.isnan(returns)}[choice.label]
            keep = is_label if keep is None else keep & is_label
        if choice.confidence > 0.5:
            score = self._probabilities("confidence")[a:b]
            sure = np.maximum(score, 1 - score) >= choice.confidence
            keep = sure if keep is None else keep & sure
        return np.arange(a, max(a, b)) if keep is None else a + np.flatnonzero(keep)

    def _codes(self, patterns: tuple[str, ...]) -> list[int]:
        found: list[int] = []
        for pattern in patterns:
            if "*" in pattern:
                folded = pattern.casefold()
                own = [i for i, name in enumerate(self.catalog.names) if fnmatchcase(name.casefold(), folded)]
            else:
                own = [self.catalog.code[pattern]] if pattern in self.catalog.code else []
            if not own:
                raise LookupError(f"no instrument {pattern!r}{nearest(pattern, self.catalog.names)}")
            found += own
        return found

    # ---- what windows are sorted by

    def _known_returns(self, horizon: int | None) -> NDArray[np.float32]:
        if horizon is None:
            raise ValueError("these images have no forward returns: choose another order, and any class")
        return self._returns(horizon)

    def _probabilities(self, what: str) -> NDArray[np.float32]:
        scores = self._scores(what)
        assert self.scores is not None
        if not self.scores.is_probability:
            raise ValueError(
                f"{what} is of probabilities; the scores of this factor cache can only be ranked"
            )
        return scores

    def _scores(self, what: str) -> NDArray[np.float32]:
        if self.scores is None:
            raise ValueError(
                f"{what} needs the scores of all images: open the explorer with factor=, the cache that "
                "pricepix.factor.score writes"
            )
        return self.scores.every()

    def _sort_values(self, chosen: Positions, choice: Choice) -> NDArray[np.float32]:
        if "score" in choice.order:
            return self._scores("score")[chosen]
        returns = self._known_returns(choice.horizon)[chosen]
        if "return" in choice.order:
            return returns
        # How far the probability lay from what came: a missing return is neither class.
        score = self._probabilities("error")[chosen]
        return np.where(np.isnan(returns), np.nan, np.abs(score - (returns > 0))).astype(np.float32)

    # ---- similarity

    def _similar(self, chosen: Positions, choice: Choice) -> Listing:
        like = choice.like
        if like is None:
            raise ValueError("order=similar needs a window to compare with: give instrument and time")
        catalog = self.catalog
        # Earlier windows alone, as pricepix.factor.similar does it; those of the same instrument share bars.
        earlier = chosen[: int(np.searchsorted(chosen, np.searchsorted(catalog.time, like.time)))]
        code = catalog.code[like.instrument]
        found = earlier[catalog.codes[earlier] != code]
        if self.embedding is not None:
            return self._nearest_embeddings(found, like)
        note = ""
        if len(found) > MOST_COMPARED:
            total = len(found)
            found = _whole_chunks(found, catalog.images.chunk)
            note = f"Pixels of {len(found):,} of {total:,} windows were compared, in chunks spread evenly through them."
        share = self._equal_pixels(found, like.position)
        best = _first(share, descending=True)
        return Listing(found[best], len(found), share[best].astype(np.float64), note)

    def _equal_pixels(self, positions: Positions, wanted: int) -> NDArray[np.float32]:
        """Return the share of the ink of both images that is in the same place."""
        images = self.catalog.images
        ink = images.read([wanted])[0] > 0
        out = np.empty(len(positions), np.float32)
        cuts = np.flatnonzero(np.diff(positions // images.chunk)) + 1
        for places in np.split(np.arange(len(positions)), cuts):
            if not len(places):
                continue
            theirs = images.read(positions[places]) > 0
            both = (theirs & ink).sum(axis=(1, 2))
            either = theirs.sum(axis=(1, 2)) + ink.sum() - both
            out[places] = both / np.maximum(either, 1)
        return out

    def _nearest_embeddings(self, found: Positions, like: Window) -> Listing:
        from pricepix.factor.embedding import similar

        assert self.embedding is not None
        near = similar(self.embedding, like.instrument, like.time, k=MOST_SORTED, others_only=True)
        time = near["time"].to_physical().to_numpy()
        pairs = zip(near["instrument"].to_list(), time.tolist(), strict=True)
        places = np.array([self.catalog.locate(name, ns) for name, ns in pairs], np.int64)
        keep = np.isin(places, found)
        value: Any = near["similarity"].to_numpy()[keep]
        return Listing(places[keep], int(keep.sum()), value)

    # ---- as a table

    def table(self, listing: Listing, choice: Choice) -> pl.DataFrame:
        """Return the windows of a listing: instrument, time, forward returns, score, and what they are sorted by."""
        catalog, at = self.catalog, listing.positions
        columns: dict[str, Any] = {
            "instrument": [catalog.names[i] for i in catalog.codes[at]],
            "time": catalog.stamps(catalog.time[at]),
        }
        for horizon in catalog.images.horizons:
            columns[f"ret_{horizon}"] = self._returns(horizon)[at]
        if self.scores is not None:
            columns["score"] = self.scores.every()[at]
        if listing.value is not None and choice.order in ("error", "similar"):
            columns["similarity" if choice.order == "similar" else choice.order] = listing.value
        return pl.DataFrame(columns, schema_overrides={"instrument": pl.String, "time": pl.String})


def _first(values: NDArray[np.float32], *, descending: bool) -> Positions:
    """Return the places of the largest values, or the smallest, in order; of equal ones the first stand first."""
    signed = -values if descending else values
    n = len(values)
    if n > MOST_SORTED:
        limit = np.partition(signed, MOST_SORTED - 1)[MOST_SORTED - 1]
        below, equal = np.flatnonzero(signed < limit), np.flatnonzero(signed == limit)
        places = np.sort(np.concatenate([below, equal[: MOST_SORTED - len(below)]]))
    else:
        places = np.arange(n)
    return places[np.argsort(signed[places], kind="stable")]


def _whole_chunks(positions: Positions, chunk: int) -> Positions:
    """Return about `MOST_COMPARED` of the positions, those in chunks evenly spread: reading one reads its chunk."""
    chunks = np.unique(positions // chunk)
    wanted = max(1, int(len(chunks) * MOST_COMPARED / len(positions)))
    kept = chunks[np.linspace(0, len(chunks) - 1, wanted).round().astype(np.int64)]
    found = positions[np.isin(positions // chunk, kept)]
    return found[: 2 * MOST_COMPARED]
