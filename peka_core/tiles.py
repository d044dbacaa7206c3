"""Tiles: cut from a slide by HEST's current rule, and read from the patches files of a cohort."""

import math
from pathlib import Path

import cv2
import h5py
import numpy as np

from .common.errors import PekaError
from .layout.hdf5 import open_h5, reading
from .layout.patches import TILE, TILE_UM_PER_PX, as_pixels, rows_of

OPEN_FILES = 500  # of one reader at a time; systems often allow a process 1,024


def cut_tile(
    image: np.ndarray, centre_xy: tuple[float, float], um_per_px: float
) -> tuple[np.ndarray, tuple[int, int]]:
    """Cut the 112 um window around a spot (`corner_of`) and resize it to 224 px, as hestcore does.

    Pixels outside the image are black.

    Args:
        image: uint8 (H, W, 3) RGB.
        centre_xy: spot centre (x, y) in px of `image`, integer or not.
        um_per_px: micrometres per pixel of `image`.

    Returns:
        tile uint8 (224, 224, 3), and the (x, y) of its top-left corner in `image`.
    """
    as_pixels(image, "the image", 3)
    (x, y), side = corner_of(centre_xy, um_per_px), tile_side(um_per_px)
    height, width = image.shape[:2]
    crop = np.zeros((side, side, 3), dtype=np.uint8)
    x0, x1, y0, y1 = max(x, 0), min(x + side, width), max(y, 0), min(y + side, height)
    if x0 < x1 and y0 < y1:
        crop[y0 - y : y1 - y, x0 - x : x1 - x] = image[y0:y1, x0:x1]
    return resize(crop), (x, y)


def corner_of(centre_xy: tuple[float, float], um_per_px: float) -> tuple[int, int]:
    """Top-left corner (x, y) of the tile around a centre, by HEST's rule, in px of the slide.

    The rule (mahmoodlab/HEST since August 2024, slides at full resolution): with
    s = 112 / um_per_px, the corner is centre - floor(s / 2), truncated towards zero, and the side
    is round(s).

    Raises:
        PekaError: the centre is not two finite numbers, or the pixel size is not above 0.
    """
    centre = np.asarray(centre_xy, dtype=np.float64)
    if centre.shape != (2,) or not np.isfinite(centre).all() or not 0 < um_per_px < math.inf:
        found = f"{centre_xy} and {um_per_px}"
        raise PekaError(f"a tile needs a centre (x, y) and a pixel size in um above 0, not {found}")
    half = math.floor(TILE * TILE_UM_PER_PX / um_per_px / 2)
    x, y = (math.trunc(c - half) for c in centre.tolist())
    return x, y


def tile_side(um_per_px: float) -> int:
    """Side of a tile's 112 um window in px of the slide."""
    return round(TILE * TILE_UM_PER_PX / um_per_px)


def resize(crop: np.ndarray) -> np.ndarray:
    """Resize a window uint8 (s, s, 3) to a tile: bilinearly, without antialiasing, as hestcore."""
    return cv2.resize(crop, (TILE, TILE), interpolation=cv2.INTER_LINEAR)


def cut_tiles(
    image: np.ndarray, centres: np.ndarray, um_per_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """`cut_tile` around centres (n, 2): tiles uint8 (n, 224, 224, 3) and their corners (n, 2)."""
    if not len(centres):
        raise PekaError("no spot is selected, so there is no tile to cut")
    tiles, corners = zip(*(cut_tile(image, centre, um_per_px) for centre in centres))
    return np.stack(tiles), np.array(corners)


class TileReader:
    """Tiles of a cohort in its spot order; `reader[rows]` gives uint8 (m, 224, 224, 3).

    Tiles are read from their files each time. The system keeps them in its own memory as far as
    there is room, for all processes together.

    Args:
        parts: (patches file, rows (n_i,) of its tiles) of each section, in order.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, parts: list[tuple[Path, np.ndarray]]):
        self._parts = parts
        self._starts = np.cumsum([0] + [len(rows) for _, rows in parts])
        self._images: dict[Path, h5py.Dataset] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, 224, 224, 3)."""
        return len(self), TILE, TILE, 3

    def __getitem__(self, which) -> np.ndarray:
        """Tiles of an index array, slice or mask over spots, in the order of the request.

        Raises:
            PekaError: a file cannot be opened, or does not hold one of its tiles.
        """
        spots = np.atleast_1d(np.arange(len(self))[which])
        tiles = np.empty((len(spots), TILE, TILE, 3), dtype=np.uint8)
        section = np.searchsorted(self._starts, spots, side="right") - 1  # (m,) of each spot
        for i in np.unique(section):
            path, rows = self._parts[i]
            places = np.flatnonzero(section == i)
            images, wanted = self._open(path), rows[spots[places] - self._starts[i]]
            try:
                tiles[places] = rows_of(images, wanted)
            except Exception as error:
                with reading(images.file, "img"):  # says what is wrong with the file
                    raise error
        return tiles

    def _open(self, path: Path) -> h5py.Dataset:
        """The images of a section; the file that was opened first is closed at `OPEN_FILES`."""
        if path not in self._images:
            if len(self._images) >= OPEN_FILES:
                self._images.pop(next(iter(self._images))).file.close()
            with reading(open_h5(path), "img") as images:
                self._images[path] = images
        return self._images[path]
