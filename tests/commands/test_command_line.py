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
    """A checkout without runs, in which we are; a refused command can be seen to leave nothing."""
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("smoke -p epoch=2 --run x", "'epoch'"),
        ("smoke -p epochs=2", "--run"),  # changed values need a name of their own
        ("smoke -p epochs --run x", "-p"),
        ("smoke -p =3 --run x", "-p"),
        ("smoke -p lr=abc --run x", "lr"),
        ("smoke -p lr=[1 --run x", "lr"),
        ("smoke -p epochs=0 --run x", "epochs"),
        ("smoke --run ../x", "../x"),
        ("dmeo", "dmeo"),
    ],
)
def test_a_refused_run_writes_nothing(empty_root, capsys, words, named):
    assert peka.main(["run", *words.split()]) == 1
    said = capsys.readouterr().err
    assert said.startswith("peka: ") and named in said and list(empty_root.iterdir()) == []


def test_list_and_a_dry_run_name_everything_and_touch_nothing(empty_root, monkeypatch, capsys):
    monkeypatch.setenv("PEKA_MIRROR", str(empty_root))
    assert peka.main(["list"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] == " "]
    row = {line.split()[0]: line for line in lines}
    assert {"demo", "smoke", "her2st", "pca", "bat", "bone", "projector_only"} <= set(row)
    assert all("MIT" in row[name] for name in ("mini", "random"))
    assert "Apache-2.0; gated" in row["h-optimus-0"] and "gated" not in row["phikon"]
    assert peka.main(["fetch", "her2st", "--dry-run"]) == peka.main(["fetch", "smoke"]) == 0
    assert "her2st/data/ST-cnts/B4.tsv.gz" in capsys.readouterr().out
    assert list(empty_root.iterdir()) == []


def test_a_failing_notebook_ends_the_run_with_its_message_last(empty_root, monkeypatch, capsys):
    folder = empty_root / "notebooks"
    write_notebook(folder / "01_first.ipynb", "run = ''", "raise ValueError('no tile')")
    write_notebook(folder / "02_second.ipynb", "run = ''", "open('second', 'w')")
    monkeypatch.setattr(peka, "CHAPTERS", ("01_first", "02_second"))
    assert peka.main(["run", "smoke", "--run", "x"]) == 1
    assert "ValueError: no tile" in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "second").exists()
    assert visible(empty_root / "runs/x/notebooks") == ["01_first.failed.ipynb"]


def test_notebooks_get_paths_that_hold_in_another_folder(empty_root, monkeypatch):
    (empty_root / "yours.yaml").write_text("base: smoke\ntitle: mine\n")
    (empty_root / "w.safetensors").write_bytes(MINI_WEIGHTS.read_bytes())
    seen = []
    monkeypatch.setattr(peka, "execute", lambda _, __, parameters: seen.append(parameters))
    assert peka.main(["run", "yours.yaml", "--run", "x", "--weights", "mini=w.safetensors"]) == 1
    assert seen[0]["profile"] == str(empty_root / "yours.yaml")
    assert seen[0]["weights"] == {"mini": str(empty_root / "w.safetensors")}
    monkeypatch.chdir("/")
    again = open_run(**seen[0])
    assert again.folder == empty_root / "runs/x" and again.encoder().dim


def test_every_path_of_command_line_and_environment_is_absolute_at_once(empty_root, monkeypatch):
    monkeypatch.setenv("HOME", str(empty_root / "home"))
    parse = lambda words: vars(peka._parser().parse_args(words.split()))
    given = parse("score task --embeddings ~/emb --json out.json") | parse("run own --cohort c")
    for name, path in (("task_dir", "task"), ("json", "out.json"), ("cohort", "c")):
        assert given[name] == empty_root / path
    assert given["embeddings"] == empty_root / "home/emb"
    code = "import peka_core, os; print(os.environ['PEKA_MIRROR'], os.environ['PEKA_CACHE'])"
    env = os.environ | {"PEKA_MIRROR": "mirror", "PEKA_CACHE": "~/cache"}
    env["PYTHONPATH"] = str(Path(peka.__file__).parents[2])
    said = subprocess.check_output([sys.executable, "-c", code], env=env, text=True)
    assert said.split() == [str(empty_root / "mirror"), str(empty_root / "home/cache")]
