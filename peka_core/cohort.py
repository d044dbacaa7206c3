"""A cohort: a directory in the HEST-Benchmark task layout, opened, validated and read.

    patches/<sample>.h5  adata/<sample>.h5ad  splits/train_0.csv, test_0.csv …  var_50genes.json  samples.csv

Everything downstream reads only this. Spots are joined by (sample, barcode) and have one order:
sections as in samples.csv (else by name), within a section the order of its h5ad, spots with counts and a tile.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from .errors import PekaError
from .layout import checks as cohort_checks
from .layout.gene_columns import joined_genes, on_genes
from .layout.sections import Section, open_section, read_counts, read_spots
from .layout.tables import odd_splits, read_genes, read_samples, read_splits
from .layout.writing import write_cohort_tables, write_sample
from .tiles import TileReader

__all__ = ["Cohort", "Split", "open_cohort", "write_cohort_tables", "write_sample"]


@dataclass(frozen=True, eq=False)
class Split:
    """Training and test spots, as masks (n,) over the cohort's spots.

    Attributes:
        name: `scheme/i`; scheme `patients` when no group stands on both sides, otherwise `sections`.
    """

    name: str
    train: np.ndarray
    test: np.ndarray

    @property
    def scheme(self) -> str:
        """The name's first part."""
        return self.name.split("/")[0]

    def mixes(self, sections: np.ndarray) -> bool:
        """Whether spots of tested `sections (n,)` train too, or nothing is tested: shuffled spots, and `all`."""
        return not self.test.any() or bool(set(sections[self.train]) & set(sections[self.test]))


@dataclass(frozen=True, eq=False)
class Cohort:
    """An open cohort; names are in memory, counts and tiles stay on disk until asked for.

    Attributes:
        path: the directory.
        samples: one row a section, index sample_id; columns patient, group, duplicate_of, organ, disease,
            technology, um_per_px (float, NaN where unknown), license, source, evidence ("" where missing),
            then whatever else samples.csv has. `group` merges patients that share a duplicated section.
        sections: the files behind each row of `samples`.
        genes: the cohort's own target genes, may be empty.
        split_ids: (training, test) sample ids of each file pair in splits/.
        has_tiles: False where the cohort comes without patches/; then every spot of the h5ad counts.
        notes: what opening had to assume, as warnings with counts.
    """

    path: Path
    samples: pd.DataFrame
    sections: tuple[Section, ...]
    genes: list[str]
    split_ids: tuple[tuple[list[str], list[str]], ...]
    has_tiles: bool
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        spots = sum(len(section.barcodes) for section in self.sections)
        checkout, path = Path(__file__).parents[1], self.path.resolve()
        where = (
            path.relative_to(checkout).as_posix() if path.is_relative_to(checkout) else path.name
        )  # no path of this machine
        return (
            f"Cohort {where}: {spots} spots, {len(self.samples)} sections, "
            f"{self.samples.group.nunique()} patients, {len(self.split_ids)} splits, tiles: {self.has_tiles}"
        )

    def __len__(self) -> int:
        """Number of spots."""
        return sum(len(section.barcodes) for section in self.sections)

    @cached_property
    def obs(self) -> pd.DataFrame:
        """One row a spot, index `sample:barcode`: sample, barcode, patient, group, duplicate_of, total_counts
        (over all genes of the section, before any join), and the columns that every h5ad has."""
        table = pd.concat([self._obs_of(section) for section in self.sections], join="inner")
        mixed = table.select_dtypes(object).columns
        return table.assign(**{column: table[column].fillna("").astype(str) for column in mixed})

    def _obs_of(self, section: Section) -> pd.DataFrame:
        extra = read_spots(section).obs
        row = self.samples.loc[section.sample]
        own = {
            "sample": section.sample,
            "barcode": section.barcodes,
            "patient": row.patient,
            "group": row.group,
            "duplicate_of": row.duplicate_of,
            "total_counts": np.asarray(
                read_counts(section).sum(axis=1, dtype=np.float64)
            ).ravel(),  # (n,)
        }
        table = pd.DataFrame(
            own, index=section.sample + ":" + pd.Index(section.barcodes, dtype=object)
        )
        extra = extra.drop(columns=[c for c in own if c in extra]).set_axis(table.index)
        kinds = {
            c: np.int64 if extra[c].dtype == bool else object
            for c in extra.select_dtypes(["category", "bool"])
        }
        return pd.concat([table, extra.astype(kinds)], axis=1)

    @cached_property
    def splits(self) -> list[Split]:
        """The held-out splits of the directory, in the order of their numbers."""
        names = np.repeat(
            [s.sample for s in self.sections], [len(s.barcodes) for s in self.sections]
        )
        group = self.samples.group
        splits = []
        for i, (train, test) in enumerate(self.split_ids):
            scheme = "sections" if set(group[train]) & set(group[test]) else "patients"
            splits.append(Split(f"{scheme}/{i}", np.isin(names, train), np.isin(names, test)))
        return splits

    @cached_property
    def digest(self) -> str:
        """sha256 over counts, gene names, barcodes, spatial, samples.csv, splits and genes, read as values.

        Tiles enter through the column tiles_sha256 of samples.csv; where it is blank, or is not theirs, by their pixels, which are
        read for it once (`tile_digests`).
        """
        return cohort_checks.digest(self)

    def adata(self, samples: Iterable[str] | None = None, join: str = "inner") -> ad.AnnData:
        """Raw counts of all spots, or of some samples', in the cohort's order.

        Args:
            samples: sample ids; all where None.
            join: `inner` for the genes that all these samples have, `outer` for all genes, 0 where not measured.

        Returns:
            AnnData, X CSR float32 (n, G); obs = rows of `self.obs`; obsm["spatial"] float64 (n, 2) in slide px
            (x, y), other numeric obsm that all have; var columns on which the samples agree.
        """
        chosen = self._chosen(samples)
        genes = joined_genes([section.genes for section in chosen], join)
        counts = sparse.vstack(
            [on_genes(read_counts(s), s.genes, genes) for s in chosen], format="csr"
        )
        _, arrays, var, notes = zip(*(read_spots(section) for section in chosen))
        for note in sum(notes, []):
            warnings.warn(note, stacklevel=2)
        obs = self.obs[self.obs["sample"].isin([section.sample for section in chosen])].copy()
        return ad.AnnData(counts, obs=obs, var=_agreed(var, genes), obsm=_stacked(arrays))

    def restricted(self, spots: dict[str, np.ndarray]) -> "Cohort":
        """The same cohort with some of each section's spots alone: sample -> positions in `section.barcodes`."""
        pick = lambda section, rows: replace(
            section,
            barcodes=section.barcodes[rows],
            h5ad_rows=section.h5ad_rows[rows],
            tile_rows=section.tile_rows[rows],
        )
        return replace(
            self, sections=tuple(pick(section, spots[section.sample]) for section in self.sections)
        )

    def _chosen(self, samples: Iterable[str] | None) -> list[Section]:
        if samples is None:
            return list(self.sections)
        samples = [samples] if isinstance(samples, str) else list(samples)
        unknown = sorted(set(samples) - set(self.samples.index))
        if unknown or not samples:
            raise PekaError(
                f"{self.path}: no sample {unknown or '(empty list)'}; it has {list(self.samples.index)}."
            )
        return [section for section in self.sections if section.sample in samples]

    def tiles(self) -> TileReader:
        """Tiles of all spots, in the order of `obs`.

        Raises:
            PekaError: the cohort comes without tiles.
        """
        if not self.has_tiles:
            raise PekaError(
                f"{self.path / 'patches'}: no tiles here (they are left out of a committed run); expected "
                f"patches/<sample>.h5. Build the cohort again: `peka run` of its profile, or notebook 01."
            )
        return TileReader([(section.patches, section.tile_rows) for section in self.sections])

    def validate(self) -> list[str]:
        """Check every count and tile header; return (and issue) the warnings.

        Raises:
            PekaError: counts or coordinates that cannot be right.
        """
        found = cohort_checks.validate(self)
        for text in found:
            warnings.warn(text, stacklevel=2)
        return found


