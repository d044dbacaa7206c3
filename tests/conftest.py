"""Shared fixtures: a tiny drawn cohort, HEST's files, and a run of a small cohort."""

import os
import shutil

# one thread each: on a loaded machine, threads that wait for each other cost more than they bring
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from pathlib import Path

import anndata as ad
import draw_hest
import numpy as np
import pandas as pd
import pytest
from fake_hest import drawn_mirror, fixture_mirror, mirror  # noqa: F401
from scipy import sparse

from peka_core.cohort import write_cohort_tables, write_sample
from peka_core.common import folders
from peka_core.runner.run import open_run

# of a run that tests can afford
SMALL = {"patients": 4, "spots": 12, "folds": 2, "epochs": 1, "batch_size": 16}
SHARED = Path(__file__).parents[2] / "shared"


def write_tiny_cohort(path: Path, patients: int = 4, spots: int = 12) -> Path:
    """Write drawn noise: `patients` x 2 sections, of which a tile's brightness raises ten genes.

    Samples P1A, P1B, P2A, …; splits leave a patient out; a file has the last spot's tile first.
    """
    rng, rows = np.random.default_rng(0), []
    names, back = [f"G{i:02d}" for i in range(30)], np.arange(spots)[::-1]
    base = rng.gamma(2.0, 3.0, 30)  # (G,) mean count
    for sample in [f"P{p}{s}" for p in range(1, patients + 1) for s in "AB"]:
        bright = rng.uniform(0.3, 1.0, spots)  # (n,)
        noise = rng.integers(0, 256, (spots, 28, 28, 3)) * bright[:, None, None, None]
        tiles = noise.astype(np.uint8).repeat(8, 1).repeat(8, 2)  # (n, 224, 224, 3)
        mean = base * np.where(np.arange(30) < 10, 3 * bright[:, None], 1.0)  # (n, G)
        xy = np.stack([np.arange(spots) % 4, np.arange(spots) // 4], 1) * 400.0 + 500  # (n, 2) px
        types = rng.choice(["tumour", "stroma"], spots)
        obs = pd.DataFrame({"tissue_type": types}, index=[f"{i}x1" for i in range(spots)])
        counts = sparse.csr_matrix(rng.poisson(mean), dtype=np.float32)
        adata = ad.AnnData(counts, obs, pd.DataFrame(index=names), obsm={"spatial": xy})
        of_tiles = tiles[back], (xy - 112)[back], obs.index[back]
        digest = write_sample(path, sample, *of_tiles, adata, um_per_px=0.5)
        rows.append((sample, sample[:-1], "drawn", 0.5, digest))
    columns = ["sample_id", "patient", "technology", "um_per_px", "tiles_sha256"]
    table = pd.DataFrame(rows, columns=columns)
    out = [table.patient == patient for patient in table.patient.unique()]
    splits = [(table.sample_id[~held_out], table.sample_id[held_out]) for held_out in out]
    write_cohort_tables(path, table, splits, names[:20])
    return path


@pytest.fixture(scope="session")
def drawn_once(tmp_path_factory) -> Path:
    """The tiny cohort that every test gets a copy of."""
    return write_tiny_cohort(tmp_path_factory.mktemp("drawn") / "cohort")


@pytest.fixture
def tiny_cohort(tmp_path: Path, drawn_once: Path, monkeypatch) -> Path:
    """A fresh tiny cohort and an empty cache: 4 patients x 2 sections x 12 spots, 30 genes."""
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(drawn_once, tmp_path / "cohort"))


# files of others: drawn in their form by draw_hest.py, and the originals too where ../shared is
FILES = ["drawn"] + ["original"] * SHARED.is_dir()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared of the development machine; most tests of it have drawn twins."""
    return SHARED if SHARED.is_dir() else pytest.skip("no ../shared on this machine")


def pytest_collection_modifyitems(items):
    """Files with a slow test come first, or one of two workers would end alone with them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", params=FILES)
def hest_files(request, tmp_path_factory) -> Path:
    """HEST's files of three slides in hest1k/ and bench/FIXTASK; golden/ has their contents."""
    if request.param == "original":
        return SHARED / "fixtures/hest"
    return draw_hest.draw(tmp_path_factory.mktemp("drawn-hest"))


@pytest.fixture(scope="session")
def hest_vocabulary(hest_files) -> Path:
    """A vocabulary in scFoundation's form that has the genes of `hest_files`."""
    drawn = hest_files / "vocabulary.tsv"
    return drawn if drawn.exists() else SHARED / "data/scfoundation/OS_scRNA_gene_index.19264.tsv"


@pytest.fixture
def papers_index(shared, tmp_path, monkeypatch) -> Path:
    """A mirror with the index of HEST-1k that the paper used."""
    monkeypatch.setenv("PEKA_MIRROR", str(shared / "data"))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "index-cache"))
    return shared / "data"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A run of a very small drawn cohort in its own checkout, shared by a module's tests."""
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "root", lambda: root)
        yield open_run("smoke", "small", "cpu", {}, SMALL)
