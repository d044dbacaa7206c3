"""Renew the tables of RESULTS.md from results/*.csv; the text around them is cite.py's.

    python scripts/results_page.py           # fails if the page is not what the tables say
    python scripts/results_page.py --write

Everything between the two markers of the page is written by this script.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "RESULTS.md"
START, END = "<!-- tables -->", "<!-- end of tables -->"
DATA = {"demo": "Drawn tissue (demo)", "her2st": "Real tissue (her2st)"}
STUDIES = {  # title: table, and what tells its rows apart
    "Which part of PEKA did the work?": ("ladder_cohorts", ["label"]),
    "Which loss?": ("losses_summary", ["rung", "space"]),
    "Which loss, without hidden cues?": ("losses_off_summary", ["rung", "space"]),
    "How far can one go?": ("beyond_summary", ["rung", "space"]),
    "How many blocks must be trained?": ("last_blocks_summary", ["rung", "space"]),
    "Which teacher?": ("teachers_summary", ["rung", "space"]),
}


def main(words: list[str] | None = None) -> int:
    """Write the tables, or say that they are old."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="renew the page")
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if parser.parse_args(words).write:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        print("RESULTS.md has old tables: python scripts/results_page.py --write", file=sys.stderr)
        return 1
    return 0


def page(text: str, root: Path = ROOT) -> str:
    """The text of the page with tables made from the files of results/."""
    before, rest = text.split(START)
    read = lambda name: pd.read_csv(root / "results" / f"{name}.csv", keep_default_na=False)
    parts = []
    for name, title in DATA.items():
        parts += [f"## {title}", of_protocols(read(f"{name}_four_protocols"))]
        parts += ["### Every predictor under every protocol", of_summary(read(f"{name}_summary"))]
    parts.append(
        "## Studies of ten drawn cohorts\n\nPaired differences of PCC to the frozen encoder, "
        "protocol `strict`, all 50 target genes, one split of each cohort, one seed; the interval "
        "is over cohorts. Rows of one table share their cohorts."
    )
    for title, (table, keys) in STUDIES.items():
        parts += [f"### {title}", of_study(read(table), keys)]
    return before + START + "\n\n" + "\n\n".join(parts) + "\n\n" + END + rest.split(END)[1]


def of_protocols(table: pd.DataFrame) -> str:
    """One row a predictor, one column a protocol."""
    protocols = [name for name in ("peka_official", "peka_paper", "hest_bench", "strict")
                 if name in table]  # fmt: skip
    rows = [[row["label"], *(score(row[p]) for p in protocols)] for _, row in table.iterrows()]
    return markdown(["predictor", *(f"`{p}`" for p in protocols)], rows) + made(table)


def of_summary(table: pd.DataFrame) -> str:
    """Mean and interval of every predictor, with protocol, scope and n."""
    rows = [
        [f"`{row.protocol}`", row.scheme, "hidden" if row.world == "on" else "none", row.label,
         row.scope, interval(row), f"{row.n} {row.unit}s"]
        for row in table.itertuples()
    ]  # fmt: skip
    names = ["protocol", "held out", "cues", "predictor", "alignment saw", "PCC (95 %)", "n"]
    if set(table.world) == {"on"}:  # only drawn tissue has two worlds
        names.remove("cues")
        rows = [row[:2] + row[3:] for row in rows]
    return markdown(names, rows) + made(table)


def of_study(table: pd.DataFrame, keys: list[str]) -> str:
    """Differences to the frozen encoder."""
    kept = table[table.genes == "all"]
    if "against" in kept:
        kept = kept[kept.against == "frozen"]
    rows = [
        [*(row[key] for key in keys), interval(row, signed=True), f"{row['n']} {row['unit']}s",
         f"{row['above_zero']}"]
        for _, row in kept.iterrows()
    ]  # fmt: skip
    return markdown([*keys, "difference (95 %)", "n", "above 0"], rows) + made(kept)


def score(value, signed: bool = False) -> str:
    """`.437`, `+.031` or `−.132`; a word where there is none."""
    if value == "":
        return "undefined"
    text = f"{abs(float(value)):.3f}".removeprefix("0")
    return ("−" if float(value) < 0 else "+" if signed else "") + text


def interval(row, signed: bool = False) -> str:
    """A mean with its interval where it has one."""
    get = row._asdict() if hasattr(row, "_asdict") else row
    text = score(get["mean"], signed)
    if get["low"] == "" or text == "undefined":
        return text
    return f"{text} ({score(get['low'], signed)} to {score(get['high'], signed)})"


def markdown(names: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def made(table: pd.DataFrame) -> str:
    """A line about the commit and the machine that made a table."""
    commits, devices = (
        " and ".join(dict.fromkeys(map(str, table[column]))) for column in ("commit", "device")
    )
    return f"\n\nMade at commit {commits} on {devices}."


if __name__ == "__main__":
    sys.exit(main())
