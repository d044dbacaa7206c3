"""Losses, last blocks, teachers and the recipe `beyond` on freshly drawn cohorts.

    python benchmarks/comparisons.py losses        # five losses, with and without Eq. 6
    python benchmarks/comparisons.py losses_off    # three of them, no cue hidden from mini
    python benchmarks/comparisons.py last_blocks   # the last 1, 2, 3 of four blocks, and all
    python benchmarks/comparisons.py beyond        # the recipe `beyond`
    python benchmarks/comparisons.py teachers      # PCA and scVI; needs the extra scvi
    python benchmarks/comparisons.py her2st        # the losses on real tissue

The cohort seeds start at 3001 and were used for no choice. Two cohorts are made at a time, each by
one thread. Finished units are found again, so the same command goes on after an interruption. Each
writes results/<name>.csv, one row for each cohort, rung, space and gene set (studies/comparisons.py
explains the columns), and results/<name>_summary.csv with means over cohorts.
"""

import sys

import pandas as pd
from cohorts import RESULTS, SPLIT, in_each, parser

from peka_core.runner.run import Run, open_run
from peka_core.studies import comparisons
from peka_core.studies.tables import save_table

OFF = {"hidden_cues": 0.0}


def losses(work: Run) -> pd.DataFrame:
    """All losses on one cohort."""
    return comparisons.compare(work, [*comparisons.losses(), "oracle"], (SPLIT,))


def losses_off(work: Run) -> pd.DataFrame:
    """Three losses on one cohort whose cues `mini` sees."""
    rungs = comparisons.losses(comparisons.WITHOUT_CUES)
    return comparisons.compare(work, [*rungs, "oracle"], (SPLIT,))


def last_blocks(work: Run) -> pd.DataFrame:
    """How many blocks adapt, on one cohort."""
    return comparisons.compare(work, comparisons.last_blocks(), (SPLIT,))


def beyond(work: Run) -> pd.DataFrame:
    """The recipe `beyond` on one cohort, beside the paper's losses and the oracle."""
    rungs = comparisons.beyond(work.profile.recipe)
    return comparisons.compare(work, [*rungs, "oracle"], (SPLIT,))


def teachers(work: Run) -> pd.DataFrame:
    """Every teacher that is trained on the cohort itself, by two losses."""
    parts = []
    for label, changes in comparisons.TEACHERS.items():
        name = "-".join([work.folder.name, *changes.values()])
        there = open_run("demo", name, overrides=work.profile.overrides | changes)
        rungs = comparisons.losses((comparisons.PAPER, comparisons.SQUARED))
        table = comparisons.compare(there, [*rungs, "teacher"], (SPLIT,))
        parts.append(table.assign(rung=label + ": " + table["rung"]))
    return pd.concat(parts, ignore_index=True)


STUDIES = {
    "losses": (losses, {}),
    "losses_off": (losses_off, OFF),
    "last_blocks": (last_blocks, {}),
    "beyond": (beyond, {}),
    "teachers": (teachers, {}),
}


def main() -> int:
    """Draw, train and score; write the tables and print the means."""
    options = parser(__doc__, cohorts=10)
    options.add_argument("study", choices=[*STUDIES, "her2st"])
    options.set_defaults(first=3001)
    arguments = options.parse_args()
    name = arguments.study
    if name == "her2st":  # real tissue of two patients: four held-out sections of one of them
        table = comparisons.compare(open_run("her2st", "fresh-her2st"), comparisons.losses(), ())
        print(save_table(table, RESULTS, "losses_her2st"))
        return 0
    study, overrides = STUDIES[name]
    made = in_each(arguments, "fresh_off" if overrides else "fresh", study, overrides)
    table = pd.concat(part.assign(cohort_seed=seed) for seed, part in made.items())
    print(save_table(table, RESULTS, name))
    paper, plain = table["rung"].iloc[0], "Eq. 5" + comparisons.ALONE
    bases = ["", paper, *({plain} & set(table["rung"]))]  # the first rung is the paper's
    means = pd.concat([comparisons.over_cohorts(table, base) for base in bases])
    named = {"protocol": "strict", "scope": "nested", "split": SPLIT, "unit": "cohort"}
    print(save_table(means.assign(**named), RESULTS, f"{name}_summary", table))
    shown = means[means["genes"] == "all"].drop(columns="genes").round(3)
    print(shown.to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
