"""What training and test spots share: patients, copies of tiles, neighbours in the tissue."""

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from ..layout.sections import read_spots

NEAR = 1.5  # neighbours are spots closer than this many times the pitch


def leaks_of_splits(cohort, splits, hashes: np.ndarray | None = None) -> pd.DataFrame:
    """Count what training and test spots of each split share, one row a split.

    Columns: split; train and test, numbers of spots; patients_shared; copies, test spots whose tile
    has the hash of a training tile (NaN without `hashes (n,)`); neighbours, test spots that have a
    training spot of the same section within 1.5 times the section's pitch.
    """
    near, group = _neighbours(cohort), cohort.obs["group"].to_numpy()
    rows = []
    for split in splits:
        copied = None if hashes is None else np.isin(hashes[split.test], hashes[split.train])
        beside = [split.train[near[spot]].any() for spot in np.flatnonzero(split.test)]
        rows.append({
            "split": split.name, "train": int(split.train.sum()), "test": int(split.test.sum()),
            "patients_shared": len(set(group[split.train]) & set(group[split.test])),
            "copies": np.nan if copied is None else int(copied.sum()),
            "neighbours": int(sum(beside)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def without_leaks(cohort, split, hashes: np.ndarray) -> dict[str, np.ndarray]:
    """Training masks (n,) by name; each mask removes one kind of leak more than the mask before."""
    near, group = _neighbours(cohort), cohort.obs["group"].to_numpy()
    train, test = split.train, split.test
    beside = np.zeros(len(train), bool)
    for spot in np.flatnonzero(test):
        beside[near[spot]] = True
    no_copies = train & ~np.isin(hashes, hashes[test])
    return {
        "as it is": train,
        "no copies": no_copies,
        "no neighbours": no_copies & ~beside,
        "no shared patients": no_copies & ~np.isin(group, group[test]),
    }


def _neighbours(cohort) -> list[np.ndarray]:
    """Rows of the spots around each spot, in its own section.

    The limit is 1.5 times the median distance of the section's spots to their nearest one.
    """
    samples = cohort.obs["sample"].to_numpy()
    # (n, 2); read section by section, so that no counts are loaded
    spatial = np.concatenate([read_spots(s).arrays["spatial"] for s in cohort.sections])
    near: list[np.ndarray] = [np.zeros(0, int)] * len(samples)
    for sample in pd.unique(samples):
        rows = np.flatnonzero(samples == sample)
        if len(rows) < 2:
            continue
        tree = cKDTree(spatial[rows])
        pitch = np.median(tree.query(spatial[rows], k=2)[0][:, 1])
        for row, around in zip(rows, tree.query_ball_point(spatial[rows], NEAR * pitch)):
            near[row] = rows[[i for i in around if rows[i] != row]]
    return near
