"""What README, the pages around it, environment.yml, Makefile and the workflows promise exists."""

import re
import tomllib
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import yaml

from peka_core import open_cohort
from peka_core.commands.command_line import _parser
from peka_core.commands.notebooks import CHAPTERS

ROOT = Path(__file__).parents[2]
README, MAKEFILE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "RESULTS.md"]
FOR_USERS = README + "".join(path.read_text(encoding="utf-8") for path in PAGES)
PROSE = FOR_USERS + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_command_exists():
    code = "".join(re.findall(r"`[^`]+`|```.*?```", PROSE, re.S))
    promised = set(re.findall(r"\bmake ([a-z0-9]+)\b", code))
    targets = " ".join(re.findall(r"^([\w ./]+):", MAKEFILE, re.M)).split()
    assert {"demo", "test", "lint"} <= promised <= set(targets)
    chapters = (path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb"))
    commands = re.findall(r"^(?:\.venv/bin/)?peka ([^#\n]+)", FOR_USERS, re.M)
    commands += re.findall(r"`peka ([^`#\n]+)`", FOR_USERS + "".join(chapters))
    assert len(commands) > 15
    for command in commands:
        _parser().parse_args(command.split())


def test_every_path_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README + (ROOT / "RESULTS.md").read_text("utf-8"))
    names = re.findall(r"`((?:[\w.-]+/)*[\w-]+(?:/|\.py|\.yaml|\.yml|\.md))`", PROSE)
    made = {"patches/", "adata/", "splits/", "cohort/", "figures/"}  # by a user or a run
    made |= {"yours.yaml", "sources/NAME.py"}
    assert len(names) > 40
    for name in {*links, *names} - made:
        places = (ROOT, ROOT / "peka_core", ROOT / "peka_core/runner")
        assert name.startswith("http") or any((place / name).exists() for place in places), name
    linked = set(re.findall(r"\]\(notebooks/(\w+)\.ipynb\)", README))
    assert {CHAPTERS[0], "06_new_tissue"} <= linked <= set(CHAPTERS)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]


def test_every_direct_dependency_is_pinned_and_conda_installs_the_same():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==\S+", pin) for pin in pins)  # pip-audit reads them
    wanted = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    plain = lambda text: re.match(r"[\w.-]+", text)[0].split("==")[0].lower().replace("_", "-")
    assert {plain(text) for text in wanted} <= {plain(pin) for pin in pins}
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {"pip": ["-c constraints.txt", "-e .[test]"]} in parts


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflows_token_only_reads_and_its_actions_are_commits(path):
    text = path.read_text()
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"} and "write" not in text
    used = re.findall(r"uses: (.*)", text)
    form = r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
    assert used and all(re.fullmatch(form, name) for name in used)
    assert text.count("persist-credentials: false") == text.count("actions/checkout@")


def test_the_map_lists_every_file_of_the_core_once():
    table = re.search(r"^\| in the figure.*?\n\n", README, re.M | re.S)[0]
    listed = re.findall(r"`(\w+\.py)`", table)
    files = [path.name for path in (ROOT / "peka_core").glob("*.py")]
    assert sorted(listed) == sorted(name for name in files if not name.startswith("__"))


def test_the_lines_for_your_tissue_run(tmp_path, monkeypatch):
    """Drawn slides become a cohort, a file becomes an encoder, and both go through the core."""
    page = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
    slides, encoder, core = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    rng, names = np.random.default_rng(0), {"slides": {}}
    for patient in "ABC":
        image = rng.integers(0, 256, (60, 60, 3), np.uint8).repeat(20, 0).repeat(20, 1)
        xy = np.stack(np.meshgrid([200, 500, 900], [300, 700]), -1).reshape(-1, 2)  # (6, 2)
        spots = ad.AnnData(rng.poisson(3.0, (6, 60)).astype(np.float32), obsm={"spatial": xy})
        names["slides"][f"S{patient}"] = patient, image, spots, 0.5
    exec(slides, names)
    cohort, side = open_cohort("my_cohort"), 224
    assert len(cohort.genes) == 50 and len(cohort.splits) == 3
    shown = names["slides"]["SA"][1][300 - side // 2 :, 200 - side // 2 :][:side, :side]
    assert np.array_equal(cohort.tiles()[0][0], shown)  # the tile is centred on its spot
    Path("my_file.py").write_text(encoder)
    assert "epochs=10" in core and 'load_encoder("mini")' in core
    core = core.replace('load_encoder("mini")', 'load_encoder("my_file.py:build")')
    exec(core.replace("epochs=10", "epochs=1"), names)
    assert len(names["history"]) == 1 and names["features"]["encoder"].shape == (18, 192)
