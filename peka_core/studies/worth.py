"""What is a gain worth? Other ways to gain on the same split, and which genes an image can show.

The gain of an alignment is small, so it stands beside what a better penalty, more training patients
or the images of neighbouring spots would bring to the frozen encoder. A gene can gain only where
the image says something about it, so each gene's score stands beside how much that is.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import StandardScaler

from ..cohort import Cohort
from ..controls import NEIGHBOURS
from ..evaluation import ByAlpha, Evaluation, Predictor, evaluate, predict_with_head
from ..genes import log_cp10k
from ..head import fit_predict
from ..layout.gene_columns import columns_of
from ..protocols import PROTOCOLS
from ..runner import stages
from ..runner.run import Run
from ..runner.rungs import Rung, as_rung
from ..statistics import MIN_SECTION_SPOTS, mean_defined, paired, pearson
from ..targets import training_spots
from ..tasks import Task
from . import tables
from .ceiling import split_half_ceiling

FIXED_ALPHA = PROTOCOLS["peka_paper"].alphas[0]  # 1.0, chosen by nobody
Pair = tuple[str, pd.DataFrame, pd.DataFrame]  # kind, scores with the gain, scores without it


def nearest_graph(points: np.ndarray, k: int) -> sparse.csr_matrix:
    """Which `k` other points are nearest to each of `points (m, d)`: 0 or 1, `(m, m)`.

    If there are fewer than `k` other points, all of them are.
    """
    return kneighbors_graph(points, min(k, len(points) - 1), include_self=False)


def with_neighbours(
    features: np.ndarray, spatial: np.ndarray, samples: np.ndarray, k: int = NEIGHBOURS
) -> np.ndarray:
    """Features beside the mean features of the `k` nearest spots of the same section, `(n, 2d)`.

    No count is read, so a new slide can have them too. A section with fewer other spots takes what
    there is; a spot that is alone in its section takes its own features twice. The head keeps at
    most 256 components of both halves together.

    Args:
        features: (n, d).
        spatial: spot centres, (n, 2).
        samples: section of each spot, (n,).
    """
    means = np.array(features, copy=True)
    for section in pd.unique(samples):
        rows = np.flatnonzero(samples == section)
        if len(rows) > 1:
            total = nearest_graph(spatial[rows], k) @ features[rows]  # (m, m)(m, d)
            means[rows] = total / min(k, len(rows) - 1)
    return np.concatenate([features, means], axis=1)


def half_the_patients(features: np.ndarray, seed: int = 0, share: float = 0.5) -> Predictor:
    """The head fitted on a random half of the training patients (sections, if it is one patient).

    Of an odd number, half is rounded. The head's penalty is chosen on this half too, and the target
    genes are those of all training patients. A split with one training section has no half, so its
    predictions are NaN and its PCC is undefined.
    """

    def predict(task: Task, train: np.ndarray, test: np.ndarray) -> ByAlpha:
        seen = training_spots(task.obs, task.split.train, share, seed)
        if np.array_equal(seen, task.split.train):
            return {"chosen": (np.nan, np.full((len(test), len(task.genes)), np.nan))}
        return predict_with_head(features, replace(task, split=replace(task.split, train=seen)))

    return predict


def oracle_alpha(features: np.ndarray) -> Predictor:
    """The head with the penalty of the protocol's grid that is best on the split's test patients.

    This is no score, because a test patient may choose nothing. It bounds what a better choice of
    one penalty for each split could bring.
    """

    def predict(task: Task, train: np.ndarray, test: np.ndarray) -> ByAlpha:
        alphas, standardise = task.protocol.alphas, task.protocol.standardise
        guess = fit_predict(features, task.fit_values, train, test, alphas, standardise)
        spots, true = task.obs.iloc[test].reset_index(drop=True), task.score_values[test]
        by_section = spots.groupby(["group", "sample"]).indices  # (patient, section) -> rows
        curves = {
            names: mean_defined(pearson(true[rows], guess[:, rows], MIN_SECTION_SPOTS))  # (a,)
            for names, rows in by_section.items()
        }
        quality = pd.DataFrame(curves).T.groupby(level=0).mean().mean()  # (a,), as `strict` pools
        best = int(np.argmax(quality.fillna(-np.inf)))
        return {"chosen": (alphas[best], guess[best])}

    return predict


def other_gains(
    cohort: Cohort, features: np.ndarray, tasks: list[Task], frozen: Evaluation, draws: int = 3
) -> dict[str, Pair]:
    """What else would bring a gain to the frozen encoder: label -> kind, and scores to compare.

    Args:
        cohort: the cohort.
        features: of the frozen encoder, (n, d).
        tasks: the scored splits of a protocol with several penalties, such as `strict`.
        frozen: scores of `features` on these tasks.
        draws: random halves of the training patients, whose scores are averaged.
    """
    protocol, samples = tasks[0].protocol, cohort.obs["sample"].to_numpy()
    run = lambda x, alpha=None: evaluate(cohort, x, protocol, tasks, alpha).scores
    halves = pd.concat([run(half_the_patients(features, seed)) for seed in range(draws)])
    keys = ["split", "scheme", "pooling", "patient", "section", "genes", "alpha"]
    halves = halves.groupby(keys, sort=False, as_index=False)["pcc"].mean()
    near = with_neighbours(features, tasks[0].spatial, samples)
    own, fixed = frozen.scores, f"penalty chosen on training patients, not fixed at {FIXED_ALPHA:g}"
    return {
        fixed: ("head", own, run(features, FIXED_ALPHA)),
        "all training patients for the head, not half": ("head", own, halves),
        f"image features of {NEIGHBOURS} neighbours too": ("images", run(near), own),
        "bound: penalty chosen on test patients": ("bound", run(oracle_alpha(features)), own),
    }


def gains(
    work: Run, aligned: Sequence[Rung | str] = ("bat",), splits: Sequence[str] = (), draws: int = 3
) -> pd.DataFrame:
    """The gain of each aligned student, and of other changes, under `strict` on the same splits.

    Every row is a paired difference of PCC over held-out patients. The student and its alignment
    see the training patients only. `kind` is alignment, head, images, or bound: a bound has seen
    the test patients and is no score.

    Returns:
        One row for each gain and gene set. Columns: label, kind, genes; base: mean PCC over
        patients without the gain; mean, low, high, p, n of the difference; what it depends on and
        what made it. `ladder_figures.rungs(table, xlabel="gain in PCC")` draws it.
    """
    strict, scheme = PROTOCOLS["strict"], work.cohort().splits[0].scheme
    tasks = [task for task in work.tasks(strict) if not splits or task.split.name in splits]
    frozen = stages.score(work, "frozen", strict, splits=splits)
    pairs: list[tuple[str, Pair, dict]] = []
    for rung in map(as_rung, aligned):
        student = stages.score(work, rung, strict, splits=splits)
        label, made = tables.name_of(rung)[2], tables.made_by(student, frozen)
        pairs.append((f"aligned: {label}", ("alignment", student.scores, frozen.scores), made))
    others = other_gains(work.cohort(), stages.space_of(work, "frozen"), tasks, frozen, draws)
    pairs += [(label, pair, tables.made_by(work, frozen)) for label, pair in others.items()]
    rows = []
    for label, (kind, scores, base), made in pairs:
        levels = tables.levels(base, scheme)
        for genes in frozen.scores["genes"].unique():
            row = {"label": label, "kind": kind, "genes": genes, "base": levels[genes]}
            rows.append(row | paired(scores, base, genes, scheme) | made)
    table, names = pd.DataFrame(rows).drop(columns="values"), ",".join(splits) or "all"
    table = tables.named(work, table, protocol="strict", scope="nested", splits=names)
    return table.assign(scope=np.where(table["kind"] == "alignment", table["scope"], "none"))


def predictability(
    log: np.ndarray,
    features: np.ndarray,
    spatial: np.ndarray,
    samples: np.ndarray,
    k: int = 10,
    k_spatial: int = NEIGHBOURS,
) -> pd.DataFrame:
    """How alike spots with alike images, and neighbouring spots, express each gene.

    This describes a gene and predicts nothing: the counts of the spots themselves are needed. Both
    numbers are about 0 for a gene without structure (Moran's I is -1 / (spots - 1) then).

    Args:
        log: log counts, (n, g).
        features: of the frozen encoder, (n, d); standardised here over all n spots.
        spatial: spot centres, (n, 2).
        samples: section of each spot, (n,).
        k, k_spatial: neighbours in both graphs. A section with no more than one spot beyond the
            larger of them is left out, because there every spot is the neighbour of every other.

    Returns:
        One row for each gene, averaged over `sections`, the number of sections in which the gene
        varies. It is constant in `constant` further ones. Columns: predictability: -ln of Geary's C
        on the graph of features; moran: Moran's I on the graph of places; sections, constant.
    """
    scaled, metrics = StandardScaler().fit_transform(features), sc.metrics
    members = [np.flatnonzero(samples == section) for section in pd.unique(samples)]
    members = [rows for rows in members if len(rows) > max(k, k_spatial) + 1]
    found = np.full((2, log.shape[1], len(members)), np.nan)  # (geary and moran, g, sections)
    for i, rows in enumerate(members):
        varies = np.ptp(log[rows], axis=0) > 0  # (g,)
        values = np.ascontiguousarray(log[rows][:, varies].T, np.float64)  # (v, m)
        if varies.any():
            geary = metrics.gearys_c(nearest_graph(scaled[rows], k), values)  # (v,)
            found[0, varies, i] = -np.log(geary)
            found[1, varies, i] = metrics.morans_i(nearest_graph(spatial[rows], k_spatial), values)
    names, sections = ("predictability", "moran"), np.isfinite(found[0]).sum(-1)
    table = pd.DataFrame(dict(zip(names, mean_defined(found), strict=True)))
    return table.assign(sections=sections, constant=len(members) - sections)


def gene_table(
    work: Run, aligned: Rung | str = "bat", splits: Sequence[str] = (), k: int = 10
) -> pd.DataFrame:
    """One row for each target gene under `strict`: its PCCs, and what could be predicted of it.

    Predictability, Moran's I and ceiling use all held-out spots of the scored splits, whereas a
    PCC is of the splits that have this gene as a target. The frozen encoder's features are behind
    predictability and behind its PCC, so the two are related by construction.

    Args:
        work: a run.
        aligned: the student. `frozen` where nothing is aligned; then both PCCs are the same.
        splits: names of the splits that are scored, by default all.
        k: neighbours in the graph of features.

    Returns:
        Columns: gene, group; frozen, aligned: PCC, mean over n patients; the columns of
        `predictability`; ceiling: of a perfect prediction, given noise of counting
        (`split_half_ceiling`); method and space of the student; and what made it.
    """
    strict, scheme, rung = PROTOCOLS["strict"], work.cohort().splits[0].scheme, as_rung(aligned)
    frozen, student = (stages.score(work, x, strict, splits=splits) for x in ("frozen", rung))
    own = lambda scored: scored.genes[scored.genes["scheme"] == scheme].set_index("gene")
    table, other = own(frozen), own(student)
    table = table[["group", "n"]].assign(frozen=table["pcc"], aligned=other["pcc"])
    tasks = [task for task in work.tasks(strict) if not splits or task.split.name in splits]
    rows = np.any([task.split.test for task in tasks if task.split.scheme == scheme], axis=0)
    adata, genes = work.cohort().adata()[rows], list(table.index)
    log = log_cp10k(adata[:, columns_of(adata.var_names, genes)])  # (m, g)
    x, samples = stages.space_of(work, "frozen")[rows], adata.obs["sample"].to_numpy()
    found = predictability(log, x, np.asarray(adata.obsm["spatial"]), samples, k)
    ceiling = split_half_ceiling(adata, genes, repeats=2, seed=work.profile.seed)["by_gene"]
    table = table.join(found.set_index(table.index)).assign(ceiling=ceiling)
    table = table.assign(method=rung.method, space=rung.space)
    names = {"protocol": "strict", "scope": "nested", "splits": ",".join(splits) or "all"}
    made = tables.made_by(frozen, student, work)
    return tables.named(work, table.reset_index(), **names, **made)


def studies_of_one_gain() -> pd.DataFrame:
    """The gain of bat in the encoder space, all genes, `strict`, as several studies measured it.

    The studies are committed tables of drawn tissue. They differ in cohorts, patients and seeds,
    and in what their interval is taken over.

    Returns:
        Columns: study; cohorts; each: what one cohort gave; cues: whether some genes follow what
        the frozen encoder does not pass on; over: what the interval is taken over; mean, low, high.
    """
    bat, all_genes = "label == 'bat (encoder)'", "genes == 'all'"
    of_loss = "rung == 'Eq. 5 + Eq. 6' and space == 'encoder' and against == 'frozen'"
    on_first = "curve == 'epochs' and value == '4' and space == 'encoder'"
    differences = "rung == 'bat, encoder' and world == "
    rows: list[tuple[str, str, int, str, str, str, str]] = [
        ("demo, four splits", "demo_differences", 1, "20 patients, 1 seed", "on", "patients",
         f"{differences} 'on'"),
        ("demo, its first split", "ladder_curves", 1, "5 patients, 1 seed", "on", "patients",
         f"{on_first} and split == 'patients/0'"),
        ("redrawn cohorts", "ladder_cohorts", 10, "5 patients, 1 seed", "on", "cohorts", bat),
        ("further cohorts", "losses_summary", 10, "5 patients, 1 seed", "on", "cohorts", of_loss),
        ("cohorts and seeds", "components", 8, "5 patients, 3 seeds", "on", "cohorts",
         f"{bat} and component == 'cohort'"),
        ("demo, two splits", "demo_differences", 1, "10 patients, 1 seed", "off", "patients",
         f"{differences} 'off'"),
        ("further cohorts", "losses_off_summary", 10, "5 patients, 1 seed", "off", "cohorts",
         of_loss),
    ]  # fmt: skip
    found = []
    for study, name, cohorts, each, cues, over, chosen in rows:
        table = tables.read_result(name).query(all_genes).astype({"mean": float})
        if "value" in table:
            table["value"] = table["value"].astype(str)
        (row,) = table.query(chosen)[["mean", "low", "high"]].to_dict("records")
        facts = {"study": study, "cohorts": cohorts, "each": each, "cues": cues, "over": over}
        found.append(facts | row)
    return pd.DataFrame(found)
