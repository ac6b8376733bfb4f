"""The report on a factor: one HTML file that needs no network, with its pictures and its JSON beside it."""

from __future__ import annotations

import base64
import html
import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pricepix.factor.evaluation.figures import _check_store, _curves, _number, _pictures, _png
from pricepix.factor.evaluation.result import Evaluation

if TYPE_CHECKING:
    from pricepix.images.image_set import ImageSet

__all__ = ["write_report"]
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


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%" if np.isfinite(value) else "n/a"


def _portfolio_name(name: str) -> str:
    return {"short": "Lowest, as can be sold", "long_short": "Long-short"}.get(name, f"Quantile {name[1:]}")
