"""Every score in the prose of notebooks and README is the value of one cell of a table, sign included (scripts/cite.py).

A score is a decimal of two digits or more below 1, with or without sign. Code, formulas, links and numbers with a unit of
length, size or time are aside.
"""

import importlib.util
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("cite", ROOT / "scripts/cite.py")
cite = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cite)
ENTRIES = cite.entries_of()
PLACES = [*sorted((ROOT / "notebooks").glob("0*.ipynb")), ROOT / "README.md"]
SCORES = {
    "mean",
    "low",
    "high",
    "pcc",
    "r2",
    "frozen",
    "balanced_accuracy",
    "sd",
    "total",
    "validation_total",
    "values",
}
COUNTS = {"n", "sections", "patients", "slides", "whole arrays", "copies", "training_spots", "trainable", "% of encoder",
          "all - nested, n"}  # fmt: skip
NAMES = [str(path.relative_to(ROOT)) for path in PLACES]


def scores_in(text: str) -> list[str]:
    """Scores that a piece of prose names, as written."""
    return [score[0] for score in cite.scores_of(text)]


def prose_of(path: Path) -> str:
    return "\n".join(cite.parts_of(path))


@pytest.mark.parametrize("name", NAMES)
def test_every_score_in_prose_is_the_value_of_its_cell(name):
    assert cite.complaints_of(cite.parts_of(ROOT / name), ENTRIES.get(name, {})) == []


def test_every_file_with_entries_is_read():
    assert set(ENTRIES) <= set(NAMES)


def test_constants_are_few_and_have_a_reason():
    constants = {
        piece: why
        for entries in ENTRIES.values()
        for piece, why in entries.items()
        if isinstance(why, str)
    }
    assert all(len(why.split()) > 2 for why in constants.values()) and len(constants) <= 10


def columns_of(cells) -> set[str]:
    """Columns that cells of cited.yaml name, in differences and pairs too."""
    if isinstance(cells, str):
        return set()
    return {column for cell in cells for words, row in cell.items() for column in (
        columns_of(row) if words in ("difference", "paired") else words.split(" | ")[1:])}  # fmt: skip


def test_prose_names_scores_and_counts_alone():
    """No p value, no column of another meaning (beyond_depth, variance, share) stands for a score by chance."""
    assert (
        set().union(
            *(columns_of(cells) for entries in ENTRIES.values() for cells in entries.values())
        )
        <= SCORES | COUNTS
    )


def altered(score: re.Match) -> list[str]:
    """A score with the other sign, and moved by half a hundredth (one hundredth where two digits are written)."""
    sign, digits = re.fullmatch(r"([+−-]?)(.*)", score[0]).groups()
    decimals = len(digits.partition(".")[2])
    moved = [float(digits) + step * max(0.005, 10.0**-decimals) for step in (-1, 1)]
    texts = [
        f"{value:.{decimals}f}".removeprefix("0" if digits.startswith(".") else "")
        for value in moved
        if value > 0
    ]
    return [("−" if sign in ("", "+") else "+") + digits, *(sign + text for text in texts)]


@pytest.mark.parametrize("name", NAMES)
def test_flipped_signs_and_shifted_scores_are_noticed(name):
    """Each score in turn, altered in the words around it: the check must complain every time."""
    parts, missed, tried = cite.parts_of(ROOT / name), [], 0
    for piece, cells in ENTRIES.get(name, {}).items():
        text = next(found[0] for part in parts for found in cite.pattern_of(piece).finditer(part))
        assert cite.complaints_of([text], {piece: cells}) == []
        for score in cite.scores_of(text):
            changed = [
                text[: score.start()] + other + text[score.end() :] for other in altered(score)
            ]
            missed += [
                other for other in changed if not cite.complaints_of([other], {piece: cells})
            ]
            tried += 1
    assert tried == len(scores_in(prose_of(ROOT / name))) and missed == []


def test_a_score_without_an_entry_and_an_entry_without_a_score_are_noticed():
    cell = [{"demo_steps | frozen": {"step": "strict"}}]
    assert cite.complaints_of(["frozen .437"], {"frozen {}": cell}) == []
    assert len(cite.complaints_of(["frozen .437, and .437"], {"frozen {}": cell})) == 1
    assert cite.complaints_of(["frozen .437 and frozen .437"], {"frozen {}": cell})
    assert cite.complaints_of(["nothing"], {"frozen {}": cell})
    assert cite.complaints_of(["frozen .437"], {"frozen {}": cell * 2})
    assert cite.complaints_of(["frozen .437"], {"frozen {}": cell, "{}": cell})
    row = {"step": "strict"}
    for wrong in (
        {"demo_steps | frozen": {"step": "no such"}},
        {"demo_steps | no such": row},
        {"no_such | mean": {}},
    ):
        assert len(cite.complaints_of(["frozen .437"], {"frozen {}": [wrong]})) == 2


