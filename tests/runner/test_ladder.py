"""Rungs and studies: what a rung changes, what it is taught, and tables that say what they compare."""

import dataclasses
import shutil

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from peka_core.errors import PekaError
from peka_core.models.encoder_files import MINI_WEIGHTS
from peka_core.protocols import PROTOCOLS
from peka_core.recipe import RECIPES, Recipe
from peka_core.runner import stages
from peka_core.runner.inputs import seen_by
from peka_core.runner.profile import load_profile
from peka_core.runner.rungs import Rung, as_rung, read_rung
from peka_core.statistics import paired
from peka_core.studies import ladder as studies


def test_a_rung_changes_the_recipe_and_nothing_else():
    rung = read_rung(
        {"name": "L_KD only", "recipe": {"lambda_struct": 0.0, "targets": ["attn.qkv"]}}
    )
    assert (rung.method, rung.space, rung.taught_by) == ("bat", "encoder", "teacher")
    assert rung.change(Recipe(epochs=7)) == Recipe(
        epochs=7, lambda_struct=0.0, targets=("attn.qkv",)
    )
    assert (
        as_rung("frozen") == Rung("none")
        and as_rung("random").encoder == "random"
        and as_rung(rung) is rung
    )


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"methd": "bat"}, "methd"),
        ({"recipe": {"learning": 1}}, "learning"),
        ({"taught_by": "me"}, "me"),
        ({"method": "dora"}, "dora"),
    ],
)
def test_unknown_words_in_a_rung_are_refused(values, word):
    with pytest.raises(PekaError, match=word):
        read_rung(values)


@pytest.mark.parametrize("name", ["demo", "her2st", "smoke"])
def test_every_trained_rung_sees_the_same_tiles_in_the_same_steps(name):
    profile = load_profile(name)
    recipes = [rung.change(profile.recipe) for rung in profile.ladder if isinstance(rung, Rung)]
    assert (
        len({(r.epochs, r.batch_size, r.flips, r.validation_share) for r in recipes}) == 1
        and len(recipes) >= 9
    )
    assert {rung.share for rung in profile.ladder if isinstance(rung, Rung)} == {1.0}


def test_the_permuted_teacher_keeps_each_section_and_loses_every_spot(work):
    x, labels = stages.lesson(work, "bat", "patients/0")
    y, moved = stages.lesson(work, Rung("bat", taught_by="permuted_teacher"), "patients/0")
    sections, (train, _) = work.cohort().obs["sample"].to_numpy(), work.rows("spots/0")
    y_spots, _ = stages.lesson(work, Rung("bat", taught_by="permuted_teacher"), "spots/0")
    x_spots, _ = stages.lesson(work, "bat", "spots/0")
    assert np.array_equal(np.sort(x_spots[train], 0), np.sort(y_spots[train], 0)), (
        "a test spot's vector was taught"
    )
    for section in np.unique(sections):
        here = sections == section
        assert np.array_equal(np.sort(x[here], 0), np.sort(y[here], 0)) and sorted(
            labels[here]
        ) == sorted(moved[here])
    assert (x != y).any(1).mean() > 0.7


def test_genes_as_teacher_are_standardised_on_training_spots_and_chosen_there(work):
    genes, _ = stages.lesson(work, Rung("bat", taught_by="genes"), "patients/0")
    task = work.tasks(studies.PROTOCOLS["strict"])[0]
    assert task.genes != work.tasks(studies.PROTOCOLS["peka_paper"])[0].genes, (
        "the two lists agree: this tests nothing"
    )
    correlation = [
        np.corrcoef(genes[:, j], task.targets[:, j])[0, 1]
        for j in range(50)
        if task.targets[:, j].std() > 0
    ]
    assert min(correlation) > 1 - 1e-4
    train, _ = work.rows("patients/0")
    assert genes.shape == (len(train), 50)
    np.testing.assert_allclose(genes[train].mean(0), 0, atol=1e-4)
    spread = genes[train].std(0)
    assert (np.isclose(spread, 1, atol=1e-3) | (spread < 1e-3)).all()


def test_a_smaller_share_of_patients_is_part_of_a_larger_one_and_test_spots_stay(work):
    all_train, test = work.rows("patients/0")
    half = seen_by(work, Rung("bat", share=0.5), work.split("patients/0"))
    groups = work.cohort().obs["group"].to_numpy()
    assert (half <= all_train).all()
    assert len(set(groups[half])) == max(1, round(0.5 * len(set(groups[all_train]))))
    assert not set(groups[half]) & set(groups[test])
    assert stages.align(work, Rung("bat", share=0.5), "patients/0") != stages.align(
        work, "bat", "patients/0"
    )


def test_rungs_that_differ_in_space_and_name_are_one_student(work):
    folders = {
        stages.align(work, Rung("bat", space, name=space), "patients/0")
        for space in ("encoder", "projected", "concat")
    }
    assert len(folders) == 1
    spaces = [
        stages.space_of(work, Rung("bat", space), "patients/0").shape[1]
        for space in ("encoder", "projected", "concat")
    ]
    assert spaces[2] == 128 + spaces[1] and spaces[0] == 128


