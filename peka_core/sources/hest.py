"""HEST-1k (Jaume et al. 2024): the paper's four cohorts, Visium slides of breast, kidney, liver and lung.

A slide's files are linked into the cohort directory, not copied, and stay as they are. Splits, samples.csv and target genes
are ours. Files are rewritten only where a cohort cannot read them: gene names that are Ensembl ids or occur twice (a copy of
the h5ad), tiles of 256 px (cut again, where the slide's image is at hand).
"""

import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ..cohort import Cohort, log_cp10k, open_cohort, write_cohort_tables
from ..files import PekaError, sha256
from ..protocols import best_genes, section_table
from . import resume
from .hest_files import fetch_slides, home
from .hest_index import COHORTS, counts_table, groups, index_path, read_slides, rules_of, slides
from .hest_report import compare_genes, compare_tiles, narrow, notes_on
from .hest_slide import convert_slide, symbols_of_ensembl

__all__ = ["COHORTS", "build", "counts_table", "fetch", "groups", "make_splits", "slides"]

RECIPE = 1  # raise it when the same options would give another cohort
N_GENES = 50


def build(
    path: str | Path,
    cohort: str = "breast",
    leave_out: Iterable[str] = (),
    folds: int = 6,
    unknown: str = "slide",
    index: str = "",
    index_sha256: str = "",
    counts: tuple[int, int] | None = None,
) -> Path:
    """Convert the slides of a cohort into a cohort directory, by links.

    A finished cohort with the same options is left alone, a half-built one is completed slide by slide.

    Args:
        path: cohort directory.
        cohort: a name in `COHORTS`.
        leave_out: ids of slides to do without, e.g. TENX23, whose panel leaves few genes in common.
        folds: held-out splits, at most; patients are left out whole, so no more than there are patients.
        unknown: what holds slides of unknown patients together, `slide` or `study`; see `hest_index.groups`.
        index: another index, with `index_sha256` and `counts`; see `hest_index.slides`.

    Raises:
        PekaError: as `slides` and `fetch`; slides without genes in common; tiles that are not 224 px; or a directory built by
            another source.
    """
    path = Path(path)
    found = index_path(index, index_sha256)
    table = without(read_slides(found, cohort, counts), leave_out)
    whose = groups(table, unknown)
    options = {
        "source": "hest", "recipe": RECIPE, "cohort": cohort, "index_sha256": sha256(found), "sections": list(table.index),
        "folds": int(folds), "unknown": unknown, "groups_sha256": hashlib.sha256(whose.to_csv().encode()).hexdigest(),
    }  # fmt: skip
    if resume.finished(path, options):
        return path
    files = fetch_slides(table)
    facts, symbols = resume.start(path, options), symbols_of_ensembl(files)
    for sample, row in table.iterrows():
        if sample not in facts or not resume.written(path, sample):
            facts[sample] = convert_slide(path, sample, files[sample], row, symbols)
            resume.progress(path, options, facts)
    facts = {sample: facts[sample] for sample in table.index}
    more = _write_tables(path, table.join(whose, lsuffix="_in_index"), facts, int(folds), rules_of(cohort).authors_genes)
    resume.finish(path, options, facts, **more)
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
    """Download and verify (or find in PEKA_MIRROR) the files of a cohort; with `dry_run` list them and their sizes.

    Args:
        wsis: also the whole slide images. The rest as in `build`.

    Returns:
        paths by slide and folder; empty where a dry run has no index to know the slides from.
    """
    found = index_path(index, index_sha256, dry_run)
    if dry_run and not found.exists():
        rules = rules_of(cohort)
        print(f"{cohort}: {rules.slides} slides, {rules.spots} spots; which ones, and their sizes, is known once the index is here")
        return {}
    return fetch_slides(without(read_slides(found, cohort, counts), leave_out), wsis, dry_run)


def _listed(names: Iterable[str]) -> list[str]:
    return sorted(set(names.replace(",", " ").split() if isinstance(names, str) else names))


