"""What a factor cache and a model say of windows, and whether they speak of these images."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pricepix.explore.catalog import Catalog, Window
from pricepix.explore.history import Stretch
from pricepix.factor.cache import FactorCache, open_cache
from pricepix.images.image_set import ImageSet
from pricepix.images.panel_images import PanelImages
from pricepix.windows.labels import NO_TIME

__all__ = ["CacheScores", "ModelScores"]


class CacheScores:
    """Scores of a factor cache, by instrument and time of windows.

    Parameters
    ----------
    cache : FactorCache, str, path or zarr store
    catalog : Catalog
        The windows that are asked about.
    """

    def __init__(self, cache: Any, catalog: Catalog) -> None:
        self.cache = cache if isinstance(cache, FactorCache) else open_cache(cache)
        self.catalog = catalog
        self._lock = threading.Lock()
        self._every: NDArray[np.float32] | None = None
        self._column = {str(name): i for i, name in enumerate(self.cache.instruments)}
        flat = self.cache.time.reshape(-1)
        self._order = np.argsort(flat, kind="stable")[np.count_nonzero(flat == NO_TIME) :]
        self._calendar = flat[self._order]

    @property
    def horizon(self) -> int | None:
        """Bars of the forward return that the model was trained to foresee, where the cache records one."""
        found = self.cache.attrs.get("horizon")
        return found if isinstance(found, int) else None

    @property
    def is_probability(self) -> bool:
        """Whether scores are probabilities of a rise."""
        return self.cache.is_probability

    def differences(self) -> list[str]:
        """Say in sentences where the cache was scored on other images than these."""
        attrs, images = self.cache.attrs, self.catalog.images
        if attrs["store_digest"] == images.digest:
            return []
        found = []
        if attrs["spec_digest"] != images.spec.digest:
            theirs, ours = self.cache.spec.to_dict(), images.spec.to_dict()
            differ = ", ".join(f"{k} {theirs[k]!r}, here {v!r}" for k, v in ours.items() if theirs[k] != v)
            found.append(f"The factor cache was scored on images of another spec: {differ}.")
        if self.cache.tz != images.tz:
            found.append(
                f"The factor cache is of time zone {self.cache.tz}, these images are of {images.tz}: no time of one "
                "can be trusted to be that of the other."
            )
        panel = images.attrs.get("panel_digest")
        same = panel is not None and panel == attrs.get("panel_digest") and attrs["windows"] == len(images)
        if not same:
            found.append(
                f"The factor cache was scored on other windows than these ({attrs['windows']:,} of "
                f"{attrs.get('store')}, here {len(images):,}): a score is that of the same instrument at the same "
                "time, and windows without one show none."
            )
        return found

    def of(self, window: Window) -> float | None:
        """Return the score of a window; None where there is none."""
        at = int(np.searchsorted(self._calendar, window.time))
        column = self._column.get(window.instrument)
        if column is None or at >= len(self._calendar) or self._calendar[at] != window.time:
            return None
        at += self.cache.shift
        if not 0 <= at < len(self._order):
            return None
        day, interval = divmod(int(self._order[at]), len(self.cache.intervals))
        value: Any = self.cache.factor[day, column, interval]
        return float(value) if np.isfinite(value) else None

    def every(self) -> NDArray[np.float32]:
        """Return the scores of all windows, float32 (n,), NaN where there is none; the cache is read whole, once."""
        with self._lock:
            if self._every is None:
                self._every = self.cache.of_windows(self.catalog.images)
            return self._every


class ModelScores:
    """Scores of a model, and what in a window speaks for them.

    Parameters
    ----------
    model : path, network or ensemble
    images : ImageSet
    horizon : int, optional
        Which horizon a network that learnt several is asked about.
    """

    def __init__(self, model: Any, images: ImageSet, horizon: int | None = None) -> None:
        from pricepix.factor.scorer import Scorer

        self.images, self._horizon = images, horizon
        self.scorer = Scorer(model, tz=images.tz, images=images, horizon=horizon, device="cpu")
        if self.scorer.takes != "images" or hasattr(images.spec, "parts"):
            raise ValueError(
                f"model={self.scorer.name} does not take single images, which the explorer shows: leave model out, "
                "and give factor=, a cache of its scores"
            )
        self.scorer.check(images.spec, f"{images.kind} {images.location}")
        # Networks remember where captum hooked in; one window is explained at a time.
        self._lock = threading.Lock()

    @property
    def is_probability(self) -> bool:
        """Whether scores are probabilities of a rise."""
        return self.scorer.kind == "probability"

    def of(self, image: NDArray[np.uint8], ns: int) -> float | None:
        """Return the score of the image of a window that ends at a time; None where no fold of a run scores it."""
        with self._lock:
            value = float(self.scorer(image[None], np.array([ns]))[0][0])
        return value if np.isfinite(value) else None

    def explain(self, stretch: Stretch, ns: int) -> Any:
        """Explain the score of the window at the end of a stretch of bars; see ``pricepix.factor.explain``.

        Raises
        ------
        ValueError
            If the model is a function, or no fold of it scores a window of that time.
        ImportError
            Without captum; the message is the line that installs it.
        """
        from pricepix.factor.explain import explain

        bars = stretch.alone()
        shown = PanelImages(bars, self.images.spec, horizons=(), start=ns, end=ns)
        with self._lock:
            network = self._network(ns)
            return explain(network, shown, "window", ns, horizon=self._horizon if self._has_heads else None)

    @cached_property
    def _has_heads(self) -> bool:
        return self.scorer.head is not None

    def _network(self, ns: int) -> Any:
        for stage in self.scorer.stages:
            if stage.first <= ns <= stage.last:
                from pricepix.train.models import Ensemble

                return stage.members[0] if len(stage.members) == 1 else Ensemble(stage.members)
        why = "no fold of the run was tested at this time" if self.scorer.stages else "it is a function"
        raise ValueError(f"model={self.scorer.name} cannot be explained here: {why}")
