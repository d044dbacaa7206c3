"""A cohort in memory with a known law: genes follow features, patient and depth; a plain head."""

from dataclasses import dataclass, replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from peka_core.cohort import Split
from peka_core.protocols import PROTOCOLS

PAPER = replace(PROTOCOLS["peka_paper"], n_genes=10)
STRICT = replace(PROTOCOLS["strict"], n_genes=10)
DROPPED = replace(PAPER, zeros="drop", min_spots=100)


@dataclass
class FakeCohort:
    """The part of a cohort that scoring reads."""

    counts: np.ndarray  # (n, G)
    obs: pd.DataFrame
    spatial: np.ndarray  # (n, 2)
    features: np.ndarray  # (n, d), what the genes follow
    splits: list[Split]  # leave one patient out
    path: Path = Path("fake")

    def adata(self, join="inner", genes=None):
        genes = np.arange(self.counts.shape[1])
        groups = {"group": np.where(genes % 2, "cue", "composition")}
        var = pd.DataFrame(groups, index=[f"G{i:02d}" for i in genes])
        counts = sparse.csr_matrix(self.counts, dtype=np.float32)
        obs = self.obs.assign(total_counts=self.counts.sum(1).astype(float))
        adata = anndata.AnnData(counts, obs, var, obsm={"spatial": self.spatial})
        return adata if genes is None else adata[:, genes].copy()

    def by_section(self, join="inner"):
        adata = self.adata()
        return (adata[adata.obs["sample"] == name].copy() for name in adata.obs["sample"].unique())


def sklearn_head(x, y, new, alpha=1.0):
    """Predictions of scikit-learn's pipeline of the head."""
    pca = PCA(min(256, *x.shape), svd_solver="full")
    return make_pipeline(StandardScaler(), pca, Ridge(alpha=alpha)).fit(x, y).predict(new)


def draw(patients=4, sections=2, spots=30, genes=40, d=12, depth=400, duplicate=False):
    """Draw a cohort; with `duplicate`, section X01 copies the last section of the last patient."""
    rng, n = np.random.default_rng(0), patients * sections * spots
    sample = np.repeat([f"P{p}{s}" for p in range(patients) for s in "ABC"[:sections]], spots)
    features = rng.normal(size=(n, d))
    shift = rng.normal(0, 0.7, (patients, genes)).repeat(sections * spots, axis=0)  # (n, G)
    rate = np.exp(rng.normal(0, 0.8, genes) + shift + features @ rng.normal(0, 0.35, (d, genes)))
    library = depth * rng.lognormal(0, 0.3, (n, 1))
    counts = rng.poisson(library * rate / rate.sum(1, keepdims=True))
    obs = pd.DataFrame({"sample": sample, "duplicate_of": ""})
    obs["patient"] = obs["group"] = obs["sample"].str[:2]
    spatial, rows = rng.uniform(0, 1000, (n, 2)), np.arange(n)
    if duplicate:
        twin = obs[-spots:].assign(sample="X01", patient="X01", duplicate_of=sample[-1])
        obs, rows = pd.concat([obs, twin], ignore_index=True), np.append(rows, rows[-spots:])
    obs["barcode"] = obs.groupby("sample").cumcount().astype(str)
    obs.index = obs["sample"] + ":" + obs["barcode"]
    sides = [(obs["group"] == group).to_numpy() for group in obs["group"].unique()]
    splits = [Split(f"patients/{i}", ~side, side) for i, side in enumerate(sides)]
    return FakeCohort(counts[rows], obs, spatial[rows], features[rows], splits)
