"""What a reader has to know of a converted HEST-1k cohort before trusting a score: kept in source.json, and warned of."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ..cohort import Cohort
from ..tiles import TILE_UM_PER_PX, TileReader

LOOK_AT = 32  # tiles compared where one slide is said to be a copy of another
SAME = 5.0  # grey levels by which tiles of one section may differ, after another compression


def compare_genes(path: Path, genes: list[str], common: pd.Index) -> dict:
    """How the authors' list of target genes compares with ours, where the mirror has it."""
    if not path.is_file():
        return {"file": path.name, "found": False}
    theirs = json.loads(path.read_text(encoding="utf-8"))["genes"]
    return {
        "file": path.name, "found": True, "genes": len(theirs), "in_every_slide": int(common.isin(theirs).sum()),
        "shared_with_ours": len(set(theirs) & set(genes)),
    }  # fmt: skip


def compare_tiles(cohort: Cohort, sample: str, original: str) -> dict:
    """Some tiles of a slide beside those of the slide that it is said to copy, by barcode."""
    sections = [next(s for s in cohort.sections if s.sample == name) for name in (sample, original)]
    shared, *rows = np.intersect1d(*(s.barcodes.astype(str) for s in sections), return_indices=True)
    pick = np.unique(np.linspace(0, len(shared) - 1, min(LOOK_AT, len(shared))).astype(int))
    tiles = [TileReader([(s.patches, s.tile_rows)])[at[pick]].astype(int) for s, at in zip(sections, rows)]  # (m, 224, 224, 3)
    differ = np.abs(tiles[0] - tiles[1]).mean(axis=(1, 2, 3))  # (m,) grey levels
    return {
        "of": original, "shared_barcodes": len(shared), "tiles_compared": len(pick),
        "identical": int((differ == 0).sum()), "mean_difference": round(float(differ.mean()), 3) if len(pick) else None,
    }  # fmt: skip


def notes_on(cohort: Cohort, samples: pd.DataFrame, facts: dict, common: pd.Index, copies: dict) -> list[str]:
    """What a reader has to know before trusting a score."""
    notes = [f"{sample}: {note}" for sample, made in facts.items() for note in made["notes"]]
    coarse = samples.um_per_px[samples.um_per_px > TILE_UM_PER_PX]
    if len(coarse):
        scales = f"{coarse.min():.2f} to {coarse.max():.2f} um/px"
        notes.append(f"{len(coarse)} slides at {scales}: their tiles are up-sampled to 0.5 ({', '.join(coarse.index)})")
    if unknown := list(samples.index[samples.basis == "unknown"]):
        notes.append(
            f"{len(unknown)} slides of unknown patients count as one patient each, so a split may have one on both sides: "
            + ", ".join(unknown)
        )
    if samples.patient.nunique() == 1:
        notes.append("one patient: splits leave slides out, which says nothing about a new patient")
    return notes + narrow(cohort, common) + _no_copies(copies)


def _no_copies(copies: dict) -> list[str]:
    """Slides that are said to be copies and do not look like it."""
    return [
        f"{sample}: said to copy {found['of']}, but of {found['shared_barcodes']} spots in common the tiles differ by "
        f"{found['mean_difference']} grey levels"
        for sample, found in copies.items()
        if found["mean_difference"] is None or found["mean_difference"] > SAME
    ]


def narrow(cohort: Cohort, common: pd.Index) -> list[str]:
    """Slides without which more than twice as many genes would be in common."""
    times = pd.Series(np.concatenate([s.genes for s in cohort.sections])).value_counts()
    almost = times.index[times == len(cohort.sections) - 1]
    found = {s.sample: len(common) + int((~almost.isin(s.genes)).sum()) for s in cohort.sections}
    return [
        f"{sample}: without it {genes} genes would be in common instead of {len(common)}: leave_out: [{sample}]"
        for sample, genes in found.items()
        if len(cohort.sections) > 1 and genes > 2 * len(common)
    ]
