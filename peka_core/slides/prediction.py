"""Predict genes on a slide: tiles, features, predictions, flags, and the files that show them.

request.json            what was asked: model, slide, pixel size, places, code
parts/part_00000.npz    features, predictions and distances of 1,024 tiles each
predictions.h5ad        all tiles in one AnnData
detections.geojson.gz   the same for QuPath
maps/<gene>.png         a map of each gene
summary.csv             a row for each gene
index.html              all maps in one page; written last
"""

import hashlib
import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from ..common.errors import PekaError
from ..common.files import alone, sha256_once, write_whole
from ..predict import Model
from ..unfamiliar import is_unfamiliar_slide
from .geojson import write_detections
from .image import Slide
from .maps import write_maps
from .page import write_page
from .parts import begin, check_disk, check_folder, code, make_parts
from .places import Places, at_spots, on_lattice
from .trust import NOT_FOR_DIAGNOSIS

PICTURE = 2000  # px, longer side of the slide behind maps and page


def predict_slide(
    model: Model,
    slide: Slide,
    out: str | Path,
    centres=None,
    mask: str | Path | None = None,
    region: str | Path | None = None,
    batch_size: int = 256,
    maps: bool = True,
) -> ad.AnnData:
    """Predict genes on a slide and write all files into `out`.

    A call that was killed goes on where it was if it is made again with the same arguments.

    Args:
        centres: centres of the tiles: (n, 2) in level-0 px, a file (`places.read_spots`), or what
            `find_places` returned. By default tiles lie on one lattice, where at least half of a
            tile is tissue.
        mask: GeoJSON of the tissue, instead of the mask that is computed.
        region: GeoJSON of a region; only tiles in it are predicted.
        batch_size: tiles that the network takes at once.
        maps: whether to draw a picture of each gene, which takes longer than a small slide.

    Returns:
        The contents of `predictions.h5ad`: X (n, g) in ln CP10K; obs with distance, unfamiliar,
        tissue_share, and x and y on the lattice; obsm with spatial (px), spatial_um and X_features
        (n, d); var with the expected PCC of each gene and its mean over the slide; uns["peka"].

    Raises:
        PekaError: the pixel size is unknown, there is no tissue, a place lies outside the slide,
            `out` holds something else or cannot be written, or the disk is too small.
    """
    out = Path(out)
    if model.genes.empty:
        raise PekaError(f"{model.folder}: the model predicts no gene. Export it again.")
    places = centres
    if not isinstance(places, Places):
        places = find_places(slide, centres, mask, region)
    request = request_of(model, slide, places)
    check_folder(out, request)
    check_disk(out, len(places.centres), len(model.genes), len(model.head.mean))
    with alone(out / "parts"):
        begin(out, request)
        made = make_parts(model, slide, places.centres, out, batch_size)
        found = _collect(model, slide, places, request, made)
        _write_files(out, found, slide, maps)
    return found


def check_pixel_size(slide: Slide) -> None:
    """Refuse a slide of unknown pixel size."""
    if not np.isfinite(slide.um_per_px):
        raise PekaError(
            f"{slide.path} does not say how large its pixels are, or says a size that no scanner "
            "has. Give --um-per-px (in Python: open_slide(path, um_per_px=...)), from the "
            "scanner's settings. The magnification of a "
            "scan (20x, 40x) does not determine it."
        )


def find_places(slide: Slide, centres=None, mask=None, region=None) -> Places:
    """Where a slide is predicted, as `predict_slide` describes it."""
    check_pixel_size(slide)
    if centres is None:
        return on_lattice(slide, mask, region)
    if mask is not None or region is not None:
        raise PekaError(
            "--spots says where every tile lies, so it takes no --mask and no --region. Leave them "
            "out, or leave --spots out."
        )
    return at_spots(slide, centres)


