"""Figures of the notebooks: arrays, DataFrame or AnnData in, matplotlib Axes out.

Colours are from the Okabe-Ito and cividis palettes, which colour-blind readers can tell apart.
"""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from PIL import Image
from scipy.spatial import cKDTree

from .files import write_whole

PALETTE = {
    "oracle": "#000000",
    "frozen": "#0072B2",
    "random": "#999999",
    "bat": "#D55E00",
    "bone": "#E69F00",
    "projector_only": "#CC79A7",
    "control": "#56B4E9",
    "reference": "#009E73",
    "all": "#882255",
    "lora": "#44AA99",
    "adalora": "#999933",
    "full": "#332288",
    "none": "#6699CC",
}  # "all": a student whose alignment saw every spot, beside one that did not
KEYS = {
    "oracle": "oracle", "frozen": "frozen encoder", "none": "another frozen encoder", "random": "untrained encoder",
    "student": "aligned", "control": "control: no morphology", "reference": "reference: needs counts",
}  # fmt: skip
TISSUE = {
    "tumour": "#0072B2", "gland": "#009E73", "fibroblast": "#F0E442", "lymphocyte": "#000000", "macrophage": "#CC79A7", "fat": "#999999",
}  # fmt: skip
TILE_UM = 112  # field of view of a tile, µm


