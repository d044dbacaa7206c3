"""Chapter 6 in one picture: tissue with counts, and a slide without."""

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from .drawing import COUNTS, LOSS, arrow, box, page, text, tissue


def two_ways() -> plt.Figure:
    """From a folder of Space Ranger to a model; from a model and a bare slide to maps."""
    ax = page(3.9)  # 100 x 55.7 units
    text(ax, 1.5, 53, "1  A sample with counts: it can teach, and it can test",
         weight="bold", fontsize=10.5)  # fmt: skip
    tissue(ax, 1.5, 35, 11)
    text(ax, 7, 32.6, "image", ha="center")
    text(ax, 14.5, 40.5, "+")
    text(ax, 16.5, 40.5, "counts and\nplaces of\nthe spots", color=COUNTS)
    arrow(ax, (27, 40.5), (31.6, 40.5))
    box(ax, 32, 36, 17.5, 9, "import: do\nboth fit?", False)
    text(ax, 40.7, 33, "pixel size, orientation", ha="center", color=LOSS, fontsize=8)
    arrow(ax, (49.8, 40.5), (53.6, 40.5))
    box(ax, 54, 36, 12, 9, "cohort", False)
    arrow(ax, (66.3, 40.5), (70.1, 40.5))
    box(ax, 70.5, 36, 12, 9, "chapters\n1 to 5", True)
    arrow(ax, (82.8, 40.5), (86.6, 40.5))
    box(ax, 87, 36, 11.5, 9, "model", False)

    ax.add_patch(Rectangle((0, 0), 100, 29.5, facecolor="#EAF1F8"))
    text(ax, 1.5, 27, "2  A slide without counts: maps, and how far to trust them",
         weight="bold", fontsize=10.5)  # fmt: skip
    tissue(ax, 1.5, 8.5, 11, seed=8)
    text(ax, 7, 6, "image", ha="center")
    arrow(ax, (13.5, 14), (20.6, 14))
    text(ax, 17, 17.5, "tiles of\n112 µm", ha="center", fontsize=8)
    box(ax, 21, 9.5, 15, 9, "model", False)
    arrow(ax, (36.3, 16.5), (43.6, 19))
    arrow(ax, (36.3, 14), (43.6, 12.5))
    arrow(ax, (36.3, 11.5), (43.6, 6))
    text(ax, 44.5, 19.5, "a map for each gene", weight="bold")
    text(ax, 44.5, 12.5, "what each gene reached on held-out patients", color=LOSS)
    text(ax, 44.5, 5.5, "which tiles are unlike the training tissue", color=LOSS)
    return ax.figure
