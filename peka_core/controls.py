"""Predictors that know nothing of gene-relevant morphology, and references that need measured counts.

Each builder takes a cohort and returns what `evaluate` takes: features `(n, d)`, or a callable
`(task, train rows, test rows) -> predictions (m, g)`. A control is the bar that an encoder must clear. A
reference shows what a score rewards: it uses counts of the test spot or of its neighbours, which a new
slide does not have. The oracle is the demo's own truth.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from .evaluation import Predictor, head_answers
from .layout.patches import in_chunks
from .protocols import Task

NEIGHBOURS = 8


def slide_one_hot(cohort) -> np.ndarray:
    """Which section a spot is from: `(n, sections)`. Constant within a section, so its PCC there is undefined."""
    return pd.get_dummies(cohort.obs["sample"]).to_numpy(np.float32)


def colour(cohort) -> np.ndarray:
    """Colour statistics of each tile, `(n, 18)`: per channel mean, sd, percentiles 10, 50, 90, mean optical density.

    Optical density is -ln((value + 1) / 256).
    """
    return np.stack([_colour_of(tile) for images in in_chunks(cohort.tiles()) for tile in images])


def permuted_targets(features, seed: int = 0) -> Predictor:
    """The head on real `features (n, d)`, refitted to targets permuted over the training spots: the score of chance.

    The penalty is chosen on the permuted targets too.
    """

    def predict(task: Task, train: np.ndarray, test: np.ndarray) -> dict:
        targets = task.targets.copy()
        targets[train] = targets[np.random.default_rng(seed).permutation(train)]  # whole rows move
        return {"chosen": head_answers(features, replace(task, targets=targets))["chosen"]}

    return predict


def library_size(cohort) -> np.ndarray:
    """ln(1 + total counts) of the spot itself, `(n, 1)`. Needs measured counts."""
    return np.log1p(cohort.obs[["total_counts"]].to_numpy(np.float32))


def slide_and_library_size(cohort) -> np.ndarray:
    """Section and library size together, `(n, sections + 1)`. Needs measured counts."""
    return np.hstack([slide_one_hot(cohort), library_size(cohort)])


def nearest_spots(cohort, k: int = NEIGHBOURS) -> Predictor:
    """Mean target of the `k` nearest measured spots of the same section. Needs measured counts.

    Under shuffled spots those are training spots of the section; where whole sections or patients are held
    out there are none, so they are the other measured spots of the held-out section itself. Where zeros
    are dropped, each gene looks among the spots that count it.
    """

    def predict(task: Task, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        samples = task.obs["sample"].to_numpy()
        known = train if task.split.scheme == "spots" else np.arange(len(samples))
        predicted = np.full((len(test), len(task.genes)), np.nan)
        for section in pd.unique(samples[test]):
            rows, near = test[samples[test] == section], known[samples[known] == section]
            predicted[samples[test] == section] = _mean_of_nearest(task, rows, near, k)
        return predicted

    return predict


CONTROLS = {"slide_one_hot": slide_one_hot, "colour": colour}
REFERENCES = {
    "library_size": library_size,
    "slide_and_library_size": slide_and_library_size,
    "nearest_spots": nearest_spots,
}


def _colour_of(tile):
    """18 statistics of one tile `(224, 224, 3)`, all from its three histograms."""
    levels = np.arange(256)
    counts = np.stack(
        [np.bincount(tile[..., c].ravel(), minlength=256) for c in range(3)]
    )  # (3, 256)
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels  # (3,)
    sd = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
    percentiles = [(share.cumsum(1) < p - 1e-9).sum(1) for p in (0.1, 0.5, 0.9)]
    density = share @ -np.log((levels + 1) / 256)
    return np.concatenate([mean, sd, *percentiles, density]).astype(np.float32)


def _mean_of_nearest(task, rows, near, k):
    """Mean targets `(len(rows), g)` of the `k` spots of `near` closest to each of `rows`, itself left out."""
    finite = np.isfinite(task.targets[near])  # (c, g)
    finite = finite if task.fit is None else finite & task.fit[near]
    if finite.all():
        return _neighbour_mean(task, rows, near, k, slice(None))
    columns = [
        _neighbour_mean(task, rows, near[finite[:, j]], k, slice(j, j + 1))
        for j in range(finite.shape[1])
    ]
    return np.hstack(columns)


def _neighbour_mean(task, rows, near, k, genes):
    targets = task.targets[:, genes]
    if len(near) == 0:
        return np.full((len(rows), targets.shape[1]), np.nan)
    _, order = cKDTree(task.spatial[near]).query(
        task.spatial[rows], k=np.arange(1, min(k + 1, len(near)) + 1)
    )
    found = near[order]  # (m, k + 1), nearest first
    other = found != rows[:, None]
    used = other & (other.cumsum(1) <= k)  # the k nearest that are not the spot itself
    total = (targets[found] * used[..., None]).sum(1)  # (m, k + 1, g) -> (m, g)
    count = used.sum(1)[:, None]
    return np.where(count, total / np.maximum(count, 1), np.nan)
