"""Units know which code made them: an edit makes them anew, a rewording does not, and other people's runs stay as they are."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peka_core import code_digest, places
from peka_core.code_digest import _closure, digest_of_code
from peka_core.cohort import Split
from peka_core.drawn import demo
from peka_core.errors import PekaError
from peka_core.models import encoder_files
from peka_core.places import PACKAGE
from peka_core.protocols import PROTOCOLS
from peka_core.runner import code, stages, units
from peka_core.runner import run as workspace
from peka_core.runner.code import STAGES, code_of
from peka_core.runner.rungs import Rung
from peka_core.runner.units import Unit

EDITS = {  # module -> (what stands there, a change that can move a number, a change of words)
    "losses": (
        "F.kl_div(student, teacher,",
        "F.kl_div(teacher, student,",
        "F.kl_div(  # the mean over the batch\n        student, teacher,",
    ),
    "genes": ("scale = np.divide(1e4,", "scale = np.divide(1e5,", "scale  =  np.divide(1e4,"),
}


def copied(tmp_path: Path, module: str, before: str, after: str) -> Path:
    """The package again, with one change."""
    package = tmp_path / f"{module}-{abs(hash(after))}" / "peka_core"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (package / f"{module}.py").read_text()
    assert before in text, "the test edits a line that is not there"
    (package / f"{module}.py").write_text(text.replace(before, after))
    return package


@pytest.mark.parametrize("module", EDITS)
def test_an_edit_changes_the_digest_and_a_rewording_does_not(tmp_path, module):
    before, edit, words = EDITS[module]
    begin = frozenset(STAGES["alignment"])
    digest = lambda after: digest_of_code(
        begin, frozenset(), copied(tmp_path, module, before, after)
    )
    assert digest(edit) != digest_of_code(begin) == digest(words)


def test_docstrings_and_words_of_errors_do_not_count(tmp_path):
    reworded = copied(
        tmp_path,
        "losses",
        '"""Cross entropy of the pseudo-labels',
        '"""Other words on the pseudo-labels',
    )
    assert digest_of_code(frozenset({"losses"}), frozenset(), reworded) == digest_of_code(
        frozenset({"losses"})
    )
    message = copied(
        tmp_path, "alignment", "the recipe weighs no loss", "there is nothing to train towards"
    )
    assert digest_of_code(frozenset({"alignment"}), frozenset(), message) == digest_of_code(
        frozenset({"alignment"})
    )


def test_what_a_stage_runs_counts_and_machinery_does_not():
    trained = _closure(STAGES["alignment"], frozenset(), PACKAGE)
    assert {"losses", "bone", "adapters", "batches", "teachers", "recipe", "encoders"} <= trained
    assert {"head", "evaluation", "statistics", "protocols", "controls"} <= _closure(
        STAGES["evaluation"], frozenset(), PACKAGE
    )
    assert not trained & {"files", "units", "workspace", "run", "figures", "tables", "head"}


def test_the_teacher_that_is_not_asked_for_has_no_part(tmp_path):
    pca, foundation = (Unit("teacher", "c", teacher=name) for name in ("pca{}", "scfoundation{}"))
    assert code_of(pca) != code_of(foundation)


def test_who_chooses_the_genes_has_a_part_where_genes_teach():
    by_teacher, by_genes = (
        Unit("alignment", "c", method="bat", taught_by=name) for name in ("teacher", "genes")
    )
    assert code_of(by_teacher) != code_of(by_genes)


RUN = """
import sys
from pathlib import Path
from peka_core import places
from peka_core.runner import run as workspace, stages
places.root = lambda: Path(sys.argv[1])
work = workspace.open_run("smoke", "small", "cpu", {}, {"patients": 4, "spots": 12, "folds": 2, "epochs": 1, "batch_size": 16})
print("FOUND", stages.align(work, "bat", "patients/0", needs="history.csv").name, stages.teacher(work, "patients/0").shape[0], flush=True)
"""


@pytest.mark.slow
def test_a_run_makes_anew_what_an_edit_of_the_losses_concerns_and_finds_it_after_a_comment(
    tmp_path,
):
    before, edit, words = EDITS["losses"]
    packages = {
        "as it is": PACKAGE,
        "words": copied(tmp_path, "losses", before, words),
        "edit": copied(tmp_path, "losses", before, edit),
    }
    names, said = {}, {}
    for title, package in packages.items():
        done = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], cwd=package.parent, capture_output=True, text=True, timeout=300,
                              env={**__import__("os").environ, "PYTHONPATH": str(package.parent)})  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        names[title], said[title] = done.stdout.split("FOUND ")[1].split()[0], done.stdout
    assert names["as it is"] == names["words"] != names["edit"]
    assert "other code" in said["edit"] and "other code" not in said["words"]
    assert len(list((tmp_path / "runs/small/units").glob("alignment-*"))) == 2
    assert len(list((tmp_path / "runs/small/units").glob("teacher-*"))) == 1, (
        "the losses have no part in the teacher"
    )


