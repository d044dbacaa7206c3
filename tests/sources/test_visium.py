"""The reader of Space Ranger's folders: equal to scanpy's and squidpy's, in every version."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from damage import refused
from draw_space_ranger import GENES, UM_PER_PX, draw, write_positions

from peka_core.slides.scale import agreed
from peka_core.sources.visium import read_visium

REAL = SHARED / "data/visium_1.0.0"


def equal_to(module: str, folder: Path) -> None:
    """Counts, names, array and centres of our reader and of another, for spots in tissue."""
    library = pytest.importorskip(module)  # squidpy is of the extra `ecosystem`
    with warnings.catch_warnings(action="ignore"):
        theirs = library.read_visium(folder) if module == "scanpy" else library.read.visium(folder)
        theirs.var_names_make_unique()
    theirs, ours = theirs[theirs.obs.in_tissue == 1], read_visium(folder).adata
    assert list(ours.obs_names) == list(theirs.obs_names)
    assert list(ours.var_names) == list(theirs.var_names)
    assert list(ours.var.gene_ids) == list(theirs.var.gene_ids)
    assert (ours.X != theirs.X).nnz == 0 and ours.X.dtype == np.float32
    assert np.array_equal(ours.obsm["spatial"], theirs.obsm["spatial"])
    assert ours.obs.equals(theirs.obs[list(ours.obs)])


@pytest.mark.parametrize("module", ["scanpy", "squidpy"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_drawn_folder_is_read_as_others_do(tmp_path, version, module):
    equal_to(module, draw(tmp_path, version).folder / "outs")


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared sample is not here")
@pytest.mark.parametrize("module", ["scanpy", "squidpy"])
def test_the_real_sample_is_read_as_others_do(module):
    equal_to(module, REAL)


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared sample is not here")
def test_the_pitch_of_the_real_sample_agrees_with_its_spots():
    raw = read_visium(REAL)
    assert raw.um_per_px["pitch of the array"] == pytest.approx(0.7252, abs=1e-4)
    assert raw.um_per_px["65 um / spot_diameter_fullres"] == pytest.approx(0.7268, abs=1e-4)
    assert not raw.mirrored and len(raw.positions) == 4992
    assert raw.expected_size == pytest.approx((13332, 13332), abs=1)
    assert agreed(raw.um_per_px, "real") == raw.um_per_px["pitch of the array"]


def same(a, b) -> bool:
    return (
        (a.adata.X != b.adata.X).nnz == 0
        and a.adata.var.equals(b.adata.var)
        and a.adata.obs.equals(b.adata.obs)
        and np.array_equal(a.adata.obsm["spatial"], b.adata.obsm["spatial"])
    )


def test_mtx_prefixes_and_the_folder_above_give_the_same_sample(tmp_path):
    plain = read_visium(draw(tmp_path / "a").folder / "outs")
    assert same(plain, read_visium(tmp_path / "a"))
    assert same(plain, read_visium(draw(tmp_path / "b", 1, "mtx").folder))
    one = draw(tmp_path / "c", prefix="GSM1_liver1_", form="mtx").folder / "outs"
    assert same(plain, read_visium(one))
    for file in list((one / "GSM1_liver1_filtered_feature_bc_matrix").iterdir()):
        file.rename(one / f"GSM1_liver1_{file.name}")  # as files of GEO lie in one folder
    (one / "GSM1_liver1_filtered_feature_bc_matrix").rmdir()
    assert same(plain, read_visium(one))
    other = draw(tmp_path / "d", prefix="GSM2_", seed=1).folder / "outs"
    for file in [f for f in other.rglob("GSM2_*") if f.is_file()]:
        file.rename(one / file.relative_to(other))
    refused(one, "GSM1_liver1_", "GSM2_", call=read_visium)
    assert same(plain, read_visium(one / "GSM1_liver1_"))
    (one / "spatial/GSM1_liver1_tissue_positions.csv").unlink()  # another sample's is still there
    refused(one / "GSM1_liver1_", "tissue_positions_list.csv", "GSM2_", call=read_visium)


def test_ids_alone_are_kept_and_said(tmp_path):
    drawn = draw(tmp_path, form="mtx")
    features = drawn.folder / "outs/filtered_feature_bc_matrix/features.tsv.gz"
    lines = gzip.decompress(features.read_bytes()).decode().splitlines()
    features.unlink()
    ids = [line.split("\t")[0] for line in lines]
    features.with_suffix("").write_text("\n".join(ids) + "\n")
    raw = read_visium(drawn.folder)
    assert list(raw.adata.var_names) == ids and any(ids[0] in note for note in raw.notes)


def test_bins_of_visium_hd_are_summed_into_squares(tmp_path):
    pytest.importorskip("fastparquet")
    drawn = draw(tmp_path, 3)
    fine, raw = read_visium(drawn.folder, bin_um=8), read_visium(drawn.folder, bin_um=56)
    assert np.array_equal(fine.adata.X.toarray(), drawn.counts)
    table = drawn.positions[drawn.positions.in_tissue == 1]
    squares = table[["array_row", "array_col"]] // 7
    sums = squares.assign(n=1, total=drawn.counts.sum(1), gene=drawn.counts[:, 3])
    sums = sums.groupby(["array_row", "array_col"]).sum()  # an oracle: pandas
    names = [f"s_056um_{row:05d}_{column:05d}" for row, column in sums.index]
    pooled = raw.adata[names]
    assert raw.adata.n_obs == len(names) and list(pooled.obs.bins) == list(sums.n)
    assert np.array_equal(pooled.X.sum(axis=1).A1, sums.total)
    assert np.array_equal(pooled.X[:, 3].toarray().ravel(), sums.gene)
    left = 50 + 56 / UM_PER_PX * (sums.index.get_level_values("array_col") + 0.5)
    assert np.allclose(pooled.obsm["spatial"][:, 0], left)
    sizes = raw.um_per_px
    assert next(iter(sizes)) == "microns_per_pixel of Space Ranger"
    assert np.allclose(list(sizes.values()), UM_PER_PX)  # 65 / spot_diameter would be 8 times off
    refused(drawn.folder, "--bin-um", call=lambda folder: read_visium(folder, bin_um=50))
    by_name = read_visium(drawn.folder / "outs/binned_outputs/square_008um", bin_um=56)
    assert same(raw, by_name)
    (drawn.folder / "outs/binned_outputs/square_008um").rename(
        drawn.folder / "outs/binned_outputs/square_016um"
    )
    refused(drawn.folder, "square_016um", call=read_visium)


def test_a_mirrored_or_swapped_table_is_seen_without_an_image(tmp_path):
    drawn = draw(tmp_path)
    assert not read_visium(drawn.folder).mirrored
    swap = {"pxl_row_in_fullres": "pxl_col_in_fullres", "pxl_col_in_fullres": "pxl_row_in_fullres"}
    swapped = drawn.positions.rename(columns=swap)[drawn.positions.columns]
    write_positions(drawn.spatial, 2, "", swapped)
    assert read_visium(drawn.folder).mirrored


def test_other_features_than_genes_are_left_out_and_said(tmp_path):
    import h5py

    drawn = draw(tmp_path)
    with h5py.File(drawn.folder / "outs/filtered_feature_bc_matrix.h5", "a") as file:
        kinds = file["matrix/features/feature_type"][:]
        kinds[:2] = b"Antibody Captur"
        file["matrix/features/feature_type"][:] = kinds
    raw = read_visium(drawn.folder)
    assert raw.adata.n_vars == GENES - 2 and any("2 of 60" in note for note in raw.notes)
