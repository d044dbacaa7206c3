"""Chapters stay within memory: a lesson with a dense matrix takes an excerpt of a large cohort."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from peka_core.genes import log_cp10k
from peka_core.studies.excerpt import lesson_counts, lesson_spots
from peka_core.teachers import embed_spots, load_teacher

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SPOTS, GENES = 6_000, 3_000  # dense: 72 MB as float32, 144 MB as float64
MOST = 120e6  # bytes of a cell beside the counts; on all spots and genes they took 135 to 247 MB


@pytest.fixture(scope="module")
def large():
    """Sparse counts (n, G) of which a tenth are above zero; spots of section S0 are the test."""
    rng = np.random.default_rng(0)
    kinds, rate = rng.integers(0, 6, SPOTS), rng.gamma(0.3, 0.4, (6, GENES))
    counts = sparse.csr_matrix(rng.poisson(rate[kinds]), dtype=np.float32)
    sections = np.repeat([f"S{i}" for i in range(6)], SPOTS // 6)
    obs = pd.DataFrame({"sample": sections}, index=[str(i) for i in range(SPOTS)])
    obs["total_counts"] = np.asarray(counts.sum(1), float).ravel()
    return ad.AnnData(counts, obs, pd.DataFrame(index=[f"G{i}" for i in range(GENES)]))


def run_cells(chapter, first, lines, **names):
    """Execute the first cells that hold these lines, in order: their names, and the most bytes."""
    cells = nbformat.read(NOTEBOOKS / f"{chapter}.ipynb", 4).cells
    exec(first, names)
    peaks = []
    for line in lines:
        cell = next(cell for cell in cells if cell.cell_type == "code" and line in cell.source)
        tracemalloc.start()
        exec(cell.source, names)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return names, max(peaks)


def test_a_small_cohort_is_taken_whole_and_a_large_one_in_part(large):
    train = np.arange(SPOTS) >= 1000
    assert np.array_equal(lesson_spots(4000), np.arange(4000))
    assert lesson_counts(large[:4000], train[:4000]).shape == (4000, GENES)
    spots, excerpt = lesson_spots(SPOTS), lesson_counts(large, train)
    assert excerpt.shape == (2000, 2000) and len(set(spots)) == 2000
    assert excerpt.obs["sample"].value_counts().between(330, 336).all()
    pd.testing.assert_frame_equal(excerpt.obs, large.obs.iloc[spots])
    variance = log_cp10k(large[spots[train[spots]]]).var(0)  # the dense form
    assert set(excerpt.var_names) == set(large.var_names[np.argsort(-variance)[:2000]])
    changed, order = large.copy(), np.random.default_rng(0).permutation(GENES)
    changed.X = sparse.vstack([changed.X[:1000][:, order], changed.X[1000:]], format="csr")
    assert lesson_counts(changed, train).var_names.equals(excerpt.var_names)  # test counts differ


def test_chapters_stay_within_memory_on_a_large_cohort(large):
    samples = large.obs["sample"].to_numpy()
    test = samples == "S0"
    cohort = SimpleNamespace(adata=lambda: large, splits=[SimpleNamespace(name="patients/0")])
    work = SimpleNamespace(cohort=lambda: cohort, rows=lambda split: (~test, test))
    first = "import numpy as np, pandas as pd\nfrom scipy import sparse\nseed, k = 0, 8"
    lines = ["work.rows(split)", "small, seen, unseen", "np.linalg.svd", "pca.embed(",
             "permuted(dense", "small.X[seen]).nnz", "before_after[fitted_on]",
             'moved["training spots"] == 0']  # fmt: skip
    names, peak = run_cells(
        "02_teacher_embeddings", first, lines, work=work, options={}, log_cp10k=log_cp10k,
        lesson_counts=lesson_counts, lesson_spots=lesson_spots, load_teacher=load_teacher,
        embed_spots=embed_spots,
    )  # fmt: skip
    assert names["by_hand"].shape == (2000, 12) and names["small"].shape == (2000, 2000)
    assert peak < MOST, f"{peak / 1e6:.0f} MB"
    names, peak = run_cells(
        "01_data", "import numpy as np", ["by_hand", "gene = max("], adata=large, middle=7,
        genes=list(large.var_names[:50]), name="S1", section_of=samples, log_cp10k=log_cp10k,
    )  # fmt: skip
    assert names["log"].shape == (SPOTS, 50) and peak < MOST, f"{peak / 1e6:.0f} MB"