def use_style() -> None:
    """House style for every figure: page width, readable labels, no top and right spine."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.85)
    plt.rcParams |= {
        "figure.dpi": 80,
        "savefig.dpi": 150,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "image.cmap": "cividis",
        "legend.frameon": False,
        "axes.titlesize": "medium",
    }
    _small_pictures()


def colors(levels) -> dict[str, tuple | str]:
    """A colour for each category: those of drawn tissue have their own."""
    if set(levels) <= TISSUE.keys():
        return {level: TISSUE[level] for level in levels}
    return dict(
        zip(levels, sns.color_palette("husl" if len(levels) > 10 else "colorblind", len(levels)))
    )


def save(figure, folder: str | Path, name: str) -> None:
    """Write a figure as `<folder>/<name>.png`."""
    write_whole(
        Path(folder) / f"{name}.png", lambda path: figure.savefig(path, metadata={"Software": None})
    )


def grid(
    n: int, columns: int = 4, size: tuple[float, float] = (2.4, 2.4), **options
) -> list[plt.Axes]:
    """`n` axes in rows of `columns`; `size` is the inches of one panel."""
    columns = min(n, columns)
    rows = -(-n // columns)
    _, axes = plt.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False, **options
    )
    for spare in axes.flat[n:]:
        spare.set_axis_off()
    return list(axes.flat[:n])


def tiles(images: np.ndarray, titles, columns: int = 6) -> list[plt.Axes]:
    """Tiles uint8 `(n, 224, 224, 3)` side by side, with a 50 µm bar on the first."""
    axes = grid(len(images), columns, (1.75, 1.95))
    for ax, image, title in zip(axes, images, titles):
        ax.imshow(image, interpolation="nearest")
        ax.set_title(title, fontsize="small")
        ax.set_axis_off()
    scale_bar(axes[0], images.shape[1] / TILE_UM, 50)
    return axes


def scale_bar(ax: plt.Axes, px_per_um: float, length_um: float, color: str = "black") -> None:
    """A bar of `length_um` with its label, in the lower left corner of an image or map."""
    left, right = sorted(ax.get_xlim())
    bottom, top = ax.get_ylim()
    x, y = left + 0.05 * (right - left), bottom + 0.06 * (top - bottom)
    ax.plot([x, x + length_um * px_per_um], [y, y], color=color, lw=2.5, solid_capstyle="butt")
    label = f"{length_um:g} µm" if length_um < 1000 else f"{length_um / 1000:g} mm"
    ax.text(
        x + length_um * px_per_um / 2,
        y + 0.02 * (top - bottom),
        label,
        color=color,
        ha="center",
        va="bottom",
        fontsize="x-small",
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1},
    )


def tissue_map(ax: plt.Axes, xy: np.ndarray, values, um_per_px: float, title: str = "", **options):
    """Spots of one section at their place, coloured by a number or a category.

    Args:
        xy: `(n, 2)` spot centres, px, y downwards.
        values: `(n,)` numbers, or strings for categories.
        options: passed to `scatter` (`vmin`, `vmax`, `cmap`), or `palette` for categories.
    """
    um = np.asarray(xy, float) * um_per_px
    pitch = np.median(cKDTree(um).query(um, k=2)[0][:, 1]) if len(um) > 1 else 100
    box = ax.get_window_extent()
    points = min(box.width, box.height) * 72 / ax.figure.dpi  # side of the panel
    size = (
        0.8 * points * pitch / (np.ptp(um, axis=0).max() + 240)
    ) ** 2  # points²: spots nearly touch
    if pd.api.types.is_numeric_dtype(np.asarray(values)):
        drawn = ax.scatter(*um.T, c=values, s=size, linewidths=0, **options)
    else:
        palette = options.pop("palette")
        drawn = ax.scatter(*um.T, c=[palette[v] for v in values], s=size, linewidths=0)
    ax.set(
        aspect="equal",
        title=title,
        xlim=(um[:, 0].min() - 120, um[:, 0].max() + 120),
        ylim=(um[:, 1].max() + 260, um[:, 1].min() - 120),
    )
    ax.set_axis_off()
    scale_bar(ax, 1.0, 500)
    return drawn


def loss_curves(
    histories: dict[str, pd.DataFrame], column: str = "total", ax: plt.Axes | None = None
) -> plt.Axes:
    """Training (solid) and set-aside (dashed) loss of each alignment by epoch; a dot marks the epoch kept.

    `histories`: by `method, split`; the method gives the colour where `PALETTE` has it, or the split `all` where that colour is taken.
    """
    ax = ax or plt.subplots(figsize=(5, 3.2))[1]
    on_all, taken = sum(name.endswith(", all") for name in histories), set()
    for (name, history), other in zip(histories.items(), sns.color_palette("husl", len(histories))):
        method, _, split = name.rpartition(", ")
        color = PALETTE.get(
            "all" if split == "all" and (on_all == 1 or PALETTE.get(method) in taken) else method,
            other,
        )
        color = other if color in taken and split == "all" else color
        taken.add(color)
        ax.plot(history["epoch"], history[column], color=color, label=name)
        held_out = f"aside_{column}"
        if held_out in history and history[held_out].notna().any():
            ax.plot(history["epoch"], history[held_out], color=color, ls="--")
        kept = history[history["kept"]]
        ax.plot(
            kept["epoch"],
            kept[held_out if held_out in kept and kept[held_out].notna().all() else column],
            "o",
            color=color,
        )
    ax.xaxis.get_major_locator().set_params(integer=True)
    for style, label in (("-", "training"), ("--", "set aside"), ("o", "epoch kept")):
        ax.plot([], [], style, color="grey", label=label)
    ax.set(
        xlabel="epoch",
        ylabel="nats a spot",
        title={"kd": "L_KD", "struct": "L_struct"}.get(column, column) + " by epoch",
    )
    ax.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def score_dots(table: pd.DataFrame, ax: plt.Axes | None = None, label: str = "label") -> plt.Axes:
    """Means with their intervals, one row each, best above; rows without interval show the dot alone, undefined ones say so.

    `table`: columns `label`, `predictor`, `kind`, `mean`, `low`, `high`.
    """
    table = table.sort_values("mean", na_position="first")
    ax = ax or plt.subplots(figsize=(7.5, 0.3 * len(table) + 1))[1]
    meaning = {}
    for y, (_, row) in enumerate(table.iterrows()):
        color = PALETTE.get(row["predictor"], PALETTE.get(row["kind"], "#444444"))
        if np.isnan(row["mean"]):
            ax.text(0, y, " undefined", fontsize="x-small", va="center", color=color)
        ax.plot([row["low"], row["high"]], [y, y], color=color, lw=2)
        ax.plot(row["mean"], y, "o", color=color)
        key = KEYS.get(row["predictor"], KEYS.get(row["kind"], row["kind"]))
        meaning |= {
            key
            if row["kind"] != "student"
            else f"{key}: {row['predictor'].replace('_', ' ')}": color
        }
    for key, color in reversed(meaning.items()):
        ax.plot([], [], "o", color=color, label=key)
    ax.set_ylim(-0.7, len(table) - 0.3)
    ax.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    return _name_rows(ax, table[label], "PCC")


def paired_dots(differences: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """One dot a patient for aligned minus frozen, with mean and t interval; one row per method and gene set.

    `differences`: columns `label`, `predictor`, `mean`, `low`, `high`, `values` (Series over patients).
    """
    ax = ax or plt.subplots(figsize=(6.5, 0.45 * len(differences) + 1))[1]
    rows = differences.iloc[::-1]
    for y, (_, row) in enumerate(rows.iterrows()):
        values = row["values"].dropna()
        color = PALETTE.get(row["predictor"], "#444444")
        ax.plot(
            values,
            y + 0.22 * np.linspace(-1, 1, len(values)),
            "o",
            ms=3.5,
            alpha=0.6,
            color=color,
            mew=0,
        )
    ax.errorbar(
        rows["mean"],
        range(len(rows)),
        xerr=_whiskers(rows),
        color="black",
        fmt="|",
        ms=11,
        capsize=3,
    )
    return _name_rows(ax, rows["label"], "PCC, aligned minus frozen")


GENE_SETS = {
    "all": ("#000000", 0.0),
    "cue": ("#E69F00", 0.24),
    "composition": ("#56B4E9", -0.24),
}  # colour, offset


def rungs(
    table: pd.DataFrame,
    ax: plt.Axes | None = None,
    xlabel: str = "PCC minus frozen encoder",
    floor: float | None = None,
) -> plt.Axes:
    """A ladder: one row a rung, in the table's order; mean difference with its interval, for each gene set.

    Args:
        table: columns `label`, `mean`, `low`, `high`, and `genes` where there are several sets.
        floor: where x begins; a mean that lies lower stands there as a number with an arrow.
    """
    table = table if "genes" in table else table.assign(genes="all")
    order = list(table["label"].unique())[::-1]
    ax = (
        ax
        or plt.subplots(
            figsize=(7.5, (0.42 if table["genes"].nunique() > 1 else 0.28) * len(order) + 1.2)
        )[1]
    )
    for name, part in table.groupby("genes", sort=False):
        color, offset = GENE_SETS[name]
        y = np.array([order.index(label) for label in part["label"]]) + offset
        ax.errorbar(
            part["mean"].to_numpy(),
            y,
            xerr=_whiskers(part),
            fmt="o",
            color=color,
            ms=6 if name == "all" else 4,
            capsize=2,
            lw=1.2,
            label=f"{name} genes",
        )
    if table["genes"].nunique() > 1:
        ax.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    if floor is not None:
        ax.set_xlim(left=floor)
        for _, row in table[table["mean"] < floor].iterrows():
            ax.text(
                floor,
                order.index(row["label"]) + GENE_SETS[row["genes"]][1],
                f" ◂ {row['mean']:+.3f}",
                va="center",
                fontsize="x-small",
            )
    return _name_rows(ax, order, xlabel)


def curves(table: pd.DataFrame, columns: int = 3) -> list[plt.Axes]:
    """One small panel a curve: mean difference with its interval against the value that was changed, for each gene set.

    `table`: columns `curve`, `value`, `genes`, `mean`, `low`, `high`.
    """
    titles = list(table["curve"].unique())
    axes = grid(len(titles), columns, (3.3, 2.6), sharey=True)
    for ax, title in zip(axes, titles):
        here = table[table["curve"] == title]
        values = list(here["value"].unique())
        for name, part in here.groupby("genes", sort=False):
            color, offset = GENE_SETS[name]
            x = np.array([values.index(v) for v in part["value"]]) + offset / 2
            ax.errorbar(
                x,
                part["mean"].to_numpy(),
                yerr=_whiskers(part),
                fmt="o",
                color=color,
                ms=4,
                lw=1,
                capsize=2,
                label=f"{name} genes",
            )
            scale = (
                ~part["value"].astype(str).str.isalpha().to_numpy()
            )  # a word is a point beside the curve
            ax.plot(x[scale], part["mean"][scale], color=color, lw=1)
        ax.axhline(0, color="grey", lw=0.8)
        ax.set_xticks(range(len(values)), values)
        ax.set_title(title, fontsize="small")
    for ax in axes[::columns]:
        ax.set_ylabel("PCC minus frozen")
    axes[0].legend(fontsize="xx-small")
    return axes


def _name_rows(ax: plt.Axes, names, xlabel: str) -> plt.Axes:
    """The names of rows 0, 1, ... from below, a line at zero, and what x is."""
    ax.axvline(0, color="grey", lw=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=xlabel)
    return ax


def _whiskers(table: pd.DataFrame) -> np.ndarray:
    """Distances of `low` and `high` from `mean`, (2, n)."""
    return np.stack([table["mean"] - table["low"], table["high"] - table["mean"]])


def gene_pairs(genes: pd.DataFrame, ax: plt.Axes | None = None, method: str = "bat") -> plt.Axes:
    """The paper's Fig. 2: PCC of each target gene, frozen against aligned, sorted by the frozen value.

    `genes`: index gene, columns `frozen`, `aligned`; `method` is what aligned, for colour and key.
    """
    color = PALETTE.get(method, "#444444")
    genes = genes.dropna().sort_values("frozen")
    ax = ax or plt.subplots(figsize=(9, 3.2))[1]
    x = np.arange(len(genes))
    better = genes["aligned"] > genes["frozen"]
    ax.vlines(
        x, genes["frozen"], genes["aligned"], color=np.where(better, color, "#888888"), lw=1.2
    )
    ax.plot(x, genes["frozen"], "o", ms=4, color=PALETTE["frozen"], label="frozen")
    ax.plot(x, genes["aligned"], "D", ms=4, color=color, label=f"aligned: {method}")
    ax.set_xticks(x, genes.index, rotation=90, fontsize="xx-small")
    ax.set(
        ylabel="PCC",
        xlim=(-1, len(genes)),
        title=f"aligned is higher for {better.sum()} of {len(genes)} genes",
    )
    ax.legend(loc="upper left")
    return ax


def embedding(
    coordinates: pd.DataFrame, column: str, ax: plt.Axes, title: str = "", legend: bool = True
) -> plt.Axes:
    """UMAP points coloured by a category, `others` in grey. `coordinates`: columns `x`, `y` and `column`."""
    present = set(coordinates[column].astype(str))
    levels = sorted(present - {"others"}, key=lambda text: (len(text), text))
    palette = ({"others": "#DDDDDD"} if "others" in present else {}) | colors(levels)
    coordinates = coordinates.sort_values(
        column, key=lambda values: values != "others", kind="stable"
    )  # these below
    ax.scatter(
        coordinates["x"],
        coordinates["y"],
        s=5,
        linewidths=0,
        c=[palette[str(v)] for v in coordinates[column]],
    )
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=title)
    if legend and len(levels) <= 10:
        for level, color in palette.items():
            ax.plot([], [], "o", ms=4, color=color, label=level)
        ax.legend(fontsize="x-small", title=column, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def split_chart(cohort, splits=None, ax: plt.Axes | None = None) -> plt.Axes:
    """Which samples train and which test in each split (the cohort's own where None); grey is left out of both."""
    splits = cohort.splits if splits is None else splits
    samples = cohort.samples.index
    state = np.zeros((len(samples), len(splits)))
    sample_of = cohort.obs["sample"].astype(str).to_numpy()
    for column, split in enumerate(splits):
        state[np.isin(samples, np.unique(sample_of[split.train])), column] = 1
        state[np.isin(samples, np.unique(sample_of[split.test])), column] = 2
    ax = (
        ax or plt.subplots(figsize=(max(0.24 * len(samples) + 2, 4.5), 0.35 * len(splits) + 1.2))[1]
    )
    sns.heatmap(
        state.T,
        cmap=["#DDDDDD", PALETTE["frozen"], PALETTE["bone"]],
        vmin=0,
        vmax=2,
        cbar=False,
        linewidths=1,
        ax=ax,
        xticklabels=samples,
        yticklabels=[s.name for s in splits],
    )
    ax.tick_params(axis="x", rotation=90, labelsize="x-small")
    ax.tick_params(axis="y", rotation=0)
    ax.set(title="blue: training, orange: test, grey: neither")
    return ax


def _small_pictures() -> None:
    """In a notebook, show charts as PNG of 256 colours and pictures of tissue as JPEG: a quarter of the size."""
    try:
        formatters = get_ipython().display_formatter.formatters
    except NameError:
        return
    plt.close(plt.figure())  # the inline backend registers its own formatter with the first figure
    for kind in ("PNG", "JPEG"):
        formatters[f"image/{kind.lower()}"].for_type(
            plt.Figure, lambda figure, kind=kind: _picture(figure, kind)
        )


def _picture(figure, kind: str) -> bytes | None:
    """The bytes of a figure if `kind` suits it (JPEG for RGB images, else PNG), otherwise None."""
    tissue = any(image.get_array().ndim == 3 for ax in figure.axes for image in ax.images)
    if tissue != (kind == "JPEG"):
        return None
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=figure.dpi, bbox_inches="tight")
    picture = Image.open(drawn).convert("RGB")
    picture = (
        picture
        if tissue
        else picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    picture.save(small, kind, quality=65, optimize=True)
    return small.getvalue()
