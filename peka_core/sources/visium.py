"""Read a folder of Space Ranger, versions 1 to 4: counts, positions and scale factors.

Space Ranger 1 writes `tissue_positions_list.csv` without a header, later versions
`tissue_positions.csv` with one, and Visium HD `tissue_positions.parquet` for each size of bins.
Files may have a prefix (`GSM123_liver1_filtered_feature_bc_matrix.h5`), as on GEO.
"""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from ..common.errors import PekaError
from ..slides.scale import SPOT_DIAMETER_UM, VISIUM_PITCH, ArrayFit, check_fit, fit_array
from .raw_sample import RawSample, counts_table
from .space_ranger_counts import read_counts
from .space_ranger_files import (
    COUNTS,
    POSITIONS,
    counts_file_of,
    files_by_prefix,
    one_of,
    outs_of,
    read_positions,
    read_scales,
)  # fmt: skip

SPOT_UM = 55.0  # printed diameter
OFF_TISSUE = 0.05  # of the filtered spots at most; Space Ranger filters by in_tissue, so it is 0
SQUARE_UM = 56  # of pooled HD bins; about a Visium spot


def read_visium(folder: str | Path, bin_um: float | None = None) -> RawSample:
    """Read a Space Ranger folder: `outs`, the folder above it, or one folder of HD bins.

    Args:
        folder: where the files are. If several samples lie in one folder, give the folder and the
            prefix of one: `geo/GSM123_liver1_`.
        bin_um: bins of Visium HD are pooled to squares of this side, `SQUARE_UM` if None; their
            counts are summed.

    Raises:
        PekaError: a file is missing, damaged or ambiguous, or the tables do not belong together.
    """
    folder, prefix = outs_of(Path(folder))
    counts_file, prefix = counts_file_of(folder, prefix)
    positions_file = one_of(folder, prefix, POSITIONS, "the positions of the spots")
    scales_file = one_of(folder, prefix, ("scalefactors_json.json",), "the scale factors")
    positions, scales = read_positions(positions_file), read_scales(scales_file)
    adata, notes = read_counts(counts_file, prefix)
    joined, more = _joined(adata, positions, counts_file, positions_file)
    raw = RawSample(joined, folder, "Visium", positions=positions, notes=notes + more)
    raw.spot_um = SPOT_UM
    _add_images(raw, folder, prefix, scales)
    if "bin_size_um" in scales:
        return _pooled(raw, scales, SQUARE_UM if bin_um is None else bin_um, scales_file)
    if bin_um is not None:
        raise PekaError(
            f"{scales_file}: no bins here, so --bin-um {bin_um:g} says nothing; expected a folder "
            "of Visium HD. Leave the option out."
        )
    fit = fit_array(positions[["array_col", "array_row"]], positions[["x", "y"]], VISIUM_PITCH)
    raw.um_per_px = _pitch(fit, positions_file)
    if spot := scales.get("spot_diameter_fullres"):
        raw.um_per_px["65 um / spot_diameter_fullres"] = SPOT_DIAMETER_UM / spot
    raw.mirrored = fit.mirrored if fit else None
    return raw


def _add_images(raw: RawSample, folder: Path, prefix: str, scales: dict) -> None:
    """Note the sizes of the small images, and from them the size of the wanted one."""
    from PIL import Image

    for kind in ("hires", "lowres"):
        found = files_by_prefix(folder, f"tissue_{kind}_image.png")
        file, scale = found.get(prefix) or found.get(""), scales.get(f"tissue_{kind}_scalef")
        if file is None or not scale:
            continue
        try:
            with Image.open(file) as image:
                size = image.size
        except OSError:
            raw.notes.append(f"{file} cannot be read; it is not needed")
            continue
        raw.small_images[file.name] = size
        raw.overview = raw.overview or file
        raw.expected_size = raw.expected_size or (size[0] / scale, size[1] / scale)


# ---- counts and positions together ------------------------------------------------------------


