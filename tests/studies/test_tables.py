import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from peka_core.drawn.worlds import OWN
from peka_core.errors import PekaError
from peka_core.files import sha256
from peka_core.models import scfoundation
from peka_core.protocols import PROTOCOLS
from peka_core.runner import stages
from peka_core.runner.profile import load_profile
from peka_core.studies import tables

RIGHT = {"scope": "all", "split": tables.ALL_SPLITS}


def rows(**columns) -> pd.DataFrame:
    """Two rows of a score table, frozen and bat, with some columns changed."""
    base = {
        "kind": ["encoder", "student"],
        "predictor": ["frozen", "bat"],
        "space": ["encoder", "projected"],
        "genes": "all",
    }
    return pd.DataFrame(
        base
        | {
            "alpha": "chosen",
            "headline": True,
            "protocol": "peka_paper",
            "mean": [0.5, 0.7],
            "encoder": "uni@1a",
            "method": ["none", "PEKA"],
            "recipe": "as_written",
            "batch_size": 32,
        }
        | RIGHT
        | columns
    )


def test_a_score_of_a_paper_cohort_stands_beside_the_papers_value():
    table = tables.beside_published(rows(encoder="h-optimus-0@12"), "kidney")
    assert table["published"].tolist() == [0.698, 0.755]
    np.testing.assert_allclose(table["minus_published"], [-0.198, -0.055])
    assert table["published_in"].str.startswith("PEKA paper Table 2").all()


def test_encoders_that_only_table_1_has_are_found_there():
    table = tables.beside_published(rows(encoder="ctranspath@3"), "lung")
    assert table["published"].iloc[0] == 0.592 and np.isnan(
        table["published"].iloc[1]
    )  # no PEKA of CTransPath


def test_hest_benchmark_is_compared_on_the_same_slides_alone():
    table = tables.beside_published(rows(protocol="hest_bench"), "kidney")
    assert table["published"].iloc[0] == 0.240 and np.isnan(table["published"].iloc[1])
    for cohort, encoder in (
        ("breast", "uni"),
        ("kidney", "resnet50"),
    ):  # other slides; HEST's resnet50 is its third layer
        assert (
            tables.beside_published(rows(protocol="hest_bench", encoder=encoder), cohort)[
                "published"
            ]
            .isna()
            .all()
        )


def test_the_authors_own_list_is_compared_with_the_paper_and_other_rules_are_not():
    for protocol, expected in (
        ("peka_official", 0.698),
        ("peka_official_authors_list", 0.698),
        ("peka_official_min_12", np.nan),
    ):
        found = tables.beside_published(
            rows(encoder="h-optimus-0@12", protocol=protocol), "kidney"
        )["published"].iloc[0]
        np.testing.assert_equal(found, expected)


@pytest.fixture
def hest_work(work, tmp_path, monkeypatch):
    """The small run as if its cohort were HEST-1k's breast, and the place of the authors' list."""
    cohort = work.cohort()  # drawn before it is said to be HEST's
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path))
    (tmp_path / "hest").mkdir()
    profile = dataclasses.replace(work.profile, source="hest", source_options={"cohort": "breast"})
    run = dataclasses.replace(work, profile=profile)
    run.cohort = lambda *_, **__: cohort
    return run, tmp_path / "hest" / "top_50_genes_Visium_Homo_sapien_Breast_Cancer.json"


def test_the_authors_list_is_scored_where_the_mirror_has_it(hest_work):
    run, path = hest_work
    names = list(run.cohort().sections[0].genes[:4])
    path.write_text(json.dumps({"genes": [*names, "NOSUCH"]}))
    small = dataclasses.replace(PROTOCOLS["peka_official"], name="official", min_spots=5)
    listed, said = tables.with_authors_list(run, small)
    assert (
        (listed.name, listed.genes_from) == ("official_authors_list", tuple(names))
        and "4 of 5" in said
        and path.name in said
    )
    table = tables.score_table(run, listed, rows=[("encoder", "frozen")])
    assert set(table["protocol"]) == {"official_authors_list"} and set(
        stages.score(run, "frozen", listed).genes["gene"]
    ) <= set(names)
    other = dataclasses.replace(listed, genes_from=listed.genes_from[:2])
    assert set(stages.score(run, "frozen", other).genes["gene"]) <= set(names[:2]), (
        "another list under the same name is another unit"
    )


