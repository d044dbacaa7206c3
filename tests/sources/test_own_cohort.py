"""Your own cohort directory: linked, never written to, and noticed when it changes."""

import os
import shutil

import pandas as pd
import pytest
from conftest import write_tiny_cohort
from damage import refused
from fake_hest import state

from peka_core import open_cohort
from peka_core.commands import command_line as run
from peka_core.commands import notebooks
from peka_core.common import folders
from peka_core.runner import run as workspace
from peka_core.sources import directory


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout without runs."""
    monkeypatch.setattr(folders, "root", lambda: tmp_path / "checkout")
    (tmp_path / "checkout").mkdir()
    return tmp_path / "checkout"


def opened(cohort, name="x"):
    """A run of the profile own for a cohort directory."""
    return workspace.open_run("own", name, "cpu", overrides={"path": str(cohort)})


def test_a_run_shows_the_users_files_by_links_and_leaves_them_alone(checkout, tiny_cohort):
    (tiny_cohort / "notes.txt").write_text("mine")
    before = state(tiny_cohort)
    made = opened(tiny_cohort).cohort(tiles=True)
    assert made.path == checkout / "runs/x/cohort" and not (made.path / "notes.txt").exists()
    assert made.digest == open_cohort(tiny_cohort).digest
    assert (made.path / "patches/P1A.h5").resolve() == tiny_cohort / "patches/P1A.h5"
    shutil.rmtree(made.path)
    assert state(tiny_cohort) == before


def test_a_killed_build_is_made_again(checkout, tiny_cohort):
    (opened(tiny_cohort).cohort().path / "source.json").unlink()
    (tiny_cohort / "adata/P4B.h5ad").unlink()
    (tiny_cohort / "patches/P4B.h5").unlink()
    for file in (tiny_cohort / "samples.csv", *(tiny_cohort / "splits").glob("*.csv")):
        table = pd.read_csv(file)
        table[table["sample_id"] != "P4B"].to_csv(file, index=False)
    assert list(opened(tiny_cohort).cohort(tiles=True).samples.index)[-1] == "P4A"


def test_a_file_that_changed_is_gone_or_is_new_is_noticed_when_the_run_is_opened(
    checkout, tiny_cohort, monkeypatch
):
    path = opened(tiny_cohort).cohort().path
    for name in ("samples.csv", "adata/P2A.h5ad", "patches/P1B.h5", "var_20genes.json"):
        file, content = tiny_cohort / name, (tiny_cohort / name).read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        refused(tiny_cohort, file.name, call=opened)
        file.unlink()
        refused(tiny_cohort, file.name, call=opened)
        file.write_bytes(content)
        opened(tiny_cohort)  # its time of change is another, its bytes are the same
    monkeypatch.setattr(directory, "sha256", lambda path: pytest.fail(f"{path} was read again"))
    opened(tiny_cohort)
    shutil.copy(tiny_cohort / "splits/train_0.csv", tiny_cohort / "splits/train_9.csv")
    refused(tiny_cohort, "train_9.csv", call=opened)
    (path / "source.json").write_text("{}")
    refused(tiny_cohort, "source.json", call=opened)


@pytest.mark.parametrize("part", ["splits", "patches", "var_20genes.json"])
def test_a_directory_that_the_chapters_cannot_use_is_refused_before_anything_is_written(
    checkout, tiny_cohort, capsys, part
):
    (tiny_cohort / part).rename(tiny_cohort.parent / "gone")
    assert run.main(["run", "own", "--cohort", str(tiny_cohort)]) == 1
    assert str(tiny_cohort) in capsys.readouterr().err and list(checkout.iterdir()) == []


def test_a_run_is_named_after_its_directory_and_is_never_shared_by_two(
    checkout, tiny_cohort, monkeypatch, tmp_path
):
    seen = []
    monkeypatch.setattr(notebooks, "execute", lambda _, folder, given: seen.append((folder, given)))
    monkeypatch.chdir(tiny_cohort.parent)
    run.main(["run", "own", "--cohort", "cohort", "-p", "epochs=1"])
    ((folder, given),) = seen
    assert folder == checkout / "runs/own-cohort/notebooks" and given["run"] == "own-cohort"
    assert given["overrides"] == {"epochs": 1, "path": str(tiny_cohort)}
    opened(tiny_cohort)
    refused(shutil.copytree(tiny_cohort, tmp_path / "other"), "--run", call=opened)


@pytest.mark.slow
def test_a_cohort_of_ones_own_runs_through_all_chapters(tmp_path, capsys):
    """As a user's is: only names and patients in samples.csv, no tissue types, two patients."""
    own = write_tiny_cohort(tmp_path / "my tissue", patients=2)
    table = pd.read_csv(own / "samples.csv")[["sample_id", "patient"]]
    table.to_csv(own / "samples.csv", index=False)
    before, name = state(own), f"test-own-{os.getpid()}"
    try:
        words = ["run", "own", "--cohort", str(own), "--run", name, "-p", "epochs=1"]
        assert run.main(words) == 0, capsys.readouterr().err
        summary = pd.read_csv(folders.root() / "runs" / name / "results/summary.csv")
        assert {"frozen encoder", "bat, encoder"} <= set(summary["label"])
        assert state(own) == before
    finally:
        shutil.rmtree(folders.root() / "runs" / name, ignore_errors=True)
