"""The windows of a panel that become images, and the reasons why others are dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix._checks import fraction, whole_number
from pricepix.bars import display
from pricepix.bars.panel import Panel
from pricepix.bars.times import duration_ns, time_range, to_series
from pricepix.bars.uncompiled import interpret_small_calls
from pricepix.render.draw import render_rows
from pricepix.render.reasons import REASONS
from pricepix.spec import ImageSpec
from pricepix.windows import kernels
from pricepix.windows.schedule import Periods, Schedule, find_schedule

# Its hashes wrap on purpose, as uint64 in either way.
interpret_small_calls(kernels, overflow="ignore")

DROP_REASONS: Final = {
    kernels.TOO_SHORT: "too_short",
    kernels.MA_WARMUP: "ma_warmup",
    kernels.MASKED: "masked",
    kernels.SAMPLED_OUT: "sampled_out",
    kernels.GAP: "gap",
    kernels.MISSING_BARS: "missing_bars",
    kernels.PERIOD_OPEN: "period_open",
    kernels.ABSENT_AT_END: "absent_at_end",
    **{code: name for code, name in REASONS.items() if code},
}
_BLOCK_ROWS: Final = 1 << 17


class NoCandidatesError(ValueError):
    """No bar of a panel may end a window by the schedule, start and end that were asked for."""


@dataclass(frozen=True, eq=False)
class WindowIndex:
    """The windows of a panel that become images, ordered by (time, instrument).

    A window is the ``spec.lookback`` rows of one instrument that end at panel row ``row``. Everything else
    about it (its times, its instrument's name, its history) can be looked up in the panel. Like a panel, an
    index cannot be changed: its arrays are read-only.
    """

    panel: Panel
    spec: ImageSpec
    row: NDArray[np.int64]
    """int64 (n,): the panel row of each window's last bar."""
    instrument: NDArray[np.int32]
    """int32 (n,): the position of its instrument in ``panel.instruments``."""
    counts: Mapping[str, int]
    """Candidate windows that were dropped, by reason."""
    schedule: Mapping[str, Any]
    """The arguments that chose the candidates, as JSON values."""

    def __post_init__(self) -> None:
        for name in ("row", "instrument"):
            # A view: the array that was given stays writable for its owner.
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickled arrays come back writable.
        self.__dict__.update(state)
        self.__post_init__()

    @classmethod
    def from_panel(
        cls,
        panel: Any,
        spec: ImageSpec | str | Mapping[str, Any],
        every: str | int | Schedule = "bar",
        *,
        start: Any = None,
        end: Any = None,
        mask: NDArray[np.bool_] | None = None,
        sample: float | None = None,
        seed: int = 0,
        max_gap: Any = None,
        periods: Periods | Mapping[str, Any] | None = None,
        threads: int | None = None,
    ) -> WindowIndex:
        """Find the windows of a panel that can be drawn.

        Parameters
        ----------
        panel : Panel or anything ``Panel.from_table`` takes
        spec : ImageSpec, str or dict
            What is to be drawn, or the name of a preset.
        every : {"bar", "day", "week", "month", "quarter"} or int
            Which bars may end a window: all; those at the end of each day, week (Monday to Sunday), month or
            quarter of the panel's time zone (see `periods`); or every n-th time of the calendar. Times are
            those of the whole universe, so that windows stand in cross-sections: an instrument without a bar
            at the end of a period in which it has bars has no window there, and is counted as
            ``absent_at_end``. Builds that read a market in stretches give the `Schedule` of a stretch.
        start, end : str, date, datetime or int, optional
            First and last time (inclusive) at which a window may end. A date as `end` includes the whole day.
        mask : numpy.ndarray, bool (rows,), optional
            True where a window may end, e.g. membership of an index. The panel's own ``eligible`` field is
            used when it has one and no mask is given. Masked bars stay bars: nothing is spliced.
        sample : float, optional
            Share of the windows to keep, in (0, 1]. Whether a window is kept depends only on its instrument's
            name, its time and `seed`.
        seed : int
            Chooses the sample.
        max_gap : str, timedelta or int, optional
            No window may hold two neighbouring bars further apart than this, e.g. ``"10d"``. An int counts
            nanoseconds.
        periods : Periods or mapping, optional
            How the end of a day, week, month or quarter is found: by default the last time at which at least
            half of the instruments with a bar in the period have one. A last period that is not known to be over has
            no window; its instruments are counted as ``period_open``.
        threads : int, optional
            As in ``render_panel``.

        Returns
        -------
        WindowIndex
            Ordered by (time, instrument).

        Raises
        ------
        ValueError
            If an argument cannot be understood, or no bar lies in the time asked for (`NoCandidatesError`).
            A universe in which no window survives gives an empty index, whose ``counts`` say why.
        """
        spec = ImageSpec.of(spec)
        panel = Panel.of(panel)
        first_time, last_time = time_range(start, end, panel.tz)
        if first_time > last_time:
            raise ValueError(f"start={start!r} lies after end={end!r}: swap them")
        share = 1.0 if sample is None else fraction(sample, "sample")
        seed = whole_number(seed, "seed")
        if mask is None:
            eligible = panel.fields.get("eligible", np.zeros(0, np.bool_))
        else:
            eligible = np.asarray(mask)
            if eligible.dtype != np.bool_ or eligible.shape != (len(panel),):
                raise ValueError(
                    f"mask is {eligible.dtype} {eligible.shape}, expected bool {(len(panel),)}: one flag for "
                    "each panel row"
                )
        gap = -1 if max_gap is None else duration_ns(max_gap, "max_gap")
        periods = Periods.of(periods)
        chosen = every if isinstance(every, Schedule) else find_schedule(panel, every, periods)
        seeds = np.zeros(panel.n_instruments, np.uint64)
        if share < 1.0:
            seeds = _instrument_seeds(panel.instruments, seed)
        reason = np.empty(len(panel), np.uint8)
        time_code = panel.time_code
        rules = kernels.RowRules(
            first_time,
            last_time,
            spec.lookback,
            spec.history if spec.ma_warmup == "drop" else 0,
            share,
            gap,
            -1 if spec.max_missing is None else min(spec.max_missing, spec.lookback),
        )
        kernels.classify_rows(
            panel.bars, panel.time, panel.offsets, time_code, chosen, rules, eligible, seeds, reason
        )
        _drop_undrawable(panel, spec, reason, threads)
        found = np.bincount(reason, minlength=256)
        if found[kernels.NO_CANDIDATE] == len(panel):
            raise NoCandidatesError(
                f"no bar lies between start={start!r} and end={end!r} on the schedule every={every!r}: the "
                f"panel covers {panel.stamp(panel.time.min())} to {panel.stamp(panel.time.max())}"
            )
        n = int(found[kernels.KEPT])
        row = np.empty(n, np.int64)
        instrument = np.empty(n, np.int32)
        ends = np.zeros(len(panel.calendar) + 1, np.int64)
        kernels.order_by_time(reason, panel.offsets, time_code, ends, row, instrument)
        counts = {name: int(found[code]) for code, name in DROP_REASONS.items() if found[code]}
        schedule = {
            "every": every if isinstance(every, str | Schedule) else int(every),
            "start": None if start is None else panel.stamp(first_time),
            "end": None if end is None else panel.stamp(last_time),
            "mask": None if mask is None else _digest(np.packbits(eligible).tobytes()).hex(),
            "sample": None if sample is None else share,
            "seed": seed if share < 1.0 else None,
            "max_gap_ns": None if max_gap is None else gap,
            "periods": periods.to_dict() if len(chosen.period) else None,
        }
        return cls(panel, spec, row, instrument, counts, schedule)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, part: int | slice | NDArray[Any]) -> WindowIndex:
        """Return some of the windows, by slice, boolean mask or positions; ``counts`` are then empty."""
        row, instrument = np.atleast_1d(self.row[part]), np.atleast_1d(self.instrument[part])
        return WindowIndex(self.panel, self.spec, row, instrument, {}, self.schedule)

    def __repr__(self) -> str:
        dropped = ", ".join(f"{name} {count:,}" for name, count in self.counts.items()) or "none"
        return f"WindowIndex({len(self):,} of {self.candidates:,} windows; dropped: {dropped})"

    def _repr_html_(self) -> str:
        counts = dict(sorted(self.counts.items(), key=lambda item: -item[1]))
        funnel = {
            "candidates": self.candidates,
            **{f"- {name}": n for name, n in counts.items()},
            "windows": len(self),
        }
        facts: dict[str, Any] = {"lookback": self.spec.lookback, "image": "{} x {}".format(*self.spec.shape)}
        if len(self):
            ends = self.row[[0, -1]]
            facts |= {"first ends": self.panel.stamp(int(self.panel.time[ends[0]]))}
            facts |= {"last ends": self.panel.stamp(int(self.panel.time[ends[1]]))}
        facts |= {name: value for name, value in self.schedule.items() if value is not None}
        about = f"{len(self):,} of {self.candidates:,} candidate windows"
        bars = display.bars(funnel, ("candidates", "windows"), of=self.candidates or 1)
        return display.page("WindowIndex", about, display.columns(bars, display.facts(facts)))

    @property
    def candidates(self) -> int:
        """Windows that the schedule asked for: those kept and all that were dropped."""
        return len(self) + sum(self.counts.values())

    @property
    def time(self) -> NDArray[np.int64]:
        """int64 (n,): the time of each window's last bar, in nanoseconds."""
        return self.panel.time[self.row]

    def to_polars(self) -> pl.DataFrame:
        """Return the index as a frame: instrument, time and panel row of each window's last bar."""
        return pl.DataFrame(
            {
                "instrument": self.panel.instruments[self.instrument],
                "time": to_series(self.time, self.panel.tz),
                "row": self.row,
            }
        )


