"""The command line: what it lists, what it refuses, and how it ends when a notebook fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_notebooks import visible, write_notebook

from peka_core.commands import command_line as peka
from peka_core.common import folders
from peka_core.models.encoder_files import MINI_WEIGHTS
from peka_core.runner.run import open_run


@pytest.fixture
def empty_root(tmp_path, monkeypatch):
    """A checkout without runs, so that a refused command can be seen to leave nothing."""
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["smoke", "-p", "epoch=2", "--run", "x"], "'epoch'"),
        (["smoke", "-p", "epochs=2"], "--run"),  # changed values need a name of their own
        (["smoke", "-p", "epochs", "--run", "x"], "-p"),
        (["smoke", "-p", "=3", "--run", "x"], "-p"),
        (["smoke", "-p", "lr=abc", "--run", "x"], "lr"),
        (["smoke", "-p", "lr=[1", "--run", "x"], "lr"),
        (["smoke", "-p", "epochs=0", "--run", "x"], "epochs"),
        (["smoke", "--run", "exp/one"], "exp/one"),
        (["smoke", "--run", "../x"], "../x"),
        (["dmeo"], "dmeo"),
    ],
)
def test_a_refused_run_writes_nothing(empty_root, capsys, words, named):
    assert peka.main(["run", *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("peka: ") and named in said and list(empty_root.iterdir()) == []


def test_list_names_everything_with_licence_and_gate(capsys):
    assert peka.main(["list"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] == " "]
    row = {line.split()[0]: line for line in lines}
    assert {"demo", "smoke", "her2st", "pca", "bat", "bone", "projector_only"} <= set(row)
    assert all("MIT" in row[name] for name in ("mini", "random"))
    assert "Apache-2.0; gated" in row["h-optimus-0"] and "gated" not in row["phikon"]


def test_fetch_dry_run_names_files_and_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path))
    assert peka.main(["fetch", "her2st", "--dry-run"]) == peka.main(["fetch", "smoke"]) == 0
    assert "her2st/data/ST-cnts/B4.tsv.gz" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_failing_notebook_ends_the_run_with_its_message_last(empty_root, monkeypatch, capsys):
    folder = empty_root / "notebooks"
    write_notebook(folder / "01_first.ipynb", "run = ''", "raise ValueError('no tile')")
    write_notebook(folder / "02_second.ipynb", "run = ''", "open('second', 'w')")
    monkeypatch.setattr(peka, "CHAPTERS", ("01_first", "02_second"))
    assert peka.main(["run", "smoke", "--run", "x"]) == 1
    assert "ValueError: no tile" in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "second").exists()
    assert visible(empty_root / "runs/x/notebooks") == ["01_first.failed.ipynb"]


def test_notebooks_get_paths_that_hold_in_another_folder(empty_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yours.yaml").write_text("base: smoke\ntitle: mine\n")
    (tmp_path / "w.safetensors").write_bytes(MINI_WEIGHTS.read_bytes())
    seen = []
    monkeypatch.setattr(peka, "execute", lambda _, __, parameters: seen.append(parameters))
    assert peka.main(["run", "yours.yaml", "--run", "x", "--weights", "mini=w.safetensors"]) == 1
    assert seen[0]["profile"] == str(tmp_path / "yours.yaml")
    assert seen[0]["weights"] == {"mini": str(tmp_path / "w.safetensors")}
    monkeypatch.chdir("/")
    again = open_run(**seen[0])
    assert again.folder == empty_root / "runs/x" and again.encoder().dim


def test_every_path_of_the_command_line_is_absolute_at_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = ["score", "task", "--embeddings", "~/emb", "--json", "out.json"]
    given = peka._parser().parse_args(words)
    assert given.task_dir == tmp_path / "task" and given.json == tmp_path / "out.json"
    assert given.embeddings == tmp_path / "home/emb"
    assert peka._parser().parse_args(["run", "own", "--cohort", "c"]).cohort == tmp_path / "c"


def test_folders_of_the_environment_are_absolute_from_the_start(tmp_path):
    code = "import peka_core, os; print(os.environ['PEKA_MIRROR'], os.environ['PEKA_CACHE'])"
    env = os.environ | {"PEKA_MIRROR": "mirror", "PEKA_CACHE": "~/cache", "HOME": "/home/me"}
    env["PYTHONPATH"] = str(Path(peka.__file__).parents[2])
    said = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True)
    assert said.split() == [str(tmp_path / "mirror"), "/home/me/cache"]
