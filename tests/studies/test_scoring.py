"""Scores of given embeddings against values of the authors' and HEST-Benchmark's own code."""

import json
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from damage import edit_samples

from peka_core.cohort import open_cohort
from peka_core.commands.command_line import main
from peka_core.common.errors import PekaError
from peka_core.studies.scoring import score_embeddings

TASK = Path(__file__).parents[1] / "fixtures" / "scores" / "task"
OFFICIAL = json.loads((TASK / "expected_peka_official.json").read_text())
HEST = json.loads((TASK / "expected_hest_bench.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore:.*no samples.csv")


def score(*arguments, task=TASK):
    return score_embeddings(task, task / "embeddings", *arguments)


@pytest.mark.parametrize("setting", list(OFFICIAL))
def test_peka_official_equals_the_authors_code(setting):
    pairs = (part.split("=") for part in setting.split(","))
    switches = {name: value == "True" for name, value in pairs} | {"min_spots": 421}
    splits = score("peka_official", switches)["splits"].values()
    scored = {gene: v for gene, v in OFFICIAL[setting].items() if "skipped" not in v}
    expected = {gene: value["pearson_correlation_mean"] for gene, value in scored.items()}
    assert {gene for split in splits for gene in split["genes"]} == set(expected)
    means = {gene: np.mean([split["genes"][gene] for split in splits]) for gene in expected}
    assert means == pytest.approx(expected, abs=1e-5)


def test_hest_bench_equals_their_code():
    scores = score("hest_bench")
    for i, split in scores["splits"].items():
        assert split["genes"] == pytest.approx(HEST[f"split{i}"]["pearson"], abs=1e-3)
        assert split["mean"] == pytest.approx(HEST[f"split{i}"]["pearson_mean"], abs=1e-3)
    expected = np.mean([HEST[f"split{i}"]["pearson_mean"] for i in range(3)])
    assert scores["mean"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("rule", ["zeros", "folds", "inner_holdout"])
def test_a_switch_without_effect_is_refused(rule):
    with pytest.raises(PekaError, match=rule):
        score("strict", {rule: 3})


@pytest.fixture
def drawn(tiny_cohort, tmp_path, monkeypatch):
    """A task of four patients with two sections of 12 spots, and embeddings that follow counts."""
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    (tiny_cohort / "embeddings").mkdir()
    for section in open_cohort(tiny_cohort).sections:
        write_embeddings(tiny_cohort, section.sample)
    return tiny_cohort


def write_embeddings(task, sample, spots=slice(None), **datasets):
    """`embeddings` and `barcodes` of some spots, or other data sets."""
    adata = ad.read_h5ad(task / "adata" / f"{sample}.h5ad")[spots]
    barcodes = np.array(list(adata.obs_names), dtype=object).reshape(-1, 1)
    values = np.log1p(adata.X[:, :6].toarray())
    with h5py.File(task / "embeddings" / f"{sample}.h5", "w") as file:
        for name, data in (datasets or {"embeddings": values, "barcodes": barcodes}).items():
            file[name] = data


def as_trident(task, batch=False):
    """Embeddings as `features` and `coords` in the order of the patches files, another one."""
    for path in (task / "patches").glob("*.h5"):
        with h5py.File(path) as file:
            names, coords = file["barcode"].asstr()[:, 0], file["coords"][:]
        adata = ad.read_h5ad(task / f"adata/{path.stem}.h5ad")
        values = np.log1p(adata[names].X[:, :6].toarray())
        write_embeddings(task, path.stem, features=values[None] if batch else values, coords=coords)


def test_missing_embeddings_and_undefined_splits_are_printed_and_stored(drawn, capsys):
    for sample, spots in (("P2A", 5), ("P2B", 7), ("P3A", 3)):
        write_embeddings(drawn, sample, slice(spots))
    out = drawn.parent / "scores.json"
    words = ["score", str(drawn), "--embeddings", str(drawn / "embeddings"), "--json", str(out)]
    assert main([*words, "--protocol", "strict", "--set", "mask_zeros=false"]) == 0
    said, written = capsys.readouterr().out, json.loads(out.read_text(), parse_constant=pytest.fail)
    assert written["settings"] == {"mask_zeros": False} and f"PCC {written['mean']:.4f}" in said
    assert "75 of 96 spots" in said and "3 of 4 splits" in said and "none in P3A" in said
    splits = written["splits"]
    assert splits["1"]["mean"] is None and splits["2"]["undefined_sections"] == ["P3A"]
    numbers = ("n_splits", "n_splits_scored", "n_spots", "n_spots_in_cohort")
    assert [written[name] for name in numbers] == [4, 3, 75, 96]
    assert written["incomplete"] == {"P2A": [5, 12], "P2B": [7, 12], "P3A": [3, 12]}


def test_copies_that_a_protocol_leaves_out_are_named(drawn):
    edit_samples(drawn, duplicate_of=["P1B", "P1A", *[""] * 6])
    assert score("strict", task=drawn)["copies"] == {"P1B": {"of": "P1A", "n_spots": 12}}
    assert score("hest_bench", task=drawn)["copies"] == {}


@pytest.mark.parametrize("batch", [False, True])
def test_features_of_trident_are_joined_by_their_coords_in_any_order(drawn, batch):
    expected = score(task=drawn)
    as_trident(drawn, batch)
    assert score(task=drawn) == expected


def moved(task, folder, by):
    """TRIDENT's form, in which one place of a file is moved by this many pixels."""
    as_trident(task)
    with h5py.File(task / folder / "P2A.h5", "r+") as file:
        file["coords"][3] = file["coords"][4] + by


@pytest.mark.parametrize(("damage", "named"), [
    (lambda task: write_embeddings(task, "P2A", embeddings=np.ones((1, 6)), barcodes=[["nobody"]]),
     "embeddings/P2A.h5.*nobody"),
    (lambda task: moved(task, "embeddings", 1), "embeddings/P2A.h5.*coords"),
    (lambda task: moved(task, "patches", 0), "patches/P2A.h5"),
    (lambda task: (task / "embeddings/P2A.h5").unlink(), "embeddings/P2A.h5"),
], ids=["an unknown barcode", "a place without a tile", "two tiles in one place",
        "no file"])  # fmt: skip
def test_embeddings_that_cannot_be_joined_are_named(drawn, damage, named):
    damage(drawn)
    with pytest.raises(PekaError, match=named):
        score(task=drawn)
