"""Tables I to IV against a transcription of the authors' definitions that shares no code with the package."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pricepix as pp
from pricepix.factor import Universe
from pricepix.factor.evaluation.market import Market
from pricepix.paper.cells import Cell
from pricepix.paper.charts import line_chart
from pricepix.paper.choice_of_tables import Tables
from pricepix.paper.context import Context
from pricepix.paper.errors import mean_error, share_error
from pricepix.paper.parts import parts_of
from pricepix.paper.results import CellResult
from pricepix.paper.sections import Request, section_of
from pricepix.paper.tables import Figure, Table
from pricepix.paper.tasks import scored_windows
from pricepix.paper.training import Training

pd = pytest.importorskip("pandas")

NAMES, BARS, TEST = 36, 520, "2015-06-01"
A_YEAR = {"week": 52, "month": 12, "quarter": 4}
A_MONTH = {"week": 4.0, "month": 1.0, "quarter": 1 / 3}
ROWS = ["Low", "2", "3", "4", "5", "6", "7", "8", "9", "High", "High - Low"]


@pytest.fixture(scope="module")
def frames() -> dict[str, Any]:
    """Prices, total returns, caps and volumes (days, names): halts, deaths, late listings, missing caps."""
    rng = np.random.default_rng(3)
    days = pd.bdate_range("2014-09-01", periods=BARS)
    names = [f"N{i:02d}" for i in range(NAMES)]
    step = rng.normal(0.0004, 0.02, (BARS, NAMES))
    step[0] = np.nan
    close = np.round(rng.uniform(4, 80, NAMES) * np.cumprod(1 + np.nan_to_num(step), axis=0), 2) + 0.01
    gone = np.zeros(close.shape, bool)
    for j in range(0, NAMES, 6):
        gone[int(rng.integers(250, 480)) :, j] = True
    for j in range(1, NAMES, 9):
        gone[: int(rng.integers(20, 260)), j] = True
    cap = close * rng.uniform(1e5, 1e7, NAMES)
    cap[rng.random(cap.shape) < 0.04] = np.nan
    found = {
        "close": close,
        "step": step,
        "cap": cap,
        "volume": np.where(rng.random(close.shape) < 0.02, 0.0, 900.0),
    }
    return {k: pd.DataFrame(np.where(gone, np.nan, v), days, names) for k, v in found.items()}


@pytest.fixture(scope="module")
def panel(frames: dict[str, Any]) -> pp.Panel:
    parts = []
    for name in frames["close"].columns:
        own = {k: f[name][frames["close"][name].notna()] for k, f in frames.items()}
        price = own["close"].to_numpy()
        parts.append(
            pl.DataFrame(
                {
                    "instrument": [name] * len(price), "time": own["close"].index.to_numpy(), "open": price,
                    "high": price * 1.01, "low": price * 0.99, "close": price, "volume": own["volume"].to_numpy(),
                    "total_return": own["step"].to_numpy(), "market_cap": own["cap"].to_numpy(),
                }
            )
        )  # fmt: skip
    return pp.Panel.from_table(pl.concat(parts), progress=False)


@pytest.fixture(scope="module")
def made(panel: pp.Panel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """The tables of made-up scores of three cells, and the scores as frames."""
    return make_tables(panel, tmp_path_factory.mktemp("out"), ("I", "II", "III", "IV"))


def make_tables(panel: pp.Panel, folder: Path, tables: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    context = Context(folder, panel, Training(every="bar").resolved(panel))
    split = pp.train.TimeSplit(test=(TEST, None))
    rng = np.random.default_rng(8)
    results, scores = [], {}
    for name in ("I5/R5", "I5/R20", "I20/R60"):
        cell = Cell.of(name).rebuilt("returns" if "total_return" in panel.fields else None)
        parts, images = parts_of(split, panel), context.images(cell)
        window = scored_windows(context, cell, parts[0])
        row, time = images.windows.row[window], images.time[window]
        value = np.round(rng.random(len(window)), 3)
        results.append(
            CellResult(
                cell, "time", parts, window, row, time, images.returns(cell.horizon)[window], {"cnn": value}
            )
        )
        names = panel.instruments[images.windows.instrument[window]]
        long = pd.DataFrame({"name": names, "day": pd.to_datetime(time), "score": value})
        scores[name] = long.pivot(index="day", columns="name", values="score")
    request = Request(
        tuple(r.cell for r in results), {"time": split}, ("cnn",), 5, Tables(tables), Universe(), {}
    )
    section = section_of(context, "time", results, request, None)
    return {table.number: table for table in section.tables}, scores


def period_ends(frames: dict[str, Any], every: str) -> list[Any]:
    """The last day of each period at which at least half of the names between their first and last bar have one."""
    there = frames["close"].notna()
    alive = there.cummax() & there[::-1].cummax()[::-1]
    index = there.index[there.sum(axis=1) >= 0.5 * alive.sum(axis=1)]
    period = index.to_period({"week": "W", "month": "M", "quarter": "Q"}[every])
    return [index[period == p][-1] for p in period.unique()]


def deciles(
    frames: dict[str, Any], score: Any, every: str, weighting: str, cut: tuple[Any, Any] = (0, None)
) -> Any:
    """Period returns of deciles and high minus low, and turnover a month, as the authors form them.

    `cut` holds only the stretch from so many days after the entry to so many, None for the whole period.
    """
    level = (1 + frames["step"].fillna(0)).cumprod().where(frames["close"].notna())
    index = frames["close"].index
    rows, turned, previous = [], [], None
    for now, following in itertools.pairwise(period_ends(frames, every)):
        if now < pd.Timestamp(TEST) or now not in score.index:
            continue
        whole = level.loc[following] / level.loc[now] - 1
        a, b = index.get_loc(now), index.get_loc(following)
        begin, end = min(a + cut[0], b), b if cut[1] is None else min(a + cut[1], b)
        carried = level.ffill()
        part = carried.iloc[end] / carried.iloc[begin] - 1
        stock = pd.DataFrame(
            {"up": score.loc[now], "ret": part.where(whole.notna()), "cap": frames["cap"].loc[now]}
        ).dropna()
        edges = [np.percentile(stock.up, 10.0 * j) for j in range(11)]
        books = []
        for j in range(10):
            above = stock.up >= edges[0] if j == 0 else stock.up > edges[j]
            book = stock[above & (stock.up <= edges[j + 1])]
            size = book.cap if weighting == "value" else pd.Series(1.0, book.index)
            books.append((size / size.sum(), book.ret))
        row = [(w * r).sum() for w, r in books]
        rows.append([*row, row[-1] - row[0]])
        target = books[-1][0].sub(books[0][0], fill_value=0.0)
        if previous is not None:
            weight, ret = previous
            drifted = weight * (1 + ret) / (1 + (weight * ret).sum())
            turned.append(0.5 * target.sub(drifted, fill_value=0.0).abs().sum())
        previous = target, stock.ret[target.index]
    return np.array(rows), np.mean(turned) * A_MONTH[every]


def check(table: Any, panel: str, column: str, expected: Any, turnover: float, every: str) -> None:
    for row, series in zip(ROWS, expected.T, strict=True):
        mean = series.mean() * A_YEAR[every]
        sharpe = series.mean() / series.std(ddof=1) * math.sqrt(A_YEAR[every])
        assert table.value(panel, row, column, "mean") == pytest.approx(mean, abs=1e-9)
        assert table.value(panel, row, column, "sharpe") == pytest.approx(sharpe, abs=1e-9)
    assert table.value(panel, "Turnover", column, "turnover") == pytest.approx(turnover, abs=1e-9)


@pytest.mark.parametrize("weighting", ["equal", "value"])
def test_table_i_and_ii(made: Any, frames: dict[str, Any], weighting: str) -> None:
    tables, scores = made
    for number, cell, every, panel in (
        ("I", "I5/R5", "week", f"{weighting.capitalize()} weight"),
        ("II", "I5/R20", "month", f"R20, {weighting} weight"),
        ("II", "I20/R60", "quarter", f"R60, {weighting} weight"),
    ):
        expected, turnover = deciles(frames, scores[cell], every, weighting)
        check(tables[number], panel, cell, expected, turnover, every)


@pytest.mark.parametrize("weighting", ["equal", "value"])
def test_baselines_stand_beside(made: Any, frames: dict[str, Any], weighting: str) -> None:
    tables, scores = made
    level = (1 + frames["step"].fillna(0)).cumprod().where(frames["close"].notna())
    known = level.ffill()
    for name, signal in {
        "WSTR": -(known / known.shift(5) - 1),
        "STR": -(known / known.shift(21) - 1),
    }.items():
        signal = signal.where(frames["close"].notna())
        days = scores["I5/R5"].index
        expected, turnover = deciles(frames, signal.loc[signal.index.isin(days)], "week", weighting)
        check(tables["I"], f"{weighting.capitalize()} weight", name, expected, turnover, "week")


def test_table_iii(made: Any, frames: dict[str, Any]) -> None:
    table, scores = made[0]["III"], made[1]
    for row, cut in (("Days 1 to 5", (0, 5)), ("Days 6 to end", (5, None)), ("Whole period", (0, None))):
        expected, _ = deciles(frames, scores["I5/R20"], "month", "equal", cut)
        spread = expected[:, -1]
        assert table.value("R20, equal weight", row, "I5/R20", "mean") == pytest.approx(
            spread.mean() * 12, abs=1e-9
        )
        sharpe = spread.mean() / spread.std(ddof=1) * math.sqrt(12)
        assert table.value("R20, equal weight", row, "I5/R20", "sharpe") == pytest.approx(sharpe, abs=1e-9)


@pytest.mark.parametrize("weighting", ["equal", "value"])
def test_table_iv(made: Any, frames: dict[str, Any], weighting: str) -> None:
    tables, scores = made
    score = scores["I5/R5"]
    largest = frames["cap"].loc[score.index].rank(axis=1, ascending=False, method="first") <= 12
    expected, turnover = deciles(frames, score.where(largest), "week", weighting)
    check(tables["IV"], f"R5, {weighting} weight", "I5/R5", expected, turnover, "week")
    assert tables["IV"].title == "The 12 largest names"


def test_real_bars(shared: Path, tmp_path: Path) -> None:
    """21 tickers, as they were traded: returns of prices, holes and all. Their shares outstanding are made up."""
    path = shared / "data" / "lean_daily.parquet"
    if not path.is_file():
        pytest.skip(f"real bars not found: {path}")
    years = pl.col("date").is_between(pl.datetime(2013, 1, 1), pl.datetime(2017, 12, 31))
    bars = pl.read_parquet(path).filter(years)
    shares = 1e6 * (1 + pl.col("ticker").rank("dense") * 7 % 19)
    real = pp.Panel.from_table(
        bars.with_columns(market_cap=pl.col("close") * shares), instrument="ticker", progress=False
    )
    tables, scores = make_tables(real, tmp_path, ("I", "II", "III", "IV"))
    long = real.to_polars().to_pandas()
    close, cap = (long.pivot(index="time", columns="instrument", values=v) for v in ("close", "market_cap"))
    step = close / close.ffill().shift(1) - 1
    own = {"close": close, "step": step, "cap": cap}
    for number, cell, every, panel in (
        ("I", "I5/R5", "week", "{} weight"),
        ("II", "I5/R20", "month", "R20, {} weight"),
        ("II", "I20/R60", "quarter", "R60, {} weight"),
    ):
        for weighting in ("equal", "value"):
            expected, turnover = deciles(own, scores[cell], every, weighting)
            named = panel.format(weighting)
            check(tables[number], named[0].upper() + named[1:], cell, expected, turnover, every)
    for cut, row in (((0, 5), "Days 1 to 5"), ((5, None), "Days 6 to end")):
        spread = deciles(own, scores["I5/R20"], "month", "equal", cut)[0][:, -1]
        found = tables["III"].value("R20, equal weight", row, "I5/R20", "mean")
        assert found == pytest.approx(spread.mean() * 12, abs=1e-9)
    score = scores["I5/R5"]
    largest = cap.loc[score.index].rank(axis=1, ascending=False, method="first") <= 10
    for weighting in ("equal", "value"):
        expected, turnover = deciles(own, score.where(largest), "week", weighting)
        check(tables["IV"], f"R5, {weighting} weight", "I5/R5", expected, turnover, "week")


def test_charts_tell_the_values_under_the_pointer() -> None:
    series = {"I5/R5": np.array([0.1, np.nan, 0.3]), "flat <b>": np.zeros(3)}
    chart = line_chart("Title", "Caption", ["a", "b", "c"], series, "%", dashed=["flat <b>"])
    first, flat = chart.lines
    assert [text for _, _, text in first.marks] == ["I5/R5, a: 10.0%", "I5/R5, c: 30.0%"]
    assert [f"{x},{y}" for x, y, _ in first.marks] == first.points.split()
    assert (first.dashed, flat.dashed) == (False, True)
    assert [label for _, label in chart.x_ticks] == ["a", "b", "c"]
    long = line_chart("", "", [str(k) for k in range(5000)], {"x": np.arange(5000.0)})
    assert len(long.lines[0].marks) == 40
    assert len(long.x_ticks) == 6
    dates = line_chart("", "", ["2001-02-03"] * 9, {"x": np.arange(9.0)})
    assert [place for place, _ in dates.x_ticks] == [dates.lines[0].marks[k][0] for k in (0, 3, 5, 8)]
    assert line_chart("", "", ["a"], {"none": np.array([np.nan])}).lines[0].marks == []


def test_formations_are_those_of_an_evaluation(panel: pp.Panel) -> None:
    """The bars at which a task expects windows are those at which the market says that periods end."""
    from pricepix.factor.evaluation.rebalancing import period_ends as of_market
    from pricepix.paper.formation import formation_times

    market = Market.of(panel, panel.instruments)
    for horizon, every in ((5, "week"), (20, "month"), (60, "quarter")):
        expected = of_market(market.time, panel.tz, every, market.thin(every))
        np.testing.assert_array_equal(formation_times(panel, horizon), expected)
    np.testing.assert_array_equal(formation_times(panel, 100), np.arange(0, BARS, 100))


def test_published_figures_are_marked() -> None:
    known = pp.paper.published()
    assert set(known["checked"]) == {"not checked against the article"}
    assert known["value"].null_count() == 0
    low_to_high = known.filter(
        pl.col("cell") == "I5/R5", pl.col("row") != "high - low", pl.col("table") == "I"
    )
    assert low_to_high["value"].to_list() == [-1.92, -0.27, 0.15, 0.41, 0.48, 0.70, 0.84, 1.06, 1.48, 2.89]


def test_a_table_stands_beside_the_published_one(made: Any, tmp_path: Path) -> None:
    table = made[0]["I"]
    compared = {(c.column, c.row, c.statistic, c.panel): c for c in table.comparisons()}
    found = compared["I5/R5", "High - Low", "SR", "Equal weight"]
    value = table.value("Equal weight", "High - Low", "I5/R5", "sharpe")
    assert (found.published, found.difference) == ("7.15", f"{value - 7.15:+.2f}")
    assert compared["WSTR", "High - Low", "SR", "Equal weight"].published == "2.80"
    rows = pl.read_csv(table.to_csv().encode())
    assert rows.columns[-5:] == ["value", "standard_error", "published", "difference", "differs"]
    own = rows.filter(
        pl.col("column") == "I5/R5", pl.col("row") == "High - Low", pl.col("statistic") == "sharpe"
    )
    assert own["value"][0] == value
    assert "the paper has all stocks of CRSP" in own["differs"][0]
    latex = table.to_latex()
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 3
    assert "High - Low" in latex
    assert "7.15" in latex


def test_standard_errors(made: Any, frames: dict[str, Any]) -> None:
    """Of means and Sharpe ratios as if periods were independent, the latter after Lo (2002)."""
    tables, scores = made
    spread = deciles(frames, scores["I5/R5"], "week", "equal")[0][:, -1]
    n, ratio = len(spread), spread.mean() / spread.std(ddof=1)
    figure = tables["I"].figure("Equal weight", "High - Low", "I5/R5", "mean")
    assert figure.error == pytest.approx(spread.std(ddof=1) / math.sqrt(n) * 52, abs=1e-9)
    figure = tables["I"].figure("Equal weight", "High - Low", "I5/R5", "sharpe")
    assert figure.error == pytest.approx(math.sqrt((1 + ratio**2 / 2) / n * 52), abs=1e-9)
    grid = tables["I"].grids()[0]
    below = [grid.rows[k + 1].cells for k, row in enumerate(grid.rows) if row.name == "High - Low"]
    assert below[0][1] == f"({figure.error:.2f})"
    # One row of errors: those of single deciles are in the CSV.
    assert sum(not row.name for row in grid.rows) == 1
    assert len(pl.read_csv(tables["I"].to_csv().encode())["standard_error"].drop_nulls()) > 100


def test_errors_of_shares_know_what_goes_together() -> None:
    """A coin a date, whatever its names: the error is that of as many coins as dates, over the horizon's overlap."""
    rng = np.random.default_rng(5)
    dates, names = 600, 40
    coins = rng.random(dates) < 0.5
    time = np.repeat(np.arange(dates) * 10, names)
    assert share_error(np.repeat(coins, names), time, 1) == pytest.approx(0.5 / math.sqrt(dates), rel=0.1)
    alone = rng.random(dates * names) < 0.5
    assert share_error(alone, time, 1) == pytest.approx(0.5 / math.sqrt(dates * names), rel=0.2)
    # Every coin stands for ten dates in a row.
    slow = np.repeat(np.repeat(coins[:60], 10), names)
    assert share_error(slow, time, 10) == pytest.approx(0.5 / math.sqrt(60), rel=0.35)
    assert np.isnan(share_error(alone[:names], time[:names], 1))
    assert np.isnan(mean_error(np.empty(0)))


