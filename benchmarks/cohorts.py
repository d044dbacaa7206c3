"""Freshly drawn cohorts of the demo's size, with one study in each.

For ladder.py, components.py and comparisons.py. Cohort seeds start at 1001, those of comparisons.py
at 3001; they were used for no choice. The recipes were chosen on seed 11. Finished units are found
again under runs/<name>-<seed>.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
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
    made.add_argument("--jobs", type=int, default=2, help="cohorts that are made at a time")
    return made


def in_each(
    options: argparse.Namespace,
    name: str,
    study: Callable[[Run], pd.DataFrame],
    overrides: dict | None = None,
) -> dict[int, pd.DataFrame]:
    """The table of `study` by cohort seed; `overrides` change values of the profile demo.

    `options.jobs` cohorts are made at a time, each by one thread if there are several. `study` is
    then a function that another process can import.
    """
    seeds = range(options.first, options.first + options.cohorts)
    made = partial(_in_one, name=name, study=study, overrides=overrides or {})
    if options.jobs == 1:
        return dict(map(made, seeds))
    os.environ["OMP_NUM_THREADS"] = "1"  # the new processes read it
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        return dict(pool.map(made, seeds))


def _in_one(seed: int, name: str, study: Callable, overrides: dict) -> tuple[int, pd.DataFrame]:
    started = time.perf_counter()
    work = open_run("demo", f"{name}-{seed}", overrides={"cohort_seed": seed} | overrides)
    table = study(work)
    print(f"cohort {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    return seed, table
