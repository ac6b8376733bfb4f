"""A terminal is told that kernels are being compiled."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pricepix.bars import compiling
from pricepix.bars.compiling import CompilingNotice


def an_event(module="pricepix.render.fast"):
    kernel = SimpleNamespace(__module__=module)
    return SimpleNamespace(data={"dispatcher": SimpleNamespace(py_func=kernel)})


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves; timers go off only by hand."""
    found = SimpleNamespace(now=0.0, timers=[])

    class Timer:
        def __init__(self, seconds, function):
            self.seconds, self.function, self.alive = seconds, function, True
            found.timers.append(self)

        def start(self):
            pass

        def cancel(self):
            self.alive = False

    monkeypatch.setattr(compiling, "perf_counter", lambda: found.now)
    monkeypatch.setattr(compiling.threading, "Timer", Timer)
    return found


def test_short_compilations_stay_silent_until_they_add_up_to_a_second(clock):
    lines = []
    notice = CompilingNotice(lines.append)
    for _ in range(3):
        notice.on_start(an_event())
        clock.now += 0.4
        notice.on_end(an_event())
    assert lines == []
    assert not any(timer.alive for timer in clock.timers)
    # The next one is announced as soon as it begins, more or less.
    notice.on_start(an_event())
    assert clock.timers[-1].seconds == 0.05
    clock.timers[-1].function()
    assert len(lines) == 1
    assert "compiling kernels" in lines[0]
    assert "warm-up" in lines[0]


def test_a_long_one_is_announced_while_it_runs_and_named_when_it_is_done(clock):
    lines = []
    notice = CompilingNotice(lines.append)
    notice.on_start(an_event())
    clock.now += 2.0
    clock.timers[0].function()
    assert len(lines) == 1
    # What it calls is compiled within.
    notice.on_start(an_event("pricepix.bars.hashing"))
    clock.now += 5.0
    notice.on_end(an_event("pricepix.bars.hashing"))
    notice.on_end(an_event())
    assert lines[1:] == ["pricepix: compiled the renderer, once: 7 s"]
    notice.on_start(an_event("pricepix.new"))
    clock.now += 3.0
    notice.on_end(an_event("pricepix.new"))
    assert lines[-1] == "pricepix: compiled kernels of pricepix.new, once: 3 s"


def test_functions_of_other_programs_are_not_ours(clock):
    lines = []
    notice = CompilingNotice(lines.append)
    notice.on_start(an_event("theirs"))
    clock.now += 9.0
    notice.on_end(an_event("theirs"))
    assert lines == []
    assert clock.timers == []


def test_a_compilation_that_another_listener_refused_is_none():
    """Numba then tells of an end without a beginning: `warm_up` looks into the cache that way."""
    lines = []
    CompilingNotice(lines.append).on_end(an_event())
    assert lines == []


def test_nothing_is_written_where_there_is_no_terminal(capsys, monkeypatch):
    compiling._to_terminal("a line")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(compiling.sys.stderr, "isatty", lambda: True, raising=False)
    compiling._to_terminal("a line")
    assert capsys.readouterr().err == "a line\n"
