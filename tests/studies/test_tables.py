import json

import pytest

from peka_core.common.files import sha256
from peka_core.drawn.worlds import OWN
from peka_core.protocols import PROTOCOLS
from peka_core.runner import stages
from peka_core.runner.profile import load_profile
from peka_core.studies import tables

STRICT, OFFICIAL = PROTOCOLS["strict"], PROTOCOLS["peka_official"]


@pytest.mark.parametrize("name", ["demo", "her2st", "smoke"])
def test_the_papers_method_is_scored_under_its_own_rules(name):
    profile = load_profile(name)
    entries = tables.predictors(type("work", (), {"profile": profile}), OFFICIAL)
    scored = {(rung.method, rung.space) for kind, rung in entries if kind == "student"}
    assert scored == {(method, space) for method in ("bat", "bone") for space in tables.SPACES}
    planned = set(profile.alignments(["patients/0"]))
    assert {("bat", "all", OWN), ("bone", "all", OWN), ("bat", "spots/0", OWN)} <= planned
    assert ("bone", "spots/0", OWN) not in planned


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
    names = {
        stages.adapters_of(work, "bat", STRICT),
        stages.adapters_of(work, "bat", STRICT, splits=splits[:1]),
        stages.adapters_of(work, "bat", STRICT, scope="all"),
    }
    assert len(names) == 3 and table["versions"].str.contains("torch ").all()
