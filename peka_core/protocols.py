"""Protocols: which spots fit the head, which are scored, for which genes, and how PCC is pooled.

The same features give 0.3 or 0.7 depending on these choices, so they travel as one named object, and a
score's name always carries it.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold, train_test_split

from .cohort import Split
from .errors import PekaError
from .genes import authors_genes, log_cp10k, variable_genes
from .layout.gene_columns import columns_of
from .layout.tables import copies
from .recipe import mixes_patients

HELD_OUT = {
    "patients": "group",
    "sections": "sample",
}  # scheme -> the column whose values a split must not share


@dataclass(frozen=True)
class Protocol:
    """One way to score features.

    Change one choice with `dataclasses.replace`, and give the result a name of its own.
    """

    name: str
    scheme: (
        str  # "spots": shuffled folds over all spots; "cohort": the cohort's own held-out splits
    )
    genes_from: str  # who chooses the target genes, among those that every section measured: "all" spots, or the split's "train"
    # spots; "file": the cohort's own list. Among those that any section measured: "authors", by the rule of `authors_genes`;
    # "given", the list `genes`. There a gene is 0 in a section that did not measure it.
    alphas: tuple[
        float, ...
    ]  # ridge penalties: one is fixed, several are chosen from by inner cross-validation;
    # none: HEST-Benchmark's rule, 100 / (components x genes)
    pooling: str  # PCC over all test spots of a fold ("pooled") or in each section ("section"), then patients
    merge_duplicates: bool  # leave copies of a section out, of training and of test
    scope: str  # default for the alignment: "all" spots, or "nested" in the split's training spots
    zeros: str = "keep"  # "drop": a gene is fitted and scored only where it was counted
    target: str = "ln_cp10k"  # TARGETS: what is predicted
    standardise: bool = True  # features before the PCA
    gene_folds: bool = (
        False  # scheme "spots": each gene shuffles its own usable spots, as the authors do
    )
    inner_holdout: bool = (
        False  # with gene_folds: a fifth of each training fold is left unused, as the authors do
    )
    n_genes: int = 50
    genes: tuple[str, ...] = ()  # with genes_from "given"
    folds: int = 5  # of scheme "spots"
    seed: int = 2025
    min_spots: int = 322  # zeros dropped: genes with fewer usable spots are skipped
    min_section_spots: int = 10  # a section with fewer scored spots has no PCC

    def splits(self, cohort) -> list[Split]:
        """Training and test spots of a cohort, without copies of sections where duplicates are merged.

        Raises:
            PekaError: no splits in the cohort, or a split with a patient (scheme patients) or section (scheme
                sections) on both sides, or without spots on one side.
        """
        keep = ~_copies(cohort.obs) if self.merge_duplicates else np.ones(len(cohort.obs), bool)
        if self.scheme == "spots":
            return _shuffled(keep, self)
        if not cohort.splits:
            raise PekaError(
                f"{cohort.path}: protocol {self.name} needs the cohort's own splits; "
                "expected splits/train_0.csv and splits/test_0.csv."
            )
        splits = [Split(s.name, s.train & keep, s.test & keep) for s in cohort.splits]
        for split in splits:
            _check(cohort, split)
        return splits


PROTOCOLS = {
    # The paper as written (Methods; KFold seed and scaler from the authors' code and our reading, see 04).
    "peka_paper": Protocol(
        "peka_paper",
        "spots",
        "all",
        alphas=(1.0,),
        pooling="pooled",
        merge_duplicates=False,
        scope="all",
    ),
    # The authors' code (RunningStone/PEKA bf9c6f5): rules that their text does not give. A gene is kept with more than 321 spots.
    "peka_official": Protocol(
        "peka_official",
        "spots",
        "authors",
        alphas=(1.0,),
        pooling="pooled",
        merge_duplicates=False,
        scope="all",
        zeros="drop",
        target="log2_cp10k",
        standardise=False,
        gene_folds=True,
        inner_holdout=True,
        min_spots=322,
    ),
    # HEST-Benchmark (mahmoodlab/HEST afd42c3), on its own splits and genes.
    "hest_bench": Protocol(
        "hest_bench",
        "cohort",
        "file",
        alphas=(),
        pooling="pooled",
        merge_duplicates=False,
        scope="given",
        target="ln_counts",
    ),
    # What a new patient's slide would get.
    "strict": Protocol(
        "strict",
        "cohort",
        "train",
        alphas=tuple(np.logspace(-1, 5, 13)),
        pooling="section",
        merge_duplicates=True,
        scope="nested",
    ),
}


def protocol_of(split: str) -> Protocol:
    """Whose splits have this name: `peka_paper` of shuffled spots, `strict`, which leaves copied sections out, of all others."""
    return PROTOCOLS["peka_paper" if mixes_patients(split) else "strict"]


@dataclass(frozen=True)
class Task:
    """What a split asks for, whatever the features are; rows are all n spots of the cohort."""

    split: Split  # train and test (n,), without the copies where the protocol merges duplicates
    genes: list[str]
    targets: (
        np.ndarray
    )  # (n, g) float32, the protocol's target; NaN where the zero rule drops a spot
    gene_groups: list[str]  # var["group"] of each gene, "" where the cohort has none
    obs: pd.DataFrame  # the cohort's obs
    spatial: np.ndarray  # (n, 2) spot centres, px
    protocol: Protocol
    fit: np.ndarray | None = None  # (n, g) bool, where each gene has training spots of its own
    scored: np.ndarray | None = None  # (n, g) bool, likewise the spots that it is tested on

    @property
    def observed(self) -> np.ndarray:
        """Targets `(n, g)` of the spots that are scored, NaN elsewhere."""
        return self.targets if self.scored is None else np.where(self.scored, self.targets, np.nan)


def make_tasks(cohort, protocol: Protocol) -> list[Task]:
    """The protocol's splits of a cohort, each with its target genes and targets.

    Raises:
        PekaError: as `Protocol.splits`; a target gene that no section, or not every section, measured.
    """
    splits = protocol.splits(cohort)
    adata = (
        cohort.adata(join="outer")
        if protocol.genes_from in ("authors", "given")
        else cohort.adata()
    )
    if protocol.genes_from in ("all", "train"):
        log, seen = log_cp10k(adata, dense=False), {}  # (n, G) float32, made once for all splits
        everywhere = protocol.genes_from == "all"
        rows = [np.ones(adata.n_obs, bool)] if everywhere else [split.train for split in splits]
        lists = [variable_genes(log, adata, some, protocol.n_genes, seen) for some in rows] * (
            len(splits) if everywhere else 1
        )
    else:
        genes = _fixed_genes(cohort, adata, protocol)
        adata = adata[
            :, columns_of(adata.var_names, genes)
        ].copy()  # (n, g): nothing else is needed of the others
        log, lists = log_cp10k(adata, dense=False), [genes] * len(splits)
    tasks = [_task(adata, log, split, genes, protocol) for split, genes in zip(splits, lists)]
    return _gene_folds(tasks) if protocol.gene_folds else tasks


def _task(adata, log, split, genes, protocol):
    columns = columns_of(adata.var_names, genes)
    targets = TARGETS[protocol.target](adata, log, columns)  # (n, g)
    if protocol.zeros == "drop":
        targets[targets == 0] = np.nan
        usable = np.isfinite(targets[split.train | split.test]).sum(0)
        targets[:, usable < protocol.min_spots] = (
            np.nan
        )  # a gene without any target is skipped everywhere
    groups = (
        adata.var["group"].astype(str).iloc[columns].tolist()
        if "group" in adata.var
        else [""] * len(genes)
    )
    return Task(
        split, genes, targets, groups, adata.obs, np.asarray(adata.obsm["spatial"]), protocol
    )


def _fixed_genes(cohort, adata, protocol) -> list[str]:
    """Target genes of a protocol that asks every split for the same ones."""
    if protocol.genes_from == "file":
        return _listed_genes(cohort, adata)
    if protocol.genes_from == "authors":
        return authors_genes(adata, protocol.n_genes)
    if protocol.genes_from != "given" or not protocol.genes:
        raise PekaError(
            f"protocol {protocol.name}: genes_from {protocol.genes_from!r} with {len(protocol.genes)} genes; expected all, "
            "train, file or authors, or given and a list."
        )
    return list(protocol.genes)


def _listed_genes(cohort, adata) -> list[str]:
    """The cohort's own target genes, in the order of their file."""
    missing = [gene for gene in cohort.genes if gene not in adata.var_names]
    if missing or not cohort.genes:
        what = (
            f"{len(missing)} of its genes are not in every section (first: {missing[0]})"
            if missing
            else "no gene in it"
        )
        raise PekaError(
            f"{cohort.path}/var_*genes.json: {what}; expected the target genes of this cohort."
        )
    return list(cohort.genes)


