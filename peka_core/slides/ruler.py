"""The ruler: a tile, a spot and a scale bar on the tissue itself, to be looked at by a person.

A wrong pixel size or orientation changes no number that a program could refuse. A person sees at
once that a nucleus would be 40 um wide, or that spots lie beside the tissue.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from ..common.files import write_whole
from ..figures import TILE_UM, scale_bar
from ..layout.patches import read_rows
from ..layout.sections import Section
from .image import Slide
from .orientation import ORIENTATIONS, oriented

SIDE = 900  # px of a panel's image, at most
NEAR_UM, TILE_VIEW_UM = 1000, 168  # width of the second and of the third panel
BARS_UM = (50, 100, 200, 500, 1000, 2000)  # lengths of a scale bar
# dots that show on dark tissue and on pale glass
DOTS: dict[str, Any] = {"s": 5, "c": "#F0E442", "edgecolors": "black", "linewidths": 0.3}
SPOT, TILE = "#0072B2", "#D55E00"  # colours of a spot's circle and of a tile's square


def draw_ruler(
    slide: Slide, centres: np.ndarray, um_per_px: float, title: str, spot_um: float | None = None
) -> Figure:
    """Three views of the tissue, each closer: the whole slide, 1 mm, and one tile.

    Args:
        slide: the picture.
        centres: (n, 2) centres of the spots, px of the slide.
        um_per_px: micrometres per pixel of the slide.
        title: what is shown.
        spot_um: diameter of a spot, if it is known; otherwise only its centre is marked.
    """
    at = int(np.abs(centres - np.median(centres, axis=0)).sum(axis=1).argmin())  # the middle one
    figure = Figure(figsize=(12.6, 4.6), dpi=110, layout="constrained")
    whole, near, tile = figure.subplots(1, 3)
    _whole(whole, slide, centres, um_per_px, centres[at])
    for ax, side_um, bar_um in ((near, NEAR_UM, 200), (tile, TILE_VIEW_UM, 50)):
        _view(ax, slide, centres[at], side_um / um_per_px)
        close = (np.abs(centres - centres[at]) < side_um / um_per_px / 2).all(axis=1)  # (n,)
        for centre in centres[close]:
            _spot(ax, centre, spot_um and spot_um / um_per_px)
        _square(ax, centres[at], TILE_UM / um_per_px)
        scale_bar(ax, 1 / um_per_px, bar_um)
    spots = f"spots of {spot_um:g} µm" if spot_um else "centres of spots"
    near.set_title(f"{NEAR_UM} µm: {spots} and one tile", fontsize="small")
    tile.set_title(f"one tile: {TILE_UM} µm = {TILE_UM / um_per_px:.0f} px", fontsize="small")
    figure.suptitle(f"{title}: {um_per_px:.4f} µm/px", fontsize="medium")
    return figure


def draw_orientations(
    slide: Slide, centres: np.ndarray, scores: dict[str, float], title: str
) -> Figure:
    """The spots on the slide in all eight orientations, each with its name and its score."""
    image, factor = slide.thumbnail(SIDE // 2)
    figure = Figure(figsize=(12.6, 6.8), dpi=110, layout="constrained")
    for ax, name in zip(figure.subplots(2, 4).flat, ORIENTATIONS, strict=True):
        xy = oriented(centres, name, slide.width, slide.height) / factor  # (n, 2) px of the image
        _picture(ax, image, (0, image.shape[1], image.shape[0], 0))
        ax.scatter(*xy.T, **DOTS)
        ax.set_title(f"{name}: {scores[name]:.3f}", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


def draw_tiles(section: Section, spot_um: float | None = None) -> Figure:
    """A ruler from the tiles of a section, without the image of its slide: three tiles."""
    rows = section.tile_rows[
        np.unique(np.linspace(0, len(section.tile_rows) - 1, 5)[1:4].astype(int))
    ]
    tiles = read_rows(section.patches, rows)  # (m, 224, 224, 3)
    figure = Figure(figsize=(3.2 * len(tiles), 3.6), dpi=110, layout="constrained")
    for ax, tile in zip(figure.subplots(1, len(tiles), squeeze=False).flat, tiles):
        side = len(tile)
        _picture(ax, tile, (0, side, side, 0))
        _spot(ax, (side / 2, side / 2), spot_um and spot_um * side / TILE_UM)
        scale_bar(ax, side / TILE_UM, 50)
    size = f"cut at {section.um_per_px:.4f} µm/px of the slide"
    figure.suptitle(f"{section.sample}: tiles of {TILE_UM} µm, {size}", fontsize="medium")
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    return write_whole(path, lambda file: figure.savefig(file, metadata={"Software": None}))


def _whole(ax: Axes, slide: Slide, centres: np.ndarray, um_per_px: float, at: np.ndarray) -> None:
    """The whole slide with every spot, and where the closer views are."""
    image, _ = slide.thumbnail(SIDE)
    _picture(ax, image, (0, slide.width, slide.height, 0))
    ax.scatter(*centres.T, **DOTS)
    _square(ax, at, NEAR_UM / um_per_px)
    bars = [bar for bar in BARS_UM if bar <= slide.width * um_per_px / 4]
    scale_bar(ax, 1 / um_per_px, max(bars, default=BARS_UM[0]))
    ax.set_title(f"{len(centres)} spots on {slide.path.name}", fontsize="small")


def _view(ax: Axes, slide: Slide, centre: np.ndarray, side: float) -> None:
    """A window of `side` px around a centre, in coordinates of the slide."""
    x, y = (int(c - side / 2) for c in centre)
    px = round(side)
    image = slide.read(x, y, px, px)
    if px > SIDE:
        image = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    _picture(ax, image, (x, x + px, y + px, y))


def _picture(ax: Axes, image: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    ax.imshow(image, extent=extent, interpolation="nearest")
    ax.set(xlim=extent[:2], ylim=extent[2:])
    ax.set_axis_off()


def _spot(ax: Axes, centre, diameter: float | None) -> None:
    """A circle of a spot's size in px, or a cross at its centre."""
    style: dict[str, Any] = {"fill": False, "edgecolor": SPOT, "linewidth": 1.5}
    if diameter:
        ax.add_patch(Circle(tuple(centre), diameter / 2, **style))
    else:
        ax.plot(*centre, "+", color=SPOT, ms=9, mew=1.5)


def _square(ax: Axes, centre: np.ndarray, side: float) -> None:
    style: dict[str, Any] = {"fill": False, "edgecolor": TILE, "linewidth": 2}
    ax.add_patch(Rectangle(tuple(np.asarray(centre) - side / 2), side, side, **style))