def request_of(model: Model, slide: Slide, places: Places) -> dict:
    """What makes the numbers of a prediction, as JSON."""
    digest = hashlib.sha256(np.ascontiguousarray(places.centres, "<f8").tobytes())
    digest.update("\n".join(places.obs.index).encode())
    return {
        "model": model.digest,
        "slide": slide_digest(slide.path),
        "um_per_px": float(slide.um_per_px),
        "tiles": len(places.centres),
        "places": digest.hexdigest(),
        **places.files,
        "code": code(),
    }


def slide_digest(path: Path) -> str:
    """sha256 of a slide's file; an MRXS has more files beside it, whose sizes count too."""
    digest = sha256_once(path)
    folder = path.with_suffix("")
    if path.suffix.lower() != ".mrxs" or not folder.is_dir():
        return digest
    files = sorted((file.name, file.stat().st_size) for file in folder.iterdir())
    return hashlib.sha256(f"{digest} {files}".encode()).hexdigest()


def _collect(model: Model, slide: Slide, places: Places, request: dict, made: dict) -> ad.AnnData:
    """One AnnData of all that was found."""
    distance, threshold = made["distance"], float(model.threshold)
    flagged = distance > threshold  # no tile if the threshold is NaN
    share = float(flagged.mean()) if np.isfinite(threshold) else np.nan
    odd = is_unfamiliar_slide(distance, threshold)
    obs = places.obs.assign(distance=distance, unfamiliar=flagged)
    no_interval = "only a region was predicted" if "region" in places.files else ""
    no_interval = "this slide as a whole is unfamiliar" if odd else no_interval
    var = summary_of(model.genes, made["values"], not no_interval)
    found = ad.AnnData(made["values"], obs, var)
    found.obsm["spatial"] = places.centres
    found.obsm["spatial_um"] = places.centres * slide.um_per_px
    found.obsm["X_features"] = made["features"]
    warnings = model.scale_warning(slide.um_per_px), places.warning
    identity = json.dumps(request, sort_keys=True).encode()
    found.uns["peka"] = {
        "slide": slide.path.name,
        "slide_sha256": request["slide"],
        "width": slide.width,
        "height": slide.height,
        "bounds": list(slide.bounds),
        "um_per_px": float(slide.um_per_px),
        "model": model.digest,
        "request": hashlib.sha256(identity).hexdigest(),
        "code": request["code"],
        "card": json.dumps(model.card),
        "threshold": threshold,
        "share_unfamiliar": share,
        "unfamiliar_slide": odd,
        "warnings": "\n".join(filter(None, warnings)),
        "no_interval": no_interval,
        "unit": "ln(1 + CP10K)",
        "use": NOT_FOR_DIAGNOSIS,
    }
    return found


def summary_of(genes: pd.DataFrame, values: np.ndarray, has_interval: bool) -> pd.DataFrame:
    """The model's table of genes with mean and sd of the predictions (n, g) over the tiles.

    Args:
        has_interval: whether `mean_low_80` to `mean_high_80` is given, where the model has it. It
            holds for the mean over a whole slide that is like those of training.
    """
    table = genes.assign(mean=values.mean(0, dtype=float), sd=values.std(0, dtype=float))
    half = table.pop("mean_half_width_80") if "mean_half_width_80" in table else np.nan
    half = half if has_interval else np.nan
    return table.assign(mean_low_80=table["mean"] - half, mean_high_80=table["mean"] + half)


def _write_files(out: Path, found: ad.AnnData, slide: Slide, maps: bool) -> None:
    write_whole(out / "predictions.h5ad", lambda file: found.write_h5ad(file))
    write_detections(out / "detections.geojson.gz", found)
    picture, px = slide.thumbnail(PICTURE)
    table = found.var
    if maps:
        names = write_maps(out / "maps", found, picture, px)
        table = table.assign(map=[f"maps/{name}" for name in names])
    write_whole(out / "summary.csv", lambda file: table.to_csv(file, index_label="gene"))
    write_page(out / "index.html", found, picture, (slide.width, slide.height))
