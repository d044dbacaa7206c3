"""Did it align? How much of the teacher's space the features of held-out spots contain."""

import math

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def alignment_quality(
    features_train: np.ndarray,
    x_teacher_train: np.ndarray,
    features_test: np.ndarray,
    x_teacher_test: np.ndarray,
    k: int = 10,
) -> dict[str, float]:
    """R2 of X_teacher from the features, and overlap of neighbours, on held-out spots.

    Args:
        features_train, features_test: (n, d) and (m, d).
        x_teacher_train, x_teacher_test: (n, d_t) and (m, d_t). A row with NaN is a spot that the
            teacher could not use, and is left out.

    Returns:
        Numbers by name; they are NaN if a side has fewer than two spots.

        - r2: of a ridge from standardised features to X_teacher, which weighs components by their
          variance. Its penalty is chosen by leave-one-out on the training spots.
        - neighbour_overlap: share of a spot's k nearest neighbours in feature space that are among
          its k nearest in teacher space; chance: the same for random neighbours.
        - n_train, n_test, k.
    """
    usable, usable_test = np.isfinite(x_teacher_train).all(1), np.isfinite(x_teacher_test).all(1)
    features_train, x_teacher_train = features_train[usable], x_teacher_train[usable]
    features_test, x_teacher_test = features_test[usable_test], x_teacher_test[usable_test]
    n, m = len(features_train), len(features_test)
    if min(n, m) < 2:
        unknown = dict.fromkeys(("r2", "neighbour_overlap", "chance"), math.nan)
        return unknown | {"n_train": n, "n_test": m, "k": k}
    scaler = StandardScaler().fit(features_train)
    ridge = make_pipeline(scaler, RidgeCV(np.logspace(-1, 5, 13)))
    ridge.fit(features_train, x_teacher_train)
    r2 = r2_score(x_teacher_test, ridge.predict(features_test), multioutput="variance_weighted")
    k = min(k, m - 1)
    nearest = lambda x: NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)
    pairs = zip(nearest(scaler.transform(features_test)), nearest(x_teacher_test), strict=True)
    overlap = np.mean([len(np.intersect1d(a, b)) / k for a, b in pairs])  # over (m, k) and (m, k)
    scores = {"r2": float(r2), "neighbour_overlap": float(overlap), "chance": k / (m - 1)}
    return scores | {"n_train": n, "n_test": m, "k": k}


def umap_points(features: np.ndarray, spots: pd.Index) -> pd.DataFrame:
    """UMAP coordinates `x` and `y` of each spot from features (n, d), by scanpy with seed 0."""
    import scanpy as sc

    table = ad.AnnData(obs=pd.DataFrame(index=spots), obsm={"X_features": features})
    # exact neighbours at any size: scanpy 1.11 cannot read those of pynndescent 0.7, which it takes
    # by itself from 8,192 spots on
    sc.pp.neighbors(table, use_rep="X_features", random_state=0, transformer="sklearn")
    sc.tl.umap(table, random_state=0)
    return pd.DataFrame(table.obsm["X_umap"], index=spots, columns=["x", "y"]).round(3)
