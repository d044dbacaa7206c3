"""Cohort files changed or damaged on purpose."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from peka_core.cohort import open_cohort
from peka_core.common.errors import PekaError


def edit_h5ad(path, change):
    """Change an h5ad by a function of its AnnData, which may return another one."""
    adata = ad.read_h5ad(path)
    (change(adata) or adata).write_h5ad(path)


def edit_h5(path, **datasets):
    """Replace data sets of an HDF5 file; attributes stay."""
    with h5py.File(path, "a") as file:
        for name, values in datasets.items():
            attrs = dict(file[name].attrs)
            del file[name]
            file[name] = values
            file[name].attrs.update(attrs)


def keep_tiles(path, rows):
    """Keep some rows of a patches file, in this order."""
    with h5py.File(path) as file:
        kept = {name: file[name][:][rows] for name in ("img", "coords", "barcode")}
    edit_h5(path, **kept)


def edit_samples(cohort, **columns):
    """Set columns of samples.csv."""
    table = pd.read_csv(cohort / "samples.csv", dtype=str).assign(**columns)
    table.to_csv(cohort / "samples.csv", index=False)


def refused(cohort, *names, call=open_cohort):
    """The call must raise a PekaError that names these; returns its message."""
    with pytest.raises(PekaError) as caught:
        call(cohort)
    for name in names:
        assert str(name) in str(caught.value), str(caught.value)
    return str(caught.value)


def zero_middle(path, name):
    """Compress a data set and zero the middle of its first chunk: it opens, but reading fails."""
    with h5py.File(path, "r+") as file:
        values, attrs, kind = file[name][()], dict(file[name].attrs), file[name].dtype
        del file[name]
        stored = file.create_dataset(name, data=values, dtype=kind, chunks=True, compression="gzip")
        stored.attrs.update(attrs)
        chunk = stored.id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset + 2)
        file.write(b"\0" * max(4, chunk.size // 2))


def write_old_anndata(path):
    """Write an h5ad again as anndata before 0.7 did."""
    adata = ad.read_h5ad(path)
    x, tables = adata.X.tocsr(), {"obs": adata.obs_names, "var": adata.var_names}
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group["data"], group["indices"], group["indptr"] = x.data, x.indices, x.indptr
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", np.array(x.shape)
        for name, words in tables.items():
            rows = [(word.encode(),) for word in words]
            file[name] = np.array(rows, dtype=[("index", "S20")])
        rows = [(place,) for place in adata.obsm["spatial"]]
        file["obsm"] = np.array(rows, dtype=[("spatial", "f8", (2,))])
