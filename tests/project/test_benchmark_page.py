"""benchmarks/README.md says what the tables beside it say."""

import benchmark_page
import pandas as pd


def test_the_page_is_that_of_its_tables():
    written = (benchmark_page.FOLDER / "README.md").read_text(encoding="utf-8")
    assert written == benchmark_page.page(), "run scripts/benchmark_page.py --write"


def test_a_claim_names_its_alternative_of_the_same_run_only():
    rows = [
        ("uni", "bat", "always", 300.0, "a"), ("uni", "bat", "never", 200.0, "a"),
        ("uni", "peft bat", "always", 150.0, "a"), ("uni", "floor", "always", 400.0, "b"),
    ]  # fmt: skip
    names = ["encoder", "method", "compile", "tiles_per_s", "commit"]
    same = {"batch": 32, "block": 256, "share": 0.5, "device": "NVIDIA H100", "peak_gpu_gb": 9.0}
    table = pd.DataFrame(rows, columns=names).assign(**same, planned_gb=8.0)
    first = next(benchmark_page.alignment(table))
    assert first.alternative == "peft: 150 tiles/s; uncompiled: 200 tiles/s"
    assert first.ratio == "2 times as fast; 1.5 times as fast"
    assert first.ours == "300 tiles/s, 9 GB (planned 8)"
