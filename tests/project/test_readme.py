"""What README, CONTRIBUTING, environment.yml, Makefile and the workflows promise exists."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from peka_core.commands.command_line import CHAPTERS, _parser

ROOT = Path(__file__).parents[2]
README, MAKEFILE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
PROSE = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_command_exists():
    promised = set(
        re.findall(r"\bmake ([a-z0-9]+)\b", "".join(re.findall(r"`[^`]+`|```.*?```", PROSE, re.S)))
    )
    targets = " ".join(re.findall(r"^([\w ./]+):", MAKEFILE, re.M)).split()
    assert {"demo", "test", "lint"} <= promised <= set(targets)
    chapters = (path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("0*.ipynb"))
    commands = re.findall(r"^(?:\.venv/bin/)?peka ([^#\n]+)", README, re.M)
    commands += re.findall(r"`peka ([^`#\n]+)`", README + "".join(chapters))
    assert len(commands) > 15
    for command in commands:
        _parser().parse_args(command.split())


def test_every_path_exists():
    links = re.findall(r"\]\(([^)#]+)\)", PROSE)
    names = re.findall(r"`((?:[\w.-]+/)*[\w-]+(?:/|\.py|\.yaml|\.yml|\.md))`", PROSE)
    made = {"patches/", "adata/", "splits/", "cohort/", "figures/"}  # by a user or a run
    made |= {"yours.yaml", "sources/NAME.py"}
    assert len(names) > 40
    for name in {*links, *names} - made:
        places = (ROOT, ROOT / "peka_core", ROOT / "peka_core/runner")
        assert name.startswith("http") or any((place / name).exists() for place in places), name
    assert all(f"notebooks/{chapter}.ipynb" in README for chapter in CHAPTERS)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]


def test_every_direct_dependency_is_pinned_and_conda_installs_the_same():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==\S+", pin) for pin in pins)  # pip-audit reads them
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    plain = lambda text: re.match(r"[\w.-]+", text)[0].split("==")[0].lower().replace("_", "-")
    assert {plain(text) for text in wanted} <= {plain(pin) for pin in pins}
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {"pip": ["-c constraints.txt", "-e .[test]"]} in parts


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflows_token_only_reads_and_its_actions_are_commits(path):
    text = path.read_text()
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"} and "write" not in text
    used = re.findall(r"uses: (.*)", text)
    form = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert used and all(map(form.fullmatch, used))
    assert text.count("persist-credentials: false") == text.count("actions/checkout@")


def test_the_lines_for_your_tissue_run(tiny_cohort, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert "epochs=10" in code
    monkeypatch.chdir(tiny_cohort.parent)
    tiny_cohort.rename("my_cohort")
    names = {}
    exec(code.replace("epochs=10", "epochs=1"), names)
    assert len(names["history"]) == 1 and names["features"]["encoder"].shape == (96, 128)