def _drop_undrawable(panel: Panel, spec: ImageSpec, reason: NDArray[np.uint8], threads: int | None) -> None:
    """Replace KEPT by the renderer's reason where a window has no image."""
    # In blocks, so that planning takes no more memory for a larger panel.
    for first in range(0, len(reason), _BLOCK_ROWS):
        block = reason[first : first + _BLOCK_ROWS]
        rows = np.empty(int(np.count_nonzero(block == kernels.KEPT)), np.int64)
        kernels.collect(block, rows)
        found = np.empty(len(rows), np.uint8)
        render_rows(panel, rows + first, spec, None, reason=found, threads=threads)
        block[rows] = found


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).digest()


def _instrument_seeds(instruments: NDArray[np.str_], seed: int) -> NDArray[np.uint64]:
    words = [int.from_bytes(_digest(f"{seed}/{name}".encode()), "little") for name in instruments]
    return np.array(words, np.uint64)


def find_windows(panel: Panel, spec: ImageSpec, every: str | int, **choice: Any) -> WindowIndex:
    """Return ``WindowIndex.from_panel`` of these arguments; ValueError if no window can be drawn."""
    windows = WindowIndex.from_panel(panel, spec, every, **choice)
    if len(windows) == 0:
        raise nothing_to_draw(windows.candidates, windows.counts, choice.get("max_gap"), "another mask")
    return windows


