"""Compile every kernel once, into Numba's cache, so that later processes only load them.

A kernel is compiled for the types of its arguments, so small made-up markets go through the public functions here:
what they compile is what real data need. Compiling holds one lock a process, so that only processes share the work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from pricepix._checks import choice, whole_number
from pricepix.spec import ImageSpec

if TYPE_CHECKING:
    from pricepix.bars.panel import Panel

__all__ = ["WarmUp", "WarmUpStep", "warm_up"]

# A pass that only loads follows one that compiled beside other processes; more are needed only while others write.
_MAX_PASSES: Final = 4
_LOOK_UP: Final = "--look-up"
PARTS: Final = (
    "bars",
    "plain renderer",
    "rebuilt prices",
    "batches",
    "live images",
    "column bits",
    "stores",
    "market caches",
    "factors",
)


@dataclass(frozen=True)
class WarmUpStep:
    """What one process of a warm-up compiled."""

    name: str
    compiled: int
    """Kernels that were compiled and written to the cache."""
    loaded: int
    """Kernels that were there already."""
    seconds: float

    def __str__(self) -> str:
        done = f"{self.compiled} kernels compiled" if self.compiled else "compiled already"
        return f"{self.name}: {done}, {self.seconds:.1f} s"


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up compiled, where it is kept, and how long it took."""

    cache: Path | None
    """The folder of the compiled code; None where the compiler is switched off."""
    steps: tuple[WarmUpStep, ...]
    seconds: float

    @property
    def compiled(self) -> int:
        """Kernels that were compiled; 0 if all were in the cache."""
        return sum(step.compiled for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return what was done as JSON values."""
        return {
            "cache": None if self.cache is None else str(self.cache),
            "compiled": self.compiled,
            "seconds": self.seconds,
            "steps": [asdict(step) for step in self.steps],
        }

    def __str__(self) -> str:
        if self.cache is None:
            return "nothing to compile: NUMBA_DISABLE_JIT switches the compiler off"
        if not self.compiled:
            return f"all kernels are compiled already, in {self.cache} (looked up in {self.seconds:.1f} s)"
        return f"compiled {self.compiled} kernels in {self.seconds:.1f} s, kept in {self.cache}"


def warm_up(
    presets: str | Iterable[str] | None = None,
    parts: str | Iterable[str] | None = None,
    *,
    workers: int | None = None,
    echo: Callable[[str], Any] | None = None,
) -> WarmUp:
    """Compile all kernels that run on the CPU into Numba's cache.

    That is ``NUMBA_CACHE_DIR`` where it is set, else ``__pycache__`` beside the sources, else, where that cannot
    be written, the user's cache folder. A container image that is built with a warm-up starts without compiling,
    on CPUs like the one that it was built on (``NUMBA_CPU_NAME=generic`` at both times makes that any CPU). It may
    run again, and beside other processes that compile: what is there is not compiled again.

    Parameters
    ----------
    presets : str or sequence of str, optional
        Image presets whose renderers to compile; all by default. Specs with the same kind of renderer share it.
    parts : str or sequence of str, optional
        What to compile besides: ``bars`` (tables, windows, forward returns), ``plain renderer`` (specs and bars that
        the fast one does not take), ``rebuilt prices``, ``batches`` (drawn while training), ``live images`` (bars
        that are pushed one at a time), ``column bits``, ``stores`` (writing, reading, appending, checking),
        ``market caches``, ``factors`` (evaluating them); all by default.
    workers : int, optional
        Processes that compile; one for each usable core by default.
    echo : callable, optional
        Takes a line on each step when it is done.

    Returns
    -------
    WarmUp
        What was compiled, and how long it took; ``print`` it.

    Raises
    ------
    ValueError
        No such preset or part; the message names the nearest.
    RuntimeError
        A process failed; the message ends with what it printed.
    """
    names = (
        [presets] if isinstance(presets, str) else list(ImageSpec.presets() if presets is None else presets)
    )
    for name in names:
        ImageSpec.preset(name)
    chosen = [parts] if isinstance(parts, str) else list(PARTS if parts is None else parts)
    for name in chosen:
        choice(name, "part", PARTS)
    usual = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = usual if workers is None else whole_number(workers, "workers", 1, otherwise="None for all cores")
    cache = cache_folder()
    if cache is None:
        return WarmUp(None, (), 0.0)
    began = perf_counter()
    report = echo or (lambda line: None)
    waits = _steps(names, chosen)
    found = _run_step("look-up", [_LOOK_UP, *waits])
    if not found.compiled:
        return WarmUp(cache, (found,), perf_counter() - began)
    steps = _first_pass(waits, count, report)
    written = any(step.compiled for step in steps)
    # Two processes that add to the index of one kernel at once may lose an entry: look until nothing is missing.
    for _ in range(_MAX_PASSES):
        if not written:
            break
        again = _run_step("check", list(waits))
        written = again.compiled > 0
        if written:
            report(str(again))
            steps.append(again)
    return WarmUp(cache, tuple(steps), perf_counter() - began)


def _first_pass(
    waits: Mapping[str, Sequence[str]], workers: int, echo: Callable[[str], Any]
) -> list[WarmUpStep]:
    """Run every step in a process of its own, as soon as those whose kernels it calls are done."""
    running: dict[str, Future[WarmUpStep]] = {}

    def run(name: str) -> WarmUpStep:
        # They were submitted earlier, so each of them runs or is done, and waiting cannot block them.
        for other in waits[name]:
            running[other].result()
        step = _run_step(name, [name])
        echo(str(step))
        return step

    with ThreadPoolExecutor(workers) as pool:
        for name in waits:
            running[name] = pool.submit(run, name)
        return [future.result() for future in running.values()]


def _steps(presets: Sequence[str], parts: Sequence[str] = PARTS) -> dict[str, tuple[str, ...]]:
    """What to compile, in an order that works, and which of it each step loads instead of compiling it again."""
    families = _families(presets)
    first = tuple(f"renderer of {family}" for family in families[:1])
    steps: dict[str, tuple[str, ...]] = {"bars": (), "plain renderer": ("bars",)}
    steps |= {f"renderer of {family}": ("bars",) for family in families}
    steps |= {"rebuilt prices": ("plain renderer",), "column bits": ()}
    steps |= {f"batches of {family}": (f"renderer of {family}",) for family in families}
    steps |= {
        "live images": first,
        "stores": ("bars", "column bits", *first),
        "market caches": ("bars", *first),
        "factors": ("bars",),
    }
    wanted = [name for name in steps if name.partition(" of ")[0] in ("renderer", *parts)]
    return {name: tuple(other for other in steps[name] if other in wanted) for name in wanted}


def _run_step(name: str, scenarios: Sequence[str]) -> WarmUpStep:
    """Compile for some scenarios in a new process."""
    code = "import sys; from pricepix.workflow.warm_up import compile_here; compile_here(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if _numba().CACHE_DIR:
        environment["NUMBA_CACHE_DIR"] = _numba().CACHE_DIR
    began = perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *scenarios],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"compiling the kernels of {', '.join(scenarios)} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return WarmUpStep(name, found["compiled"], found["loaded"], perf_counter() - began)


class _Missing(BaseException):
    """Ends a look-up at the first kernel that is not in the cache; no handler of errors takes it for one."""


def compile_here(scenarios: Sequence[str]) -> None:
    """Run scenarios in this process, and print as JSON how many kernels they compiled and loaded.

    After ``--look-up`` nothing is compiled: the first kernel that is missing ends it, and counts as one compiled.
    """
    from numba.core import event

    from pricepix.bars import uncompiled

    uncompiled.patience.seconds = 0.0

    class Stop(event.Listener):
        def on_start(self, event: Any) -> None:
            raise _Missing

        def on_end(self, event: Any) -> None:
            pass

    look_up = scenarios[0] == _LOOK_UP
    try:
        with event.install_listener("numba:compile", Stop()) if look_up else nullcontext():
            for scenario in scenarios[1:] if look_up else scenarios:
                name, _, presets = scenario.partition(" of ")
                _SCENARIOS[name](*presets.split(", "))
    except _Missing:
        print(json.dumps({"compiled": 1, "loaded": 0}))
        return
    print(json.dumps(kernel_counts()))


def kernel_counts() -> dict[str, int]:
    """Count the kernels that this process compiled and loaded from the cache so far."""
    found = {
        id(value): value
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "pricepix"
        for value in vars(module).values()
        if hasattr(value, "py_func") and hasattr(value, "stats")
    }
    stats = [kernel.stats for kernel in found.values()]
    return {
        "compiled": sum(sum(s.cache_misses.values()) for s in stats),
        "loaded": sum(sum(s.cache_hits.values()) for s in stats),
    }


def _numba() -> Any:
    """Numba's settings, from the environment or set since."""
    import numba

    return numba.config


def cache_folder() -> Path | None:
    """Where compiled code is kept: the folder that holds it for all modules; None without a compiler."""
    if _numba().DISABLE_JIT:
        return None
    if _numba().CACHE_DIR:
        return Path(_numba().CACHE_DIR)
    from pricepix.render import fast

    return Path(str(fast.render_serial.stats.cache_path))


def _families(presets: Iterable[str]) -> list[str]:
    """Return the presets that share a compiled renderer, by commas."""
    import numba
    import numpy as np

    from pricepix.render.draw import fast_job
    from pricepix.render.rules import PanelArrays

    found: dict[str, list[str]] = {}
    flags = np.zeros(0, np.bool_)
    arrays = PanelArrays(np.zeros((1, 5)), np.zeros(0), flags, flags, np.zeros((0, 0)))
    for name in presets:
        job = fast_job(arrays, ImageSpec.preset(name))
        found.setdefault("plain" if job is None else str(numba.typeof(job)), []).append(name)
    return [", ".join(names) for names in found.values()]


# ---- what compiles: the public functions, on markets of a few hundred bars


def _market(**options: Any) -> Any:
    from pricepix import samples

    return samples.simulate(
        3, 400, seed=1, list_late=0, delist_rate=0, split_rate=0.01, halt_rate=0.02, **options
    )


def _panel() -> Panel:
    from pricepix.bars.panel import Panel

    return Panel.from_table(_market(), adjust="multiply", anchor="first", progress=False)


def _compile_bars(*_: str) -> None:
    """Tables and arrays in, digests, longer bars, windows and forward returns."""
    import numpy as np
    import polars as pl

    from pricepix.bars.panel import Panel
    from pricepix.bars.resampling import resample
    from pricepix.spec import ImageSpec
    from pricepix.windows.index import WindowIndex
    from pricepix.windows.labels import forward_returns

    panel = _panel()
    table = _market()
    flags = pl.lit(True).alias("eligible")
    Panel.from_table(
        table.with_columns(flags).sample(fraction=1.0, shuffle=True, seed=1),
        negative_prices="midpoint", on_bad="drop_bar", progress=False,
    )  # fmt: skip
    block = np.exp(np.random.default_rng(0).normal(0, 0.01, (60, 3)).cumsum(axis=0))
    days = np.datetime64("2020-01-01") + np.arange(60)
    for volume in (None, block):
        arrays = Panel.from_arrays(
            block, block, block, block, volume, time=days, instruments=["A", "B", "C"], progress=False,
            eligible=np.ones(block.shape, bool), total_return=block - 1.0,
        )  # fmt: skip
    for made in (panel, arrays):
        made.select(instruments=made.instruments[:1].tolist())
        _hashed = (made.digest, made.instrument_digests)
    resample(_market(interval="30m"), "1h")
    windows = WindowIndex.from_panel(arrays, ImageSpec(5, 32), threads=1, sample=0.5, max_gap="10d")
    for price in ("close", "total_return"):
        forward_returns(arrays, windows, 5, price=price)


def _compile_plain_renderer(*_: str) -> None:
    """The renderer that takes every spec, and windows that the fast one leaves to it."""
    _draw(ImageSpec(5, 32, style="image_trading", scale="per_field"))


def _compile_rebuilt_prices(*_: str) -> None:
    """The same on prices that are rebuilt from total returns, as the paper's authors do."""
    _draw(ImageSpec.preset("jkx5").replace(rebuild="returns"))


def _compile_renderer(*presets: str) -> None:
    """The fast renderer of presets that share it."""
    _draw(ImageSpec.preset(presets[0]))


def _draw(spec: ImageSpec) -> None:
    """Draw a panel's windows."""
    from pricepix.images.drawing import render_panel
    from pricepix.windows.index import WindowIndex

    panel = _panel()
    windows = WindowIndex.from_panel(panel, spec)
    render_panel(panel, windows, threads=1)


def _compile_batches(*presets: str) -> None:
    """Drawing windows from anywhere, as they are and changed, while a network learns."""
    from pricepix.images.augment import Augment
    from pricepix.images.panel_images import PanelImages

    # Averages are laid beside the bars where most windows are used, else computed for each.
    for every in ("bar", "month"):
        images = PanelImages(_panel(), presets[0], (5,), every=every)
        for augment in (None, Augment(invert=0.5)):
            _read(images.batches(batch_size=64, augment=augment))


def _read(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def _compile_live_images(*_: str) -> None:
    """Bars pushed one at a time, until images come of them."""
    import numpy as np

    from pricepix.images.live import LiveImages

    live = LiveImages("jkx5", ["A", "B"])
    for day in range(12):
        # Of both instruments, then of one.
        names = None if day % 2 else ["B"]
        bars = np.array([[2.0, 4.0, 1.0, 3.0, 10.0 + day]]) + day
        live.push(day, np.repeat(bars, 1 if names else 2, axis=0), names)


def _compile_column_bits(*_: str) -> None:
    """Column bits to images, of sizes that vectors take and that they do not."""
    import numpy as np

    from pricepix.render.draw import widen

    bits = np.arange(480, dtype=np.uint8)[None]
    widen(bits, 64, 60)
    widen(bits[:, :1], 2, 3)


def _compile_stores(*_: str) -> None:
    """Writing, reading, appending to and checking stores of both layouts, in memory and on disk."""
    import polars as pl

    from pricepix.bars.panel import Panel
    from pricepix.build.append import append
    from pricepix.build.universe import render_universe

    table = _market()
    earlier = table.filter(pl.col("time") < table["time"].unique().sort()[380])
    panel, old = (Panel.from_table(bars, progress=False) for bars in (table, earlier))
    with tempfile.TemporaryDirectory() as folder:
        # 27x27 pixels fill no whole bytes: kernels of their own.
        for preset in ("jkx5", "it9"):
            for layout in ("uint8", "bits"):
                path = Path(folder) / f"{preset}-{layout}"
                store = render_universe(old, preset, path, (5,), layout=layout, chunk=64, progress=False)
                if preset == "jkx5":
                    store = append(path, panel, progress=False)
                    store.verify(panel, progress=False)
                for images in (store, store.load()):
                    _read(images.batches(batch_size=64))
                    _read(images.batches(batch_size=64, shuffle=False))
                # Stores that do not fit into the pool are shuffled by exchange.
                _read(store.batches(batch_size=64, pool_bytes=1 << 16))
        memory = render_universe(old, "jkx5", None, (5,), chunk=64, progress=False)
        for pool_bytes in (1 << 30, 1 << 16):
            _read(memory.batches(batch_size=64, pool_bytes=pool_bytes))


def _compile_market_caches(*_: str) -> None:
    """Panels and stores of a market cache."""
    from pricepix.build.market import build_market_store
    from pricepix.samples import simulate_market

    with tempfile.TemporaryDirectory() as folder:
        cache = simulate_market(Path(folder) / "cache", 3, 20, every="30min", st_share=0.5)
        cache.panel()
        cache.panel(no_trade="keep", filtered=False, adjust=False)
        cache.panel(anchor="first")
        build_market_store(cache, "it9", Path(folder) / "store", (1, 5), progress=False)


def _compile_factors(*_: str) -> None:
    """Evaluating a factor: ranks, forward returns, baselines."""
    import numpy as np

    from pricepix.factor.evaluation.kernels import upper_triangle
    from pricepix.factor.evaluation.market import Market
    from pricepix.factor.evaluation.metrics import auc, rank
    from pricepix.factor.evaluation.signals import trend
    from pricepix.factor.evaluation.sorted_rows import SortedRows

    panel = _panel()
    market = Market.of(panel, panel.instruments)
    at = np.arange(300, 380)
    returns = SortedRows.of(market.forward(at, 5))
    returns.correlations(returns, 3)
    rank(returns.values)
    auc(returns.values[0], returns.values[0] > 0)
    trend(market, at, lags=(3, 5))
    upper_triangle(np.ones((3, 3)), np.empty((3, 3)))


_SCENARIOS: Final[Mapping[str, Callable[..., None]]] = {
    "bars": _compile_bars,
    "plain renderer": _compile_plain_renderer,
    "rebuilt prices": _compile_rebuilt_prices,
    "renderer": _compile_renderer,
    "batches": _compile_batches,
    "live images": _compile_live_images,
    "column bits": _compile_column_bits,
    "stores": _compile_stores,
    "market caches": _compile_market_caches,
    "factors": _compile_factors,
}
