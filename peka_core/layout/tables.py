"""The small tables of a cohort: samples.csv, splits/*.csv, var_<k>genes.json."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ..common.errors import PekaError
from ..common.files import not_readable, one_name

COLUMNS = (
    "patient", "group", "duplicate_of", "organ", "disease", "technology", "um_per_px", "license",
    "source", "evidence",
)  # fmt: skip
WORDS_FOR_MISSING = ("", "nan", "na", "n/a", "#n/a", "<na>", "none", "null", "-")  # in any case
SPLIT_FILE = re.compile(r"(train|test)_(0|[1-9]\d*)\.csv")
GENES_FORM = '{"genes": ["ABC", ...]}'


def read_csv(path: Path, needs: str) -> pd.DataFrame:
    """Read a CSV as stripped text, with or without a byte order mark.

    Raises:
        PekaError: it is missing, may not be read, is no CSV in UTF-8, has no row, or does not have
            exactly one column `needs`.
    """
    form = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "index_col": False}
    try:
        table = pd.read_csv(path, **form)
    except PermissionError as error:
        raise not_readable(path) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PekaError(
            f"{path}: missing; expected a CSV with the column {needs}. Build the cohort again."
        ) from error
    except (ValueError, OSError) as error:  # errors of pandas and of decoding are ValueErrors
        what = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise PekaError(
            f"{path}: cannot be read as a table ({what}); expected a CSV with commas. "
            "Save it as CSV UTF-8."
        ) from error
    table = table.rename(columns=str.strip).map(str.strip)
    if list(table).count(needs) != 1:
        raise PekaError(
            f"{path}: expected one column {needs}, found {list(table)}. "
            "Rename the column (a CSV has commas)."
        )
    if not len(table):
        raise PekaError(f"{path}: no row below the header; expected one for each sample. Add them.")
    return table


def _check_ids(ids: list[str], path: Path) -> None:
    """Raise PekaError where a sample id is blank, no file name, or not unique."""
    for name in ids:
        one_name(name, f"{path}: sample id")
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise PekaError(f"{path}: sample ids must be unique, found twice: {twice}. Keep one row.")


def read_samples(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read the samples of a cohort.

    Returns:
        the table, index sample_id, and warnings about what had to be assumed.
    """
    files = [file for file in path.glob("adata/*.h5ad") if not file.name.startswith(".")]
    in_folder = sorted(file.stem for file in files)
    file = path / "samples.csv"
    if file.exists():
        table, notes = _completed(read_csv(file, "sample_id"), file)
        if extra := sorted(set(in_folder) - set(table.index)):
            number = f"{len(extra)} sections of adata/"
            notes.append(f"{file}: {number} have no row and are left out: {extra}")
        return table, notes
    if not in_folder:
        raise PekaError(
            f"{path}: not a cohort; expected adata/<sample>.h5ad in it. Build it with notebook 01."
        )
    table, _ = _completed(pd.DataFrame({"sample_id": in_folder}), file)
    each = f"each of {len(in_folder)} samples counts as its own patient"
    return table, [f"{path}: no samples.csv, so {each}"]


def _completed(table: pd.DataFrame, file: Path) -> tuple[pd.DataFrame, list[str]]:
    """Add missing columns, fill blank patients and join patients whose sections are copies."""
    _check_ids(list(table.sample_id), file)
    table, notes = table.set_index("sample_id"), []
    for column in COLUMNS:
        given = table[column] if column in table else pd.Series("", table.index)
        table[column] = given.mask(given.str.lower().isin(WORDS_FOR_MISSING), "")
    if blank := int((table.patient == "").sum()):
        notes.append(
            f"{file}: patient is blank for {blank} of {len(table)} samples; the sample id is used"
        )
    table["patient"] = table.patient.mask(table.patient == "", table.index)
    if absent := sorted(set(table.duplicate_of) - set(table.index) - {""}):
        notes.append(
            f"{file}: duplicate_of names {len(absent)} samples that are not here: {absent}"
        )
    table["group"] = _groups(table)
    sizes = pd.to_numeric(table.um_per_px, errors="coerce").astype(float)
    wrong = table.um_per_px[(table.um_per_px != "") & ~((sizes > 0) & np.isfinite(sizes))]
    if len(wrong):
        raise PekaError(
            f"{file}: um_per_px of {wrong.index[0]} is {wrong.iloc[0]}; expected a number above 0. "
            "Correct or empty it."
        )
    table["um_per_px"] = sizes
    return table[[*COLUMNS, *(c for c in table if c not in COLUMNS)]], notes


