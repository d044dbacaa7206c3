"""Small notebooks for tests of the commands."""

from pathlib import Path

import nbformat


def write_notebook(path: Path, *cells: str) -> Path:
    """Write a notebook whose first cell is the one with parameters."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["kernelspec"] = {"name": "python3", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(book, path)
    return path


def visible(folder: Path) -> list[str]:
    """Names in a folder without the folder of locks."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".locks")
