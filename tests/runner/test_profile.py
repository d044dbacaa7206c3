"""Profiles: bundled ones load, files stand on others, changed values are found and checked."""

import dataclasses

import pytest
import yaml

from peka_core.common.errors import PekaError
from peka_core.recipe import RECIPES, Recipe
from peka_core.runner.profile import (
    load_profile,
    override_names,
    profile_names,
    profile_titles,
    read_values,
)


def write(folder, text, name="mine.yaml"):
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("name", profile_names())
def test_a_bundled_profile_loads_and_sets_every_value_of_the_recipe(name):
    profile = load_profile(name)
    assert profile.name == profile.file == name
    assert set(read_values(name)["recipe"]) == {f.name for f in dataclasses.fields(Recipe)}


def test_one_file_holds_the_papers_cohorts_and_their_variants():
    names = [name for name in profile_names() if name.startswith("hest")]
    assert len(names) == 16 and len([n for n in profile_titles() if n.startswith("hest")]) == 4
    plain, run = load_profile("hest-lung"), load_profile("hest-lung-as-run")
    nested, full = load_profile("hest-liver-nested"), load_profile("hest-breast-full")
    assert [p.source_options["cohort"] for p in (plain, nested, full)] == [
        "lung",
        "liver",
        "breast",
    ]
    assert plain.recipe == dataclasses.replace(RECIPES["as_written"], targets=("attn.qkv",))
    assert run.recipe == RECIPES["as_run"] and (plain.all_methods, run.all_methods) == (
        ("bat",),
        ("bone",),
    )
    assert (plain.teacher_options["min_genes"], run.teacher_options["min_genes"]) == (200, 0)
    assert nested.methods == ("bat",) and nested.chapters.scope_effect
    assert len(full.others) == 8 and not plain.others and "lung" in plain.title


def test_her2st_was_not_tuned():
    her2st, demo = load_profile("her2st"), load_profile("demo")
    assert (her2st.recipe, her2st.encoder, her2st.methods) == (
        demo.recipe,
        demo.encoder,
        demo.methods,
    )


def test_an_override_reaches_nested_and_flat_values():
    changes = {"epochs": 7, "patients": 8, "seed": 3, "methods": ["bone"], "umap": True}
    profile = load_profile("smoke", changes)
    assert (profile.recipe.epochs, profile.source_options["patients"], profile.seed) == (7, 8, 3)
    assert profile.methods == ("bone",) and profile.overrides == changes and profile.chapters.umap
    assert load_profile("smoke").recipe.epochs != 7
    groups = {"source", "title", "recipe", "source_options", "teacher_options", "chapters"}
    assert not groups & set(override_names(read_values("smoke")))


def test_a_profile_has_only_what_differs_from_its_base(tmp_path):
    text = (
        "base: smoke\ntitle: mine\nsource_options: {spots: 20}\n"
        "recipe: {epochs: 4}\nchapters: {umap: true}\n"
    )
    profile, smoke = load_profile(write(tmp_path, text)), load_profile("smoke")
    assert profile.recipe == dataclasses.replace(smoke.recipe, epochs=4)
    assert profile.methods == smoke.methods and profile.name == "mine"
    assert profile.chapters == dataclasses.replace(smoke.chapters, umap=True)
    assert profile.source_options == {"spots": 20}  # options of another source mean nothing
    child = write(tmp_path, "base: mine.yaml\nrecipe:\n", "child.yaml")
    assert load_profile(child).recipe == profile.recipe
    like = load_profile(write(tmp_path, "base: smoke\nrecipe: {like: as_run, block: 16}\n"))
    assert like.recipe == dataclasses.replace(RECIPES["as_run"], block=16)


def test_a_profile_without_a_base_can_hold_everything(tmp_path):
    values = read_values("smoke")
    profile = load_profile(write(tmp_path, yaml.safe_dump(values)))
    assert profile.recipe == load_profile("smoke").recipe


