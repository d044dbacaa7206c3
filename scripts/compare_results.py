"""Compare the scores of fresh runs with the committed ones; exit code 1 where they differ.

    python scripts/compare_results.py demo_=runs/mine/results her2st_=runs/her2st-ci/results

`results/demo_scores.csv` is compared with `runs/mine/results/scores.csv`, and summary and
differences in the same way. Rows are matched by what they score. Counts (n, spots, undefined genes)
must be equal. Mean, low and high may differ by the tolerances below, and single patients by more.
Versions, commit, device, digests, notes and p values are not compared.

The tolerances are far below the effect of bat on the demo (.031). Between one H100 with torch 2.11
and 2 CPU cores with torch 2.14, none of the demo's 667 rows differed by more than .00024. A
rounding error can make one split choose another ridge penalty. The largest such step that was found
moved the frozen encoder's strict score by .0023.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

TABLES = ("scores", "summary", "differences")
KEYS = ("profile", "world", "protocol", "zeros", "scope", "scheme", "split", "predictor", "space",
    "label", "genes", "alpha",
        "pooling", "seed")  # fmt: skip
EQUAL = ("n", "unit", "spots", "n_undefined")
VALUES = ("mean", "low", "high")
TRAINED = re.compile(r"\b(bat|bone|projector.only|lora|adalora|full)\b")
NAMED = re.compile(r"([^\s,:]+)[ :]([+-]?\d*\.\d+)")  # "P01:-0.0089 P02:…", "B .099, C .096"
TOLERANCE_TRAINED = 0.005
TOLERANCE_UNTRAINED = 0.0025
TOLERANCE_SINGLE = 0.02


def keyed(path: Path) -> pd.DataFrame:
    """Rows of a table by what they score."""
    table = pd.read_csv(path, dtype={key: str for key in KEYS}, float_precision="round_trip")
    keys = [key for key in KEYS if key in table]
    table[keys] = table[keys].fillna("")
    repeat = table.groupby(keys).cumcount()  # rows that no key tells apart meet in order
    return table.set_index([*keys, repeat.astype(str).rename("repeat")])


def row_tolerance(key: tuple[str, ...], trained: float, untrained: float) -> float:
    """The tolerance of one row; a row that names a method is a trained one."""
    return trained if TRAINED.search(" ".join(key)) else untrained


def difference(ours: pd.Series, theirs: pd.Series) -> tuple[float, str]:
    """The largest difference of two rows, and a complaint about what no tolerance allows, or ""."""
    for column in EQUAL:
        if column in theirs and _counted(ours.get(column)) != _counted(theirs[column]):
            return 0.0, f"{column} is {ours.get(column)}, committed {theirs[column]}"
    if other := single_values(ours, theirs):
        return 0.0, other
    columns = [column for column in VALUES if column in theirs]
    a, b = (row.reindex(columns).astype(float).to_numpy() for row in (ours, theirs))
    if (np.isnan(a) != np.isnan(b)).any():
        return 0.0, f"undefined in one alone: {columns} are {a}, committed {b}"
    return float(np.nanmax(np.abs(a - b), initial=0.0)), ""


def _counted(value) -> str:
    """A count or a unit as text. 20 and 20.0 give the same text."""
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def single_values(ours: pd.Series, theirs: pd.Series) -> str:
    """How the single patients, sections or folds of two rows differ ("" if they agree)."""
    a, b = (dict(NAMED.findall(str(row.get("values", "")))) for row in (ours, theirs))
    if a.keys() != b.keys():
        return f"values of {sorted(a)}, committed of {sorted(b)}"
    gap, name = max(((abs(float(a[name]) - float(b[name])), name) for name in b), default=(0.0, ""))
    return (
        f"the value of {name} differs by {gap:.4f}, allowed {TOLERANCE_SINGLE}"
        if gap > TOLERANCE_SINGLE
        else ""
    )


def compare(
    fresh: Path,
    committed: Path,
    trained: float = TOLERANCE_TRAINED,
    untrained: float = TOLERANCE_UNTRAINED,
):
    """Compare two tables.

    Returns:
        (rows that agree, list of complaints, {"trained": (largest difference, row), "untrained":
        …}).
    """
    if not fresh.exists():
        return 0, [f"{fresh} is missing"], {}
    ours, theirs = keyed(fresh), keyed(committed)
    if ours.index.names != theirs.index.names:
        return 0, [f"{fresh}: columns {ours.index.names}, committed {theirs.index.names}"], {}
    if not set(VALUES) & set(theirs) or ours.index.intersection(theirs.index).empty:
        return 0, [f"{fresh} has no row in common with {committed}, or no column of {VALUES}"], {}
    complaints = [f"no longer there: {key}" for key in theirs.index.difference(ours.index)]
    complaints += [f"not among the committed: {key}" for key in ours.index.difference(theirs.index)]
    passed, largest = 0, {}
    for key in theirs.index.intersection(ours.index):
        gap, reason = difference(ours.loc[key], theirs.loc[key])
        allowed = row_tolerance(key, trained, untrained)
        kind = "trained" if TRAINED.search(" ".join(key)) else "untrained"
        largest[kind] = max(largest.get(kind, (-1.0, key)), (gap, key), key=lambda pair: pair[0])
        if reason or gap > allowed:
            complaints.append(
                f"{' · '.join(filter(None, key[:-1]))}: "
                f"{reason or f'differs by {gap:.4f}, allowed {allowed}'}"
            )
        else:
            passed += 1
    return passed, complaints, largest


def main(words: list[str] | None = None) -> int:
    """Compare every committed table of each PREFIX; the last line counts rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", metavar="PREFIX=FOLDER")
    parser.add_argument("--committed", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument(
        "--trained", type=float, default=TOLERANCE_TRAINED, help="default %(default)s"
    )
    parser.add_argument(
        "--untrained", type=float, default=TOLERANCE_UNTRAINED, help="default %(default)s"
    )
    arguments = parser.parse_args(words)
    passed = failed = 0
    for pair in arguments.pairs:
        prefix, folder = pair.split("=", 1)
        for name in TABLES:
            committed = arguments.committed / f"{prefix}{name}.csv"
            if not committed.exists():
                if name == "differences" and not (Path(folder) / f"{name}.csv").exists():
                    continue  # a run without students has none
                good, complaints, largest = (
                    0,
                    [f"{committed} is missing: run `make publish` after the runs"],
                    {},
                )
            else:
                fresh = Path(folder) / f"{name}.csv"
                good, complaints, largest = compare(
                    fresh, committed, arguments.trained, arguments.untrained
                )
            passed, failed = passed + good, failed + len(complaints)
            print(f"{committed.name}: {good} rows agree, {len(complaints)} do not")
            for kind, (gap, key) in largest.items():
                print(
                    f"  largest difference, {kind}: {gap:.5f} "
                    f"({' · '.join(filter(None, key[:-1]))})"
                )
            for complaint in complaints[:10]:
                print(f"  {complaint}")
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
