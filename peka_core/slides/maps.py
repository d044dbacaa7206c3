"""One PNG map of each gene: predicted tiles on the slide, unfamiliar ones hatched."""

import re
from pathlib import Path

import anndata as ad
import cv2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..common.files import write_whole
from ..tiles import tile_side
from .geojson import corners_of
from .trust import gene_caption

UNIT = "predicted expression, ln(1 + CP10K)"
ALPHA = 0.8
RANGE = (1, 99)  # percentiles of a gene's values at the ends of its colours
INCHES, DPI = 8.0, 110  # longer side of the slide in a map
MARGIN = 0.04  # of the length of all tiles, is shown around them
LIGHTER = 0.6  # of the slide's darkness is left in a map
BLACK, WHITE = 1, 2  # kinds of lines


def write_maps(folder: str | Path, found: ad.AnnData, picture: np.ndarray, px: float) -> list[str]:
    """Write `<folder>/<gene>.png` for each gene, and return the names of the files.

    Args:
        found: predictions of `prediction.predict_slide`.
        picture: uint8 (h, w, 3) RGB, the slide made small.
        px: level-0 px of one px of `picture`.
    """
    um_per_px = float(found.uns["peka"]["um_per_px"])
    side = tile_side(um_per_px)
    grey, corners, px = _around(picture, px, corners_of(found), side)  # (h, w)
    places = tile_raster(grey.shape, corners, side, px)
    lines = hatching(places, found.obs["unfamiliar"].to_numpy(), side / px)
    ground, weight = _ground(grey, places, lines)
    figure = Figure((grey.shape[1] / DPI + 1.3, grey.shape[0] / DPI + 0.9), DPI)
    figure.set_layout_engine("constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    layer, colors = ax.imshow(np.zeros((*grey.shape, 3)), interpolation="nearest"), ScalarMappable()
    _add_scale_bar(ax, um_per_px * px, *grey.shape)
    bar = figure.colorbar(colors, ax=ax, shrink=0.7, extend="both", label=UNIT)
    title = figure.suptitle("\n" * 3, fontsize="medium")
    names = file_names(found.var_names)
    for i, name in enumerate(names):
        values = np.asarray(found.X[:, i], dtype=float)
        colors.set_cmap("cividis" if found.var["supported"].iloc[i] else "Greys")
        colors.set_norm(Normalize(*color_range(values)))
        bar.update_normal(colors)
        shown = colors.to_rgba(values)[:, :3].astype(np.float32)  # (n, 3)
        layer.set_data((ground + weight * shown[places]).clip(0, 1))  # (h, w, 3)
        title.set_text(_title(found, i))
        write_whole(Path(folder) / name, lambda file: _save(canvas, file))
        figure.set_layout_engine("none")  # that of the first map holds for all, and is slow
    return names


def _save(canvas: FigureCanvasAgg, file: Path) -> None:
    """Draw the figure once and write it as PNG; savefig would draw it twice."""
    canvas.draw()
    pixels = cv2.cvtColor(np.asarray(canvas.buffer_rgba()), cv2.COLOR_RGBA2BGR)
    file.write_bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 4])[1].tobytes())


