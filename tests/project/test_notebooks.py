"""The notebooks as files, end to end on smoke and on real her2st, and after being killed.

PEKA_TEST_HER2ST_RUN=NAME keeps the run of her2st as runs/NAME.
"""

import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest

from peka_core.cohort import open_cohort
from peka_core.commands.notebooks import CHAPTERS
from peka_core.common import folders
from peka_core.runner.profile import load_profile

ROOT = Path(__file__).parents[2]
HOMES = r"(?<![\w./~-])/(work|root|tmp|home|Users|mnt|private|var/folders)/[\w.]"
MACHINE = re.compile(HOMES + r"|\b[A-Z]:\\\\?Users")
HER2ST_RUN = os.environ.get("PEKA_TEST_HER2ST_RUN", "")
ENV = dict(os.environ)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_as_a_file(name):
    path = ROOT / f"notebooks/{name}.ipynb"
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert path.stat().st_size < 300 * 1024 and book.metadata.kernelspec.name == "python3"
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    lines = [len(cell.source.splitlines()) for cell in code]
    assert max(lines) <= 25 and statistics.median(lines) <= 5
    counts = [cell.execution_count for cell in code]
    assert None not in counts and counts == sorted(counts)
    assert not any(out.output_type == "error" for cell in code for out in cell.outputs)
    assert [cell for cell in code if "parameters" in cell.metadata.get("tags", [])] == code[:1]
    values = {}
    exec(code[0].source, values)  # literals with a comment each
    assert set(values) - {"__builtins__"} == {"profile", "run", "device", "weights", "overrides"}
    prose = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    assert prose[0].startswith("# ") and "?" in prose[0].splitlines()[0]
    assert all(word in "".join(prose[-2:]) for word in ("Takeaways", "Exercises", "<details>"))


def test_no_published_file_shows_a_path_of_the_machine_that_made_it(tiny_cohort):
    listed = ["git", "ls-files", "runs", "results", "notebooks"]
    names = subprocess.check_output(listed, cwd=ROOT, text=True).split()
    found = [ROOT / name for name in names if name.endswith((".csv", ".json", ".ipynb"))]
    assert len(found) > 20
    said = {path: MACHINE.search(path.read_text(encoding="utf-8")) for path in found}
    assert [(path, shown[0]) for path, shown in said.items() if shown] == []
    assert not MACHINE.search(repr(open_cohort(tiny_cohort)))
    shown = ('{"p": "/home/anna/w.bin"}', "/tmp/a", r"C:\Users\anna", "Cohort /work/x/runs")
    assert all(map(MACHINE.search, shown))
    assert not any(map(MACHINE.search, ("runs/demo/cohort", "https://a.org/home/x", "~/work/x")))


