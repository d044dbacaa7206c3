"""Teachers: counts -> X_teacher (n, d_t), and pseudo-labels in that space. All fitted on training spots only."""

import warnings

import anndata
import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from .device import check_device
from .errors import PekaError
from .genes import log_cp10k
from .models.scfoundation import ScFoundation  # torch is imported when its network is


class PcaTeacher:
    """Principal components of log-normalised counts, ln(1 + 1e4 c / total).

    Centred by the fitted spots' mean; all components are divided by the standard deviation of the first and
    multiplied by `scale`, so their relative sizes stay (not whitened) and the softmax of Eq. 5 at tau = 1
    is neither flat nor a one-hot.

    Args:
        n_components: d_t; reduced, with a warning, where the fitted spots or genes are fewer.
        scale: standard deviation of the first component over the fitted spots.
        seed: starting vector of the decomposition.
    """

    about = "principal components of log-normalised counts, fitted on training spots; licence MIT; no gate"
    learns, join = True, "inner"  # from training spots; of the genes that every section measured

    def __init__(self, n_components: int = 12, scale: float = 2.0, seed: int = 0):
        self.name, self.n_components, self.scale, self.seed = "pca", n_components, scale, seed

    def fit(self, adata: anndata.AnnData) -> "PcaTeacher":
        """Fit on all spots of `adata` (raw counts; pass training spots only)."""
        x = log_cp10k(adata)  # (n, G)
        most = min(x.shape[0] - 1, x.shape[1])
        if most < 1:
            raise PekaError(f"the pca teacher needs two spots and a gene, got counts {x.shape}")
        d = min(self.n_components, most)
        self.note = (
            ""
            if d == self.n_components
            else f"{d} components, not {self.n_components}: {x.shape} counts"
        )
        if self.note:
            warnings.warn(f"pca teacher: {self.note}", stacklevel=2)
        solver = "arpack" if d < min(x.shape) else "full"
        self.pca = PCA(d, svd_solver=solver, random_state=self.seed).fit(x)
        self.spread = float(np.std(self.pca.transform(x)[:, 0])) or 1.0
        self.genes = adata.var_names.copy()
        return self

    def embed(self, adata: anndata.AnnData) -> np.ndarray:
        """Raw counts of spots, with the genes of the fit -> X_teacher float32 (n, d_t)."""
        if not hasattr(self, "pca"):
            raise PekaError(
                "the pca teacher is not fitted: call fit(adata of the training spots) first"
            )
        if not adata.var_names.equals(self.genes):
            raise PekaError(
                f"the pca teacher was fitted on {len(self.genes)} genes; "
                f"these {adata.n_vars} are others or in another order"
            )
        x_teacher = self.pca.transform(log_cp10k(adata)) / self.spread * self.scale  # (n, d_t)
        return x_teacher.astype(np.float32)

    def facts(self, adata: anndata.AnnData) -> dict:
        """Settings and what was fitted, for uns["teacher"]."""
        ratio = self.pca.explained_variance_ratio_
        return {
            "scale": self.scale,
            "seed": self.seed,
            "explained_variance_ratio": ratio,
            "note": self.note,
        }


TEACHERS = {"pca": PcaTeacher, "scfoundation": ScFoundation}


def load_teacher(name: str, **options) -> PcaTeacher | ScFoundation:
    """A teacher by name, not fitted yet.

    Args:
        name: `pca` or `scfoundation`.
        options: the teacher's own (`pca`: n_components, scale, seed; `scfoundation`: checkpoint, mode, pre_normalized,
            target, pool and more, see `ScFoundation`).

    Raises:
        PekaError: a name, an option or a device that does not exist.
    """
    if name not in TEACHERS:
        raise PekaError(f"teacher {name!r} is unknown; there are: {', '.join(TEACHERS)}")
    check_device(options.get("device") or "cpu")
    try:
        return TEACHERS[name](**options)
    except TypeError as error:
        raise PekaError(f"teacher {name!r}: {error}") from error


def fit_pseudo_labels(x_teacher: np.ndarray, k: int, seed: int = 0) -> KMeans:
    """k-means in teacher space, fitted on training spots (n, d_t); at most n clusters.

    The paper writes l = KNN(X_seq) and cites clustering (Eq. 6); the authors' code runs k-means.
    """
    return KMeans(min(k, len(x_teacher)), n_init=4, random_state=seed).fit(
        np.asarray(x_teacher, np.float32)
    )


