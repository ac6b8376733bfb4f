"""Looking at images: contact sheets of a store, and one image enlarged beside its bars.

Every pixel of an image becomes a square of whole screen pixels, so that what is seen is what is stored.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import path_of, whole_number
from pricepix.bars.times import format_times
from pricepix.images.image_set import ImageSet
from pricepix.render.draw import render_rows
from pricepix.store.image_store import open_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pricepix.bars.panel import Panel

    _PlainPath = Path
else:
    # Path itself cannot be subclassed before Python 3.12.
    _PlainPath = type(Path())

_DPI: Final = 100
_FONT: Final = "DejaVu Sans Mono"
_TEXT: Final = 11  # pixels
_CHARACTER: Final = 7  # pixels across at that size
_LINE: Final = 15
_GAP: Final = 18
_LARGEST: Final = 1 << 15  # pixels along a side of a picture; Agg ends at 2^16
_DARK: Final = "#1a1a1a"
_GREY: Final = "#7a7a7a"
_RED: Final = "#b5402b"
_TABLE_BARS: Final = 20


class Picture(_PlainPath):
    """The path of a PNG file: a ``pathlib.Path`` that a notebook shows as the picture."""

    def with_segments(self, *parts: Any) -> Path:
        """Return what is made of this path, such as its parent, as a plain path."""
        return Path(*parts)

    def _repr_png_(self) -> bytes | None:
        # What was moved or deleted since shows as a path.
        return self.read_bytes() if self.is_file() else None


def contact_sheet(
    store: ImageSet | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    instrument: str | Sequence[str] | None = None,
    n: int = 24,
    seed: int | None = 0,
    horizon: int | Sequence[int] | None = None,
    columns: int | None = None,
) -> Picture:
    """Write images of a store as one PNG: a grid with instrument, date and forward returns under each image.

    The store's windows are cut into `n` stretches of equal length, in their order of time, and each stretch
    gives one image: the sheet runs through the whole history.

    Parameters
    ----------
    store : ImageSet or path
        A store, on disk or in memory, or where it lies.
    path : path, optional
        PNG file to write, replaced if it exists; ``contact_sheet.png`` in the current folder by default.
    instrument : str or sequence of str, optional
        Show only windows of these instruments.
    n : int
        Images on the sheet; a store with fewer shows all.
    seed : int or None
        Draws the image out of each stretch at random; ``None`` takes its middle one, so that the images are
        evenly spaced.
    horizon : int or sequence of int, optional
        Which of the store's forward returns to print; all by default. A return that is not known reads
        ``n/a``.
    columns : int, optional
        Images a row; by default what makes the sheet a little wider than tall.

    Returns
    -------
    Picture
        The path of the file written, a ``pathlib.Path``; a notebook shows the picture.

    Raises
    ------
    ValueError
        If `n` or `columns` is below 1, `n` asks for a picture too large to draw, `path` does not end in
        ``.png``, or the store has no such horizon.
    KeyError
        If the store has no such instrument, or no window of it; the message names the nearest.
    FileNotFoundError
        If the folder to write to does not exist.
    ImportError
        Without matplotlib; the message is the line that installs it.

    Examples
    --------
    >>> import tempfile
    >>> from pricepix import render_universe, samples
    >>> images = render_universe(samples.simulate(3, 60), "jkx20", progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     contact_sheet(images, f"{folder}/sheet.png", instrument="S0001", n=6).name
    'sheet.png'
    """
    target = _png("contact_sheet.png" if path is None else path)
    for name, count in (("n", n), ("columns", 1 if columns is None else columns)):
        whole_number(count, name, 1, unit="images")
    store = _opened(store)
    horizons = _known_horizons(store, horizon)
    chosen = _spread(_windows_of(store, instrument), int(n), seed)
    captions = _captions(store, chosen, horizons)
    title = f"{_name(store)}: {len(chosen):,} of {len(store):,} images {_size(store.spec.shape)}"
    if horizons:
        title += f"; last bar, and forward return over {', '.join(map(str, horizons))} bars"
    save_figure(image_grid(store.read(chosen), captions, title, columns), target)
    return Picture(target)


def enlarge(
    source: ImageSet | str | os.PathLike[str] | NDArray[np.uint8],
    instrument: str,
    time: Any,
    path: str | os.PathLike[str],
    panel: Any = None,
) -> Picture:
    """Write one image enlarged as a PNG, with the bars that it shows beside it.

    With a panel the picture has the window's bars drawn to the same scale, level with the image's rows, with
    the moving averages and the volume of the store's spec, and for 20 bars or fewer their values.

    Parameters
    ----------
    source : ImageSet, path, or numpy.ndarray of uint8 (height, width)
        The store that holds the image, or an image.
    instrument : str
    time : str, date, datetime or int
        Time of the window's last bar; a date stands for the last window of that day.
    path : path
        PNG file to write, replaced if it exists.
    panel : Panel or anything ``Panel.from_table`` takes, optional
        The bars that the image was made from. Panel images have them.

    Returns
    -------
    Picture
        The path of the file written, a ``pathlib.Path``; a notebook shows the picture.

    Raises
    ------
    KeyError
        If there is no such window; the message names the nearest.
    ValueError
        If the panel's bars do not give this image, `path` does not end in ``.png``, or an image has another
        shape.
    FileNotFoundError
        If the folder to write to does not exist.
    """
    target = _png(path)
    store: ImageSet | None = None
    if isinstance(source, np.ndarray):
        image = source
        if image.ndim != 2 or image.dtype != np.uint8 or image.shape[1] % 3 or 0 in image.shape:
            raise ValueError(
                f"the image is {image.dtype} {image.shape}, expected uint8 (height, width) with three "
                "columns a bar"
            )
        caption = f"{instrument}  {time}  {_size(image.shape)}"
        lookback = image.shape[1] // 3
    else:
        store = _opened(source)
        position = store.locate(instrument, time)
        time = int(store.time[position])
        image = store.read([position])[0]
        spec, lookback = store.spec, store.spec.lookback
        stamp = format_times(store.time[[position]], store.tz)[0]
        caption = f"{instrument}  {stamp}  {spec.style} {_size(spec.shape)}"
        for h in store.horizons:
            caption += f"   {h} bars: {_percent(store.returns(h)[position])}"
        panel = store.panel if panel is None else panel
    window = None
    if panel is not None:
        from pricepix.bars.panel import Panel

        window = _window(Panel.of(panel), str(instrument), time, lookback, store)
        if store is not None and window.image is not None and not np.array_equal(window.image, image):
            raise ValueError(
                f"the panel's bars of {instrument!r} do not give the image of {store.kind} {store.location}, which "
                "was made from different bars: give the panel that it was made from, or none"
            )
    save_figure(_enlarged(image, caption, window), target)
    return Picture(target)


# ---- what to show


def _opened(store: ImageSet | str | os.PathLike[str]) -> ImageSet:
    if isinstance(store, (ImageSet, str, os.PathLike)):
        return open_images(store)
    raise TypeError(
        f"store must be an ImageSet, such as an ImageStore, or its path, not {type(store).__name__}"
    )


def _png(path: str | os.PathLike[str]) -> Path:
    """Check the file to write, and that pictures can be drawn, before any work is done."""
    _check_matplotlib()
    target = path_of(path, "path")
    if target.suffix.lower() != ".png":
        raise ValueError(f"path {str(target)!r} does not end in .png: pictures are written as PNG")
    folder = target.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} to write {target.name} to: make it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the path of a file")
    return target


def _windows_of(store: ImageSet, instrument: str | Sequence[str] | None) -> NDArray[np.int64]:
    """Positions of the windows of some instruments, ascending."""
    if instrument is None:
        if len(store) == 0:
            raise ValueError(f"{store.kind} {store.location}: no images, there is nothing to show")
        return np.arange(len(store))
    wanted = [instrument] if isinstance(instrument, str) else list(instrument)
    found = []
    for name in wanted:
        own = np.flatnonzero(store.instruments == str(name))
        positions = np.flatnonzero(store.instrument_index == own[0]) if len(own) else own
        if not len(positions):
            # Raises, and names the nearest instruments.
            store.locate(name, 0)
        found.append(positions)
    if not found:
        raise ValueError("instrument=[] names no instrument: give one or more, or None for all")
    return np.unique(np.concatenate(found))


def _known_horizons(store: ImageSet, horizon: int | Sequence[int] | None) -> tuple[int, ...]:
    if horizon is None:
        return store.horizons
    wanted = tuple(horizon) if isinstance(horizon, Sequence) else (horizon,)
    for h in wanted:
        if h not in store.horizons:
            known = ", ".join(map(str, store.horizons)) or "none"
            raise ValueError(
                f"{store.kind} {store.location}: no forward returns over {h!r} bars: there are {known}"
            )
    return wanted


def _spread(positions: NDArray[np.int64], n: int, seed: int | None) -> NDArray[np.int64]:
    """One position out of each of `n` equal stretches.

    Exactly even steps over windows ordered by (time, instrument) meet the same instrument again and again
    whenever the step is a multiple of the universe, hence the draw.
    """
    n = min(n, len(positions))
    edges = np.arange(n + 1) * len(positions) // n
    if seed is None:
        return positions[(edges[:-1] + edges[1:] - 1) // 2]
    seed = whole_number(seed, "seed", 0)
    return positions[np.random.default_rng(seed).integers(edges[:-1], edges[1:])]


def _captions(store: ImageSet, positions: NDArray[np.int64], horizons: tuple[int, ...]) -> list[list[str]]:
    """Lines to print under images: instrument, time of the last bar, a forward return a line."""
    times = format_times(store.time[positions], store.tz)
    names = store.instruments[store.instrument_index[positions]]
    captions = [[str(name), time] for name, time in zip(names, times, strict=True)]
    width = max((len(str(h)) for h in horizons), default=0)
    for h in horizons:
        for caption, value in zip(captions, store.returns(h)[positions], strict=True):
            caption.append(f"{h:>{width}} {_percent(value):>8}")
    return captions


def _percent(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{100.0 * float(value):+.2f}%"


def _name(store: ImageSet) -> str:
    if store.panel is not None:
        return f"{store.kind} {store.location}"
    return (
        "in memory"
        if store.location == "memory"
        else store.location.rstrip("/\\").replace("\\", "/").split("/")[-1]
    )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


class _Window(NamedTuple):
    """The bars of a window as the panel has them."""

    bars: NDArray[np.float64]
    """(lookback, 5), by absolute value as they are drawn."""
    averages: NDArray[np.float64]
    """(number of moving averages, lookback)."""
    times: list[str]
    volume: bool
    image: NDArray[np.uint8] | None
    """The image that the panel gives, where the spec is known."""


def _window(panel: Panel, instrument: str, time: Any, lookback: int, store: ImageSet | None) -> _Window:
    row = panel.locate(instrument, time)
    first = int(panel.rows_of(instrument).start)
    start = row - lookback + 1
    if start < first:
        raise ValueError(
            f"the panel has {row - first + 1} bars of {instrument!r} up to this time, the image shows "
            f"{lookback}: give the panel that it was made from"
        )
    bars = np.abs(panel.bars[start : row + 1])
    averages = np.empty((0, lookback))
    image = None
    if store is not None:
        spec = store.spec
        image = np.empty((1, *spec.shape), np.uint8)
        render_rows(panel, np.array([row]), spec, image, reason=np.empty(1, np.uint8), threads=1)
        image = image[0]
        if spec.rebuild is None:
            close = np.abs(panel.bars[first : row + 1, 3])
            lines = [_average(close, m, lookback, spec.style) for m in spec.ma]
            averages = np.array(lines).reshape(-1, lookback)
    volume = bool(store.spec.volume if store is not None else not np.isnan(bars[:, 4]).all())
    return _Window(bars, averages, format_times(panel.time[start : row + 1], panel.tz), volume, image)


def _average(close: NDArray[np.float64], window: int, lookback: int, style: str) -> NDArray[np.float64]:
    """Moving average at the last `lookback` closes, for the eye."""
    out = np.full(lookback, np.nan)
    for i in range(lookback):
        end = len(close) - lookback + 1 + i
        part = close[max(0, end - window) : end]
        if style == "cnn_for_trading":
            part = part[~np.isnan(part)]
            out[i] = part.mean() if len(part) else np.nan
        elif len(part) == window:
            out[i] = part.mean()
    return out


# ---- drawing


def _check_matplotlib() -> None:
    """Refuse, before any work, to draw without matplotlib."""
    if find_spec("matplotlib") is None:
        raise ImportError("pictures need matplotlib: pip install 'pricepix[report]'")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Figure, x: float, top: float, text: str, **style: Any) -> None:
    """Write text whose upper left corner is (x, top) pixels from the figure's."""
    width, height = figure.get_size_inches() * _DPI
    style = {"fontsize": _TEXT * 72 / _DPI, "family": _FONT, "color": _DARK, "va": "top", **style}
    figure.text(x / width, 1 - top / height, text, parse_math=False, **style)


def _paste(figure: Figure, image: NDArray[np.uint8], scale: int, x: int, top: int) -> None:
    """Put an image on the figure, each pixel a square of `scale` pixels."""
    height = round(figure.get_size_inches()[1] * _DPI)
    big = np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
    figure.figimage(big, xo=x, yo=height - top - big.shape[0], cmap="gray", vmin=0, vmax=255, origin="upper")


def image_grid(
    images: NDArray[np.uint8],
    captions: list[list[str]],
    title: str = "",
    columns: int | None = None,
    *,
    across: int | None = None,
) -> Figure:
    """Draw images in a grid, each with its lines of text below it.

    Parameters
    ----------
    images : numpy.ndarray, uint8 (n, height, width)
    captions : list of list of str
        The lines of each image; the first is bold. Those longer than an image and 17 characters are shortened.
    title : str
        Above the grid.
    columns : int, optional
        By default what makes the picture a little wider than tall, or as many as `across` has room for.
    across : int, optional
        Largest width of the grid, pixels, where `columns` is not given. Images are then drawn at the largest
        whole scale at which five fit beside each other.

    Raises
    ------
    ValueError
        More images than a picture can hold.
    """
    n, height, width = images.shape
    scale = max(1, min(192 // height, 384 // width))
    if across is not None:
        scale = max(1, min(scale, (across // 5 - _GAP) // width))
    lines = max((len(caption) for caption in captions), default=0)
    # Names as long as a sentence would push the images apart.
    fits = max(17, width * scale // _CHARACTER)
    captions = [[_shortened(line, fits) for line in caption] for caption in captions]
    text = max((len(line) for caption in captions for line in caption), default=0) * _CHARACTER
    step_x = int(max(width * scale, text)) + _GAP
    step_y = height * scale + 6 + lines * _LINE + _GAP
    head = 3 * _GAP if title else _GAP
    if columns is None:
        columns = max(1, round(np.sqrt(n * 1.6 * step_y / step_x)))
        if across is not None:
            columns = max(1, (across - _GAP) // step_x)
        columns = max(1, min(n, columns))
        # Fill the last row as far as can be.
        columns = -(-n // max(1, -(-n // columns)))
    columns = max(1, min(n, int(columns)))
    rows = -(-n // columns)
    total_width = max(columns * step_x + _GAP, len(title) * _CHARACTER + 2 * _GAP)
    total_height = rows * step_y + head
    if max(total_width, total_height) > _LARGEST:
        raise ValueError(
            f"n={n} images of {height}x{width} make a picture of {total_width}x{total_height} pixels, more than the "
            f"{_LARGEST} a side that can be drawn: give a smaller n"
        )
    figure = _figure(total_width, total_height)
    _write(figure, _GAP, _GAP, title, color=_GREY)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, top = _GAP + i % columns * step_x, head + i // columns * step_y
        _paste(figure, image, scale, x, top)
        for k, line in enumerate(caption):
            where = top + height * scale + 6 + k * _LINE
            weight, color = ("bold" if k == 0 else "normal"), (_GREY if k == 1 else _DARK)
            _write(figure, x, where, line, weight=weight, color=color)
    return figure


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 6]}...{text[-3:]}"


def _enlarged(image: NDArray[np.uint8], caption: str, window: _Window | None) -> Figure:
    height, width = image.shape
    scale = max(1, min(560 // height, 900 // width))
    image_height, image_width = height * scale, width * scale
    top = 3 * _GAP
    plot_x = _GAP + image_width + 90
    plot_width = 0 if window is None else max(320, min(image_width, 900))
    table_x = plot_x + plot_width + 40
    rows = [] if window is None or len(window.bars) > _TABLE_BARS else _table(window)
    total_width = table_x + len(rows[0]) * _CHARACTER if rows else plot_x + plot_width
    if window is None:
        total_width = _GAP + image_width
    total_width = max(total_width, len(caption) * _CHARACTER + _GAP) + _GAP
    total_height = max(top + image_height + 3 * _GAP, top + len(rows) * _LINE + _GAP)
    figure = _figure(int(total_width), total_height)
    _write(figure, _GAP, _GAP, caption, weight="bold")
    _paste(figure, image, scale, _GAP, top)
    if window is not None:
        size = figure.get_size_inches() * _DPI
        volume_rows = height // 5 if window.volume else 0
        price_rows = height - volume_rows - (1 if window.volume else 0)

        def axes(first_row: int, count: int) -> Axes:
            bottom = size[1] - top - (first_row + count) * scale
            return figure.add_axes(
                (plot_x / size[0], bottom / size[1], plot_width / size[0], count * scale / size[1])
            )

        _draw_bars(axes(0, price_rows), window, price_rows)
        lowest = figure.axes[-1]
        if window.volume:
            lowest = axes(height - volume_rows, volume_rows)
            _draw_volume(lowest, window)
        _label_times(lowest, window.times, plot_width)
        for k, line in enumerate(rows):
            _write(figure, table_x, top + k * _LINE, line, color=_GREY if k == 0 else _DARK)
    return figure


def _table(window: _Window) -> list[str]:
    prices = window.bars[:, :4]
    real = prices[np.isfinite(prices)]
    decimals = next((d for d in range(2, 5) if np.allclose(real, real.round(d), rtol=0, atol=1e-9)), 4)

    def cells(values: Any) -> list[str]:
        shown = ["" if np.isnan(v) else f"{v:,.{decimals}f}" for v in values[:4]]
        return [*shown, "" if np.isnan(values[4]) else f"{values[4]:,.0f}"]

    table = [["", "open", "high", "low", "close", "volume"]]
    table += [[time, *cells(bar)] for time, bar in zip(window.times, window.bars, strict=True)]
    widths = [max(len(row[k]) for row in table) for k in range(6)]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in table]


def _draw_bars(axes: Axes, window: _Window, rows: int) -> None:
    """Draw the bars so that price levels lie level with the pixel rows of the image."""
    from matplotlib.collections import LineCollection

    x = np.arange(len(window.bars))
    opened, high, low, close = window.bars[:, :4].T
    segments: list[Any] = [
        *([(i, a), (i, b)] for i, a, b in zip(x, low, high, strict=True)),
        *([(i - 0.35, p), (i, p)] for i, p in zip(x, opened, strict=True)),
        *([(i, p), (i + 0.35, p)] for i, p in zip(x, close, strict=True)),
    ]
    drawn = [s for s in segments if np.isfinite([s[0][1], s[1][1]]).all()]
    axes.add_collection(LineCollection(drawn, colors=_DARK, linewidths=1.4))
    for average in window.averages:
        axes.plot(x, average, color=_RED, linewidth=1.2)
    everything = np.concatenate([window.bars[:, :4].ravel(), window.averages.ravel()])
    everything = everything[np.isfinite(everything)]
    lowest, highest = (everything.min(), everything.max()) if len(everything) else (0.0, 1.0)
    half = (highest - lowest) / max(rows - 1, 1) / 2 or 0.5
    axes.set_ylim(lowest - half, highest + half)
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    _bare_axes(axes, len(x))


def _draw_volume(axes: Axes, window: _Window) -> None:
    volume = np.where(np.isfinite(window.bars[:, 4]), window.bars[:, 4], 0.0)
    axes.bar(np.arange(len(volume)), volume, width=0.5, color=_GREY)
    axes.set_ylim(0, volume.max() or 1.0)
    axes.set_yticks([float(volume.max() or 1.0)], [_short_number(float(volume.max()))])
    _bare_axes(axes, len(volume))


def _short_number(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _bare_axes(axes: Axes, bars: int) -> None:
    axes.set_xlim(-0.5, bars - 0.5)
    axes.set_xticks([])
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_TEXT * 72 / _DPI, labelfontfamily=_FONT, colors=_DARK)


def _label_times(axes: Axes, times: list[str], width: float) -> None:
    # Half a label more, since those at the ends are moved inward.
    room = max(1, int(width / (len(times[0]) * _CHARACTER * 1.5 + 24)))
    at = np.unique(np.linspace(0, len(times) - 1, min(room, len(times))).round().astype(int))
    if len(at) == 1:
        at = np.array([len(times) - 1])
    axes.set_xticks(at, [times[i] for i in at])
    # Labels at the ends stay inside the picture.
    labels = axes.get_xticklabels()
    labels[-1].set_horizontalalignment("right")
    if len(labels) > 1:
        labels[0].set_horizontalalignment("left")


def save_figure(figure: Figure, target: Path | IO[bytes], *, transparent: bool = False) -> None:
    """Write a figure as PNG, with or without its background; the same figure gives the same bytes."""
    with warnings.catch_warnings():
        # A name in a script that the font lacks becomes boxes; the images matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        # Matplotlib would write its version into the file.
        figure.savefig(target, format="png", metadata={"Software": None}, transparent=transparent)
