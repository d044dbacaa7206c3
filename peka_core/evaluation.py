"""From features, or any predictor, to predictions and scores under one protocol."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from .errors import PekaError
from .files import write_whole
from .head import N_COMPONENTS, choose_alpha, fit_predict
from .protocols import PROTOCOLS, Protocol, Task, make_tasks
from .statistics import mean_defined, partial_pearson, pearson

# (task, train rows, test rows) -> predictions (m, g), or those of named penalties as `head_answers` returns them
Predictor = Callable[[Task, np.ndarray, np.ndarray], np.ndarray | dict]
TEXT = (
    "protocol",
    "split",
    "scheme",
    "pooling",
    "patient",
    "section",
    "genes",
    "alpha",
    "gene",
    "group",
)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns.

    Attributes:
        predictions: one row per split and test spot (index `split|sample:barcode`, obs as the cohort's, then
            split and spot), one column per target gene; layers observed and predicted (log1p CP10K, at the
            chosen alpha), NaN where not scored; obsm spatial. None where it was not kept on disk.
        scores: one row per split, pooling, section (patient and section are "" where pooled), gene set and
            alpha: pcc is the mean over the gene set's genes with a defined PCC, NaN where none is; beyond_depth the same
            of the correlation with log depth taken out; n_spots is the
            mean number of scored spots per gene; n_genes counts the scored genes, n_undefined those of them
            without a defined PCC, n_skipped those left out by the zero rule's minimum.
        genes: one row per scheme and gene at the chosen alpha, pooled as the protocol does: pcc is a mean
            over n folds or patients (over sections within a patient first), n_undefined the undefined
            values left out of it, n_splits the splits whose targets include the gene.
        made: commit, device, versions and code behind it, where it is a stored unit (`stages.maker`).
    """

    predictions: anndata.AnnData | None
    scores: pd.DataFrame
    genes: pd.DataFrame
    made: dict = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write predictions.h5ad, genes.csv and scores.csv.gz, each whole or not at all."""
        folder = Path(folder)
        if self.predictions is not None:
            write_whole(folder / "predictions.h5ad", self.predictions.write_h5ad)
        write_whole(folder / "genes.csv", lambda path: self.genes.to_csv(path, index=False))
        packed = gzip.compress(
            self.scores.to_csv(index=False).encode(), mtime=0
        )  # a tenth; same scores, same bytes
        write_whole(folder / "scores.csv.gz", lambda path: path.write_bytes(packed))

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        """Read what `save` wrote; predictions.h5ad may be absent."""
        folder = Path(folder)
        path = folder / "predictions.h5ad"
        predictions = anndata.read_h5ad(path) if path.exists() else None
        return cls(
            predictions, _read_table(folder / "scores.csv.gz"), _read_table(folder / "genes.csv")
        )


def evaluate(
    cohort, features, protocol: Protocol | str, tasks=None, alpha: float | None = None
) -> Evaluation:
    """Score features, or a predictor, on a cohort.

    Args:
        cohort: an open cohort.
        features: `(n, d)` over all spots of `cohort.obs`; a dict of such arrays by split name, for encoders
            aligned per split; or a callable `(task, train rows, test rows) -> (m, g)` that needs no head.
        protocol: a protocol or its name.
        tasks: `make_tasks(cohort, protocol)`, where it is at hand already.
        alpha: one ridge penalty instead of the protocol's.

    Raises:
        PekaError: features of another length or not finite, a split without features, tasks of another protocol.
    """
    protocol = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    tasks = make_tasks(cohort, protocol) if tasks is None else tasks
    units, parts = [], []
    for task in tasks:
        if task.protocol != protocol:
            raise PekaError(
                f"tasks were made for {task.protocol.name}, not for {protocol.name}: make them again."
            )
        answers = _answers(features, task, alpha)
        for name, (value, predicted) in answers.items():
            units += _score(task, predicted, dict(alpha=name, alpha_value=value))
        parts.append(_prediction(task, answers["chosen"][1]))
    predictions = anndata.concat(parts, join="outer", merge="same", fill_value=np.nan)
    return Evaluation(predictions, _score_table(units), _gene_table(units, protocol))


def head_answers(
    features: np.ndarray, task: Task, alpha: float | None = None
) -> dict[str, tuple[float, np.ndarray]]:
    """The head's test predictions `(m, g)`: name -> (alpha, predictions).

    `chosen` is the penalty given, the protocol's only one, or the best of several by inner cross-validation
    on training spots; in that last case `x0.1` and `x10` show the scores beside it.
    """
    train, test = np.flatnonzero(task.split.train), np.flatnonzero(task.split.test)
    features = np.asarray(features)
    choices = task.protocol.alphas if alpha is None else (float(alpha),)
    if not choices:
        components = min(N_COMPONENTS, len(train), features.shape[1])
        choices = (100 / (components * len(task.genes)),)
    if len(choices) == 1:
        named = {"chosen": choices[0]}
    else:
        rules = task.protocol
        best = choose_alpha(
            features,
            task.targets,
            train,
            task.obs,
            choices,
            rules.min_section_spots,
            rules.standardise,
        )
        named = {"chosen": best, "x0.1": best / 10, "x10": best * 10}
    predicted = fit_predict(
        features,
        task.targets,
        train,
        test,
        list(named.values()),
        task.protocol.standardise,
        task.fit,
    )  # (a, m, g)
    return {name: (value, predicted[i]) for i, (name, value) in enumerate(named.items())}


def _answers(features, task, alpha):
    if callable(features):
        train, test = np.flatnonzero(task.split.train), np.flatnonzero(task.split.test)
        answer = features(task, train, test)
        return answer if isinstance(answer, dict) else {"chosen": (np.nan, np.asarray(answer))}
    name = task.split.name
    if isinstance(features, dict):
        if name not in features:
            raise PekaError(f"no features for split {name}; there are {', '.join(features)}.")
        features = features[name]
    features = np.asarray(features)
    if features.ndim != 2 or len(features) != len(task.obs):
        raise PekaError(
            f"features {features.shape} for split {name}: expected (n, d) with n = {len(task.obs)} spots, "
            "in the order of cohort.obs."
        )
    broken = ~np.isfinite(features).all(1)
    if broken.any():
        raise PekaError(
            f"features of {broken.sum()} of {len(features)} spots hold NaN or infinity (split {name}), "
            f"first {task.obs.index[broken.argmax()]}: embed those tiles again."
        )
    return head_answers(features, task, alpha)


def _score(task, predicted, labels):
    """Per-gene PCC of one split, pooled over its test spots and in each of its sections."""
    test = np.flatnonzero(task.split.test)
    observed = task.observed[test]  # (m, g)
    labels = dict(
        protocol=task.protocol.name, split=task.split.name, scheme=task.split.scheme, **labels
    )
    depth = np.log1p(task.obs["total_counts"].to_numpy(np.float64)[test])  # (m,)
    units = [
        _unit(
            task,
            observed,
            predicted,
            depth,
            2,
            dict(labels, pooling="pooled", patient="", section=""),
        )
    ]
    samples, groups = (task.obs[column].to_numpy()[test] for column in ("sample", "group"))
    for section in pd.unique(samples):
        here = samples == section
        place = dict(labels, pooling="section", patient=groups[here][0], section=section)
        units.append(
            _unit(
                task,
                observed[here],
                predicted[here],
                depth[here],
                task.protocol.min_section_spots,
                place,
            )
        )
    return units


def _unit(task, observed, predicted, depth, min_spots, labels):
    """One scored set of spots: labels, and per gene its name, group, PCC and number of scored spots."""
    genes = pd.DataFrame(
        {
            "gene": task.genes,
            "group": task.gene_groups,
            "pcc": pearson(observed, predicted, min_spots),
            "beyond_depth": partial_pearson(observed, predicted, depth, min_spots),
            "n_spots": np.isfinite(observed).sum(0),
            "skipped": ~np.isfinite(task.targets).any(0),
        }
    )
    return labels, genes


def _score_table(units):
    rows = []
    for labels, genes in units:
        columns = ("group", "pcc", "beyond_depth", "n_spots", "skipped")
        group, pcc, beyond, n_spots, skipped = (genes[column].to_numpy() for column in columns)
        for name in ("all", *sorted(set(group) - {""})):
            part = (group == name) | (name == "all")
            used = part & ~skipped
            rows.append(
                dict(
                    labels,
                    genes=name,
                    pcc=float(mean_defined(pcc[used])),
                    beyond_depth=float(mean_defined(beyond[used])),
                    n_spots=round(n_spots[used].mean()) if used.any() else 0,
                    n_genes=int(used.sum()),
                    n_undefined=int(np.isnan(pcc[used]).sum()),
                    n_skipped=int(skipped[part].sum()),
                )
            )
    first = [
        "protocol",
        "split",
        "scheme",
        "pooling",
        "patient",
        "section",
        "genes",
        "alpha",
        "alpha_value",
    ]
    table = pd.DataFrame(rows)
    return table[first + [column for column in table if column not in first]]


def _gene_table(units, protocol):
    """Mean PCC of each gene at the chosen alpha over folds, or over patients' means over their sections."""
    long = pd.concat(
        [
            genes[~genes["skipped"]].assign(
                scheme=labels["scheme"],
                split=labels["split"],
                unit=labels["patient"] or labels["split"],
            )
            for labels, genes in units
            if labels["alpha"] == "chosen" and labels["pooling"] == protocol.pooling
        ]
    )
    keys = ["scheme", "gene", "group"]
    by_unit = long.groupby([*keys, "unit"], sort=False)["pcc"].mean()
    table = by_unit.groupby(keys, sort=False).agg(pcc="mean", n="count")
    counts = long.groupby(keys, sort=False).agg(
        n_undefined=("pcc", lambda pcc: pcc.isna().sum()), n_splits=("split", "nunique")
    )
    return table.join(counts).reset_index()


def _prediction(task, predicted):
    """Observed and predicted targets of one split's test spots, NaN where not scored."""
    test = np.flatnonzero(task.split.test)
    spots = task.obs.iloc[test]
    observed = task.observed[test]
    predicted = np.where(np.isfinite(observed), predicted, np.nan).astype(np.float32)
    return anndata.AnnData(
        obs=spots.assign(split=task.split.name, spot=spots.index).set_axis(
            task.split.name + "|" + spots.index
        ),
        var=pd.DataFrame({"group": task.gene_groups}, index=pd.Index(task.genes, dtype=object)),
        layers={"observed": observed, "predicted": predicted},
        obsm={"spatial": task.spatial[test]},
    )


def _read_table(path):
    header = pd.read_csv(path, nrows=0).columns
    text = {column: str for column in header if column in TEXT}
    numbers = {column: [""] for column in header if column not in TEXT}
    return pd.read_csv(
        path, dtype=text, keep_default_na=False, na_values=numbers, float_precision="round_trip"
    )
