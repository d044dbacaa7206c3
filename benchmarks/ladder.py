"""The ladder on freshly drawn cohorts: what each rung adds to the frozen encoder, when the whole world is drawn anew.

    python benchmarks/ladder.py --cohorts 10          # 2 to 3 minutes a cohort on two CPU cores
    python benchmarks/ladder.py --cohorts 10 -p hidden_cues=0.0 --name ladder_off

One cohort is one value: folds and patients of one cohort share its law, its tissue and its training data. Each is the demo's
size, with the demo's recipe; its first split is held out. Cohort seeds start at 1001 and were used for nothing
else; the recipe was chosen on seed 11. Finished units are found again under runs/<name>-<seed>, tiles are deleted at the end.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import pandas as pd
import yaml

from peka_core import studies
from peka_core.provenance import provenance
from peka_core.tables import save_table
from peka_core.workspace import open_run

ROOT = Path(__file__).parents[1]
SPLIT = "patients/0"


def one_cohort(name: str, seed: int, overrides: dict) -> pd.DataFrame:
    """The ladder of a freshly drawn cohort on its first split."""
    work = open_run("demo", f"{name}-{seed}", overrides={"cohort_seed": seed} | overrides)
    table = studies.ladder(work, SPLIT)
    shutil.rmtree(work.folder / "cohort" / "patches", ignore_errors=True)
    return table


def main() -> int:
    """Draw, train, score; write results/<name>.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, default=10)
    parser.add_argument("--first", type=int, default=1001, help="seed of the first cohort")
    parser.add_argument("--name", default="ladder_cohorts", help="of the table, and of the runs' folders")
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="change a value of the profile demo")
    arguments = parser.parse_args()
    overrides = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in arguments.p)}
    made = {}
    for seed in range(arguments.first, arguments.first + arguments.cohorts):
        started = time.perf_counter()
        made[seed] = one_cohort(arguments.name, seed, overrides)
        print(f"cohort {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    facts = provenance()
    table = studies.replicate(made).assign(
        protocol="strict", scope="nested", split=SPLIT, unit="cohort", changed=str(overrides or ""), commit=facts["commit"], device=facts["device"]
    )
    print(save_table(table, ROOT / "results", arguments.name))
    print(table[table["genes"] == "all"][["label", "mean", "low", "high", "n", "above_zero"]].round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
