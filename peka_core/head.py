"""The head of every score: StandardScaler, PCA, ridge, from features to all target genes at once.

PCA scores are uncorrelated, so ridge on them needs no further inverse: with squared singular values
`l_j` the coefficient of component j is `(z_j . y) / (l_j + alpha)`. One factorisation of the features
therefore serves every gene and every alpha. Features are read in blocks of rows, so that float64, which the small
eigenvalues need, is never a copy of all of them.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from sklearn.model_selection import GroupKFold, KFold

from .statistics import mean_defined, pearson

N_COMPONENTS = 256
INNER_FOLDS = 5
BLOCK = 4096  # rows that are float64 at a time
TIE = 1e-6


@dataclass(frozen=True)
class Head:
    """A fitted head; d features, k components, g genes, all float64."""

    mean: np.ndarray  # (d,)
    scale: np.ndarray  # (d,) standard deviation, 1 where a feature is constant
    components: np.ndarray  # (d, k) orthonormal columns, leading first
    power: np.ndarray  # (k,) squared singular values of the standardised features
    moments: np.ndarray  # (k, g) component scores times centred targets
    intercept: np.ndarray  # (g,)

    def predict(self, x: np.ndarray, alpha: float) -> np.ndarray:
        """Targets `(m, g)` predicted for features `x (m, d)` with ridge penalty `alpha`."""
        return self.path(x, [alpha])[0]

    def path(self, x: np.ndarray, alphas) -> np.ndarray:
        """Predictions `(a, m, g)` for each of `a` penalties: the factorisation is shared by all of them."""
        shrink = 1 / (self.power + np.asarray(alphas, np.float64)[:, None])  # (a, k)
        weights = shrink[..., None] * self.moments  # (a, k, g)
        parts = [
            (z @ self.components) @ weights for z in _blocks(x, self.mean, self.scale)
        ]  # (m, d)(d, k)(a, k, g) = (a, m, g)
        return np.concatenate(parts, axis=1) + self.intercept


def fit_head(
    x_train: np.ndarray,
    y_train: np.ndarray,
    n_components: int = N_COMPONENTS,
    standardise: bool = True,
) -> Head:
    """Fit StandardScaler, PCA(min(n_components, n, d)) and ridge on `x_train (n, d)`, `y_train (n, g)`.

    Equals scikit-learn's StandardScaler, PCA(svd_solver="full") and Ridge in sequence; without the scaler where
    `standardise` is False. Components without variance (constant or repeated features, the n-th of n centred rows) are
    left out: ridge gives them no weight.
    """
    x, y = np.asarray(x_train), np.asarray(y_train, np.float64)
    (n, d), intercept = x.shape, y.mean(0)
    mean, scale = _mean_and_scale(x, standardise)
    if (
        n > d
    ):  # eigenvectors of the (d, d) covariance; otherwise of the (n, n) Gram matrix, the smaller one
        covariance, moments = np.zeros((d, d)), np.zeros((d, y.shape[1]))
        for start, z in zip(range(0, n, BLOCK), _blocks(x, mean, scale)):
            covariance += z.T @ z  # (d, n)(n, d) = (d, d)
            moments += z.T @ (y[start : start + BLOCK] - intercept)  # (d, n)(n, g) = (d, g)
        power, components = _leading(covariance, min(n_components, d), n)
    else:
        z = np.concatenate(list(_blocks(x, mean, scale)))
        power, vectors = _leading(z @ z.T, min(n_components, n), d)
        components, moments = (
            z.T @ vectors / np.sqrt(power),
            z.T @ (y - intercept),
        )  # (d, n)(n, k) = (d, k)
    return Head(
        mean, scale, components, power, components.T @ moments, intercept
    )  # (k, d)(d, g) = (k, g)


def fit_predict(
    features, targets, train, test, alphas, standardise: bool = True, fit=None
) -> np.ndarray:
    """Fit on rows `train`, predict rows `test` for every alpha: `(a, m, g)`.

    `features (n, d)`; `targets (n, g)`, NaN where the protocol drops a spot; `fit (n, g)` bool, where a protocol fits
    each gene on spots of its own. Genes with the same rows share one head; a gene without any row is predicted as NaN.
    """
    usable = np.isfinite(targets[train])  # (t, g)
    usable = usable if fit is None else usable & fit[train]
    if usable.all():
        return fit_head(features[train], targets[train], standardise=standardise).path(
            features[test], alphas
        )
    predicted = np.full((len(alphas), len(test), targets.shape[1]), np.nan)
    patterns, of_gene = np.unique(usable, axis=1, return_inverse=True)  # (t, patterns), (g,)
    for i in np.flatnonzero(patterns.any(0)):
        rows, genes = train[patterns[:, i]], np.flatnonzero(of_gene.ravel() == i)
        head = fit_head(features[rows], targets[np.ix_(rows, genes)], standardise=standardise)
        predicted[..., genes] = head.path(features[test], alphas)
    return predicted


def choose_alpha(
    features, targets, train, obs, alphas, min_spots: int, standardise: bool = True
) -> float:
    """The penalty with the best mean per-section PCC in an inner cross-validation over rows `train`.

    Inner folds hold out whole groups (patients), sections where there is one group, spots where there is one
    section: `obs` has columns group and sample. One alpha for all genes. Features of an aligned student have
    seen the inner held-out patients, so for them this choice leans towards small penalties; the test
    patients stay unseen. Of penalties that differ by less than 1e-6 (a single feature, no defined PCC) the
    first is taken, so that float noise decides nothing.
    """
    curve = []  # one (a,) per inner held-out section
    for inside, held_out in _inner_folds(obs.iloc[train]):
        rows = train[held_out]
        predicted = fit_predict(
            features, targets, train[inside], rows, alphas, standardise
        )  # (a, m, g)
        samples = obs["sample"].to_numpy()[rows]
        for section in np.unique(samples):
            here = samples == section
            curve.append(mean_defined(pearson(targets[rows[here]], predicted[:, here], min_spots)))
    quality = mean_defined(np.array(curve).T)  # (a,)
    quality = np.nan_to_num(quality, nan=-np.inf)
    return float(alphas[np.argmax(quality >= quality.max() - TIE)])


def _blocks(x, mean=0.0, scale=1.0):
    """Rows of `x`, `BLOCK` at a time, as float64, centred and scaled."""
    for start in range(0, len(x), BLOCK):
        z = np.asarray(x[start : start + BLOCK], np.float64) - mean
        z /= scale
        yield z


def _mean_and_scale(x, standardise):
    """Mean and scale `(d,)`; features constant up to rounding keep scale 1, as in scikit-learn; so do all without `standardise`."""
    n, eps = len(x), np.finfo(np.float64).eps
    mean = sum(block.sum(0) for block in _blocks(x)) / n
    if not standardise:
        return mean, np.ones(x.shape[1])
    variance = sum((block**2).sum(0) for block in _blocks(x, mean)) / n
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    return mean, np.where(constant, 1.0, np.sqrt(variance))


def _leading(square, k, other):
    """The `k` largest eigenvalues `(k,)` of a square matrix and their vectors, leading first; those without variance left out."""
    size = len(square)
    power, vectors = eigh(square, subset_by_index=(size - k, size - 1), overwrite_a=True)
    keep = np.flatnonzero(power > power[-1] * max(size, other) * np.finfo(np.float64).eps)[::-1]
    return power[keep], vectors[:, keep]


def _inner_folds(obs):
    for column in ("group", "sample"):
        labels = obs[column].to_numpy()
        n_groups = len(np.unique(labels))
        if n_groups > 1:
            return list(GroupKFold(min(INNER_FOLDS, n_groups)).split(obs, groups=labels))
    return list(KFold(INNER_FOLDS, shuffle=True, random_state=0).split(obs))
