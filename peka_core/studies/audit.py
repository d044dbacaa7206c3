"""A teacher's audit: what its embeddings hold of section and patient, of counts and target genes.

A student learns what the teacher says, also where that is which section a spot is from. Each number
stands beside its chance level and beside the cheap reference, as many principal components of log
counts. A share above chance is not yet a batch effect, because sections and patients differ in
their tissue too. What the teacher adds to that is the gap between it and the counts.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import sparse, stats
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_mutual_info_score, r2_score
from sklearn.neighbors import NearestNeighbors

from .. import figures
from ..cohort import Split
from ..common.errors import PekaError
from ..evaluation import evaluate
from ..genes import log_cp10k
from ..head import N_COMPONENTS
from ..protocols import PROTOCOLS
from ..runner import stages
from ..runner.run import Run
from ..statistics import mean_defined, paired, summarise
from ..teachers import fit_kmeans
from . import tables
from .excerpt import lesson_spots

K = 10  # neighbours of a spot
Rows = dict[str, tuple[float, float, int]]  # quantity -> value, chance, n


def teacher_audit(work: Run, split: Split | str, k: int = K) -> pd.DataFrame:
    """The audit of a run's teacher on the training and test spots of one of the cohort's splits.

    Teacher, components of counts and labels are fitted on the training spots. The head reads at
    most 256 components, so the counts get as many as the teacher has dimensions, up to 256. It
    standardises its inputs, so these components weigh the same. Under `strict`, a spot that the
    teacher could not use is scored with the mean embedding; all other quantities leave it out. For
    the teacher `pca`, the column counts repeats the values.

    Returns:
        One row a quantity, those of `audit` and these: `PCC of genes` of the head on X_teacher,
        `PCC of genes, depth alone`, and two paired differences between patients (`minus counts`,
        `minus depth`). Columns: quantity; value; low, high: t interval over patients, if there are
        three; chance; counts: the same from the components of log counts; n and its unit; protocol,
        scope, split, seed, teacher, and what made it.

    Raises:
        PekaError: `split` is not a split of the protocol `strict`.
    """
    split, embedded = work.split(split), stages.teacher(work, split)
    x_teacher, used = embedded.obsm["X_teacher"], split.train | split.test
    labels = embedded.obs["pseudo_label"].to_numpy().astype(int)
    log = log_cp10k(work.cohort().adata(), dense=False)  # (n, G)
    counts = count_components(log, split.train, min(x_teacher.shape[1], N_COMPONENTS))
    genes, made = _genes(work, split, counts)
    usable = (labels >= 0) & np.isfinite(x_teacher).all(1)
    n_labels, fitted = int(embedded.uns["teacher"]["k"]), split.train & usable
    clusters = fit_kmeans(counts[fitted], n_labels, work.profile.seed)
    count_labels = np.where(usable, clusters.predict(counts), -1)
    table, of_counts = (
        audit(x[used], of_spot[used], embedded.obs[used], _rows(log, used), k)
        for x, of_spot in ((x_teacher, labels), (counts, count_labels))
    )
    table = pd.concat([table.assign(counts=of_counts["value"], unit="spot"), genes])
    table = table.assign(scope="nested", split=split.name, seed=work.profile.seed)
    table = table.assign(teacher=work.teacher_name, **tables.made_by(embedded.uns["made"], *made))
    columns = ["quantity", "value", "low", "high", "chance", "counts", "n", "unit", "protocol"]
    table = table.reset_index(drop=True).fillna({"protocol": ""})
    return table[columns + [name for name in table if name not in columns]]


def audit(
    x_teacher: np.ndarray, labels: np.ndarray, obs: pd.DataFrame, log_counts, k: int = K
) -> pd.DataFrame:
    """What embeddings hold of section, patient and counts, one row a quantity.

    Args:
        x_teacher: (n, d_t). A row with NaN is a spot that the teacher could not use.
        labels: pseudo-labels (n,), -1 for a spot that the teacher could not use.
        obs: one row a spot, with the columns sample (the section) and group (the patient).
        log_counts: log counts (n, G), an array or CSR.
        k: number of neighbours, by Euclidean distance.

    Returns:
        Columns: quantity; value; chance, NaN if there is none; n, the spots behind the value.

        variance between sections, patients, and sections of a patient: shares of the sum of squares
        over all dimensions. Chance is the mean share if spots were dealt out to groups at random.
        variance of section means between patients: how much of what is between sections is between
        patients. Chance deals out whole sections and takes them as equally large.
        AMI of label and section, or patient: adjusted mutual information. 0 is chance, 1 means that
        both divide the spots in the same way.
        effective rank: exp of the entropy of the shares of the covariance's eigenvalues.
        participation ratio: (sum of eigenvalues)^2 / sum of their squares. Both are there for the
        embeddings as they are, and `within sections`, with section means taken out.
        neighbours near in counts too: share of a spot's k nearest by embedding that are among its k
        nearest by log counts, both within its section.
        neighbours of the same section, or patient: share of a spot's k nearest among all spots. In
        a large cohort, 2,000 spots are asked.
        dimensions: d_t. spots left out: of all n spots, those that the teacher could not use.

    Raises:
        PekaError: the arrays differ in length, or fewer than two spots can be used.
    """
    lengths = {len(x_teacher), len(labels), len(obs), log_counts.shape[0]}
    usable = (np.asarray(labels) >= 0) & np.isfinite(x_teacher).all(1) if len(lengths) == 1 else []
    if np.sum(usable) < 2:
        raise PekaError(
            f"x_teacher {x_teacher.shape}, labels ({len(labels)},), obs ({len(obs)},), log_counts "
            f"{log_counts.shape}: expected one row for each spot, and two spots that can be used"
        )
    x, labels = np.asarray(x_teacher, np.float64)[usable], np.asarray(labels)[usable]
    section, patient = (obs[name].astype(str).to_numpy()[usable] for name in ("sample", "group"))
    rows = _variance(x, section, patient)
    for name, groups in (("section", section), ("patient", patient)):
        rows[f"AMI of label and {name}"] = adjusted_mutual_info_score(groups, labels), 0.0, len(x)
    for name, values in (("", x), (", within sections", x - _means(x, section))):
        effective, participation = ranks(values)
        rows[f"effective rank{name}"] = effective, np.nan, len(x)
        rows[f"participation ratio{name}"] = participation, np.nan, len(x)
    rows |= _neighbours(x, _rows(log_counts, usable), section, patient, k)
    rows["dimensions"] = x.shape[1], np.nan, len(x)
    rows["spots left out"] = len(usable) - len(x), np.nan, len(usable)
    table = pd.DataFrame.from_dict(rows, "index", columns=["value", "chance", "n"])
    table = table.astype({"value": float, "chance": float, "n": int})
    return table.rename_axis("quantity").reset_index()


def count_components(log_counts: sparse.csr_matrix, train: np.ndarray, d: int) -> np.ndarray:
    """The first `d` principal components (n, d) of log counts (n, G), fitted on spots `train` (n,).

    There are fewer if there are not more than `d` training spots and genes.
    """
    d = min(d, train.sum() - 1, log_counts.shape[1] - 1)
    return PCA(d, svd_solver="arpack", random_state=0).fit(log_counts[train]).transform(log_counts)


def _rows(values, mask: np.ndarray):
    """`values[mask]`; without a copy if the mask takes all, because log counts may be large."""
    return values if mask.all() else values[mask]


def ranks(x: np.ndarray) -> tuple[float, float]:
    """Effective rank and participation ratio of the covariance of `x` (n, d)."""
    eigenvalues = np.linalg.eigvalsh(np.cov(x, rowvar=False).reshape(x.shape[1], -1))  # (d,)
    share = np.clip(eigenvalues, 0, None) / eigenvalues.sum()
    return float(np.exp(stats.entropy(share))), float(1 / (share**2).sum())


def _variance(x: np.ndarray, section: np.ndarray, patient: np.ndarray) -> Rows:
    """Shares of the variance of `x` (n, d) between sections and patients (n,)."""
    n, sections, patients = len(x), len(set(section)), len(set(patient))
    # R2 of the group means as a prediction is the share of the sum of squares between groups
    between = lambda groups: r2_score(x, _means(x, groups), multioutput="variance_weighted")
    of_sections, of_patients = between(section), between(patient)
    rows = {
        "sections": (of_sections, (sections - 1) / (n - 1), n),
        "patients": (of_patients, (patients - 1) / (n - 1), n),
        "sections of a patient": (of_sections - of_patients, (sections - patients) / (n - 1), n),
    }
    rows = {f"variance between {name}": row for name, row in rows.items()}
    if sections > 1:
        part, by_chance = of_patients / of_sections, (patients - 1) / (sections - 1)
        rows["variance of section means between patients"] = part, by_chance, n
    return rows


def _means(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The mean of each spot's group, (n, d)."""
    return pd.DataFrame(x).groupby(groups).transform("mean").to_numpy()


