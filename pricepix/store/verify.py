"""Verifying a store, at three depths: metadata, checksums, and images drawn again; each includes those before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Set
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import choice, printable, whole_number_or_none
from pricepix.bars import display
from pricepix.bars import kernels as bars_kernels
from pricepix.bars.panel import Panel
from pricepix.bars.progress import progress_bar
from pricepix.images.chunking import INDEX_CHUNK
from pricepix.images.threads import map_ordered
from pricepix.location import BUILD
from pricepix.render.draw import render_rows
from pricepix.store import format as store_format
from pricepix.store import kernels
from pricepix.store.chunks import ChunkFormat
from pricepix.store.format import ROOT, chunk_key
from pricepix.store.objects import HISTORY, StoreObjects
from pricepix.store.packed_view import PACKED_VIEW, packed_view
from pricepix.windows.labels import ReturnRule

DEPTHS: Final = ("metadata", "checksums", "render")


@dataclass(repr=False)
class VerifyReport:
    """What ``verify`` looked at, and the problems it found: ``print`` it, or exit with ``exit_code``."""

    location: str
    depth: str
    """``metadata``, ``checksums`` or ``render``; ``files`` for a run, whose files carry their own checksums."""
    windows: int
    chunks: int = 0
    """Chunks that were read and compared with their checksums, those of all arrays."""
    rendered: int = 0
    """Images that were drawn again and compared."""
    files: int = 0
    """Files of a run that were read and compared with their checksums."""
    problems: list[str] = field(default_factory=list)
    """Sentences; none for a sound store."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what is unusual but no fault."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def exit_code(self) -> int:
        """0 for a sound store, else 1."""
        return int(not self.ok)

    def __getitem__(self, name: str) -> Any:
        """Return a part of the report by name, as from a dict."""
        if name not in ("location", "depth", "windows", "chunks", "rendered", "files", "problems", "notes"):
            raise KeyError(name)
        return getattr(self, name)

    def __repr__(self) -> str:
        found = "sound" if self.ok else f"{len(self.problems):,} problem{'s' * (len(self.problems) > 1)}"
        return printable(
            f"VerifyReport({self.location}, {self.depth}: {', '.join(self._looked_at())}; {found})", ""
        )

    def _looked_at(self) -> list[str]:
        parts = [f"{self.windows:,} windows"]
        if self.depth == "files":
            parts = [f"{self.files:,} files read"]
        elif self.depth != "metadata":
            parts.append(f"{self.chunks:,} chunks read")
        if self.depth == "render":
            parts.append(f"{self.rendered:,} images drawn again")
        return parts

    def _repr_html_(self) -> str:
        found = "sound" if self.ok else f"{len(self.problems):,} problem{'s' * (len(self.problems) > 1)}"
        facts = {"location": self.location, "depth": self.depth, "windows": self.windows}
        if self.depth != "metadata":
            facts["chunks read"] = self.chunks
        if self.depth == "render":
            facts["images drawn again"] = self.rendered
        remarks = display.facts({f"note {k}": note for k, note in enumerate(self.notes[:24], 1)})
        return display.page(
            "VerifyReport", found, display.notes(self.problems), display.facts(facts), remarks
        )

    def __str__(self) -> str:
        head = f"{self.location} ({self.depth}): {', '.join(self._looked_at())}"
        if self.ok:
            return "\n".join([f"{head}; sound", *(f"  {note}" for note in self.notes)])
        lines = "\n".join(f"  {sentence}" for sentence in (*self.problems, *self.notes))
        return f"{head}; {len(self.problems)} problem{'s' * (len(self.problems) > 1)}:\n{lines}"


