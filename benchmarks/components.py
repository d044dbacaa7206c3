"""Where does the spread of a result come from: patients, seeds, or the cohort as a whole?

    python benchmarks/components.py --cohorts 6 --seeds 3   # about 3 minutes a cohort on two CPUs

Cohorts are drawn anew (cohorts.py), the first split is held out, each rung is trained once a seed.
"""

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from cohorts import RESULTS, SPLIT, in_each, parser

from peka_core.common.errors import PekaError
from peka_core.protocols import PROTOCOLS
from peka_core.runner import stages
from peka_core.runner.run import Run
from peka_core.runner.rungs import Rung
from peka_core.statistics import paired, t_interval
from peka_core.studies.tables import made_by, save_table

RUNGS = [
    Rung("bat", name="bat (encoder)"),
    Rung("bat", name="L_KD only", recipe=(("lambda_struct", 0.0),)),
]


def main() -> int:
    """Draw, train, score; write results/components.csv and results/components_values.csv."""
    options = parser(__doc__, cohorts=6)
    options.add_argument(
        "--seeds", type=int, default=3, help="trainings of each rung in each cohort"
    )
    arguments = options.parse_args()
    study = partial(seeds, rungs=RUNGS, split=SPLIT, numbers=tuple(range(arguments.seeds)))
    made = in_each(arguments, "components", study)
    values = pd.concat(
        [table.assign(cohort=seed) for seed, table in made.items()], ignore_index=True
    )
    named = dict(
        protocol="strict", scope="nested", split=SPLIT, genes="all", **made_by(*made.values())
    )
    rows = []
    for label, part in values.groupby("label", sort=False):
        mean = t_interval(part.groupby("cohort")["difference"].mean().to_numpy())
        rows.append(
            variance_components(part).assign(
                label=label, mean=mean.mean, low=mean.low, high=mean.high
            )
        )
    print(save_table(values.assign(**named), RESULTS, "components_values"))
    print(save_table(table := pd.concat(rows).assign(**named), RESULTS, "components"))
    print(
        table[["label", "component", "sd", "n", "share", "mean", "low", "high"]]
        .round(4)
        .to_string(index=False)
    )
    return 0


def seeds(work: Run, rungs: list[Rung], split: str, numbers: tuple[int, ...]) -> pd.DataFrame:
    """Each rung minus frozen under `strict`: one row a rung, seed and held-out patient.

    The students are trained again with each seed, which draws projector and adapter, the order of
    batches, the validation patients and the start of k-means. All else stays.
    """
    strict, rows = PROTOCOLS["strict"], []
    frozen = stages.score(work, "frozen", strict, splits=(split,))
    for number in numbers:
        again = replace(work, profile=replace(work.profile, seed=number))
        for rung in rungs:
            scored = stages.score(again, rung, strict, splits=(split,))
            found, made = paired(scored.scores, frozen.scores)["values"], made_by(scored, frozen)
            rows += [
                {"label": rung.name, "seed": number, "patient": patient, "difference": value} | made
                for patient, value in found.items()
            ]
    return pd.DataFrame(rows)


def variance_components(values: pd.DataFrame) -> pd.DataFrame:
    """How much of a difference's spread comes from cohorts, patients and seeds.

    Model: value = mean + cohort + patient (in its cohort) + seed (in its cohort) + rest. The
    estimates are from the mean squares of a balanced table and have no bias. An estimate below zero
    says that nothing of this component can be seen.

    Args:
        values: columns cohort, patient, seed, difference. Every cohort has the same number of
            patients, and each patient every seed.

    Returns:
        One row a component: component, variance, sd (0 where the variance is below zero), n (levels
        in all), and share, its part of the variance of one cohort's mean at one seed.

    Raises:
        PekaError: fewer than two of a component, or a table that is not balanced.
    """
    grid = values.set_index(["cohort", "patient", "seed"])["difference"].sort_index()
    parts = [part.droplevel(0).unstack() for _, part in grid.groupby(level=0)]
    cohorts = [part.to_numpy() for part in parts]
    differ = len({(part.shape, tuple(part.columns)) for part in parts}) > 1
    if differ or min(len(cohorts), *cohorts[0].shape) < 2 or np.isnan(cohorts).any():
        raise PekaError(
            "variance components need two or more cohorts with equally many patients (two or more) "
            f"and the same seeds, not {[part.shape for part in cohorts]} patients x seeds by cohort"
        )
    x = np.stack(cohorts)  # (c, p, s)
    c, p, s = x.shape
    by_cohort, by_patient, by_seed = (
        x.mean((1, 2), keepdims=True),
        x.mean(2, keepdims=True),
        x.mean(1, keepdims=True),
    )
    rest = ((x - by_patient - by_seed + by_cohort) ** 2).sum() / (
        c * (p - 1) * (s - 1)
    )  # mean squares
    patient = s * ((by_patient - by_cohort) ** 2).sum() / (c * (p - 1))
    seed = p * ((by_seed - by_cohort) ** 2).sum() / (c * (s - 1))
    cohort = p * s * ((by_cohort - x.mean()) ** 2).sum() / (c - 1)
    table = pd.DataFrame(
        {"component": ["cohort", "patient", "seed", "rest"], "n": [c, c * p, c * s, c * p * s]}
    )
    table["variance"] = [
        (cohort - patient - seed + rest) / (p * s),
        (patient - rest) / s,
        (seed - rest) / p,
        rest,
    ]
    table["sd"] = np.sqrt(table["variance"].clip(lower=0))
    of_mean = table["variance"].clip(lower=0) / [1, p, 1, p]
    return table.assign(share=of_mean / of_mean.sum())


if __name__ == "__main__":
    sys.exit(main())