def _groups(table: pd.DataFrame) -> list[str]:
    """The group of each section: patients whose sections are copies of each other are one group.

    A group has the name of the original's patient.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.get(name, name) != name:
            name = parent[name]
        return name

    for row in table[table.duplicate_of != ""].itertuples():
        original = table.patient.get(row.duplicate_of, f"original {row.duplicate_of}")
        parent[root(row.patient)] = root(original)
    return [root(patient) for patient in table.patient]


def originals(duplicate_of: pd.Series) -> dict[str, str]:
    """Map each section that is a copy to the section that is kept for it.

    The original is kept. If it is not here, or if sections name each other as copies, the first of
    them is kept.

    Args:
        duplicate_of: the original of each section, "" for none; the index has the sample ids, in
            the order of samples.csv.
    """
    named = {s: original for s, original in duplicate_of.items() if original and original != s}
    kept: dict[frozenset | str, str] = {}
    result = {}
    for sample in duplicate_of.index:
        chain = [sample]
        while (following := named.get(chain[-1])) is not None and following not in chain:
            chain.append(following)
        ring = frozenset(chain[chain.index(following) :]) if following is not None else chain[-1]
        original = kept.setdefault(ring, ring if ring in duplicate_of.index else sample)
        if original != sample:
            result[sample] = original
    return result


def read_splits(path: Path, samples: pd.DataFrame) -> tuple[tuple[list[str], list[str]], ...]:
    """(training, test) sample ids of train_i.csv and test_i.csv, by ascending i."""
    names = [SPLIT_FILE.fullmatch(file.name) for file in path.glob("splits/*.csv")]
    numbers = sorted({int(name[2]) for name in names if name})
    return tuple(_read_split(path / "splits", i, samples) for i in numbers)


def odd_splits(path: Path) -> list[str]:
    """A warning about CSV files in splits/ that are not read, such as `train_0 (1).csv`."""
    names = [file.name for file in path.glob("splits/*.csv") if file.name[0] != "."]
    odd = sorted(name for name in names if not SPLIT_FILE.fullmatch(name))
    pair = "a split is a pair of files train_0.csv and test_0.csv, 1, 2 …"
    return [f"{path / 'splits'}: {', '.join(odd)} left out; {pair}"] if odd else []


def _read_split(folder: Path, i: int, samples: pd.DataFrame) -> tuple[list[str], list[str]]:
    sides = []
    for file in (folder / f"train_{i}.csv", folder / f"test_{i}.csv"):
        sides.append(list(read_csv(file, "sample_id").sample_id))
        _check_ids(sides[-1], file)
        if unknown := sorted(set(sides[-1]) - set(samples.index)):
            raise PekaError(
                f"{file}: unknown samples {unknown}; expected ids of this cohort. Correct it."
            )
    train, test = sides
    if both := sorted(set(train) & set(test)):
        raise PekaError(
            f"{file}: {both} are in train_{i}.csv too; expected test samples that do not train. "
            "Correct the split."
        )
    return train, test


def read_genes(path: Path) -> list[str]:
    """Target genes of var_<k>genes.json; [] if the file does not exist.

    Raises:
        PekaError: there are several files, or it holds no list of different names.
    """
    files = sorted(path.glob("var_*genes.json"))
    if not files:
        return []
    if len(files) > 1:
        raise PekaError(
            f"{files[0]}: {len(files)} gene lists; expected one var_<k>genes.json. "
            "Remove the others."
        )
    genes = read_gene_list(files[0])
    if twice := sorted({gene for gene in genes if genes.count(gene) > 1}):
        raise PekaError(
            f"{files[0]}: {', '.join(twice)} more than once; expected each target gene once. "
            "Remove the repeats."
        )
    return genes


def read_gene_list(path: Path) -> list[str]:
    """The list `genes` of a JSON file as HEST and the authors write it.

    Raises:
        PekaError: the file holds no list of names.
    """
    try:
        genes = json.loads(path.read_text(encoding="utf-8-sig"))["genes"]
    except PermissionError as error:
        raise not_readable(path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise PekaError(f"{path}: expected {GENES_FORM} ({error!r}). Write it again.") from error
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
        raise PekaError(f"{path}: expected {GENES_FORM}, found {genes!r:.80}. Write it again.")
    return genes
