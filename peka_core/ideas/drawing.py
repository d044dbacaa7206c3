"""What the pictures share: colours, a page to draw on, boxes, arrows and small tissue."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, Ellipse, FancyBboxPatch, Rectangle

from ..figures import PALETTE

TRAINS, FIXED = PALETTE["bat"], "#666666"  # what an optimiser changes, and what it does not
IMAGE, COUNTS, LOSS = PALETTE["frozen"], PALETTE["reference"], PALETTE["all"]
WIDTH = 7.0  # inches, the width of a page
TEXT = 8.5  # points


def page(height: float) -> plt.Axes:
    """Axes of a whole page, 100 units wide and as many high as `height` inches give."""
    figure = plt.figure(figsize=(WIDTH, height), layout="none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 100), ylim=(0, 100 * height / WIDTH))
    ax.set_axis_off()
    return ax


def text(ax: plt.Axes, x: float, y: float, words: str, **style) -> None:
    """Words at a place of the page; `style` as in matplotlib."""
    ax.text(x, y, words, **{"fontsize": TEXT, "va": "center", "linespacing": 1.25} | style)


def box(ax: plt.Axes, x: float, y: float, w: float, h: float, words: str, trains: bool) -> None:
    """A rounded box around words: orange where it trains, grey where it is fixed."""
    shape = FancyBboxPatch(
        (x, y),
        w,
        h,
        boxstyle="round,pad=0,rounding_size=1.2",
        facecolor="#FFF0E0" if trains else "#EEEEEE",
        edgecolor=TRAINS if trains else FIXED,
        linewidth=2.5 if trains else 1.2,
    )
    ax.add_patch(shape)
    text(ax, x + w / 2, y + h / 2, words, ha="center")


def arrow(ax: plt.Axes, start, end, color: str = "black", both: bool = False) -> None:
    """An arrow from `start` to `end`, with two heads where `both`."""
    style = {"arrowstyle": "<|-|>" if both else "-|>", "color": color, "lw": 2 if both else 1.3}
    ax.annotate("", end, start, arrowprops=style | {"shrinkA": 0, "shrinkB": 0})


def vector(ax: plt.Axes, x: float, y: float, h: float, n: int, color: str, seed: int) -> None:
    """A column of `n` cells, 3 units wide, in shades of one colour: a vector."""
    for i, shade in enumerate(np.random.default_rng(seed).uniform(0.15, 0.95, n)):
        cell = (x, y + i * h / n)
        ax.add_patch(Rectangle(cell, 3, h / n, facecolor=color, alpha=shade, edgecolor="none"))
        ax.add_patch(Rectangle(cell, 3, h / n, fill=False, edgecolor=color, linewidth=0.6))


def tissue(ax: plt.Axes, x: float, y: float, side: float, seed: int = 3) -> None:
    """A drawn tile: pink ground, purple nuclei."""
    ax.add_patch(Rectangle((x, y), side, side, facecolor="#F4CBD8", edgecolor="black", lw=1))
    rng = np.random.default_rng(seed)
    for px, py, angle in rng.uniform(0.1, 0.9, (24, 3)):
        size = side * rng.uniform(0.09, 0.14)
        centre = (x + px * side, y + py * side)
        nucleus = Ellipse(centre, size, 0.7 * size, angle=180 * angle, color="#5B3A8C", alpha=0.85)
        ax.add_patch(nucleus)


def spot(ax: plt.Axes, x: float, y: float, scored: bool, r: float = 0.72) -> None:
    """A spot of a slide: a circle trains the head, a square is scored."""
    if scored:
        square = (x - 0.9 * r, y - 0.9 * r)
        ax.add_patch(Rectangle(square, 1.8 * r, 1.8 * r, color="black", linewidth=0))
    else:
        ax.add_patch(Circle((x, y), r, facecolor="white", edgecolor="#777777", linewidth=1))
