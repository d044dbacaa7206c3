"""The command line: what it refuses and lists, how notebooks end, Ctrl-C, and doctor."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from peka_core.commands import command_line as peka
from peka_core.commands import doctor, needs, notebooks
from peka_core.commands.notebooks import execute
from peka_core.common import folders
from peka_core.models.encoder_files import MINI_WEIGHTS
from peka_core.recipe import RECIPES
from peka_core.runner.profile import load_profile
from peka_core.runner.run import open_run

HOME = str(Path(peka.__file__).parents[2])


def write_notebook(path: Path, *cells: str) -> Path:
    """Write a notebook whose first cell is the one with parameters."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["kernelspec"] = {"name": "python3", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(book, path)
    return path


def visible(folder: Path) -> list[str]:
    """Names in a folder without the folder of locks."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".locks")


@pytest.fixture
def empty_root(tmp_path, monkeypatch):
    """A checkout without runs, in which we are; a refused command can be seen to leave nothing."""
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("-p epoch=2 --run x", "'epoch'"),
        ("-p epochs=2", "--run"),  # changed values need a name of their own
        ("-p lr=abc --run x", "lr"),
        ("--run ../x", "../x"),
    ],
)
def test_a_refused_run_writes_nothing(empty_root, capsys, words, named):
    assert peka.main(["run", "smoke", *words.split()]) == 1
    said = capsys.readouterr().err
    assert said.startswith("peka: ") and named in said and list(empty_root.iterdir()) == []


def test_a_failing_notebook_ends_the_run_with_its_message_last(empty_root, monkeypatch, capsys):
    folder = empty_root / "notebooks"
    write_notebook(folder / "01_first.ipynb", "run = ''", "raise ValueError('no tile')")
    write_notebook(folder / "02_second.ipynb", "run = ''", "open('second', 'w')")
    monkeypatch.setattr(notebooks, "CHAPTERS", ("01_first", "02_second"))
    assert peka.main(["run", "smoke", "--run", "x"]) == 1
    assert "ValueError: no tile" in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "second").exists()
    assert visible(empty_root / "runs/x/notebooks") == ["01_first.failed.ipynb"]


def test_notebooks_get_paths_that_hold_in_another_folder(empty_root, monkeypatch):
    (empty_root / "yours.yaml").write_text("base: smoke\ntitle: mine\n")
    (empty_root / "w.safetensors").write_bytes(MINI_WEIGHTS.read_bytes())
    seen = []
    monkeypatch.setattr(notebooks, "execute", lambda _, __, parameters: seen.append(parameters))
    assert peka.main(["run", "yours.yaml", "--run", "x", "--weights", "mini=w.safetensors"]) == 1
    assert seen[0]["profile"] == str(empty_root / "yours.yaml")
    assert seen[0]["weights"] == {"mini": str(empty_root / "w.safetensors")}
    monkeypatch.chdir("/")
    again = open_run(**seen[0])
    assert again.folder == empty_root / "runs/x" and again.encoder().dim
    assert "sha256" in (again.folder / "weights.json").read_text()


def test_every_path_of_command_line_and_environment_is_absolute_at_once(empty_root, monkeypatch):
    monkeypatch.setenv("HOME", str(empty_root / "home"))
    parse = lambda words: vars(peka._parser().parse_args(words.split()))
    given = parse("score task --embeddings ~/emb --json out.json") | parse("run own --cohort c")
    for name, path in (("task_dir", "task"), ("json", "out.json"), ("cohort", "c")):
        assert given[name] == empty_root / path
    assert given["embeddings"] == empty_root / "home/emb"
    code = "import peka_core, os; print(os.environ['PEKA_MIRROR'], os.environ['PEKA_CACHE'])"
    env = os.environ | {"PEKA_MIRROR": "mirror", "PEKA_CACHE": "~/cache", "PYTHONPATH": HOME}
    said = subprocess.check_output([sys.executable, "-c", code], env=env, text=True)
    assert said.split() == [str(empty_root / "mirror"), str(empty_root / "home/cache")]


def test_a_notebook_is_there_whole_or_not_at_all(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "tiny.failed.ipynb").write_text("{}")
    notebook = write_notebook(tmp_path / "tiny.ipynb", "seed = 0", "print('seed', seed)")
    assert execute(notebook, out, {"seed": 7}) and visible(out) == ["tiny.ipynb"]
    assert "seed 7" in nbformat.read(out / "tiny.ipynb", 4).cells[-1].outputs[0].text
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert execute(write_notebook(tmp_path / "07_killed.ipynb", kill), out, {}) is False
    assert "07_killed.ipynb" in capsys.readouterr().err and visible(out) == ["tiny.ipynb"]


SLEEPS = (
    "import pathlib, subprocess, time\nsubprocess.Popen(['sleep', '60'])\n"
    "pathlib.Path('{}').touch()\ntime.sleep(60)"
)


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_ctrl_c_ends_with_one_line_and_leaves_no_process(tmp_path, at_a_time):
    """`peka list` executes notebooks, in a process group as one that a terminal starts."""
    for name in ("a", "b"):
        write_notebook(tmp_path / f"notebooks/{name}.ipynb", SLEEPS.format(tmp_path / name))
    write_notebook(tmp_path / "notebooks/first.ipynb", "run = ''")
    script = tmp_path / "mine.py"
    script.write_text(
        "import contextlib, sys, types\nfrom pathlib import Path\n"
        "from peka_core import __main__\nfrom peka_core.common import folders\n"
        "from peka_core.commands import command_line as peka, notebooks\n"
        f"here, room = Path({str(tmp_path)!r}), {at_a_time == 2}\n"
        "notebooks.CHAPTERS = ('first', 'a', 'b')[: 2 + room]\n"
        "notebooks._room_for_two = lambda *_: contextlib.nullcontext(lambda: room)\n"
        "folders.bundled = lambda name: here / name\n"
        "work = types.SimpleNamespace(folder=here / 'run', device='cpu')\n"
        "peka._list = lambda _: notebooks.execute_chapters(work, {})\n"
        "sys.exit(__main__.main())\n"
    )
    take = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, script, "list"], start_new_session=True, preexec_fn=take, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": HOME},
    )  # fmt: skip
    end, started = time.time() + 120, [tmp_path / name for name in ("a", "b")[:at_a_time]]
    while not all(file.exists() for file in started):
        assert process.poll() is None and time.time() < end, process.communicate()[0]
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1] == peka.INTERRUPTED
    assert "Traceback" not in said and psutil.wait_procs(family, timeout=10)[1] == []
    assert said.count("\n") == 3 + at_a_time and visible(tmp_path / "run/notebooks") == [
        "first.ipynb"
    ]


def test_list_dry_run_and_doctor_write_nothing_and_room_is_counted_together(
    empty_root, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("PEKA_MIRROR", str(empty_root))
    assert peka.RECIPE_TITLES.keys() == RECIPES.keys()
    assert peka.main(["list"]) == peka.main(["fetch", "her2st", "--dry-run"]) == 0
    monkeypatch.delenv("PEKA_MIRROR")
    assert peka.main(["doctor"]) == 0 and not list(empty_root.iterdir())
    said = capsys.readouterr().out
    assert "hf_very_secret" not in said and "HF_TOKEN" in said and "problem" not in said
    assert "Apache-2.0; gated" in said and "ST-cnts/B4.tsv.gz" in said
    monkeypatch.setattr(needs, "needs", lambda *_: needs.Needs(1, 4, 8, ""))
    monkeypatch.setattr(doctor, "memory_gb", lambda: 0.9)
    monkeypatch.setattr(doctor, "free_gb", lambda _: 10)  # each fits alone, together they do not
    found = [state for state, *_ in doctor.room(load_profile("smoke"))]
    assert found == ["problem"] * 3
