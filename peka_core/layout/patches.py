"""Tiles on disk: patches/<sample>.h5, read by rows and in chunks."""

from collections.abc import Iterator
from pathlib import Path

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
    """Read rows of a patches file in any order; each is read once, in runs of neighbours."""
    wanted, back = np.unique(rows, return_inverse=True)
    tiles = np.empty((len(wanted), TILE, TILE, 3), dtype=np.uint8)
    breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
    with open_h5(path) as file, reading(file, "img") as images:
        for run in np.split(np.arange(len(wanted)), breaks):
            if len(run):
                source = np.s_[wanted[run[0]] : wanted[run[-1]] + 1]
                images.read_direct(tiles, source, np.s_[run[0] : run[-1] + 1])
    return tiles[back]
