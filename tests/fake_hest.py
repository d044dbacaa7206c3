"""Slides drawn in HEST's layout, an index of their own, and a mirror that holds them."""

import json
import shutil
import warnings

import anndata as ad
import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from draw_hest import PARTS, row, write_index
from scipy import sparse

from peka_core.cohort import write_sample
from peka_core.common.files import sha256
from peka_core.sources import hest

GENES = [f"G{i:03d}" for i in range(120)]
PANEL = GENES[:55]  # of TENX23
IDS = ("TENX13", "TENX14", "TENX23", "TENX24", "D1", "D2")


def draw_slide(home, sample, genes=GENES, seed=0, um_per_px=0.5):
    """A slide of 14 spots: the last two have no tile, tiles stand in another order, the first tile
    leaves the image, and one has no counts."""
    rng = np.random.default_rng(seed)
    bright = rng.uniform(0.3, 1.0, 14)
    noise = rng.integers(0, 256, (14, 28, 28, 3)) * bright[:, None, None, None]
    tiles = noise.astype(np.uint8).repeat(8, 1).repeat(8, 2)
    follows = np.where(np.arange(len(genes)) % 3 == 0, 3 * bright[:, None], 1.0)  # (n, G)
    counts = rng.poisson(rng.gamma(2.0, 3.0, len(genes)) * follows).astype(np.float32)
    counts[3] = 0
    names = np.array([f"{i:03d}x010" for i in range(14)])
    obs, var = pd.DataFrame({"in_tissue": seed % 2}, names), pd.DataFrame(index=list(genes))
    adata = ad.AnnData(sparse.csr_matrix(counts), obs, var)
    adata.obsm["spatial"] = np.stack([np.arange(14) * 300.0 + 20, np.full(14, 30.0)], 1)
    back = np.arange(12)[::-1]
    corners = (adata.obsm["spatial"] - round(112 / um_per_px) // 2).astype(int)[back]
    write_sample(home, sample, tiles[back], corners, names[back], adata, um_per_px)
    for folder in ("st", "metadata"):
        (home / folder).mkdir(exist_ok=True)
    (home / f"adata/{sample}.h5ad").rename(home / f"st/{sample}.h5ad")
    text = f'{{"pixel_size_um_estimated": {um_per_px}, "patient": NaN}}'
    (home / f"metadata/{sample}.json").write_text(text)


def copy_tiles(home, original, copy, change=lambda tile: tile, leave_out=0):
    """Give a section the tiles of another: in another order, each changed, the first left out."""
    files = (home / f"patches/{name}.h5" for name in (original, copy))
    with h5py.File(next(files)) as source, h5py.File(next(files), "a") as target:
        rows = np.roll(np.arange(len(source["img"])), 3)[leave_out:]
        target["img"].resize(len(rows), 0)
        target["img"][:] = np.stack([change(tile) for tile in source["img"][:][rows]])
        for name in ("coords", "barcode"):
            values, kind = source[name][:][rows], target[name].dtype
            del target[name]
            target.create_dataset(name, data=values, dtype=kind)


def recompressed(tile):
    """A tile after another JPEG compression."""
    jpeg = cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR)


@pytest.fixture(scope="session")
def drawn_mirror(tmp_path_factory):
    """Slides IDS, TENX23 with the tiles of TENX24; the options that name their index."""
    home = tmp_path_factory.mktemp("hest") / "hest"
    for seed, sample in enumerate(IDS):
        draw_slide(home, sample, PANEL if sample == "TENX23" else GENES, seed=seed)
    copy_tiles(home, "TENX24", "TENX23")
    ad.read_h5ad(home / "st/TENX23.h5ad")[::-1].copy().write_h5ad(home / "st/TENX23.h5ad")
    others = [row("TENX1", organ="Lung"), row("TENX131", species="Mus musculus")]
    others.append(row("X", st_technology="Xenium"))
    rows = [row(sample, patient="Patient 1" if sample == "D1" else "   ") for sample in IDS]
    return home, write_index(home, [*others, *rows])


@pytest.fixture
def mirror(drawn_mirror, tmp_path, monkeypatch):
    """A mirror of one's own, and the options that name its index."""
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(drawn_mirror[0], tmp_path / "mirror/hest"), {**drawn_mirror[1]}


@pytest.fixture
def fixture_mirror(hest_files, tmp_path, monkeypatch):
    """A mirror of `hest_files` and of IDS[1:5] with the same genes; TENX23 has the tiles of TENX24
    compressed again and one less."""
    home = tmp_path / "mirror/hest"
    for folder in PARTS:
        shutil.copytree(hest_files / "hest1k" / folder, home / folder)
    for path in [home, *home.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    rows, genes = [row(sample) for sample in IDS[1:5]], []
    for s in ("FIX3", "FIX2", "FIX1"):
        golden = json.loads((hest_files / f"golden/{s}.json").read_text())
        facts = {"patient": "" if s == "FIX3" else "Patient C", "dataset_title": s[:-1]}
        rows.append(row(s, golden["n_spots_h5ad"], golden["pixel_size_um"], **facts))
        genes.append(ad.read_h5ad(home / f"st/{s}.h5ad").var_names)
    for seed, sample in enumerate(IDS[1:5]):
        draw_slide(home, sample, genes[0].intersection(genes[1]).intersection(genes[2]), seed)
    copy_tiles(home, "TENX24", "TENX23", recompressed, leave_out=1)
    return home, write_index(home, rows)


def build(path, options, **other):
    """Build, with what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hest.build(path, **options, **other)
    return [str(w.message) for w in caught]


def state(folder):
    return {f: (f.lstat().st_mtime_ns, sha256(f)) for f in sorted(folder.rglob("*")) if f.is_file()}
