"""Tiles of sections compared: perceptual hashes, digests, and a section beside its copy."""

import numpy as np
import pytest
from fake_hest import copy_tiles, recompressed

from peka_core.cohort import open_cohort
from peka_core.layout.duplicates import compare_tiles, difference_hash, tile_digests


def test_a_hash_says_where_a_tile_is_brighter_than_to_its_right():
    grey = np.zeros((8, 9), np.uint8)
    grey[3, 2] = 200  # bit 3 * 8 + 2
    drawn = np.repeat(grey.repeat(28, 0).repeat(28, 1)[None, ..., None], 3, -1)
    bits = np.unpackbits(difference_hash(drawn)[:1].view(np.uint8))
    assert list(np.flatnonzero(bits)) == [26]


@pytest.mark.parametrize(
    "change, leave_out, same, identical",
    [(None, 0, True, 12), (recompressed, 0, False, 0), (None, 1, False, 11)],
)
def test_a_copied_section_is_compared_by_barcode(tiny_cohort, change, leave_out, same, identical):
    """In another order, compressed again, or with a tile less."""
    copy_tiles(tiny_cohort, "P1A", "P3B", change or (lambda tile: tile), leave_out)
    cohort, shared = open_cohort(tiny_cohort), 12 - leave_out
    digests = tile_digests(cohort)
    assert (digests["P1A"] == digests["P3B"]) is same and digests.drop("P3B").is_unique
    found, few = compare_tiles(cohort, "P3B", "P1A"), compare_tiles(cohort, "P3B", "P1A", at_most=4)
    assert found["of"] == "P1A" and found["identical"] == identical
    assert found["shared_barcodes"] == found["tiles_compared"] == few["shared_barcodes"] == shared
    assert found["mean_difference"] < 10 and few["tiles_compared"] == 4
    assert (found["mean_difference"] == 0) is (identical == shared)
    assert compare_tiles(cohort, "P2A", "P1A")["mean_difference"] > 20
