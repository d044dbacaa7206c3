"""Predictions as GeoJSON that QuPath imports as detections with measurements.

QuPath reads a Feature as a detection only where `properties.objectType` says so; without it the
Feature becomes an annotation, which has no measurement map. Its coordinates are px of the picture
that QuPath shows, which is the slide cropped to `openslide.bounds-*` (MRXS, some SCN).

Source: QuPathTypeAdapters, PathIO and OpenslideImageServer of qupath/qupath.
"""

import gzip
import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np

from ..common.files import write_whole
from ..tiles import corner_of, tile_side

UNFAMILIAR = {"name": "unfamiliar", "color": [213, 94, 0]}
NOT_ABOVE = " (not above controls)"  # follows the name of a gene whose maps are grey


def write_detections(path: str | Path, found: ad.AnnData) -> Path:
    """Write one detection per tile; the same predictions give the same bytes.

    The measurements are the genes, `distance`, `unfamiliar` (0 or 1) and `tissue share`. The name
    of a gene that did not beat the controls ends with ` (not above controls)`.
    """

    def write(temporary: Path) -> None:
        with (
            open(temporary, "wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,  # no name and no time inside
            io.TextIOWrapper(packed, encoding="utf-8") as text,
        ):
            text.write('{"type":"FeatureCollection","features":[\n')
            for i, feature in enumerate(_features(found)):
                text.write(",\n" * (i > 0) + json.dumps(feature, allow_nan=False))
            text.write("\n]}\n")

    return write_whole(path, write)


def _features(found: ad.AnnData) -> Iterator[dict]:
    about = found.uns["peka"]
    names = [
        gene if good else f"{gene}{NOT_ABOVE}"
        for gene, good in zip(found.var_names, found.var["supported"])
    ]
    corners = corners_of(found) - np.asarray(about["bounds"])  # (n, 2) px that QuPath shows
    side = tile_side(float(about["um_per_px"]))
    table = found.obs[["distance", "unfamiliar", "tissue_share"]].astype(float).to_numpy()
    flagged = found.obs["unfamiliar"].to_numpy()
    for i, name in enumerate(found.obs_names):
        values = dict(zip(names, found.X[i].tolist(), strict=True))
        values |= dict(zip(("distance", "unfamiliar", "tissue share"), table[i].tolist()))
        properties: dict = {"objectType": "detection", "name": name}
        if flagged[i]:
            properties["classification"] = UNFAMILIAR
        numbers = {key: _short(value) for key, value in values.items() if np.isfinite(value)}
        properties["measurements"] = numbers
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"peka:{about['request']}/{name}")),
            "geometry": {"type": "Polygon", "coordinates": [_square(corners[i], side)]},
            "properties": properties,
        }


def _short(value: float) -> float:
    """Six digits are those of float32, and make the file smaller."""
    return float(f"{value:.6g}")


def _square(corner: np.ndarray, side: int) -> list[list[int]]:
    """The closed ring of a tile: its first point is also its last."""
    x, y = corner.tolist()
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def corners_of(found: ad.AnnData) -> np.ndarray:
    """Top-left corners (n, 2) of the tiles in level-0 px, whole numbers."""
    um_per_px = float(found.uns["peka"]["um_per_px"])
    corners = [corner_of(centre, um_per_px) for centre in found.obsm["spatial"]]
    return np.array(corners, dtype=np.int64).reshape(-1, 2)
