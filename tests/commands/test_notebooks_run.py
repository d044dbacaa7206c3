"""Executing notebooks, Ctrl-C, and readers that close their end of a pipe."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from small_notebooks import visible, write_notebook

from peka_core.commands import command_line as peka
from peka_core.commands.notebooks import execute

SLEEPS = (
    "import pathlib, subprocess, time\nsubprocess.Popen(['sleep', '60'])\n"
    "pathlib.Path('started').touch()\ntime.sleep(60)"
)


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


def test_a_kernel_that_is_interrupted_alone_counts_as_ctrl_c(tmp_path, monkeypatch, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)"
    notebook = write_notebook(tmp_path / "07_self.ipynb", interrupt)
    monkeypatch.setattr(peka, "_list", lambda _: execute(notebook, tmp_path / "out", {}))
    assert peka.main(["list"]) == 130 and capsys.readouterr().err == peka.INTERRUPTED + "\n"
    assert visible(tmp_path / "out") == []
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def start(folder: Path, work: str, **options) -> subprocess.Popen:
    """`peka list` that does other work, in a process group as one that a terminal starts."""
    script = folder / "mine.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom peka_core import __main__\n"
        "from peka_core.commands import command_line as peka\n"
        f"def work(_, here=Path({str(folder)!r})):\n    {work}\n"
        "if __name__ == '__main__':\n    peka._list = work\n    sys.exit(__main__.main())\n"
    )
    take = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    options |= {"env": os.environ | {"PYTHONPATH": str(Path(peka.__file__).parents[2])}}
    return subprocess.Popen([sys.executable, script, "list"], stdout=subprocess.PIPE, text=True,
                            start_new_session=True, preexec_fn=take, **options)  # fmt: skip


NOTEBOOK = "peka.execute(here / '07_long.ipynb', here / 'out', {})"
DRAW = (
    "from peka_core.drawn import demo; "
    "demo.build(here / 'cohort', patients=20, sections=2, spots=60)"
)


@pytest.mark.parametrize(
    ("work", "begun", "times"),
    [(NOTEBOOK, "started", 2), pytest.param(DRAW, "cohort/adata", 1, marks=pytest.mark.weekly)],
    ids=["notebook", "workers"],
)
def test_ctrl_c_ends_with_one_line_and_leaves_no_process(tmp_path, work, begun, times):
    write_notebook(tmp_path / "07_long.ipynb", SLEEPS)
    process, end = start(tmp_path, work, stderr=subprocess.STDOUT), time.time() + 120
    while not (tmp_path / begun).exists():
        assert process.poll() is None and time.time() < end, process.communicate()[0]
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1] == peka.INTERRUPTED
    assert "Traceback" not in said and psutil.wait_procs(family, timeout=10)[1] == []
    assert work is DRAW or (said.count("\n"), visible(tmp_path / "out")) == (2, [])


def test_the_work_goes_on_after_its_reader_has_gone(tmp_path):
    say = "[print('line', i) for i in range(20_000)]; print('bar', file=sys.stderr)"
    process = start(tmp_path, f"{say}; (here / 'done').touch()", stderr=subprocess.PIPE)
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr.read() == "bar\n" and process.wait(60) == 0
    assert (tmp_path / "done").exists()
