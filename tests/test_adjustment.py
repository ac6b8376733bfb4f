"""Prices adjusted from the first bar on: later splits and dividends change no earlier price, image or label."""

from __future__ import annotations

import datetime as dt
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pricepix as pp
from pricepix import Panel, WindowIndex, forward_returns, render_panel
from pricepix.bars import MarketArrays, MarketCache, write_market_cache
from pricepix.bars.kernels import step_ratio
from pricepix.build import MarketReading, StoreOptions, build_market_store

SPLITS = [
    Fraction(2),
    Fraction(3, 2),
    Fraction(7),
    Fraction(1, 10),
    Fraction(20),
    Fraction(5, 4),
    Fraction(1, 3),
]
DAY = dt.date(2020, 1, 1)


class History:
    """Daily bars in cents as they were quoted, and the splits and dividends between them."""

    def __init__(self, days: int, seed: int, events: dict[int, Fraction | int]) -> None:
        """`events` by day: the shares that one becomes, or a dividend in cents."""
        rng = np.random.default_rng(seed)
        close, price, self.step = [], 3000.0, [Fraction(1)] * days
        for day in range(days):
            event = events.get(day, 0) if day else 0
            if isinstance(event, Fraction):
                price /= float(event)
                self.step[day] = 1 / event
            elif event and close[-1] > event:
                price -= event
                self.step[day] = Fraction(close[-1] - event, close[-1])
            price = min(9900.0, max(5.0, price * np.exp(rng.normal(0, 0.02))))
            close.append(round(price))
        self.close = np.array(close) / 100
        around = rng.integers(0, 4, (3, days)) / 100
        self.open = np.maximum(self.close + around[0] - 0.02, 0.01)
        self.high = np.maximum(self.open, self.close) + around[1]
        self.low = np.maximum(np.minimum(self.open, self.close) - around[2], 0.01)
        self.volume = rng.integers(1, 10_000, days) * 100.0

    def factor(self, until: int) -> np.ndarray:
        """What a vendor multiplies prices with who has bars up to `until`: 1 at the last, adjusted backwards.

        Each event multiplies the factors of all bars before it once more, so that each is rounded many times.
        """
        out = np.ones(until)
        for day in range(1, until):
            if self.step[day] != 1:
                out[:day] *= float(self.step[day])
        return out

    def panel(
        self, until: int, adjust: str = "multiply", anchor: str = "first", arrays: bool = False
    ) -> Panel:
        """Read the first bars."""
        factor = self.factor(until) if adjust == "multiply" else 1 / self.factor(until)
        columns = {
            **{name: getattr(self, name)[:until] for name in ("open", "high", "low", "close", "volume")},
            "adjustment_factor": factor,
        }
        how = {"adjust": adjust, "anchor": anchor, "progress": False}
        time = [DAY + dt.timedelta(days=day) for day in range(until)]
        if not arrays:
            return Panel.from_table({"time": time, **columns}, name="A", **how)
        grids = {name: column[:, None] for name, column in columns.items()}
        return Panel.from_arrays(**grids, instruments=["A"], time=np.array(time, "M8[D]"), **how)


histories = st.builds(
    History,
    st.integers(30, 90),
    st.integers(0, 2**32 - 1),
    st.dictionaries(st.integers(1, 89), st.one_of(st.sampled_from(SPLITS), st.integers(1, 200)), max_size=12),
)


@given(histories, st.sampled_from(SPLITS), st.booleans(), st.booleans())
@example(History(90, 1, {60: Fraction(3, 2)}), Fraction(7), True, False)
@settings(max_examples=40)
def test_what_comes_later_changes_no_earlier_bar_image_or_label(history, split, multiply, arrays):
    days, until = len(history.close), len(history.close) * 2 // 3
    history.step[until] = 1 / split
    how = {"adjust": "multiply" if multiply else "divide", "arrays": arrays}
    before, after = history.panel(until, **how), history.panel(days, **how)
    assert after.bars[:until].tobytes() == before.bars.tobytes()
    assert after.fields["adjustment_factor"][:until].tobytes() == before.fields["adjustment_factor"].tobytes()
    windows = WindowIndex.from_panel(before, "jkx5")
    same = WindowIndex.from_panel(after, "jkx5", end=before.stamp(int(before.time[-1])))
    np.testing.assert_array_equal(windows.row, same.row)
    np.testing.assert_array_equal(render_panel(before, windows), render_panel(after, same))
    label, later = forward_returns(before, windows, 5).value, forward_returns(after, same, 5).value
    known = ~np.isnan(label)
    assert later[known].tobytes() == label[known].tobytes()


