"""What a gain is worth: neighbours and graph statistics by hand, the head's choices, the tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_cohort import STRICT, draw, sklearn_head

from peka_core.evaluation import evaluate
from peka_core.runner import stages
from peka_core.statistics import paired
from peka_core.studies import worth, worth_figures
from peka_core.targets import training_spots
from peka_core.tasks import make_tasks


def nearest(points, i, k):
    """The k points nearest to point i, by a full sort of all distances."""
    order = np.argsort(((points - points[i]) ** 2).sum(1))
    return order[order != i][:k]


def test_neighbours_are_of_the_own_section_and_never_the_spot_itself():
    rng, sizes = np.random.default_rng(0), (20, 5, 1)
    samples = np.repeat(["A", "B", "C"], sizes)
    order = rng.permutation(26)
    samples, x, xy = samples[order], rng.normal(size=(26, 3)), rng.uniform(size=(26, 2))
    found = worth.with_neighbours(x, xy, samples)
    for i, section in enumerate(samples):
        rows = np.flatnonzero(samples == section)
        near = rows[nearest(xy[rows], np.flatnonzero(rows == i)[0], 8)]
        mean = x[near].mean(0) if section != "C" else x[i]
        np.testing.assert_allclose(found[i], [*x[i], *mean])


def test_geary_and_moran_by_their_formulas():
    cohort = draw(patients=1, sections=3, spots=16, genes=5)
    samples = cohort.obs["sample"].to_numpy(object)
    samples[-7:], log = "small", np.log1p(cohort.counts.astype(float))
    log[:16, 0], log[:, 1] = 2.0, 0.0  # constant in one section, and in all
    x, xy = cohort.features * np.geomspace(1, 100, 12), cohort.spatial  # to be standardised
    table = worth.predictability(log, x, xy, samples, k=7)
    assert table["sections"].tolist() == [1, 0, 2, 2, 2]  # the third has 9
    assert table["constant"].tolist() == [1, 2, 0, 0, 0]
    scaled, by_hand = (x - x.mean(0)) / x.std(0), []
    for rows in (np.arange(16), np.arange(16, 32)):
        y = log[rows, 2:] - log[rows, 2:].mean(0)
        edges = lambda p, k: [(i, j) for i in range(16) for j in nearest(p, i, k)]
        i, j = np.transpose(edges(scaled[rows], 7))
        geary = 15 * ((y[i] - y[j]) ** 2).sum(0) / (2 * len(i) * (y**2).sum(0))
        i, j = np.transpose(edges(xy[rows], 8))
        by_hand.append([-np.log(geary), 16 * (y[i] * y[j]).sum(0) / (len(i) * (y**2).sum(0))])
    assert table.loc[1, ["predictability", "moran"]].isna().all()
    np.testing.assert_allclose(table[["predictability", "moran"]][2:].T, np.mean(by_hand, 0))


def test_half_the_patients_fit_the_head_and_the_oracle_penalty_is_never_beaten():
    cohort, fixed = draw(patients=5), replace(STRICT, alphas=(1.0,))
    task, x = make_tasks(cohort, fixed)[0], cohort.features
    half, (_, test) = training_spots(cohort.obs, task.split.train, 0.5, 3), task.rows
    assert cohort.obs.loc[half, "group"].nunique() == 2
    predicted = worth.half_the_patients(x, 3)(task, *task.rows)["chosen"][1]
    expected = sklearn_head(x[half], task.targets[half], x[test])
    np.testing.assert_allclose(predicted, expected, atol=1e-5)
    few = draw(patients=2, sections=1)  # one training section has no half
    split = make_tasks(few, fixed)[0]
    assert np.isnan(worth.half_the_patients(few.features)(split, *split.rows)["chosen"][1]).all()
    tasks = make_tasks(cohort, STRICT)
    best = evaluate(cohort, worth.oracle_alpha(x), STRICT, tasks).scores
    rivals = [evaluate(cohort, x, STRICT, tasks, alpha).scores for alpha in STRICT.alphas]
    ahead = pd.DataFrame([paired(best, rival)["values"] for rival in rivals])  # (alphas, patients)
    assert (ahead.min() > -1e-9).all() and (ahead.min() < 1e-9).all() and ahead.max().min() > 0


def test_a_scatter_shows_genes_with_both_values_and_without_a_student_the_frozen_encoder_alone():
    x, frozen, aligned = [0.1, 0.3, 0.2, np.nan], [0.2, 0.5, 0.4, 0.3], [0.1, 0.2, 0.3, 0.4]
    values = {"predictability": x, "frozen": frozen, "aligned": aligned}
    table, order = pd.DataFrame(values), ["frozen", "aligned"]
    for method, columns in (("bat", order), ("none", order[:1])):
        ax = worth_figures.gene_scatter(table.assign(method=method))
        dots = [line.get_ydata().tolist() for line in ax.lines if len(line.get_xdata()) == 3]
        assert dots == [values[column][:3] for column in columns]
        words = [text.get_text() for text in ax.get_legend().get_texts()]
        assert [float(word.split()[-1]) for word in words] == [1.0, 0.5][: len(columns)]
        assert "3 of 4 genes" in ax.get_title()


def test_tables_of_a_run_have_each_gain_and_each_gene(work):
    gains = worth.gains(work, draws=2).query("genes == 'all'").set_index("label")
    assert gains["kind"].tolist() == ["alignment", "head", "head", "images", "bound"]
    strict, features = worth.PROTOCOLS["strict"], stages.space_of(work, "frozen")
    scored = {name: stages.score(work, name, strict) for name in ("frozen", "bat")}
    scored["fixed"] = evaluate(work.cohort(), features, strict, work.tasks(strict), alpha=1.0)
    chosen, level = "pooling == 'section' and genes == 'all' and alpha == 'chosen'", {}
    for name, evaluation in scored.items():
        rows = evaluation.scores.query(chosen)
        level[name] = rows.groupby("patient")["pcc"].mean().mean()
    frozen, (own, fixed) = level["frozen"], gains["base"].iloc[:2]
    assert (own, fixed) == pytest.approx((frozen, level["fixed"])) and (gains["n"] == 4).all()
    assert gains["mean"].iloc[0] == pytest.approx(level["bat"] - frozen)
    assert np.allclose(gains["base"].iloc[3:], frozen)
    assert np.allclose((gains["base"] + gains["mean"]).iloc[1:3], frozen)
    genes = worth.gene_table(work).set_index("gene")
    assert dict(genes["aligned"]) == dict(scored["bat"].genes.set_index("gene")["pcc"])
    assert (genes["sections"] + genes["constant"] == 4).all()
    alone = worth.gene_table(work, "frozen").set_index("gene")
    assert dict(alone["aligned"]) == dict(alone["frozen"]) == dict(genes["frozen"])
    assert genes["ceiling"].max() <= 1 and genes["ceiling"].nunique() > 10