def without(table: pd.DataFrame, leave_out: Iterable[str] | str) -> pd.DataFrame:
    """Rows of `slides` without some ids; PekaError where one is none of them."""
    leave_out = _listed(leave_out)
    if unknown := sorted(set(leave_out) - set(table.index)):
        raise PekaError(f"hest: leave_out names {unknown}; expected some of {', '.join(table.index)}.")
    return table.drop(index=leave_out)


# ---- tables ------------------------------------------------------------------------------------------------------


def _write_tables(path: Path, table: pd.DataFrame, facts: dict[str, dict], folds: int, authors_genes: str) -> dict:
    """Write the tables, genes and splits last, since these are chosen on the opened cohort; returns what source.json keeps."""
    samples = _samples(table, facts)
    write_cohort_tables(path, samples, [], [])
    cohort = open_cohort(path)
    spots = {sample: made["spots"] for sample, made in facts.items()}
    common = _genes_in_common(cohort)
    if len(common) < N_GENES:
        raise PekaError("; ".join([
            f"{path}: {len(common)} genes are measured in every slide; expected {N_GENES} or more, for the targets. Leave slides out",
            *narrow(cohort, common),
        ]))  # fmt: skip
    genes = _top_genes(cohort, common)
    write_cohort_tables(path, samples, make_splits(samples, spots, folds), genes)
    copies = {s: compare_tiles(cohort, s, original) for s, original in samples.duplicate_of.items() if original}
    notes = notes_on(cohort, samples, facts, common, copies)
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return {
        "genes_in_common": len(common), "kept_of_each": {s.sample: f"{len(common)} of {len(s.genes)}" for s in cohort.sections},
        "authors_genes": compare_genes(home() / authors_genes, genes, common), "copies": copies, "notes": notes,
    }  # fmt: skip


def _samples(table: pd.DataFrame, facts: dict[str, dict]) -> pd.DataFrame:
    """samples.csv from index and groups."""
    names = {"disease_state": "disease", "st_technology": "technology", "study_link": "source"}  # the index's, ours
    kept = ["patient", "block", "duplicate_of", "organ", "um_per_px", "license", "evidence", "basis", *names]
    samples = table[kept].rename(columns=names)
    samples["license"] = "CC BY-NC-SA 4.0 as part of HEST-1k; of the study: " + samples.license.replace("", "not stated")
    links = samples.source.where(samples.source != "", table.download_page_link1)
    samples["source"] = links.where(links != "", table.dataset_title)
    samples["tiles_sha256"] = [facts[sample]["tiles_sha256"] for sample in samples.index]
    return samples


def make_splits(samples: pd.DataFrame, spots: dict[str, int], folds: int) -> list[tuple[list[str], list[str]]]:
    """(training, test) slides of each split: patients whole, in folds of about as many spots; the same on every machine.

    Args:
        samples: column patient, index sample_id; slides are left out one by one where there is one patient.
        spots: of each slide.
        folds: at most; no more than there are patients.
    """
    group = samples.patient if samples.patient.nunique() > 1 else samples.index.to_series()
    size = pd.Series(spots).groupby(group).sum()
    names = sorted(size.index, key=lambda name: (-size[name], name))
    folds = min(folds, len(names))
    load, fold = [0] * folds, {}
    for name in names:  # the largest first, each into the fold with the fewest spots so far
        fold[name] = load.index(min(load))
        load[fold[name]] += size[name]
    parts = [[s for s in samples.index if fold[group[s]] == i] for i in range(folds)]
    return [([s for s in samples.index if s not in part], part) for part in parts] if folds > 1 else []


def _genes_in_common(cohort: Cohort) -> pd.Index:
    """Genes that every slide measured, in the order of the first."""
    common = cohort.sections[0].genes
    for section in cohort.sections[1:]:
        common = common[common.isin(section.genes)]
    return common


def _top_genes(cohort: Cohort, common: pd.Index) -> list[str]:
    """50 highly variable genes over all spots among the genes in common; one slide in memory at a time."""
    tables = []
    for sample in cohort.samples.index:
        tables.append(section_table(log_cp10k(cohort.adata([sample])[:, common]), common, N_GENES))
    return best_genes(tables, common, N_GENES)
