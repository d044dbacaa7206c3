"""One slide of HEST-1k, converted: its files are linked, or rewritten where a cohort could not read them."""

import json
import logging
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

from ..downloads.record import Record
from ..errors import PekaError
from ..file_kinds import what_is
from ..files import link_whole, write_whole
from ..layout.patches import TILE
from ..layout.sections import names_of, open_h5, open_section, read_counts, tile_barcodes
from ..layout.writing import write_tiles
from ..tiles import cut_tiles
from .her2st import read_image
from .hest_files import home

LEVEL_1 = 0.25  # um/px: HEST cuts finer slides from a smaller level of the image
PIXEL_SIZE_TOLERANCE = 0.01  # relative, between index, metadata and tiles

log = logging.getLogger(__name__)


def convert_slide(
    path: Path, sample: str, files: dict[str, Path], row: pd.Series, symbols: dict[str, str]
) -> dict:
    """Link (or rewrite) the two files of a slide; return what a reader of the cohort should know of it."""
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
            f"{changed} gene names changed (Ensembl ids to symbols, or made unique), in a copy of the h5ad"
        )
    section = open_section(sample, h5ad, patches)
    facts = {
        "spots_in_index": int(row.spots), "spots_in_h5ad": len(section.barcodes) + section.without_tile,
        "spots": len(section.barcodes), "without_counts": int((read_counts(section).sum(axis=1) == 0).sum()),
        "genes": len(section.genes), "um_per_px": float(row.um_per_px), "tiles_sha256": digest,
    }  # fmt: skip
    if facts["spots_in_h5ad"] != row.spots:
        notes.append(
            f"its h5ad has {facts['spots_in_h5ad']} spots, the index says {row.spots}: another release?"
        )
    facts["notes"] = notes + _other_scales(files["metadata"], section.um_per_px, row.um_per_px)
    log.info("hest %s: %s", sample, facts)
    return facts


def _take_counts(original: Path, h5ad: Path, symbols: dict[str, str]) -> int:
    """Link the counts, or write a copy where names have to change; returns how many do."""
    with open_h5(original) as file:
        old = names_of(file, "var", original)
    mapped = [
        symbols.get(name.split(".")[0], name) if name.startswith("ENSG") else name for name in old
    ]
    new = make_index_unique(pd.Index(mapped))
    if changed := int((old != new).sum()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # anndata says what is being mended here
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
            var = (
                ad.io.read_elem(file["var"])
                if "gene_ids" in file.get("var", {})
                else pd.DataFrame({"gene_ids": []})
            )
        ids, names = var.gene_ids.astype(str).str.split(".").str[0], var.index.astype(str)
        both = ids.str.startswith("ENSG").to_numpy(bool) & ~names.str.startswith("ENSG").astype(
            bool
        )
        known.update(zip(ids[both], names[both]))
    return known


def _other_scales(metadata: Path, of_tiles: float, um_per_px: float) -> list[str]:
    """Where metadata or tiles were made for another pixel size than the index's."""
    try:
        said = json.loads(metadata.read_text(encoding="utf-8")).get(
            "pixel_size_um_estimated"
        )  # json reads HEST's bare NaN
        places = {metadata.name: np.nan if said is None else float(said), "tiles": of_tiles}
    except (ValueError, TypeError, AttributeError) as error:
        found = what_is(metadata) or "no text"
        raise PekaError(
            f"{metadata}: expected HEST's metadata, JSON with a number pixel_size_um_estimated; it is {found}. Fetch it again."
        ) from error
    return [
        f"{place}: {value:.4f} um/px, the index says {um_per_px:.4f}: another release?"
        for place, value in places.items()
        if abs(value / um_per_px - 1) > PIXEL_SIZE_TOLERANCE
    ]


def _cut_again(path: Path, sample: str, files: dict[str, Path], um_per_px: float, side: int) -> str:
    """Cut the tiles of the spots that the patches file lists, 224 px, from the slide's image; returns their digest.

    Files of 256 px were on the hub until August 2024; they show the same 112 um, but resized twice they are not HEST's tiles.
    """
    slide = home() / "wsis" / f"{sample}.tif"
    if not slide.is_file() or um_per_px <= LEVEL_1:
        why = "which is not here: -p wsis=true --run NAME fetches such images"
        if um_per_px <= LEVEL_1:
            why = f"but HEST reads it at a smaller level ({um_per_px:.3f} um/px), which is not done here"
        raise PekaError(
            f"{files['patches']}: tiles of {side} px; expected {TILE}. Take this file from a newer revision of the data set. "
            f"They could be cut again from {slide}, {why}."
        )
    with open_h5(files["patches"]) as file:
        barcodes = tile_barcodes(file, files["patches"], side)
    spots = ad.read_h5ad(files["st"], backed="r")
    centres = (
        pd.DataFrame(spots.obsm["spatial"][:], index=spots.obs_names).loc[barcodes].to_numpy()
    )  # (n, 2)
    spots.file.close()
    tiles, corners = cut_tiles(read_image(slide), centres, um_per_px)
    return write_tiles(path, sample, tiles, corners, barcodes, um_per_px)
