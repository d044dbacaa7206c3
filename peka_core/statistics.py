"""Correlation, t intervals, and the two tables that may carry them: `summarise` and `paired`.

The replicate is the patient (or, on the demo, an independently drawn cohort): folds share training data,
seeds share test patients, so neither gives an interval. A percentile bootstrap over 3 to 12 patients
covers far less than it claims; a t interval covers what it says.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from .errors import PekaError

MIN_PATIENTS = 3
CONSTANT = (
    1e-6  # a column whose sd is below this share of its largest value is constant up to float noise
)


class Interval(NamedTuple):
    """Mean with the ends of its interval."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """Mean difference, ends of its interval, two-sided p of the paired t test, number of pairs."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def pearson(observed: np.ndarray, predicted: np.ndarray, min_spots: int = 2) -> np.ndarray:
    """Pearson correlation of each column: `observed (m, g)`, `predicted (..., m, g)` -> `(..., g)`.

    A spot with NaN in `observed` is not scored for that gene. The result is NaN, never 0, where it is
    undefined: fewer than `min_spots` scored spots, a prediction missing on a scored spot, or a side that
    is constant up to float noise.
    """
    scored = np.isfinite(observed)  # (m, g)
    count = scored.sum(0)
    missing = (scored & ~np.isfinite(predicted)).any(-2)  # (..., g)
    a, a_constant = _centre(observed, scored, count)
    b, b_constant = _centre(np.where(np.isfinite(predicted), predicted, 0), scored, count)
    undefined = (count < min_spots) | missing | a_constant | b_constant
    norm = np.sqrt((a * a).sum(-2) * (b * b).sum(-2))
    return np.where(
        undefined, np.nan, np.clip((a * b).sum(-2) / np.where(undefined, 1, norm), -1, 1)
    )


def partial_pearson(
    observed: np.ndarray, predicted: np.ndarray, given: np.ndarray, min_spots: int = 3
) -> np.ndarray:
    """Correlation of each column of `observed (m, g)` and `predicted (m, g)` with `given (m,)` taken out of both: `(g,)`.

    With `given` the log depth of a spot this is what a prediction knows beyond how much was counted. NaN as in `pearson`,
    and where depth alone explains a side.
    """
    given = np.broadcast_to(np.asarray(given, np.float64)[:, None], observed.shape)
    scored = np.where(
        np.isfinite(observed), given, np.nan
    )  # the same spots for all three correlations
    r_op, r_od, r_pd = (
        pearson(a, b, min_spots)
        for a, b in ((observed, predicted), (scored, observed), (scored, predicted))
    )
    rest = (1 - r_od**2) * (1 - r_pd**2)
    return np.where(
        rest > CONSTANT, (r_op - r_od * r_pd) / np.sqrt(np.maximum(rest, CONSTANT)), np.nan
    )


