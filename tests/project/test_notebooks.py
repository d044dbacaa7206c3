"""The notebooks as files, end to end on smoke and on real her2st, and after being killed.

One run is killed PEKA_KILLS times (CI: 3), each time started again. PEKA_TEST_HER2ST_RUN=NAME keeps the run of her2st as runs/NAME.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest

from peka_core import places
from peka_core.cohort import open_cohort
from peka_core.commands.command_line import CHAPTERS
from peka_core.runner.profile import load_profile

ROOT = Path(__file__).parents[2]
PARAMETERS = {"profile", "run", "device", "weights", "overrides"}
PLACES = re.compile(
    r"(?<![\w./~-])/(work|root|tmp|home|Users|mnt|private|var/folders)/[\w.]|\b[A-Z]:\\\\?Users"
)
KILLS = int(os.environ.get("PEKA_KILLS", 3))
HER2ST_RUN = os.environ.get("PEKA_TEST_HER2ST_RUN", "")


@pytest.fixture(params=CHAPTERS)
def chapter(request):
    return ROOT / "notebooks" / f"{request.param}.ipynb"


@pytest.fixture
def book(chapter):
    return nbformat.read(chapter, as_version=4)


def code_of(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def prose_of(book):
    return [cell.source for cell in book.cells if cell.cell_type == "markdown"]


# ---- as files ----------------------------------------------------------------------------------------------------


def test_one_parameters_cell_names_the_five_parameters(book):
    tagged = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and code_of(book)[0] is tagged[0]
    values = {}
    exec(tagged[0].source, values)  # literals with a comment each
    assert set(values) - {"__builtins__"} == PARAMETERS and values["profile"] == "demo"
    json.dumps({name: values[name] for name in PARAMETERS})


def test_kernel_is_python3(book):
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"


def test_notebook_is_small_and_so_are_its_cells(chapter, book):
    assert chapter.stat().st_size < 300_000
    assert max(len(cell.source.splitlines()) for cell in code_of(book)) <= 25


def test_notebook_asks_in_its_title_and_ends_with_exercises(book):
    assert prose_of(book)[0].startswith("# ") and "?" in prose_of(book)[0].splitlines()[0]
    ending = "\n".join(prose_of(book)[-2:])
    assert "Takeaways" in ending and "Exercises" in ending and "<details>" in ending


def test_notebook_was_executed_in_order_without_an_error(book):
    counts = [cell.execution_count for cell in code_of(book)]
    assert None not in counts and counts == sorted(counts)
    assert not any(
        output.output_type == "error" for cell in code_of(book) for output in cell.outputs
    )


def said_by(path):
    """What a committed file tells its reader: the text of a notebook's outputs and metadata, or the whole file."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    book = nbformat.read(path, as_version=4)
    outputs = [output for cell in code_of(book) for output in cell.outputs]
    words = [output.get("text", "") for output in outputs] + [
        json.dumps([book.metadata, *(cell.metadata for cell in book.cells)])
    ]
    return "\n".join(
        words
        + [
            value
            for o in outputs
            for kind, value in o.get("data", {}).items()
            if kind.startswith("text/")
        ]
    )


