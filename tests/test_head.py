import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GroupKFold, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from peka_core import head
from peka_core.head import choose_alpha, fit_head, fit_predict


def drawn(n, d, g=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + 30, d)) @ rng.normal(size=(d, d)) / np.sqrt(d) + 5
    x = x * rng.lognormal(0, 1, d)
    y = x[:, :3] @ rng.normal(size=(3, g)) + rng.normal(size=(n + 30, g)) + 2
    return x[:n], y[:n], x[n:]


def sklearn_head(x, y, new, alpha, components=256):
    pca = PCA(min(components, *x.shape), svd_solver="full")
    return make_pipeline(StandardScaler(), pca, Ridge(alpha=alpha)).fit(x, y).predict(new)


def equal_scikit_learn(x, y, new, alpha=1.0):
    expected = sklearn_head(*(np.asarray(a, float) for a in (x, y, new)), alpha)
    np.testing.assert_allclose(fit_head(x, y).predict(new, alpha), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n, d", [(80, 300), (330, 280), (150, 40)], ids=["n<d", "n>d", "d<256"])
def test_head_equals_scikit_learn(n, d, monkeypatch):
    x, y, new = drawn(n, d)
    for alpha in (0.1, 1000.0):
        equal_scikit_learn(x, y, new, alpha)
    equal_scikit_learn(*(a.astype(np.float32) for a in (x, y, new)))
    monkeypatch.setattr(head, "BLOCK", 7)
    equal_scikit_learn(x, y, new)


def test_float64_is_never_a_copy_of_all_features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40_000, 64)).astype(np.float32)  # 10 MB; 20 MB in float64
    tracemalloc.start()
    fit_head(x, x[:, :3]).predict(x, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15e6


@pytest.mark.parametrize("n", [40, 400], ids=["n<d", "n>d"])
def test_constant_and_repeated_features_are_ignored_as_ridge_does(n):
    x, y, new = drawn(n, 20)
    extra = lambda a: [a, a[:, :5], np.full((len(a), 2), 0.1), np.zeros((len(a), 40))]
    x, new = (np.hstack(extra(a)) for a in (x, new))
    new[:, -1] = 1.0  # never seen in training: must not move anything
    equal_scikit_learn(x, y, new)


@pytest.mark.parametrize("n", [40, 400], ids=["n<d", "n>d"])
def test_without_penalty_the_head_is_least_squares_of_minimum_norm(n):
    x, y, new = drawn(n, 20)
    x, new = (np.hstack([a, a[:, :5] * 2 - 1, a @ np.ones((20, 30))]) for a in (x, new))
    expected = make_pipeline(StandardScaler(), LinearRegression()).fit(x, y).predict(new)
    np.testing.assert_allclose(fit_head(x, y).predict(new, 1e-12), expected, atol=1e-5)


def test_path_is_predict_at_each_alpha_and_genes_do_not_mix():
    x, y, new = drawn(200, 50)
    path = fit_head(x, y).predict_for_alphas(new, [0.5, 50])
    np.testing.assert_allclose(path[1], sklearn_head(x, y, new, 50), atol=1e-8)
    alone = fit_head(x, y[:, [2]]).predict(new, 0.5)[:, 0]
    np.testing.assert_allclose(alone, path[0, :, 2], atol=1e-10)


def test_a_dropped_spot_leaves_fit_of_its_gene_alone():
    x, y, _ = drawn(90, 10)
    y[np.random.default_rng(1).random(y.shape) < 0.4] = np.nan
    y[:, 3] = np.nan
    train, test = np.arange(60), np.arange(60, 90)
    predicted = fit_predict(x, y, train, test, [2.0])[0]
    for gene in range(3):
        rows = train[np.isfinite(y[train, gene])]
        np.testing.assert_allclose(
            predicted[:, gene], sklearn_head(x[rows], y[rows, gene], x[test], 2.0), atol=1e-8
        )
    assert np.isnan(predicted[:, 3]).all()


def grouped(n_groups, n_sections, per_section=40, d=30, seed=0):
    """Three latent directions in noisy features, weak targets of the latents."""
    rng = np.random.default_rng(seed)
    n = n_groups * n_sections * per_section
    samples = np.repeat(np.arange(n_groups * n_sections), per_section)
    obs = pd.DataFrame({"group": samples // n_sections, "sample": samples})
    latent = rng.normal(size=(n, 3))
    x = latent @ rng.normal(size=(3, d)) + 0.7 * rng.normal(size=(n, d))
    return x, latent @ rng.normal(size=(3, 4)) + 3 * rng.normal(size=(n, 4)), obs


@pytest.mark.parametrize("shape", [(6, 2), (1, 4), (1, 1)], ids=["patients", "sections", "spots"])
def test_alpha_is_that_of_a_plain_loop_over_scikit_learn(shape):
    x, y, obs = grouped(*shape, per_section=80 if shape == (1, 1) else 40)
    rows = np.arange(len(x))[::-1][:-7]  # any order, not all spots
    groups = obs["group" if shape[0] > 1 else "sample"].iloc[rows]
    folds, samples = GroupKFold(max(2, min(5, max(shape)))), obs["sample"].to_numpy()
    if shape == (1, 1):
        groups, folds = None, KFold(5, shuffle=True, random_state=0)
    alphas, curve = np.logspace(-1, 5, 7), []
    for alpha in alphas:
        sections = []
        for train, test in folds.split(rows, groups=groups):
            new = rows[test]
            predicted = sklearn_head(x[rows[train]], y[rows[train]], x[new], alpha)
            for sample in np.unique(samples[new]):
                mask = samples[new] == sample
                sections.append(np.mean(pearsonr(y[new[mask]], predicted[mask]).statistic))
        curve.append(np.mean(sections))
    best = alphas[np.argmax(curve)]
    assert alphas[0] < best < alphas[-1]
    assert choose_alpha(x, y, rows, obs, alphas) == best


def test_float_noise_does_not_choose_alpha():
    x, y, obs = grouped(4, 1)
    rows, alphas = np.arange(len(x)), np.logspace(-1, 5, 13)
    one_hot = np.eye(4)[obs["group"]]  # undefined inside sections
    assert choose_alpha(one_hot, y, rows, obs, alphas) == alphas[0]
    one = x[:, :1]  # of one feature PCC is the same at any alpha
    assert choose_alpha(one, y, rows, obs, alphas) == alphas[0]
