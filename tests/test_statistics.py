from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from peka_core.errors import PekaError
from peka_core.protocols import PROTOCOLS
from peka_core.statistics import (
    mean_defined,
    paired,
    paired_t,
    partial_pearson,
    pearson,
    summarise,
    t_interval,
)

STRICT, PAPER = PROTOCOLS["strict"], PROTOCOLS["peka_paper"]


def test_pearson_equals_scipy_gene_by_gene():
    rng = np.random.default_rng(0)
    observed, predicted = rng.normal(3, 1, (40, 6)), rng.normal(size=(2, 40, 6))
    expected = [
        [stats.pearsonr(observed[:, j], p[:, j]).statistic for j in range(6)] for p in predicted
    ]
    np.testing.assert_allclose(pearson(observed, predicted), expected, atol=1e-12)


def test_pearson_scores_only_spots_with_a_target():
    rng = np.random.default_rng(1)
    observed, predicted = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    observed[:25, 1] = np.nan
    predicted[3, 1] = np.nan  # not scored for this gene anyway
    expected = stats.pearsonr(observed[25:, 1], predicted[25:, 1]).statistic
    assert pearson(observed, predicted)[1] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(pearson(observed, predicted, min_spots=16)).tolist() == [False, True, False]


def test_undefined_correlations_are_nan_not_zero():
    rng = np.random.default_rng(2)
    observed, predicted = rng.normal(size=(30, 5)), rng.normal(size=(30, 5))
    predicted[:, 0] = 7.3 + 1e-13 * rng.normal(size=30)  # constant up to float noise
    observed[:, 1] = 0
    predicted[4, 2] = np.nan  # missing on a scored spot
    predicted[:, 3] *= 1e-7  # small but not constant
    assert np.isnan(pearson(observed, predicted)).tolist() == [True, True, True, False, False]


def test_float32_constants_are_seen_as_constant():
    values = np.full((30, 1), 0.1, np.float32)
    values[::2] = np.nextafter(values[::2], np.float32(1))
    assert np.isnan(pearson(np.arange(30.0)[:, None], values)).all()


def test_mean_defined_skips_nan_and_keeps_all_nan():
    np.testing.assert_equal(mean_defined([[1.0, np.nan, 3.0], [np.nan] * 3]), [2.0, np.nan])


def test_t_interval_equals_scipy():
    values = np.array([0.2, 0.5, 0.1, 0.45])
    expected = stats.t.interval(0.9, 3, values.mean(), stats.sem(values))
    np.testing.assert_allclose(
        t_interval(values, level=0.9), [values.mean(), *expected], atol=1e-12
    )


@pytest.mark.parametrize("n", [3, 5, 8, 12])
def test_t_interval_covers_95_percent_of_the_time(n):
    drawn = np.random.default_rng(n).normal(0.3, 0.1, (20_000, n))
    _, low, high = t_interval(drawn)
    assert 0.93 < np.mean((low < 0.3) & (high > 0.3)) < 0.97


@pytest.mark.parametrize("n", [3, 5, 8, 12])
def test_paired_t_is_wrong_5_percent_of_the_time(n):
    result = paired_t(np.random.default_rng(n).normal(0, 0.1, (20_000, n)))
    assert 0.045 < np.mean(result.p < 0.05) < 0.055
    np.testing.assert_array_equal(result.p < 0.05, (result.low > 0) | (result.high < 0))


def test_two_patients_are_refused_with_the_reason():
    for function in (t_interval, paired_t):
        with pytest.raises(PekaError, match="2"):
            function([0.1, 0.2])
    with pytest.raises(PekaError, match="NaN"):
        t_interval([0.1, 0.2, np.nan])


def scores(values, pooling="section", scheme="patients"):
    """`values`: (split, patient, section, pcc)."""
    table = pd.DataFrame(values, columns=["split", "patient", "section", "pcc"])
    return table.assign(
        scheme=scheme,
        pooling=pooling,
        genes="all",
        alpha="chosen",
        n_undefined=table.pcc.isna() * 50,
        beyond_depth=table.pcc,
    )


FOUR = [
    (f"patients/{i // 2}", f"P{i}", f"P{i}{s}", 0.1 * i + d)
    for i in range(4)
    for s, d in (("A", 0), ("B", 0.02))
]


def test_summary_averages_sections_then_patients():
    uneven = FOUR + [("patients/1", "P3", "P3C", 0.9)]
    by_patient = [0.01, 0.11, 0.21, (0.3 + 0.32 + 0.9) / 3]
    row = summarise(scores(uneven), STRICT).iloc[0]
    np.testing.assert_allclose(
        row[["mean", "low", "high"]].astype(float), t_interval(by_patient), atol=1e-12
    )
    assert (row["n"], row["unit"], row["values"], row["note"]) == (4, "patient", "", "")


