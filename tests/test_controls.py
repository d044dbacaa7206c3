from dataclasses import replace

import numpy as np
import pytest
from fake_cohort import draw
from scipy.spatial.distance import cdist

from peka_core import controls
from peka_core.cohort import open_cohort
from peka_core.drawn import oracle as drawn_oracle
from peka_core.evaluation import evaluate
from peka_core.layout import patches
from peka_core.protocols import PROTOCOLS, make_tasks
from peka_core.statistics import summarise

PAPER = replace(PROTOCOLS["peka_paper"], n_genes=10)
STRICT = replace(PROTOCOLS["strict"], n_genes=10)


def chosen(scores, pooling):
    return scores[
        (scores["pooling"] == pooling) & (scores["genes"] == "all") & (scores["alpha"] == "chosen")
    ]


def test_one_hot_scores_pooled_and_is_undefined_inside_sections():
    cohort = draw()
    one_hot = controls.slide_one_hot(cohort)
    assert one_hot.shape == (240, 8) and (one_hot.sum(1) == 1).all()
    scores = evaluate(cohort, one_hot, PAPER).scores
    assert chosen(scores, "pooled")["pcc"].mean() > 0.2
    assert chosen(scores, "section")["pcc"].isna().all()


def test_one_hot_of_a_held_out_slide_is_undefined():
    cohort = draw()
    scores = evaluate(cohort, controls.slide_one_hot(cohort), STRICT).scores
    assert scores["pcc"].isna().all() and (scores["n_undefined"] == scores["n_genes"]).all()
    assert summarise(scores, STRICT)["mean"].isna().all()


def test_permuted_targets_score_zero_where_the_features_score_high():
    cohort = draw(patients=6, spots=120, depth=2000)
    real, chance = (
        chosen(evaluate(cohort, x, STRICT).scores, "section")["pcc"].mean()
        for x in (cohort.features, controls.permuted_targets(cohort.features, seed=1))
    )
    assert real > 0.4 and abs(chance) < 0.05


def test_permutation_moves_training_targets_only_and_follows_the_seed():
    cohort = draw()
    task = make_tasks(cohort, PAPER)[0]
    before = task.targets.copy()
    train, test = np.flatnonzero(task.split.train), np.flatnonzero(task.split.test)
    first, again, other = (
        controls.permuted_targets(cohort.features, seed)(task, train, test)["chosen"][1]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(task.targets, before)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_allclose(first.mean(), task.targets[train].mean(), atol=0.2)


def test_library_size_predicts_what_zero_dropping_rewards():
    cohort = draw(patients=3, spots=120, depth=60)
    log = controls.library_size(cohort)
    np.testing.assert_allclose(log[:, 0], np.log(1 + cohort.counts.sum(1)), rtol=1e-6)
    kept, dropped = (
        chosen(evaluate(cohort, log, p).scores, "pooled")["pcc"].mean()
        for p in (PAPER, replace(PAPER, zeros="drop", min_spots=50))
    )
    assert dropped > kept + 0.1
    assert controls.slide_and_library_size(cohort).shape == (720, 7)


def plain_nearest(cohort, task, gene, spot, candidates, k=8):
    """Mean of the k nearest by a full distance matrix."""
    sample = cohort.obs["sample"].to_numpy()
    candidates = [
        c
        for c in candidates
        if sample[c] == sample[spot] and c != spot and np.isfinite(task.targets[c, gene])
    ]
    distance = cdist(cohort.spatial[[spot]], cohort.spatial[candidates])[0]
    return task.targets[np.array(candidates)[np.argsort(distance)[:k]], gene].mean()


@pytest.mark.parametrize(
    "protocol",
    [PAPER, replace(PAPER, zeros="drop", min_spots=50), STRICT],
    ids=["spots", "zeros dropped", "held out"],
)
def test_nearest_spots_equal_a_distance_matrix(protocol):
    cohort = draw(patients=3, depth=120)
    task = make_tasks(cohort, protocol)[0]
    train, test = np.flatnonzero(task.split.train), np.flatnonzero(task.split.test)
    predicted = controls.nearest_spots(cohort)(task, train, test)
    known = train if protocol.scheme == "spots" else np.arange(len(cohort.obs))
    for i in range(0, len(test), 7):
        for gene in (0, 4, 9):
            expected = plain_nearest(cohort, task, gene, test[i], known)
            np.testing.assert_allclose(predicted[i, gene], expected, rtol=1e-5)


def test_nearest_spots_of_a_lone_spot_are_undefined():
    cohort = draw(patients=3, spots=4)
    cohort.obs.iloc[0, cohort.obs.columns.get_loc("sample")] = "alone"
    task = make_tasks(draw(patients=3, spots=4), replace(STRICT, n_genes=5))[0]
    task = replace(task, obs=cohort.obs)
    predicted = controls.nearest_spots(cohort)(
        task, *(np.flatnonzero(m) for m in (task.split.train, task.split.test))
    )
    assert np.isnan(predicted[0]).all() and np.isfinite(predicted[1:]).all()


def test_colour_equals_numpy_on_the_pixels(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    features = controls.colour(cohort)
    assert features.shape == (len(cohort.obs), 18) and features.dtype == np.float32
    for spot in (0, 50):
        pixels = cohort.tiles()[[spot]].reshape(-1, 3).astype(float)
        quantiles = np.percentile(pixels, [10, 50, 90], axis=0, method="inverted_cdf")
        density = -np.log((pixels + 1) / 256).mean(0)
        expected = np.concatenate([pixels.mean(0), pixels.std(0), quantiles.ravel(), density])
        np.testing.assert_allclose(features[spot], expected, rtol=1e-4)


def test_colour_follows_the_spots_in_every_chunk(tiny_cohort, monkeypatch):
    cohort = open_cohort(tiny_cohort)
    whole = controls.colour(cohort)
    monkeypatch.setattr(patches, "CHUNK", 5)
    np.testing.assert_array_equal(controls.colour(cohort), whole)


@pytest.mark.parametrize(
    "protocol, expected",
    [
        (PAPER, ("nothing", False)),
        (STRICT, ("patients", False)),
        (replace(PAPER, zeros="drop", min_spots=50), ("nothing", True)),
    ],
    ids=["spots", "held out", "zeros dropped"],
)
def test_oracle_is_drawn_once_for_its_scheme_and_read_by_gene(protocol, expected, monkeypatch):
    cohort, calls = draw(), []

    def drawn(path, redraw, redraws, seed, positive_only):
        calls.append((redraw, positive_only))
        return np.log1p(1e4 * cohort.counts / cohort.counts.sum(1, keepdims=True)).astype(
            np.float32
        )

    monkeypatch.setattr(drawn_oracle, "expected_targets", drawn)
    scores = chosen(
        evaluate(cohort, drawn_oracle.oracle(cohort), protocol).scores, protocol.pooling
    )
    np.testing.assert_allclose(scores["pcc"], 1, atol=1e-5)
    assert calls == [expected]


def test_named_builders_give_what_evaluate_takes():
    cohort = draw()
    for name, build in (controls.CONTROLS | controls.REFERENCES).items():
        if name != "colour":
            assert len(evaluate(cohort, build(cohort), PAPER).scores)
