"""How the history of a feed changed since the last update: by class, with a policy for each.

A vendor's history is not carved in stone. A split rescales it, an error is corrected, a bar comes late, a ticker gets
another name or leaves the feed. Each is told from the others by comparing all bars with those of the last update, and
the policy for its class says whether it is taken over, left out, or a reason to stop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import RevisedHistoryError, printable
from pricepix.bars.columns import BAR, PRICES
from pricepix.bars.panel import Panel

__all__ = ["CLASSES", "POLICIES", "Correction", "Revisions", "apply_policies", "find_revisions"]

CLASSES: Final = ("rescaled", "corrected", "withdrawn", "late", "renamed", "removed")
POLICIES: Final = ("accept", "keep", "stop")
_SHOWN: Final = 5
# Adjusted prices come rounded: four of a bar agree in their ratio to about this.
_RATIO_TOLERANCE: Final = 2e-3
# Bars of two names that must agree before one is proposed as the other's new name.
_ALIKE: Final = 5


@dataclass(frozen=True)
class Correction:
    """A value of a bar that changed."""

    instrument: str
    time: int
    field: str
    before: float | None
    after: float | None


@dataclass
class Revisions:
    """What changed in the bars that were there at the last update."""

    unchanged: int = 0
    """Instruments whose known bars are the same."""
    new: list[str] = field(default_factory=list)
    """Instruments that come new, and are no other's new name."""
    rescaled: dict[str, float] = field(default_factory=dict)
    """Ratio of the new prices to the old by instrument: of its oldest bar."""
    corrected: dict[str, list[Correction]] = field(default_factory=dict)
    withdrawn: dict[str, int] = field(default_factory=dict)
    """Bars that are gone, by instrument."""
    late: dict[str, int] = field(default_factory=dict)
    """Bars that came after bars of later times, by instrument."""
    renamed: dict[str, str] = field(default_factory=dict)
    """New name by old, where bars agree."""
    since: dict[str, int] = field(default_factory=dict)
    """Time of the first bar that only the new name has, nanoseconds, by old name."""
    removed: list[str] = field(default_factory=list)
    earliest: int | None = None
    """Time of the oldest bar that was corrected, withdrawn or late, nanoseconds; None if none was."""

    def note(self, times: NDArray[np.int64]) -> None:
        """Take the times of bars that changed into `earliest`."""
        if len(times):
            first = int(times.min())
            self.earliest = first if self.earliest is None else min(self.earliest, first)

    def counts(self) -> dict[str, int]:
        """Return the number of instruments of each class."""
        return {name: len(getattr(self, name)) for name in CLASSES}

    def lines(self, panel: Panel) -> list[str]:
        """Describe each class that occurred, a line each."""
        found = []
        if self.rescaled:
            found.append(f"rescaled: {_listed([f'{n} by {r:.6g}' for n, r in self.rescaled.items()])}")
        if self.corrected:
            single = [one for several in self.corrected.values() for one in several]
            shown = [
                f"{one.instrument} {panel.stamp(one.time)} {one.field} {_number(one.before)} to {_number(one.after)}"
                for one in single
            ]
            found.append(f"corrected: {_listed(shown)}")
        for name in ("withdrawn", "late"):
            bars: dict[str, int] = getattr(self, name)
            if bars:
                found.append(f"{name}: {_listed([f'{n} {k:,} bars' for n, k in bars.items()])}")
        for old, new in self.renamed.items():
            since = f" from {panel.stamp(self.since[old])} on" if old in self.since else ""
            found.append(f"renamed: {old} looks like {new}{since}")
        if self.removed:
            found.append(f"removed: {_listed(self.removed)} are no longer in the feed")
        return [printable(line, "") for line in found]


def find_revisions(
    before: Panel, now: Panel, *, unchanged: Collection[str] = (), last: int | None = None
) -> Revisions:
    """Compare the bars of the last update with those of now.

    Parameters
    ----------
    before : Panel
        The bars that the last update used.
    now : Panel
        All bars of the feed: those, and what came since.
    unchanged : collection of str
        Instruments that are not in `before`, since their bars are known to be the same.
    last : int, optional
        Time of the newest bar that the last update used, nanoseconds; by default that of `before`.
    """
    found = Revisions(unchanged=len(unchanged))
    places = {name: i for i, name in enumerate(now.instruments.tolist())}
    known = {*before.instruments.tolist(), *unchanged}
    if last is None:
        last = int(before.calendar[-1]) if len(before.calendar) else np.iinfo(np.int64).min
    missing: list[str] = []
    for i, name in enumerate(before.instruments.tolist()):
        j = places.get(name)
        if j is None:
            missing.append(name)
        else:
            _compare(found, name, _rows(before, i), _rows(now, j), last)
    fresh = [name for name in places if name not in known]
    _find_renames(found, before, now, missing, fresh)
    found.removed = [name for name in missing if name not in found.renamed]
    found.new = [name for name in fresh if name not in found.renamed.values()]
    return found


