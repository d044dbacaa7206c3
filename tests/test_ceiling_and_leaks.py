"""The bound from split counts against a known truth; hashes and neighbours; partial correlation against least squares."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from fake_hest import copy_tiles, recompressed
from scipy import sparse
from scipy.stats import pearsonr

from peka_core.ceiling import split_half_ceiling, thin
from peka_core.cohort import Split, open_cohort
from peka_core.errors import PekaError
from peka_core.layout import patches
from peka_core.leaks import (
    across_splits,
    compare_tiles,
    difference_hash,
    tile_digests,
    without_leaks,
)
from peka_core.protocols import PROTOCOLS
from peka_core.statistics import partial_pearson


def drawn_counts(depth, overdispersed=False, n=3000, genes=12, seed=0):
    """Counts of one section with known expected shares: AnnData and the noiseless target ln(1 + 1e4 share)."""
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0, 0.6, (n, genes)) * rng.gamma(2, 1, genes)
    share = np.hstack([share, np.full((n, 1), share.sum(1).mean() * 3)])
    share /= share.sum(1, keepdims=True)
    noise = rng.gamma(2, 0.5, share.shape) if overdispersed else 1.0
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(depth * share * noise), dtype=np.float32))
    adata.obs["sample"], adata.obs["total_counts"] = "S", np.asarray(adata.X.sum(1)).ravel()
    return adata, np.log1p(1e4 * share[:, :genes])


def target(adata):
    return np.log1p(1e4 * adata.X.toarray() / adata.obs["total_counts"].to_numpy()[:, None])


def test_two_halves_add_up_and_are_fair():
    adata, _ = drawn_counts(500)
    first, second = thin(adata.X, np.random.default_rng(1))
    assert (first + second != adata.X).nnz == 0 and first.sum() / adata.X.sum() == pytest.approx(
        0.5, abs=0.01
    )


@pytest.mark.parametrize("depth", [300, 2000])
def test_for_poisson_counts_the_ceiling_is_what_the_truth_reaches(depth):
    adata, truth = drawn_counts(depth)
    reached = np.mean(
        [pearsonr(truth[:, j], target(adata)[:, j])[0] for j in range(truth.shape[1])]
    )
    found = split_half_ceiling(adata, list(adata.var_names[: truth.shape[1]]))
    assert found["ceiling"] == pytest.approx(reached, abs=0.03)
    assert found["half"] < found["reliability"] < found["ceiling"]


def test_with_overdispersion_it_is_an_upper_bound_not_an_estimate():
    adata, truth = drawn_counts(2000, overdispersed=True)
    reached = np.mean(
        [pearsonr(truth[:, j], target(adata)[:, j])[0] for j in range(truth.shape[1])]
    )
    assert (
        split_half_ceiling(adata, list(adata.var_names[: truth.shape[1]]))["ceiling"]
        > reached + 0.1
    )


def test_partial_correlation_is_that_of_residuals():
    rng = np.random.default_rng(0)
    depth = rng.normal(size=80)
    observed, predicted = (
        rng.normal(size=(80, 3)) + depth[:, None],
        rng.normal(size=(80, 3)) + depth[:, None],
    )
    predicted[:, 0] += observed[:, 0]
    observed[:9, 1] = np.nan
    design = np.column_stack([np.ones(80), depth])
    for j, found in enumerate(partial_pearson(observed, predicted, depth)):
        used = np.isfinite(observed[:, j])
        rest = [
            y - design[used] @ np.linalg.lstsq(design[used], y, rcond=None)[0]
            for y in (observed[used, j], predicted[used, j])
        ]
        assert found == pytest.approx(pearsonr(*rest)[0], abs=1e-10)
    assert np.isnan(partial_pearson(observed, np.repeat(depth[:, None], 3, 1), depth)).all()


def test_copies_have_equal_hashes_and_other_tiles_have_not(tiny_cohort):
    tiles = open_cohort(tiny_cohort).tiles()[:20]
    hashes = difference_hash(tiles)
    assert len(set(hashes)) == 20
    assert np.array_equal(difference_hash(tiles.copy()), hashes)
    recoloured = np.clip(tiles.astype(int) + 6, 0, 255).astype(np.uint8)
    differ = np.array(
        [bin(int(a) ^ int(b)).count("1") for a, b in zip(difference_hash(recoloured), hashes)]
    )
    assert differ.mean() < 6


def test_leaks_are_counted_by_hand(tiny_cohort):
    """4 x 3 spots a section on a grid: a test spot's neighbours are those one step away, also diagonally."""
    cohort = open_cohort(tiny_cohort)
    n = len(cohort.obs)
    hashes = np.arange(n, dtype=np.uint64)
    hashes[n - 1] = 0  # the last spot is a copy of the first
    test = np.zeros(n, bool)
    test[[0, n - 1]] = True
    table = across_splits(cohort, [Split("spots/0", ~test, test)], hashes).iloc[0]
    assert (table["test"], table["copies"], table["neighbours"], table["patients_shared"]) == (
        2,
        0,
        2,
        2,
    )
    train = ~test
    train[n - 1] = True
    test[n - 1] = False
    assert across_splits(cohort, [Split("spots/0", train, test)], hashes).iloc[0]["copies"] == 1
    left = without_leaks(cohort, Split("spots/0", train, test), hashes)
    assert (
        left["no copies"].sum() == train.sum() - 1
        and left["no neighbours"].sum() == train.sum() - 1 - 3
    )
    own = (cohort.obs["group"] == cohort.obs["group"].iloc[0]).sum()
    assert left["no shared patients"].sum() == n - own - 1
    held_out = across_splits(cohort, PROTOCOLS["strict"].splits(cohort), hashes)
    assert (held_out["neighbours"] == 0).all() and (held_out["patients_shared"] == 0).all()


