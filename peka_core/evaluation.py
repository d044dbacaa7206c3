"""Scores of features, or of any predictor, under one protocol."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from .cohort import Cohort
from .common.errors import PekaError
from .common.files import write_whole
from .head import N_COMPONENTS, choose_alpha, fit_predict
from .protocols import PROTOCOLS, Protocol
from .statistics import MIN_SECTION_SPOTS, mean_defined, partial_pearson, pearson
from .tasks import Task, make_tasks

# name of an alpha ("chosen", "x0.1", "x10") -> its value, and its predictions (m, g)
ByAlpha = dict[str, tuple[float, np.ndarray]]
# a function of a task, its training rows and its test rows, which returns predictions (m, g) for
# the test rows, or those of several alphas
Predictor = Callable[[Task, np.ndarray, np.ndarray], np.ndarray | ByAlpha]
# a table with a row for each gene, scored on one set of spots (all test spots of a split, or those
# of one section), and the columns of `Evaluation.scores` that name this set
ScoredSpots = tuple[dict, pd.DataFrame]
# columns that are read as text, also if a field is empty or a section is named 1
TEXT = ("protocol", "split", "scheme", "pooling", "patient", "section", "genes", "alpha", "gene",
        "group")  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns.

    Attributes:
        predictions: one row for each split and test spot (index `split|sample:barcode`), one column
            for each target gene; layers observed and predicted (at the chosen alpha) are NaN if a
            value is not scored. None if the file was not kept on disk.
        scores: one row for each split, pooling, section, gene set and alpha, with the columns
            patient, section: "" if pooled;
            pcc: mean over the genes with a defined PCC, NaN if there is none;
            beyond_depth: the same mean of partial correlations, given log depth;
            n_spots: mean number of scored spots of a gene;
            n_genes: number of scored genes;
            n_undefined: number of scored genes without a defined PCC;
            n_skipped: number of genes with fewer spots than the protocol's `min_spots`.
        genes: one row for each scheme and gene at the chosen alpha, in the protocol's own pooling:
            pcc: mean over n folds, or over n patients (first over the sections of each patient);
            n_undefined: number of undefined values that this mean leaves out;
            n_splits: number of splits that have the gene as a target.
        made: commit, device, versions and code that computed it, if a finished unit was read.
    """

    predictions: ad.AnnData | None
    scores: pd.DataFrame
    genes: pd.DataFrame
    made: dict[str, str] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write predictions.h5ad, genes.csv and scores.csv.gz. No file is ever half written."""
        folder = Path(folder)
        if self.predictions is not None:
            write_whole(folder / "predictions.h5ad", self.predictions.write_h5ad)
        write_whole(folder / "genes.csv", lambda path: self.genes.to_csv(path, index=False))
        packed = gzip.compress(self.scores.to_csv(index=False).encode(), mtime=0)
        write_whole(folder / "scores.csv.gz", lambda path: path.write_bytes(packed))

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        """Read what `save` wrote; predictions.h5ad may be absent."""
        path = Path(folder) / "predictions.h5ad"
        predictions = ad.read_h5ad(path) if path.exists() else None
        tables = []
        for name in ("scores.csv.gz", "genes.csv"):
            header = pd.read_csv(path.parent / name, nrows=0).columns
            text = {column: str for column in header if column in TEXT}
            empty = {column: [""] for column in header if column not in TEXT}
            tables.append(pd.read_csv(
                path.parent / name, dtype=text, keep_default_na=False, na_values=empty,
                float_precision="round_trip",
            ))  # fmt: skip
        return cls(predictions, *tables)


def evaluate(
    cohort: Cohort,
    features: np.ndarray | dict[str, np.ndarray | Callable[[], np.ndarray]] | Predictor,
    protocol: Protocol | str,
    tasks: list[Task] | None = None,
    alpha: float | None = None,
) -> Evaluation:
    """Score features, or a predictor, on an open cohort.

    Args:
        cohort: the cohort.
        features: `(n, d)` over all spots of `cohort.obs`; or a dict from the name of a split to
            such an array, or to a function that gives it, for encoders aligned per split; or a
            `Predictor` that needs no head. With functions, one array is in memory at a time.
        protocol: a protocol or its name.
        tasks: the result of `make_tasks(cohort, protocol)`, if it is there already.
        alpha: one ridge penalty instead of the protocol's.

    Raises:
        PekaError: features have another length or are not finite, a split has no features, or tasks
            were made for another protocol.
    """
    protocol = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    tasks = make_tasks(cohort, protocol) if tasks is None else tasks
    scored: list[ScoredSpots] = []
    tables = []
    for task in tasks:
        if task.protocol != protocol:
            raise PekaError(
                f"these tasks were made for the protocol {task.protocol.name}, not for "
                f"{protocol.name}. Make them again."
            )
        predicted = _predict(features, task, alpha)
        for alpha_name, (value, at_alpha) in predicted.items():
            scored += _score(task, at_alpha, alpha_name, value)
        tables.append(_prediction_table(task, predicted["chosen"][1]))
    predictions = ad.concat(tables, join="outer", merge="same", fill_value=np.nan)
    return Evaluation(predictions, _score_table(scored), _gene_table(scored, protocol))


def _predict(features, task: Task, alpha: float | None) -> ByAlpha:
    """Test predictions of features or of a predictor; features are checked first."""
    if callable(features):
        predicted = features(task, *task.rows)
        single = {"chosen": (np.nan, np.asarray(predicted))}
        return predicted if isinstance(predicted, dict) else single
    name = task.split.name
    if isinstance(features, dict):
        if name not in features:
            raise PekaError(f"split {name} has no features; there are {', '.join(features)}.")
        features = features[name]
    features = np.asarray(features() if callable(features) else features)
    if features.ndim != 2 or len(features) != len(task.obs):
        raise PekaError(
            f"features of split {name} have the shape {features.shape}; expected (n, d) with n = "
            f"{len(task.obs)} spots, in the order of cohort.obs."
        )
    broken = ~np.isfinite(features).all(1)
    if broken.any():
        raise PekaError(
            f"features of split {name} hold NaN or infinity in {broken.sum()} of {len(features)} "
            f"spots (the first is {task.obs.index[broken.argmax()]}). Embed those tiles again."
        )
    return predict_with_head(features, task, alpha)


def predict_with_head(features: np.ndarray, task: Task, alpha: float | None = None) -> ByAlpha:
    """The head's test predictions `(m, g)` from features `(n, d)`.

    `chosen` is the given penalty, or the protocol's only one, or the best of several by inner
    cross-validation on training spots. After such a choice, `x0.1` and `x10` show a tenth and ten
    times the chosen penalty.
    """
    train, test = task.rows
    features, targets, rules = np.asarray(features), task.fit_values, task.protocol
    alphas = rules.alphas if alpha is None else (float(alpha),)
    if not alphas:
        components = min(N_COMPONENTS, len(train), features.shape[1])
        alphas = (100 / (components * len(task.genes)),)
    named = {"chosen": alphas[0]}
    if len(alphas) > 1:
        best = choose_alpha(features, targets, train, task.obs, alphas, rules.standardise)
        named = {"chosen": best, "x0.1": best / 10, "x10": best * 10}
    values = list(named.values())
    predicted = fit_predict(features, targets, train, test, values, rules.standardise)  # (a, m, g)
    return {name: (value, predicted[i]) for i, (name, value) in enumerate(named.items())}


def _score(task: Task, predicted: np.ndarray, alpha_name: str, alpha: float) -> list[ScoredSpots]:
    """PCC of each gene in one split, pooled over its test spots and in each of its sections."""
    test = task.rows[1]
    observed, spots = task.score_values[test], task.obs.iloc[test]  # (m, g)
    depth = np.log1p(spots["total_counts"].to_numpy(np.float64))  # (m,)
    samples, patients = spots["sample"].to_numpy(), spots["group"].to_numpy()
    scored = []
    for section in ("", *pd.unique(samples)):  # "" for all test spots
        mask = samples == section if section else slice(None)
        min_spots = MIN_SECTION_SPOTS if section else 2
        names = dict(
            protocol=task.protocol.name, split=task.split.name, scheme=task.split.scheme,
            pooling="section" if section else "pooled",
            patient=patients[mask][0] if section else "", section=section, genes="all",
            alpha=alpha_name, alpha_value=alpha,
        )  # fmt: skip
        true, guess = observed[mask], predicted[mask]
        genes = {
            "gene": task.genes,
            "group": task.gene_groups,
            "pcc": pearson(true, guess, min_spots),
            "beyond_depth": partial_pearson(true, guess, depth[mask], min_spots),
            "n_spots": np.isfinite(true).sum(0),
            "skipped": ~np.isfinite(task.targets).any(0),
        }
        scored.append((names, pd.DataFrame(genes)))
    return scored


def _score_table(scored: list[ScoredSpots]) -> pd.DataFrame:
    """`Evaluation.scores`: means over all genes and over each gene group."""
    rows = []
    for names, genes in scored:
        columns = {name: genes[name].to_numpy() for name in genes}  # each (g,)
        groups, skipped = columns["group"], columns["skipped"]
        for group in ("all", *sorted(set(groups) - {""})):
            inside = (groups == group) | (group == "all")
            used = inside & ~skipped
            pcc, n_spots = columns["pcc"][used], columns["n_spots"][used]
            means = dict(
                genes=group, pcc=float(mean_defined(pcc)),
                beyond_depth=float(mean_defined(columns["beyond_depth"][used])),
                n_spots=round(n_spots.mean()) if len(n_spots) else 0, n_genes=len(n_spots),
                n_undefined=int(np.isnan(pcc).sum()), n_skipped=int(skipped[inside].sum()),
            )  # fmt: skip
            rows.append(names | means)
    return pd.DataFrame(rows)


def _gene_table(scored: list[ScoredSpots], protocol: Protocol) -> pd.DataFrame:
    """`Evaluation.genes`: mean PCC of each gene, averaged over folds, or over patients' means."""
    keys, tables = ["scheme", "gene", "group"], []
    for names, genes in scored:
        if names["alpha"] == "chosen" and names["pooling"] == protocol.pooling:
            columns = {"scheme": names["scheme"], "split": names["split"]}
            columns["averaged_over"] = names["patient"] or names["split"]
            tables.append(genes[~genes["skipped"]].assign(**columns))
    long = pd.concat(tables)
    means = long.groupby([*keys, "averaged_over"], sort=False)["pcc"].mean()
    table = means.groupby(keys, sort=False).agg(pcc="mean", n="count")
    counts = long.groupby(keys, sort=False).agg(
        n_undefined=("pcc", lambda pcc: pcc.isna().sum()), n_splits=("split", "nunique")
    )
    return table.join(counts).reset_index()


def _prediction_table(task: Task, predicted: np.ndarray) -> ad.AnnData:
    """Observed and predicted targets of one split's test spots, NaN if they are not scored."""
    test, name = task.rows[1], task.split.name
    spots, observed = task.obs.iloc[test], task.score_values[test]
    predicted = np.where(np.isfinite(observed), predicted, np.nan).astype(np.float32)
    return ad.AnnData(
        obs=spots.assign(split=name, spot=spots.index).set_axis(name + "|" + spots.index),
        var=pd.DataFrame({"group": task.gene_groups}, index=pd.Index(task.genes, dtype=object)),
        layers={"observed": observed, "predicted": predicted},
        obsm={"spatial": task.spatial[test]},
    )
