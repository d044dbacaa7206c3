"""Runs: units found again, made again where a file is missing, refused in another run's folder."""

import dataclasses
import json

import pytest

from peka_core.common import device as devices
from peka_core.common import folders
from peka_core.common.errors import PekaError
from peka_core.drawn.worlds import OFF, OWN, few_patients
from peka_core.runner import run as runs
from peka_core.runner import stages
from peka_core.runner.inputs import recipe_of
from peka_core.runner.rungs import Rung


def test_a_unit_without_its_weights_is_trained_again_only_where_they_are_needed(work):
    split = work.cohort().splits[1].name
    weights = stages.align(work, "bat", split) / "adapter.safetensors"
    card, unit = (json.loads((weights.parent / f"{n}.json").read_text()) for n in ("card", "unit"))
    assert card["rows"] == unit["unit"]["rows"]
    weights.unlink()
    stages.history(work, "bat", split)
    assert not weights.exists()
    again = stages.align(work, "bat", split)
    assert (again / weights.name).exists() and not weights.exists(), "a finished unit was changed"


def test_frozen_features_exist_once_and_a_damaged_table_is_named(work):
    table, off = stages.features(work), work.at(OFF)
    assert stages.features(work, "none", work.cohort().splits[0].name) is table
    assert stages.features(off) is table and off.tiles() is work.tiles()
    assert off.cohort().digest != work.cohort().digest
    assert off.cohort().obs.index.equals(work.cohort().obs.index)
    (path,) = work.folder.glob("units/features-*/features.h5ad")
    path.write_bytes(path.read_bytes()[:1000])
    stages._read.cache_clear()
    with pytest.raises(PekaError, match=r"features\.h5ad"):
        stages.features(work)


def test_a_world_has_its_own_cohort_and_recipe(work):
    there = work.at(few_patients({"patients": 3, "epochs": 7}))
    assert there.cohort().samples["patient"].nunique() == 4  # the copy counts as another patient
    assert there.cohort().path.name == "cohort_few" and there.at(OWN).cohort() is work.cohort()
    recipe = recipe_of(there, Rung("bat"), there.split("patients/0"))
    share = lambda name: recipe_of(work, Rung("bat"), work.split(name)).validation_share
    assert (recipe.epochs, recipe.validation_share) == (7, 0.0)
    assert share("patients/0") > 0 == share("spots/0")


def test_a_cohort_that_was_built_with_other_options_of_a_world_is_built_again(work):
    def patients(n):
        there = dataclasses.replace(work, opened={}).at(few_patients({"patients": n, "epochs": 7}))
        return there.cohort().samples["patient"].nunique() - 1  # without the copy

    assert [patients(n) for n in (3, 4)] == [3, 4]


def test_an_alignment_never_sees_the_copy_of_a_held_out_section(work):
    copied = work.cohort().samples["duplicate_of"].ne("")
    samples = work.cohort().obs["sample"].to_numpy()
    assert copied.any()
    for split in work.cohort().splits:
        train, test = work.rows(split.name)
        assert not set(copied.index[copied]) & (set(samples[train]) | set(samples[test]))
    with pytest.raises(PekaError, match="patients/9"):
        work.rows("patients/9")


def test_a_run_has_a_plain_name_a_device_and_one_set_of_values(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    monkeypatch.setattr(devices, "_has_gpu", lambda: False)
    for wrong in ({"run": ".."}, {"run": "a\\b"}, {"run": " "}, {"device": "cuda:0"}):
        with pytest.raises(PekaError, match=next(iter(wrong))):
            runs.open_run(**{"profile": "smoke", "run": "x", "device": "cpu"} | wrong)
    assert list(tmp_path.iterdir()) == []
    opened = [runs.open_run("smoke", name, "cpu") for name in (1, "my tissue 2.1", "")]
    assert [run.folder.name for run in opened] == ["1", "my tissue 2.1", "smoke"]
    with pytest.raises(PekaError, match="smoke"):
        runs.open_run("smoke", "smoke", "cpu", {}, {"epochs": 2})
    for content in (b"", b"\xff\xfe"):
        (opened[0].folder / "run.json").write_bytes(content)
        with pytest.raises(PekaError, match=r"run\.json"):
            runs.open_run("smoke", 1, "cpu")
