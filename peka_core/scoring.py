"""`peka score`: anybody's embeddings of a HEST-Benchmark task directory, under any protocol.

Embeddings are read as HEST and TRIDENT write them, `<sample>.h5` with `embeddings (m, d)` and `barcodes (m, 1)`; `patches/`
and a profile are not needed.
"""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from .cohort import Cohort, open_cohort
from .cohort_files import barcodes_in, open_h5, unique
from .evaluation import evaluate
from .files import PekaError
from .protocols import PROTOCOLS, Protocol, make_tasks

SWITCHES = {  # --set NAME=VALUE -> field of the protocol and its value
    "mask_zeros": lambda on: {"zeros": "drop" if on else "keep"},
    "inner_holdout": lambda on: {"inner_holdout": bool(on)},
    "standardise": lambda on: {"standardise": bool(on)},
    "min_spots": lambda n: {"min_spots": int(n)},
    "folds": lambda n: {"folds": int(n)},
    "seed": lambda n: {"seed": int(n)},
    "alpha": lambda value: {"alphas": (float(value),)},
}


def score_embeddings(
    task_dir: str | Path, embeddings: str | Path, protocol: str = "strict", switches: dict | None = None
) -> dict:
    """Score given features on a task directory: its genes, and its splits where the protocol takes those.

    Args:
        task_dir: a directory in the HEST-Benchmark layout; `patches/` may be missing.
        embeddings: folder of `<sample>.h5`.
        protocol: a name in `PROTOCOLS`.
        switches: changes to the protocol by the names of `SWITCHES`.

    Returns:
        protocol, settings, scope (`given`), n_spots, mean, and splits: `{"0": {"mean": ..., "genes": {gene: pcc}}}`; means over
        genes, then splits; skipped genes and undefined values are left out.

    Raises:
        PekaError: unknown protocol or switch, missing or broken files, embeddings of unknown spots.
    """
    rules = with_switches(protocol, switches or {})
    cohort, features = with_embeddings(open_cohort(task_dir), Path(embeddings))
    splits = {}
    for i, task in enumerate(make_tasks(cohort, rules)):
        genes = evaluate(cohort, features, rules, [task]).genes.set_index("gene")["pcc"].dropna()
        splits[str(i)] = {"mean": float(genes.mean()), "genes": {name: float(pcc) for name, pcc in genes.items()}}
    means = [split["mean"] for split in splits.values() if np.isfinite(split["mean"])]
    if not means:
        raise PekaError(f"{task_dir}: no gene has a defined PCC under {protocol}: too few spots ({len(cohort)}), or constant features")
    return {
        "protocol": protocol, "settings": switches or {}, "scope": "given", "n_spots": len(cohort),
        "mean": float(np.mean(means)), "splits": splits,
    }  # fmt: skip


def with_switches(protocol: str, switches: dict) -> Protocol:
    """A protocol with its target genes from the task's own list, and some of its rules changed."""
    if protocol not in PROTOCOLS:
        raise PekaError(f"protocol {protocol!r} is unknown; there are {', '.join(PROTOCOLS)}")
    if unknown := set(switches) - set(SWITCHES):
        raise PekaError(f"--set {', '.join(sorted(unknown))}: unknown; a protocol has {', '.join(SWITCHES)}")
    base = PROTOCOLS[protocol]
    needs = {"inner_holdout": base.gene_folds, "folds": base.scheme == "spots", "seed": base.scheme == "spots"}
    if idle := [name for name in switches if not needs.get(name, True)]:
        raise PekaError(f"--set {', '.join(idle)}: protocol {protocol} has no such rule, so nothing would change")
    changes = {field: value for name, setting in switches.items() for field, value in SWITCHES[name](setting).items()}
    return replace(base, genes_from="file", **changes)


def with_embeddings(cohort: Cohort, folder: Path) -> tuple[Cohort, np.ndarray]:
    """The cohort's spots that have an embedding, and these `(n, d)` in the order of its spots; joined by barcode."""
    parts, kept = [], {}
    for section in cohort.sections:
        path = folder / f"{section.sample}.h5"
        with open_h5(path) as file:
            barcodes, values = _read(file, path)
        unknown = barcodes.difference(pd.Index(section.barcodes))
        if len(unknown):
            raise PekaError(f"{path}: {len(unknown)} of {len(barcodes)} barcodes have no counts in {section.h5ad.name} "
                            f"(first: {unknown[0]}); take both from the same release.")
        place = barcodes.get_indexer(pd.Index(section.barcodes))
        kept[section.sample] = np.flatnonzero(place >= 0)
        parts.append(values[place[place >= 0]])
    if len({part.shape[1] for part in parts}) > 1:
        raise PekaError(f"{folder}: embeddings of different lengths, {sorted({part.shape[1] for part in parts})}: use one encoder for all.")
    return cohort.restricted(kept), np.concatenate(parts)


def _read(file: h5py.File, path: Path) -> tuple[pd.Index, np.ndarray]:
    barcodes = barcodes_in(file)
    if "embeddings" not in file or barcodes is None:
        raise PekaError(f"{path}: expected the datasets `embeddings` and `barcodes`, found {sorted(file)}.")
    values = np.asarray(file["embeddings"], np.float32)
    if values.ndim != 2 or len(values) != len(barcodes):
        raise PekaError(f"{path}: embeddings {values.shape} for {len(barcodes)} barcodes; expected (m, d) and (m, 1).")
    return unique(barcodes, path, "barcode"), values
