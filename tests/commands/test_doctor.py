"""`peka doctor`: what it notices, and what it never shows."""

import errno
import importlib.metadata

import pytest

from peka_core.commands import doctor, plan
from peka_core.commands.command_line import main
from peka_core.runner.profile import load_profile


def states(lines):
    return {name: state for state, name, _ in lines}


def test_this_machine_passes_and_tokens_are_not_shown(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.delenv("PEKA_MIRROR", raising=False)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "hf_very_secret" not in said and "HF_TOKEN" in said and "problem" not in said


def test_a_mirror_that_is_not_there_is_a_problem(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "nowhere"))
    assert main(["doctor"]) == 1
    assert "is no folder" in capsys.readouterr().out


def test_packages_are_compared_with_the_pins(tmp_path, monkeypatch):
    here = importlib.metadata.version("numpy")
    pins = tmp_path / "constraints.txt"
    pins.write_text(f"numpy=={here}\nSciKit_Learn==0.0.1\n")
    (line,) = doctor.packages(pins)
    assert (
        line[0] == "note"
        and "scikit-learn" in line[2]
        and "pinned 0.0.1" in line[2]
        and "numpy" not in line[2]
    )


@pytest.mark.parametrize(
    ("asked", "state", "word"),
    [
        (["no-such-package>=1"], "problem", "not installed"),
        (["numpy>=999"], "problem", "too old"),
        (["numpy; extra == 'test'"], "ok", "0 as pinned"),
    ],
)
def test_missing_and_old_packages_are_problems(monkeypatch, asked, state, word):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    first = next(doctor.packages())
    assert first[0] == state and word in first[2]


def test_too_little_disk_or_memory_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_free_gb", lambda folder: 0.5)
    monkeypatch.setattr(doctor, "_memory_gb", lambda: 1.0)
    found = states(doctor.examine())
    assert found["disk of runs"] == found["memory"] == "problem"


def test_free_space_of_a_folder_that_is_not_there_yet_is_its_parents(tmp_path):
    assert doctor._free_gb(tmp_path / "not" / "yet") == pytest.approx(
        doctor._free_gb(tmp_path), rel=0.01
    )


def test_a_folder_that_may_not_be_written_is_a_problem_for_runs_and_a_note_for_downloads(
    monkeypatch, tmp_path
):
    def refused(dir, prefix):
        assert dir.is_dir()  # the nearest that is there
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refused)
    found = {name: (state, text) for state, name, text in doctor.examine()}
    assert found["disk of runs"][0] == "problem" and found["disk of downloads"][0] == "note"
    assert "Permission denied" in found["disk of runs"][1]


def test_trying_to_write_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "root", lambda: tmp_path)
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    assert states(doctor.examine())["disk of runs"] == "ok" and list(tmp_path.iterdir()) == []


def test_a_profile_is_compared_with_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("PEKA_MIRROR", raising=False)
    monkeypatch.setattr(doctor, "_memory_gb", lambda: 64.0)
    monkeypatch.setattr(doctor, "_free_gb", lambda folder: 100.0)
    profile = load_profile("smoke")
    names = ["profile: memory", "profile: runs", "profile: downloads"]
    assert [line[:2] for line in doctor.room(profile)] == [("ok", name) for name in names]
    need = plan.needs(profile)
    monkeypatch.setattr(doctor, "_memory_gb", lambda: need.ram - 0.1)
    monkeypatch.setattr(doctor, "_free_gb", lambda folder: need.runs / 2)
    assert states(doctor.room(profile)) == dict(
        zip(names, ["problem", "problem", "ok"])
    )  # nothing is downloaded
    monkeypatch.setattr(plan, "needs", lambda *_: plan.Needs(1.0, 4.0, 8.0))
    monkeypatch.setattr(doctor, "_free_gb", lambda folder: 10.0)
    for shared, state in (
        (True, "problem"),
        (False, "ok"),
    ):  # each fits by itself, both together do not
        monkeypatch.setattr(doctor, "_same_disk", lambda *_: shared)
        assert states(doctor.room(profile)) == dict(zip(names, ["ok", state, state]))
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path))
    monkeypatch.setattr(doctor, "_same_disk", lambda *_: True)
    assert states(doctor.room(profile)) == dict.fromkeys(names, "ok")


def test_a_container_has_the_memory_that_it_is_allowed(monkeypatch, tmp_path):
    whole = doctor._memory_gb()
    monkeypatch.setattr(doctor, "LIMIT", tmp_path / "memory.max")
    for text, gb in (("1073741824\n", 1.0), ("max\n", whole), (str(2**60), None)):
        (tmp_path / "memory.max").write_text(text)
        assert doctor._memory_gb() == gb or (gb is None and doctor._memory_gb() >= whole)
