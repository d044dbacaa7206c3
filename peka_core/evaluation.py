"""From features, or from any predictor, to predictions and scores under one protocol."""

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
from .protocols import PROTOCOLS, Protocol, Task, make_tasks
from .statistics import MIN_SECTION_SPOTS, mean_defined, partial_pearson, pearson

# name of a ridge penalty ("chosen", "x0.1", "x10") -> its value, and predictions (m, g)
ByAlpha = dict[str, tuple[float, np.ndarray]]
# (task, training rows, test rows) -> predictions (m, g), or those of several penalties
Predictor = Callable[[Task, np.ndarray, np.ndarray], np.ndarray | ByAlpha]
# one set of scored spots: what tells it from others, and a row for each gene
ScoredSpots = tuple[dict, pd.DataFrame]
# the columns of scores and genes that hold text: an empty field or a section named 1 stays text
TEXT = ("protocol", "split", "scheme", "pooling", "patient", "section", "genes", "alpha", "gene",
        "group")  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns.

    Attributes:
        predictions: one row for each split and test spot (index `split|sample:barcode`; obs as the
            cohort's, then split and spot) and one column for each target gene; layers observed and
            predicted (at the chosen alpha), NaN where not scored; obsm spatial. None where it was
            not kept on disk.
        scores: one row for each split, pooling, section (patient and section are "" where pooled),
            gene set and alpha. pcc is the mean over the genes with a defined PCC, NaN where none
            is; beyond_depth is the same with log depth taken out of both sides; n_spots is the mean
            number of scored spots of a gene; n_genes counts the scored genes, n_undefined those of
            them without a defined PCC, n_skipped those that the zero rule's minimum left out.
        genes: one row for each scheme and gene at the chosen alpha, in the protocol's own pooling.
            pcc is a mean over n folds or patients (over sections within a patient first);
            n_undefined counts the undefined values left out of it, n_splits the splits that have
            the gene as a target.
        made: commit, device, versions and code behind it, where it was read from a finished unit.
    """

    predictions: ad.AnnData | None
    scores: pd.DataFrame
    genes: pd.DataFrame
    made: dict[str, str] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write predictions.h5ad, genes.csv and scores.csv.gz, each whole or not at all."""
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
        tables = (_read_table(path.parent / name) for name in ("scores.csv.gz", "genes.csv"))
        return cls(predictions, *tables)


def evaluate(
    cohort: Cohort,
    features: np.ndarray | dict[str, np.ndarray] | Predictor,
    protocol: Protocol | str,
    tasks: list[Task] | None = None,
    alpha: float | None = None,
) -> Evaluation:
    """Score features, or a predictor, on a cohort.

    Args:
        cohort: an open cohort.
        features: `(n, d)` over all spots of `cohort.obs`; or a dict of such arrays by the name of
            the split, for encoders aligned per split; or a `Predictor` that needs no head.
        protocol: a protocol or its name.
        tasks: `make_tasks(cohort, protocol)`, where it was called before.
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
        for name, (value, at_alpha) in predicted.items():
            scored += _score(task, at_alpha, name, value)
        tables.append(_prediction_table(task, predicted["chosen"][1]))
    predictions = ad.concat(tables, join="outer", merge="same", fill_value=np.nan)
    return Evaluation(predictions, _score_table(scored), _gene_table(scored, protocol))


def _predict(features, task: Task, alpha: float | None) -> ByAlpha:
    """Test predictions of features or of a predictor; features are checked first."""
    if callable(features):
        predicted = features(task, *task.rows)
        if isinstance(predicted, dict):
            return predicted
        return {"chosen": (np.nan, np.asarray(predicted))}
    name = task.split.name
    if isinstance(features, dict):
        if name not in features:
            raise PekaError(f"split {name} has no features; there are {', '.join(features)}.")
        features = features[name]
    features = np.asarray(features)
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

    `chosen` is the given penalty, the protocol's only one, or the best of several by inner
    cross-validation on training spots; then `x0.1` and `x10` show the penalties beside it.
    """
    train, test = task.rows
    features, targets, rules = np.asarray(features), task.fitted, task.protocol
    choices = rules.alphas if alpha is None else (float(alpha),)
    if not choices:
        components = min(N_COMPONENTS, len(train), features.shape[1])
        choices = (100 / (components * len(task.genes)),)
    named = {"chosen": choices[0]}
    if len(choices) > 1:
        best = choose_alpha(features, targets, train, task.obs, choices, rules.standardise)
        named = {"chosen": best, "x0.1": best / 10, "x10": best * 10}
    alphas = list(named.values())
    predicted = fit_predict(features, targets, train, test, alphas, rules.standardise)  # (a, m, g)
    return {name: (value, predicted[i]) for i, (name, value) in enumerate(named.items())}


def _score(task: Task, predicted: np.ndarray, alpha: str, value: float) -> list[ScoredSpots]:
    """PCC of each gene in one split, pooled over its test spots and in each of its sections."""
    test = task.rows[1]
    observed, spots = task.observed[test], task.obs.iloc[test]  # (m, g)
    depth = np.log1p(spots["total_counts"].to_numpy(np.float64))  # (m,)
    samples, patients = spots["sample"].to_numpy(), spots["group"].to_numpy()
    sets = [("pooled", "", "", slice(None), 2)]
    for section in pd.unique(samples):
        here = samples == section
        sets.append(("section", patients[here][0], section, here, MIN_SECTION_SPOTS))
    scored = []
    for pooling, patient, section, here, least in sets:
        labels = dict(
            protocol=task.protocol.name, split=task.split.name, scheme=task.split.scheme,
            pooling=pooling, patient=patient, section=section, genes="all", alpha=alpha,
            alpha_value=value,
        )  # fmt: skip
        genes = {
            "gene": task.genes,
            "group": task.gene_groups,
            "pcc": pearson(observed[here], predicted[here], least),
            "beyond_depth": partial_pearson(observed[here], predicted[here], depth[here], least),
            "n_spots": np.isfinite(observed[here]).sum(0),
            "skipped": ~np.isfinite(task.targets).any(0),
        }
        scored.append((labels, pd.DataFrame(genes)))
    return scored


def _score_table(scored: list[ScoredSpots]) -> pd.DataFrame:
    """`Evaluation.scores`: means over all genes and over each gene group."""
    rows = []
    for labels, genes in scored:
        for name in ("all", *sorted(set(genes["group"]) - {""})):
            part = genes if name == "all" else genes[genes["group"] == name]
            used = part[~part["skipped"]]
            pcc, beyond_depth = used["pcc"].to_numpy(), used["beyond_depth"].to_numpy()
            means = dict(
                genes=name, pcc=float(mean_defined(pcc)),
                beyond_depth=float(mean_defined(beyond_depth)),
                n_spots=round(used["n_spots"].mean()) if len(used) else 0, n_genes=len(used),
                n_undefined=int(np.isnan(pcc).sum()), n_skipped=int(part["skipped"].sum()),
            )  # fmt: skip
            rows.append(labels | means)
    return pd.DataFrame(rows)


def _gene_table(scored: list[ScoredSpots], protocol: Protocol) -> pd.DataFrame:
    """`Evaluation.genes`: mean PCC of each gene over folds, or over patients' means."""
    long = pd.concat(
        genes[~genes["skipped"]].assign(
            scheme=labels["scheme"],
            split=labels["split"],
            unit=labels["patient"] or labels["split"],
        )
        for labels, genes in scored
        if labels["alpha"] == "chosen" and labels["pooling"] == protocol.pooling
    )
    keys = ["scheme", "gene", "group"]
    by_unit = long.groupby([*keys, "unit"], sort=False)["pcc"].mean()
    table = by_unit.groupby(keys, sort=False).agg(pcc="mean", n="count")
    counts = long.groupby(keys, sort=False).agg(
        n_undefined=("pcc", lambda pcc: pcc.isna().sum()), n_splits=("split", "nunique")
    )
    return table.join(counts).reset_index()


def _prediction_table(task: Task, predicted: np.ndarray) -> ad.AnnData:
    """Observed and predicted targets of one split's test spots, NaN where not scored."""
    test, name = task.rows[1], task.split.name
    spots, observed = task.obs.iloc[test], task.observed[test]
    predicted = np.where(np.isfinite(observed), predicted, np.nan).astype(np.float32)
    return ad.AnnData(
        obs=spots.assign(split=name, spot=spots.index).set_axis(name + "|" + spots.index),
        var=pd.DataFrame({"group": task.gene_groups}, index=pd.Index(task.genes, dtype=object)),
        layers={"observed": observed, "predicted": predicted},
        obsm={"spatial": task.spatial[test]},
    )


def _read_table(path: Path) -> pd.DataFrame:
    header = pd.read_csv(path, nrows=0).columns
    text = {column: str for column in header if column in TEXT}
    numbers = {column: [""] for column in header if column not in TEXT}
    return pd.read_csv(
        path, dtype=text, keep_default_na=False, na_values=numbers, float_precision="round_trip"
    )
