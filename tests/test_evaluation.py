from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_cohort import draw
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from peka_core.cohort import Split
from peka_core.common.errors import PekaError
from peka_core.evaluation import Evaluation, evaluate, predict_with_head
from peka_core.protocols import PROTOCOLS
from peka_core.statistics import MIN_SECTION_SPOTS, summarise
from peka_core.tasks import make_tasks

PAPER = replace(PROTOCOLS["peka_paper"], n_genes=10)
STRICT = replace(PROTOCOLS["strict"], n_genes=10)
DROPPED = replace(PAPER, zeros="drop", min_spots=100)


def per_gene_loop(cohort, protocol, alpha):
    """Fold means and per-section means by one scikit-learn pipeline a gene and scipy's pearsonr."""
    pooled, by_section, x = [], [], cohort.features
    samples = cohort.obs["sample"].to_numpy()
    for task in make_tasks(cohort, replace(protocol, zeros="keep")):
        train, test, fold, sections = task.split.train, task.split.test, [], {}
        for y in task.targets.T.astype(float):
            used = y > 0 if protocol.zeros == "drop" else np.ones(len(y), bool)
            if protocol.zeros == "drop" and used.sum() < protocol.min_spots:
                continue
            rows = train & used
            pca = PCA(min(256, rows.sum(), x.shape[1]))
            head = make_pipeline(StandardScaler(), pca, Ridge(alpha=alpha))
            predicted = head.fit(x[rows], y[rows]).predict(x)
            fold.append(pearsonr(y[test & used], predicted[test & used])[0])
            for sample in np.unique(samples[test]):
                here = test & used & (samples == sample)
                if here.sum() >= MIN_SECTION_SPOTS:
                    sections.setdefault(sample, []).append(pearsonr(y[here], predicted[here])[0])
        pooled.append(np.nanmean(fold))
        by_section.append({sample: np.nanmean(values) for sample, values in sections.items()})
    return pooled, by_section


def rows(scores, pooling, genes="all", alpha="chosen"):
    return scores.query("pooling == @pooling and genes == @genes and alpha == @alpha")


def of_section(scores, section="P0A", genes="all"):
    return rows(scores, "section", genes).query("section == @section").iloc[0]


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize("protocol", [PAPER, DROPPED], ids=["zeros kept", "zeros dropped"])
def test_paper_scores_equal_a_plain_per_gene_loop(protocol):
    cohort = draw(patients=2, spots=60, depth=120, duplicate=True)
    pooled, by_section = per_gene_loop(cohort, protocol, alpha=1.0)
    scores = evaluate(cohort, cohort.features, protocol).scores
    np.testing.assert_allclose(rows(scores, "pooled")["pcc"], pooled, atol=1e-6)
    for i, expected in enumerate(by_section):
        fold = rows(scores, "section").query(f"split == 'spots/{i}'")
        fold = fold.set_index("section")["pcc"].dropna()
        assert fold.to_dict() == pytest.approx(expected, abs=1e-6)
    assert (scores["alpha"] == "chosen").all() and (scores["alpha_value"] == 1).all()


def test_strict_scores_equal_a_plain_loop_at_the_same_alpha():
    cohort = draw()
    _, by_section = per_gene_loop(cohort, STRICT, alpha=30.0)
    scores = rows(evaluate(cohort, cohort.features, STRICT, alpha=30).scores, "section")
    expected = {sample: value for fold in by_section for sample, value in fold.items()}
    assert scores.set_index("section")["pcc"].to_dict() == pytest.approx(expected, abs=1e-6)
    mean = pd.Series(expected).groupby(lambda sample: sample[:2]).mean().mean()
    assert summarise(scores, STRICT)["mean"].iloc[0] == pytest.approx(mean, abs=1e-6)


