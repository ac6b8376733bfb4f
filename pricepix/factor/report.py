"""The report on a factor: one HTML file that needs no network, with its pictures and its JSON beside it."""

from __future__ import annotations

import base64
import html
import io
import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.times import to_series
from pricepix.factor.evaluation import Evaluation
from pricepix.factor.models import Scorer
from pricepix.factor.portfolio import drawdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pricepix.images.image_set import ImageSet

__all__ = ["write_report"]

_BLUE: Final = "#2f5d8a"
_RED: Final = "#b2452f"
_GREY: Final = "#8a8f98"
_INK: Final = "#20242a"
_CSS: Final = """
:root { color-scheme: light; } body { font: 15px/1.5 system-ui, sans-serif; color: #20242a; background: #fff;
max-width: 62rem; margin: 2rem auto;
       padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem;
     border-bottom: 1px solid #d9dce1; padding-bottom: .2rem; }
p.note, figcaption { color: #5b616b; font-size: .88rem; } figure { margin: 1rem 0; } img { max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; margin: .6rem 0; }
th, td { padding: .2rem .5rem; text-align: right; border-bottom: 1px solid #eceef1; white-space: nowrap; } th
{ color: #5b616b; font-weight: 600; } th:first-child, td:first-child { text-align: left; white-space: normal;
} td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; } .tiles { display: flex;
flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0; } .tile { border: 1px solid #d9dce1; border-radius: 6px;
padding: .5rem .9rem; min-width: 8rem; } .tile b { display: block; font-size: 1.3rem; font-variant-numeric:
tabular-nums; } .tile span { color: #5b616b;
     font-size: .82rem; }
.wide { overflow-x: auto; } .warning { border-left: 3px solid #b2452f; padding: .3rem .8rem; background:
#fbf1ee; }
"""