def _gene_folds(tasks: list[Task]) -> list[Task]:
    """The tasks with folds of each gene's own: its usable spots are shuffled by themselves (genes of equal spots alike)."""
    protocol, usable = tasks[0].protocol, np.isfinite(tasks[0].targets)  # (n, g)
    fit, scored = (np.zeros((len(tasks), *usable.shape), bool) for _ in range(2))
    for gene in np.flatnonzero(usable.any(0)):
        rows = np.flatnonzero(usable[:, gene])
        folds = KFold(protocol.folds, shuffle=True, random_state=protocol.seed).split(rows)
        for i, (train, test) in enumerate(folds):
            if protocol.inner_holdout:
                train, _ = train_test_split(train, test_size=0.2, random_state=protocol.seed)
            fit[i, rows[train], gene] = scored[i, rows[test], gene] = True
    everywhere = tasks[0].split.train | tasks[0].split.test
    return [
        replace(
            task, split=Split(task.split.name, everywhere, everywhere), fit=fit[i], scored=scored[i]
        )
        for i, task in enumerate(tasks)
    ]


def _ln_cp10k(adata, log, columns) -> np.ndarray:
    return log[:, columns].toarray()


def _log2_cp10k(adata, log, columns) -> np.ndarray:
    return log[:, columns].toarray() / np.float32(np.log(2))


