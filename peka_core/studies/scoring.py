"""`peka score`: embeddings of a HEST-Benchmark task directory from anywhere, under any protocol.

There is one `<sample>.h5` for each section, as HEST or TRIDENT writes it. HEST's has `embeddings
(m, d)` and `barcodes (m, 1)`; it needs no `patches/`. TRIDENT's has `features (m, d)` and `coords
(m, 2)` and no barcodes; it is joined with `patches/<sample>.h5` by the coordinates in both files.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from ..cohort import Cohort, open_cohort
from ..common.errors import PekaError
from ..common.typed_values import fitted, within
from ..evaluation import Evaluation, evaluate
from ..layout.hdf5 import open_h5, reading
from ..layout.sections import Section, barcodes_in, tile_barcodes, tile_coords, unique
from ..layout.tables import originals
from ..protocols import PROTOCOLS, Protocol
from ..recipe import FROM_0, FROM_2
from ..tasks import Task, make_tasks

SWITCHES = {  # --set NAME=VALUE -> type of the value, its limits, and the protocol's field
    "mask_zeros": (bool, None, "zeros"),
    "inner_holdout": (bool, None, "inner_holdout"),
    "standardise": (bool, None, "standardise"),
    "min_spots": (int, FROM_0, "min_spots"),
    "folds": (int, FROM_2, "folds"),
    "seed": (int, FROM_0, "seed"),
    "alpha": (float, FROM_0, "alphas"),
}


def score_embeddings(
    task_dir: str | Path,
    embeddings: str | Path,
    protocol: str = "strict",
    switches: dict | None = None,
) -> dict[str, Any]:
    """Score given features on the genes of a task directory, and on its splits or shuffled ones.

    Args:
        task_dir: a directory in the HEST-Benchmark layout; `patches/` may be missing if the
            embeddings have barcodes.
        embeddings: folder of `<sample>.h5`.
        protocol: a name in `PROTOCOLS`.
        switches: changes to the protocol by the names of `SWITCHES`.

    Returns:
        protocol, settings, scope: what was scored; scope is `given`.
        splits: `{"0": {"mean": ..., "genes": {gene: pcc}, "n_genes": ..., "undefined_sections":
            [...]}}`. The mean leaves out skipped genes and undefined values; it is None if no
            value is left.
        mean, n_splits_scored, n_splits: mean over the splits that have a mean, and their number.
        n_spots, n_spots_in_cohort: number of spots with an embedding, and of all spots.
        incomplete: sections where these differ, `{sample: [with embedding, all]}`.
        copies: sections that the protocol leaves out, `{sample: {"of": ..., "n_spots": ...}}`.

    Raises:
        PekaError: the protocol or a switch is unknown, files are missing or broken, or embeddings
            are of unknown spots.
    """
    rules = with_switches(protocol, switches or {})
    whole = open_cohort(task_dir)
    cohort, features = with_embeddings(whole, Path(embeddings))
    splits = {}
    for i, task in enumerate(make_tasks(cohort, rules)):
        splits[str(i)] = _of_split(evaluate(cohort, features, rules, [task]), task)
    means = [split["mean"] for split in splits.values() if split["mean"] is not None]
    if not means:
        raise PekaError(
            f"{task_dir}: no gene has a defined PCC under {protocol}. There are too few spots "
            f"({len(cohort)}), or the features are constant."
        )
    spots = {section.sample: len(section.barcodes) for section in cohort.sections}
    every = {section.sample: len(section.barcodes) for section in whole.sections}
    here = cohort.samples["duplicate_of"][[spots[sample] > 0 for sample in cohort.samples.index]]
    copies = originals(here) if rules.drop_copies else {}
    return {
        "protocol": protocol, "settings": switches or {}, "scope": "given", "n_spots": len(cohort),
        "mean": float(np.mean(means)), "splits": splits, "n_splits": len(splits),
        "n_splits_scored": len(means), "n_spots_in_cohort": len(whole),
        "incomplete": {name: [n, every[name]] for name, n in spots.items() if n < every[name]},
        "copies": {name: {"of": of, "n_spots": spots[name]} for name, of in copies.items()},
    }  # fmt: skip


def _of_split(result: Evaluation, task: Task) -> dict[str, Any]:
    """What `score_embeddings` returns of one split."""
    genes = result.genes.set_index("gene")["pcc"].dropna()
    own = "pooling == @task.protocol.pooling and alpha == 'chosen' and genes == 'all'"
    rows = result.scores.query(own)
    undefined = rows["section"][rows["pcc"].isna() & (rows["section"] != "")]
    return {
        "mean": float(genes.mean()) if len(genes) else None,
        "genes": {name: float(pcc) for name, pcc in genes.items()},
        "n_genes": len(task.genes),
        "undefined_sections": undefined.tolist(),
    }


def in_words(scores: dict[str, Any]) -> list[str]:
    """The lines that `peka score` prints: each split, what is left out, and the mean."""
    lines = []
    for name, split in scores["splits"].items():
        n, asked, sections = len(split["genes"]), split["n_genes"], split["undefined_sections"]
        genes = f"{n} genes" if n == asked else f"{n} of {asked} genes"
        line = f"split {name}: " + (f"PCC {split['mean']:.4f}, " if n else "no PCC, ") + genes
        lines.append(line + (f"; none in {', '.join(sections)}" if n and sections else ""))
    if incomplete := scores["incomplete"]:
        parts = ", ".join(f"{sample} {n} of {every}" for sample, (n, every) in incomplete.items())
        n, every = scores["n_spots"], scores["n_spots_in_cohort"]
        lines.append(f"{n} of {every} spots have an embedding ({parts})")
    if (n := scores["n_splits_scored"]) < (every := scores["n_splits"]):
        lines.append(f"the mean is over the {n} of {every} splits that have a score")
    for sample, copy in scores["copies"].items():
        spots = copy["n_spots"]
        lines.append(f"{sample} ({spots} spots) is a copy of {copy['of']} and is left out")
    changed = f" {scores['settings']}" if scores["settings"] else ""
    lines.append(
        f"{scores['protocol']}{changed}, scope given, {scores['n_spots']} spots: "
        f"PCC {scores['mean']:.4f}"
    )
    return lines


def with_switches(protocol: str, switches: dict) -> Protocol:
    """A protocol with its target genes from the task's own list, and some of its rules changed."""
    if protocol not in PROTOCOLS:
        raise PekaError(f"protocol {protocol!r} is unknown; there are {', '.join(PROTOCOLS)}.")
    if unknown := set(switches) - set(SWITCHES):
        raise PekaError(
            f"--set {', '.join(sorted(unknown))}: there is no such rule; rules that can be set are "
            f"{', '.join(SWITCHES)}."
        )
    base, changes = PROTOCOLS[protocol], {}
    unused = {"inner_holdout": not base.gene_folds} | dict.fromkeys(
        ("folds", "seed"), base.splits_from != "shuffle"
    )
    for name, value in switches.items():
        kind, limits, rule = SWITCHES[name]
        value = within(fitted(value, kind, f"--set {name}"), limits, f"--set {name}")
        if unused.get(name):
            raise PekaError(f"--set {name}: protocol {protocol} does not use this rule.")
        as_rule = {"zeros": "drop" if value else "keep", "alphas": (value,)}
        changes[rule] = as_rule.get(rule, value)
    return replace(base, genes_from="file", **changes)