def test_one_patient_gives_section_values_and_no_interval():
    values = [
        ("sections/0", "C", "C2", 0.113),
        ("sections/1", "C", "C3", -0.02),
        ("sections/2", "C", "C4", np.nan),
    ]
    row = summarise(scores(values, scheme="sections"), STRICT).iloc[0]
    assert row["values"] == "C2 .113, C3 -.020, C4 undefined"
    assert row["note"] == "one patient: no interval; 1 of 3 values undefined"
    assert np.isnan([row["low"], row["high"]]).all() and row["n_undefined"] == 50
    assert row["mean"] == pytest.approx((0.113 - 0.02) / 2)


def test_two_patients_give_their_values_and_no_interval():
    values = [
        ("patients/0", "C", "C2", 0.1),
        ("patients/0", "C", "C3", 0.2),
        ("patients/1", "B", "B4", 0.05),
    ]
    row = summarise(scores(values), STRICT).iloc[0]
    assert (row["values"], row["unit"], row["note"]) == (
        "C .150, B .050",
        "patient",
        "2 patients: no interval",
    )
    assert np.isnan(row["low"]) and row["mean"] == pytest.approx(0.1)


def test_folds_are_no_replicates():
    values = [(f"spots/{i}", "", "", 0.1 * i) for i in range(5)]
    row = summarise(scores(values, "pooled", "spots"), PAPER).iloc[0]
    assert row["mean"] == pytest.approx(0.2) and np.isnan(row["low"])
    assert row["unit"] == "fold" and row["n"] == 5 and "folds share training" in row["note"]
    assert row["values"].startswith("spots/0 .000, spots/1 .100")


def test_a_score_undefined_everywhere_stays_undefined():
    row = summarise(scores([(s, p, c, np.nan) for s, p, c, _ in FOUR]), STRICT).iloc[0]
    assert np.isnan(row["mean"]) and row["n"] == 0 and "4 of 4 values undefined" in row["note"]
    assert "undefined" in row["values"]


def test_the_other_pooling_can_be_shown_beside():
    both = pd.concat([scores(FOUR), scores([("patients/0", "", "", 0.9)], "pooled")])
    assert summarise(both, replace(STRICT, pooling="pooled"))["mean"].tolist() == [0.9]
    assert summarise(both, STRICT, pooling="pooled")["unit"].tolist() == ["fold"]


def test_paired_equals_scipy_on_patient_means():
    rng = np.random.default_rng(0)
    a, b = scores(FOUR), scores([(*row[:3], rng.normal()) for row in FOUR])
    means = [table.groupby("patient")["pcc"].mean() for table in (a, b)]
    expected = stats.ttest_rel(*means)
    result = paired(a, b.sample(frac=1, random_state=0))
    assert result["p"] == pytest.approx(expected.pvalue) and result["n"] == 4
    np.testing.assert_allclose([result["low"], result["high"]], expected.confidence_interval())
    assert result["values"].index.tolist() == ["P0", "P1", "P2", "P3"]


def test_paired_refuses_what_it_cannot_match():
    with pytest.raises(PekaError, match="8 and 7"):
        paired(scores(FOUR), scores(FOUR[:-1]))
    mixed = pd.concat([scores(FOUR), scores([("sections/0", "C", "C2", 0.1)], scheme="sections")])
    with pytest.raises(PekaError, match="several schemes"):
        paired(mixed, mixed)
    alone = paired(mixed, mixed, scheme="sections")
    assert np.isnan(alone["p"]) and alone["n"] == 1 and alone["mean"] == 0


def test_partial_correlation_is_that_of_residuals():
    rng = np.random.default_rng(0)
    depth = rng.normal(size=80)
    observed, predicted = (rng.normal(size=(80, 3)) + depth[:, None] for _ in range(2))
    predicted[:, 0] += observed[:, 0]
    observed[:9, 1] = np.nan
    design = np.column_stack([np.ones(80), depth])
    for j, found in enumerate(partial_pearson(observed, predicted, depth)):
        used = np.isfinite(observed[:, j])
        rest = [
            y - design[used] @ np.linalg.lstsq(design[used], y, rcond=None)[0]
            for y in (observed[used, j], predicted[used, j])
        ]
        assert found == pytest.approx(stats.pearsonr(*rest)[0], abs=1e-10)
    assert np.isnan(partial_pearson(observed, np.repeat(depth[:, None], 3, 1), depth)).all()
