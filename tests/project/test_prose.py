"""Every score in README and chapters is the value of one cell of a table (scripts/cite.py)."""

import re
from pathlib import Path

import cite
import pandas as pd
import pytest
import results_page

ROOT = Path(__file__).parents[2]
ENTRIES = cite.entries_of()
FILES = [*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "README.md", ROOT / "RESULTS.md"]
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
SCORES = "mean low high pcc r2 frozen aligned balanced_accuracy sd total values validation_total"
COUNTS = "n sections patients slides copies training_spots trainable"
COLUMNS = {*SCORES.split(), *COUNTS.split(), "whole arrays", "% of encoder", "all - nested, n"}


def altered(score: re.Match) -> list[str]:
    """A score with the other sign, and moved by half a hundredth or one unit of its last digit."""
    sign, digits = re.fullmatch(r"([+−-]?)(.*)", score[0]).groups()
    decimals = len(digits.partition(".")[2])
    moved = [float(digits) + step * max(0.005, 10.0**-decimals) for step in (-1, 1)]
    zero = "0" if digits.startswith(".") else ""
    texts = [f"{value:.{decimals}f}".removeprefix(zero) for value in moved if value > 0]
    return [("−" if sign in ("", "+") else "+") + digits, *(sign + text for text in texts)]


@pytest.mark.parametrize("name", NAMES)
def test_every_score_is_its_cells_value_and_flipped_or_shifted_ones_are_noticed(name):
    parts, entries, missed, tried = cite.parts_of(ROOT / name), ENTRIES.get(name, {}), [], 0
    assert cite.complaints_of(parts, entries) == []
    for piece, cells in entries.items():
        text = next(found[0] for part in parts for found in cite.pattern_of(piece).finditer(part))
        assert cite.complaints_of([text], {piece: cells}) == []
        for score in cite.scores_of(text):
            for other in altered(score):
                changed = text[: score.start()] + other + text[score.end() :]
                missed += [] if cite.complaints_of([changed], {piece: cells}) else [changed]
            tried += 1
    assert tried == len(cite.scores_of("\n".join(parts))) and missed == []


ROW = {"step": "strict"}
CELL = [{"demo_steps | frozen": ROW}]
SAID = f"frozen {cite.as_written('.437', cite.values_of(CELL[0])[0])}"


@pytest.mark.parametrize(("text", "entries", "complaints"), [
    (SAID, {"frozen {}": CELL}, 0), (f"{SAID}, and .437", {"frozen {}": CELL}, 1),
    ("", {"frozen {}": CELL}, 1), (f"{SAID} and {SAID}", {"frozen {}": CELL}, 3),
    (SAID, {"frozen {}": CELL, "{}": CELL}, 1), (SAID, {"frozen {}": CELL * 2}, 2),
    (SAID, {"frozen {}": [{"demo_steps | frozen": {"step": "no such"}}]}, 2),
])  # fmt: skip
def test_a_score_without_one_cell_or_an_entry_without_one_score_is_noticed(
    text, entries, complaints
):
    assert len(cite.complaints_of([text], entries)) == complaints


def test_constants_have_a_reason_and_what_counts_as_a_score():
    assert set(ENTRIES) <= set(NAMES)
    values = [cells for entries in ENTRIES.values() for cells in entries.values()]
    keys = re.findall(r"'([^']* \| [^']*)': {", repr(values))  # no p value stands for a score
    assert {column for key in keys for column in key.split(" | ")[1:]} <= COLUMNS
    constants = [why for why in values if isinstance(why, str)]
    assert len(constants) <= 10 and all(len(why.split()) > 2 for why in constants)
    text = (
        "bat +.031 (+.024 to 0.038), `0.003`, $0.25$, 0.9 M, .55 µm, version 1.24, 5.25, "
        "[x](a/.123) at .88 nats, ends at .125.\n## Exercises\n.77, p < .05 but r > .31, 1.2.34"
    )
    found = [score[0] for score in cite.scores_of(text)]
    assert found == ["+.031", "+.024", "0.038", ".88", ".125", ".77", ".05", ".31"]


def test_a_selector_finds_one_row_by_names_and_numbers():
    row = {"curve": "epochs", "value": "4", "space": "encoder", "genes": "all"}
    curves = pd.read_csv(ROOT / "results/ladder_curves.csv", dtype={"value": str})
    (found,) = curves[(curves[list(row)] == pd.Series(row)).all(axis=1)].to_dict("records")
    assert cite.values_of({"ladder_curves | mean | n": row}) == [found["mean"], found["n"]]
    assert cite.values_of({"minus ladder_curves | mean": row}) == [-found["mean"]]
    with pytest.raises(ValueError):
        cite.values_of({"ladder_curves | mean": {"curve": "epochs"}})


def test_the_tables_of_results_are_those_of_the_files_and_a_changed_cell_is_noticed(tmp_path):
    text = results_page.PAGE.read_text(encoding="utf-8")
    assert results_page.page(text) == text
    (tmp_path / "results").mkdir()
    for path in (ROOT / "results").glob("*.csv"):
        (tmp_path / "results" / path.name).write_bytes(path.read_bytes())
    table = pd.read_csv(tmp_path / "results/her2st_summary.csv")
    table.loc[0, "mean"] += 0.1
    table.to_csv(tmp_path / "results/her2st_summary.csv", index=False)
    assert results_page.page(text, tmp_path) != text
