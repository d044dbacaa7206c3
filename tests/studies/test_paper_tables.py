"""Scores beside those of the paper, and which weights are behind a score."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from peka_core.common import folders
from peka_core.common.errors import PekaError
from peka_core.common.files import sha256
from peka_core.protocols import PROTOCOLS
from peka_core.recipe import RECIPES
from peka_core.runner import stages
from peka_core.runner.profile import load_profile
from peka_core.studies import paper_tables, tables
from peka_core.studies.paper_tables import beside_published

STRICT, OFFICIAL = PROTOCOLS["strict"], PROTOCOLS["peka_official"]


def rows(**columns) -> pd.DataFrame:
    """Two rows of a score table, frozen and bat, with some columns changed."""
    base = {
        "kind": ["encoder", "student"], "predictor": ["frozen", "bat"],
        "space": ["encoder", "projected"], "genes": "all", "alpha": "chosen", "headline": True,
        "protocol": "peka_paper", "mean": [0.5, 0.7], "encoder": "h-optimus-0@1",
        "method": ["none", "PEKA"], "recipe": "as_written", "batch_size": 32, "scope": "all",
        "split": paper_tables.ALL_SPLITS,
    }  # fmt: skip
    return pd.DataFrame(base | columns)


AUTHORS = "peka_official_authors_list"
NOTHING = [np.nan, np.nan]


@pytest.mark.parametrize(("columns", "cohort", "expected"), [
    ({}, "kidney", [0.698, 0.755]), ({"protocol": AUTHORS}, "kidney", [0.698, 0.755]),
    ({}, "", NOTHING), ({"protocol": "peka_official_min_12"}, "kidney", NOTHING),
    ({"encoder": "ctranspath@3"}, "lung", [0.592, np.nan]),  # only Table 1 has it
    ({"encoder": "uni@1a", "protocol": "hest_bench"}, "kidney", [0.240, np.nan]),
    ({"encoder": "uni@1a", "protocol": "hest_bench"}, "breast", NOTHING),  # other slides
    *((changed, "kidney", NOTHING) for changed in (
        {"scope": "nested", "kind": "student"}, {"space": "concat", "kind": "student"},
        {"split": "spots/0"}, {"method": ""}, {"protocol": "strict"}, {"genes": "cue"},
        {"headline": False}, {"alpha": "x10"}, {"kind": "control"},
    )),
])  # fmt: skip
def test_a_score_stands_beside_the_published_value_of_the_same_thing(columns, cohort, expected):
    table = beside_published(rows(**columns), cohort)
    np.testing.assert_array_equal(table["published"], expected)
    np.testing.assert_allclose(table["minus_published"], table["mean"] - expected)
    assert list(table["published_in"] == "") == list(np.isnan(expected))


def test_the_authors_list_is_scored_where_the_mirror_has_it(work, tmp_path, monkeypatch):
    """The small run as if its cohort were HEST-1k's breast."""
    path = tmp_path / "hest/top_50_genes_Visium_Homo_sapien_Breast_Cancer.json"
    cohort = work.cohort()
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path))
    profile = dataclasses.replace(work.profile, source="hest", source_options={"cohort": "breast"})
    run = dataclasses.replace(work, profile=profile)
    monkeypatch.setattr(type(run), "cohort", lambda *_, **__: cohort)
    path.parent.mkdir()
    listed = lambda text: path.write_text(text) and paper_tables.with_authors_list(run, OFFICIAL)
    for other in (run, work):
        assert paper_tables.with_authors_list(other, OFFICIAL)[0] is None  # there is no list
    assert listed('{"genes": ["NOSUCH"]}')[0] is None
    with pytest.raises(PekaError, match=path.name):
        listed('{"genes": "G1"}')
    names = tuple(cohort.sections[0].genes[:4])
    protocol, sentence = listed(json.dumps({"genes": [*names, "NOSUCH"]}))
    assert (protocol.name, protocol.genes_from) == (AUTHORS, names) and path.name in sentence
    small = dataclasses.replace(protocol, min_spots=5)
    table = tables.score_table(run, small, entries=[("encoder", "frozen")])
    assert set(table["protocol"]) == {AUTHORS}
    other = dataclasses.replace(small, genes_from=names[:2])  # another list, so another unit
    for rules in (small, other):
        assert set(stages.score(run, "frozen", rules).genes["gene"]) <= set(rules.genes_from)


def finished(name, cohort, **columns):
    """A finished run whose cohort is one of the paper's, or none of them."""
    table = beside_published(rows(**columns).assign(paper_cohort=cohort), cohort)
    tables.save_table(table, folders.root() / "runs" / name / "results", "scores")


