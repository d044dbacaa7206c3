"""Protocols: which spots fit the head, which are scored, for which genes, and how PCC is pooled.

The same features score 0.3 or 0.7 depending on these choices. They therefore travel as one named
object, and a score always carries its name.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.model_selection import KFold, train_test_split

from .cohort import Cohort, Split
from .common.errors import PekaError
from .common.typed_values import prefixed_errors
from .genes import authors_genes, log_cp10k, variable_genes
from .layout.gene_columns import columns_of
from .layout.tables import originals
from .recipe import mixes_patients

HELD_OUT = {"patients": "group", "sections": "sample"}  # scheme -> column that no split may share


class Scope(StrEnum):
    """Which spots the alignment behind a score has seen."""

    NESTED = "nested"  # the training spots of the scored split
    ALL = "all"  # every spot, the scored ones too
    GIVEN = "given"  # whatever the one who gave the features trained on
    NONE = "none"  # nothing was aligned


@dataclass(frozen=True)
class Protocol:
    """One way to score features.

    Change one choice with `dataclasses.replace`, and give the result a name of its own.

    Attributes:
        scheme: `spots`, shuffled folds over all spots, or `cohort`, the cohort's own splits.
        genes_from: who chooses the target genes. `all` spots or the split's `train` spots choose
            among the genes that every section measured; `file` is the cohort's own list.
            `authors` (`authors_genes`) or a tuple of names may take any gene that some section
            measured, which is then 0 in the other sections.
        alphas: ridge penalties. One is fixed; of several, inner cross-validation chooses one; none
            stands for HEST-Benchmark's rule, 100 / (components x genes).
        pooling: PCC over all test spots of a fold (`pooled`), or in each `section`, then patients.
        merge_duplicates: whether copies of a section are left out of training and of test.
        scope: the spots that align where nothing else is asked for.
        zeros: `drop` where a gene is fitted and scored only on the spots that counted it.
        target: what is predicted, a key of `TARGETS`.
        standardise: whether features are standardised before the PCA.
        gene_folds: each gene shuffles its own usable spots, as in the authors' code.
        inner_holdout: with gene_folds, a fifth of each training fold is not used, as there.
        folds, seed: of scheme `spots`.
        min_spots: where zeros are dropped, a gene with fewer usable spots is skipped.
    """

    name: str
    scheme: str
    genes_from: str | tuple[str, ...]
    alphas: tuple[float, ...]
    pooling: str
    merge_duplicates: bool
    scope: Scope
    zeros: str = "keep"
    target: str = "ln_cp10k"
    standardise: bool = True
    gene_folds: bool = False
    inner_holdout: bool = False
    n_genes: int = 50
    folds: int = 5
    seed: int = 2025
    min_spots: int = 322

    def splits(self, cohort: Cohort) -> list[Split]:
        """Training and test spots of a cohort, without copies where duplicates are merged.

        Raises:
            PekaError: the cohort has no splits, or a split has a patient (scheme patients) or
                section (scheme sections) on both sides, or no spots on one side.
        """
        keep = np.ones(len(cohort.obs), bool)
        if self.merge_duplicates:
            samples = cohort.obs.drop_duplicates("sample").set_index("sample")
            keep = ~cohort.obs["sample"].isin(originals(samples["duplicate_of"])).to_numpy()
        if self.scheme == "spots":
            spots, rows = np.arange(len(keep)), np.flatnonzero(keep)
            folds = KFold(self.folds, shuffle=True, random_state=self.seed).split(rows)
            masks = [[np.isin(spots, rows[side]) for side in fold] for fold in folds]
            return [Split(f"spots/{i}", train, test) for i, (train, test) in enumerate(masks)]
        if not cohort.splits:
            raise PekaError(
                f"{cohort.path}: protocol {self.name} needs the cohort's own splits, and there are "
                "none; expected splits/train_0.csv and splits/test_0.csv."
            )
        splits = [Split(s.name, s.train & keep, s.test & keep) for s in cohort.splits]
        for split in splits:
            _check(cohort, split)
        return splits


def _check(cohort: Cohort, split: Split) -> None:
    labels = cohort.obs[HELD_OUT[split.scheme]].to_numpy()
    if shared := sorted(set(labels[split.train]) & set(labels[split.test])):
        raise PekaError(
            f"{cohort.path}: split {split.name} has {', '.join(map(str, shared))} in training and "
            f"in test, although it holds out {split.scheme}. Correct splits/*.csv or samples.csv."
        )
    if not split.train.any() or not split.test.any():
        raise PekaError(
            f"{cohort.path}: split {split.name} has {split.train.sum()} training and "
            f"{split.test.sum()} test spots; expected at least one of each."
        )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # The paper as written (Methods). KFold's seed and the scaler are from the authors' code.
        Protocol(
            "peka_paper", "spots", "all", alphas=(1.0,), pooling="pooled", merge_duplicates=False,
            scope=Scope.ALL,
        ),
        # The authors' code (RunningStone/PEKA bf9c6f5), with rules that their text does not give.
        Protocol(
            "peka_official", "spots", "authors", alphas=(1.0,), pooling="pooled",
            merge_duplicates=False, scope=Scope.ALL, zeros="drop", target="log2_cp10k",
            standardise=False, gene_folds=True, inner_holdout=True, min_spots=322,
        ),
        # HEST-Benchmark (mahmoodlab/HEST afd42c3), on its own splits and genes.
        Protocol(
            "hest_bench", "cohort", "file", alphas=(), pooling="pooled", merge_duplicates=False,
            scope=Scope.GIVEN, target="ln_counts",
        ),
        # Ours: the score that a new patient's slide would get.
        Protocol(
            "strict", "cohort", "train", alphas=tuple(np.logspace(-1, 5, 13)), pooling="section",
            merge_duplicates=True, scope=Scope.NESTED,
        ),
    )
}  # fmt: skip


def protocol_of(split: str) -> Protocol:
    """The protocol whose splits have this name: `peka_paper` for shuffled spots, else `strict`."""
    return PROTOCOLS["peka_paper" if mixes_patients(split) else "strict"]


def split_named(cohort: Cohort, name: str) -> Split:
    """A split by its name: `all`, which trains on every spot and tests none; `spots/i`, the
    shuffled folds of `peka_paper`; or one of the cohort's own, without the copies of sections.

    Raises:
        PekaError: the cohort has no such split.
    """
    if name == "all":
        n = len(cohort.obs)
        return Split("all", np.ones(n, bool), np.zeros(n, bool))
    for split in protocol_of(name).splits(cohort):
        if split.name == name:
            return split
    raise PekaError(
        f"{cohort.path}: no split {name!r}; this cohort has {[s.name for s in cohort.splits]}"
    )


def aligned_on(
    cohort: Cohort, protocol: Protocol, splits: list[Split], scope: Scope
) -> list[Split]:
    """For each scored split, the split whose training spots the alignment sees.

    Raises:
        PekaError: scope nested where each gene has folds of its own, which leave no spot out.
    """
    if scope == Scope.ALL:
        return [split_named(cohort, "all")] * len(splits)
    if protocol.gene_folds:
        raise PekaError(
            f"protocol {protocol.name} gives each gene folds of its own, so no spot is held out "
            "from "
            "all of them and no alignment can be nested in them: score it with scope all"
        )
    return splits


@dataclass(frozen=True)
class Task:
    """What a split asks for, whatever the features are; rows are all n spots of the cohort."""

    split: Split  # train and test (n,), without the copies where the protocol merges duplicates
    genes: list[str]
    targets: np.ndarray  # (n, g) float32, NaN where the zero rule drops a spot
    gene_groups: list[str]  # var["group"] of each gene, "" where the cohort has none
    obs: pd.DataFrame  # the cohort's obs
    spatial: np.ndarray  # (n, 2) spot centres, px
    protocol: Protocol
    fit: np.ndarray | None = None  # (n, g) bool, where each gene has training spots of its own
    scored: np.ndarray | None = None  # (n, g) bool, and the spots that it is tested on

    @property
    def fitted(self) -> np.ndarray:
        """Targets `(n, g)` of the spots that the head may be fitted on, NaN elsewhere."""
        return self.targets if self.fit is None else np.where(self.fit, self.targets, np.nan)

    @property
    def observed(self) -> np.ndarray:
        """Targets `(n, g)` of the spots that are scored, NaN elsewhere."""
        return self.targets if self.scored is None else np.where(self.scored, self.targets, np.nan)

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of the training spots and of the test spots."""
        return np.flatnonzero(self.split.train), np.flatnonzero(self.split.test)


