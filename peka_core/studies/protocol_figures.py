"""Figures of chapter 4: one set of features under several protocols, beside controls."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .. import figures
from ..protocols import Protocol
from ..runner import stages
from ..runner.run import Run
from ..runner.rungs import Rung
from .tables import LABELS

SHORT = {  # the steps of `results/*_steps.csv`, as a figure names them
    "peka_official": "authors' code: shuffled\nspots, zeros dropped",
    "peka_paper": "zeros kept",
    "per section": "r within each section",
    "held-out": "patients or sections\nheld out",
    "strict": "strict: training spots\nchoose everything",
}
STYLES = {  # column -> label, colour, marker
    "frozen": ("frozen encoder", figures.PALETTE["frozen"], "o"),
    "slide_one_hot": ("slide one-hot (control)", figures.PALETTE["control"], "s"),
    "slide_and_library_size": (
        "slide + library size (reference)",
        figures.PALETTE["reference"],
        "D",
    ),
}


def steps_with_depth(steps: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The table of steps with a column for section and library size, which see no pixel.

    Args:
        steps: the table `steps`, one row for each step, with the columns step, frozen and
            slide_one_hot.
        scores: the table `scores` of the same run. It has no such score of held-out patients with
            one fixed penalty, so that cell is empty.
    """
    name = "slide_and_library_size"
    own = scores[(scores["predictor"] == name) & (scores["world"] == "on")]
    own = own[(own["genes"] == "all") & (own["alpha"] == "chosen")]

    def cell(step: str) -> float:
        protocol = step.partition(":")[0]
        rows = own[own["protocol"] == protocol]
        rows = rows[rows["headline"].astype(bool)]
        if step == "per section":
            rows = own[(own["protocol"] == "peka_paper") & (own["pooling"] == "section")]
        return rows["mean"].iloc[0] if len(rows) else np.nan

    return steps.assign(**{name: steps["step"].map(cell)})


def steps(tables: dict[str, pd.DataFrame], guess: Sequence[float] | None = None) -> plt.Figure:
    """The same features from step to step, one panel for each cohort, on one scale.

    Args:
        tables: cohort -> `steps_with_depth`.
        guess: the reader's numbers for the frozen encoder at the second, third and fourth step.
            They are drawn in the last panel.
    """
    size = (7 / len(tables), 3.7)
    axes = figures.grid(len(tables), len(tables), size, sharey=True)
    numbers = pd.concat(tables.values())[list(STYLES)].max().max()
    top = 0.06 + max([numbers, *([] if guess is None else guess)])
    for ax, (name, table) in zip(axes, tables.items()):
        rows = np.arange(len(table))[::-1]
        for column, (label, color, marker) in STYLES.items():
            ax.plot(table[column], rows, marker, color=color, ms=7, label=label)
        ax.plot(table["frozen"], rows, color=STYLES["frozen"][1], lw=1, zorder=1)
        missing = rows[table["slide_one_hot"].isna().to_numpy()]
        style = {"mfc": "none", "mec": "#888888", "ls": "", "ms": 7}
        ax.plot(-0.04 + 0 * missing, missing, "s", label="slide one-hot: undefined", **style)
        ax.set(title=name, xlabel="PCC", xlim=(-0.08, top), ylim=(-0.6, len(table) - 0.5))
        ax.grid(axis="x", color="#EEEEEE")
    keys = table["step"].map(
        lambda step: next(text for key, text in SHORT.items() if step.startswith(key))
    )
    axes[0].set_yticks(rows, keys, fontsize=8)
    if guess is not None:
        style = {"ls": "--", "lw": 1, "color": "black"}
        axes[-1].plot(list(guess)[:3], rows[1:4], "X", ms=8, label="you", **style)
    handles, labels = axes[-1].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return axes[0].figure