def _joined(
    adata: ad.AnnData, positions: pd.DataFrame, counts_file: Path, positions_file: Path
) -> tuple[ad.AnnData, list[str]]:
    """Counts of the spots in tissue, with their places; and notes."""
    place = positions.index.get_indexer(adata.obs_names)  # (n,)
    if (place < 0).any():
        missing = adata.obs_names[place < 0]
        raise PekaError(
            f"{positions_file}: {len(missing)} of {adata.n_obs} barcodes of {counts_file.name} "
            f"have no position (first: {missing[0]}, positions have {positions.index[0]}); "
            "expected both files of the same sample. Take them from the same folder."
        )
    there = positions.iloc[place]
    adata.obs = there[["in_tissue", "array_row", "array_col"]].astype(int)
    adata.obsm["spatial"] = there[["x", "y"]].to_numpy(float)  # (n, 2)
    notes, kept = [], there.in_tissue.to_numpy()
    if COUNTS[0] in counts_file.name and (~kept).mean() > OFF_TISSUE:
        raise PekaError(
            f"{positions_file}: it says that {(~kept).sum()} of {len(kept)} spots of "
            f"{counts_file.name} are not in tissue; expected all in tissue, because the filtered "
            "counts hold no other spots. All samples share their barcodes, so this is probably the "
            "table of another sample. Take both files from the same folder."
        )
    if not kept.all():
        notes.append(f"{(~kept).sum()} of {len(kept)} spots are not in tissue and are left out")
    without = int(positions.in_tissue.sum() - kept.sum())
    if without:
        notes.append(f"{without} positions in tissue have no row in {counts_file.name}")
    return adata[kept].copy(), notes


def _pitch(fit: ArrayFit | None, file: Path) -> dict[str, float]:
    """The pixel size of the array's pitch, after a check of the fit."""
    if fit is None:
        return {}
    check_fit(fit, str(file))
    return {"pitch of the array": fit.um_per_px}


def _pooled(raw: RawSample, scales: dict, bin_um: float, file: Path) -> RawSample:
    """Bins of Visium HD summed into squares of `bin_um`."""
    bin_size, positions = scales["bin_size_um"], raw.positions
    k = round(bin_um / bin_size)  # bins along a side
    if k < 1 or abs(k * bin_size - bin_um) > 1e-6:
        raise PekaError(
            f"{file}: bins of {bin_size:g} um cannot be pooled to {bin_um:g} um; expected a "
            f"multiple of {bin_size:g}. Give another --bin-um."
        )
    pitch = (bin_size, bin_size)
    fit = fit_array(positions[["array_col", "array_row"]], positions[["x", "y"]], pitch)
    if fit is None:
        raise PekaError(f"{file.parent}: all bins lie on one line. Copy the positions again.")
    if size := scales.get("microns_per_pixel"):
        raw.um_per_px["microns_per_pixel of Space Ranger"] = size
    raw.um_per_px |= _pitch(fit, file.parent)
    raw.mirrored, raw.spot_um = fit.mirrored, None  # the squares are side by side
    raw.technology = f"Visium HD, squares of {k * bin_size:g} um"
    if k > 1:
        raw.adata = _pool(raw.adata, k, fit, bin_size)
        bins = raw.adata.obs.bins
        raw.notes.append(
            f"bins of {bin_size:g} um were pooled into {len(bins)} squares of {k * bin_size:g} um; "
            f"a square has {bins.min()} to {bins.max()} bins in tissue (median {bins.median():g} "
            f"of {k * k}), and {(bins < k * k / 2).sum()} squares have less than half"
        )
    return raw


def _pool(adata: ad.AnnData, k: int, fit: ArrayFit, bin_size: float) -> ad.AnnData:
    """Sums over squares of k x k bins; obs["bins"] is the number of bins in tissue of each."""
    squares = (adata.obs[["array_row", "array_col"]] // k).to_numpy()  # (n, 2)
    there, square = np.unique(squares, axis=0, return_inverse=True)  # (m, 2), (n,)
    one = np.ones(adata.n_obs, np.float32)
    member = sparse.csr_matrix((one, (square.ravel(), np.arange(adata.n_obs))))  # (m, n)
    names = [f"s_{k * bin_size:03.0f}um_{row:05d}_{col:05d}" for row, col in there]
    pooled = counts_table(member @ adata.X, names, adata.var_names)  # (m, n) x (n, G)
    pooled.var = adata.var.copy()
    pooled.obs["bins"] = np.asarray(member.sum(axis=1), int).ravel()
    pooled.obs[["array_row", "array_col"]] = there
    middle = there[:, ::-1] * k + (k - 1) / 2  # (m, 2) col, row in units of bins
    pooled.obsm["spatial"] = fit.centres(middle)
    return pooled
