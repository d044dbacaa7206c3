"""Runs: units found again, made again where a file was left out, refused where the folder holds another run."""

import json

import pandas as pd
import pytest
from conftest import SMALL

from peka_core import device as devices
from peka_core import load_encoder, load_teacher, places
from peka_core.errors import PekaError
from peka_core.models.encoder_files import MINI_WEIGHTS
from peka_core.protocols import PROTOCOLS
from peka_core.runner import run as workspace
from peka_core.runner import stages
from peka_core.runner.rungs import Rung
from peka_core.studies import paper_tables, tables


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
    assert (again / "adapter.safetensors").exists() and not (
        folder / "adapter.safetensors"
    ).exists(), "a finished unit was changed"


def test_frozen_features_exist_once(work):
    stages.features(work)
    stages.features(work, "none", work.cohort().splits[0].name)
    made = [
        json.loads(path.read_text())["unit"]
        for path in work.folder.glob("units/features-*/unit.json")
    ]
    assert (
        sum(unit["method"] == "none" and unit["encoder"].startswith("mini") for unit in made) == 1
    )


def test_rows_of_an_unknown_split_are_refused(work):
    with pytest.raises(PekaError, match="patients/9"):
        work.rows("patients/9")


def test_a_score_carries_its_whole_name(work):
    rows = [("encoder", "frozen"), ("student", Rung("projector_only", "projected"))]
    table = tables.score_table(work, PROTOCOLS["strict"], entries=rows)
    shown = tables.headline(table).iloc[1]
    assert (shown["protocol"], shown["scope"], shown["space"], shown["pooling"]) == (
        "strict",
        "nested",
        "projected",
        "section",
    )
    assert shown["n"] == 4 and shown["unit"] == "patient" and shown["seed"] == 0
    assert table["cohort"].eq(work.cohort().digest[:12]).all()


def test_differences_are_paired_within_patients(work):
    strict = PROTOCOLS["strict"]
    table = tables.difference_table(
        work, strict, [("student", Rung("projector_only", "concat"))], scheme="patients"
    )
    by_hand = (
        stages.score(work, Rung("projector_only", "concat"), strict).scores,
        stages.score(work, "frozen", strict).scores,
    )
    pick = lambda s: (
        s.query("pooling == 'section' and genes == 'all' and alpha == 'chosen'")
        .groupby("patient")["pcc"]
        .mean()
    )
    pd.testing.assert_series_equal(
        table.loc[table["genes"] == "all", "values"].iloc[0],
        pick(by_hand[0]) - pick(by_hand[1]),
        check_names=False,
    )


def test_published_values_name_their_source():
    values = paper_tables.published()
    assert values["source"].notna().all()
    picked = values.query(
        "table == 'Table 2' and cohort == 'liver' and encoder == 'h-optimus-0' and method == 'PEKA'"
    )
    assert picked["pcc"].item() == 0.640


def test_an_alignment_never_sees_the_copy_of_a_held_out_section(work):
    copied = work.cohort().samples["duplicate_of"].ne("")
    assert copied.any()
    for split in work.cohort().splits:
        train, test = work.rows(split.name)
        samples = work.cohort().obs["sample"].to_numpy()
        assert not set(copied.index[copied]) & (set(samples[train]) | set(samples[test]))


@pytest.fixture
def empty_root(tmp_path, monkeypatch):
    """A checkout without runs."""
    monkeypatch.setattr(places, "root", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "exp/one",
        "../out",
        "..",
        ".",
        "a/../b",
        ".hidden",
        "/abs",
        "a\\b",
        "C:",
        "a\nb",
        " ",
        "a ",
        "a.",
        "n" * 101,
    ],
)
def test_a_run_name_that_is_no_plain_folder_name_is_refused_before_anything_is_written(
    empty_root, name
):
    with pytest.raises(PekaError, match="--run NAME"):
        workspace.open_run("smoke", name, "cpu")
    assert list(empty_root.iterdir()) == []


def test_a_run_name_may_be_a_number_or_have_blanks(empty_root):
    names = [
        workspace.open_run("smoke", name, "cpu").folder.name for name in (1, 0, "my tissue 2.1", "")
    ]
    assert names == ["1", "0", "my tissue 2.1", "smoke"]


@pytest.mark.parametrize(
    "given", [{"overrides": "{'epochs': 2}"}, {"overrides": ["epochs"]}, {"weights": "mini=x"}]
)
def test_text_where_a_mapping_belongs_is_refused_by_name(empty_root, given):
    with pytest.raises(PekaError, match=next(iter(given))):
        workspace.open_run("smoke", "x", "cpu", **given)
    assert list(empty_root.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_run_json_is_named(empty_root, content):
    path = workspace.open_run("smoke", "x", "cpu").folder / "run.json"
    before = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(PekaError, match="run.json: damaged"):
        workspace.open_run("smoke", "x", "cpu")
    path.unlink()
    workspace.open_run("smoke", "x", "cpu")
    assert path.read_bytes() == before


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", "tpu", "cuda:x", "cpu0"])
def test_a_device_that_is_not_here_is_refused_before_a_folder_exists(
    empty_root, monkeypatch, device
):
    monkeypatch.setattr(devices, "_has_gpu", lambda: False)
    for use in (
        lambda: workspace.open_run("smoke", "x", device),
        lambda: load_encoder("mini", device=device),
        lambda: load_teacher("scfoundation", device=device),
    ):
        with pytest.raises(PekaError, match="device|CUDA"):
            use()
    assert list(empty_root.iterdir()) == []


def test_a_gpu_is_known_by_its_number(monkeypatch):
    monkeypatch.setattr(devices, "_has_gpu", lambda: True)
    monkeypatch.setattr(devices, "_count_gpus", lambda: 2)
    assert [devices.check_device(device) for device in ("auto", "cpu", "cuda", "cuda:1")] == [
        "cuda",
        "cpu",
        "cuda",
        "cuda:1",
    ]
    with pytest.raises(PekaError, match="cuda:2"):
        devices.check_device("cuda:2")


def test_local_weights_are_found_from_any_working_directory(empty_root, monkeypatch):
    monkeypatch.chdir(empty_root)
    (empty_root / "w.safetensors").write_bytes(MINI_WEIGHTS.read_bytes())
    work = workspace.open_run("smoke", "x", "cpu", {"mini": "w.safetensors"})
    monkeypatch.chdir("/")
    assert work.weights == {"mini": str(empty_root / "w.safetensors")} and work.encoder().dim


def test_a_damaged_table_of_a_unit_is_named(work):
    other = Rung("none", encoder="random")
    stages.features(work, other)
    path = next(
        p.parent / "features.h5ad"
        for p in work.folder.glob("units/features-*/unit.json")
        if '"random@' in p.read_text()
    )
    path.write_bytes(path.read_bytes()[:1000])
    stages._read.cache_clear()
    with pytest.raises(PekaError, match="features.h5ad"):
        stages.features(work, other)
