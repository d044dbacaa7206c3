"""Speed and memory of the head, against the authors' loop of one scikit-learn pipeline a gene.

    python benchmarks/head.py            n = 2,400 spots, d = 1,536 features
    python benchmarks/head.py --large    n = 20,000 as well
    python benchmarks/head.py --memory   n = 74,000 (the paper's kidney), ours alone: peak memory

Ours fits 50 genes x 5 splits at once. A row per size is appended to benchmarks/head.csv. The
authors' loop (PCA(256) -> Ridge(1), scikit-learn's default solver, zeros kept) is timed on three
genes of one split and scaled to 50 x 5, which is fair because each of its fits is independent.
Equality is checked against the exact solver, `svd_solver="full"`.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline

from peka_core.common.files import write_whole
from peka_core.head import fit_predict
from peka_core.runner.cost import Cost
from peka_core.runner.provenance import provenance

TABLE = Path(__file__).with_suffix(".csv")
GENES, SPLITS, TIMED, WIDTH = 50, 5, 3, 1_536


def drawn(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Features `(n, d)` with a falling spectrum, and targets `(n, 50)` that follow them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * np.linspace(3, 0.3, d)
    x = (x @ rng.normal(size=(d, d)) / np.sqrt(d)).astype(np.float32)
    return x, (x[:, :GENES] + rng.normal(size=(n, GENES))).astype(np.float32)


def pipeline(x: np.ndarray, y: np.ndarray, new: np.ndarray, solver: str = "auto") -> np.ndarray:
    """One gene in scikit-learn, as the authors fit it."""
    return (
        make_pipeline(PCA(256, svd_solver=solver, random_state=0), Ridge(1.0))
        .fit(x, y)
        .predict(new)
    )


def ours(x: np.ndarray, y: np.ndarray, splits: list) -> list[np.ndarray]:
    """Predictions (m, g) of every split."""
    return [fit_predict(x, y, train, test, [1.0], standardise=False)[0] for train, test in splits]


def measure(n: int, d: int) -> dict:
    """One row: both ways on one size."""
    x, y = drawn(n, d)
    splits = list(KFold(SPLITS, shuffle=True, random_state=0).split(x))
    start = time.perf_counter()
    one = ours(x, y[:, :1], splits)
    one_s, start = time.perf_counter() - start, time.perf_counter()
    many = ours(x, y, splits)
    many_s, (train, test) = time.perf_counter() - start, splits[0]
    start = time.perf_counter()
    for gene in range(TIMED):
        pipeline(x[train], y[train, gene], x[test])
    loop_s = (time.perf_counter() - start) / TIMED * GENES * SPLITS
    exact = pipeline(
        x[train].astype(np.float64),
        y[train, 0].astype(np.float64),
        x[test].astype(np.float64),
        "full",
    )
    assert np.allclose(one[0][:, 0], many[0][:, 0], atol=1e-9)
    return dict(
        n=n,
        d=d,
        one_gene_s=one_s,
        genes_50_s=many_s,
        ratio_50_to_1=many_s / one_s,
        loop_s_scaled_from_3=loop_s,
        times_faster=loop_s / many_s,
        largest_difference=np.abs(exact - many[0][:, 0]).max(),
    )


def memory(n: int, d: int) -> dict:
    """One row: peak memory of a process that scores one split with 13 penalties."""
    x, y = drawn(n, d)
    train, test = next(KFold(SPLITS, shuffle=True, random_state=0).split(x))
    with Cost() as cost:
        fit_predict(x, y, train, test, np.logspace(-1, 5, 13))
    return dict(
        n=n,
        d=d,
        alphas_13_one_split_s=cost.seconds,
        peak_gb=cost.facts()["memory_mb"].get("process", np.nan) / 1024,
    )


def hardware() -> dict:
    """What the times were measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return dict(
        cpu=model,
        cores=os.cpu_count(),
        threads=os.environ.get("OMP_NUM_THREADS", "all"),
        load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "",
        python=platform.python_version(),
        numpy=np.__version__,
        sklearn=sklearn.__version__,
        commit=provenance()["commit"],
    )


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="n = 20,000 as well")
    parser.add_argument("--memory", action="store_true", help="n = 74,000 alone: peak memory")
    options = parser.parse_args()
    sizes = [2_400, 20_000] if options.large else [2_400]
    made = [memory(74_000, WIDTH)] if options.memory else [measure(n, WIDTH) for n in sizes]
    rows = pd.DataFrame(made).assign(**hardware())
    for name, values in rows.items():
        print(
            f"{name:26}",
            *(f"{value:.3g}" if isinstance(value, float) else value for value in values),
        )
    if not options.memory:
        print(
            f"The loop was timed on {TIMED} of {GENES} genes of one of {SPLITS} splits and scaled."
        )
    if TABLE.exists():
        rows = pd.concat([pd.read_csv(TABLE), rows])
    write_whole(TABLE, lambda path: rows.to_csv(path, index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
