"""Figures of a report: curves, bars, contact sheets, attribution maps."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix.bars.times import format_times
from pricepix.factor.evaluation.formatting import format_number
from pricepix.factor.evaluation.headline import headline_cost
from pricepix.factor.evaluation.portfolio import drawdown
from pricepix.factor.evaluation.result import Evaluation
from pricepix.factor.scorer import Scorer
from pricepix.preview import image_grid, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pricepix.images.image_set import ImageSet

__all__ = ["Chart", "charts", "log_ticks", "pictures", "png_bytes"]

# Each is read on white and on black alike: figures have no background of their own.
_BLUE: Final = "#3f86c6"
_RED: Final = "#c9603f"
_GREY: Final = "#8a8f98"
_INK: Final = "#7c838d"
# A page is 9 inches at this resolution, 990 pixels; a phone's is 3.6 inches.
_DPI: Final = 110
_WIDTH: Final = 990
WIDE: Final = 9.0
NARROW: Final = 3.6


class Chart(NamedTuple):
    """One figure of a report."""

    name: str
    """Of its file, without ``.png``."""
    heading: str
    """Of its section; empty where it belongs to the section before."""
    caption: str
    figure: Any
    narrow: Any = None
    """The same for a phone, with letters as large; None for sheets of images, which are scrolled."""


def png_bytes(figure: Figure, *, transparent: bool = False) -> bytes:
    """Return a figure as PNG, with or without its background; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    save_figure(figure, buffer, transparent=transparent)
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------- curves


def _new(
    page: float, width: float = WIDE, height: float = 3.6, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Any, Any]:
    """Return a figure no wider than the page, in inches, and its axes; on a phone's, side by side becomes below."""
    from matplotlib.figure import Figure

    if page < width and columns > 1:
        rows, columns, height = columns, 1, 0.85 * height * columns
        options.pop("width_ratios", None)
    figure = Figure(figsize=(min(width, page), height), layout="constrained", dpi=_DPI)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for ax in axes:
        ax.patch.set_visible(False)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(_GREY)
        ax.tick_params(which="both", colors=_INK, labelsize=8)
        ax.grid(axis="y", color=_GREY, linewidth=0.8, alpha=0.25)
        ax.set_axisbelow(True)
    return figure, axes


