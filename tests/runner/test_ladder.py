"""Rungs and studies: what a rung changes, what teaches it, and what tables compare."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from peka_core.models.encoder_files import MINI_WEIGHTS
from peka_core.protocols import PROTOCOLS
from peka_core.recipe import RECIPES
from peka_core.runner import stages
from peka_core.runner.inputs import seen_by
from peka_core.runner.rungs import Rung
from peka_core.statistics import paired
from peka_core.studies import ladder as studies
from peka_core.studies import tables

STRICT, SPLIT = PROTOCOLS["strict"], "patients/0"
PERMUTED = Rung("bat", taught_by="permuted_teacher")


def with_profile(work, **changes):
    """The run with other values in its profile."""
    return dataclasses.replace(work, profile=dataclasses.replace(work.profile, **changes))


def scores(work, predictor):
    return stages.score(work, predictor, STRICT, splits=(SPLIT,)).scores


def same_rows(x, y):
    """Whether two arrays hold the same rows, in whatever order."""
    return np.array_equal(np.sort(x, 0), np.sort(y, 0))


def test_the_permuted_teacher_keeps_each_section_and_loses_every_spot(work):
    sections, (train, _) = work.cohort().obs["sample"].to_numpy(), work.rows("spots/0")
    x, y = (stages.targets_and_labels(work, rung, "spots/0")[0] for rung in ("bat", PERMUTED))
    assert same_rows(x[train], y[train]), "a test spot's vector taught"
    x, labels = stages.targets_and_labels(work, "bat", SPLIT)
    y, moved = stages.targets_and_labels(work, PERMUTED, SPLIT)
    for here in (sections == section for section in np.unique(sections)):
        assert same_rows(x[here], y[here]) and same_rows(labels[here], moved[here])
    assert (x != y).any(1).mean() > 0.7


def test_genes_as_teacher_are_standardised_on_training_spots_and_chosen_there(work):
    genes, _ = stages.targets_and_labels(work, Rung("bat", taught_by="genes"), SPLIT)
    task, other = (work.tasks(PROTOCOLS[name])[0] for name in ("strict", "peka_paper"))
    assert task.genes != other.genes, "the two lists agree, so this tests nothing"
    counted = [j for j in range(50) if task.targets[:, j].std() > 0]
    assert min(np.corrcoef(genes[:, j], task.targets[:, j])[0, 1] for j in counted) > 1 - 1e-4
    train, _ = work.rows(SPLIT)
    np.testing.assert_allclose(genes[train].mean(0), 0, atol=1e-4)
    spread = genes[train].std(0)
    assert (np.isclose(spread, 1, atol=1e-3) | (spread < 1e-3)).all()


def test_a_smaller_share_of_patients_is_part_of_a_larger_one(work):
    train, test = work.rows(SPLIT)
    half = seen_by(work, Rung("bat", share=0.5), work.split(SPLIT))
    groups = work.cohort().obs["group"].to_numpy()
    assert (half <= train).all() and not set(groups[half]) & set(groups[test])
    assert len(set(groups[half])) == max(1, round(0.5 * len(set(groups[train]))))


def test_rungs_that_differ_in_space_and_name_are_one_student(work):
    spaces = ("encoder", "projected", "concat")
    assert len({stages.align(work, Rung("bat", s, name=s), SPLIT) for s in spaces}) == 1
    encoder, projected, both = (stages.space_of(work, Rung("bat", s), SPLIT) for s in spaces)
    frozen = stages.space_of(work, "frozen")
    assert np.array_equal(both, np.hstack([frozen, projected]))
    assert not np.array_equal(encoder, frozen)


def test_ladder_names_every_rung_and_pairs_with_frozen(work):
    projector = Rung("projector_only", "projected", name="projector only")
    rungs = (Rung("bat", name="adapter"), projector, "random", "teacher")
    table = studies.ladder(with_profile(work, ladder=rungs), (SPLIT,))
    labels = ["adapter", "projector only", "random encoder", "teacher → genes"]
    assert list(table["label"].unique()) == labels
    assert set(table["genes"]) == {"all", "cue", "composition"}
    named = tables.headline(tables.score_table(work, STRICT, [("student", projector)])).iloc[0]
    assert (named["scope"], named["space"], named["n"]) == ("nested", "projected", 4)
    assert named["cohort"] == work.cohort().digest[:12]
    chosen = "pooling == 'section' and genes == 'all' and alpha == 'chosen'"
    pcc = lambda name: scores(work, name).query(chosen).groupby("patient")["pcc"].mean()
    row = table[(table["label"] == "random encoder") & (table["genes"] == "all")].iloc[0]
    assert row["mean"] == pytest.approx((pcc("random") - pcc("frozen")).mean())


def test_forgetting_is_the_mean_recall_of_the_types_of_held_out_patients(work):
    split, obs = STRICT.splits(work.cohort())[0], work.cohort().obs
    short = with_profile(work, ladder=(Rung("bat", name="bat"),))
    table = studies.forgetting(short, (split.name,)).set_index("label")
    assert list(table.index) == ["frozen encoder", "bat", "random encoder"]
    kind, groups = obs[["tissue_type", "group"]].to_numpy().T
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    for label, rung in (("frozen encoder", "frozen"), ("bat", "bat")):
        x, values = stages.space_of(work, rung, split.name), []
        said = model.fit(x[split.train], kind[split.train]).predict(x)
        for here in (split.test & (groups == patient) for patient in set(groups[split.test])):
            recalls = [(said[here & (kind == t)] == t).mean() for t in set(kind[here])]
            values.append(np.mean(recalls))
        assert table.loc[label, "balanced_accuracy"] == pytest.approx(np.mean(values))


def test_units_of_other_k_teacher_or_weights_are_other_units(work, tmp_path):
    """An edited profile, or other weights, must not be served with what was made before."""
    weights = tmp_path / "mini.safetensors"
    weights.write_bytes(MINI_WEIGHTS.read_bytes()[:-2] + b"\x01\x01")  # a last value changed
    k = with_profile(work, recipe=dataclasses.replace(work.profile.recipe, k=5))
    teacher = with_profile(work, teacher_options={"n_components": 3, "scale": 2.0})
    other = dataclasses.replace(work, weights={"mini": str(weights)})
    assert len({stages.quality(run, "frozen", SPLIT)["r2"] for run in (work, teacher)}) == 2
    assert stages.teacher(k, SPLIT).obs["pseudo_label"].max() < 5
    for there, predictor in ((other, "permuted_targets"), (teacher, "teacher")):
        assert not scores(work, predictor)["pcc"].equals(scores(there, predictor)["pcc"])


def test_recipes_are_scored_one_switch_at_a_time_and_whole_in_both_spaces(work, monkeypatch):
    base = work.profile.recipe
    own = {field: getattr(base, field) for field in ("block", "rank", "alpha")}  # 256 is too large
    own |= {"epochs": 1}
    names = ("as_written", "as_run")
    quick = {name: dataclasses.replace(RECIPES[name], **own) for name in names}
    quick["as_run"] = dataclasses.replace(quick["as_run"], classifier_epochs=1)
    monkeypatch.setattr(studies, "RECIPES", quick)
    monkeypatch.setattr(studies, "SWITCHES", {"no flips": studies.SWITCHES["no flips"]})
    table = studies.recipes(work, (SPLIT,)).set_index(["value", "genes"])["mean"]
    no_flips = dataclasses.replace(base, flips=False)
    expected = {"the profile's recipe": (base, Rung("bat")), "no flips": (no_flips, Rung("bat"))}
    for (name, recipe), method in zip(quick.items(), ("bat", "bone"), strict=True):
        for space in ("encoder", "projected"):
            expected[f"{name}, whole ({space})"] = recipe, Rung(method, space)
    assert list(table.index.unique("value")) == list(expected)
    for value, (recipe, rung) in expected.items():  # the same student, from a profile's recipe
        found = paired(scores(with_profile(work, recipe=recipe), rung), scores(work, "frozen"))
        assert table[value, "all"] == found["mean"], value
    assert table.xs("all", level="genes").nunique() == len(expected), "two are the same student"
