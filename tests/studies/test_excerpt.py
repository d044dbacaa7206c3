"""Chapters stay within memory: what needs a dense matrix takes an excerpt of a large cohort, and all of a small one."""

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
from peka_core.studies import excerpt
from peka_core.studies.excerpt import lesson_counts, lesson_spots
from peka_core.teachers import embed_spots, load_teacher

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SPOTS, GENES = 6_000, 3_000  # dense: 72 MB as float32, 144 MB as float64
MOST = 120e6  # bytes that a cell may take beside the counts; on all spots and genes they took 135 to 247 MB


def drawn(n=SPOTS, genes=GENES, sections=6, seed=0):
    """Sparse counts (n, G) of which a tenth are above zero; spots of section S0 are the test spots."""
    rng = np.random.default_rng(seed)
    kinds, rate = rng.integers(0, 6, n), rng.gamma(0.3, 0.4, (6, genes))
    counts = sparse.vstack(
        [
            sparse.csr_matrix(rng.poisson(rate[kinds[i : i + 500]]), dtype=np.float32)
            for i in range(0, n, 500)
        ]
    )
    obs = pd.DataFrame(
        {"sample": np.repeat([f"S{i}" for i in range(sections)], n // sections)},
        index=[str(i) for i in range(n)],
    )
    obs["total_counts"] = np.asarray(counts.sum(1), float).ravel()
    return ad.AnnData(counts.tocsr(), obs, pd.DataFrame(index=[f"G{i}" for i in range(genes)]))


@pytest.fixture(scope="module")
def large():
    return drawn()


def run_cells(chapter, first, holding, **names):
    """Execute the first cells of a notebook that hold these lines, in order; returns their names and the largest peak in bytes."""
    cells = [
        cell.source
        for cell in nbformat.read(NOTEBOOKS / f"{chapter}.ipynb", 4).cells
        if cell.cell_type == "code"
    ]
    exec(first, names)
    peaks = []
    for line in holding:
        source = next(cell for cell in cells if line in cell)
        tracemalloc.start()
        exec(source, names)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return names, max(peaks)


def test_a_small_cohort_is_taken_whole_and_a_large_one_in_part(large):
    train = np.arange(SPOTS) >= 1000
    assert np.array_equal(lesson_spots(4000), np.arange(4000)) and lesson_counts(
        large[:4000], train[:4000]
    ).shape == (4000, GENES)
    spots, some = lesson_spots(SPOTS), lesson_counts(large, train)
    assert (
        some.shape == (2000, 2000)
        and len(set(spots)) == 2000
        and some.obs["sample"].value_counts().between(330, 336).all()
    )
    assert np.array_equal(some.obs_names, large.obs_names[spots])
    variance = log_cp10k(large[spots[train[spots]]]).var(0)  # the dense form
    assert set(some.var_names) == set(large.var_names[np.argsort(-variance)[:2000]])
    assert np.array_equal(some.obs["total_counts"], large.obs["total_counts"].to_numpy()[spots])
    changed = large.copy()
    changed.X = sparse.vstack(
        [changed.X[:1000][:, np.random.default_rng(0).permutation(GENES)], changed.X[1000:]],
        format="csr",
    )
    assert lesson_counts(changed, train).var_names.equals(some.var_names), (
        "test spots have no say in the genes"
    )


def test_chapter_2_computes_on_an_excerpt_of_a_large_cohort(large):
    test = (large.obs["sample"] == "S0").to_numpy()
    cohort = SimpleNamespace(adata=lambda: large, splits=[SimpleNamespace(name="patients/0")])
    work = SimpleNamespace(cohort=lambda: cohort, rows=lambda split: (~test, test))
    first = "import numpy as np, pandas as pd\nfrom scipy import sparse\nseed, k = 0, 8"
    lines = [
        "work.rows(split)",
        "np.linalg.svd",
        "pca.embed(",
        "permuted(dense",
        "before_after[fitted_on]",
        'moved["training spots"] == 0',
    ]
    names, peak = run_cells(
        "02_teacher_embeddings", first, lines, work=work, options={}, log_cp10k=log_cp10k, lesson_counts=lesson_counts,
        lesson_spots=lesson_spots, load_teacher=load_teacher, embed_spots=embed_spots,
    )  # fmt: skip
    assert names["by_hand"].shape == (2000, 12) and names["small"].shape == (2000, 2000)
    assert peak < MOST, f"{peak / 1e6:.0f} MB"


def test_chapter_1_normalises_target_genes_alone(large):
    genes = list(large.var_names[:50])
    names, peak = run_cells(
        "01_data", "import numpy as np", ["by_hand", "gene = max("], adata=large, middle=7, genes=genes, name="S1",
        section_of=large.obs["sample"].to_numpy(), log_cp10k=log_cp10k,
    )  # fmt: skip
    assert names["log"].shape == (SPOTS, 50) and peak < MOST, f"{peak / 1e6:.0f} MB"


def test_what_a_lesson_takes_is_said_in_the_chapter():
    prose = " ".join(
        cell.source for cell in nbformat.read(NOTEBOOKS / "02_teacher_embeddings.ipynb", 4).cells
    )
    assert (
        f"above {excerpt.WHOLE:,} spots" in prose
        and f"{excerpt.GENES:,} most variable genes" in prose
    )
