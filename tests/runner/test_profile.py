"""Profiles: bundled ones load, files stand on others, changed values are found and checked."""

import dataclasses
import re

import pytest
import yaml

from peka_core.common.errors import PekaError
from peka_core.recipe import RECIPES, Recipe
from peka_core.runner.profile import bundled, load_profile, override_names, read_values


def write(folder, text, name="mine.yaml"):
    (folder / name).write_text(text + "\n")
    return str(folder / name)


@pytest.mark.parametrize("name", sorted(bundled()))
def test_a_bundled_profile_loads_and_sets_every_value_of_the_recipe(name):
    profile = load_profile(name)
    assert profile.name == profile.file == name
    assert set(read_values(name)["recipe"]) == {f.name for f in dataclasses.fields(Recipe)}


def test_the_papers_profiles_have_its_recipes_and_her2st_was_not_tuned():
    plain, run, nested = map(load_profile, ("hest-lung", "hest-lung-as-run", "hest-liver-nested"))
    cohorts = [profile.source_options["cohort"] for profile in (plain, run, nested)]
    assert cohorts == ["lung", "lung", "liver"] and "lung" in plain.title
    assert plain.recipe == dataclasses.replace(RECIPES["as_written"], layers=("attn.qkv",))
    assert run.recipe == RECIPES["as_run"]
    assert (plain.all_methods, run.all_methods, nested.methods) == (("bat",), ("bone",), ("bat",))
    assert (plain.teacher_options["min_genes"], run.teacher_options["min_genes"]) == (200, 0)
    same = lambda profile: (profile.recipe, profile.encoder, profile.methods)
    assert same(load_profile("her2st")) == same(load_profile("demo"))


def test_an_override_reaches_nested_and_flat_values_and_is_checked_as_a_written_one():
    changes = {"epochs": 7, "patients": 8, "seed": 3, "methods": ["bone"], "umap": True}
    profile = load_profile("smoke", changes)
    assert (profile.recipe.epochs, profile.source_options["patients"], profile.seed) == (7, 8, 3)
    assert profile.methods == ("bone",) and profile.overrides == changes and profile.chapters.umap
    assert load_profile("smoke").recipe.epochs != 7
    groups = {"source", "title", "recipe", "source_options", "teacher_options", "chapters"}
    assert not groups & set(override_names(read_values("smoke")))
    for wrong in ({"epoch": 2}, {"lr": "1e-4"}, {"patients": "4"}, "{'epochs': 2}", [1]):
        with pytest.raises(PekaError):
            load_profile("smoke", wrong)


def test_a_profile_has_only_what_differs_from_its_base(tmp_path):
    text = "base: smoke\ntitle: mine\nsource_options: {spots: 20}\nrecipe: {epochs: 4}"
    mine, smoke = write(tmp_path, text + "\nchapters: {umap: true}"), load_profile("smoke")
    profile = load_profile(mine)
    assert profile.recipe == dataclasses.replace(smoke.recipe, epochs=4)
    assert profile.methods == smoke.methods and profile.name == "mine"
    assert profile.chapters == dataclasses.replace(smoke.chapters, umap=True)
    assert profile.source_options == {"spots": 20}  # options of another source mean nothing
    child = write(tmp_path, "base: mine.yaml\nrecipe:", "child.yaml")
    assert load_profile(child).recipe == profile.recipe
    like = load_profile(write(tmp_path, "base: smoke\nrecipe: {like: as_run, block: 16}"))
    assert like.recipe == dataclasses.replace(RECIPES["as_run"], block=16)
    whole = load_profile(write(tmp_path, yaml.safe_dump(read_values("smoke"))))
    assert whole.recipe == smoke.recipe


NO_PROFILES = {
    "base: mine.yaml": "mine.yaml", "base: other.yaml": "mine.yaml", "base: smokes": "smokes",
    "title: mine\nsource: demo": "encoder", "base: 3": "base",
    bundled()["hest-lung"][0].read_text(): "cohorts.*variants",  # a copy of hest.yaml
}  # fmt: skip
WRONG = [  # on top of smoke
    "method: [bat]", "recipe: [1]", "recipe: {lr: 0}", "recipe: {learning_rate: 1}",
    "recipe: {like: as_ran}", "seed: -1", "seed: true", "encoder: 5", "chapters: {umap: 1}",
    "chapters: {chapter: 1}", "chapters: {cues_off_splits: -1}", "chapters: {few: {patients: 4}}",
    "chapters: {few: {epochs: 0, patients: 4}}", "methods: bat", "methods: [bats]",
    "methods: [none]", "source: nowhere", "source: law", "source: [demo]", "teacher: nobody",
    "teacher_options: 3", "teacher_options: {components: 3}", "teacher_options: {n_components: 0}",
    "source_options: {folds: 1}", "source_options: {patients: 1.5}", "source_options: {patient: 3}",
    "source_options: {hidden_cues: 2}", "others: [bat]", "others: [{method: none, share: 0}]",
    "others: [{method: none, space: elsewhere}]", "others: [{recipe: [k]}]", "ladder: bat",
    "ladder: [5]", "ladder: [{recipe: {k: 1}}]", "ladder: [{recipe: {learning: 1}}]",
    "ladder: [{methd: bat}]", "ladder: [{taught_by: me}]", "ladder: [{method: dora}]",
]  # fmt: skip
KEYS = re.compile(r"\w+(?=:)")  # the message names one of them
NAMED = {f"base: smoke\n{line}": f"mine.*({'|'.join(KEYS.findall(line))})" for line in WRONG}


@pytest.mark.parametrize(("text", "named"), (NO_PROFILES | NAMED).items())
def test_a_file_or_value_that_does_not_fit_is_refused_by_name(tmp_path, text, named):
    write(tmp_path, "base: ./mine.yaml", "other.yaml")
    with pytest.raises(PekaError, match=named):
        load_profile(write(tmp_path, text))


@pytest.mark.parametrize("name", ["dmeo", "{tmp_path}/other", "hest", "hest-colon"])
def test_an_unknown_name_is_refused(tmp_path, name):
    write(tmp_path, "base: smoke", "other.yaml")
    with pytest.raises(PekaError, match=name[-5:]):
        load_profile(name.format(tmp_path=tmp_path))


def test_paths_stay_what_they_are_in_another_working_directory(tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    write(tmp_path / "profiles", "base: own\nsource_options: {path: ../tissue}", "near.yaml")
    write(tmp_path / "profiles", "base: near.yaml", "nearer.yaml")
    monkeypatch.chdir(tmp_path)
    profile, changed = load_profile("profiles/nearer.yaml"), load_profile("own", {"path": "tissue"})
    assert profile.source_options == {"path": str(tmp_path / "profiles/../tissue")}
    assert changed.overrides == {"path": str(tmp_path / "tissue")} == changed.source_options
    text = "base: hest-breast\nsource_options: {cohort: breast, index: %s}"
    indices = ("mine.csv", "./mine.csv", "/a/mine.csv")  # the first is a name inside the mirror
    made = [load_profile(write(tmp_path, text % i)).source_options["index"] for i in indices]
    assert made == ["mine.csv", str(tmp_path / "mine.csv"), "/a/mine.csv"]
    monkeypatch.chdir(tmp_path / "profiles")
    assert load_profile(profile.file) == profile
    assert load_profile(changed.file, changed.overrides) == changed
