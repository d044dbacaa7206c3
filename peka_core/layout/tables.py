"""The small tables of a cohort: samples.csv, splits/*.csv, var_<k>genes.json."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import PekaError
from ..files import not_readable, one_name

COLUMNS = (
    "patient", "group", "duplicate_of", "organ", "disease", "technology", "um_per_px", "license", "source", "evidence",
)  # fmt: skip
WORDS_FOR_MISSING = ("", "nan", "na", "n/a", "#n/a", "<na>", "none", "null", "-")  # in any case
SPLIT_FILE = re.compile(r"(train|test)_(0|[1-9]\d*)\.csv")


def read_csv(path: Path, needs: str) -> pd.DataFrame:
    """A CSV as stripped text, with or without a BOM.

    Raises:
        PekaError: it is missing, may not be read, is no CSV in UTF-8, has no row, or has the column `needs` not exactly once.
    """
    try:
        table = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
        )
    except PermissionError as error:
        raise not_readable(path) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PekaError(
            f"{path}: missing; expected a CSV with the column {needs}. Build the cohort again."
        ) from error
    except (
        ValueError,
        OSError,
    ) as error:  # pandas' own errors, and those of decoding, are ValueErrors
        what = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise PekaError(
            f"{path}: cannot be read as a table ({what}); expected a CSV with commas. Save it as CSV UTF-8."
        ) from error
    table = table.rename(columns=str.strip).map(str.strip)
    if list(table).count(needs) != 1:
        found = f"no column {needs}, or two; expected one, found {list(table)}"
        raise PekaError(f"{path}: {found}. Rename the column (a CSV has commas).")
    if not len(table):
        raise PekaError(
            f"{path}: has a header and no row; expected one row for each sample. Add the rows."
        )
    return table


def check_ids(ids: list[str], path: Path) -> None:
    """Raise PekaError where a sample id is blank or no file name, or stands twice: sections are files of these names."""
    for name in ids:
        one_name(name, f"{path}: sample id")
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise PekaError(
            f"{path}: expected unique sample ids, found twice: {twice}. Keep one row each."
        )


def read_samples(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The samples of a cohort, index sample_id, and what had to be assumed about them (warnings)."""
    found = sorted(file.stem for file in path.glob("adata/*.h5ad") if not file.name.startswith("."))
    if not (path / "samples.csv").exists():
        if not found:
            raise PekaError(
                f"{path}: not a cohort; expected adata/<sample>.h5ad in it. Build it with notebook 01."
            )
        notes = [
            f"{path}: no samples.csv, so each of {len(found)} samples counts as its own patient"
        ]
        return _completed(pd.DataFrame({"sample_id": found}), path)[0], notes
    table, notes = _completed(read_csv(path / "samples.csv", "sample_id"), path)
    extra = sorted(set(found) - set(table.index))
    if extra:
        notes.append(
            f"{path / 'samples.csv'}: {len(extra)} sections of adata/ have no row and are left out: {extra}"
        )
    return table, notes


