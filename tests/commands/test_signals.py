"""Ctrl-C and readers that go: one line and 130, nothing left behind; a pipe that closes ends no run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from peka_core.commands import command_line as run
from peka_core.drawn import demo

ROOT = Path(__file__).parents[2]
SLEEPS = "import pathlib, subprocess, time\nsubprocess.Popen(['sleep', '60'])\npathlib.Path('started').touch()\ntime.sleep(60)"


def heard():
    """Take interrupts as a terminal's processes do, also where these tests run in the background, which ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(*words, **options):
    """A process in a group of its own, as a terminal starts one; this checkout's code."""
    return subprocess.Popen(
        [sys.executable, *words], text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=heard, **options,
    )  # fmt: skip


def wait_for(path, process):
    end = time.time() + 120
    while not path.exists():
        assert process.poll() is None and time.time() < end, process.communicate()[0]
        time.sleep(0.1)


def interrupted(process, twice=False):
    """Ctrl-C: what it says, its exit code, and which of its processes live on."""
    family = psutil.Process(process.pid).children(recursive=True)
    for _ in range(1 + twice):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    said, _ = process.communicate(timeout=60)
    gone, alive = psutil.wait_procs(family, timeout=10)
    return said, process.returncode, alive


def write_notebook(path, source):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)


@pytest.mark.parametrize("twice", [False, True])
def test_ctrl_c_in_a_notebook_ends_with_one_line_and_leaves_no_process(tmp_path, twice):
    write_notebook(tmp_path / "07_long.ipynb", SLEEPS)
    code = (
        "import sys; from pathlib import Path; from peka_core import __main__, run; here = Path(sys.argv.pop())\n"
        "run._list = lambda _: run.execute(here / '07_long.ipynb', here / 'out', {})\nsys.exit(__main__.main())"
    )
    process = started("-c", code, "list", str(tmp_path))
    wait_for(tmp_path / "started", process)
    said, code, alive = interrupted(process, twice)
    assert code == 130 and said.splitlines() == ["07_long …", run.INTERRUPTED] and alive == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".locks"]


def test_a_kernel_that_is_interrupted_alone_counts_as_ctrl_c(tmp_path, monkeypatch, capsys):
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # tests in the background ignore it
    write_notebook(
        tmp_path / "07_self.ipynb",
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time; time.sleep(20)",
    )
    monkeypatch.setattr(
        run, "_list", lambda _: run.execute(tmp_path / "07_self.ipynb", tmp_path / "out", {})
    )
    assert run.main(["list"]) == 130 and capsys.readouterr().err == run.INTERRUPTED + "\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".locks"]
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_ctrl_c_while_sections_are_drawn_shows_no_traceback_of_a_worker(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom peka_core.commands import command_line as run\nfrom peka_core.drawn import demo\n"
        f"def draw(_):\n    demo.build({str(tmp_path / 'c')!r}, patients=20, sections=2, spots=60)\n"
        "if __name__ == '__main__':\n    run._list = draw\n    sys.exit(run.main(['list']))\n"
    )
    process = started(str(script))
    wait_for(tmp_path / "c" / "unfinished.json", process)
    time.sleep(
        1.5
    )  # its workers are starting, when Python's own handler would print a traceback each
    said, code, alive = interrupted(process)
    assert (
        code == 130
        and "Traceback" not in said
        and said.rstrip().endswith(run.INTERRUPTED)
        and alive == []
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_ends_nothing(tmp_path, unbuffered):
    code = (
        "import sys; from pathlib import Path; from peka_core.commands import command_line as run\n"
        "def say(_):\n    for i in range(20_000): print('line', i)\n    print('bar', file=sys.stderr); Path(sys.argv[1]).touch()\n"
        "run._list = say\nsys.exit(run.main(['list']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "done"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert (
        process.stderr.read() == "bar\n" and process.wait(60) == 0 and (tmp_path / "done").exists()
    )


def test_a_list_whose_reader_is_gone_from_the_start_has_no_traceback():
    words = f"{sys.executable} -m peka_core list | (exec <&-; sleep 3); exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize(
    ("lost", "word"), [([1, -15], "__main__"), ([-9, -15], "memory"), ([], "memory")]
)
def test_lost_workers_are_told_why(lost, word, monkeypatch):
    class Worker:
        def __init__(self, exitcode):
            self.exitcode = exitcode

    monkeypatch.setattr(sys.modules["__main__"], "__file__", "mine.py", raising=False)
    assert word in demo._why_lost({Worker(code) for code in lost})