def test_without_the_authors_list_one_line_says_so(work, hest_work):
    run, path = hest_work
    for said in (
        tables.with_authors_list(run, PROTOCOLS["peka_official"]),
        tables.with_authors_list(work, PROTOCOLS["peka_official"]),
    ):
        assert said[0] is None and said[1] and "\n" not in said[1]
    path.write_text(json.dumps({"genes": ["NOSUCH"]}))
    assert tables.with_authors_list(run, PROTOCOLS["peka_official"])[0] is None
    for damaged in ('{"genes": "G1"}', "[]", "{", '{"genes": [1]}'):
        path.write_text(damaged)
        with pytest.raises(PekaError, match=path.name):
            tables.with_authors_list(run, PROTOCOLS["peka_official"])


def test_a_students_weights_are_named_without_making_targets(work, monkeypatch):
    monkeypatch.setattr(type(work), "tasks", lambda *_: pytest.fail("targets were made"))
    assert len(stages.adapters_of(work, "bat", PROTOCOLS["peka_official"])) == 12


def test_the_papers_method_is_scored_under_its_own_rules():
    for name in ("demo", "her2st", "smoke"):
        profile = load_profile(name)
        rows = tables.predictors(type("work", (), {"profile": profile}), PROTOCOLS["peka_official"])
        scored = {(r.method, r.space) for kind, r in rows if kind == "student"}
        assert scored == {
            (m, s) for m in ("bat", "bone") for s in ("projected", "encoder", "concat")
        }
        planned = profile.alignments(["patients/0"])
        assert {("bat", "all", OWN), ("bone", "all", OWN), ("bat", "spots/0", OWN)} <= set(
            planned
        ) and ("bone", "spots/0", OWN) not in planned


def test_what_cannot_be_compared_stays_empty():
    for other in (
        dict(scope="nested", kind="student"),
        dict(split="spots/0"),
        dict(method=""),
        dict(protocol="strict"),
        dict(genes="cue"),
        dict(headline=False),
        dict(alpha="x10"),
        dict(kind="control"),
    ):
        assert tables.beside_published(rows(**other), "kidney")["published"].isna().all(), other
    assert (
        tables.beside_published(rows(space="concat", kind="student"), "kidney")["published"]
        .isna()
        .all()
    )
    assert tables.beside_published(rows(), "")["published"].isna().all()


def test_a_students_scores_name_the_weights_behind_them(work):
    strict = PROTOCOLS["strict"]
    table = tables.score_table(
        work, strict, rows=[("encoder", "frozen"), *tables.students(["bat"])]
    )
    named = table.groupby("label")["adapters"].unique()
    assert (
        list(named["frozen encoder"]) == [""]
        and len({tuple(v) for k, v in named.items() if "bat" in k}) == 1
    )
    folders = [stages.align(work, "bat", task.split.name) for task in work.tasks(strict)]
    cards = [
        json.loads((folder / "card.json").read_text())["sha256"]["adapter"] for folder in folders
    ]
    assert (
        cards == [sha256(folder / "adapter.safetensors") for folder in folders]
        and len(set(cards)) == len(cards) > 1
    )
    one = stages.adapters_of(work, "bat", strict, splits=(work.tasks(strict)[0].split.name,))
    assert (
        one
        != stages.adapters_of(work, "bat", strict)
        != stages.adapters_of(work, "bat", strict, scope="all")
    )
    assert table["versions"].str.contains("torch ").all()


def test_a_card_of_an_earlier_version_is_told(work):
    card = stages.align(work, "bat", "all") / "card.json"
    before = card.read_text()
    card.write_text(
        json.dumps({name: value for name, value in json.loads(before).items() if name != "sha256"})
    )
    with pytest.raises(PekaError, match="card.json"):
        stages.adapters_of(work, "bat", PROTOCOLS["peka_paper"])
    card.write_text(before)


