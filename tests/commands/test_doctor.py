"""`peka doctor`: what it notices, and what it never shows."""

import errno
import importlib.metadata
from pathlib import Path

from peka_core.commands import doctor, needs
from peka_core.commands.command_line import main
from peka_core.common import folders
from peka_core.runner.profile import load_profile


def states(lines) -> dict[str, str]:
    return {name: state for state, name, _ in lines}


def test_this_machine_passes_and_tokens_are_not_shown(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.delenv("PEKA_MIRROR", raising=False)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "hf_very_secret" not in said and "HF_TOKEN" in said and "problem" not in said
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "nowhere"))
    assert main(["doctor"]) == 1 and str(tmp_path / "nowhere") in capsys.readouterr().out


def test_missing_and_old_packages_are_problems_and_other_pins_are_notes(monkeypatch, tmp_path):
    (tmp_path / "pins.txt").write_text("SciKit_Learn==0.0.1\n")
    assert [state for state, *_ in doctor.packages(tmp_path / "pins.txt")] == ["note"]
    for wanted, state, name in (
        ("no-such-package>=1", "problem", "no-such-package"),
        ("numpy>=999", "problem", "numpy"),
        ("numpy; extra == 'test'", "ok", "packages"),
    ):
        monkeypatch.setattr(importlib.metadata, "requires", lambda _, wanted=wanted: [wanted])
        assert next(doctor.packages())[:2] == (state, name)


def test_a_folder_that_may_not_be_written_is_noticed(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(folders, "root", lambda: tmp_path)
        assert states(doctor.examine())["disk of runs"] == "ok" and not list(tmp_path.iterdir())

    def refused(dir: Path, prefix: str):
        assert dir.is_dir()  # the nearest one that exists
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refused)
    found = states(doctor.examine())
    assert found["disk of runs"] == "problem" and found["disk of downloads"] == "note"


def test_a_profile_is_compared_with_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("PEKA_MIRROR", raising=False)
    profile, found = load_profile("smoke"), lambda: list(states(doctor.room(profile)).values())
    for need, memory, free, expected in (
        ((1, 4, 8), 2, 20, ["ok", "ok", "ok"]),
        ((1, 4, 8), 0.9, 20, ["problem", "ok", "ok"]),
        ((1, 4, 8), 2, 10, ["ok", "problem", "problem"]),  # each fits alone, together they do not
        ((1, 4, 0), 2, 3, ["ok", "problem", "ok"]),
    ):
        monkeypatch.setattr(needs, "needs", lambda *_, need=need: needs.Needs(*need))
        monkeypatch.setattr(doctor, "memory_gb", lambda memory=memory: memory)
        monkeypatch.setattr(doctor, "free_gb", lambda _, free=free: free)
        assert found() == expected
    monkeypatch.setattr(needs, "needs", lambda *_: needs.Needs(1, 4, 8))
    monkeypatch.setattr(doctor, "free_gb", lambda _: 10)
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path))  # nothing is downloaded
    assert found() == ["ok", "ok", "ok"]
