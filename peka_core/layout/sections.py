"""The two files of a section: `adata/<sample>.h5ad` and `patches/<sample>.h5`, as HEST has them.

The patches file has two forms (mahmoodlab/HEST, before and after August 2024):
current: coords (x, y) of the top-left corner, attrs `patch_size_src`, `downsample`;
older: coords (Y, X) of the centre, attrs `patch_size`, `factor`.
The data set of names is `barcode` or `barcodes`. The rows of both files are different subsets in
different orders, so spots are joined by barcode.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from ..common.errors import PekaError
from .hdf5 import open_h5, positive, reading
from .patches import TILE, TILE_UM_PER_PX


@dataclass(frozen=True, eq=False)
class Section:
    """Names and row numbers of one section; counts and pixels stay on disk."""

    sample: str  # sample id
    h5ad: Path  # file of the counts
    patches: Path | None  # file of the tiles; None if the cohort comes without tiles
    barcodes: np.ndarray  # (n,) str, the spots with counts and a tile, in the h5ad's order
    h5ad_rows: np.ndarray  # (n,) their rows in the h5ad
    tile_rows: np.ndarray  # (n,) their rows in the patches file
    genes: pd.Index  # symbols of all genes of this section
    without_tile: int  # how many spots of the h5ad have no tile
    um_per_px: float  # from the attributes of the patches file; NaN if unknown


def open_section(sample: str, h5ad: Path, patches: Path | None) -> Section:
    """Read the names of both files and join them by barcode.

    Raises:
        PekaError: a file is missing or unreadable, names are not unique, tiles have another size or
            dtype, or a tile's barcode is not in the h5ad.
    """
    with open_h5(h5ad) as file:
        spots = unique(names_of(file, "obs", h5ad), h5ad, "barcode")
        genes = unique(names_of(file, "var", h5ad), h5ad, "gene symbol")
    tiles, um_per_px = spots, np.nan
    if patches is not None:
        with open_h5(patches) as file:
            tiles = unique(tile_barcodes(file, patches), patches, "barcode")
            attrs, images = file["img"].attrs, file["img"]
            if "pixel_size" in attrs:
                um_per_px = positive(images, "pixel_size")
            elif scale := next((name for name in ("downsample", "factor") if name in attrs), ""):
                um_per_px = TILE_UM_PER_PX / positive(images, scale)
    unknown = tiles.difference(spots)
    if len(unknown):
        raise PekaError(
            f"{patches}: {len(unknown)} of {len(tiles)} tile barcodes are not in {h5ad.name} "
            f"(first: {unknown[0]}); expected every tile to belong to a spot with counts. "
            "Take both files from the same release."
        )
    place = tiles.get_indexer(spots)  # (spots,) row of each spot's tile, -1 without one
    rows = np.flatnonzero(place >= 0)
    names, untiled = spots.to_numpy()[rows], len(spots) - len(rows)
    return Section(sample, h5ad, patches, names, rows, place[rows], genes, untiled, um_per_px)


def unique(names: pd.Index, path: Path, what: str) -> pd.Index:
    """Return `names`; raise PekaError where one occurs twice."""
    if names.is_unique:
        return names
    twice = names[names.duplicated()].unique()
    raise PekaError(
        f"{path}: {len(twice)} {what}s occur more than once (first: {twice[0]}); expected unique "
        "names, because spots and genes are joined by name. Rename or merge them in this file."
    )


def names_of(file: h5py.File, axis: str, path: Path) -> pd.Index:
    """The index of an open h5ad's table `obs` or `var`, as text; `path` is for the message.

    Raises:
        PekaError: the file has no such table.
    """
    if axis not in file:
        raise PekaError(f"{path}: no `{axis}` in it; expected an AnnData file. Convert it first.")
    with reading(file, axis) as table:
        if (old := _old(file)) is not None:
            return getattr(old, f"{axis}_names").astype(str)
        name = table.attrs.get("_index")  # absent in files of old anndata
        index = pd.Index(ad.io.read_elem(table[name])) if name else ad.io.read_elem(table).index
    return index.astype(str)


def _old(file: h5py.File) -> ad.AnnData | None:
    """The whole of a file that anndata before 0.7 wrote, whose tables are records; else None."""
    if not isinstance(file["obs"], h5py.Dataset):
        return None
    with warnings.catch_warnings(action="ignore"):  # of the old form, and of repeated names
        return ad.read_h5ad(file.filename)  # only anndata's reader knows its forms


def tile_barcodes(file: h5py.File, path: Path, side: int = TILE) -> pd.Index:
    """Barcodes of the tiles of an open patches file, whose images must be uint8 of `side` px.

    Raises:
        PekaError: images or barcodes are missing, images have another form, or the numbers of both
            differ.
    """
    barcodes = barcodes_in(file)
    if "img" not in file or barcodes is None:
        text = f"expected `img` and `barcode`, found {sorted(file)}"
        raise PekaError(f"{path}: {text}. Fetch it again.")
    images = file["img"]
    if images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
        raise PekaError(
            f"{path}: tiles are {images.dtype} {images.shape[1:]}; expected uint8 "
            f"({side}, {side}, 3), which shows {TILE * TILE_UM_PER_PX:.0f} um. Take a newer "
            "release of this file, or cut the tiles again."
        )
    if len(barcodes) != len(images):
        number = f"{len(images)} tiles but {len(barcodes)} barcodes"
        raise PekaError(f"{path}: {number}; expected one each. Fetch it again.")
    return barcodes


def barcodes_in(file: h5py.File) -> pd.Index | None:
    """The barcodes (n,) of an open file of tiles or embeddings; None if it has none."""
    name = next((name for name in ("barcode", "barcodes") if name in file), None)
    if name is None:
        return None
    with reading(file, name) as stored:
        words = np.asarray(stored).reshape(-1)  # (n, 1) -> (n,)
    text = [word.decode() if isinstance(word, bytes) else str(word) for word in words]
    return pd.Index(text, dtype=object)


def tile_centres(section: Section) -> np.ndarray | None:
    """Centres (n, 2) of the tiles as (x, y) in slide pixels, or None where the file does not say.

    Raises:
        PekaError: not two coordinates for each tile.
    """
    with open_h5(section.patches) as file:
        attrs = file["img"].attrs
        if "coords" not in file or not {"patch_size_src", "patch_size"} & set(attrs):
            return None
        coords = tile_coords(file, section.patches)[section.tile_rows]  # (n, 2)
        if "patch_size_src" in attrs:
            return coords + positive(file["img"], "patch_size_src") / 2
        return coords[:, ::-1]


def tile_coords(file: h5py.File, path: Path) -> np.ndarray:
    """`coords` (m, 2) of an open patches file as stored.

    Raises:
        PekaError: there are not two for each tile.
    """
    with reading(file, "coords") as stored:
        coords = np.asarray(stored, dtype=float)
    if coords.shape != (len(file["img"]), 2):
        number = f"coords {coords.shape} of {len(file['img'])} tiles"
        raise PekaError(f"{path}: {number}; expected two numbers for each. Cut the tiles again.")
    return coords


def read_counts(section: Section) -> sparse.csr_matrix:
    """Raw counts (n, G) float32 of a section's spots, all its genes.

    Raises:
        PekaError: a count is NaN, negative or not an integer.
    """
    with open_h5(section.h5ad) as file:
        if "X" not in file:
            raise PekaError(f"{section.h5ad}: no `X`; expected raw counts. Write them into X.")
        with reading(file, "X") as x:
            if (old := _old(file)) is not None:
                counts = sparse.csr_matrix(old.X)
            elif isinstance(x, h5py.Group):
                counts = sparse.csr_matrix(ad.io.read_elem(x))
            else:  # dense counts, block by block
                blocks = [sparse.csr_matrix(x[i : i + 1024]) for i in range(0, x.shape[0], 1024)]
                counts = sparse.vstack(blocks, format="csr")
    _check_counts(counts.data, section.h5ad)
    counts = counts if len(section.h5ad_rows) == counts.shape[0] else counts[section.h5ad_rows]
    counts.sort_indices()
    return counts.astype(np.float32)


def stored_counts(section: Section) -> int | None:
    """How many counts a section's h5ad stores, read from its head; None if they are not sparse."""
    with open_h5(section.h5ad) as file:
        x = file.get("X")
        return len(x["data"]) if isinstance(x, h5py.Group) and "data" in x else None