def test_no_published_file_shows_a_path_of_the_machine_that_made_it():
    found = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("results/**/*.csv")]
    committed = subprocess.run(
        ["git", "ls-files", "runs"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    found += [ROOT / name for name in committed if name.endswith((".csv", ".json"))]
    assert len(found) > 20
    shown = {
        path.relative_to(ROOT).as_posix(): match[0]
        for path in found
        if (match := PLACES.search(said_by(path)))
    }
    assert not shown


def test_a_cohort_is_named_without_the_place_of_its_checkout(tiny_cohort):
    assert repr(open_cohort(ROOT / "runs/demo/cohort")).startswith(
        "Cohort runs/demo/cohort: 2460 spots"
    )
    assert repr(open_cohort(tiny_cohort)).startswith(
        "Cohort cohort: 96 spots"
    ) and not PLACES.search(repr(open_cohort(tiny_cohort)))


def test_a_path_of_a_machine_is_noticed():
    assert all(
        PLACES.search(text)
        for text in (
            "Cohort /work/x/runs/demo",
            '{"path": "/home/anna/w.bin"}',
            "/tmp/a",
            r"C:\Users\anna",
        )
    )
    assert not any(
        PLACES.search(text)
        for text in ("runs/demo/cohort", "https://a.org/home/x", "data/tmp/x", "~/work/x")
    )


# ---- end to end --------------------------------------------------------------------------------------------------


def start(profile, name, **environment):
    """`peka run profile --run name` in a process group of its own."""
    words = [sys.executable, "-m", "peka_core", "run", profile, "--run", name]
    inherited = {
        name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")
    }  # conftest's
    environment = {**inherited, **environment}
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def kill(process):
    """SIGKILL to the process and all it started: kernels and drawing workers have groups of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass
    process.communicate()
    psutil.wait_procs(family[1:], timeout=20)


def finish(process, timeout):
    """Wait for a run to end well."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        pytest.fail(f"the run took more than {timeout} s")
    assert process.returncode == 0, output[-3000:]
    return output


def fresh(name):
    """runs/name without anything in it."""
    folder = ROOT / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def check_whole(folder, output):
    """Everything a run promises is there, and nothing is half there."""
    assert {f"{chapter}.ipynb" for chapter in CHAPTERS} == {
        path.name for path in (folder / "notebooks").glob("[!.]*")
    }
    assert len(pd.read_csv(folder / "results/summary.csv")) > 0
    assert str(folder / "results") in output and str(folder / "figures") in output
    pictures = list((folder / "figures").glob("*.png"))
    assert len(pictures) >= 5 and all(path.read_bytes()[-8:-4] == b"IEND" for path in pictures)
    units = [path for path in (folder / "units").iterdir() if not path.name.startswith(".")]
    assert units and all(
        json.loads((path / "unit.json").read_text())["unit"]["stage"] in path.name for path in units
    )


def scores_of(folder):
    """Score columns of every table, by file name."""
    tables = {path.name: pd.read_csv(path) for path in sorted((folder / "results").glob("*.csv"))}
    numbers = {
        name: table.select_dtypes("number").drop(columns="seconds", errors="ignore")
        for name, table in tables.items()
    }
    return numbers


@pytest.fixture(scope="session")
def smoke():
    """An undisturbed smoke run: its folder, what it printed, its seconds."""
    folder, started = fresh("test-smoke"), time.perf_counter()
    try:
        output = finish(start("smoke", folder.name), timeout=600)
        yield folder, output, time.perf_counter() - started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_smoke_runs_end_to_end(smoke):
    check_whole(*smoke[:2])


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_tables(smoke):
    undisturbed, _, seconds = smoke
    folder, dice, killed = fresh("test-killed"), random.Random(2025), []
    try:
        for _ in range(KILLS):
            process, moment = start("smoke", folder.name), dice.uniform(0.05, 0.7) * seconds
            time.sleep(moment)
            if process.poll() is None:
                kill(process)
                killed.append(f"{moment:.0f} s")
                units = folder.glob("units/[!.]*")
                assert all(
                    json.loads((unit / "unit.json").read_text())["seconds"] >= 0 for unit in units
                )
        assert killed, "every run was over before it was killed"
        check_whole(folder, finish(start("smoke", folder.name), timeout=600))
        ours, theirs = scores_of(folder), scores_of(undisturbed)
        assert set(ours) == set(theirs)
        for name, table in theirs.items():
            pd.testing.assert_frame_equal(
                ours[name], table, rtol=0, atol=1e-4, obj=f"{name}, killed after {killed}"
            )
        left = [
            path
            for path in folder.rglob(".*")
            if path.is_file() and path.parent.name in ("results", "notebooks", "figures")
        ]
        print(
            f"killed after {killed}; hidden leftovers:",
            [str(path.relative_to(folder)) for path in left],
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def her2st_files(monkeypatch, request):
    """her2st from PEKA_MIRROR, ../shared/data or earlier downloads; downloaded only with `-m network`."""
    beside = ROOT.parent / "shared" / "data"
    if not os.environ.get("PEKA_MIRROR") and (beside / "her2st").is_dir():
        monkeypatch.setenv("PEKA_MIRROR", str(beside))
    home = Path(os.environ.get("PEKA_MIRROR") or places.cache_folder())
    sections = load_profile("her2st").source_options["sections"]
    missing = [
        name for name in sections if not (home / f"her2st/data/ST-cnts/{name}.tsv.gz").exists()
    ]
    wanted = "network" in request.config.getoption(
        "-m"
    ) and "not network" not in request.config.getoption("-m")
    if missing and not wanted:
        pytest.skip(
            f"no her2st in {home}: run `peka fetch her2st`, name a mirror in PEKA_MIRROR, or choose -m network"
        )


@pytest.mark.slow
@pytest.mark.network
def test_her2st_runs_end_to_end(her2st_files):
    folder = fresh(HER2ST_RUN or "test-her2st")
    try:
        check_whole(folder, finish(start("her2st", folder.name), timeout=900))
        summary = pd.read_csv(folder / "results/summary.csv")
        assert summary["low"].isna().all(), "two patients carry no interval over patients"
    finally:
        if not HER2ST_RUN:
            shutil.rmtree(folder, ignore_errors=True)
