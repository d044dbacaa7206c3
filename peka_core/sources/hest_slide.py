"""One slide of HEST-1k: its files are linked, or rewritten if a cohort could not read them."""

import json
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

from ..common.errors import PekaError
from ..common.file_kinds import what_is
from ..common.files import link_whole, write_whole
from ..downloads.record import Record
from ..layout.patches import TILE
from ..layout.sections import names_of, open_h5, open_section, read_counts, tile_barcodes
from ..layout.writing import write_tiles
from ..tiles import cut_tiles
from .her2st import read_image
from .hest_files import home

LEVEL_1 = 0.25  # um/px: HEST cuts finer slides from a smaller level of the image
PIXEL_SIZE_TOLERANCE = 0.01  # relative, between index, metadata and tiles


def convert_slide(
    path: Path, sample: str, files: dict[str, Path], row: pd.Series, symbols: dict[str, str]
) -> dict:
    """Link or rewrite the two files of a slide; return numbers and notes for source.json."""
    h5ad, patches, notes = path / "adata" / f"{sample}.h5ad", path / "patches" / f"{sample}.h5", []
    with open_h5(files["patches"]) as file:
        side = file["img"].shape[1] if "img" in file else TILE
    if side == TILE:
        link_whole(files["patches"], patches, symbolic=True)
        digest = Record().entries[f"hest/patches/{sample}.h5"]["sha256"]  # verified just now
    else:
        digest = _cut_again(path, sample, files, row.um_per_px, side)
        notes.append(f"tiles of {side} px were cut again from the slide's image")
    if changed := _take_counts(files["st"], h5ad, symbols):
        notes.append(
            f"{changed} gene names were changed in a copy of the h5ad (Ensembl ids to symbols, or "
            "made unique)"
        )
    section = open_section(sample, h5ad, patches)
    facts = {
        "spots_in_index": int(row.spots),
        "spots_in_h5ad": len(section.barcodes) + section.without_tile,
        "spots": len(section.barcodes),
        "without_counts": int((read_counts(section).sum(axis=1) == 0).sum()),
        "genes": len(section.genes),
        "um_per_px": float(row.um_per_px),
        "tiles_sha256": digest,
    }
    if (spots := facts["spots_in_h5ad"]) != row.spots:
        notes.append(f"its h5ad has {spots} spots, the index has {row.spots}; compare the releases")
    facts["notes"] = notes + _other_scales(files["metadata"], section.um_per_px, row.um_per_px)
    return facts


def _take_counts(original: Path, h5ad: Path, symbols: dict[str, str]) -> int:
    """Link the h5ad, or write a copy with other gene names; return how many names changed."""
    with open_h5(original) as file:
        old = names_of(file, "var", original)
    symbol = lambda n: symbols.get(n.split(".")[0], n) if n.startswith("ENSG") else n
    new = make_index_unique(pd.Index([symbol(name) for name in old]))
    if changed := int((old != new).sum()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the names that change here
            adata = ad.read_h5ad(original)
        adata.var_names = new
        write_whole(h5ad, adata.write_h5ad)
    else:
        link_whole(original, h5ad, symbolic=True)
    return changed


def symbols_of_ensembl(files: dict[str, dict[str, Path]]) -> dict[str, str]:
    """Ensembl id -> symbol, from the slides that name both (`var.gene_ids`)."""
    known = {}
    for own in files.values():
        with open_h5(own["st"]) as file:
            if "gene_ids" not in file.get("var", {}):
                continue
            var = ad.io.read_elem(file["var"])
        ids, names = var.gene_ids.astype(str).str.split(".").str[0], var.index.astype(str)
        has_id, has_symbol = ids.str.startswith("ENSG"), ~names.str.startswith("ENSG").astype(bool)
        both = has_id.to_numpy(bool) & has_symbol
        known.update(zip(ids[both], names[both]))
    return known


def _other_scales(metadata: Path, of_tiles: float, um_per_px: float) -> list[str]:
    """Notes about metadata or tiles that were made for another pixel size than the index has."""
    try:
        # json reads HEST's bare NaN
        value = json.loads(metadata.read_text(encoding="utf-8")).get("pixel_size_um_estimated")
        sizes = {metadata.name: np.nan if value is None else float(value), "tiles": of_tiles}
    except (ValueError, TypeError, AttributeError) as error:
        raise PekaError(
            f"{metadata}: expected HEST's metadata, JSON with a number pixel_size_um_estimated; it "
            f"is {what_is(metadata) or 'no text'}. Fetch it again."
        ) from error
    return [
        f"{place}: {value:.4f} um/px, the index has {um_per_px:.4f}; compare the releases"
        for place, value in sizes.items()
        if abs(value / um_per_px - 1) > PIXEL_SIZE_TOLERANCE
    ]


def _cut_again(path: Path, sample: str, files: dict[str, Path], um_per_px: float, side: int) -> str:
    """Cut tiles of 224 px from the slide's image for the spots in the patches file.

    Files of 256 px were on the hub until August 2024. They show the same 112 um, but resizing them
    again would not give HEST's tiles. Returns the digest of the new tiles.
    """
    slide = home() / "wsis" / f"{sample}.tif"
    if not slide.is_file() or um_per_px <= LEVEL_1:
        why = "which is not here: -p wsis=true --run NAME fetches such images"
        if um_per_px <= LEVEL_1:
            why = f"but HEST reads a smaller level of it ({um_per_px:.3f} um/px), and we do not"
        raise PekaError(
            f"{files['patches']}: tiles of {side} px; expected {TILE}. Take this file from a newer "
            f"revision of the data set. They could be cut again from {slide}, {why}."
        )
    with open_h5(files["patches"]) as file:
        barcodes = tile_barcodes(file, files["patches"], side)
    spots = ad.read_h5ad(files["st"], backed="r")
    places = pd.DataFrame(spots.obsm["spatial"][:], index=spots.obs_names)
    centres = places.loc[barcodes].to_numpy()  # (n, 2)
    spots.file.close()
    tiles, corners = cut_tiles(read_image(slide), centres, um_per_px)
    return write_tiles(path, sample, tiles, corners, barcodes, um_per_px)
