"""A cohort in memory with a known law: half of the genes follow the features, all follow patient
and depth.
"""

from dataclasses import dataclass, field
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from peka_core.cohort import Split


@dataclass
class FakeCohort:
    """The part of a cohort that scoring reads."""

    counts: np.ndarray  # (n, G)
    obs: pd.DataFrame
    spatial: np.ndarray
    features: np.ndarray  # (n, d), what the genes follow
    splits: list = field(default_factory=list)
    path: Path = Path("fake")

    def adata(self, join="inner"):
        total = self.counts.sum(1).astype(float)
        var = pd.DataFrame(
            {"group": np.where(np.arange(self.counts.shape[1]) % 2, "cue", "composition")},
            index=[f"G{i:02d}" for i in range(self.counts.shape[1])],
        )
        obs = self.obs.assign(total_counts=total)
        return anndata.AnnData(
            sparse.csr_matrix(self.counts.astype(np.float32)),
            obs,
            var,
            obsm={"spatial": self.spatial},
        )


def draw(
    patients=4, sections=2, spots=30, genes=40, d=12, depth=400, duplicate=False, seed=0
) -> FakeCohort:
    """Draw a cohort; with `duplicate`, section X01 copies the last section of the last patient."""
    rng = np.random.default_rng(seed)
    n = patients * sections * spots
    sample = np.repeat([f"P{p}{'ABC'[s]}" for p in range(patients) for s in range(sections)], spots)
    patient = np.array([name[:2] for name in sample])
    features = rng.normal(size=(n, d))
    shift = rng.normal(0, 0.7, (patients, genes))[
        np.unique(patient, return_inverse=True)[1]
    ]  # (n, G)
    rate = np.exp(rng.normal(0, 0.8, genes) + shift + features @ rng.normal(0, 0.35, (d, genes)))
    library = depth * rng.lognormal(0, 0.3, (n, 1))
    counts = rng.poisson(library * rate / rate.sum(1, keepdims=True))
    obs = pd.DataFrame({"sample": sample, "patient": patient, "group": patient, "duplicate_of": ""})
    spatial = rng.uniform(0, 1000, (n, 2))
    if duplicate:
        last = slice(n - spots, n)
        twin = obs[last].assign(sample="X01", patient="X01", duplicate_of=sample[-1])
        obs = pd.concat([obs, twin], ignore_index=True)
        counts, features, spatial = (
            np.concatenate([a, a[last]]) for a in (counts, features, spatial)
        )
    obs["barcode"] = obs.groupby("sample").cumcount().astype(str)
    obs.index = obs["sample"] + ":" + obs["barcode"]
    obs["total_counts"] = counts.sum(1).astype(float)
    groups = obs["group"].to_numpy()
    splits = [
        Split(f"patients/{i}", groups != g, groups == g) for i, g in enumerate(pd.unique(groups))
    ]
    return FakeCohort(counts, obs, spatial, features, splits)
