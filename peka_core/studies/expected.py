"""What a model's folder says of new slides, measured on patients that were held out.

For each gene: its expected PCC with an interval, that of tile colour, and how far the mean over a
slide may be off. For the slide: the distance beyond which a tile is unfamiliar.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from ..cohort import Cohort, Split
from ..evaluation import evaluate
from ..statistics import MIN_PATIENTS, MIN_SECTION_SPOTS, over_patients, paired, pearson, summarise
from ..tasks import Task
from ..unfamiliar import MIN_PATIENTS as CONFORMAL_PATIENTS
from ..unfamiliar import fit_familiar, mean_half_width, threshold_of

COLUMN = {"patient": "group", "section": "sample"}  # what is averaged over -> its column of obs
FeaturesOf = Callable[[Split], np.ndarray]  # features (n, d) of all spots, for a held-out split


@dataclass(frozen=True, eq=False)
class Expected:
    """What was measured on held-out spots.

    Attributes:
        genes: one row a gene, with the columns of `predict.Model.genes`.
        scores: name of what was scored -> mean over genes, interval, n and note.
        threshold: distance beyond which a tile is unfamiliar; NaN if nothing could be held out.
        unit: what the means are over, `patient` or `section`; empty if nothing was held out.
        n: number of these.
        no_interval: why there is no 80 % interval for a slide's mean; empty if there is one.
    """

    genes: pd.DataFrame
    scores: dict[str, dict[str, Any]]
    threshold: float
    unit: str
    n: int
    no_interval: str


def measure(
    cohort: Cohort,
    task: Task,
    folds: Sequence[Split],
    features_of: FeaturesOf,
    frozen: np.ndarray,
    controls: dict[str, FeaturesOf],
    seed: int,
    seen: bool = False,
) -> Expected:
    """Score a model and its controls on held-out splits, and take the threshold of its distances.

    Args:
        task: genes, targets and protocol of the model; its split is replaced by each of `folds`.
        folds: splits that all hold out patients, or all sections; may be empty.
        features_of: the model's features.
        frozen: features (n, d) of the frozen encoder, in which distances are measured.
        controls: the same for `tile colour` and others.
        seed: draws one slide of each patient for the interval of a slide's mean.
        seen: whether the student was trained on the held-out spots too.
    """
    if not folds:
        columns = dict.fromkeys(("pcc", "low", "high"), np.nan) | {"n": 0, "unit": ""}
        columns |= dict.fromkeys(("pcc_colour", "minus_colour", "minus_colour_low"), np.nan)
        columns |= {"supported": False, "mean_half_width_80": np.nan}
        genes = pd.DataFrame(columns, index=pd.Index(task.genes, name="gene"))
        return Expected(genes, {}, np.nan, "", 0, "nothing could be held out")
    tasks = [replace(task, split=fold) for fold in folds]
    score = lambda of: evaluate(
        cohort, {fold.name: lambda fold=fold: of(fold) for fold in folds}, task.protocol, tasks
    )
    evaluations = {"model": score(features_of)}
    evaluations |= {name: score(of) for name, of in controls.items()}
    scores = {name: _overall(found.scores, task) for name, found in evaluations.items()}
    model, colour = evaluations["model"], evaluations["tile colour"]
    difference = paired(model.scores, colour.scores)
    of_both = {key: difference[key] for key in ("mean", "low", "high")}
    scores["model minus tile colour"] = of_both | {"n": scores["model"]["n"]}
    unit = "patient" if folds[0].scheme == "patients" else "section"
    pcc, pcc_colour = (pcc_of(found.predictions, unit) for found in (model, colour))
    genes = gene_table(pcc, pcc_colour, unit)
    no_interval = _interval(len(pcc), unit, seen)
    errors = mean_errors(model.predictions, seed)[: 0 if no_interval else None]  # (patients, g)
    genes["mean_half_width_80"] = mean_half_width(errors)
    threshold = _threshold(folds, frozen, task.obs[COLUMN[unit]].to_numpy())
    return Expected(genes, scores, threshold, unit, len(pcc), no_interval)


def _overall(scores: pd.DataFrame, task: Task) -> dict[str, Any]:
    """Mean PCC over genes, with its interval, as chapter 4 has it."""
    table = summarise(scores, task.protocol).query("genes == 'all' and alpha == 'chosen'")
    columns = ["mean", "low", "high", "n", "unit", "note"]  # no names of patients
    return table[columns].astype(object).iloc[0].to_dict()


def pcc_of(predictions: ad.AnnData, unit: str) -> pd.DataFrame:
    """PCC (units, g) of each gene in each patient, first over its sections, or in each section.

    Args:
        predictions: `Evaluation.predictions`.
        unit: `patient` or `section`.
    """
    sections = {}
    for names, rows in predictions.obs.groupby(["split", "group", "sample"]).indices.items():
        observed, predicted = (predictions.layers[k][rows] for k in ("observed", "predicted"))
        sections[names] = pearson(observed, predicted, MIN_SECTION_SPOTS)  # (m, g), (m, g) -> (g,)
    index = pd.MultiIndex.from_tuples(sections, names=["split", "group", "sample"])
    table = pd.DataFrame(list(sections.values()), index, predictions.var_names)
    return table.groupby(level=COLUMN[unit]).mean()  # undefined values are left out


def gene_table(pcc: pd.DataFrame, pcc_colour: pd.DataFrame, unit: str) -> pd.DataFrame:
    """The columns of `predict.Model.genes` up to `supported`, from PCC (units, g).

    A gene is supported if its PCC is above 0, which a constant prediction does not reach, and above
    that of tile colour. With at least three patients, the whole 95 % intervals of the PCC and of
    the paired difference must lie above 0. With fewer, or with sections, the means must. Then half
    of the genes are supported by chance where colour is as good as the model.
    """
    rows = []
    for gene in pcc:
        of_gene = over_patients(pcc[gene])
        difference = over_patients(pcc[gene] - pcc_colour[gene])
        if unit != "patient":  # sections of one patient are no sample of patients
            for found in (of_gene, difference):
                found |= {"low": np.nan, "high": np.nan}
        has_interval = unit == "patient" and of_gene["n"] >= MIN_PATIENTS
        bars = [found["low" if has_interval else "mean"] for found in (of_gene, difference)]
        rows.append(
            {"pcc": of_gene["mean"], "low": of_gene["low"], "high": of_gene["high"]}
            | {"n": of_gene["n"], "unit": unit, "pcc_colour": pcc_colour[gene].mean()}
            | {"minus_colour": difference["mean"], "minus_colour_low": difference["low"]}
            | {"supported": bool(min(bars) > 0)}
        )
    return pd.DataFrame(rows, index=pd.Index(pcc.columns, name="gene"))


def mean_errors(predictions: ad.AnnData, seed: int) -> np.ndarray:
    """Measured minus predicted mean (patients, g) of each gene, over one drawn slide a patient."""
    rng, errors = np.random.default_rng(seed), []
    for _, spots in predictions.obs.groupby("group"):
        slide = rng.choice(np.unique(spots["sample"].astype(str)))
        rows = (spots["sample"] == slide).to_numpy().nonzero()[0]
        of_slide = predictions[spots.index[rows]]
        errors.append((of_slide.layers["observed"] - of_slide.layers["predicted"]).mean(0))
    return np.array(errors, np.float64)


def _threshold(folds: Sequence[Split], x: np.ndarray, names: np.ndarray) -> float:
    """Threshold of the distances of held-out spots to the training spots of their split.

    Args:
        x: (n, d) features of the frozen encoder.
        names: (n,) patient or section of each spot; each weighs the same.
    """
    distances, groups = [], []
    for fold in folds:
        distances.append(fit_familiar(x[fold.train]).distance(x[fold.test]))  # (m,)
        groups.append(names[fold.test])
    return threshold_of(np.concatenate(distances), np.concatenate(groups))


def _interval(n: int, unit: str, seen: bool) -> str:
    """Why there is no interval for a slide's mean; empty if there is one."""
    if seen:
        return "the student was trained on the patients that were held out from the head"
    if unit == "section":
        return "sections were held out, and it needs patients"
    if n < CONFORMAL_PATIENTS:
        return f"it needs at least {CONFORMAL_PATIENTS} held-out patients, and there are {n}"
    return ""
