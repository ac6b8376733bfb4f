"""From images to a factor: stream a store through a model and keep the scores in a cache."""

from __future__ import annotations

import logging
import platform
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, Final, TypeVar, Unpack, get_type_hints

import numpy as np
import zarr
from numpy.typing import NDArray

from pricepix._checks import bars, choice, nearest, printable
from pricepix._version import __version__
from pricepix.bars.panel import Panel
from pricepix.bars.progress import progress_bar
from pricepix.bars.times import as_time, format_time
from pricepix.factor.cache import CacheLike, FactorCache, open_cache
from pricepix.factor.cache_changes import ON_REVISION, Part
from pricepix.factor.cache_days import Scored, score_part
from pricepix.factor.cache_format import FORMAT, FORMAT_VERSION
from pricepix.factor.cache_objects import cache_location, read_root
from pricepix.factor.cache_writer import CacheWriter, Request, check_location, prepare_cache
from pricepix.factor.calendar import Calendar
from pricepix.factor.panel_check import shape_digest
from pricepix.factor.placement import Placement, StoreWindows
from pricepix.factor.scorer import Scorer, ScorerOptions
from pricepix.images.image_set import ImageSet
from pricepix.images.rows import check_bars, store_rows
from pricepix.images.series import window_series
from pricepix.images.threads import map_ordered
from pricepix.store.image_store import ImageStore, open_images, open_store
from pricepix.store.lock import WriteLock

__all__ = ["chunk_reader", "score"]

# Chunks decoded ahead of the model. One would do for speed; two ride out a slow read.
_AHEAD: Final = 2
_LOG: Final = logging.getLogger(__name__)

T = TypeVar("T")


class ScoreOptions(ScorerOptions, total=False):
    """Further arguments of ``score``: those of the model, and how an append follows what was revised."""

    on_revision: str
    rename: Mapping[str, str] | None
    known: Any