def test_strict_shows_two_other_alphas_beside_the_chosen_one():
    cohort = draw()
    tasks = make_tasks(cohort, STRICT)
    scores = evaluate(cohort, cohort.features, STRICT, tasks).scores
    for split, part in scores.groupby("split"):
        values = part.groupby("alpha")["alpha_value"].first()
        assert values["chosen"] in STRICT.alphas
        assert values["x0.1"] == pytest.approx(values["chosen"] / 10)
        fixed = evaluate(cohort, cohort.features, STRICT, tasks, alpha=values["x10"]).scores
        expected = rows(fixed[fixed["split"] == split], "section")["pcc"].to_numpy()
        np.testing.assert_allclose(rows(part, "section", alpha="x10")["pcc"], expected, atol=1e-12)


def test_gene_sets_are_means_of_their_genes():
    cohort = draw()
    scores = evaluate(cohort, cohort.features, STRICT, make_tasks(cohort, STRICT)[:1]).scores
    whole, sets = of_section(scores), [of_section(scores, genes=g) for g in ("cue", "composition")]
    assert sum(row["n_genes"] for row in sets) == whole["n_genes"] == 10
    weighted = sum(row["pcc"] * row["n_genes"] for row in sets) / 10
    assert whole["pcc"] == pytest.approx(weighted) and whole["n_spots"] == 30


def test_changed_test_counts_change_no_prediction_of_strict():
    cohort, changed = draw(), draw()
    test = cohort.splits[0].test
    changed.counts[test] = np.random.default_rng(9).poisson(20, changed.counts[test].shape)
    ours, theirs = (make_tasks(c, STRICT) for c in (cohort, changed))
    assert ours[0].genes == theirs[0].genes
    assert ours[1].genes != theirs[1].genes  # the same counts do count where they train
    before, after = (predict_with_head(cohort.features, t[0]) for t in (ours, theirs))
    for name, (alpha, predicted) in before.items():
        assert after[name][0] == alpha
        np.testing.assert_array_equal(after[name][1], predicted)


def test_undefined_values_are_counted_and_never_zero():
    cohort = draw()
    cohort.counts[cohort.obs["sample"] == "P0A", :20] = 0
    tasks = make_tasks(cohort, STRICT)
    silent = sum(int(gene[1:]) < 20 for gene in tasks[0].genes)
    row = of_section(evaluate(cohort, cohort.features, STRICT, tasks).scores)
    assert silent and row["n_undefined"] == silent and row["n_genes"] == 10 and row["pcc"] > 0

    constant = lambda task, train, test: np.tile(task.targets[train].mean(0), (len(test), 1))
    scores = evaluate(cohort, constant, STRICT, tasks).scores
    assert scores["pcc"].isna().all() and (scores["n_undefined"] == scores["n_genes"]).all()


def test_a_predictor_that_leaves_a_spot_out_is_undefined_for_that_gene():
    cohort = draw()

    def gap(task, train, test):
        predicted = task.targets[test].astype(float)
        predicted[0, 3] = np.nan
        return predicted

    first = of_section(evaluate(cohort, gap, STRICT).scores)
    assert first["n_undefined"] == 1 and np.isnan(first["alpha_value"])
    assert first["pcc"] == pytest.approx(1)


def test_predictions_hold_each_test_spot_once_per_split():
    cohort = draw(duplicate=True)
    table, tasks = evaluate(cohort, cohort.features, STRICT).predictions, make_tasks(cohort, STRICT)
    assert table.n_obs == (cohort.obs["sample"] != "X01").sum() and table.obs_names.is_unique
    assert set(table.var_names) == {gene for task in tasks for gene in task.genes}
    for task in tasks:
        part = table[(table.obs["split"] == task.split.name).to_numpy()]
        rest, part = part[:, ~part.var_names.isin(task.genes)], part[:, task.genes]
        assert list(part.obs["spot"]) == list(cohort.obs.index[task.split.test])
        np.testing.assert_array_equal(part.layers["observed"], task.targets[task.split.test])
        np.testing.assert_array_equal(part.obsm["spatial"], cohort.spatial[task.split.test])
        assert np.isfinite(part.layers["predicted"]).all()
        assert all(np.isnan(rest.layers[name]).all() for name in ("predicted", "observed"))


