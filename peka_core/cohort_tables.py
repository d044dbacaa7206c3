"""The small tables of a cohort: samples.csv, splits/*.csv, var_<k>genes.json."""

import json
from pathlib import Path

import pandas as pd

from .files import PekaError, one_name

COLUMNS = (
    "patient", "group", "duplicate_of", "organ", "disease", "technology", "um_per_px", "license", "source", "evidence",
)  # fmt: skip


def read_csv(path: Path, needs: str) -> pd.DataFrame:
    """A CSV as stripped text, with or without a BOM; PekaError where it is missing or lacks the column `needs`."""
    if not path.is_file():
        raise PekaError(f"{path}: missing; expected a CSV with the column {needs}. Build the cohort again.")
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    table = table.rename(columns=str.strip).map(str.strip)
    if needs not in table:
        raise PekaError(f"{path}: no column {needs}; expected it, found {list(table)}. Rename the column.")
    return table


def read_samples(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The samples of a cohort, index sample_id, and what had to be assumed about them (warnings)."""
    found = sorted(file.stem for file in path.glob("adata/*.h5ad") if not file.name.startswith("."))
    if not (path / "samples.csv").exists():
        if not found:
            raise PekaError(f"{path}: not a cohort; expected adata/<sample>.h5ad in it. Build it with notebook 01.")
        notes = [f"{path}: no samples.csv, so each of {len(found)} samples counts as its own patient"]
        return _completed(pd.DataFrame({"sample_id": found}), path)[0], notes
    table, notes = _completed(read_csv(path / "samples.csv", "sample_id"), path)
    extra = sorted(set(found) - set(table.index))
    if extra:
        notes.append(f"{path / 'samples.csv'}: {len(extra)} sections of adata/ have no row and are left out: {extra}")
    return table, notes


def _completed(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Add missing columns, fill blank patients and merge patients that share a duplicate."""
    table, notes = table.set_index("sample_id"), []
    if not len(table) or not table.index.is_unique:
        twice = list(table.index[table.index.duplicated()].unique())
        raise PekaError(f"{path / 'samples.csv'}: expected unique sample ids, found twice: {twice}. Keep one row each.")
    for sample in table.index:
        one_name(sample, f"{path / 'samples.csv'}: sample_id")
    for column in COLUMNS:
        if column not in table:
            table[column] = ""
    blank = table.patient == ""
    if 0 < blank.sum() and (path / "samples.csv").exists():
        notes.append(f"{path / 'samples.csv'}: patient is blank for {blank.sum()} of {len(table)} samples; sample id used")
    table.loc[blank, "patient"] = table.index[blank]
    absent = sorted(set(table.duplicate_of) - set(table.index) - {""})
    if absent:
        notes.append(f"{path / 'samples.csv'}: duplicate_of names {len(absent)} samples that are not here: {absent}")
    table["group"] = _groups(table)
    table["um_per_px"] = _numbers(table.um_per_px, path)
    return table[[*COLUMNS, *(c for c in table if c not in COLUMNS)]], notes


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    try:
        return pd.to_numeric(column).astype(float)
    except ValueError as error:
        raise PekaError(f"{path / 'samples.csv'}: um_per_px must be numbers ({error}). Correct or empty it.") from error


def _groups(table: pd.DataFrame) -> list[str]:
    """Patients joined wherever a section of one duplicates a section of another; named after the original's patient."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.get(name, name) != name:
            name = parent[name]
        return name

    for row in table[table.duplicate_of != ""].itertuples():
        original = table.patient.get(row.duplicate_of, f"original {row.duplicate_of}")
        parent[root(row.patient)] = root(original)
    return [root(patient) for patient in table.patient]


def read_splits(path: Path, samples: pd.DataFrame) -> tuple[tuple[list[str], list[str]], ...]:
    """(training, test) sample ids of train_i.csv and test_i.csv, by ascending i."""
    numbers = sorted(int(file.stem.split("_")[1]) for file in path.glob("splits/train_*.csv"))
    return tuple(_read_split(path / "splits", i, samples) for i in numbers)


def _read_split(folder: Path, i: int, samples: pd.DataFrame) -> tuple[list[str], list[str]]:
    sides = []
    for side in ("train", "test"):
        file = folder / f"{side}_{i}.csv"
        ids = list(read_csv(file, "sample_id").sample_id)
        unknown = sorted(set(ids) - set(samples.index))
        if unknown:
            raise PekaError(f"{file}: unknown samples {unknown}; expected ids of this cohort. Correct the split.")
        sides.append(ids)
    both = sorted(set(sides[0]) & set(sides[1]))
    if both:
        raise PekaError(f"{file}: {both} also stand in train_{i}.csv; expected test samples only here. Correct the split.")
    return sides[0], sides[1]


def read_genes(path: Path) -> list[str]:
    """Target genes of var_<k>genes.json; [] where there is none."""
    files = sorted(path.glob("var_*genes.json"))
    if len(files) > 1:
        raise PekaError(f"{files[0]}: {len(files)} gene lists; expected one var_<k>genes.json. Remove the others.")
    if not files:
        return []
    try:
        return [str(gene) for gene in json.loads(files[0].read_text(encoding="utf-8-sig"))["genes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise PekaError(f'{files[0]}: expected {{"genes": [...]}} ({error!r}). Write it again.') from error