def start(profile: str, name: str) -> subprocess.Popen:
    """`peka run profile --run name` in a process group of its own."""
    words = [sys.executable, "-m", "peka_core", "run", profile, "--run", name]
    return subprocess.Popen(words, cwd=ROOT, env=ENV, start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the process and all that it started: kernels and workers have their own groups."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        if member.is_running():
            member.kill()
    process.communicate()
    psutil.wait_procs(family[1:], timeout=20)


def finish(process: subprocess.Popen, timeout: float) -> str:
    """Wait for a run to end well; return what it printed."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        pytest.fail(f"the run took more than {timeout} s")
    assert process.returncode == 0, output[-3000:]
    return output


def fresh(name: str) -> Path:
    """runs/name without anything in it."""
    folder = ROOT / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture
def two_runs():
    """The names of two runs that are removed afterwards."""
    folders = fresh("test-smoke"), fresh("test-killed")
    yield folders
    for folder in folders:
        fresh(folder.name)


def units_of(folder: Path) -> list[Path]:
    """The finished units of a run, each of them whole."""
    units = sorted(folder.glob("units/[!.]*"))
    for unit in units:
        assert json.loads((unit / "unit.json").read_text())["unit"]["stage"] in unit.name
    return units


def check_whole(folder: Path, output: str) -> None:
    """Everything that a run promises is there, and nothing is half there."""
    books = {path.name for path in (folder / "notebooks").glob("[!.]*")}
    assert books == {f"{chapter}.ipynb" for chapter in CHAPTERS}
    assert len(pd.read_csv(folder / "results/summary.csv")) > 0 and units_of(folder)
    assert str(folder / "results") in output and str(folder / "figures") in output
    pictures = list((folder / "figures").glob("*.png"))
    assert len(pictures) >= 5 and all(path.read_bytes()[-8:-4] == b"IEND" for path in pictures)


def scores_of(folder: Path) -> dict[str, pd.DataFrame]:
    """The numbers of every table, by file name."""
    tables = {path.name: pd.read_csv(path) for path in sorted((folder / "results").glob("*.csv"))}
    return {
        name: table.select_dtypes("number").drop(columns="seconds", errors="ignore")
        for name, table in tables.items()
    }


@pytest.mark.slow
def test_smoke_runs_end_to_end_and_ends_with_the_same_tables_when_killed(two_runs):
    whole, killed = two_runs
    check_whole(whole, finish(start("smoke", whole.name), timeout=600))
    half, process = len(units_of(whole)) // 2, start("smoke", killed.name)
    while len(list(killed.glob("units/[!.]*"))) < half:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    moment = random.uniform(0, 3)
    time.sleep(moment)
    assert process.poll() is None
    kill(process)
    assert half <= len(units_of(killed)) < len(units_of(whole))
    check_whole(killed, finish(start("smoke", killed.name), timeout=600))
    ours, theirs = scores_of(killed), scores_of(whole)
    assert set(ours) == set(theirs)
    for name, table in theirs.items():
        note = f"{name}, killed {moment:.2f} s after unit {half}"
        pd.testing.assert_frame_equal(ours[name], table, rtol=0, atol=1e-4, obj=note)


@pytest.mark.slow
@pytest.mark.network
def test_her2st_runs_end_to_end(monkeypatch, request):
    beside = ROOT.parent / "shared/data"
    if not os.environ.get("PEKA_MIRROR") and (beside / "her2st").is_dir():
        monkeypatch.setitem(ENV, "PEKA_MIRROR", str(beside))
    home = Path(ENV.get("PEKA_MIRROR") or folders.cache_folder()) / "her2st/data/ST-cnts"
    sections = load_profile("her2st").source_options["sections"]
    here = all((home / f"{name}.tsv.gz").exists() for name in sections)
    marks = request.config.getoption("-m")
    if not here and ("network" not in marks or "not network" in marks):
        pytest.skip("no her2st here: run `peka fetch her2st`, set PEKA_MIRROR, or use -m network")
    folder = fresh(HER2ST_RUN or "test-her2st")
    try:
        check_whole(folder, finish(start("her2st", folder.name), timeout=900))
        summary = pd.read_csv(folder / "results/summary.csv")
        assert summary["low"].isna().all(), "two patients carry no interval over patients"
    finally:
        if not HER2ST_RUN:
            fresh(folder.name)


@pytest.mark.slow
def test_chapters_in_a_fresh_clone_change_nothing_that_git_tracks(tmp_path):
    clone, env = tmp_path / "clone", os.environ | {"PYTHONPATH": str(tmp_path / "clone")}
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    read = (
        "import sys, papermill\npapermill.execute_notebook(sys.argv[1], sys.argv[2], "
        "kernel_name='python3', cwd='notebooks', progress_bar=False)"
    )
    for chapter in ("01_data", "05_figures"):
        book = f"notebooks/{chapter}.ipynb"
        words = [sys.executable, "-c", read, book, str(tmp_path / f"{chapter}.ipynb")]
        done = subprocess.run(words, cwd=clone, env=env, stderr=subprocess.PIPE, timeout=900)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert not subprocess.check_output(["git", "-C", clone, "status", "--porcelain"])