def make_tasks(cohort: Cohort, protocol: Protocol) -> list[Task]:
    """The protocol's splits of a cohort, each with its target genes and targets.

    Raises:
        PekaError: as `Protocol.splits`; a target gene was not measured by every section, or, where
            the protocol does not ask for that, by none.
    """
    splits, chosen_by = protocol.splits(cohort), protocol.genes_from
    common = chosen_by in ("all", "train", "file")
    adata = cohort.adata() if common else cohort.adata(join="outer")
    if chosen_by in ("all", "train"):
        log = log_cp10k(adata, dense=False)  # (n, G) float32
        every = np.ones(adata.n_obs, bool)
        seen: dict[bytes, pd.DataFrame] = {}  # tables of sections, each made once
        rows = [every if chosen_by == "all" else split.train for split in splits]
        lists = [variable_genes(log, adata, train, protocol.n_genes, seen) for train in rows]
    else:
        genes = _fixed_genes(cohort, adata, protocol)
        with prefixed_errors(cohort.path):
            adata = adata[:, columns_of(adata.var_names, genes)].copy()  # (n, g) is all it needs
        log, lists = log_cp10k(adata, dense=False), [genes] * len(splits)
    pairs = zip(splits, lists, strict=True)
    tasks = [_task(adata, log, split, genes, protocol) for split, genes in pairs]
    return _gene_folds(tasks) if protocol.gene_folds else tasks


