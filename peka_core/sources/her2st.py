"""her2st (Andersson et al. 2021): real HER2-positive breast cancer sections as a cohort.

There are 36 sections of 8 patients. A section's name is the patient's letter and a number.
Neighbouring sections of a patient are near-copies of one tissue. Each section has three files:
counts (spots are called `XxY`), selection (the same x, y, and the measured pixel centre) and the
H&E image. Spots are joined by name. The array is a square grid of 200 um.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import anndata as ad
import cv2
import numpy as np
import pandas as pd
from scipy import sparse, stats

from ..cohort import open_cohort, write_cohort_tables, write_sample
from ..common.errors import PekaError
from ..common.file_kinds import what_is
from ..downloads import fetch as downloads
from ..downloads import manifest
from ..downloads.network import without_secrets
from ..genes import top_genes
from ..tiles import cut_tiles
from . import building

SECTIONS = ("B4", "C2", "C3", "C4", "C5")
PITCH_UM = 200.0  # between neighbouring spots, in x and in y
RECIPE = 1  # raise it when the same options would give another cohort
N_GENES = 50
# kind of a file -> its folder in the manifest, and what follows the section's name in its path
KINDS = {
    "counts": ("/ST-cnts/", ".tsv.gz"),
    "selection": ("/ST-spotfiles/", "_selection.tsv"),
    "image": ("/ST-imgs/", "/"),
}
# of an image, unless OPENCV_IO_MAX_IMAGE_PIXELS was another number when cv2 was imported
OPENCV_PIXELS = 2**30


def build(path: str | Path, sections: Iterable[str] | str = SECTIONS, min_umi: int = 100) -> Path:
    """Write her2st sections as a cohort directory.

    A finished cohort with the same options is left alone; a half-built one is completed.
    The default sections are split by section within patient C (0 to 3), then B4 -> C and C -> B4.
    Other sets leave out one patient, or one section where there is one patient.

    Args:
        path: cohort directory.
        sections: section names, or "all" for the 36.
        min_umi: spots with fewer counts are dropped, because log-normalised counts of near-empty
            spots are noise.

    Raises:
        PekaError: a section is unknown, a file is missing in the mirror or not as pinned, or the
            directory was built by another source.
    """
    path, sections = Path(path), _names(sections)
    options = {"source": "her2st", "recipe": RECIPE, "sections": sections, "min_umi": int(min_umi)}
    if building.is_built(path, options):
        return path
    raw = _files(sections)
    facts = building.claim(path, options)
    for section in sections:
        if section not in facts or not building.has_section(path, section):
            facts[section] = _build_section(path, section, raw[section], int(min_umi))
            building.save_facts(path, options, facts)
    _write_tables(path, {section: facts[section] for section in sections})
    building.mark_built(path, options, facts)
    return path


def fetch(sections: Iterable[str] | str = SECTIONS, dry_run: bool = False) -> list[Path]:
    """Download (or find in PEKA_MIRROR) and verify files; with `dry_run` only list them."""
    return downloads.fetch(downloads_of(sections), dry_run)


def preflight(sections: Iterable[str] | str = SECTIONS) -> None:
    """Refuse sections whose files are not here and cannot be downloaded.

    Raises:
        PekaError: files are missing in the mirror, or the network is switched off.
    """
    downloads.preflight(downloads_of(sections))


# ---- files ------------------------------------------------------------------------------------


def section_names() -> list[str]:
    """Names of the sections in the manifest."""
    files = manifest.load_manifest()["sources"]["her2st"]["files"]
    return sorted(Path(file).name.split(".")[0] for file in files if "/ST-cnts/" in file)


def _names(sections: Iterable[str] | str) -> list[str]:
    """Sections as a sorted list without repeats, from a list, "all", or names in one string."""
    known = section_names()
    if isinstance(sections, str):
        sections = known if sections == "all" else sections.replace(",", " ").split()
    sections = sorted(set(sections))
    if not sections or set(sections) - set(known):
        raise PekaError(
            f"her2st: sections {sections} asked for; expected some of {', '.join(known)}, or all."
        )
    return sections


def downloads_of(
    sections: Iterable[str] | str, kinds: Iterable[str] = KINDS
) -> list[manifest.Download]:
    """The files of some sections, section by section."""
    files = manifest.load_manifest()["sources"]["her2st"]["files"]
    parts = [(KINDS[kind][0], f"/{s}{KINDS[kind][1]}") for s in _names(sections) for kind in kinds]
    paths = [next(f for f in files if folder in f and end in f) for folder, end in parts]
    return manifest.source_files("her2st", paths)


def _files(sections: list[str], kinds: Iterable[str] = KINDS) -> dict[str, dict[str, Path]]:
    """Verified local paths of every section's files, by kind; sections in the order of names."""
    local = iter(downloads.fetch(downloads_of(sections, kinds)))
    return {section: {kind: next(local) for kind in kinds} for section in sections}


