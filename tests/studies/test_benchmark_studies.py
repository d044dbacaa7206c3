"""Studies that benchmarks run on freshly drawn cohorts: where spread comes from, and a ladder averaged over cohorts."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from peka_core.errors import PekaError
from peka_core.protocols import PROTOCOLS
from peka_core.runner import stages
from peka_core.runner.rungs import Rung
from peka_core.statistics import paired

sys.path.append(
    str(Path(__file__).parents[2] / "benchmarks")
)  # they import each other by these names
import components
import ladder
from components import variance_components


def test_replication_averages_over_cohorts():
    tables = {
        seed: pd.DataFrame({"label": ["a"], "genes": ["all"], "mean": [value]})
        for seed, value in ((1, 0.1), (2, 0.2), (3, 0.3))
    }
    row = ladder.replicate(tables).iloc[0]
    assert row["mean"] == pytest.approx(0.2) and row["n"] == 3 and row["above_zero"] == 3
    assert row["high"] - row["mean"] == pytest.approx(
        4.302653 * 0.1 / np.sqrt(3), rel=1e-5
    )  # t(.975, 2)


def test_seeds_train_again_on_the_same_tissue_and_are_compared_patient_by_patient(work):
    split = work.cohort().splits[0].name
    table = components.seeds(work, [Rung("bat", name="bat")], split, (0, 1))
    grid = table.pivot(index="patient", columns="seed", values="difference")
    expected = paired(
        stages.score(work, "bat", PROTOCOLS["strict"], splits=(split,)).scores,
        stages.score(work, "frozen", PROTOCOLS["strict"], splits=(split,)).scores,
    )
    assert grid[0].to_dict() == pytest.approx(expected["values"].to_dict(), nan_ok=True)
    assert work.profile.seed == 0 and not np.allclose(grid[0], grid[1])


def components_drawn(c, p, s, sd, seed):
    rng = np.random.default_rng(seed)
    cohort, patient, seeds = (
        rng.normal(0, size, shape) for size, shape in zip(sd, [(c, 1, 1), (c, p, 1), (c, 1, s)])
    )
    x = 0.02 + cohort + patient + seeds + rng.normal(0, sd[3], (c, p, s))
    index = pd.MultiIndex.from_product(
        [range(c), range(p), range(s)], names=["cohort", "patient", "seed"]
    )
    return pd.DataFrame({"difference": x.ravel()}, index=index).reset_index()


def test_variance_components_are_unbiased():
    sd = np.array([0.03, 0.02, 0.01, 0.015])
    found = [
        variance_components(components_drawn(8, 5, 3, sd, seed))["variance"] for seed in range(300)
    ]
    np.testing.assert_allclose(np.mean(found, axis=0), sd**2, rtol=0.1)


def test_variance_components_equal_reml_on_a_balanced_table():
    from statsmodels.regression.mixed_linear_model import MixedLM  # comes with scanpy

    table = components_drawn(30, 5, 4, (0.3, 0.2, 0.2, 0.15), 1)
    parts = {"patient": "0 + C(patient)", "seed": "0 + C(seed)"}
    model = MixedLM.from_formula(
        "difference ~ 1", table, groups="cohort", re_formula="1", vc_formula=parts
    ).fit(reml=True)
    named = dict(zip(model.model.exog_vc.names, model.vcomp))
    expected = [model.cov_re.iloc[0, 0], named["patient"], named["seed"], model.scale]
    np.testing.assert_allclose(variance_components(table)["variance"], expected, rtol=0.02)


def test_shares_are_those_of_a_cohorts_mean_at_one_seed():
    table = components_drawn(6, 5, 3, (0, 0.02, 0, 0), 0)
    table["difference"] -= table.groupby("cohort")["difference"].transform(
        "mean"
    )  # patients alone differ
    found = variance_components(table).set_index("component")
    assert found["share"].to_dict() == pytest.approx(
        {"cohort": 0, "patient": 1, "seed": 0, "rest": 0}, abs=1e-9
    )
    assert found["n"].to_dict() == {"cohort": 6, "patient": 30, "seed": 18, "rest": 90}


def test_an_unbalanced_table_has_no_components():
    table = components_drawn(3, 4, 2, (0.1, 0.1, 0.1, 0.1), 0)
    other = table.assign(seed=table["seed"] + (table["cohort"] == 2))  # other seeds in one cohort
    for broken in (other, table[1:], table[table["seed"] == 0], table[table["cohort"] == 0]):
        with pytest.raises(PekaError, match="variance components need"):
            variance_components(broken)