def test_dropped_zeros_are_missing_in_predictions_and_skipped_genes_counted():
    cohort = draw(depth=60)
    result = evaluate(cohort, cohort.features, replace(DROPPED, min_spots=150))
    observed, predicted = (result.predictions.layers[name] for name in ("observed", "predicted"))
    np.testing.assert_array_equal(np.isnan(observed), np.isnan(predicted))
    first = result.scores.iloc[0]
    assert first["n_skipped"] > 0 and first["n_genes"] + first["n_skipped"] == 10
    assert first["n_spots"] < 48 and len(result.genes) == first["n_genes"]


@pytest.mark.parametrize("protocol", [PAPER, STRICT], ids=["paper", "strict"])
def test_gene_table_equals_pearson_on_the_predictions(protocol):
    cohort = draw()
    result = evaluate(cohort, cohort.features, protocol)
    table = result.predictions
    unit = ["split"] if protocol is PAPER else ["patient", "sample"]
    for _, gene in result.genes.iterrows():
        layers = table[:, gene["gene"]].layers
        pair = pd.DataFrame({name: layers[name].ravel() for name in ("observed", "predicted")})
        pair = pair.set_index(table.obs.set_index(unit).index).dropna().groupby(level=unit)
        each = pair.apply(lambda p: pearsonr(p["observed"], p["predicted"])[0])
        mean = each.groupby(level=0).mean()
        assert gene["pcc"] == pytest.approx(mean.mean(), abs=1e-5) and gene["n"] == len(mean)


def test_features_may_differ_by_split():
    cohort = draw()
    tasks, noise = make_tasks(cohort, STRICT), cohort.features[::-1]
    by_split = {f"patients/{i}": noise if i == 2 else cohort.features for i in range(4)}
    both = (evaluate(cohort, x, STRICT, tasks).scores for x in (by_split, cohort.features))
    mixed, plain = (rows(scores, "section") for scores in both)
    same = mixed["pcc"].to_numpy() == plain["pcc"].to_numpy()
    np.testing.assert_array_equal(same, mixed["split"] != "patients/2")


@pytest.mark.parametrize(
    ("features", "protocol", "named"),
    [
        (lambda x: x[:-1], STRICT, "239"), (lambda x: {"patients/0": x}, STRICT, "patients/1"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x), STRICT, "P0A:7"),
        (lambda x: x, PAPER, "strict"),
    ],
    ids=["length", "split", "not finite", "other tasks"],
)  # fmt: skip
def test_wrong_features_are_refused(features, protocol, named):
    cohort = draw()
    with pytest.raises(PekaError, match=named):
        evaluate(cohort, features(cohort.features), protocol, make_tasks(cohort, STRICT))


def test_a_section_can_be_tested_by_two_splits():
    cohort = draw(patients=2)
    sample = cohort.obs["sample"].to_numpy()
    cohort.splits.append(Split("sections/2", np.isin(sample, ["P0A", "P1A"]), sample == "P0B"))
    result = evaluate(cohort, cohort.features, STRICT)
    assert result.predictions.obs_names.is_unique and result.predictions.n_obs == 120 + 30
    table = summarise(result.scores, STRICT).query("genes == 'all' and alpha == 'chosen'")
    assert table["scheme"].tolist() == ["patients", "sections"]
    assert set(result.genes["scheme"]) == {"patients", "sections"}


def test_saved_and_loaded_evaluations_are_equal(tmp_path):
    cohort = draw(patients=3)
    numbers = {name: str(i) for i, name in enumerate(pd.unique(cohort.obs["sample"]))}
    cohort.obs["sample"] = cohort.obs["sample"].map(numbers)  # text that looks like numbers
    result = evaluate(cohort, cohort.features, PAPER)
    result.save(tmp_path)
    loaded = Evaluation.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.scores, result.scores)
    pd.testing.assert_frame_equal(loaded.genes, result.genes)
    ours, theirs = (e.predictions.layers["predicted"] for e in (result, loaded))
    np.testing.assert_array_equal(ours, theirs)
    packed = (tmp_path / "scores.csv.gz").read_bytes()
    result.save(tmp_path)
    assert (tmp_path / "scores.csv.gz").read_bytes() == packed  # no name or time is packed
    (tmp_path / "predictions.h5ad").unlink()
    assert Evaluation.load(tmp_path).predictions is None
