"""Read a folder of Space Ranger, versions 1 to 4: counts, positions and scale factors.

Space Ranger 1 writes `tissue_positions_list.csv` without a header, later versions
`tissue_positions.csv` with one, and Visium HD `tissue_positions.parquet` for each size of bins.
Files may have a prefix (`GSM123_liver1_filtered_feature_bc_matrix.h5`), as on GEO.
"""

import gzip
import json
import re
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import io, sparse

from ..common.errors import PekaError
from ..layout.hdf5 import open_h5, reading
from ..slides.scale import SPOT_DIAMETER_UM, VISIUM_PITCH, ArrayFit, check_fit, fit_array
from .raw_sample import RawSample, counts_table

COUNTS = ("filtered_feature_bc_matrix", "raw_feature_bc_matrix")  # .h5, or a folder with mtx
POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
SCALES = "scalefactors_json.json"
COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "y", "x"]  # y before x in the files
HEADER = [*COLUMNS[:4], "pxl_row_in_fullres", "pxl_col_in_fullres"]
SPOT_UM = 55.0  # printed diameter
SQUARE_UM = 56  # of pooled HD bins; about a Visium spot


def read_visium(folder: str | Path, bin_um: float = SQUARE_UM) -> RawSample:
    """Read a Space Ranger folder: `outs`, the folder above it, or one folder of HD bins.

    Args:
        folder: where the files are. If several samples lie in one folder, give the folder and the
            prefix of one: `geo/GSM123_liver1_`.
        bin_um: bins of Visium HD are pooled to squares of this side; their counts are summed.

    Raises:
        PekaError: a file is missing, damaged or ambiguous, or the tables do not belong together.
    """
    folder, prefix = _outs(Path(folder))
    counts_file, prefix = _counts_file(folder, prefix)
    positions_file = _one_of(folder, prefix, POSITIONS, "the positions of the spots")
    scales_file = _one_of(folder, prefix, (SCALES,), "the scale factors")
    positions, scales = read_positions(positions_file), read_scales(scales_file)
    adata, notes = read_counts(counts_file, prefix)
    joined, more = _joined(adata, positions, counts_file, positions_file)
    raw = RawSample(joined, folder, "Visium", positions=positions, notes=notes + more)
    raw.spot_um = SPOT_UM
    _add_images(raw, folder, prefix, scales)
    if "bin_size_um" in scales:
        return _pooled(raw, scales, bin_um, scales_file)
    fit = fit_array(positions[["array_col", "array_row"]], positions[["x", "y"]], VISIUM_PITCH)
    raw.um_per_px = _pitch(fit, positions_file)
    if spot := scales.get("spot_diameter_fullres"):
        raw.um_per_px["65 um / spot_diameter_fullres"] = SPOT_DIAMETER_UM / spot
    raw.mirrored = fit.mirrored if fit else None
    return raw


# ---- which files ------------------------------------------------------------------------------


def _outs(folder: Path) -> tuple[Path, str | None]:
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


def _found(folder: Path, name: str) -> dict[str, Path]:
    """Files called `name` by their prefix; also packed with gzip, and also in `<prefix>spatial`."""
    found: dict[str, Path] = {}
    for of_folder in (folder, *sorted(d for d in folder.glob("*spatial") if d.is_dir())):
        start = "" if of_folder == folder else of_folder.name.removesuffix("spatial")
        for file in sorted(of_folder.glob(f"*{name}*")):
            if match := re.fullmatch(rf"(.*?){re.escape(name)}(\.gz)?", file.name):
                found.setdefault(match[1] or start, file)
    return found


def _counts_file(folder: Path, prefix: str | None) -> tuple[Path, str]:
    """The counts (h5 or a folder of mtx) and the prefix of their names."""
    for name in COUNTS:
        # a folder may also hold the three files of mtx themselves
        found = {p: folder for p in _found(folder, "matrix.mtx")}
        found |= {p: d for p, d in _found(folder, name).items() if d.is_dir()}
        found |= _found(folder, f"{name}.h5")
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


