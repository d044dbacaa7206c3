"""Losses on freshly drawn cohorts: what each adds to the frozen encoder (studies/losses.py).

    python benchmarks/losses.py                 # ten cohorts, all losses
    python benchmarks/losses.py --without-cues  # the same tissues, no cue hidden, three losses

The cohort seeds start at 3001 and are used for nothing else. Finished units are found again, so the
same command goes on after an interruption. Results: results/losses.csv, one row for each cohort,
loss, space and gene set.
"""

import sys

import pandas as pd
from cohorts import RESULTS, SPLIT, in_each, parser

from peka_core.studies import losses
from peka_core.studies.tables import save_table


def main() -> int:
    """Draw, train and score; write the table and print its means."""
    options = parser(__doc__, cohorts=10)
    options.add_argument("--without-cues", action="store_true", help="hide no cue from mini")
    options.set_defaults(first=3001)
    arguments = options.parse_args()
    off = arguments.without_cues
    names = losses.WITHOUT_CUES if off else ()
    overrides = {"hidden_cues": 0.0} if off else {}
    name = "losses_off" if off else "losses"
    study = lambda work: losses.compare(work, (SPLIT,), names)
    made = in_each(arguments, name, study, overrides)
    table = pd.concat(part.assign(cohort_seed=seed) for seed, part in made.items())
    print(save_table(table, RESULTS, name))
    shown = ["loss", "space", "mean", "low", "high", "n", "above_zero"]
    for against in ("", losses.PAPER):
        means = losses.over_cohorts(table[table["genes"] == "all"], against)
        print(f"\nminus {against or 'the frozen encoder'}")
        print(means[shown].round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
