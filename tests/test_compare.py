"""scripts/compare_results.py: small differences pass, large, missing and newly undefined ones do not."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

PATH = Path(__file__).parents[1] / "scripts/compare_results.py"
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
    for name, made in (("fresh/scores", fresh), ("results/demo_scores", committed), ("fresh/summary", fresh), ("results/demo_summary", committed)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        made.to_csv(tmp_path / f"{name}.csv", index=False)
    return compare_results.main([f"demo_={tmp_path / 'fresh'}", "--committed", str(tmp_path / "results"), *words])


def last_line(capsys):
    return capsys.readouterr().out.splitlines()[-1]


def test_equal_scores_pass_whatever_commit_device_and_order(tmp_path, table, capsys):
    assert check(tmp_path, table.assign(commit="c", device="d").iloc[::-1], table) == 0
    assert last_line(capsys) == "6 passed, 0 failed"


@pytest.mark.parametrize(("row", "gap", "failed"), [(0, 0.004, 0), (0, 0.006, 2), (1, 0.015, 0), (1, 0.03, 2)])
def test_trained_rows_may_differ_more(tmp_path, table, row, gap, failed, capsys):
    fresh = table.copy()
    fresh.loc[row, "mean"] += gap
    assert check(tmp_path, fresh, table) == int(failed > 0)
    assert last_line(capsys) == f"{6 - failed} passed, {failed} failed"


def test_tolerances_can_be_named(tmp_path, table):
    assert check(tmp_path, table.assign(mean=table["mean"] + 0.03), table, "--trained", "0.05", "--untrained", "0.05") == 0


@pytest.mark.parametrize("change", [
    lambda t: t.iloc[:2], lambda t: pd.concat([t, t.iloc[:1].assign(space="concat")]), lambda t: t.assign(n=19),
    lambda t: t.assign(mean=[0.4, None, None]), lambda t: t.assign(mean=[0.4, 0.45, 0.1]),
])  # fmt: skip
def test_missing_new_and_newly_undefined_rows_and_other_counts_fail(tmp_path, table, change):
    assert check(tmp_path, change(table), table) == 1


def test_missing_tables_fail(tmp_path, table, capsys):
    assert compare_results.main([f"demo_={tmp_path}", "--committed", str(tmp_path)]) == 1
    assert last_line(capsys) == "0 passed, 2 failed"
