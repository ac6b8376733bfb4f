"""Write embeddings: new ones, or more of them behind those that there are, all at once.

Chunks are written below ``_build/append``, where nobody looks, and become the embeddings by one write of ``zarr.json``
(``pricepix.store.commit``). A call that was stopped goes on behind the last chunk that it wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pricepix._checks import short
from pricepix._version import __version__
from pricepix.factor.cache_format import CHECKSUM_KEY, ArrayLayout, checksum_table, object_checksum
from pricepix.factor.cache_objects import CacheObjects, read_root
from pricepix.factor.embedding_format import (
    EMBEDDING,
    encode_names,
    encode_rows,
    layouts,
    metadata,
    rows_of_chunk,
)
from pricepix.images.image_set import ImageSet
from pricepix.location import BUILD, Folder, Location
from pricepix.store.chunks import seal, unseal
from pricepix.store.commit import STAGE, commit, finish_pending, staged
from pricepix.store.format import ROOT, dump
from pricepix.store.lock import KEY as LOCK
from pricepix.store.lock import WriteLock

__all__ = ["EmbeddingWriter", "check_location"]

_SAME: Final = ("model", "spec_digest", "tz")


def check_location(location: Location) -> None:
    """Raise FileExistsError if a location holds something that is not an embedding, whole or unfinished."""
    if isinstance(location, Folder) and location.path.is_file():
        raise FileExistsError(f"{location.name} is a file; an embedding is a folder: give another location")
    content = location.get(ROOT)
    if content is not None:
        try:
            found = json.loads(bytes(content))["attributes"]["format"] == EMBEDDING.format
        except (ValueError, KeyError, TypeError):
            found = False
    else:
        own = (STAGE, EMBEDDING.plan, LOCK, f"{BUILD}/tmp")
        keys = [] if location.get(EMBEDDING.plan) is not None else list(location.list())
        found = all(key.startswith(own) for key in keys)
    if not found:
        raise FileExistsError(f"{location.name} holds something else than embeddings: give another location")


class EmbeddingWriter:
    """Writes the embeddings of a set of images; the caller holds the lock.

    Parameters
    ----------
    location : Location
    lock : WriteLock
    images : ImageSet
    model : dict
        Name and digest of the network.
    append : bool
        Whether images may have gained windows.

    Raises
    ------
    ValueError
        If there are embeddings of another model or of other images, or of fewer, without `append`.
    """

    def __init__(
        self, location: Location, lock: WriteLock, images: ImageSet, model: dict[str, Any], *, append: bool
    ) -> None:
        self.location, self.lock, self.images = location, lock, images
        root = read_root(location, EMBEDDING)
        if root is not None and "pending" in root["attributes"]:
            finish_pending(location)
        self.base = None if root is None else CacheObjects.open(location, EMBEDDING, finish=False)
        self.attrs: dict[str, Any] = {
            "format": EMBEDDING.format,
            "format_version": EMBEDDING.version,
            "model": model,
            "spec_digest": images.spec.digest,
            "tz": images.tz,
            "images": images.digest,
            "created_by": f"pricepix {__version__}",
        }
        if self.base is not None:
            self._check_base(self.base, append)
        self._checksums: dict[str, int] = {}
        # Known once the network has been asked.
        self._features = self._rows = 0
        if self.base is not None:
            self._rows, self._features = self.base.layout("embedding").chunks
        self.first = self._begun()

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to add."""
        same = ("windows", "images")
        now = {**self.attrs, "windows": len(self.images)}
        return self.base is not None and all(self.base.attrs.get(name) == now[name] for name in same)

    def _base_column(self, name: str) -> NDArray[Any]:
        assert self.base is not None
        self.base.check_array(name)
        found: Any = self.base.group()[name]
        return np.asarray(found[:])

    @cached_property
    def _base_names(self) -> list[str]:
        return [] if self.base is None else [str(name) for name in self._base_column("instrument").tolist()]

    @cached_property
    def _instruments(self) -> list[str]:
        """Names: those that there are first, whose places do not move."""
        known = set(self._base_names)
        return [*self._base_names, *(str(name) for name in self.images.instruments if str(name) not in known)]

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        place = {name: i for i, name in enumerate(self._instruments)}
        code = np.array([place[str(name)] for name in self.images.instruments], np.int32)
        index = code[self.images.instrument_index] if len(code) else np.zeros(0, np.int32)
        return {"time": np.asarray(self.images.time, np.int64), "instrument_index": index}

    def _check_base(self, base: CacheObjects, append: bool) -> None:
        where, done, now = self.location.name, int(base.attrs["windows"]), len(self.images)
        for name in _SAME:
            if base.attrs.get(name) != self.attrs[name]:
                raise ValueError(
                    f"{where} holds embeddings of another {name}: {short(base.attrs.get(name))}, not "
                    f"{short(self.attrs[name])}; give another location"
                )
        same = done <= now and all(
            np.array_equal(self._base_column(name), values[:done]) for name, values in self._columns.items()
        )
        if not same:
            raise ValueError(
                f"{where} holds embeddings of other windows than the first of {self.images.location}"
            )
        if done < now and not append:
            raise ValueError(
                f"{where} holds the embeddings of {done:,} windows, the images are {now:,}: append=True adds the rest"
            )
        if base.attrs.get("images") != self.attrs["images"] and not append:
            raise ValueError(
                f"{where} holds the embeddings of other images (digest {short(base.attrs.get('images'))}, those of "
                f"{self.images.location} have {self.attrs['images']}): pass append=True if these are the same "
                "market's, later, or give another location"
            )

    def _begun(self) -> int:
        """Return the first window whose embedding is to be computed, behind what a stopped call has written."""
        base, content = self.base, self.location.get(EMBEDDING.plan)
        done = 0 if base is None else int(base.attrs["windows"])
        plan = self._plan()
        found = None if content is None else json.loads(bytes(content))
        if found is None or {**found, "features": 0} != plan:
            self.location.delete_all(BUILD, keep=LOCK)
            if not self.is_done:
                self.location.put(EMBEDDING.plan, dump(plan))
            return done
        if self.base is None:
            self._set_features(int(found["features"]))
        if not self._features:
            return done
        layout, size = self._layouts()["embedding"], self._rows
        chunk = done // size
        while (chunk + 1) * size <= len(self.images):
            stored = self.location.get(staged(layout.key(chunk, 0)))
            try:
                unseal(stored or b"", 4 * size * self._features)
            except (ValueError, RuntimeError):
                break
            assert stored is not None
            self._checksums[layout.key(chunk, 0)] = object_checksum(bytes(stored))
            chunk += 1
        return max(done, chunk * size)

    def _plan(self) -> dict[str, Any]:
        """What a stopped call must have been about, to be gone on with."""
        windows = hashlib.blake2b(digest_size=16)
        for name in sorted(self._columns):
            windows.update(np.ascontiguousarray(self._columns[name]).tobytes())
        base = None if self.base is None else self.base.attrs["metadata_digest"]
        return {"attributes": self.attrs, "base": base, "windows": windows.hexdigest(), "features": 0}

    def _set_features(self, features: int) -> None:
        self._features, self._rows = features, rows_of_chunk(features)

    def _layouts(self) -> dict[str, ArrayLayout]:
        return layouts(len(self.images), self._features, self._rows, len(self._instruments))

    def write(self, parts: Iterable[NDArray[np.float32]], update: Callable[[int], Any]) -> None:
        """Write the embeddings of the windows from `first` on, which come in order, part after part."""
        for chunk, rows in self._chunks(parts, update):
            layout = self._layouts()["embedding"]
            self._put(layout.key(chunk, 0), encode_rows(layout, rows))
        self._commit()

    def _chunks(
        self, parts: Iterable[NDArray[np.float32]], update: Callable[[int], Any]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the chunks of rows that the parts make, with their numbers."""
        held: list[NDArray[np.float32]] = []
        chunk, count = -1, 0
        for found in parts:
            if self._features not in (0, found.shape[1]):
                raise ValueError(
                    f"the model gives {found.shape[1]:,} features, the embeddings have {self._features:,}"
                )
            if not self._features:
                self._set_features(found.shape[1])
                self.location.put(EMBEDDING.plan, dump({**self._plan(), "features": self._features}))
            size = self._rows
            if chunk < 0:
                chunk, count = divmod(self.first, size)
                held = [self._base_rows(chunk, count)] if count else []
            held.append(found)
            count += len(found)
            update(len(found))
            while count >= size:
                whole = np.concatenate(held)
                yield chunk, whole[:size]
                held, chunk, count = [whole[size:]], chunk + 1, count - size
        if count:
            yield chunk, np.concatenate(held)

    def _base_rows(self, chunk: int, count: int) -> NDArray[np.float32]:
        """Return the first rows of a chunk that there is, and that is not full."""
        assert self.base is not None
        found: Any = self.base.group()["embedding"]
        return np.asarray(found[chunk * self._rows : chunk * self._rows + count])

    def _put(self, key: str, stored: bytes) -> None:
        """Write an object beside those that there are, unless it is there already."""
        self._checksums[key] = object_checksum(stored)
        if self.base is None or self.base.checksums.get(key) != self._checksums[key]:
            self.lock.check()
            self.location.put(staged(key), stored)

    def _commit(self) -> None:
        """Write all that comes with the embeddings, and make them the ones that readers see."""
        arrays, columns = self._layouts(), self._columns
        for name, values in columns.items():
            (size,) = arrays[name].chunks
            for k in range(arrays[name].chunk_count):
                self._put(arrays[name].key(k), encode_rows(arrays[name], values[k * size : (k + 1) * size]))
        for k, stored in enumerate(encode_names(arrays["instrument"], self._instruments)):
            self._put(arrays["instrument"].key(k), stored)
        known = ({} if self.base is None else self.base.checksums) | self._checksums
        table = checksum_table(list(arrays.values()), known)
        self._put(CHECKSUM_KEY, seal(table))
        objects = metadata(arrays, {**self.attrs, "windows": len(self.images)}, table)
        root = json.loads(objects.pop(ROOT))
        for key, stored in objects.items():
            self.location.put(staged(key), stored)
        self.lock.check()
        commit(self.location, root, [])
