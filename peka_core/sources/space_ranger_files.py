"""The files of Space Ranger: where they lie in each version, positions and scale factors."""

import gzip
import json
import re
from pathlib import Path

import pandas as pd

from ..common.errors import PekaError

COUNTS = ("filtered_feature_bc_matrix", "raw_feature_bc_matrix")  # .h5, or a folder with mtx
POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "y", "x"]  # y before x in the files
HEADER = [*COLUMNS[:4], "pxl_row_in_fullres", "pxl_col_in_fullres"]


def outs_of(folder: Path) -> tuple[Path, str | None]:
    """The folder with the files, and the prefix of their names if the user gave one."""
    if not folder.is_dir():
        if folder.parent.is_dir() and any(folder.parent.glob(f"{folder.name}*")):
            return folder.parent, folder.name
        raise PekaError(
            f"{folder}: no such folder; expected the folder `outs` of Space Ranger. Correct the "
            "path, or unpack the archive first."
        )
    folder = folder / "outs" if (folder / "outs").is_dir() else folder
    bins = folder if folder.name == "binned_outputs" else folder / "binned_outputs"
    if not bins.is_dir():
        return folder, None
    if not (bins / "square_008um").is_dir():
        there = ", ".join(sorted(d.name for d in bins.iterdir())) or "nothing"
        raise PekaError(
            f"{bins}: no square_008um in it (found: {there}); expected the bins of 8 um. Name the "
            "folder of other bins itself, such as binned_outputs/square_016um."
        )
    return bins / "square_008um", None


def files_by_prefix(folder: Path, name: str) -> dict[str, Path]:
    """Files called `name` by their prefix; also packed with gzip, and also in `<prefix>spatial`."""
    found: dict[str, Path] = {}
    for of_folder in (folder, *sorted(d for d in folder.glob("*spatial") if d.is_dir())):
        start = "" if of_folder == folder else of_folder.name.removesuffix("spatial")
        for file in sorted(of_folder.glob(f"*{name}*")):
            if match := re.fullmatch(rf"(.*?){re.escape(name)}(\.gz)?", file.name):
                found.setdefault(match[1] or start, file)
    return found


def counts_file_of(folder: Path, prefix: str | None) -> tuple[Path, str]:
    """The counts (h5 or a folder of mtx) and the prefix of their names."""
    for name in COUNTS:
        # a folder may also hold the three files of mtx themselves
        found = {p: folder for p in files_by_prefix(folder, "matrix.mtx")}
        found |= {p: d for p, d in files_by_prefix(folder, name).items() if d.is_dir()}
        found |= files_by_prefix(folder, f"{name}.h5")
        if prefix is not None:
            found = {p: file for p, file in found.items() if p == prefix}
        if len(found) > 1:
            raise PekaError(
                f"{folder}: counts of {len(found)} samples (prefixes {', '.join(sorted(found))}); "
                f"expected one. Name one with its prefix: {folder / sorted(found)[0]}"
            )
        if found:
            prefix, file = next(iter(found.items()))
            return file, prefix
    raise PekaError(
        f"{folder}: no {prefix or ''}{COUNTS[0]}.h5 and no such folder with matrix.mtx.gz; "
        "expected the folder `outs` of Space Ranger. Copy the counts there too."
    )


def one_of(folder: Path, prefix: str, names: tuple[str, ...], what: str) -> Path:
    """The first of some files, with the counts' prefix or without any."""
    others = set()
    for name in names:
        found = files_by_prefix(folder, name)
        if file := found.get(prefix) or found.get(""):
            return file
        others |= set(found)
    why = f" Files with another prefix are there ({', '.join(sorted(others))})." if others else ""
    raise PekaError(
        f"{folder}: no {prefix}{names[-1]} ({what}), also not in spatial/.{why} Expected it beside "
        "the counts of the same sample. Copy or rename it."
    )


def read_positions(file: Path) -> pd.DataFrame:
    """Array positions: index barcode; in_tissue bool, array_row, array_col, y and x in px.

    Raises:
        PekaError: the table has other columns, or numbers are missing.
    """
    try:
        if file.suffix == ".parquet":
            _needs_parquet()
            table = pd.read_parquet(file)
        else:
            table = pd.read_csv(file, header=None, dtype=str)
            if not str(table.iloc[0, 1]).isdigit():  # a header
                table = table.iloc[1:].set_axis(table.iloc[0].tolist(), axis=1)
            elif table.shape[1] == len(HEADER):
                table = table.set_axis(HEADER, axis=1)
        table = table[HEADER].set_axis(COLUMNS, axis=1).set_index("barcode")
        table = table.apply(pd.to_numeric)
    except (ValueError, KeyError, IndexError, OSError, EOFError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise PekaError(
            f"{file}: not a table of positions ({why}); expected the columns {', '.join(HEADER)}. "
            "Copy the file again from Space Ranger's outs."
        ) from error
    if not table.index.is_unique:
        raise PekaError(
            f"{file}: the barcode {table.index[table.index.duplicated()][0]} has two positions; "
            "expected one. Copy the file again from Space Ranger's outs."
        )
    table.index = table.index.astype(str)
    return table.assign(in_tissue=table.in_tissue == 1)


def _needs_parquet() -> None:
    for module in ("fastparquet", "pyarrow"):
        try:
            __import__(module)
            return
        except ImportError:
            continue
    raise PekaError(
        "the positions of Visium HD are a parquet file, and no package here reads such files. "
        'Install one: pip install "peka-core[spatial]", in a checkout pip install -e ".[spatial]"'
    )


def read_scales(file: Path) -> dict[str, float]:
    """The scale factors of Space Ranger.

    Raises:
        PekaError: the file is no JSON with numbers.
    """
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as handle:
            values = json.load(handle).items()
        return {name: float(value) for name, value in values if not isinstance(value, str | list)}
    except (ValueError, TypeError, AttributeError, OSError, EOFError) as error:
        raise PekaError(
            f"{file}: expected Space Ranger's scale factors, JSON with numbers ({error}). Copy the "
            "file again from Space Ranger's outs."
        ) from error
