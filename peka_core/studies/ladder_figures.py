"""Figures of the ladder: differences to the frozen encoder, by rung or by value of a choice."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .. import figures

# set of genes -> colour, and how far its points lie from the row or value
GENE_SETS = {"all": ("#000000", 0.0), "cue": ("#E69F00", 0.24), "composition": ("#56B4E9", -0.24)}


def rungs(
    table: pd.DataFrame,
    ax: plt.Axes | None = None,
    xlabel: str = "PCC minus frozen encoder",
    floor: float | None = None,
) -> plt.Axes:
    """A ladder: one row per rung, in the table's order; mean difference and interval by gene set.

    `table` has the columns `label`, `mean`, `low`, `high`, and `genes` if there are several sets.
    The x axis begins at `floor`; a mean below it is written there as a number with an arrow.
    """
    table = table if "genes" in table else table.assign(genes="all")
    order, several = list(table["label"].unique())[::-1], table["genes"].nunique() > 1
    ax = figures.axes(ax, 7.5, (0.42 if several else 0.28) * len(order) + 1.2)
    for name, part in table.groupby("genes", sort=False):
        color, offset = GENE_SETS[name]
        y = np.array([order.index(label) for label in part["label"]]) + offset
        style: dict[str, Any] = {"fmt": "o", "color": color, "capsize": 2, "lw": 1.2}
        mean, size = part["mean"].to_numpy(), 6 if name == "all" else 4
        ax.errorbar(
            y=y, x=mean, xerr=figures.whiskers(part), ms=size, label=f"{name} genes", **style
        )
    if several:
        figures.legend_outside(ax)
    if floor is not None:
        ax.set_xlim(left=floor)
        for row in table[table["mean"] < floor].itertuples():
            height = order.index(row.label) + GENE_SETS[row.genes][1]
            ax.text(floor, height, f" ◂ {row.mean:+.3f}", va="center", fontsize="x-small")
    return figures.name_rows(ax, order, xlabel)


def curves(table: pd.DataFrame, columns: int = 3) -> list[plt.Axes]:
    """One small panel per curve: mean difference and interval against the value that was changed.

    `table` has the columns `curve`, `value`, `genes`, `mean`, `low`, `high`.
    """
    titles = list(table["curve"].unique())
    axes = figures.grid(len(titles), columns, (3.3, 2.6), sharey=True)
    for ax, title in zip(axes, titles, strict=True):
        here = table[table["curve"] == title]
        values = list(here["value"].unique())
        for name, part in here.groupby("genes", sort=False):
            color, offset = GENE_SETS[name]
            x = np.array([values.index(value) for value in part["value"]]) + offset / 2
            style: dict[str, Any] = {"fmt": "o", "color": color, "ms": 4, "lw": 1, "capsize": 2}
            mean, style["label"] = part["mean"].to_numpy(), f"{name} genes"
            ax.errorbar(x, mean, yerr=figures.whiskers(part), **style)
            number = ~part["value"].astype(str).str.isalpha().to_numpy()
            ax.plot(x[number], mean[number], color=color, lw=1)  # a word is a point off the line
        ax.axhline(0, color="grey", lw=0.8)
        ax.set_xticks(range(len(values)), values)
        ax.set_title(title, fontsize="small")
    for ax in axes[::columns]:
        ax.set_ylabel("PCC minus frozen")
    axes[0].legend(fontsize="xx-small")
    return axes