def test_finished_runs_fill_the_papers_cells_and_the_rest_stays_blank(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    tables.save_table(tables.published(), tmp_path / "results", "published")
    monkeypatch.setattr(tables.places, "root", lambda: tmp_path)
    made = pd.concat(
        [
            rows(encoder="h-optimus-0@1"),
            rows(kind="control", predictor="slide_one_hot", mean=0.6)[:1],
        ]
    )
    made = tables.beside_published(made.assign(paper_cohort="kidney"), "kidney")
    tables.save_table(made, tmp_path / "runs" / "mine" / "results", "scores")
    lung = tables.beside_published(
        rows(encoder="uni@2", mean=0.1).assign(paper_cohort="lung"), "lung"
    )  # UNI's .774 is H-optimus-0's too
    liver = tables.beside_published(
        rows(encoder="uni@2", mean=0.2).assign(paper_cohort="liver"), "liver"
    )
    tables.save_table(pd.concat([lung, liver]), tmp_path / "runs" / "a" / "results", "scores")
    tables.save_table(
        rows(mean=0.9).assign(paper_cohort=""), tmp_path / "runs" / "demo" / "results", "scores"
    )
    beside = tables.beside_paper()
    cells = beside.set_index(["table", "cohort", "encoder", "method"])["ours"]
    assert (
        np.isnan(cells["Table 1", "lung", "PEKA", "PEKA"])
        and cells["Table 1", "liver", "PEKA", "PEKA"] == 0.2
    )
    assert cells["Table 2", "lung", "uni", "PEKA"] == 0.1
    run = beside[beside["ours"].notna() & (beside["cohort"] == "kidney")].set_index(
        ["table", "encoder", "method"]
    )
    assert run["ours"].to_dict() == {
        ("Table 1", "h-optimus-0", "none"): 0.5, ("Table 1", "PEKA", "PEKA"): 0.7,
        ("Table 2", "h-optimus-0", "none"): 0.5, ("Table 2", "h-optimus-0", "PEKA"): 0.7,
    }  # fmt: skip
    assert (
        (run["control"] == 0.6).all()
        and (run["run"] == "mine").all()
        and (run["cohort"] == "kidney").all()
    )
    assert set(run["note"]) == {
        "zeros kept, as the text has it; one seed",
        "zeros kept, as the text has it; one seed; recipe as_written",
    }
    form = tables.paper_form(beside, "Table 2")
    assert form.loc[("h-optimus-0", "PEKA"), "kidney"] == "0.755 | 0.700 (0.600)"
    assert form.loc[("uni", "lora"), "liver"] == "0.626 | gated, not run"


def test_of_several_runs_of_a_cell_the_first_is_taken_and_said(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    tables.save_table(tables.published(), tmp_path / "results", "published")
    monkeypatch.setattr(tables.places, "root", lambda: tmp_path)
    for name, pcc, batch in (("b", 0.2, 16), ("a", 0.1, 16)):
        made = rows(encoder="uni@2", mean=[0.0, pcc], batch_size=batch).assign(paper_cohort="lung")
        tables.save_table(
            tables.beside_published(made, "lung"), tmp_path / "runs" / name / "results", "scores"
        )
    beside = tables.beside_paper()
    cell = beside[(beside["ours"] > 0)].iloc[0]
    assert cell["ours"] == 0.1 and cell["run"] == "a"
    assert cell["note"].endswith("recipe as_written, batch 16; the first of runs a, b")


def test_only_the_papers_own_experiment_counts(work, tmp_path):
    assert tables.paper_cohort(work) == ""
    hest, run = load_profile("hest-lung"), load_profile("hest-lung-as-run")
    other = tmp_path / "models.ckpt"
    other.write_bytes(b"other weights")
    for changed, expected in (
        ({}, "lung"), ({"source_options": {"cohort": "lung", "index": "mine.csv"}}, ""), ({"recipe": dataclasses.replace(hest.recipe, epochs=1)}, ""),
        ({"source_options": {"cohort": "lung", "leave_out": ["TENX1"]}}, ""), ({"teacher": "pca"}, ""),
        ({"recipe": dataclasses.replace(hest.recipe, batch_size=16)}, "lung"), ({"recipe": run.recipe}, "lung"),
        ({"teacher_options": hest.teacher_options | {"checkpoint": str(other)}}, ""), ({"teacher_options": hest.teacher_options | {"mode": "cell"}}, ""),
        ({"teacher_options": hest.teacher_options | {"min_genes": 5000}}, ""), ({"teacher_options": run.teacher_options}, "lung"),
        ({"teacher_options": hest.teacher_options | {"precision": "bfloat16"}}, ""), ({"source_options": {}}, "breast"),
    ):  # fmt: skip
        assert (
            tables.paper_cohort(
                dataclasses.replace(work, profile=dataclasses.replace(hest, **changed))
            )
            == expected
        ), changed


def test_a_local_copy_of_the_pinned_teacher_is_the_papers(work, tmp_path, monkeypatch):
    pinned = scfoundation.digests({})
    copy = tmp_path / "models.ckpt"
    copy.write_bytes(b"a copy")
    monkeypatch.setattr(scfoundation, "sha256_once", lambda path: pinned["checkpoint"])
    assert scfoundation.as_authors({"checkpoint": str(copy)}) and not scfoundation.as_authors(
        {"vocabulary": str(copy)}
    )


def test_the_papers_peka_is_bat_as_written_and_bone_as_run():
    said = [
        (p, r, tables._paper_method(p, r))
        for p in ("frozen", "bat", "bone", "lora")
        for r in ("as_written", "as_run")
    ]
    assert [name for *_, name in said] == [
        "none",
        "none",
        "PEKA",
        "bat",
        "bone",
        "PEKA",
        "lora",
        "lora",
    ]
