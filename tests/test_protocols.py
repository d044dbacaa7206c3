from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from fake_cohort import draw
from sklearn.model_selection import KFold

from peka_core.cohort import Split, open_cohort
from peka_core.common.errors import PekaError
from peka_core.genes import log_cp10k, section_table, variable_genes
from peka_core.protocols import PROTOCOLS
from peka_core.tasks import make_tasks

PAPER = replace(PROTOCOLS["peka_paper"], n_genes=10)
STRICT = replace(PROTOCOLS["strict"], n_genes=10)
OFFICIAL = replace(PROTOCOLS["peka_official"], n_genes=10, min_spots=20)


def scanpy_genes(cohort, rows):
    """Target genes from raw counts by scanpy's own functions."""
    adata = cohort.adata()[rows].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.obs["sample"] = adata.obs["sample"].astype("category").cat.remove_unused_categories()
    sc.pp.highly_variable_genes(adata, n_top_genes=10, flavor="seurat", batch_key="sample")
    return list(adata.var_names[adata.var["highly_variable"]])


def test_paper_folds_are_shuffled_spots_of_all_sections():
    cohort = draw(duplicate=True)
    tasks = make_tasks(cohort, PAPER)
    expected = KFold(5, shuffle=True, random_state=2025).split(np.zeros((len(cohort.obs), 1)))
    for i, (task, fold) in enumerate(zip(tasks, expected, strict=True)):
        assert task.split.name == f"spots/{i}"
        for ours, theirs in zip(task.rows, fold, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_genes_are_scanpys_over_all_spots_or_over_training_spots():
    cohort = draw(duplicate=True)
    cohort.counts[cohort.obs["sample"] == "P1A", 5:20] = 0  # genes that a section does not express
    expected = scanpy_genes(cohort, np.ones(len(cohort.obs), bool))
    assert [task.genes for task in make_tasks(cohort, PAPER)] == [expected] * 5
    tasks = make_tasks(cohort, STRICT)
    for task in tasks:
        assert task.genes == scanpy_genes(cohort, task.split.train)
    assert len({tuple(task.genes) for task in tasks}) > 1


def test_targets_are_log_cp10k_of_every_spot_with_the_groups_of_the_genes():
    cohort = draw()
    task = make_tasks(cohort, STRICT)[0]
    columns = cohort.adata().var_names.get_indexer(task.genes)
    expected = np.log(1 + 1e4 * cohort.counts[:, columns] / cohort.counts.sum(1, keepdims=True))
    np.testing.assert_allclose(task.targets, expected, rtol=1e-6)
    assert task.gene_groups == ["cue" if c % 2 else "composition" for c in columns]


def splits_that_test(cohort, protocol=STRICT):
    """How many splits test each spot."""
    return sum(split.test.astype(int) for split in protocol.splits(cohort))


def test_strict_leaves_copies_out_of_both_sides_and_paper_keeps_them():
    cohort = draw(duplicate=True)
    copy = (cohort.obs["sample"] == "X01").to_numpy()
    assert not any(split.train[copy].any() for split in STRICT.splits(cohort))
    np.testing.assert_array_equal(splits_that_test(cohort), ~copy)
    assert (splits_that_test(cohort, PAPER) == 1).all()
    cohort.obs["duplicate_of"] = cohort.obs["duplicate_of"].replace("P3B", "elsewhere")
    assert (splits_that_test(cohort) == 1).all()  # the original is not in the cohort


@pytest.mark.parametrize("train, test, named", [
    ("all", "group P0", "P0"), ("all", "sample P0A", "P0A"), ("all", "none", "/0"),
    ("none", "all", "/0"), (None, None, "splits"),
])  # fmt: skip
def test_splits_that_hold_nothing_out_are_refused(train, test, named):
    cohort = draw()

    def spots(what):
        column, _, name = what.partition(" ")
        return np.full(240, what == "all") if not name else (cohort.obs[column] == name).to_numpy()

    scheme = "sections" if test and test.startswith("sample") else "patients"
    cohort.splits = [Split(f"{scheme}/0", spots(train), spots(test))] if train else []
    with pytest.raises(PekaError, match=named):
        make_tasks(cohort, STRICT)


def test_dropped_zeros_are_nan_and_rare_genes_skipped():
    cohort = draw(depth=60)
    protocol = replace(PAPER, zeros="drop", min_spots=150)
    kept, dropped = make_tasks(cohort, PAPER)[0].targets, make_tasks(cohort, protocol)[0].targets
    enough = (kept > 0).sum(0) >= 150
    assert 0 < enough.sum() < 10
    np.testing.assert_array_equal(dropped, np.where((kept > 0) & enough, kept, np.nan))


@pytest.mark.parametrize("spots, counted", [(30, False), (1, False), (1, True)])
def test_a_section_that_ranks_no_genes_changes_no_choice(spots, counted):
    cohort, rows = draw(), np.ones(240, bool)
    section = (cohort.obs["sample"] == "P1A").to_numpy()
    here = section & (np.cumsum(section) <= spots)
    rows[section & ~here] = False
    cohort.counts[here] *= counted
    adata = cohort.adata()
    log = log_cp10k(adata, dense=False)
    without = variable_genes(log, adata, rows & ~here, 10)
    assert variable_genes(log, adata, rows, 10) == without
    with pytest.raises(PekaError):
        variable_genes(log, adata, here, 10)


@pytest.mark.filterwarnings("ignore")
def test_genes_that_are_all_alike_are_not_ranked():
    names = pd.Index([f"G{i}" for i in range(9)])
    for log in (np.full((14, 9), 2.0), np.eye(14, 1) * np.full(9, 1.3)):
        assert not section_table(log, names, 5).to_numpy().any()


# ---- genes that not every section measured -------------------------------------------------------


@pytest.fixture
def unequal(tiny_cohort):
    """A cohort in which P1A lacks two genes that the others have, and P2B alone has two more."""
    path = tiny_cohort / "adata" / "P1A.h5ad"
    adata = ad.read_h5ad(path)
    adata[:, ~adata.var_names.isin(["G03", "G06"])].copy().write_h5ad(path)
    path = tiny_cohort / "adata" / "P2B.h5ad"
    adata = ad.read_h5ad(path)
    counts = np.random.default_rng(0).poisson([[0.3, 40.0]], (adata.n_obs, 2)).astype(np.float32)
    own = ad.AnnData(counts, adata.obs[[]], pd.DataFrame(index=["OWN0", "OWN1"]))
    both = ad.concat([adata, own], axis=1)
    both.obs, both.obsm["spatial"] = adata.obs, adata.obsm["spatial"]
    both.write_h5ad(path)
    return open_cohort(tiny_cohort)


def their_genes(cohort, n):
    """Target genes by scanpy alone, from the files, as in the authors' step1_process_hvg.py."""
    parts = {s: ad.read_h5ad(cohort.path / "adata" / f"{s}.h5ad") for s in cohort.samples.index}
    joined = ad.concat(parts, join="outer", fill_value=0, label="slide", index_unique="-")
    sc.pp.normalize_total(joined)
    sc.pp.log1p(joined)
    sc.pp.highly_variable_genes(joined, n_top_genes=n, flavor="seurat", batch_key="slide")
    return set(joined.var_names[joined.var["highly_variable"]])


@pytest.mark.parametrize("n", [5, 10, 20])
def test_the_authors_genes_are_scanpys_over_the_outer_join(unequal, n):
    genes = make_tasks(unequal, replace(OFFICIAL, n_genes=n))[0].genes
    assert len(genes) == n and set(genes) == their_genes(unequal, n)
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
    raw = ad.read_h5ad(unequal.path / "adata" / "P2B.h5ad")
    counts, total = raw[:, "OWN1"].X.toarray().ravel(), raw.X.toarray().sum(1)  # of all its genes
    expected = np.log2(1 + 1e4 * counts / total)
    np.testing.assert_allclose(targets[sample == "P2B", 1], expected, rtol=1e-5)


@pytest.mark.parametrize("genes", [("G05", "NOSUCH"), (), "autors"])
def test_unknown_genes_and_rules_are_refused(unequal, genes):
    with pytest.raises(PekaError):
        make_tasks(unequal, replace(OFFICIAL, genes_from=genes))


@pytest.mark.parametrize(("used", "scored"), [(321, False), (322, True)])
def test_the_authors_keep_a_gene_with_more_than_321_spots(used, scored):
    cohort = draw(patients=2, sections=2, spots=100, genes=40)  # 400 spots
    cohort.counts[:, 0] = 0
    cohort.counts[:used, 0] = 1 + np.arange(used) % 3
    rules = replace(PROTOCOLS["peka_official"], genes_from=("G00",))
    assert np.isfinite(make_tasks(cohort, rules)[0].targets).any() == scored
