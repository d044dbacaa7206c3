"""PEKA in one picture: alignment above, scoring below."""

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from .drawing import COUNTS, FIXED, IMAGE, LOSS, TRAINS, arrow, box, page, text, tissue, vector

GENES = (("MUC1", 12), ("CD3E", 0), ("KRT7", 5), ("COL1A1", 1))


def pipeline() -> plt.Figure:
    """The two floors of PEKA: counts teach an image encoder; then genes are read off the image.

    Orange trains and grey is fixed. Paper: Fig. 1, Eq. 2 to 6 above, Eq. 1 and 7 below.
    """
    ax = page(5.15)  # 100 x 73.6 units
    _alignment(ax)
    _scoring(ax)
    return ax.figure


def _alignment(ax: plt.Axes) -> None:
    text(ax, 1.5, 71, "1  Alignment: the counts of training spots teach the image encoder",
         weight="bold", fontsize=10.5)  # fmt: skip
    box(ax, 72, 65.2, 4, 2.4, "", trains=False)
    text(ax, 77, 66.4, "is fixed")
    box(ax, 86, 65.2, 4, 2.4, "", trains=True)
    text(ax, 91, 66.4, "trains")

    text(ax, 1.5, 61.5, "a spot's picture")
    tissue(ax, 1.5, 48, 11.5)
    arrow(ax, (13.5, 53.7), (18.2, 53.7))
    box(ax, 18.5, 46.5, 21, 14.5, "", trains=False)
    text(ax, 29, 58.7, "encoder F, frozen", ha="center")
    for i in range(4):  # blocks of the network, each with an adapter
        ax.add_patch(Rectangle((20.6 + 4.6 * i, 48.3), 2.2, 8, facecolor="#CCCCCC", ec=FIXED))
        ax.add_patch(Rectangle((22.8 + 4.6 * i, 48.3), 1.5, 8, facecolor=TRAINS, ec=TRAINS))
    text(ax, 29, 44.2, "+ small adapters in its layers", ha="center", color=TRAINS, weight="bold")
    arrow(ax, (39.8, 53.7), (44.6, 53.7))
    text(ax, 46.4, 61.5, "features", ha="center", color=IMAGE)
    vector(ax, 45, 48, 11.5, 8, IMAGE, seed=0)
    arrow(ax, (48.3, 53.7), (52.7, 53.7))
    box(ax, 53, 49.5, 13.5, 8.5, "projector", trains=True)
    arrow(ax, (66.8, 53.7), (70.6, 53.7))
    text(ax, 72.4, 61.5, "S, the guess", ha="center", color=COUNTS, weight="bold")
    vector(ax, 71, 50, 7.5, 5, COUNTS, seed=1)
    arrow(ax, (74.3, 53.7), (85.2, 53.7))
    box(ax, 85.5, 49.5, 13.3, 8.5, "linear\nclassifier", trains=True)

    text(ax, 1.5, 39, "the counts of\nthe same spot")
    for i, (gene, count) in enumerate(GENES):
        text(ax, 1.5, 33.8 - 2.5 * i, f"{gene:<7}{count:>2}", family="monospace", fontsize=8)
    arrow(ax, (13.5, 30), (18.2, 30))
    box(ax, 18.5, 24.5, 21, 11, "teacher T, fixed: a\nsingle-cell model\n(on the demo, PCA)", False)
    arrow(ax, (39.8, 30), (70.6, 30))
    vector(ax, 71, 26.3, 7.5, 5, COUNTS, seed=2)
    text(ax, 72.4, 23.6, "T, the answer", ha="center", color=COUNTS, weight="bold")
    arrow(ax, (74.3, 30), (85.2, 30))
    text(ax, 79.6, 31.9, "k-means", ha="center", fontsize=8)
    box(ax, 85.5, 25.8, 13.3, 8.5, "cluster\nof T", trains=False)

    arrow(ax, (72.5, 49.6), (72.5, 34.3), LOSS, both=True)
    text(ax, 71, 43.5, "$L_{KD}$", ha="right", color=LOSS, fontsize=13)
    text(ax, 71, 39, "are the same\ncomponents high?", ha="right")
    arrow(ax, (92.2, 49), (92.2, 34.8), LOSS, both=True)
    text(ax, 90.7, 43.5, "$L_{struct}$", ha="right", color=LOSS, fontsize=13)
    text(ax, 90.7, 39, "the same\ncluster?", ha="right")


def _scoring(ax: plt.Axes) -> None:
    ax.add_patch(Rectangle((0, 0), 100, 21.3, facecolor="#EAF1F8"))
    text(ax, 1.5, 18.7, "2  Scoring: the teacher is gone. Which genes can be read off the picture?",
         weight="bold", fontsize=10.5)  # fmt: skip
    tissue(ax, 1.5, 4.6, 11.2)
    arrow(ax, (13.2, 10.2), (18.2, 10.2))
    box(ax, 18.5, 5.4, 21, 9.5, "aligned encoder,\nno longer trained", trains=False)
    arrow(ax, (39.8, 10.2), (44.6, 10.2))
    vector(ax, 45, 4.6, 11.2, 8, IMAGE, seed=0)
    arrow(ax, (48.3, 10.2), (52.7, 10.2))
    box(ax, 53, 5.4, 16, 9.5, "head:\nPCA, then ridge", trains=True)
    arrow(ax, (69.3, 10.2), (73.6, 10.2))
    text(ax, 74.5, 10.2, "50 genes, predicted and\ncompared with the\nmeasured ones: PCC")
    text(ax, 1.5, 2, 'The head learns from training spots and is tested on others. It may also '
         'read S ("projected"), as in the paper.', style="italic", fontsize=8)  # fmt: skip
