"""Benchmarks still run on the smallest input (no times are judged), and compute what they say."""

from argparse import Namespace

import alignment
import cohorts
import components
import head
import ladder
import last_blocks
import numpy as np
import pandas as pd
import pytest
import teacher
from conftest import SMALL

from peka_core import Recipe
from peka_core.common import folders
from peka_core.common.errors import PekaError
from peka_core.protocols import PROTOCOLS
from peka_core.runner import stages
from peka_core.runner.rungs import Rung
from peka_core.statistics import paired


def test_what_is_timed_computes_the_same(tmp_path):
    mini = alignment.drawn_encoder("mini", "cpu")
    row = alignment.measure(mini, "bat", Recipe(epochs=1, batch_size=16, k=4), 32)
    assert row["tiles"] == 32 and row["tiles_per_s"] > 0 and row["planned_gb"] > 0
    assert head.measure(400, 300)["largest_difference"] < 1e-6
    row = teacher.measure("small", 3, 30, 1, tmp_path)
    assert row["difference_plain"] < 1e-4 and row["cosine_bfloat16"] > 0.99


def test_last_blocks_on_cached_tokens_are_timed_beside_all_blocks():
    recipe = Recipe(batch_size=8, k=4, block=16, hidden=8, flips=False, validation_share=0.0)
    plain, flips = last_blocks.measure(last_blocks.deep_encoder("cpu", 4), recipe, 1, 16, 1)
    assert plain["passes"] == 1 and flips["passes"] == pytest.approx(8 * (1 - (7 / 8) ** 50))
    for row in (plain, flips):
        cached = row["passes"] * row["pass_s"] + 50 * row["epoch_last_s"]
        assert row["all_s"] / cached == row["ratio"] and row["epoch_last_s"] > 0
    assert 4 < plain["flops"] < 6 and flips["flops"] < plain["flops"]  # one of four blocks


def test_seeds_train_again_on_the_same_tissue_and_are_compared_by_patient(tmp_path, monkeypatch):
    """Two seeds of one rung on one small drawn cohort."""
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    strict, rungs, made = PROTOCOLS["strict"], [Rung("bat", name="bat")], {}

    def study(work):
        table = components.seeds(work, rungs, cohorts.SPLIT, (0, 1))
        one = {"splits": (cohorts.SPLIT,)}
        both = [stages.score(work, who, strict, **one).scores for who in ("bat", "frozen")]
        made.update(seed=work.profile.seed, expected=paired(*both)["values"].to_dict())
        return table

    asked = Namespace(first=1001, cohorts=1, jobs=1)
    ((cohort, table),) = cohorts.in_each(asked, "tiny", study, SMALL).items()
    grid = table.pivot(index="patient", columns="seed", values="difference")
    assert cohort == 1001 and grid[0].to_dict() == pytest.approx(made["expected"], nan_ok=True)
    assert made["seed"] == 0 and not np.allclose(grid[0], grid[1])


def test_replication_averages_over_cohorts():
    table = lambda value: pd.DataFrame({"label": ["a"], "genes": ["all"], "mean": [value]})
    row = ladder.replicate({1: table(0.1), 2: table(0.2), 3: table(0.3)}).iloc[0]
    assert row["mean"] == pytest.approx(0.2) and row["n"] == 3 and row["above_zero"] == 3
    half = 4.302653 * 0.1 / np.sqrt(3)  # t(.975, 2)
    assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-5)


def test_variance_components_equal_reml_on_a_balanced_table_and_need_one():
    from statsmodels.regression.mixed_linear_model import MixedLM  # comes with scanpy

    rng, sizes = np.random.default_rng(1), {"cohort": 30, "patient": 5, "seed": 4}
    shapes = zip((0.3, 0.2, 0.2, 0.15), [(30, 1, 1), (30, 5, 1), (30, 1, 4), (30, 5, 4)])
    x = 0.02 + sum(rng.normal(0, sd, shape) for sd, shape in shapes)
    index = pd.MultiIndex.from_product(map(range, sizes.values()), names=list(sizes))
    table = pd.DataFrame({"difference": x.ravel()}, index=index).reset_index()
    parts = {"patient": "0 + C(patient)", "seed": "0 + C(seed)"}
    form = {"groups": "cohort", "re_formula": "1", "vc_formula": parts}
    model = MixedLM.from_formula("difference ~ 1", table, **form).fit(reml=True)
    named = dict(zip(model.model.exog_vc.names, model.vcomp, strict=True))
    expected = [model.cov_re.iloc[0, 0], named["patient"], named["seed"], model.scale]
    variances = components.variance_components(table)["variance"]
    np.testing.assert_allclose(variances, expected, rtol=0.02)
    other = table.assign(seed=table["seed"] + (table["cohort"] == 2))  # other seeds in one cohort
    for unbalanced in (other, table[1:]):
        with pytest.raises(PekaError):
            components.variance_components(unbalanced)