@dataclass(frozen=True)
class _Rows:
    time: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]

    def at(self, place: NDArray[Any]) -> _Rows:
        return _Rows(self.time[place], {name: values[place] for name, values in self.columns.items()})


def _rows(panel: Panel, i: int) -> _Rows:
    own = slice(int(panel.offsets[i]), int(panel.offsets[i + 1]))
    columns: dict[str, NDArray[Any]] = {name: panel.bars[own, k] for k, name in enumerate(BAR)}
    columns |= {name: values[own] for name, values in panel.fields.items()}
    return _Rows(panel.time[own], columns)


def _same(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    equal: NDArray[np.bool_] = a == b
    return equal | (np.isnan(a) & np.isnan(b)) if a.dtype.kind == "f" else equal


def _compare(found: Revisions, name: str, old: _Rows, new: _Rows, last: int) -> None:
    """File what became of an instrument's bars."""
    size = len(old.time)
    if np.array_equal(new.time[:size], old.time):
        a, b = old, new.at(np.arange(size))
        late = int(np.count_nonzero(new.time[size:] <= last))
        found.note(new.time[size : size + late])
        gone = 0
    else:
        shared, left, right = np.intersect1d(old.time, new.time, assume_unique=True, return_indices=True)
        a, b = old.at(left), new.at(right)
        gone = size - len(shared)
        late = int(np.count_nonzero(new.time <= last)) - len(shared)
        found.note(np.setxor1d(old.time, new.time[new.time <= last], assume_unique=True))
    if late:
        found.late[name] = late
    if gone:
        found.withdrawn[name] = gone
    fields = [field for field in a.columns if field in b.columns]
    differs = {field: ~_same(a.columns[field], b.columns[field]) for field in fields}
    if not any(mask.any() for mask in differs.values()):
        found.unchanged += not late and not gone
        return
    ratio = _rescaling(a, b, differs)
    if ratio is not None:
        found.rescaled[name] = ratio
        return
    found.note(a.time[np.any(list(differs.values()), axis=0)])
    found.corrected[name] = [
        Correction(name, int(a.time[k]), field, _plain(a.columns[field][k]), _plain(b.columns[field][k]))
        for field, mask in differs.items()
        for k in np.flatnonzero(mask).tolist()
    ]


def _rescaling(a: _Rows, b: _Rows, differs: Mapping[str, NDArray[np.bool_]]) -> float | None:
    """Return the ratio of new prices to old at the first bar, if all that changed is a scale of the oldest bars.

    Prices of a bar share their ratio; it changes only at a few dates; volumes are free to be rescaled, and so is the
    factor itself; other fields stay.
    """
    free = {*PRICES, "volume", "adjustment_factor"}
    if any(mask.any() for field, mask in differs.items() if field not in free):
        return None
    old, new = (np.stack([rows.columns[field] for field in PRICES], axis=1) for rows in (a, b))
    if not np.array_equal(np.isnan(old), np.isnan(new)):
        return None
    changed = np.any([differs[field] for field in PRICES], axis=0)
    whole = np.flatnonzero(~np.isnan(old).all(axis=1))
    if not changed.any() or not len(whole):
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = new[whole] / old[whole]
    spread = np.nanmax(ratios, axis=1) / np.nanmin(ratios, axis=1) - 1
    if not np.isfinite(spread).all() or spread.max() > _RATIO_TOLERANCE:
        return None
    ratio = np.nanmedian(ratios, axis=1)
    steps = np.flatnonzero(np.abs(ratio[1:] / ratio[:-1] - 1) > _RATIO_TOLERANCE)
    # Bars from the last date on stay as they are, or all of them have one scale.
    last_changed = int(np.flatnonzero(changed[whole])[-1])
    prefix = last_changed == len(whole) - 1 or changed[whole][: last_changed + 1].mean() > 0.5
    if not prefix or len(steps) > max(4, len(whole) // 50) or abs(ratio[0] - 1) <= 1e-12:
        return None
    # A single bar that is not a scale of its neighbours' is an error that was corrected.
    return float(ratio[0]) if last_changed >= min(2, len(whole) - 1) else None


def _find_renames(found: Revisions, before: Panel, now: Panel, missing: list[str], fresh: list[str]) -> None:
    """Propose a new name for an instrument that is gone where a new one has all of its latest bars."""
    if not missing or not fresh:
        return
    index = {name: i for i, name in enumerate(now.instruments.tolist())}
    old_index = {name: i for i, name in enumerate(before.instruments.tolist())}
    candidates = {name: _rows(now, index[name]) for name in fresh}
    for old in missing:
        rows = _rows(before, old_index[old])
        for new, other in candidates.items():
            if new in found.renamed.values():
                continue
            shared, left, right = np.intersect1d(rows.time, other.time, return_indices=True)
            if len(shared) < min(_ALIKE, len(rows.time)):
                continue
            alike = all(
                _same(rows.columns[field][left], other.columns[field][right]).all() for field in PRICES
            )
            if alike:
                found.renamed[old] = new
                later = other.time[other.time > rows.time[-1]]
                if len(later):
                    found.since[old] = int(later[0])
                break


def apply_policies(
    before: Panel,
    now: Panel,
    found: Revisions,
    policy: Mapping[str, str],
    rename: Mapping[str, str],
    *,
    last: int | None = None,
) -> tuple[Panel, dict[str, str]]:
    """Return the bars to go on with, and the new names of instruments by their old ones.

    Parameters
    ----------
    before, now : Panel
    found : Revisions
    policy : mapping
        What happens to each of `CLASSES`: ``accept`` takes the feed's bars; ``keep`` goes on with the old ones;
        ``stop`` raises.
    rename : mapping of str to str
        Renames that are known: they are accepted whatever the policy is.
    last : int, optional
        As in ``find_revisions``.

    Raises
    ------
    RevisedHistoryError
        For what is to stop the update.
    """
    named = {old: new for old, new in found.renamed.items() if rename.get(old) != new}
    reasons = [name for name in CLASSES if policy[name] == "stop" and getattr(found, name)]
    if "renamed" in reasons and not named:
        reasons.remove("renamed")
    if reasons:
        lines = [line for line in found.lines(now) if line.partition(":")[0] in reasons]
        hint = ", ".join(f"{name}: accept (or keep)" for name in reasons)
        if named:
            hint += "; or name it in rename: {" + ", ".join(f"{o}: {n}" for o, n in named.items()) + "}"
        raise RevisedHistoryError(
            f"the history of the bars changed since the last update: {'; '.join(lines)}. If that is right, let it "
            f"pass in the section update: {printable(hint, '')}"
        )
    renames = dict(found.renamed) if policy["renamed"] == "accept" else {}
    renames |= {old: new for old, new in rename.items() if old in found.renamed or old in found.removed}
    kept = {
        name
        for kind in ("corrected", "withdrawn", "late", "rescaled")
        if policy[kind] == "keep"
        for name in getattr(found, kind)
    }
    gone = [name for name in found.removed if name not in renames] if policy["removed"] == "keep" else []
    if policy["renamed"] == "keep":
        gone += [old for old in found.renamed if old not in renames]
    if not kept and not gone:
        return now, renames
    if last is None:
        last = int(before.calendar[-1])
    return _merged(before, now, found, kept, gone, last), renames


def _merged(before: Panel, now: Panel, found: Revisions, kept: set[str], gone: list[str], last: int) -> Panel:
    """Return the bars of now, with the old ones of instruments that are kept as they were."""
    old_places = {name: i for i, name in enumerate(before.instruments.tolist())}
    pieces: dict[str, _Rows] = {
        name: _rows(now, i) for i, name in enumerate(now.instruments.tolist()) if name not in kept
    }
    for i, name in enumerate(now.instruments.tolist()):
        if name not in kept:
            continue
        new = _rows(now, i)
        later = new.at(np.flatnonzero(new.time > last))
        if name in found.rescaled:
            scale = 1.0 / _latest_ratio(before, now, name)
            scaled = {field: later.columns[field] * scale for field in PRICES}
            scaled["volume"] = later.columns["volume"] / scale
            later = _Rows(later.time, {**later.columns, **scaled})
        pieces[name] = _joined(_rows(before, old_places[name]), later)
    pieces |= {name: _rows(before, old_places[name]) for name in gone}
    names = sorted(pieces)
    length = [len(pieces[name].time) for name in names]
    columns = {
        field: np.concatenate([pieces[name].columns[field] for name in names])
        for field in (*BAR, *now.fields)
    }
    return Panel(
        np.ascontiguousarray(np.stack([columns[field] for field in BAR], axis=1)),
        np.concatenate([[0], np.cumsum(length)]).astype(np.int64),
        np.array(names, np.str_),
        np.concatenate([pieces[name].time for name in names]),
        now.tz,
        {field: columns[field] for field in now.fields},
        now.report,
    )


def _joined(first: _Rows, second: _Rows) -> _Rows:
    columns = {name: np.concatenate([first.columns[name], second.columns[name]]) for name in first.columns}
    return _Rows(np.concatenate([first.time, second.time]), columns)


def _latest_ratio(before: Panel, now: Panel, name: str) -> float:
    """Return the ratio of new to old prices at the latest bar that both have."""
    i, j = (panel.instruments.tolist().index(name) for panel in (before, now))
    old, new = _rows(before, i), _rows(now, j)
    _, left, right = np.intersect1d(old.time, new.time, return_indices=True)
    with np.errstate(invalid="ignore"):
        ratio = new.columns["close"][right] / old.columns["close"][left]
    known = ratio[~np.isnan(ratio)]
    return float(known[-1]) if len(known) else 1.0


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.10g}"


def _plain(value: Any) -> float | None:
    number = float(value)
    return None if np.isnan(number) else number
