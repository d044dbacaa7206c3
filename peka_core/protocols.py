"""Protocols: which spots the regression is fitted on, what is scored, and how PCC is pooled.

The same features score 0.3 or 0.7 depending on these choices. Therefore they travel together as one
named object, and every score carries its name.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from sklearn.model_selection import KFold

from .cohort import Cohort, Split
from .common.errors import PekaError
from .layout.tables import originals
from .recipe import mixes_patients

# first part of a split's name -> the column of obs whose values may not be on both sides
HELD_OUT = {"patients": "group", "sections": "sample"}


CHOICES = {  # the words that a field of `Protocol` may be
    "splits_from": ("shuffle", "cohort"),
    "pooling": ("pooled", "section"),
    "zeros": ("keep", "drop"),
}


class Scope(StrEnum):
    """Which spots the student behind a score was trained on."""

    NESTED = "nested"  # the training spots of the scored split
    ALL = "all"  # every spot, the scored ones too
    GIVEN = "given"  # unknown: the features come from outside
    NONE = "none"  # there was no alignment


@dataclass(frozen=True)
class Protocol:
    """One way to score features.

    Change one choice with `dataclasses.replace`, and give the result a name of its own. PekaError
    if one of the words is unknown (`CHOICES`).

    Attributes:
        splits_from: `shuffle` for shuffled folds over all spots, `cohort` for the cohort's splits.
        genes_from: who chooses the target genes:
            `all`: all spots, among the genes that every section measured;
            `train`: the training spots of the split, among the same genes;
            `file`: the cohort's own list, of genes that every section measured;
            `authors` (`genes.authors_genes`) or a tuple of names: any gene that some section
            measured. Such a gene is 0 in the sections that did not measure it.
        alphas: ridge penalties. One is fixed; of several, inner cross-validation chooses one. An
            empty tuple stands for HEST-Benchmark's rule, 100 / (components x genes).
        pooling: `pooled` for PCC over all test spots of a fold; `section` for PCC in each section,
            averaged over the sections of a patient, then over patients.
        drop_copies: whether copies of a section are left out of training and test.
        scope: the spots that the student is trained on, unless a caller asks for others.
        zeros: `drop` if a gene is fitted and scored only on spots with a non-zero count of it.
        target: what is predicted, a key of `tasks.TARGET_TRANSFORMS`.
        standardise: whether features are standardised before the PCA.
        gene_folds: whether each gene has folds of its own, as in the authors' code.
        inner_holdout: whether a fifth of each gene's training fold stays unused. The authors' code
            does this too.
        folds, seed: of the shuffled folds.
        min_spots: if zeros are dropped, a gene with fewer usable spots is skipped.
    """

    name: str
    splits_from: str
    genes_from: str | tuple[str, ...]
    alphas: tuple[float, ...]
    pooling: str
    drop_copies: bool
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

    def __post_init__(self) -> None:
        for field, words in CHOICES.items():
            if getattr(self, field) not in words:
                raise PekaError(
                    f"protocol {self.name}: {field} is {getattr(self, field)!r}; "
                    f"expected {' or '.join(words)}"
                )

    def splits(self, cohort: Cohort) -> list[Split]:
        """Training and test spots of a cohort, without copies if duplicates are merged.

        Raises:
            PekaError: the cohort has no splits, or a split has no spots on one side, or the same
                patient (or section, if it holds out sections) on both sides.
        """
        is_used = np.ones(len(cohort.obs), bool)
        if self.drop_copies:
            samples = cohort.obs.drop_duplicates("sample").set_index("sample")
            copies = originals(samples["duplicate_of"])  # sample id -> the section that it copies
            is_used = ~cohort.obs["sample"].isin(copies).to_numpy()
        if self.splits_from == "shuffle":
            spots, rows = np.arange(len(is_used)), np.flatnonzero(is_used)
            folds = KFold(self.folds, shuffle=True, random_state=self.seed).split(rows)
            masks = [[np.isin(spots, rows[side]) for side in fold] for fold in folds]
            return [Split(f"spots/{i}", train, test) for i, (train, test) in enumerate(masks)]
        if not cohort.splits:
            raise PekaError(
                f"{cohort.path}: protocol {self.name} uses the cohort's own splits, and there are "
                "none; expected splits/train_0.csv and splits/test_0.csv."
            )
        splits = [Split(s.name, s.train & is_used, s.test & is_used) for s in cohort.splits]
        for split in splits:
            where, names = f"{cohort.path}: split {split.name}", cohort.obs[HELD_OUT[split.scheme]]
            if shared := sorted(set(names[split.train]) & set(names[split.test])):
                raise PekaError(
                    f"{where} has {', '.join(map(str, shared))} in training and in test, although "
                    f"it holds out {split.scheme}. Correct splits/*.csv or samples.csv."
                )
            if not split.train.any() or not split.test.any():
                raise PekaError(
                    f"{where} has {split.train.sum()} training and {split.test.sum()} test spots; "
                    "expected at least one of each."
                )
        return splits


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # The paper as written (Methods). KFold's seed and the scaler are from the authors' code.
        Protocol(
            "peka_paper", "shuffle", "all", alphas=(1.0,), pooling="pooled", drop_copies=False,
            scope=Scope.ALL,
        ),
        # The authors' code (RunningStone/PEKA bf9c6f5), with rules that their text does not give.
        Protocol(
            "peka_official", "shuffle", "authors", alphas=(1.0,), pooling="pooled",
            drop_copies=False, scope=Scope.ALL, zeros="drop", target="log2_cp10k",
            standardise=False, gene_folds=True, inner_holdout=True, min_spots=322,
        ),
        # HEST-Benchmark (mahmoodlab/HEST afd42c3), on its own splits and genes.
        Protocol(
            "hest_bench", "cohort", "file", alphas=(), pooling="pooled", drop_copies=False,
            scope=Scope.GIVEN, target="ln_counts",
        ),
        # Ours: the score that a new patient's slide would get.
        Protocol(
            "strict", "cohort", "train", alphas=tuple(np.logspace(-1, 5, 13)), pooling="section",
            drop_copies=True, scope=Scope.NESTED,
        ),
    )
}  # fmt: skip


def protocol_with_split(name: str) -> Protocol:
    """The protocol with a split of this name: `peka_paper` (for `all` too), or else `strict`."""
    return PROTOCOLS["peka_paper" if mixes_patients(name) else "strict"]


def split_named(cohort: Cohort, name: str) -> Split:
    """A split by its name, without copies of sections if it is one of the cohort's own.

    The name `all` trains on every spot and tests none; `spots/i` is a fold of `peka_paper`.

    Raises:
        PekaError: the cohort has no such split.
    """
    if name == "all":
        n = len(cohort.obs)
        return Split("all", np.ones(n, bool), np.zeros(n, bool))
    for split in protocol_with_split(name).splits(cohort):
        if split.name == name:
            return split
    raise PekaError(
        f"{cohort.path}: no split {name!r}; this cohort has {[s.name for s in cohort.splits]}"
    )


def splits_to_align(
    cohort: Cohort, protocol: Protocol, splits: list[Split], scope: Scope
) -> list[Split]:
    """For each scored split, the split whose training spots the student is trained on.

    Raises:
        PekaError: scope is nested, and each gene has folds of its own.
    """
    if scope == Scope.ALL:
        return [split_named(cohort, "all")] * len(splits)
    if protocol.gene_folds:
        raise PekaError(
            f"protocol {protocol.name} gives each gene folds of its own, so every spot trains for "
            "some gene and no alignment can be nested; use scope all."
        )
    return splits