def _fixed_genes(cohort: Cohort, adata: ad.AnnData, protocol: Protocol) -> list[str]:
    """Target genes of a protocol that asks every split for the same ones."""
    if protocol.genes_from == "authors":
        return authors_genes(adata, protocol.n_genes)
    genes = cohort.genes if protocol.genes_from == "file" else protocol.genes_from
    if isinstance(genes, str) or len(genes) == 0:
        raise PekaError(
            f"{cohort.path}, protocol {protocol.name}: genes_from {protocol.genes_from!r} gives no "
            "target genes; expected all, train, authors, file (var_*genes.json), or names."
        )
    return list(genes)


TARGETS = {  # name -> targets (n, g) float32, from ln CP10K and from the counts
    "ln_cp10k": lambda log, counts: log.toarray(),
    "log2_cp10k": lambda log, counts: log.toarray() / np.float32(np.log(2)),
    "ln_counts": lambda log, counts: np.log1p(counts.X.toarray()),
}


def genes_of_split(tasks: list[Task], split: Split) -> np.ndarray:
    """Targets (n, g) of the genes that a protocol chose for a split.

    Args:
        tasks: of the protocol that has this split; for the split `all`, the first one is taken.

    Raises:
        PekaError: none of the tasks has these training spots.
    """
    same = [task for task in tasks if np.array_equal(task.split.train, split.train)]
    if not same and split.name == "all":
        same = tasks
    if not same:
        raise PekaError(
            f"taught by genes on {split.name}: no known protocol has a split of these training "
            "spots, so no genes are known"
        )
    return same[0].targets


def _task(
    adata: ad.AnnData, log: sparse.csr_matrix, split: Split, genes: list[str], protocol: Protocol
) -> Task:
    columns = columns_of(adata.var_names, genes)
    targets = TARGETS[protocol.target](log[:, columns], adata[:, columns])
    if protocol.zeros == "drop":
        targets[targets == 0] = np.nan
        usable = np.isfinite(targets[split.train | split.test]).sum(0)
        targets[:, usable < protocol.min_spots] = np.nan  # a gene without targets is skipped
    groups = [""] * len(genes)
    if "group" in adata.var:
        groups = adata.var["group"].astype(str).iloc[columns].tolist()
    spatial = np.asarray(adata.obsm["spatial"])
    return Task(split, genes, targets, groups, adata.obs, spatial, protocol)


def _gene_folds(tasks: list[Task]) -> list[Task]:
    """The tasks with folds of each gene's own, over the usable spots of that gene."""
    protocol, usable = tasks[0].protocol, np.isfinite(tasks[0].targets)  # (n, g)
    fit, scored = (np.zeros((len(tasks), *usable.shape), bool) for _ in range(2))
    for gene in np.flatnonzero(usable.any(0)):
        rows = np.flatnonzero(usable[:, gene])
        folds = KFold(protocol.folds, shuffle=True, random_state=protocol.seed).split(rows)
        for i, (train, test) in enumerate(folds):
            if protocol.inner_holdout:
                train, _ = train_test_split(train, test_size=0.2, random_state=protocol.seed)
            fit[i, rows[train], gene] = scored[i, rows[test], gene] = True
    every = tasks[0].split.train | tasks[0].split.test
    return [
        replace(task, split=Split(task.split.name, every, every), fit=fit[i], scored=scored[i])
        for i, task in enumerate(tasks)
    ]
