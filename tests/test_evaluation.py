"""Scores of features and predictors against plain loops of scikit-learn and scipy."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from fake_cohort import DROPPED, PAPER, STRICT, draw, sklearn_head
from scipy.stats import pearsonr

from peka_core.cohort import Split
from peka_core.common.errors import PekaError
from peka_core.evaluation import Evaluation, evaluate, predict_with_head
from peka_core.statistics import MIN_SECTION_SPOTS, summarise
from peka_core.tasks import make_tasks


@pytest.fixture(scope="module")
def strict():
    """A drawn cohort with a copied section, its tasks, and the evaluation of its features."""
    cohort = draw(duplicate=True)
    tasks = make_tasks(cohort, STRICT)
    return cohort, tasks, evaluate(cohort, cohort.features, STRICT, tasks)


def of_sections(result):
    """Scores of all genes in each section, P0A first."""
    return result.scores.query("pooling == 'section' and genes == 'all' and alpha == 'chosen'")


def test_features_of_each_split_may_be_given_by_a_function(strict):
    cohort, tasks, expected = strict
    asked = []
    give = lambda name: asked.append(name) or cohort.features
    names = [task.split.name for task in tasks]
    found = evaluate(cohort, {n: partial(give, n) for n in names}, STRICT, tasks)
    assert asked == names and found.scores.equals(expected.scores)


def per_gene_loop(cohort, protocol, alpha):
    """PCC by split and section ("" for all) of one scikit-learn pipeline a gene and scipy."""
    found, x, samples = {}, cohort.features, cohort.obs["sample"].to_numpy()
    for task in make_tasks(cohort, replace(protocol, zeros="keep")):
        train, test = task.split.train, task.split.test
        for y in task.targets.T.astype(float):
            used = y > 0 if protocol.zeros == "drop" else np.ones(len(y), bool)
            if protocol.zeros == "drop" and used.sum() < protocol.min_spots:
                continue
            predicted = sklearn_head(x[train & used], y[train & used], x, alpha)
            for section in ("", *np.unique(samples[test])):
                here = test & used & ((samples == section) | (section == ""))
                if here.sum() >= (MIN_SECTION_SPOTS if section else 2):
                    pcc = pearsonr(y[here], predicted[here])[0]
                    found.setdefault((task.split.name, section), []).append(pcc)
    return {where: np.nanmean(values) for where, values in found.items()}


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize(("protocol", "alpha"), [(PAPER, None), (DROPPED, None), (STRICT, 30)],
                         ids=["zeros kept", "zeros dropped", "strict"])  # fmt: skip
def test_scores_equal_a_plain_per_gene_loop(protocol, alpha):
    cohort = draw(patients=2, spots=60, depth=120, duplicate=True)
    expected = per_gene_loop(cohort, protocol, alpha or 1.0)
    result = evaluate(cohort, cohort.features, protocol, alpha=alpha)
    scores, table = result.scores.query("genes == 'all'"), result.predictions
    assert (scores["alpha"] == "chosen").all() and (scores["alpha_value"] == (alpha or 1)).all()
    found = scores.set_index(["split", "section"])["pcc"].dropna()
    assert found.to_dict() == pytest.approx(expected, abs=1e-6)
    first, observed = scores.iloc[0], table.layers["observed"]
    np.testing.assert_array_equal(np.isnan(observed), np.isnan(table.layers["predicted"]))
    scored = np.isfinite(observed[table.obs["split"] == first["split"]]).sum()
    assert first["n_spots"] == round(scored / first["n_genes"])
    skipped = 10 - first["n_genes"]
    assert first["n_skipped"] == skipped and (skipped > 0) == (protocol is DROPPED)


def test_changed_test_counts_change_no_prediction_of_strict(strict):
    ours, changed = strict[1], draw(duplicate=True)
    test = changed.splits[0].test
    changed.counts[test] = np.random.default_rng(9).poisson(20, changed.counts[test].shape)
    theirs = make_tasks(changed, STRICT)
    assert ours[0].genes == theirs[0].genes
    assert ours[1].genes != theirs[1].genes  # the same counts do count where they train
    before, after = (predict_with_head(changed.features, t[0]) for t in (ours, theirs))
    for name, (alpha, predicted) in before.items():
        assert after[name][0] == alpha
        np.testing.assert_array_equal(after[name][1], predicted)


def test_undefined_values_are_counted_and_never_zero(strict):
    cohort = draw()
    cohort.counts[cohort.obs["sample"] == "P0A", :20] = 0
    tasks = make_tasks(cohort, STRICT)
    silent = sum(int(gene[1:]) < 20 for gene in tasks[0].genes)
    row = of_sections(evaluate(cohort, cohort.features, STRICT, tasks)).iloc[0]
    assert silent and row["n_undefined"] == silent and row["n_genes"] == 10 and row["pcc"] > 0

    def with_a_gap(task, train, test):
        predicted = task.targets[test].astype(float)
        predicted[0, 3] = np.nan
        return predicted

    first = of_sections(evaluate(strict[0], with_a_gap, STRICT, strict[1])).iloc[0]
    assert first["n_undefined"] == 1 and first["pcc"] == pytest.approx(1)


def test_predictions_hold_each_test_spot_once_per_split(strict):
    cohort, tasks, result = strict
    table = result.predictions
    assert table.n_obs == (cohort.obs["sample"] != "X01").sum() and table.obs_names.is_unique
    assert set(table.var_names) == {gene for task in tasks for gene in task.genes}
    for task in tasks:
        test, part = task.split.test, table[(table.obs["split"] == task.split.name).to_numpy()]
        rest, part = part[:, ~part.var_names.isin(task.genes)], part[:, task.genes]
        assert list(part.obs["spot"]) == list(cohort.obs.index[test])
        np.testing.assert_array_equal(part.layers["observed"], task.targets[test])
        np.testing.assert_array_equal(part.obsm["spatial"], cohort.spatial[test])
        assert np.isfinite(part.layers["predicted"]).all()
        assert all(np.isnan(rest.layers[name]).all() for name in ("predicted", "observed"))


@pytest.mark.parametrize("unit", [["split"], ["patient", "sample"]], ids=["paper", "strict"])
def test_gene_table_equals_pearson_on_the_predictions(strict, unit):
    cohort, _, result = strict
    if unit == ["split"]:
        result = evaluate(cohort, cohort.features, PAPER)
    for _, gene in result.genes.iterrows():
        layers = result.predictions[:, gene["gene"]].layers
        pair = pd.DataFrame({name: layers[name].ravel() for name in ("observed", "predicted")})
        index = result.predictions.obs.set_index(unit).index
        pair = pair.set_index(index).dropna().groupby(level=unit)
        mean = pair.apply(lambda p: pearsonr(*p.to_numpy().T)[0]).groupby(level=0).mean()
        assert gene["pcc"] == pytest.approx(mean.mean(), abs=1e-5) and gene["n"] == len(mean)


def test_features_that_are_not_finite_and_tasks_of_another_protocol_are_refused(strict):
    cohort, tasks, _ = strict
    holed = np.where(np.arange(270)[:, None] == 7, np.nan, cohort.features)
    for features, protocol, named in ((holed, STRICT, "P0A:7"), (cohort.features, PAPER, "strict")):
        with pytest.raises(PekaError, match=named):
            evaluate(cohort, features, protocol, tasks)


def test_a_section_of_two_splits_has_two_scores_which_stay_the_same_when_saved(tmp_path):
    cohort = draw(patients=2)
    sample = cohort.obs["sample"]
    cohort.splits.append(Split("sections/2", sample.isin(["P0A", "P1A"]), sample == "P0B"))
    cohort.obs["sample"] = pd.factorize(sample)[0].astype(str)  # names that look like numbers
    result = evaluate(cohort, cohort.features, STRICT)
    assert result.predictions.obs_names.is_unique and result.predictions.n_obs == 120 + 30
    table = summarise(result.scores, STRICT).query("genes == 'all' and alpha == 'chosen'")
    assert table["scheme"].tolist() == ["patients", "sections"]
    assert set(result.genes["scheme"]) == {"patients", "sections"}
    result.save(tmp_path)
    loaded = Evaluation.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.scores, result.scores)
    pd.testing.assert_frame_equal(loaded.genes, result.genes)
    ours, theirs = (e.predictions.layers["predicted"] for e in (result, loaded))
    np.testing.assert_array_equal(ours, theirs)
    (tmp_path / "predictions.h5ad").unlink()
    assert Evaluation.load(tmp_path).predictions is None
