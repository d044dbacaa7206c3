"""Correlations, intervals and paired tests against scipy."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from peka_core.common.errors import PekaError
from peka_core.protocols import PROTOCOLS
from peka_core.statistics import paired, paired_t, partial_pearson, pearson, summarise, t_interval

STRICT = PROTOCOLS["strict"]
POOLED = replace(STRICT, pooling="pooled")
FOUR = [(f"patients/{i // 2}", f"P{i}", f"P{i}{s}", 0.1 * i + d)
        for i in range(4) for s, d in (("A", 0), ("B", 0.02))]  # fmt: skip


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def scores(values, pooling="section", scheme="patients"):
    """`values`: (split, patient, section, pcc)."""
    table = pd.DataFrame(values, columns=["split", "patient", "section", "pcc"])
    names = dict(scheme=scheme, pooling=pooling, genes="all", alpha="chosen")
    return table.assign(**names, n_undefined=table.pcc.isna() * 50, beyond_depth=table.pcc / 2)


def test_pearson_equals_scipy_on_the_spots_with_a_target():
    observed, predicted = drawn((40, 6), (2, 40, 6))
    observed[:25, 1] = np.nan
    predicted[:, 3, 1] = np.nan  # not scored for this gene anyway
    used = np.isfinite(observed)
    expected = [
        [stats.pearsonr(observed[u, j], p[u, j]).statistic for j, u in enumerate(used.T)]
        for p in predicted
    ]
    np.testing.assert_allclose(pearson(observed, predicted), expected, atol=1e-12)


def test_partial_pearson_is_the_correlation_of_residuals():
    observed, predicted, depth = drawn((40, 3), (40, 3), 40)
    observed += 2 * depth[:, None]
    predicted += depth[:, None]
    predicted[:, 2] = depth  # depth alone explains it
    left = [[v - np.polyval(np.polyfit(depth, v, 1), depth) for v in side.T[:2]]
            for side in (observed, predicted)]  # fmt: skip
    expected = [stats.pearsonr(a, b).statistic for a, b in zip(*left, strict=True)]
    np.testing.assert_allclose(partial_pearson(observed, predicted, depth), [*expected, np.nan])


def test_undefined_correlations_are_nan_not_zero():
    observed, predicted, noise = drawn((30, 5), (30, 5), 30, seed=2)
    predicted[:, 0] = 7.3 + 4e-7 * noise  # constant up to the rounding of float32
    observed[:, 1] = 0
    predicted[4, 2] = np.nan  # missing on a scored spot
    predicted[:, 3] *= 1e-7  # small but not constant
    assert np.isnan(pearson(observed, predicted)).tolist() == [True, True, True, False, False]


def test_intervals_and_paired_tests_equal_scipy_and_need_three_values():
    values = np.array([0.2, 0.5, 0.1, 0.45])
    ends = stats.t.interval(0.9, 3, values.mean(), stats.sem(values))
    np.testing.assert_allclose(t_interval(values, level=0.9), [values.mean(), *ends], atol=1e-12)
    expected = stats.ttest_1samp(values, 0).pvalue
    assert paired_t(values) == (*t_interval(values), pytest.approx(expected), 4)
    for refused in ([0.1, 0.2], [0.1, 0.2, np.nan]):
        with pytest.raises(PekaError):
            t_interval(refused)


def test_summary_averages_sections_then_patients():
    row = summarise(scores([*FOUR, ("patients/1", "P3", "P3C", 0.9)]), STRICT).iloc[0]
    expected = t_interval([0.01, 0.11, 0.21, (0.3 + 0.32 + 0.9) / 3])
    np.testing.assert_allclose(row[["mean", "low", "high"]].astype(float), expected, atol=1e-12)
    assert (row["n"], row["unit"], row["values"], row["note"]) == (4, "patient", "", "")


@pytest.mark.parametrize(("values", "protocol", "scheme", "expected"), [
    ([("s/0", "C", "C2", 0.113), ("s/1", "C", "C3", -0.02), ("s/2", "C", "C4", np.nan)],
     STRICT, "sections", ("section", 2, 0.0465, "C2 .113, C3 -.020, C4 undefined")),
    ([("s/0", "C", "C2", 0.1), ("s/0", "C", "C3", 0.2), ("s/1", "B", "B4", 0.05)],
     STRICT, "patients", ("patient", 2, 0.1, "C .150, B .050")),
    ([(f"spots/{i}", "", "", 0.1 * i) for i in range(3)],
     POOLED, "spots", ("fold", 3, 0.1, "spots/0 .000, spots/1 .100, spots/2 .200")),
], ids=["one patient", "two patients", "folds"])  # fmt: skip
def test_without_three_patients_there_are_single_values_and_no_interval(
    values, protocol, scheme, expected
):
    own = scores(values, protocol.pooling, scheme)
    other = scores([("s/9", "D", "D1", 0.9)], "section" if protocol is POOLED else "pooled")
    row = summarise(pd.concat([own, other]), protocol).iloc[0]
    assert np.isnan([row["low"], row["high"]]).all() and "no interval" in row["note"]
    assert (row["unit"], row["n"], pytest.approx(row["mean"]), row["values"]) == expected
    assert row["n_undefined"] == 50 * sum(np.isnan(value) for *_, value in values)


def test_paired_equals_scipy_on_patient_means_and_refuses_what_it_cannot_match():
    noise = drawn(len(FOUR))[0]
    a, b = scores(FOUR), scores([(*row[:3], x) for row, x in zip(FOUR, noise, strict=True)])
    expected = stats.ttest_rel(*(table.groupby("patient")["pcc"].mean() for table in (a, b)))
    result = paired(a, b.sample(frac=1, random_state=0))
    assert result["p"] == pytest.approx(expected.pvalue) and result["n"] == 4
    np.testing.assert_allclose([result["low"], result["high"]], expected.confidence_interval())
    assert result["values"].index.tolist() == ["P0", "P1", "P2", "P3"]
    with pytest.raises(PekaError, match="same splits"):
        paired(a, a[:-1])
    mixed = pd.concat([a, scores([("sections/0", "C", "C2", 0.1)], scheme="sections")])
    with pytest.raises(PekaError, match="schemes"):
        paired(mixed, mixed)
    alone = paired(mixed, mixed, scheme="sections")
    assert np.isnan(alone["p"]) and alone["n"] == 1 and alone["mean"] == 0
