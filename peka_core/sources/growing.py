"""A new sample beside those that a cohort has: comparisons before, and the tables after."""

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from ..cohort import Cohort, open_cohort, write_cohort_tables
from ..common.errors import PekaError
from ..genes import top_genes
from ..layout.sections import Section, read_counts
from ..layout.tables import WORDS_FOR_MISSING, read_csv, read_genes
from . import building
from .hest import make_splits as balanced_folds
from .raw_sample import species_of
from .staging import known_samples, plan_moves, source_record

N_GENES = 50  # target genes
MOST_SPLITS = 10  # with more patients, ten folds of patients


def quietly_open(cohort: Path) -> Cohort | None:
    """The cohort, without its warnings; None if it has no section yet."""
    if not known_samples(cohort):
        return None
    with warnings.catch_warnings(action="ignore"):
        return open_cohort(cohort)


def patient_name(cohort: Path, patient: str) -> str:
    """The name of a patient without blanks around it, after a comparison with those there.

    Raises:
        PekaError: it is empty or means that nobody is known, such as NA, because then each section
            would count as a patient; or it differs from another in case only.
    """
    name, old = str(patient).strip(), quietly_open(cohort)
    if name.lower() in WORDS_FOR_MISSING:
        raise PekaError(
            f"patient is {patient!r}, which means unknown; expected a name, because splits hold "
            "out patients. Give --patient a name that is the same for all sections of a patient."
        )
    there = set() if old is None else set(old.samples.patient)
    alike = [other for other in there if other.lower() == name.lower()]
    if alike and name not in there:
        raise PekaError(
            f"{cohort}: patient {name} differs from {alike[0]}, who is there, in case only; if "
            "both are the same, training would see the held-out patient. Write it the same way, or "
            "choose another name."
        )
    return name


def check_beside(cohort: Path, sample: str, adata: ad.AnnData) -> None:
    """Compare a new sample with the sections that are there.

    Raises:
        PekaError: no gene in common, another species, the cohort's own target genes are missing,
            or the same barcodes with the same counts, which is a copy.
    """
    if (old := quietly_open(cohort)) is None:
        return
    others = [section for section in old.sections if section.sample != sample]
    for section in others:
        _check_genes(section, sample, adata.var_names)
    refuse_copies(others, sample, adata)
    kept = _own_genes(cohort)
    if kept and (absent := [gene for gene in kept if gene not in adata.var_names]):
        raise PekaError(
            f"{cohort}: {len(absent)} of the target genes in var_{len(kept)}genes.json are not "
            f"measured in {sample} (first: {absent[0]}); expected all, because this list was not "
            "written by an import and is kept. Edit the list, or use another cohort."
        )


def refuse_copies(others: list[Section], sample: str, adata: ad.AnnData) -> None:
    """Refuse a sample with the barcodes of another section and the same counts for each.

    Raises:
        PekaError: there is such a section.
    """
    totals = pd.Series(np.asarray(adata.X.sum(axis=1)).ravel(), adata.obs_names)
    for section in others:
        if len(section.barcodes) != len(totals) or set(section.barcodes) != set(totals.index):
            continue
        theirs = np.asarray(read_counts(section).sum(axis=1)).ravel()  # (n,)
        if np.array_equal(theirs, totals[section.barcodes]):
            raise PekaError(
                f"{section.h5ad}: {sample} has the same {len(totals)} barcodes with the same "
                "number of counts, so one of both is a copy; expected another sample. With copies "
                "in training and test, scores would be too good. Check the folder."
            )


def _check_genes(section: Section, sample: str, genes: pd.Index) -> None:
    kinds = species_of(section.genes), species_of(genes)
    if all(kinds) and not kinds[0] & kinds[1]:
        raise PekaError(
            f"{section.h5ad}: genes of {'/'.join(kinds[0])} ({section.genes[0]}), but {sample} has "
            f"genes of {'/'.join(kinds[1])} ({genes[0]}); expected one species in a cohort. Use "
            "another --cohort."
        )
    if not len(section.genes.intersection(genes)):
        ids = [bool(names.str.startswith("ENS").mean() > 0.5) for names in (section.genes, genes)]
        why = "One has symbols and the other Ensembl ids. " if ids[0] != ids[1] else ""
        raise PekaError(
            f"{section.h5ad}: no gene in common with {sample} ({section.genes[0]}, ... against "
            f"{genes[0]}, ...); expected the same names. {why}Import both with the same kind."
        )


