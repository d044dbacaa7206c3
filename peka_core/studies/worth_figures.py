"""Figures of chapter 4b: a score between its bars and its ceiling, one gain in several studies."""

import matplotlib.pyplot as plt
import numpy as np
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


def ruler(scores: dict[str, dict[str, float]], colors: dict[str, str]) -> plt.Figure:
    """Scores on one scale from 0 to 1, one row for each of `scores`, best read from left to right.

    Args:
        scores: row -> what was scored -> PCC. A score that is NaN is left out.
        colors: what was scored -> colour; what has none is dark grey.
    """
    axes = figures.grid(len(scores), 1, (7, 1.5), sharex=True)
    for ax, (row, values) in zip(axes, scores.items()):
        ax.axhline(0, color="#BBBBBB", lw=1, zorder=0)
        shown = sorted((value, name) for name, value in values.items() if np.isfinite(value))
        for i, (value, name) in enumerate(shown):
            up, color = (i % 2 == 0), colors.get(name, figures.OTHER)
            far = 1 + (i % 4) // 2  # two heights on each side, so that names do not meet
            ax.plot([value, value], [0, far if up else -far], color=color, lw=0.8, zorder=0)
            ax.plot(value, 0, "o", color=color, ms=8)
            place = {"ha": "center", "va": "bottom" if up else "top", "fontsize": 8}
            ax.text(value, far if up else -far, f"{name} {value:.2f}", color="black", **place)
        ax.set(xlim=(-0.1, 1.05), ylim=(-3.2, 3.2), yticks=[])
        ax.set_ylabel(row, rotation=0, ha="right", va="center")
        ax.spines["left"].set_visible(False)
    axes[-1].set_xlabel("PCC, strict")
    return axes[0].figure


def one_gain(studies: pd.DataFrame) -> plt.Axes:
    """Mean and interval of one gain in several studies (`worth.studies_of_one_gain`)."""
    ax, y = figures.axes(None, 7, 0.34 * len(studies) + 1), np.arange(len(studies))[::-1]
    for over, marker in (("patients", "o"), ("cohorts", "s")):
        rows = (studies["over"] == over).to_numpy()
        style = {"fmt": marker, "color": figures.PALETTE["bat"], "capsize": 3, "ms": 6}
        part = studies[rows]
        ax.errorbar(
            part["mean"], y[rows], xerr=figures.whiskers(part), label=f"over {over}", **style
        )
    names = [
        f"{row.study}: {row.cohorts} x {row.each}, cues {row.cues}" for row in studies.itertuples()
    ]
    figures.name_rows(ax, names, "PCC, bat minus frozen")
    ax.set_yticks(y, names, fontsize=8)
    figures.legend_outside(ax, title="95 % interval")
    return ax
