"""Your own cohort directory: linked, never written to, and noticed when it changes."""

import json
import os
import shutil

import pandas as pd
import pytest
from conftest import write_tiny_cohort

from peka_core import open_cohort
from peka_core.commands import command_line as run
from peka_core.common import folders
from peka_core.common.errors import PekaError
from peka_core.common.files import sha256
from peka_core.runner import run as workspace
from peka_core.sources import directory


def contents(folder):
    """Every file below a folder: its digest and time of change."""
    return {
        path: (sha256(path), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


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
    before = contents(tiny_cohort)
    made = opened(tiny_cohort).cohort(tiles=True)
    assert (
        made.digest == open_cohort(tiny_cohort).digest and made.path == checkout / "runs/x/cohort"
    )
    assert (made.path / "patches/P1A.h5").resolve() == tiny_cohort / "patches/P1A.h5" and not (
        made.path / "notes.txt"
    ).exists()
    assert contents(tiny_cohort) == before
    shutil.rmtree(made.path)
    assert contents(tiny_cohort) == before
    opened(tiny_cohort).cohort(tiles=True)


def test_a_killed_build_is_made_again(checkout, tiny_cohort):
    path = opened(tiny_cohort).cohort().path
    (path / "source.json").unlink()
    (tiny_cohort / "adata/P4B.h5ad").unlink()
    (tiny_cohort / "patches/P4B.h5").unlink()
    for file in (tiny_cohort / "splits").glob("*.csv"):
        table = pd.read_csv(file)
        table[table["sample_id"] != "P4B"].to_csv(file, index=False)
    table = pd.read_csv(tiny_cohort / "samples.csv")
    table[table["sample_id"] != "P4B"].to_csv(tiny_cohort / "samples.csv", index=False)
    assert list(opened(tiny_cohort).cohort(tiles=True).samples.index)[-1] == "P4A"


@pytest.mark.parametrize(
    "name",
    ["samples.csv", "splits/test_1.csv", "adata/P2A.h5ad", "patches/P1B.h5", "var_20genes.json"],
)
def test_a_file_that_changed_since_is_noticed_when_the_run_is_opened(checkout, tiny_cohort, name):
    opened(tiny_cohort).cohort()
    content = (tiny_cohort / name).read_bytes()
    (tiny_cohort / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PekaError, match=name.split("/")[-1]):
        opened(tiny_cohort)
    (tiny_cohort / name).write_bytes(content)
    opened(tiny_cohort)  # its time of change is another, its bytes are the same
    (tiny_cohort / name).unlink()
    with pytest.raises(PekaError, match=name.split("/")[-1]):
        opened(tiny_cohort)


def test_a_new_file_is_noticed_and_a_touched_one_is_read_once(checkout, tiny_cohort, monkeypatch):
    opened(tiny_cohort).cohort()
    os.utime(tiny_cohort / "samples.csv", (1, 1))
    opened(tiny_cohort)
    monkeypatch.setattr(directory, "sha256", lambda path: pytest.fail(f"{path} was read again"))
    opened(tiny_cohort)
    shutil.copy(tiny_cohort / "splits/train_0.csv", tiny_cohort / "splits/train_9.csv")
    with pytest.raises(PekaError, match="train_9.csv"):
        opened(tiny_cohort)


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_damaged_source_json_is_named(checkout, tiny_cohort, content):
    path = opened(tiny_cohort).cohort().path
    (path / "source.json").write_text(content)
    with pytest.raises(PekaError, match="source.json"):
        opened(tiny_cohort)


def test_two_cohorts_never_share_a_run_folder(checkout, tiny_cohort, tmp_path):
    other = shutil.copytree(tiny_cohort, tmp_path / "other")
    opened(tiny_cohort)
    with pytest.raises(PekaError, match="--run NAME"):
        opened(other)
    assert json.loads((checkout / "runs/x/run.json").read_text())["source_options"] == {
        "path": str(tiny_cohort)
    }


def no_splits(folder):
    shutil.rmtree(folder / "splits")


def no_tiles(folder):
    shutil.rmtree(folder / "patches")


def no_genes(folder):
    next(folder.glob("var_*.json")).unlink()


def one_section(folder):
    no_splits(folder)
    table = pd.read_csv(folder / "samples.csv")
    table[:1].to_csv(folder / "samples.csv", index=False)


def empty_side(folder):
    (folder / "splits/test_0.csv").write_text("sample_id\n")


@pytest.mark.parametrize("break_it, said", [
    (no_splits, "splits.*patients"), (one_section, "splits"), (no_tiles, "patches"),
    (no_genes, "genes.json"), (shutil.rmtree, "cohort"), (empty_side, "test_0.csv"),
])  # fmt: skip
def test_a_directory_that_the_chapters_cannot_use_is_refused_before_anything_is_written(
    checkout, tiny_cohort, capsys, break_it, said
):
    break_it(tiny_cohort)
    assert run.main(["run", "own", "--cohort", str(tiny_cohort)]) == 1
    message = capsys.readouterr().err
    assert (
        message.startswith("peka: ")
        and str(tiny_cohort) in message
        and list(checkout.iterdir()) == []
    )
    with pytest.raises(PekaError, match=said):
        directory.preflight(tiny_cohort)


def test_one_patient_is_said_and_held_out_by_section(checkout, tmp_path, capsys):
    own = write_tiny_cohort(tmp_path / "one", patients=1)
    for i, (train, test) in enumerate((("P1A", "P1B"), ("P1B", "P1A"))):
        (own / f"splits/train_{i}.csv").write_text(f"sample_id\n{train}\n")
        (own / f"splits/test_{i}.csv").write_text(f"sample_id\n{test}\n")
    assert [split.scheme for split in opened(own).cohort().splits] == ["sections", "sections"]
    assert "one patient" in capsys.readouterr().out


def test_the_command_line_names_the_run_after_the_directory(
    checkout, tiny_cohort, monkeypatch, capsys
):
    seen = []
    monkeypatch.setattr(
        run, "execute", lambda notebook, folder, parameters: seen.append((folder, parameters))
    )
    monkeypatch.chdir(tiny_cohort.parent)
    assert run.main(["run", "own", "--cohort", "cohort", "-p", "epochs=1"]) == 1
    folder, parameters = seen[0]
    assert folder == checkout / "runs/own-cohort/notebooks"
    assert (
        parameters["overrides"] == {"epochs": 1, "path": str(tiny_cohort)}
        and parameters["run"] == "own-cohort"
    )
    assert (
        run.main(["run", "own", "--cohort", "cohort", "--run", "mine"]) == 1
        and seen[1][0] == checkout / "runs/mine/notebooks"
    )


def test_own_without_a_directory_and_a_directory_without_own_are_refused(
    checkout, tiny_cohort, capsys
):
    assert run.main(["run", "own"]) == 1 and "--cohort DIR" in capsys.readouterr().err
    assert (
        run.main(["run", "smoke", "--cohort", str(tiny_cohort)]) == 1
        and "--cohort" in capsys.readouterr().err
    )
    with pytest.raises(PekaError, match="path"):
        workspace.open_run("own", "x", "cpu")
    assert list(checkout.iterdir()) == []


@pytest.mark.slow
def test_a_cohort_of_ones_own_runs_through_all_chapters(tmp_path, capsys):
    """As a user's is: only names and patients in samples.csv, no tissue types, two patients."""
    own = write_tiny_cohort(tmp_path / "my tissue", patients=2)
    pd.read_csv(own / "samples.csv")[["sample_id", "patient"]].to_csv(
        own / "samples.csv", index=False
    )
    before, name = contents(own), f"test-own-{os.getpid()}"
    try:
        assert (
            run.main(["run", "own", "--cohort", str(own), "--run", name, "-p", "epochs=1"]) == 0
        ), capsys.readouterr().err
        summary = pd.read_csv(folders.root() / "runs" / name / "results/summary.csv")
        assert {"frozen encoder", "bat, encoder"} <= set(summary["label"]) and contents(
            own
        ) == before
    finally:
        shutil.rmtree(folders.root() / "runs" / name, ignore_errors=True)
