"""scripts/compare_results.py: small differences pass; large, missing and undefined ones do not."""

import compare_results
import pandas as pd
import pytest

TABLE = pd.DataFrame({
    "protocol": "strict", "predictor": ["frozen", "bat", "slide_one_hot"],
    "space": ["encoder", "projected", None], "mean": [0.40, 0.45, None],
    "low": [0.35, 0.40, None], "high": [0.45, 0.50, None], "n": [20, 20, 0],
    "commit": "a", "device": "b",
})  # fmt: skip
VALUES = ["P1:0.1000 P2:-0.2000", "A .300, B .400", None]
SINGLE, LABELLED = TABLE.assign(values=VALUES), TABLE.assign(label="a")


@pytest.fixture
def check(tmp_path, capsys):
    """The script on a fresh and a committed table; returns (exit code, passed, failed)."""

    def run(fresh, committed, *words):
        for name in ("scores", "summary"):
            fresh.to_csv(tmp_path / f"{name}.csv", index=False)
            committed.to_csv(tmp_path / f"demo_{name}.csv", index=False)
        code = compare_results.main([f"demo_={tmp_path}", f"--committed={tmp_path}", *words])
        last = capsys.readouterr().out.splitlines()[-1].split()
        return code, int(last[0]), int(last[-2])

    return run


def test_provenance_and_order_do_not_matter(check):
    fresh = TABLE.drop(columns="commit").assign(device="d", versions="torch 2").iloc[::-1]
    assert check(fresh, TABLE) == check(TABLE, fresh) == (0, 6, 0)


@pytest.mark.parametrize(
    ("row", "gap", "failed"),
    [(0, 0.002, 0), (0, 0.003, 2), (1, 0.004, 0), (1, 0.006, 2), (1, -0.0197, 2)],
)
def test_trained_rows_may_differ_more(check, row, gap, failed):
    fresh = TABLE.copy()
    fresh.loc[row, "mean"] += gap
    assert check(fresh, TABLE) == (int(failed > 0), 6 - failed, failed)
    assert check(fresh, TABLE, "--trained", "0.05", "--untrained", "0.05")[0] == 0


@pytest.mark.parametrize(("fresh", "committed"), [
    (TABLE.iloc[:2], TABLE), (TABLE.iloc[:0], TABLE.iloc[:0]), (TABLE, TABLE.iloc[:2]),
    (TABLE.assign(n=19), TABLE), (TABLE.assign(mean=[0.4, None, None]), TABLE),
    (TABLE.assign(mean=[0.4, 0.45, 0.1]), TABLE), (LABELLED, LABELLED.iloc[:0]),
    (LABELLED, LABELLED.assign(label=["x", "y", "z"])),
    (LABELLED, LABELLED.drop(columns=["mean", "low", "high"])),
    (SINGLE.assign(values=["P1:-0.2000 P2:0.1000", *VALUES[1:]]), SINGLE),
    (SINGLE.assign(values=["P1:0.1000 P3:-0.2000", *VALUES[1:]]), SINGLE),
])  # fmt: skip
def test_missing_new_and_undefined_rows_other_counts_and_other_single_values_fail(
    check, fresh, committed
):
    assert check(fresh, committed)[0] == 1


def test_missing_tables_and_differences_that_only_the_fresh_run_has_fail(check, tmp_path):
    assert compare_results.main([f"demo_={tmp_path}", f"--committed={tmp_path}"]) == 1
    assert check(TABLE, TABLE)[0] == 0
    TABLE.to_csv(tmp_path / "differences.csv")
    assert check(TABLE, TABLE)[0] == 1
