"""Leaks of a split by hand, the ceiling of noisy counts, and the excerpt of a large cohort."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import pearsonr

from peka_core.cohort import Split, open_cohort
from peka_core.genes import log_cp10k
from peka_core.studies.ceiling import split_half_ceiling, thin
from peka_core.studies.excerpt import lesson_counts, lesson_spots
from peka_core.studies.leaks import leaks_of_splits, without_leaks


def test_leaks_are_counted_by_hand(tiny_cohort, monkeypatch):
    """Spots stand 4 x 3 in a section; neighbours are one step away, also diagonally."""
    cohort = open_cohort(tiny_cohort)
    n, own = len(cohort.obs), (cohort.obs["group"] == cohort.obs["group"].iloc[0]).sum()
    monkeypatch.setattr(type(cohort), "adata", lambda *_, **__: pytest.fail("reads all counts"))
    hashes = np.arange(n, dtype=np.uint64)
    hashes[n - 2 :] = 0  # the last two spots are copies of the first
    both, first = (np.isin(np.arange(n), spots) for spots in ([0, n - 1], [0]))
    splits = [Split("spots/0", ~test, test) for test in (both, first)]
    table = leaks_of_splits(cohort, splits, hashes)[["test", "copies", "neighbours"]]
    assert table.to_numpy().tolist() == [[2, 2, 2], [1, 1, 1]]
    shared = leaks_of_splits(cohort, [*splits, *cohort.splits])["patients_shared"]
    assert list(shared) == [2, 1, 0, 0, 0, 0]
    left = {name: mask.sum() for name, mask in without_leaks(cohort, splits[1], hashes).items()}
    expected = {"as it is": n - 1, "no copies": n - 3, "no neighbours": n - 3 - 3}
    assert left == expected | {"no shared patients": n - own - 2}


def drawn_counts(depth, overdispersed=False, n=3000, genes=12):
    """Counts of one section with known expected shares, and the noiseless target."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 0.6, (n, genes)) * rng.gamma(2, 1, genes)
    share = np.hstack([share, np.full((n, 1), share.sum(1).mean() * 3)])
    share /= share.sum(1, keepdims=True)
    noise = rng.gamma(2, 0.5, share.shape) if overdispersed else 1.0
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(depth * share * noise), dtype=np.float32))
    adata.obs["sample"], adata.obs["total_counts"] = "S", np.asarray(adata.X.sum(1)).ravel()
    return adata, np.log1p(1e4 * share[:, :genes])


@pytest.mark.parametrize("depth, overdispersed", [(300, False), (2000, True)])
def test_the_truth_reaches_the_ceiling_unless_counts_are_overdispersed(depth, overdispersed):
    adata, truth = drawn_counts(depth, overdispersed)
    first, second = thin(adata.X, np.random.default_rng(1))
    assert (first + second != adata.X).nnz == 0
    assert first.sum() / adata.X.sum() == pytest.approx(0.5, abs=0.01)
    target = np.log1p(1e4 * adata.X.toarray() / adata.obs["total_counts"].to_numpy()[:, None])
    reached = np.mean([pearsonr(t, target[:, j])[0] for j, t in enumerate(truth.T)])
    bound = split_half_ceiling(adata, list(adata.var_names[: truth.shape[1]]))
    assert bound["half"] < bound["reliability"] < bound["ceiling"]
    above = bound["ceiling"] - reached
    assert above > 0.1 if overdispersed else above == pytest.approx(0, abs=0.03)


def test_a_small_cohort_is_taken_whole_and_a_large_one_in_part():
    """Spots of section S0 are the test; their counts choose no gene."""
    n, g, rng = 6_000, 3_000, np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.3, 0.4, (6, g))[rng.integers(0, 6, n)]).astype(np.float32)
    obs = pd.DataFrame(
        {"sample": np.repeat([f"S{i}" for i in range(6)], n // 6)}, map(str, range(n))
    )
    obs["total_counts"] = counts.sum(1, dtype=float)
    large, train = ad.AnnData(sparse.csr_matrix(counts), obs), np.arange(n) >= 1000
    assert np.array_equal(lesson_spots(4000), np.arange(4000))
    assert lesson_counts(large[:4000], train[:4000]).shape == (4000, g)
    spots, excerpt = lesson_spots(n), lesson_counts(large, train)
    assert excerpt.shape == (2000, 2000) and len(set(spots)) == 2000
    assert excerpt.obs["sample"].value_counts().between(330, 336).all()
    pd.testing.assert_frame_equal(excerpt.obs, large.obs.iloc[spots])
    variance = log_cp10k(large[spots[train[spots]]]).var(0)  # the dense form
    assert set(excerpt.var_names) == set(large.var_names[np.argsort(-variance)[:2000]])
