"""Slides drawn in HEST's layout, an index of their own, and a mirror that holds them."""

import shutil
import warnings

import anndata as ad
import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from draw_hest import row
from draw_hest import write_index as write_rows
from scipy import sparse

from peka_core.cohort import write_sample
from peka_core.common.files import sha256
from peka_core.sources import hest

GENES = [f"G{i:03d}" for i in range(120)]
PANEL = GENES[:55]  # of TENX23
IDS = ("TENX13", "TENX14", "TENX23", "TENX24", "D1", "D2")


def draw_slide(home, sample, genes=GENES, spots=14, seed=0, um_per_px=0.5):
    """A slide in HEST's layout: the last two spots have no tile, tiles stand in the other order,
    one tile has no counts.
    """
    rng = np.random.default_rng(seed)
    bright = rng.uniform(0.3, 1.0, spots)
    tiles = (
        (rng.integers(0, 256, (spots, 28, 28, 3)) * bright[:, None, None, None])
        .astype(np.uint8)
        .repeat(8, 1)
        .repeat(8, 2)
    )
    mean = rng.gamma(2.0, 3.0, len(genes)) * np.where(
        np.arange(len(genes)) % 3 == 0, 3 * bright[:, None], 1.0
    )  # (n, G)
    counts = rng.poisson(mean)
    counts[3] = 0
    names = [f"{i:03d}x010" for i in range(spots)]
    obs, var = pd.DataFrame({"in_tissue": seed % 2}, names), pd.DataFrame(index=list(genes))
    adata = ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs, var)
    adata.obsm["spatial"] = np.stack(
        [np.arange(spots) * 300.0 + 20, np.full(spots, 30.0)], 1
    )  # the first tile leaves the image
    back, side = np.arange(spots - 2)[::-1], round(112 / um_per_px)
    corners = (adata.obsm["spatial"] - side // 2).astype(int)[back]
    assert corners.min() < 0
    write_sample(home, sample, tiles[back], corners, np.array(names)[back], adata, um_per_px)
    for folder, file in (("st", f"{sample}.h5ad"), ("metadata", f"{sample}.json")):
        (home / folder).mkdir(exist_ok=True)
        if folder == "st":
            (home / "adata" / file).rename(home / "st" / file)
        else:
            (home / folder / file).write_text(
                f'{{"pixel_size_um_estimated": {um_per_px}, "patient": NaN}}'
            )


def write_index(home, rows):
    """An index as HEST writes it, and what has to be said of it."""
    write_rows(home / "index.csv", rows)
    ours = [
        r
        for r in rows
        if (r["organ"], r["species"], r["st_technology"]) == ("Breast", "Homo sapiens", "Visium")
    ]
    counts = [len(ours), sum(int(r["spots_under_tissue"]) for r in ours)]
    return {"index": "index.csv", "index_sha256": sha256(home / "index.csv"), "counts": counts}


def copy_tiles(home, original, copy, change=lambda tile: tile, leave_out=0):
    """Give a slide (or a section of a cohort) the tiles of another: in an order of its own, each
    changed, the first left out.
    """
    with (
        h5py.File(home / f"patches/{original}.h5") as source,
        h5py.File(home / f"patches/{copy}.h5", "a") as target,
    ):
        rows = np.roll(np.arange(len(source["img"])), 3)[leave_out:]
        target["img"].resize(len(rows), 0)
        target["img"][:] = np.stack([change(tile) for tile in source["img"][:][rows]])
        for name in ("coords", "barcode"):
            values, kind = source[name][:][rows], target[name].dtype
            del target[name]
            target.create_dataset(name, data=values, dtype=kind)


def recompressed(tile):
    """A tile after another JPEG compression."""
    return cv2.imdecode(
        cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, 95])[1], cv2.IMREAD_COLOR
    )


def draw_mirror(home):
    """Slides IDS below `home`, TENX23 with the tiles of TENX24, and rows that are no slides of the
    cohort.
    """
    for seed, sample in enumerate(IDS):
        draw_slide(home, sample, PANEL if sample == "TENX23" else GENES, seed=seed)
    copy_tiles(home, "TENX24", "TENX23")
    ad.read_h5ad(home / "st/TENX23.h5ad")[::-1].copy().write_h5ad(home / "st/TENX23.h5ad")
    rows = [row(sample, patient="Patient 1" if sample == "D1" else "   ") for sample in IDS]
    others = [
        row("TENX1", organ="Lung"),
        row("TENX131", species="Mus musculus"),
        row("X", st_technology="Xenium"),
    ]
    return write_index(home, [*others, *rows])


@pytest.fixture(scope="module")
def drawn_mirror(tmp_path_factory):
    home = tmp_path_factory.mktemp("hest") / "hest"
    return home, draw_mirror(home)


@pytest.fixture
def mirror(drawn_mirror, tmp_path, monkeypatch):
    """A mirror of one's own, and the options that name its index."""
    shutil.copytree(drawn_mirror[0], tmp_path / "mirror/hest")
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "mirror/hest", drawn_mirror[1]


def build(path, options, **other):
    """Build, with what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hest.build(path, **options, **other)
    return [str(w.message) for w in caught]


def state(folder):
    return {f: (f.lstat().st_mtime_ns, sha256(f)) for f in sorted(folder.rglob("*")) if f.is_file()}
