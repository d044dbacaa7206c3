"""An excerpt of a large cohort, for lessons that need a dense matrix: 74,000 spots x 18,000 genes would take tens of GB.

Cohorts of up to `WHOLE` spots, as the demo's, are taken whole, so a lesson's numbers there are those of all spots and genes.
"""

import anndata as ad
import numpy as np

from ..genes import log_cp10k

WHOLE = 4_000  # spots up to which a lesson takes all of them
SPOTS = GENES = 2_000  # of a larger cohort


def lesson_spots(n: int) -> np.ndarray:
    """Rows of the spots that a lesson computes on: all n, or 2,000 spread evenly over a larger cohort, so over its sections too."""
    return np.arange(n) if n <= WHOLE else np.linspace(0, n - 1, SPOTS).astype(int)


def lesson_counts(adata: ad.AnnData, train: np.ndarray) -> ad.AnnData:
    """The counts of `lesson_spots`, of a larger cohort with its 2,000 most variable genes alone.

    Args:
        adata: raw counts CSR (n, G), obs column total_counts, which stays the total over all genes.
        train: bool (n,), the spots that may have a say in the choice of genes.

    Returns:
        `adata` itself where it has at most 4,000 spots; else a copy (2,000, 2,000 at most), genes in their old order.
    """
    if adata.n_obs <= WHOLE:
        return adata
    rows = lesson_spots(adata.n_obs)
    few = adata[rows]
    log = log_cp10k(few[train[rows]], dense=False).astype(np.float64)  # (m, G) sparse
    variance = np.asarray(
        log.multiply(log).mean(axis=0) - np.square(log.mean(axis=0))
    ).ravel()  # (G,)
    return few[:, np.sort(np.argsort(-variance, kind="stable")[:GENES])].copy()