def open_cohort(path: str | Path) -> Cohort:
    """Open a cohort directory: files, names, tile shapes and splits are checked, counts are not yet read.

    Raises:
        PekaError: a file is missing or unreadable, names are not unique, a tile has no spot, tiles have
            another size or dtype, sections share no gene, or a split names an unknown section.
    """
    path = Path(path)
    samples, notes = read_samples(path)
    has_tiles = any(not file.name.startswith(".") for file in path.glob("patches/*.h5"))
    sections = tuple(
        open_section(
            s, path / "adata" / f"{s}.h5ad", path / "patches" / f"{s}.h5" if has_tiles else None
        )
        for s in samples.index
    )
    unknown = samples.um_per_px.isna()
    samples.loc[unknown, "um_per_px"] = np.array([s.um_per_px for s in sections])[unknown]
    cohort_checks.genes_in_common(sections)
    notes += odd_splits(path)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return Cohort(
        path,
        samples,
        sections,
        read_genes(path),
        read_splits(path, samples),
        has_tiles,
        tuple(notes),
    )


def _agreed(tables: tuple[pd.DataFrame, ...], genes: pd.Index) -> pd.DataFrame:
    """Per-gene columns that every section has and on which none contradicts another."""
    columns = [c for c in tables[0] if all(c in table for table in tables)]
    stacked = pd.concat([table[columns].astype(object) for table in tables])
    stacked = stacked[stacked.index.isin(genes)]
    same = [c for c in columns if stacked.groupby(level=0)[c].nunique(dropna=False).max() == 1]
    first = stacked.loc[~stacked.index.duplicated(), same].reindex(genes)
    return first.infer_objects()


def _stacked(arrays: tuple[dict[str, np.ndarray], ...]) -> dict[str, np.ndarray]:
    """Per-spot arrays that every section has with the same trailing shape."""
    return {
        name: np.concatenate([a[name] for a in arrays])
        for name, first in arrays[0].items()
        if all(name in a and a[name].shape[1:] == first.shape[1:] for a in arrays)
    }
