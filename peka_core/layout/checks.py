"""The complete checks of a cohort, and its digest."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import PekaError
from . import duplicates
from .sections import Section, open_section, read_counts, read_spots, stored_spots, tile_centres
from .tables import copies, read_samples

if TYPE_CHECKING:
    from ..cohort import Cohort

CENTRE_TOLERANCE = 2.0  # px of the slide: rounding of both HEST rules stays below


def genes_in_common(sections: tuple[Section, ...]) -> None:
    """Raise PekaError where the sections share no gene, naming the first that empties the set."""
    genes = sections[0].genes
    for section in sections[1:]:
        common = genes.intersection(section.genes)
        if not len(common):
            raise PekaError(
                f"{section.h5ad}: no gene in common with the sections before it ({genes[0]}, … against "
                f"{section.genes[0]}, …); expected the same kind of gene names everywhere. Map symbols and Ensembl ids first."
            )
        genes = common


def validate(cohort: Cohort) -> list[str]:
    """Every check that needs the contents; returns the warnings, raises PekaError."""
    found = list(cohort.notes)
    for section in cohort.sections:
        found += _check_section(section)
    found += copies_in(cohort) + _check_splits(cohort) + _check_genes(cohort)
    return found


def copies_in(cohort: Cohort) -> list[str]:
    """Which sections a protocol that merges duplicates leaves out, and why."""
    spots = {section.sample: len(section.barcodes) for section in cohort.sections}
    return [
        f"{cohort.path / 'samples.csv'}: {sample} ({spots[sample]} spots) is a copy of {original}, and left out where duplicates "
        "are merged"
        for sample, original in copies(cohort.samples.duplicate_of).items()
    ]


def _check_section(section: Section) -> list[str]:
    found = []
    if section.without_tile:
        found.append(
            f"{section.patches}: {section.without_tile} spots of {section.h5ad.name} have no tile and are left out"
        )
    empty = int((read_counts(section).sum(axis=1) == 0).sum())
    if empty:
        found.append(
            f"{section.h5ad}: {empty} of {len(section.barcodes)} spots have no count at all"
        )
    spots = read_spots(section)
    found += spots.notes
    centres = tile_centres(section) if section.patches else None
    if centres is not None:
        away = ~(
            np.abs(centres - spots.arrays["spatial"]).max(axis=1) <= CENTRE_TOLERANCE
        )  # (n,), NaN is away
        if away.any():
            raise PekaError(
                f"{section.patches}: {away.sum()} of {len(away)} tiles are not centred on the spot of the same barcode in "
                f"{section.h5ad.name} (first: {section.barcodes[away][0]}); expected coords within {CENTRE_TOLERANCE:.0f} px "
                f"of obsm['spatial']. Take both files from the same release."
            )
    return found


def _check_splits(cohort: Cohort) -> list[str]:
    found, folder = [], cohort.path / "splits"
    in_none = sorted(
        set(cohort.samples.index)
        - {s for sides in cohort.split_ids for side in sides for s in side}
    )
    if in_none:
        found.append(
            f"{folder}: {len(in_none)} of {len(cohort.samples)} samples are in no split: {in_none}"
        )
    table = cohort.samples
    for split, (train, test) in zip(cohort.splits, cohort.split_ids):
        patients = sorted(set(table.patient[train]) & set(table.patient[test]))
        if patients:
            found.append(
                f"{folder}: split {split.name} has {len(patients)} patients on both sides: {patients}"
            )
        groups = sorted(
            set(table.group[train])
            & set(table.group[test]) - set(table.group[table.patient.isin(patients)])
        )
        if groups:
            found.append(
                f"{folder}: split {split.name} has duplicates on both sides in {len(groups)} groups: {groups}"
            )
    return found


def _check_genes(cohort: Cohort) -> list[str]:
    absent = [g for g in cohort.genes if any(g not in section.genes for section in cohort.sections)]
    if not absent:
        return []
    return [
        f"{cohort.path}: {len(absent)} of {len(cohort.genes)} target genes are not measured in every section: {absent}"
    ]


def digest(cohort: Cohort) -> str:
    """sha256 of what the cohort holds, independent of how HDF5 or CSV store it; see `Cohort.digest`."""
    total = hashlib.sha256()
    table, _ = read_samples(cohort.path)
    total.update(table.to_csv(lineterminator="\n").encode())
    total.update(repr((cohort.split_ids, cohort.genes)).encode())
    for section in cohort.sections:
        _add_section(total, open_section(section.sample, section.h5ad, None))
        if section.patches and _tiles_are_told(section, table, cohort.path):
            if not np.array_equal(
                section.tile_rows, section.h5ad_rows
            ):  # that digest says nothing of whose tile is whose
                total.update(
                    repr(
                        [str(name) for name in section.barcodes[np.argsort(section.tile_rows)]]
                    ).encode()
                )
        elif section.patches:
            names = (
                section.patches.name,
                sorted(map(str, section.barcodes)),
                duplicates.digest_by_barcode(section.patches),
            )
            total.update(repr(names).encode())
    return total.hexdigest()


def _tiles_are_told(section: Section, table, path: Path) -> bool:
    """Whether tiles_sha256 of samples.csv, which the digest contains, is right about a section's tiles.

    That of a drawn cohort is not of pixels but of what determines them: they may differ by a grey level between processors.
    """
    claimed = table.get("tiles_sha256", {}).get(section.sample)
    if not claimed or is_drawn(path) or duplicates.has_digest(section.patches, claimed):
        return bool(claimed)
    warnings.warn(
        f"{path / 'samples.csv'}: tiles_sha256 of {section.sample} is not that of {section.patches}, which was changed since. Its "
        "pixels count as they are now. Write the new digest (`write_sample` returns it) into that column, or empty it.",
        stacklevel=2,
    )
    return False


def is_drawn(path: Path) -> bool:
    """Whether the demo's source wrote this directory, or the one that it links to."""
    try:
        source = json.loads((path / "source.json").read_text(encoding="utf-8"))
        return source.get("source") == "demo" or source.get("drawn", False)
    except (OSError, ValueError, AttributeError):
        return False


def _add_section(total: hashlib._Hash, section: Section) -> None:
    """Add names, spot centres and counts of the whole h5ad, with or without tiles."""
    counts = read_counts(section)  # (n, G)
    counts.eliminate_zeros()
    total.update(
        repr(
            (section.sample, counts.shape, list(map(str, section.barcodes)), list(section.genes))
        ).encode()
    )
    total.update(
        np.ascontiguousarray(stored_spots(section).arrays["spatial"], dtype="<f8").tobytes()
    )
    for array, kind in ((counts.indptr, "<i8"), (counts.indices, "<i4"), (counts.data, "<f4")):
        total.update(array.astype(kind).tobytes())
