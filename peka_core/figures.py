"""Figures of the notebooks: arrays, DataFrame or AnnData in, matplotlib Axes out.

Colours are from the Okabe-Ito and cividis palettes, which colour-blind readers can tell apart.
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.collections import PathCollection
from matplotlib.ticker import MaxNLocator
from scipy.spatial import cKDTree

from .cohort import Cohort, Split
from .common.files import write_whole
from .common.small_pictures import use_small_pictures

PALETTE = {
    "oracle": "#000000", "frozen": "#0072B2", "random": "#999999", "bat": "#D55E00",
    "bone": "#E69F00", "projector_only": "#CC79A7", "control": "#56B4E9", "reference": "#009E73",
    "all": "#882255",  # a student whose alignment saw every spot, beside one that did not
    "lora": "#44AA99", "adalora": "#999933", "full": "#332288", "none": "#6699CC",
}  # fmt: skip
OTHER = "#444444"  # what has no colour of its own
MEANINGS = {
    "oracle": "oracle", "frozen": "frozen encoder", "none": "another frozen encoder",
    "random": "random (untrained) encoder", "student": "aligned",
    "control": "control: a simple predictor",
    "reference": "reference: needs counts",
}  # fmt: skip
TISSUE = {  # none of them is a colour of PALETTE
    "tumour": "#762A83", "gland": "#7FBF7B", "fibroblast": "#F0E442", "lymphocyte": "#5E3C1E",
    "macrophage": "#F7A8B8", "fat": "#D8D0C4",
}  # fmt: skip
# spots that train the head and spots that are scored, as in the picture of the protocols
SIDES = {"training": "#9E9E9E", "test": "#000000", "neither": "#F0F0F0"}
TILE_UM = 112  # field of view of a tile, µm


def use_style() -> None:
    """House style for every figure: page width, readable labels, no top and right spine.

    A page is 7 inches wide. Figures of that width have labels of 8 points or more, since `x-small`
    is the smallest size that is used.
    """
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.85)
    plt.rcParams |= {
        "font.size": 11.6, "axes.titlesize": 10.5, "legend.fontsize": 9,  # x-small: 8.05 points
        "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
        "figure.dpi": 80, "savefig.dpi": 150, "figure.constrained_layout.use": True,
        "axes.spines.top": False, "axes.spines.right": False, "image.cmap": "cividis",
        "legend.frameon": False,
    }  # fmt: skip
    use_small_pictures()


def colors(levels) -> dict[str, tuple | str]:
    """A colour for each category; the tissue types of the demo have colours of their own."""
    if set(levels) <= TISSUE.keys():
        return {level: TISSUE[level] for level in levels}
    palette = sns.color_palette("husl" if len(levels) > 10 else "colorblind", len(levels))
    return dict(zip(levels, palette, strict=True))


def save(figure: plt.Figure, folder: str | Path, name: str) -> None:
    """Write a figure as `<folder>/<name>.png`."""
    write = lambda part: figure.savefig(part, metadata={"Software": None})
    has_layout = figure.get_layout_engine() is not None
    write_whole(Path(folder) / f"{name}.png", write)
    if not has_layout:  # savefig gives such a figure the engine of the house style
        figure.set_layout_engine("none")


def grid(
    n: int, columns: int = 4, size: tuple[float, float] = (2.4, 2.4), **options
) -> list[plt.Axes]:
    """`n` axes in rows of `columns`; `size` is the inches of one panel."""
    columns, rows = min(n, columns), -(-n // min(n, columns))
    options |= {"figsize": (size[0] * columns, size[1] * rows), "squeeze": False}
    axes = plt.subplots(rows, columns, **options)[1]
    for spare in axes.flat[n:]:
        spare.set_axis_off()
    return list(axes.flat[:n])


def axes(ax: plt.Axes | None, width: float, height: float) -> plt.Axes:
    """The given axes, or new ones of a size in inches."""
    return ax or plt.subplots(figsize=(width, height))[1]


def legend_outside(ax: plt.Axes, **options) -> None:
    ax.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1), **options)


def tiles(images: np.ndarray, titles, columns: int = 6) -> list[plt.Axes]:
    """Tiles uint8 `(n, 224, 224, 3)` side by side, with a 50 µm bar on the first."""
    panels = grid(len(images), columns, (1.75, 1.95))
    for ax, image, title in zip(panels, images, titles, strict=True):
        ax.imshow(image, interpolation="nearest")
        ax.set_title(title, fontsize="small")
        ax.set_axis_off()
    scale_bar(panels[0], images.shape[1] / TILE_UM, 50)
    return panels


def scale_bar(ax: plt.Axes, px_per_um: float, length_um: float, color: str = "black") -> None:
    """A bar of `length_um` with its label, in the lower left corner of an image or map."""
    left, right = sorted(ax.get_xlim())
    bottom, top = ax.get_ylim()
    x, y = left + 0.05 * (right - left), bottom + 0.06 * (top - bottom)
    ax.plot([x, x + length_um * px_per_um], [y, y], color=color, lw=2.5, solid_capstyle="butt")
    label = f"{length_um:g} µm" if length_um < 1000 else f"{length_um / 1000:g} mm"
    box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
    style: Any = {
        "color": color,
        "ha": "center",
        "va": "bottom",
        "fontsize": "x-small",
        "bbox": box,
    }
    ax.text(x + length_um * px_per_um / 2, y + 0.02 * (top - bottom), label, **style)


def kind_map(ax: plt.Axes, xy: np.ndarray, kinds, um_per_px: float, every) -> None:
    """A `tissue_map` of kinds `(n,)` of tissue with a legend; `every` lists the cohort's kinds."""
    palette = colors(sorted(every))
    tissue_map(ax, xy, kinds, um_per_px, "kind of tissue", palette=palette)
    dots = [plt.Line2D([], [], marker="o", ls="", color=color) for color in palette.values()]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    ax.legend(dots, list(palette), fontsize="x-small", **place)


