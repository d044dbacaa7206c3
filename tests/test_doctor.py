"""`peka doctor`: what it notices, and what it never shows."""

import importlib.metadata

import pytest

from peka_core import doctor
from peka_core.run import main


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
    assert line[0] == "note" and "scikit-learn" in line[2] and "pinned 0.0.1" in line[2] and "numpy" not in line[2]


@pytest.mark.parametrize(
    ("asked", "state", "word"),
    [(["no-such-package>=1"], "problem", "not installed"), (["numpy>=999"], "problem", "too old"), (["numpy; extra == 'test'"], "ok", "0 as pinned")],
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
    assert doctor._free_gb(tmp_path / "not" / "yet") == pytest.approx(doctor._free_gb(tmp_path), rel=0.01)
