"""The pca teacher and the pseudo-labels: what they compute, and from which spots."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from peka_core.common.errors import PekaError
from peka_core.targets import training_spots, validation_groups
from peka_core.teachers import PrecomputedTeacher, embed_spots, fit_kmeans, fit_leiden, load_teacher

N = 60


def counts():
    """Raw counts of three kinds of spots; total_counts includes genes that are not in the table."""
    rng = np.random.default_rng(0)
    mean = rng.gamma(2, 3, (3, 25))[rng.integers(0, 3, N)]
    x = rng.poisson(mean * rng.uniform(0.5, 2, (N, 1))).astype(np.float32)
    obs = pd.DataFrame({"total_counts": x.sum(1) + 10}, index=[f"s:{i}" for i in range(N)])
    var = pd.DataFrame(index=[f"G{i}" for i in range(25)])
    return anndata.AnnData(sparse.csr_matrix(x), obs=obs, var=var)


@pytest.mark.parametrize("own", [False, True])
def test_embedding_is_the_scaled_singular_vectors_of_log_counts(own):
    adata = counts()
    x, totals = adata.X.toarray(), adata.obs["total_counts"].to_numpy()
    if own:  # a table of one's own has counts alone
        adata = anndata.AnnData(x, obs=pd.DataFrame(index=adata.obs_names), var=adata.var)
        totals = x.sum(1)
    embed = lambda: load_teacher("pca", n_components=4, scale=3.0).fit(adata).embed(adata)
    logs = np.log1p(1e4 * x / totals[:, None])
    u, s, _ = np.linalg.svd(logs - logs.mean(0), full_matrices=False)
    expected = u[:, :4] * s[:4]
    expected *= 3.0 / expected[:, 0].std()
    x_teacher = embed()
    assert x_teacher.dtype == np.float32 and x_teacher.shape == (N, 4)
    np.testing.assert_allclose(np.abs(x_teacher), np.abs(expected), atol=2e-3)
    np.testing.assert_array_equal(embed(), x_teacher)  # also the signs


def test_training_spots_alone_decide_and_every_spot_gets_the_label_of_its_nearest_centre():
    adata, other, train = counts(), counts(), np.arange(N) % 4 != 0
    other.X = np.where(train[:, None], other.X.toarray(), other.X.toarray()[:, ::-1] * 7)
    teachers = [load_teacher("pca", n_components=4) for _ in range(2)]
    made, moved = (embed_spots(a, train, t, k=5, seed=2) for a, t in zip((adata, other), teachers))
    x_teacher, labels = made.obsm["X_teacher"], made.obs["pseudo_label"].to_numpy()
    centres = fit_kmeans(x_teacher[train], 5, seed=2).cluster_centers_
    distance = ((x_teacher[:, None] - centres) ** 2).sum(-1)  # (n, k)
    assert np.array_equal(labels, distance.argmin(1)) and set(labels[train]) == set(range(5))
    assert made.obs_names.equals(adata.obs_names)
    assert made.obs["teacher_train"].tolist() == train.tolist()
    assert np.array_equal(labels[train], moved.obs["pseudo_label"][train])
    np.testing.assert_array_equal(moved.obsm["X_teacher"][train], x_teacher[train])
    assert not np.allclose(moved.obsm["X_teacher"][~train], x_teacher[~train], atol=0.1)


def test_facts_survive_the_h5ad_also_where_spots_are_few(tmp_path):
    with pytest.warns(UserWarning):
        made = embed_spots(counts(), np.arange(N) < 5, load_teacher("pca", n_components=12), k=16)
    made.write_h5ad(tmp_path / "teacher.h5ad")
    facts = anndata.read_h5ad(tmp_path / "teacher.h5ad").uns["teacher"]
    found = [facts[name] for name in ("name", "n_components", "k", "n_train", "n_genes")]
    assert found == ["pca", 4, 5, 5, 25] and facts["note"]
    assert made.obsm["X_teacher"].shape == (N, 4) and np.isfinite(made.obsm["X_teacher"]).all()


def test_other_genes_spots_or_numbers_for_a_mask_are_refused():
    adata, teacher = counts(), load_teacher("pca", n_components=3)
    with pytest.raises(PekaError, match="25 genes"):
        teacher.fit(adata).embed(adata[:, ::-1])
    with pytest.raises(PekaError, match="x_teacher"):
        embed_spots(adata, np.ones(N, bool), PrecomputedTeacher(teacher, np.zeros((59, 3))))
    with pytest.raises(PekaError, match="train_mask"):
        embed_spots(adata, np.ones(N), teacher)  # numbers instead of a mask


def test_patients_validate_and_sections_only_where_one_patient_trains():
    obs = pd.DataFrame({"group": list("AABB"), "sample": ["A1", "A2", "B1", "B2"]})
    for train, expected in (([1, 1, 1, 1], list("AABB")), ([1, 1, 0, 0], list(obs["sample"]))):
        assert validation_groups(obs, np.array(train, bool)).tolist() == expected
    share = training_spots(obs, np.ones(4, bool), 0.5, seed=0)
    assert share.tolist() in ([True, True, False, False], [False, False, True, True])


@pytest.mark.parametrize("name", ["scfoundation", "scgpt", "geneformer"])
def test_a_published_teacher_refuses_a_choice_that_does_not_exist(name):
    with pytest.raises(PekaError, match="unusable"):
        load_teacher(name, unusable="maybe")


@pytest.mark.weekly
def test_leiden_keeps_groups_apart_in_a_cohort_of_many_spots():
    """From 8,192 spots on, scanpy looks for neighbours in another way if nothing is said."""
    groups = np.arange(8_200) % 3
    x = np.random.default_rng(0).normal(size=(8_200, 2)) + 100 * groups[:, None]
    labels = fit_leiden(x.astype(np.float32), k=200).predict(x)
    assert (pd.crosstab(labels, groups) > 0).sum(axis=1).eq(1).all() and len(set(labels)) >= 3