def _neighbours(x, log_counts, section: np.ndarray, patient: np.ndarray, k: int) -> Rows:
    """Shares of the neighbours in `x` (n, d) that are near in counts, or of the same group."""
    shared, chance = [], []
    for name in pd.unique(section):
        here = np.flatnonzero(section == name)
        if len(here) > 1:
            pairs = zip(_nearest(x[here], k), _nearest(log_counts[here], k))
            shared += [np.isin(a, b).mean() for a, b in pairs]
            chance += [min(k, len(here) - 1) / (len(here) - 1)] * len(here)
    rows = {"near in counts too": (mean_defined(shared), mean_defined(chance), len(shared))}
    asking = lesson_spots(len(x))
    near = _nearest(x, k, asking)  # (m, k)
    for name, groups in (("section", section), ("patient", patient)):
        own = groups[near] == groups[asking, None]  # (m, k)
        others = pd.Series(groups).map(pd.Series(groups).value_counts()).to_numpy() - 1  # (n,)
        by_chance = others[asking].mean() / (len(x) - 1)
        rows[f"of the same {name}"] = own.mean(), by_chance, len(asking)
    return {f"neighbours {name}": row for name, row in rows.items()}


def _nearest(x, k: int, asking: np.ndarray | None = None) -> np.ndarray:
    """Rows (m, k) of the k nearest other spots of each of the spots `asking` (m,), or of all n.

    There are at most n - 1. A copy of a spot can be listed before it, so it is left out by number.
    """
    asking = np.arange(x.shape[0]) if asking is None else asking
    k = min(k, x.shape[0] - 1)
    found = NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x[asking], return_distance=False)
    is_self = found == asking[:, None]  # (m, k + 1)
    return np.take_along_axis(found, np.argsort(is_self, axis=1, kind="stable"), axis=1)[:, :k]


