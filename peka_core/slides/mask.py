"""A mask of a slide: which parts count, on a grid of about 8 um."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from ..common.errors import PekaError
from .image import Slide

UM_PER_PX = 8.0  # of a mask, or the slide's own pixel size where that is coarser


@dataclass(frozen=True, eq=False)
class Mask:
    """Parts of a slide. What lies outside the slide is not inside the mask."""

    inside: np.ndarray  # bool (h, w)
    px: float  # level-0 px in one px of the mask

    @property
    def share(self) -> float:
        """Share of the slide that lies inside the mask, 0 to 1."""
        return float(self.inside.mean())

    def at(self, xy: np.ndarray) -> np.ndarray:
        """Whether points (n, 2), in level-0 px, lie inside: bool (n,)."""
        column, row = np.floor(np.asarray(xy, dtype=np.float64).reshape(-1, 2) / self.px).T  # (n,)
        height, width = self.inside.shape
        there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        inside = np.zeros(len(row), dtype=bool)
        inside[there] = self.inside[row[there].astype(int), column[there].astype(int)]
        return inside

    def share_of(self, corners: np.ndarray, side: float) -> np.ndarray:
        """Share of square windows that lies inside the mask: (n,), 0 to 1.

        Args:
            corners: top-left corners (n, 2), in level-0 px.
            side: of a window, in level-0 px.
        """
        # between its points, the integral of the mask is bilinear, so interpolation is exact
        total = cv2.integral(self.inside.astype(np.uint8))  # (h + 1, w + 1)
        low = np.asarray(corners, dtype=np.float64).reshape(-1, 2) / self.px  # (n, 2) x, y
        high = low + side / self.px
        upto = lambda x, y: ndimage.map_coordinates(
            total, [y, x], output=np.float64, order=1, mode="nearest"
        )
        (x0, y0), (x1, y1) = low.T, high.T
        area = upto(x1, y1) - upto(x0, y1) - upto(x1, y0) + upto(x0, y0)  # (n,) px of the mask
        return area / (side / self.px) ** 2

    def __and__(self, other: "Mask") -> "Mask":
        """What lies inside both masks of one slide."""
        return Mask(self.inside & other.inside, self.px)


def grid_side(slide: Slide, um_per_px: float | None = None) -> int:
    """Longer side of a mask of this slide, in px of the mask; the side of its thumbnail.

    Raises:
        PekaError: nobody says the pixel size.
    """
    size = slide.um_per_px if um_per_px is None else um_per_px
    if not np.isfinite(size):
        raise PekaError(
            f"{slide.path}: the file has no pixel size; expected micrometres per px. Give them as "
            "um_per_px (--um-per-px); the magnification of a scan does not replace them."
        )
    longer = max(slide.width, slide.height)
    return max(1, min(longer, round(longer * size / UM_PER_PX)))


def grid_of(slide: Slide, um_per_px: float | None = None) -> tuple[tuple[int, int], float]:
    """Shape (h, w) of a mask of this slide, and the level-0 px in one px of it."""
    px = max(slide.width, slide.height) / grid_side(slide, um_per_px)
    return (int(np.ceil(slide.height / px)), int(np.ceil(slide.width / px))), px
