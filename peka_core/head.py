"""The regression behind every score: StandardScaler, PCA and ridge, from features to all genes.

PCA scores are uncorrelated, so ridge on them needs no further inverse: with squared singular values
`l_j`, the coefficient of component j is `(z_j . y) / (l_j + alpha)`. One factorisation of the
features therefore serves every gene and every alpha. Small eigenvalues need float64, so the
features are converted in blocks of rows: a float64 copy of all of them would not fit in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.linalg import eigh
from sklearn.model_selection import GroupKFold, KFold

from .statistics import MIN_SECTION_SPOTS, mean_defined, pearson

N_COMPONENTS = 256
INNER_FOLDS = 5
BLOCK = 4096  # rows that are float64 at a time
TIE = 1e-6  # penalties whose mean PCC differs by less are equally good


@dataclass(frozen=True)
class Head:
    """A fitted head with d features, k components and g genes; all arrays are float64."""

    mean: np.ndarray  # (d,)
    scale: np.ndarray  # (d,) standard deviation, 1 if a feature is constant
    components: np.ndarray  # (d, k) orthonormal columns, leading first
    squared_singular: np.ndarray  # (k,) squared singular values of the standardised features
    products: np.ndarray  # (k, g) products of component scores and centred targets
    intercept: np.ndarray  # (g,)

    def predict(self, x: np.ndarray, alpha: float) -> np.ndarray:
        """Targets `(m, g)` predicted for features `x (m, d)` with ridge penalty `alpha`."""
        return self.predict_for_alphas(x, [alpha])[0]

    def predict_for_alphas(self, x: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
        """Predictions `(a, m, g)`, one for each of `a` penalties, from the same factorisation."""
        shrink = 1 / (self.squared_singular + np.asarray(alphas, np.float64)[:, None])  # (a, k)
        weights = shrink[..., None] * self.products  # (a, k, g)
        blocks = _blocks(x, self.mean, self.scale)
        parts = [(z @ self.components) @ weights for z in blocks]  # (m, d)(d, k)(a, k, g)
        return np.concatenate(parts, axis=1) + self.intercept  # (a, m, g)


def fit_head(
    x_train: np.ndarray,
    y_train: np.ndarray,
    n_components: int = N_COMPONENTS,
    standardise: bool = True,
) -> Head:
    """Fit StandardScaler, PCA(min(n_components, n, d)) and ridge.

    The result equals scikit-learn's StandardScaler, PCA(svd_solver="full") and Ridge in sequence.
    Components without variance (constant or repeated features, the n-th of n centred rows) are left
    out, because ridge gives them no weight.

    Args:
        x_train: features (n, d).
        y_train: targets (n, g).
        n_components: the largest number of components.
        standardise: whether features are divided by their standard deviation.
    """
    x, y = np.asarray(x_train), np.asarray(y_train, np.float64)
    (n, d), intercept = x.shape, y.mean(0)
    mean, scale = _mean_and_scale(x, standardise)
    if n > d:  # the (d, d) scatter matrix is smaller than the (n, n) Gram matrix
        scatter, products = np.zeros((d, d)), np.zeros((d, y.shape[1]))
        for start, z in zip(range(0, n, BLOCK), _blocks(x, mean, scale), strict=True):
            scatter += z.T @ z  # (d, n)(n, d) = (d, d)
            products += z.T @ (y[start : start + BLOCK] - intercept)  # (d, n)(n, g) = (d, g)
        squared, components = _leading(scatter, min(n_components, d), n)
    else:
        z = np.concatenate(list(_blocks(x, mean, scale)))
        squared, vectors = _leading(z @ z.T, min(n_components, n), d)
        components = z.T @ vectors / np.sqrt(squared)  # (d, n)(n, k) = (d, k)
        products = z.T @ (y - intercept)  # (d, n)(n, g) = (d, g)
    return Head(mean, scale, components, squared, components.T @ products, intercept)


def fit_predict(
    features: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    alphas: Sequence[float],
    standardise: bool = True,
) -> np.ndarray:
    """Fit on rows `train` and predict rows `test` for every alpha: `(a, m, g)`.

    Genes that are fitted on the same rows share one head. A gene without any row to fit on is
    predicted as NaN.

    Args:
        features: `(n, d)`.
        targets: `(n, g)`, NaN if a gene is not fitted on a spot.
        train, test: row numbers.
        alphas: ridge penalties.
        standardise: as in `fit_head`.
    """
    usable = np.isfinite(targets[train])  # (t, g)
    if usable.all():
        head = fit_head(features[train], targets[train], standardise=standardise)
        return head.predict_for_alphas(features[test], alphas)
    predicted = np.full((len(alphas), len(test), targets.shape[1]), np.nan)
    patterns, of_gene = np.unique(usable, axis=1, return_inverse=True)  # (t, patterns), (g,)
    for i in np.flatnonzero(patterns.any(0)):
        rows, genes = train[patterns[:, i]], np.flatnonzero(of_gene.ravel() == i)
        head = fit_head(features[rows], targets[np.ix_(rows, genes)], standardise=standardise)
        predicted[..., genes] = head.predict_for_alphas(features[test], alphas)
    return predicted


def choose_alpha(
    features: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    obs: pd.DataFrame,
    alphas: Sequence[float],
    standardise: bool = True,
) -> float:
    """The penalty with the best mean PCC per section in an inner cross-validation on `train`.

    The inner folds hold out whole groups (patients). If there is one group they hold out sections,
    and if there is one section, spots. `obs` has the columns group and sample. All genes share one
    alpha. Of several equally good penalties the first is taken, so that rounding decides nothing.

    A student was trained on all training patients, also on those that an inner fold holds out. So
    the chosen penalty is a little too small for students. Test patients are never used.
    """
    curve = []  # one (a,) for each section that an inner fold holds out
    samples = obs["sample"].to_numpy()
    for inside, held_out in _inner_folds(obs.iloc[train]):
        rows = train[held_out]
        predicted = fit_predict(features, targets, train[inside], rows, alphas, standardise)
        for section in np.unique(samples[rows]):
            mask = samples[rows] == section
            pcc = pearson(targets[rows[mask]], predicted[:, mask], MIN_SECTION_SPOTS)  # (a, g)
            curve.append(mean_defined(pcc))
    quality = np.nan_to_num(mean_defined(np.array(curve).T), nan=-np.inf)  # (a,)
    return float(np.asarray(alphas)[np.argmax(quality >= quality.max() - TIE)])


def _inner_folds(obs: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
    for column in ("group", "sample"):
        names = obs[column].to_numpy()
        n_groups = len(np.unique(names))
        if n_groups > 1:
            return list(GroupKFold(min(INNER_FOLDS, n_groups)).split(obs, groups=names))
    return list(KFold(INNER_FOLDS, shuffle=True, random_state=0).split(obs))


def _blocks(x: np.ndarray, mean=0.0, scale=1.0) -> Iterator[np.ndarray]:
    """Rows of `x`, `BLOCK` at a time, as float64, centred and scaled."""
    for start in range(0, len(x), BLOCK):
        z = np.asarray(x[start : start + BLOCK], np.float64) - mean
        z /= scale
        yield z


def _mean_and_scale(x: np.ndarray, standardise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale `(d,)`; as in scikit-learn, a feature constant up to rounding has scale 1."""
    n, eps = len(x), np.finfo(np.float64).eps
    mean = np.asarray(sum(block.sum(0) for block in _blocks(x))) / n
    if not standardise:
        return mean, np.ones(x.shape[1])
    variance = np.asarray(sum((block**2).sum(0) for block in _blocks(x, mean))) / n
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    return mean, np.where(constant, 1.0, np.sqrt(variance))


def _leading(square: np.ndarray, k: int, other: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` largest eigenvalues `(k,)` above rounding, and their vectors, leading first.

    `other` is the length of the side of the data matrix that `square` does not have.
    """
    size = len(square)
    values, vectors = eigh(square, subset_by_index=(size - k, size - 1), overwrite_a=True)
    rounding = values[-1] * max(size, other) * np.finfo(np.float64).eps
    order = np.flatnonzero(values > rounding)[::-1]
    return values[order], vectors[:, order]
