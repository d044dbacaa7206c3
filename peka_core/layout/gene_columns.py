"""Columns of count matrices by gene name."""

import numpy as np
import pandas as pd
from scipy import sparse

from ..common.errors import PekaError


def joined_genes(lists: list[pd.Index], join: str = "inner") -> pd.Index:
    """Genes of several sections, in order of first appearance."""
    if join not in ("inner", "outer"):
        raise ValueError(f"join is 'inner' or 'outer', not {join!r}")
    genes = lists[0]
    for other in lists[1:]:
        inner, new = genes[genes.isin(other)], other[~other.isin(genes)]
        genes = inner if join == "inner" else genes.append(new)
    return genes


def on_genes(counts: sparse.csr_matrix, own: pd.Index, genes: pd.Index) -> sparse.csr_matrix:
    """Columns of `counts` (n, own) arranged as `genes`; 0 where the section did not measure one."""
    if own.equals(genes):
        return counts
    place = genes.get_indexer(own)  # (own,) column of each measured gene, -1 where not wanted
    kept = np.flatnonzero(place >= 0)
    counts = counts[:, kept]
    joined = sparse.csr_matrix(
        (counts.data, place[kept][counts.indices], counts.indptr), (counts.shape[0], len(genes))
    )
    joined.sort_indices()
    return joined


def columns_of(names: pd.Index, genes: list[str]) -> np.ndarray:
    """Column `(g,)` of each gene among `names (G,)`.

    Raises:
        PekaError: a gene is not among them.
    """
    columns = names.get_indexer(genes)
    if missing := [gene for gene, at in zip(genes, columns, strict=True) if at < 0]:
        raise PekaError(
            f"{len(missing)} of {len(genes)} genes are not among these {len(names)} (first: "
            f"{missing[0]}); expected genes that the sections measured. Open the cohort's counts "
            'with join="outer", or choose other genes.'
        )
    return columns
