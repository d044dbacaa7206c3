"""Copies of the chapters for Colab and Kaggle: two cells prepare the machine, then the chapter.

    python scripts/hosted.py DIR --repo https://github.com/OWNER/NAME            writes the copies
    python scripts/hosted.py DIR --repo https://github.com/OWNER/NAME --check    1 if one is stale

They hold the address of a public repository, which this one cannot know. So they are not
committed: whoever publishes the repository makes them (`.github/workflows/book.yml` does).
"""

import argparse
import copy
import sys
from pathlib import Path

import nbformat

from peka_core.commands.notebooks import CHAPTERS

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TEXT = """**This is a copy for Colab and Kaggle.** The next cell gets the code and installs what is
missing; that takes about three minutes. The chapter itself then takes the minutes that it names
below, on two CPU cores. No GPU and no account are needed. Nothing that you change here is kept
after the session ends, unless you save a copy."""
CODE = """# Run this cell first (about three minutes)
import os, pathlib, re, subprocess, sys, tomllib
if not pathlib.Path("peka/notebooks").exists():
    subprocess.run(["git", "clone", "-q", "--depth", "1", "{repo}", "peka"], check=True)
os.chdir("peka/notebooks")
sys.path.insert(0, os.path.abspath(".."))
needs = tomllib.loads(pathlib.Path("../pyproject.toml").read_text())["project"]["dependencies"]
hosts = ("jupyterlab", "ipykernel", "ipywidgets", "papermill")  # the host has its own Jupyter
needs = [need for need in needs if re.match(r"[\\w-]+", need)[0] not in hosts]
pip = [sys.executable, "-m", "pip", "install", "-q", *needs]
subprocess.run(pip, check=True)"""


def hosted(book: nbformat.NotebookNode, repo: str) -> nbformat.NotebookNode:
    """The chapter behind two cells, its other cells unchanged."""
    made = copy.deepcopy(book)
    first = nbformat.v4.new_markdown_cell(TEXT, id="hosted-text")
    second = nbformat.v4.new_code_cell(CODE.replace("{repo}", repo), id="hosted-code")
    made.cells = [first, second, *made.cells]
    return made


def main() -> int:
    """Write the copies, or compare them; returns 1 if one is absent or stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repo", required=True, help="address that `git clone` can read")
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked, stale = parser.parse_args(), []
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name in CHAPTERS:
        book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        text, path = (
            nbformat.writes(hosted(book, asked.repo)) + "\n",
            asked.folder / f"{name}.ipynb",
        )
        if not asked.check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path))
    if stale:
        print(f"stale: {', '.join(stale)}; run scripts/hosted.py again", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
