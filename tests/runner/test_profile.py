"""Profiles: bundled ones load, files stand on others, changed values are found and checked."""

import dataclasses
import re

import pytest

from peka_core.common.errors import PekaError
from peka_core.recipe import RECIPES, Recipe
from peka_core.runner.profile import bundled, load_profile, read_values
from peka_core.runner.rungs import Rung


def write(folder, text, name="mine.yaml"):
    (folder / name).write_text(text + "\n")
    return str(folder / name)


@pytest.mark.parametrize("name", sorted(bundled()))
def test_a_bundled_profile_loads_and_sets_every_value_of_the_recipe(name):
    profile = load_profile(name)
    assert profile.name == profile.file == name
    assert set(read_values(name)["recipe"]) == {f.name for f in dataclasses.fields(Recipe)}
    rungs = [rung.change(profile.recipe) for rung in profile.ladder if isinstance(rung, Rung)]
    steps = {(r.epochs, r.batch_size, r.flips, r.validation_share) for r in rungs}
    assert len(steps) <= 1, "rungs of a ladder see the same tiles in the same steps"


def test_the_papers_profiles_have_its_recipes_and_her2st_was_not_tuned():
    plain, run = load_profile("hest-lung"), load_profile("hest-lung-as-run")
    assert plain.recipe == dataclasses.replace(RECIPES["as_written"], layers=("attn.qkv",))
    assert run.recipe == RECIPES["as_run"]
    assert (plain.all_methods, run.all_methods) == (("bat",), ("bone",))
    assert (plain.teacher_options["min_genes"], run.teacher_options["min_genes"]) == (200, 0)
    same = lambda profile: (profile.recipe, profile.encoder, profile.methods)
    assert same(load_profile("her2st")) == same(load_profile("demo"))


def test_an_override_reaches_nested_and_flat_values_and_is_checked_as_a_written_one():
    changes = {"epochs": 7, "patients": 8, "seed": 3, "methods": ["bone"], "umap": True}
    profile = load_profile("smoke", changes)
    assert (profile.recipe.epochs, profile.source_options["patients"], profile.seed) == (7, 8, 3)
    assert profile.methods == ("bone",) and profile.overrides == changes and profile.chapters.umap
    assert load_profile("smoke").recipe.epochs != 7
    named = load_profile("smoke", {"epochs": 7, "recipe": "beyond"}).recipe
    assert named == dataclasses.replace(RECIPES["beyond"], epochs=7)
    unknown = {"recipe": "beyonder"}
    for wrong in ({"epoch": 2}, {"lr": "1e-4"}, {"patients": "4"}, {"recipe": {}}, unknown):
        with pytest.raises(PekaError):
            load_profile("smoke", wrong)


def test_another_teacher_has_its_own_options_and_the_seed_stays_that_of_the_profile():
    for name in ("smoke", "hest-lung"):
        profile = load_profile(
            name, {"teacher": "scgpt", "draw_seed": 5, "unusable": "drop", "seed": 3}
        )
        found = [
            profile.teacher_options[option] for option in ("draw_seed", "unusable", "min_genes")
        ]
        assert (profile.teacher, profile.seed, found) == ("scgpt", 3, [5, "drop", 0])
        assert load_profile(name, {"teacher": "pca", "seed": 3}).seed == 3
        for wrong in ({"teacher": "scgpt", "scale": 2.0}, {"teacher": "x"}, {"draw_seed": 5}):
            with pytest.raises(PekaError):
                load_profile(name, wrong)


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
    text = "base: smoke\nladder: [{recipe: {like: beyond, epochs: 3}}]"
    (rung,) = load_profile(write(tmp_path, text)).ladder
    assert rung.change(like.recipe) == dataclasses.replace(RECIPES["beyond"], epochs=3)


WRONG = [  # on top of smoke
    "method: [bat]", "recipe: {learning_rate: 1}", "recipe: {like: as_ran}", "seed: true",
    "chapters: {chapter: 1}", "chapters: {few: {patients: 4}}", "methods: bat", "methods: [none]",
    "teacher_options: {components: 3}", "source_options: {patient: 3}",
    "source_options: {hidden_cues: 2}", "others: [{method: none, share: 0}]",
    "ladder: [{recipe: {learning: 1}}]", "ladder: [{recipe: {like: as_ran}}]",
    "ladder: [{methd: bat}]", "ladder: [{taught_by: me}]",
]  # fmt: skip
KEYS = re.compile(r"\w+(?=:)")  # the message names one of them
NAMED = {f"base: smoke\n{line}": f"mine.*({'|'.join(KEYS.findall(line))})" for line in WRONG}
NO_PROFILES = {"base: other.yaml": "mine.yaml", "title: mine\nsource: demo": "encoder"}


@pytest.mark.parametrize(("text", "named"), (NO_PROFILES | NAMED).items())
def test_a_file_or_value_that_does_not_fit_is_refused_by_name(tmp_path, text, named):
    write(tmp_path, "base: ./mine.yaml", "other.yaml")
    with pytest.raises(PekaError, match=named):
        load_profile(write(tmp_path, text))


def test_paths_stay_what_they_are_in_another_working_directory(tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    write(tmp_path / "profiles", "base: own\nsource_options: {path: ../tissue}", "near.yaml")
    write(tmp_path / "profiles", "base: near.yaml", "nearer.yaml")
    monkeypatch.chdir(tmp_path)
    profile, changed = load_profile("profiles/nearer.yaml"), load_profile("own", {"path": "tissue"})
    assert profile.source_options == {"path": str(tmp_path / "profiles/../tissue")}
    assert changed.overrides == {"path": str(tmp_path / "tissue")} == changed.source_options
    text = "base: hest-breast\nsource_options: {cohort: breast, index: %s}"
    indices = ("mine.csv", "./mine.csv")  # the first is a name inside the mirror
    made = [load_profile(write(tmp_path, text % i)).source_options["index"] for i in indices]
    assert made == ["mine.csv", str(tmp_path / "mine.csv")]
    monkeypatch.chdir(tmp_path / "profiles")
    assert load_profile(profile.file) == profile
    assert load_profile(changed.file, changed.overrides) == changed
