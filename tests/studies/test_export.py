"""A run's model folder: it repeats chapter 4, and says what was measured on which patients."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_cohort import STRICT, draw
from scipy import stats
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import StandardScaler

from peka_core.cohort import Split
from peka_core.commands.command_line import _parser
from peka_core.common.errors import PekaError
from peka_core.common.files import write_json
from peka_core.evaluation import evaluate
from peka_core.models.encoder_files import MINI_WEIGHTS
from peka_core.predict import load_model
from peka_core.protocols import PROTOCOLS
from peka_core.runner import stages
from peka_core.runner.rungs import Rung
from peka_core.studies import expected
from peka_core.studies.export import export, held_out, training_spots
from peka_core.studies.model_card import readme
from peka_core.tasks import make_tasks


def run(*words):
    """`peka export` with these words, as the command line would call it."""
    arguments = _parser().parse_args(["export", *map(str, words)])
    return arguments.command(arguments)


@pytest.mark.parametrize("rung", [Rung("bat"), Rung("bat", "projected"), Rung("none")])
def test_a_model_of_one_split_repeats_chapter_4_on_its_test_tiles(work, tmp_path, rung):
    made = export(work, tmp_path / "m", rung.method, rung.space, "patients/0")
    model, test = load_model(made, "cpu"), work.split("patients/0").test
    scored = stages.score(work, rung, PROTOCOLS["strict"], predictions=True)
    shown = scored.predictions[scored.predictions.obs["split"] == "patients/0"]
    genes = list(model.genes.index)
    assert np.isnan(shown.layers["observed"]).any(0).tolist() == [
        gene not in genes for gene in shown.var_names
    ]  # genes of the other split
    predicted = model.predict(model.embed(work.tiles()[test]))
    np.testing.assert_allclose(predicted, shown[:, genes].layers["predicted"], atol=1e-5)
    rows = scored.scores.query(
        "split == 'patients/0' and pooling == 'section' and genes == 'all' and alpha == 'chosen'"
    ).set_index("section")["pcc"]
    assert len(rows) == 2
    for section, pcc in rows.items():
        here = (shown.obs["sample"] == section).to_numpy()
        true = shown[here, genes].layers["observed"]
        found = pd.DataFrame(true).corrwith(pd.DataFrame(predicted[here]))
        assert found.mean() == pytest.approx(pcc, abs=1e-6)


def test_a_model_of_all_spots_has_the_scores_of_students_that_never_saw_the_patients(
    work, tmp_path, capsys
):
    run("small", "--out", tmp_path / "m", "--device", "cpu")
    model = load_model(tmp_path / "m", "cpu")
    strict = replace(PROTOCOLS["strict"], genes_from=tuple(model.genes.index))
    scored = {name: stages.score(work, name, strict).genes for name in ("bat", "colour")}
    for column, name in (("pcc", "bat"), ("pcc_colour", "colour")):
        theirs = scored[name].set_index("gene")[column[:3]]
        np.testing.assert_allclose(model.genes[column], theirs[model.genes.index], atol=1e-6)
    assert model.genes["n"].max() == 4 and set(model.genes["unit"]) == {"patient"}
    assert f"{model.card['supported']} of" in capsys.readouterr().out
    assert model.genes["mean_half_width_80"].isna().all() and "10" in model.card["no_interval"]
    x = stages.space_of(work, "bat", "all")
    features, tiles = model.embed(work.tiles()), work.tiles()[:]
    np.testing.assert_allclose(features, x, atol=1e-4)
    frozen = stages.space_of(work, "frozen")
    np.testing.assert_allclose(model.frozen(tiles, features), frozen, atol=1e-4)
    assert np.isfinite(model.threshold)
    shared = (tmp_path / "m/card.json").read_text() + (tmp_path / "m/README.md").read_text()
    names = {*work.cohort().obs["patient"], *work.cohort().obs["sample"], str(tmp_path)}
    assert not [name for name in names if f"{name}" in shared]
    assert "Not for diagnosis" in shared and "MIT" in shared
    unknown = {"scores": {}, "threshold": None, "um_per_px": None, "notes": ["nothing held out"]}
    text = readme(model.card | unknown)
    assert "nothing held out" in text and "None" not in text and "nan" not in text


@pytest.mark.parametrize(("words", "named"), [
    ("--method full", "full"), ("--method bad", "bad"), ("--space concat", "concat"),
    ("--method none --space projected", "projected"), ("--split spots/0", "spots/0"),
])  # fmt: skip
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(work, tmp_path, words, named):
    work.cohort()  # built by no other test if this one runs alone
    with pytest.raises(PekaError, match=named):
        run("small", "--out", tmp_path / "m", "--device", "cpu", *words.split())
    assert not list(tmp_path.iterdir())


def test_a_run_that_does_not_exist_and_a_folder_that_is_not_empty_are_refused(work, tmp_path):
    with pytest.raises(PekaError, match="absent.*small"):
        run("absent", "--out", tmp_path / "m")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/mine.txt").write_text("mine")
    with pytest.raises(PekaError, match="m exists"):
        run("small", "--out", tmp_path / "m")
    assert (tmp_path / "m/mine.txt").read_text() == "mine"


def test_a_run_of_an_own_profile_or_with_weights_that_changed_is_refused(work, tmp_path):
    of = lambda path: {"mini": {"path": str(path), "sha256": "0" * 64}}
    for name, profile, weights, named in (
        ("own", "mine", {}, "--profile"),
        ("changed", "smoke", of(MINI_WEIGHTS), "--weights"),
        ("moved", "smoke", of("/gone.pth"), "/gone.pth"),
    ):
        folder = work.folder.with_name(name)
        write_json(folder / "run.json", {"profile": profile, "overrides": {}, "source_options": {}})
        write_json(folder / "weights.json", weights)
        with pytest.raises(PekaError, match=named):
            run(name, "--out", tmp_path / "m")
        assert len(list(folder.iterdir())) == 2


def task_of(cohort):
    genes = make_tasks(cohort, replace(STRICT, genes_from="all"))[0].genes
    rules = replace(STRICT, genes_from=tuple(genes))
    return make_tasks(cohort, rules)[0]


def measured(cohort, folds=None, **options):
    x, noise = cohort.features, np.random.default_rng(5).normal(size=(len(cohort.obs), 3))
    folds = cohort.splits if folds is None else folds
    controls = {"tile colour": lambda _: noise}
    task = task_of(cohort)
    return expected.measure(cohort, task, folds, lambda _: x, x, controls, 0, **options), task


def test_each_gene_has_its_mean_and_interval_over_held_out_patients():
    cohort = draw(patients=5)
    found, task = measured(cohort)
    scores = evaluate(cohort, cohort.features, task.protocol)
    theirs = scores.genes.set_index("gene")["pcc"]
    np.testing.assert_allclose(found.genes["pcc"], theirs[found.genes.index], atol=1e-6)
    pcc = expected.pcc_of(scores.predictions, "patient")
    for gene, row in found.genes.iterrows():
        interval = stats.ttest_1samp(pcc[gene], 0).confidence_interval(0.95)
        assert (row["low"], row["high"]) == pytest.approx(tuple(interval), abs=1e-6)
    assert (found.unit, found.n, found.genes["n"].unique()) == ("patient", 5, [5])
    wins = found.genes.query("low > 0 and minus_colour > 0")
    assert list(wins.index) == list(found.genes.query("supported").index) and len(wins) > 3


@pytest.mark.parametrize(("pcc", "colour", "unit", "supported"), [
    ([0.1, 0.2, 0.3], [0.0, 0.1, 0.1], "patient", False),  # its interval holds 0
    ([0.2, 0.25, 0.3], [0.0, 0.1, 0.1], "patient", True),
    ([0.2, 0.25, 0.3], [0.3, 0.3, 0.2], "patient", False),  # below tile colour
    ([0.1, 0.3], [0.0, 0.1], "patient", True),  # two patients: the means decide
    ([0.1, 0.2, 0.3], [0.0, 0.1, 0.1], "section", True),  # sections give no interval
    ([-0.1, -0.2], [-0.5, -0.5], "patient", False),
    ([np.nan, np.nan], [0.1, 0.1], "patient", False),
])  # fmt: skip
def test_a_gene_is_supported_above_zero_and_above_tile_colour(pcc, colour, unit, supported):
    table = expected.gene_table(pd.DataFrame({"A": pcc}), pd.DataFrame({"A": colour}), unit)
    assert table.loc["A", "supported"] == supported
    assert np.isfinite(table.loc["A", "low"]) == (unit == "patient" and len(pcc) == 3)


def test_the_threshold_is_over_held_out_patients_that_weigh_the_same():
    cohort = draw(patients=3, spots=40)
    keep = ~((cohort.obs["group"] == "P0") & (np.arange(240) % 4 > 0)).to_numpy()  # a quarter of P0
    folds = [Split(s.name, s.train & keep, s.test & keep) for s in cohort.splits]
    found, _ = measured(cohort, folds)
    distances, weights = [], []
    for fold in folds:
        scaler = StandardScaler().fit(cohort.features[fold.train])
        fit = LedoitWolf().fit(scaler.transform(cohort.features[fold.train]))
        distances += list(fit.mahalanobis(scaler.transform(cohort.features[fold.test])) ** 0.5)
        weights += [1 / fold.test.sum()] * fold.test.sum()
    order = np.argsort(distances)
    share = np.cumsum(np.array(weights)[order]) / 3
    assert found.threshold == pytest.approx(np.array(distances)[order][(share < 0.95).sum()])


def test_ten_patients_give_an_interval_of_a_slides_mean_unless_the_student_saw_them():
    cohort = draw(patients=10, spots=12)
    found, task = measured(cohort)
    predictions = evaluate(cohort, cohort.features, task.protocol).predictions
    errors = expected.mean_errors(predictions, 0)
    assert errors.shape == (10, 10) and not found.no_interval
    widths = np.sort(np.abs(errors), 0)[8]  # the ceil(11 * .8) = 9th of 10
    np.testing.assert_allclose(found.genes["mean_half_width_80"], widths, atol=1e-6)
    slides = predictions.obs.groupby(["group", "sample"]).indices
    means = {
        (group, round(float(np.nanmean(predictions.layers["observed"][rows, 0]
                                       - predictions.layers["predicted"][rows, 0])), 5))
        for (group, _), rows in slides.items()
    }  # fmt: skip
    groups = sorted(cohort.obs["group"].unique())
    assert all((g, round(float(e), 5)) in means for g, e in zip(groups, errors[:, 0], strict=True))
    seen, _ = measured(cohort, seen=True)
    assert seen.genes["mean_half_width_80"].isna().all() and seen.no_interval


def test_a_split_holds_out_its_own_patients_then_sections_then_nothing():
    cohort = draw(patients=3, duplicate=True)
    inside = held_out(cohort, training_spots(cohort, "patients/0"))
    assert [split.scheme for split in inside] == ["patients"] * 2
    train = cohort.splits[0].train
    for split in inside:
        assert not (split.train & split.test).any() and not (split.test & ~train).any()
    one = Split("patients/0", cohort.obs["patient"].eq("P1").to_numpy(), ~train)
    assert [split.name for split in held_out(cohort, one)] == ["sections/0", "sections/1"]
    assert held_out(cohort, Split("x/0", cohort.obs["sample"].eq("P1A").to_numpy(), ~train)) == []
    used = training_spots(cohort, "all").train
    assert cohort.obs["sample"][~used].unique().tolist() == ["X01"]
    nothing, _ = measured(cohort, [])
    assert np.isnan(nothing.threshold) and not nothing.genes["supported"].any()