def verify(
    objects: StoreObjects,
    panel: Any = None,
    sample: int | None = None,
    seed: int = 0,
    *,
    depth: str | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> VerifyReport:
    """Check the store of these objects; arguments and errors are those of ``ImageStore.verify``."""
    if depth is None:
        depth = "checksums" if panel is None else "render"
    choice(depth, "depth", DEPTHS)
    if depth == "render" and panel is None:
        raise ValueError(
            "depth='render' draws images again, from the panel the store was made from: give panel="
        )
    report = VerifyReport(objects.url, depth, len(objects))
    workers = whole_number_or_none(workers, "workers", 1) or os.cpu_count() or 1
    check = _Check(objects, report, workers, progress)
    if objects.checked:
        check.metadata()
    else:
        check.counts()
    if depth != "metadata":
        check.chunks()
        check.order()
    if depth == "render" and report.ok:
        check.render(Panel.of(panel), sample, seed)
    return report


class _Check:
    """One run of `verify`: looks at the store and adds what it finds to the report."""

    def __init__(self, store: StoreObjects, report: VerifyReport, workers: int, progress: bool) -> None:
        self.store, self.report, self.workers, self.progress = store, report, workers, progress

    def add(self, *problems: str) -> None:
        self.report.problems.extend(problems)

    def each(self, what: str, find_problems: Callable[[Any], list[str]], items: list[Any]) -> None:
        """Add the problems of all items, in their order, found on threads."""
        found = map_ordered(find_problems, items, self.workers, 2 * self.workers, "pricepix-verify")
        with closing(found), progress_bar(len(items), what, "chunk", self.progress) as bar:
            for problems in found:
                self.add(*problems)
                bar.update()

    def counts(self) -> None:
        store = self.store
        if store.spec.digest != store.attrs["spec_digest"]:
            self.add(f"the spec's digest is {store.spec.digest}, the store says {store.attrs['spec_digest']}")
        candidates = len(store) + sum(store.attrs["drop_counts"].values())
        if store.attrs.get("candidates", candidates) != candidates:
            self.add(
                f"windows and drop counts add up to {candidates}, not to {store.attrs['candidates']} candidates"
            )

    def metadata(self) -> None:
        self.counts()
        store = self.store
        root = json.loads(bytes(store.location.get(ROOT) or b"{}"))
        if root.get("attributes", {}).get("pending") is not None:
            self.add(
                "an append was stopped while it moved chunks into place: run pricepix.append(store, panel) to "
                "complete it"
            )
        attributes = {k: v for k, v in store.attrs.items() if k != "metadata_digest"}
        expected = {key: json.loads(text) for key, text in store.geometry.metadata(attributes).items()}
        if root.get("attributes", {}).get("metadata_digest") != store.attrs["metadata_digest"]:
            self.add(f"{ROOT} changed since the store was opened: verify it again")
        consolidated = root.get("consolidated_metadata", {}).get("metadata", {})
        for key, array in expected.items():
            if key != ROOT:
                self.array_metadata(key, array, consolidated.get(key.removesuffix(f"/{ROOT}")))
        if not store.pending:
            self.presence(expected.keys())

    def array_metadata(self, key: str, expected: Any, consolidated: Any) -> None:
        """Compare the metadata of an array, on their own and in those of the group, with what they must be."""
        if consolidated != expected:
            name = key.removesuffix(f"/{ROOT}")
            self.add(f"{ROOT} describes {name} differently from the store's attributes")
        own = self.store.fetch(key)
        try:
            same = own is not None and json.loads(bytes(own)) == expected
        except ValueError:
            same = False
        if not same:
            self.add(f"{key} is {'missing' if own is None else 'damaged or edited'}: restore or rebuild it")

    def presence(self, metadata: Set[str]) -> None:
        """Look for objects that are missing, metadata apart, and for objects that do not belong to the store."""
        present = {key for key in self.store.location.list() if not key.startswith(BUILD)}
        wanted = set(self.store.geometry.objects())
        missing = sorted(wanted - present - metadata)
        self.add(*(f"{key} is missing: restore or rebuild it" for key in missing[:20]))
        if len(missing) > 20:
            self.add(f"{len(missing) - 20} more objects are missing")
        unexpected = sorted(present - wanted - {HISTORY, PACKED_VIEW})
        if unexpected:
            self.add(
                f"{len(unexpected)} objects do not belong to the store, the first is {printable(unexpected[0], '')}: "
                "remove them"
            )

        if PACKED_VIEW in present:
            form = self.store.chunk_format
            own = self.store.location.get(PACKED_VIEW)
            if (
                form.layout != "bits"
                or own is None
                or bytes(own) != packed_view(form, self.store.geometry.windows)
            ):
                self.add(
                    f"{PACKED_VIEW} does not describe the chunks of this store: write_packed_view() does, or remove it"
                )

    def chunks(self) -> None:
        store, geometry = self.store, self.store.geometry
        images = geometry.form.chunks(len(store))
        per_shard = geometry.form.shard // geometry.form.windows if geometry.form.shard else 0

        def image(chunk: int) -> list[str]:
            try:
                return self.pixels(chunk, store.chunk_bytes(chunk))
            except (ValueError, RuntimeError) as error:
                return [str(error)]

        def shard(number: int) -> list[str]:
            try:
                stored = store.read_shard(number)
            except ValueError:
                first = number * per_shard
                return [p for c in range(first, min(images, first + per_shard)) for p in image(c)]
            return [
                p for i, content in enumerate(stored) for p in self.pixels(number * per_shard + i, content)
            ]

        def other(which: tuple[str, Any, int, int]) -> list[str]:
            name, dtype, count, chunk = which
            try:
                stored = store.index_bytes(name, chunk)
                store_format.decode(name, dtype, stored, count, compressed=store.checked)
            except (ValueError, RuntimeError) as error:
                named = chunk_key(name, chunk)
                return [str(error) if named in str(error) else f"chunk {named} is damaged ({error})"]
            return []

        m = geometry.instruments
        rest: list[tuple[str, Any, int, int]] = [
            (column.name, column.dtype, INDEX_CHUNK, i)
            for column in geometry.columns
            for i in range(geometry.index_chunks)
        ]
        rest.append(("instruments", None, m, 0))
        if store.checked:
            rest += [("instrument_rows", "<i8", m, 0), ("instrument_digest", "<u8", 2 * m, 0)]
        self.each("verify index", other, rest)
        if per_shard:
            self.each("verify shards", shard, list(range(store.shards)))
        else:
            self.each("verify chunks", image, list(range(images)))
        self.report.chunks = images + len(rest)

    def pixels(self, chunk: int, stored: Any) -> list[str]:
        """Return the problems of the images of a chunk.

        A blank one is only noted: a window whose bars all lack their high or low is drawn like that.
        """
        store, form = self.store, self.store.chunk_format
        n = store.chunk_windows(chunk)
        try:
            pixels = (
                form.decode_bits(stored, n) if form.columns_first else form.decode(stored, n).reshape(n, -1)
            )
            seen = form.decode_foreign(stored) if form.layout == "uint8" and form.columns_first else pixels
        except (ValueError, RuntimeError) as error:
            return [f"chunk {store.chunk_key(chunk)} of store {store.url} is damaged ({error}): rebuild it"]
        problems = []
        if form.layout == "uint8" and not _only_0_and_255(seen):
            problems.append(f"chunk {store.chunk_key(chunk)} holds values other than 0 and 255")
        elif seen is not pixels and not _same_bits(form, seen, pixels):
            problems.append(f"chunk {store.chunk_key(chunk)} is not what other readers of Zarr make of it")
        if pixels.shape[1] % 8 == 0 and pixels.flags.c_contiguous:
            aligned = pixels if pixels.ctypes.data % 8 == 0 else pixels.copy()
            first = int(kernels.first_blank(aligned.view(np.uint64)))
        else:
            found = np.flatnonzero(~pixels.any(axis=1))
            first = int(found[0]) if len(found) else -1
        if first >= 0:
            self.report.notes.append(
                f"an image of chunk {store.chunk_key(chunk)} is blank, as where bars have only closes: "
                f"window {chunk * form.windows + first}"
            )
        return problems

    def order(self) -> None:
        """Check the arrays along ``window`` chunk by chunk, however many windows there are."""
        store = self.store
        last_time, last_code = store_format.NO_TIME, -1
        for i in range(store.geometry.index_chunks):
            try:
                code, time = store.column("instrument_index", i, i + 1), store.column("time", i, i + 1)
            except ValueError:
                return  # reported with the chunks
            if code.min() < 0 or code.max() >= store.geometry.instruments:
                self.add(
                    f"instrument_index runs from {code.min()} to {code.max()}, but there are "
                    f"{store.geometry.instruments} instruments"
                )
                return
            before_time, before_code = np.append(last_time, time[:-1]), np.append(last_code, code[:-1])
            ordered = (time > before_time) | ((time == before_time) & (code > before_code))
            if not ordered.all():
                at = i * INDEX_CHUNK + int(np.flatnonzero(~ordered)[0])
                self.add(f"windows are not ordered by (time, instrument) at position {at}")
                return
            last_time, last_code = time[-1], code[-1]

    def render(self, panel: Panel, sample: int | None, seed: int) -> None:
        """Draw windows again, compare images and forward returns."""
        store = self.store
        if store.attrs["panel_digest"] is not None and panel.digest != store.attrs["panel_digest"]:
            self.add(
                f"the panel's digest is {panel.digest}, the store was made from {store.attrs['panel_digest']}: "
                "different bars"
            )
            return
        chosen = np.arange(len(store))
        if sample is not None and sample < len(store):
            chosen = np.sort(np.random.default_rng(seed).choice(len(store), sample, replace=False))
        size = store.chunk_format.windows
        cuts = np.flatnonzero(np.diff(chosen // size)) + 1
        parts = [part for part in np.split(chosen, cuts) if len(part)]
        code, time = store.column("instrument_index"), store.column("time")
        labels = {h: (store.column(f"ret_{h}"), store.column(f"exit_time_{h}")) for h in store.horizons}

        def compare(part: NDArray[np.int64]) -> list[str]:
            row = np.empty(len(part), np.int64)
            bars_kernels.find_rows(panel.time, panel.offsets, code[part], time[part], row)
            if (row < 0).any():
                return [f"window {part[np.flatnonzero(row < 0)[0]]} ends at no bar of the panel"]
            return [*self.drawn(panel, part, row), *self.labelled(panel, part, row, labels)]

        self.each("verify images", compare, parts)
        self.report.rendered = len(chosen)

    def drawn(self, panel: Panel, part: NDArray[np.int64], row: NDArray[np.int64]) -> list[str]:
        """Compare images of one chunk, of windows that end at these panel rows, with those drawn again."""
        store = self.store
        expected = np.empty((len(part), *store.spec.shape), np.uint8)
        reason = np.empty(len(part), np.uint8)
        render_rows(panel, row, store.spec, expected, reason=reason, threads=1)
        chunk = int(part[0]) // store.chunk_format.windows
        found = store.read_chunk(chunk, part - chunk * store.chunk_format.windows)
        wrong = (found != expected).any(axis=(1, 2)) | (reason != 0)
        problems = [f"image {p} differs from the one that the panel gives" for p in part[wrong][:3]]
        if np.count_nonzero(wrong) > 3:
            problems.append(f"{np.count_nonzero(wrong) - 3} more images of chunk {chunk} differ")
        return problems

    def labelled(
        self, panel: Panel, part: NDArray[np.int64], row: NDArray[np.int64], labels: Mapping[int, Any]
    ) -> list[str]:
        """Compare the forward returns of the same windows, (returns, exit times) by horizon in `labels`."""
        rule = ReturnRule.from_attributes(self.store.attrs)
        chunk = int(part[0]) // self.store.chunk_format.windows
        problems = []
        for h, (returns, exits) in labels.items():
            label = rule.returns(panel, row, h)
            same = np.array_equal(label.value, returns[part], equal_nan=True)
            if not same or not np.array_equal(label.exit_time, exits[part]):
                problems.append(
                    f"forward returns ret_{h} of chunk {chunk} differ from those that the panel gives"
                )
        return problems


def _same_bits(form: ChunkFormat, seen: NDArray[np.uint8], bits: NDArray[np.uint8]) -> bool:
    """Whether the bytes of a chunk, columns first, are these images."""
    n, size = len(bits), form.height * form.width
    packed = np.packbits(seen.reshape(-1, size)[:n], axis=1)
    return np.array_equal(packed, bits)


def _only_0_and_255(pixels: NDArray[np.uint8]) -> bool:
    """Whether all are 0 or 255: adding one makes them 1 and 0."""
    return bool((pixels + np.uint8(1) <= 1).all())