def _check_counts(values: np.ndarray, path: Path) -> None:
    for what, is_bad in (
        ("NaN or infinite", lambda: ~np.isfinite(values)),
        ("negative", lambda: values < 0),
        ("not an integer", lambda: values != np.rint(values)),
    ):
        if number := int(np.count_nonzero(is_bad())):
            raise PekaError(
                f"{path}: {number} of {len(values)} stored counts are {what}; expected raw counts "
                "(0, 1, 2, ...) in X. Store the counts from before any normalisation."
            )


class Spots(NamedTuple):
    """Everything but the counts that an h5ad holds about a section's spots and genes."""

    obs: pd.DataFrame  # (n, columns), of the section's spots
    arrays: dict[str, np.ndarray]  # numeric obsm (n, ...) of these; spatial as float64 px
    var: pd.DataFrame  # (G, columns), of all its genes
    notes: list[str]  # warnings: what could not be read and is not needed


def read_spots(section: Section) -> Spots:
    """Per-spot columns, numeric obsm arrays and per-gene columns of a section.

    Raises:
        PekaError: there is no obsm["spatial"] of two columns, or a coordinate is not finite.
    """
    spots = stored_spots(section)
    unknown = ~np.isfinite(spots.arrays["spatial"]).all(axis=1)  # (n,)
    if unknown.any():
        raise PekaError(
            f'{section.h5ad}: obsm["spatial"] is NaN or infinite for {unknown.sum()} of '
            f"{len(unknown)} spots (first: {section.barcodes[unknown][0]}); expected the spot "
            "centres (x, y) in slide pixels. Leave these spots out, or add their coordinates."
        )
    return spots


