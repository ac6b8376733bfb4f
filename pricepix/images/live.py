"""Images of bars as they come: push the bars of a moment, get the images that they complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import BadBarsError, printable
from pricepix.bars.panel import Panel
from pricepix.bars.times import as_time, check_zone, duration_ns, format_time
from pricepix.images import kernels
from pricepix.render import fast, rules
from pricepix.render.draw import fast_job, run_plain
from pricepix.render.memory import memory_for
from pricepix.render.rules import PanelArrays, WindowRows
from pricepix.spec import ImageSpec

__all__ = ["LiveBatch", "LiveImages"]

# Bars of each instrument that fit behind those that are needed, before these move to the front.
_SLACK: Final = 64
_NO_FLAGS: Final = np.zeros(0, np.bool_)
_NO_VALUES: Final = np.zeros(0)
_NEVER: Final = np.iinfo(np.int64).min
_FAULTS: Final = {
    kernels.NOT_LATER: "its time is not later than that of its last bar",
    kernels.HIGH_BELOW_LOW: "the high is below the low",
    kernels.NOT_POSITIVE: "a price is zero or negative",
    kernels.INFINITE: "a price or volume is infinite, or the volume negative",
    kernels.TWICE: "it stands twice in one push, or out of order",
}


class LiveBatch(NamedTuple):
    """The images that the bars of one push completed."""

    time: int
    """Of the bars, nanoseconds."""
    which: NDArray[np.int64]
    """int64 (n,): positions of the instruments in ``LiveImages.instruments``, ascending."""
    images: NDArray[np.uint8]
    """uint8 (n, height, width): valid until the next push, which draws into the same memory."""
    scores: Any
    """What the model returned for the images; None without a model."""


class LiveImages:
    """Images of many instruments, bar by bar, without a panel or a store.

    The images are those that ``render_universe`` draws of the same bars with ``every="bar"``, pixel by pixel. After
    the first push nothing is compiled, and no memory is taken that grows with the number of instruments.

    Parameters
    ----------
    spec : ImageSpec, str or dict
        What to draw, or the name of a preset.
    instruments : sequence of str
        Names, in the order of their positions.
    tz : str, optional
        Zone of the market, in which times without one are read.
    max_gap : str, timedelta or int, optional
        No image may hold two neighbouring bars further apart than this: see ``WindowIndex.from_panel``.
    limits : bool
        Bars come with flags of up- and down-limits, by which style ``image_trading`` draws flat windows.
    model : callable, optional
        Takes the images of every batch, uint8 (n, height, width), and returns their scores.

    Raises
    ------
    ValueError
        For names that occur twice.

    Examples
    --------
    >>> import numpy as np
    >>> from pricepix.images.live import LiveImages
    >>> live = LiveImages(ImageSpec(lookback=2, height=3), ["A", "B"])
    >>> live.push("2024-03-07", [[1.0, 3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0]]).images.shape
    (0, 3, 6)
    >>> live.push("2024-03-08", [[2.0, 3.0, 2.0, 3.0, 0.0]], ["A"]).images[0] // 255
    array([[0, 1, 0, 0, 1, 1],
           [0, 1, 1, 1, 1, 0],
           [1, 1, 0, 0, 0, 0]], dtype=uint8)
    """

    def __init__(
        self,
        spec: ImageSpec | str | Mapping[str, Any],
        instruments: Sequence[str],
        *,
        tz: str | None = None,
        max_gap: Any = None,
        limits: bool = False,
        model: Callable[[NDArray[np.uint8]], Any] | None = None,
    ) -> None:
        self.spec = spec = ImageSpec.of(spec)
        self.instruments: NDArray[np.str_] = np.asarray(instruments, np.str_)
        """Names, in the order of their positions."""
        self.tz = check_zone(tz)
        self.model = model
        n = len(self.instruments)
        self._code = {str(name): k for k, name in enumerate(self.instruments.tolist())}
        if len(self._code) < n:
            raise ValueError(f"{n - len(self._code)} of {n} instruments have a name that another has, too")
        kept = spec.lookback + spec.history - 1
        self._rules = kernels.PushRules(
            room=kept + max(_SLACK, kept),
            kept=kept,
            lookback=spec.lookback,
            needed=spec.lookback + (spec.history if spec.ma_warmup == "drop" else 0),
            max_missing=-1 if spec.max_missing is None else min(spec.max_missing, spec.lookback),
            max_gap=-1 if max_gap is None else duration_ns(max_gap, "max_gap"),
        )
        rows = n * self._rules.room
        limit_rows = rows if limits else 0
        self._recent = kernels.RecentBars(
            bars=np.full((rows, 5), np.nan),
            returns=np.full(rows, np.nan) if spec.rebuild == "returns" else np.zeros(0),
            up=np.zeros(limit_rows, np.bool_),
            down=np.zeros(limit_rows, np.bool_),
            times=np.zeros(rows, np.int64),
            size=np.zeros(n, np.int64),
            total=np.zeros(n, np.int64),
            latest=np.full(n, _NEVER, np.int64),
        )
        self._all = np.arange(n, dtype=np.int64)
        first, last, which, self._dest = (np.arange(n, dtype=np.int64) for _ in range(4))
        self._completed = kernels.Completed(first, last, which)
        # Plain tuples: Numba looks up the type of a named one in Python at every call, which takes 100 kB.
        self._state = (tuple(self._recent), tuple(self._rules), tuple(self._completed))
        self._reason = np.zeros(n, np.uint8)
        self._fault = np.zeros(1, np.int64)
        self._images = memory_for((n, *spec.shape))
        # Read-only, as a panel's are: compiled code tells the two kinds of arrays apart.
        table, returns, up, down = map(_read_only, self._recent[:4])
        self._arrays = PanelArrays(table, returns, up, down, np.zeros((0, 0)))
        self._job: Any = fast_job(self._arrays, spec)
        self._starts = fast.plan_tasks(n)

    @classmethod
    def from_panel(
        cls, spec: ImageSpec | str | Mapping[str, Any], panel: Panel, **options: Any
    ) -> LiveImages:
        """Return live images that go on from the last bars of a panel.

        Parameters
        ----------
        spec : ImageSpec, str or dict
        panel : Panel
            Its instruments, with as many of their last bars as images need.
        **options
            Of ``LiveImages``: `max_gap`, `model`, and `limits`, which is by default what the panel has.
        """
        options.setdefault("limits", "up_limit" in panel.fields or "down_limit" in panel.fields)
        live = cls(spec, panel.instruments.tolist(), tz=panel.tz, **options)
        recent, rules = live._recent, live._rules
        for k, (a, b) in enumerate(zip(panel.offsets[:-1].tolist(), panel.offsets[1:].tolist(), strict=True)):
            first = max(a, b - rules.kept)
            here = slice(k * rules.room, k * rules.room + b - first)
            recent.bars[here] = panel.bars[first:b]
            recent.times[here] = panel.time[first:b]
            fields = (("total_return", recent.returns), ("up_limit", recent.up), ("down_limit", recent.down))
            for name, values in fields:
                if len(values) and name in panel.fields:
                    values[here] = panel.fields[name][first:b]
            recent.size[k], recent.total[k] = b - first, b - a
            recent.latest[k] = panel.time[b - 1] if b > a else _NEVER
        return live

    def __len__(self) -> int:
        return len(self.instruments)

    def push(
        self,
        time: Any,
        bars: Any,
        instruments: Any = None,
        *,
        total_return: Any = None,
        up_limit: Any = None,
        down_limit: Any = None,
    ) -> LiveBatch:
        """Take the bars of one time, and draw the images that they complete.

        Parameters
        ----------
        time : str, datetime or int
            Of the bars: later than that of every earlier bar of these instruments. An int counts nanoseconds.
        bars : array_like, float64 (n, 5)
            Open, high, low, close, volume; NaN is missing.
        instruments : sequence of str, or int64 (n,), optional
            Whose bars they are, as names, or as ascending positions; all instruments by default. An instrument that
            has no bar at a time is left out: its next bar then follows its last one, as in a panel.
        total_return : array_like, float64 (n,), optional
            Required by a spec that rebuilds prices from returns.
        up_limit, down_limit : array_like, bool (n,), optional
            Whether bars sit at their limits, with ``limits=True``.

        Returns
        -------
        LiveBatch
            Images of instruments whose window is whole and can be drawn. They lie in memory that the next push
            reuses: copy what is to be kept.

        Raises
        ------
        BadBarsError
            A bar with a fault, or that is not later than its instrument's last. Nothing is pushed then.
        """
        ns = as_time(time, self.tz)
        given = np.ascontiguousarray(bars, np.float64)
        code, order = self._positions(instruments, given)
        fields = self._fields(total_return, up_limit, down_limit, len(code))
        if order is not None:
            code, given, fields = code[order], given[order], tuple(f[order] if len(f) else f for f in fields)
        bad = kernels.find_fault(code, ns, given, self._recent.latest, self._fault)
        if bad >= 0:
            name = printable(str(self.instruments[code[bad]]), "")
            raise BadBarsError(
                f"the bar of {name} at {format_time(ns, self.tz)} cannot be used: "
                f"{_FAULTS[int(self._fault[0])]}; nothing was pushed"
            )
        count = kernels.push_bars((code, ns, given, *fields), *self._state)
        count = self._draw(count)
        images = self._images[:count]
        scores = None if self.model is None else self.model(images)
        return LiveBatch(ns, self._completed.which[:count].copy(), images, scores)

    def _positions(self, instruments: Any, bars: NDArray[np.float64]) -> tuple[NDArray[np.int64], Any]:
        """Return the positions that were asked for, and the order that makes them ascend, None if they do."""
        if instruments is None:
            code = self._all
        elif isinstance(instruments, np.ndarray) and instruments.dtype == np.int64:
            code = instruments
            if len(code) and (code.min() < 0 or code.max() >= len(self)):
                raise ValueError(f"positions of instruments lie from 0 to {len(self) - 1}")
        else:
            try:
                code = np.array([self._code[str(name)] for name in instruments], np.int64)
            except KeyError as error:
                raise ValueError(
                    f"{error.args[0]!r} is none of the {len(self):,} instruments: a new listing needs new LiveImages"
                ) from None
        if bars.shape != (len(code), 5):
            raise ValueError(
                f"bars has shape {bars.shape}, expected ({len(code)}, 5): open, high, low, close and volume of "
                f"{len(code):,} instruments"
            )
        ascending = instruments is None or bool((code[1:] > code[:-1]).all())
        return code, None if ascending else np.argsort(code, kind="stable")

    def _fields(self, total_return: Any, up: Any, down: Any, count: int) -> tuple[NDArray[Any], ...]:
        """Return total returns and flags as the kernel takes them, checked against what was announced."""
        if len(self._recent.returns) and total_return is None:
            raise ValueError(
                "the spec rebuilds prices from returns: give total_return= of each bar, NaN where none"
            )
        returns = np.ascontiguousarray(total_return, np.float64) if len(self._recent.returns) else _NO_VALUES
        flags = [_NO_FLAGS, _NO_FLAGS]
        if len(self._recent.up):
            flags = [
                np.zeros(count, np.bool_) if part is None else np.ascontiguousarray(part, np.bool_)
                for part in (up, down)
            ]
        elif up is not None or down is not None:
            raise ValueError("up_limit and down_limit need LiveImages(..., limits=True)")
        for name, part in (("total_return", returns), ("up_limit", flags[0]), ("down_limit", flags[1])):
            if len(part) not in (0, count):
                raise ValueError(f"{name} has {len(part)} values for {count} bars")
        return returns, *flags

    def _draw(self, count: int) -> int:
        """Draw the windows found by a push to the front of the images; return how many could be drawn."""
        if not count:
            return 0
        rows = WindowRows(self._completed.first[:count], self._completed.last[:count], self._dest[:count])
        reason, out = self._reason[:count], self._images[:count]
        if self._job is None:
            run_plain(self._arrays, self.spec, rows, out, rules.PIXELS, reason, 1)
        else:
            starts = self._starts
            if count < len(self):
                starts = np.append(starts[starts < count], count)
            render: Any = fast.render_serial
            render(
                *self._job,
                starts,
                rows,
                out.reshape(-1),
                rules.PIXELS,
                fast.plain_stores(out),
                reason,
            )
            left = np.flatnonzero(reason == fast.DEFERRED)
            if len(left):
                some = WindowRows(*(values[left] for values in rows))
                run_plain(self._arrays, self.spec, some, out, rules.PIXELS, reason, 1)
        if not reason.any():
            return count
        drawn = np.flatnonzero(reason == 0)
        for place, k in enumerate(drawn.tolist()):
            if place != k:
                out[place] = out[k]
                self._completed.which[place] = self._completed.which[k]
        return len(drawn)


def _read_only(values: NDArray[Any]) -> NDArray[Any]:
    """Return a view that cannot be written through; an empty array as it is."""
    if not len(values):
        return values
    view = values.view()
    view.flags.writeable = False
    return view
