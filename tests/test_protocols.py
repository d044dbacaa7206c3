"""Splits, target genes and targets of each protocol, against scikit-learn, scanpy and formulas."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from damage import edit_h5ad
from fake_cohort import PAPER, STRICT, draw
from sklearn.model_selection import KFold

from peka_core.cohort import Split, open_cohort
from peka_core.common.errors import PekaError
from peka_core.genes import variable_genes
from peka_core.protocols import CHOICES, PROTOCOLS
from peka_core.tasks import make_tasks

OFFICIAL = replace(PROTOCOLS["peka_official"], n_genes=10, min_spots=20)


def scanpy_genes(adata, batch, n=10, **normalised):
    """The most variable genes by scanpy's own functions from raw counts."""
    sc.pp.normalize_total(adata, **normalised)
    sc.pp.log1p(adata)
    adata.obs[batch] = adata.obs[batch].astype("category").cat.remove_unused_categories()
    sc.pp.highly_variable_genes(adata, n_top_genes=n, flavor="seurat", batch_key=batch)
    return list(adata.var_names[adata.var["highly_variable"]])


def test_folds_genes_and_targets_are_those_of_scikit_learn_scanpy_and_the_formula():
    cohort = draw(duplicate=True)
    cohort.counts[cohort.obs["sample"] == "P1A", 5:20] = 0  # genes that a section does not express
    adata, paper, strict = cohort.adata(), make_tasks(cohort, PAPER), make_tasks(cohort, STRICT)
    folds = KFold(5, shuffle=True, random_state=2025).split(cohort.counts)
    for i, (task, fold) in enumerate(zip(paper, folds, strict=True)):
        assert task.split.name == f"spots/{i}"
        assert all(map(np.array_equal, task.rows, fold))
    of_all = scanpy_genes(adata.copy(), "sample", target_sum=1e4)
    assert [task.genes for task in paper] == [of_all] * 5
    for task in strict:
        train = adata[task.split.train].copy()
        assert task.genes == scanpy_genes(train, "sample", target_sum=1e4)
    assert len({tuple(task.genes) for task in strict}) > 1
    columns = adata.var_names.get_indexer(task.genes)
    expected = np.log(1 + 1e4 * cohort.counts[:, columns] / cohort.counts.sum(1, keepdims=True))
    np.testing.assert_allclose(task.targets, expected, rtol=1e-6)
    assert task.gene_groups == ["cue" if c % 2 else "composition" for c in columns]


def test_strict_leaves_copies_out_of_both_sides_and_paper_keeps_them():
    cohort = draw(duplicate=True)
    copy = (cohort.obs["sample"] == "X01").to_numpy()
    tested = lambda protocol: sum(s.test.astype(int) for s in protocol.splits(cohort))
    assert not any(split.train[copy].any() for split in STRICT.splits(cohort))
    np.testing.assert_array_equal(tested(STRICT), ~copy)
    assert (tested(PAPER) == 1).all()
    cohort.obs["duplicate_of"] = cohort.obs["duplicate_of"].replace("P3B", "elsewhere")
    assert (tested(STRICT) == 1).all()  # the original is not in the cohort


@pytest.mark.parametrize("scheme, test, named", [
    ("patients", "group == 'P0'", "P0"), ("sections", "sample == 'P0A'", "P0A"),
    ("patients", "group == ''", "/0"),
])  # fmt: skip
def test_splits_that_hold_nothing_out_are_refused(scheme, test, named):
    cohort = draw()
    every = np.ones(240, bool)
    cohort.splits = [Split(f"{scheme}/0", every, cohort.obs.eval(test).to_numpy())]
    with pytest.raises(PekaError, match=named):
        make_tasks(cohort, STRICT)


def test_dropped_zeros_are_nan_and_the_authors_skip_a_gene_with_less_than_322_spots():
    cohort = draw(patients=2, spots=100)  # 400 spots
    cohort.counts[:, :2] = 1 + np.arange(400)[:, None] % 3
    cohort.counts[321:, 0] = cohort.counts[322:, 1] = 0
    rules = replace(PROTOCOLS["peka_official"], genes_from=("G00", "G01"))
    kept = make_tasks(cohort, replace(rules, zeros="keep"))[0].targets
    expected = np.where((kept > 0) & [False, True], kept, np.nan)
    np.testing.assert_array_equal(make_tasks(cohort, rules)[0].targets, expected)


@pytest.mark.parametrize("spots, counted", [(30, False), (1, True)])
def test_a_section_that_ranks_no_genes_changes_no_choice(spots, counted):
    cohort, rows = draw(), np.ones(240, bool)
    section = (cohort.obs["sample"] == "P1A").to_numpy()
    here = section & (np.cumsum(section) <= spots)
    rows[section & ~here] = False
    cohort.counts[here] *= counted
    with_it, without = variable_genes(cohort, [rows, rows & ~here], 10)
    assert with_it == without


@pytest.fixture
def unequal(tiny_cohort):
    """A cohort in which P1A lacks two genes that the others have, and P2B alone has two others."""
    without = lambda adata: adata[:, ~adata.var_names.isin(["G03", "G06"])].copy()
    own = lambda names: [{"G20": "OWN0", "G21": "OWN1"}.get(name, name) for name in names]
    edit_h5ad(tiny_cohort / "adata/P1A.h5ad", without)
    edit_h5ad(tiny_cohort / "adata/P2B.h5ad", lambda a: setattr(a, "var_names", own(a.var_names)))
    return open_cohort(tiny_cohort)


@pytest.mark.parametrize("n", [5, 20])
def test_the_authors_genes_are_scanpys_over_the_outer_join(unequal, n):
    """The authors' step1_process_hvg.py joins the files and normalises to the median depth."""
    genes = make_tasks(unequal, replace(OFFICIAL, n_genes=n))[0].genes
    parts = {s: ad.read_h5ad(unequal.path / f"adata/{s}.h5ad") for s in unequal.samples.index}
    joined = ad.concat(parts, join="outer", fill_value=0, label="slide", index_unique="-")
    assert len(genes) == n and set(genes) == set(scanpy_genes(joined, "slide", n))
    common = set(unequal.adata().var_names)
    assert set(make_tasks(unequal, replace(OFFICIAL, genes_from="all"))[0].genes) <= common
    assert n == 5 or set(genes) - common


@pytest.mark.parametrize("zeros", ["drop", "keep"])
def test_a_gene_that_a_section_did_not_measure_is_zero_there(unequal, zeros):
    rules = replace(OFFICIAL, genes_from=("G03", "OWN1", "G05"), zeros=zeros, min_spots=5)
    targets, sample = make_tasks(unequal, rules)[0].targets, unequal.obs["sample"].to_numpy()
    for column, absent in enumerate((sample == "P1A", sample != "P2B")):
        here = targets[absent, column]
        assert np.isnan(here).all() if zeros == "drop" else (here == 0).all()
    raw = ad.read_h5ad(unequal.path / "adata/P2B.h5ad")
    counts, total = raw[:, "OWN1"].X.toarray().ravel(), raw.X.toarray().sum(1)  # of all its genes
    expected = np.log2(1 + 1e4 * counts / total)
    np.testing.assert_allclose(targets[sample == "P2B", 1], expected, rtol=1e-5)


@pytest.mark.parametrize("field", CHOICES)
def test_a_word_that_no_rule_knows_is_refused(field):
    with pytest.raises(PekaError, match=f"{field} is 'al'"):
        replace(STRICT, **{field: "al"})
