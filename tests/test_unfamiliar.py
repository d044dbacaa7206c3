"""Distances, their threshold and the interval of a slide's mean, against independent oracles."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from peka_core.unfamiliar import fit_familiar, is_unfamiliar_slide, mean_half_width, threshold_of


def test_the_distance_is_that_of_scikit_learns_shrunk_covariance_in_all_dimensions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + 3
    x[:, 2] = 1.5  # a constant feature
    new = rng.normal(size=(5000, 6))
    new[:, 2] = 1.5
    found = fit_familiar(x).distance(new)
    scale = np.where(x.std(0) > 1e-12, x.std(0), 1.0)
    precision = LedoitWolf().fit((x - x.mean(0)) / scale).precision_
    expected = [mahalanobis(row, x.mean(0) / scale, precision) for row in new[-20:] / scale]
    np.testing.assert_allclose(found[-20:], expected, rtol=1e-9)
    assert found.shape == (5000,) and fit_familiar(x).distance(new[:0]).shape == (0,)


def test_each_patient_weighs_the_same_in_the_threshold():
    rng, sizes = np.random.default_rng(1), (3, 5, 15)
    distances, groups = rng.normal(size=23), np.repeat(["a", "b", "c"], sizes)
    repeated = np.repeat(distances, np.repeat([15 // n for n in sizes], sizes))  # 15 of each
    order = rng.permutation(23)
    for q in (0.5, 0.9, 0.95):
        expected = np.quantile(repeated, q, method="inverted_cdf")
        assert threshold_of(distances[order], groups[order], q) == expected


@pytest.mark.parametrize(("share", "expected"), [(0.5, False), (0.51, True)])
def test_a_slide_is_unfamiliar_if_more_than_half_of_its_tiles_are(share, expected):
    distances = np.where(np.arange(100) < 100 * share, 2.0, 1.0)
    assert is_unfamiliar_slide(distances, 1.0) is expected
    assert not is_unfamiliar_slide(distances, np.nan) and not is_unfamiliar_slide([], 1.0)


@pytest.mark.parametrize("n", [10, 14, 30])
def test_the_interval_of_a_mean_covers_new_patients_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    errors = rng.standard_t(3, size=(n, 20_000)) + 0.3  # heavy tails and a bias; a gene is a trial
    covered = (np.abs(rng.standard_t(3, size=20_000) + 0.3) <= mean_half_width(errors)).mean()
    assert 0.8 - 0.01 < covered < 0.8 + 1 / (n + 1) + 0.01
    assert np.isnan(mean_half_width(errors[:9])).all()
