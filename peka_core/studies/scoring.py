"""`peka score`: anybody's embeddings of a HEST-Benchmark task directory, under any protocol.

Embeddings are read as HEST and TRIDENT write them, one `<sample>.h5` a section. HEST: `embeddings (m, d)` and `barcodes (m, 1)`;
neither `patches/` nor a profile is needed. TRIDENT: `features (m, d)` and `coords (m, 2)`, without barcodes; these are joined with
`patches/<sample>.h5` by the tile's coordinates, which both files have.
"""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from ..cohort import Cohort, open_cohort
from ..errors import PekaError
from ..evaluation import Evaluation, evaluate
from ..layout.hdf5 import open_h5, reading
from ..layout.sections import Section, barcodes_in, tile_barcodes, tile_coords, unique
from ..layout.tables import originals
from ..protocols import PROTOCOLS, Protocol, Task, make_tasks
from ..recipe import FROM_0, FROM_2
from ..values import fitted, within

SWITCHES = {  # --set NAME=VALUE -> field of the protocol and its value
    "mask_zeros": lambda on: {"zeros": "drop" if on else "keep"},
    "inner_holdout": lambda on: {"inner_holdout": on},
    "standardise": lambda on: {"standardise": on},
    "min_spots": lambda n: {"min_spots": n},
    "folds": lambda n: {"folds": n},
    "seed": lambda n: {"seed": n},
    "alpha": lambda value: {"alphas": (value,)},
}
KINDS = {
    "mask_zeros": bool,
    "inner_holdout": bool,
    "standardise": bool,
    "min_spots": int,
    "folds": int,
    "seed": int,
    "alpha": float,
}
LIMITS = {"min_spots": FROM_0, "folds": FROM_2, "seed": FROM_0, "alpha": FROM_0}


def score_embeddings(
    task_dir: str | Path,
    embeddings: str | Path,
    protocol: str = "strict",
    switches: dict | None = None,
) -> dict:
    """Score given features on a task directory: its genes, and its splits where the protocol takes those.

    Args:
        task_dir: a directory in the HEST-Benchmark layout; `patches/` may be missing where embeddings have barcodes.
        embeddings: folder of `<sample>.h5`.
        protocol: a name in `PROTOCOLS`.
        switches: changes to the protocol by the names of `SWITCHES`.

    Returns:
        protocol, settings, scope (`given`), n_spots (those with an embedding), mean, and splits: `{"0": {"mean": ..., "genes":
        {gene: pcc}, "n_genes": asked for, "undefined_sections": [...]}}`; means over genes, then splits; skipped genes and
        undefined values are left out, and the mean of a split without any is None. What the score is not of: n_spots_in_cohort,
        incomplete `{sample: [with embedding, spots]}`, n_splits, n_splits_scored, and copies `{sample: {"of": ..., "n_spots":
        ...}}`, the sections that the protocol leaves out.

    Raises:
        PekaError: unknown protocol or switch, missing or broken files, embeddings of unknown spots.
    """
    rules = with_switches(protocol, switches or {})
    whole = open_cohort(task_dir)
    cohort, features = with_embeddings(whole, Path(embeddings))
    splits = {}
    for i, task in enumerate(make_tasks(cohort, rules)):
        splits[str(i)] = _score(evaluate(cohort, features, rules, [task]), task)
    means = [split["mean"] for split in splits.values() if split["mean"] is not None]
    if not means:
        raise PekaError(
            f"{task_dir}: no gene has a defined PCC under {protocol}: too few spots ({len(cohort)}), or constant features"
        )
    return {
        "protocol": protocol, "settings": switches or {}, "scope": "given", "n_spots": len(cohort),
        "mean": float(np.mean(means)), "splits": splits, "n_splits": len(splits), "n_splits_scored": len(means),
        "n_spots_in_cohort": len(whole), "incomplete": _incomplete(whole, cohort), "copies": _copies(cohort, rules),
    }  # fmt: skip


