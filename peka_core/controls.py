"""Controls, which cannot use gene-relevant morphology, and references, which need measured counts.

Each function takes a cohort and returns what `evaluate` takes: features `(n, d)` or a `Predictor`.
A control is the bar that an encoder must clear. A reference uses counts of the test spot or of its
neighbours, which a new slide does not have: it shows what a score rewards.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from .cohort import Cohort
from .evaluation import ByAlpha, Predictor, predict_with_head
from .layout.patches import in_chunks
from .tasks import Task

NEIGHBOURS = 8


def slide_one_hot(cohort: Cohort) -> np.ndarray:
    """Which section a spot is from, `(n, sections)`; within a section its PCC is undefined."""
    return pd.get_dummies(cohort.obs["sample"]).to_numpy(np.float32)


def colour(cohort: Cohort) -> np.ndarray:
    """Colour statistics of each tile, `(n, 18)`: six of each channel.

    They are the mean, the standard deviation, the 10th, 50th and 90th percentile, and the mean
    optical density, -ln((value + 1) / 256).
    """
    return np.stack([_colour_of(tile) for images in in_chunks(cohort.tiles()) for tile in images])


def _colour_of(tile: np.ndarray) -> np.ndarray:
    """The 18 statistics of one tile `(224, 224, 3)`, all from its three histograms."""
    levels = np.arange(256)
    counts = np.stack([np.bincount(tile[..., c].ravel(), minlength=256) for c in range(3)])
    share = counts / counts.sum(1, keepdims=True)  # (3, 256)
    mean = share @ levels  # (3,)
    sd = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
    percentiles = [(share.cumsum(1) < p - 1e-9).sum(1) for p in (0.1, 0.5, 0.9)]
    density = share @ -np.log((levels + 1) / 256)
    return np.concatenate([mean, sd, *percentiles, density]).astype(np.float32)


def permuted_targets(features: np.ndarray, seed: int = 0) -> Predictor:
    """The head on real `features (n, d)`, fitted to targets permuted over the training spots.

    Its score is that of chance. The penalty is chosen on the permuted targets too.
    """

    def predict(task: Task, train: np.ndarray, test: np.ndarray) -> ByAlpha:
        targets = task.targets.copy()
        targets[train] = targets[np.random.default_rng(seed).permutation(train)]  # whole rows move
        return {"chosen": predict_with_head(features, replace(task, targets=targets))["chosen"]}

    return predict


def library_size(cohort: Cohort) -> np.ndarray:
    """ln(1 + total counts) of the spot itself, `(n, 1)`. It needs measured counts."""
    return np.log1p(cohort.obs[["total_counts"]].to_numpy(np.float32))


def slide_and_library_size(cohort: Cohort) -> np.ndarray:
    """Section and library size together, `(n, sections + 1)`. It needs measured counts."""
    return np.hstack([slide_one_hot(cohort), library_size(cohort)])


def nearest_spots(cohort: Cohort, k: int = NEIGHBOURS) -> Predictor:
    """Mean target of the `k` nearest measured spots of the same section. It needs measured counts.

    If spots are shuffled, these are training spots. If whole sections or patients are held out,
    they are the other spots of the held-out section itself. If zeros are dropped, each gene has the
    nearest spots with a non-zero count of it.
    """

    def predict(task: Task, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        samples = task.obs["sample"].to_numpy()
        measured = train if task.split.scheme == "spots" else np.arange(len(samples))
        predicted = np.full((len(test), len(task.genes)), np.nan)
        for section in pd.unique(samples[test]):
            here = samples[test] == section
            near = measured[samples[measured] == section]
            predicted[here] = _mean_of_nearest(task, test[here], near, k)
        return predicted

    return predict


def _mean_of_nearest(task: Task, rows: np.ndarray, near: np.ndarray, k: int) -> np.ndarray:
    """Mean targets `(m, g)` of the `k` spots of `near` closest to each of the m `rows`."""
    targets = task.fit_values  # (n, g)
    finite = np.isfinite(targets[near])  # (c, g)
    if finite.all():
        return _neighbour_mean(task.spatial, targets, rows, near, k)
    columns = [
        _neighbour_mean(task.spatial, targets[:, [j]], rows, near[finite[:, j]], k)
        for j in range(finite.shape[1])
    ]
    return np.hstack(columns)


def _neighbour_mean(
    spatial: np.ndarray, targets: np.ndarray, rows: np.ndarray, near: np.ndarray, k: int
) -> np.ndarray:
    """Mean of `targets (n, g)` over the `k` nearest spots of `near`; a spot is not its own."""
    if len(near) == 0:
        return np.full((len(rows), targets.shape[1]), np.nan)
    asked = np.arange(1, min(k + 1, len(near)) + 1)
    neighbours = near[cKDTree(spatial[near]).query(spatial[rows], k=asked)[1]]  # (m, k + 1)
    other = neighbours != rows[:, None]
    used = other & (other.cumsum(1) <= k)  # the k nearest that are not the spot itself
    total = (targets[neighbours] * used[..., None]).sum(1)  # (m, k + 1, g) -> (m, g)
    count = used.sum(1)[:, None]
    return np.where(count, total / np.maximum(count, 1), np.nan)


CONTROLS: dict[str, Callable] = {"slide_one_hot": slide_one_hot, "colour": colour}
REFERENCES: dict[str, Callable] = {
    "library_size": library_size,
    "slide_and_library_size": slide_and_library_size,
    "nearest_spots": nearest_spots,
}
