"""The ladder on freshly drawn cohorts: what each rung adds to the frozen encoder.

    python benchmarks/ladder.py --cohorts 10          # about 3 minutes a cohort on two CPU cores
    python benchmarks/ladder.py --cohorts 10 -p hidden_cues=0.0 --name ladder_off

One cohort (cohorts.py) is one value, because folds and patients of one cohort share its law, its
tissue and its training data. The recipe is the demo's; the first split is held out.
"""

import sys
from functools import partial

import pandas as pd
import yaml
from cohorts import RESULTS, SPLIT, in_each, parser

from peka_core.statistics import t_interval
from peka_core.studies import ladder as studies
from peka_core.studies.tables import made_by, save_table


def main() -> int:
    """Draw, train, score; write results/<name>.csv."""
    options = parser(__doc__, cohorts=10)
    options.add_argument(
        "--name", default="ladder_cohorts", help="of the table, and of the runs' folders"
    )
    options.add_argument(
        "-p",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a value of the profile demo",
    )
    arguments = options.parse_args()
    overrides = {
        key: yaml.safe_load(value)
        for key, _, value in (item.partition("=") for item in arguments.p)
    }
    study = partial(studies.ladder, splits=(SPLIT,))
    made = in_each(arguments, arguments.name, study, overrides)
    table = replicate(made).assign(
        protocol="strict",
        scope="nested",
        split=SPLIT,
        unit="cohort",
        changed=str(overrides or ""),
        **made_by(*made.values()),
    )
    print(save_table(table, RESULTS, arguments.name))
    print(
        table[table["genes"] == "all"][["label", "mean", "low", "high", "n", "above_zero"]]
        .round(3)
        .to_string(index=False)
    )
    return 0


def replicate(tables_by_cohort: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """Each rung's mean difference with a t interval over cohorts; one cohort is one value."""
    long = pd.concat([table.assign(cohort_seed=seed) for seed, table in tables_by_cohort.items()])
    rows = []
    for (label, genes), part in long.groupby(["label", "genes"], sort=False):
        interval = t_interval(part["mean"].to_numpy())
        values = " ".join(
            f"{seed}:{value:.4f}"
            for seed, value in zip(part["cohort_seed"], part["mean"], strict=True)
        )
        above_zero = int((part["mean"] > 0).sum())
        rows.append(
            {"label": label, "genes": genes, **interval._asdict(), "n": len(part)}
            | {"above_zero": above_zero, "sd": part["mean"].std(), "values": values}
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    sys.exit(main())