def score(
    store: ImageSet | CacheLike,
    model: Any,
    location: CacheLike | None,
    *,
    shift: int = 0,
    spread: bool = False,
    start: Any = None,
    end: Any = None,
    append: bool = False,
    panel: Calendar | None = None,
    progress: bool = True,
    client: Any = None,
    **options: Unpack[ScoreOptions],
) -> FactorCache:
    """Score every image of a store and keep the scores as a factor.

    The store streams through the model chunk by chunk, decoded ahead of it; memory does not grow with the
    store. A day is written once all of its windows are scored. An interrupted run resumes when it is called
    again.

    Parameters
    ----------
    store : ImageSet, str or path
        A store, a loaded one, or panel images, which are drawn as they are scored.
    model : path, PriceCNN, Ensemble, result of fit, or callable
        A checkpoint or the folder of a run; a network; any torch module, which takes pixels from 0 to 1 as
        (n, 1, height, width) and gives one score, or a logit for each class; or a function from images, uint8
        (n, height, width), to the probability of a rise, (n,), NaN where it gives none. An ensemble gives the
        mean of its members.
    location : str, path, zarr store or None
        Where the cache goes; ``None`` keeps it in memory.
    shift : int
        Bars by which values are moved forward from the close of the image's last bar, at which they are first
        known, to the bar from which they may be traded: along the market's calendar, so that the bar after a
        day's last is the next day's first. Values whose bar the calendar does not reach yet are scored when
        it does.
    spread : bool
        Keep the standard deviation (n - 1) over the members of an ensemble beside the mean.
    start, end : str, date or datetime, optional
        First and last time of the images that are scored, both included; all by default. The others' values
        are NaN. A cache that was scored to an end can be continued to a later one; one that was scored from a start
        is continued with the same by `append`.
    append : bool
        Bring a cache up to the store as it is now: score the windows that came since, and those whose images were
        revised. Images are compared by their pixels; what did not change is neither scored nor written.
    panel : Panel or MarketCalendar, optional
        Its calendar gives the cache its days and times of day, and `shift` its bars. By default that is the
        times of the store's windows, which is enough unless `shift` is above 0 and the store skips bars. A model
        that takes the numbers behind the images needs the panel; panel images have theirs.
    progress : bool
        Show a progress bar.
    client : distributed.Client, optional
        Score on its workers, one model each. The store must be one that they can open: panel images, loaded
        stores and stores in memory are refused.
    **options
        How an append follows what was revised: `on_revision`, `rename` and `known`; how the model is run, and what
        it returns: `batch`, `device`, `precision`, `engine`, `values`, `model_id`, `module` and `horizon`. All as
        below.

    Other Parameters
    ----------------
    on_revision : {"rescore", "keep", "raise"}
        What to do with values whose image changed since they were scored, or whose window is gone from the store
        (a correction, a split, an instrument that was removed): score them again and take out what is gone, with a
        note in the cache's journal of what stood there; leave them; or refuse. The cache's attribute ``kept`` counts
        the values that were left.
    rename : mapping of str to str, optional
        New names of instruments of the cache, by the old ones: their values stay.
    known : str, date or datetime, optional
        When the values become known, for ``FactorCache.as_of``; by default the time of the calendar's last bar.
    batch : int, optional
        Images a forward pass. By default as many as fit into the cache of a CPU, at most 16, and 256 on a GPU and
        of a function.
    device : str, optional
        ``"cuda"`` where there is one, else ``"cpu"``.
    precision : {"32-true", "bf16-mixed", "16-mixed", "int8"}
        What networks compute in, by the names that training has for them; ``"32-true"`` by default. A lower
        one is several times as fast where the hardware supports it, and changes scores by some thousandths.
        ``"int8"``, of the engines beside torch, takes its ranges from images of the training period, and is refused
        where its scores have a rank correlation by date below .999 with those of float32.
    engine : {"torch", "openvino", "onnxruntime"}
        What runs networks: torch by default, on a CPU with batch norm folded into convolutions; or one of the others,
        on a CPU, which ``pricepix[openvino]`` and ``pricepix[onnx]`` install. Scores agree to 1e-5.
    values : {"probability", "score"}, optional
        What a function returns; scores need not lie between 0 and 1, and are ranked but not classified.
        Probability by default; networks record which.
    model_id : str, optional
        Names a function, so that a cache can tell it from others; needed to resume or append when it is not a
        plain function.
    module : torch.nn.Module, class or function, optional
        The module of which the checkpoint holds the weights, or what makes one, where a module of your own was trained:
        files hold no code.
    horizon : int, optional
        Which of its horizons a network that learnt several is asked about.

    Returns
    -------
    FactorCache

    Raises
    ------
    ValueError
        A model for other images; a location that holds the scores of another model, store, shift or calendar;
        images that were revised, with ``on_revision="raise"``; or scores that are not probabilities. The cache stays
        as it was.
    FileExistsError
        A location that holds something else.
    TypeError
        An option that does not exist; the message names the nearest.

    Warns
    -----
    UserWarning
        No image has a value. How many have none is in the cache's attribute ``without_value``.
    """
    known_options = get_type_hints(ScoreOptions)
    if unknown := [name for name in options if name not in known_options]:
        near = nearest(unknown[0], known_options, 1)
        raise TypeError(f"score has no argument {unknown[0]!r}{near}")
    store = open_images(store)
    # Values never move back in time.
    shift = bars(shift, "shift", 0)
    on_revision = choice(options.pop("on_revision", "rescore"), "on_revision", ON_REVISION)
    rename, known = options.pop("rename", None), options.pop("known", None)
    scorer = Scorer(model, tz=store.tz, images=store, **options)  # type: ignore[misc]
    label = f"{store.kind} {store.location}"
    scorer.check(store.spec, label)
    if spread and len(scorer.members) < 2:
        raise ValueError(f"spread=True needs an ensemble of 2 members or more; {scorer.name} is one model")
    if client is not None and not hasattr(client, "scatter"):
        raise TypeError(f"client is a {type(client).__name__}; give a distributed.Client, or None")
    if client is not None and (not isinstance(store, ImageStore) or store.location == "memory"):
        raise ValueError(
            f"workers cannot open {label}, which lives in this process: give a store at a location that all of them "
            "reach, or leave client out"
        )
    place = cache_location(location)
    check_location(place)
    scored = (read_root(place) or {}).get("attributes", {})
    first = None if start is None else as_time(start, store.tz)
    if append and start is None and scored.get("start") is not None:
        first = as_time(scored["start"], store.tz)
    last = None if end is None else as_time(end, store.tz, end=True)
    if last is not None and scored.get("scored_through") is not None:
        # What was scored once is kept up to date.
        last = max(last, int(scored["scored_through"]))
    read = chunk_reader(store, scorer, panel, client)
    windows = StoreWindows(store)
    placement = Placement.of(windows, shift, panel, first, last)
    attrs = _attributes(store, scorer, shift)
    attrs["start"] = None if first is None else format_time(first, store.tz)
    moment = int(placement.calendar[-1]) if known is None else as_time(known, store.tz, end=True)
    request = Request(attrs, placement, windows, scorer, spread, append, on_revision, dict(rename or {}), moment,
                      panel is None)  # fmt: skip
    with WriteLock(place, "cache") as lock:
        writer = prepare_cache(place, lock, request)
        counts = None
        if writer is not None:
            with _with_resume_hint(place.name, writer):
                counts = _write(writer, read, client, progress)
    cache = open_cache(place)
    _tell(cache, counts, progress)
    if counts and 0 < cache.attrs["windows"] - cache.attrs["skipped"] == cache.attrs["without_value"]:
        warnings.warn(
            f"{scorer.name} gave no value for any image of {label}: the factor in {cache.location} is empty",
            stacklevel=2,
        )
    return cache