def _around(
    picture: np.ndarray, px: float, corners: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The part of the slide around all tiles, in light grey 0..1, about `INCHES` long.

    Returns:
        grey (h, w), the corners (n, 2) in level-0 px from its own, and level-0 px of one px of it.
    """
    margin = max(side, MARGIN * np.ptp(corners, axis=0).max())
    low = np.floor((corners.min(0) - margin) / px).astype(int).clip(0)
    high = np.ceil((corners.max(0) + side + margin) / px).astype(int)
    part = picture[low[1] : high[1], low[0] : high[0]]
    grey = 1 - LIGHTER * (1 - cv2.cvtColor(part, cv2.COLOR_RGB2GRAY) / np.float32(255))
    factor = max(part.shape[:2]) / (INCHES * DPI)
    way = cv2.INTER_AREA if factor > 1 else cv2.INTER_LINEAR
    small = cv2.resize(grey, None, fx=1 / factor, fy=1 / factor, interpolation=way)
    return small, corners - low * px, px * factor


def _ground(
    grey: np.ndarray, places: np.ndarray, lines: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What lies under and over the colours of all genes: (h, w, 3), and their weight (h, w, 1)."""
    weight = np.where((places >= 0) & (lines == 0), np.float32(ALPHA), np.float32(0))
    image = np.select([lines == BLACK, lines == WHITE], [0, 1], grey * (1 - weight))
    return np.repeat(image[..., None], 3, axis=2).astype(np.float32), weight[..., None]


def _title(found: ad.AnnData, i: int) -> str:
    about = found.uns["peka"]
    share = about["share_unfamiliar"]
    if np.isnan(share):
        flags = "no tile can be flagged as unfamiliar"
    elif share == 0:
        flags = "no tile is unfamiliar"
    else:
        flags = f"hatched: unfamiliar tiles ({100 * share:.0f} %)"
    caption = gene_caption(found.var.iloc[i]).replace(": not supported", "\ngrey: not supported")
    return f"{found.var_names[i]} on {about['slide']}\n{caption}\n{flags}; not for diagnosis"


def _add_scale_bar(ax: Axes, um: float, height: int, width: int) -> None:
    """A bar of a round length below the picture, which has `um` in each px."""
    length, start, y = scale_bar(um, width), 0.02 * width, height + 10
    ax.plot([start, start + length / um], [y, y], color="black", lw=3, solid_capstyle="butt")
    ax.text(start, y + 8, length_text(length), va="top", fontsize="small")
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height + 36, -0.5))
    ax.set_axis_off()


def scale_bar(um: float, width: int) -> float:
    """A round length in um, of 1, 2 or 5 times a power of ten, near a fifth of the width."""
    wanted = um * width / 5
    power = 10.0 ** np.floor(np.log10(wanted))
    return float(max(step * power for step in (1, 2, 5) if step * power <= wanted))


def length_text(um: float) -> str:
    """`500 µm` or `2 mm`."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def tile_raster(shape: tuple[int, int], corners: np.ndarray, side: int, px: float) -> np.ndarray:
    """The number of the tile (h, w) at each px of the small picture, or -1 outside all tiles.

    Where tiles overlap, the last one is seen.

    Args:
        corners: (n, 2) top-left corners in level-0 px.
        side: level-0 px of a tile.
        px: level-0 px of one px of the small picture.
    """
    raster = np.full(shape, -1, dtype=np.int32)
    begins = np.maximum(np.rint(corners / px), 0).astype(int)
    ends = np.maximum(np.rint((corners + side) / px).astype(int), begins + 1)
    for i, (begin, end) in enumerate(zip(begins, ends)):
        raster[begin[1] : end[1], begin[0] : end[0]] = i
    return raster


def hatching(places: np.ndarray, flagged: np.ndarray, side: float) -> np.ndarray:
    """Diagonal lines (h, w) over flagged tiles: `BLACK` with an edge of `WHITE`, 0 elsewhere.

    Args:
        places: (h, w) numbers of tiles, as `tile_raster` gives them.
        side: px of a tile in that picture.
    """
    step = max(6, round(side / 2))
    thick = max(1, step // 14)
    y, x = np.ogrid[: places.shape[0], : places.shape[1]]
    phase = (x + y) % step  # (h, w)
    edge = 2 * thick if step >= 12 else thick  # small tiles are not covered by lines
    lines = np.select([phase < thick, phase < edge], [BLACK, WHITE])
    return lines * ((places >= 0) & np.append(flagged, False)[places])


def color_range(values: np.ndarray) -> tuple[float, float]:
    """The values at the two ends of the colours; they differ even if all values are the same."""
    low, high = np.percentile(values, RANGE).tolist()
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def color_table() -> np.ndarray:
    """The 256 colours of matplotlib's cividis, uint8 (256, 3)."""
    return matplotlib.colormaps["cividis"](np.arange(256), bytes=True)[:, :3]


def file_names(genes: pd.Index) -> list[str]:
    """A file name for each gene, all different where upper and lower case are the same."""
    taken: set[str] = set()
    names = []
    for gene in genes:
        plain = re.sub(r"[^\w.+@-]", "_", str(gene), flags=re.ASCII).strip(".")[:100] or "gene"
        name, number = plain, 2
        while name.lower() in taken:
            name, number = f"{plain}_{number}", number + 1
        taken.add(name.lower())
        names.append(f"{name}.png")
    return names
