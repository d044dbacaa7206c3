"""Tiles of sections compared: perceptual hashes, digests, and a section beside its copy."""

import numpy as np
import pytest
from fake_hest import copy_tiles, recompressed

from peka_core.cohort import open_cohort
from peka_core.layout import duplicates, patches
from peka_core.layout.duplicates import compare_tiles, difference_hash, tile_digests


def test_a_hash_says_where_a_tile_is_brighter_and_copies_have_it_too(tiny_cohort):
    grey = np.zeros((8, 9), np.uint8)
    grey[3, 2] = 200  # brighter than its right neighbour: bit 3 * 8 + 2
    drawn = np.repeat(grey.repeat(28, 0).repeat(28, 1)[None, ..., None], 3, -1)
    bits = np.unpackbits(difference_hash(drawn)[:1].view(np.uint8))
    assert list(np.flatnonzero(bits)) == [26]
    tiles = open_cohort(tiny_cohort).tiles()[:20]
    hashes = difference_hash(tiles)
    assert len(set(hashes)) == 20
    recoloured = difference_hash(np.clip(tiles.astype(int) + 6, 0, 255).astype(np.uint8))
    assert np.mean([int(a ^ b).bit_count() for a, b in zip(recoloured, hashes)]) < 6


@pytest.mark.parametrize(
    "change, leave_out, same, identical",
    [(None, 0, True, 12), (recompressed, 0, False, 0), (None, 1, False, 11)],
)
def test_a_copied_section_is_compared_by_barcode(
    tiny_cohort, change, leave_out, same, identical, monkeypatch
):
    """In another order, compressed again, or with a tile less; few tiles are in memory at once."""
    copy_tiles(tiny_cohort, "P1A", "P3B", change or (lambda tile: tile), leave_out)
    cohort, sizes, real = open_cohort(tiny_cohort), [], duplicates.read_rows
    monkeypatch.setattr(patches, "CHUNK", 5)
    monkeypatch.setattr(
        duplicates, "read_rows", lambda path, rows: sizes.append(len(rows)) or real(path, rows)
    )
    digests, shared = tile_digests(cohort), 12 - leave_out
    assert (digests["P1A"] == digests["P3B"]) is same and digests.drop("P3B").is_unique
    found, few = compare_tiles(cohort, "P3B", "P1A"), compare_tiles(cohort, "P3B", "P1A", at_most=4)
    assert found["of"] == "P1A" and found["identical"] == identical
    assert found["shared_barcodes"] == found["tiles_compared"] == few["shared_barcodes"] == shared
    assert found["mean_difference"] < 10 and few["tiles_compared"] == 4
    assert (found["mean_difference"] == 0) is (identical == shared)
    assert compare_tiles(cohort, "P2A", "P1A")["mean_difference"] > 20
    assert max(sizes) == 5
