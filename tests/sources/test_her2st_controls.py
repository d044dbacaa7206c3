"""Predictors without pixels on 35 real sections give golden numbers under the published rules."""

import json
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from peka_core import controls
from peka_core.cohort import Split
from peka_core.evaluation import evaluate
from peka_core.genes import authors_genes
from peka_core.protocols import PROTOCOLS
from peka_core.sources import her2st
from peka_core.statistics import pearson
from peka_core.tasks import make_tasks

pytestmark = pytest.mark.slow
# the golden file trains on 80 %, not on 64 %
SHUFFLED = replace(PROTOCOLS["peka_official"], inner_holdout=False)
PATIENTS = replace(SHUFFLED, name="leave patient out", splits_from="cohort", gene_folds=False)
RULES = {
    "shuffled spots | zeros dropped": SHUFFLED,
    "leave patient out | zeros dropped": PATIENTS,
    "shuffled spots | zeros kept": replace(SHUFFLED, zeros="keep"),
}
PREDICTORS = {
    "library size": controls.library_size,
    "slide one-hot": controls.slide_one_hot,
    "patient one-hot": lambda cohort: pd.get_dummies(cohort.obs["group"]).to_numpy(np.float32),
    "slide + library size": controls.slide_and_library_size,
    "8 nearest spots": controls.nearest_spots,
}
# every predictor under the first rule, and one under the others
CASES = [*((name, "shuffled spots | zeros dropped") for name in PREDICTORS),
         *(("library size", rule) for rule in list(RULES)[1:])]  # fmt: skip


@pytest.fixture(scope="module")
def golden(shared) -> dict:
    return json.loads((shared / "fixtures/controls_her2st.json").read_text())


@pytest.fixture(scope="module")
def cohort(golden, shared) -> SimpleNamespace:
    """What scoring reads: counts (13442, G) of all sections over the union of their genes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEKA_MIRROR", str(shared / "data"))
        # the same values in half the time: tables of so many columns are read in one piece
        patch.setattr(pd, "read_csv", partial(pd.read_csv, low_memory=False))
        counts = her2st.read_counts(golden["sections"])
    patients = counts.obs["group"].to_numpy()
    sides = enumerate(patients == name for name in np.unique(patients))
    splits = [Split(f"patients/{i}", ~test, test) for i, test in sides]
    path = shared / "data/her2st"
    names = counts.obs["sample"]
    return SimpleNamespace(
        path=path, obs=counts.obs, splits=splits, adata=lambda join, genes: counts[:, genes].copy(),
        by_section=lambda join: (counts[names == name].copy() for name in names.unique()),
    )  # fmt: skip


@pytest.fixture(scope="module")
def tasks_of(cohort, golden):
    """Tasks of a rule by its name, made once; spots and genes are those of the golden file."""
    genes = authors_genes(cohort, 50)
    assert len(cohort.obs) == golden["n_spots"] and cohort.obs["group"].nunique() == 8
    assert sorted(genes) == sorted(golden["genes"])
    return cache(lambda rule: make_tasks(cohort, replace(RULES[rule], genes_from=tuple(genes))))


@pytest.mark.parametrize("name, rule", CASES)
def test_controls_equal_the_golden_values(cohort, tasks_of, golden, name, rule):
    expected = golden["results"][f"{name} | {rule}"]
    tasks = tasks_of(rule)
    found = evaluate(cohort, PREDICTORS[name](cohort), tasks[0].protocol, tasks)
    pooled = mean_over_genes(found.predictions, ["split"], 2)
    within = mean_over_genes(found.predictions, ["split", "sample"], 10)
    values = np.array([expected["pooled"], expected["per_section"]], float)  # None is NaN
    assert [pooled, within] == pytest.approx(values, abs=0.002, nan_ok=True)
    assert (found.scores.query("genes == 'all'")["n_genes"] == expected["genes"]).all()


def mean_over_genes(predictions, by: list[str], least: int) -> float:
    """PCC of each gene in each part of so many spots; its mean over sections, folds, then genes."""
    rows = {}
    for place, index in predictions.obs.groupby(by, observed=True).indices.items():
        layers = predictions[index].layers
        rows[place] = pearson(layers["observed"], layers["predicted"], least)
    return pd.DataFrame(rows).T.groupby(level=0).mean().mean().mean()  # of (parts, genes)
