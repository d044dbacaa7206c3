"""Tasks: a protocol's splits of a cohort, each with its target genes and their true values."""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold, train_test_split

from .cohort import Cohort, Split
from .common.errors import PekaError
from .genes import authors_genes, log_cp10k, top_genes, variable_genes
from .layout.gene_columns import columns_of
from .protocols import Protocol

TARGET_TRANSFORMS = {  # name -> targets (n, g) float32, from ln CP10K and from the counts
    "ln_cp10k": lambda log, counts: log.toarray(),
    "log2_cp10k": lambda log, counts: log.toarray() / np.float32(np.log(2)),
    "ln_counts": lambda log, counts: np.log1p(counts.X.toarray()),
}


@dataclass(frozen=True)
class Task:
    """One split with its genes and true values; the rows are all n spots of the cohort."""

    split: Split  # train and test (n,), without copies if the protocol merges duplicates
    genes: list[str]
    targets: np.ndarray  # (n, g) float32, NaN if the zero rule drops a spot
    gene_groups: list[str]  # var["group"] of each gene, "" if the cohort has none
    obs: pd.DataFrame  # the cohort's obs
    spatial: np.ndarray  # (n, 2) spot centres, px
    protocol: Protocol
    fit_mask: np.ndarray | None = None  # with gene_folds, (n, g) bool: where the gene is fitted
    score_mask: np.ndarray | None = None  # with gene_folds, (n, g) bool: where it is scored

    @property
    def fit_values(self) -> np.ndarray:
        """Targets `(n, g)` of the spots that the head may be fitted on, NaN elsewhere."""
        mask = self.fit_mask
        return self.targets if mask is None else np.where(mask, self.targets, np.nan)

    @property
    def score_values(self) -> np.ndarray:
        """Targets `(n, g)` of the spots that are scored, NaN elsewhere."""
        mask = self.score_mask
        return self.targets if mask is None else np.where(mask, self.targets, np.nan)

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of the training spots and of the test spots."""
        return np.flatnonzero(self.split.train), np.flatnonzero(self.split.test)


def make_tasks(cohort: Cohort, protocol: Protocol) -> list[Task]:
    """The protocol's splits of a cohort, each with its target genes and targets.

    Raises:
        PekaError: as `Protocol.splits`; or not every section measured a target gene (no section, if
            the protocol allows genes that some section did not measure).
    """
    splits, chosen_by = protocol.splits(cohort), protocol.genes_from
    if chosen_by == "all":
        gene_lists = [top_genes(cohort, protocol.n_genes)] * len(splits)
    elif chosen_by == "train":
        gene_lists = variable_genes(cohort, [split.train for split in splits], protocol.n_genes)
    else:
        genes = cohort.genes if chosen_by == "file" else chosen_by
        genes = authors_genes(cohort, protocol.n_genes) if chosen_by == "authors" else genes
        if isinstance(genes, str) or not genes:
            raise PekaError(
                f"{cohort.path}, protocol {protocol.name}: genes_from {chosen_by!r} gives no "
                "target genes; expected all, train, authors, file (var_*genes.json), or names."
            )
        gene_lists = [list(genes)] * len(splits)
    join = "inner" if chosen_by in ("all", "train", "file") else "outer"
    adata = cohort.adata(join=join, genes=list(dict.fromkeys(chain(*gene_lists))))  # no other gene
    log, tasks = log_cp10k(adata, dense=False), []  # (n, union of the lists)
    for split, genes in zip(splits, gene_lists, strict=True):
        columns = columns_of(adata.var_names, genes)
        targets = TARGET_TRANSFORMS[protocol.target](log[:, columns], adata[:, columns])
        if protocol.zeros == "drop":
            targets[targets == 0] = np.nan
            usable = np.isfinite(targets[split.train | split.test]).sum(0)
            targets[:, usable < protocol.min_spots] = np.nan  # a gene without targets is skipped
        var = adata.var.iloc[columns]
        groups = var["group"].astype(str).tolist() if "group" in var else [""] * len(genes)
        spatial = np.asarray(adata.obsm["spatial"])
        tasks.append(Task(split, genes, targets, groups, adata.obs, spatial, protocol))
    return _with_gene_folds(tasks) if protocol.gene_folds else tasks


def _with_gene_folds(tasks: list[Task]) -> list[Task]:
    """The tasks with folds of each gene's own, over the usable spots of that gene."""
    protocol, usable = tasks[0].protocol, np.isfinite(tasks[0].targets)  # (n, g)
    fit, score = (np.zeros((len(tasks), *usable.shape), bool) for _ in range(2))
    for gene in np.flatnonzero(usable.any(0)):
        rows = np.flatnonzero(usable[:, gene])
        folds = KFold(protocol.folds, shuffle=True, random_state=protocol.seed).split(rows)
        for i, (train, test) in enumerate(folds):
            if protocol.inner_holdout:
                train, _ = train_test_split(train, test_size=0.2, random_state=protocol.seed)
            fit[i, rows[train], gene] = score[i, rows[test], gene] = True
    every = tasks[0].split.train | tasks[0].split.test
    splits = [Split(task.split.name, every, every) for task in tasks]  # the masks divide the spots
    triples = zip(tasks, splits, fit, score, strict=True)
    return [replace(task, split=s, fit_mask=f, score_mask=m) for task, s, f, m in triples]


def targets_of_split(tasks: list[Task], split: Split) -> np.ndarray:
    """Targets (n, g) of the genes that a protocol chose for a split.

    `tasks` are those of the protocol that has this split; for the split `all` the first is taken.

    Raises:
        PekaError: none of the tasks has these training spots.
    """
    same = [task for task in tasks if np.array_equal(task.split.train, split.train)]
    if not same and split.name == "all":
        same = tasks
    if not same:
        raise PekaError(
            f"split {split.name} has training spots that no split of a protocol has, so no target "
            "genes are chosen for it and no student can learn genes on it (taught_by: genes)."
        )
    return same[0].targets
