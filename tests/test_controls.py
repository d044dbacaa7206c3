"""Controls and references: what they can and cannot score, against numpy and scipy."""

from dataclasses import replace

import numpy as np
import pytest
from fake_cohort import DROPPED, PAPER, STRICT, draw
from scipy.spatial.distance import cdist

from peka_core import controls
from peka_core.cohort import open_cohort
from peka_core.evaluation import evaluate
from peka_core.layout import patches
from peka_core.tasks import make_tasks


def pcc(cohort, predictor, protocol):
    """PCC of all genes, pooled and by section."""
    scores = evaluate(cohort, predictor, protocol).scores.query("genes == 'all'")
    return [scores.query("pooling == @how")["pcc"] for how in ("pooled", "section")]


def test_one_hot_scores_pooled_and_is_undefined_inside_sections():
    cohort = draw()
    one_hot = controls.slide_one_hot(cohort)
    pooled, by_section = pcc(cohort, one_hot, PAPER)
    assert pooled.mean() > 0.2 and by_section.isna().all()
    scores = evaluate(cohort, one_hot, STRICT).scores  # held-out slides
    assert scores["pcc"].isna().all() and (scores["n_undefined"] == scores["n_genes"]).all()


def test_permuted_targets_of_training_spots_score_zero_where_the_features_score_high():
    cohort = draw(patients=6, spots=120, depth=2000)
    task = make_tasks(cohort, STRICT)[0]
    before = task.targets.copy()
    first, again, other = (
        controls.permuted_targets(cohort.features, seed)(task, *task.rows)["chosen"][1]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(task.targets, before)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert pcc(cohort, cohort.features, STRICT)[1].mean() > 0.4
    chance = controls.permuted_targets(cohort.features, seed=1)
    assert abs(pcc(cohort, chance, STRICT)[1].mean()) < 0.05


def plain_nearest(cohort, task, gene, spot, candidates, k=8):
    """Mean of the k nearest by a full distance matrix."""
    targets, sample = task.targets[:, gene], cohort.obs["sample"].to_numpy()
    alike = (sample == sample[spot]) & np.isfinite(targets) & (np.arange(len(sample)) != spot)
    near = candidates[alike[candidates]]
    distance = cdist(cohort.spatial[[spot]], cohort.spatial[near])[0]
    return targets[near[np.argsort(distance)[:k]]].mean()


@pytest.mark.parametrize("protocol", [DROPPED, STRICT], ids=["spots", "held out"])
def test_nearest_spots_equal_a_distance_matrix_and_a_lone_spot_has_none(protocol):
    cohort = draw(patients=3, depth=120)
    task = make_tasks(cohort, protocol)[0]
    train, test = task.rows
    predicted = controls.nearest_spots(cohort)(task, train, test)
    measured = np.arange(len(cohort.obs)) if protocol is STRICT else train
    genes = np.flatnonzero(np.isfinite(task.targets).any(0))[:3]
    for i in range(0, len(test), 7):
        expected = [plain_nearest(cohort, task, gene, test[i], measured) for gene in genes]
        np.testing.assert_allclose(predicted[i, genes], expected, rtol=1e-5)
    obs = cohort.obs.copy()
    obs.iloc[test[0], obs.columns.get_loc("sample")] = "alone"
    predicted = controls.nearest_spots(cohort)(replace(task, obs=obs), train, test)
    assert np.isnan(predicted[0]).all() and np.isfinite(predicted[1:, genes]).all()


def test_colour_equals_numpy_on_the_pixels_in_every_chunk(tiny_cohort, monkeypatch):
    cohort = open_cohort(tiny_cohort)
    features = controls.colour(cohort)
    for spot in (0, 50):
        pixels = cohort.tiles()[[spot]].reshape(-1, 3).astype(float)
        quantiles = np.percentile(pixels, [10, 50, 90], axis=0, method="inverted_cdf")
        density = -np.log((pixels + 1) / 256).mean(0)
        expected = np.concatenate([pixels.mean(0), pixels.std(0), quantiles.ravel(), density])
        np.testing.assert_allclose(features[spot], expected, rtol=1e-4)
    monkeypatch.setattr(patches, "CHUNK", 5)
    np.testing.assert_array_equal(controls.colour(cohort), features)
