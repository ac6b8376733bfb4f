"""What is computed before anything is compiled is what compiled code computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from golden_files import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from test_render_properties import bars, specs, spoiled_windows

from pricepix import ImageSpec, Panel, WindowIndex, render_panel, render_windows, samples
from pricepix.bars import uncompiled
from pricepix.render import draw

if numba.config.DISABLE_JIT:
    pytest.skip("nothing is ever compiled", allow_module_level=True)


@pytest.fixture
def patience(monkeypatch):
    """Function that sets how long this process may do without compiled code."""

    def set_to(seconds):
        made = uncompiled.Patience(seconds)
        monkeypatch.setattr(uncompiled, "patience", made)
        return made

    return set_to


class _Interpreting:
    """While it is entered, drawing finds nothing compiled; counts what the interpreter came through with."""

    def __enter__(self):
        self.done = []
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(uncompiled, "patience", uncompiled.Patience(np.inf))
        self._patch.setattr(uncompiled, "is_compiled", lambda kernel, *args: False)
        self._patch.setattr(draw, "_compiled", set())
        run = uncompiled.run_interpreted

        def noted(kernel, *args, **options):
            done, result = run(kernel, *args, **options)
            self.done.append(done)
            return done, result

        self._patch.setattr(uncompiled, "run_interpreted", noted)
        return self

    def __exit__(self, *_):
        self._patch.undo()


# ---- drawing


def assert_same(drawn, *args, **options):
    expected = drawn(*args, **options)
    with _Interpreting() as interpreting:
        found = drawn(*args, **options)
    assert len(interpreting.done) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.tobytes() == theirs.tobytes()
    return all(interpreting.done)


@settings(max_examples=60)
@given(spoiled_windows())
def test_windows(scene):
    spec, rows, ma, at_limit = scene
    assert_same(render_windows, rows, spec, ma=ma, at_limit=at_limit)


@settings(max_examples=40)
@given(st.data())
def test_panels_with_every_kind_of_spec(data):
    spec = data.draw(specs(rebuild=True))
    n = spec.lookback + spec.history + 12
    table = data.draw(bars(2 * n))
    returns = np.where(np.isnan(table[:, 3]), np.nan, np.linspace(-0.03, 0.04, 2 * n))
    panel = Panel(
        table, np.array([0, n, 2 * n]), np.array(["A", "B"]), np.tile(np.arange(n), 2),
        fields={"total_return": returns},
    )  # fmt: skip

    def drawn():
        windows = WindowIndex.from_panel(panel, spec)
        images = render_panel(panel, windows), render_panel(panel, windows, bits=True)
        return windows.row, *images

    assert_same(drawn)


def test_arguments_are_checked_all_the_same():
    rows = np.ones((1, 5, 5))
    panel = Panel(np.ones((9, 5)), np.array([0, 9]), np.array(["A"]), np.arange(9))
    with _Interpreting():
        assert render_windows(rows, "jkx5", ma=rows[:, :, 3]).reason.tolist() == [2]
        with pytest.raises(ValueError, match="threads"):
            WindowIndex.from_panel(panel, ImageSpec(5, 32), threads=0)


@pytest.mark.parametrize("name", ["jkx_5", "jkx_20", "cnnft_20", "imagetrading_9"])
def test_golden_images(golden, name):
    kind, number = name.split("_")
    for case in cases(name, golden(name)):
        ma = () if case.ma is None else (20 if kind == "cnnft" else int(number),)
        spec = {
            "jkx": ImageSpec(int(number), {"5": 32, "20": 64}.get(number, 27), ma=ma, volume=case.volume),
            "cnnft": ImageSpec(20, style="cnn_for_trading", ma=ma, volume=case.volume),
            "imagetrading": ImageSpec.preset("it9").replace(scale="per_field"),
        }[kind]
        with _Interpreting() as interpreting:
            result = render_windows(case.ohlcv, spec, ma=case.ma, at_limit=case.at_limit)
        assert interpreting.done
        assert all(interpreting.done)
        assert np.array_equal(result.reason == 0, case.valid)
        assert np.array_equal(result.images[case.valid], case.images[case.valid])


@settings(max_examples=40)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_column_bits_by_numpy(height, width, count, seed):
    bits = np.random.default_rng(seed).integers(0, 256, (count, (height * width + 7) // 8), dtype=np.uint8)
    out = np.full((count, height, width), 7, np.uint8)
    draw._widen_by_numpy(bits, out)
    assert np.array_equal(out, draw.widen(bits, height, width))


# ---- a whole process

STORE = """
    import hashlib, json, sys
    import numpy as np
    import polars as pl
    from numba.core import event

    class Compiling(event.Listener):
        seen = set()
        def on_start(self, event):
            self.seen.add(event.data["dispatcher"])
        def on_end(self, event):
            pass

    event.register("numba:compile", Compiling())
    import pricepix as pp
    from pricepix.bars import uncompiled

    if sys.argv[1] == "compiled":
        uncompiled.patience.seconds = 0
    table = pp.samples.simulate(4, 300, seed=3, halt_rate=0.03, split_rate=0.01)
    table = table.sample(fraction=1.0, shuffle=True, seed=1)
    table = table.with_columns(eligible=pl.col("close") > pl.col("close").median())
    panel = pp.Panel.from_table(table, adjust="multiply", progress=False)
    windows = pp.WindowIndex.from_panel(panel, "jkx20", sample=0.7, seed=5, max_gap="20d")
    store = pp.render_universe(panel, "jkx20", None, (5, 20), layout=sys.argv[2], progress=False)
    rows = np.arange(100.0).reshape(1, 20, 5)[:, :, [1, 3, 0, 2, 4]] + 1
    arrays = [
        panel.bars, panel.time, panel.offsets, panel.instrument_digests, windows.row, store.read(),
        store.instrument_index, store.time, store.returns(5), store.exit_time(20),
        pp.render_windows(rows, "jkx20", ma=rows[:, :, 3]).images,
    ]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
    made = [k.py_func for k in Compiling.seen if k.overloads and k.py_func.__module__.startswith("pricepix")]
    print(json.dumps({
        "results": [digest, panel.digest, store.digest, len(store), windows.counts],
        "made": sorted(f"{f.__module__}.{f.__name__}" for f in made),
        "left": uncompiled.patience.seconds,
    }))
