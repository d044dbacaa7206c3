"""Chapter 6's example: a slide that its model has not seen, and the counts measured on it later.

On the demo these are drawn patients beyond those of the cohort. On a real cohort of her2st it is
the section of a patient whom the model's split holds out. For other cohorts there is no example,
and the user names a slide.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from ..genes import log_cp10k
from ..runner.run import Run
from ..statistics import pearson
from . import tables


@dataclass(frozen=True)
class SpaceRanger:
    """A measured sample as a laboratory has it."""

    folder: Path  # Space Ranger's output
    image: Path  # the microscope's image at full resolution
    sample: str
    patient: str


@dataclass(frozen=True)
class Example:
    """A slide for prediction.

    Attributes:
        title: what the slide is, in words.
        image: the slide.
        um_per_px: given by the user; None if the file says it.
        split: what the model is trained on, `all` or a split that holds the slide's patient out.
        measured: raw counts (n, G) with obsm["spatial"] (n, 2) in px; None if nobody measured them.
        samples: measured samples to import, may be empty.
    """

    title: str
    image: Path
    um_per_px: float | None
    split: str = "all"
    measured: ad.AnnData | None = None
    samples: list[SpaceRanger] = field(default_factory=list)


def example_of(work: Run, folder: Path, slide: str = "", um_per_px: float = 0) -> Example | None:
    """The example of a run; None if its cohort has none and no slide is named.

    Args:
        folder: where drawn files are written.
        slide: the user's own slide, which comes first.
        um_per_px: its pixel size; 0 if its file says it.
    """
    if slide:
        if work.profile.source == "demo":
            print(
                "This run's model knows drawn tissue and invented genes. For real tissue, name a "
                "run that was trained on real tissue in the first cell."
            )
        return Example(Path(slide).name, Path(slide), um_per_px or None)
    if work.profile.source == "demo":
        return _drawn(work, folder)
    return _held_out_of_her2st(work) if work.profile.source == "her2st" else None


def _drawn(work: Run, folder: Path) -> Example:
    """Three patients beyond the cohort's: two as Space Ranger's folders, one as a slide."""
    from ..drawn.demo import UM_PER_PX
    from ..drawn.new_tissue import draw_visium
    from ..sources.importing import read_visium

    first = work.cohort().obs["patient"].nunique()  # the copied section counts as a patient, too
    drawn = {
        n: draw_visium(folder / f"P{n}", work.cohort().path, n) for n in range(first, first + 3)
    }
    *measured, last = drawn
    samples = [SpaceRanger(drawn[n].folder, drawn[n].image, f"new{n}", f"P{n}") for n in measured]
    counts = read_visium(drawn[last].folder).adata
    title = f"drawn, new patient P{last}"
    return Example(title, drawn[last].image, UM_PER_PX, "all", counts, samples)


def _held_out_of_her2st(work: Run) -> Example | None:
    """The smallest group of sections that a split of patients holds out: its first section."""
    from ..sources import her2st

    cohort = work.cohort()
    sizes = {s.name: int(s.test.sum()) for s in cohort.splits if s.scheme == "patients"}
    if not sizes:
        return None
    split = min(sizes, key=lambda name: sizes[name])
    section = cohort.obs["sample"][work.split(split).test].iloc[0]
    title = f"section {section}, patient held out"
    size = float(cohort.samples.um_per_px[section])
    counts = cohort.adata(section)
    counts.obs_names = counts.obs["barcode"]
    image = her2st._files([section], ["image"])[section]["image"]
    return Example(title, image, size, split, counts)


def compared(found: ad.AnnData, measured: ad.AnnData) -> pd.DataFrame:
    """Predictions at the spots of a slide beside the counts that were measured there.

    Args:
        found: of `slides.prediction.predict_slide` at the spots of `measured`, in its order.
        measured: raw counts (n, G).

    Returns:
        One row for each gene of `found` that was measured: pcc, the mean of both sides, and from
        the model's folder expected, low, high, supported, and the interval of the mean.
    """
    observed = measured_targets(found, measured)  # (n, g)
    genes = list(observed)
    predicted = np.asarray(found[:, genes].X)  # (n, g)
    table = found.var.loc[genes, ["pcc", "low", "high", "supported", "mean_low_80", "mean_high_80"]]
    table = table.rename(columns={"pcc": "expected"})
    table.insert(0, "pcc", pearson(observed.to_numpy(), predicted))
    return table.assign(mean_measured=observed.mean(), mean_predicted=predicted.mean(axis=0))


def measured_targets(found: ad.AnnData, measured: ad.AnnData) -> pd.DataFrame:
    """ln CP10K (n, g) of the genes of `found` that were measured."""
    genes = [gene for gene in found.var_names if gene in measured.var_names]
    spots = measured[:, genes].copy()
    if "total_counts" not in spots.obs:  # over all genes
        spots.obs["total_counts"] = np.asarray(measured.X.sum(axis=1)).ravel()
    return pd.DataFrame(log_cp10k(spots), columns=genes)


def in_one_row(work: Run, example: Example, found, table, agree, flagged: dict) -> pd.DataFrame:
    """The chapter's numbers in one row, with all that they depend on.

    Args:
        found: the prediction on the lattice.
        table: of `compared`.
        agree: of `on_lattice_as_at_spots`.
        flagged: share of unfamiliar tiles by what was changed.
    """
    card = json.loads(found.uns["peka"]["card"])
    held_out, supported = card["held_out"], table["supported"]
    row = {
        "slide": example.title,
        "spots": example.measured.n_obs,
        "tiles": found.n_obs,
        "held out": f"{held_out['n']} {held_out['unit']}s",
        "genes": len(table),
        "supported genes": int(supported.sum()),
        "mean PCC, expected": table["expected"].mean(),
        "mean PCC, measured": table["pcc"].mean(),
        "mean PCC of supported genes, expected": table["expected"][supported].mean(),
        "mean PCC of supported genes, measured": table["pcc"][supported].mean(),
        "map against spots, median r": agree.median(),
        "unfamiliar tiles": found.obs["unfamiliar"].mean(),
    }
    row |= {f"unfamiliar, {name}": share for name, share in flagged.items()}
    return tables.named(work, pd.DataFrame([row]), protocol=card["protocol"])


def on_lattice_as_at_spots(lattice: ad.AnnData, spots: ad.AnnData) -> pd.Series:
    """Correlation of each gene (g,) between spots and the tile of the lattice nearest to each."""
    from scipy.spatial import cKDTree

    _, nearest = cKDTree(lattice.obsm["spatial"]).query(spots.obsm["spatial"])  # (n,)
    values = pearson(np.asarray(spots.X), np.asarray(lattice.X)[nearest])
    return pd.Series(values, index=spots.var_names)