def nothing_to_draw(candidates: int, counts: Mapping[str, int], max_gap: Any, masked: str) -> ValueError:
    """Return the error for a universe in which no window survives; `masked` is what to do about those masked."""
    unit = " (nanoseconds: '10d' is ten days)" if hasattr(max_gap, "__index__") else ""
    remedies = {
        "too_short": "a shorter lookback",
        "ma_warmup": "ma_warmup='omit'",
        "masked": masked,
        "sampled_out": "a larger sample",
        "gap": f"a longer max_gap than {max_gap!r}{unit}",
        "missing_bars": "a larger max_missing",
        "period_open": "periods={'complete': True} (if the last period is over)",
        "absent_at_end": "a smaller share in periods=",
    }
    by_count = sorted(counts, key=lambda reason: -counts[reason])
    ways = list(dict.fromkeys(remedies.get(reason, "other dates") for reason in by_count))
    return ValueError(
        f"none of the {candidates} candidate windows can be drawn (dropped: "
        f"{', '.join(f'{name} {count}' for name, count in counts.items())}): choose "
        + " or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)
    )


def windows_digest(windows: WindowIndex) -> str:
    """32 hexadecimal digits that stand for which windows of a panel are drawn."""
    return hashlib.blake2b(np.ascontiguousarray(windows.row).data, digest_size=16).hexdigest()
