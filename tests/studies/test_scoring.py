"""Scores of given embeddings against values made with the authors' and HEST-Benchmark's own code (tests/fixtures/scores)."""

import json
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from test_cohort import damage

from peka_core.cohort import open_cohort
from peka_core.commands.command_line import main
from peka_core.encoders import load_encoder
from peka_core.errors import PekaError
from peka_core.evaluation import evaluate
from peka_core.protocols import PROTOCOLS, make_tasks
from peka_core.studies.scoring import score_embeddings

TASK = Path(__file__).parents[1] / "fixtures" / "scores" / "task"
OFFICIAL = json.loads((TASK / "expected_peka_official.json").read_text())
HEST = json.loads((TASK / "expected_hest_bench.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore:.*no samples.csv")


@pytest.fixture
def task(tmp_path):
    """A copy of the task directory."""
    return Path(shutil.copytree(TASK, tmp_path / "task"))


@pytest.mark.parametrize("setting", list(OFFICIAL))
def test_peka_official_equals_the_authors_code(setting):
    switches = {
        name: value == "True" for name, value in (part.split("=") for part in setting.split(","))
    }
    scores = score_embeddings(
        TASK, TASK / "embeddings", "peka_official", switches | {"min_spots": 421}
    )
    expected = {
        gene: value["pearson_correlation_mean"]
        for gene, value in OFFICIAL[setting].items()
        if "skipped" not in value
    }
    found = {
        gene: np.mean([split["genes"][gene] for split in scores["splits"].values()])
        for gene in expected
    }
    assert set(scores["splits"]["0"]["genes"]) == set(expected), (
        "genes that the authors skip are skipped"
    )
    assert found == pytest.approx(expected, abs=1e-5)


def test_hest_bench_equals_their_code():
    scores = score_embeddings(TASK, TASK / "embeddings", "hest_bench")
    for i, split in scores["splits"].items():
        assert split["genes"] == pytest.approx(HEST[f"split{i}"]["pearson"], abs=1e-3)
        assert split["mean"] == pytest.approx(HEST[f"split{i}"]["pearson_mean"], abs=1e-3)
    assert scores["mean"] == pytest.approx(
        np.mean([HEST[f"split{i}"]["pearson_mean"] for i in range(3)]), abs=1e-3
    )
    assert scores["protocol"] == "hest_bench" and scores["scope"] == "given"


def test_the_switches_matter():
    means = [
        score_embeddings(TASK, TASK / "embeddings", "peka_official", switches)["mean"]
        for switches in (
            {},
            {"mask_zeros": False},
            {"inner_holdout": False},
            {"alpha": 1000},
            {"standardise": True},
        )
    ]
    assert len({round(mean, 6) for mean in means}) == 5


def test_spots_are_joined_by_barcode_and_those_without_embedding_left_out(task):
    whole = score_embeddings(task, task / "embeddings", "hest_bench")
    for path in (task / "embeddings").glob("*.h5"):
        with h5py.File(path, "r+") as file:
            order = np.random.default_rng(0).permutation(len(file["embeddings"]))
            for name in ("embeddings", "barcodes"):
                file[name][...] = file[name][:][order]
    assert score_embeddings(task, task / "embeddings", "hest_bench")["mean"] == pytest.approx(
        whole["mean"], abs=1e-9
    )
    with h5py.File(path, "r+") as file:
        for name in ("embeddings", "barcodes"):
            kept = file[name][:][:-10]
            del file[name]
            file[name] = kept
    assert (
        score_embeddings(task, task / "embeddings", "hest_bench")["n_spots"]
        == whole["n_spots"] - 10
    )


def test_the_command_prints_and_writes(task, tmp_path, capsys):
    out = tmp_path / "scores.json"
    words = [
        "score",
        str(task),
        "--embeddings",
        str(task / "embeddings"),
        "--protocol",
        "peka_official",
    ]
    assert main([*words, "--set", "mask_zeros=false", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert set(written) >= {"protocol", "scope", "mean", "splits"} and set(
        written["splits"]
    ) == set("01234")
    assert len(written["splits"]["0"]["genes"]) == 12 and written["settings"] == {
        "mask_zeros": False
    }
    assert f"PCC {written['mean']:.4f}" in capsys.readouterr().out


def test_strict_scores_foreign_embeddings_too():
    scores = score_embeddings(TASK, TASK / "embeddings", "strict")
    assert 0.3 < scores["mean"] < 0.7 and len(scores["splits"]) == 3


def test_bad_input_names_the_file_and_the_next_step(task):
    embeddings = task / "embeddings"
    with pytest.raises(PekaError, match="hest_bensh.*there are"):
        score_embeddings(task, embeddings, "hest_bensh")
    with pytest.raises(PekaError, match="zeros: unknown; a protocol has mask_zeros"):
        score_embeddings(task, embeddings, "strict", {"zeros": True})
    with h5py.File(embeddings / "S1.h5", "r+") as file:
        file["barcodes"][0, 0] = b"nobody"
    with pytest.raises(PekaError, match="S1.h5: 1 of .* no counts .*nobody"):
        score_embeddings(task, embeddings, "hest_bench")
    (embeddings / "S1.h5").unlink()
    with pytest.raises(PekaError, match="S1.h5: missing"):
        score_embeddings(task, embeddings, "hest_bench")
    (task / "var_12genes.json").write_text('{"genes": ["GENE26", "NOSUCH"]}')
    with pytest.raises(PekaError, match="NOSUCH"):
        make_tasks(open_cohort(task), PROTOCOLS["hest_bench"])


@pytest.mark.filterwarnings("ignore")
def test_a_directory_of_hest_itself_runs_with_mini(hest_files):
    """Written by HEST's own code (older tile layout): rows, genes and targets as theirs; an encoder's score ends."""
    golden = json.loads((hest_files / "golden/bench_FIXTASK.json").read_text())
    cohort = open_cohort(hest_files / "bench/FIXTASK")
    tasks = make_tasks(cohort, PROTOCOLS["hest_bench"])
    assert tasks[0].genes == golden["genes"] and len(tasks) == 2
    for sample, expected in golden["samples"].items():
        rows = [f"{sample}:{barcode}" for barcode in expected["barcodes_in_h5_order"]]
        place = cohort.obs.index.get_indexer(rows)
        assert (place >= 0).all() and (cohort.obs["sample"] == sample).sum() == len(rows)
        np.testing.assert_allclose(
            tasks[0].targets[place], np.log1p(expected["raw_counts"]), rtol=1e-6
        )
    features = load_encoder("mini", device="cpu").embed(cohort.tiles()[:])
    scores = evaluate(cohort, features, "hest_bench", tasks).scores
    first = tasks[0].split.train.sum()
    assert scores["alpha_value"].iloc[0] == pytest.approx(100 / (min(256, first, 128) * 20))


# ---- a part is never printed like the whole --------------------------------------------------------------------------


@pytest.fixture
def drawn(tiny_cohort, tmp_path, monkeypatch):
    """A task of four patients with two sections of 12 spots, and embeddings of each that follow the counts."""
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    for section in open_cohort(tiny_cohort).sections:
        write_embeddings(tiny_cohort, section.sample)
    return tiny_cohort


def write_embeddings(task, sample, spots=slice(None), **datasets):
    """`embeddings` and `barcodes` of some spots, or other data sets."""
    adata = ad.read_h5ad(task / "adata" / f"{sample}.h5ad")[spots]
    barcodes = np.array(list(adata.obs_names), dtype=object).reshape(-1, 1)
    (task / "emb").mkdir(exist_ok=True)
    with h5py.File(task / "emb" / f"{sample}.h5", "w") as file:
        for name, values in (
            datasets or {"embeddings": np.log1p(adata.X[:, :6].toarray()), "barcodes": barcodes}
        ).items():
            file.create_dataset(
                name, data=values, dtype=h5py.string_dtype() if name == "barcodes" else None
            )


def run(task, *words):
    return main(["score", str(task), "--embeddings", str(task / "emb"), *words])


def test_a_whole_score_says_nothing_of_parts(drawn, capsys):
    assert run(drawn) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 5 and not any(
        word in out for word in ("have an embedding", "a score;", "copy", "none in")
    )


def test_missing_embeddings_and_undefined_splits_are_said_and_stored(drawn, tmp_path, capsys):
    for sample, spots in (("P2A", 5), ("P2B", 7), ("P3A", 3)):
        write_embeddings(drawn, sample, slice(spots))
    assert run(drawn, "--json", str(tmp_path / "o.json")) == 0
    out = capsys.readouterr().out
    assert "75 of 96 spots have an embedding (P2A 5 of 12, P2B 7 of 12, P3A 3 of 12)" in out
    assert "3 of 4 splits have a score" in out and "none in P3A" in out and "nan" not in out
    written = json.loads(
        (tmp_path / "o.json").read_text(),
        parse_constant=lambda word: pytest.fail(f"{word} is no JSON"),
    )
    assert written["splits"]["1"]["mean"] is None and written["splits"]["2"][
        "undefined_sections"
    ] == ["P3A"]
    assert (
        written["n_splits"],
        written["n_splits_scored"],
        written["n_spots"],
        written["n_spots_in_cohort"],
    ) == (4, 3, 75, 96)
    assert written["incomplete"] == {"P2A": [5, 12], "P2B": [7, 12], "P3A": [3, 12]}


def test_copies_that_a_protocol_leaves_out_are_said(drawn, capsys):
    table = pd.read_csv(drawn / "samples.csv", dtype=str).assign(
        duplicate_of=["P1B", "P1A", *[""] * 6]
    )
    table.to_csv(drawn / "samples.csv", index=False)
    scores = score_embeddings(drawn, drawn / "emb")
    assert scores["copies"] == {"P1B": {"of": "P1A", "n_spots": 12}}
    assert score_embeddings(drawn, drawn / "emb", "hest_bench")["copies"] == {}
    assert (
        run(drawn) == 0
        and "P1B (12 spots) is a copy of P1A and is left out" in capsys.readouterr().out
    )


# ---- files as TRIDENT writes them, and files that fail ---------------------------------------------------------------


def as_trident(task, batch=False):
    """Rewrite the embeddings as `features` and `coords` in the order of the patches files, which is another one."""
    for path in (task / "emb").glob("*.h5"):
        adata = ad.read_h5ad(task / "adata" / f"{path.stem}.h5ad")
        with h5py.File(task / "patches" / path.name) as file:
            names, coords = file["barcode"].asstr()[:, 0], file["coords"][:]
        values = np.log1p(adata[names].X[:, :6].toarray())
        write_embeddings(task, path.stem, features=values[None] if batch else values, coords=coords)


@pytest.mark.parametrize("batch", [False, True])
def test_features_of_trident_are_joined_by_their_coords(drawn, batch):
    expected = score_embeddings(drawn, drawn / "emb")
    as_trident(drawn, batch)
    assert score_embeddings(drawn, drawn / "emb") == expected


def test_coords_that_do_not_say_whose_tile_it_is_are_refused(drawn):
    as_trident(drawn)
    with h5py.File(drawn / "emb" / "P2A.h5", "r+") as file:
        file["coords"][3] += 1
    with pytest.raises(PekaError, match="P2A.h5: 1 of 12 coords"):
        score_embeddings(drawn, drawn / "emb")
    with h5py.File(drawn / "patches" / "P2A.h5", "r+") as file:
        file["coords"][3] = file["coords"][4]
    with pytest.raises(PekaError, match="patches/P2A.h5"):
        score_embeddings(drawn, drawn / "emb")
    shutil.rmtree(drawn / "patches")
    with pytest.raises(PekaError, match="P1A.h5.*patches/"):
        score_embeddings(drawn, drawn / "emb")


@pytest.mark.parametrize(
    "datasets",
    [
        {"embeddings": np.zeros((12, 6))},
        {"coords": np.zeros((12, 2))},
        {"features": np.zeros(6), "coords": np.zeros((12, 2))},
    ],
)
def test_embeddings_without_rows_or_names_are_refused(drawn, datasets):
    write_embeddings(drawn, "P2A", **datasets)
    with pytest.raises(PekaError, match="P2A.h5"):
        score_embeddings(drawn, drawn / "emb")


@pytest.mark.parametrize("name", ["embeddings", "barcodes"])
def test_damaged_embeddings_are_named_and_never_to_be_deleted(drawn, name):
    damage(drawn / "emb" / "P2A.h5", name)
    with pytest.raises(PekaError, match=f"emb/P2A.h5.*`{name}`") as caught:
        score_embeddings(drawn, drawn / "emb")
    (drawn / "emb" / "P2A.h5").write_bytes(b"half")
    with pytest.raises(PekaError, match="emb/P2A.h5") as broken:
        score_embeddings(drawn, drawn / "emb")
    assert "elete" not in str(caught.value) + str(broken.value)
