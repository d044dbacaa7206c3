"""Read counts from a plain table: AnnData (h5ad, zarr), TSV or CSV, and a table of coordinates."""

import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from ..common.errors import PekaError
from ..common.file_kinds import what_is
from ..layout.hdf5 import open_h5
from ..slides.scale import VISIUM_PITCH, check_fit, fit_array
from .raw_sample import RawSample, counts_table
from .space_ranger_counts import read_counts
from .space_ranger_files import POSITIONS, read_positions
from .visium import SPOT_UM

TEXTS = (".tsv", ".csv", ".txt")
# columns with the centre in px, (x, y), in the order in which they are looked for
XY = (("x", "y"), ("pixel_x", "pixel_y"), ("pxl_col_in_fullres", "pxl_row_in_fullres"))


def read_table(counts: str | Path, coordinates: str | Path | None = None) -> RawSample:
    """Read counts and the centres of their spots.

    Args:
        counts: AnnData as h5ad or zarr (of a SpatialData store: the store or one of its tables),
            Space Ranger's h5, or TSV or CSV with a header, one row a spot and one column a gene or
            the other way round.
        coordinates: TSV or CSV with barcodes in the first column and the centres in px in two
            columns x and y (or pixel_x, pixel_y), or Space Ranger's table of positions. Not needed
            where AnnData has obsm["spatial"].

    Raises:
        PekaError: a file is missing or has another form, or barcodes do not match.
    """
    counts, kind = Path(counts), "".join(Path(counts).suffixes[-2:]).removesuffix(".gz")
    if not counts.exists():
        raise PekaError(f"{counts}: no such file; expected a table of counts. Correct the path.")
    where = None if coordinates is None else read_coordinates(Path(coordinates))
    notes: list[str] = []
    if kind.endswith(".h5ad") or counts.is_dir():
        adata = _read_anndata(counts)
    elif kind.endswith(".h5"):
        adata, notes = read_counts(counts)
    elif kind.endswith(TEXTS):
        adata, notes = _read_text(counts, None if where is None else where.index)
    else:
        raise PekaError(
            f"{counts}: unknown kind of table; expected .h5ad, .zarr, .h5, .tsv or .csv. For a "
            "folder of Space Ranger use `peka import visium`."
        )
    if where is not None and coordinates is not None:
        adata, more = _with_places(adata, where, counts, Path(coordinates))
        notes += more
    positions = where if where is not None and "in_tissue" in where else None
    if adata.obsm.get("spatial", np.empty((0, 0))).shape != (adata.n_obs, 2):
        raise PekaError(
            f'{counts}: no obsm["spatial"] with two columns (x, y); expected the centres of the '
            "spots in px of the full-resolution image. Give them with --coordinates FILE."
        )
    adata.obsm["spatial"] = np.asarray(adata.obsm["spatial"], float)
    raw = RawSample(adata, counts, "table of counts", positions=positions, notes=notes)
    _add_pitch(raw)
    return raw


def _read_anndata(path: Path) -> ad.AnnData:
    """The counts and centres of AnnData in an h5ad or a zarr store."""
    tables = sorted(d for d in (path / "tables").glob("*") if d.is_dir())
    if len(tables) > 1:
        raise PekaError(
            f"{path}: a SpatialData store with {len(tables)} tables; expected one. Name it: "
            + " or ".join(str(table) for table in tables)
        )
    path = tables[0] if tables else path
    if path.is_file():
        with open_h5(path):  # its errors name the cause
            pass
    try:
        adata = ad.read_zarr(path) if path.is_dir() else ad.read_h5ad(path)
    except Exception as error:  # HDF5, zarr and anndata fail in many ways
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise PekaError(
            f"{path}: cannot be read as AnnData ({why}); expected an h5ad file, or a zarr folder "
            "of AnnData. Write it again with anndata."
        ) from error
    if adata.X is None:
        raise PekaError(f"{path}: no X in it; expected raw counts there. Write them into X.")
    names = adata.var_names
    ids = next((adata.var[c].astype(str) for c in ("gene_ids", "gene_id") if c in adata.var), None)
    found = counts_table(adata.X, adata.obs_names, names, ids)
    if {"array_row", "array_col"} <= set(adata.obs):
        found.obs[["array_row", "array_col"]] = adata.obs[["array_row", "array_col"]].to_numpy()
    if "spatial" in adata.obsm:
        found.obsm["spatial"] = np.asarray(adata.obsm["spatial"], float)
    return found


