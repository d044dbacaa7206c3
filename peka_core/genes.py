"""Expression: log-normalised counts, and the choice of the target genes, the most variable ones."""

import warnings

import anndata
import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

from .errors import PekaError
from .layout.gene_columns import joined_genes


def log_cp10k(adata: ad.AnnData, dense: bool = True) -> np.ndarray | sparse.csr_matrix:
    """ln(1 + 1e4 c / total) as float32 (n, G), total = obs["total_counts"]; 0 for a spot without counts.

    Args:
        adata: raw counts in X. Without obs["total_counts"], as in an AnnData of one's own, the total is taken over all its genes;
            a cohort's has the total from before genes were joined.
        dense: an array, G values a spot; otherwise CSR, which keeps the zeros of counts that have tens of thousands of spots.

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
        raise PekaError(
            "this AnnData has no X; expected raw counts (n, G) there. Copy them from the layer that holds them."
        )
    given = (
        adata.obs["total_counts"]
        if "total_counts" in adata.obs
        else np.asarray(adata.X.sum(axis=1)).ravel()
    )
    total = np.asarray(given, dtype=np.float64)
    bad = ~(np.isfinite(total) & (total >= 0))
    if bad.any():
        raise PekaError(
            f"total counts of {bad.sum()} of {len(bad)} spots are NaN, infinite or negative (first: {adata.obs_names[bad][0]}); expected "
            "sums of raw counts. Look at X and obs['total_counts']."
        )
    return total


def variable_genes(
    log, adata: anndata.AnnData, rows: np.ndarray, n_genes: int, seen: dict | None = None
) -> list[str]:
    """The `n_genes` most variable genes over `rows (n,)` of `log (n, G)`, in the order of `adata.var_names`.

    scanpy's highly_variable_genes with flavor seurat and batch_key sample: genes by the number of sections in
    which they are variable, then by mean normalised dispersion. The step within a section depends on nothing else,
    so `seen` keeps its tables from one split to the next.
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
    """The second step of `variable_genes`: the best genes over the `section_table`s, in the order of `names`.

    Raises:
        PekaError: no section says which genes vary.
    """
    tables = [
        table for table in tables if table.to_numpy().any()
    ]  # a section of which nothing can be said has no say
    if not tables:
        raise PekaError(
            "no target genes can be chosen: in no section of these spots does any gene vary. Look at their counts."
        )
    table = (
        pd.concat(tables)
        .groupby(level=0)
        .agg({"highly_variable": "sum", "dispersions_norm": "mean"})
    )
    best = table.sort_values(["highly_variable", "dispersions_norm"], ascending=False).index[
        :n_genes
    ]
    return list(names[names.isin(best)])


def section_table(
    log: np.ndarray | sparse.csr_matrix, names: pd.Index, n_genes: int
) -> pd.DataFrame:
    """The first step of `variable_genes`: scanpy's table of one section, `log (n, G)`, one row a gene of `names (G,)`.

    Genes that it does not express count as 0, as in scanpy's batches; all do where no gene can be ranked, as in a section
    without counts, of one spot, or without a gene that varies.
    """
    log = log.toarray() if sparse.issparse(log) else log
    expressed = log.any(0)
    section = anndata.AnnData(log[:, expressed], var=pd.DataFrame(index=names[expressed]))
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
    """Whether two genes of `log (n, G)` differ in their dispersion, variance / mean of counts, so that genes can be ranked by it."""
    counts = np.expm1(log[:, log.any(0)])
    dispersion = counts.var(0) / counts.mean(0)  # (expressed,)
    return bool(dispersion.max() > dispersion.min() * (1 + 1e-5))


def top_genes(cohort, n_genes: int) -> list[str]:
    """`variable_genes` over all spots, among the genes that every section measured; one section in memory at a time."""
    common = joined_genes([section.genes for section in cohort.sections])
    logs = (log_cp10k(cohort.adata([sample])[:, common]) for sample in cohort.samples.index)
    return best_genes([section_table(log, common, n_genes) for log in logs], common, n_genes)


def authors_genes(adata: anndata.AnnData, n_genes: int) -> list[str]:
    """The authors' choice of target genes (their step1_process_hvg.py) from raw counts `adata (n, G)` of all sections, outer join.

    scanpy's normalize_total to the median depth, log1p, and highly_variable_genes(flavor="seurat") with the section as batch; one
    section is dense at a time. A gene that a section did not measure counts as one that it does not express.

    Returns:
        in the order of `adata.var_names`.
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