# ---- rows, not names ---------------------------------------------------------------------------------------------


def test_a_changed_protocol_trains_on_its_own_training_spots(work):
    """Another seed and other folds keep the names of the splits; what aligns must be the rows."""
    paper = PROTOCOLS["peka_paper"]
    for changed in (
        paper,
        dataclasses.replace(paper, name="seed_1", seed=1),
        dataclasses.replace(paper, name="three", folds=3),
    ):
        for split, aligned in zip(*stages._splits(work, changed, "nested", ())):
            trained = stages.seen_by(work, Rung("bat"), aligned)
            assert not (trained & split.test).any(), f"{changed.name}: test spots train"


def test_an_alignment_is_named_by_its_rows_and_not_by_the_name_of_its_split(work):
    split = work.split("patients/0")
    renamed = Split("mine/7", split.train, split.test)
    other = Split("patients/0", split.test, split.train)
    folder = stages.align(work, "projector_only", split, needs="history.csv")
    assert stages.align(work, "projector_only", renamed, needs="history.csv") == folder
    assert stages.align(work, "projector_only", other, needs="history.csv") != folder
    assert (
        json.loads((folder / "card.json").read_text())["rows"]
        == json.loads((folder / "unit.json").read_text())["unit"]["rows"]
    )


def test_nested_in_folds_of_each_genes_own_is_refused(work):
    with pytest.raises(PekaError, match="peka_official"):
        stages.score(work, Rung("bat"), PROTOCOLS["peka_official"], scope="nested")


# ---- tables and other runs ---------------------------------------------------------------------------------------


def test_a_score_carries_the_commit_of_its_unit_and_not_of_the_process(work, monkeypatch):
    stages.score(work, "library_size", PROTOCOLS["peka_paper"])
    folder = next(
        path.parent
        for path in work.folder.glob("units/evaluation-*/unit.json")
        if "library_size" in path.read_text()
    )
    facts = json.loads((folder / "unit.json").read_text())
    (folder / "unit.json").write_text(
        json.dumps(facts | {"commit": "0ld", "device": "a slide rule"})
    )
    made = stages.score(work, "library_size", PROTOCOLS["peka_paper"]).made
    assert (
        made["commit"] == "0ld"
        and made["device"] == "a slide rule"
        and made["code"] == facts["unit"]["code"]
    )
    (folder / "unit.json").write_text(json.dumps(facts))


def test_another_version_of_a_library_is_said_once(work, capsys, monkeypatch):
    units.say_once.cache_clear()
    monkeypatch.setattr(
        units, "versions", lambda: units.provenance()["packages"] | {"torch": "9.9"}
    )
    stages.features(work)
    stages.features(work)
    assert capsys.readouterr().err.count("torch") == 1


def test_frozen_features_and_teachers_are_taken_from_a_run_beside(work, monkeypatch):
    stages.features(work)
    stages.teacher(work, "patients/0")
    other = dataclasses.replace(work, folder=work.folder.with_name("beside"))
    shutil.copytree(work.folder / "cohort", other.folder / "cohort")
    shutil.copy(work.folder / "cohort.json", other.folder)
    monkeypatch.setattr("peka_core.student.embed_tiles", lambda *_: pytest.fail("embedded again"))
    stages.features(other)
    stages.teacher(other, "patients/0")
    made = {
        path.parent.name: json.loads(path.read_text())
        for path in other.folder.glob("units/*/unit.json")
    }
    assert sorted(facts["unit"]["stage"] for facts in made.values()) == ["features", "teacher"]
    assert all(
        facts == json.loads((work.folder / "units" / name / "unit.json").read_text())
        for name, facts in made.items()
    )


@pytest.fixture
def published(work, tmp_path, monkeypatch):
    """A published run, without large files, in a checkout of its own."""
    stages.score(work, "frozen", PROTOCOLS["strict"])
    folder = shutil.copytree(work.folder, tmp_path / "runs" / "small")
    names = "\n".join(path.parent.name for path in folder.glob("units/*/unit.json"))
    (folder / workspace.PUBLISHED).write_text(f"made by the runner\n{names}\n")
    monkeypatch.setattr(places, "root", lambda: tmp_path)
    return folder


def reopened(work):
    return workspace.open_run("smoke", "small", "cpu", {}, work.profile.overrides)


def test_a_published_run_opens_with_the_code_that_made_it(work, published, capsys):
    assert reopened(work).folder == published and "other code" not in capsys.readouterr().out


def test_a_published_run_of_other_code_stays_as_it_is_and_another_goes_on(work, published, capsys):
    unit = next(published.glob("units/evaluation-*/unit.json"))
    facts = json.loads(unit.read_text())
    unit.write_text(
        json.dumps(facts | {"unit": facts["unit"] | {"code": "0123456789ab"}, "commit": "0ld"})
    )
    before = {path: path.stat().st_mtime_ns for path in published.rglob("*") if path.is_file()}
    opened, said = reopened(work), capsys.readouterr().out
    assert opened.folder.name == "small-own" and len(said.splitlines()) == 1 and "0ld" in said
    stages.score(opened, "frozen", PROTOCOLS["strict"])
    assert {
        path: path.stat().st_mtime_ns for path in published.rglob("*") if path.is_file()
    } == before


