"""Why one window has its score: which pixels speak for it, and what each bar does to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pricepix._checks import optional_module, whole_number
from pricepix.bars.panel import Panel
from pricepix.bars.times import format_time
from pricepix.factor.evaluation.attribution import grad_cam
from pricepix.factor.scorer import Scorer
from pricepix.images.image_set import ImageSet
from pricepix.images.rows import check_bars, panel_rows, store_rows
from pricepix.render.draw import render_rows
from pricepix.store.image_store import open_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Explanation", "explain"]

_BATCH: Final = 64


@dataclass(frozen=True)
class Explanation:
    """Why a window has its score.

    Attributes
    ----------
    instrument, time : str
    image : numpy.ndarray
        uint8 (height, width).
    score : float
        What the model gives, as `score` does.
    bars : polars.DataFrame
        A row a bar of the window, the last one last: ``time``, ``open``, ``high``, ``low``, ``close``, ``volume``;
        ``occlusion``, the score less that of the same window drawn without the bar (NaN where that cannot be drawn);
        and ``gradients``, the sum of the integrated gradients of the bar's columns of pixels. Where a spec merges
        bars, those of one merged bar share its figures.
    integrated_gradients : numpy.ndarray
        float32 (height, width): adds up to the score less that of an empty image.
    empty_score : float
        The score of an image without a pixel.
    grad_cam : numpy.ndarray or None
        float32 (height, width), 0 to 1: of the last convolution; None for a module whose layers are not known.
    """

    instrument: str
    time: str
    image: NDArray[np.uint8]
    score: float
    bars: pl.DataFrame
    integrated_gradients: NDArray[np.float32]
    empty_score: float
    grad_cam: NDArray[np.float32] | None

    def __repr__(self) -> str:
        strongest = self.bars.with_row_index("bar").filter(pl.col("occlusion").is_finite())
        if not len(strongest):
            return f"Explanation({self.instrument} {self.time}: score {self.score:.4f})"
        row = strongest.sort(pl.col("occlusion").abs(), descending=True).row(0, named=True)
        return (
            f"Explanation({self.instrument} {self.time}: score {self.score:.4f}; without bar {row['bar']} of "
            f"{len(self.bars)} it is {self.score - row['occlusion']:.4f})"
        )

    def figure(self) -> Figure:
        """Return a figure: the image, its maps, and what each bar does.

        Raises
        ------
        ImportError
            Without matplotlib; the message is the line that installs it.
        """
        figures = optional_module("matplotlib.figure", "report", "figure")
        maps: list[tuple[str, NDArray[Any], str, bool]] = [("image", self.image, "gray", False)]
        if self.grad_cam is not None:
            maps.append(("Grad-CAM", self.grad_cam, "magma", False))
        maps.append(("integrated gradients", self.integrated_gradients, "coolwarm", True))
        figure: Figure = figures.Figure(figsize=(4 * len(maps), 6), layout="constrained")
        grid = figure.add_gridspec(2, len(maps), height_ratios=(2, 1))
        for i, (name, values, colours, signed) in enumerate(maps):
            axes = figure.add_subplot(grid[0, i])
            top = float(np.abs(values).max()) or 1.0
            axes.imshow(values, cmap=colours, vmin=-top if signed else 0, vmax=top, aspect="auto")
            axes.set_title(name)
            axes.set_axis_off()
        axes = figure.add_subplot(grid[1, :])
        place = np.arange(len(self.bars))
        axes.bar(place - 0.2, self.bars["occlusion"].fill_nan(0.0).to_numpy(), 0.4, label="occlusion")
        axes.bar(place + 0.2, self.bars["gradients"].to_numpy(), 0.4, label="gradients")
        axes.axhline(0, color="black", linewidth=0.5)
        axes.set_xlabel("bar of the window")
        axes.set_ylabel("part of the score")
        axes.legend()
        figure.suptitle(f"{self.instrument} {self.time}: score {self.score:.4f}".replace("$", r"\$"))
        return figure


def explain(
    model: Any,
    images: Any,
    instrument: str,
    time: Any,
    *,
    panel: Any = None,
    module: Any = None,
    horizon: int | None = None,
    steps: int = 64,
) -> Explanation:
    """Explain the score of one window: by pixel and by bar.

    Parameters
    ----------
    model : path, network or ensemble
        On single images. Of an ensemble all figures are the mean over its members.
    images : ImageSet, str or path
    instrument : str
    time : str, date or datetime
        Of the window's last bar.
    panel : Panel, optional
        The bars; by default those that the images have.
    module, horizon : optional
        As `score` takes them.
    steps : int
        Of the integral from the empty image to this one.

    Returns
    -------
    Explanation

    Raises
    ------
    KeyError
        If there is no such window.
    ValueError
        If the model is a function or takes no single images, or the bars are not at hand.

    Notes
    -----
    Occlusion leaves a bar out and draws the rest anew, as if the bar had been missing: the scale follows, which masking
    pixels would not do. Integrated gradients are those of Sundararajan, Taly and Yan (2017), by the midpoint rule.
    """
    images = open_images(images)
    steps = whole_number(steps, "steps", 1)
    scorer = Scorer(model, tz=images.tz, images=images, module=module, horizon=horizon, device="cpu")
    if len(scorer.stages) != 1 or scorer.takes != "images" or hasattr(images.spec, "parts"):
        raise ValueError(
            f"explain takes networks on single images, of one fold; {scorer.name} scores {images.kind} "
            f"{images.location} otherwise"
        )
    scorer.check(images.spec, f"{images.kind} {images.location}")
    at = images.locate(instrument, time)
    if panel is None and images.panel is None:
        raise ValueError(f"explain needs the bars of {images.kind} {images.location}: give panel=")
    bars = images.panel if panel is None else Panel.of(panel)
    assert bars is not None
    if bars is not images.panel:
        check_bars(images, bars, store_rows(images, bars))
    row = int(panel_rows(bars, images.instruments, images.instrument_index[[at]], images.time[[at]])[0])
    image = images.read([at])[0]
    groups = _bar_groups(images)
    dropped, drawn = _without_each(bars, row, images, groups)
    score = float(scorer(image[None])[0][0])
    without = np.full(len(groups), np.nan)
    if drawn.any():
        without[drawn] = scorer(dropped[drawn])[0]
    gradients, empty = _integrated(scorer, image, steps)
    columns = np.array_split(gradients.sum(axis=0, dtype=np.float64), len(groups))
    by_bar = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    window = bars.bars[row - images.spec.lookback + 1 : row + 1]
    times = bars.time[row - images.spec.lookback + 1 : row + 1]
    table = pl.DataFrame(
        {
            "time": [format_time(int(t), bars.tz) for t in times],
            **{name: window[:, i] for i, name in enumerate(("open", "high", "low", "close", "volume"))},
            "occlusion": (score - without)[by_bar],
            "gradients": np.array([part.sum() for part in columns])[by_bar],
        }
    )
    return Explanation(
        str(images.instruments[images.instrument_index[at]]), table["time"][-1], image, score, table, gradients, empty,
        _cam(scorer, image),
    )  # fmt: skip


def _bar_groups(images: ImageSet) -> list[NDArray[np.int64]]:
    """Return which bars of a window stand in each drawn bar, the first one first."""
    return np.split(np.arange(images.spec.lookback), images.spec.lookback // images.spec.aggregate)


def _without_each(
    panel: Panel, row: int, images: ImageSet, groups: list[NDArray[np.int64]]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw the window without each drawn bar; return the images and which of them could be drawn."""
    spec = images.spec
    first = int(panel.offsets[np.searchsorted(panel.offsets, row, side="right") - 1])
    history = slice(max(first, row - spec.lookback - max(spec.ma, default=0) * spec.aggregate - 1), row + 1)
    length, count = history.stop - history.start, len(groups)
    bars = np.tile(panel.bars[history], (count, 1, 1))
    fields = {name: np.tile(values[history], (count, 1)) for name, values in panel.fields.items()}
    for i, group in enumerate(groups):
        # As a halt is in a panel: no prices, and nothing traded.
        bars[i, length - spec.lookback + group] = (np.nan, np.nan, np.nan, np.nan, 0.0)
        if "total_return" in fields:
            fields["total_return"][i, length - spec.lookback + group] = np.nan
    names = np.array([f"{i:06d}" for i in range(count)])
    copies = Panel(
        bars.reshape(-1, 5), np.arange(count + 1) * length, names, np.tile(panel.time[history], count), panel.tz,
        {name: values.reshape(-1) for name, values in fields.items()},
    )  # fmt: skip
    out = np.zeros((count, *spec.shape), np.uint8)
    reason = np.zeros(count, np.uint8)
    render_rows(copies, np.arange(1, count + 1) * length - 1, spec, out, reason=reason)
    return out, reason == 0