@given(histories)
@settings(max_examples=30)
def test_returns_are_those_of_prices_adjusted_to_the_last_bar(history):
    days = len(history.close)
    panel, usual = history.panel(days), history.panel(days, anchor="given")
    ratio = panel.bars / usual.bars
    np.testing.assert_allclose(ratio[:, :4], ratio[0, 0], rtol=1e-12)
    np.testing.assert_allclose(ratio[:, 4], ratio[0, 4], rtol=1e-12)
    # Up to the first event, prices are the quoted ones.
    first = next((day for day, step in enumerate(history.step) if step != 1), days)
    np.testing.assert_array_equal(panel.bars[:first, 3], history.close[:first])


def test_prices_adjusted_to_the_last_bar_do_change():
    """What the anchor is for: after a split of 7:1, closes that were equal differ in their last bit."""
    history = History(500, 3, {480: Fraction(7)})
    before, after = (history.panel(n, anchor="given") for n in (480, 500))
    windows = WindowIndex.from_panel(before, "jkx20")
    same = WindowIndex.from_panel(after, "jkx20", end=before.stamp(int(before.time[-1])))
    changed = (render_panel(before, windows) != render_panel(after, same)).any(axis=(1, 2))
    assert changed.any()


# ------------------------------------------------------------------------------------------------- steps


@given(
    st.integers(1, 9_999),
    st.integers(1, 9_999),
    st.lists(st.floats(1e-6, 1e6), min_size=0, max_size=30),
)
def test_steps_of_small_fractions_are_exact_whatever_their_factors_were_multiplied_by(p, q, later):
    """Thirty later events, each of which rounds both factors once more."""
    a, b = float(p), float(q)
    for factor in later:
        a, b = a * factor, b * factor
    if 1e-100 < a < 1e100 and 1e-100 < b < 1e100:
        assert step_ratio(a / b) == p / q


def test_other_steps_have_nine_digits():
    assert step_ratio(np.pi) == 3.14159265
    assert step_ratio(np.pi / 1000) == 0.00314159265
    assert step_ratio(123456789.123) == 123456789.0
    for odd in (np.inf, 1e-200, 1e200):
        assert step_ratio(odd) == odd


def test_bars_without_a_usable_factor():
    """It counts from the first bar with a price; where a factor is missing, so is what it adjusts."""
    price = pl.Series([None, 10.0, 11.0, None, 6.0, 7.0])
    frame = pl.DataFrame(
        {
            "time": pl.date_range(DAY, DAY + dt.timedelta(days=5), eager=True),
            **dict.fromkeys(("open", "high", "low", "close"), price),
            "volume": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "adjustment_factor": [0.25, 0.5, 0.5, None, 1.0, 0.0],
        }
    )
    with pytest.raises(ValueError, match="1 bad_factor"):
        Panel.from_table(frame, adjust="multiply", anchor="first")
    panel = Panel.from_table(frame, adjust="multiply", anchor="first", on_bad="drop_bar")
    np.testing.assert_array_equal(panel.fields["adjustment_factor"], [1, 1, 1, np.nan, 2, np.nan])
    np.testing.assert_array_equal(panel.bars[:, 3], [np.nan, 10, 11, np.nan, 12, np.nan])
    np.testing.assert_array_equal(panel.bars[[0, 1, 2, 4], 4], [1, 2, 3, 2.5])
    assert "from each instrument's first bar on" in str(panel.report)


def test_an_anchor_without_an_adjustment_is_refused(tmp_path):
    history = History(30, 1, {})
    with pytest.raises(ValueError, match="adjust=None leaves them unadjusted: give adjust='multiply'"):
        Panel.from_table({"time": [DAY], "open": 1, "high": 1, "low": 1, "close": 1}, anchor="first")
    with pytest.raises(ValueError, match="anchor='last' is not known: choose one of 'given', 'first'"):
        history.panel(30, anchor="last")
    with pytest.raises(ValueError, match="is for adjusted prices: pass adjust=True"):
        market(tmp_path, [history], 30).panel(adjust=False, anchor="first")


# ----------------------------------------------------------------------------------- stores and caches


def universe(until: int, anchor: str = "first") -> Panel:
    """Four instruments; the first splits 7:1 at day 100, the second pays a dividend at day 101."""
    frames = []
    for k, (name, history) in enumerate(MARKET.items()):
        factor = history.factor(until)
        frames.append(
            pl.DataFrame(
                {
                    "instrument": [name] * until,
                    "time": [DAY + dt.timedelta(days=day) for day in range(until)],
                    **{x: getattr(history, x)[:until] for x in ("open", "high", "low", "close", "volume")},
                    "adjustment_factor": factor,
                }
            ).slice(5 * k)
        )
    return Panel.from_table(pl.concat(frames), adjust="multiply", anchor=anchor, progress=False)