def chunk_reader(
    store: ImageSet, scorer: Scorer, panel: Calendar | None, client: Any
) -> Callable[[int], NDArray[Any]]:
    """Return what reads the inputs of a chunk's windows: their images, or the series behind them."""
    if scorer.takes == "images":
        return store.read_chunk
    bars = panel if isinstance(panel, Panel) else store.panel
    if bars is None:
        raise ValueError(
            f"the model {scorer.name} takes the numbers behind the images: give panel= the panel that {store.kind} "
            f"{store.location} was made from"
        )
    if client is not None:
        raise ValueError(
            f"the model {scorer.name} takes the numbers behind the images, which workers do not have: leave client out"
        )
    rows = store_rows(store, bars)
    check_bars(store, bars, rows)
    # Of a stack those of its longest images.
    spec, size = getattr(store.spec, "main", store.spec), store.chunk
    return lambda chunk: window_series(bars, spec, rows[chunk * size : (chunk + 1) * size], scorer.scaling)


def _tell(cache: FactorCache, counts: dict[str, int] | None, progress: bool) -> None:
    """Say what was scored, or that nothing was: in the log and, with a progress bar, on the terminal."""
    windows, model = cache.attrs["windows"] - cache.attrs["skipped"], cache.attrs["model"]["name"]
    if counts is None:
        text = f"{cache.location}: nothing to do: {windows:,} windows were scored before by {model}"
    else:
        found = [
            f"{counts[name]:,} {name}" for name in ("added", "revised", "removed", "kept") if counts[name]
        ]
        text = f"{cache.location}: {', '.join(found) or 'no change'} of {windows:,} windows, by {model}"
    text = printable(text, "")
    _LOG.info(text, extra={"counts": counts or {}, "windows": windows})
    if progress and counts is None:
        print(text, file=sys.stderr)


def _write(
    writer: CacheWriter, read: Callable[[int], NDArray[Any]], client: Any, progress: bool
) -> dict[str, int]:
    """Score what is left, and make it the cache; return what was counted."""
    score_windows = partial(_score_here, read) if client is None else partial(_score_on_workers, client)
    whole = sum(part.last - part.first for part in writer.changes.parts)
    left = sum(part.last - part.first for part in writer.parts)
    with progress_bar(whole, "score", "img", progress, done=whole - left) as bar:
        writer.write(score_windows(writer), bar.update)
    return writer.finish()


