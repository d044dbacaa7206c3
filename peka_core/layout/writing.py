"""Write a cohort directory: sections in HEST's current form, and the tables beside them."""

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from ..common.errors import PekaError
from ..common.files import one_name, write_json, write_whole
from .patches import TILE, TILE_UM_PER_PX, as_pixels


def write_sample(
    path: str | Path,
    sample: str,
    tiles: np.ndarray | None,
    coords_xy_topleft: np.ndarray | None,
    barcodes: Iterable[str],
    adata: ad.AnnData,
    um_per_px: float,
) -> str:
    """Write one section as HEST writes it today.

    The h5ad is written last, so that its presence means a whole section.

    Args:
        path: cohort directory.
        sample: sample id, the name of both files.
        tiles: uint8 (n, 224, 224, 3) RGB, or None to write the h5ad only.
        coords_xy_topleft: int (n, 2), (x, y) of the tiles' top-left corners in slide pixels.
        barcodes: (n,) names of the tiles.
        adata: raw counts; the obs index has the barcodes, and obsm["spatial"] the spot centres
            (x, y) in slide pixels.
        um_per_px: micrometres per pixel of the slide.

    Returns:
        sha256 of the tiles' bytes in this order, for the column `tiles_sha256` of samples.csv; ""
        without tiles.

    Raises:
        PekaError: tiles are not uint8 of this shape, corners are not two finite numbers each, the
            pixel size is not above 0, or the sample id is no file name.
    """
    sample, digest = one_name(sample, f"{path}: sample id"), ""
    if tiles is not None:
        digest = write_tiles(path, sample, tiles, coords_xy_topleft, barcodes, um_per_px)
    raw = adata.copy()
    raw.X = sparse.csr_matrix(raw.X, dtype=np.float32)
    write_whole(Path(path) / "adata" / f"{sample}.h5ad", raw.write_h5ad)
    return digest


def write_tiles(
    path: str | Path,
    sample: str,
    tiles: np.ndarray,
    coords_xy_topleft: np.ndarray,
    barcodes: Iterable[str],
    um_per_px: float,
) -> str:
    """Write the patches file alone; arguments, digest and errors as in `write_sample`."""
    sample = one_name(sample, f"{path}: sample id")
    names, tiles = list(barcodes), np.ascontiguousarray(as_pixels(tiles, sample))
    if tiles.shape != (len(names), TILE, TILE, 3):
        wanted = f"({len(names)}, {TILE}, {TILE}, 3), one for each barcode"
        raise PekaError(f"{sample}: tiles {tiles.shape}, expected {wanted}. Cut them again.")
    corners = np.asarray(coords_xy_topleft, dtype=np.float64)
    finite = corners.shape == (len(names), 2) and np.isfinite(corners).all()
    if not finite or not 0 < um_per_px < np.inf:
        raise PekaError(
            f"{sample}: expected the finite (x, y) of {len(names)} top-left corners and a pixel "
            f"size above 0 um, found corners {corners.shape}, {np.isnan(corners).sum()} of their "
            f"numbers NaN, and {um_per_px} um. Look at the spots' coordinates."
        )

    def write(file: Path) -> None:
        with h5py.File(file, "w") as h5:
            form = {"chunks": (1, TILE, TILE, 3), "maxshape": (None, TILE, TILE, 3)}
            images = h5.create_dataset("img", data=tiles, **form)
            h5["coords"] = corners.astype(np.int64)
            column = np.array(names, dtype=object).reshape(-1, 1)  # (n, 1)
            h5.create_dataset("barcode", data=column, dtype=h5py.string_dtype())
            images.attrs["patch_size_src"] = round(TILE * TILE_UM_PER_PX / um_per_px)
            images.attrs["patch_size_target"] = TILE
            images.attrs["downsample"] = TILE_UM_PER_PX / um_per_px
            images.attrs["pixel_size"] = um_per_px

    write_whole(Path(path) / "patches" / f"{sample}.h5", write)
    return hashlib.sha256(tiles).hexdigest()


def write_cohort_tables(
    path: str | Path,
    samples: pd.DataFrame,
    splits: list[tuple[Iterable[str], Iterable[str]]],
    genes: Iterable[str],
) -> None:
    """Write samples.csv, splits/train_i.csv, test_i.csv and var_<k>genes.json.

    Splits and gene lists of an earlier build are deleted.

    Args:
        path: cohort directory.
        samples: sample_id as index or column, with the columns of `samples.csv` that are known.
        splits: (training sample ids, test sample ids) of each held-out split.
        genes: the k target genes; no gene list is written if there are none.

    Raises:
        PekaError: a sample id cannot be the name of a file; nothing is written then.
    """
    path, genes = Path(path), list(genes)
    table = samples if "sample_id" in samples else samples.rename_axis("sample_id").reset_index()
    splits = [tuple(list(ids) for ids in sides) for sides in splits]
    for sample in [*table["sample_id"], *(s for sides in splits for ids in sides for s in ids)]:
        one_name(sample, f"{path}: sample id")
    for old in (*path.glob("splits/*.csv"), *path.glob("var_*genes.json")):
        old.unlink()
    tables = {"samples.csv": table}
    for i, sides in enumerate(splits):
        for side, ids in zip(("train", "test"), sides, strict=True):
            rows = [(s, f"patches/{s}.h5", f"adata/{s}.h5ad") for s in ids]
            split = pd.DataFrame(rows, columns=["sample_id", "patches_path", "expr_path"])
            tables[f"splits/{side}_{i}.csv"] = split
    for name, table in tables.items():
        write_whole(path / name, partial(table.to_csv, index=False, lineterminator="\n"))
    if genes:
        write_json(path / f"var_{len(genes)}genes.json", {"genes": genes})
