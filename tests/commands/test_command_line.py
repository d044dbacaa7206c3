"""The command line: what it lists, refuses and says last when a notebook fails."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from peka_core import places
from peka_core.commands import command_line as run
from peka_core.errors import PekaError
from peka_core.models.encoder_files import MINI_WEIGHTS
from peka_core.runner import run as workspace


def visible(folder):
    """Names in a folder, the locks aside."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".locks")


@pytest.fixture
def empty_root(tmp_path, monkeypatch):
    """A checkout without runs, so that a refused command can be seen to leave nothing."""
    monkeypatch.setattr(places, "root", lambda: tmp_path)
    return tmp_path


def test_an_unknown_parameter_is_refused_with_the_known_ones(empty_root, capsys):
    assert run.main(["run", "smoke", "-p", "epoch=2", "--run", "x"]) == 1
    message = capsys.readouterr().err
    assert (
        message.startswith("peka: unknown parameter 'epoch'; known: ")
        and "epochs" in message
        and "patients" in message
    )
    assert list(empty_root.iterdir()) == []


def test_changed_parameters_need_a_run_name(empty_root, capsys):
    assert run.main(["run", "smoke", "-p", "epochs=2"]) == 1
    assert "--run NAME" in capsys.readouterr().err and list(empty_root.iterdir()) == []


def test_a_run_folder_started_with_other_values_is_refused(empty_root):
    workspace.open_run("smoke", "x", "cpu", overrides={"epochs": 2})
    with pytest.raises(PekaError, match="choose another --run NAME"):
        workspace.open_run("smoke", "x", "cpu", overrides={"epochs": 3})


def test_values_without_a_name_and_unknown_profiles_are_refused(empty_root, capsys):
    assert (
        run.main(["run", "smoke", "-p", "epochs"]) == 1
        and "-p takes NAME=VALUE" in capsys.readouterr().err
    )
    assert run.main(["run", "dmeo"]) == 1 and "known: demo" in capsys.readouterr().err


def test_list_names_everything_with_licence_and_gate(capsys):
    assert run.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert {
        "demo",
        "smoke",
        "her2st",
        "mini",
        "random",
        "pca",
        "none",
        "bat",
        "bone",
        "projector_only",
    } <= set(row)
    for name in ("mini", "random", "pca"):
        assert "licence" in row[name] and "no gate" in row[name]
    assert "Apache-2.0; gated" in row["h-optimus-0"] and "no gate" in row["phikon"]


def test_fetch_dry_run_names_files_and_sizes_and_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path))
    assert run.main(["fetch", "her2st", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "her2st/data/ST-cnts/B4.tsv.gz" in shown and "15 files" in shown and "MB" in shown
    assert list(tmp_path.iterdir()) == []


def test_fetch_of_a_drawn_cohort_says_that_there_is_nothing(capsys):
    assert run.main(["fetch", "smoke"]) == 0
    assert "no slides to fetch" in capsys.readouterr().out


def test_python_m_peka_core_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "peka_core", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: peka ")


def write_notebook(path, *cells):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(book, path)
    return path


def test_a_failing_notebook_ends_the_run_with_its_message_last(empty_root, monkeypatch):
    (empty_root / "notebooks").mkdir()
    write_notebook(
        empty_root / "notebooks/01_first.ipynb",
        "run = ''",
        "raise ValueError('the tile is missing')",
    )
    write_notebook(empty_root / "notebooks/02_second.ipynb", "run = ''", "open('second', 'w')")
    monkeypatch.setattr(run, "CHAPTERS", ("01_first", "02_second"))
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        assert run.main(["run", "smoke", "--run", "x"]) == 1
    assert errors.getvalue().rstrip().splitlines()[-1] == "cell 3: ValueError: the tile is missing"
    assert not (empty_root / "notebooks/second").exists()
    assert visible(empty_root / "runs/x/notebooks") == ["01_first.failed.ipynb"]


def test_an_executed_notebook_got_its_parameters_and_replaces_the_failed_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "tiny.failed.ipynb").write_text("{}")
    notebook = write_notebook(tmp_path / "tiny.ipynb", "seed = 0", "print('seed', seed)")
    assert run.execute(notebook, out, {"seed": 7})
    assert visible(out) == ["tiny.ipynb"]
    assert "seed 7" in nbformat.read(out / "tiny.ipynb", 4).cells[-1].outputs[0].text


@pytest.mark.slow
def test_a_notebook_whose_process_is_killed_ends_in_one_message_and_leaves_nothing(
    tmp_path, capsys
):
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")]
    )
    nbformat.write(book, tmp_path / "07_killed.ipynb")
    assert run.execute(tmp_path / "07_killed.ipynb", tmp_path / "out", {}) is False
    assert "want of memory" in capsys.readouterr().err and visible(tmp_path / "out") == []


def test_a_disk_that_takes_no_files_ends_in_one_message(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").write_text("a file where the folder should be")
    monkeypatch.setattr(places, "root", lambda: tmp_path)
    assert run.main(["run", "smoke"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("peka: ") and "run the same command again" in said


def test_notebooks_get_paths_that_hold_in_their_own_working_directory(
    empty_root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yours.yaml").write_text("base: smoke\ntitle: mine\n")
    (tmp_path / "w.safetensors").write_bytes(MINI_WEIGHTS.read_bytes())
    seen = []
    monkeypatch.setattr(
        run, "execute", lambda notebook, folder, parameters: seen.append(parameters)
    )
    assert run.main(["run", "yours.yaml", "--run", "x", "--weights", "mini=w.safetensors"]) == 1
    assert (seen[0]["profile"], seen[0]["weights"]) == (
        str(tmp_path / "yours.yaml"),
        {"mini": str(tmp_path / "w.safetensors")},
    )
    monkeypatch.chdir("/")
    again = workspace.open_run(
        **{name: seen[0][name] for name in ("profile", "run", "device", "weights", "overrides")}
    )
    assert again.folder == empty_root / "runs/x" and again.encoder().dim


def test_every_path_of_the_command_line_is_absolute_at_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = ["score", "task", "--embeddings", "~/emb", "--json", "out.json"]
    given = run._parser().parse_args(words)
    assert (given.task_dir, given.embeddings, given.json) == (
        tmp_path / "task",
        tmp_path / "home/emb",
        tmp_path / "out.json",
    )
    assert run._parser().parse_args(["run", "own", "--cohort", "c"]).cohort == tmp_path / "c"


def test_folders_of_the_environment_are_absolute_from_the_start(tmp_path):
    code = "import peka_core, os; print(os.environ['PEKA_MIRROR'], os.environ['PEKA_CACHE'])"
    env = os.environ | {
        "PEKA_MIRROR": "mirror",
        "PEKA_CACHE": "~/cache",
        "HOME": "/home/me",
        "PYTHONPATH": str(Path(run.__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == [str(tmp_path / "mirror"), "/home/me/cache"], done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["-p", "lr=abc"],
        ["-p", "lr=[1"],
        ["-p", "=3"],
        ["-p", "epochs=0"],
        ["--run", "exp/one"],
        ["--run", "../x"],
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(empty_root, capsys, words):
    assert run.main(["run", "smoke", *(words if "--run" in words else ["--run", "x", *words])]) == 1
    assert capsys.readouterr().err.startswith("peka: ") and list(empty_root.iterdir()) == []


def test_a_rate_as_everybody_writes_it_is_a_number():
    assert run._values(["lr=1e-4", "clip=-1e-3", "k=16", "name=1.2.3"], "-p") == {
        "lr": 1e-4,
        "clip": -1e-3,
        "k": 16,
        "name": "1.2.3",
    }
