"""Predictors without pixels on 35 real sections give golden numbers under the published rules.

The numbers are in fixtures/controls_her2st.json. The same rules on drawn counts are in
test_controls.py.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED

from peka_core import controls
from peka_core.cohort import Split
from peka_core.evaluation import evaluate
from peka_core.genes import authors_genes
from peka_core.protocols import PROTOCOLS
from peka_core.sources.her2st import read_counts
from peka_core.statistics import pearson
from peka_core.tasks import make_tasks

pytestmark = pytest.mark.usefixtures("shared")
# the golden file trains on 80 %, not on 64 %
OFFICIAL = replace(PROTOCOLS["peka_official"], inner_holdout=False)
PATIENTS = replace(OFFICIAL, name="leave patient out", splits_from="cohort", gene_folds=False)
RULES = {"shuffled spots": OFFICIAL, "leave patient out": PATIENTS}
PREDICTORS = {
    "slide one-hot": controls.slide_one_hot,
    "patient one-hot": lambda cohort: pd.get_dummies(cohort.obs["group"]).to_numpy(np.float32),
    "library size": controls.library_size,
    "slide + library size": controls.slide_and_library_size,
    "8 nearest spots": controls.nearest_spots,
}


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((SHARED / "fixtures" / "controls_her2st.json").read_text())


@pytest.fixture(scope="module")
def cohort(golden) -> SimpleNamespace:
    """What scoring reads: counts (13442, G) of all sections over the union of their genes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEKA_MIRROR", str(SHARED / "data"))
        counts = read_counts(golden["sections"])
    patients = counts.obs["group"].to_numpy()
    splits = [
        Split(f"patients/{i}", patients != name, patients == name)
        for i, name in enumerate(np.unique(patients))
    ]
    path = SHARED / "data" / "her2st"
    return SimpleNamespace(path=path, obs=counts.obs, splits=splits, adata=lambda join: counts)


def test_spots_and_most_variable_genes_are_those_of_the_golden_file(cohort, golden):
    counts = cohort.adata("outer")
    assert counts.n_obs == golden["n_spots"] and counts.obs["group"].nunique() == 8
    assert sorted(authors_genes(counts, 50)) == sorted(golden["genes"])


@pytest.fixture(scope="module", params=["zeros dropped", "zeros kept"])
def rules(request, cohort) -> tuple:
    """How zeros are treated, and the rules of each scheme with their tasks."""
    change = {"zeros": "keep"} if request.param == "zeros kept" else {}
    rules = {how: replace(rule, **change) for how, rule in RULES.items()}
    return request.param, {how: (rule, make_tasks(cohort, rule)) for how, rule in rules.items()}


@pytest.mark.parametrize(
    "how, name",
    [*(("shuffled spots", name) for name in PREDICTORS), ("leave patient out", "library size")],
)
def test_controls_equal_the_golden_values(cohort, rules, golden, how, name):
    zeros, made = rules
    expected = golden["results"][f"{name} | {how} | {zeros}"]
    found = evaluate(cohort, PREDICTORS[name](cohort), *made[how])
    for pooling, columns, least in (("pooled", ["split"], 2),
                                    ("per_section", ["split", "sample"], 10)):  # fmt: skip
        value = mean_over_genes(found.predictions, columns, least)
        if expected[pooling] is None:
            assert np.isnan(value), f"{pooling} should be undefined"
        else:
            assert value == pytest.approx(expected[pooling], abs=0.002), pooling
    assert (found.scores.query("genes == 'all'")["n_genes"] == expected["genes"]).all()


def mean_over_genes(predictions, by: list[str], least: int) -> float:
    """PCC of each gene in each part of so many spots; its mean over sections, folds, then genes."""
    rows = {}
    for place, index in predictions.obs.groupby(by, observed=True).indices.items():
        layers = predictions[index].layers
        rows[place] = pearson(layers["observed"], layers["predicted"], least)
    return pd.DataFrame(rows).T.groupby(level=0).mean().mean().mean()  # of (parts, genes)
