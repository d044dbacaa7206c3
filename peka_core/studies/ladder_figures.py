"""Figures of the ladder: differences to the frozen encoder, by rung or by value of a choice."""

import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from .. import figures

# set of genes -> marker, colour inside it, and how far its points lie from the row or value. All
# are grey: colours stand for predictors.
GENE_SETS = {
    "all": ("o", figures.OTHER, 0.0),
    "cue": ("D", "#BBBBBB", 0.24),
    "composition": ("s", "#FFFFFF", -0.24),
}


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
    ax = figures.axes(ax, 7, (0.42 if several else 0.28) * len(order) + 1.2)
    for name, part in table.groupby("genes", sort=False):
        y = np.array([order.index(label) for label in part["label"]]) + GENE_SETS[name][2]
        style: dict[str, Any] = _style(name) | {"lw": 1.2}
        mean, size = part["mean"].to_numpy(), 6 if name == "all" else 4
        ax.errorbar(
            y=y, x=mean, xerr=figures.whiskers(part), ms=size, label=f"{name} genes", **style
        )
    if several:
        figures.legend_outside(ax)
    if floor is not None:
        ax.set_xlim(left=floor)
        for row in table[table["mean"] < floor].itertuples():
            height = order.index(row.label) + GENE_SETS[row.genes][2]
            of = f"{row.genes} " if several else ""
            ax.text(floor, height, f" ◂ {of}{row.mean:+.3f}", va="center", fontsize="x-small")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    return figures.name_rows(ax, order, xlabel)


def _style(genes: str) -> dict[str, Any]:
    """How the points of a set of genes look."""
    marker, inside, _ = GENE_SETS[genes]
    return {"fmt": marker, "color": figures.OTHER, "mfc": inside, "capsize": 2}


def curves(table: pd.DataFrame, columns: int = 3) -> list[plt.Axes]:
    """One small panel per curve: mean difference and interval against the value that was changed.

    `table` has the columns `curve`, `value`, `genes`, `mean`, `low`, `high`.
    """
    titles = list(table["curve"].unique())
    axes = figures.grid(len(titles), columns, (7 / columns, 2.6), sharey=True)
    for ax, title in zip(axes, titles, strict=True):
        here = table[table["curve"] == title]
        values = list(here["value"].unique())
        for name, part in here.groupby("genes", sort=False):
            x = np.array([values.index(value) for value in part["value"]])
            x = x + GENE_SETS[name][2] / 2
            style: dict[str, Any] = _style(name) | {"ms": 4, "lw": 1}
            mean, style["label"] = part["mean"].to_numpy(), f"{name} genes"
            ax.errorbar(x, mean, yerr=figures.whiskers(part), **style)
            number = ~part["value"].astype(str).str.isalpha().to_numpy()
            line = "-" if name == "all" else ":"
            ax.plot(x[number], mean[number], line, color=figures.OTHER, lw=1)  # words stay apart
        ax.axhline(0, color="grey", lw=0.8)
        ax.set_xticks(range(len(values)), values)
        ax.set_title(textwrap.fill(title, 60 // columns), fontsize="small")
    for ax in axes[::columns]:
        ax.set_ylabel("PCC minus frozen")
    axes[0].legend(fontsize="x-small")
    return axes