def _genes(work: Run, split: Split, counts: np.ndarray) -> tuple[pd.DataFrame, list]:
    """Rows of what a ridge reads from teacher, components of counts (n, d) and depth; sources."""
    strict, names = PROTOCOLS["strict"], ("teacher", "library_size")
    teacher, depth = (stages.score(work, name, strict, splits=(split.name,)) for name in names)
    tasks = [task for task in work.tasks(strict) if task.split.name == split.name]
    reference = evaluate(work.cohort(), counts, strict, tasks)
    means = [
        summarise(scored.scores, strict).query("genes == 'all' and alpha == 'chosen'").iloc[0]
        for scored in (teacher, depth, reference)
    ]
    rows = []
    for name, mean in zip(("PCC of genes", "PCC of genes, depth alone"), means):
        row = {"quantity": name, "value": mean["mean"]}
        rows.append(row | {column: mean[column] for column in ("low", "high", "n", "unit")})
    rows[0]["counts"] = means[2]["mean"]
    for name, other in (("counts", reference), ("depth", depth)):
        difference = paired(teacher.scores, other.scores)
        row = {"quantity": f"PCC of genes, minus {name}", "value": difference["mean"]}
        row |= {"unit": "patient"}
        rows.append(row | {name: difference[name] for name in ("low", "high", "n")})
    table = pd.DataFrame(rows).assign(chance=0.0, protocol=strict.name)
    return table, [teacher, depth, work]


def audit_bars(table: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """Shares of variance and of neighbours from `teacher_audit` as bars, beside chance and counts.

    The column `counts` may be absent, as in a table of `audit`.
    """
    shares = table[table["quantity"].str.startswith(("variance", "neighbours"))].iloc[::-1]
    y, color = np.arange(len(shares)), figures.PALETTE["reference"]
    ax = figures.axes(ax, 7.5, 0.42 * len(shares) + 1)
    ax.barh(y, shares["value"], height=0.6, color=color, label="teacher")
    if "counts" in shares:
        ax.plot(
            shares["counts"],
            y,
            "D",
            ms=5,
            mfc="white",
            mec=figures.OTHER,
            label="components of counts",
        )
    ax.plot(shares["chance"], y, "|", ms=16, mew=2.5, color=figures.OTHER, label="chance")
    figures.legend_outside(ax, reverse=True, markerscale=0.6)
    return figures.name_rows(ax, shares["quantity"], "share")
