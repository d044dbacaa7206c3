"""Check that every result in README and chapters equals its cell of a table, or renew it.

    python scripts/cite.py                # complaints; exit code 1 where there are any
    python scripts/cite.py --write        # first give every number its cell's value
    python scripts/cite.py --find=-.133   # cells that a number could stand for

`scripts/cited.yaml` says which cell. For each file it lists pieces of text, with `{}` in the place
of each number. A piece must occur exactly once in its file; line breaks do not matter. For each
`{}` it gives a cell in one of these forms:

    table | column: {column: value, ...}       one column of the row with these values
    table | mean | low | high: {...}           several columns of that row
    minus table | column: {...}                the value with the other sign
    count table: "pandas query"                the number of rows that the query finds
    difference: [cell, cell]                   the first minus the second
    paired: [cell, cell]                       mean, low and high of the differences between two
                                               cells that list values by patient or cohort

A piece without `{}` holds constants, with the reason why they are not results. The text decides
about decimals, sign and leading zero.
"""

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd
import yaml

from peka_core.statistics import t_interval

ROOT = Path(__file__).parents[1]
NAMES = (
    "table",
    "cohort",
    "method",
    "protocol",
    "world",
    "scheme",
    "scope",
    "pooling",
    "zeros",
    "alpha",
    "split",
    "genes",
    "label",
    "rung",
    "predictor",
    "space",
    "training",
    "step",
    "curve",
    "value",
    "a",
    "difference",
    "component",
    "minus b",
    "against",
)
ASIDE = (
    r"<!-- tables -->.*?<!-- end of tables -->",  # written from results/ by results_page.py
    r"```.*?```",
    r"`[^`]*`",
    r"\$\$.*?\$\$",
    r"\$[^$\n]*\$",
    r"\]\([^)\n]*\)",
    r"</?[A-Za-z][^>\n]*>",
)
SCORE = re.compile(r"(?<![\w.,])[+−-]?0?\.\d{2,}(?!\d|\.\d|\s?(?:µm|px|MB|GB|M\b|s\b|min\b|h\b))")
ANY_NUMBER = r"(?<![\w.,])([+−-]?(?:\d{1,3}(?:,\d{3})+|\d*\.?\d+))(?!\d|[.,]\d)"


class Citation(NamedTuple):
    """One number of a text: as `written`, and as its cell has it (`right`; None for a constant)."""

    piece: str
    part: int
    span: tuple[int, int]
    written: str
    right: str | None


def parts_of(path: Path) -> list[str]:
    """The prose of a file: the markdown cells of a notebook, or the whole text."""
    if path.suffix != ".ipynb":
        return [path.read_text(encoding="utf-8")]
    return [
        cell.source
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
    ]


def scores_of(text: str) -> list[re.Match]:
    """Numbers that look like scores: below 1, with two decimals or more, and not in code."""
    for pattern in ASIDE:
        text = re.sub(pattern, lambda found: re.sub(r"[^\n]", " ", found[0]), text, flags=re.S)
    return list(SCORE.finditer(text))


@cache
def table(root: Path, name: str) -> pd.DataFrame:
    """A table of results/ as text. `demo_histories` has the last epoch of each alignment."""
    if name != "demo_histories":
        return pd.read_csv(root / "results" / f"{name}.csv", dtype=str, keep_default_na=False)
    worlds = table(root, "demo_scores").drop_duplicates("cohort").set_index("cohort")["world"]
    rows = []
    for path in sorted((root / "runs/demo/units").glob("alignment-*/history.csv")):
        unit = json.loads((path.parent / "unit.json").read_text())["unit"]
        last = pd.read_csv(path, dtype=str, keep_default_na=False).iloc[-1]
        names = {key: unit[key] for key in ("method", "split", "taught_by")}
        rows.append({**last, **names, "world": worlds.get(unit["cohort"][:12], "")})
    return pd.DataFrame(rows)


def same(column: pd.Series, wanted: str) -> pd.Series:
    """Which rows hold a value: the same text, or the same number."""
    try:
        return (column == wanted) | (pd.to_numeric(column, errors="coerce") == float(wanted))
    except ValueError:
        return column == wanted


