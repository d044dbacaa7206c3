"""Files of HEST-1k slides, by HEST's own names: st/<id>.h5ad, patches/<id>.h5, metadata/<id>.json.

They lie in the folder hest/ of the mirror or of the cache; wsis/<id>.tif is fetched on request. The
manifest does not pin the data set's revision yet, so the first use is recorded.
"""

from pathlib import Path

import pandas as pd

from ..common.folders import cache_folder
from ..downloads import fetch
from ..downloads.manifest import Download, load_manifest, mirror

SUFFIXES = {"st": "h5ad", "patches": "h5", "metadata": "json", "wsis": "tif"}  # by folder
TILE_BYTES, COUNT_BYTES = 150_528, 25_000  # of a spot: its tile, and roughly its counts
PIXEL_BYTES = 4  # of a pixel of a slide, at most


def home() -> Path:
    """The folder that holds st/, patches/ and metadata/."""
    return (mirror() or cache_folder()) / "hest"


def fetch_slides(
    table: pd.DataFrame, wsis: bool = False, dry_run: bool = False
) -> dict[str, dict[str, Path]]:
    """Fetch and verify the files of slides; return `{id: {"st": path, "patches": path, …}}`.

    Args:
        table: slides as in `hest_index.slides`.
        wsis: fetch the whole slide images too; they are many times larger.
        dry_run: print where each file is or would come from and its size, and change nothing.
    """
    files = _files(table, wsis)
    fetch.fetch([file for own in files.values() for file in own.values()], dry_run)
    return {id: {folder: f.place for folder, f in own.items()} for id, own in files.items()}


def preflight(table: pd.DataFrame | None, wsis: bool = False) -> None:
    """Refuse slides that are not here and cannot be downloaded; None if the index is not here."""
    if table is None:
        hub = load_manifest()["sources"]["hest"]["hub"]
        return fetch.check_access([_file(hub, "st", "<slide>")])
    fetch.preflight([file for own in _files(table, wsis).values() for file in own.values()])


def _files(table: pd.DataFrame, wsis: bool) -> dict[str, dict[str, Download]]:
    """The downloads of each slide, by folder."""
    hub = load_manifest()["sources"]["hest"]["hub"]
    folders = [folder for folder in SUFFIXES if wsis or folder != "wsis"]
    return {id: {f: _file(hub, f, id, row) for f in folders} for id, row in table.iterrows()}


def _file(hub: dict, folder: str, id: str, row: pd.Series | None = None) -> Download:
    name = f"{folder}/{id}.{SUFFIXES[folder]}"
    step = (
        f"HEST-1k is gated: accept its terms on https://huggingface.co/datasets/{hub['repo']} "
        "(granted at once) and set HF_TOKEN to a token of that account."
    )
    where = {"repo": hub["repo"], "kind": "dataset", "revision": hub["revision"] or ""}
    size = 1000.0 if row is not None else 0.0  # bytes
    if row is not None and folder == "wsis":
        size = float(row.fullres_px_width) * float(row.fullres_px_height) * PIXEL_BYTES
    elif row is not None and folder in ("patches", "st"):
        size = row.spots * (TILE_BYTES if folder == "patches" else COUNT_BYTES)
    facts = where | {"name": name, "gated": True, "otherwise": step, "estimate": size}
    return Download(f"hest/{name}", **facts)
