"""An upper bound of what can be predicted on real counts, from the counts alone.

Binomial thinning splits a Poisson count into two independent halves. How well one half predicts the
other shows how much of a target is noise of counting, which no image can predict. This is an upper
bound: everything that varies between spots without showing in the tile (expression that is not in
the morphology, overdispersion) counts as predictable here.
"""

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from ..genes import log_cp10k
from ..layout.gene_columns import columns_of
from ..statistics import mean_defined, pearson


def thin(
    counts: sparse.csr_matrix, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Counts (n, G) as two halves; a fair coin decides for every molecule."""
    counts = sparse.csr_matrix(counts)
    first = counts.copy()
    first.data = rng.binomial(counts.data.astype(np.int64), 0.5).astype(np.float32)
    return first, (counts - first).tocsr()


def split_half_ceiling(
    adata: ad.AnnData, genes: list[str], repeats: int = 5, seed: int = 0, min_spots: int = 10
) -> dict:
    """Highest PCC that counting noise allows, per section and averaged as in `strict`.

    `adata` has raw counts (n, G) and the obs column sample; `repeats` thinnings are averaged.

    Returns:
        half: mean PCC r of two halves.
        reliability: mean reliability of the target at full depth (Spearman-Brown, 2r / (1 + r)).
        ceiling: mean over genes of the square root of the reliability. This is the PCC of a perfect
            prediction with the counts.
        by_gene: `(g,)` ceilings, NaN if no section defines one.

    Raises:
        PekaError: `adata` does not have a gene.
    """
    rng, columns = np.random.default_rng(seed), columns_of(adata.var_names, genes)
    samples = adata.obs["sample"].to_numpy()
    names = list(pd.unique(samples)) * repeats  # one section is in memory at a time
    pairs = (_targets_of_halves(adata[samples == name], columns, rng) for name in names)
    halves = np.stack([pearson(*pair, min_spots) for pair in pairs])  # (repeats x sections, g)
    halves = halves.reshape(repeats, -1, len(genes))
    half = mean_defined(np.moveaxis(halves, 0, -1))  # (sections, g)
    reliability = 2 * half / (1 + half)
    ceiling = mean_defined(np.sqrt(np.clip(reliability, 0, None)).T)  # (g,)
    return {
        "ceiling": float(mean_defined(ceiling)),
        "reliability": float(mean_defined(reliability.ravel())),
        "half": float(mean_defined(half.ravel())),
        "by_gene": ceiling,
    }


def _targets_of_halves(section: ad.AnnData, columns, rng) -> list[np.ndarray]:
    """Targets (n, g) of the two halves of a section's counts."""
    targets = []
    for counts in thin(section.X, rng):
        obs = section.obs.assign(total_counts=np.asarray(counts.sum(1)).ravel())
        half = ad.AnnData(counts, obs=obs, var=section.var)
        targets.append(log_cp10k(half, dense=False)[:, columns].toarray())
    return targets
