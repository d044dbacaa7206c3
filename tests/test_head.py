"""The head against scikit-learn's pipeline, and the choice of its penalty against a plain loop."""

import numpy as np
import pandas as pd
import pytest
from fake_cohort import sklearn_head
from scipy.stats import pearsonr
from sklearn.model_selection import GroupKFold, KFold

from peka_core import head
from peka_core.head import choose_alpha, fit_head, fit_predict


def drawn(n, d, g=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + 30, d)) @ rng.normal(size=(d, d)) / np.sqrt(d) + 5
    x = x * rng.lognormal(0, 1, d)
    y = x[:, :3] @ rng.normal(size=(3, g)) + rng.normal(size=(n + 30, g)) + 2
    return x[:n], y[:n], x[n:]


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


@pytest.mark.parametrize("n", [40, 400], ids=["n<d", "n>d"])
def test_constant_and_repeated_features_change_nothing(n):
    x, y, new = drawn(n, 20)
    wide = lambda a: [a, a[:, :5], np.full((len(a), 2), 0.1), np.zeros((len(a), 40))]
    wide_x, wide_new = (np.hstack(wide(a)) for a in (x, new))
    wide_new[:, -1] = 1.0  # never seen in training: must not move anything
    equal_scikit_learn(wide_x, y, wide_new)


def test_each_alpha_and_gene_is_fitted_alone_on_its_own_spots():
    x, y, _ = drawn(90, 10)
    whole, y = y.copy(), np.where(np.random.default_rng(1).random(y.shape) < 0.4, np.nan, y)
    y[:, 3] = np.nan
    train, test, alphas = np.arange(60), np.arange(60, 90), [0.5, 50.0]
    for targets in (whole, y):
        path = fit_predict(x, targets, train, test, alphas)  # (a, m, g)
        for gene, target in enumerate(targets.T):
            rows = train[np.isfinite(target[train])]
            for predicted, alpha in zip(path[..., gene], alphas, strict=True):
                fit = sklearn_head if len(rows) else lambda *_: np.full(30, np.nan)
                expected = fit(x[rows], target[rows], x[test], alpha)
                np.testing.assert_allclose(predicted, expected, atol=1e-8)


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
    one_hot = np.eye(4)[obs["group"]]  # undefined inside sections
    for features in (one_hot, x[:, :1]):  # of one feature PCC is the same at any alpha
        alphas = np.logspace(-1, 5, 13)
        assert choose_alpha(features, y, np.arange(len(x)), obs, alphas) == alphas[0]