# ---- the tables -------------------------------------------------------------------------------


def write_tables(
    stage: Path, cohort: Path, rows: pd.DataFrame, facts: dict[str, dict]
) -> list[str]:
    """Write samples.csv, splits, target genes and source.json of the grown cohort into `stage`.

    Splits and target genes that no import wrote stay as they are.

    Args:
        rows: one row for each new sample, index sample_id, with the columns of samples.csv.
        facts: what is known of each new sample, for source.json.

    Returns:
        notes about the tables.
    """
    old, genes, stay, notes = quietly_open(cohort), _own_genes(cohort), list[str](), []
    table = _grown(cohort, rows)
    write_cohort_tables(stage, table, [], [])
    grown = quietly_open(stage)
    assert grown is not None  # it has at least the new sample
    splits = make_splits(grown)
    if old is not None and old.split_ids and list(old.split_ids) != make_splits(old):
        splits = []
        stay += [file.relative_to(cohort).as_posix() for file in cohort.glob("splits/*.csv")]
        names = ", ".join(rows.index)
        notes.append(f"splits/ was not written by an import, so it stays, without {names}")
    if genes:
        stay.append(f"var_{len(genes)}genes.json")
        notes.append(f"{stay[-1]} was not written by an import, so it stays")
    chosen = [] if genes else top_genes(grown, N_GENES)
    if len(chosen) < N_GENES and not genes:
        notes.append(f"only {len(chosen)} genes vary and are measured in every section")
    write_cohort_tables(stage, table, splits, chosen)
    earlier = source_record(cohort).get("sections", {})
    facts = {name: made for name, made in earlier.items() if name in table.index} | facts
    options = {"source": "import", "sections": list(table.index)}
    building.mark_built(stage, options, facts, target_genes=chosen)
    plan_moves(stage, list(rows.index), stay)
    return notes


def make_splits(cohort: Cohort) -> list[tuple[list[str], list[str]]]:
    """(training, test) sections: one patient held out each, or ten folds of more than ten patients.

    With one patient its sections are held out, and with one section nothing is.
    """
    samples = cohort.samples
    whose = samples.group if samples.group.nunique() > 1 else samples.index.to_series()
    names = list(dict.fromkeys(whose))
    if len(names) > MOST_SPLITS:
        spots = {section.sample: len(section.barcodes) for section in cohort.sections}
        return balanced_folds(samples.assign(patient=samples.group), spots, MOST_SPLITS)
    if len(names) < 2:
        return []
    of = lambda name: (list(samples.index[whose != name]), list(samples.index[whose == name]))
    return [of(name) for name in names]


def _own_genes(cohort: Path) -> list[str]:
    """Target genes that a user wrote into the cohort; [] if an import chose them."""
    genes = read_genes(cohort) if cohort.is_dir() else []
    return [] if genes == source_record(cohort).get("target_genes") else genes


def _grown(cohort: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """samples.csv with the new rows; other rows and columns stay as the user has them."""
    if (cohort / "samples.csv").exists():
        table = read_csv(cohort / "samples.csv", "sample_id").set_index("sample_id")
    else:
        names = pd.Index(known_samples(cohort), name="sample_id")
        table = pd.DataFrame({"patient": names}, index=names)  # as a cohort without the table
    table = pd.concat([table[~table.index.isin(rows.index)], rows.astype(str)])
    return table.fillna("").rename_axis("sample_id")


def what_is_missing(cohort: Path) -> str:
    """What a cohort needs before it can be run and scored; "" if nothing."""
    opened = quietly_open(cohort)
    if opened is None or len(opened.samples) < 2:
        return (
            "a second section. With one section nothing can be held out, so it can be neither "
            "aligned nor scored. Import another, best of another patient"
        )
    if opened.samples.group.nunique() == 1:
        return (
            "a second patient. With one patient, sections are held out, and the scores say nothing "
            "about new patients"
        )
    return ""
