"""Protocols: which spots fit the head, which are scored, for which genes, and how PCC is pooled.

The same features give 0.3 or 0.7 depending on these choices, so they travel as one named object, and a
score's name always carries it.
"""

from dataclasses import dataclass, replace

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.model_selection import KFold

from .cohort import Split, log_cp10k
from .files import PekaError

HELD_OUT = {"patients": "group", "sections": "sample"}  # scheme -> the column whose values a split must not share


@dataclass(frozen=True)
class Protocol:
    """One way to score features.

    Change one choice with `dataclasses.replace`, and give the result a name of its own.
    """

    name: str
    scheme: str  # "spots": shuffled folds over all spots; "cohort": the cohort's own held-out splits
    genes_from: str  # "all" spots or the split's "train" spots choose the target genes
    alphas: tuple[float, ...]  # ridge penalties: one is fixed, several are chosen from by inner cross-validation
    pooling: str  # PCC over all test spots of a fold ("pooled") or in each section ("section"), then patients
    merge_duplicates: bool  # leave copies of a section out, of training and of test
    scope: str  # default for the alignment: "all" spots, or "nested" in the split's training spots
    zeros: str = "keep"  # "drop": a gene is fitted and scored only where it was counted
    n_genes: int = 50
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
            raise PekaError(f"{cohort.path}: protocol {self.name} needs the cohort's own splits; "
                            "expected splits/train_0.csv and splits/test_0.csv.")
        splits = [Split(s.name, s.train & keep, s.test & keep) for s in cohort.splits]
        for split in splits:
            _check(cohort, split)
        return splits


PROTOCOLS = {
    # The paper as written (Methods; KFold seed and scaler from the authors' code and our reading, see 04).
    "peka_paper": Protocol("peka_paper", "spots", "all", alphas=(1.0,), pooling="pooled",
                           merge_duplicates=False, scope="all"),
    # What a new patient's slide would get.
    "strict": Protocol("strict", "cohort", "train", alphas=tuple(np.logspace(-1, 5, 13)), pooling="section",
                       merge_duplicates=True, scope="nested"),
}


@dataclass(frozen=True)
class Task:
    """What a split asks for, whatever the features are; rows are all n spots of the cohort."""

    split: Split  # train and test (n,), without the copies where the protocol merges duplicates
    genes: list[str]
    targets: np.ndarray  # (n, g) float32 log1p CP10K; NaN where the zero rule drops a spot
    gene_groups: list[str]  # var["group"] of each gene, "" where the cohort has none
    obs: pd.DataFrame  # the cohort's obs
    spatial: np.ndarray  # (n, 2) spot centres, px
    protocol: Protocol


def zeros_dropped(protocol: Protocol) -> Protocol:
    """The same protocol with the authors' zero rule, under a name that says so."""
    return replace(protocol, name=f"{protocol.name}_zeros_dropped", zeros="drop")


def make_tasks(cohort, protocol: Protocol) -> list[Task]:
    """The protocol's splits of a cohort, each with its target genes and targets.

    Raises:
        PekaError: as `Protocol.splits`.
    """
    splits = protocol.splits(cohort)
    adata = cohort.adata()
    log = log_cp10k(adata)  # (n, G) float32, made once for all splits
    everywhere, seen = np.ones(len(log), bool), {}
    tasks = []
    for split in splits:
        rows = everywhere if protocol.genes_from == "all" else split.train
        genes = variable_genes(log, adata, rows, protocol.n_genes, seen)
        tasks.append(_task(adata, log, split, genes, protocol))
    return tasks


def variable_genes(log, adata: anndata.AnnData, rows: np.ndarray, n_genes: int, seen: dict | None = None) -> list[str]:
    """The `n_genes` most variable genes over `rows (n,)` of `log (n, G)`, in the order of `adata.var_names`.

    scanpy's highly_variable_genes with flavor seurat and batch_key sample: genes by the number of sections in
    which they are variable, then by mean normalised dispersion. The step within a section depends on nothing else,
    so `seen` keeps its tables from one split to the next.
    """
    seen = {} if seen is None else seen
    samples = adata.obs["sample"].to_numpy()
    tables = []
    for sample in sorted(set(samples[rows])):
        here = np.flatnonzero(rows & (samples == sample))
        key = here.tobytes()
        if key not in seen:
            seen[key] = _section_table(log[here], adata.var_names, n_genes)
        tables.append(seen[key])
    table = pd.concat(tables).groupby(level=0).agg({"highly_variable": "sum", "dispersions_norm": "mean"})
    best = table.sort_values(["highly_variable", "dispersions_norm"], ascending=False).index[:n_genes]
    return list(adata.var_names[adata.var_names.isin(best)])


def _section_table(log, names, n_genes):
    """scanpy's table of one section; genes that it does not express count as 0, as in scanpy's batches."""
    expressed = log.any(0)
    section = anndata.AnnData(log[:, expressed], var=pd.DataFrame(index=names[expressed]))
    table = sc.pp.highly_variable_genes(section, n_top_genes=n_genes, flavor="seurat", inplace=False)
    return table[["highly_variable", "dispersions_norm"]].astype(float).reindex(names, fill_value=0)


def _task(adata, log, split, genes, protocol):
    columns = adata.var_names.get_indexer(genes)
    targets = log[:, columns].copy()  # (n, g)
    if protocol.zeros == "drop":
        targets[targets == 0] = np.nan
        usable = np.isfinite(targets[split.train | split.test]).sum(0)
        targets[:, usable < protocol.min_spots] = np.nan  # a gene without any target is skipped everywhere
    groups = adata.var["group"].astype(str).iloc[columns].tolist() if "group" in adata.var else [""] * len(genes)
    return Task(split, genes, targets, groups, adata.obs, np.asarray(adata.obsm["spatial"]), protocol)


def _copies(obs):
    """Rows of sections that are a copy of another section of this cohort."""
    return obs["duplicate_of"].isin(obs["sample"].unique()).to_numpy()


def _shuffled(keep, protocol):
    rows = np.flatnonzero(keep)
    folds = KFold(protocol.folds, shuffle=True, random_state=protocol.seed).split(rows)
    return [Split(f"spots/{i}", _mask(keep, rows[train]), _mask(keep, rows[test]))
            for i, (train, test) in enumerate(folds)]


def _mask(like, rows):
    mask = np.zeros(len(like), bool)
    mask[rows] = True
    return mask


def _check(cohort, split):
    labels = cohort.obs[HELD_OUT[split.scheme]].to_numpy()
    shared = sorted(set(labels[split.train]) & set(labels[split.test]))
    if shared:
        raise PekaError(f"{cohort.path}: split {split.name} has {', '.join(map(str, shared))} in training and in "
                        f"test; scheme {split.scheme} holds them out. Correct its splits/*.csv or samples.csv.")
    if not split.train.any() or not split.test.any():
        raise PekaError(f"{cohort.path}: split {split.name} has {split.train.sum()} training and "
                        f"{split.test.sum()} test spots; expected some on both sides.")
