"""HEST-1k (Jaume et al. 2024): the paper's four cohorts, Visium slides of four organs.

A slide's files are linked into the cohort directory and stay as they are. Splits, samples.csv and
target genes are ours. A file is rewritten only where a cohort cannot read it: a copy of the h5ad
where gene names are Ensembl ids or occur twice, and tiles of 256 px, which are cut again where the
slide's image is available.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from ..cohort import Cohort, open_cohort, write_cohort_tables
from ..common.errors import PekaError
from ..common.files import sha256
from ..genes import top_genes
from ..layout.duplicates import compare_tiles
from ..layout.gene_columns import joined_genes
from ..layout.patches import TILE_UM_PER_PX
from . import building, hest_files
from .hest_files import fetch_slides
from .hest_index import (
    COHORTS,
    authors_list,
    counts_table,
    groups,
    index_path,
    index_place,
    read_slides,
    rules_of,
    slides,
)
from .hest_slide import convert_slide, symbols_of_ensembl

__all__ = [
    "COHORTS",
    "build",
    "counts_table",
    "fetch",
    "groups",
    "index_place",
    "make_splits",
    "slides",
]

RECIPE = 1  # raise it when the same options would give another cohort
N_GENES = 50
LOOK_AT = 32  # tiles compared where one slide is said to be a copy of another
SAME = 5.0  # grey levels by which tiles of one section may differ, after another compression


def build(
    path: str | Path,
    cohort: str = "breast",
    leave_out: Iterable[str] = (),
    folds: int = 6,
    unknown: str = "slide",
    wsis: bool = False,
    index: str = "",
    index_sha256: str = "",
    counts: tuple[int, int] | None = None,
) -> Path:
    """Convert the slides of a cohort into a cohort directory, by links.

    A finished cohort with the same options is left alone; a half-built one is completed.

    Args:
        path: cohort directory.
        cohort: a name in `COHORTS`.
        leave_out: ids of slides to leave out, such as TENX23, whose panel shares few genes with the
            others.
        folds: number of held-out splits, at most one a patient, because patients stay whole.
        unknown: how slides of unknown patients are grouped, by `slide` or `study`; see
            `hest_index.groups`.
        wsis: fetch the whole slide images too, from which tiles of 256 px are cut again. This
            changes no cohort without such tiles.
        index: another index, with `index_sha256` and `counts`; see `hest_index.slides`.

    Raises:
        PekaError: as `slides` and `fetch`; or slides share no genes, tiles are not 224 px, or the
            directory was built by another source.
    """
    path, place = Path(path), index_path(index, index_sha256)
    table = without(read_slides(place, cohort, counts), leave_out)
    whose = groups(table, unknown)
    options = {
        "source": "hest",
        "recipe": RECIPE,
        "cohort": cohort,
        "index_sha256": sha256(place),
        "sections": list(table.index),
        "folds": int(folds),
        "unknown": unknown,
        "groups_sha256": hashlib.sha256(whose.to_csv().encode()).hexdigest(),
    }
    if building.is_built(path, options):
        return path
    files = fetch_slides(table, wsis)
    facts, symbols = building.claim(path, options), symbols_of_ensembl(files)
    for sample, row in table.iterrows():
        if sample not in facts or not building.has_section(path, sample):
            facts[sample] = convert_slide(path, sample, files[sample], row, symbols)
            building.save_facts(path, options, facts)
    facts = {sample: facts[sample] for sample in table.index}
    table = table.join(whose, lsuffix="_in_index")
    more = _write_tables(path, table, facts, int(folds), cohort)
    building.mark_built(path, options, facts, **more)
    return path


def fetch(
    cohort: str = "breast",
    dry_run: bool = False,
    wsis: bool = False,
    leave_out: Iterable[str] = (),
    index: str = "",
    index_sha256: str = "",
    counts: tuple[int, int] | None = None,
) -> dict[str, dict[str, Path]]:
    """Download (or find in PEKA_MIRROR) and verify the files of a cohort; arguments as `build`.

    With `dry_run` the files and their sizes are only listed.

    Returns:
        paths by slide and folder; empty where a dry run finds no index that names the slides.
    """
    place = index_path(index, index_sha256, dry_run)
    if dry_run and not place.exists():
        number = f"{rules_of(cohort).slides} slides, {rules_of(cohort).spots} spots"
        print(f"{cohort}: {number}; names and sizes are known once the index is here")
        return {}
    return fetch_slides(without(read_slides(place, cohort, counts), leave_out), wsis, dry_run)


def preflight(
    cohort: str = "breast",
    wsis: bool = False,
    leave_out: Iterable[str] = (),
    index: str = "",
    index_sha256: str = "",
    counts: tuple[int, int] | None = None,
) -> None:
    """Refuse a cohort whose slides are missing and cannot be downloaded; arguments as `fetch`."""
    # without an index nothing is known of the slides yet
    here = index or os.environ.get("PEKA_MIRROR") or index_place().exists()
    hest_files.preflight(
        without(slides(cohort, index, index_sha256, counts), leave_out) if here else None, wsis
    )


def without(table: pd.DataFrame, leave_out: Iterable[str] | str) -> pd.DataFrame:
    """Rows of `slides` without some ids; PekaError where one is none of them."""
    ids = leave_out.replace(",", " ").split() if isinstance(leave_out, str) else leave_out
    if unknown := sorted(set(ids) - set(table.index)):
        known = ", ".join(table.index)
        raise PekaError(f"hest: leave_out names {unknown}; expected some of {known}.")
    return table.drop(index=sorted(set(ids)))


# ---- tables -----------------------------------------------------------------------------------


def _write_tables(
    path: Path, table: pd.DataFrame, facts: dict[str, dict], folds: int, name: str
) -> dict:
    """Write the tables, and return what source.json keeps.

    Genes and splits come last, because they need the opened cohort.
    """
    samples = _samples(table, facts)
    write_cohort_tables(path, samples, [], [])
    cohort = open_cohort(path)
    spots = {sample: made["spots"] for sample, made in facts.items()}
    common = joined_genes([section.genes for section in cohort.sections])
    if len(common) < N_GENES:
        number = f"{path}: {len(common)} genes are measured in every slide"
        what = f"{number}; expected {N_GENES} or more. Leave slides out"
        raise PekaError("; ".join([what, *_narrow(cohort, common)]))
    genes = top_genes(cohort, N_GENES)
    write_cohort_tables(path, samples, make_splits(samples, spots, folds), genes)
    named = samples.duplicate_of[samples.duplicate_of != ""]
    copies = {s: compare_tiles(cohort, s, original, LOOK_AT) for s, original in named.items()}
    notes = _notes(cohort, samples, facts, common, copies)
    for note in notes:
        warnings.warn(note, stacklevel=3)
    kept = {s.sample: f"{len(common)} of {len(s.genes)}" for s in cohort.sections}
    return {
        "genes_in_common": len(common),
        "kept_of_each": kept,
        "authors_genes": _compare_genes(name, genes, common),
        "copies": copies,
        "notes": notes,
    }


def _samples(table: pd.DataFrame, facts: dict[str, dict]) -> pd.DataFrame:
    """samples.csv from index and groups."""
    # the index's name of a column -> ours
    names = {"disease_state": "disease", "st_technology": "technology", "study_link": "source"}
    kept = ["patient", "block", "duplicate_of", "organ", "um_per_px", "license", "evidence"]
    samples = table[[*kept, "basis", *names]].rename(columns=names)
    samples["license"] = (
        "CC BY-NC-SA 4.0 as part of HEST-1k; of the study: "
        + samples.license.replace("", "not stated")
    )
    links = samples.source.where(samples.source != "", table.download_page_link1)
    samples["source"] = links.where(links != "", table.dataset_title)
    samples["tiles_sha256"] = [facts[sample]["tiles_sha256"] for sample in samples.index]
    return samples


def make_splits(
    samples: pd.DataFrame, spots: dict[str, int], folds: int
) -> list[tuple[list[str], list[str]]]:
    """(training, test) slides of each split, the same on every machine.

    Patients stay whole, and the folds have about the same number of spots. If there is one patient,
    the splits hold out slides instead of patients.

    Args:
        samples: column patient, index sample_id.
        spots: number of spots of each slide.
        folds: number of splits, at most one for each patient.
    """
    group = samples.patient if samples.patient.nunique() > 1 else samples.index.to_series()
    size = pd.Series(spots).groupby(group).sum()
    names = sorted(size.index, key=lambda name: (-size[name], name))
    folds = min(folds, len(names))
    load, fold = [0] * folds, {}
    for name in names:  # the largest first, into the fold with the fewest spots so far
        fold[name] = load.index(min(load))
        load[fold[name]] += size[name]
    if folds < 2:
        return []
    parts = [[s for s in samples.index if fold[group[s]] == i] for i in range(folds)]
    return [([s for s in samples.index if s not in part], part) for part in parts]


# ---- notes for readers: kept in source.json, and given as warnings ------------------------------


def _compare_genes(cohort: str, genes: list[str], common: pd.Index) -> dict:
    """Compare the authors' list of target genes with ours, if the mirror has it."""
    file, theirs = rules_of(cohort).authors_genes, authors_list(cohort)
    if not theirs:
        return {"file": file, "found": False}
    return {
        "file": file,
        "found": True,
        "genes": len(theirs),
        "in_every_slide": int(common.isin(theirs).sum()),
        "shared_with_ours": len(set(theirs) & set(genes)),
    }