def log_ticks(low: float, high: float) -> NDArray[np.float64]:
    """Return round values to write along a log axis from `low` to `high`, 1 among them where it lies between.

    Over less than a factor of 8 they are the round steps of a linear axis, since powers of ten have none there.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    if high / low < 8.0:
        found: Any = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    else:
        found = LogLocator(subs=(1.0, 2.0, 5.0), numticks=12).tick_values(low, high)
    ticks = np.asarray(found, np.float64)
    if low <= 1.0 <= high and not np.isclose(ticks, 1.0).any():
        ticks = np.append(ticks, 1.0)
    ticks = np.sort(ticks)
    return ticks[(ticks >= low * (1 - 1e-9)) & (ticks <= high * (1 + 1e-9)) & (ticks > 0)]


def _write_log_axis(ax: Any) -> None:
    """Make the axis logarithmic, unless a loss of more than everything stands on it."""
    from matplotlib.ticker import FixedLocator, NullLocator

    if any(np.nanmin(line.get_ydata()) <= 0.0 for line in ax.get_lines() if len(line.get_ydata())):
        return
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(FixedLocator(log_ticks(low, high).tolist()))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:.4g}")


def _write_dates(ax: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=7)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    ax.xaxis.get_offset_text().set_color(_INK)
    ax.xaxis.get_offset_text().set_fontsize(8)


def _dates(texts: list[str]) -> NDArray[np.datetime64]:
    return np.array([t[:19] for t in texts], "datetime64[s]")


def charts(evaluation: Evaluation) -> list[Chart]:
    """Draw the curves and bars of an evaluation, each for a wide page and for a phone."""
    drawn = [_cumulative, _long_short, _by_quantile, _ic]
    if evaluation.figures["classification"]:
        drawn.append(_calibration)
    drawn += [_turnover, _delays]
    return [draw(evaluation, WIDE)._replace(narrow=draw(evaluation, NARROW).figure) for draw in drawn]


def _cumulative(evaluation: Evaluation, page: float) -> Chart:
    from matplotlib import colormaps

    book = evaluation.series["portfolio_equal"]
    n = evaluation.figures["quantiles"]
    figure, axes = _new(page, height=4.2)
    ax = axes[0]
    time = _dates(book["time"])
    shades = colormaps["viridis"](np.linspace(0.25, 0.85, n))
    for k in range(n):
        worth = np.cumprod(1.0 + np.nan_to_num(book["bar_returns"][:, k]))
        ax.plot(time, worth, color=shades[k], linewidth=1.3, label=str(k + 1))
    ax.axhline(1.0, color=_GREY, linewidth=0.8)
    _write_log_axis(ax)
    _write_dates(ax)
    ax.set_ylabel("worth of 1, log scale", fontsize=8, color=_INK)
    below = page < WIDE
    legend = ax.legend(
        title="quantile",
        fontsize=8,
        title_fontsize=8,
        frameon=False,
        labelcolor=_INK,
        ncols=5 if below else 1,
        loc="upper center" if below else "center left",
        bbox_to_anchor=(0.5, -0.12) if below else (1.0, 0.5),
        reverse=not below,
    )
    legend.get_title().set_color(_INK)
    legend.set_in_layout(True)
    caption = "Worth of each quantile, equally weighted, before costs; 1 holds the lowest scores."
    return Chart("quantiles", "Quantile portfolios", caption, figure)


def _long_short(evaluation: Evaluation, page: float) -> Chart:
    book, figures = evaluation.series["portfolio_equal"], evaluation.figures
    figure, axes = _new(page, height=4.2, rows=2, sharex=True, height_ratios=(2.2, 1))
    time = _dates(book["time"])
    gross = np.nan_to_num(book["bar_returns"][:, -1])
    axes[0].plot(time, np.cumprod(1.0 + gross), color=_BLUE, linewidth=1.4, label="before costs")
    found = headline_cost(figures)
    if found is not None and figures["convention"] != "paper":
        cost = float(found)
        net = gross.copy()
        first = np.searchsorted(time, _dates(book["entry"]), side="right")
        np.subtract.at(net, first, 2.0 * cost * np.nan_to_num(book["turnover"][:, -1]))
        axes[0].plot(time, np.cumprod(1.0 + net), color=_RED, linewidth=1.2, label=f"after {cost:.2%} a side")
    axes[0].axhline(1.0, color=_GREY, linewidth=0.8)
    _write_log_axis(axes[0])
    scale = ", log scale" if axes[0].get_yscale() == "log" else ""
    axes[0].set_ylabel(f"worth of 1{scale}", fontsize=8, color=_INK)
    axes[0].legend(fontsize=8, frameon=False, labelcolor=_INK, loc="best")
    axes[1].fill_between(time, drawdown(gross), 0.0, color=_BLUE, alpha=0.35, linewidth=0)
    axes[1].yaxis.set_major_formatter("{x:.0%}")
    axes[1].set_ylabel("drawdown", fontsize=8, color=_INK)
    _write_dates(axes[1])
    caption = "Highest quantile minus the lowest, equally weighted, and its drawdown before costs."
    return Chart("long_short", "Long-short", caption, figure)


def several_long_short(evaluations: Mapping[str, Evaluation]) -> Chart:
    """Draw the long-short portfolios of several factors on one chart, for a wide page and for a phone."""
    drawn = [_several(evaluations, page) for page in (WIDE, NARROW)]
    caption = "Highest quantile minus the lowest of each factor, equally weighted, before costs."
    return Chart("side_by_side", "Side by side: long-short", caption, drawn[0], drawn[1])


def _several(evaluations: Mapping[str, Evaluation], page: float) -> Figure:
    from matplotlib import colormaps

    figure, axes = _new(page, height=4.2)
    ax = axes[0]
    colours = colormaps["tab10"](np.arange(10))
    for k, (name, evaluation) in enumerate(evaluations.items()):
        book = evaluation.series["portfolio_equal"]
        worth = np.cumprod(1.0 + np.nan_to_num(book["bar_returns"][:, -1]))
        # A name that begins with an underscore would be hidden.
        ax.plot(_dates(book["time"]), worth, color=colours[k % 10], linewidth=1.4, label=f" {name}")
    ax.axhline(1.0, color=_GREY, linewidth=0.8)
    _write_log_axis(ax)
    _write_dates(ax)
    ax.set_ylabel("worth of 1, log scale", fontsize=8, color=_INK)
    for text in ax.legend(fontsize=8, frameon=False, labelcolor=_INK, loc="best").get_texts():
        # Names are anybody's: nothing in them is read as a formula.
        text.set_parse_math(False)
    return figure


def _by_quantile(evaluation: Evaluation, page: float) -> Chart:
    f = evaluation.figures
    figure, axes = _new(page, height=3.0)
    mean = [np.nan if v is None else v for v in f["sorts"]["mean_forward_return"]]
    axes[0].bar(np.arange(1, len(mean) + 1), mean, color=_BLUE, width=0.7)
    axes[0].axhline(0.0, color=_INK, linewidth=0.8)
    axes[0].yaxis.set_major_formatter("{x:.2%}")
    axes[0].set_xticks(np.arange(1, len(mean) + 1))
    axes[0].set_xlabel("quantile", fontsize=8, color=_INK)
    caption = f"Mean return over the next {f['horizon']} bars by quantile, over all dates of the factor."
    return Chart("by_quantile", "", caption, figure)


def _ic(evaluation: Evaluation, page: float) -> Chart:
    ic = np.asarray(evaluation.series["rank_ic"], np.float64)
    time = _dates(evaluation.series["time"])
    figure, axes = _new(page, rows=1, columns=2, width_ratios=(2.4, 1))
    known = ~np.isnan(ic)
    axes[0].plot(time[known], ic[known], color=_GREY, linewidth=0.5, alpha=0.7)
    span = max(2, min(int(known.sum()) // 10, 252))
    if known.sum() > span:
        mean = np.convolve(ic[known], np.ones(span) / span, "valid")
        axes[0].plot(time[known][span - 1 :], mean, color=_BLUE, linewidth=1.6, label=f"mean of {span} dates")
        axes[0].legend(fontsize=8, frameon=False, labelcolor=_INK)
    axes[0].axhline(0.0, color=_INK, linewidth=0.8)
    axes[0].set_ylabel("rank IC", fontsize=8, color=_INK)
    _write_dates(axes[0])
    axes[1].hist(ic[known], bins=30, color=_BLUE, alpha=0.8)
    if known.any():
        axes[1].axvline(float(ic[known].mean()), color=_RED, linewidth=1.2)
    axes[1].set_xlabel("rank IC; the line is its mean", fontsize=8, color=_INK)
    caption = "Rank correlation between factor and return across instruments, by date."
    return Chart("ic", "Information coefficient", caption, figure)


def _calibration(evaluation: Evaluation, page: float) -> Chart:
    found = evaluation.figures["calibration"]
    figure, axes = _new(page, width=5.0, height=4.2)
    ax = axes[0]
    low = min([*found["predicted"], *found["observed"]], default=0.0)
    high = max([*found["predicted"], *found["observed"]], default=1.0)
    pad = 0.05 * (high - low) or 0.05
    ax.plot([low - pad, high + pad], [low - pad, high + pad], color=_GREY, linewidth=0.9, linestyle="--")
    ax.plot(found["predicted"], found["observed"], color=_BLUE, marker="o", markersize=5, linewidth=1.3)
    ax.set_xlabel("mean probability given", fontsize=8, color=_INK)
    ax.set_ylabel("share that rose", fontsize=8, color=_INK)
    caption = (
        "Calibration over bins of equally many pairs; the mean distance from the diagonal is "
        f"{format_number(found['error'], 4)}."
    )
    return Chart("calibration", "Calibration", caption, figure)


def _turnover(evaluation: Evaluation, page: float) -> Chart:
    book = evaluation.series["portfolio_equal"]
    figure, axes = _new(page, height=2.6)
    time = _dates(book["entry"])[1:]
    axes[0].plot(time, book["turnover"][1:, -1], color=_BLUE, linewidth=1.2)
    axes[0].yaxis.set_major_formatter("{x:.0%}")
    axes[0].set_ylim(bottom=0.0)
    _write_dates(axes[0])
    caption = "Turnover of the long-short portfolio at each rebalancing; 200% replaces both legs."
    return Chart("turnover", "Turnover", caption, figure)


def _delays(evaluation: Evaluation, page: float) -> Chart:
    f = evaluation.figures
    figure, axes = _new(page, height=3.0, rows=1, columns=2)
    for ax, rows, key, label in (
        (axes[0], f["delays"], "bars_late", "bars late at entry"),
        (axes[1], f["decay"], "horizon", "bars of the return"),
    ):
        x = np.arange(len(rows))
        mean = np.array([row["rank_ic"]["mean"] for row in rows])
        t = np.array([row["rank_ic"]["t"] for row in rows])
        with np.errstate(invalid="ignore", divide="ignore"):
            error = 2.0 * np.abs(mean / t)
        ax.errorbar(
            x, mean, np.nan_to_num(error), color=_BLUE, marker="o", markersize=4, linewidth=1.2, capsize=2
        )
        ax.axhline(0.0, color=_INK, linewidth=0.8)
        ax.set_xticks(x, [str(row[key]) for row in rows])
        ax.set_xlabel(label, fontsize=8, color=_INK)
    axes[0].set_ylabel("mean rank IC", fontsize=8, color=_INK)
    caption = "Mean rank IC by delay of the entry and by horizon, with two standard errors either way (those of its t)."
    return Chart("delays", "Delay and decay", caption, figure)


# ------------------------------------------------------------------------------------------- pictures


def pictures(
    evaluation: Evaluation, store: ImageSet, model: Any = None, *, sheet: int, per_quantile: int, seed: int
) -> list[Chart]:
    """Draw the images with the highest and the lowest scores and, with a model, where it looks.

    Raises
    ------
    ValueError
        The images or the model are not those of the factor.
    ImportError
        A model is given and captum is not installed.
    """
    _check_store(evaluation, store)
    values = evaluation.cache.of_windows(store)
    order = np.argsort(values, kind="stable")
    order = order[~np.isnan(values[order])]
    sheet = min(sheet, len(order))
    lowest, highest = order[:sheet], order[::-1][:sheet]
    made = [
        Chart("highest", "Images", "The images with the highest scores.", _sheet(store, highest, values)),
        Chart("lowest", "", "The images with the lowest scores.", _sheet(store, lowest, values)),
    ]
    if model is None:
        return made
    network = _scored_network(evaluation, model)
    # A module of the user has convolutions nobody knows where, if any.
    if network.kind != "PriceCNN" or len(network.blocks) == 0:
        return made
    from pricepix.factor.evaluation.attribution import grad_cam

    images = store.read(np.concatenate([highest[:6], lowest[:6]]))
    caption = (
        "Grad-CAM of the last and the first convolution: what speaks for a rise. Left the six highest scores, "
        "right the six lowest."
    )
    maps = _maps(images, grad_cam(network, images))
    made.append(Chart("attribution", "Where the network looks", caption, maps))
    groups = evaluation.figures["quantiles"]
    rng = np.random.default_rng(seed)
    means = []
    for part in np.array_split(order, groups):
        chosen = np.sort(rng.choice(part, min(per_quantile, len(part)), replace=False))
        images = store.read(chosen)
        cam = grad_cam(network, images)
        means.append((images.mean(axis=0) / 255.0, cam["last"].mean(axis=0), cam["first"].mean(axis=0)))
    caption = (
        f"By {groups} groups of the score, from the lowest to the highest: the mean image of up to "
        f"{per_quantile} and the mean maps of the last and the first convolution."
    )
    made.append(Chart("attribution_by_quantile", "", caption, _mean_maps(means)))
    return made


def _check_store(evaluation: Evaluation, store: ImageSet) -> None:
    scored = evaluation.cache.attrs["store_digest"]
    if store.digest != scored:
        raise ValueError(
            f"the factor was scored from images of digest {scored}, not from {store.kind} {store.location} "
            f"(digest {store.digest}): pass those that were scored"
        )


def _scored_network(evaluation: Evaluation, model: Any) -> Any:
    """Return the model's first network, checked to be the one that was scored."""
    scorer = Scorer(model, device="cpu")
    scored = evaluation.cache.attrs["model"]["digest"]
    if scorer.digest != scored or not scorer.members:
        raise ValueError(
            f"the model {scorer.name} (digest {scorer.digest}) is not the one of the cache (digest {scored}): "
            "pass the checkpoint or run that was scored"
        )
    return scorer.members[0]


def _sheet(store: ImageSet, chosen: NDArray[np.int64], values: NDArray[np.float32]) -> Figure:
    """Draw images in a grid, with instrument, time and score under each."""
    names = store.instruments[store.instrument_index[chosen]]
    times = format_times(store.time[chosen], store.tz)
    captions = [
        [str(name), time, f"{value:.4f}"]
        for name, time, value in zip(names, times, values[chosen], strict=True)
    ]
    return image_grid(store.read(chosen), captions, across=_WIDTH)


def _maps(images: NDArray[np.uint8], cam: Any) -> Figure:
    from matplotlib.figure import Figure

    n = len(images)
    height, width = images.shape[1:]
    figure = Figure(figsize=(9.0, 3 * 9.0 / max(n, 1) * height / width + 0.2), layout="constrained", dpi=_DPI)
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
    figure = Figure(figsize=(n * each, 3 * each * height / width + 0.3), layout="constrained", dpi=_DPI)
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
