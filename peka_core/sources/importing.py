"""Import a sample of your own into a cohort directory: measured scale, checked orientation, tiles.

    from peka_core.sources.importing import add_sample, read_visium

    raw = read_visium("outs")
    add_sample("my_cohort", raw, image="slide.tif", sample="liver1", patient="P1")

`peka import` does the same. The cohort is what `peka run own --cohort my_cohort` opens.
"""

from dataclasses import replace as replace_fields
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from ..cohort import write_sample
from ..common.errors import PekaError
from ..common.files import free_bytes, one_name
from ..slides import ruler, scale
from ..slides.image import Slide, open_slide, read_tiles
from ..slides.orientation import MARGIN, ORIENTATIONS, Orientation, inside, measure, oriented
from ..slides.same_image import compare
from ..slides.tissue import find_tissue
from .growing import check_beside, patient_name, what_is_missing, write_tables
from .hest_folder import add_hest
from .imported import Imported
from .raw_sample import RawSample, checked
from .staging import check_owner, finish_killed, refuse_known, staged
from .table import read_table
from .visium import read_visium

__all__ = ["Imported", "add_hest", "add_sample", "read_table", "read_visium"]

# ends of the names of Space Ranger's own images. 10x Genomics calls the image at full resolution of
# its public samples CytAssist_..._tissue_image.tif, so a part of the name would not do
SMALL_IMAGES = (
    "tissue_hires_image", "tissue_lowres_image", "cytassist_image", "aligned_fiducials",
    "detected_tissue_image", "aligned_tissue_image", "spatial_enrichment",
)  # fmt: skip
WANTED = (
    "Wanted is the microscope image at full resolution: the file that `spaceranger count` was "
    "given as --image (with CytAssist not the one given as --cytaimage). Positions and scale "
    "factors refer to its pixels. Space Ranger does not copy it into outs/"
)
ROUNDED = 1.1  # px of a small image by which the size that it tells may be off
ALIKE = 0.95  # correlation of the image with Space Ranger's small one; a JPEG of it has 0.999
SHIFTED_UM = 25  # half of a Visium spot
BYTES_OF_TILE = 3 * 224 * 224
FILLED = 0.9  # share of the image; more tissue leaves no ground to compare with


def add_sample(
    cohort: str | Path,
    raw: RawSample,
    image: str | Path,
    sample: str,
    patient: str,
    um_per_px: float | None = None,
    orient: str = "",
    replace: bool = False,
    **columns: str,
) -> Imported:
    """Cut the tiles of a sample and add it to a cohort, whole or not at all.

    Args:
        cohort: the cohort directory; it is made if it does not exist.
        raw: counts and places, from `read_visium` or `read_table`.
        image: the microscope image at full resolution.
        sample: a new name for this section.
        patient: whose tissue it is. Splits hold out patients.
        um_per_px: micrometres per pixel of the image, if you know it. It is compared with what the
            files say, and never replaces it silently.
        orient: one of `ORIENTATIONS`, after a look at the figure; "" checks the given one.
        replace: import a sample anew that the cohort has.
        columns: of samples.csv: organ, disease, license.

    Raises:
        PekaError: an input is wrong, sizes disagree, or the orientation is not clear. The cohort is
            as before.
    """
    cohort, image = Path(cohort), Path(image)
    one_name(sample, "sample")
    if orient and orient not in ORIENTATIONS:
        raise PekaError(f"--orient {orient}: expected one of {', '.join(ORIENTATIONS)}.")
    check_owner(cohort)
    finish_killed(cohort)
    patient = patient_name(cohort, patient)
    refuse_known(cohort, sample, replace)
    _refuse_small_image(raw, image)
    raw = checked(replace_fields(raw, adata=raw.adata.copy(), notes=list(raw.notes)))
    slide = open_slide(image)
    _check_size(raw, slide)
    _check_disk(cohort, raw.adata)
    sizes = _sizes(raw, slide, um_per_px)
    size = scale.agreed(sizes, f"{sample} ({raw.place})")
    found = _orientation(raw, slide, size, orient, sample, cohort)
    if raw.overview and not orient:
        raw.notes += _check_overview(raw.overview, slide, size)
    centres = oriented(raw.adata.obsm["spatial"], orient or "as_given", slide.width, slide.height)
    raw.adata.obsm["spatial"] = centres
    row = {"patient": patient, "organ": "", "disease": "", "technology": raw.technology}
    row |= {"um_per_px": f"{size:.6g}", "license": "", "source": str(raw.place.name)}
    row |= {"evidence": "patient: named at the import"} | columns
    facts: dict = {"image": image.name, "sizes": sizes, "orient": orient or "as_given"}
    facts |= {"orientation": found and found.scores, "notes": raw.notes}
    notes = _add(cohort, raw, slide, sample, size, row, facts, replace)
    return Imported(
        sample, raw.adata.n_obs, raw.adata.n_vars, size, cohort / "ruler" / f"{sample}.png",
        raw.notes + notes, what_is_missing(cohort),
    )  # fmt: skip


