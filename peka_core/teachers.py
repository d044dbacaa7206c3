"""Teachers: counts -> X_teacher (n, d_t) and pseudo-labels, fitted on training spots.

`scfoundation` is the paper's teacher; `pca` is ours and needs no download. The pseudo-labels are
the classes of L_struct (Eq. 6).
"""

import warnings
from dataclasses import dataclass

import anndata
import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from .common.device import check_device
from .common.errors import PekaError
from .genes import log_cp10k
from .models.scfoundation import ScFoundation  # torch is imported when its network is


class PcaTeacher:
    """Principal components of log-normalised counts, ln(1 + 1e4 c / total).

    Counts are centred by the mean of the fitted spots. All components are divided by the standard
    deviation of the first and multiplied by `scale`, so their relative sizes stay (they are not
    whitened), and the softmax of Eq. 5 at tau = 1 is neither flat nor a one-hot.

    Args:
        n_components: d_t; it is reduced, with a warning, where the fitted spots or genes are fewer.
        scale: standard deviation of the first component over the fitted spots.
        seed: starting vector of the decomposition.
    """

    description = (
        "principal components of log counts, fitted on training spots; licence MIT; no gate"
    )
    name, is_fitted = "pca", True  # its embedding depends on the training spots
    gene_join = "inner"  # it sees the genes that every section measured

    def __init__(self, n_components: int = 12, scale: float = 2.0, seed: int = 0):
        self.n_components, self.scale, self.seed = n_components, scale, seed

    def fit(self, adata: anndata.AnnData) -> "PcaTeacher":
        """Fit on all spots of `adata` (raw counts; pass training spots only)."""
        x = log_cp10k(adata)  # (n, G)
        most = min(x.shape[0] - 1, x.shape[1])
        if most < 1:
            raise PekaError(f"the pca teacher needs two spots and a gene, not counts {x.shape}")
        d, self.note = min(self.n_components, most), ""
        if d < self.n_components:
            self.note = f"{d} components, not {self.n_components}: {x.shape} counts"
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
                "the pca teacher is not fitted: call fit(adata of training spots) first"
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
        settings = {"scale": self.scale, "seed": self.seed}
        return settings | {"explained_variance_ratio": ratio, "note": self.note}


@dataclass(frozen=True)
class Embedded:
    """A teacher that is not fitted, with its embedding of the same spots (n, d_t) from before."""

    teacher: ScFoundation
    x_teacher: np.ndarray

    @property
    def name(self) -> str:
        """The teacher's name."""
        return self.teacher.name

    def fit(self, adata: anndata.AnnData) -> "Embedded":
        """Do nothing."""
        return self

    def embed(self, adata: anndata.AnnData) -> np.ndarray:
        """The embedding that is known."""
        return np.asarray(self.x_teacher)

    def facts(self, adata: anndata.AnnData) -> dict:
        """The teacher's facts."""
        return self.teacher.facts(adata)


TEACHERS = {"pca": PcaTeacher, "scfoundation": ScFoundation}


def load_teacher(name: str, **options) -> PcaTeacher | ScFoundation:
    """A teacher by name, not fitted yet.

    Args:
        name: `pca` or `scfoundation`.
        options: the teacher's own (`pca`: n_components, scale, seed; `scfoundation`: checkpoint,
            mode, pre_normalized, target, pool and more, see `ScFoundation`).

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
    x = np.asarray(x_teacher, np.float32)
    return KMeans(min(k, len(x)), n_init=4, random_state=seed).fit(x)


class Leiden:
    """Pseudo-labels as communities of the graph of nearest neighbours in teacher space.

    This takes the word "KNN" of Eq. 6 literally: scanpy finds neighbours, igraph communities. A
    spot that was not fitted takes the label that most of its nearest fitted spots have.
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
            found = f"leiden found {self.n_clusters} communities"
            raise PekaError(f"{found}, and the recipe allows k = {self.k}: raise k")
        self.vote = KNeighborsClassifier(min(self.neighbours, len(labels))).fit(x_teacher, labels)
        return self

    def predict(self, x_teacher: np.ndarray) -> np.ndarray:
        """Labels (m,) of spots (m, d_t)."""
        return self.vote.predict(x_teacher)


def embed_spots(
    adata: anndata.AnnData,
    train_mask: np.ndarray,
    teacher: PcaTeacher | ScFoundation | Embedded,
    k: int = 16,
    seed: int = 0,
    labels: str = "kmeans",
) -> anndata.AnnData:
    """Teacher embeddings and pseudo-labels of all spots, everything fitted on the training spots.

    Args:
        adata: raw counts (n, G), of a cohort or your own; `log_cp10k` says which totals are used.
        train_mask: bool (n,), the spots that may be looked at.
        teacher: from `load_teacher`; it is fitted here.
        k: number of pseudo-labels, and with `leiden` the largest number that is allowed.
        seed: of k-means, or Leiden.
        labels: `kmeans` or `leiden`.

    Returns:
        obs of `adata` with pseudo_label (int) and teacher_train (bool), obsm["X_teacher"] float32
        (n, d_t), and uns["teacher"]: the teacher's facts, numbers of spots and genes. A spot that
        the teacher could not use has NaN and label -1; a teacher that may leave spots out also
        has obs["teacher_usable"].

    Raises:
        PekaError: a mask of another length, without spots, or without a usable one.
    """
    train = np.asarray(train_mask)
    if train.dtype != bool or train.shape != (adata.n_obs,) or not train.any():
        has = f"{train.dtype} {train.shape}, {train.sum()} True"
        raise PekaError(f"train_mask must be bool ({adata.n_obs},) with a True, not {has}")
    x_teacher = teacher.fit(adata[train]).embed(adata)  # (n, d_t)
    if x_teacher.ndim != 2 or len(x_teacher) != adata.n_obs:
        expected = f"(n, d_t), one row for each of {adata.n_obs} spots"
        raise PekaError(f"x_teacher {x_teacher.shape}: expected {expected}")
    usable = np.isfinite(x_teacher).all(1)  # (n,)
    fitted = x_teacher[train & usable]
    if not len(fitted):
        none = f"could use none of {train.sum()} training spots"
        raise PekaError(f"teacher {teacher.name!r} {none}: look at their counts")
    leiden = labels == "leiden"
    clusters = Leiden(k, seed).fit(fitted) if leiden else fit_pseudo_labels(fitted, k, seed)
    pseudo_label = np.full(adata.n_obs, -1, np.int64)
    pseudo_label[usable] = clusters.predict(x_teacher[usable])
    facts = teacher.facts(adata) | {
        "name": teacher.name, "n_components": x_teacher.shape[1], "k": clusters.n_clusters,
        "label_seed": seed, "n_train": len(fitted), "n_genes": adata.n_vars,
    }  # fmt: skip
    marks = {"teacher_usable": usable} if "dropped" in facts else {}
    obs = adata.obs.assign(pseudo_label=pseudo_label, teacher_train=train, **marks)
    return anndata.AnnData(obs=obs, obsm={"X_teacher": x_teacher}, uns={"teacher": facts})
