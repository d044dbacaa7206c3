"""Where does the spread of a result come from: patients, seeds, or the cohort as a whole?

    python benchmarks/components.py --cohorts 6 --seeds 3        # about 3 minutes a cohort on two CPU cores

Freshly drawn cohorts (cohorts.py), the first split held out, each rung trained once a seed.
"""

import sys

import pandas as pd
from cohorts import RESULTS, SPLIT, in_each, parser

from peka_core import studies
from peka_core.ladder import Rung
from peka_core.provenance import provenance
from peka_core.statistics import t_interval, variance_components
from peka_core.tables import save_table

RUNGS = [Rung("bat", name="bat (encoder)"), Rung("bat", name="L_KD only", recipe=(("lambda_struct", 0.0),))]


def main() -> int:
    """Draw, train, score; write results/components.csv and results/components_values.csv."""
    options = parser(__doc__, cohorts=6)
    options.add_argument("--seeds", type=int, default=3, help="trainings of each rung in each cohort")
    arguments = options.parse_args()
    made = in_each(arguments, "components", lambda work: studies.seeds(work, RUNGS, SPLIT, tuple(range(arguments.seeds))))
    values = pd.concat([table.assign(cohort=seed) for seed, table in made.items()], ignore_index=True)
    facts = provenance()
    named = dict(protocol="strict", scope="nested", split=SPLIT, genes="all", commit=facts["commit"], device=facts["device"])
    rows = []
    for label, part in values.groupby("label", sort=False):
        mean = t_interval(part.groupby("cohort")["difference"].mean().to_numpy())
        rows.append(variance_components(part).assign(label=label, mean=mean.mean, low=mean.low, high=mean.high))
    print(save_table(values.assign(**named), RESULTS, "components_values"))
    print(save_table(table := pd.concat(rows).assign(**named), RESULTS, "components"))
    print(table[["label", "component", "sd", "n", "share", "mean", "low", "high"]].round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
