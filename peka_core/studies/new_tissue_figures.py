"""Figures of chapter 6: what to expect of each gene, maps of a slide, predictions beside counts."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .. import figures
from ..slides.geojson import corners_of
from ..slides.image import Slide
from ..slides.maps import UNIT, color_range, tile_raster
from ..tiles import tile_side

NOT_SUPPORTED = "#AAAAAA"
NAMED = 8  # genes at either end of a long list that have a label


def expected_dots(genes: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """Expected PCC of each gene with its interval, and that of tile colour; the ends are named.

    Args:
        genes: `predict.Model.genes`. Genes that are not supported are grey.
    """
    genes = genes.sort_values("pcc")
    ax, rows = figures.axes(ax, 6, 6), np.arange(len(genes))
    good = genes["supported"].to_numpy(bool)
    ends = np.abs(genes[["low", "high"]].sub(genes["pcc"], axis=0)).to_numpy().T  # (2, g)
    for which, color, label in (
        (good, figures.PALETTE["bat"], "model"),
        (~good, NOT_SUPPORTED, "model, not supported"),
    ):
        if which.any():
            dots = genes["pcc"][which], rows[which]
            ax.errorbar(*dots, xerr=ends[:, which], fmt="o", ms=3, lw=1, color=color, label=label)
    colour = figures.PALETTE["control"]
    ax.plot(genes["pcc_colour"], rows, "|", ms=6, color=colour, label="tile colour")
    ax.axvline(0, color="grey", lw=0.8)
    named = [i for i in rows if i < NAMED or i >= len(rows) - NAMED]
    ax.set_yticks(named, list(genes.index[named]), fontsize=8)
    ax.set(xlabel="PCC in held-out tissue", ylim=(-1, len(genes)))
    ax.legend(fontsize="x-small", loc="lower right")
    return ax


def slide_maps(
    found: ad.AnnData, slide: Slide, genes: list[str], side: int = 800, columns: int = 3
) -> list[plt.Axes]:
    """The slide, a map of each gene, and the unfamiliar tiles.

    Args:
        found: of `slides.prediction.predict_slide` on the lattice.
        genes: some of its genes.
        side: px of the longer side of the slide in the figure.
    """
    picture, px = slide.thumbnail(side)
    shown = ["slide", *genes, "unfamiliar"]
    axes = figures.grid(len(shown), columns, (3.1, 2.7))
    raster = tile_raster(picture.shape[:2], corners_of(found), tile_side(slide.um_per_px), px)
    hidden = np.ma.masked_less(raster, 0)  # (h, w)
    for ax, name in zip(axes, shown):
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[], title=name)
        ax.spines[:].set_visible(False)
        if name in genes:
            ax.set_title(f"{name}, expected PCC {found.var['pcc'][name]:.2f}")
            values = np.asarray(found[:, name].X).ravel()  # (n,)
            low, high = color_range(values)
            layer = np.ma.masked_array(values[hidden.filled(0)], hidden.mask)
            drawn = ax.imshow(layer, vmin=low, vmax=high, alpha=0.85, interpolation="nearest")
            bar = plt.colorbar(drawn, ax=ax, shrink=0.7)
            bar.set_label(UNIT.replace("predicted expression, ", ""), fontsize="x-small")
    flags = found.obs["unfamiliar"].to_numpy()
    dark = 0.6 * np.append(flags, False)[raster]  # (h, w), 0 outside all tiles
    axes[-1].imshow(np.zeros((*raster.shape, 3)), alpha=dark, interpolation="nearest")
    axes[-1].set_title(f"unfamiliar: {flags.mean():.0%} of {len(flags)} tiles")
    figures.scale_bar(axes[0], 1 / (slide.um_per_px * px), 500)
    return axes


def measured_against_expected(table: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """PCC that each gene has on a slide against the PCC that its model's folder expects.

    Args:
        table: `new_tissue.compared`.
    """
    ax = figures.axes(ax, 4.2, 3.8)
    ends = np.abs(table[["low", "high"]].sub(table["expected"], axis=0)).to_numpy().T  # (2, g)
    colors = np.where(table["supported"], figures.PALETTE["bat"], NOT_SUPPORTED)
    ax.errorbar(table["expected"], table["pcc"], xerr=ends, fmt="none", ecolor="#888888", lw=1)
    ax.scatter(table["expected"], table["pcc"], s=12, c=colors, zorder=2)
    ends = [min(table["expected"].min(), table["pcc"].min(), 0), 1]
    ax.plot(ends, ends, color="grey", lw=0.8)
    ends = ", 95 % interval of the mean over patients" if table["low"].notna().any() else ""
    ax.set(xlabel=f"expected PCC{ends}", ylabel="PCC on this slide")
    return ax


def spots_side_by_side(
    found: ad.AnnData, observed: pd.DataFrame, genes: list[str], um_per_px: float
) -> list[plt.Axes]:
    """Predicted and measured expression at the spots of a slide, a row for each gene.

    Args:
        found: of `slides.prediction.predict_slide` at the spots.
        observed: `new_tissue.measured_targets`, in the order of `found`.
        genes: some genes of both.
    """
    axes = figures.grid(2 * len(genes), 2, (3.4, 2.7))
    x, y = (found.obsm["spatial"] * um_per_px).T  # (n,) um
    for gene, pair in zip(genes, (axes[i : i + 2] for i in range(0, len(axes), 2))):
        sides = np.asarray(found[:, gene].X).ravel(), observed[gene].to_numpy()
        r = np.corrcoef(*sides)[0, 1]
        for ax, values, what in zip(pair, sides, ("predicted", f"measured, PCC {r:.2f}")):
            low, high = color_range(values)
            drawn = ax.scatter(x, y, c=values, vmin=low, vmax=high, s=22)
            plt.colorbar(drawn, ax=ax, shrink=0.7).set_label("ln(1 + CP10K)", fontsize="x-small")
            ax.set(xticks=[], yticks=[], aspect="equal", title=f"{gene}: {what}")
            ax.spines[:].set_visible(False)
            ax.invert_yaxis()
    return axes


def slide_means(table: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """Mean of each gene over a slide: predicted with its 80 % interval, and measured.

    Args:
        table: `new_tissue.compared`.
    """
    table = table.sort_values("mean_predicted")
    ax, x = figures.axes(ax, 7.5, 3), np.arange(len(table))
    middle = table[["mean_low_80", "mean_high_80"]].mean(axis=1)
    half = table["mean_high_80"] - middle
    ax.errorbar(
        x, middle, yerr=half, fmt="none", ecolor="#CCCCCC", lw=3, label="80 % interval of the mean"
    )
    ax.plot(x, table["mean_predicted"], ".", color=figures.PALETTE["bat"], label="predicted")
    ax.plot(x, table["mean_measured"], "x", ms=4, color="black", label="measured")
    ax.set_xticks(x, list(table.index), rotation=90, fontsize=8)
    ax.set(ylabel="mean over the slide,\nln(1 + CP10K)", xlim=(-1, len(table)))
    ax.legend(fontsize="x-small", loc="upper left")
    return ax
