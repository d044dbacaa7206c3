"""Scores of given embeddings against values made with the authors' and HEST-Benchmark's own code (tests/fixtures/scores)."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from peka_core.cohort import open_cohort
from peka_core.encoders import load_encoder
from peka_core.evaluation import evaluate
from peka_core.files import PekaError
from peka_core.protocols import PROTOCOLS, make_tasks
from peka_core.run import main
from peka_core.scoring import score_embeddings

TASK = Path(__file__).parent / "fixtures" / "scores" / "task"
OFFICIAL = json.loads((TASK / "expected_peka_official.json").read_text())
HEST = json.loads((TASK / "expected_hest_bench.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore:.*no samples.csv")


@pytest.fixture
def task(tmp_path):
    """A copy of the task directory."""
    return Path(shutil.copytree(TASK, tmp_path / "task"))


@pytest.mark.parametrize("setting", list(OFFICIAL))
def test_peka_official_equals_the_authors_code(setting):
    switches = {name: value == "True" for name, value in (part.split("=") for part in setting.split(","))}
    scores = score_embeddings(TASK, TASK / "embeddings", "peka_official", switches | {"min_spots": 421})
    expected = {gene: value["pearson_correlation_mean"] for gene, value in OFFICIAL[setting].items() if "skipped" not in value}
    found = {gene: np.mean([split["genes"][gene] for split in scores["splits"].values()]) for gene in expected}
    assert set(scores["splits"]["0"]["genes"]) == set(expected), "genes that the authors skip are skipped"
    assert found == pytest.approx(expected, abs=1e-5)


def test_hest_bench_equals_their_code():
    scores = score_embeddings(TASK, TASK / "embeddings", "hest_bench")
    for i, split in scores["splits"].items():
        assert split["genes"] == pytest.approx(HEST[f"split{i}"]["pearson"], abs=1e-3)
        assert split["mean"] == pytest.approx(HEST[f"split{i}"]["pearson_mean"], abs=1e-3)
    assert scores["mean"] == pytest.approx(np.mean([HEST[f"split{i}"]["pearson_mean"] for i in range(3)]), abs=1e-3)
    assert scores["protocol"] == "hest_bench" and scores["scope"] == "given"


def test_the_switches_matter():
    means = [score_embeddings(TASK, TASK / "embeddings", "peka_official", switches)["mean"] for switches in (
        {}, {"mask_zeros": False}, {"inner_holdout": False}, {"alpha": 1000}, {"standardise": True})]
    assert len({round(mean, 6) for mean in means}) == 5


def test_spots_are_joined_by_barcode_and_those_without_embedding_left_out(task):
    whole = score_embeddings(task, task / "embeddings", "hest_bench")
    for path in (task / "embeddings").glob("*.h5"):
        with h5py.File(path, "r+") as file:
            order = np.random.default_rng(0).permutation(len(file["embeddings"]))
            for name in ("embeddings", "barcodes"):
                file[name][...] = file[name][:][order]
    assert score_embeddings(task, task / "embeddings", "hest_bench")["mean"] == pytest.approx(whole["mean"], abs=1e-9)
    with h5py.File(path, "r+") as file:
        for name in ("embeddings", "barcodes"):
            kept = file[name][:][:-10]
            del file[name]
            file[name] = kept
    assert score_embeddings(task, task / "embeddings", "hest_bench")["n_spots"] == whole["n_spots"] - 10


def test_the_command_prints_and_writes(task, tmp_path, capsys):
    out = tmp_path / "scores.json"
    words = ["score", str(task), "--embeddings", str(task / "embeddings"), "--protocol", "peka_official"]
    assert main([*words, "--set", "mask_zeros=false", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert set(written) >= {"protocol", "scope", "mean", "splits"} and set(written["splits"]) == set("01234")
    assert len(written["splits"]["0"]["genes"]) == 12 and written["settings"] == {"mask_zeros": False}
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
        np.testing.assert_allclose(tasks[0].targets[place], np.log1p(expected["raw_counts"]), rtol=1e-6)
    features = load_encoder("mini", device="cpu").embed(cohort.tiles()[:])
    scores = evaluate(cohort, features, "hest_bench", tasks).scores
    first = tasks[0].split.train.sum()
    assert scores["alpha_value"].iloc[0] == pytest.approx(100 / (min(256, first, 128) * 20))
