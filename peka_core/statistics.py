"""Correlation, t intervals, and the two tables that carry them: `summarise` and `paired`.

The replicate is the patient (on the demo, an independently drawn cohort). Folds share training data
and seeds share test patients, so neither gives an interval. A percentile bootstrap over 3 to 12
patients covers far less than it claims; a t interval covers what it says.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from .common.errors import PekaError

MIN_PATIENTS = 3
MIN_SECTION_SPOTS = 10  # a section with fewer scored spots has no PCC
CONSTANT = 1e-6  # a column whose sd is a smaller share of its largest value is constant


class Interval(NamedTuple):
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """A mean difference, the ends of its interval, p of the paired t test, and number of pairs."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def pearson(observed: np.ndarray, predicted: np.ndarray, min_spots: int = 2) -> np.ndarray:
    """Pearson correlation of each gene (Eq. 7): observed (m, g), predicted (..., m, g) -> (..., g).

    A spot with NaN in `observed` is not scored for that gene. The result is NaN, never 0, where it
    is undefined: fewer than `min_spots` spots are scored, a prediction is missing on a scored spot,
    or one side is constant up to rounding.
    """
    scored = np.isfinite(observed)  # (m, g)
    count = scored.sum(0)
    missing = (scored & ~np.isfinite(predicted)).any(-2)  # (..., g)
    a, a_constant = _centre(observed, scored, count)
    b, b_constant = _centre(np.where(np.isfinite(predicted), predicted, 0), scored, count)
    undefined = (count < min_spots) | missing | a_constant | b_constant
    norm = np.sqrt((a * a).sum(-2) * (b * b).sum(-2))
    r = np.clip((a * b).sum(-2) / np.where(undefined, 1, norm), -1, 1)
    return np.where(undefined, np.nan, r)


def partial_pearson(
    observed: np.ndarray, predicted: np.ndarray, given: np.ndarray, min_spots: int = 3
) -> np.ndarray:
    """Correlation `(g,)` of `observed (m, g)` and `predicted (m, g)` with `given (m,)` taken out.

    Where `given` is the log depth of a spot, this is what a prediction knows beyond how much was
    counted. It is NaN as in `pearson`, and where depth alone explains one of the two sides.
    """
    given = np.broadcast_to(np.asarray(given, np.float64)[:, None], observed.shape)
    depth = np.where(np.isfinite(observed), given, np.nan)  # the same spots in all correlations
    r_op = pearson(observed, predicted, min_spots)
    r_od = pearson(depth, observed, min_spots)
    r_pd = pearson(depth, predicted, min_spots)
    rest = (1 - r_od**2) * (1 - r_pd**2)
    partial = (r_op - r_od * r_pd) / np.sqrt(np.maximum(rest, CONSTANT))
    return np.where(rest > CONSTANT, partial, np.nan)