def values_of(cell: dict, root: Path = ROOT) -> list[float]:
    """The numbers that one entry of cited.yaml stands for.

    Raises:
        ValueError: the selector does not name exactly one row, or a column is missing.
    """
    ((words, row),) = cell.items()
    if words == "difference":
        (first,), (second,) = (values_of(part, root) for part in row)
        return [first - second]
    if words == "paired":
        first, second = (replicates(root, part) for part in row)
        return [float(value) for value in t_interval((first - second).to_numpy())]
    verb, _, rest = words.partition(" ")
    if verb == "minus":
        return [-value for value in values_of({rest: row}, root)]
    if verb == "count":
        return [float(len(pd.read_csv(root / "results" / f"{rest}.csv").query(row)))]
    name, *columns = words.split(" | ")
    return [float(text or "nan") for text in texts_of(root, name, columns, row)]


def texts_of(root: Path, name: str, columns: list[str], row: dict) -> list[str]:
    """The cells of the one row of a table that a selector names."""
    rows = table(root, name)
    missing = [column for column in [*columns, *row] if column not in rows]
    if missing:
        raise ValueError(f"{name} has no column {missing[0]}")
    for key, wanted in row.items():
        rows = rows[same(rows[key], wanted)]
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows of {name} are {row}")
    return rows.iloc[0][columns].tolist()


def replicates(root: Path, cell: dict) -> pd.Series:
    """Read "1001:0.012 1002:…" as one value for each patient or cohort."""
    ((words, row),) = cell.items()
    name, column = words.split(" | ")
    (text,) = texts_of(root, name, [column], row)
    return pd.Series(
        {key: float(value) for key, value in (pair.split(":") for pair in text.split())}
    )


def as_written(written: str, value: float) -> str:
    """A value with the decimals, the sign and the leading zero of a number in prose."""
    sign, digits = re.fullmatch(r"([+−-]?)(.*)", written).groups()
    number = f"{abs(value):{',' if ',' in digits else ''}.{len(digits.partition('.')[2])}f}"
    number = number.removeprefix("0") if digits.startswith(".") else number
    minus = sign if sign in ("−", "-") else "−"
    return (minus if value < 0 else "+" if sign else "") + number


@cache
def pattern_of(piece: str) -> re.Pattern:
    """A piece of prose as a pattern: any white space for white space, a number for `{}`."""
    words = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in piece.split("{}")]
    return re.compile(ANY_NUMBER.join(words))


def citations(
    parts: list[str], entries: dict, root: Path = ROOT
) -> tuple[list[Citation], list[str]]:
    """What the entries of one file find in its parts, and what is wrong with the entries."""
    found, complaints = [], []
    for piece, cells in entries.items():
        places = [
            (number, match)
            for number, part in enumerate(parts)
            for match in pattern_of(piece).finditer(part)
        ]
        if len(places) != 1:
            complaints.append(f"{len(places)} places read “{piece}”, not one")
            continue
        ((part, match),) = places
        if isinstance(cells, str):
            inside = [
                s
                for s in scores_of(parts[part])
                if match.start() <= s.start() and s.end() <= match.end()
            ]
            found += [Citation(piece, part, score.span(), score[0], None) for score in inside]
            complaints += [] if inside else [f"“{piece}” holds no number"]
            continue
        try:
            values = [value for cell in cells for value in values_of(cell, root)]
        except (ValueError, OSError) as error:
            complaints.append(f"“{piece}”: {error}")
            continue
        if len(values) != match.re.groups:
            complaints.append(f"“{piece}” has {match.re.groups} numbers and {len(values)} cells")
            continue
        found += [
            Citation(piece, part, match.span(i), match[i], as_written(match[i], value))
            for i, value in enumerate(values, 1)
        ]
    return found, complaints


