"""Where tissue is on an H&E slide.

Tissue has structure, glass has none. So the mask looks at the spread of the optical density within
windows of 72 um, and not at its mean: glass of any tint is smooth, and so is a smear of eosin,
while pale fat is not. The threshold is Otsu's on the logarithm of the spread. Dust, pen and the
dots printed on a slide have structure too, but they are grey, so the spread of colour is small.
"""

import cv2
import numpy as np

from ..common.errors import PekaError
from .image import Slide
from .mask import Mask, grid_side

WINDOW_UM = 72.0
TILE_UM = 112.0  # pieces and holes smaller than a tile do not count
BLACK = 16  # a px that is darker in all colours was never scanned
# Otsu's threshold stays in this range of the summed optical density, or it would split plain glass,
# or a picture full of tissue. Chosen on five sections of her2st and on CMU-1: the spread is .001 to
# .01 on glass, above .05 on 99 % of spots, and Otsu's own threshold is .026 to .039.
LOWEST, HIGHEST = 0.02, 0.06
# The spread of colour as a share of that of darkness: .04 to .07 on dust and on Visium's printed
# dots, .11 or more on every spot of those five sections.
LEAST_COLOUR = 0.09
DECADES = 3.0  # of the spread, 0.001 to 1, that Otsu's 256 steps divide


def find_tissue(slide: Slide, um_per_px: float | None = None) -> Mask:
    """The tissue of an H&E slide.

    Args:
        um_per_px: pixel size; the slide's own if None.

    Raises:
        PekaError: no piece is as large as a tile (112 um), or nobody says the pixel size.
    """
    small, px = slide.thumbnail(grid_side(slide, um_per_px))
    um = px * (slide.um_per_px if um_per_px is None else um_per_px)  # of a px of the thumbnail
    inside = _without_small(tissue_of(small, um), (TILE_UM / um) ** 2)
    if not inside.any():
        found = f"{100 * tissue_of(small, um).mean():.2g} % of the slide have structure"
        raise PekaError(
            f"{slide.path}: no tissue was found ({found}, in pieces smaller than a tile). "
            "Expected an H&E section. Look at the picture. If there is tissue, outline it in "
            "QuPath and give the outline as a mask (--mask GEOJSON)."
        )
    return Mask(inside, px)


def tissue_of(image: np.ndarray, um_per_px: float) -> np.ndarray:
    """Px with the structure of tissue: bool (h, w).

    Args:
        image: uint8 (h, w, 3) RGB of about 8 um per px.
    """
    density = -np.log10((image.astype(np.float64) + 1) / 256)  # (h, w, 3)
    density[image.max(axis=2) < BLACK] = 0
    side = 2 * max(1, round(WINDOW_UM / um_per_px / 2 - 0.5)) + 1  # px, an odd number
    spread = _spread(density.sum(axis=2), side)  # (h, w)
    colour = _spread(density.max(axis=2) - density.min(axis=2), side)  # (h, w)
    steps = np.log10(np.maximum(spread, 10**-DECADES)) / DECADES + 1  # (h, w), 0 to 1
    grey = np.rint(255 * steps.clip(0, 1)).astype(np.uint8)
    otsu, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)
    threshold = np.clip(10 ** (DECADES * (otsu / 255 - 1)), LOWEST, HIGHEST)
    # a window that touches tissue counts as a whole, so the mask is half a window too wide
    narrow = cv2.erode((spread > threshold).astype(np.uint8), np.ones((side, side), np.uint8))
    return (narrow > 0) & (colour > LEAST_COLOUR * spread)


def _spread(values: np.ndarray, side: int) -> np.ndarray:
    """Standard deviation (h, w) of values (h, w) in the window around each px."""
    mean, square = (cv2.blur(each, (side, side)) for each in (values, values**2))
    return np.sqrt(np.maximum(square - mean**2, 0))


def _without_small(inside: np.ndarray, area: float) -> np.ndarray:
    """Drop pieces below an area in px, then fill holes below it."""
    return ~_large(~_large(inside, area), area)


def _large(mask: np.ndarray, area: float) -> np.ndarray:
    """The connected pieces of a mask with at least this area in px."""
    _, labels, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = facts[:, cv2.CC_STAT_AREA] >= area
    keep[0] = False  # what is outside the mask
    return keep[labels]
