"""The two files of one section, as HEST writes them: `adata/<sample>.h5ad` and `patches/<sample>.h5`.

Two generations of the patches file exist (HEST, mahmoodlab/HEST, before and after August 2024):
current: coords (x, y) of the top-left corner, attrs `patch_size_src`, `downsample`;
older: coords (Y, X) of the centre, attrs `patch_size`, `factor`. The dataset of names is `barcode` or `barcodes`.
Rows of the two files are different subsets in different orders, so spots are joined by barcode.
"""

from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from .files import PekaError
from .tiles import TILE, TILE_UM_PER_PX


@dataclass(frozen=True, eq=False)
class Section:
    """Names and row numbers of one section; counts and pixels stay on disk.

    Attributes:
        sample: sample id.
        h5ad: file of the counts.
        patches: file of the tiles, None where a cohort comes without tiles.
        barcodes: (n,) str, the spots with counts and a tile, in the h5ad's order.
        h5ad_rows: (n,) their rows in the h5ad.
        tile_rows: (n,) their rows in the patches file.
        genes: symbols, all of this section.
        without_tile: how many spots of the h5ad have no tile.
        um_per_px: from the attributes of the patches file, NaN where unknown.
    """

    sample: str
    h5ad: Path
    patches: Path | None
    barcodes: np.ndarray
    h5ad_rows: np.ndarray
    tile_rows: np.ndarray
    genes: pd.Index
    without_tile: int
    um_per_px: float


def open_section(sample: str, h5ad: Path, patches: Path | None) -> Section:
    """Read the names of both files and join them by barcode.

    Raises:
        PekaError: a file is missing or unreadable, names are not unique, tiles have another size or
            dtype, or a tile's barcode is not in the h5ad.
    """
    with open_h5(h5ad) as file:
        spots = unique(names_of(file, "obs", h5ad), h5ad, "barcode")
        genes = unique(names_of(file, "var", h5ad), h5ad, "gene symbol")
    if patches is None:
        everything = np.arange(len(spots))
        return Section(sample, h5ad, None, spots.to_numpy(), everything, everything, genes, 0, np.nan)
    with open_h5(patches) as file:
        tiles = unique(tile_barcodes(file, patches), patches, "barcode")
        um_per_px = _um_per_px(file["img"].attrs)
    unknown = tiles.difference(spots)
    if len(unknown):
        raise PekaError(
            f"{patches}: {len(unknown)} of {len(tiles)} tile barcodes are not in {h5ad.name} (first: {unknown[0]}); "
            f"expected every tile to belong to a spot with counts. Take both files from the same release."
        )
    place = tiles.get_indexer(spots)
    rows = np.flatnonzero(place >= 0)
    return Section(
        sample, h5ad, patches, spots.to_numpy()[rows], rows, place[rows], genes, len(spots) - len(rows), um_per_px
    )


def open_h5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading; PekaError where it is missing or broken."""
    if not path.is_file():
        raise PekaError(f"{path}: missing. The cohort lists it; fetch or build the cohort again.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise PekaError(f"{path}: not a readable HDF5 file ({error}). Delete it and fetch or build it again.") from error


def unique(names: pd.Index, path: Path, what: str) -> pd.Index:
    """Return `names`, or raise PekaError naming the first one that occurs twice."""
    if names.is_unique:
        return names
    twice = names[names.duplicated()].unique()
    raise PekaError(
        f"{path}: {len(twice)} {what}s occur more than once (first: {twice[0]}); expected unique names, "
        f"because spots and genes are joined by name. Rename or merge them in this file."
    )


def names_of(file: h5py.File, axis: str, path: Path) -> pd.Index:
    """The index of an open h5ad's table `obs` or `var`, as text; PekaError where it has none. `path` is for the message."""
    if axis not in file:
        raise PekaError(f"{path}: no `{axis}` in it; expected an AnnData file (.h5ad). Convert it first.")
    table = file[axis]
    name = table.attrs.get("_index")  # absent in files of old anndata
    index = pd.Index(ad.io.read_elem(table[name])) if name else ad.io.read_elem(table).index
    return index.astype(str)


