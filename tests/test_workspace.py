"""Runs: units found again, made again where a file was left out, refused where the folder holds another run."""

import json

import pandas as pd
import pytest
from conftest import SMALL

from peka_core import stages, tables, workspace
from peka_core.files import PekaError
from peka_core.ladder import Rung
from peka_core.protocols import PROTOCOLS

def test_overrides_without_a_run_name_are_refused():
    with pytest.raises(PekaError, match="--run"):
        workspace.open_run("smoke", overrides={"epochs": 3})


def test_a_folder_started_with_other_values_is_refused(work):
    with pytest.raises(PekaError, match="choose another"):
        workspace.open_run("smoke", "small", "cpu", {}, SMALL | {"epochs": 2})


def test_a_finished_unit_is_found_again(work):
    split = work.cohort().splits[0].name
    folder = stages.align(work, "bat", split)
    before = (folder / "adapter.safetensors").stat().st_mtime_ns
    assert (stages.align(work, "bat", split) / "adapter.safetensors").stat().st_mtime_ns == before


def test_a_unit_without_its_weights_is_trained_again_only_where_they_are_needed(work):
    split = work.cohort().splits[1].name
    folder = stages.align(work, "bat", split)
    (folder / "adapter.safetensors").unlink()
    stages.history(work, "bat", split)
    assert not (folder / "adapter.safetensors").exists()
    again = stages.align(work, "bat", split)
    assert (again / "adapter.safetensors").exists() and not (folder / "adapter.safetensors").exists(), "a finished unit was changed"


def test_frozen_features_exist_once(work):
    stages.features(work)
    stages.features(work, "none", work.cohort().splits[0].name)
    made = [json.loads(path.read_text())["unit"] for path in work.folder.glob("units/features-*/unit.json")]
    assert sum(unit["method"] == "none" and unit["encoder"].startswith("mini") for unit in made) == 1


def test_rows_of_an_unknown_split_are_refused(work):
    with pytest.raises(PekaError, match="patients/9"):
        work.rows("patients/9")


def test_a_score_carries_its_whole_name(work):
    rows = [("encoder", "frozen"), ("student", Rung("projector_only", "projected"))]
    table = tables.score_table(work, PROTOCOLS["strict"], rows=rows)
    shown = tables.headline(table).iloc[1]
    assert (shown["protocol"], shown["scope"], shown["space"], shown["pooling"]) == ("strict", "nested", "projected", "section")
    assert shown["n"] == 4 and shown["unit"] == "patient" and shown["seed"] == 0
    assert table["cohort"].eq(work.cohort().digest[:12]).all()


def test_differences_are_paired_within_patients(work):
    strict = PROTOCOLS["strict"]
    table = tables.difference_table(work, strict, [("student", Rung("projector_only", "concat"))], scheme="patients")
    by_hand = stages.score(work, Rung("projector_only", "concat"), strict).scores, stages.score(work, "frozen", strict).scores
    pick = lambda s: s.query("pooling == 'section' and genes == 'all' and alpha == 'chosen'").groupby("patient")["pcc"].mean()
    pd.testing.assert_series_equal(
        table.loc[table["genes"] == "all", "values"].iloc[0], pick(by_hand[0]) - pick(by_hand[1]), check_names=False
    )


def test_published_values_name_their_source():
    values = tables.published()
    assert values["source"].notna().all()
    picked = values.query("table == 'Table 2' and cohort == 'liver' and encoder == 'h-optimus-0' and method == 'PEKA'")
    assert picked["pcc"].item() == 0.640


def test_an_alignment_never_sees_the_copy_of_a_held_out_section(work):
    copied = work.cohort().samples["duplicate_of"].ne("")
    assert copied.any()
    for split in work.cohort().splits:
        train, test = work.rows(split.name)
        samples = work.cohort().obs["sample"].to_numpy()
        assert not set(copied.index[copied]) & (set(samples[train]) | set(samples[test]))