def test_a_cohort_that_other_code_built_is_built_again(work, published, capsys):
    claim = published / "cohort.json"
    (published / workspace.PUBLISHED).unlink()
    claim.write_text(json.dumps({"code": "0123456789ab"}))
    opened = reopened(work)
    assert "other code" in capsys.readouterr().out
    drawn = (published / "cohort" / "samples.csv").stat().st_mtime_ns
    assert opened.cohort().digest == work.cohort().digest
    assert (published / "cohort" / "samples.csv").stat().st_mtime_ns != drawn
    assert json.loads(claim.read_text())["code"] != "0123456789ab"


# ---- what is not a module of the science, and yet can move a number -----------------------------------------------


def test_an_edit_of_what_chooses_the_inputs_of_a_stage_counts_for_every_unit(monkeypatch):
    units_of_all = [Unit(stage, "c") for stage in STAGES]
    before = [code_of(unit) for unit in units_of_all]
    monkeypatch.setattr(code, "digest_of_module", lambda name: f"another {name}")
    assert all(code_of(unit) != old for unit, old in zip(units_of_all, before))


@pytest.mark.parametrize("module", ["cohort", "tiles", "layout.sections"])
def test_every_stage_depends_on_who_reads_counts_and_tiles(module):
    assert module in _closure({"cohort"}, frozenset(), PACKAGE)


def test_a_file_that_is_edited_while_its_process_runs_does_not_count(tmp_path, monkeypatch):
    package = copied(tmp_path, "losses", "F.cross_entropy", "F.nll_loss")
    monkeypatch.setattr(
        code_digest, "AT_START", {package / "losses.py": (PACKAGE / "losses.py").read_text()}
    )
    assert digest_of_code(frozenset({"losses"}), frozenset(), package) == digest_of_code(
        frozenset({"losses"})
    )


def test_other_code_that_draws_is_other_tissue(monkeypatch):
    world, job = {"drawing": "drawing-1"}, (1, 1, 1, 1)
    before = demo._tissue_digest(world, job)
    monkeypatch.setattr(demo, "digest_of_code", lambda begin: "0123456789ab")
    assert demo._tissue_digest(world, job) != before


def test_what_the_manifest_says_of_an_encoder_is_part_of_its_name(work, monkeypatch):
    row = encoder_files.rows()["resnet50"]
    weights = {"resnet50": "w"}
    monkeypatch.setattr(workspace, "weights_digest", lambda name, path=None: "a" * 64)
    monkeypatch.setattr(encoder_files, "rows", lambda: {"resnet50": row})
    plain = dataclasses.replace(work, weights=weights).encoder_name("resnet50")
    other = dataclasses.replace(row, transform=row.transform | {"mean": [0.1, 0.2, 0.3]})
    monkeypatch.setattr(encoder_files, "rows", lambda: {"resnet50": other})
    assert (
        plain.startswith("resnet50@aaaaaaaaaaaa")
        and dataclasses.replace(work, weights=weights).encoder_name("resnet50") != plain
    )


# ---- a cohort that is built again --------------------------------------------------------------------------------


def test_files_that_no_source_built_are_never_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "root", lambda: tmp_path)
    mine = tmp_path / "runs/small/cohort/notes-of-mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(PekaError, match="cohort"):
        workspace.open_run(
            "smoke", "small", "cpu", {}, {"patients": 4, "spots": 12, "folds": 2}
        ).cohort()
    assert mine.read_text() == "mine"


def test_an_old_cohort_stays_where_the_new_one_cannot_be_built(work, published, monkeypatch):
    (published / workspace.PUBLISHED).unlink()
    (published / "cohort.json").write_text(json.dumps({"code": "0123456789ab"}))
    before = (published / "cohort" / "samples.csv").read_bytes()

    def offline(path, **options):
        path.mkdir()
        raise PekaError("no mirror")

    monkeypatch.setattr(demo, "build", offline)
    with pytest.raises(PekaError, match="no mirror"):
        reopened(work).cohort()
    assert (published / "cohort" / "samples.csv").read_bytes() == before
    assert json.loads((published / "cohort.json").read_text())["code"] == "0123456789ab"


def test_what_readers_made_in_a_published_run_sends_nobody_away(work, published):
    units_there = [path.parent.name for path in published.glob("units/*/unit.json")]
    (published / workspace.PUBLISHED).write_text("Units:\n" + "\n".join(units_there))
    own = shutil.copytree(
        published / "units" / units_there[0], published / "units" / "features-0123456789ab"
    )
    facts = json.loads((own / "unit.json").read_text())
    (own / "unit.json").write_text(
        json.dumps(facts | {"unit": facts["unit"] | {"code": "0123456789ab"}})
    )
    assert reopened(work).folder == published
