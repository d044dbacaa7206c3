"""What a chapter may not exceed, and what it must have: words, lines, figures, exercises."""

import re
from pathlib import Path

import nbformat
import pytest

from peka_core.commands.notebooks import CHAPTERS

ROOT = Path(__file__).parents[2]
WORDS, LINES, COLUMNS, BYTES = 2000, 25, 78, 300_000
FOLDERS = r"(?<![\w./~-])/(work|root|tmp|home|Users|mnt|private|var/folders)/[\w.]"
MACHINE = re.compile(FOLDERS + r"|\b[A-Z]:\\\\?Users")
FILE_NAME = re.compile(r"_images/|\.(png|svg|jpe?g|ipynb)\b", re.I)
DRAWS = re.compile(r"figures\.save\(|\bideas\.\w+\(")
EXERCISE = re.compile(r"^### Exercise (\d) · ", re.M)
OPEN = re.compile(r"^(\w+) = \.\.\.", re.M)  # what the reader fills in
SOLUTION = {
    "tags": ["solution", "hide-cell"],
    "jupyter": {"source_hidden": True, "outputs_hidden": True},
    "mystnb": {"code_prompt_show": "Solution"},
}


def read(name: str):
    """One chapter, and its code cells."""
    book = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
    return book, [cell for cell in book.cells if cell.cell_type == "code"]


def tags(cell) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def alt(cell) -> str:
    """The alternative text of a cell's figure."""
    return cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")


def pictures(cell) -> int:
    """How many pictures a cell has put out."""
    kinds = ("image/png", "image/jpeg")
    return sum(
        any(kind in out.get("data", {}) for kind in kinds) for out in cell.get("outputs", [])
    )


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_not_too_long(name):
    book, code = read(name)
    prose = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    words = len(" ".join(prose).split())
    assert words <= WORDS or name == "appendix", f"{words} words"
    for cell in code:
        lines = cell.source.splitlines()
        assert len(lines) <= LINES, cell.source
        assert [line for line in lines if len(line) > COLUMNS] == []
    assert (ROOT / f"notebooks/{name}.ipynb").stat().st_size <= BYTES


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_figure_is_alone_in_its_cell_and_said_in_words(name):
    _, code = read(name)
    drawn = [cell for cell in code if pictures(cell) or DRAWS.search(cell.source)]
    for cell in drawn:
        assert pictures(cell) <= 1 and len(DRAWS.findall(cell.source)) <= 1, cell.source
        text = alt(cell)
        assert len(text.split()) >= 6, f"no alternative text: {cell.source}"
        assert not FILE_NAME.search(text), text
    assert drawn or name == "appendix"
    assert not any(alt(cell) for cell in code if cell not in drawn)


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_output_shows_a_path_of_the_machine(name):
    _, code = read(name)
    for cell in code:
        for out in cell.outputs:
            assert not MACHINE.search(str(out)), cell.source


@pytest.mark.parametrize("name", [name for name in CHAPTERS if name != "appendix"])
def test_a_chapter_has_exercises_with_solutions_that_run(name):
    cells = read(name)[0].cells
    at = [i for i, cell in enumerate(cells) if EXERCISE.search(cell.source)]
    numbers = [EXERCISE.search(cells[i].source)[1] for i in at]
    assert 3 <= len(at) <= 5 and numbers == list("12345"[: len(at)])
    run = [i for i in at if "<details>" not in cells[i].source]  # the others are answered in words
    assert len(run) >= 2
    for i, number in ((i, EXERCISE.search(cells[i].source)[1]) for i in run):
        asked, answer = cells[i + 1 : i + 3]
        assert tags(asked) == ["exercise"] and OPEN.search(asked.source), asked.source
        found = {key: answer.metadata.get(key) for key in SOLUTION}
        found["mystnb"] = {k: v for k, v in found["mystnb"].items() if k != "image"}  # its figure
        assert found == SOLUTION, f"solution {number}: {found}"
        assert answer.source.startswith(f"# Solution {number} (click to open)\n")
        for mine in OPEN.findall(asked.source):
            assert f"{mine} is ... or" in answer.source, answer.source
    questions = [cell for cell in cells if cell.source.count("<details>") == 3]
    assert len(questions) == 1, "three questions that check reading"
    assert any("Takeaways" in cell.source for cell in cells)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_opens_with_a_question_and_takes_a_guess(name):
    book, code = read(name)
    first = book.cells[0].source
    assert first.startswith("# ") and "?" in first.splitlines()[0]
    assert len(first.split()) <= 160  # the title, and 120 words
    values = {}
    exec(code[0].source, values)
    assert values.get("guess", "missing") is None or name == "appendix"


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_published_chapter_was_executed_from_top_to_bottom(name):
    _, code = read(name)
    counts = [cell.execution_count for cell in code]
    assert None not in counts and counts == sorted(counts)
    assert not any(out.output_type == "error" for cell in code for out in cell.outputs)


def with_wrong_answers(book):
    """A copy in which every exercise has an answer that cannot be right."""
    book = nbformat.from_dict(book)
    for cell in book.cells:
        if "exercise" in tags(cell):
            cell.source = OPEN.sub(r"\1 = -99.0", cell.source)
    return book


def unnoticed(book) -> list[str]:
    """Solution cells of an executed notebook that accepted what their exercise held."""
    cells = [cell for cell in book.cells if "solution" in tags(cell)]
    failed = lambda cell: any(out.output_type == "error" for out in cell.outputs)
    return [cell.source for cell in cells if not failed(cell)]
