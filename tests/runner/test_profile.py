"""Profiles: the bundled ones load, overrides reach the value they name, unknown names are refused with the known ones."""

import dataclasses

import pytest
import yaml

from peka_core.errors import PekaError
from peka_core.recipe import RECIPES, Recipe
from peka_core.runner.profile import (
    FOLDER,
    load_profile,
    override_names,
    profile_names,
    read_values,
)


def test_three_profiles_are_bundled():
    assert {"smoke", "demo", "her2st"} <= set(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_a_bundled_profile_loads_and_sets_every_value_of_the_recipe(name):
    profile = load_profile(name)
    assert profile.name == name and isinstance(profile.recipe, Recipe)
    assert set(read_values(FOLDER / f"{name}.yaml")["recipe"]) == {
        field.name for field in dataclasses.fields(Recipe)
    }


def test_her2st_was_not_tuned():
    assert load_profile("her2st").recipe == load_profile("demo").recipe
    assert load_profile("her2st").source_options["sections"] == ["B4", "C2", "C3", "C4", "C5"]


def test_an_override_reaches_nested_and_flat_values():
    profile = load_profile("smoke", {"epochs": 7, "patients": 8, "seed": 3, "methods": ["bone"]})
    assert (profile.recipe.epochs, profile.source_options["patients"], profile.seed) == (7, 8, 3)
    assert profile.methods == ("bone",) and profile.overrides["epochs"] == 7
    assert load_profile("smoke").recipe.epochs != 7


def test_an_unknown_override_names_the_known_ones():
    with pytest.raises(
        PekaError, match="unknown parameter 'epoch'; known: .*epochs.*patients.*seed"
    ):
        load_profile("smoke", {"epoch": 2})


def test_what_a_profile_is_cannot_be_overridden():
    names = override_names(read_values(FOLDER / "smoke.yaml"))
    assert not {"source", "title", "recipe", "source_options", "teacher_options"} & set(names)


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(PekaError, match="no profile 'dmeo'; known: demo"):
        load_profile("dmeo")


def test_a_profile_says_only_what_differs_from_its_base(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "base: smoke\ntitle: mine\nsource_options: {spots: 20}\nrecipe: {epochs: 4}\n"
    )
    profile, smoke = load_profile(str(tmp_path / "mine.yaml")), load_profile("smoke")
    assert (
        profile.recipe == dataclasses.replace(smoke.recipe, epochs=4)
        and profile.methods == smoke.methods
    )
    assert profile.source_options == {
        "spots": 20
    }  # a whole: options of another source mean nothing
    (tmp_path / "grandchild.yaml").write_text(
        "base: mine.yaml\nrecipe:\n"
    )  # beside it, and nothing under recipe
    assert load_profile(str(tmp_path / "grandchild.yaml")).recipe == profile.recipe
    (tmp_path / "odd.yaml").write_text("base: smoke\nmethod: [bat]\n")
    with pytest.raises(PekaError, match="odd.yaml: unknown value method; known: .*methods"):
        load_profile(str(tmp_path / "odd.yaml"))
    (tmp_path / "lost.yaml").write_text("base: smokes\n")
    with pytest.raises(PekaError, match="no profile 'smokes'"):
        load_profile(str(tmp_path / "lost.yaml"))


def test_a_recipe_can_start_from_the_papers(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: smoke\nrecipe: {like: as_run, block: 16}\n")
    assert load_profile(str(tmp_path / "mine.yaml")).recipe == dataclasses.replace(
        RECIPES["as_run"], block=16
    )
    (tmp_path / "lost.yaml").write_text("base: smoke\nrecipe: {like: as_ran}\n")
    with pytest.raises(
        PekaError, match="recipe like 'as_ran' is unknown; there are as_written, as_run"
    ):
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


def write(folder, text, name="mine.yaml"):
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("text", [
    "recipe: {epochs: '1'}", "recipe: {epochs: 1.5}", "recipe: {lr: 0}", "recipe: {targets: attn.qkv}", "recipe: {flips: 1}", "recipe: [1]",
    "seed: abc", "seed: -1", "seed: true", "encoder: 5", "title: [a]", "umap: 1", "methods: bat", "methods: [bats]", "methods: [none]",
    "cues_off_splits: -1", "few: {patients: 4}", "few: {patients: 4, epochs: 0}", "source: nowhere", "source: law", "source: [demo]",
    "teacher: nobody", "teacher_options: {n_components: '12'}", "teacher_options: {n_components: 0}", "teacher_options: {scale: -1}",
    "teacher_options: {components: 3}", "teacher_options: 3", "source_options: {patients: 1.5}", "source_options: {patients: 1}",
    "source_options: {folds: 1}", "source_options: {hidden_cues: 2}", "source_options: {patient: 3}", "base: 3", "ladder: [{recipe: {k: 1}}]",
    "ladder: [{recipe: {k: many}}]", "ladder: [5]", "ladder: bat", "others: [bat]", "others: [{method: none, share: 0}]",
    "others: [{method: none, space: elsewhere}]", "others: [{recipe: [k]}]",
])  # fmt: skip
def test_a_value_that_does_not_fit_is_refused_with_the_profiles_name_and_its_own(tmp_path, text):
    base = "" if text.startswith("base") else "base: smoke\n"
    name = text.split(":")[0]
    inner = text.split("{")[-1].split(":")[0] if "{" in text else name
    with pytest.raises(PekaError) as error:
        load_profile(write(tmp_path, base + text + "\n"))
    said = str(error.value)
    assert "mine" in said and (name in said or inner in said), said


@pytest.mark.parametrize(
    "overrides",
    [
        {"lr": "1e-4"},
        {"k": 16.0},
        {"clip": None},
        {"patients": "4"},
        {"n_components": "12"},
        "{'epochs': 2}",
        [1],
    ],
)
def test_a_changed_value_is_checked_as_a_written_one(overrides):
    with pytest.raises(PekaError):
        load_profile("smoke", overrides)


def test_a_number_is_the_same_however_it_is_written(tmp_path):
    written = load_profile(
        write(
            tmp_path,
            "base: smoke\nrecipe: {lr: 3e-3, tau: 2}\nteacher_options: {n_components: 12, scale: 2}\n",
        )
    )
    changed = load_profile("smoke", {"lr": 0.003, "tau": 2.0, "scale": 2})
    assert written.recipe == changed.recipe and type(written.recipe.tau) is float
    assert (
        repr(written.teacher_options)
        == repr(changed.teacher_options)
        == "{'n_components': 12, 'scale': 2.0}"
    )
    with_rung = load_profile(
        write(
            tmp_path,
            "base: smoke\nothers: [{name: a, recipe: {tau: 2, targets: [fc]}, share: 1}]\n",
        )
    )
    assert (
        repr(with_rung.others[0].recipe) == "(('targets', ('fc',)), ('tau', 2.0))"
        and repr(with_rung.others[0].share) == "1.0"
    )


@pytest.mark.parametrize(
    "files", [{"a": "base: a.yaml\n"}, {"a": "base: b.yaml\n", "b": "base: ./a.yaml\n"}]
)
def test_a_profile_that_stands_on_itself_is_refused(tmp_path, files):
    for name, text in files.items():
        write(tmp_path, text, f"{name}.yaml")
    with pytest.raises(PekaError, match="a.yaml: its base leads back"):
        load_profile(str(tmp_path / "a.yaml"))


def test_a_profile_without_base_says_what_it_lacks(tmp_path):
    with pytest.raises(PekaError, match="mine.yaml: .*encoder.* missing"):
        load_profile(write(tmp_path, "title: mine\nsource: demo\n"))


def test_a_bundled_profile_is_known_by_its_name_alone(tmp_path):
    write(tmp_path, "base: smoke\n", "other.yaml")
    with pytest.raises(PekaError, match="no profile"):
        load_profile(f"../../../../../../../../../..{tmp_path}/other")


def test_paths_stay_what_they_are_in_another_working_directory(tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "profiles", "base: own\nsource_options: {path: ../tissue}\n", "near.yaml")
    write(tmp_path / "profiles", "base: near.yaml\n", "nearer.yaml")
    monkeypatch.chdir(tmp_path)
    profile = load_profile("profiles/nearer.yaml")
    assert profile.source_options == {
        "path": str(tmp_path / "profiles/../tissue")
    } and profile.file == str(tmp_path / "profiles/nearer.yaml")
    changed = load_profile("own", {"path": "tissue"})
    assert changed.overrides == {"path": str(tmp_path / "tissue")} == changed.source_options
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert (
        load_profile(profile.file) == profile
        and load_profile(changed.file, changed.overrides) == changed
    )


def test_an_index_of_hest_is_a_name_in_the_mirror_unless_it_is_written_as_a_path(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    text = "base: hest-breast\nsource_options: {cohort: breast, index: %s}\n"
    made = [
        load_profile(write(tmp_path, text % index)).source_options["index"]
        for index in ("mine.csv", "./mine.csv", "/a/mine.csv")
    ]
    assert made == ["mine.csv", str(tmp_path / "mine.csv"), "/a/mine.csv"]