def _ln_counts(adata, log, columns) -> np.ndarray:
    return np.log1p(adata[:, columns].X.toarray())


TARGETS = {
    "ln_cp10k": _ln_cp10k,
    "log2_cp10k": _log2_cp10k,
    "ln_counts": _ln_counts,
}  # name -> (n, g) float32


def _copies(obs):
    """Rows of sections that are a copy of another section of this cohort, of each set of copies all but one (`copies`)."""
    sections = obs.drop_duplicates("sample").set_index("sample")["duplicate_of"]
    return obs["sample"].isin(copies(sections)).to_numpy()


def _shuffled(keep, protocol):
    rows = np.flatnonzero(keep)
    folds = KFold(protocol.folds, shuffle=True, random_state=protocol.seed).split(rows)
    return [
        Split(f"spots/{i}", _mask(keep, rows[train]), _mask(keep, rows[test]))
        for i, (train, test) in enumerate(folds)
    ]


def _mask(like, rows):
    mask = np.zeros(len(like), bool)
    mask[rows] = True
    return mask


def _check(cohort, split):
    labels = cohort.obs[HELD_OUT[split.scheme]].to_numpy()
    shared = sorted(set(labels[split.train]) & set(labels[split.test]))
    if shared:
        raise PekaError(
            f"{cohort.path}: split {split.name} has {', '.join(map(str, shared))} in training and in "
            f"test; scheme {split.scheme} holds them out. Correct its splits/*.csv or samples.csv."
        )
    if not split.train.any() or not split.test.any():
        raise PekaError(
            f"{cohort.path}: split {split.name} has {split.train.sum()} training and "
            f"{split.test.sum()} test spots; expected some on both sides."
        )
