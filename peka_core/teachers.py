"""Teachers: counts -> X_teacher (n, d_t) and pseudo-labels, fitted on training spots.

`scfoundation` is the paper's teacher; `pca` is ours and needs no download; `scvi` is trained here
with the library scvi-tools; others in `TEACHERS` are published models. The pseudo-labels are the
classes of L_struct (Eq. 6).
"""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import anndata
import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from .common.device import check_device
from .common.errors import PekaError
from .genes import log_cp10k
from .models.geneformer import Geneformer  # they import torch only when they embed spots
from .models.scfoundation import ScFoundation
from .models.scgpt import ScGpt
from .models.scvi import Scvi  # it imports scvi-tools only when it is fitted


class Teacher(Protocol):
    """What a teacher has. To add one, write such a class and enter it in `TEACHERS`.

    The options that a profile can give (`teacher_options`) are the arguments of its `__init__`.
    """

    name: str  # in profiles, and the manifest's source that lists its files
    description: str  # what it is, its licence, and whether access must be requested
    needs_fit: bool  # True if its embedding depends on the training spots
    gene_join: str  # which genes of the sections it sees: `inner` or `outer` (`Cohort.adata`)
    modules: ClassVar[tuple[str, ...]]  # modules of this package that no other teacher uses

    def __init__(self, **options) -> None: ...
    def fit(self, adata: anndata.AnnData) -> Self: ...  # on training spots (raw counts), if needed
    def embed(self, adata: anndata.AnnData) -> np.ndarray: ...  # (n, d_t); NaN if not usable
    def facts(self, adata: anndata.AnnData) -> dict: ...  # settings and statistics to store
    @staticmethod
    def dim(options: dict) -> int: ...  # d_t

    @staticmethod
    def files(options: dict) -> list[str]:
        """Files of the manifest that it reads, except those that the options give."""
        return []

    @staticmethod
    def named_options(options: dict) -> dict:
        """Options that can change a number, with digests in place of files."""
        return options


class PcaTeacher(Teacher):
    """Principal components of log-normalised counts, ln(1 + 1e4 c / total).

    The mean of the fitted spots is subtracted. All components are divided by the standard deviation
    of the first one and multiplied by `scale`, so they keep their relative sizes. With this scale,
    the softmax of Eq. 5 at tau = 1 is neither flat nor one-hot.

    Args:
        n_components: d_t; it is reduced, with a warning, if the fitted spots or genes are fewer.
        scale: standard deviation of the first component over the fitted spots.
        seed: starting vector of the decomposition.
    """

    name, needs_fit, gene_join, modules = "pca", True, "inner", ()
    description = "principal components of log counts, fitted on training spots; licence MIT"

    def __init__(self, n_components: int = 12, scale: float = 2.0, seed: int = 0):
        self.n_components, self.scale, self.seed = n_components, scale, seed

    def fit(self, adata: anndata.AnnData) -> Self:
        """Fit on all spots of `adata` (raw counts; pass training spots only)."""
        x = log_cp10k(adata, dense=False)  # (n, G)
        d, self.note = min(self.n_components, x.shape[0] - 1, x.shape[1]), ""
        if d < 1:
            raise PekaError(f"the pca teacher needs two spots and a gene, not counts {x.shape}")
        if d < self.n_components:
            self.note = f"{d} components, not {self.n_components}: {x.shape} counts"
            warnings.warn(f"pca teacher: {self.note}", stacklevel=2)
        if d < min(x.shape):  # scikit-learn centres without making the counts dense
            self.pca = PCA(d, svd_solver="arpack", random_state=self.seed).fit(x)
        else:
            self.pca = PCA(d, svd_solver="full").fit(log_cp10k(adata))
        self.spread = float(np.std(self.pca.transform(x)[:, 0])) or 1.0
        self.genes = adata.var_names.copy()
        return self

    def embed(self, adata: anndata.AnnData) -> np.ndarray:
        """Raw counts of spots, with the genes of the fit -> X_teacher float32 (n, d_t)."""
        if not hasattr(self, "pca"):
            raise PekaError("the pca teacher is not fitted. Call its fit(training spots) first.")
        if not adata.var_names.equals(self.genes):
            raise PekaError(f"the pca teacher was fitted on {len(self.genes)} genes in their order")
        log = log_cp10k(adata, dense=False)  # (n, G)
        return (self.pca.transform(log) / self.spread * self.scale).astype(np.float32)  # (n, d_t)

    def facts(self, adata: anndata.AnnData) -> dict:
        """Settings and statistics to store in uns["teacher"]."""
        facts = {"scale": self.scale, "seed": self.seed, "note": self.note}
        return facts | {"explained_variance_ratio": self.pca.explained_variance_ratio_}

    @staticmethod
    def dim(options: dict) -> int:
        """The number of components that is asked for."""
        return options.get("n_components", 12)


@dataclass(frozen=True)
class PrecomputedTeacher:
    """A teacher that needs no fit, with embeddings (n, d_t) that were computed earlier."""

    teacher: Teacher
    x_teacher: np.ndarray

    def __getattr__(self, name: str) -> Any:
        return getattr(self.teacher, name)  # name, facts

    def fit(self, adata: anndata.AnnData) -> Self:
        """Do nothing."""
        return self

    def embed(self, adata: anndata.AnnData) -> np.ndarray:
        """The given embeddings."""
        return np.asarray(self.x_teacher)