SPECIAL = '5% of A&B_C #1 {x} $2 ~ ^ \\ <y> | "z" 100 - 3'


def awkward_table(split: str = "paper") -> Table:
    """Every character that means something to LaTeX, numbers of all kinds, errors, published figures, notes."""
    figures = [
        Figure(SPECIAL, row, column, statistic, value, published, "a", error)
        for row, column, statistic, value, published, error in [
            (SPECIAL, SPECIAL, "mean", -1234.5, math.nan, 0.02), ("High - Low", SPECIAL, "sharpe", -0.5, 7.15, 0.1),
            ("High - Low", "wide " * 40, "mean", math.nan, math.nan, math.nan),
            ("Turnover", SPECIAL, "turnover", 6.9, 6.9, math.nan),
        ]
    ]  # fmt: skip
    return Table("I", split, SPECIAL, tuple(figures), (SPECIAL,), {"a": SPECIAL})


def latex_faults(text: str) -> list[str]:
    """Check LaTeX without LaTeX: environments nest, rows have as many cells as columns, specials are escaped."""
    faults, opened = [], []
    columns = 0
    for number, line in enumerate(text.splitlines(), 1):
        for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", line):
            if kind == "begin":
                opened.append(name)
            elif not opened or opened.pop() != name:
                faults.append(f"{number}: {name} ends")
        if found := re.match(r"\\begin\{tabular\}\{([lrc]+)\}", line):
            columns = len(found[1])
        bare = re.sub(r"\\[&%$#_{}]", "", line)
        if bare.endswith("\\\\"):
            spans = sum(int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", bare))
            cells = bare.count("&") + 1 + spans
            if cells != columns:
                faults.append(f"{number}: {cells} cells of {columns}")
        elif "&" in bare:
            faults.append(f"{number}: a bare &")
        if re.search(r"[#_~^]", bare) or (
            ("%" in bare) and not bare.startswith("%") and not bare.endswith("{%")
        ):
            faults.append(f"{number}: {line!r}")
        if bare.count("$") % 2:
            faults.append(f"{number}: a bare $")
    depth = re.sub(r"\\[{}]", "", text)
    if depth.count("{") != depth.count("}"):
        faults.append("braces")
    return faults + opened


def test_latex_is_whole(made: Any) -> None:
    for table in [*made[0].values(), awkward_table()]:
        assert latex_faults(table.to_latex()) == []
    for wrong in (
        "\\begin{tabular}{lr}\na & b & c \\\\\n\\end{tabular}",
        "\\begin{table}",
        "5_3",
        "a & b",
        "50%a",
        "$3",
        "{",
    ):
        assert latex_faults(wrong) != [], wrong


def test_latex_compiles(made: Any, tmp_path: Path) -> None:
    """Every table, none wider than a line, by the LaTeX that is there."""
    compiler = shutil.which("pdflatex") or shutil.which("tectonic")
    if compiler is None:
        pytest.skip("no pdflatex or tectonic is installed")
    tables = [*made[0].values(), awkward_table()]
    inputs = []
    for k, table in enumerate(tables):
        (tmp_path / f"{k}.tex").write_text(table.to_latex(), encoding="utf-8")
        inputs.append(f"\\input{{{k}.tex}}\\clearpage")
    preamble = tables[0].to_latex().splitlines()[0].partition(": ")[2]
    document = ["\\documentclass{article}", preamble, "\\begin{document}", *inputs, "\\end{document}"]
    (tmp_path / "all.tex").write_text("\n".join(document), encoding="utf-8")
    options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in compiler else ["--keep-logs"]
    done = subprocess.run(
        [compiler, *options, "all.tex"], cwd=tmp_path, capture_output=True, check=False, timeout=120
    )
    log = (tmp_path / "all.log").read_text(errors="replace") if (tmp_path / "all.log").exists() else ""
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
    assert "Overfull \\hbox" not in log
