"""Predictors without pixels on 35 real sections give golden numbers under the published rules.

The numbers are in fixtures/controls_her2st.json.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
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

GOLDEN, COUNTS = SHARED / "fixtures" / "controls_her2st.json", SHARED / "data" / "her2st"
pytestmark = pytest.mark.usefixtures(
    "shared"
)  # 35 real sections; the same rules on drawn counts are in test_controls.py
OFFICIAL = replace(
    PROTOCOLS["peka_official"], inner_holdout=False
)  # the golden file trains on 80 %, not on 64 %
PATIENTS = replace(OFFICIAL, name="leave patient out", splits_from="cohort", gene_folds=False)


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def counts(golden) -> ad.AnnData:
    """Counts (13442, G) of all sections over the union of their genes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEKA_MIRROR", str(SHARED / "data"))
        return read_counts(golden["sections"])


@pytest.fixture(scope="module")
def cohort(counts) -> SimpleNamespace:
    """What scoring reads of a cohort: counts over the union of the sections' genes."""
    patients = counts.obs["group"].to_numpy()
    splits = [
        Split(f"patients/{i}", patients != name, patients == name)
        for i, name in enumerate(np.unique(patients))
    ]
    return SimpleNamespace(path=COUNTS, obs=counts.obs, splits=splits, adata=lambda join: counts)


def patient_one_hot(cohort) -> np.ndarray:
    return pd.get_dummies(cohort.obs["group"]).to_numpy(np.float32)


PREDICTORS = {
    "slide one-hot": controls.slide_one_hot,
    "patient one-hot": patient_one_hot,
    "library size": controls.library_size,
    "slide + library size": controls.slide_and_library_size,
    "8 nearest spots": controls.nearest_spots,
}


@pytest.fixture(scope="module")
def tasks(cohort) -> dict:
    rules = {
        ("shuffled spots", "zeros dropped"): OFFICIAL,
        ("leave patient out", "zeros dropped"): PATIENTS,
    }
    rules |= {(how, "zeros kept"): replace(rule, zeros="keep") for (how, _), rule in rules.items()}
    return {key: (rule, make_tasks(cohort, rule)) for key, rule in rules.items()}


def test_the_spots_are_those_of_the_golden_file(counts, golden):
    assert counts.n_obs == golden["n_spots"] and counts.obs["group"].nunique() == 8


def test_the_most_variable_genes_are_those_of_the_golden_file(counts, golden):
    assert sorted(authors_genes(counts, 50)) == sorted(golden["genes"])


@pytest.mark.parametrize("zeros", ["zeros dropped", "zeros kept"])
@pytest.mark.parametrize(
    "how, name",
    [*(("shuffled spots", name) for name in PREDICTORS), ("leave patient out", "library size")],
)
def test_controls_equal_the_golden_values(cohort, tasks, golden, how, name, zeros):
    expected = golden["results"][f"{name} | {how} | {zeros}"]
    rule, made = tasks[how, zeros]
    found = evaluate(cohort, PREDICTORS[name](cohort), rule, made)
    for pooling, column in (("pooled", ["split"]), ("per_section", ["split", "sample"])):
        value = mean_over_genes(found.predictions, column)
        if expected[pooling] is None:
            assert np.isnan(value), f"{pooling} should be undefined"
        else:
            assert value == pytest.approx(expected[pooling], abs=0.002), pooling
    assert (found.scores.query("genes == 'all'")["n_genes"] == expected["genes"]).all()


def mean_over_genes(predictions: ad.AnnData, by: list[str]) -> float:
    """PCC of each gene in each part; its mean over sections, then folds, then genes."""
    rows = {}
    for place, index in predictions.obs.groupby(by, observed=True).indices.items():
        part = predictions[index]
        rows[place] = pearson(
            part.layers["observed"], part.layers["predicted"], 2 if by == ["split"] else 10
        )
    table = pd.DataFrame(rows).T  # (folds or sections, g)
    return table.groupby(level=0).mean().mean().mean()
