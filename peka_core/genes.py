"""Expression: log-normalised counts, and the choice of the most variable genes as targets."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

from .common.errors import PekaError
from .layout.gene_columns import joined_genes


def log_cp10k(adata: ad.AnnData, dense: bool = True) -> np.ndarray | sparse.csr_matrix:
    """ln(1 + 1e4 c / total) as float32 (n, G); a spot without counts gets 0.

    Args:
        adata: raw counts in X. The total is obs["total_counts"], which a cohort takes before genes
            are joined. Without that column, it is the sum over all genes.
        dense: True gives an array, False a CSR matrix, for cohorts too large for an array.

    Raises:
        PekaError: no X, or a total that is NaN, infinite or negative.
    """
    if adata.X is None:
        raise PekaError("this AnnData has no X; expected raw counts (n, G) in it.")
    given = adata.obs["total_counts"] if "total_counts" in adata.obs else adata.X.sum(axis=1)
    total = np.asarray(given, dtype=np.float64).ravel()  # (n,)
    wrong = ~(np.isfinite(total) & (total >= 0))
    if wrong.any():
        found = f"{wrong.sum()} of {len(wrong)} spots, {adata.obs_names[wrong][0]} first,"
        raise PekaError(f"obs['total_counts'] of {found} are NaN, infinite or negative")
    scale = np.divide(1e4, total, out=np.zeros_like(total), where=total > 0)  # (n,)
    counts = sparse.csr_matrix(adata.X, dtype=np.float64)  # (n, G)
    logged = np.log1p(counts.multiply(scale[:, None])).tocsr().astype(np.float32)
    return logged.toarray() if dense else logged


def variable_genes(
    log, adata: ad.AnnData, rows: np.ndarray, n_genes: int, seen: dict | None = None
) -> list[str]:
    """The `n_genes` most variable genes of some spots, in the order of `adata.var_names`.

    This is scanpy's highly_variable_genes with flavor seurat and batch_key sample. It orders genes
    by the number of sections in which they vary most, then by mean normalised dispersion.

    Args:
        log: log counts (n, G) of all spots.
        adata: the same spots; only obs["sample"] and var_names are read.
        rows: mask (n,) of the spots that the choice may use.
        seen: a cache of section tables for the next split, because the table of a section depends
            on its own spots only.
    """
    seen = {} if seen is None else seen
    samples = adata.obs["sample"].to_numpy()
    tables = []
    for sample in sorted(set(samples[rows])):
        spots = np.flatnonzero(rows & (samples == sample))
        key = spots.tobytes()
        if key not in seen:
            seen[key] = section_table(log[spots], adata.var_names, n_genes)
        tables.append(seen[key])
    return best_genes(tables, adata.var_names, n_genes)


def best_genes(tables: list[pd.DataFrame], names: pd.Index, n_genes: int) -> list[str]:
    """The second step of `variable_genes`: the best genes of all `section_table`s.

    They are in the order of `names`; PekaError if no gene varies in any section.
    """
    ranked = [table for table in tables if table.to_numpy().any()]
    if not ranked:
        raise PekaError("no target gene: no gene varies in any section; look at the counts")
    merge = {"highly_variable": "sum", "dispersions_norm": "mean"}
    table = pd.concat(ranked).groupby(level=0).agg(merge)
    best = table.sort_values(list(merge), ascending=False).index[:n_genes]
    return list(names[names.isin(best)])


def section_table(
    log: np.ndarray | sparse.csr_matrix, names: pd.Index, n_genes: int
) -> pd.DataFrame:
    """The first step of `variable_genes`: scanpy's table of one section, one row a gene.

    Genes that the section does not express count as 0, as in scanpy's batches. All genes count as 0
    if none can be ranked (no counts, one spot, or no gene that varies).

    Args:
        log: log counts (n, G) of the section's spots.
        names: names of the genes (G,).
    """
    log = log if isinstance(log, np.ndarray) else log.toarray()
    expressed = log.any(0)
    section = ad.AnnData(log[:, expressed], var=pd.DataFrame(index=names[expressed]))
    silent = pd.DataFrame(0.0, index=names, columns=["highly_variable", "dispersions_norm"])
    if len(log) < 2 or not expressed.any():
        return silent
    try:
        table = sc.pp.highly_variable_genes(
            section, n_top_genes=n_genes, flavor="seurat", inplace=False
        )
    except (ValueError, IndexError):  # scanpy's errors if all dispersions (variance / mean) agree
        counts = np.expm1(log[:, expressed])
        dispersion = counts.var(0) / counts.mean(0)  # (expressed,)
        if dispersion.max() > dispersion.min() * (1 + 1e-5):
            raise
        return silent
    return table[["highly_variable", "dispersions_norm"]].astype(float).reindex(names, fill_value=0)


def top_genes(cohort, n_genes: int) -> list[str]:
    """`variable_genes` of a cohort, among the genes of every section; one in memory at a time."""
    common = joined_genes([section.genes for section in cohort.sections])
    logs = (log_cp10k(cohort.adata([sample])[:, common]) for sample in cohort.samples.index)
    return best_genes([section_table(log, common, n_genes) for log in logs], common, n_genes)


def authors_genes(adata: ad.AnnData, n_genes: int) -> list[str]:
    """The authors' choice of target genes (their step1_process_hvg.py), in the order of var_names.

    They use scanpy's normalize_total to the median depth, log1p, and highly_variable_genes with
    flavor seurat and the section as batch. One section is dense at a time.

    Args:
        adata: raw counts (n, G) of all sections, outer join: a gene that a section did not measure
            counts as one that it does not express.
    """
    total, samples = np.asarray(adata.X.sum(1)).ravel(), adata.obs["sample"].to_numpy()  # (n,)
    depth, tables = np.median(total[total > 0]), []
    for name in sorted(set(samples)):
        section = adata[samples == name].copy()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some cells have zero counts")  # they stay 0
            sc.pp.normalize_total(section, target_sum=depth)
        sc.pp.log1p(section)
        tables.append(section_table(section.X, adata.var_names, n_genes))
    return best_genes(tables, adata.var_names, n_genes)
