"""Profiles: the bundled ones load, overrides reach the value they name, unknown names are refused with the known ones."""

import dataclasses

import pytest
import yaml

from peka_core.recipe import RECIPES, Recipe
from peka_core.files import PekaError
from peka_core.profile import FOLDER, load_profile, override_names, profile_names, read_values


def test_three_profiles_are_bundled():
    assert {"smoke", "demo", "her2st"} <= set(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_a_bundled_profile_loads_and_sets_every_value_of_the_recipe(name):
    profile = load_profile(name)
    assert profile.name == name and isinstance(profile.recipe, Recipe)
    assert set(read_values(FOLDER / f"{name}.yaml")["recipe"]) == {field.name for field in dataclasses.fields(Recipe)}


def test_her2st_was_not_tuned():
    assert load_profile("her2st").recipe == load_profile("demo").recipe
    assert load_profile("her2st").source_options["sections"] == ["B4", "C2", "C3", "C4", "C5"]


def test_an_override_reaches_nested_and_flat_values():
    profile = load_profile("smoke", {"epochs": 7, "patients": 8, "seed": 3, "methods": ["bone"]})
    assert (profile.recipe.epochs, profile.source_options["patients"], profile.seed) == (7, 8, 3)
    assert profile.methods == ("bone",) and profile.overrides["epochs"] == 7
    assert load_profile("smoke").recipe.epochs != 7


def test_an_unknown_override_names_the_known_ones():
    with pytest.raises(PekaError, match="unknown parameter 'epoch'; known: .*epochs.*patients.*seed"):
        load_profile("smoke", {"epoch": 2})


def test_what_a_profile_is_cannot_be_overridden():
    names = override_names(read_values(FOLDER / "smoke.yaml"))
    assert not {"source", "title", "recipe", "source_options", "teacher_options"} & set(names)


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(PekaError, match="no profile 'dmeo'; known: demo"):
        load_profile("dmeo")


def test_a_profile_says_only_what_differs_from_its_base(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: smoke\ntitle: mine\nsource_options: {spots: 20}\nrecipe: {epochs: 4}\n")
    profile, smoke = load_profile(str(tmp_path / "mine.yaml")), load_profile("smoke")
    assert profile.recipe == dataclasses.replace(smoke.recipe, epochs=4) and profile.methods == smoke.methods
    assert profile.source_options == {"spots": 20}  # a whole: options of another source mean nothing
    (tmp_path / "grandchild.yaml").write_text("base: mine.yaml\nrecipe:\n")  # beside it, and nothing under recipe
    assert load_profile(str(tmp_path / "grandchild.yaml")).recipe == profile.recipe
    (tmp_path / "odd.yaml").write_text("base: smoke\nmethod: [bat]\n")
    with pytest.raises(PekaError, match="odd.yaml: unknown value method; known: .*methods"):
        load_profile(str(tmp_path / "odd.yaml"))
    (tmp_path / "lost.yaml").write_text("base: smokes\n")
    with pytest.raises(PekaError, match="no profile 'smokes'"):
        load_profile(str(tmp_path / "lost.yaml"))


def test_a_recipe_can_start_from_the_papers(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: smoke\nrecipe: {like: as_run, block: 16}\n")
    assert load_profile(str(tmp_path / "mine.yaml")).recipe == dataclasses.replace(RECIPES["as_run"], block=16)
    (tmp_path / "lost.yaml").write_text("base: smoke\nrecipe: {like: as_ran}\n")
    with pytest.raises(PekaError, match="recipe like 'as_ran' is unknown; there are as_written, as_run"):
        load_profile(str(tmp_path / "lost.yaml"))


def test_a_profile_of_ones_own_is_a_path(tmp_path):
    values = read_values(FOLDER / "smoke.yaml")
    values["recipe"]["epochs"] = 4
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    profile = load_profile(str(tmp_path / "mine.yaml"))
    assert (profile.name, profile.recipe.epochs) == ("mine", 4)


def test_an_unknown_recipe_value_is_refused(tmp_path):
    values = read_values(FOLDER / "smoke.yaml")
    values["recipe"]["learning_rate"] = 1
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(PekaError, match="unknown recipe value learning_rate; known: .*lr"):
        load_profile(str(tmp_path / "mine.yaml"))
