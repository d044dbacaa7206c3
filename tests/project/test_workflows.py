"""Workflows: a token that can only read, actions by commit, and what they are there for."""

import re
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_token_reads_alone_and_actions_are_commits(path):
    text = path.read_text()
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"} and "write" not in text
    used = re.findall(r"uses: (.*)", text)
    assert used and all(
        re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in used
    )
    assert text.count("persist-credentials: false") == text.count("actions/checkout@")


def test_numbers_are_compared_and_pinned_versions_audited():
    jobs = {
        path.stem: [
            step.get("run", "")
            for step in next(iter(yaml.safe_load(path.read_text())["jobs"].values()))["steps"]
        ]
        for path in WORKFLOWS
    }
    demo = jobs["cpu"].index("make demo")
    assert any("compare_results.py demo_=runs/mine/results" in step for step in jobs["cpu"][demo:])
    assert any(step.startswith("pip-audit") and "constraints.txt" in step for step in jobs["audit"])
    pins = [
        line
        for line in (FOLDER.parents[1] / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(
        re.fullmatch(r"[\w.-]+==\S+", pin) for pin in pins
    )  # pip-audit reads them as they stand
