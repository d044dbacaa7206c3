"""Tiles side by side."""

import dataclasses

import numpy as np
import pytest

from peka_core.common.errors import PekaError
from peka_core.slides.image import read_tiles, slide_of
from peka_core.slides.lattice import make_lattice
from peka_core.slides.mask import Mask, grid_of


def slide_and_mask(um_per_px, path="slide.svs"):
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 1300, 3), dtype=np.uint8)
    slide = slide_of(pixels, um_per_px, path)
    shape, px = grid_of(slide)
    return slide, Mask(np.ones(shape, dtype=bool), px), pixels


@pytest.mark.parametrize("um_per_px, side", [(0.5, 224), (0.2501, 448), (0.69, 162), (0.4586, 244)])
def test_tiles_touch_and_are_those_that_their_centres_give(um_per_px, side):
    slide, mask, pixels = slide_and_mask(um_per_px)
    lattice = make_lattice(slide, mask)
    assert lattice.side == side and len(lattice.centres) == (1300 // side) * (1000 // side)
    assert np.array_equal(lattice.corners, side * lattice.index)
    assert lattice.index[:2].tolist() == [[0, 0], [1, 0]]  # row by row
    tiles, corners = read_tiles(slide, lattice.centres)
    assert np.array_equal(corners, lattice.corners)
    if side == 224:
        assert np.array_equal(tiles[1], pixels[:224, 224:448])


def test_the_lattice_begins_at_the_scanned_part():
    slide, mask, _ = slide_and_mask(0.5)
    lattice = make_lattice(dataclasses.replace(slide, bounds=(70, 30)), mask)
    assert lattice.corners[0].tolist() == [70, 30] and lattice.index[0].tolist() == [0, 0]
    assert len(lattice.centres) == 5 * 4


def test_only_tiles_with_enough_of_the_mask_are_kept():
    slide, mask, _ = slide_and_mask(0.5)
    mask.inside[:] = False
    mask.inside[:14, :21] = True  # 1.5 of 1 tile: 14 px of 16 level-0 px are 224
    assert make_lattice(slide, mask).index.tolist() == [[0, 0], [1, 0]]
    assert make_lattice(slide, mask).share == pytest.approx([1, 0.5], abs=0.02)
    assert make_lattice(slide, mask, least=0.6).index.tolist() == [[0, 0]]


@pytest.mark.parametrize("um_per_px, change", [(0.5, 0), (0.1, 1)])
def test_no_tile_is_refused(um_per_px, change):
    slide, mask, _ = slide_and_mask(um_per_px, "empty.svs")
    with pytest.raises(PekaError, match="empty.svs"):
        make_lattice(slide, Mask(mask.inside & bool(change), mask.px))
