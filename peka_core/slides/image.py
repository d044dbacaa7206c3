"""Open the picture of a whole slide, and read windows and tiles of it at full resolution."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..common.errors import PekaError
from ..layout.patches import TILE, as_pixels
from ..tiles import corner_of, resize, tile_side
from .image_checks import agreed_pixel_size, check_file, damaged, read_header
from .pixels import on_white, read_whole

# suffixes of formats that only OpenSlide reads; an SVS is a TIFF
SCANNERS = (".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".dcm", ".czi", ".svslide")
CHECKED = (None, "generic-tiff", "aperio")  # others' formats have one kind of pixels
CACHE = 2**27  # bytes of decoded tiles that OpenSlide keeps
BAND = 2**24  # px that a thumbnail reads at a time


@dataclass(frozen=True, eq=False)
class Slide:
    """The picture of a slide. Coordinates are px of full resolution (level 0), x before y."""

    path: Path
    width: int
    height: int
    um_per_px: float  # from the file or from the user; NaN if nobody says
    bounds: tuple[int, int] = (0, 0)  # (x, y) where the scanned part begins; QuPath counts from it
    _source: Any = field(default=None, repr=False)  # pixels (height, width, 3), or an OpenSlide

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A window as uint8 (height, width, 3) RGB; black outside the slide, as in HEST's tiles.

        Where the scanner stored nothing (alpha 0), the slide is white.

        Raises:
            PekaError: the file is damaged at this place.
        """
        window = np.zeros((height, width, 3), dtype=np.uint8)
        x0, x1 = max(x, 0), min(x + width, self.width)
        y0, y1 = max(y, 0), min(y + height, self.height)
        if x0 < x1 and y0 < y1:
            window[y0 - y : y1 - y, x0 - x : x1 - x] = self._inside(0, x0, y0, x1 - x0, y1 - y0)
        return window

    def thumbnail(self, side: int) -> tuple[np.ndarray, float]:
        """The whole slide, small.

        Returns:
            uint8 (h, w, 3) RGB whose longer side is at most `side`, and the number of level-0 px
            in one px of it, the same in x and y. Its last row and column may be a part of a px.
        """
        factor = max(self.width, self.height) / side
        if factor <= 1:
            return self.read(0, 0, self.width, self.height), 1.0
        level, start = self._level_for(factor)
        step = max(1, math.floor(factor / start))  # px of the level in one px of `small`
        small = self._reduced(level, step)
        scale = step * start / factor  # at most 1
        exact = cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return exact[: math.ceil(self.height / factor), : math.ceil(self.width / factor)], factor

    def _level_for(self, factor: float) -> tuple[int, float]:
        """The smallest level with at least 3 px in a px of the thumbnail, and its downsample."""
        downsamples = getattr(self._source, "level_downsamples", (1.0,))
        fine = [level for level, down in enumerate(downsamples) if down <= factor / 3]
        level = max(fine, key=lambda level: downsamples[level], default=0)
        return level, downsamples[level]

    def _reduced(self, level: int, step: int) -> np.ndarray:
        """A level, made smaller by the means of step x step px, in bands that fit in memory."""
        width, height = getattr(self._source, "level_dimensions", [(self.width, self.height)])[
            level
        ]
        columns, bands = math.ceil(width / step), []
        rows = step * max(1, BAND // (step * width))  # of a band, a multiple of the step
        for y in range(0, height, rows):
            band = self._inside(level, 0, y, width, min(rows, height - y))
            lines = math.ceil(len(band) / step)
            over = (0, lines * step - len(band), 0, columns * step - width)
            band = cv2.copyMakeBorder(band, *over, cv2.BORDER_REPLICATE)
            bands.append(cv2.resize(band, (columns, lines), interpolation=cv2.INTER_AREA))
        return np.concatenate(bands)  # (ceil(height / step), ceil(width / step), 3)

    def _inside(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A window (height, width, 3) that lies inside a level, in px of this level."""
        if isinstance(self._source, np.ndarray):
            return self._source[y : y + height, x : x + width]
        down = self._source.level_downsamples[level]
        corner = (round(x * down), round(y * down))
        try:
            region = self._source.read_region(corner, level, (width, height))
        except Exception as error:  # openslide.OpenSlideError, and MemoryError of Pillow
            raise damaged(self.path, f"at x {corner[0]}, y {corner[1]}: {error}") from error
        return on_white(np.asarray(region), premultiplied=False)


def slide_of(pixels: np.ndarray, um_per_px: float, path: str | Path = "picture") -> Slide:
    """A slide whose pixels uint8 (height, width, 3) RGB are in memory."""
    as_pixels(pixels, str(path), 3)
    size = agreed_pixel_size(Path(path), (math.nan, math.nan), um_per_px)
    return Slide(Path(path), pixels.shape[1], pixels.shape[0], size, _source=pixels)


def open_slide(path: str | Path, um_per_px: float | None = None) -> Slide:
    """Open the picture of a slide: SVS, NDPI, MRXS, TIFF, JPEG or PNG.

    Scanner formats and tiled TIFFs are read by OpenSlide, window by window. Other pictures are read
    whole into memory by OpenCV. The pixel size is the user's, else the file's (its resolution tags
    only if they can be a scanner's); a scan magnification never replaces it.

    Args:
        um_per_px: micrometres per pixel from the user.

    Raises:
        PekaError: the file is missing, closed, damaged, no picture, or not RGB with 8 bits a
            colour; its pixel size is implausible or not what the user says; it does not fit into
            memory; or OpenSlide is needed and not installed.
    """
    path = Path(path)
    check_file(path)
    openslide = _openslide()
    vendor = openslide and openslide.OpenSlide.detect_format(path)
    header = None
    if vendor in CHECKED and path.suffix.lower() not in SCANNERS:
        header = read_header(path)
        if vendor is None and not header.tiled:
            size = agreed_pixel_size(path, header.mpp, um_per_px)
            return Slide(path, header.width, header.height, size, _source=read_whole(path, header))
    if openslide is None:
        raise PekaError(
            f"{path}: OpenSlide is needed for a scanner's file or a tiled TIFF, and it is not "
            'installed. Install it in the checkout: pip install -e ".[wsi]"'
        )
    resolution = header.mpp if header and vendor == "generic-tiff" else None
    return _open_with_openslide(openslide, path, vendor, resolution, um_per_px)


def _openslide():
    """The module openslide, or None if it is not installed."""
    try:
        import openslide
    except (ImportError, OSError):  # or its library is missing
        return None
    return openslide


def _open_with_openslide(
    openslide, path: Path, vendor: str, resolution: tuple | None, um_per_px: float | None
) -> Slide:
    """A slide that OpenSlide reads; its pixel size is the resolution of the tags if it has one."""
    if vendor is None:
        beside = (
            " Its folder of the same name must lie beside it." if path.suffix == ".mrxs" else ""
        )
        raise damaged(path, f"OpenSlide does not know this format.{beside}")
    try:
        source = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise damaged(path, str(error)) from error
    source.set_cache(openslide.OpenSlideCache(CACHE))
    says = lambda name, otherwise: float(source.properties.get(f"openslide.{name}", otherwise))
    said = resolution or (says("mpp-x", math.nan), says("mpp-y", math.nan))
    size = agreed_pixel_size(path, said, um_per_px)
    bounds = (int(says("bounds-x", 0)), int(says("bounds-y", 0)))
    width, height = source.dimensions
    return Slide(path, width, height, size, bounds, source)


# ---- tiles --------------------------------------------------------------------------------------


def tile_at(
    slide: Slide, centre_xy: tuple[float, float], um_per_px: float | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """One tile, byte-identical to `tiles.cut_tile` on the whole picture.

    Args:
        centre_xy: centre (x, y) in level-0 px, integer or not.
        um_per_px: pixel size; the slide's own if None.

    Returns:
        tile uint8 (224, 224, 3), and the (x, y) of its top-left corner in level-0 px.
    """
    size = slide.um_per_px if um_per_px is None else um_per_px
    if not np.isfinite([*centre_xy, size]).all():
        raise PekaError(
            f"{slide.path}: a tile needs a centre and a pixel size, not {centre_xy} and {size} um "
            "per px. Give um_per_px (--um-per-px) if the file has none."
        )
    (x, y), side = corner_of(centre_xy, size), tile_side(size)
    return resize(slide.read(x, y, side, side)), (x, y)


def read_tiles(
    slide: Slide, centres: np.ndarray, um_per_px: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`tile_at` around centres (n, 2): tiles uint8 (n, 224, 224, 3) and their corners (n, 2)."""
    tiles = np.empty((len(centres), TILE, TILE, 3), dtype=np.uint8)
    corners = np.empty((len(centres), 2), dtype=np.int64)
    for i, centre in enumerate(np.asarray(centres, dtype=np.float64)):
        tiles[i], corners[i] = tile_at(slide, centre, um_per_px)
    return tiles, corners