def with_embeddings(cohort: Cohort, folder: Path) -> tuple[Cohort, np.ndarray]:
    """The spots of a cohort that have an embedding, and these `(n, d)`, joined by barcode."""
    parts, kept = [], {}
    for section in cohort.sections:
        path = folder / f"{section.sample}.h5"
        if not path.is_file():
            raise PekaError(
                f"{path} is missing; expected the embeddings of section {section.sample}. Embed "
                "it, or name another folder."
            )
        with open_h5(path) as file:
            barcodes, values = _read(file, path, section)
        unknown = barcodes.difference(pd.Index(section.barcodes))
        if len(unknown):
            raise PekaError(
                f"{path}: {len(unknown)} of {len(barcodes)} barcodes have no counts in "
                f"{section.h5ad.name} (the first is {unknown[0]}). Take both from the same release."
            )
        place = barcodes.get_indexer(pd.Index(section.barcodes))
        kept[section.sample] = np.flatnonzero(place >= 0)
        parts.append(values[place[place >= 0]])
    lengths = {part.shape[1] for part in parts}
    if len(lengths) > 1:
        found = sorted(lengths)
        raise PekaError(f"{folder}: embeddings have several lengths, {found}. Use one encoder.")
    return cohort.restricted(kept), np.concatenate(parts)


def _read(file: h5py.File, path: Path, section: Section) -> tuple[pd.Index, np.ndarray]:
    """Barcodes (m,) and embeddings (m, d) float32 of an open file, in either form."""
    name = next((name for name in ("embeddings", "features") if name in file), None)
    barcodes = barcodes_in(file)
    if name is None or (barcodes is None and "coords" not in file):
        raise PekaError(
            f"{path} has the data sets {sorted(file)}; expected `embeddings` and `barcodes` (HEST) "
            "or `features` and `coords` (TRIDENT). Rename them, or write them again."
        )
    with reading(file, name) as stored:
        values = np.asarray(stored, np.float32)
    values = values[0] if values.ndim == 3 and len(values) == 1 else values  # a batch of one slide
    barcodes = _barcodes_at(file, path, section) if barcodes is None else barcodes
    if values.ndim != 2 or len(values) != len(barcodes):
        raise PekaError(
            f"{path}: {name} has the shape {values.shape} for {len(barcodes)} barcodes; expected "
            "(m, d) and (m, 1)."
        )
    return unique(barcodes, path, "barcode"), values


def _barcodes_at(file: h5py.File, path: Path, section: Section) -> pd.Index:
    """Barcodes (m,) of the tiles at the `coords` of an open file, from the patches file."""
    if section.patches is None:
        raise PekaError(
            f"{path} has coords and no barcodes; patches/{section.sample}.h5 has the barcode at "
            "each place. Put patches/ into the task directory, or add `barcodes` to this file."
        )
    with reading(file, "coords") as stored:
        asked = pd.MultiIndex.from_arrays(np.asarray(stored, dtype=float).reshape(-1, 2).T)
    with open_h5(section.patches) as tiles:
        barcodes = tile_barcodes(tiles, section.patches)
        coords = pd.MultiIndex.from_arrays(tile_coords(tiles, section.patches).T)
    unique(coords, section.patches, "coord")
    row = coords.get_indexer(asked)  # (m,) row of each asked place in patches
    if (row < 0).any():
        raise PekaError(
            f"{path}: {(row < 0).sum()} of {len(row)} coords belong to no tile of "
            f"{section.patches} (the first is {asked[row < 0][0]}). Embed the tiles of that file."
        )
    return barcodes[row]