def _one_of(folder: Path, prefix: str, names: tuple[str, ...], what: str) -> Path:
    """The first of some files, with the counts' prefix or without any."""
    others = set()
    for name in names:
        found = _found(folder, name)
        if file := found.get(prefix) or found.get(""):
            return file
        others |= set(found)
    why = f" Files with another prefix are there ({', '.join(sorted(others))})." if others else ""
    raise PekaError(
        f"{folder}: no {prefix}{names[-1]} ({what}), also not in spatial/.{why} Expected it beside "
        "the counts of the same sample. Copy or rename it."
    )


def _add_images(raw: RawSample, folder: Path, prefix: str, scales: dict) -> None:
    """Note the sizes of the small images, and from them the size of the wanted one."""
    from PIL import Image

    for kind in ("hires", "lowres"):
        found = _found(folder, f"tissue_{kind}_image.png")
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
        raw.expected_size = raw.expected_size or (size[0] / scale, size[1] / scale)


# ---- one file each ----------------------------------------------------------------------------


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


def read_counts(file: Path, prefix: str = "") -> tuple[ad.AnnData, list[str]]:
    """Counts of an h5 file or of a folder with matrix.mtx, barcodes and features.

    Args:
        file: the h5 file or the folder.
        prefix: of the names in the folder.

    Returns:
        AnnData, var_names unique symbols (ids where there are no symbols), var["gene_ids"]; and
        notes about what was left out.

    Raises:
        PekaError: a file is missing, damaged, or the three do not belong together.
    """
    x, barcodes, features = _read_h5(file) if file.is_file() else _read_mtx(file, prefix)
    wanted, notes = (features.kind == "Gene Expression").to_numpy(), []
    if not wanted.all():
        notes.append(f"{(~wanted).sum()} of {len(wanted)} features are no genes and are left out")
        x, features = x[:, wanted], features[wanted]
    adata = counts_table(x, barcodes, features.name, features.id)
    if (features.name == features.id).all():
        notes.append(f"genes have ids only ({features.name.iloc[0]}, ...), and these are kept")
    return adata, notes


def _read_h5(file: Path) -> tuple[sparse.spmatrix, np.ndarray, pd.DataFrame]:
    """X (n, G), barcodes (n,) and features (G,) of Space Ranger's HDF5 file."""
    with open_h5(file) as h5:
        if "matrix/features" not in h5:
            raise PekaError(
                f"{file}: no `matrix/features` in it (found {', '.join(sorted(h5)[:5])}); expected "
                f"{COUNTS[0]}.h5 of Space Ranger. For an AnnData file use `peka import table`."
            )
        with reading(h5, "matrix") as m:
            parts = (m["data"][:], m["indices"][:], m["indptr"][:])
            x = sparse.csc_matrix(parts, shape=tuple(m["shape"][:])).T.tocsr()  # (n, G)
            text = lambda name: m[name].asstr()[:]
            names = text("features/id"), text("features/name"), text("features/feature_type")
            features = pd.DataFrame(dict(zip(("id", "name", "kind"), names)))
            return x, text("barcodes"), features


def _read_mtx(folder: Path, prefix: str) -> tuple[sparse.spmatrix, np.ndarray, pd.DataFrame]:
    """X (n, G), barcodes (n,) and features (G,) of a folder in the Market Exchange format."""
    file = lambda *names: _one_of(folder, prefix, names, "a part of the counts")
    table = lambda path: pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False)
    matrix, genes = file("matrix.mtx"), file("features.tsv", "genes.tsv")
    try:
        with (gzip.open if matrix.suffix == ".gz" else open)(matrix, "rb") as handle:
            x = sparse.csr_matrix(io.mmread(handle).T)  # (n, G)
        features, barcodes = table(genes), table(file("barcodes.tsv"))[0].to_numpy()
    except (ValueError, OSError, EOFError) as error:
        raise PekaError(
            f"{matrix}: this folder's counts cannot be read ({error}). They are damaged or cut "
            "short. Copy them again from Space Ranger's outs."
        ) from error
    if x.shape != (len(barcodes), len(features)):
        raise PekaError(
            f"{matrix}: counts {x.shape[::-1]}, but {len(features)} genes and {len(barcodes)} "
            "barcodes beside it; expected files of one sample. Copy them again."
        )
    columns = [features.get(i, features[0]) for i in range(2)]  # ids alone, or ids and symbols
    kind = features.get(2, pd.Series("Gene Expression", features.index))
    return x, barcodes, pd.DataFrame(dict(zip(("id", "name", "kind"), (*columns, kind))))


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
