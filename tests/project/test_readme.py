"""What README, environment.yml, Makefile and CI promise exists."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from peka_core.commands.command_line import CHAPTERS, _parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_make_command_is_a_target():
    promised = set(
        re.findall(
            r"\bmake ([a-z0-9]+)\b", "\n".join(re.findall(r"`[^`]+`|```.*?```", README, re.S))
        )
    )
    assert {"demo", "test", "her2st", "lab"} <= promised
    targets = {
        name for line in re.findall(r"^([\w ./]+):", MAKEFILE, re.M) for name in line.split()
    }
    assert promised <= targets


def test_every_peka_command_is_understood():
    prose = README + "".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))
    )
    promised = re.findall(r"^(?:\.venv/bin/)?peka ([^#\n]+)", README, re.M) + re.findall(
        r"`peka ([^`#\n]+)`", prose
    )
    assert {"run demo --run mine", "run hest-kidney"} <= {
        " ".join(command.split()) for command in promised
    }
    for command in promised:
        _parser().parse_args(command.split())


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_every_link_inside_the_repository_leads_somewhere(target):
    assert target.startswith("http") or (ROOT / target).exists()


def test_every_module_named_in_the_map_exists():
    for name in re.findall(r"`((?:sources/)?\w+\.py)`", README):
        assert (ROOT / "peka_core" / name).exists(), name


def test_every_chapter_exists_and_is_in_the_map():
    for chapter in CHAPTERS:
        assert (
            ROOT / f"notebooks/{chapter}.ipynb"
        ).exists() and f"notebooks/{chapter}.ipynb" in README


def test_no_number_was_left_to_be_filled_in():
    assert re.findall(r"\{\{\w+\}\}", README) == []


def test_the_conda_environment_installs_what_make_installs():
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert next(part["pip"] for part in parts if isinstance(part, dict)) == [
        "-c constraints.txt",
        "-e .[test]",
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14" and any(
        part == "python=3.12" for part in parts
    )


def test_every_direct_dependency_is_pinned():
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert pins["torch"] == "2.14.1" and pins["torchvision"] == "0.29.1"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {re.match(r"[\w-]+", text)[0].lower().replace("_", "-") for text in wanted}
    assert names <= {name.lower().replace("_", "-") for name in pins}


def test_the_lines_for_your_tissue_run(tiny_cohort, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert "epochs=10" in code
    monkeypatch.chdir(tiny_cohort.parent)
    tiny_cohort.rename("my_cohort")
    names = {}
    exec(code.replace("epochs=10", "epochs=1"), names)
    assert len(names["history"]) == 1 and names["features"]["encoder"].shape == (96, 128)
