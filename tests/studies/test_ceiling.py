"""The bound from split counts against a truth that is known."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from scipy.stats import pearsonr

from peka_core.studies.ceiling import split_half_ceiling, thin


def drawn_counts(depth, overdispersed=False, n=3000, genes=12, seed=0):
    """Counts of one section with known expected shares, and the noiseless target."""
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0, 0.6, (n, genes)) * rng.gamma(2, 1, genes)
    share = np.hstack([share, np.full((n, 1), share.sum(1).mean() * 3)])
    share /= share.sum(1, keepdims=True)
    noise = rng.gamma(2, 0.5, share.shape) if overdispersed else 1.0
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(depth * share * noise), dtype=np.float32))
    adata.obs["sample"], adata.obs["total_counts"] = "S", np.asarray(adata.X.sum(1)).ravel()
    return adata, np.log1p(1e4 * share[:, :genes])


def test_two_halves_add_up_and_are_fair():
    adata, _ = drawn_counts(500)
    first, second = thin(adata.X, np.random.default_rng(1))
    assert (first + second != adata.X).nnz == 0
    assert first.sum() / adata.X.sum() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("depth, overdispersed", [(300, False), (2000, False), (2000, True)])
def test_the_truth_reaches_the_ceiling_unless_counts_are_overdispersed(depth, overdispersed):
    adata, truth = drawn_counts(depth, overdispersed)
    target = np.log1p(1e4 * adata.X.toarray() / adata.obs["total_counts"].to_numpy()[:, None])
    reached = np.mean([pearsonr(t, target[:, j])[0] for j, t in enumerate(truth.T)])
    bound = split_half_ceiling(adata, list(adata.var_names[: truth.shape[1]]))
    assert bound["half"] < bound["reliability"] < bound["ceiling"]
    above = bound["ceiling"] - reached
    assert above > 0.1 if overdispersed else above == pytest.approx(0, abs=0.03)