"""


def run(*args, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STORE), *args],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("layout", ["uint8", "bits"])
def test_the_first_store_of_a_machine_is_that_of_compiled_code(layout, tmp_path):
    """And next to nothing was compiled for it."""
    first = run("at once", layout, NUMBA_CACHE_DIR=str(tmp_path))
    assert first["made"] in ([], ["pricepix.store.kernels.translate"]), first["made"]
    assert 0 < first["left"] < 3
    assert first["results"] == run("compiled", layout)["results"]


# ---- which calls are interpreted


def made_kernel(function):
    """A kernel of a module of its own, whose small calls are interpreted."""
    kernel = numba.njit(function)
    function.__module__ = "kernels_of_this_test"
    module = SimpleNamespace(__name__=function.__module__, kernel=kernel)
    uncompiled.interpret_small_calls(module)
    return kernel


def test_small_calls_are_interpreted_until_the_patience_is_over(patience):
    def total(values):
        found = 0.0
        for value in values:
            found += value
        return found

    kernel = made_kernel(total)
    left = patience(1e-3)
    small = np.ones(200)
    for calls in (1, 2):
        assert kernel(small) == 200.0
        assert not kernel.signatures
        assert left.seconds == pytest.approx(1e-3 - calls * 4e-4)
    assert kernel(small) == 200.0
    assert len(kernel.signatures) == 1
    assert left.seconds == pytest.approx(2e-4)


def test_large_calls_and_those_without_patience_are_compiled(patience):
    def first(values):
        return values[0]

    for seconds, size in ((10.0, 100_000), (0.0, 1)):
        kernel = made_kernel(first)
        left = patience(seconds)
        assert kernel(np.ones(size)) == 1.0
        assert len(kernel.signatures) == 1
        assert left.seconds == seconds


def test_whole_numbers_that_wrap_are_compiled_on_what_was_given(patience):
    def scale(values, factor, count):
        for i in range(values.shape[0]):
            count[0] += 1
            values[i] = values[i] * factor // factor

    days = np.array([1, 20_000], np.int32)
    kernel = made_kernel(scale)
    patience(1.0)
    count = np.zeros(1, np.int64)
    kernel(days, 1_000_000, count)
    assert len(kernel.signatures) == 1
    assert days.tolist() == [1, 20_000]
    assert count[0] == 2


def test_what_python_refuses_is_compiled(patience):
    def whole(values, out):
        out[0] += 1
        out[1] = int(values[0])

    kernel = made_kernel(whole)
    patience(1.0)
    out = np.zeros(2, np.int64)
    kernel(np.array([np.nan]), out)
    assert len(kernel.signatures) == 1
    assert out[0] == 1


def test_errors_of_a_kernel_are_its_own(patience):
    def refuse(values):
        if values[0] > 0:
            raise KeyError("positive")
        return values[0]

    kernel = made_kernel(refuse)
    patience(1.0)
    with pytest.raises(KeyError, match="positive"):
        kernel(np.ones(1))
    assert not kernel.signatures


def test_another_threads_compilation_goes_on(patience):
    """A thread that would rather interpret does not end what another compiles."""
    import threading

    def double(x):
        return 2 * x

    patience(1.0)
    begun, ended = threading.Event(), threading.Event()

    class Wait(numba.core.event.Listener):
        def on_start(self, event):
            begun.set()
            ended.wait(10)

        def on_end(self, event):
            pass

    other = numba.njit(double)
    found = []
    thread = threading.Thread(target=lambda: found.append(other(3)))
    installed = numba.core.event.install_listener
    with installed("numba:compile", uncompiled._Refusal()), installed("numba:compile", Wait()):
        thread.start()
        assert begun.wait(10)
        ended.set()
        thread.join()
    assert found == [6]


def test_compiled_code_in_the_cache_is_loaded(tmp_path, patience, monkeypatch):
    import importlib.util

    source = tmp_path / "kept_kernels.py"
    source.write_text(
        "from numba import njit\n\n\n@njit(cache=True)\ndef first(values):\n    return values[0]\n"
    )
    for round_, seconds in enumerate((0.0, 5.0)):
        spec = importlib.util.spec_from_file_location("kept_kernels", source)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "kept_kernels", module)
        spec.loader.exec_module(module)
        uncompiled.interpret_small_calls(module)
        left = patience(seconds)
        assert module.first(np.ones(3)) == 1.0
        assert sum(module.first.stats.cache_hits.values()) == round_
        assert left.seconds == seconds


def test_drawing_is_compiled_once_it_would_take_longer(patience):
    """What a call takes is estimated from its windows and their bars."""
    spec = ImageSpec.preset("jkx5")
    rows = np.tile(np.arange(25.0).reshape(1, 5, 5)[:, :, [1, 3, 0, 2, 4]] + 1, (200, 1, 1))
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncompiled, "is_compiled", lambda kernel, *args: False)
        patch.setattr(draw, "_compiled", set())
        run = uncompiled.run_interpreted

        def noted(kernel, *args, **options):
            drawn.append(kernel.py_func.__name__)
            return run(kernel, *args, **options)

        patch.setattr(uncompiled, "run_interpreted", noted)
        left = patience(0.1)
        for count in (100, 200, 100, 20):
            render_windows(rows[:count], spec, ma=rows[:count, :, 3])
    # 300 windows of five bars at 60 microseconds a bar, no patience for 100 more, and enough for 20.
    assert drawn.count("render_serial") == 3
    assert left.seconds == pytest.approx(0.1 - 0.03 - 0.06 - 0.006, abs=1e-3)


def test_samples_are_drawn_in_the_same_way(patience):
    """The bars that come with the package, as a newcomer draws them."""
    panel = Panel.from_table(samples.bundled(), progress=False)
    windows = WindowIndex.from_panel(panel, "jkx20")[-40:]
    assert_same(lambda: (render_panel(panel, windows),))