def mean_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values that are defined; NaN where none is."""
    values = np.asarray(values, np.float64)
    count = np.isfinite(values).sum(-1)
    return np.where(count, np.nansum(values, -1) / np.maximum(count, 1), np.nan)


def t_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """Student t interval of the mean over the last axis of `values (..., n)`.

    Raises:
        PekaError: fewer than three values, or an undefined one among them.
    """
    values = _replicates(values)
    n = values.shape[-1]
    mean = values.mean(-1)
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(-1, ddof=1) / np.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def paired_t(differences: np.ndarray, level: float = 0.95) -> Paired:
    """Paired t test of one difference per patient, over the last axis of `differences (..., n)`.

    Test the gene-averaged difference once: with 50 genes and a correction for them no per-gene test can
    succeed at these numbers of patients.

    Raises:
        PekaError: as `t_interval`.
    """
    differences = _replicates(differences)
    return Paired(
        *t_interval(differences, level),
        stats.ttest_1samp(differences, 0, axis=-1).pvalue,
        differences.shape[-1],
    )


def summarise(scores: pd.DataFrame, protocol, pooling: str | None = None) -> pd.DataFrame:
    """One row per scheme, gene set and alpha of `Evaluation.scores`.

    Columns: mean, low, high (t interval over patients: only where the score is a mean of patient values and
    there are at least three), n and unit of what was averaged, values (the single values where there is no
    interval), beyond_depth (mean correlation with log depth taken out), n_undefined (gene values that were
    undefined), note. `pooling` replaces the protocol's own, to show the other one beside it.
    """
    pooling = pooling or protocol.pooling
    chosen = scores[scores["pooling"] == pooling]
    rows = [
        dict(zip(("scheme", "genes", "alpha"), key), pooling=pooling, **_summary(part, pooling))
        for key, part in chosen.groupby(["scheme", "genes", "alpha"], sort=False)
    ]
    return pd.DataFrame(rows)


def paired(
    scores_a: pd.DataFrame, scores_b: pd.DataFrame, genes: str = "all", scheme: str | None = None
) -> dict:
    """Per-section PCC of `a` minus `b` at the chosen alpha, averaged within patients, tested over patients.

    Returns a dict: mean, low, high, p (NaN under three patients), n, and values, the differences by patient.
    `scheme` is needed only where the scores hold several.

    Raises:
        PekaError: several schemes and none named, or the two do not score the same sections.
    """
    a, b = (_by_section(scores, genes, scheme) for scores in (scores_a, scores_b))
    if not a.index.equals(b.index):
        raise PekaError(
            f"paired scores must cover the same splits and sections: {len(a)} against {len(b)} values, "
            f"{len(a.index.intersection(b.index))} in common. Evaluate both with the same tasks."
        )
    values = (
        (a - b).groupby("patient").mean()
    )  # sections first, then patients; undefined ones left out
    return dict(over_patients(values), values=values)


def over_patients(differences: pd.Series) -> dict:
    """mean, low, high, p and n of the defined differences, one a patient; no interval and no p under three of them."""
    defined = differences.dropna()
    if len(defined) < MIN_PATIENTS:
        return dict(mean=defined.mean(), low=np.nan, high=np.nan, p=np.nan, n=len(defined))
    return paired_t(defined.to_numpy())._asdict()


def _centre(values, scored, count):
    values = np.where(scored, values, 0).astype(np.float64)  # (..., m, g)
    mean = values.sum(-2, keepdims=True) / np.maximum(count, 1)
    centred = np.where(scored, values - mean, 0)
    sd = np.sqrt((centred**2).sum(-2) / np.maximum(count, 1))
    return centred, sd <= CONSTANT * np.abs(values).max(-2, initial=0)


def _replicates(values):
    values = np.asarray(values, np.float64)
    if values.shape[-1] < MIN_PATIENTS:
        raise PekaError(
            f"a t interval needs at least {MIN_PATIENTS} patients, here {values.shape[-1]}: "
            "show the single values instead."
        )
    if not np.isfinite(values).all():
        raise PekaError(
            "a t interval over undefined values: leave those patients out first, and say how many."
        )
    return values


def _summary(part, pooling):
    """Mean, interval or single values, and the note, of one scheme, gene set and alpha."""
    values, unit, notes = _replicated(part, pooling)
    defined = values.dropna()
    if len(defined) < len(values):
        notes.append(f"{len(values) - len(defined)} of {len(values)} values undefined")
    row = dict(
        mean=defined.mean(),
        low=np.nan,
        high=np.nan,
        n=len(defined),
        unit=unit,
        values=_listed(values),
    )
    if unit == "patient" and len(defined) >= MIN_PATIENTS:
        row |= dict(t_interval(defined.to_numpy())._asdict(), values="")
    row["beyond_depth"] = _mean_beyond_depth(part, pooling)
    return dict(row, n_undefined=int(part["n_undefined"].sum()), note="; ".join(notes))


def _mean_beyond_depth(part, pooling):
    """Mean of the correlation beyond depth, averaged as the PCC is; NaN in tables of before it was kept."""
    if "beyond_depth" not in part:
        return np.nan
    if pooling == "pooled" or part["patient"].nunique() == 1:
        return part["beyond_depth"].mean()
    return part.groupby("patient")["beyond_depth"].mean().mean()


def _replicated(part, pooling):
    """The values that a score is the mean of, what each of them is, and notes on what they can carry."""
    if pooling == "pooled":
        return part.set_index("split")["pcc"], "fold", ["folds share training spots: no interval"]
    by_patient = part.groupby("patient", sort=False)[
        "pcc"
    ].mean()  # undefined sections are left out
    if len(by_patient) == 1:
        return (
            part.groupby("section", sort=False)["pcc"].mean(),
            "section",
            ["one patient: no interval"],
        )
    notes = [f"{len(by_patient)} patients: no interval"] if len(by_patient) < MIN_PATIENTS else []
    if part["scheme"].iat[0] != "patients":
        notes.append("the head saw other spots of these patients")
    return by_patient, "patient", notes


def _listed(values):
    """`C2 .113, C3 -.020, C4 undefined`."""
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value):
    return "undefined" if np.isnan(value) else f"{value:.3f}".replace("0.", ".", 1)


def _by_section(scores, genes, scheme):
    rows = scores[
        (scores["pooling"] == "section")
        & (scores["genes"] == genes)
        & (scores["alpha"] == "chosen")
    ]
    schemes = list(rows["scheme"].unique())
    if scheme is None and len(schemes) > 1:
        raise PekaError(f"the scores hold several schemes, {schemes}: name one of them.")
    if scheme is not None:
        rows = rows[rows["scheme"] == scheme]
    return rows.set_index(["split", "patient", "section"])["pcc"].sort_index()
