"""`pip install .`: the package brings what it reads, and nothing is written into it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from peka_core.common import folders
from peka_core.downloads import manifest

ROOT = Path(__file__).parents[2]


def test_in_a_checkout_everything_is_the_checkouts(monkeypatch, tmp_path):
    for here in (ROOT, ROOT / "notebooks", tmp_path):  # elsewhere: the checkout of the package
        monkeypatch.chdir(here)
        assert folders.root() == ROOT and folders.results_folder() == ROOT / "results"
        assert folders.bundled("notebooks") == ROOT / "notebooks"
        assert manifest.load_manifest()["encoders"]


def test_every_folder_with_code_is_a_package_of_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {path.parent.relative_to(ROOT) for path in (ROOT / "peka_core").rglob("__init__.py")}
    assert {".".join(path.parts) for path in found} <= set(listed)


@pytest.mark.slow
def test_a_built_wheel_works_in_an_empty_folder(tmp_path):
    """Without network: built without isolation, installed beside this environment's packages."""
    source, venv, here = tmp_path / "source", tmp_path / "venv", tmp_path / "empty"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    left_out = [".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", "tests"]
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*left_out))
    here.mkdir()

    def call(*words) -> str:
        done = subprocess.run(words, cwd=here, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip, alone = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"], "--no-deps"
    call(*pip, "wheel", alone, "--no-build-isolation", "-w", tmp_path, source)
    call(sys.executable, "-m", "venv", "--without-pip", venv)
    python, peka = venv / "bin/python", venv / "bin/peka"
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    call(*pip, "--python", python, "install", alone, "--no-index", *tmp_path.glob("*.whl"))
    shutil.rmtree(source)
    assert "profile: memory" in call(peka, "run", "smoke", "--plan")
    said = call(peka, "doctor", "smoke")
    assert "constraints.txt" not in said and str(here / "runs") in said  # versions were compared
    code = (
        "from peka_core.common import folders; from peka_core.studies import paper_tables\n"
        "print(folders.PACKAGE, len(paper_tables.published()))"
    )
    package, rows = call(python, "-c", code).split()
    assert Path(package) == packages / "peka_core" and int(rows) > 50
    kinds = {"notebooks": ("*.ipynb", "*.md"), "results": ("*.csv",)}  # chapters link the glossary
    for folder in kinds:
        committed = {path.name for kind in kinds[folder] for path in (ROOT / folder).glob(kind)}
        assert {path.name for path in (Path(package) / "bundled" / folder).iterdir()} == committed
    assert list(here.iterdir()) == []