def _completed(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Add missing columns, fill blank patients and merge patients that share a duplicate."""
    check_ids(list(table.sample_id), path / "samples.csv")
    table, notes = table.set_index("sample_id"), []
    for column in COLUMNS:
        given = table[column] if column in table else pd.Series("", table.index)
        table[column] = given.mask(given.str.lower().isin(WORDS_FOR_MISSING), "")
    blank = table.patient == ""
    if blank.sum() > 0 and (path / "samples.csv").exists():
        notes.append(
            f"{path / 'samples.csv'}: patient is blank for {blank.sum()} of {len(table)} samples; sample id used"
        )
    table.loc[blank, "patient"] = table.index[blank]
    absent = sorted(set(table.duplicate_of) - set(table.index) - {""})
    if absent:
        notes.append(
            f"{path / 'samples.csv'}: duplicate_of names {len(absent)} samples that are not here: {absent}"
        )
    table["group"] = _groups(table)
    table["um_per_px"] = _numbers(table.um_per_px, path)
    return table[[*COLUMNS, *(c for c in table if c not in COLUMNS)]], notes


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    try:
        numbers = pd.to_numeric(column).astype(float)
    except ValueError as error:
        raise PekaError(
            f"{path / 'samples.csv'}: um_per_px must be numbers ({error}). Correct or empty it."
        ) from error
    wrong = numbers[numbers.notna() & ~((numbers > 0) & np.isfinite(numbers))]
    if len(wrong):
        found = f"um_per_px of {wrong.index[0]} is {wrong.iloc[0]}"
        raise PekaError(
            f"{path / 'samples.csv'}: {found}; expected a number above 0. Correct or empty it."
        )
    return numbers


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


def copies(duplicate_of: pd.Series) -> dict[str, str]:
    """The sections that are copies, each with the section that stands for it.

    Of the sections that `duplicate_of` joins, the original is kept; where that is not here, or each is named as a copy of the
    other, the first of them is.

    Args:
        duplicate_of: of each section, index its id, in the order of samples.csv; "" where it is no copy.
    """
    named = {
        sample: original
        for sample, original in duplicate_of.items()
        if original and original != sample
    }
    kept: dict[frozenset | str, str] = {}
    found = {}
    for sample in duplicate_of.index:
        chain = [sample]
        while (following := named.get(chain[-1])) is not None and following not in chain:
            chain.append(following)
        ring = frozenset(chain[chain.index(following) :]) if following is not None else chain[-1]
        original = kept.setdefault(ring, ring if ring in duplicate_of.index else sample)
        if original != sample:
            found[sample] = original
    return found


def read_splits(path: Path, samples: pd.DataFrame) -> tuple[tuple[list[str], list[str]], ...]:
    """(training, test) sample ids of train_i.csv and test_i.csv, by ascending i."""
    named = [SPLIT_FILE.fullmatch(file.name) for file in path.glob("splits/*.csv")]
    return tuple(
        _read_split(path / "splits", i, samples)
        for i in sorted({int(name[2]) for name in named if name})
    )


def odd_splits(path: Path) -> list[str]:
    """A note on files of splits/ that are no split by their name, as a browser's second copy `train_0 (1).csv`."""
    odd = sorted(
        file.name
        for file in path.glob("splits/*.csv")
        if not SPLIT_FILE.fullmatch(file.name) and file.name[0] != "."
    )
    pair = "a split is a pair of files train_0.csv and test_0.csv, 1, 2 …"
    return [f"{path / 'splits'}: {', '.join(odd)} left out; {pair}"] if odd else []


def _read_split(folder: Path, i: int, samples: pd.DataFrame) -> tuple[list[str], list[str]]:
    sides = []
    for side in ("train", "test"):
        file = folder / f"{side}_{i}.csv"
        ids = list(read_csv(file, "sample_id").sample_id)
        check_ids(ids, file)
        unknown = sorted(set(ids) - set(samples.index))
        if unknown:
            raise PekaError(
                f"{file}: unknown samples {unknown}; expected ids of this cohort. Correct the split."
            )
        sides.append(ids)
    both = sorted(set(sides[0]) & set(sides[1]))
    if both:
        raise PekaError(
            f"{file}: {both} also stand in train_{i}.csv; expected test samples only here. Correct the split."
        )
    return sides[0], sides[1]


def read_genes(path: Path) -> list[str]:
    """Target genes of var_<k>genes.json; [] where there is none."""
    files = sorted(path.glob("var_*genes.json"))
    if len(files) > 1:
        raise PekaError(
            f"{files[0]}: {len(files)} gene lists; expected one var_<k>genes.json. Remove the others."
        )
    if not files:
        return []
    try:
        genes = json.loads(files[0].read_text(encoding="utf-8-sig"))["genes"]
    except PermissionError as error:
        raise not_readable(files[0]) from error
    except (ValueError, KeyError, TypeError) as error:
        raise PekaError(
            f'{files[0]}: expected {{"genes": [...]}} ({error!r}). Write it again.'
        ) from error
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
        raise PekaError(
            f'{files[0]}: expected {{"genes": [...]}}, a list of names, found {genes!r:.80}. Write it again.'
        )
    if twice := sorted({gene for gene in genes if genes.count(gene) > 1}):
        found = f"more than once in it: {', '.join(twice)}"
        raise PekaError(f"{files[0]}: {found}; expected each target gene once. Remove the repeats.")
    return genes