def test_the_copied_section_of_the_demo_is_found(tmp_path):
    from peka_core.drawn import demo

    cohort = open_cohort(
        demo.build(
            tmp_path / "cohort", seed=5, patients=4, sections=1, spots=12, folds=2, workers=1
        )
    )
    hashes = pd.Series(difference_hash(cohort.tiles()), cohort.obs["sample"].to_numpy())
    original = demo.copied_sample(4)
    assert set(hashes[original]) == set(hashes[demo.COPY])
    rest = hashes.drop([original, demo.COPY])
    assert not set(rest) & set(hashes[demo.COPY])


@pytest.mark.parametrize(
    "change, leave_out, same, shared, identical",
    [
        (lambda tile: tile, 0, True, 12, 12),
        (recompressed, 0, False, 12, 0),
        (lambda tile: tile, 1, False, 11, 11),
    ],
)
def test_a_copied_section_is_compared_by_barcode(
    tiny_cohort, change, leave_out, same, shared, identical
):
    """In another order, compressed again, or with a tile less."""
    copy_tiles(tiny_cohort, "P1A", "P3B", change, leave_out)
    cohort = open_cohort(tiny_cohort)
    digests = tile_digests(cohort)
    assert (digests["P1A"] == digests["P3B"]) is same and digests.drop("P3B").is_unique
    found, few = compare_tiles(cohort, "P3B", "P1A"), compare_tiles(cohort, "P3B", "P1A", at_most=4)
    assert (found["of"], found["shared_barcodes"], found["tiles_compared"], found["identical"]) == (
        "P1A",
        shared,
        shared,
        identical,
    )
    assert (found["mean_difference"] == 0) is (identical == shared) and found[
        "mean_difference"
    ] < 10
    assert few["tiles_compared"] == 4 and few["shared_barcodes"] == shared
    assert compare_tiles(cohort, "P2A", "P1A")["mean_difference"] > 20


def test_no_more_than_some_tiles_are_in_memory_while_sections_are_compared(
    tiny_cohort, monkeypatch
):
    from peka_core import tiles

    read, real = [], tiles.read_rows
    monkeypatch.setattr(patches, "CHUNK", 5)
    monkeypatch.setattr(tiles, "KEEP_IN_MEMORY", 1)
    monkeypatch.setattr(
        tiles, "read_rows", lambda path, rows: read.append(len(rows)) or real(path, rows)
    )
    cohort = open_cohort(tiny_cohort)
    tile_digests(cohort)
    compare_tiles(cohort, "P2A", "P1A")
    assert max(read) == 5 and sum(read) == 12 * len(cohort.sections) + 2 * 12


def test_neighbours_are_found_without_reading_counts(tiny_cohort, monkeypatch):
    cohort = open_cohort(tiny_cohort)
    splits, _ = PROTOCOLS["strict"].splits(cohort), cohort.obs
    monkeypatch.setattr(
        type(cohort),
        "adata",
        lambda *words, **named: pytest.fail("reads all counts for the coordinates alone"),
    )
    assert (across_splits(cohort, splits)["neighbours"] == 0).all()


def test_a_cohort_without_tiles_cannot_be_compared(tiny_cohort):
    for file in (tiny_cohort / "patches").iterdir():
        file.unlink()
    with pytest.raises(PekaError, match="patches/P1A.h5"):
        tile_digests(open_cohort(tiny_cohort))
