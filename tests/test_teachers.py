"""The pca teacher and the pseudo-labels: what they compute, and from which spots."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from peka_core.common.errors import PekaError
from peka_core.teachers import Embedded, embed_spots, fit_pseudo_labels, load_teacher


def counts(n=60, genes=25, seed=0):
    """Raw counts of three kinds of spots; total_counts includes genes that are not in the table."""
    rng = np.random.default_rng(seed)
    mean = rng.gamma(2, 3, (3, genes))[rng.integers(0, 3, n)]
    x = rng.poisson(mean * rng.uniform(0.5, 2, (n, 1))).astype(np.float32)
    obs = pd.DataFrame({"total_counts": x.sum(1) + 10}, index=[f"s:{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"G{i}" for i in range(genes)])
    return anndata.AnnData(sparse.csr_matrix(x), obs=obs, var=var)


def test_embedding_is_the_scaled_singular_vectors_of_log_counts():
    adata = counts()
    x_teacher = load_teacher("pca", n_components=4, scale=3.0).fit(adata).embed(adata)
    logs = np.log1p(1e4 * adata.X.toarray() / adata.obs["total_counts"].to_numpy()[:, None])
    u, s, _ = np.linalg.svd(logs - logs.mean(0), full_matrices=False)
    expected = u[:, :4] * s[:4]
    expected *= 3.0 / expected[:, 0].std()
    assert x_teacher.dtype == np.float32 and x_teacher.shape == (60, 4)
    np.testing.assert_allclose(np.abs(x_teacher), np.abs(expected), atol=2e-3)
    assert x_teacher[:, 0].std() == pytest.approx(3.0, rel=1e-4)
    again = load_teacher("pca", n_components=4, scale=3.0).fit(adata).embed(adata)
    np.testing.assert_array_equal(again, x_teacher)  # also the signs


def test_counts_of_test_spots_do_not_reach_the_fit():
    adata, other, train = counts(), counts(), np.arange(60) < 45
    changed = other.X.toarray()
    changed[~train] = changed[~train][:, ::-1] * 7
    other.X = sparse.csr_matrix(changed)
    teachers = (load_teacher("pca", n_components=4) for _ in range(2))
    here, there = (embed_spots(a, train, next(teachers), k=3) for a in (adata, other))
    x, moved = here.obsm["X_teacher"], there.obsm["X_teacher"]
    np.testing.assert_array_equal(x[train], moved[train])
    assert here.obs["pseudo_label"][train].equals(there.obs["pseudo_label"][train])
    assert not np.allclose(x[~train], moved[~train], atol=0.1)


def test_every_spot_gets_the_label_of_its_nearest_centre():
    adata, train = counts(), np.arange(60) % 4 != 0
    made = embed_spots(adata, train, load_teacher("pca", n_components=4), k=5, seed=2)
    x_teacher, labels = made.obsm["X_teacher"], made.obs["pseudo_label"].to_numpy()
    centres = fit_pseudo_labels(x_teacher[train], 5, seed=2).cluster_centers_
    distance = ((x_teacher[:, None] - centres) ** 2).sum(-1)  # (n, k)
    assert np.array_equal(labels, distance.argmin(1)) and set(labels[train]) == set(range(5))
    assert made.obs_names.equals(adata.obs_names)
    assert made.obs["teacher_train"].tolist() == train.tolist()


def test_facts_survive_the_h5ad_also_where_spots_are_few(tmp_path):
    adata, train = counts(), np.arange(60) < 5
    with pytest.warns(UserWarning):
        made = embed_spots(adata, train, load_teacher("pca", n_components=12), k=16)
    made.write_h5ad(tmp_path / "teacher.h5ad")
    facts = anndata.read_h5ad(tmp_path / "teacher.h5ad").uns["teacher"]
    found = [facts[name] for name in ("name", "n_components", "k", "n_train", "n_genes")]
    assert found == ["pca", 4, 5, 5, 25] and facts["note"]
    assert made.obsm["X_teacher"].shape == (60, 4) and np.isfinite(made.obsm["X_teacher"]).all()


def test_misuse_is_refused_with_its_name():
    for name, options in (("scgpt", {}), ("pca", {"rank": 3}), ("pca", {"device": "tpu"})):
        with pytest.raises(PekaError, match=next(iter(options), name)):
            load_teacher(name, **options)
    adata, teacher, all_spots = counts(), load_teacher("pca", n_components=3), np.ones(60, bool)
    with pytest.raises(PekaError, match="fit"):
        teacher.embed(adata)
    with pytest.raises(PekaError, match="25 genes"):
        teacher.fit(adata).embed(adata[:, ::-1])
    with pytest.raises(PekaError, match="x_teacher"):
        embed_spots(adata, all_spots, Embedded(teacher, np.zeros((59, 3))))
    for mask in (np.zeros(60, bool), np.ones(59, bool), np.ones(60)):
        with pytest.raises(PekaError, match="train_mask"):
            embed_spots(adata, mask, teacher)


def test_an_adata_of_ones_own_needs_no_total_counts():
    adata, train = counts(), np.arange(60) < 40
    adata.obs["total_counts"] = adata.X.toarray().sum(1)
    bare = pd.DataFrame(index=adata.obs_names)
    own = anndata.AnnData(adata.X.toarray(), obs=bare, var=adata.var)
    teachers = (load_teacher("pca", n_components=4) for _ in range(2))
    ours, theirs = (embed_spots(a, train, next(teachers), k=3) for a in (adata, own))
    np.testing.assert_allclose(theirs.obsm["X_teacher"], ours.obsm["X_teacher"], atol=1e-5)
    assert theirs.obs["pseudo_label"].equals(ours.obs["pseudo_label"])
