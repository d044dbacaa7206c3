"""Figure of what a gain is worth: the score of each gene against what the image shows of it."""

import matplotlib.pyplot as plt
import pandas as pd
from scipy.stats import spearmanr

from .. import figures


def gene_scatter(
    table: pd.DataFrame, ax: plt.Axes | None = None, x: str = "predictability", method: str = "bat"
) -> plt.Axes:
    """PCC of each gene, frozen and aligned, against its predictability; a line joins its two dots.

    `table` has the columns `frozen`, `aligned` and `x` (`worth.gene_table`). The legend has
    Spearman's rank correlation of score and `x`.
    """
    labels = {
        "predictability": "predictability from the image, −ln of Geary's C",
        "moran": "Moran's I on the tissue",
        "ceiling": "PCC that noise of counting allows",
    }
    ax, color = figures.axes(ax, 6.5, 3.8), figures.PALETTE.get(method, figures.OTHER)
    genes = table.dropna(subset=[x, "frozen", "aligned"])
    ax.vlines(genes[x], genes["frozen"], genes["aligned"], color="#BBBBBB", lw=1, zorder=1)
    for column, label, marker, shade in (
        ("frozen", "frozen", "o", figures.PALETTE["frozen"]),
        ("aligned", f"aligned: {method}", "D", color),
    ):
        rank = spearmanr(genes[x], genes[column]).statistic
        label = f"{label} (rank correlation {rank:.2f})"
        ax.plot(genes[x], genes[column], marker, ls="", ms=4, color=shade, label=label)
    ax.axhline(0, color="grey", lw=0.8)
    ax.axvline(0, color="grey", lw=0.8, ls=":")
    dropped = len(table) - len(genes)
    left_out = f", {dropped} without a value left out" if dropped else ""
    title = f"{len(genes)} genes, held-out patients{left_out}"
    ax.set(xlabel=labels.get(x, x), ylabel="PCC", title=title)
    ax.legend(fontsize="x-small", loc="best")
    return ax
