"""Chapter 6's comparison of predictions with counts, against numpy."""

from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from peka_core.studies import new_tissue

RNG = np.random.default_rng(0)
GENES = ["A", "B", "absent"]
COUNTS = RNG.poisson(3.0, (12, 4)).astype(float)
EXPECTED = pd.DataFrame(
    {"pcc": 0.3, "low": 0.2, "high": 0.4, "supported": [True, False, True],
     "mean_low_80": 0.0, "mean_high_80": 9.0}, index=GENES,
)  # fmt: skip


def test_predictions_are_compared_with_the_normalised_counts_of_the_same_spots():
    found = ad.AnnData(RNG.normal(size=(12, 3)), var=EXPECTED)
    measured = ad.AnnData(COUNTS, var=pd.DataFrame(index=["other", "B", "A", "more"]))
    table = new_tissue.compared(found, measured)
    truth = np.log1p(1e4 * COUNTS / COUNTS.sum(1, keepdims=True))
    assert list(table.index) == ["A", "B"] and table["supported"].tolist() == [True, False]
    for gene, ours, theirs in (("A", 0, 2), ("B", 1, 1)):
        r = np.corrcoef(found.X[:, ours], truth[:, theirs])[0, 1]
        assert table.loc[gene, "pcc"] == pytest.approx(r, abs=1e-5)
        assert table.loc[gene, "mean_measured"] == pytest.approx(truth[:, theirs].mean(), abs=1e-5)
        assert table.loc[gene, "mean_predicted"] == pytest.approx(found.X[:, ours].mean())


def test_each_spot_is_compared_with_the_tile_nearest_to_it():
    places = np.array([[0, 0], [100, 0], [0, 100], [100, 100.0]])
    lattice = ad.AnnData(np.array([[1.0], [2], [3], [4]]), obsm={"spatial": places})
    order = [3, 0, 2, 1]
    spots = ad.AnnData(lattice.X[order], obsm={"spatial": places[order] + 20})
    assert new_tissue.on_lattice_as_at_spots(lattice, spots).item() == pytest.approx(1)


def test_a_users_slide_comes_first_and_other_cohorts_have_no_example(capsys):
    run = lambda source: SimpleNamespace(profile=SimpleNamespace(source=source))
    assert new_tissue.example_of(run("directory"), Path("x")) is None
    mine = new_tissue.example_of(run("directory"), Path("x"), "a/b.svs")
    assert (mine.image, mine.um_per_px, mine.measured) == (Path("a/b.svs"), None, None)
    assert capsys.readouterr().out == ""
    assert new_tissue.example_of(run("demo"), Path("x"), "b.png", 0.5).um_per_px == 0.5
    assert "drawn" in capsys.readouterr().out  # the demo's model is no model of real tissue
