"""The recipe refuses what no alignment can use; its two named forms are paper and code."""

from dataclasses import fields, replace

import numpy as np
import pytest
from conftest import SMALL

from peka_core.common import folders
from peka_core.common.errors import PekaError
from peka_core.recipe import RECIPES, Recipe, name_of_recipe
from peka_core.runner import stages
from peka_core.runner.run import open_run
from peka_core.runner.units import Unit
from peka_core.student import Student, embed_tiles

ODD = {str: [5, "other"], int: ["3", -1, 1.0, True], float: ["0.5", -1, np.nan, np.inf]}
ODD |= {bool: [1, "yes"], tuple: [1, "attn.qkv", (), (1,)]}  # what a field of each type refuses
EDGES = dict.fromkeys(("epochs", "batch_size", "lr", "tau", "block", "rank"), 0)
EDGES |= {"k": 1, "validation_share": 1, "dropout": 1.0, "adapter_dropout": 1}


@pytest.mark.parametrize("field", fields(Recipe), ids=lambda field: field.name)
def test_every_field_refuses_another_type_word_or_range(field):
    kind, edges = type(field.default), [EDGES[field.name]] if field.name in EDGES else []
    for value in [None, [[]], *ODD[kind], *edges]:
        with pytest.raises(PekaError, match=field.name):
            Recipe(**{field.name: value})


def test_recipes_that_differ_in_form_alone_have_one_name_and_one_unit():
    for name, recipe in RECIPES.items():
        assert name_of_recipe(replace(recipe, batch_size=7)) == name
        assert name_of_recipe(replace(recipe, tau=7.0)) == ""
    recipes = [Recipe(tau=2, layers=["fc"]), Recipe(tau=2.0, layers=("fc",))]
    whole, real = (Unit("alignment", "c0ffee", recipe=recipe) for recipe in recipes)
    assert whole.recipe == real.recipe and whole.id == real.id and type(whole.recipe.tau) is float


@pytest.mark.parametrize(("by", "share"), [("group", 0.0), ("spot", 0.15)])
def test_a_split_that_mixes_patients_has_no_validation_groups(by, share):
    recipe = Recipe(validation_by=by)
    assert recipe.for_split(False) == recipe and recipe.for_split(True).validation_share == share


def test_a_projector_trained_on_raw_pixels_is_not_given_normalised_features(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    work = open_run("smoke", "raw", "cpu", {}, SMALL | {"pixels": "raw"})
    split = work.cohort().splits[0].name
    obsm = stages.features(work, "projector_only", split).obsm
    student = Student.load(stages.align(work, "projector_only", split), work.encoder())
    expected = embed_tiles(student, work.tiles(), progress=False)
    np.testing.assert_allclose(obsm["X_projected"], expected["projected"], atol=1e-4)
    assert np.abs(obsm["X_encoder"] - stages.space_of(work, "frozen", "")).max() > 0.01
