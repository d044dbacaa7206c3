"""Figure of what a gain is worth: the score of each gene against what the image shows of it."""

import matplotlib.pyplot as plt
import pandas as pd
from scipy.stats import spearmanr

from .. import figures

LABELS = {
    "predictability": "predictability from the image, −ln of Geary's C",
    "moran": "Moran's I on the tissue",
    "ceiling": "highest PCC that counting noise allows",
}


def gene_scatter(
    table: pd.DataFrame, ax: plt.Axes | None = None, x: str = "predictability"
) -> plt.Axes:
    """PCC of each gene, frozen and aligned, against its predictability; a line joins its two dots.

    The legend has Spearman's rank correlation of PCC and `x`, if at least three genes have both.

    Args:
        table: `worth.gene_table`. If its method is `none`, the frozen encoder is shown alone.
        ax: axes, by default new ones.
        x: the column on the x axis: predictability, moran or ceiling.
    """
    method = table["method"].iloc[0]
    shown = [("frozen", "frozen", "o", figures.PALETTE["frozen"])]
    if method != "none":
        color = figures.PALETTE.get(method, figures.OTHER)
        shown.append(("aligned", f"aligned: {method}", "D", color))
    ax, genes = figures.axes(ax, 5, 3.6), table.dropna(subset=[x, "frozen", "aligned"])
    ax.vlines(genes[x], genes["frozen"], genes["aligned"], color="#BBBBBB", lw=1, zorder=1)
    for column, label, marker, color in shown:
        if len(genes) > 2:
            label += f", rank correlation {spearmanr(genes[x], genes[column]).statistic:.2f}"
        ax.plot(genes[x], genes[column], marker, ls="", ms=4, color=color, label=label)
    ax.axhline(0, color="grey", lw=0.8)
    left_out = f" of {len(table)}" if len(genes) < len(table) else ""
    ax.set(xlabel=LABELS[x], ylabel="PCC", title=f"{len(genes)}{left_out} genes, held-out spots")
    ax.legend(fontsize="x-small", loc="best")
    return ax