def test_ladder_names_every_rung_and_pairs_with_frozen(work):
    rungs = (
        Rung("bat", name="adapter"),
        Rung("projector_only", "projected", name="projector only"),
        "random",
        "teacher",
    )
    small = dataclasses.replace(work, profile=dataclasses.replace(work.profile, ladder=rungs))
    table = studies.ladder(small, ("patients/0",))
    assert list(table["label"].unique()) == [
        "adapter",
        "projector only",
        "random encoder",
        "teacher → genes",
    ]
    assert set(table["genes"]) == {"all", "cue", "composition"}
    row = table[(table["label"] == "random encoder") & (table["genes"] == "all")].iloc[0]
    pcc = lambda name: (
        stages.score(work, name, studies.PROTOCOLS["strict"], splits=("patients/0",))
        .scores.query("pooling == 'section' and genes == 'all' and alpha == 'chosen'")
        .groupby("patient")["pcc"]
        .mean()
    )
    assert row["mean"] == pytest.approx((pcc("random") - pcc("frozen")).mean())


def test_leiden_labels_differ_from_k_means_and_have_a_unit_of_their_own(work):
    leiden = Rung("bat", recipe=(("k", 64), ("labels", "leiden")))
    plain, graph = (
        stages.teacher(work, "patients/0"),
        stages.teacher(work, "patients/0", rung=leiden),
    )
    assert np.array_equal(plain.obsm["X_teacher"], graph.obsm["X_teacher"])
    assert plain.obs["pseudo_label"].nunique() != graph.obs["pseudo_label"].nunique()


def test_forgetting_is_the_mean_recall_of_the_types_of_held_out_patients(work):
    split = studies.PROTOCOLS["strict"].splits(work.cohort())[0]
    table = studies.forgetting(work, (split.name,)).set_index("label")
    x, kind = stages.space_of(work, "frozen", ""), work.cohort().obs["tissue_type"].to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(
        x[split.train], kind[split.train]
    )
    groups, values = work.cohort().obs["group"].to_numpy(), []
    for patient in set(groups[split.test]):
        here = split.test & (groups == patient)
        said = model.predict(x[here])
        values.append(np.mean([(said[kind[here] == t] == t).mean() for t in set(kind[here])]))
    assert table.loc["frozen encoder", "balanced_accuracy"] == pytest.approx(np.mean(values))
    assert np.isfinite(table["mean"].drop("frozen encoder")).all()


def test_units_of_other_k_teacher_or_weights_are_other_units(work, tmp_path):
    """A profile that was edited in place, or other weights, must not be served with what was made before."""
    base = work.profile
    weights = shutil.copy(MINI_WEIGHTS, tmp_path / "mini.safetensors")
    with open(weights, "r+b") as file:  # a last value changed
        file.seek(-2, 2)
        file.write(b"\x01\x01")
    others = {
        "k": dataclasses.replace(
            work, profile=dataclasses.replace(base, recipe=dataclasses.replace(base.recipe, k=5))
        ),
        "teacher": dataclasses.replace(
            work,
            profile=dataclasses.replace(base, teacher_options={"n_components": 3, "scale": 2.0}),
        ),
        "weights": dataclasses.replace(work, weights={"mini": str(weights)}),
    }
    strict = studies.PROTOCOLS["strict"]
    assert stages.teacher(others["k"], "patients/0").obs["pseudo_label"].max() < 5
    assert stages.teacher(others["teacher"], "patients/0").obsm["X_teacher"].shape[1] == 3
    permuted = [
        stages.score(run, "permuted_targets", strict, splits=("patients/0",)).scores["pcc"]
        for run in (work, others["weights"])
    ]
    assert not permuted[0].equals(permuted[1])
    known = [
        stages.score(run, "teacher", strict, splits=("patients/0",)).scores["pcc"]
        for run in (work, others["teacher"])
    ]
    assert not known[0].equals(known[1])
    quality = [
        stages.quality(run, "frozen", "patients/0")["r2"] for run in (work, others["teacher"])
    ]
    assert quality[0] != quality[1]


def test_recipes_are_scored_one_switch_at_a_time_and_whole_in_both_spaces(work, monkeypatch):
    base, split = work.profile.recipe, work.cohort().splits[0].name
    short = {
        name: dataclasses.replace(
            recipe, epochs=1, classifier_epochs=min(1, recipe.classifier_epochs)
        )
        for name, recipe in RECIPES.items()
    }
    monkeypatch.setattr(studies, "RECIPES", short)
    monkeypatch.setattr(studies, "SWITCHES", {"no flips": studies.SWITCHES["no flips"]})
    table = studies.recipes(work, (split,)).set_index(["value", "genes"])["mean"]
    own = {
        field: getattr(base, field) for field in ("block", "rank", "alpha")
    }  # 256 does not fit mini
    expected = {
        "the profile's recipe": (base, "bat", "encoder"),
        "no flips": (dataclasses.replace(base, flips=False), "bat", "encoder"),
    }
    for name, method in (("as_written", "bat"), ("as_run", "bone")):
        for space in ("encoder", "projected"):
            expected[f"{name}, whole ({space})"] = (
                dataclasses.replace(short[name], **own),
                method,
                space,
            )
    assert list(table.index.unique("value")) == list(expected)
    frozen = stages.score(work, "frozen", PROTOCOLS["strict"], splits=(split,)).scores
    for value, (
        recipe,
        method,
        space,
    ) in expected.items():  # the same students from profiles that have these recipes
        there = dataclasses.replace(work, profile=dataclasses.replace(work.profile, recipe=recipe))
        found = paired(
            stages.score(there, Rung(method, space), PROTOCOLS["strict"], splits=(split,)).scores,
            frozen,
        )
        assert table[value, "all"] == found["mean"], value
    assert table.xs("all", level="genes").nunique() == len(expected), (
        "two of them are the same student"
    )