def _centre(
    values: np.ndarray, scored: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Centred values `(..., m, g)`, 0 where not scored, and which genes are constant `(..., g)`."""
    values = np.where(scored, values, 0).astype(np.float64)
    mean = values.sum(-2, keepdims=True) / np.maximum(count, 1)
    centred = np.where(scored, values - mean, 0)
    sd = np.sqrt((centred**2).sum(-2) / np.maximum(count, 1))
    return centred, sd <= CONSTANT * np.abs(values).max(-2, initial=0)


def mean_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values that are defined; NaN where none is."""
    values = np.asarray(values, np.float64)
    count = np.isfinite(values).sum(-1)
    return np.where(count, np.nansum(values, -1) / np.maximum(count, 1), np.nan)


def t_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """Student t interval of the mean over the last axis of `values (..., n)`.

    Raises:
        PekaError: there are fewer than three values, or one of them is undefined.
    """
    values = np.asarray(values, np.float64)
    n = values.shape[-1]
    if n < MIN_PATIENTS or not np.isfinite(values).all():
        raise PekaError(
            f"a t interval needs finite values of at least {MIN_PATIENTS} patients; here are {n} "
            "patients, or values that are not finite. Leave those patients out, or show each value."
        )
    mean = values.mean(-1)
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(-1, ddof=1) / np.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def paired_t(differences: np.ndarray, level: float = 0.95) -> Paired:
    """Paired t test of one difference per patient, over the last axis of `differences (..., n)`.

    Test the difference of the gene-averaged scores once. With 50 genes and a correction for their
    number, no test of a single gene can succeed with so few patients.

    Raises:
        PekaError: as `t_interval`.
    """
    differences = np.asarray(differences, np.float64)
    interval = t_interval(differences, level)
    p = stats.ttest_1samp(differences, 0, axis=-1).pvalue
    return Paired(*interval, p, differences.shape[-1])


def summarise(scores: pd.DataFrame, protocol: Any, pooling: str | None = None) -> pd.DataFrame:
    """One row for each scheme, gene set and alpha of `Evaluation.scores`.

    Columns: mean; low and high: t interval over patients, if at least three have a value; n and
    unit: how many of what were averaged; values: the single values, if there is no interval;
    beyond_depth: mean partial correlation given log depth; n_undefined: number of undefined values
    of single genes; note. `pooling` replaces the protocol's own.
    """
    pooling = pooling or protocol.pooling
    chosen = scores[scores["pooling"] == pooling]
    rows = []
    for (scheme, genes, alpha), part in chosen.groupby(["scheme", "genes", "alpha"], sort=False):
        names = dict(scheme=scheme, genes=genes, alpha=alpha, pooling=pooling)
        rows.append(names | _summary(part, pooling))
    return pd.DataFrame(rows)


def _summary(part: pd.DataFrame, pooling: str) -> dict[str, Any]:
    """Mean, interval or single values, and the note, of one scheme, gene set and alpha."""
    n_patients, unit, notes = part["patient"].nunique(), "patient", []
    if pooling == "pooled":
        unit, notes = "fold", ["folds share training spots: no interval"]
    elif n_patients == 1:
        unit, notes = "section", ["one patient: no interval"]
    else:
        notes = [f"{n_patients} patients: no interval"] if n_patients < MIN_PATIENTS else []
        if part["scheme"].iat[0] != "patients":
            notes.append("the head saw other spots of these patients")
    column = "split" if unit == "fold" else unit
    values = part.groupby(column, sort=False)["pcc"].mean()  # undefined sections are left out
    defined = values.dropna()
    if len(defined) < len(values):
        notes.append(f"{len(values) - len(defined)} of {len(values)} values undefined")
    interval, beyond = Interval(defined.mean(), np.nan, np.nan), part["beyond_depth"]
    texts = values.map("{:.3f}".format).str.replace("0.", ".", n=1, regex=False)  # .113, -.020
    listed = ", ".join(f"{name} {text}" for name, text in texts.replace("nan", "undefined").items())
    if unit == "patient":
        beyond = part.groupby("patient")["beyond_depth"].mean()
        if len(defined) >= MIN_PATIENTS:
            interval, listed = t_interval(defined.to_numpy()), ""
    return interval._asdict() | {
        "n": len(defined), "unit": unit, "values": listed, "beyond_depth": beyond.mean(),
        "n_undefined": int(part["n_undefined"].sum()), "note": "; ".join(notes),
    }  # fmt: skip


def paired(
    scores_a: pd.DataFrame, scores_b: pd.DataFrame, genes: str = "all", scheme: str | None = None
) -> dict[str, Any]:
    """PCC of `a` minus `b` in each section, averaged within patients and tested over patients.

    Both are taken at their chosen alpha. `scheme` is needed only if the scores have several.

    Returns:
        mean, low, high, p (NaN with fewer than three patients), n, and values (by patient).

    Raises:
        PekaError: there are several schemes and none is named, or the sections differ.
    """
    a, b = (_by_section(scores, genes, scheme) for scores in (scores_a, scores_b))
    if not a.index.equals(b.index):
        raise PekaError(
            "paired scores must cover the same splits and sections, and these have "
            f"{len(a)} and {len(b)} values, {len(a.index.intersection(b.index))} of them in "
            "common. Evaluate both with the same tasks."
        )
    values = (a - b).groupby("patient").mean()  # undefined sections are left out
    return over_patients(values) | {"values": values}


def over_patients(differences: pd.Series) -> dict[str, Any]:
    """mean, low, high, p and n of the defined differences, one for each patient."""
    defined = differences.dropna()
    if len(defined) < MIN_PATIENTS:
        return dict(mean=defined.mean(), low=np.nan, high=np.nan, p=np.nan, n=len(defined))
    return paired_t(defined.to_numpy())._asdict()


def _by_section(scores: pd.DataFrame, genes: str, scheme: str | None) -> pd.Series:
    rows = scores.query("pooling == 'section' and genes == @genes and alpha == 'chosen'")
    schemes = list(rows["scheme"].unique())
    if scheme is None and len(schemes) > 1:
        raise PekaError(f"the scores hold several schemes, {schemes}. Name one of them.")
    if scheme is not None:
        rows = rows[rows["scheme"] == scheme]
    return rows.set_index(["split", "patient", "section"])["pcc"].sort_index()
