"""Counts and places of one sample as read from a user's files, and the checks that all share."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from anndata.utils import make_index_unique
from scipy import sparse

from ..common.errors import PekaError

# symbols (ACTB, Actb), and Ensembl ids, which name the species before the G
HUMAN = re.compile(r"ENSG\d+.*|(?!ENS[A-Z]+G\d)[A-Z][A-Z0-9.-]+")
MOUSE = re.compile(r"ENSMUSG\d+.*|[A-Z][a-z0-9-]+")
SOME = 0.2  # share of the genes that a species must have to be in a sample


@dataclass(eq=False)
class RawSample:
    """What a reader found, before anything is cut or written.

    Attributes:
        adata: raw counts X (n, G) CSR float32 of the spots that count as tissue; obs_names
            barcodes; var_names unique; obsm["spatial"] (n, 2) centres (x, y), px of the
            full-resolution image.
        place: the file or folder, for messages.
        technology: for samples.csv.
        um_per_px: pixel sizes by where they come from, the most trusted first.
        positions: every array position, with the columns in_tissue (bool), x and y (px); None
            if only spots with counts are known.
        expected_size: (width, height) px of the full-resolution image, if the files tell it.
        small_images: size (width, height) of images that come with the sample and are too coarse.
        overview: the largest of these files, which shows the whole image; None if there is none.
        mirrored: whether the array is mirrored in the pixels; None if unknown.
        spot_um: diameter of a spot, for the ruler, if it is known.
        notes: what a reader of the import should know.
    """

    adata: ad.AnnData
    place: Path
    technology: str = ""
    um_per_px: dict[str, float] = field(default_factory=dict)
    positions: pd.DataFrame | None = None
    expected_size: tuple[float, float] | None = None
    small_images: dict[str, tuple[int, int]] = field(default_factory=dict)
    overview: Path | None = None
    mirrored: bool | None = None
    spot_um: float | None = None
    notes: list[str] = field(default_factory=list)


def counts_table(x, barcodes, names, ids=None) -> ad.AnnData:
    """Counts as CSR float32, with gene names made unique as HEST does (`-1`, `-2`, ...).

    Args:
        x: (n, G) counts.
        barcodes: (n,).
        names: (G,) symbols, or ids where there is no symbol.
        ids: (G,) Ensembl ids for the column `gene_ids`, if they are known beside the symbols.
    """
    var = pd.DataFrame(index=make_index_unique(pd.Index(names, dtype=object).astype(str)))
    if ids is not None:
        var["gene_ids"] = np.asarray(ids, dtype=object)
    obs = pd.DataFrame(index=pd.Index(barcodes, dtype=object).astype(str))
    return ad.AnnData(sparse.csr_matrix(x, dtype=np.float32), obs=obs, var=var)


def checked(raw: RawSample) -> RawSample:
    """The sample without spots that have no count, after all checks that need no image.

    Raises:
        PekaError: counts are not raw, names occur twice, coordinates are NaN, fewer than two
            spots have counts, or genes of human and mouse are mixed.
    """
    adata, place = raw.adata, raw.place
    if 0 in adata.shape:
        raise PekaError(
            f"{place}: counts of {adata.n_obs} spots and {adata.n_vars} genes; expected at least "
            "one of each. Take the filtered counts of the whole sample."
        )
    _check_raw(adata.X.data, place)
    if not adata.obs_names.is_unique:
        twice = adata.obs_names[adata.obs_names.duplicated()][0]
        raise PekaError(
            f"{place}: the barcode {twice} occurs more than once; expected one row for each spot. "
            "Import samples one by one, and not a table of several samples."
        )
    unknown = ~np.isfinite(adata.obsm["spatial"]).all(axis=1)  # (n,)
    if unknown.any():
        raise PekaError(
            f"{place}: the coordinates of {unknown.sum()} of {len(unknown)} spots are NaN or "
            f"infinite (first: {adata.obs_names[unknown][0]}); expected x and y in px of the "
            "full-resolution image. Leave these spots out, or add their coordinates."
        )
    filled = np.asarray(adata.X.sum(axis=1)).ravel() > 0  # (n,)
    if filled.sum() < 2:
        raise PekaError(
            f"{place}: {filled.sum()} of {len(filled)} spots have counts; expected at least two, "
            "because nothing can be compared within a sample of one spot. Take the whole sample."
        )
    if not filled.all():
        raw.notes.append(f"{(~filled).sum()} of {len(filled)} spots have no count and are left out")
        raw.adata = adata[filled].copy()
    raw.notes += _species_notes(raw)
    return raw


def _check_raw(values: np.ndarray, place: Path) -> None:
    if not np.isfinite(values).all() or (values < 0).any():
        raise PekaError(
            f"{place}: some counts are NaN, infinite or negative; expected raw counts (0, 1, 2, "
            "...). Take the counts from before scaling."
        )
    if odd := int((values != np.rint(values)).sum()):
        raise PekaError(
            f"{place}: {odd} of {len(values)} stored counts are not whole numbers (largest "
            f"{values.max():.3g}); expected raw counts. They look normalised or log-transformed. "
            'Take the raw ones, such as layers["counts"] or raw.X of the same file.'
        )


def species_of(names) -> set[str]:
    """`human` and `mouse`, each if at least `SOME` of the gene names look like it.

    Human symbols are in capitals (ACTB), mouse symbols begin with one (Actb).
    """
    words = [str(name).split("_")[-1] for name in names]
    both = {"human": HUMAN, "mouse": MOUSE}
    share = {kind: np.mean([bool(p.fullmatch(w)) for w in words]) for kind, p in both.items()}
    return {kind for kind, found in share.items() if found >= SOME}


def _species_notes(raw: RawSample) -> list[str]:
    found = species_of(raw.adata.var_names)
    if found == {"human", "mouse"}:
        raise PekaError(
            f"{raw.place}: genes of human and of mouse are in one sample; expected one species, "
            "because a tile's expression is predicted for one genome. Keep the genes of one."
        )
    if found == {"mouse"}:
        return ["mouse genes (Actb and not ACTB): the bundled teachers and gene lists are human"]
    return []