def write_report(
    evaluation: Evaluation,
    path: str | PathLike[str],
    *,
    store: ImageSet | None = None,
    model: Any = None,
    title: str = "Factor report",
    sheet: int = 24,
    per_quantile: int = 50,
    seed: int = 0,
) -> Path:
    """Write the report on an evaluation.

    Parameters
    ----------
    evaluation : Evaluation
    path : str or path
        The HTML file. Pictures go to a folder beside it, ``<name>_figures``, and everything machine-readable
        to ``<name>.json``.
    store : ImageSet, optional
        The images that were scored; with them the report shows the images with the highest and lowest scores.
    model : checkpoint, run folder, PriceCNN or Ensemble, optional
        With it, and `store`, the report maps where the network looks: of an ensemble, its first member. Needs
        the extra ``report``.
    title : str
    sheet : int
        Images on a sheet.
    per_quantile : int
        Images over which a quantile's attribution map is averaged, drawn by `seed`.
    seed : int

    Returns
    -------
    pathlib.Path
        The HTML file.

    Raises
    ------
    ValueError
        A store or model that are not those of the factor.
    ImportError
        A model is given and captum is not installed.
    """
    path = Path(path)
    figures = _curves(evaluation)
    if store is not None:
        _check_store(evaluation, store)
        figures += _pictures(evaluation, store, model, sheet, per_quantile, seed)
    elif model is not None:
        raise ValueError("attribution maps need the images: pass store= with model=")
    folder = path.with_name(f"{path.stem}_figures")
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for name, heading, caption, figure in figures:
        png = _png(figure)
        (folder / f"{name}.png").write_bytes(png)
        sections.append(_figure_html(heading, caption, png))
    evaluation.to_json(path.with_suffix(".json"))
    path.write_text(_page(evaluation, title, sections), encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------- page


def _page(evaluation: Evaluation, title: str, sections: list[str]) -> str:
    f = evaluation.figures
    data = f["data"]
    subtitle = (
        f"{_model_name(f)} on {data['instruments']:,} instruments, {data['first']} to {data['last']}, "
        f"{data['dates']:,} dates; returns over {f['horizon']} bars, rebalanced by "
        f"{f['rebalance'] if isinstance(f['rebalance'], str) else str(f['rebalance']) + ' bars'}"
    )
    body = [
        f"<h1>{_text(title)}</h1><p class='note'>{_text(subtitle)}</p>",
        *(f"<p class='warning'>{_text(note)}</p>" for note in f["notes"]),
        _tiles(f),
        *sections,
        "<h2>All figures</h2>",
        _statistics_table(f),
        _portfolio_tables(f),
        _holding_table(f),
        _baseline_table(f),
        _data_table(f),
        "<h2>Lineage</h2>",
        _lineage_table(f["lineage"]),
    ]
    head = f"<meta charset='utf-8'><title>{_text(title)}</title><style>{_CSS}</style>"
    view = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    return f"<!doctype html><html lang='en'><head>{view}{head}</head><body>{''.join(body)}</body></html>\n"


def _model_name(f: dict[str, Any]) -> str:
    model = f["lineage"].get("model") or {}
    return str(model.get("name", "factor"))


def _tiles(f: dict[str, Any]) -> str:
    ls = f["portfolios"]["equal"]["long_short"]
    tiles = [
        (_number(f["ic"]["rank"]["mean"], 4), "mean rank IC"),
        (_number(f["ic"]["rank"]["newey_west_t"], 2), "its Newey-West t"),
        (_number(ls["periods"]["sharpe"], 2), "long-short Sharpe, a year"),
        (_percent(ls["periods"]["annual_mean"]), "long-short mean, a year"),
        (_percent(ls["bars"]["max_drawdown"]), "deepest drawdown"),
        (_percent(ls["monthly_turnover"], 0), "turnover a month"),
    ]
    if f["classification"]:
        pooled = f["classification"]["pooled"]
        tiles += [(_percent(pooled["accuracy"], 2), "accuracy"), (_number(pooled["auc"], 4), "AUC")]
    cells = "".join(
        f"<div class='tile'><b>{value}</b><span>{_text(name)}</span></div>" for value, name in tiles
    )
    return f"<div class='tiles'>{cells}</div>"


def _statistics_table(f: dict[str, Any]) -> str:
    head = ("", "mean", "std", "mean / std", "t", "Newey-West t", "lags", "above 0", "dates")
    rows = [("Rank IC", f["ic"]["rank"]), ("Pearson IC", f["ic"]["pearson"])]
    rows.append(("Highest minus lowest quantile", f["sorts"]["spread"]))
    if f["classification"]:
        by_date = f["classification"]["by_date"]
        dated = [
            (
                f"{_LABELS[name]}",
                _number(by_date[name]["mean"], 4),
                _number(by_date[name]["std"], 4),
                by_date[name]["dates"],
            )
            for name in _LABELS
        ]
    body = [
        (
            name,
            *(_number(s[k], 4) for k in ("mean", "std", "ir")),
            *(_number(s[k], 2) for k in ("t", "newey_west_t")),
            s["newey_west_lags"],
            _percent(s["positive"]),
            s["dates"],
        )
        for name, s in rows
    ]
    out = _table(head, body)
    if f["classification"]:
        pooled = f["classification"]["pooled"]
        names = [*_LABELS, "base_rate"]
        out += _table(
            ("All pairs pooled", *(_LABELS.get(n, "share of rises") for n in names), "pairs"),
            [("", *(_number(pooled[n], 4) for n in names), f"{pooled['n']:,}")],
        )
        out += _table(("By date", "mean", "std", "dates"), dated)
    return out


_LABELS: Final = {
    "accuracy": "Accuracy",
    "log_loss": "Log loss",
    "brier": "Brier",
    "auc": "AUC",
    "mcc": "MCC",
}


def _portfolio_tables(f: dict[str, Any]) -> str:
    out = []
    for weighting, book in f["portfolios"].items():
        head = (
            "Portfolio",
            "mean a period",
            "t",
            "mean a year",
            "volatility",
            "Sharpe",
            "drawdown",
            "turnover a month",
            "break-even",
        )
        body = []
        for name, found in book.items():
            if not isinstance(found, dict) or "periods" not in found:
                continue
            p = found["periods"]
            body.append(
                (
                    _portfolio_name(name),
                    _percent(p["mean"], 3),
                    _number(p["newey_west_t"], 2),
                    _percent(p["annual_mean"]),
                    _percent(p["volatility"]),
                    _number(p["sharpe"], 2),
                    _percent(found["bars"]["max_drawdown"]),
                    _percent(found["monthly_turnover"], 0),
                    _percent(found["break_even_cost"], 3),
                )
            )
        cohorts = f", {book['cohorts']} portfolios held at a time" if book["cohorts"] > 1 else ""
        out.append(
            f"<p><b>{_text(weighting.capitalize())}-weighted quantiles</b>, {book['rebalancings']} "
            "rebalancings, "
            f"{_number(book['rebalancings_per_year'], 1)} a year{cohorts}</p>" + _table(head, body)
        )
        net = book["long_short"]["net"]
        after = [
            (
                _percent(float(c), 2),
                _percent(n["periods"]["mean"], 3),
                _percent(n["periods"]["annual_mean"]),
                _number(n["periods"]["sharpe"], 2),
                _percent(n["bars"]["max_drawdown"]),
            )
            for c, n in net.items()
        ]
        out.append(
            _table(("Long-short after a cost per side of", "a period", "a year", "Sharpe", "drawdown"), after)
        )
        counts = ", ".join(f"{_text(k.replace('_', ' '))} {v:,}" for k, v in book["counts"].items())
        out.append(
            f"<p class='note'>Entries: {counts}. What cannot be traded at entry: "
            f"{_text(f['untradable'])}.</p>"
        )
    return "".join(out)


def _holding_table(f: dict[str, Any]) -> str:
    body = []
    for name, found in f["holding"].items():
        if found is None:
            body.append((name, *(["not closed by the data"] + [""] * 5)))
            continue
        body.append(
            (
                name,
                found["rebalancings"],
                found["cohorts"],
                _percent(found["annual_mean"]),
                _number(found["sharpe"], 2),
                _number(found["newey_west_t"], 2),
                _percent(found["monthly_turnover"], 0),
            )
        )
    head = (
        "Long-short, rebalanced by",
        "times",
        "held at a time",
        "mean a year",
        "Sharpe",
        "t",
        "turnover a month",
    )
    return _table(head, body)


def _baseline_table(f: dict[str, Any]) -> str:
    body = []
    for name, found in f["baselines"].items():
        if not found["values"]:
            body.append((name, "no value on these dates", "", "", "", ""))
            continue
        ls = found["long_short"]
        body.append(
            (
                name,
                _number(found["rank_correlation"]["mean"], 3),
                _number(found["rank_ic"]["mean"], 4),
                _number(found["rank_ic"]["newey_west_t"], 2),
                _number(ls["sharpe"], 2) if ls else "",
                f"{found['values']:,}",
            )
        )
    if not body:
        return ""
    head = (
        "Signal on the same dates",
        "rank correlation with the factor",
        "rank IC",
        "t",
        "Sharpe",
        "values",
    )
    return _table(head, body)


def _data_table(f: dict[str, Any]) -> str:
    rows = []
    for key, value in f["data"].items():
        shown = ", ".join(f"{k} {v:g}" for k, v in value.items()) if isinstance(value, dict) else value
        rows.append((key.replace("_", " "), f"{shown:,}" if isinstance(shown, int | float) else shown))
    return _table(("Data", ""), rows, text=True)


def _lineage_table(lineage: dict[str, Any]) -> str:
    rows = []
    for key, value in lineage.items():
        shown = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        rows.append((key.replace("_", " "), "not known" if shown is None else shown))
    return _table(("", ""), rows, text=True)


def _table(head: tuple[Any, ...], body: list[tuple[Any, ...]], *, text: bool = False) -> str:
    kind = " class='text'" if text else ""
    top = "".join(f"<th>{_text(h)}</th>" for h in head)
    rows = "".join("<tr>" + "".join(f"<td{kind}>{_text(c)}</td>" for c in row) + "</tr>" for row in body)
    return f"<div class='wide'><table><tr>{top}</tr>{rows}</table></div>"


def _figure_html(heading: str, caption: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    top = f"<h2>{_text(heading)}</h2>" if heading else ""
    image = f"<img alt='{_text(caption)}' src='data:image/png;base64,{data}'>"
    return f"{top}<figure>{image}<figcaption>{_text(caption)}</figcaption></figure>"


def _text(value: Any) -> str:
    """Anything as text that no browser takes for markup."""
    return html.escape(str(value), quote=True)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "n/a"


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%" if np.isfinite(value) else "n/a"


def _portfolio_name(name: str) -> str:
    return {"short": "Lowest, as can be sold", "long_short": "Long-short"}.get(name, f"Quantile {name[1:]}")


# -------------------------------------------------------------------------------------------- curves

_LABEL: Final = 0.45
Made = tuple[str, str, str, Any]
"""File name, heading, caption, figure."""


def _new(width: float = 9.0, height: float = 3.6, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.ravel():
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color("#c3c7cd")
        ax.tick_params(which="both", colors="#5b616b", labelsize=8)
        ax.grid(axis="y", color="#eceef1", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Matplotlib writes its version into the file otherwise: the same report is the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _dates(texts: list[str]) -> NDArray[np.datetime64]:
    return np.array([t[:19] for t in texts], "datetime64[s]")


def _curves(evaluation: Evaluation) -> list[Made]:
    made = [_cumulative(evaluation), _long_short(evaluation), _by_quantile(evaluation), _ic(evaluation)]
    if evaluation.figures["classification"]:
        made.append(_calibration(evaluation))
    return [*made, _turnover(evaluation), _delays(evaluation)]


def _cumulative(evaluation: Evaluation) -> Made:
    from matplotlib import colormaps

    book = evaluation.series["portfolio_equal"]
    n = evaluation.figures["quantiles"]
    figure, axes = _new(height=4.2)
    ax = axes[0, 0]
    time = _dates(book["time"])
    shades = colormaps["viridis"](np.linspace(0.05, 0.92, n))
    for k in range(n):
        worth = np.cumprod(1.0 + np.nan_to_num(book["bar_returns"][:, k]))
        ax.plot(time, worth, color=shades[k], linewidth=1.3, label=str(k + 1))
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:.2g}")
    ax.yaxis.set_minor_formatter("{x:.2g}")
    ax.set_ylabel("worth of 1, log scale", fontsize=8, color=_INK)
    legend = ax.legend(
        title="quantile",
        fontsize=8,
        title_fontsize=8,
        frameon=False,
        ncols=1,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        reverse=True,
    )
    legend.set_in_layout(True)
    caption = "Worth of each quantile, equally weighted, before costs; 1 holds the lowest scores."
    return "quantiles", "Quantile portfolios", caption, figure


def _long_short(evaluation: Evaluation) -> Made:
    book, figures = evaluation.series["portfolio_equal"], evaluation.figures
    figure, axes = _new(height=4.2, rows=2, sharex=True, height_ratios=(2.2, 1))
    time = _dates(book["time"])
    gross = np.nan_to_num(book["bar_returns"][:, -1])
    axes[0, 0].plot(time, np.cumprod(1.0 + gross), color=_BLUE, linewidth=1.4, label="before costs")
    costs = [float(c) for c in figures["portfolios"]["equal"]["long_short"]["net"] if float(c) > 0]
    if costs:
        cost = min(costs, key=lambda c: abs(c - 0.001))
        net = gross.copy()
        first = np.searchsorted(time, _dates(book["entry"]), side="right")
        np.subtract.at(net, first, 2.0 * cost * np.nan_to_num(book["turnover"][:, -1]))
        axes[0, 0].plot(
            time, np.cumprod(1.0 + net), color=_RED, linewidth=1.2, label=f"after {cost:.2%} a side"
        )
    axes[0, 0].axhline(1.0, color=_GREY, linewidth=0.8)
    axes[0, 0].set_ylabel("worth of 1", fontsize=8, color=_INK)
    axes[0, 0].legend(fontsize=8, frameon=False, loc="upper left")
    axes[1, 0].fill_between(time, drawdown(gross), 0.0, color=_BLUE, alpha=0.35, linewidth=0)
    axes[1, 0].yaxis.set_major_formatter("{x:.0%}")
    axes[1, 0].set_ylabel("drawdown", fontsize=8, color=_INK)
    caption = "Highest quantile minus the lowest, equally weighted, and its drawdown before costs."
    return "long_short", "Long-short", caption, figure


def _by_quantile(evaluation: Evaluation) -> Made:
    f = evaluation.figures
    figure, axes = _new(height=3.0)
    mean = [np.nan if v is None else v for v in f["sorts"]["mean_forward_return"]]
    axes[0, 0].bar(np.arange(1, len(mean) + 1), mean, color=_BLUE, width=0.7)
    axes[0, 0].axhline(0.0, color=_INK, linewidth=0.8)
    axes[0, 0].yaxis.set_major_formatter("{x:.2%}")
    axes[0, 0].set_xticks(np.arange(1, len(mean) + 1))
    axes[0, 0].set_xlabel("quantile", fontsize=8, color=_INK)
    caption = f"Mean return over the next {f['horizon']} bars by quantile, over all dates of the factor."
    return "by_quantile", "", caption, figure


def _ic(evaluation: Evaluation) -> Made:
    ic = np.asarray(evaluation.series["rank_ic"], np.float64)
    time = _dates(evaluation.series["time"])
    figure, axes = _new(rows=1, columns=2, width_ratios=(2.4, 1))
    known = ~np.isnan(ic)
    axes[0, 0].plot(time[known], ic[known], color=_GREY, linewidth=0.5, alpha=0.7)
    span = max(2, min(int(known.sum()) // 10, 252))
    if known.sum() > span:
        mean = np.convolve(ic[known], np.ones(span) / span, "valid")
        axes[0, 0].plot(
            time[known][span - 1 :], mean, color=_BLUE, linewidth=1.6, label=f"mean of {span} dates"
        )
        axes[0, 0].legend(fontsize=8, frameon=False)
    axes[0, 0].axhline(0.0, color=_INK, linewidth=0.8)
    axes[0, 0].set_ylabel("rank IC", fontsize=8, color=_INK)
    axes[0, 1].hist(ic[known], bins=30, color=_BLUE, alpha=0.8)
    if known.any():
        axes[0, 1].axvline(float(ic[known].mean()), color=_RED, linewidth=1.2)
    axes[0, 1].set_xlabel("rank IC; the line is its mean", fontsize=8, color=_INK)
    caption = "Rank correlation between factor and return across instruments, by date."
    return "ic", "Information coefficient", caption, figure


def _calibration(evaluation: Evaluation) -> Made:
    found = evaluation.figures["calibration"]
    figure, axes = _new(width=5.0, height=4.2)
    ax = axes[0, 0]
    low = min([*found["predicted"], *found["observed"]], default=0.0)
    high = max([*found["predicted"], *found["observed"]], default=1.0)
    pad = 0.05 * (high - low) or 0.05
    ax.plot([low - pad, high + pad], [low - pad, high + pad], color=_GREY, linewidth=0.9, linestyle="--")
    ax.plot(found["predicted"], found["observed"], color=_BLUE, marker="o", markersize=5, linewidth=1.3)
    ax.set_xlabel("mean probability given", fontsize=8, color=_INK)
    ax.set_ylabel("share that rose", fontsize=8, color=_INK)
    caption = (
        "Calibration over bins of equally many pairs; the mean distance from the diagonal is "
        f"{_number(found['error'], 4)}."
    )
    return "calibration", "Calibration", caption, figure


def _turnover(evaluation: Evaluation) -> Made:
    book = evaluation.series["portfolio_equal"]
    figure, axes = _new(height=2.6)
    time = _dates(book["entry"])[1:]
    axes[0, 0].plot(time, book["turnover"][1:, -1], color=_BLUE, linewidth=1.2)
    axes[0, 0].yaxis.set_major_formatter("{x:.0%}")
    axes[0, 0].set_ylim(bottom=0.0)
    caption = "Turnover of the long-short portfolio at each rebalancing; 200% replaces both legs."
    return "turnover", "Turnover", caption, figure


def _delays(evaluation: Evaluation) -> Made:
    f = evaluation.figures
    figure, axes = _new(height=3.0, rows=1, columns=2)
    for ax, rows, key, label in (
        (axes[0, 0], f["delays"], "bars_late", "bars late at entry"),
        (axes[0, 1], f["decay"], "horizon", "bars of the return"),
    ):
        x = np.arange(len(rows))
        mean = np.array([row["rank_ic"]["mean"] for row in rows])
        t = np.array([row["rank_ic"]["newey_west_t"] for row in rows])
        with np.errstate(invalid="ignore", divide="ignore"):
            error = 1.96 * np.abs(mean / t)
        ax.errorbar(
            x, mean, np.nan_to_num(error), color=_BLUE, marker="o", markersize=4, linewidth=1.2, capsize=2
        )
        ax.axhline(0.0, color=_INK, linewidth=0.8)
        ax.set_xticks(x, [str(row[key]) for row in rows])
        ax.set_xlabel(label, fontsize=8, color=_INK)
    axes[0, 0].set_ylabel("mean rank IC", fontsize=8, color=_INK)
    caption = "Mean rank IC by delay of the entry and by horizon, with 95% bounds (Newey-West)."
    return "delays", "Delay and decay", caption, figure


# ------------------------------------------------------------------------------------------- pictures


def _check_store(evaluation: Evaluation, store: ImageSet) -> None:
    scored = evaluation.cache.attrs["store_digest"]
    if store.digest != scored:
        raise ValueError(
            f"the factor was scored from images of digest {scored}, not from {store.kind} {store.location} (digest "
            f"{store.digest}): pass those that were scored"
        )


def _pictures(
    evaluation: Evaluation, store: ImageSet, model: Any, sheet: int, per_quantile: int, seed: int
) -> list[Made]:
    values = evaluation.cache.of_windows(store)
    order = np.argsort(values, kind="stable")
    order = order[~np.isnan(values[order])]
    sheet = min(sheet, len(order))
    low, high = order[:sheet], order[::-1][:sheet]
    made: list[Made] = [
        ("highest", "Images", "The images with the highest scores.", _sheet(store, high, values)),
        ("lowest", "", "The images with the lowest scores.", _sheet(store, low, values)),
    ]
    if model is None:
        return made
    scorer = Scorer(model, device="cpu")
    held = evaluation.cache.attrs["model"]["digest"]
    if scorer.digest != held or not scorer.members:
        raise ValueError(
            f"the model {scorer.name} (digest {scorer.digest}) is not the one of the cache (digest "
            f"{held}): pass the "
            "checkpoint or run that was scored"
        )
    network = scorer.members[0]
    if len(network.blocks) == 0:
        return made
    from pricepix.factor.attribution import grad_cam

    shown = np.concatenate([high[:6], low[:6]])
    images = store.read(shown)
    made.append(
        (
            "attribution",
            "Where the network looks",
            "Grad-CAM of the last and the first convolution: what speaks for a rise. Left the six highest "
            "scores, right "
            "the six lowest.",
            _maps(images, grad_cam(network, images)),
        )
    )
    n = evaluation.figures["quantiles"]
    rng = np.random.default_rng(seed)
    means = []
    for part in np.array_split(order, n):
        chosen = np.sort(rng.choice(part, min(per_quantile, len(part)), replace=False))
        pictures = store.read(chosen)
        cam = grad_cam(network, pictures)
        means.append((pictures.mean(axis=0) / 255.0, cam["last"].mean(axis=0), cam["first"].mean(axis=0)))
    caption = (
        f"By {n} groups of the score, from the lowest to the highest: the mean image of up to "
        f"{per_quantile} and the mean "
        "maps of the last and the first convolution."
    )
    made.append(("attribution_by_quantile", "", caption, _mean_maps(means)))
    return made


def _sheet(store: ImageSet, chosen: NDArray[np.int64], values: NDArray[np.float32]) -> Figure:
    from matplotlib.figure import Figure

    height, width = store.spec.shape
    # Pictures about an inch high: tall narrow ones stand closer.
    columns = int(np.clip(9.0 * height / (1.3 * width), 5, 12))
    rows = -(-len(chosen) // columns)
    each = 9.0 / columns
    figure = Figure(figsize=(9.0, rows * (each * height / width + _LABEL)), dpi=110)
    images = store.read(chosen)
    names = store.instruments[store.instrument_index[chosen]]
    times = to_series(store.time[chosen], store.tz)
    daily = not (store.time[chosen] % 86_400_000_000_000 != 0).any()
    cell = 1.0 / rows
    picture = cell * (each * height / width) / (each * height / width + _LABEL)
    for i, image in enumerate(images):
        left, bottom = (i % columns) / columns, 1.0 - cell * (i // columns + 1) + (cell - picture) * 0.95
        ax = figure.add_axes((left + 0.004, bottom, 1.0 / columns - 0.008, picture * 0.97))
        ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        ax.set_axis_off()
        when = str(times[i])[:10] if daily else str(times[i])[:16]
        # A name such as $A_1$ is no formula.
        label = f"{str(names[i])[:14]}\n{when}\n{values[chosen[i]]:.4f}"
        ax.text(
            0.0, -0.03, label, transform=ax.transAxes, va="top", fontsize=6.5, color=_INK, parse_math=False
        )
    return figure


def _maps(images: NDArray[np.uint8], cam: Any) -> Figure:
    from matplotlib.figure import Figure

    n = len(images)
    height, width = images.shape[1:]
    figure = Figure(figsize=(9.0, 3 * 9.0 / max(n, 1) * height / width + 0.2), layout="constrained", dpi=110)
    axes = figure.subplots(3, n, squeeze=False)
    for j in range(n):
        for row, overlay in enumerate((None, cam["last"][j], cam["first"][j])):
            _draw(axes[row, j], images[j], overlay)
    return figure


def _mean_maps(means: list[tuple[Any, Any, Any]]) -> Figure:
    from matplotlib.figure import Figure

    height, width = means[0][0].shape
    n = len(means)
    each = min(9.0 / n, 1.0)
    figure = Figure(figsize=(n * each, 3 * each * height / width + 0.3), layout="constrained", dpi=110)
    axes = figure.subplots(3, n, squeeze=False)
    for j, (image, last, first) in enumerate(means):
        _draw(axes[0, j], image * 255.0, None)
        for row, heat in ((1, last), (2, first)):
            axes[row, j].imshow(heat, cmap="inferno", vmin=0, vmax=1, aspect="auto")
            axes[row, j].set_axis_off()
        axes[0, j].set_title(str(j + 1), fontsize=8, color=_INK)
    return figure


def _draw(ax: Any, image: Any, overlay: Any) -> None:
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    if overlay is not None:
        ax.imshow(overlay, cmap="inferno", vmin=0, vmax=1, alpha=0.65, aspect="auto")
    ax.set_axis_off()
