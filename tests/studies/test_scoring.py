"""Scores of given embeddings against values of the authors' and HEST-Benchmark's own code."""

import json
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from damage import edit_samples, zero_middle

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


@pytest.mark.parametrize(("protocol", "switches", "named"), [
    ("hest_bensh", {}, "hest_bensh"), ("strict", {"zeros": True}, "zeros"),
    ("strict", {"folds": 3}, "folds"), ("strict", {"inner_holdout": True}, "inner_holdout"),
    ("peka_official", {"folds": 1}, "folds"), ("strict", {"min_spots": "2"}, "min_spots"),
])  # fmt: skip
def test_an_unknown_protocol_or_a_switch_without_effect_is_refused(protocol, switches, named):
    with pytest.raises(PekaError, match=named):
        score(protocol, switches)


# ---- a part is never printed like the whole ------------------------------------------------------


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
    for path in (task / "embeddings").glob("*.h5"):
        adata = ad.read_h5ad(task / "adata" / path.with_suffix(".h5ad").name)
        with h5py.File(task / "patches" / path.name) as file:
            names, coords = file["barcode"].asstr()[:, 0], file["coords"][:]
        values = np.log1p(adata[names].X[:, :6].toarray())
        write_embeddings(task, path.stem, features=values[None] if batch else values, coords=coords)


def printed_of(task, capsys, *words):
    """What `peka score` says, and what it writes as JSON."""
    folder, out = task / "embeddings", task.parent / "scores.json"
    assert main(["score", str(task), "--embeddings", str(folder), "--json", str(out), *words]) == 0
    refuse = lambda word: pytest.fail(f"{word} is no JSON")
    return capsys.readouterr().out, json.loads(out.read_text(), parse_constant=refuse)


def test_missing_embeddings_and_undefined_splits_are_printed_and_stored(drawn, capsys):
    for sample, spots in (("P2A", 5), ("P2B", 7), ("P3A", 3)):
        write_embeddings(drawn, sample, slice(spots))
    rule = ["--protocol", "strict", "--set", "mask_zeros=false"]
    out, written = printed_of(drawn, capsys, *rule)
    assert written["settings"] == {"mask_zeros": False} and f"PCC {written['mean']:.4f}" in out
    assert "75 of 96 spots" in out and "P2A 5 of 12, P2B 7 of 12, P3A 3 of 12" in out
    assert "3 of 4 splits" in out and "none in P3A" in out and "nan" not in out
    splits = written["splits"]
    assert splits["1"]["mean"] is None and splits["2"]["undefined_sections"] == ["P3A"]
    numbers = ("n_splits", "n_splits_scored", "n_spots", "n_spots_in_cohort")
    assert [written[name] for name in numbers] == [4, 3, 75, 96]
    assert written["incomplete"] == {"P2A": [5, 12], "P2B": [7, 12], "P3A": [3, 12]}


def test_copies_that_a_protocol_leaves_out_are_named(drawn, capsys):
    edit_samples(drawn, duplicate_of=["P1B", "P1A", *[""] * 6])
    assert score("strict", task=drawn)["copies"] == {"P1B": {"of": "P1A", "n_spots": 12}}
    assert score("hest_bench", task=drawn)["copies"] == {}
    assert "P1B (12 spots)" in printed_of(drawn, capsys)[0]


@pytest.mark.parametrize("batch", [False, True])
def test_features_of_trident_are_joined_by_their_coords_in_any_order(drawn, batch):
    expected = score(task=drawn)
    as_trident(drawn, batch)
    assert score(task=drawn) == expected


def holding(**datasets):
    return lambda task: write_embeddings(task, "P2A", **datasets)


def moved(folder, by):
    """TRIDENT's form, in which one place of a file is moved by this many pixels."""

    def damage(task):
        as_trident(task)
        with h5py.File(task / folder / "P2A.h5", "r+") as file:
            file["coords"][3] = file["coords"][4] + by

    return damage


def without_patches(task):
    as_trident(task)
    shutil.rmtree(task / "patches")


ZEROS, PLACES = np.zeros((12, 6)), np.zeros((12, 2))
FILE = r"embeddings/P2A\.h5"


@pytest.mark.parametrize(("damage", "named"), [
    (holding(embeddings=ZEROS[:1], barcodes=[["nobody"]]), f"{FILE}.*nobody"),
    (holding(embeddings=ZEROS), FILE), (holding(coords=PLACES), FILE),
    (holding(features=ZEROS[0], coords=PLACES), FILE),
    (moved("embeddings", 1), f"{FILE}.*coords"), (moved("patches", 0), r"patches/P2A\.h5"),
    (without_patches, r"P1A\.h5"),
    (lambda task: zero_middle(task / "embeddings/P2A.h5", "embeddings"), f"{FILE}.*`embeddings`"),
    (lambda task: zero_middle(task / "embeddings/P2A.h5", "barcodes"), f"{FILE}.*`barcodes`"),
    (lambda task: (task / "embeddings/P2A.h5").write_bytes(b"half"), FILE),
    (lambda task: (task / "embeddings/P2A.h5").unlink(), FILE),
    (lambda task: next(task.glob("var_*.json")).write_text('{"genes": ["G01", "NO"]}'), "NO"),
], ids=["an unknown barcode", "no barcodes", "no features", "no rows", "a place without a tile",
        "two tiles in one place", "no tiles", "broken embeddings", "broken barcodes", "half a file",
        "no file", "an unknown gene"])  # fmt: skip
def test_embeddings_that_cannot_be_joined_or_read_are_named(drawn, damage, named):
    damage(drawn)
    with pytest.raises(PekaError, match=named):
        score(task=drawn)
