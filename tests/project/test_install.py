"""`pip install .`: the package brings what it reads, and nothing is written into it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from peka_core.commands.notebooks import CHAPTERS
from peka_core.common import folders
from peka_core.downloads import manifest

ROOT = Path(__file__).parents[2]


def test_in_a_checkout_everything_is_the_checkouts(monkeypatch, tmp_path):
    for here in (ROOT, ROOT / "notebooks", tmp_path):  # elsewhere: the checkout of the package
        monkeypatch.chdir(here)
        assert folders.root() == ROOT and folders.results_folder() == ROOT / "results"
        assert folders.bundled("notebooks") == ROOT / "notebooks"
        assert manifest.load_manifest()["encoders"]


@pytest.mark.slow
def test_a_built_wheel_works_in_an_empty_folder(tmp_path):
    """Without network: built without isolation, installed beside this environment's packages."""
    source, here = tmp_path / "source", tmp_path / "empty"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    parts = [".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", "tests"]
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*parts))
    here.mkdir()

    def call(*words, cwd=None) -> str:
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source)
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(call(python, "-c", where).strip())
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = tmp_path.glob("*.whl")
    call(*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    shutil.rmtree(source)
    peka = python.parent / "peka"
    assert "h-optimus-0" in call(peka, "list", cwd=here)
    assert "profile: memory" in call(peka, "run", "smoke", "--plan", cwd=here)
    said = call(peka, "doctor", "smoke", cwd=here)
    assert "constraints.txt" not in said and str(here / "runs") in said  # versions were compared
    code = (
        "from peka_core.common import folders; from peka_core.studies import paper_tables\n"
        "books = sorted(p.name for p in folders.bundled('notebooks').iterdir())\n"
        "print(folders.PACKAGE, len(paper_tables.published()), *books)"
    )
    package, rows, *books = call(python, "-c", code, cwd=here).split()
    assert Path(package).is_relative_to(packages) and int(rows) > 50
    assert books == [f"{chapter}.ipynb" for chapter in CHAPTERS]
    committed = {path.name for path in (ROOT / "results").glob("*.csv")}
    assert {path.name for path in (Path(package) / "bundled/results").iterdir()} == committed
    assert list(here.iterdir()) == []