@pytest.mark.parametrize(
    "text, named",
    [
        ("base: smoke\nmethod: [bat]", "method"),
        ("base: smokes", "smokes"),
        ("base: mine.yaml", "mine.yaml"),
        ("base: other.yaml", "mine.yaml"),
        ("title: mine\nsource: demo", "encoder"),
        ("base: smoke\nrecipe: {like: as_ran}", "as_ran"),
        ("base: smoke\nrecipe: {learning_rate: 1}", "learning_rate"),
        ("base: smoke\nchapters: {chapter: 1}", "chapter"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path, text, named):
    write(tmp_path, "base: ./mine.yaml\n", "other.yaml")
    with pytest.raises(PekaError, match=named):
        load_profile(write(tmp_path, text + "\n"))


@pytest.mark.parametrize("name", ["dmeo", "{tmp_path}/other", "hest", "hest-colon"])
def test_an_unknown_name_is_refused(tmp_path, name):
    write(tmp_path, "base: smoke\n", "other.yaml")
    with pytest.raises(PekaError, match="no profile"):
        load_profile(name.format(tmp_path=f"../../../../../../../../../..{tmp_path}"))


@pytest.mark.parametrize("text", [
    "recipe: {epochs: '1'}", "recipe: {lr: 0}", "recipe: {targets: attn.qkv}", "recipe: [1]",
    "seed: -1", "seed: true", "encoder: 5", "title: [a]", "chapters: {umap: 1}", "methods: bat",
    "methods: [bats]", "methods: [none]", "chapters: {cues_off_splits: -1}",
    "chapters: {few: {patients: 4}}", "chapters: {few: {epochs: 0, patients: 4}}",
    "source: nowhere", "source: law", "source: [demo]", "teacher: nobody",
    "teacher_options: {n_components: 0}", "teacher_options: {scale: -1}",
    "teacher_options: {components: 3}", "teacher_options: 3", "source_options: {patients: 1.5}",
    "source_options: {folds: 1}", "source_options: {hidden_cues: 2}",
    "source_options: {patient: 3}", "base: 3", "ladder: [{recipe: {k: 1}}]", "ladder: [5]",
    "ladder: bat", "others: [bat]", "others: [{method: none, share: 0}]",
    "others: [{method: none, space: elsewhere}]", "others: [{recipe: [k]}]",
])  # fmt: skip
def test_a_value_that_does_not_fit_is_refused_with_the_profiles_name_and_its_own(tmp_path, text):
    base = "" if text.startswith("base") else "base: smoke\n"
    names = {text.split(":")[0], text.split("{")[-1].split(":")[0]}
    with pytest.raises(PekaError) as error:
        load_profile(write(tmp_path, base + text + "\n"))
    said = str(error.value)
    assert "mine" in said and any(name in said for name in names), said


@pytest.mark.parametrize(
    "overrides",
    [{"epoch": 2}, {"lr": "1e-4"}, {"k": 16.0}, {"patients": "4"}, "{'epochs': 2}", [1]],
)
def test_a_changed_value_is_checked_as_a_written_one(overrides):
    with pytest.raises(PekaError):
        load_profile("smoke", overrides)


def test_a_number_is_the_same_however_it_is_written(tmp_path):
    text = (
        "base: smoke\nrecipe: {lr: 3e-3, tau: 2}\nteacher_options: {n_components: 12, scale: 2}\n"
        "others: [{name: a, recipe: {tau: 2, targets: [fc]}, share: 1}]\n"
    )
    written = load_profile(write(tmp_path, text))
    changed = load_profile("smoke", {"lr": 0.003, "tau": 2.0, "scale": 2})
    assert written.recipe == changed.recipe and type(written.recipe.tau) is float
    same = "{'n_components': 12, 'scale': 2.0}"
    assert repr(written.teacher_options) == repr(changed.teacher_options) == same
    assert repr(written.others[0].recipe) == "(('targets', ('fc',)), ('tau', 2.0))"
    assert repr(written.others[0].share) == "1.0"


def test_paths_stay_what_they_are_in_another_working_directory(tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "profiles", "base: own\nsource_options: {path: ../tissue}\n", "near.yaml")
    write(tmp_path / "profiles", "base: near.yaml\n", "nearer.yaml")
    monkeypatch.chdir(tmp_path)
    profile = load_profile("profiles/nearer.yaml")
    assert profile.source_options == {"path": str(tmp_path / "profiles/../tissue")}
    assert profile.file == str(tmp_path / "profiles/nearer.yaml")
    changed = load_profile("own", {"path": "tissue"})
    assert changed.overrides == {"path": str(tmp_path / "tissue")} == changed.source_options
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_profile(profile.file) == profile
    assert load_profile(changed.file, changed.overrides) == changed


def test_an_index_of_hest_is_a_name_in_the_mirror_unless_it_is_written_as_a_path(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    text = "base: hest-breast\nsource_options: {cohort: breast, index: %s}\n"
    indices = ("mine.csv", "./mine.csv", "/a/mine.csv")
    made = [load_profile(write(tmp_path, text % i)).source_options["index"] for i in indices]
    assert made == ["mine.csv", str(tmp_path / "mine.csv"), "/a/mine.csv"]
