"""Chunks: the bytes are those that zarr itself would write, and damage never goes unseen."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd
from zarr.storage import MemoryStore

from pricepix.images.chunking import default_chunk
from pricepix.store import chunks
from pricepix.store.chunks import LAYOUTS, ChunkFormat, numcodecs_allowed

SIZES = [(64, 60), (27, 27), (147, 147), (2, 3), (5, 3), (7, 9), (1, 8), (32, 15), (33, 1)]


def pictures(n, height, width, seed=0, share=0.2):
    """Random images, none of them blank: zarr leaves out chunks that are."""
    ink = np.random.default_rng(seed).random((n, height, width)) < share
    ink[:, 0, 0] = True
    return np.where(ink, 255, 0).astype(np.uint8)


def column_bits(images):
    n, height, width = images.shape
    return np.packbits(images.transpose(0, 2, 1).reshape(n, height * width) > 0, axis=1)


def array_of(fmt, n):
    keys = {}
    group = zarr.create_group(MemoryStore(keys), zarr_format=3)
    return fmt.create_array(group, n), keys


def zarr_bytes(fmt, images):
    """What zarr's own codec pipeline stores for these images, chunk by chunk."""
    with numcodecs_allowed():
        array, keys = array_of(fmt, len(images))
        array[:] = images > 0 if fmt.layout == "bits" else images
        count = -(-len(images) // fmt.windows)
        return [keys[f"images/c/{i}/0/0"].to_bytes() for i in range(count)]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bytes_are_those_of_zarr(layout, height, width, compressed):
    fmt = ChunkFormat(layout, height, width, 5, compressed)
    for n in (1, 4, 5, 6, 10, 13):
        images = pictures(n, height, width, n)
        ours = [fmt.encode(column_bits(images[a : a + 5])) for a in range(0, n, 5)]
        assert ours == zarr_bytes(fmt, images)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_zarr_reads_what_we_write_and_we_what_zarr_writes(layout, height, width, compressed):
    fmt = ChunkFormat(layout, height, width, 4, compressed)
    images = pictures(7, height, width)
    with numcodecs_allowed():
        array, keys = array_of(fmt, 7)
        buffer = type(next(iter(keys.values())))
        for i in range(2):
            keys[f"images/c/{i}/0/0"] = buffer.from_bytes(fmt.encode(column_bits(images[4 * i : 4 * i + 4])))
        read = array[:]
        assert read.dtype == (np.bool_ if layout == "bits" else np.uint8)
        assert np.array_equal(read.astype(bool), images > 0)
    for i, stored in enumerate(zarr_bytes(fmt, images)):
        own = images[4 * i : 4 * i + 4]
        assert np.array_equal(fmt.decode(stored, len(own)), own)
        out = np.full_like(own, 9)
        fmt.decode(stored, len(own), out)
        assert np.array_equal(out, own)
        if layout == "bits":
            assert np.array_equal(fmt.decode_bits(stored, len(own)), column_bits(own))


@given(
    st.sampled_from(LAYOUTS),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 9),
    st.data(),
    st.booleans(),
)
@settings(max_examples=40)
def test_round_trip_at_any_size(layout, height, width, windows, data, compressed):
    fmt = ChunkFormat(layout, height, width, windows, compressed)
    images = pictures(data.draw(st.integers(1, windows)), height, width, data.draw(st.integers(0, 9)), 0.5)
    stored = fmt.encode(column_bits(images))
    assert np.array_equal(fmt.decode(stored, len(images)), images)
    # a chunk is always full: the images behind the last one are blank
    assert not fmt.decode(stored, windows)[len(images) :].any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("height", "width"), [(64, 60), (27, 27)])
def test_every_damaged_byte_is_seen(layout, height, width):
    fmt = ChunkFormat(layout, height, width, 3)
    images = pictures(3, height, width, share=0.02)
    stored = fmt.encode(column_bits(images))
    rng = np.random.default_rng(0)
    for place in rng.choice(len(stored), 60, replace=False):
        damaged = bytearray(stored)
        damaged[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(ValueError, match="checksum mismatch"):
            fmt.decode(bytes(damaged), 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_truncation_is_seen(layout):
    fmt = ChunkFormat(layout, 32, 15, 3)
    stored = fmt.encode(column_bits(pictures(3, 32, 15)))
    for kept in (0, 1, 3, 4, 5, len(stored) // 2, len(stored) - 1):
        with pytest.raises(ValueError, match="checksum mismatch"):
            fmt.decode(stored[:kept], 3)
    with pytest.raises(ValueError, match="checksum mismatch"):
        fmt.decode(stored + b"\0", 3)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunk_of_another_size_is_seen(layout, compressed):
    stored = ChunkFormat(layout, 32, 15, 4, compressed).encode(column_bits(pictures(3, 32, 15)))
    with pytest.raises(ValueError, match=r"\d+ bytes after decompression, expected \d+"):
        ChunkFormat(layout, 32, 15, 5, compressed).decode(stored, 3)
    with pytest.raises(ValueError, match="bytes after decompression"):
        ChunkFormat(layout, 64, 15, 4, compressed).decode(stored, 3)


@pytest.mark.parametrize("wrong", [1, 100, 255, 256, 65_792, (1 << 20) - 1])
def test_block_that_decodes_to_too_little_is_seen(wrong):
    """Not even a sealed chunk whose frames are sound may leave bytes of another chunk standing."""
    fmt = ChunkFormat("uint8", 64, 60, 600)
    stored = fmt.encode(column_bits(pictures(600, 64, 60, share=0.02)))
    start = int.from_bytes(stored[16:20], "little")
    size = int.from_bytes(stored[start : start + 4], "little")
    frame = Zstd(level=1).encode(np.zeros(wrong, np.uint8))
    body = bytearray(stored[:-4])
    assert len(frame) <= size
    body[start : start + 4] = len(frame).to_bytes(4, "little")
    body[start + 4 : start + 4 + len(frame)] = frame
    with pytest.raises(ValueError, match=f"a block of {wrong} bytes, expected {1 << 20}"):
        fmt.decode(chunks.with_checksum(bytes(body)), 600)


def test_default_chunk_is_a_power_of_two_of_about_16_mb():
    assert default_chunk(64, 60) == 4096
    for height, width in [(32, 15), (96, 180), (147, 147), (27, 27)]:
        windows = default_chunk(height, width)
        assert windows & (windows - 1) == 0
        assert 1 << 23 <= windows * height * width <= 1 << 24
    assert default_chunk(2, 3) == 1 << 15
    assert default_chunk(2048, 3072) == 64
