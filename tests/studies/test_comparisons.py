"""Comparisons: which recipes they train, and what their rows say."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from peka_core.protocols import PROTOCOLS
from peka_core.recipe import RECIPES, Recipe
from peka_core.runner import stages
from peka_core.runner.rungs import Rung
from peka_core.statistics import paired
from peka_core.studies import comparisons

STRICT, SPLIT = PROTOCOLS["strict"], "patients/0"


def test_every_loss_is_another_one_in_three_spaces_and_only_the_loss_changes():
    base, rungs = Recipe(), comparisons.losses()
    recipes = {rung.name: rung.change(base) for rung in rungs}
    about_loss = {"kd", "tau", "tau_squared", "lambda_struct"}
    plain = [dataclasses.replace(r, kd="softmax", tau=1, tau_squared=False, lambda_struct=0.5)
             for r in recipes.values()]  # fmt: skip
    assert len(recipes) == len(set(recipes.values())) == 10 and len(rungs) == 30
    assert {name for rung in rungs for name, _ in rung.recipe} == about_loss
    assert set(plain) == {base} == {recipes[comparisons.PAPER]}
    beyond = comparisons.beyond(base)[-1]
    assert beyond.name == "beyond" and beyond.change(base) == RECIPES["beyond"]
    last = {rung.change(base).last_blocks for rung in comparisons.last_blocks()}
    assert last == {0, *comparisons.BLOCKS}


def test_a_row_is_the_paired_difference_to_frozen(work):
    rung = Rung("bat", recipe=(("kd", "mse"), ("lambda_struct", 0.0)), name="squared")
    table = comparisons.compare(work, [rung, "teacher"], (SPLIT,)).set_index(["rung", "genes"])
    a, b = (stages.score(work, r, STRICT, splits=(SPLIT,)).scores for r in (rung, "frozen"))
    row = table.loc["squared", "all"]
    by_patient = b.query("pooling == 'section' and genes == 'all' and alpha == 'chosen'")
    level = by_patient.groupby("patient")["pcc"].mean().mean()
    assert row["mean"] == pytest.approx(paired(a, b)["mean"]) and row["n"] == paired(a, b)["n"]
    assert row["level"] == pytest.approx(level)
    spent = stages.history(work, rung, SPLIT)["seconds"].sum()
    assert row["seconds"] == pytest.approx(spent) and row["changed"] == "kd=mse lambda_struct=0.0"
    assert (table.loc["teacher → genes", "seconds"] == 0).all()


def test_cohorts_are_the_replicates_and_pairs_are_of_one_cohort():
    rng = np.random.default_rng(0)
    values = {name: rng.normal(0.03, 0.02, 6) for name in ("paper", "other")}
    table = pd.DataFrame(
        [
            {"cohort_seed": i, "rung": name, "space": "encoder", "genes": "all", "mean": value}
            for name, of_cohort in values.items()
            for i, value in rng.permutation(list(enumerate(of_cohort)))
        ]
    )
    (row,) = comparisons.over_cohorts(table, "paper").to_dict("records")
    test = stats.ttest_rel(values["other"], values["paper"])
    ends = test.confidence_interval()
    assert [row["low"], row["high"]] == pytest.approx([ends.low, ends.high])
    assert row["above_zero"] == (values["other"] > values["paper"]).sum() and row["n"] == 6
    means = comparisons.over_cohorts(table).set_index("rung")["mean"]
    assert means.to_dict() == pytest.approx({k: v.mean() for k, v in values.items()})