def tissue_map(
    ax: plt.Axes, xy: np.ndarray, values, um_per_px: float, title: str = "", **options
) -> PathCollection:
    """Spots of one section at their place, coloured by numbers or categories.

    Args:
        ax, title: the axes and their title.
        xy: `(n, 2)` spot centres, px, y downwards.
        values: `(n,)` numbers, or strings for categories.
        um_per_px: µm of one px.
        options: passed to `scatter` (`vmin`, `vmax`, `cmap`), or `palette` for categories.
    """
    um = np.asarray(xy, float) * um_per_px
    pitch = np.median(cKDTree(um).query(um, k=2)[0][:, 1]) if len(um) > 1 else 100
    box = ax.get_window_extent()
    side = min(box.width, box.height) * 72 / ax.figure.dpi  # of the panel, points
    size = (0.8 * side * pitch / (np.ptp(um, axis=0).max() + 240)) ** 2  # spots nearly touch
    if not pd.api.types.is_numeric_dtype(np.asarray(values)):
        palette = options.pop("palette")
        values = [palette[value] for value in values]
    x, y = um.T
    points = ax.scatter(x, y, c=values, s=size, linewidths=0, **options)
    (left, low), (right, high) = um.min(0) - 120, um.max(0) + (120, 260)
    ax.set(aspect="equal", title=title, xlim=(left, right), ylim=(high, low))
    ax.set_axis_off()
    scale_bar(ax, 1.0, 500)
    return points


def loss_curves(
    histories: dict[str, pd.DataFrame], column: str = "total", ax: plt.Axes | None = None
) -> plt.Axes:
    """Training (solid) and validation (dashed) loss by epoch; a dot marks the epoch that was kept.

    The names of `histories` are `method, split`. A curve has the colour of its method. The curve of
    split `all` has another colour if it is the only such curve, or if that colour is taken.
    """
    ax = axes(ax, 5, 3.2)
    on_all, taken = sum(name.endswith(", all") for name in histories), set()
    others = sns.color_palette("husl", len(histories))
    for (name, history), other in zip(histories.items(), others, strict=True):
        method, _, split = name.rpartition(", ")
        is_all = split == "all"
        key = "all" if is_all and (on_all == 1 or PALETTE.get(method) in taken) else method
        color = PALETTE.get(key, other)
        color = other if color in taken and is_all else color
        taken.add(color)
        ax.plot(history["epoch"], history[column], color=color, label=name)
        kept, shown = history[history["kept"]], column
        validation = f"validation_{column}"
        if validation in history and history[validation].notna().any():
            ax.plot(history["epoch"], history[validation], color=color, ls="--")
            shown = validation if kept[validation].notna().all() else column
        ax.plot(kept["epoch"], kept[shown], "o", color=color)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for style, label in (("-", "training"), ("--", "validation"), ("o", "epoch kept")):
        ax.plot([], [], style, color="grey", label=label)
    loss = {"kd": "L_KD", "struct": "L_struct"}.get(column, column)
    ax.set(xlabel="epoch", ylabel="nats per spot", title=f"{loss} by epoch")
    legend_outside(ax)
    return ax


def score_dots(table: pd.DataFrame, ax: plt.Axes | None = None, label: str = "label") -> plt.Axes:
    """Means with intervals, the best on top; the word `undefined` replaces a mean that is NaN.

    `table` has the columns `label`, `predictor`, `kind`, `mean`, `low`, `high`.
    """
    table = table.sort_values("mean", na_position="first")
    ax, legend = axes(ax, 7.5, 0.3 * len(table) + 1), {}
    for y, (_, row) in enumerate(table.iterrows()):
        predictor, kind = row["predictor"], row["kind"]
        color = PALETTE.get(predictor, PALETTE.get(kind, OTHER))
        if np.isnan(row["mean"]):
            ax.text(0, y, " undefined", fontsize="x-small", va="center", color=color)
        ax.plot([row["low"], row["high"]], [y, y], color=color, lw=2)
        ax.plot(row["mean"], y, "o", color=color)
        meaning = MEANINGS.get(predictor, MEANINGS.get(kind, kind))
        if kind == "student":
            meaning = f"{meaning}: {predictor.replace('_', ' ')}"
        legend[meaning] = color
    for meaning, color in reversed(legend.items()):
        ax.plot([], [], "o", color=color, label=meaning)
    ax.set_ylim(-0.7, len(table) - 0.3)
    legend_outside(ax)
    return name_rows(ax, table[label], "PCC")


