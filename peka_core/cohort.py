"""A cohort: a directory in the HEST-Benchmark task layout, opened, checked and read.

    patches/<sample>.h5  adata/<sample>.h5ad  splits/train_0.csv, test_0.csv …
    var_50genes.json  samples.csv

All later steps read only this. A spot is a barcode that has both counts and a tile; the two are
joined by (sample, barcode). The order of sections is that of samples.csv, or else of their names.
Within a section, the order of spots is that of its h5ad.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from .common.errors import PekaError
from .common.typed_values import prefixed_errors
from .layout import checks
from .layout.gene_columns import columns_of, joined_genes, on_genes
from .layout.sections import Section, open_section, read_counts, read_spots
from .layout.tables import odd_splits, read_genes, read_samples, read_splits
from .layout.writing import write_cohort_tables, write_sample
from .tiles import TileReader

__all__ = ["Cohort", "Split", "open_cohort", "write_cohort_tables", "write_sample"]


@dataclass(frozen=True, eq=False)
class Split:
    """Training and test spots, as masks (n,) over the cohort's spots.

    Attributes:
        name: `scheme/i`. The scheme of a cohort's own splits is `patients` if no patient is in both
            training and test, otherwise `sections`.
    """

    name: str
    train: np.ndarray
    test: np.ndarray

    @property
    def scheme(self) -> str:
        return self.name.split("/")[0]

    def shares_sections(self, sections: np.ndarray) -> bool:
        """True if a section (n,) has spots in training and in test, or if there is no test set."""
        return not self.test.any() or bool(set(sections[self.train]) & set(sections[self.test]))


@dataclass(frozen=True, eq=False)
class Cohort:
    """An open cohort. Names are in memory; counts and tiles stay on disk until they are needed.

    Attributes:
        path: the directory.
        samples: one row a section (HEST calls it a sample), index sample_id; columns patient,
            group, duplicate_of, organ, disease, technology, um_per_px (float, NaN if unknown),
            license, source, evidence ("" if missing), then the other columns of samples.csv.
            Patients whose slides include copies of the same section get one common `group`.
        sections: the files of each row of `samples`.
        genes: the cohort's own target genes, may be empty.
        split_ids: (training, test) sample ids of each file pair in splits/.
        has_tiles: False if the cohort has no patches/; then every barcode of an h5ad is a spot.
        notes: warnings that were given when the cohort was opened.
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
        name = path.relative_to(checkout).as_posix() if inside else path.name
        return (
            f"Cohort {name}: {len(self)} spots, {len(self.samples)} sections, "
            f"{self.samples.group.nunique()} patients, {len(self.split_ids)} splits, "
            f"tiles: {self.has_tiles}"
        )

    def __len__(self) -> int:
        return sum(len(section.barcodes) for section in self.sections)

    @cached_property
    def obs(self) -> pd.DataFrame:
        """One row a spot; the index is sample and barcode with a colon between them.

        Columns: sample, barcode, patient, group, duplicate_of, total_counts (over all genes of the
        section, before any join), and the columns that every h5ad has.
        """
        table = pd.concat([self._obs_of(section) for section in self.sections], join="inner")
        mixed = table.select_dtypes(object).columns
        return table.assign(**{column: table[column].fillna("").astype(str) for column in mixed})

    def _obs_of(self, section: Section) -> pd.DataFrame:
        totals = read_counts(section).sum(axis=1, dtype=np.float64)  # (n, 1)
        row = self.samples.loc[section.sample]
        columns = {"sample": section.sample, "barcode": section.barcodes}
        columns |= row[["patient", "group", "duplicate_of"]].to_dict()
        columns["total_counts"] = np.asarray(totals).ravel()  # (n,)
        names = section.sample + ":" + pd.Index(section.barcodes, dtype=object)
        table, others = pd.DataFrame(columns, index=names), read_spots(section).obs
        others = others.drop(columns=[c for c in columns if c in others]).set_axis(names)
        types = {c: object for c in others.select_dtypes("category")}
        types |= {c: np.int64 for c in others.select_dtypes("bool")}
        return pd.concat([table, others.astype(types)], axis=1)

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
        """sha256 of all that the cohort holds.

        It uses the hash of tiles in samples.csv. If that is missing or out of date, the pixels are
        read once (`duplicates.digest_by_barcode`).
        """
        return checks.digest(self)

    def adata(
        self,
        samples: Iterable[str] | None = None,
        join: str = "inner",
        genes: Sequence[str] | None = None,
    ) -> ad.AnnData:
        """Raw counts of all spots, or of those of some samples, in the cohort's order.

        Args:
            samples: sample ids; None for all.
            join: `inner` for the genes that all these samples have; `outer` for all genes, with 0
                if a sample did not measure one.
            genes: only these of the joined genes, in this order. Then the other counts of a section
                leave the memory before the next section is read.

        Returns:
            AnnData with X CSR float32 (n, G); obs, rows of `self.obs`; obsm["spatial"] float64
            (n, 2) in slide px (x, y), and the numeric obsm that all samples have; and the columns
            of var that have the same value in all sections.

        Raises:
            PekaError: a sample is unknown, or one of `genes` is not among the joined genes.
        """
        chosen = self._chosen(samples)
        names = joined_genes([section.genes for section in chosen], join)
        if genes is not None:
            with prefixed_errors(self.path):
                names = names[columns_of(names, list(genes))]
        return self._counted(chosen, names)

    def by_section(self, join: str = "inner") -> Iterator[ad.AnnData]:
        """Counts of one section after the other: X CSR float32 (n_i, G) and its rows of `obs`.

        All have the genes of the joined cohort. Coordinates and other tables are not read.
        """
        names, samples = joined_genes([s.genes for s in self.sections], join), self.obs["sample"]
        for section in self.sections:
            counts = on_genes(read_counts(section), section.genes, names)
            rows, var = self.obs[samples == section.sample].copy(), pd.DataFrame(index=names)
            yield ad.AnnData(counts, obs=rows, var=var)

    def _counted(self, chosen: list[Section], genes: pd.Index) -> ad.AnnData:
        """`adata` of some sections on these genes."""
        counts = [on_genes(read_counts(section), section.genes, genes) for section in chosen]
        spots = [read_spots(section) for section in chosen]
        _warned([note for of_section in spots for note in of_section.notes])
        obs = self.obs[self.obs["sample"].isin([section.sample for section in chosen])].copy()
        var, obsm = _agreed([s.var for s in spots], genes), _stacked([s.arrays for s in spots])
        return ad.AnnData(sparse.vstack(counts, format="csr"), obs=obs, var=var, obsm=obsm)

    def restricted(self, spots: dict[str, np.ndarray]) -> "Cohort":
        """The same cohort with some spots: sample -> positions (m,) in `section.barcodes`."""
        by_spot = ("barcodes", "h5ad_rows", "tile_rows")
        chosen = lambda s: {name: getattr(s, name)[spots[s.sample]] for name in by_spot}
        return replace(self, sections=tuple(replace(s, **chosen(s)) for s in self.sections))

    def _chosen(self, samples: Iterable[str] | None) -> list[Section]:
        if samples is None:
            return list(self.sections)
        samples = [samples] if isinstance(samples, str) else list(samples)
        unknown = sorted(set(samples) - set(self.samples.index))
        if unknown or not samples:
            wanted = unknown or "(empty list)"
            raise PekaError(f"{self.path}: no sample {wanted}; it has {list(self.samples.index)}.")
        return [section for section in self.sections if section.sample in samples]

    def tiles(self) -> TileReader:
        """Tiles of all spots, in the order of `obs`; PekaError if the cohort has no tiles."""
        if not self.has_tiles:
            step = "build the cohort again with `peka run` of its profile or with notebook 01"
            raise PekaError(f"{self.path / 'patches'} has no <sample>.h5: {step}")
        return TileReader([(s.patches, s.tile_rows) for s in self.sections if s.patches])

    def validate(self) -> list[str]:
        """Check every count and tile header, and give the warnings; PekaError if one is wrong."""
        return _warned(checks.validate(self))