def complaints_of(parts: list[str], entries: dict, root: Path = ROOT) -> list[str]:
    """What is wrong with the numbers of one file: another value, no cell, or two cells."""
    found, complaints = citations(parts, entries, root)
    wrong = [cited for cited in found if cited.right not in (None, cited.written)]
    complaints += [
        f"“{cited.piece}”: {cited.written}, and the cell says {cited.right}" for cited in wrong
    ]
    spans = [(cited.part, *cited.span) for cited in found]
    for number, part in enumerate(parts):
        for score in scores_of(part):
            times = sum(
                where == number and start <= score.start() < end for where, start, end in spans
            )
            if times != 1:
                around = " ".join(part[max(0, score.start() - 60) : score.end() + 20].split())
                complaints.append(f"{score[0]} in “{around}” stands for {times} cells, not for one")
    return complaints


def refreshed(parts: list[str], entries: dict, root: Path = ROOT) -> tuple[list[str], list[str]]:
    """Put the values of the cells into the parts of a file; a line for each number that changed."""
    parts, lines = list(parts), []
    for cited in sorted(
        citations(parts, entries, root)[0], key=lambda cited: (cited.part, cited.span), reverse=True
    ):
        if cited.right not in (None, cited.written):
            text, (start, end) = parts[cited.part], cited.span
            around = " ".join(text[max(0, start - 80) : end + 40].split())
            lines.insert(0, f"{cited.written} -> {cited.right}: … {around} …")
            parts[cited.part] = text[:start] + cited.right + text[end:]
    return parts, lines


def write_parts(path: Path, parts: list[str]) -> None:
    """Write the prose of a file; outputs, code and ids of a notebook stay as they are."""
    if path.suffix != ".ipynb":
        path.write_text(parts[0], encoding="utf-8")
        return
    book = nbformat.read(path, as_version=4)
    for cell, source in zip(
        (cell for cell in book.cells if cell.cell_type == "markdown"), parts, strict=True
    ):
        cell.source = source
    nbformat.write(book, path)


def candidates(written: str, root: Path = ROOT) -> list[str]:
    """All cells of results/ that this number could stand for, as lines for cited.yaml."""
    lines = []
    for path in sorted((root / "results").glob("*.csv")):
        rows = table(root, path.stem)
        numbers = rows.apply(pd.to_numeric, errors="coerce")
        for at, column in zip(
            *((numbers.abs() - abs(as_number(written))).abs() < 0.01).to_numpy().nonzero(),
            strict=True,
        ):
            value, row = numbers.iat[at, column], rows.iloc[at]
            if as_written(written, value) == written:
                keys = {key: row[key] for key in rows if key in NAMES and row[key]}
                lines.append(
                    f"- {path.stem} | {rows.columns[column]}: "
                    f"{json.dumps(keys, ensure_ascii=False)}"
                )
    return lines


def as_number(written: str) -> float:
    """The value of a number that was written in prose."""
    return float(written.replace("−", "-").replace(",", ""))


def entries_of(root: Path = ROOT) -> dict[str, dict]:
    """Read scripts/cited.yaml with every value as text, because `on` is a world and not true."""
    return yaml.load(
        (root / "scripts" / "cited.yaml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader
    )


def main(words: list[str] | None = None, root: Path = ROOT) -> int:
    """Check, or with `--write` refresh and check, every file that cited.yaml names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", action="store_true", help="bring every number to its cell's value"
    )
    parser.add_argument(
        "--find",
        metavar="NUMBER",
        help="list the cells that a number could stand for, and do nothing else",
    )
    arguments, failed = parser.parse_args(words), 0
    table.cache_clear()
    if arguments.find:
        print("\n".join(candidates(arguments.find, root)))
        return 0
    for name, entries in entries_of(root).items():
        path, parts = root / name, parts_of(root / name)
        if arguments.write:
            new, lines = refreshed(parts, entries, root)
            print("".join(f"{name}: {line}\n" for line in lines), end="")
            if new != parts:
                write_parts(path, new)
            parts = new
        complaints = complaints_of(parts, entries, root)
        failed += len(complaints)
        print("".join(f"{name}: {complaint}\n" for complaint in complaints), end="")
    print(f"{failed} numbers to look at")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
