"""Centres of tiles side by side on one lattice."""

from dataclasses import dataclass

import numpy as np

from ..common.errors import PekaError
from ..layout.patches import TILE, TILE_UM_PER_PX
from ..tiles import tile_side
from .image import Slide
from .mask import Mask, grid_side

LEAST = 0.5  # share of a tile that lies on tissue


@dataclass(frozen=True, eq=False)
class Lattice:
    """Tiles of a slide, row by row. Neighbours touch and do not overlap."""

    centres: np.ndarray  # float (n, 2), level-0 px
    corners: np.ndarray  # int (n, 2), level-0 px, those of `tile_at`
    index: np.ndarray  # int (n, 2), column and row of the lattice
    share: np.ndarray  # float (n,), share of the tile that lies inside the mask
    side: int  # of a tile, level-0 px


def make_lattice(
    slide: Slide, mask: Mask, least: float = LEAST, um_per_px: float | None = None
) -> Lattice:
    """The whole tiles of 112 um whose share of the mask is at least `least`.

    The lattice begins at (0, 0), or where the scanned part begins (`slide.bounds`). A tile's side
    is a whole number of px by HEST's rule. Tiles that reach beyond the slide are left out.

    Args:
        um_per_px: pixel size; the slide's own if None.

    Raises:
        PekaError: no tile has that share, or nobody says the pixel size.
    """
    grid_side(slide, um_per_px)  # refuses a slide without a pixel size
    size = slide.um_per_px if um_per_px is None else um_per_px
    side, start = tile_side(size), np.array(slide.bounds)
    columns, rows = np.maximum((np.array([slide.width, slide.height]) - start) // side, 0)
    row, column = np.divmod(np.arange(rows * columns), max(columns, 1))
    index = np.stack([column, row], axis=1)  # (n, 2)
    corners = start + side * index  # (n, 2)
    share = mask.share_of(corners, side)  # (n,)
    there = share >= least - 1e-9
    if not there.any():
        largest = f"{share.max():.2f}" if len(share) else "none, since the slide is smaller"
        raise PekaError(
            f"{slide.path}: no tile of 112 um ({side} px) lies inside the mask by a share of "
            f"{least}; the largest share is {largest}. Check the mask (--mask, --region) and the "
            f"pixel size {size:g} um (--um-per-px)."
        )
    half = np.floor(TILE * TILE_UM_PER_PX / size / 2)  # so that `tile_at` finds these corners
    return Lattice(corners[there] + half, corners[there], index[there], share[there], side)