MARKET = {
    "A": History(120, 1, {40: Fraction(3, 2), 100: Fraction(7)}),
    "B": History(120, 2, {30: 25, 60: 31, 101: 37}),
    "C": History(120, 3, {50: Fraction(1, 10)}),
    "D": History(120, 4, {}),
}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "_appends.json"
    }


def test_the_day_of_a_split_is_appended_as_any_other(tmp_path):
    options = {"horizons": (1, 5), "chunk": 64, "progress": False}
    store = pp.render_universe(universe(100), "jkx5", tmp_path / "grown", **options)
    images, label, known = store.read(), store.returns(5), len(store)
    for until in (101, 102, 120):
        store = pp.append(tmp_path / "grown", universe(until), progress=False)
    np.testing.assert_array_equal(store.read(np.arange(known)), images)
    there = ~np.isnan(label)
    assert store.returns(5)[:known][there].tobytes() == label[there].tobytes()
    pp.render_universe(universe(120), "jkx5", tmp_path / "scratch", **options)
    assert files(tmp_path / "grown") == files(tmp_path / "scratch")
    # Adjusted to the last bar, the same day revises the history of both names.
    pp.render_universe(universe(100, "given"), "jkx5", tmp_path / "given", **options)
    with pytest.raises(ValueError, match=r"was revised: bars of A, B changed.*anchor='first'"):
        pp.append(tmp_path / "given", universe(120, "given"), progress=False)


def market(folder: Path, histories: list[History], until: int, dtype: type = np.float64) -> MarketCache:
    """A market cache of one bar a day, with the factors that a vendor has then."""

    def grid(name: str) -> np.ndarray:
        return np.stack([getattr(history, name)[:until] for history in histories], axis=1)[:, :, None]

    return write_market_cache(
        folder / f"cache{until}",
        MarketArrays(
            days=[DAY + dt.timedelta(days=day) for day in range(until)],
            instruments=[f"S{k}" for k in range(len(histories))],
            **{name: grid(name) for name in ("open", "high", "low", "close", "volume")},
            adjustment_factor=np.stack([history.factor(until) for history in histories], axis=1),
        ),
        dtype=dtype,
        session="24h",
    )


def test_market_caches_count_from_each_stocks_first_bar(tmp_path):
    histories = list(MARKET.values())
    # A stock that is listed later.
    late = History(120, 9, {20: Fraction(2), 70: Fraction(3, 2)})
    for name in ("open", "high", "low", "close", "volume"):
        getattr(late, name)[:25] = np.nan
    cache = market(tmp_path, [*histories, late], 120)
    panel = cache.panel(anchor="first", no_trade="keep")
    own = panel.rows_of("S4")
    np.testing.assert_array_equal(panel.bars[own, 3][:45], late.close[25:70])
    np.testing.assert_array_equal(panel.bars[own, 3][45:], late.close[70:] * 1.5)
    # A later split changes nothing; neither does where the days that are read begin.
    old = market(tmp_path, [*histories, late], 100).panel(anchor="first")
    assert old.bars.tobytes() == cache.panel((None, "2020-04-09"), anchor="first").bars.tobytes()
    part = cache.panel(("2020-03-01", None), anchor="first")
    for name in panel.instruments:
        np.testing.assert_array_equal(part.bars[part.rows_of(name)], panel.bars[panel.rows_of(name)][-60:])
    given_ = [
        c.panel((None, "2020-04-09")).bars for c in (cache, MarketCache(tmp_path / "cache100", session="24h"))
    ]
    assert given_[0].tobytes() != given_[1].tobytes()


def test_a_market_store_grows_over_a_split(tmp_path):
    histories = list(MARKET.values())
    reading, spec = MarketReading(anchor="first"), pp.ImageSpec(5, 32, ma=(5,))
    build = {"horizons": (1, 5), "reading": reading, "options": StoreOptions(chunk=64), "progress": False}
    build_market_store(market(tmp_path, histories, 100), spec, tmp_path / "grown", **build)
    cache = market(tmp_path, histories, 120)
    panel = cache.panel(anchor="first")
    pp.append(tmp_path / "grown", panel, progress=False)
    # In stretches of a few days, each of which counts from the first bar of all.
    store = build_market_store(cache, spec, tmp_path / "scratch", memory=1, **build)
    assert files(tmp_path / "grown") == files(tmp_path / "scratch")
    assert store.verify(panel).ok