def paired_dots(differences: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """One dot per patient for aligned minus frozen, with mean and t interval; one row per method.

    `differences` has the columns label, predictor, mean, low, high and values (by patient).
    """
    ax = axes(ax, 6.5, 0.45 * len(differences) + 1)
    rows = differences.iloc[::-1]
    for y, (_, row) in enumerate(rows.iterrows()):
        values, color = row["values"].dropna(), PALETTE.get(row["predictor"], OTHER)
        heights = y + 0.22 * np.linspace(-1, 1, len(values))
        ax.plot(values, heights, "o", ms=3.5, alpha=0.6, color=color, mew=0)
    style: dict[str, Any] = {"color": "black", "fmt": "|", "ms": 11, "capsize": 3}
    ax.errorbar(rows["mean"], range(len(rows)), xerr=whiskers(rows), **style)
    return name_rows(ax, rows["label"], "PCC, aligned minus frozen")


def name_rows(ax: plt.Axes, names, xlabel: str) -> plt.Axes:
    """The names of rows 0, 1, ... from below, a line at zero, and what x is."""
    ax.axvline(0, color="grey", lw=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=xlabel)
    return ax


def whiskers(table: pd.DataFrame) -> np.ndarray:
    """Distances of `low` and `high` from `mean`, (2, n)."""
    return np.stack([table["mean"] - table["low"], table["high"] - table["mean"]])


def gene_pairs(
    genes: pd.DataFrame, ax: plt.Axes | None = None, method: str = "bat", named: tuple = ()
) -> plt.Axes:
    """The paper's Fig. 2: PCC of each target gene, frozen and aligned, sorted by the frozen value.

    `genes` has the index gene and the columns `frozen` and `aligned`. Of more genes than fit on a
    page, only those in `named` have their name below.
    """
    color = PALETTE.get(method, OTHER)
    genes = genes.dropna().sort_values("frozen")
    ax, x = axes(ax, 7, 3.2), np.arange(len(genes))
    frozen, aligned = genes["frozen"], genes["aligned"]
    better = aligned > frozen
    ax.vlines(x, frozen, aligned, color=np.where(better, color, "#888888"), lw=1.2)
    ax.plot(x, frozen, "o", ms=4, color=PALETTE["frozen"], label="frozen")
    ax.plot(x, aligned, "D", ms=4, color=color, label=f"aligned: {method}")
    shown = np.isin(genes.index, named) if len(genes) > 40 else np.full(len(genes), True)
    ax.set_xticks(x[shown], genes.index[shown], rotation=90, fontsize="x-small")
    title = f"aligned is higher for {better.sum()} of {len(genes)} genes"
    ax.set(ylabel="PCC", xlim=(-1, len(genes)), title=title)
    ax.legend(loc="upper left")
    return ax


def embedding(
    coordinates: pd.DataFrame, column: str, ax: plt.Axes, title: str = "", legend: bool = True
) -> plt.Axes:
    """UMAP points coloured by a category, `others` in grey below the rest.

    `coordinates` has the columns `x`, `y` and `column`.
    """
    present = set(coordinates[column].astype(str))
    levels = sorted(present - {"others"}, key=lambda text: (len(text), text))
    palette = ({"others": "#DDDDDD"} if "others" in present else {}) | colors(levels)
    points = coordinates.sort_values(column, key=lambda c: c != "others", kind="stable")
    shades = [palette[str(value)] for value in points[column]]
    ax.scatter(points["x"], points["y"], s=5, linewidths=0, c=shades)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=title)
    if legend and len(levels) <= 10:
        for level, color in palette.items():
            ax.plot([], [], "o", ms=4, color=color, label=level)
        legend_outside(ax, title=column)
    return ax


def split_chart(
    cohort: Cohort, splits: list[Split] | None = None, ax: plt.Axes | None = None
) -> plt.Axes:
    """Which samples train and which test in each split (the cohort's own splits where None)."""
    splits = cohort.splits if splits is None else splits
    samples, sample_of = cohort.samples.index, cohort.obs["sample"].astype(str).to_numpy()
    state = np.zeros((len(splits), len(samples)))  # 0: neither
    for row, split in zip(state, splits, strict=True):
        row[np.isin(samples, np.unique(sample_of[split.train]))] = 1
        row[np.isin(samples, np.unique(sample_of[split.test]))] = 2
    ax = axes(ax, min(max(0.24 * len(samples) + 2, 4.5), 7), 0.3 * len(splits) + 1.2)
    style: dict[str, Any] = {"yticklabels": [split.name for split in splits], "vmax": 2}
    style["cmap"] = [SIDES["neither"], SIDES["training"], SIDES["test"]]
    sns.heatmap(state, vmin=0, cbar=False, linewidths=1, ax=ax, xticklabels=samples, **style)
    ax.tick_params(axis="x", rotation=90, labelsize="x-small")
    ax.tick_params(axis="y", rotation=0)
    ax.set(title="grey: training, black: test, white: neither")
    return ax
