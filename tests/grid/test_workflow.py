"""Snakemake runs the jobs of a grid: here and through SLURM's commands, one of them killed."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import stub_slurm

ROOT = Path(__file__).parents[2]
HALF_WAY = "epoch=2"  # in the log of an alignment, which has the checkpoint of epoch 1 then
FAKE = """
import json, sys, time
from pathlib import Path

verb, what, *words = sys.argv[1:]
if verb == "plan-grid":
    needs = {"cohort": [], "align-bat-0": ["r/cohort"], "tables": ["r/align-bat-0"]}
    common = {"gpu": 0, "threads": 1, "mem_mb": 100, "minutes": 7}
    key = Path("key").read_text()
    jobs = {
        f"r/{job}": {
            "needs": needs[job], "key": key if job == "align-bat-0" else "",
            "command": ["make", "fake", job], **common,
        }
        for job in needs
    }
    Path("runs").mkdir(exist_ok=True)
    Path(words[1]).write_text(json.dumps(jobs))
else:
    with open("made.txt", "a") as made:
        made.write(words[0] + chr(10))
    if words[0] == "align-bat-0" and Path("made.txt").read_text().count(words[0]) == 1:
        print("epoch=2", flush=True)
        time.sleep(300)
"""


@pytest.fixture(scope="module")
def check():
    """workflow/check.py as a module."""
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="extra grid")
    spec = importlib.util.spec_from_file_location("check", ROOT / "workflow/check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def slurm(check, tmp_path):
    """Options of snakemake and of its process for the stub, and the folder of the jobs' states."""
    folder = stub_slurm.install(tmp_path / "bin")
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    words = [*check.SLURM, "--latency-wait", "10", "--jobs", "2"]
    words += ["--slurm-init-seconds-before-status-checks", "1"]
    options = {"env": check.ENVIRONMENT | {"PATH": path, "STUB_KILL": HALF_WAY}}
    return words, options | {"capture_output": True, "text": True}, folder / "state"


def said(done) -> str:
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    return text


@pytest.mark.slow
def test_a_killed_job_is_started_again_and_only_a_changed_one_later(check, slurm, tmp_path):
    words, options, state = slurm
    root, fake = check.new_root(tmp_path / "root"), tmp_path / "fake/peka_core"
    fake.mkdir(parents=True)
    (fake / "__main__.py").write_text(FAKE)
    (root / "key").write_text("one")
    options["env"] |= {"PYTHONPATH": str(fake.parent)}
    said(check.snakemake(root, Path("g.yaml"), *words, **options))
    made = (root / "made.txt").read_text().split()
    assert made == ["cohort", "align-bat-0", "align-bat-0", "tables"]
    ends = sorted(file.read_text() for file in state.glob("*.state"))
    assert ends == ["COMPLETED"] * 3 + ["FAILED"] and (state / "killed").exists()
    calls = [file.read_text() for file in sorted(state.glob("*.call"))]
    asked = [call.split("\n-t\n")[1].split()[0] for call in calls]
    assert asked == ["7", "7", "14", "7"]  # minutes; the second attempt gets more
    dry = lambda: said(check.snakemake(root, Path("g.yaml"), "-n", **options))
    assert "Nothing to be done" in dry()
    (root / "key").write_text("two")
    assert "rule align" in (text := dry()) and "rule cohort" not in text


@pytest.mark.weekly
def test_slurm_with_a_killed_job_gives_the_tables_of_peka_run(check, slurm, tmp_path):
    from conftest import SMALL

    from peka_core.commands.grid import planned, read_grid, runs_of

    words, options, state = slurm
    values = SMALL | {"epochs": 6, "all_methods": ["bat"], "lessons": False, "scope_effect": False}
    grid = {"profiles": ["smoke"], "values": values, "gpu": "none"}
    path = tmp_path / "g.yaml"
    path.write_text(json.dumps(grid))
    grid = read_grid(path)
    (run,) = runs_of(grid)
    one, other = (check.new_root(tmp_path / name) for name in ("slurm", "plain"))
    said(check.snakemake(one, path, *words, **options))
    ends = sorted(file.read_text() for file in state.glob("*.state"))
    jobs = len(planned(grid)) - 1  # fetch is no job of the cluster
    assert ends == ["COMPLETED"] * jobs + ["FAILED"]
    log = one / "runs" / run.name / "grid" / f"{(state / 'killed').read_text()}.log"
    assert re.search(r"align bat: +(\d+)%", log.read_text())[1] != "0"  # it went on
    plain = check.plain_run(other, run)
    assert check.differences(one / "runs" / run.name / "results", plain) == []


def test_a_table_that_is_missing_or_differs_in_one_digit_is_noticed(check, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    assert check.differences(one, one)  # no tables at all
    (one / "scores.csv").write_text("label,mean,commit\nbat,0.123456,a\n")
    shutil.copytree(one, other)
    (other / "scores.csv").write_text("label,mean,commit\nbat,0.123456,b\n")
    assert check.differences(one, other) == []
    (other / "scores.csv").write_text("label,mean,commit\nbat,0.123457,b\n")
    assert len(check.differences(one, other)) == 1
    (one / "steps.csv").write_text("")  # of a study that is left out
    (other / "steps.csv").write_text("a\n1\n")
    assert len(check.differences(one, other)) == 2
    (other / "steps.csv").unlink()
    assert len(check.differences(one, other)) == 2
