"""How unlike the training tiles a new tile is, and how far a slide's mean prediction may be off.

A tile far from the training tiles is called *unfamiliar*. It is not called wrong, because on the
cohorts that were tried the distance did not predict a lower correlation. A slide that is zoomed can
look familiar, so its pixel size is checked by itself (`predict.Model.scale_warning`).
"""

import math
from dataclasses import dataclass

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import StandardScaler

QUANTILE = 0.95  # of held-out distances: a tile beyond it is unfamiliar
SLIDE_SHARE = 0.5  # a slide with a larger share of unfamiliar tiles is unfamiliar as a whole
LEVEL = 0.8  # of the interval for the mean of a slide
MIN_PATIENTS = 10  # held-out patients that this interval needs
BLOCK = 4096  # rows that are float64 at a time


@dataclass(frozen=True, eq=False)
class Familiar:
    """Mean and covariance of training features, from which distances are taken.

    Attributes:
        mean: (d,) mean of each feature.
        scale: (d,) its standard deviation, 1 if it is constant.
        whitening: (d, d) maps standardised features to uncorrelated ones of variance 1.
    """

    mean: np.ndarray
    scale: np.ndarray
    whitening: np.ndarray

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance (n,) of features (n, d) to the training features."""
        parts = [np.empty(0)]
        for start in range(0, len(features), BLOCK):
            block = np.asarray(features[start : start + BLOCK], np.float64)
            z = (block - self.mean) / self.scale @ self.whitening  # (b, d)(d, d)
            parts.append(np.sqrt((z**2).sum(1)))
        return np.concatenate(parts)


def fit_familiar(features: np.ndarray) -> Familiar:
    """Fit mean and covariance on training features (n, d).

    The covariance of the standardised features is shrunk as Ledoit and Wolf (2004) propose, so that
    it can be inverted in all d dimensions. Directions of little variance are kept, because they
    notice what a PCA would drop.
    """
    scaler = StandardScaler().fit(np.asarray(features, np.float64))
    z = scaler.transform(features)  # (n, d)
    variances, axes = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(z).covariance_)
    floor = np.finfo(np.float64).eps * len(variances) * max(variances.max(), 1e-300)
    whitening = axes / np.sqrt(np.maximum(variances, floor))  # (d, d)
    return Familiar(scaler.mean_, scaler.scale_, whitening)


def threshold_of(distances: np.ndarray, groups: np.ndarray, quantile: float = QUANTILE) -> float:
    """A quantile of the distances (n,) of held-out tiles, in which each group weighs the same.

    It is the smallest distance such that tiles up to it have at least this share of the weight.

    Args:
        groups: (n,) patient of each tile, or its section if there is one patient.
    """
    distances = np.asarray(distances)
    _, of_group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    weights, order = 1 / sizes[of_group] / len(sizes), np.argsort(distances)  # (n,)
    reached = np.cumsum(weights[order]) >= quantile - 1e-9
    return float(distances[order][reached.argmax()])


def is_unfamiliar_slide(distances: np.ndarray, threshold: float) -> bool:
    """Whether more than half of a slide's tiles, with distances (n,), are unfamiliar.

    It is False if there is no threshold (NaN) or no tile.
    """
    distances = np.asarray(distances)
    return bool(len(distances) and (distances > threshold).mean() > SLIDE_SHARE)


def mean_half_width(errors: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Half width (g,) of a conformal interval for the mean of each gene over a new slide.

    With n patients it is the ceil((n + 1) level)-th smallest absolute error (split conformal
    prediction). It covers the measured mean of a new patient with at least this probability, if the
    errors of the new patient come from the same distribution. Errors of several folds come from
    models of other patients than the final one, so for them this holds approximately.

    Args:
        errors: (n, g) measured minus predicted mean of one slide of each held-out patient.

    Returns:
        NaN for every gene if there are fewer than `MIN_PATIENTS` patients.
    """
    n, g = errors.shape
    rank = math.ceil((n + 1) * level - 1e-9)
    if n < MIN_PATIENTS or rank > n:
        return np.full(g, np.nan)
    return np.sort(np.abs(errors), axis=0)[rank - 1]
