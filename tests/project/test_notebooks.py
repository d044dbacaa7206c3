"""The notebooks as files, end to end on smoke and on real her2st, and after being killed.

PEKA_TEST_HER2ST_RUN=NAME keeps the run of her2st as runs/NAME.
"""

import json
import os
import random
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
from nbclient import NotebookClient
from test_chapters import MACHINE, read, unnoticed, with_wrong_answers

from peka_core.cohort import open_cohort
from peka_core.commands.notebooks import CHAPTERS
from peka_core.common import folders
from peka_core.runner.profile import load_profile

ROOT = Path(__file__).parents[2]
HER2ST_RUN = os.environ.get("PEKA_TEST_HER2ST_RUN", "")


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_as_a_file(name):
    path = ROOT / f"notebooks/{name}.ipynb"
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    lines = [len(cell.source.splitlines()) for cell in code]
    assert max(lines) <= 25 and statistics.median(lines) <= 5
    assert [cell for cell in code if "parameters" in cell.metadata.get("tags", [])] == code[:1]
    values = {}
    exec(code[0].source, values)  # literals with a comment each
    own = {"slide", "um_per_px"} if name == "06_new_tissue" else set()
    names = {"profile", "run", "device", "weights", "overrides"} | own
    assert set(values) - {"__builtins__", "guess"} == names
    prose = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    assert prose[0].startswith("# ") and "?" in prose[0].splitlines()[0]


def test_no_published_file_shows_a_path_of_the_machine_that_made_it(tiny_cohort):
    listed = ["git", "ls-files", "runs", "results", "notebooks"]
    names = subprocess.check_output(listed, cwd=ROOT, text=True).split()
    found = [ROOT / name for name in names if name.endswith((".csv", ".json", ".ipynb"))]
    assert len(found) > 20
    said = {path: MACHINE.search(path.read_text(encoding="utf-8")) for path in found}
    assert [(path, shown[0]) for path, shown in said.items() if shown] == []
    assert not MACHINE.search(repr(open_cohort(tiny_cohort)))
    assert all(map(MACHINE.search, ('{"p": "/home/anna/w.bin"}', r"C:\Users\anna", "at /work/x")))
    assert not any(map(MACHINE.search, ("runs/demo/cohort", "https://a.org/home/x", "~/work/x")))


def start(profile: str, folder: Path) -> subprocess.Popen:
    """`peka run profile --run NAME` in a process group of its own, two chapters at a time."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    words = [sys.executable, "-m", "peka_core", "run", profile, "--run", folder.name]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True, **pipes)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the process and all that it started: kernels and workers have their own groups."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        if member.is_running():
            member.kill()
    process.communicate()
    psutil.wait_procs(family[1:], timeout=20)


@pytest.fixture
def fresh():
    """Names become folders of runs, empty at first; afterwards they go, unless the caller keeps."""
    made = []

    def empty(name: str) -> Path:
        made.append(ROOT / "runs" / name)
        shutil.rmtree(made[-1], ignore_errors=True)
        return made[-1]

    yield empty
    for folder in made:
        if folder.name != HER2ST_RUN:
            shutil.rmtree(folder, ignore_errors=True)


def units_of(folder: Path) -> list[Path]:
    """The finished units of a run, each of them whole."""
    units = sorted(folder.glob("units/[!.]*"))
    for unit in units:
        assert json.loads((unit / "unit.json").read_text())["unit"]["stage"] in unit.name
    return units


def check_whole(process: subprocess.Popen, folder: Path, timeout: float) -> None:
    """The run ends well; everything that it promises is there, and nothing is half there."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        pytest.fail(f"the run took more than {timeout} s")
    assert process.returncode == 0, output[-3000:]
    books = {path.name for path in (folder / "notebooks").glob("[!.]*")}
    assert books == {f"{chapter}.ipynb" for chapter in CHAPTERS}
    assert len(pd.read_csv(folder / "results/summary.csv")) > 0 and units_of(folder)
    assert str(folder / "results") in output and str(folder / "figures") in output
    pictures = list((folder / "figures").glob("*.png"))
    assert len(pictures) >= 5 and all(path.read_bytes()[-8:-4] == b"IEND" for path in pictures)


def scores_of(folder: Path) -> dict[str, pd.DataFrame]:
    """The numbers of every table, by file name."""
    tables = {path.name: pd.read_csv(path) for path in sorted((folder / "results").glob("*.csv"))}
    numbers = {name: table.select_dtypes("number") for name, table in tables.items()}
    return {name: table.drop(columns="seconds", errors="ignore") for name, table in numbers.items()}


@pytest.mark.slow
def test_smoke_runs_end_to_end_and_ends_with_the_same_tables_when_killed(fresh):
    whole, killed = fresh("test-smoke"), fresh("test-killed")
    check_whole(start("smoke", whole), whole, timeout=600)
    half, process = len(units_of(whole)) // 2, start("smoke", killed)
    while len(list(killed.glob("units/[!.]*"))) < half:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    moment = random.uniform(0, 3)
    time.sleep(moment)
    assert process.poll() is None
    kill(process)
    assert half <= len(units_of(killed)) < len(units_of(whole))
    check_whole(start("smoke", killed), killed, timeout=600)
    ours, theirs = scores_of(killed), scores_of(whole)
    assert set(ours) == set(theirs)
    for name, table in theirs.items():
        note = f"{name}, killed {moment:.2f} s after unit {half}"
        pd.testing.assert_frame_equal(ours[name], table, rtol=0, atol=1e-4, obj=note)
    assert unnoticed(wrongly_answered("04b_worth", whole)) == []


def wrongly_answered(name: str, folder: Path):
    """A chapter with wrong answers in its exercises, executed on a finished run of smoke."""
    book = with_wrong_answers(read(name)[0])
    (given,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    given.source += f'\nprofile, run = "smoke", "{folder.name}"'
    there = {"metadata": {"path": str(ROOT / "notebooks")}}
    NotebookClient(book, kernel_name="python3", resources=there, allow_errors=True).execute()
    return book


@pytest.mark.slow
def test_her2st_runs_end_to_end(monkeypatch, fresh):
    beside = ROOT.parent / "shared/data"
    if not os.environ.get("PEKA_MIRROR") and (beside / "her2st").is_dir():
        monkeypatch.setenv("PEKA_MIRROR", str(beside))
    home = Path(os.environ.get("PEKA_MIRROR") or folders.cache_folder()) / "her2st/data/ST-cnts"
    sections = load_profile("her2st").source_options["sections"]
    if not all((home / f"{name}.tsv.gz").exists() for name in sections):
        pytest.skip("no her2st here: run `peka fetch her2st`, or set PEKA_MIRROR")
    folder = fresh(HER2ST_RUN or "test-her2st")
    check_whole(start("her2st", folder), folder, timeout=900)


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
