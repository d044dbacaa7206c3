"""Reading changes nothing: chapters that are executed in a fresh clone leave what git tracks as it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READ = """
import sys, papermill
papermill.execute_notebook(sys.argv[1], sys.argv[2], kernel_name="python3", cwd="notebooks", progress_bar=False, log_output=False)
"""


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", folder, *words], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_chapters_in_a_fresh_clone_change_nothing_that_git_tracks(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    inherited = {
        name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")
    }
    for chapter in ("01_data", "05_figures"):
        words = [
            sys.executable,
            "-c",
            READ,
            f"notebooks/{chapter}.ipynb",
            str(tmp_path / f"{chapter}.ipynb"),
        ]
        done = subprocess.run(
            words,
            cwd=clone,
            env=inherited | {"PYTHONPATH": str(clone)},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert git(clone, "status", "--porcelain") == ""