def no_pixels(controls: pd.DataFrame, published: pd.Series) -> plt.Axes:
    """Scores of section and depth alone, zeros dropped and kept, beside published values.

    Args:
        controls: the table `controls_her2st`.
        published: PCC by method, drawn as vertical lines.
    """
    rows = controls.query("scheme == 'spots' and pooling == 'pooled'")
    wide = rows.pivot_table(index="label", columns="zeros", values="mean", sort=False)
    wide = wide[["drop", "keep"]].iloc[::-1]
    ax = figures.axes(None, 7, 2.6)
    y = np.arange(len(wide))
    for shift, (zeros, label, hatch) in zip(
        (0.2, -0.2), (("drop", "zeros dropped", "//"), ("keep", "zeros kept", ""))
    ):
        style = {"color": "white", "hatch": hatch} if hatch else {"color": figures.OTHER}
        ax.barh(y + shift, wide[zeros], 0.38, edgecolor=figures.OTHER, label=label, **style)
    for (method, value), line in zip(published.items(), (":", "--")):
        label = f"paper, its breast slides: {method}"
        ax.axvline(value, color="black", ls=line, lw=1.2, label=label)
    ax.set_yticks(y, wide.index)
    ax.set(xlabel="PCC over all sections together", xlim=(0, 1))
    figures.legend_outside(ax)
    return ax


def under_official(tables: dict[str, pd.DataFrame], labels: Sequence[str]) -> plt.Figure:
    """Some predictors under the authors' rules, one panel for each cohort.

    Args:
        tables: cohort -> rows of a `tables.score_table` under `peka_official`, all genes.
        labels: which rows, from above.
    """
    axes = figures.grid(len(tables), 2, (3.5, 0.3 * len(labels) + 1.3), sharey=True)
    rows, keys = np.arange(len(labels))[::-1], {}
    for ax, (name, table) in zip(axes, tables.items()):
        found = table.drop_duplicates("label").set_index("label").reindex(labels)
        for y, row in zip(rows, found.to_dict("records")):
            name_of, kind = row["predictor"], row["kind"]
            color = figures.PALETTE.get(name_of, figures.PALETTE.get(kind, figures.OTHER))
            meaning = figures.MEANINGS.get(name_of, figures.MEANINGS.get(kind, kind))
            label = f"{meaning}: {name_of}" if kind == "student" else meaning
            drawn = ax.plot(row["mean"], y, "o", color=color, ms=7)
            keys.setdefault(label, drawn[0])
        ax.axvline(found["mean"].get("frozen encoder"), color="grey", ls=":", lw=1)
        ax.set(title=name, xlabel="PCC, zeros dropped", xlim=(0, 0.85))
        ax.grid(axis="x", color="#EEEEEE")
    axes[0].set_yticks(rows, labels)
    keys = {label: dot for label, dot in keys.items() if isinstance(label, str)}
    style = {"loc": "outside lower center", "ncols": 4, "fontsize": 8}
    axes[0].figure.legend(keys.values(), keys.keys(), **style)
    return axes[0].figure


def gene_scores(
    work: Run, gene: str, protocols: Sequence[Protocol], predictors: Sequence[Rung | str]
) -> pd.DataFrame:
    """PCC of one gene by protocol and predictor; NaN where it is undefined or no target gene.

    Returns:
        One row for each protocol and one column for each predictor.
    """

    def value(protocol: Protocol, predictor: Rung | str) -> float:
        genes = stages.score(work, predictor, protocol).genes
        rows = genes[(genes["gene"] == gene) & (genes["scheme"] == genes["scheme"].iloc[0])]
        return float(rows["pcc"].iloc[0]) if len(rows) else np.nan

    names = [protocol.name for protocol in protocols]
    made = [[value(protocol, x) for x in predictors] for protocol in protocols]
    return pd.DataFrame(made, index=pd.Index(names, name="protocol"), columns=list(predictors))


def of_gene(table: pd.DataFrame, gene: str) -> plt.Axes:
    """One gene under several protocols (`gene_scores`), one line for each predictor."""
    ax, x = figures.axes(None, 7, 3), np.arange(len(table))
    markers = {"oracle": "*", "frozen": "o", "slide_one_hot": "s", "library_size": "D"}
    for name in table:
        label = LABELS.get(str(name), str(name))
        kind = {"slide_one_hot": "control", "library_size": "reference"}.get(name, name)
        color = figures.PALETTE.get(kind, figures.OTHER)
        ax.plot(x, table[name], marker=markers.get(name, "o"), color=color, label=label)
        height = table[name].ffill().fillna(0)
        for at in np.flatnonzero(table[name].isna()):
            word = "undefined" if table["frozen"].notna().iloc[at] else "no target gene"
            ax.text(at, height.iloc[at], word, ha="center", va="center", fontsize=8, color=color)
    ax.axhline(0, color="grey", lw=0.8)
    ax.set_xticks(x, table.index)
    ax.set(ylabel="PCC", title=f"{gene}: one gene, one encoder, four questions")
    figures.legend_outside(ax)
    return ax
