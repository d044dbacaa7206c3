import json

import numpy as np
import pandas as pd

from peka_core import stages, tables
from peka_core.files import sha256
from peka_core.protocols import PROTOCOLS


def rows(**columns) -> pd.DataFrame:
    """Two rows of a score table, frozen and bat, with some columns changed."""
    base = {"kind": ["encoder", "student"], "predictor": ["frozen", "bat"], "space": ["encoder", "projected"], "genes": "all"}
    return pd.DataFrame(base | {"alpha": "chosen", "headline": True, "protocol": "peka_paper", "mean": [0.5, 0.7]} | columns)


def test_a_score_of_a_paper_cohort_stands_beside_the_papers_value():
    table = tables.beside_published(rows(), "kidney", "h-optimus-0")
    assert table["published"].tolist() == [0.698, 0.755]
    np.testing.assert_allclose(table["minus_published"], [-0.198, -0.055])
    assert table["published_in"].str.startswith("PEKA paper Table 2").all()


def test_encoders_that_only_table_1_has_are_found_there():
    table = tables.beside_published(rows(), "lung", "ctranspath")
    assert table["published"].iloc[0] == 0.592 and np.isnan(table["published"].iloc[1])  # no PEKA of CTransPath


def test_hest_benchmark_is_compared_on_the_same_slides_alone():
    table = tables.beside_published(rows(protocol="hest_bench"), "kidney", "uni")
    assert table["published"].iloc[0] == 0.240 and np.isnan(table["published"].iloc[1])
    for cohort, encoder in (("breast", "uni"), ("kidney", "resnet50")):  # other slides; HEST's resnet50 is its third layer
        assert tables.beside_published(rows(protocol="hest_bench"), cohort, encoder)["published"].isna().all()


def test_what_cannot_be_compared_stays_empty():
    for other in (dict(protocol="strict"), dict(genes="cue"), dict(headline=False), dict(alpha="x10"), dict(kind="control")):
        assert tables.beside_published(rows(**other), "kidney", "uni")["published"].isna().all(), other
    assert tables.beside_published(rows(space="concat", kind="student"), "kidney", "uni")["published"].isna().all()
    assert tables.beside_published(rows(), "", "mini")["published"].isna().all()


def test_a_students_scores_name_the_weights_behind_them(work):
    strict = PROTOCOLS["strict"]
    table = tables.score_table(work, strict, rows=[("encoder", "frozen"), *tables.students(["bat"])])
    named = table.groupby("label")["adapters"].unique()
    assert list(named["frozen encoder"]) == [""] and len({tuple(v) for k, v in named.items() if "bat" in k}) == 1
    folders = [stages.align(work, "bat", task.split.name) for task in work.tasks(strict)]
    cards = [json.loads((folder / "card.json").read_text())["sha256"]["adapter"] for folder in folders]
    assert cards == [sha256(folder / "adapter.safetensors") for folder in folders] and len(set(cards)) == len(cards) > 1
    one = stages.adapters_of(work, "bat", strict, split=work.tasks(strict)[0].split.name)
    assert one != stages.adapters_of(work, "bat", strict) != stages.adapters_of(work, "bat", strict, scope="all")
    assert table["versions"].str.contains("torch ").all()
