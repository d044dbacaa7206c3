"""Units know the code that made them: an edit makes them anew, and other people's runs stay."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peka_core.cohort import Split
from peka_core.common import code_digest, folders
from peka_core.common.code_digest import _closure, digest_of_code
from peka_core.common.errors import PekaError
from peka_core.common.folders import PACKAGE
from peka_core.drawn import demo
from peka_core.models import encoder_files
from peka_core.protocols import PROTOCOLS
from peka_core.runner import code, inputs, stages
from peka_core.runner import run as runs
from peka_core.runner.code import STAGES, code_of
from peka_core.runner.rungs import Rung
from peka_core.runner.units import Unit

STRICT, PAPER = PROTOCOLS["strict"], PROTOCOLS["peka_paper"]
NONE = frozenset()
KL, NORM = "F.kl_div(student, teacher,", "scale = np.divide(1e4,"


def copied(tmp_path: Path, module: str, before: str, after: str) -> Path:
    """The package again, with one change."""
    package = tmp_path / f"{module}-{abs(hash(after))}" / "peka_core"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (package / f"{module}.py").read_text()
    assert before in text, "the test edits a line that is not there"
    (package / f"{module}.py").write_text(text.replace(before, after))
    return package


@pytest.mark.parametrize(
    ("module", "before", "after", "counts"),
    [
        ("losses", KL, "F.kl_div(teacher, student,", True),
        ("losses", KL, "F.kl_div(  # words\n student, teacher,", False),
        ("losses", '"""Cross entropy', '"""Other words for cross entropy', False),
        ("genes", NORM, "scale = np.divide(1e5,", True),
        ("alignment", "lower the learning rate", "choose a lower rate", False),
    ],
)
def test_an_edit_counts_and_a_rewording_does_not(tmp_path, module, before, after, counts):
    begin = frozenset(STAGES["alignment"])
    changed = digest_of_code(begin, NONE, copied(tmp_path, module, before, after))
    assert (changed != digest_of_code(begin)) == counts


def test_what_a_stage_runs_counts_and_machinery_does_not():
    trained, scored, read = (
        _closure(begin, NONE, PACKAGE)
        for begin in (STAGES["alignment"], STAGES["evaluation"], {"cohort"})
    )
    assert trained >= {"losses", "bone", "adapters", "teachers", "recipe", "encoders"}
    assert not trained & {"common.files", "runner.units", "runner.run", "figures", "head"}
    assert scored >= {"head", "evaluation", "statistics", "protocols", "controls"}
    assert read >= {"cohort", "tiles", "layout.sections"}


def test_every_unit_depends_on_who_reads_counts_and_on_who_chooses_the_inputs(monkeypatch):
    made, begins, real = [Unit(stage, "c") for stage in STAGES], [], code.digest_of_code
    record = lambda begin, aside: begins.append(begin) or real(begin, aside)
    monkeypatch.setattr(code, "digest_of_code", record)
    codes = lambda digest: (
        monkeypatch.setattr(code, "digest_of_module", digest) or [code_of(unit) for unit in made]
    )
    plain = codes(lambda name: name)
    for module in ("runner.stages", "runner.inputs"):
        edited = codes(lambda name, module=module: "edited" if name == module else name)
        assert all(one != other for one, other in zip(edited, plain, strict=True))
    assert all("cohort" in begin for begin in begins) and len(set(plain)) > 5


@pytest.mark.parametrize(
    ("field", "values"),
    [("teacher", ("pca{}", "scfoundation{}")), ("taught_by", ("teacher", "genes"))],
)
def test_who_teaches_has_a_part_and_who_does_not_has_none(field, values):
    one, other = (code_of(Unit("alignment", "c", method="bat", **{field: v})) for v in values)
    assert one != other


RUN = """
import sys
from pathlib import Path
from peka_core.common import folders
from peka_core.runner import run, stages
folders.root = lambda: Path(sys.argv[1])
small = {"patients": 4, "spots": 12, "folds": 2, "epochs": 1, "batch_size": 16}
work = run.open_run("smoke", "small", "cpu", {}, small)
print("FOUND", stages.align(work, "bat", "patients/0", needs="history.csv").name, flush=True)
"""


@pytest.mark.weekly
def test_a_run_makes_anew_what_an_edit_of_the_losses_concerns(tmp_path):
    line = KL
    packages = {
        "as it is": PACKAGE,
        "words": copied(tmp_path, "losses", line, f"{line}  # words\n"),
        "edit": copied(tmp_path, "losses", line, "F.kl_div(teacher, student,"),
    }
    names, said = {}, {}
    for title, package in packages.items():
        path = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
        there = os.environ | {"PYTHONPATH": path}
        done = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], cwd=package.parent,
                              capture_output=True, text=True, timeout=300, env=there)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        names[title], said[title] = done.stdout.split("FOUND ")[1].split()[0], done.stdout
    assert names["as it is"] == names["words"] != names["edit"]
    assert "other code" in said["edit"] and "other code" not in said["words"]
    made = tmp_path / "runs/small/units"
    assert len(list(made.glob("alignment-*"))) == 2 and len(list(made.glob("teacher-*"))) == 1


def test_a_file_that_is_edited_while_its_process_runs_does_not_count(tmp_path, monkeypatch):
    package = copied(tmp_path, "losses", "F.cross_entropy", "F.nll_loss")
    begin = frozenset({"losses"})
    started = {package / "losses.py": (PACKAGE / "losses.py").read_text()}
    monkeypatch.setattr(code_digest, "AT_START", started)
    assert digest_of_code(begin, NONE, package) == digest_of_code(begin)


def test_other_code_that_draws_is_other_tissue(monkeypatch):
    drawn, job = {"drawing": "drawing-1"}, (1, 1, 1, 1)
    before = demo._tissue_digest(drawn, job)
    monkeypatch.setattr(demo, "digest_of_code", lambda begin: "0123456789ab")
    assert demo._tissue_digest(drawn, job) != before


def test_what_the_manifest_says_of_an_encoder_is_part_of_its_name(work, monkeypatch):
    row = encoder_files.rows()["resnet50"]
    there = dataclasses.replace(work, weights={"resnet50": "w"})
    monkeypatch.setattr(runs, "weights_digest", lambda name, path=None: "a" * 64)
    plain = there.encoder_name("resnet50")
    other = dataclasses.replace(row, transform=row.transform | {"mean": [0.1, 0.2, 0.3]})
    monkeypatch.setattr(encoder_files, "rows", lambda: {"resnet50": other})
    assert plain.startswith("resnet50@aaaaaaaaaaaa") and there.encoder_name("resnet50") != plain


def test_a_changed_protocol_trains_on_its_own_training_spots(work):
    """Another seed and other folds keep the names of the splits; what aligns must be the rows."""
    changes = ({"seed": 1}, {"folds": 3})
    made = set()
    for protocol in (PAPER, *(dataclasses.replace(PAPER, name="other", **c) for c in changes)):
        unit, sees = inputs.evaluation_unit(work, "bat", protocol, "nested", ())
        made.add(unit.rows)
        for split in protocol.splits(work.cohort()):
            trained = inputs.seen_by(work, Rung("bat"), sees[split.name])
            assert not (trained & split.test).any(), f"{protocol}: test spots train"
    assert len(made) == 3


def test_an_alignment_is_named_by_its_rows_and_not_by_the_name_of_its_split(work):
    split = work.split("patients/0")
    made = lambda split: stages.align(work, "projector_only", split, needs="history.csv")
    folder = made(split)
    assert made(Split("mine/7", split.train, split.test)) == folder
    assert made(Split("patients/0", split.test, split.train)) != folder
    card, unit = (json.loads((folder / f"{name}.json").read_text()) for name in ("card", "unit"))
    assert card["rows"] == unit["unit"]["rows"]


def test_scopes_shares_and_scored_splits_are_units_of_their_own(work):
    half = Rung("bat", share=0.5)
    asked = [("bat", "nested", ()), ("bat", "all", ()), ("bat", "nested", ("spots/0",)),
             ("bat", "all", ("spots/0",)), (half, "nested", ()), ("frozen", "nested", ()),
             ("frozen", "nested", ("spots/0",))]  # fmt: skip
    ids = [inputs.evaluation_unit(work, who, PAPER, *rest)[0].id for who, *rest in asked]
    assert len(set(ids)) == len(asked)
    assert inputs.evaluation_unit(work, "frozen", PAPER, "all", ())[0].id == ids[-2]
    for name, scope, splits in (("peka_official", "nested", ()), ("strict", "", "patients/0")):
        with pytest.raises(PekaError, match=splits or name):  # these mean nothing
            stages.score(work, Rung("bat"), PROTOCOLS[name], scope, splits)


def test_a_score_carries_the_commit_of_its_unit_and_not_of_the_process(work):
    stages.score(work, "library_size", PAPER)
    files = work.folder.glob("units/evaluation-*/unit.json")
    file = next(file for file in files if "library_size" in file.read_text())
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"commit": "0ld", "device": "a slide rule"}))
    made = stages.score(work, "library_size", PAPER).made
    file.write_text(json.dumps(facts))
    assert (made["commit"], made["device"]) == ("0ld", "a slide rule")
    assert made["code"] == facts["unit"]["code"]


def test_frozen_features_and_teachers_are_taken_from_a_run_beside(work, monkeypatch):
    make_both = lambda run: (stages.features(run), stages.teacher(run, "patients/0"))
    make_both(work)
    other = dataclasses.replace(work, folder=work.folder.with_name("beside"))
    shutil.copytree(work.folder / "cohort", other.folder / "cohort")
    shutil.copy(work.folder / "cohort.json", other.folder)
    monkeypatch.setattr("peka_core.student.embed_tiles", lambda *_: pytest.fail("embedded again"))
    make_both(other)
    files = sorted(other.folder.glob("units/*/unit.json"))
    assert [file.parent.name.partition("-")[0] for file in files] == ["features", "teacher"]
    for file in files:
        original = work.folder / "units" / file.parent.name / "unit.json"
        assert file.read_bytes() == original.read_bytes()


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


def with_other_code(file: Path):
    """Say in a unit.json that other code made the unit."""
    facts = json.loads(file.read_text())
    unit = facts["unit"] | {"code": "0123456789ab"}
    file.write_text(json.dumps(facts | {"unit": unit, "commit": "0ld"}))


def test_a_published_run_opens_with_its_own_code_whatever_readers_added(work, published, capsys):
    own = next(published.glob("units/*/unit.json")).parent
    added = shutil.copytree(own, published / "units" / "features-0123456789ab")
    with_other_code(added / "unit.json")
    assert reopened(work).folder == published and "other code" not in capsys.readouterr().out


def test_a_published_run_of_other_code_stays_as_it_is_and_another_goes_on(work, published, capsys):
    with_other_code(next(published.glob("units/evaluation-*/unit.json")))
    state = lambda: {p: p.stat().st_mtime_ns for p in published.rglob("*") if p.is_file()}
    before, opened = state(), reopened(work)
    said = capsys.readouterr().out
    assert opened.folder.name == "small-own" and len(said.splitlines()) == 1 and "0ld" in said
    stages.score(opened, "frozen", STRICT)
    assert state() == before


@pytest.mark.parametrize("fails", [False, True])
def test_a_cohort_of_other_code_is_built_again_or_stays(work, published, monkeypatch, fails):
    claim, samples = published / "cohort.json", published / "cohort" / "samples.csv"
    (published / runs.PUBLISHED).unlink()
    claim.write_text(json.dumps({"code": "0123456789ab"}))
    before, drawn, opened = samples.read_bytes(), samples.stat().st_mtime_ns, reopened(work)
    if fails:
        offline = lambda path, **options: (
            path.mkdir() or (_ for _ in ()).throw(PekaError("offline"))
        )
        monkeypatch.setattr(demo, "build", offline)
        with pytest.raises(PekaError, match="offline"):
            opened.cohort()
        assert samples.read_bytes() == before
    else:
        assert opened.cohort().digest == work.cohort().digest
        assert samples.stat().st_mtime_ns != drawn
    assert (json.loads(claim.read_text())["code"] == "0123456789ab") == fails


def test_files_that_no_source_built_are_never_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    mine = tmp_path / "runs/small/cohort/notes-of-mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    small = {"patients": 4, "spots": 12, "folds": 2}
    with pytest.raises(PekaError, match="cohort"):
        runs.open_run("smoke", "small", "cpu", {}, small).cohort()
    assert mine.read_text() == "mine"