TEACHERS: dict[str, type[Teacher]] = {
    "pca": PcaTeacher,
    "scfoundation": ScFoundation,
    "scgpt": ScGpt,
    "geneformer": Geneformer,
    "scvi": Scvi,
}


def load_teacher(name: str, **options) -> Teacher:
    """A teacher by name, not fitted yet.

    Args:
        name: a key of `TEACHERS`.
        options: the arguments of that class, such as `PcaTeacher`; PekaError if one does not exist.
    """
    if name not in TEACHERS:
        raise PekaError(f"teacher {name!r} is unknown; there are: {', '.join(TEACHERS)}")
    check_device(options.get("device") or "cpu")
    try:
        return TEACHERS[name](**options)
    except TypeError as error:
        raise PekaError(f"teacher {name!r}: {error}") from error


def fit_kmeans(x_teacher: np.ndarray, k: int, seed: int = 0) -> KMeans:
    """k-means in teacher space, fitted on training spots (n, d_t); at most n clusters.

    The paper writes l = KNN(X_seq) and calls it clustering (Eq. 6); the authors' code runs k-means.
    """
    x = np.asarray(x_teacher, np.float32)
    return KMeans(min(k, len(x)), n_init=4, random_state=seed).fit(x)


def fit_leiden(x_teacher: np.ndarray, k: int, seed: int = 0) -> KNeighborsClassifier:
    """Communities in the graph of nearest neighbours (the "KNN" of Eq. 6) of training spots.

    A spot outside training gets the most frequent label among its 15 nearest training spots.
    PekaError if there are more than k communities.
    """
    import scanpy as sc  # takes a second

    spots = anndata.AnnData(obsm={"X_teacher": x_teacher}, shape=(len(x_teacher), 0))
    # exact neighbours at any size, as in `quality.umap_points`
    sc.pp.neighbors(spots, 15, use_rep="X_teacher", random_state=seed, transformer="sklearn")
    sc.tl.leiden(spots, flavor="igraph", n_iterations=2, random_state=seed)
    labels = spots.obs["leiden"].astype(int).to_numpy()
    if labels.max() >= k:
        raise PekaError(f"leiden found {labels.max() + 1} communities; raise k ({k})")
    return KNeighborsClassifier(min(15, len(labels))).fit(x_teacher, labels)


def embed_spots(
    adata: anndata.AnnData,
    train_mask: np.ndarray,
    teacher: Teacher | PrecomputedTeacher,
    k: int = 16,
    seed: int = 0,
    labels: str = "kmeans",
) -> anndata.AnnData:
    """Teacher embeddings and pseudo-labels of all spots, both fitted on the training spots only.

    Args:
        adata: raw counts (n, G); `log_cp10k` says which totals are used.
        train_mask: bool (n,), the training spots.
        teacher: from `load_teacher`; it is fitted here.
        k: number of pseudo-labels; the largest number that is allowed if `labels` is `leiden`.
        seed: of k-means or Leiden.
        labels: how pseudo-labels are made, `kmeans` or `leiden`.

    Returns:
        obs of `adata` with pseudo_label (int), teacher_train (bool) and teacher_usable (bool);
        obsm["X_teacher"] float32 (n, d_t); and uns["teacher"], the teacher's facts with numbers of
        spots and genes. A spot that the teacher cannot use has NaN and the pseudo-label -1.

    Raises:
        PekaError: the mask has another length or type, or no training spot can be used.
    """
    train = np.asarray(train_mask)
    if train.dtype != bool or train.shape != (adata.n_obs,) or not train.any():
        found = f"{train.dtype} {train.shape}, {train.sum()} True"
        raise PekaError(f"train_mask must be bool ({adata.n_obs},) with a True, not {found}")
    x_teacher = teacher.fit(adata[train]).embed(adata)  # (n, d_t)
    if x_teacher.ndim != 2 or len(x_teacher) != adata.n_obs:
        raise PekaError(f"x_teacher {x_teacher.shape}: expected ({adata.n_obs}, d_t)")
    usable = np.isfinite(x_teacher).all(1)  # (n,)
    fitted = x_teacher[train & usable]
    if not len(fitted):
        raise PekaError(f"teacher {teacher.name!r} cannot use any training spot; see their counts")
    make = fit_leiden if labels == "leiden" else fit_kmeans
    clusters = make(fitted, k, seed)
    pseudo_label = np.full(adata.n_obs, -1, np.int64)
    pseudo_label[usable] = clusters.predict(x_teacher[usable])
    is_vote = isinstance(clusters, KNeighborsClassifier)
    n_labels = len(clusters.classes_) if is_vote else clusters.n_clusters
    facts = teacher.facts(adata) | {
        "name": teacher.name, "n_components": x_teacher.shape[1], "k": n_labels,
        "label_seed": seed, "n_train": len(fitted), "n_genes": adata.n_vars,
    }  # fmt: skip
    obs = adata.obs.assign(pseudo_label=pseudo_label, teacher_train=train, teacher_usable=usable)
    return anndata.AnnData(obs=obs, obsm={"X_teacher": x_teacher}, uns={"teacher": facts})
