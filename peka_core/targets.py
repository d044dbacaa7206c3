"""What a student is trained towards: the teacher's embeddings, or in controls something else.

All functions take arrays over all n spots. What they fit or choose, they take from training spots
alone.
"""

import anndata as ad
import numpy as np
import pandas as pd

from .common.errors import PekaError


def permuted_teacher(
    samples: np.ndarray, seen: np.ndarray, labels: np.ndarray, seed: int
) -> np.ndarray:
    """Row numbers (n,) that replace each spot by a random spot of its own section.

    Training spots are shuffled among themselves, so that no vector of a test spot is learned. So
    are the spots that the teacher could not use (label -1), because their vectors are empty.

    Args:
        samples: section of each spot, (n,).
        seen: training spots, bool (n,).
        labels: pseudo-labels, (n,).
    """
    strata = samples + np.where(seen, "", " unseen") + np.where(labels < 0, " unusable", "")
    rng, order = np.random.default_rng(seed), np.arange(len(strata))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        order[members] = rng.permutation(members)
    return order


def gene_targets(genes: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Target genes (n, g), standardised on the training spots `seen` (n,)."""
    return (genes - genes[seen].mean(0)) / (genes[seen].std(0) + 1e-6)


def targets_and_labels(
    embedded: ad.AnnData, taught_by: str, seed: int, genes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Targets (n, d_t) and pseudo-labels (n,) of all spots, for `align`.

    A spot that the teacher could not use has label -1, and no student is trained on it.

    Args:
        embedded: what `embed_spots` returned, with obs column sample.
        taught_by: `teacher`; `permuted_teacher`, whose rows are shuffled within each section; or
            `genes`, the target genes instead of the teacher's embeddings.
        seed: random seed of the permutation.
        genes: the target genes (n, g), which only `genes` needs.
    """
    x_teacher, seen = embedded.obsm["X_teacher"], embedded.obs["teacher_train"].to_numpy()
    labels = embedded.obs["pseudo_label"].to_numpy().astype(int)
    if taught_by == "permuted_teacher":
        order = permuted_teacher(embedded.obs["sample"].to_numpy(object), seen, labels, seed)
        return x_teacher[order], labels[order]
    if taught_by == "genes":
        if genes is None:
            raise PekaError("taught_by `genes` needs the values of the target genes, (n, g)")
        return gene_targets(genes, seen), labels
    return x_teacher, labels


def teacher_as_features(embedded: ad.AnnData) -> np.ndarray:
    """X_teacher (n, d_t) as features, for a head that predicts genes from the teacher itself.

    A spot that the teacher could not use gets the mean of the usable training spots.
    """
    x_teacher, seen = embedded.obsm["X_teacher"], embedded.obs["teacher_train"].to_numpy()
    usable = embedded.obs["pseudo_label"].to_numpy() >= 0
    if usable.all():
        return x_teacher
    return np.where(usable[:, None], x_teacher, x_teacher[usable & seen].mean(0))


def training_spots(obs: pd.DataFrame, train: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Mask (n,) of the training spots of a share of the patients.

    The spots of a smaller share are among those of each larger share.
    """
    if share == 1.0:
        return train
    groups = validation_groups(obs, train)
    names = np.random.default_rng(seed).permutation(np.unique(groups[train]))
    return train & np.isin(groups, names[: max(1, round(share * len(names)))])


def validation_groups(obs: pd.DataFrame, train: np.ndarray) -> np.ndarray:
    """Patient of each spot (n,), or its section if all training spots are of one patient."""
    column = "group" if obs.loc[train, "group"].nunique() > 1 else "sample"
    return obs[column].astype(str).to_numpy()
