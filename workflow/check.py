"""Run the smoke grid in two jobs at a time, and compare its tables with those of `peka run smoke`.

    python workflow/check.py [another grid of one run] [options of snakemake]

Both runs start from nothing, each in a temporary folder of its own. The exit code is 1 if a table
differs. The columns that tell what made a number are not compared.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
MADE = ["commit", "device", "versions", "code"]  # columns that tell what made a row
SMOKE = ROOT / "workflow/grids/smoke.yaml"
# numbers depend on the threads that make them, in their last digits
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SLURM = ["--workflow-profile", str(ROOT / "workflow/profiles/slurm")]


def new_root(folder: Path) -> Path:
    """A folder whose `runs/`, so far empty, is used by processes and chapters that start in it."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    shutil.copy(ROOT / "data_manifest.yaml", folder)  # the mark of a checkout
    return folder


def snakemake(root: Path, grid: Path, *words: str, **more) -> subprocess.CompletedProcess:
    """Run a grid's workflow in a root."""
    call = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "workflow/Snakefile")]
    call += ["--config", f"grid={grid}", *words]
    return subprocess.run(call, **{"cwd": root, "env": ENVIRONMENT} | more)


def plain_run(root: Path, run) -> Path:
    """`peka run` of a grid's run (`GridRun`) in a root; returns the folder of its tables."""
    call = [sys.executable, "-m", "peka_core", *run.command("tables")]
    subprocess.run(call, cwd=root, env=ENVIRONMENT, check=True)
    return root / "runs" / run.name / "results"


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the tables in two folders; every number counts to its last digit."""
    names = [{path.name for path in folder.glob("*.csv")} for folder in (one, other)]
    found = [f"{name} is in one folder alone" for name in sorted(names[0] ^ names[1])]
    found += ["there are no tables"] * (not names[0])
    for name in sorted(names[0] & names[1]):
        a, b = (_read(folder / name) for folder in (one, other))
        try:
            pd.testing.assert_frame_equal(a, b, check_exact=True)
        except AssertionError as error:
            found.append(f"{name}: {error}")
    return found


def _read(path: Path) -> pd.DataFrame:
    if not path.read_text(encoding="utf-8").strip():  # a study that a profile leaves out
        return pd.DataFrame()
    return pd.read_csv(path).drop(columns=MADE, errors="ignore")


def main(words: list[str]) -> int:
    """Run both and compare; the last line says whether all tables are equal."""
    from peka_core.commands.grid import read_grid, runs_of

    given = bool(words and not words[0].startswith("-"))
    grid, options = (Path(words[0]) if given else SMOKE).absolute(), words[given:]
    (run,) = runs_of(read_grid(grid))
    with tempfile.TemporaryDirectory() as folder:
        here, there = (new_root(Path(folder) / name) for name in ("grid", "plain"))
        started = time.perf_counter()
        snakemake(here, grid, *(options or ["--cores", "2"]), check=True)
        middle = time.perf_counter()
        plain = plain_run(there, run)
        ended = time.perf_counter()
        found = differences(here / "runs" / run.name / "results", plain)
        tables = len(list(plain.glob("*.csv")))
    print(*found, sep="\n")
    print(f"grid {middle - started:.0f} s, peka run {ended - middle:.0f} s")
    same = f"{tables} tables of the grid and of peka run are equal"
    print(f"{len(found)} differences" if found else same)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
