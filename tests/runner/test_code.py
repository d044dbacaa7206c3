"""Units know the code that made them: an edit makes them anew, and other people's runs stay."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from peka_core.cohort import Split
from peka_core.common import code_digest, folders
from peka_core.common.errors import PekaError
from peka_core.drawn import demo
from peka_core.models import encoder_files
from peka_core.protocols import PROTOCOLS
from peka_core.runner import code, inputs, stages
from peka_core.runner import run as runs
from peka_core.runner.rungs import Rung
from peka_core.runner.units import Unit

STRICT, PAPER = PROTOCOLS["strict"], PROTOCOLS["peka_paper"]
OTHER = "0123456789ab"  # a digest of other code


@pytest.fixture
def edit(monkeypatch):
    """Change a line of the package as this process started with it."""
    kept = [value for value in vars(code_digest).values() if hasattr(value, "cache_clear")]
    forget = lambda: [value.cache_clear() for value in kept]

    def change(module: str, before: str, after: str):
        path = folders.PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
        text = code_digest.AT_START[path]
        assert before in text, "the test edits a line that is not there"
        monkeypatch.setitem(code_digest.AT_START, path, text.replace(before, after))
        forget()

    yield change
    monkeypatch.undo()
    forget()


TRAINED = {"alignment", "scores of a student"}
ALL = set(code.STAGES) | TRAINED
COUNTED = ALL - {"features", "hashes"}  # of tiles alone


@pytest.mark.parametrize(
    ("module", "before", "after", "changed"),
    [
        ("losses", "F.kl_div(student, teacher,", "F.kl_div(teacher, student,", TRAINED),
        ("losses", "F.kl_div(student, teacher,", "F.kl_div(  # words\n student, teacher,", set()),
        ("alignment", "lower the learning rate", "choose a lower rate", set()),  # an error's words
        ("genes", "scale = np.divide(1e4,", "scale = np.divide(1e5,", COUNTED),
        ("drawn.painting", "import cv2", "import cv2 as painter", {"tissue"}),
        ("bone", "import torch", "import torch as t", ALL - {"hashes", "teacher", "embedding"}),
        ("head", "import numpy as np", "import numpy", {"evaluation", "scores of a student"}),
        ("common.files", "import os", "import os as o", set()),  # machinery
        ("cohort", "import numpy as np", "import numpy", ALL),  # who reads counts and tiles
        ("runner.inputs", "import numpy as np", "import numpy", ALL),  # who chooses the inputs
    ],
)
def test_an_edit_renames_what_its_code_makes_and_a_rewording_nothing(
    edit, module, before, after, changed
):
    def names():
        units = {stage: Unit(stage, "c") for stage in code.STAGES}
        units["scores of a student"] = Unit("evaluation", "c", taught_by="teacher")
        tissue = demo._tissue_digest({"drawing": "drawing-1"}, (1, 1, 1, 1))
        return {name: code.code_of(unit) for name, unit in units.items()} | {"tissue": tissue}

    plain = names()
    edit(module, before, after)
    edited = names()
    assert {name for name in plain if plain[name] != edited[name]} == changed


def test_what_the_manifest_says_of_an_encoder_is_part_of_its_name(work, monkeypatch):
    row = encoder_files.manifest_entries()["resnet50"]
    there = dataclasses.replace(work, weights={"resnet50": "w"})
    monkeypatch.setattr(runs, "weights_digest", lambda name, path=None: "a" * 64)
    plain = there.encoder_name("resnet50")
    other = dataclasses.replace(row, transform=row.transform | {"mean": [0.1, 0.2, 0.3]})
    monkeypatch.setattr(encoder_files, "manifest_entries", lambda: {"resnet50": other})
    assert plain.startswith("resnet50@aaaaaaaaaaaa") and there.encoder_name("resnet50") != plain


def test_a_changed_protocol_trains_on_its_own_training_spots(work):
    """Another seed and other folds keep the names of the splits; what aligns must be the rows."""
    made = set()
    for changes in ({}, {"name": "other", "seed": 1}, {"name": "other", "folds": 3}):
        protocol = dataclasses.replace(PAPER, **changes)
        unit, sees = inputs.evaluation_unit(work, "bat", protocol, "nested", ())
        made.add(unit.rows)
        for split in protocol.splits(work.cohort()):
            trained = inputs.seen_by(work, Rung("bat"), sees[split.name])
            assert not (trained & split.test).any(), f"{protocol}: test spots train"
    assert len(made) == 3


def test_an_alignment_is_named_by_rows_and_code_and_not_by_the_name_of_its_split(work, edit):
    split = work.split("patients/0")
    unit = lambda split: inputs.student_unit(work, "alignment", Rung("bat"), split).id
    plain, taught = unit(split), work.unit("teacher").id
    assert unit(Split("mine/7", split.train, split.test)) == plain
    assert unit(Split("patients/0", split.test, split.train)) != plain
    edit("losses", "F.kl_div(student, teacher,", "F.kl_div(teacher, student,")
    assert unit(split) != plain and work.unit("teacher").id == taught


def test_scopes_shares_and_scored_splits_are_units_of_their_own(work):
    half = Rung("bat", share=0.5)
    asked = [("bat", "nested", ()), ("bat", "all", ()), ("bat", "nested", ("spots/0",)),
             ("bat", "all", ("spots/0",)), (half, "nested", ()), ("frozen", "nested", ()),
             ("frozen", "nested", ("spots/0",))]  # fmt: skip
    ids = [inputs.evaluation_unit(work, who, PAPER, *rest)[0].id for who, *rest in asked]
    assert len(set(ids)) == len(asked)
    assert inputs.evaluation_unit(work, "frozen", PAPER, "all", ())[0].id == ids[-2]
    for protocol, scope, splits, named in (
        ("peka_official", "nested", (), "peka_official"),
        ("strict", "", "patients/0", "patients/0"),
        ("strict", "", ("patients/0", "typo"), "typo"),
    ):
        with pytest.raises(PekaError, match=named):  # these mean nothing
            stages.score(work, Rung("bat"), PROTOCOLS[protocol], scope, splits)


def change(file: Path, code: str = OTHER, **facts):
    """Say in a unit.json that other code made the unit, with these facts."""
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | facts | {"unit": found["unit"] | {"code": code}}))


@pytest.fixture
def published(work, tmp_path, monkeypatch):
    """A published run, without large files, in a checkout of its own."""
    stages.score(work, "frozen", STRICT)
    folder = shutil.copytree(work.folder, tmp_path / "runs" / "small")
    names = "\n".join(path.parent.name for path in folder.glob("units/*/unit.json"))
    (folder / runs.PUBLISHED).write_text(f"made by the runner\n{names}\n")
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    return folder


def reopened(work):
    return runs.open_run("smoke", "small", "cpu", {}, work.profile.overrides)


def test_a_score_carries_the_commit_of_its_unit_and_not_of_the_process(work, published):
    found = inputs.evaluation_unit(work, "frozen", STRICT, "", ())[0]
    file = published / "units" / found.name / "unit.json"
    change(file, found.code, commit="0ld", device="a slide rule")
    made = stages.score(dataclasses.replace(work, folder=published), "frozen", STRICT).made
    assert (made["commit"], made["device"], made["code"]) == ("0ld", "a slide rule", found.code)


def test_frozen_features_and_teachers_are_taken_from_a_run_beside(work, monkeypatch):
    make_both = lambda run: (stages.features(run), stages.teacher(run, "patients/0"))
    make_both(work)
    other = dataclasses.replace(work, folder=work.folder.with_name("beside"), opened=work.opened)
    monkeypatch.setattr("peka_core.student.embed_tiles", lambda *_: pytest.fail("embedded again"))
    make_both(other)
    files = sorted(other.folder.glob("units/*/unit.json"))
    assert [file.parent.name.partition("-")[0] for file in files] == ["features", "teacher"]
    for file in files:
        original = work.folder / "units" / file.parent.name / "unit.json"
        assert file.read_bytes() == original.read_bytes()


def test_a_published_run_of_other_code_stays_as_it_is_and_another_goes_on(work, published, capsys):
    own = next(published.glob("units/evaluation-*/unit.json"))
    change(shutil.copytree(own.parent, published / "units" / f"features-{OTHER}") / "unit.json")
    assert reopened(work).folder == published, "what readers added counts"
    assert "other code" not in capsys.readouterr().out
    change(own, commit="0ld")
    state = lambda: {p: p.stat().st_mtime_ns for p in published.rglob("*") if p.is_file()}
    before, opened = state(), reopened(work)
    said = capsys.readouterr().out
    assert opened.folder.name == "small-own" and len(said.splitlines()) == 1 and "0ld" in said
    stages.score(opened, "frozen", STRICT)
    assert state() == before


def test_a_cohort_of_other_code_stays_if_its_build_fails_or_is_built_again(
    work, published, monkeypatch
):
    claim, samples = published / "cohort.json", published / "cohort" / "samples.csv"
    (published / runs.PUBLISHED).unlink()
    claim.write_text(json.dumps({"code": OTHER}))
    before, drawn, opened = samples.read_bytes(), samples.stat().st_mtime_ns, reopened(work)

    def offline(path, **options):
        path.mkdir()
        raise PekaError("offline")

    with monkeypatch.context() as patch, pytest.raises(PekaError, match="offline"):
        patch.setattr(demo, "build", offline)
        opened.cohort()
    assert samples.read_bytes() == before and OTHER in claim.read_text()
    assert opened.cohort().digest == work.cohort().digest
    assert samples.stat().st_mtime_ns != drawn and OTHER not in claim.read_text()


def test_files_that_no_source_built_are_never_removed(work, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    mine = tmp_path / "runs/small/cohort/notes-of-mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(PekaError, match="cohort"):
        reopened(work).cohort()
    assert mine.read_text() == "mine"
