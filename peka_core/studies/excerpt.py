"""An excerpt of a large cohort, for lessons that need a dense matrix.

74,000 spots x 18,000 genes would take tens of GB. Cohorts of up to `WHOLE` spots, such as the
demo's, are taken whole, so the numbers of a lesson are there those of all spots and genes.
"""

import anndata as ad
import numpy as np
from scipy import sparse

from ..genes import log_cp10k

WHOLE = 4_000  # the largest number of spots of which a lesson takes all
SPOTS = GENES = 2_000  # of a larger cohort


def lesson_spots(n: int) -> np.ndarray:
    """Rows of the spots that a lesson computes on.

    They are all n, or 2,000 that are spread evenly over a larger cohort, so over its sections too.
    """
    return np.arange(n) if n <= WHOLE else np.linspace(0, n - 1, SPOTS).astype(int)


def lesson_counts(adata: ad.AnnData, train: np.ndarray) -> ad.AnnData:
    """The counts of `lesson_spots`; of a larger cohort, only its 2,000 most variable genes.

    Args:
        adata: raw counts CSR (n, G), with obs column total_counts, the total over all genes.
        train: bool (n,), the spots that choose the genes.

    Returns:
        `adata` itself where it has at most 4,000 spots; otherwise a copy of at most (2,000, 2,000),
        with genes in their old order.
    """
    if adata.n_obs <= WHOLE:
        return adata
    rows = lesson_spots(adata.n_obs)
    excerpt = adata[rows]
    log = sparse.csr_matrix(log_cp10k(excerpt[train[rows]], dense=False), dtype=np.float64)
    variance = log.multiply(log).mean(axis=0) - np.square(log.mean(axis=0))
    ranks = np.argsort(-np.asarray(variance).ravel(), kind="stable")  # (G,)
    return excerpt[:, np.sort(ranks[:GENES])].copy()
