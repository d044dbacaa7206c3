"""Tiles on disk: patches/<sample>.h5, read by rows and in chunks."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from ..common.errors import PekaError
from .hdf5 import open_h5, reading

TILE = 224  # px
TILE_UM_PER_PX = 0.5
CHUNK = 256  # tiles read at a time


def as_pixels(pixels, what: str, axes: int = 4) -> np.ndarray:
    """Return pixels that are uint8 RGB with `axes` axes; no other type is converted.

    Raises:
        PekaError: another type, such as float 0..1 or uint16, or another shape.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != axes or pixels.shape[-1] != 3:
        raise PekaError(
            f"{what}: pixels are {pixels.dtype} {pixels.shape}; expected uint8, {axes} axes, the "
            "last of three colours (RGB, 0 to 255). Scale other ranges to 0..255, round, and "
            "convert to uint8 first."
        )
    return pixels


def in_chunks(tiles) -> Iterator[np.ndarray]:
    """Tiles of an array or a reader, `CHUNK` at a time."""
    return (tiles[start : start + CHUNK] for start in range(0, len(tiles), CHUNK))


def read_rows(path: Path, rows: np.ndarray) -> np.ndarray:
    """Read rows of a patches file in any order, uint8 (m, 224, 224, 3)."""
    with open_h5(path) as file, reading(file, "img") as images:
        return rows_of(images, rows)


def rows_of(images: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Rows of an open patches file in any order, uint8 (m, 224, 224, 3).

    A chunk that is one whole tile, as HEST and we write it, is read without HDF5's selections
    (benchmarks/README.md: six to seven times as fast).

    Args:
        images: the data set `img`, uint8 (N, 224, 224, 3).
        rows: (m,) numbers below N. HDF5's own error for others; `hdf5.reading` names the file.
    """
    tiles = np.empty((len(rows), TILE, TILE, 3), dtype=np.uint8)
    stored = images.id.get_create_plist()
    chunks = stored.get_chunk() if stored.get_layout() == h5py.h5d.CHUNKED else ()
    plain = stored.get_nfilters() == 0 and images.id.dtype == np.uint8
    for tile, row in zip(tiles, np.asarray(rows).tolist()):
        if plain and chunks == (1, *tile.shape):
            images.id.read_direct_chunk((row, 0, 0, 0), out=tile.reshape(-1))
        else:
            images.read_direct(tile, np.s_[row])
    return tiles
