"""Scores in the prose of notebooks and README are scores that were measured here, or published with their source.

A score is a decimal of two or three digits below 1, with or without sign. Code, formulas, links, exercises, hyper-parameters
and numbers with a unit are aside.
"""

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
SCORES = {"mean", "low", "high", "pcc", "r2", "nested", "all", "frozen", "balanced_accuracy", "sd"}
ASIDE = (
    r"```.*?```", r"`[^`]*`", r"\$\$.*?\$\$", r"\$[^$]*\$", r"\]\([^)]*\)", r"<[^>]*>", r"## Exercises.*",
    r"\b(?:at|of|=) (?:lr|alpha|tau) ?=? ?[\d.]+",
)  # fmt: skip
NUMBER = re.compile(r"(?<![\w.,])[+−-]?0?\.\d{2,3}(?![\d.]|\s?(?:µm|px|MB|GB|M\b|s\b|min|h\b|nats|µ))")
PLACES = [*sorted((ROOT / "notebooks").glob("0*.ipynb")), ROOT / "README.md"]


def scores_in(text: str) -> list[str]:
    """Scores that a piece of prose names, as written."""
    for pattern in ASIDE:
        text = re.sub(pattern, " ", text, flags=re.S)
    return NUMBER.findall(text)


def prose_of(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


@pytest.fixture(scope="session")
def measured() -> set[str]:
    """Headline scores and differences of results/*.csv, rounded to three and to two decimals, without sign.

    The long tables (every alpha, every gene) are left out: among so many numbers almost any could be found.
    """
    found = set()
    for path in (ROOT / "results").glob("*.csv"):
        if path.stem.endswith(("_scores", "_figure_2")):
            continue
        table = pd.read_csv(path)
        for column in table.columns.intersection(list(SCORES) + [c for c in table if " - " in c]):
            for value in pd.to_numeric(table[column], errors="coerce").dropna().abs():
                found |= {f"{value:.3f}"[1:], f"{value:.2f}"[1:]} if value < 1 else set()
    return found


@pytest.mark.parametrize("path", PLACES, ids=lambda path: path.name)
def test_scores_in_prose_were_measured_or_published(path, measured):
    named = scores_in(prose_of(path))
    unknown = [score for score in named if score.lstrip("+−-").lstrip("0") not in measured]
    assert not unknown, f"{path.name} names {unknown}, in no table of results/"


def test_what_counts_as_a_score():
    text = "bat +.031 (+.024 to 0.038), `0.003`, $0.25$, 0.9 M, .55 µm, version 1.24, 5.25, [x](a/.123)\n## Exercises\n.77"
    assert scores_in(text) == ["+.031", "+.024", "0.038"]
