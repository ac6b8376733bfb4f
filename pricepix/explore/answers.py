"""What the page is told: windows, bars, scores, sheets and drawings, as values that JSON can hold."""

from __future__ import annotations

import base64
import io
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from pricepix._checks import printable
from pricepix._version import __version__
from pricepix.explore.catalog import Window
from pricepix.explore.history import History, Stretch
from pricepix.explore.query import Query
from pricepix.explore.scores import CacheScores, ModelScores
from pricepix.explore.sheets import Sheets
from pricepix.spec import CHARTS, STYLES, ImageSpec
from pricepix.windows.labels import NO_TIME

__all__ = ["Answers"]

_LARGEST_PIXELS: Final = 1 << 21
"""Pixels of an image that is drawn by another spec."""
_SPANS: Final = (40, 1000)
_MOST_BEFORE: Final = 2000
"""Bars up to a window's last one that are shown, however long it is."""
_PAGE: Final = 200
# A spreadsheet runs text that begins so as a formula.
_FORMULA: Final = r"^[=+\-@\t\r\n]"


class Answers:
    """Answers the requests of the page about one set of images. Methods are called by several threads.

    Parameters
    ----------
    sheets : Sheets
        Of the images.
    history : History or None
        The bars.
    scores : CacheScores or None
    model : ModelScores or None
    """

    def __init__(
        self, sheets: Sheets, history: History | None, scores: CacheScores | None, model: ModelScores | None
    ) -> None:
        self.sheets, self.catalog, self.images = sheets, sheets.catalog, sheets.catalog.images
        self.history, self.scores, self.model = history, scores, model
        self.notes = self._notes()

    @property
    def _horizon(self) -> int | None:
        """The horizon that the page shows at first: that of the scores, or the shortest."""
        horizons = self.images.horizons
        wanted = None if self.scores is None else self.scores.horizon
        return wanted if wanted in horizons else next(iter(horizons), None)

    def _notes(self) -> list[str]:
        found = [] if self.scores is None else self.scores.differences()
        if self.scores is not None and self.model is not None:
            theirs = self.scores.cache.attrs["model"].get("digest")
            if theirs != self.model.scorer.digest:
                found.append("The factor cache holds the scores of another model than the one that is given.")
        if self.scores is not None and self.scores.horizon not in (None, *self.images.horizons):
            found.append(
                f"The scores foresee {self.scores.horizon} bars, over which these images have no forward return."
            )
        if self.history is not None and self.history.tz != self.images.tz:
            found.append(
                f"The bars are of time zone {self.history.tz}, the images of {self.images.tz}: times are compared as "
                "they are."
            )
        return [printable(note, "") for note in found]

    # ---- the set

    def about(self, query: Query) -> dict[str, Any]:
        """Say what the images are, and what there is besides them."""
        query.finish()
        images = self.images
        return {
            "version": __version__,
            "location": images.location,
            "kind": images.kind,
            "images": len(images),
            "instruments": len(images.instruments),
            "height": images.spec.height,
            "width": images.spec.width,
            "spec": images.spec.to_dict(),
            "styles": STYLES,
            "charts": CHARTS,
            "presets": {name: spec.to_dict() for name, spec in ImageSpec.presets().items()},
            "preset": next((n for n, s in ImageSpec.presets().items() if s == images.spec), None),
            "horizons": images.horizons,
            "horizon": self._horizon,
            "delay": images.delay,
            "tz": images.tz,
            "bars": self.history is not None,
            "factor": None if self.scores is None else self.scores.cache.attrs["model"]["name"],
            "model": None if self.model is None else self.model.scorer.name,
            "probability": self.scores.is_probability if self.scores is not None else None,
            "embedding": self.sheets.embedding is not None,
            "notes": self.notes,
        }

    def instruments(self, query: Query) -> dict[str, Any]:
        """Find instruments by a part of their name."""
        text, limit = query.text("q", "") or "", query.whole("limit", 20, 1, 200)
        query.finish()
        found, total = self.catalog.search(text, limit)
        return {"total": total, "found": [{"instrument": name, "windows": count} for name, count in found]}

    # ---- one window

    def window(self, query: Query) -> dict[str, Any]:
        """Tell all of one window: its pixels, neighbours, forward returns, score and bars."""
        window = query.window(self.catalog)
        asked = query.text("time")
        span = query.whole("span", 120, *_SPANS)
        query.finish()
        image = self.catalog.image(window.position)
        stamp = self.catalog.stamp(window.time)
        return {
            **self._named(window),
            "asked": None if asked in (None, stamp) else asked,
            **self._neighbours(window),
            "image": _packed(image),
            "returns": self._returns(window),
            "scores": self._scores(window, image),
            "bars": self._bars(window, image, span),
        }

    def _neighbours(self, window: Window) -> dict[str, Any]:
        """Return where a window stands and what is beside it; nothing of it while the index is being read."""
        if window.number < 0:
            return {"partial": True, **dict.fromkeys(("number", "count", "left", "right", "up", "down"))}
        return {
            "partial": False, "number": window.number + 1, "count": window.windows, **self.catalog.neighbours(window)
        }  # fmt: skip

    def _named(self, window: Window) -> dict[str, Any]:
        return {
            "position": window.position,
            "instrument": window.instrument,
            "time": self.catalog.stamp(window.time),
        }

    def _returns(self, window: Window) -> list[dict[str, Any]]:
        found = []
        for horizon in self.images.horizons:
            value = _number(self.catalog.value(f"ret_{horizon}", window.position))
            exit_time = int(self.catalog.value(f"exit_time_{horizon}", window.position))
            found.append(
                {
                    "horizon": horizon,
                    "value": value,
                    "exit": None if exit_time == NO_TIME else self.catalog.stamp(exit_time),
                    "class": None if value is None else "up" if value > 0 else "down",
                }
            )
        return found

    def _scores(self, window: Window, image: NDArray[np.uint8]) -> list[dict[str, Any]]:
        found = []
        if self.scores is not None:
            found.append(("factor cache", self.scores.of(window), self.scores.is_probability))
        if self.model is not None:
            found.append(("model", self.model.of(image, window.time), self.model.is_probability))
        return [{"from": name, "value": value, "probability": is_p} for name, value, is_p in found]

    def _stretch(self, window: Window) -> Stretch:
        if self.history is None:
            raise LookupError(
                "there are no bars here: open the explorer with panel=, what the images were made from"
            )
        return self.history.stretch(window.instrument, window.time)

    def _bars(self, window: Window, image: NDArray[np.uint8], span: int) -> dict[str, Any] | None:
        """Return bars around a window, two thirds of `span` up to its end, and whether they give its image."""
        if self.history is None:
            return None
        spec = self.images.spec
        try:
            stretch = self._stretch(window)
        except (LookupError, ValueError) as error:
            return {"note": _message(error), "time": []}
        before = min(max(spec.lookback + 5, span * 2 // 3), _MOST_BEFORE)
        first = max(stretch.rows.start, stretch.row - before + 1)
        last = min(stretch.rows.stop, max(stretch.row + 11, first + span))
        bars, time = np.abs(stretch.panel.bars[first:last]), stretch.panel.time[first:last]
        exits = {}
        for horizon in self.images.horizons:
            ns = int(self.catalog.value(f"exit_time_{horizon}", window.position))
            at = int(np.searchsorted(time, ns))
            exits[horizon] = at if at < len(time) and int(time[at]) == ns else None
        averages = spec.ma or (20,)
        return {
            "note": self._difference(stretch, image),
            "time": self.catalog.stamps(time),
            **{
                name: _numbers(bars[:, i])
                for i, name in enumerate(("open", "high", "low", "close", "volume"))
            },
            "averages": {n: _numbers(stretch.average(n, first, last)) for n in averages},
            "first": max(0, stretch.row - spec.lookback + 1 - first),
            "last": stretch.row - first,
            "exits": exits,
        }

    def _difference(self, stretch: Stretch, image: NDArray[np.uint8]) -> str:
        """Say why bars are not those that an image was made from; nothing if they give it pixel by pixel."""
        try:
            if np.array_equal(stretch.draw(self.images.spec), image):
                return ""
        except ValueError as error:
            return f"The image cannot be drawn from these bars: {error}."
        return "These bars draw another image than this one: they are not those that it was made from."

    def redraw(self, query: Query) -> dict[str, Any]:
        """Draw the window that ends at the same bar by another spec."""
        window, spec = query.window(self.catalog), query.spec(self.images.spec)
        query.finish()
        if spec.height * spec.width > _LARGEST_PIXELS:
            raise ValueError(
                f"an image of {spec.height}x{spec.width} is too large to be shown: give at most "
                f"{_LARGEST_PIXELS:,} pixels"
            )
        image = self._stretch(window).draw(spec)
        changed = {k: v for k, v in spec.to_dict().items() if v != self.images.spec.to_dict()[k]}
        preset = next((name for name, known in ImageSpec.presets().items() if known == spec), None)
        code = f'ImageSpec.preset("{preset}")' if preset else _code(spec)
        return {**self._named(window), "image": _packed(image), "changed": changed, "code": code}

    def explain(self, query: Query) -> dict[str, Any]:
        """Say what in a window speaks for its score."""
        window = query.window(self.catalog)
        query.finish()
        if self.model is None:
            raise LookupError("there is no model here: open the explorer with model=, a run or a checkpoint")
        stretch = self._stretch(window)
        # Occlusion draws the bars anew: those of another image would explain another score.
        if difference := self._difference(stretch, self.catalog.image(window.position)):
            raise ValueError(f"{difference} So the score is not explained from them.")
        found = self.model.explain(stretch, window.time)
        signed = found.integrated_gradients
        top = float(np.abs(signed).max()) or 1.0
        return {
            **self._named(window),
            "score": found.score,
            "empty": found.empty_score,
            "occlusion": _numbers(found.bars["occlusion"].to_numpy()),
            "gradients": _numbers(found.bars["gradients"].to_numpy()),
            "maps": {
                "gradients": _base64(np.round(127 * signed / top).astype(np.int8)),
                "cam": None
                if found.grad_cam is None
                else _base64(np.round(127 * found.grad_cam).astype(np.int8)),
            },
        }

    # ---- sheets

    def sheet(self, query: Query) -> dict[str, Any]:
        """Return a page of the windows that filters leave, in an order."""
        choice = query.choice(self.catalog, self._horizon)
        page, size = query.whole("page", 0, 0, 1 << 20), query.whole("size", 40, 1, _PAGE)
        query.finish()
        listing = self.sheets.listing(choice)
        own = slice(page * size, (page + 1) * size)
        at = listing.positions[own]
        # Where images lie together they are read together.
        images = self.images.read(at)
        codes, times = self.catalog.codes[at], self.catalog.stamps(self.catalog.time[at])
        rows = []
        for i, position in enumerate(at.tolist()):
            window = Window(position, self.catalog.names[codes[i]], int(self.catalog.time[position]), 0, 0)
            row = {
                "position": position, "instrument": window.instrument, "time": times[i], "image": _packed(images[i])
            }  # fmt: skip
            if choice.horizon is not None:
                row["return"] = _number(self.catalog.value(f"ret_{choice.horizon}", position))
            if self.scores is not None:
                row["score"] = self.scores.of(window)
            if listing.value is not None and choice.order in ("similar", "error"):
                row[choice.order] = _number(listing.value[own][i])
            rows.append(row)
        return {
            "total": listing.total, "listed": len(listing.positions), "note": listing.note, "rows": rows,
            "horizon": choice.horizon,
        }  # fmt: skip

    # ---- files

    def sheet_csv(self, query: Query) -> tuple[bytes, str]:
        """Return all windows of a sheet as CSV, and a name for the file."""
        choice = query.choice(self.catalog, self._horizon)
        query.finish()
        return _csv(self.sheets.table(self.sheets.listing(choice), choice)), f"sheet-{choice.order}.csv"

    def bars_csv(self, query: Query) -> tuple[bytes, str]:
        """Return the bars of a window as CSV, and a name for the file."""
        window = query.window(self.catalog)
        query.finish()
        stretch = self._stretch(window)
        own = slice(max(stretch.rows.start, stretch.row - self.images.spec.lookback + 1), stretch.row + 1)
        bars = stretch.panel.bars[own]
        names = ("open", "high", "low", "close", "volume")
        table = pl.DataFrame(
            {
                "instrument": [window.instrument] * len(bars),
                "time": self.catalog.stamps(stretch.panel.time[own]),
                **{name: pl.Series(bars[:, i]).fill_nan(None) for i, name in enumerate(names)},
            }
        )
        return _csv(table), f"bars-{self.catalog.stamp(window.time)[:10]}.csv"

    def image_png(self, query: Query) -> tuple[bytes, str]:
        """Return the image of a window as PNG, each pixel a square of `zoom` pixels, and a name for the file."""
        window, zoom = query.window(self.catalog), query.whole("zoom", 4, 1, 16)
        query.finish()
        image = self.catalog.image(window.position)
        if image.size * zoom * zoom > 1 << 26:
            raise ValueError(f"zoom={zoom} makes a picture of over {1 << 26:,} pixels: give a smaller one")
        large = np.repeat(np.repeat(image, zoom, axis=0), zoom, axis=1)
        file = io.BytesIO()
        Image.fromarray(large).convert("1", dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        return file.getvalue(), f"image-{self.catalog.stamp(window.time)[:10]}.png"


def _packed(image: NDArray[np.uint8]) -> dict[str, Any]:
    """Return an image as its size and its pixels, a bit each, row by row."""
    return {"height": image.shape[0], "width": image.shape[1], "bits": _base64(np.packbits(image > 0))}


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _number(value: Any) -> float | None:
    """Return a number, or None for NaN, which JSON cannot hold."""
    return float(f"{value:.7g}") if np.isfinite(value) else None


def _numbers(values: NDArray[Any]) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _csv(table: pl.DataFrame) -> bytes:
    guarded = table.with_columns(pl.col(pl.String).str.replace(_FORMULA, r"'${0}"))
    return guarded.fill_nan(None).write_csv().encode()


def _code(spec: ImageSpec) -> str:
    """Return a spec as Python makes it, without what is so by default."""
    default = ImageSpec(spec.lookback, spec.height).to_dict()
    differ = {k: v for k, v in spec.to_dict().items() if v != default[k]}
    if "ma" in differ:
        differ["ma"] = spec.ma
    return f"ImageSpec({', '.join([str(spec.lookback), str(spec.height), *(f'{k}={v!r}' for k, v in differ.items())])})"


def _message(error: BaseException) -> str:
    """Return the text of an error: that of a KeyError would be its repr."""
    return str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
