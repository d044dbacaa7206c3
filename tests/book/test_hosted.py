"""Copies for Colab and Kaggle, and the environment for Binder."""

import subprocess
import sys
from pathlib import Path

import hosted
import nbformat
import pytest
import yaml

from peka_core.commands.notebooks import CHAPTERS

ROOT = Path(__file__).parents[2]
REPO = "https://example.org/owner/name"


@pytest.fixture
def call(monkeypatch, tmp_path):
    def run(*words) -> int:
        monkeypatch.setattr(sys, "argv", ["hosted.py", str(tmp_path), "--repo", REPO, *words])
        return hosted.main()

    return run


def test_copies_add_two_cells_and_stale_or_absent_ones_are_noticed(call, tmp_path, capsys):
    assert call("--check") == 1 and not list(tmp_path.iterdir())
    assert call() == 0 and call("--check") == 0
    for name in CHAPTERS:
        ours = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
        theirs = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
        nbformat.validate(theirs)
        assert theirs.cells[2:] == ours.cells and REPO in theirs.cells[1].source
        assert theirs.metadata == ours.metadata
    path = tmp_path / f"{CHAPTERS[0]}.ipynb"
    path.write_text(path.read_text().replace("tile", "tiles", 1))
    assert call("--check") == 1 and path.name in capsys.readouterr().err
    path.unlink()
    assert call("--check") == 1


@pytest.mark.slow
def test_the_first_cell_gets_the_code_and_chapter_1_begins(tmp_path):
    """In an empty folder, with this checkout as the repository; pip has nothing to install."""
    book = nbformat.read(ROOT / f"notebooks/{CHAPTERS[0]}.ipynb", as_version=4)
    code = [c.source for c in hosted.hosted(book, str(ROOT)).cells if c.cell_type == "code"]
    source = "\n".join([*code[:4], "import peka_core; print(peka_core.__file__)"])
    words = [sys.executable, "-c", source]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "peka/peka_core/__init__.py")


def test_binder_has_torch_for_a_cpu_and_installs_the_rest():
    parts = yaml.safe_load((ROOT / "binder/environment.yml").read_text())["dependencies"]
    assert {"pytorch-cpu", "torchvision", "pip"} <= set(parts)
    script = ROOT / "binder/postBuild"
    assert script.stat().st_mode & 0o111 and "install" in script.read_text()