def _score(found: Evaluation, task: Task) -> dict:
    """One split: mean PCC, that of each gene, how many were asked for, and, where each section has its own PCC, those without."""
    genes = found.genes.set_index("gene")["pcc"].dropna()
    table = found.scores.query(
        "pooling == @task.protocol.pooling and alpha == 'chosen' and genes == 'all'"
    )
    return {
        "mean": float(genes.mean()) if len(genes) else None, "genes": {name: float(pcc) for name, pcc in genes.items()},
        "n_genes": len(task.genes), "undefined_sections": table.section[table.pcc.isna() & (table.section != "")].tolist(),
    }  # fmt: skip


def _incomplete(whole: Cohort, cohort: Cohort) -> dict[str, list[int]]:
    """Spots with an embedding and all spots, of each section where these differ."""
    sizes = {
        s.sample: [len(s.barcodes), len(all_of.barcodes)]
        for s, all_of in zip(cohort.sections, whole.sections, strict=True)
    }
    return {sample: [some, every] for sample, (some, every) in sizes.items() if some < every}


def _copies(cohort: Cohort, rules: Protocol) -> dict[str, dict]:
    """The sections that the protocol leaves out as copies, whose copy each is, and how many spots it has."""
    spots = {s.sample: len(s.barcodes) for s in cohort.sections}
    here = cohort.samples.duplicate_of[[spots[sample] > 0 for sample in cohort.samples.index]]
    found = originals(here) if rules.merge_duplicates else {}
    return {
        sample: {"of": original, "n_spots": spots[sample]} for sample, original in found.items()
    }


def in_words(scores: dict) -> list[str]:
    """The lines that `peka score` prints: the mean of each split, what the score is not of, and the mean over the splits."""
    lines = [f"split {split}: {_of_split(found)}" for split, found in scores["splits"].items()]
    if scores["incomplete"]:
        parts = ", ".join(
            f"{sample} {some} of {every}" for sample, (some, every) in scores["incomplete"].items()
        )
        lines.append(
            f"{scores['n_spots']} of {scores['n_spots_in_cohort']} spots have an embedding ({parts})"
        )
    if scores["n_splits_scored"] < scores["n_splits"]:
        have = "has" if scores["n_splits_scored"] == 1 else "have"
        lines.append(
            f"{scores['n_splits_scored']} of {scores['n_splits']} splits {have} a score; the mean is over these alone"
        )
    for sample, copy in scores["copies"].items():
        lines.append(
            f"{sample} ({copy['n_spots']} spots) is a copy of {copy['of']} and is left out"
        )
    changed = f" {scores['settings']}" if scores["settings"] else ""
    return [
        *lines,
        f"{scores['protocol']}{changed}, scope given, {scores['n_spots']} spots: PCC {scores['mean']:.4f}",
    ]


def _of_split(found: dict) -> str:
    """`PCC 0.5763, 10 genes`, or what there is instead."""
    some, every = len(found["genes"]), found["n_genes"]
    genes = f"{some} genes" if some == every else f"{some} of {every} genes"
    text = f"PCC {found['mean']:.4f}, {genes}" if some else f"no PCC, {genes}"
    return text + (
        f"; none in {', '.join(found['undefined_sections'])}"
        if some and found["undefined_sections"]
        else ""
    )


def with_switches(protocol: str, switches: dict) -> Protocol:
    """A protocol with its target genes from the task's own list, and some of its rules changed."""
    if protocol not in PROTOCOLS:
        raise PekaError(f"protocol {protocol!r} is unknown; there are {', '.join(PROTOCOLS)}")
    if unknown := set(switches) - set(SWITCHES):
        raise PekaError(
            f"--set {', '.join(sorted(unknown))}: unknown; a protocol has {', '.join(SWITCHES)}"
        )
    switches = {
        name: within(fitted(value, KINDS[name], f"--set {name}"), LIMITS.get(name), f"--set {name}")
        for name, value in switches.items()
    }
    base = PROTOCOLS[protocol]
    needs = {
        "inner_holdout": base.gene_folds,
        "folds": base.scheme == "spots",
        "seed": base.scheme == "spots",
    }
    if idle := [name for name in switches if not needs.get(name, True)]:
        raise PekaError(
            f"--set {', '.join(idle)}: protocol {protocol} has no such rule, so nothing would change"
        )
    changes = {
        field: value
        for name, setting in switches.items()
        for field, value in SWITCHES[name](setting).items()
    }
    return replace(base, genes_from="file", **changes)