def _add(
    cohort: Path, raw: RawSample, slide: Slide, sample: str, size: float, row: dict, facts: dict,
    replace: bool,
) -> list[str]:  # fmt: skip
    """Write tiles, counts, ruler and tables in one step; return notes about the tables."""
    adata = raw.adata
    with staged(cohort) as stage:
        refuse_known(cohort, sample, replace)
        check_beside(cohort, sample, adata)
        for name in (f"adata/{sample}.h5ad", f"patches/{sample}.h5"):
            (stage / name).unlink(missing_ok=True)  # links to files that are replaced
        tiles, corners = read_tiles(slide, adata.obsm["spatial"], size)
        digest = write_sample(stage, sample, tiles, corners, adata.obs_names, adata, size)
        figure = ruler.draw_ruler(slide, adata.obsm["spatial"], size, sample, raw.spot_um)
        ruler.save_figure(figure, stage / "ruler" / f"{sample}.png")
        rows = pd.DataFrame([row | {"tiles_sha256": digest}], index=[sample])
        facts = facts | {"spots": adata.n_obs, "genes": adata.n_vars, "um_per_px": size}
        return write_tables(stage, cohort, rows, {sample: facts})


# ---- the image --------------------------------------------------------------------------------


def _refuse_small_image(raw: RawSample, image: Path) -> None:
    """Refuse the images of Space Ranger's outs, by their names."""
    if part := next((end for end in SMALL_IMAGES if image.stem.lower().endswith(end)), ""):
        raise PekaError(f"{image}: this is Space Ranger's {part}. {WANTED}{_how_large(raw)}.")


def _how_large(raw: RawSample) -> str:
    if raw.expected_size is None:
        return ""
    return "; here it has {:.0f} x {:.0f} px".format(*raw.expected_size)


def _check_size(raw: RawSample, slide: Slide) -> None:
    """Compare the size of the image with what the scale factors say.

    Raises:
        PekaError: it is a small image of the folder, or another image.
    """
    size, found = (slide.width, slide.height), f"{slide.path}: {slide.width} x {slide.height} px"
    if same := next((name for name, small in raw.small_images.items() if small == size), ""):
        raise PekaError(
            f"{found}, the size of {same} in Space Ranger's folder. {WANTED}{_how_large(raw)}."
        )
    wanted = raw.expected_size
    if wanted is None:
        return
    pixel = max(wanted) / max(max(small) for small in raw.small_images.values())  # of a small image
    near = lambda a, b: all(abs(x - y) <= ROUNDED * pixel for x, y in zip(a, b))
    if not near(size, wanted) and not near(size[::-1], wanted):  # turned: the orientation tells
        raise PekaError(
            f"{found}, but the scale factors in {raw.place} belong to an image of "
            f"{wanted[0]:.0f} x {wanted[1]:.0f} px. {WANTED}."
        )


def _check_disk(cohort: Path, adata: ad.AnnData) -> None:
    """Refuse to begin if the disk has too little room for tiles and counts."""
    needed = adata.n_obs * BYTES_OF_TILE + 12 * adata.X.nnz
    if (free := free_bytes(cohort)) < needed:
        raise PekaError(
            f"{cohort}: the tiles and counts of {adata.n_obs:,} spots need up to "
            f"{needed / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free. Free some space, "
            "or give a --cohort on another disk."
        )


def _check_overview(overview: Path, slide: Slide, um_per_px: float) -> list[str]:
    """Compare the image with the small one that Space Ranger made of it; return a note.

    Raises:
        PekaError: the tissue lies elsewhere, or is another one.
    """
    shift, r = compare(slide, overview)
    if np.isnan(r):
        return [f"{overview.name} is blank, so the image could not be compared with it"]
    if r < ALIKE:
        raise PekaError(
            f"{slide.path}: it does not show what Space Ranger's {overview} shows (correlation of "
            f"both, made small: {r:.2f}; expected {ALIKE} or more). {WANTED}. If it is that file, "
            "remove the small image, which belongs to another sample."
        )
    if (np.abs(shift) * um_per_px > SHIFTED_UM).any():
        raise PekaError(
            f"{slide.path}: its tissue lies {shift[0]:+.0f} px in x and {shift[1]:+.0f} px in y "
            f"from where it lies in Space Ranger's {overview}; expected the same place within "
            f"{SHIFTED_UM} um, because positions are px of that image. Was it cropped or padded? "
            f"{WANTED}."
        )
    return [f"the image shows what {overview.name} shows (correlation {r:.3f}, not shifted)"]


