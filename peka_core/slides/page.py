"""One HTML page of all predicted maps: it needs no network, no server and no library."""

import base64
import html
import json
from pathlib import Path

import anndata as ad
import cv2
import numpy as np
import pandas as pd

from ..common.files import write_whole
from ..tiles import tile_side
from .geojson import corners_of
from .maps import UNIT, color_range, color_table
from .trust import about_model, gene_caption, trust_sentences

TEMPLATE = Path(__file__).with_name("page.html")
MOST_VALUES = 25_000_000  # numbers on a page, 133 MB; a browser takes no much larger page
QUALITY = 80  # of the JPEG behind the map


def write_page(
    path: str | Path, found: ad.AnnData, picture: np.ndarray, size: tuple[int, int]
) -> Path:
    """Write the page.

    Args:
        found: predictions of `prediction.predict_slide`.
        picture: uint8 (h, w, 3) RGB, the whole slide made small.
        size: width and height of the slide in level-0 px.
    """
    title = html.escape(f"Predicted expression on {found.uns['peka']['slide']}")
    # "<" inside JSON could end the script or begin a comment
    data = json.dumps(page_data(found, picture, size), allow_nan=False).replace("<", "\\u003c")
    before, after = TEMPLATE.read_text(encoding="utf-8").split("@DATA@")
    page = before.replace("@TITLE@", title) + data + after
    return write_whole(path, lambda file: file.write_text(page, encoding="utf-8"))


def page_data(found: ad.AnnData, picture: np.ndarray, size: tuple[int, int]) -> dict:
    """All that the page shows: JSON, with arrays in base64 (little endian)."""
    about = found.uns["peka"]
    threshold = float(about["threshold"])
    order = _order(found.var)
    shown = order[: max(1, MOST_VALUES // max(1, found.n_obs))]
    return {
        "slide": str(about["slide"]),
        "width": size[0],
        "height": size[1],
        "um_per_px": float(about["um_per_px"]),
        "side": tile_side(float(about["um_per_px"])),
        "unit": UNIT,
        "trust": trust_sentences(found),
        "model": about_model(found),
        "threshold": threshold if np.isfinite(threshold) else None,
        "names": found.obs_names.tolist(),
        "genes": [_gene(found, i) for i in shown],
        "left_out": len(order) - len(shown),
        "corners": _base64(corners_of(found), "<i4"),
        "values": _base64(found.X[:, shown].T, "<f4"),  # (g, n)
        "distances": _base64(found.obs["distance"], "<f4"),
        "unfamiliar": _base64(found.obs["unfamiliar"], "u1"),
        "colors": _base64(color_table(), "u1"),
        "picture": _jpeg(picture),
    }


def _order(genes: pd.DataFrame) -> np.ndarray:
    """Row numbers (g,): genes that beat the controls first, each part by falling expected PCC."""
    weak, low = ~genes["supported"].to_numpy(bool), -genes["pcc"].fillna(-2).to_numpy()
    return np.lexsort((low, weak))


def _gene(found: ad.AnnData, i: int) -> dict:
    row, values = found.var.iloc[i], np.asarray(found.X[:, i], dtype=float)
    low, high = color_range(values)
    mean = f"Mean over the tiles {values.mean():.2f}"
    if np.isfinite(row.get("mean_low_80", np.nan)):
        mean += f", 80 % interval {row['mean_low_80']:.2f} to {row['mean_high_80']:.2f}"
    return {
        "name": str(found.var_names[i]),
        "pcc": None if pd.isna(row["pcc"]) else float(row["pcc"]),
        "supported": bool(row["supported"]),
        "caption": gene_caption(row),
        "mean_text": f"{mean}.",
        "low_color": low,
        "high_color": high,
    }


def _base64(values, kind: str) -> str:
    array = np.ascontiguousarray(np.asarray(values).astype(kind))
    return base64.b64encode(array.tobytes()).decode("ascii")


def _jpeg(picture: np.ndarray) -> str:
    """A data URI of an RGB picture."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, packed = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(packed.tobytes()).decode("ascii")
