"""`peka doctor`: what it notices, and what it never shows."""

import importlib.metadata

import pytest

from peka_core.commands import doctor, needs
from peka_core.commands.command_line import main
from peka_core.common import folders
from peka_core.runner.profile import load_profile


def test_this_machine_passes_and_tokens_are_not_shown(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.delenv("PEKA_MIRROR", raising=False)
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    assert main(["doctor"]) == 0 and not list(tmp_path.iterdir())
    said = capsys.readouterr().out
    assert "hf_very_secret" not in said and "HF_TOKEN" in said and "problem" not in said
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "nowhere"))
    assert main(["doctor"]) == 1 and str(tmp_path / "nowhere") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("no-such-package>=1", ("problem", "no-such-package")),
        ("numpy>=999", ("problem", "numpy")),
        ("numpy; extra == 'test'", ("ok", "packages")),
        ("scikit-learn", ("note", "packages")),  # another version than the pinned one
    ],
)
def test_missing_and_old_packages_are_problems(monkeypatch, tmp_path, wanted, found):
    (tmp_path / "pins.txt").write_text("SciKit_Learn==0.0.1\n")
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: [wanted])
    assert next(doctor.packages(tmp_path / "pins.txt"))[:2] == found


def test_a_folder_that_may_not_be_written_is_noticed(monkeypatch, tmp_path):
    def refused(dir, prefix):
        assert dir == tmp_path  # the nearest one that exists
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refused)
    state, name, said = doctor._disk("disk of runs", tmp_path / "runs" / "x", "problem")
    assert (state, name) == ("problem", "disk of runs") and str(tmp_path) in said


def test_a_profile_is_compared_with_this_machine(monkeypatch, tmp_path):
    profile = load_profile("smoke")
    for mirror, downloads, memory, free, expected in (
        ("", 8, 2, 20, ["ok", "ok", "ok"]),
        ("", 8, 0.9, 20, ["problem", "ok", "ok"]),
        ("", 8, 2, 10, ["ok", "problem", "problem"]),  # each fits alone, together they do not
        ("", 0, 2, 3, ["ok", "problem", "ok"]),
        (str(tmp_path), 8, 2, 10, ["ok", "ok", "ok"]),  # nothing is downloaded
    ):
        monkeypatch.setenv("PEKA_MIRROR", mirror)
        need = needs.Needs(1, 4, downloads)
        monkeypatch.setattr(needs, "needs", lambda *_, need=need: need)
        monkeypatch.setattr(doctor, "memory_gb", lambda memory=memory: memory)
        monkeypatch.setattr(doctor, "free_gb", lambda _, free=free: free)
        assert [state for state, *_ in doctor.room(profile)] == expected
