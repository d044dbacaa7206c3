"""Where does the spread of a result come from: patients, seeds, or the cohort as a whole?

    python benchmarks/components.py --cohorts 6 --seeds 3        # about 3 minutes a cohort on two CPU cores

Freshly drawn cohorts of the demo's size (cohort seeds from 1001 on, as in ladder.py), the first split held out, each rung
trained once a seed. Finished units are found again under runs/components-<cohort seed>; tiles are deleted at the end.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import pandas as pd

from peka_core import studies
from peka_core.ladder import Rung
from peka_core.provenance import provenance
from peka_core.statistics import t_interval, variance_components
from peka_core.tables import save_table
from peka_core.workspace import open_run

ROOT = Path(__file__).parents[1]
SPLIT = "patients/0"
RUNGS = [Rung("bat", name="bat (encoder)"), Rung("bat", name="L_KD only", recipe=(("lambda_struct", 0.0),))]


def one_cohort(seed: int, numbers: tuple[int, ...]) -> pd.DataFrame:
    """Differences to frozen by rung, seed and patient in a freshly drawn cohort."""
    work = open_run("demo", f"components-{seed}", overrides={"cohort_seed": seed})
    table = studies.seeds(work, RUNGS, SPLIT, numbers).assign(cohort=seed)
    shutil.rmtree(work.folder / "cohort" / "patches", ignore_errors=True)
    return table


def main() -> int:
    """Draw, train, score; write results/components.csv and results/components_values.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, default=6)
    parser.add_argument("--first", type=int, default=1001, help="seed of the first cohort")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each rung in each cohort")
    arguments = parser.parse_args()
    parts = []
    for seed in range(arguments.first, arguments.first + arguments.cohorts):
        started = time.perf_counter()
        parts.append(one_cohort(seed, tuple(range(arguments.seeds))))
        print(f"cohort {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    values = pd.concat(parts, ignore_index=True)
    facts = provenance()
    named = dict(protocol="strict", scope="nested", split=SPLIT, genes="all", commit=facts["commit"], device=facts["device"])
    rows = []
    for label, part in values.groupby("label", sort=False):
        mean = t_interval(part.groupby("cohort")["difference"].mean().to_numpy())
        rows.append(variance_components(part).assign(label=label, mean=mean.mean, low=mean.low, high=mean.high))
    print(save_table(values.assign(**named), ROOT / "results", "components_values"))
    print(save_table(table := pd.concat(rows).assign(**named), ROOT / "results", "components"))
    print(table[["label", "component", "sd", "n", "share", "mean", "low", "high"]].round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