def with_embeddings(cohort: Cohort, folder: Path) -> tuple[Cohort, np.ndarray]:
    """The cohort's spots that have an embedding, and these `(n, d)` in the order of its spots; joined by barcode."""
    parts, kept = [], {}
    for section in cohort.sections:
        path = folder / f"{section.sample}.h5"
        if not path.is_file():
            raise PekaError(
                f"{path}: missing; expected the embeddings of section {section.sample}. Embed it, or name another folder."
            )
        with open_h5(path) as file:
            barcodes, values = _read(file, path, section)
        unknown = barcodes.difference(pd.Index(section.barcodes))
        if len(unknown):
            raise PekaError(
                f"{path}: {len(unknown)} of {len(barcodes)} barcodes have no counts in {section.h5ad.name} "
                f"(first: {unknown[0]}); take both from the same release."
            )
        place = barcodes.get_indexer(pd.Index(section.barcodes))
        kept[section.sample] = np.flatnonzero(place >= 0)
        parts.append(values[place[place >= 0]])
    if len({part.shape[1] for part in parts}) > 1:
        raise PekaError(
            f"{folder}: embeddings of different lengths, {sorted({part.shape[1] for part in parts})}: use one encoder for all."
        )
    return cohort.restricted(kept), np.concatenate(parts)


def _read(file: h5py.File, path: Path, section: Section) -> tuple[pd.Index, np.ndarray]:
    """Barcodes (m,) and embeddings (m, d) float32 of an open file, in either form."""
    name = next((name for name in ("embeddings", "features") if name in file), None)
    barcodes = barcodes_in(file)
    if name is None or (barcodes is None and "coords" not in file):
        raise PekaError(
            f"{path}: expected the datasets `embeddings` and `barcodes` (HEST), or `features` and `coords` (TRIDENT), found "
            f"{sorted(file)}. Rename them, or write them again."
        )
    with reading(file, name) as stored:
        values = np.asarray(stored, np.float32)
    values = (
        values[0] if values.ndim == 3 and len(values) == 1 else values
    )  # (1, m, d), as for a batch of one slide
    barcodes = _barcodes_at(file, path, section) if barcodes is None else barcodes
    if values.ndim != 2 or len(values) != len(barcodes):
        raise PekaError(
            f"{path}: {name} {values.shape} for {len(barcodes)} barcodes; expected (m, d) and (m, 1)."
        )
    return unique(barcodes, path, "barcode"), values


def _barcodes_at(file: h5py.File, path: Path, section: Section) -> pd.Index:
    """Barcodes (m,) of the tiles at the `coords` of an open file, by the coordinates in the section's patches file."""
    if section.patches is None:
        raise PekaError(
            f"{path}: has coords and no barcodes; expected {section.sample}.h5 in patches/, which says whose tile is where. "
            "Put patches/ into the task directory, or add the data set `barcodes` to the embeddings."
        )
    with reading(file, "coords") as stored:
        asked = pd.MultiIndex.from_arrays(
            np.asarray(stored, dtype=float).reshape(-1, 2).T
        )  # (m,) of (x, y)
    with open_h5(section.patches) as tiles:
        barcodes, places = (
            tile_barcodes(tiles, section.patches),
            tile_coords(tiles, section.patches),
        )
    known = pd.MultiIndex.from_arrays(places.T)
    unique(known, section.patches, "coord")
    place = known.get_indexer(asked)  # (m,) row in patches
    if (place < 0).any():
        raise PekaError(
            f"{path}: {(place < 0).sum()} of {len(place)} coords are not those of a tile in {section.patches} (first: "
            f"{asked[place < 0][0]}); expected features of these tiles, at the same coordinates. Embed the tiles of that file."
        )
    return barcodes[place]