def _sizes(raw: RawSample, slide: Slide, um_per_px: float | None) -> dict[str, float]:
    """All pixel sizes by where they come from, the most trusted first."""
    own = {f"the file {slide.path.name}": slide.um_per_px}
    given = {"--um-per-px": np.nan if um_per_px is None else float(um_per_px)}
    return raw.um_per_px | own | given


# ---- the orientation --------------------------------------------------------------------------


def _orientation(
    raw: RawSample, slide: Slide, um_per_px: float, orient: str, sample: str, cohort: Path
) -> Orientation | None:
    """Check where the spots lie on the image, and add notes about it to the sample.

    Raises:
        PekaError: spots lie outside, or the given orientation is not clearly the best and none was
            named.
    """
    _check_inside(raw, slide, orient)
    try:
        mask = find_tissue(slide, um_per_px)
    except PekaError as error:
        if not orient:
            raise
        raw.notes.append(f"orientation {orient} as you said, without a check: {error}")
        return None
    spots, in_tissue = raw.adata.obsm["spatial"], None
    xy, table = spots, raw.positions
    if table is not None and not table.in_tissue.all():
        xy, in_tissue = table[["x", "y"]].to_numpy(float), table.in_tissue.to_numpy()
    found = measure(xy, mask, (slide.width, slide.height), in_tissue)
    raw.notes += _words(raw, found, orient)
    if orient or found.is_clear:
        return found
    path = cohort.absolute().parent / f"{cohort.name}-{sample}-orientation.png"
    title = f"{sample}: name one of these with --orient. Given with each: {found.measure}"
    figure, where = ruler.draw_orientations(slide, spots, found.scores, title), f"Look at {path}"
    try:
        ruler.save_figure(figure, path)
    except PekaError as error:
        where = f"The figure of all eight is missing ({error}) Make room for it"
    best = f" The best is {found.best}." if found.best != "as_given" else ""
    raise PekaError(
        f"{slide.path}: it is not clear that the spots of {raw.place} lie on this image as given. "
        f"Expected as_given to be ahead of the other seven by {MARGIN:.2f}; its lead is "
        f"{found.lead:.3f}.{best}\n{found.in_words()}\n{_cannot_tell(found)}"
        f"{where}, then repeat the command with --orient NAME (--orient as_given keeps the "
        "coordinates). Nothing was imported."
    )


def _check_inside(raw: RawSample, slide: Slide, orient: str) -> None:
    size, spots = (slide.width, slide.height), raw.adata.obsm["spatial"]
    out = ~inside(oriented(spots, orient or "as_given", *size), *size)  # (n,)
    if not out.any():
        return
    fits = [name for name in ORIENTATIONS if inside(oriented(spots, name, *size), *size).all()]
    hint = f" They would all lie inside with --orient {' or '.join(fits)}." if fits else ""
    if "transpose" in fits:
        hint += " Perhaps x and y are swapped."
    low, high = spots.min(axis=0), spots.max(axis=0)
    raise PekaError(
        f"{slide.path}: {out.sum()} of {len(out)} spots lie outside this image of {size[0]} x "
        f"{size[1]} px (x from {low[0]:.0f} to {high[0]:.0f}, y from {low[1]:.0f} to {high[1]:.0f}"
        f"); expected centres in px of the image at full resolution.{hint} {WANTED}."
    )


def _words(raw: RawSample, found: Orientation, orient: str) -> list[str]:
    """Notes about handedness, about the lead, and about what cannot be told."""
    turned = orient in ("flip_x", "flip_y", "transpose", "transverse")
    notes = []
    if raw.mirrored is not None and raw.mirrored != turned:
        notes.append(
            "the array is mirrored in the pixels: x and y were swapped in the table, or the image "
            "was flipped before Space Ranger saw it. The second is legitimate"
        )
    if orient:
        notes.append(f"orientation {orient} as you said. {found.in_words()}")
    else:
        notes.append(
            f"orientation as given: {found.measure} {found.scores['as_given']:.2f}, ahead by "
            f"{found.lead:.2f}"
            + ("" if raw.overview else ". A neighbouring section would score nearly the same")
        )
    return notes


def _cannot_tell(found: Orientation) -> str:
    """Why the orientation may not be clear although it is right."""
    if found.tissue > FILLED:
        return (
            f"The tissue fills the image ({found.tissue:.0%} of it), so no orientation can be told "
            "from it. "
        )
    return (
        f"The mask calls {found.tissue:.0%} of the image tissue. Tissue of a symmetric shape, or a "
        "mask that misses tissue, gives the same result as a wrong image. "
    )
