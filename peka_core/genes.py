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
            are joined. Without that column, as in your own AnnData, it is the sum over all genes.
        dense: True gives an array, False a CSR matrix, for cohorts too large for an array.

    Raises:
        PekaError: no X, or a total that is NaN, infinite or negative.
    """
    total = _totals(adata)  # (n,)
    scale = np.divide(1e4, total, out=np.zeros_like(total), where=total > 0)  # (n,)
    logged = np.log1p(
        sparse.csr_matrix(adata.X, dtype=np.float64).multiply(scale[:, None])
    )  # (n, G)
    logged = logged.tocsr().astype(np.float32)
    return logged.toarray() if dense else logged


def _totals(adata: ad.AnnData) -> np.ndarray:
    """Total counts (n,) float64 of each spot."""
    if adata.X is None:
        raise PekaError("this AnnData has no X; expected raw counts (n, G) in it.")
    given = adata.obs["total_counts"] if "total_counts" in adata.obs else adata.X.sum(axis=1)
    total = np.asarray(given, dtype=np.float64).ravel()
    bad = ~(np.isfinite(total) & (total >= 0))
    if bad.any():
        raise PekaError(
            f"total counts of {bad.sum()} of {len(bad)} spots are NaN, infinite or negative "
            f"(first: {adata.obs_names[bad][0]}); expected sums of raw counts. "
            "Look at X and obs['total_counts']."
        )
    return total


def variable_genes(
    log, adata: ad.AnnData, rows: np.ndarray, n_genes: int, seen: dict | None = None
) -> list[str]:
    """The `n_genes` most variable genes of some spots, in the order of `adata.var_names`.

    This is scanpy's highly_variable_genes with flavor seurat and batch_key sample: genes are
    ordered by the number of sections in which they are variable, then by mean normalised
    dispersion.

    Args:
        log: log counts (n, G) of all spots.
        adata: of the same spots; obs column sample and var_names are read.
        rows: mask (n,) of the spots that choose.
        seen: tables of sections, kept from one split to the next, because the step within a section
            depends on its spots alone.
    """
    seen = {} if seen is None else seen
    samples = adata.obs["sample"].to_numpy()
    tables = []
    for sample in sorted(set(samples[rows])):
        here = np.flatnonzero(rows & (samples == sample))
        key = here.tobytes()
        if key not in seen:
            seen[key] = section_table(log[here], adata.var_names, n_genes)
        tables.append(seen[key])
    return best_genes(tables, adata.var_names, n_genes)


def best_genes(tables: list[pd.DataFrame], names: pd.Index, n_genes: int) -> list[str]:
    """The second step of `variable_genes`: the best genes over all `section_table`s.

    Returns:
        genes in the order of `names`.

    Raises:
        PekaError: no gene varies in any section.
    """
    ranked = [table for table in tables if table.to_numpy().any()]
    if not ranked:
        raise PekaError(
            "no target genes can be chosen, because no gene varies in any section of these spots. "
            "Look at their counts."
        )
    merge = {"highly_variable": "sum", "dispersions_norm": "mean"}
    table = pd.concat(ranked).groupby(level=0).agg(merge)
    best = table.sort_values(list(merge), ascending=False).index[:n_genes]
    return list(names[names.isin(best)])


def section_table(
    log: np.ndarray | sparse.csr_matrix, names: pd.Index, n_genes: int
) -> pd.DataFrame:
    """The first step of `variable_genes`: scanpy's table of one section, one row a gene.

    Genes that the section does not express count as 0, as in scanpy's batches. Where no gene can be
    ranked (no counts, one spot, or no gene that varies) all count as 0.

    Args:
        log: log counts (n, G) of the section's spots.
        names: of the genes (G,).
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
    except (ValueError, IndexError):
        if _some_vary(log):
            raise
        return silent
    return table[["highly_variable", "dispersions_norm"]].astype(float).reindex(names, fill_value=0)


def _some_vary(log: np.ndarray) -> bool:
    """Whether genes of `log (n, G)` differ in dispersion (variance / mean) and can be ranked."""
    counts = np.expm1(log[:, log.any(0)])
    dispersion = counts.var(0) / counts.mean(0)  # (expressed,)
    return bool(dispersion.max() > dispersion.min() * (1 + 1e-5))


def top_genes(cohort, n_genes: int) -> list[str]:
    """`variable_genes` over all spots of a cohort, among the genes that every section measured.

    One section is in memory at a time.
    """
    common = joined_genes([section.genes for section in cohort.sections])
    logs = (log_cp10k(cohort.adata([sample])[:, common]) for sample in cohort.samples.index)
    return best_genes([section_table(log, common, n_genes) for log in logs], common, n_genes)


def authors_genes(adata: ad.AnnData, n_genes: int) -> list[str]:
    """The authors' choice of target genes (their step1_process_hvg.py).

    They use scanpy's normalize_total to the median depth, log1p, and highly_variable_genes with
    flavor seurat and the section as batch. One section is dense at a time. A gene that a section
    did not measure counts as one that it does not express.

    Args:
        adata: raw counts (n, G) of all sections, outer join.

    Returns:
        genes in the order of `adata.var_names`.
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
