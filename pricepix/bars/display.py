"""Pieces of the pages that notebooks show for our objects: tables, bars, curves and pictures, as plain HTML.

A page holds no script and fetches nothing. Every text is escaped, since names come out of files. Colours follow the
page around it: text and lines are drawn in its text colour, and the two accents have a variant for dark pages.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pricepix._checks import printable

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Html", "bars", "coverage", "curves", "details", "facts", "histogram", "notes", "page", "pictures",
    "register_drawer", "sample_picture", "table", "tiles",
]  # fmt: skip

MOST_BYTES: Final = 60_000
"""A page larger than this leaves out its last parts."""
_LONGEST: Final = 120
_MOST_ROWS: Final = 24
_POINTS: Final = 240
# A bit a pixel: 3 kB a picture if nothing could be compressed, so that eight of them leave room.
_LARGEST_PICTURE: Final = 24_000


@functools.cache
def _style() -> str:
    # Like the other imports within functions: this module is loaded with pricepix, and mostly for nothing.
    import importlib.resources

    rules = importlib.resources.files("pricepix.bars").joinpath("display.css").read_text(encoding="utf-8")
    return rules.replace("\n", "")


class Html(str):
    """Text that is HTML already; all other text is escaped."""

    __slots__ = ()


def text(value: Any, limit: int = _LONGEST) -> Html:
    """Return a value as escaped text; what a terminal or a page would obey stays visible, long text is cut."""
    import html

    if isinstance(value, Html):
        return value
    written = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if len(written) > limit:
        written = f"{written[:limit]}... ({len(written):,} characters)"
    return Html(html.escape(printable(written, ""), quote=True))


def page(name: str, about: Any, *parts: str) -> str:
    """Return a whole page of at most `MOST_BYTES`: the name of the class, a line about the object, and parts.

    Parts that would make it larger are left out, and the page says so.
    """
    head = f'<div class="pp-head"><b>{text(name)}</b> <span>{text(about, 300)}</span></div>'
    body, left_out = [], 0
    room = MOST_BYTES - len(_style()) - len(head.encode()) - 300
    for part in parts:
        size = len(part.encode())
        if size <= room:
            body.append(part)
            room -= size
        else:
            left_out += 1
    if left_out:
        body.append(f'<div class="pp-dim">{left_out} more, too large to show here</div>')
    return f'<div class="pricepix"><style>{_style()}</style>{head}{"".join(body)}</div>'


def columns(*parts: str, fit_first: bool = False) -> Html:
    """Put parts beside each other where there is room; the first as narrow as it is, if asked to."""
    cells = [
        f"<div{' class=pp-fit' if fit_first and k == 0 else ''}>{part}</div>"
        for k, part in enumerate(p for p in parts if p)
    ]
    return Html(f'<div class="pp-cols">{"".join(cells)}</div>')


def facts(values: Mapping[str, Any]) -> Html:
    """Return names and values, a row each; values that are None are left out."""
    rows = [
        f'<tr><td class="pp-k">{text(name)}</td><td class="pp-t">{text(value)}</td></tr>'
        for name, value in values.items()
        if value is not None
    ]
    return Html(f"<table>{''.join(rows)}</table>")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], words: Iterable[int] = ()) -> Html:
    """Return a table of at most 24 rows; `words` are the columns, from 0, that hold text and may wrap."""
    given, wrapped = list(rows), set(words)

    def row(tag: str, cells: Sequence[Any]) -> str:
        marked = [' class="pp-t"' if k in wrapped else "" for k in range(len(cells))]
        joined = (f"<{tag}{mark}>{text(c, 400)}</{tag}>" for mark, c in zip(marked, cells, strict=True))
        return f"<tr>{''.join(joined)}</tr>"

    body = [row("td", cells) for cells in given[:_MOST_ROWS]]
    more = len(given) - _MOST_ROWS
    below = f'<div class="pp-dim">and {more:,} more</div>' if more > 0 else ""
    return Html(f'<div class="pp-wide"><table>{row("th", head)}{"".join(body)}</table>{below}</div>')


def bars(counts: Mapping[str, int], main: Iterable[str] = (), of: int | None = None) -> Html:
    """Return counts as horizontal bars with their shares of `of`, by default of the largest.

    Those of `main` have another colour. Those that come after the 24th are left out.
    """
    shown = dict(list(counts.items())[:_MOST_ROWS])
    whole = of or max(shown.values(), default=0) or 1
    marked, rows = set(main), []
    for name, count in shown.items():
        share = count / whole
        mark = ' class="pp-main"' if name in marked else ""
        rows.append(
            f'<div class="pp-bar"><span title="{text(name)}">{text(name)}</span>'
            f'<i{mark} style="width:{100 * min(share, 1.0):.2f}%"></i><span>{count:,} ({share:.1%})</span></div>'
        )
    return Html("".join(rows))


def tiles(values: Mapping[str, Any]) -> Html:
    """Return figures in large print, each with its name below."""
    cells = [f"<div><b>{text(value)}</b><span>{text(name)}</span></div>" for name, value in values.items()]
    return Html(f'<div class="pp-tiles">{"".join(cells)}</div>')


def notes(sentences: Iterable[Any]) -> Html:
    """Return sentences that a reader should not miss, at most 24."""
    given = list(sentences)
    shown = [f'<div class="pp-note">{text(sentence, 600)}</div>' for sentence in given[:_MOST_ROWS]]
    more = len(given) - _MOST_ROWS
    return Html("".join(shown) + (f'<div class="pp-dim">and {more:,} more</div>' if more > 0 else ""))


def details(title: str, part: str, *, opened: bool = False) -> Html:
    """Return a part behind its title, to be opened with a click."""
    return Html(f"<details{' open' if opened else ''}><summary>{text(title)}</summary>{part}</details>")


def code(value: Any) -> Html:
    """Return text, such as a digest, in the letters of a program."""
    return Html(f"<code>{text(value)}</code>")


# ---- figures


def curves(
    series: Mapping[str, Any],
    caption: str,
    ends: tuple[Any, Any] = ("", ""),
    *,
    write: Callable[[float], str] = "{:.4g}".format,
    zero: float | None = None,
) -> Html:
    """Return up to three curves over one axis, thinned to 240 points; gaps where values are not finite.

    Parameters
    ----------
    series : mapping of str to sequence of float, or array
        Values by name, all of one length.
    caption : str
    ends : pair
        What to write below the left and the right end.
    write : callable
        Writes the values of the axis.
    zero : float, optional
        A value at which a line is drawn.
    """
    known = {name: [float(v) for v in _thinned(values)] for name, values in list(series.items())[:3]}
    finite = [v for values in known.values() for v in values if math.isfinite(v)]
    if zero is not None:
        finite.append(zero)
    if len(finite) < 2:
        return Html(f"<figure><figcaption>{text(caption)}: no values</figcaption></figure>")
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0

    def height(value: float) -> str:
        return f"{100 - 100 * (value - low) / span:.1f}"

    paths = [] if zero is None else [f'<path class="pp-z" d="M0 {height(zero)}H100"/>']
    for k, values in enumerate(known.values()):
        step = 100 / max(len(values) - 1, 1)
        command, drawn = "M", []
        for i, value in enumerate(values):
            if not math.isfinite(value):
                command = "M"
                continue
            drawn.append(f"{command}{i * step:.2f} {height(value)}")
            command = "L"
        if drawn:
            paths.append(f'<path class="pp-{k}" d="{"".join(drawn)}"/>')
    key = ""
    if len(known) > 1:
        names = (f'<b class="pp-{k}">{text(name)}</b>' for k, name in enumerate(known))
        key = f' <span class="pp-key">({", ".join(names)})</span>'
    return _plot(f"{text(caption)}{key}", "".join(paths), (write(high), write(low)), ends)


def coverage(first: np.ndarray, last: np.ndarray, caption: str, ends: tuple[Any, Any]) -> Html:
    """Return how many of the stretches from `first` to `last` (both included) hold each of 120 moments."""
    import numpy as np

    if not len(first):
        return Html("")
    moments = np.linspace(float(first.min()), float(last.max()), 120)
    begun = np.searchsorted(np.sort(first).astype(np.float64), moments, side="right")
    over = np.searchsorted(np.sort(last).astype(np.float64), moments, side="left")
    return curves({"alive": begun - over}, caption, ends, write=lambda v: f"{v:,.0f}", zero=0.0)


def histogram(values: np.ndarray, caption: str, *, write: Callable[[float], str] = "{:.4g}".format) -> Html:
    """Return the distribution of the finite values, in 40 bars."""
    import numpy as np

    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return Html(f"<figure><figcaption>{text(caption)}: no values</figcaption></figure>")
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return Html(
            f"<figure><figcaption>{text(caption)}: {text(write(low))} throughout</figcaption></figure>"
        )
    counts, _ = np.histogram(finite, 40)
    top = int(counts.max())
    drawn = [
        f'<rect x="{2.5 * k:.1f}" y="{100 - 100 * n / top:.1f}" width="2.1" height="{100 * n / top:.1f}"/>'
        for k, n in enumerate(counts.tolist())
        if n
    ]
    return _plot(text(caption), "".join(drawn), (f"{top:,}", "0"), (write(low), write(high)))


def _plot(caption: str, drawn: str, y: tuple[str, str], x: tuple[Any, Any]) -> Html:
    """Return a figure: caption, curves in a square of 100 that fills the width, and texts outside, which keep size."""
    below = f'<div class="pp-x"><span>{text(x[0])}</span><span>{text(x[1])}</span></div>' if any(x) else ""
    return Html(
        f'<figure><figcaption>{caption}</figcaption><div class="pp-plot"><div class="pp-y"><span>{text(y[0])}</span>'
        f'<span>{text(y[1])}</span></div><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img">{drawn}</svg>'
        f"{below}</div></figure>"
    )


def _thinned(values: Sequence[float]) -> Sequence[float]:
    """Return at most 240 of the values, the first and the last among them."""
    n = len(values)
    if n <= _POINTS:
        return values
    return [values[i * (n - 1) // (_POINTS - 1)] for i in range(_POINTS)]


# ---- pictures


def pictures(images: np.ndarray, captions: Sequence[Sequence[Any]], *, tall: int = 130) -> Html:
    """Return images, uint8 (n, height, width) of 0 and 255, enlarged to about `tall` screen pixels, with lines below.

    Images too large for a page are made smaller: a pixel is then as bright as the brightest that it stands for.
    """
    import base64

    cells = []
    for image, lines in zip(images, captions, strict=True):
        small, step = _reduced(image)
        scale = max(1, tall // small.shape[0])
        below = [f"<span>{text(line, 40)}</span>" for line in lines]
        if step > 1:
            below.append(f"<span>1:{step}</span>")
        cells.append(
            f'<div><img alt="{text(" ".join(map(str, lines)), 80)}" width="{small.shape[1] * scale}" '
            f'src="data:image/png;base64,{base64.b64encode(_png(small)).decode()}">{"".join(below)}</div>'
        )
    return Html(f'<div class="pp-pics">{"".join(cells)}</div>')


def _reduced(image: np.ndarray) -> tuple[np.ndarray, int]:
    height, width = image.shape
    step = max(1, math.ceil(math.sqrt(height * width / _LARGEST_PICTURE)))
    if step == 1:
        return image, 1
    import numpy as np

    padded = np.pad(image, ((0, -height % step), (0, -width % step)))
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    return blocks.max(axis=(1, 3)), step


def _png(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).convert("1", dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


# What draws a sample of a spec stands above this module, and above ImageSpec: it is handed in, not imported.
_drawers: list[Callable[[Any], np.ndarray]] = []


def register_drawer(drawer: Callable[[Any], np.ndarray]) -> None:
    """Say what draws a sample image, uint8 (height, width), of an ImageSpec."""
    _drawers[:] = [drawer]


def sample_picture(spec: Any) -> Html:
    """Return a sample image of an ImageSpec, or why there is none."""
    if not _drawers:
        return Html("")
    try:
        image = _drawers[0](spec)
    except ValueError as error:
        return Html(f'<div class="pp-dim">{text(error)}</div>')
    return pictures(image[None], [["drawn from simulated bars"]], tall=192)