def _read_csv(file: Path) -> pd.DataFrame:
    """A table of TSV or CSV with a header and names in its first column."""
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as handle:
            header = handle.readline()
        sep = "\t" if header.count(b"\t") >= header.count(b",") else ","
        table = pd.read_csv(file, sep=sep, index_col=0)
    except (ValueError, OSError, EOFError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PekaError(
            f"{file}: cannot be read as a table ({why}); expected TSV or CSV with a header. Save "
            "it again as UTF-8 text."
        ) from error
    if table.empty:
        kind = what_is(file) or "something else"
        raise PekaError(
            f"{file}: {kind} with {table.shape[0]} rows and {table.shape[1]} columns of numbers; "
            "expected a header, names in the first column and numbers beside them, with tabs or "
            "commas between the columns. Save it so."
        )
    table.index, table.columns = table.index.astype(str), table.columns.astype(str)
    return table


def _read_text(file: Path, barcodes: pd.Index | None) -> tuple[ad.AnnData, list[str]]:
    """Counts (n, G) of a text; turned if its columns and not its rows are the barcodes."""
    table, notes = _read_csv(file), []
    known = lambda names: 0 if barcodes is None else names.isin(barcodes).sum()
    if known(table.columns) > known(table.index):
        table, notes = table.T, ["the table has one column a spot, so it was turned"]
    if words := list(table.select_dtypes(exclude="number")):
        raise PekaError(
            f"{file}: the column {words[0]} is no number; expected counts only, with names in the "
            "first column and in the header. Remove other columns."
        )
    x = sparse.csr_matrix(table.to_numpy(np.float32))  # (n, G)
    return counts_table(x, table.index, table.columns), notes


def read_coordinates(file: Path) -> pd.DataFrame:
    """Centres of spots: index barcode, columns x and y in px.

    Raises:
        PekaError: the file has none of the known forms.
    """
    if not file.is_file():
        raise PekaError(f"{file}: no such file; expected coordinates of spots. Correct the path.")
    if file.name.removesuffix(".gz").endswith(POSITIONS):
        return read_positions(file)
    table = _read_csv(file)
    table.columns = table.columns.str.strip().str.lower()
    pair = next((pair for pair in XY if set(pair) <= set(table)), None)
    if pair is None:
        raise PekaError(
            f"{file}: no columns x and y (found {', '.join(table.columns[:6])}); expected barcodes "
            "in the first column, and the centres in px of the image in two columns x and y. "
            "Rename the columns."
        )
    if not table.index.is_unique:
        raise PekaError(
            f"{file}: the barcode {table.index[table.index.duplicated()][0]} has two places; "
            "expected one. Correct the table."
        )
    numbers = table[list(pair)].apply(pd.to_numeric, errors="coerce")
    words = table[list(pair)].where(numbers.isna()).stack()  # without empty fields
    if len(words):
        raise PekaError(
            f"{file}: {len(words)} coordinates are no numbers (first: {words.iloc[0]!r} of "
            f"{words.index[0][0]}); expected numbers with a point, such as 1024.5. Save it again."
        )
    return numbers.set_axis(["x", "y"], axis=1)


def _with_places(
    adata: ad.AnnData, where: pd.DataFrame, counts: Path, coordinates: Path
) -> tuple[ad.AnnData, list[str]]:
    """The spots that have both counts and coordinates; and notes about the others."""
    place = where.index.get_indexer(adata.obs_names)  # (n,)
    both = place >= 0
    if not both.any():
        raise PekaError(
            f"{coordinates}: no barcode in common with {counts.name} ({where.index[0]} against "
            f"{adata.obs_names[0]}); expected the same names in both, with the same prefix and "
            "ending (-1). Rename them in one of the files."
        )
    notes = []
    if not both.all():
        notes.append(f"{(~both).sum()} spots with counts have no coordinates and are left out")
    if extra := len(where) - int(both.sum()):
        notes.append(f"{extra} spots with coordinates have no counts")
    there = where.iloc[place[both]]
    if "in_tissue" in there and not there.in_tissue.all():
        notes.append(f"{(~there.in_tissue).sum()} spots are not in tissue and are left out")
        both[both] = there.in_tissue
        there = there[there.in_tissue]
    adata = adata[both].copy()
    adata.obsm["spatial"] = there[["x", "y"]].to_numpy(float)  # (n, 2)
    if {"array_row", "array_col"} <= set(there):
        adata.obs[["array_row", "array_col"]] = there[["array_row", "array_col"]].to_numpy()
    return adata, notes


def _add_pitch(raw: RawSample) -> None:
    """The pixel size of Visium's hexagonal array, where obs has its rows and columns."""
    obs = raw.adata.obs
    if not {"array_row", "array_col"} <= set(obs) or len(obs) < 10:
        return
    array = obs[["array_col", "array_row"]].to_numpy(float)  # (n, 2)
    if (array.sum(axis=1) % 2 != 0).any() or not np.isfinite(raw.adata.obsm["spatial"]).all():
        return  # on Visium, column plus row is even
    if (fit := fit_array(array, raw.adata.obsm["spatial"], VISIUM_PITCH)) is not None:
        check_fit(fit, str(raw.place))
        raw.um_per_px["pitch of the array"], raw.mirrored = fit.um_per_px, fit.mirrored
        raw.spot_um = SPOT_UM