@contextmanager
def _with_resume_hint(name: str, writer: CacheWriter) -> Iterator[None]:
    """Say in the error of a file, and in an interruption, how much is done and how to resume."""
    try:
        yield
    except (OSError, KeyboardInterrupt) as error:
        done = f"{writer.done:,} windows done"
        advice = f"the scoring to cache {name} stopped with {done}; the same call resumes from there"
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(error.errno, f"{error.strerror}: {advice}", error.filename) from error
        error.add_note(advice)
        raise


def _attributes(store: ImageSet, scorer: Scorer, shift: int) -> dict[str, Any]:
    """Return the attributes of a cache before anything is scored."""
    versions = {"pricepix": __version__, "python": platform.python_version()}
    versions |= {"numpy": np.__version__, "zarr": zarr.__version__}
    if scorer.members:
        import torch

        versions["torch"] = torch.__version__
        if scorer.engine != "torch":
            versions[scorer.engine] = version(scorer.engine)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "complete": False,
        "values": scorer.kind,
        "store_digest": store.digest,
        "panel_digest": store.attrs.get("panel_digest"),
        "panel_shape": shape_digest(store),
        "store": store.location,
        "spec": store.spec.to_dict(),
        "spec_digest": store.spec.digest,
        "model": scorer.describe(),
        "horizon": scorer.horizon,
        "delay": store.delay,
        "shift": shift,
        "precision": scorer.precision,
        "tz": store.tz,
        "versions": versions,
    }


def _in_order(jobs: Iterable[T], submit: Callable[[T], Any], ahead: int) -> Iterator[Any]:
    """Yield the results of jobs in their order, up to `ahead` more of them being under way.

    `submit` starts a job and returns its future.
    """
    waiting: deque[Any] = deque()
    for job in jobs:
        waiting.append(submit(job))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _score_here(read_inputs: Callable[[int], NDArray[Any]], writer: CacheWriter) -> Iterator[Scored]:
    """Score in this process; another thread reads and decodes chunks."""
    store, windows = writer.windows.store, writer.windows
    keep = writer.request.on_revision == "keep"
    parts = writer.parts
    # The levels of a stack's fields are neither black nor white.
    binary = not getattr(store.spec, "fields", None)
    read = map_ordered(lambda part: read_inputs(part.chunk), parts, 1, _AHEAD + 1, "pricepix-score")
    with closing(read) as blocks:
        for part, block in zip(parts, blocks, strict=True):
            start = part.chunk * store.chunk
            own = block[part.first - start : part.last - start]
            time = windows.column("time", part.first, part.last)
            yield score_part(writer.scorer, part, own, time, writer.scored_before(part), keep, binary)


def _score_on_workers(client: Any, writer: CacheWriter) -> Iterator[Scored]:
    """Score on the workers of a dask cluster, one chunk a task."""
    store, windows, parts = writer.windows.store, writer.windows, writer.parts
    keep = writer.request.on_revision == "keep"
    if not parts:
        return
    model = client.scatter(writer.scorer, broadcast=True)

    def submit(part: Part) -> Any:
        time = windows.column("time", part.first, part.last)
        before = writer.scored_before(part)
        args = (model, store.location, store.digest, part, time, before, keep)
        return client.submit(_score_chunk, *args, pure=False)

    yield from _in_order(parts, submit, 2 * max(1, sum(client.nthreads().values())))


def _score_chunk(
    scorer: Scorer,
    location: str,
    digest: str,
    part: Part,
    time: NDArray[np.int64],
    before: NDArray[np.uint64],
    keep: bool,
) -> Scored:
    """Score a part of a store, whose windows have these times, on a worker."""
    store = open_store(location)
    if store.digest != digest:
        raise ValueError(f"the worker finds another store at {location}: all workers must see the same files")
    first = part.first - part.chunk * store.chunk
    block = store.read_chunk(part.chunk)[first : first + len(time)]
    return score_part(scorer, part, block, time, before, keep)
