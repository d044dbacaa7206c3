"""Expression: log-normalised counts, and the choice of the most variable genes as targets."""

import warnings
from collections.abc import Iterable

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from .common.errors import PekaError

BLOCK = 1024  # spots whose counts are float64 at a time


def log_cp10k(adata: ad.AnnData, dense: bool = True) -> np.ndarray | sparse.csr_matrix:
    """ln(1 + 1e4 c / total) as float32 (n, G); a spot without counts gets 0.

    Args:
        adata: raw counts in X. The total is obs["total_counts"], which a cohort takes before genes
            are joined. Without that column, it is the sum over all genes.
        dense: True gives an array, False a CSR matrix, for cohorts too large for an array. The CSR
            matrix shares the positions of its values with `adata.X`, so change neither in place.

    Raises:
        PekaError: no X, or a total that is NaN, infinite or negative.
    """
    x = adata.X  # a view copies its rows each time it is asked for X
    if x is None:
        raise PekaError("this AnnData has no X; expected raw counts (n, G) in it.")
    given = adata.obs["total_counts"] if "total_counts" in adata.obs else x.sum(axis=1)
    total = np.asarray(given, dtype=np.float64).ravel()  # (n,)
    wrong = ~(np.isfinite(total) & (total >= 0))
    if wrong.any():
        found = f"{wrong.sum()} of {len(wrong)} spots, {adata.obs_names[wrong][0]} first,"
        raise PekaError(f"obs['total_counts'] of {found} are NaN, infinite or negative")
    scale = np.divide(1e4, total, out=np.zeros_like(total), where=total > 0)  # (n,)
    counts = sparse.csr_matrix(x)  # (n, G)
    values, ends = np.empty(counts.nnz, np.float32), counts.indptr
    for start in range(0, len(scale), BLOCK):  # float64 copies of all values would not fit
        rows = np.arange(start, min(start + BLOCK, len(scale)))
        some = slice(ends[rows[0]], ends[rows[-1] + 1])
        per_value = np.repeat(scale[rows], np.diff(ends)[rows])  # (values,)
        values[some] = np.log1p(counts.data[some] * per_value)
    logged = sparse.csr_matrix((values, counts.indices, ends), counts.shape)
    return logged.toarray() if dense else logged


def variable_genes(cohort, masks: Iterable[np.ndarray], n_genes: int) -> list[list[str]]:
    """The `n_genes` most variable genes of some spots, in the order of the genes of every section.

    This is scanpy's highly_variable_genes with flavor seurat and batch_key sample. It orders genes
    by the number of sections in which they vary most, then by mean normalised dispersion. One
    section is in memory at a time.

    Args:
        cohort: `Cohort.by_section` gives its counts.
        masks: masks (n,) of the spots that one choice may use; there is one choice for each mask.
    """
    masks, samples = list(map(np.asarray, masks)), cohort.obs["sample"].to_numpy()
    tables: list[list[pd.DataFrame]] = [[] for _ in masks]
    for section in cohort.by_section():
        log, names = log_cp10k(section, dense=False), section.var_names
        here, seen = samples == section.obs["sample"].iloc[0], dict[bytes, pd.DataFrame]()
        for found, rows in zip(tables, [mask[here] for mask in masks], strict=True):
            if rows.any():
                key = rows.tobytes()  # most splits hold a section whole, so its table is made once
                seen[key] = seen[key] if key in seen else section_table(log[rows], names, n_genes)
                found.append(seen[key])
    return [best_genes(of_sections, names, n_genes) for of_sections in tables]


def best_genes(tables: list[pd.DataFrame], names: pd.Index, n_genes: int) -> list[str]:
    """The second step of `variable_genes`: the best genes of the tables of all sections.

    They are in the order of `names`; PekaError if no gene varies in any section.
    """
    ranked = [table for table in tables if table.to_numpy().any()]
    if not ranked:
        raise PekaError("no target gene: no gene varies in any section; look at the counts")
    merge = {"highly_variable": "sum", "dispersions_norm": "mean"}
    table = pd.concat(ranked).groupby(level=0).agg(merge)
    best = table.sort_values(list(merge), ascending=False).index[:n_genes]
    return list(names[names.isin(best)])


def section_table(log: sparse.csr_matrix, names: pd.Index, n_genes: int) -> pd.DataFrame:
    """The first step of `variable_genes`: scanpy's table of one section, one row a gene.

    Genes that the section does not express count as 0, as in scanpy's batches. All genes count as 0
    if none can be ranked (no counts, one spot, or no gene that varies).

    Args:
        log: log counts (n, G) of the section's spots.
        names: names of the genes (G,).
    """
    import scanpy as sc  # takes a second, as below

    expressed = log.max(axis=0).toarray().ravel() > 0  # (G,)
    section = ad.AnnData(log[:, expressed], var=pd.DataFrame(index=names[expressed]))
    silent = pd.DataFrame(0.0, index=names, columns=["highly_variable", "dispersions_norm"])
    if log.shape[0] < 2 or not expressed.any():
        return silent
    try:
        table = sc.pp.highly_variable_genes(
            section, n_top_genes=n_genes, flavor="seurat", inplace=False
        )
    except (ValueError, IndexError):  # scanpy's errors if all dispersions (variance / mean) agree
        counts = np.expm1(log[:, expressed].toarray())
        dispersion = counts.var(0) / counts.mean(0)  # (expressed,)
        if dispersion.max() > dispersion.min() * (1 + 1e-5):
            raise
        return silent
    return table[["highly_variable", "dispersions_norm"]].astype(float).reindex(names, fill_value=0)


def top_genes(cohort, n_genes: int) -> list[str]:
    """`variable_genes` of all spots of a cohort."""
    return variable_genes(cohort, [np.ones(len(cohort.obs), bool)], n_genes)[0]


def authors_genes(cohort, n_genes: int) -> list[str]:
    """The authors' choice of target genes (their step1_process_hvg.py), in the order of all genes.

    They use scanpy's normalize_total to the median depth, log1p, and highly_variable_genes with
    flavor seurat and the section as batch. A gene that a section did not measure counts as one that
    it does not express. One section is in memory at a time.
    """
    import scanpy as sc

    total, tables = cohort.obs["total_counts"].to_numpy(), []  # (n,)
    depth = np.median(total[total > 0])
    for section in cohort.by_section("outer"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some cells have zero counts")  # they stay 0
            sc.pp.normalize_total(section, target_sum=depth)
        sc.pp.log1p(section)
        tables.append(section_table(section.X, section.var_names, n_genes))
    return best_genes(tables, section.var_names, n_genes)