# ---- one section ------------------------------------------------------------------------------


def _build_section(path: Path, section: str, raw: dict[str, Path], min_umi: int) -> dict:
    """Write the two files of one section; return numbers of spots, pixel size and digest."""
    counts, spots = read_spots(raw["counts"], raw["selection"])
    um_per_px = pixel_size(spots)
    deep = counts.sum(axis=1) >= min_umi
    adata = _adata(counts[deep], spots)
    tiles, corners = cut_tiles(read_image(raw["image"]), adata.obsm["spatial"], um_per_px)
    digest = write_sample(path, section, tiles, corners, adata.obs_names, adata, um_per_px)
    return {
        "spots": int(deep.sum()),
        "without_counts": len(spots) - len(counts),
        "below_min_umi": int((~deep).sum()),
        "um_per_px": um_per_px,
        "tiles_sha256": digest,
    }


def read_spots(counts_file: Path, selection_file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read counts and selection of a section, both by spot name `XxY`.

    Returns:
        counts (n, G) of the spots that are in both files, and the selection of all spots.

    Raises:
        PekaError: the two files share no spot.
    """
    counts = pd.read_csv(counts_file, sep="\t", index_col=0)
    spots = pd.read_csv(selection_file, sep="\t")
    spots.index = spots.x.astype(str) + "x" + spots.y.astype(str)
    both = counts.index[counts.index.isin(spots.index)]
    if not len(both):
        raise PekaError(
            f"{selection_file}: no spot in common with {counts_file.name}; expected the same "
            "section. Fetch both again."
        )
    return counts.loc[both], spots


def read_counts(sections: Iterable[str] | str) -> ad.AnnData:
    """Raw counts of some sections over the union of their genes, without images.

    Predictors without pixels need no more.

    Returns:
        counts (n, G), sections in the order of their names, spots as in the files; obs sample,
        patient, group, duplicate_of and total_counts; obsm["spatial"] in array units of 200 um.
    """
    parts = []
    for section, raw in _files(_names(sections), ("counts", "selection")).items():
        counts, spots = read_spots(raw["counts"], raw["selection"])
        part = _adata(counts, spots)
        array_xy = spots.loc[counts.index, ["new_x", "new_y"]]
        part.obsm["spatial"] = array_xy.to_numpy(dtype=np.float64)  # (n, 2)
        part.obs = part.obs.assign(
            sample=section,
            patient=section[0],
            group=section[0],
            duplicate_of="",
            total_counts=counts.sum(axis=1).astype(float),
        ).set_axis(section + ":" + part.obs_names)
        parts.append(part)
    return ad.concat(parts, join="outer", fill_value=0)


def pixel_size(spots: pd.DataFrame) -> float:
    """Micrometres per pixel, the mean of x and y, from measured array and pixel positions.

    The pitch in px is the Theil-Sen slope of pixel against array position, so that a few misplaced
    spots or rounded pixels (section A6) do not change it.
    """
    pairs = [(spots[f"pixel_{axis}"], spots[f"new_{axis}"]) for axis in "xy"]
    pitch = [stats.theilslopes(*pair).slope for pair in pairs]  # px per 200 um
    return float(np.mean([PITCH_UM / p for p in pitch]))


def _adata(counts: pd.DataFrame, spots: pd.DataFrame) -> ad.AnnData:
    """Raw counts with the measured spot centres in slide pixels."""
    adata = ad.AnnData(
        sparse.csr_matrix(counts.to_numpy(), dtype=np.float32),
        obs=pd.DataFrame(index=counts.index.astype(str)),
        var=pd.DataFrame(index=counts.columns.astype(str)),
    )
    pixel_xy = spots.loc[counts.index, ["pixel_x", "pixel_y"]]
    adata.obsm["spatial"] = pixel_xy.to_numpy(dtype=np.float64)  # (n, 2)
    return adata


def read_image(path: Path) -> np.ndarray:
    """Read an image file as uint8 (H, W, 3) RGB; an EXIF orientation is ignored.

    Raises:
        PekaError: it is no image, is cut off, or has more pixels than OpenCV reads.
    """
    path = Path(path)
    if not path.is_file():
        raise PekaError(f"{path}: missing; expected an image (JPEG or TIFF). Fetch it again.")
    image = None
    try:
        if not _is_cut_off(path):
            image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except (cv2.error, MemoryError) as error:
        raise PekaError(f"{path}: {_too_large(path, error)}") from error
    if image is None:
        kind = what_is(path) or "something else"
        damage = ", but damaged, cut off or of a kind that OpenCV does not read"
        raise PekaError(
            f"{path}: cannot be read; expected an image (JPEG or TIFF), but it is {kind}"
            f"{damage if 'image' in kind else ''}. Get this file again."
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _is_cut_off(path: Path) -> bool:
    """Whether a JPEG has no end mark; OpenCV would fill the missing part with grey silently."""
    if what_is(path) != "a JPEG image":
        return False
    with open(path, "rb") as handle:
        handle.seek(max(0, path.stat().st_size - 2**16))  # some cameras write more behind the mark
        return b"\xff\xd9" not in handle.read()


def _too_large(path: Path, error: Exception) -> str:
    """Why OpenCV refused an image whose header it could read."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow's own, for headers too
    try:
        with Image.open(path) as image:
            width, height = image.size
    except OSError:
        width, height = 0, 0
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    pixels, size = width * height, f"{width} x {height} px, {width * height:,} pixels"
    if "MAX_IMAGE_PIXELS" in str(error):
        own = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", "")
        limit = int(own) if own.isdigit() and int(own) < pixels else OPENCV_PIXELS
        return (
            f"an image of {size}, and OpenCV reads {limit:,} at most. Set "
            f"OPENCV_IO_MAX_IMAGE_PIXELS={pixels} in the environment before Python starts (this "
            f"needs {3 * pixels / 1e9:.1f} GB of memory), then run the same command again."
        )
    why = without_secrets(error)
    return (
        f"an image of {size}, which OpenCV cannot read ({why}). Free memory, or store it smaller."
    )


# ---- tables -----------------------------------------------------------------------------------


def _write_tables(path: Path, facts: dict[str, dict]) -> None:
    """Write the tables, at first without genes: these are chosen on the opened cohort."""
    source = manifest.load_manifest()["sources"]["her2st"]
    columns = {
        "sample_id": list(facts),
        "patient": [section[0] for section in facts],
        "organ": "Breast",
        "disease": "Cancer",
        "technology": "Spatial Transcriptomics",
        "um_per_px": [made["um_per_px"] for made in facts.values()],
        "license": source["license"],
        "source": source["url"],
        "evidence": "patient: first letter of the section's name",
        "tiles_sha256": [made["tiles_sha256"] for made in facts.values()],
    }
    table, splits = pd.DataFrame(columns), make_splits(list(facts))
    write_cohort_tables(path, table, splits, [])
    write_cohort_tables(path, table, splits, top_genes(open_cohort(path), N_GENES))


def make_splits(sections: list[str]) -> list[tuple[list[str], list[str]]]:
    """(training, test) sections of each held-out split; see `build`."""
    if set(sections) == set(SECTIONS):
        c = [s for s in sections if s[0] == "C"]
        return [*_leave_one_out({s: [s] for s in c}), (["B4"], c), (c, ["B4"])]
    patients = {p: [s for s in sections if s[0] == p] for p in sorted({s[0] for s in sections})}
    return _leave_one_out(patients if len(patients) > 1 else {s: [s] for s in sections})


def _leave_one_out(parts: dict[str, list[str]]) -> list[tuple[list[str], list[str]]]:
    train = lambda name: [s for other in parts if other != name for s in parts[other]]
    return [(train(name), parts[name]) for name in parts] if len(parts) > 1 else []
