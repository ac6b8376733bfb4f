"""Drawing from many threads at once, from dask, and in forked children: equal images, no abort, no deadlock.

Numba's parallel regions abort the process when two threads enter them, and hang in a child that was forked after
one, so each case runs in a process of its own under a timeout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.serial

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks: needs os.fork")

SETUP = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from pricepix import ImageSpec, Panel, WindowIndex, render_panel
from pricepix.render import draw

draw._THREAD_SECONDS = 1e-9  # small calls are shared by threads, too

# Instruments of very different lengths, and enough windows for many tasks.
lengths = [6000, 40, 26, 1500, 2] + 30 * [60]
rng = np.random.default_rng(0)
rows = sum(lengths)
close = 5000 + np.cumsum(rng.integers(-9, 10, rows))
spread = rng.integers(0, 9, (rows, 2))
prices = np.stack([close, close + spread[:, 0], close - spread[:, 1], close], 1) / 100
bars = np.column_stack([prices, rng.integers(1, 999, rows) * 100.0])
offsets = np.concatenate([[0], np.cumsum(lengths)])
names = np.array([f"{i:03}" for i in range(len(lengths))])
panel = Panel(np.ascontiguousarray(bars), offsets, names, np.arange(rows))
specs = [
    ImageSpec.preset("jkx20").replace(ma=(5,)),
    ImageSpec(9, 27, style="image_trading", scale="per_field"),  # drawn by the plain kernels
    ImageSpec(5, 96, ma=(5,), volume=True),
]
indexes = [WindowIndex.from_panel(panel, spec, threads=1) for spec in specs]
expected = [render_panel(panel, index, threads=1) for index in indexes]
expected_bits = [render_panel(panel, index, bits=True, threads=1) for index in indexes]

def check(k, threads=None):
    index = indexes[k % len(indexes)]
    assert np.array_equal(render_panel(panel, index, threads=threads), expected[k % len(indexes)])
    bits = render_panel(panel, index, bits=True, threads=threads)
    assert np.array_equal(bits, expected_bits[k % len(indexes)])
    return k

def forked(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child

def join(children):
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def in_a_process(code: str) -> None:
    """Run a script after ``SETUP``; a hang is a failure."""
    script = SETUP + textwrap.dedent(code) + "\nprint('drawn')\n"
    environment = {**os.environ, "NUMBA_NUM_THREADS": "4"}
    try:
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", script],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=environment,
            cwd=Path(__file__).parent,
        )
    except subprocess.TimeoutExpired as hung:
        pytest.fail(f"no end after {hung.timeout} s:\n{hung.stdout}\n{hung.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("drawn\n")


def test_several_python_threads_at_once():
    """All of them ask for Numba's threads; one gets them."""
    in_a_process(
        """
        begin = threading.Barrier(6)
        def work(k):
            begin.wait()
            return [check(k + i) for i in range(6)]
        with ThreadPoolExecutor(6) as pool:
            assert len(list(pool.map(work, range(6)))) == 6
        """
    )


def test_dask_with_its_threaded_scheduler():
    in_a_process(
        """
        import dask
        tasks = [dask.delayed(check)(k, threads) for k in range(12) for threads in (None, 1, 2)]
        assert dask.compute(*tasks, scheduler="threads", num_workers=6) == tuple(k for k in range(12) for _ in "abc")
        """
    )


@needs_fork
def test_children_forked_after_the_parent_drew_in_parallel():
    """Several at once, each with threads of its own, while the parent goes on drawing."""
    in_a_process(
        """
        check(0)
        def work():
            check(1)
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(check, range(6)))
        children = [forked(work) for _ in range(4)]
        check(2)
        join(children)
        check(0)
        """
    )


@needs_fork
def test_children_forked_while_another_thread_draws_in_parallel():
    """Locks, Numba's own included, may be held by a thread that the children do not have."""
    in_a_process(
        """
        stop = threading.Event()
        def draw_on():
            while not stop.is_set():
                check(0)
        thread = threading.Thread(target=draw_on)
        thread.start()
        for _ in range(5):
            join([forked(lambda k=k: check(k)) for k in range(8)])
        stop.set()
        thread.join()
        """
    )


@needs_fork
def test_child_of_a_parent_that_never_drew_in_parallel_may():
    """And its own children may not."""
    in_a_process(
        """
        def work():
            check(0)
            join([forked(lambda: check(0)) for _ in range(2)])
            check(1)
        join([forked(work) for _ in range(2)])
        """
    )
