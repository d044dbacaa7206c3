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

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
SLEEPS = (
    "import pathlib, subprocess, time\nsubprocess.Popen(['sleep', '60'])\n"
    "pathlib.Path('started').touch()\ntime.sleep(60)"
)


def test_an_executed_notebook_got_its_parameters_and_replaces_the_failed_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "tiny.failed.ipynb").write_text("{}")
    notebook = write_notebook(tmp_path / "tiny.ipynb", "seed = 0", "print('seed', seed)")
    assert execute(notebook, out, {"seed": 7}) and visible(out) == ["tiny.ipynb"]
    assert "seed 7" in nbformat.read(out / "tiny.ipynb", 4).cells[-1].outputs[0].text


def test_a_notebook_whose_process_is_killed_leaves_nothing(tmp_path, capsys):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    notebook = write_notebook(tmp_path / "07_killed.ipynb", kill)
    assert execute(notebook, tmp_path / "out", {}) is False
    assert "07_killed.ipynb" in capsys.readouterr().err and visible(tmp_path / "out") == []


def test_a_kernel_that_is_interrupted_alone_counts_as_ctrl_c(tmp_path, monkeypatch, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)"
    notebook = write_notebook(tmp_path / "07_self.ipynb", interrupt)
    monkeypatch.setattr(peka, "_list", lambda _: execute(notebook, tmp_path / "out", {}))
    assert peka.main(["list"]) == 130 and capsys.readouterr().err == peka.INTERRUPTED + "\n"
    assert visible(tmp_path / "out") == []
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def start(*words) -> subprocess.Popen:
    """A process in a group of its own that takes interrupts, as one that a terminal starts."""
    take = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, *words], text=True, start_new_session=True, env=ENV,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            preexec_fn=take)  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.time() + 120
    while not path.exists():
        assert process.poll() is None and time.time() < end, process.communicate()[0]
        time.sleep(0.1)


def interrupted(process: subprocess.Popen, times: int) -> tuple[str, list]:
    """Ctrl-C: what the process says, and which of its children live on."""
    family = psutil.Process(process.pid).children(recursive=True)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    said, _ = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=10)
    return said, alive


def test_ctrl_c_in_a_notebook_ends_with_one_line_and_leaves_no_process(tmp_path):
    write_notebook(tmp_path / "07_long.ipynb", SLEEPS)
    code = (
        "import sys; from pathlib import Path; from peka_core import __main__\n"
        "from peka_core.commands import command_line as peka; here = Path(sys.argv.pop())\n"
        "peka._list = lambda _: peka.execute(here / '07_long.ipynb', here / 'out', {})\n"
        "sys.exit(__main__.main())"
    )
    process = start("-c", code, "list", str(tmp_path))
    wait_for(tmp_path / "started", process)
    said, alive = interrupted(process, times=2)
    assert process.returncode == 130 and said.splitlines()[1:] == [peka.INTERRUPTED]
    assert alive == [] and visible(tmp_path / "out") == []


@pytest.mark.weekly
def test_ctrl_c_while_sections_are_drawn_shows_no_traceback_of_a_worker(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "import sys\nfrom peka_core.commands import command_line as peka\n"
        "from peka_core.drawn import demo\n"
        f"draw = lambda _: demo.build({str(tmp_path / 'c')!r}, patients=20, sections=2, spots=60)\n"
        "if __name__ == '__main__':\n    peka._list = draw\n    sys.exit(peka.main(['list']))\n"
    )
    process = start(str(script))
    wait_for(tmp_path / "c" / "adata", process)
    said, alive = interrupted(process, 1)
    assert process.returncode == 130 and "Traceback" not in said and alive == []
    assert said.rstrip().endswith(peka.INTERRUPTED)


def test_the_work_goes_on_after_its_reader_has_gone(tmp_path):
    code = (
        "import sys; from pathlib import Path; from peka_core.commands import command_line as run\n"
        "def say(_):\n    for i in range(20_000): print('line', i)\n"
        "    print('bar', file=sys.stderr); Path(sys.argv[1]).touch()\n"
        "run._list = say\nsys.exit(run.main(['list']))"
    )
    words, pipe = [sys.executable, "-c", code, tmp_path / "done"], subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=ENV)
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr.read() == "bar\n" and process.wait(60) == 0
    assert (tmp_path / "done").exists()