def _integrated(scorer: Scorer, image: NDArray[np.uint8], steps: int) -> tuple[NDArray[np.float32], float]:
    """Integrated gradients of the score by pixel, and the score of the empty image."""
    import torch

    total, empty = np.zeros(image.shape), 0.0
    share = (torch.arange(steps, dtype=torch.float32) + 0.5) / steps
    for network in scorer.members:
        ends = network._normalised(torch.from_numpy(np.stack([np.zeros_like(image), image])))
        start, way = ends[:1], ends[1:] - ends[:1]
        with torch.no_grad():
            empty += float(_one_head(scorer, network.scores(network.from_normalised(start)))[0])
        for part in share.split(_BATCH):
            x = (start + part[:, None, None, None] * way).requires_grad_()
            scores = _one_head(scorer, network.scores(network.from_normalised(x)))
            (gradient,) = torch.autograd.grad(scores.sum(), x)
            total += (gradient.double() * way.double()).sum(dim=(0, 1)).numpy() / steps
    members = len(scorer.members)
    return (total / members).astype(np.float32), empty / members


def _one_head(scorer: Scorer, scores: Any) -> Any:
    return scores if scorer.head is None else scores[:, scorer.head]


def _cam(scorer: Scorer, image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    networks = scorer.members
    if (
        any(network.kind != "PriceCNN" or not len(network.blocks) for network in networks)
        or scorer.head is not None
    ):
        return None
    return np.mean(
        [grad_cam(network, image[None])["last"][0] for network in networks], axis=0, dtype=np.float32
    )
