"""The complete checks of a cohort, and its digest."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..common.errors import PekaError
from .duplicates import digest_by_barcode, has_digest
from .sections import Section, open_section, read_counts, read_spots, stored_spots, tile_centres
from .tables import originals, read_samples

if TYPE_CHECKING:
    from ..cohort import Cohort

CENTRE_TOLERANCE = 2.0  # px of the slide; rounding in both of HEST's forms stays below it


def genes_in_common(sections: Sequence[Section]) -> None:
    """Raise PekaError where the sections share no gene, naming the first that empties the set."""
    genes = sections[0].genes
    for section in sections[1:]:
        common = genes.intersection(section.genes)
        if not len(common):
            raise PekaError(
                f"{section.h5ad}: no gene in common with the sections before it ({genes[0]}, … "
                f"against {section.genes[0]}, …); expected the same kind of gene names everywhere. "
                "Map symbols and Ensembl ids first."
            )
        genes = common


def validate(cohort: Cohort) -> list[str]:
    """Make every check that needs the contents; return the warnings.

    Raises:
        PekaError: counts or coordinates that cannot be right.
    """
    notes = [*cohort.notes, *(note for section in cohort.sections for note in _section(section))]
    spots = {section.sample: len(section.barcodes) for section in cohort.sections}
    notes += [
        f"{cohort.path / 'samples.csv'}: {sample} ({spots[sample]} spots) is a copy of {original} "
        "and is left out where duplicates are merged"
        for sample, original in originals(cohort.samples.duplicate_of).items()
    ]
    notes += _splits(cohort)
    absent = [g for g in cohort.genes if any(g not in section.genes for section in cohort.sections)]
    if absent:
        number = f"{len(absent)} of {len(cohort.genes)}"
        notes.append(
            f"{cohort.path}: {number} target genes are not measured in every section: {absent}"
        )
    return notes


def _section(section: Section) -> list[str]:
    notes, n = [], len(section.barcodes)
    if section.without_tile:
        notes.append(
            f"{section.patches}: {section.without_tile} spots of {section.h5ad.name} have no tile "
            "and are left out"
        )
    if empty := int((read_counts(section).sum(axis=1) == 0).sum()):
        notes.append(f"{section.h5ad}: {empty} of {n} spots have no count at all")
    spots = read_spots(section)
    centres = tile_centres(section) if section.patches else None
    if centres is None:
        return notes + spots.notes
    distance = np.abs(centres - spots.arrays["spatial"]).max(axis=1)  # (n,) px
    away = ~(distance <= CENTRE_TOLERANCE)  # NaN is away
    if away.any():
        raise PekaError(
            f"{section.patches}: {away.sum()} of {n} tiles are not centred on the spot of the same "
            f"barcode in {section.h5ad.name} (first: {section.barcodes[away][0]}); expected coords "
            f"within {CENTRE_TOLERANCE:.0f} px of obsm['spatial']. Take both files from the same "
            "release."
        )
    return notes + spots.notes


def _splits(cohort: Cohort) -> list[str]:
    notes, folder, table = [], cohort.path / "splits", cohort.samples
    used = {sample for sides in cohort.split_ids for side in sides for sample in side}
    if unused := sorted(set(table.index) - used):
        notes.append(f"{folder}: {len(unused)} of {len(table)} samples are in no split: {unused}")
    for split, (train, test) in zip(cohort.splits, cohort.split_ids, strict=True):
        start = f"{folder}: split {split.name} has"
        patients = set(table.patient[train]) & set(table.patient[test])
        if patients:
            notes.append(f"{start} {len(patients)} patients on both sides: {sorted(patients)}")
        groups = set(table.group[train]) & set(table.group[test])
        groups -= set(table.group[table.patient.isin(patients)])
        if groups:
            number = f"{len(groups)} groups: {sorted(groups)}"
            notes.append(f"{start} duplicates on both sides in {number}")
    return notes


def digest(cohort: Cohort) -> str:
    """sha256 of what the cohort holds, however HDF5 or CSV store it; see `Cohort.digest`."""
    total = hashlib.sha256()
    table, _ = read_samples(cohort.path)
    total.update(table.to_csv(lineterminator="\n").encode())
    total.update(repr((cohort.split_ids, cohort.genes)).encode())
    for section in cohort.sections:
        _add_counts(total, open_section(section.sample, section.h5ad, None))
        if section.patches:
            _add_tiles(total, section, table, cohort.path)
    return total.hexdigest()


def _add_counts(total: hashlib._Hash, section: Section) -> None:
    """Add names, spot centres and counts of all spots in the h5ad, also of those without a tile."""
    counts = read_counts(section)  # (n, G)
    counts.eliminate_zeros()
    barcodes = list(map(str, section.barcodes))
    total.update(repr((section.sample, counts.shape, barcodes, list(section.genes))).encode())
    spatial = stored_spots(section).arrays["spatial"]
    total.update(np.ascontiguousarray(spatial, dtype="<f8").tobytes())
    for array, kind in ((counts.indptr, "<i8"), (counts.indices, "<i4"), (counts.data, "<f4")):
        total.update(array.astype(kind).tobytes())


def _add_tiles(total: hashlib._Hash, section: Section, table: pd.DataFrame, path: Path) -> None:
    """Add what samples.csv does not say of the tiles; the digest contains samples.csv already."""
    if not _column_is_right(section, table, path):
        barcodes = sorted(map(str, section.barcodes))
        pixels = digest_by_barcode(section.patches)
        total.update(repr((section.patches.name, barcodes, pixels)).encode())
    elif not np.array_equal(section.tile_rows, section.h5ad_rows):
        # the column's digest does not say which tile belongs to which spot
        in_file = section.barcodes[np.argsort(section.tile_rows)]
        total.update(repr([str(name) for name in in_file]).encode())


def _column_is_right(section: Section, table: pd.DataFrame, path: Path) -> bool:
    """Whether tiles_sha256 of samples.csv belongs to a section's tiles.

    In a drawn cohort it is a digest of everything that determines the pixels, because the pixels
    themselves may differ by a grey level between processors.
    """
    claimed = table.get("tiles_sha256", {}).get(section.sample)
    if not claimed or is_drawn(path) or has_digest(section.patches, claimed):
        return bool(claimed)
    warnings.warn(
        f"{path / 'samples.csv'}: tiles_sha256 of {section.sample} does not belong to "
        f"{section.patches}, which was changed since. Its pixels count as they are now. Write the "
        "new digest (`write_sample` returns it) into that column, or empty it.",
        stacklevel=2,
    )
    return False


def is_drawn(path: Path) -> bool:
    """Whether the demo wrote this directory, or the one that it links to."""
    try:
        source = json.loads((path / "source.json").read_text(encoding="utf-8"))
        return source.get("source") == "demo" or source.get("drawn", False)
    except (OSError, ValueError, AttributeError):
        return False