def stored_spots(section: Section) -> Spots:
    """As `read_spots`, but coordinates need not be finite."""
    notes: list[str] = []
    with open_h5(section.h5ad) as file:
        if (old := _old(file)) is not None:
            obs, var, obsm = old.obs, old.var, dict(old.obsm)
        else:
            obs, var = (_table(file, axis, section.h5ad, notes) for axis in ("obs", "var"))
            obsm = {
                name: _if_readable(file, f"obsm/{name}", notes, needed=name == "spatial")
                for name in file.get("obsm", {})
            }
    numeric = lambda a: isinstance(a, np.ndarray) and a.dtype.kind in "iufb"
    arrays = {name: a[section.h5ad_rows] for name, a in obsm.items() if numeric(a)}
    if arrays.get("spatial", np.empty((0, 0))).shape[1:] != (2,):
        raise PekaError(
            f'{section.h5ad}: expected obsm["spatial"] with two columns, the spot centres (x, y), '
            "in slide pixels. Add it."
        )
    arrays["spatial"] = arrays["spatial"].astype(np.float64)
    obs.index, var.index = obs.index.astype(str), var.index.astype(str)
    return Spots(obs.iloc[section.h5ad_rows], arrays, var, notes)


def _if_readable(file: h5py.File, name: str, notes: list[str], needed: bool = False):
    """Return an element of an h5ad, or None and a warning in `notes` if it cannot be read."""
    try:
        with reading(file, name) as item:
            return ad.io.read_elem(item)
    except PekaError as error:
        if needed:
            raise
        notes.append(f"{error} It is not needed here and is left out.")


def _table(file: h5py.File, axis: str, path: Path, notes: list[str]) -> pd.DataFrame:
    """The table `obs` or `var`, without the columns that cannot be read."""
    try:
        with reading(file, axis) as table:
            return ad.io.read_elem(table)
    except PekaError:
        index = names_of(file, axis, path)
    names = file[axis].attrs.get("column-order", [])
    columns = {name: _if_readable(file, f"{axis}/{name}", notes) for name in names}
    readable = {name: column for name, column in columns.items() if column is not None}
    return pd.DataFrame(readable, index=index)
