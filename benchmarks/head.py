"""Speed of the head: 50 genes against one gene, and against one scikit-learn pipeline a gene.

    python benchmarks/head.py            n = 2,400 spots, d = 1,536 features
    python benchmarks/head.py --large    n = 20,000 as well

Appends a row per size to benchmarks/head.csv. The loop over genes is timed on two of them and scaled to 50.
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
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from peka_core.files import write_whole
from peka_core.head import fit_head

TABLE = Path(__file__).with_suffix(".csv")
GENES, TIMED = 50, 2


def drawn(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Features `(n, d)` with a falling spectrum, as an encoder's, and targets `(n, 50)` that follow them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * np.linspace(3, 0.3, d)
    x = (x @ rng.normal(size=(d, d)) / np.sqrt(d)).astype(np.float32)
    return x, (x[:, :GENES] + rng.normal(size=(n, GENES))).astype(np.float32)


def seconds(function, repeats: int) -> float:
    """Median wall seconds of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def pipeline(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """One gene in scikit-learn, exact."""
    head = make_pipeline(StandardScaler(), PCA(256, svd_solver="full"), Ridge(1.0))
    return head.fit(x, y).predict(new)


def measure(n: int, d: int, repeats: int) -> dict:
    """One row: fit on 80 % of the spots and predict the others, one split."""
    x, y = drawn(n, d)
    cut = int(0.8 * n)
    train, new = x[:cut], x[cut:]
    one = seconds(lambda: fit_head(train, y[:cut, :1]).predict(new, 1.0), repeats)
    many = seconds(lambda: fit_head(train, y[:cut]).predict(new, 1.0), repeats)
    start, gaps = time.perf_counter(), []
    ours = fit_head(train, y[:cut]).predict(new, 1.0)
    ours_again = time.perf_counter() - start
    for gene in range(TIMED):
        expected = pipeline(train.astype(np.float64), y[:cut, gene].astype(np.float64), new.astype(np.float64))
        gaps.append(np.abs(expected - ours[:, gene]).max())
    loop = (time.perf_counter() - start - ours_again) / TIMED * GENES
    return dict(n=n, d=d, one_gene_s=one, genes_50_s=many, ratio_50_to_1=many / one, loop_50_s_scaled_from_2=loop,
                times_faster=loop / many, largest_difference=max(gaps))


def hardware() -> dict:
    """What the times were measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return dict(cpu=model, cores=os.cpu_count(), threads=os.environ.get("OMP_NUM_THREADS", "all"),
                load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "",
                python=platform.python_version(), numpy=np.__version__, sklearn=sklearn.__version__)


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="n = 20,000 as well")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    sizes = [(2_400, 1_536), (20_000, 1_536)] if options.large else [(2_400, 1_536)]
    rows = pd.DataFrame([measure(*size, options.repeats) | hardware() for size in sizes])
    for name, values in rows.items():
        print(f"{name:26}", *(f"{value:.3g}" if isinstance(value, float) else value for value in values))
    print(f"The loop was timed on {TIMED} of {GENES} genes and scaled.")
    if TABLE.exists():
        rows = pd.concat([pd.read_csv(TABLE), rows])
    write_whole(TABLE, lambda path: rows.to_csv(path, index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