def _notes(
    cohort: Cohort, samples: pd.DataFrame, facts: dict, common: pd.Index, copies: dict
) -> list[str]:
    """What a reader has to know before trusting a score."""
    notes = [f"{sample}: {note}" for sample, made in facts.items() for note in made["notes"]]
    coarse = samples.um_per_px[samples.um_per_px > TILE_UM_PER_PX]
    if len(coarse):
        scales = f"{coarse.min():.2f} to {coarse.max():.2f} um/px"
        names = ", ".join(coarse.index)
        notes.append(f"{len(coarse)} slides at {scales}: tiles are up-sampled to 0.5 ({names})")
    if unknown := list(samples.index[samples.basis == "unknown"]):
        notes.append(
            f"{len(unknown)} slides of unknown patients count as one patient each, so a patient "
            f"may be on both sides of a split: {', '.join(unknown)}"
        )
    if samples.patient.nunique() == 1:
        notes.append("one patient: splits leave slides out, which says nothing about a new patient")
    notes += _narrow(cohort, common)
    for sample, pair in copies.items():
        if pair["mean_difference"] is None or pair["mean_difference"] > SAME:
            notes.append(
                f"{sample}: listed as a copy of {pair['of']}, but of {pair['shared_barcodes']} "
                f"spots in common the tiles differ by {pair['mean_difference']} grey levels"
            )
    return notes


def _narrow(cohort: Cohort, common: pd.Index) -> list[str]:
    """Notes about slides without which the others share more than twice as many genes."""
    times = pd.Series(np.concatenate([s.genes for s in cohort.sections])).value_counts()
    almost = times.index[times == len(cohort.sections) - 1]
    without_it = {s.sample: len(common) + (~almost.isin(s.genes)).sum() for s in cohort.sections}
    return [
        f"{sample}: without it {genes} genes would be in common instead of {len(common)} "
        f"(leave_out: [{sample}])"
        for sample, genes in without_it.items()
        if len(cohort.sections) > 1 and genes > 2 * len(common)
    ]
