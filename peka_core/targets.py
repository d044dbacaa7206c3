"""What a student is trained towards: the teacher's vectors, the same permuted within sections, or the genes themselves.

Everything here takes arrays over all n spots, and looks at training spots alone where it fits or chooses something.
"""

import numpy as np
import pandas as pd


def shuffled_within(sections: np.ndarray, seed: int) -> np.ndarray:
    """Row numbers `(n,)` in which every spot stands for a random one of its own section."""
    dice, order = np.random.default_rng(seed), np.arange(len(sections))
    for section in np.unique(sections):
        here = np.flatnonzero(sections == section)
        order[here] = dice.permutation(here)
    return order


def permuted_teacher(
    samples: np.ndarray, seen: np.ndarray, labels: np.ndarray, seed: int
) -> np.ndarray:
    """Row numbers `(n,)` that give every spot the vector of a random spot of its own section.

    Training spots are shuffled among themselves, so no test spot's vector is taught; spots that the teacher could not use
    (label -1) likewise, so no usable spot gets an empty vector.

    Args:
        samples: section of each spot, (n,).
        seen: training spots, bool (n,).
        labels: pseudo-labels, (n,).
    """
    sides = samples + np.where(seen, "", " unseen") + np.where(labels < 0, " unusable", "")
    return shuffled_within(sides, seed)


def gene_targets(targets: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Target genes `(n, g)`, standardised on the training spots `seen (n,)`."""
    return (targets - targets[seen].mean(0)) / (targets[seen].std(0) + 1e-6)


def filled(x_teacher: np.ndarray, usable: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """X_teacher (n, d_t) as features: a spot that the teacher could not use is the mean of the usable training spots."""
    return (
        x_teacher
        if usable.all()
        else np.where(usable[:, None], x_teacher, x_teacher[usable & seen].mean(0))
    )


def some_patients(groups: np.ndarray, train: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The training spots `(n,)` of a share of the training patients; a smaller share is part of every larger one."""
    if share == 1.0:
        return train
    names = np.random.default_rng(seed).permutation(np.unique(groups[train]))
    return train & np.isin(groups, names[: max(1, round(share * len(names)))])


def validation_groups(obs: pd.DataFrame, train: np.ndarray) -> np.ndarray:
    """What an alignment sets aside whole, (n,): patients, or sections where the training spots come from one patient."""
    column = "group" if obs.loc[train, "group"].nunique() > 1 else "sample"
    return obs[column].astype(str).to_numpy()