def test_finished_runs_fill_the_papers_cells_and_the_rest_stays_blank(tmp_path, monkeypatch):
    """Of several runs of a cell the first is taken, and all are named."""
    (tmp_path / "results").mkdir()
    tables.save_table(paper_tables.published(), tmp_path / "results", "published")
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    three = {"predictor": ["frozen", "bat", "slide_one_hot"], "mean": [0.5, 0.7, 0.6]}
    kinds = {"kind": ["encoder", "student", "control"], "method": ["none", "PEKA", "none"]}
    finished("mine", "kidney", **three, **kinds, space=["encoder", "projected", "encoder"])
    for name, cohort, pcc in (("b", "lung", 0.3), ("a", "lung", 0.1), ("c", "liver", 0.2)):
        finished(name, cohort, encoder="uni@2", mean=[0.0, pcc], batch_size=16)
    finished("demo", "", mean=0.9)
    beside = paper_tables.beside_paper()
    cells = beside.set_index(["table", "cohort", "encoder", "method"])["ours"]
    assert np.isnan(cells["Table 1", "lung", "PEKA", "PEKA"])  # UNI's .774 is H-optimus-0's too
    assert cells["Table 1", "liver", "PEKA", "PEKA"] == 0.2
    cell = beside[beside["ours"] == cells["Table 2", "lung", "uni", "PEKA"]].iloc[0]
    assert (cell["ours"], cell["run"]) == (0.1, "a")
    assert "a, b" in cell["note"] and "batch 16" in cell["note"]
    run = beside[beside["ours"].notna() & (beside["cohort"] == "kidney")]
    assert run.set_index(["table", "encoder", "method"])["ours"].to_dict() == {
        ("Table 1", "h-optimus-0", "none"): 0.5, ("Table 1", "PEKA", "PEKA"): 0.7,
        ("Table 2", "h-optimus-0", "none"): 0.5, ("Table 2", "h-optimus-0", "PEKA"): 0.7,
    }  # fmt: skip
    assert set(run["control"]) == {0.6} and set(run["run"]) == {"mine"}
    form = paper_tables.paper_form(beside, "Table 2")
    assert form.loc[("h-optimus-0", "PEKA"), "kidney"] == "0.755 | 0.700 (0.600)"
    assert form.loc[("uni", "lora"), "liver"].startswith("0.626 | gated")


def test_only_the_papers_own_experiment_counts(work, tmp_path):
    assert paper_tables.paper_cohort(work) == ""
    hest, as_run = load_profile("hest-lung"), load_profile("hest-lung-as-run")
    checkpoint = tmp_path / "models.ckpt"
    checkpoint.write_bytes(b"other weights")
    options = lambda **changes: {"teacher_options": hest.teacher_options | changes}
    recipe = lambda **changes: {"recipe": dataclasses.replace(hest.recipe, **changes)}
    source = lambda **changes: {"source_options": {"cohort": "lung"} | changes}
    for changes, expected in (
        ({}, "lung"), ({"source_options": {}}, "breast"), ({"recipe": as_run.recipe}, "lung"),
        (recipe(batch_size=16), "lung"), ({"teacher_options": as_run.teacher_options}, "lung"),
        (source(index="mine.csv"), ""), (source(leave_out=["TENX1"]), ""), ({"teacher": "pca"}, ""),
        (recipe(epochs=1), ""), ({"recipe": RECIPES["beyond"]}, ""),
        (options(checkpoint=str(checkpoint)), ""), (options(precision="bfloat16"), ""),
    ):  # fmt: skip
        run = dataclasses.replace(work, profile=dataclasses.replace(hest, **changes))
        assert paper_tables.paper_cohort(run) == expected, changes


@pytest.mark.parametrize(("recipe", "method"), [
    ("as_written", "bat"), ("as_run", "bone"), ("beyond", None),
])  # fmt: skip
def test_the_papers_peka_is_bat_as_written_and_bone_as_run(recipe, method):
    others = {"bat": "bat", "bone": "bone", "lora": "lora", "frozen": "none"}
    names = {name: paper_tables.method_of(name, recipe) for name in others}
    assert names == others | ({method: "PEKA"} if method else {})


def test_a_students_scores_name_the_weights_behind_them(work):
    entries = [("encoder", "frozen"), *tables.students(["bat"])]
    table = tables.score_table(work, STRICT, entries=entries)
    frozen = table["label"] == "frozen encoder"
    assert set(table["adapters"][frozen]) == {""} and table["adapters"][~frozen].nunique() == 1
    splits = [task.split.name for task in work.tasks(STRICT)]
    folders = [stages.align(work, "bat", split) for split in splits]
    cards = [json.loads((folder / "card.json").read_text())["sha256"] for folder in folders]
    weights = [sha256(folder / "adapter.safetensors") for folder in folders]
    assert [card["adapter"] for card in cards] == weights and len(set(weights)) == len(splits) > 1
    parts = {}, {"splits": splits[:1]}, {"scope": "all"}
    names = {stages.adapters_of(work, "bat", STRICT, **part) for part in parts}
    assert len(names) == 3 and table["versions"].str.contains("torch ").all()
