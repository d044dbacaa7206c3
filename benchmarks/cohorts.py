"""Freshly drawn cohorts of the demo's size, with one study in each; for ladder.py, components.py.

Cohort seeds start at 1001 and were used for nothing else; the recipe was chosen on seed 11.
Finished units are found again under runs/<name>-<seed>. The tiles are deleted at the end.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from peka_core.runner.run import Run, open_run

RESULTS = Path(__file__).parents[1] / "results"
SPLIT = "patients/0"  # the one that is held out


def parser(text: str, cohorts: int) -> argparse.ArgumentParser:
    """Options of both scripts: how many cohorts, and the seed of the first."""
    made = argparse.ArgumentParser(description=text.splitlines()[0])
    made.add_argument("--cohorts", type=int, default=cohorts)
    made.add_argument("--first", type=int, default=1001, help="seed of the first cohort")
    return made


def in_each(
    options: argparse.Namespace,
    name: str,
    study: Callable[[Run], pd.DataFrame],
    overrides: dict | None = None,
) -> dict[int, pd.DataFrame]:
    """The table of `study` by cohort seed; `overrides` change values of the profile demo."""
    made = {}
    for seed in range(options.first, options.first + options.cohorts):
        started = time.perf_counter()
        work = open_run(
            "demo", f"{name}-{seed}", overrides={"cohort_seed": seed} | (overrides or {})
        )
        made[seed] = study(work)
        shutil.rmtree(work.folder / "cohort" / "patches", ignore_errors=True)
        print(f"cohort {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    return made