@pytest.mark.parametrize(("written", "value", "right"), [
    (".437", 0.4373, ".437"), ("0.44", 0.4373, "0.44"), ("+.031", -0.0312, "−.031"), ("-.133", -0.1, "-.100"),
    ("−.02", 0.031, "+.03"), (".05", -0.04, "−.04"), ("661", 1968.0, "1968"), ("1,968", 47185920.0, "47,185,920"),
    ("4.2", 4.158, "4.2"), (".99", 1.004, "1.00"),
])  # fmt: skip
def test_values_are_written_as_the_text_writes_them(written, value, right):
    assert cite.as_written(written, value) == right


def test_a_new_table_brings_prose_up_to_date_and_leaves_everything_else(tmp_path, capsys):
    for folder in ("results", "notebooks", "scripts", "runs/demo/units"):
        (tmp_path / folder).mkdir(parents=True)
    for path in (ROOT / "results").glob("*.csv"):
        shutil.copy(path, tmp_path / "results")
    kept = {
        name: ENTRIES[name]
        for name in ("README.md", "notebooks/03_alignment.ipynb", "notebooks/04_evaluation.ipynb")
    }
    for name in kept:
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "scripts/cited.yaml").write_text(
        cite.yaml.dump(kept, allow_unicode=True, width=1000)
    )
    table = tmp_path / "results/demo_differences.csv"
    table.write_text(
        table.read_text().replace("0.031236", "-0.041236").replace("-0.014919", "-0.024919")
    )
    assert cite.main([], tmp_path) == 1 and cite.main(["--write"], tmp_path) == 0
    assert "+.031 -> −.041: … " in capsys.readouterr().out
    old, new = (prose_of(root / "README.md").splitlines() for root in (ROOT, tmp_path))
    assert "bat −.041 (+.024 to +.038)" in "\n".join(new) and "bat +.001 (-.025 to" in "\n".join(
        new
    )
    assert sum(a != b for a, b in zip(old, new, strict=True)) == 1
    unchanged = "notebooks/03_alignment.ipynb"
    assert (tmp_path / unchanged).read_bytes() == (ROOT / unchanged).read_bytes()
    before, after = (
        (root / "notebooks/04_evaluation.ipynb").read_text().splitlines()
        for root in (ROOT, tmp_path)
    )
    assert 1 <= sum(a != b for a, b in zip(before, after, strict=True)) <= 2
    assert cite.main([], tmp_path) == 0


def test_what_counts_as_a_score():
    text = "bat +.031 (+.024 to 0.038), `0.003`, $0.25$, 0.9 M, .55 µm, version 1.24, 5.25, [x](a/.123) at .88 nats, ends at .125."
    assert scores_in(text + "\n## Exercises\n.77, p < .05 but r > .31, 1.2.34") == [
        "+.031", "+.024", "0.038", ".88", ".125", ".77", ".05", ".31"
    ]  # fmt: skip


def test_cells_that_a_number_could_stand_for_are_found(capsys):
    assert cite.main(["--find=-.133"]) == 0
    found = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("- demo_differences | mean: ") and "projector only, projected" in line
        for line in found
    )
    assert all(line.startswith("- ") for line in found)


def test_selectors_find_one_row_by_names_and_numbers():
    cell = {
        "ladder_curves | mean | n": {
            "curve": "epochs",
            "value": "4",
            "space": "encoder",
            "genes": "all",
        }
    }
    curves, forgetting = (
        pd.read_csv(ROOT / f"results/ladder_{name}.csv", dtype={"value": str})
        for name in ("curves", "forgetting")
    )
    row = curves[
        (curves["curve"] == "epochs")
        & (curves["value"] == "4")
        & (curves["space"] == "encoder")
        & (curves["genes"] == "all")
    ]
    assert cite.values_of(cell) == [row["mean"].item(), 5.0]
    assert cite.values_of({"minus ladder_forgetting | low": {"label": "full"}}) == [
        -forgetting.set_index("label").loc["full", "low"]
    ]
    with pytest.raises(ValueError):
        cite.values_of({"ladder_curves | mean": {"curve": "epochs"}})
