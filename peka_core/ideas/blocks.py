"""Bone and Bat as blocks of a weight matrix, with numbers that `bone.py` computes."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle

from .. import bone
from .drawing import TRAINS, page, text

SIDE = 4  # the blocks of the picture are 4 x 4
LIMIT = 1.6  # colour scale of all matrices


def blocks() -> plt.Figure:
    """A frozen weight, the trained blocks beside it, and what Bone and Bat add to the weight.

    Positive numbers have a dot, so that the picture survives grey print. Paper: Eq. 2 and 3.
    """
    rng = np.random.default_rng(4)
    weight = torch.as_tensor(rng.normal(0, 0.6, (4 * SIDE, 3 * SIDE)))  # (16, 12)
    trained = torch.as_tensor(rng.normal(0, 0.7, (4, SIDE, SIDE)))  # one block for each row
    adds_bone = bone.bone_weight(weight, trained) - weight
    adds_bat = bone.bat_weight(weight, trained) - weight
    ax = page(6.8)  # 100 x 97.1 units
    text(
        ax, 1.5, 94.7, "A frozen weight matrix W is cut into blocks.", weight="bold", fontsize=10.5
    )
    text(ax, 1.5, 91.6, "All blocks of one row share one small trained matrix.", weight="bold",
         fontsize=10.5)  # fmt: skip
    size = 2.05
    _matrix(ax, 8, 85.5, weight, size, "W, frozen", "outputs", "inputs")
    column = trained.reshape(-1, SIDE)
    _matrix(ax, 40, 85.5, column, size, "B, trained", edge=TRAINS)
    for row in range(4):
        text(ax, 49, 85.5 - (4 * row + 2) * size - 0.45 * row, f"$B_{row + 1}$", color=TRAINS)
    _equation(ax, weight, trained, adds_bat)
    _matrix(ax, 8, 40.5, adds_bone, size, "Bone adds copies of B", "outputs", "inputs")
    _matrix(ax, 40, 40.5, adds_bat, size, "Bat adds products with W", "", "inputs")
    text(ax, 70, 37, "How many are trained?", weight="bold", fontsize=9.5)
    text(ax, 70, 32.4, "Here W has 192 numbers,\nand B has 64: four times\n4 × 4.")
    text(ax, 70, 23.8, "H-optimus-0, blocks of 256\nin every qkv layer: 47\nmillion, 4.2 % of it.")
    text(ax, 70, 15.2, "B starts at zero: before\ntraining, the encoder is\nthe frozen one.")
    return ax.figure


def _matrix(ax, x, top, values, size, title, rows="", columns="", edge="black") -> None:
    """A matrix as coloured cells from the top left corner, with a gap between its blocks."""
    n, m = values.shape
    gap = 0.45
    for i in range(n):
        for j in range(m):
            cell = (x + j * size + j // SIDE * gap, top - (i + 1) * size - i // SIDE * gap)
            _cell(ax, cell, size, float(values[i, j]))
    width = m * size + (m // SIDE - 1) * gap
    height = n * size + (n // SIDE - 1) * gap
    first = (x - 0.2, top - SIDE * size - 0.2)
    ax.add_patch(Rectangle(first, width + 0.4, SIDE * size + 0.4, fill=False, ec=edge, lw=1.8))
    color = TRAINS if edge == TRAINS else "black"
    text(ax, x + width / 2, top + 2.2, title, ha="center", color=color)
    text(ax, x - 2.2, top - height / 2, rows, rotation=90, ha="center", fontsize=8)
    text(ax, x + width / 2, top - height - 2.2, columns, ha="center", fontsize=8)


def _cell(ax, corner, size, value) -> None:
    shade = plt.get_cmap("PuOr")(0.5 + 0.5 * np.clip(value / LIMIT, -1, 1))
    ax.add_patch(Rectangle(corner, size, size, facecolor=shade, edgecolor="white", linewidth=0.3))
    if value > 0.15:
        middle = (corner[0] + size / 2, corner[1] + size / 2)
        ax.plot(*middle, ".", color="black", markersize=1.6)


def _equation(ax, weight, trained, adds_bat) -> None:
    """The second block of the framed row: what is added to it by either method."""
    block = (slice(0, SIDE), slice(SIDE, 2 * SIDE))
    text(ax, 57, 84, "Take the second block of the black frame.")
    text(ax, 57, 80, "Bone adds", weight="bold", fontsize=9.5)
    _small(ax, 57, 77.8, trained[0], "$B_1$", TRAINS)
    text(ax, 66, 74.3, "the same in every block of the row")
    text(ax, 57, 66, "Bat adds (the paper's Eq. 3)", weight="bold", fontsize=9.5)
    parts = [(weight[block], "$W_{12}$", "black"), (trained[0], "$B_1$", TRAINS),
             (trained[0], "$B_1$", TRAINS), (adds_bat[block], "added", "black")]  # fmt: skip
    for i, ((values, name, edge), sign) in enumerate(zip(parts, ("·", "+", "=", ""))):
        _small(ax, 57 + 10.7 * i, 63.8, values, name, edge)
        text(ax, 57 + 10.7 * i + 8.95, 60.4, sign, ha="center", fontsize=12)
    text(ax, 57, 51.7, "Violet with a dot is positive, orange is negative.", fontsize=8)


def _small(ax, x, top, values, name, edge) -> None:
    size = 1.75
    for i in range(SIDE):
        for j in range(SIDE):
            _cell(ax, (x + j * size, top - (i + 1) * size), size, float(values[i, j]))
    whole = (x - 0.15, top - SIDE * size - 0.15)
    ax.add_patch(
        Rectangle(whole, SIDE * size + 0.3, SIDE * size + 0.3, fill=False, ec=edge, lw=1.6)
    )
    text(ax, x + SIDE * size / 2, top - SIDE * size - 2, name, ha="center", color=edge)
