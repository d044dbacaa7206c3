"""Tiles of sections compared: perceptual hashes, digests, and a section beside its copy."""

import numpy as np
import pandas as pd
import pytest
from fake_hest import copy_tiles, recompressed

from peka_core.cohort import open_cohort
from peka_core.common.errors import PekaError
from peka_core.drawn import demo
from peka_core.layout import duplicates, patches
from peka_core.layout.duplicates import compare_tiles, difference_hash, tile_digests


def test_copies_have_equal_hashes_and_other_tiles_have_not(tiny_cohort):
    tiles = open_cohort(tiny_cohort).tiles()[:20]
    hashes = difference_hash(tiles)
    assert len(set(hashes)) == 20
    recoloured = difference_hash(np.clip(tiles.astype(int) + 6, 0, 255).astype(np.uint8))
    assert np.mean([int(a ^ b).bit_count() for a, b in zip(recoloured, hashes)]) < 6


def test_the_copied_section_of_the_demo_is_found(tmp_path):
    sizes = {"patients": 4, "sections": 1, "spots": 12, "folds": 2}
    cohort = open_cohort(demo.build(tmp_path / "cohort", seed=5, workers=1, **sizes))
    hashes = pd.Series(difference_hash(cohort.tiles()), cohort.obs["sample"].to_numpy())
    original = demo.copied_sample(4)
    assert set(hashes[original]) == set(hashes[demo.COPY])
    assert not set(hashes.drop([original, demo.COPY])) & set(hashes[demo.COPY])


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
    assert (found["of"], found["shared_barcodes"], found["tiles_compared"]) == (
        "P1A",
        shared,
        shared,
    )
    assert found["identical"] == identical and found["mean_difference"] < 10
    assert (found["mean_difference"] == 0) is (identical == shared)
    assert few["tiles_compared"] == 4 and few["shared_barcodes"] == shared
    assert compare_tiles(cohort, "P2A", "P1A")["mean_difference"] > 20
    assert max(sizes) == 5


def test_a_cohort_without_tiles_cannot_be_compared(tiny_cohort):
    for file in (tiny_cohort / "patches").iterdir():
        file.unlink()
    with pytest.raises(PekaError, match="patches/P1A.h5"):
        tile_digests(open_cohort(tiny_cohort))
