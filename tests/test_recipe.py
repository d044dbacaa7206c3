"""The recipe refuses what no alignment can use; its two named forms are paper and code."""

import dataclasses

import numpy as np
import pytest
from conftest import SMALL

from peka_core.common import folders
from peka_core.common.errors import PekaError
from peka_core.recipe import CHOICES, RANGES, RECIPES, Recipe, name_of_recipe
from peka_core.runner import run as workspace
from peka_core.runner import stages
from peka_core.runner.units import Unit
from peka_core.student import Student, embed_tiles

FIELDS = {field.name: type(field.default) for field in dataclasses.fields(Recipe)}
WRONG = {str: 5, bool: 1, tuple: "attn.qkv", int: "3", float: "0.5"}  # of another type


def test_the_two_recipes_differ_where_paper_and_code_do():
    written, run = (dataclasses.asdict(RECIPES[name]) for name in ("as_written", "as_run"))
    assert {name for name in written if written[name] != run[name]} == {
        "epochs", "schedule", "tau", "tau_squared", "classifier_epochs", "reallocate",
        "adapter_dropout", "clip", "clip_by", "pixels", "validation_share", "validation_by",
        "projector",
    }  # fmt: skip
    for name, recipe in RECIPES.items():
        assert name_of_recipe(dataclasses.replace(recipe, batch_size=7)) == name
        assert name_of_recipe(dataclasses.replace(recipe, tau=7.0)) == ""


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_refuses_another_type_word_or_range(name):
    values = [WRONG[FIELDS[name]], None, [[]]]
    if FIELDS[name] in (int, float):
        assert name in RANGES
        values += [-1, float("nan"), float("inf")]
    if FIELDS[name] is str:
        assert name in CHOICES
        values += ["other"]
    for value in values:
        with pytest.raises(PekaError, match=name):
            Recipe(**{name: value})


@pytest.mark.parametrize("change", [
    {"epochs": 0}, {"epochs": 1.0}, {"epochs": True}, {"batch_size": 0}, {"validation_share": 1},
    {"lr": 0}, {"tau": 0}, {"k": 1}, {"block": 0}, {"rank": 0}, {"dropout": 1.0},
    {"adapter_dropout": 1}, {"targets": ()}, {"targets": (1,)},
])  # fmt: skip
def test_a_value_at_the_edge_of_its_range_is_refused_by_name(change):
    with pytest.raises(PekaError, match=next(iter(change))):
        Recipe(**change)


def test_a_whole_number_and_a_number_make_the_same_unit():
    given = ((2, ["fc"]), (2.0, ("fc",)))
    recipes = [Recipe(tau=tau, targets=names) for tau, names in given]
    whole, real = (Unit("alignment", "c0ffee", recipe=recipe) for recipe in recipes)
    assert whole.recipe == real.recipe and whole.id == real.id and type(whole.recipe.tau) is float


@pytest.mark.parametrize("by", ["group", "spot"])
def test_a_split_that_mixes_patients_has_no_validation_groups(by):
    recipe = Recipe(validation_by=by)
    assert recipe.for_split(False) == recipe
    assert recipe.for_split(True).validation_share == (0.0 if by == "group" else 0.15)


def test_a_projector_trained_on_raw_pixels_is_not_given_normalised_features(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    work = workspace.open_run("smoke", "raw", "cpu", {}, SMALL | {"pixels": "raw"})
    split = work.cohort().splits[0].name
    made = stages.features(work, "projector_only", split).obsm
    student = Student.load(stages.align(work, "projector_only", split), work.encoder())
    expected = embed_tiles(student, work.tiles(), progress=False)
    np.testing.assert_allclose(made["X_projected"], expected["projected"], atol=1e-4)
    assert np.abs(made["X_encoder"] - stages.space_of(work, "frozen", "")).max() > 0.01
