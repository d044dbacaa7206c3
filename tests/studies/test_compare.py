"""scripts/compare_results.py: small differences pass, large, missing and newly undefined ones do not."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

PATH = Path(__file__).parents[2] / "scripts/compare_results.py"
spec = importlib.util.spec_from_file_location("compare_results", PATH)
compare_results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare_results)


@pytest.fixture
def table():
    return pd.DataFrame({
        "protocol": "strict", "predictor": ["frozen", "bat", "slide_one_hot"], "space": ["encoder", "projected", None],
        "mean": [0.40, 0.45, None], "low": [0.35, 0.40, None], "high": [0.45, 0.50, None], "n": [20, 20, 0],
        "commit": "a", "device": "b",
    })  # fmt: skip


def check(tmp_path, fresh, committed, *words):
    for name, made in (
        ("fresh/scores", fresh),
        ("results/demo_scores", committed),
        ("fresh/summary", fresh),
        ("results/demo_summary", committed),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        made.to_csv(tmp_path / f"{name}.csv", index=False)
    return compare_results.main(
        [f"demo_={tmp_path / 'fresh'}", "--committed", str(tmp_path / "results"), *words]
    )


def last_line(capsys):
    return capsys.readouterr().out.splitlines()[-1]


def test_equal_scores_pass_whatever_commit_device_and_order(tmp_path, table, capsys):
    assert check(tmp_path, table.assign(commit="c", device="d").iloc[::-1], table) == 0
    assert last_line(capsys) == "6 passed, 0 failed"


@pytest.mark.parametrize(
    ("row", "gap", "failed"),
    [(0, 0.002, 0), (0, 0.003, 2), (1, 0.004, 0), (1, 0.006, 2), (1, -0.0197, 2)],
)
def test_trained_rows_may_differ_more(tmp_path, table, row, gap, failed, capsys):
    fresh = table.copy()
    fresh.loc[row, "mean"] += gap
    assert check(tmp_path, fresh, table) == int(failed > 0)
    assert last_line(capsys) == f"{6 - failed} passed, {failed} failed"


def test_tolerances_can_be_named(tmp_path, table):
    assert (
        check(
            tmp_path,
            table.assign(mean=table["mean"] + 0.03),
            table,
            "--trained",
            "0.05",
            "--untrained",
            "0.05",
        )
        == 0
    )


@pytest.mark.parametrize("change", [
    lambda t: t.iloc[:2], lambda t: pd.concat([t, t.iloc[:1].assign(space="concat")]), lambda t: t.assign(n=19),
    lambda t: t.assign(mean=[0.4, None, None]), lambda t: t.assign(mean=[0.4, 0.45, 0.1]),
])  # fmt: skip
def test_missing_new_and_newly_undefined_rows_and_other_counts_fail(tmp_path, table, change):
    assert check(tmp_path, change(table), table) == 1


def test_columns_of_provenance_may_come_and_go(tmp_path, table):
    more = table.assign(versions="torch 2", code="0123", made="today")
    assert (
        check(tmp_path, more, table)
        == check(tmp_path, table.drop(columns=["commit", "device"]), more)
        == 0
    )


@pytest.mark.parametrize("change", [
    lambda t: t.assign(label=["x", "y", "z"]), lambda t: t.iloc[:0], lambda t: t.drop(columns=["mean", "low", "high"]),
])  # fmt: skip
def test_tables_with_nothing_in_common_fail(tmp_path, table, change):
    table = table.assign(label="a")
    assert check(tmp_path, table, change(table)) == 1


def test_two_empty_tables_fail(tmp_path, table):
    assert check(tmp_path, table.iloc[:0], table.iloc[:0]) == 1


def test_single_values_are_compared_by_name(tmp_path, table):
    values = ["P1:0.1000 P2:-0.2000", "A .300, B .400", None]
    assert check(tmp_path, table.assign(values=values), table.assign(values=values)) == 0
    for other in ("P1:-0.2000 P2:0.1000", "P1:0.1000 P3:-0.2000", "P1:0.1000"):
        assert (
            check(tmp_path, table.assign(values=[other, *values[1:]]), table.assign(values=values))
            == 1
        )


def test_committed_demo_scores_of_a_student_two_thirds_as_good_fail(tmp_path, capsys):
    results = PATH.parents[1] / "results"
    for name in compare_results.TABLES:
        table = pd.read_csv(results / f"demo_{name}.csv")
        trained = table["label"].str.contains(compare_results.TRAINED.pattern.replace("(", "(?:"))
        table.loc[trained, ["mean", "low", "high"]] -= 0.01
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    assert compare_results.main([f"demo_={tmp_path}"]) == 1
    assert int(last_line(capsys).split()[-2]) > 100


def test_differences_that_only_the_fresh_run_has_fail(tmp_path, table):
    assert check(tmp_path, table, table) == 0
    table.to_csv(tmp_path / "fresh/differences.csv")
    assert check(tmp_path, table, table) == 1


def test_missing_tables_fail(tmp_path, table, capsys):
    assert compare_results.main([f"demo_={tmp_path}", "--committed", str(tmp_path)]) == 1
    assert last_line(capsys) == "0 passed, 2 failed"
