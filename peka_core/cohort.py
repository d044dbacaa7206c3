"""A cohort: a directory in the HEST-Benchmark task layout, opened, checked and read.

    patches/<sample>.h5  adata/<sample>.h5ad  splits/train_0.csv, test_0.csv …
    var_50genes.json  samples.csv

All later steps read only this. Spots are joined by (sample, barcode) and have one order: sections
as in samples.csv (else by name), within a section the order of its h5ad; a spot has counts and a
tile.
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

from .common.errors import PekaError
from .layout import checks
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
        name: `scheme/i`. The scheme is `patients` when no group stands on both sides, otherwise
            `sections`.
    """

    name: str
    train: np.ndarray
    test: np.ndarray

    @property
    def scheme(self) -> str:
        """The name's first part."""
        return self.name.split("/")[0]

    def mixes(self, sections: np.ndarray) -> bool:
        """Whether spots of a tested section train too, or nothing is tested.

        This is so for shuffled spots and for the split `all`.

        Args:
            sections: (n,) section of each spot.
        """
        return not self.test.any() or bool(set(sections[self.train]) & set(sections[self.test]))


@dataclass(frozen=True, eq=False)
class Cohort:
    """An open cohort; names are in memory, counts and tiles stay on disk until they are needed.

    Attributes:
        path: the directory.
        samples: one row a section, index sample_id; columns patient, group, duplicate_of, organ,
            disease, technology, um_per_px (float, NaN where unknown), license, source, evidence
            ("" where missing), then the other columns of samples.csv. `group` merges patients that
            share a duplicated section.
        sections: the files behind each row of `samples`.
        genes: the cohort's own target genes, may be empty.
        split_ids: (training, test) sample ids of each file pair in splits/.
        has_tiles: False where the cohort has no patches/; then all spots of the h5ad belong to it.
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
        checkout, path = Path(__file__).parents[1], self.path.resolve()
        inside = path.is_relative_to(checkout)  # an absolute path would name this machine
        where = path.relative_to(checkout).as_posix() if inside else path.name
        return (
            f"Cohort {where}: {len(self)} spots, {len(self.samples)} sections, "
            f"{self.samples.group.nunique()} patients, {len(self.split_ids)} splits, "
            f"tiles: {self.has_tiles}"
        )

    def __len__(self) -> int:
        """Number of spots."""
        return sum(len(section.barcodes) for section in self.sections)

    @cached_property
    def obs(self) -> pd.DataFrame:
        """One row a spot, index `sample:barcode`.

        Columns: sample, barcode, patient, group, duplicate_of, total_counts (over all genes of the
        section, before any join), and the columns that every h5ad has.
        """
        table = pd.concat([self._obs_of(section) for section in self.sections], join="inner")
        mixed = table.select_dtypes(object).columns
        return table.assign(**{column: table[column].fillna("").astype(str) for column in mixed})

    def _obs_of(self, section: Section) -> pd.DataFrame:
        totals = read_counts(section).sum(axis=1, dtype=np.float64)  # (n, 1)
        row = self.samples.loc[section.sample]
        own = {
            "sample": section.sample,
            "barcode": section.barcodes,
            "patient": row.patient,
            "group": row.group,
            "duplicate_of": row.duplicate_of,
            "total_counts": np.asarray(totals).ravel(),  # (n,)
        }
        names = section.sample + ":" + pd.Index(section.barcodes, dtype=object)
        table, more = pd.DataFrame(own, index=names), read_spots(section).obs
        more = more.drop(columns=[c for c in own if c in more]).set_axis(names)
        kinds = {c: object for c in more.select_dtypes("category")}
        kinds |= {c: np.int64 for c in more.select_dtypes("bool")}
        return pd.concat([table, more.astype(kinds)], axis=1)

    @cached_property
    def splits(self) -> list[Split]:
        """The held-out splits of the directory, in the order of their numbers."""
        spots = [len(section.barcodes) for section in self.sections]
        names, group = self.samples.index.repeat(spots), self.samples.group
        splits = []
        for i, (train, test) in enumerate(self.split_ids):
            scheme = "sections" if set(group[train]) & set(group[test]) else "patients"
            splits.append(Split(f"{scheme}/{i}", names.isin(train), names.isin(test)))
        return splits

    @cached_property
    def digest(self) -> str:
        """sha256 over counts, genes, barcodes, spatial, samples.csv, splits and target genes.

        Tiles enter through the column tiles_sha256 of samples.csv. Where that is blank, or belongs
        to other tiles, their pixels are read once instead (`duplicates.digest_by_barcode`).
        """
        return checks.digest(self)

    def adata(self, samples: Iterable[str] | None = None, join: str = "inner") -> ad.AnnData:
        """Raw counts of all spots, or of those of some samples, in the cohort's order.

        Args:
            samples: sample ids; all where None.
            join: `inner` for the genes that all these samples have, `outer` for all genes, with 0
                where a sample did not measure one.

        Returns:
            AnnData, X CSR float32 (n, G); obs = rows of `self.obs`; obsm["spatial"] float64 (n, 2)
            in slide px (x, y), other numeric obsm that all have; var columns on which the samples
            agree.
        """
        chosen = self._chosen(samples)
        genes = joined_genes([section.genes for section in chosen], join)
        counts = [on_genes(read_counts(section), section.genes, genes) for section in chosen]
        spots = [read_spots(section) for section in chosen]
        for note in (note for of_section in spots for note in of_section.notes):
            warnings.warn(note, stacklevel=2)
        obs = self.obs[self.obs["sample"].isin([section.sample for section in chosen])].copy()
        return ad.AnnData(
            sparse.vstack(counts, format="csr"),
            obs=obs,
            var=_agreed([s.var for s in spots], genes),
            obsm=_stacked([s.arrays for s in spots]),
        )

    def restricted(self, spots: dict[str, np.ndarray]) -> "Cohort":
        """The same cohort with some spots: sample -> positions (m,) in `section.barcodes`."""
        by_spot = ("barcodes", "h5ad_rows", "tile_rows")
        sections = [
            replace(s, **{name: getattr(s, name)[spots[s.sample]] for name in by_spot})
            for s in self.sections
        ]
        return replace(self, sections=tuple(sections))

    def _chosen(self, samples: Iterable[str] | None) -> list[Section]:
        if samples is None:
            return list(self.sections)
        samples = [samples] if isinstance(samples, str) else list(samples)
        unknown = sorted(set(samples) - set(self.samples.index))
        if unknown or not samples:
            asked = unknown or "(empty list)"
            raise PekaError(f"{self.path}: no sample {asked}; it has {list(self.samples.index)}.")
        return [section for section in self.sections if section.sample in samples]

    def tiles(self) -> TileReader:
        """Tiles of all spots, in the order of `obs`.

        Raises:
            PekaError: the cohort comes without tiles.
        """
        if not self.has_tiles:
            raise PekaError(
                f"{self.path / 'patches'}: no tiles here (a committed run leaves them out); "
                "expected patches/<sample>.h5. Build the cohort again with `peka run` of its "
                "profile or with notebook 01."
            )
        return TileReader([(s.patches, s.tile_rows) for s in self.sections if s.patches])

    def validate(self) -> list[str]:
        """Check every count and tile header; return (and issue) the warnings.

        Raises:
            PekaError: counts or coordinates that cannot be right.
        """
        notes = checks.validate(self)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        return notes


def open_cohort(path: str | Path) -> Cohort:
    """Open a cohort directory: files, names, tile shapes and splits are checked.

    Counts are not read yet.

    Raises:
        PekaError: a file is missing or unreadable, names are not unique, a tile has no spot, tiles
            have another size or dtype, sections share no gene, or a split names an unknown section.
    """
    path = Path(path)
    samples, notes = read_samples(path)
    has_tiles = any(not file.name.startswith(".") for file in path.glob("patches/*.h5"))
    sections = []
    for sample in samples.index:
        patches = path / "patches" / f"{sample}.h5" if has_tiles else None
        sections.append(open_section(sample, path / "adata" / f"{sample}.h5ad", patches))
    in_tiles = pd.Series([s.um_per_px for s in sections], index=samples.index)
    samples["um_per_px"] = samples.um_per_px.fillna(in_tiles)
    checks.genes_in_common(sections)
    notes += odd_splits(path)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    genes, split_ids = read_genes(path), read_splits(path, samples)
    return Cohort(path, samples, tuple(sections), genes, split_ids, has_tiles, tuple(notes))


def _agreed(tables: list[pd.DataFrame], genes: pd.Index) -> pd.DataFrame:
    """Per-gene columns that every section has and on which none contradicts another."""
    columns = [c for c in tables[0] if all(c in table for table in tables)]
    stacked = pd.concat([table[columns].astype(object) for table in tables])
    stacked = stacked[stacked.index.isin(genes)]
    same = [c for c in columns if stacked.groupby(level=0)[c].nunique(dropna=False).max() == 1]
    first = stacked.loc[~stacked.index.duplicated(), same].reindex(genes)
    return first.infer_objects()


def _stacked(arrays: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Per-spot arrays that every section has with the same trailing shape."""
    return {
        name: np.concatenate([a[name] for a in arrays])
        for name, first in arrays[0].items()
        if all(name in a and a[name].shape[1:] == first.shape[1:] for a in arrays)
    }
