"""The counts of Space Ranger: an HDF5 file, or a folder in the Market Exchange format (mtx)."""

import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import io, sparse

from ..common.errors import PekaError
from ..layout.hdf5 import open_h5, reading
from .raw_sample import counts_table
from .space_ranger_files import COUNTS, one_of


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
    if len(features) and (features.name == features.id).all():
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
    file = lambda *names: one_of(folder, prefix, names, "a part of the counts")
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