class Leiden:
    """Pseudo-labels as communities of the graph of nearest neighbours in teacher space, a literal reading of "KNN" (Eq. 6).

    scanpy's neighbours and leiden (igraph); a spot that was not fitted takes the label of most of its nearest fitted ones.
    """

    def __init__(self, k: int, seed: int = 0, neighbours: int = 15):
        self.k, self.seed, self.neighbours = k, seed, neighbours

    def fit(self, x_teacher: np.ndarray) -> "Leiden":
        """Fit on training spots (n, d_t).

        Raises:
            PekaError: more communities than `k`.
        """
        import scanpy as sc

        spots = anndata.AnnData(obsm={"X_teacher": x_teacher}, shape=(len(x_teacher), 0))
        sc.pp.neighbors(spots, self.neighbours, use_rep="X_teacher", random_state=self.seed)
        sc.tl.leiden(spots, flavor="igraph", n_iterations=2, random_state=self.seed)
        labels = spots.obs["leiden"].astype(int).to_numpy()
        self.n_clusters = int(labels.max()) + 1
        if self.n_clusters > self.k:
            raise PekaError(
                f"leiden found {self.n_clusters} communities, the recipe allows k = {self.k}: raise k"
            )
        self.vote = KNeighborsClassifier(min(self.neighbours, len(labels))).fit(x_teacher, labels)
        return self

    def predict(self, x_teacher: np.ndarray) -> np.ndarray:
        """Labels (m,) of spots (m, d_t)."""
        return self.vote.predict(x_teacher)


def embed_spots(
    adata: anndata.AnnData, train_mask: np.ndarray, teacher: PcaTeacher | ScFoundation, k: int = 16, seed: int = 0,
    labels: str = "kmeans", x_teacher: np.ndarray | None = None,
) -> anndata.AnnData:  # fmt: skip
    """Teacher embeddings and pseudo-labels of all spots, everything fitted on the training spots.

    Args:
        adata: raw counts (n, G), a cohort's or one's own; see `log_cp10k` for where total counts come from.
        train_mask: bool (n,), the spots that may be looked at.
        teacher: from `load_teacher`; fitted here.
        k: number of pseudo-labels.
        seed: of k-means, or Leiden.
        labels: `kmeans`, or `leiden` (then k is the largest number that is allowed).
        x_teacher: the embeddings (n, d_t), where they are known already, as of a teacher that learns nothing.

    Returns:
        obs of `adata` with pseudo_label (int) and teacher_train (bool), obsm["X_teacher"] float32 (n, d_t), and
        uns["teacher"]: the teacher's facts, numbers of spots and genes. Spots that the teacher could not use have NaN, label -1
        and, for a teacher that may leave spots out, False in obs["teacher_usable"].

    Raises:
        PekaError: a mask of another length, or without spots, or without a usable one.
    """
    train = np.asarray(train_mask)
    if train.dtype != bool or train.shape != (adata.n_obs,) or not train.any():
        has = f"{train.dtype} {train.shape}, {train.sum()} True"
        raise PekaError(f"train_mask must be bool ({adata.n_obs},) with a True, not {has}")
    x_teacher = (
        teacher.fit(adata[train]).embed(adata) if x_teacher is None else np.asarray(x_teacher)
    )  # (n, d_t)
    if x_teacher.ndim != 2 or len(x_teacher) != adata.n_obs:
        raise PekaError(
            f"x_teacher {x_teacher.shape} for {adata.n_obs} spots; expected (n, d_t), one row a spot in their order"
        )
    usable = np.isfinite(x_teacher).all(1)  # (n,)
    fitted = x_teacher[train & usable]
    if not len(fitted):
        raise PekaError(
            f"teacher {teacher.name!r} could use none of {train.sum()} training spots: look at their counts"
        )
    clusters = (
        Leiden(k, seed).fit(fitted) if labels == "leiden" else fit_pseudo_labels(fitted, k, seed)
    )
    pseudo_label = np.full(adata.n_obs, -1, np.int64)
    pseudo_label[usable] = clusters.predict(x_teacher[usable])
    facts = teacher.facts(adata) | {
        "name": teacher.name, "n_components": x_teacher.shape[1], "k": clusters.n_clusters, "label_seed": seed,
        "n_train": len(fitted), "n_genes": adata.n_vars,
    }  # fmt: skip
    marks = {"teacher_usable": usable} if "dropped" in facts else {}
    obs = adata.obs.assign(pseudo_label=pseudo_label, teacher_train=train, **marks)
    return anndata.AnnData(
        obs=pd.DataFrame(obs), obsm={"X_teacher": x_teacher}, uns={"teacher": facts}
    )