def open_cohort(path: str | Path) -> Cohort:
    """Open a cohort directory, and check files, names, tile shapes and splits, but not the counts.

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
    notes = _warned(notes + odd_splits(path))
    genes, split_ids = read_genes(path), read_splits(path, samples)
    return Cohort(path, samples, tuple(sections), genes, split_ids, has_tiles, tuple(notes))


def _warned(notes: list[str]) -> list[str]:
    """Give these warnings to whoever called the function that calls this one."""
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return notes


def _agreed(tables: list[pd.DataFrame], genes: pd.Index) -> pd.DataFrame:
    """Per-gene columns that every section has and that have the same value in all sections."""
    columns = [c for c in tables[0] if all(c in table for table in tables)]
    stacked = pd.concat([table[columns].astype(object) for table in tables])
    stacked = stacked[stacked.index.isin(genes)]
    same = [c for c in columns if stacked.groupby(level=0)[c].nunique(dropna=False).max() == 1]
    return stacked.loc[~stacked.index.duplicated(), same].reindex(genes).infer_objects()


def _stacked(arrays: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Per-spot arrays that every section has with the same trailing shape."""
    return {
        name: np.concatenate([a[name] for a in arrays])
        for name, first in arrays[0].items()
        if all(name in a and a[name].shape[1:] == first.shape[1:] for a in arrays)
    }