def tile_barcodes(file: h5py.File, path: Path, side: int = TILE) -> pd.Index:
    """Barcodes of the tiles of an open patches file, after a look at the header of the images: they are uint8 of `side` px.

    Raises:
        PekaError: no images or barcodes, images of another form, or not as many of one as of the other.
    """
    barcodes = barcodes_in(file)
    if "img" not in file or barcodes is None:
        raise PekaError(f"{path}: expected the datasets `img` and `barcode`, found {sorted(file)}. Fetch it again.")
    images = file["img"]
    if images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
        raise PekaError(
            f"{path}: tiles are {images.dtype} {images.shape[1:]}; expected uint8 ({side}, {side}, 3), which shows "
            f"{TILE * TILE_UM_PER_PX:.0f} um. Take a newer release of this file, or cut the tiles again."
        )
    if len(barcodes) != len(images):
        raise PekaError(f"{path}: {len(images)} tiles but {len(barcodes)} barcodes; expected one each. Fetch it again.")
    return barcodes


def barcodes_in(file: h5py.File) -> pd.Index | None:
    """The barcodes (n,) of an open file of tiles or embeddings, under either name that HEST gives them; None without any."""
    name = next((name for name in ("barcode", "barcodes") if name in file), None)
    if name is None:
        return None
    words = np.asarray(file[name]).reshape(-1)  # (n, 1) -> (n,)
    return pd.Index([word.decode() if isinstance(word, bytes) else str(word) for word in words], dtype=object)


def _um_per_px(attrs) -> float:
    """Micrometres per pixel of the slide, from the attributes of either generation."""
    if "pixel_size" in attrs:
        return float(attrs["pixel_size"])
    scale = attrs.get("downsample", attrs.get("factor"))
    return np.nan if scale is None else TILE_UM_PER_PX / float(scale)


def tile_centres(section: Section) -> np.ndarray | None:
    """Centres (n, 2) of the tiles as (x, y) in slide pixels, or None where the file does not say."""
    with open_h5(section.patches) as file:
        attrs = file["img"].attrs
        if "coords" not in file or not {"patch_size_src", "patch_size"} & set(attrs):
            return None
        coords = np.asarray(file["coords"], dtype=float)[section.tile_rows]  # (n, 2)
        if "patch_size_src" in attrs:
            return coords + float(attrs["patch_size_src"]) / 2
        return coords[:, ::-1]


def read_counts(section: Section) -> sparse.csr_matrix:
    """Raw counts (n, G) float32 of a section's spots, all its genes.

    Raises:
        PekaError: a count is NaN, negative or not an integer.
    """
    with open_h5(section.h5ad) as file:
        if "X" not in file:
            raise PekaError(f"{section.h5ad}: no `X` in it; expected raw counts there. Write them into X.")
        if isinstance(file["X"], h5py.Dataset):
            blocks = [sparse.csr_matrix(file["X"][i : i + 1024]) for i in range(0, file["X"].shape[0], 1024)]
            counts = sparse.vstack(blocks, format="csr")
        else:
            counts = sparse.csr_matrix(ad.io.read_elem(file["X"]))
    _check_counts(counts.data, section.h5ad)
    counts = counts if len(section.h5ad_rows) == counts.shape[0] else counts[section.h5ad_rows]
    counts.sort_indices()
    return counts.astype(np.float32)


def _check_counts(values: np.ndarray, path: Path) -> None:
    for what, bad in (
        ("NaN or infinite", lambda: ~np.isfinite(values)),
        ("negative", lambda: values < 0),
        ("not an integer", lambda: values != np.rint(values)),
    ):
        number = int(np.count_nonzero(bad()))
        if number:
            raise PekaError(
                f"{path}: {number} of {len(values)} stored counts are {what}; expected raw counts (0, 1, 2, ...) in X. "
                f"Store the counts from before any normalisation."
            )


def read_spots(section: Section) -> tuple[pd.DataFrame, dict[str, np.ndarray], pd.DataFrame]:
    """Per-spot columns, numeric obsm arrays (spatial as float64 px) and per-gene columns of a section.

    Raises:
        PekaError: there is no obsm["spatial"] of two columns.
    """
    with open_h5(section.h5ad) as file:
        obs, var = ad.io.read_elem(file["obs"]), ad.io.read_elem(file["var"])
        arrays = {name: ad.io.read_elem(file["obsm"][name]) for name in file.get("obsm", {})}
    arrays = {name: a for name, a in arrays.items() if isinstance(a, np.ndarray) and a.dtype.kind in "iufb"}
    if arrays.get("spatial", np.empty((0, 0))).shape[1:] != (2,):
        raise PekaError(
            f'{section.h5ad}: expected obsm["spatial"] with two columns, the spot centres (x, y) in slide pixels. Add it.'
        )
    arrays["spatial"] = arrays["spatial"].astype(np.float64)
    obs.index, var.index = obs.index.astype(str), var.index.astype(str)
    return obs.iloc[section.h5ad_rows], {name: a[section.h5ad_rows] for name, a in arrays.items()}, var
