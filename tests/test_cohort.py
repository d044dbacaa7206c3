import hashlib
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import write_tiny_cohort
from scipy import sparse

from peka_core.cohort import open_cohort, write_cohort_tables, write_sample
from peka_core.errors import PekaError
from peka_core.files import sha256
from peka_core.genes import log_cp10k
from peka_core.layout import duplicates
from peka_core.layout.sections import read_spots
from peka_core.layout.tables import originals
from peka_core.places import cache_folder

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))


def edit_h5ad(path, change):
    adata = ad.read_h5ad(path)
    adata = change(adata) or adata
    adata.write_h5ad(path)


def edit_h5(path, **datasets):
    with h5py.File(path, "a") as file:
        for name, values in datasets.items():
            attrs = dict(file[name].attrs)
            del file[name]
            file[name] = values
            file[name].attrs.update(attrs)


def edit_samples(cohort, **columns):
    table = pd.read_csv(cohort / "samples.csv", dtype=str).assign(**columns)
    table.to_csv(cohort / "samples.csv", index=False)


def refused(cohort, *parts, call=open_cohort):
    with pytest.raises(PekaError) as caught:
        call(cohort)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def validate(path):
    return open_cohort(path).validate()


# ---- what a cohort gives -------------------------------------------------------------------------------------------


def test_spots_tiles_and_counts_belong_together(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    assert list(cohort.samples.index) == ["P1A", "P1B", "P2A", "P2B", "P3A", "P3B", "P4A", "P4B"]
    assert len(cohort) == len(cohort.obs) == 96 and cohort.obs.index[13] == "P1B:1x1"
    adata, tiles = cohort.adata(), cohort.tiles()
    assert adata.obs.equals(cohort.obs) and tiles.shape == (96, 224, 224, 3)
    for spot in (0, 11, 40, 95):
        sample, barcode = cohort.obs.index[spot].split(":")
        with h5py.File(tiny_cohort / "patches" / f"{sample}.h5") as file:
            names = [b.decode() for b in file["barcode"][:, 0]]
            assert np.array_equal(tiles[spot][0], file["img"][names.index(barcode)])
        raw = ad.read_h5ad(tiny_cohort / "adata" / f"{sample}.h5ad")
        assert np.array_equal(adata.X[spot].toarray(), raw[barcode].X.toarray())
        assert np.array_equal(adata.obsm["spatial"][spot], raw[barcode].obsm["spatial"][0])
    assert cohort.obs.total_counts.sum() == adata.X.sum() and "tissue_type" in cohort.obs
    assert cohort.validate() == []


def test_tiles_come_in_any_order_from_disk_and_memory(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    everything = cohort.tiles()[:]
    fresh = cohort.tiles()
    mixed = np.array([50, 3, 95, 3, 4, 0])
    assert np.array_equal(fresh[mixed], everything[mixed])
    assert fresh[np.zeros(96, bool)].shape == (0, 224, 224, 3)
    assert np.array_equal(fresh[np.arange(96) % 7 == 0], everything[::7])
    whole = [fresh[i : i + 10] for i in range(0, 96, 10)]
    assert np.array_equal(np.concatenate(whole), everything)
    shutil.rmtree(tiny_cohort / "patches")  # read once over: now from memory
    assert np.array_equal(fresh[mixed], everything[mixed])


def test_splits_leave_patients_out(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    assert [s.name for s in cohort.splits] == [f"patients/{i}" for i in range(4)]
    assert all((s.train ^ s.test).all() and s.scheme == "patients" for s in cohort.splits)
    assert set(cohort.obs.patient[cohort.splits[2].test]) == {"P3"}


def test_a_duplicate_joins_patients_and_changes_the_scheme(tiny_cohort):
    edit_samples(tiny_cohort, duplicate_of=["", "", "", "P1A", "", "", "", "P2A"])
    cohort = open_cohort(tiny_cohort)
    assert list(cohort.samples.group) == ["P1"] * 4 + ["P3"] * 2 + ["P1"] * 2
    assert [s.scheme for s in cohort.splits] == ["sections", "sections", "patients", "sections"]
    with pytest.warns(UserWarning):
        found = cohort.validate()
    assert (
        len(found) == 5
        and "duplicates on both sides" in found[2]
        and "P2B (12 spots)" in found[0]
        and "P4B (12 spots)" in found[1]
        and "splits" in found[2]
    )


def test_a_patient_on_both_sides_is_said(tiny_cohort):
    edit_samples(tiny_cohort, patient=["P1", "P2", "P2", "P2", "P3", "P3", "P4", "P4"])
    with pytest.warns(UserWarning, match=r"1 patients on both sides: \['P2'\]"):
        assert len(validate(tiny_cohort)) == 2


def test_genes_are_joined_inner_or_outer(tiny_cohort):
    file = tiny_cohort / "adata" / "P1A.h5ad"
    before = open_cohort(tiny_cohort).adata()
    edit_h5ad(file, lambda a: a[:, ["G29", "G00", "G07"]].copy())
    cohort = open_cohort(tiny_cohort)
    inner, outer = cohort.adata(), cohort.adata(join="outer")
    assert list(inner.var_names) == ["G29", "G00", "G07"]
    assert (inner.X != before[:, inner.var_names].X).nnz == 0
    assert outer.shape == (96, 30) and outer[:12, "G01"].X.sum() == 0
    assert (outer[12:, before.var_names].X != before[12:].X).nnz == 0
    assert np.allclose(
        inner.obs.total_counts[12:], before.obs.total_counts[12:]
    )  # over all genes of the section
    assert cohort.adata(["P1B", "P2A"]).shape == (24, 30)
    with pytest.warns(UserWarning, match="target genes are not measured"):
        cohort.validate()


def test_dense_integers_and_sparse_floats_read_alike(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    before, digest = cohort.adata(), cohort.digest

    def densify(adata):
        adata.X = adata.X.toarray().astype(np.int64)

    edit_h5ad(tiny_cohort / "adata" / "P2A.h5ad", densify)
    cohort = open_cohort(tiny_cohort)
    assert cohort.adata().X.dtype == np.float32 and (cohort.adata().X != before.X).nnz == 0
    assert cohort.digest == digest


def test_extra_columns_are_kept_where_all_sections_agree(tiny_cohort):
    for file in (tiny_cohort / "adata").glob("*.h5ad"):

        def change(adata, name=file.stem):
            adata.var["group"] = ["cue" if g < "G10" else "composition" for g in adata.var_names]
            adata.var["mean"] = np.asarray(adata.X.mean(0)).ravel()
            adata.obsm["z"] = np.arange(24.0).reshape(12, 2)
            adata.obs["flag"] = True if name == "P1A" else 1
            if name == "P1A":
                adata.obs["only_here"] = 1

        edit_h5ad(file, change)
    adata = open_cohort(tiny_cohort).adata()
    assert list(adata.var.columns) == ["group"] and (adata.var.group == "cue").sum() == 10
    assert adata.obsm["z"].shape == (96, 2) and "only_here" not in adata.obs
    adata.write_h5ad(tiny_cohort / "joined.h5ad")


def test_log_cp10k_is_the_formula(tiny_cohort):
    adata = open_cohort(tiny_cohort).adata()
    adata.obs.iloc[3, adata.obs.columns.get_loc("total_counts")] = 0
    adata.X.data[adata.X.indptr[3] : adata.X.indptr[4]] = 0
    dense, got = adata.X.toarray(), log_cp10k(adata)
    assert got.dtype == np.float32 and not got[3].any()
    i, j = 50, 4
    assert got[i, j] == pytest.approx(
        np.log(1 + 1e4 * dense[i, j] / adata.obs.total_counts.iloc[i]), rel=1e-6
    )


def test_log_cp10k_keeps_zeros_where_it_is_asked_to(tiny_cohort):
    adata = open_cohort(tiny_cohort).adata()
    kept = log_cp10k(adata, dense=False)
    assert sparse.issparse(kept) and kept.dtype == np.float32 and kept.nnz == (adata.X != 0).sum()
    np.testing.assert_array_equal(kept.toarray(), log_cp10k(adata))


def test_digest_follows_values_and_not_files(tiny_cohort, tmp_path):
    digest = open_cohort(tiny_cohort).digest
    assert open_cohort(write_tiny_cohort(tmp_path / "again")).digest == digest
    shutil.rmtree(tiny_cohort / "patches")
    (tiny_cohort / "patches").mkdir()
    (tiny_cohort / "patches" / ".0123abcd-P1A.h5").write_bytes(
        b"half"
    )  # what a killed writer leaves
    bare = open_cohort(tiny_cohort)
    assert not bare.has_tiles and len(bare) == 96
    assert bare.digest != digest, (
        "these tiles stand in another order than the spots, which only the files tell"
    )
    refused(bare, "patches", "Build the cohort again", call=lambda cohort: cohort.tiles())

    def one_count_more(adata):
        adata.X.data[0] += 1

    changes = {
        "counts": lambda: edit_h5ad(tiny_cohort / "adata" / "P4B.h5ad", one_count_more),
        "samples": lambda: edit_samples(tiny_cohort, organ="Liver"),
        "genes": lambda: (tiny_cohort / "var_20genes.json").write_text('{"genes": ["G01"]}'),
        "splits": lambda: (tiny_cohort / "splits" / "test_0.csv").write_text("sample_id\nP1A\n"),
    }
    seen = {digest}
    for change in changes.values():
        change()
        seen.add(open_cohort(tiny_cohort).digest)
    assert len(seen) == 5


def recut(file, value=None, order=None):
    """Change the pixels of a patches file, or the order of its tiles, as another run of a tile cutter would."""
    with h5py.File(file) as h5:
        stored = {name: h5[name][:] for name in ("img", "coords", "barcode")}
    if order is not None:
        stored = {name: values[order] for name, values in stored.items()}
    if value is not None:
        stored["img"][0, 0, 0, 0] = value
    edit_h5(file, **stored)


def test_without_a_tiles_column_pixels_enter_the_digest(tiny_cohort):
    edit_samples(tiny_cohort, tiles_sha256="")
    file = tiny_cohort / "patches" / "P1A.h5"
    before = open_cohort(tiny_cohort).digest
    with file.open("ab") as handle:
        handle.write(b"\0" * 512)
    recut(file, order=np.random.default_rng(0).permutation(12))
    assert open_cohort(tiny_cohort).digest == before, "the same tiles, stored otherwise"
    recut(file, value=1 + open_cohort(tiny_cohort).tiles()[:].max() // 2)
    assert open_cohort(tiny_cohort).digest != before


def test_tiles_are_hashed_once(tiny_cohort, monkeypatch):
    edit_samples(tiny_cohort, tiles_sha256="")
    before = open_cohort(tiny_cohort).digest
    monkeypatch.setattr(duplicates, "_digest", lambda *_: pytest.fail("hashed again"))
    assert open_cohort(tiny_cohort).digest == before
    assert not list(tiny_cohort.glob("*digests*")), (
        "nothing of ours in a directory that may be another's"
    )
    record = duplicates._read_record(cache_folder() / duplicates.RECORD)
    assert len(record) == 8 and str(tiny_cohort) in next(iter(record))
    (cache_folder() / duplicates.RECORD).write_text("[")
    monkeypatch.undo()
    assert open_cohort(tiny_cohort).digest == before, "a damaged record is no record"


def test_a_stale_tiles_column_is_told_and_does_not_count(tiny_cohort):
    before = open_cohort(tiny_cohort).digest
    recut(tiny_cohort / "patches" / "P1A.h5", value=7)
    with pytest.warns(UserWarning, match="P1A.h5"):
        one = open_cohort(tiny_cohort).digest
    recut(tiny_cohort / "patches" / "P1A.h5", value=8)
    with pytest.warns(UserWarning, match="P1A.h5"):
        assert len({before, one, open_cohort(tiny_cohort).digest}) == 3
    (tiny_cohort / "source.json").write_text(
        '{"source": "demo"}'
    )  # whose column is no digest of pixels
    assert open_cohort(tiny_cohort).digest == before


def test_a_column_of_the_files_own_digest_counts_as_it_is(tiny_cohort):
    edit_samples(
        tiny_cohort,
        tiles_sha256=[
            sha256(tiny_cohort / "patches" / f"P{p}{s}.h5") for p in "1234" for s in "AB"
        ],
    )
    assert len(open_cohort(tiny_cohort).digest) == 64  # and no warning


def test_written_sample_is_hests_current_form(tiny_cohort):
    with h5py.File(tiny_cohort / "patches" / "P1A.h5") as file:
        assert file["img"].chunks == (1, 224, 224, 3) and file["barcode"].shape == (12, 1)
        assert h5py.check_string_dtype(file["barcode"].dtype).length is None
        assert dict(file["img"].attrs) == {
            "patch_size_src": 224, "patch_size_target": 224, "downsample": 1.0, "pixel_size": 0.5,
        }  # fmt: skip
        digest = hashlib.sha256(file["img"][:].tobytes()).hexdigest()
    assert open_cohort(tiny_cohort).samples.tiles_sha256["P1A"] == digest
    adata = ad.read_h5ad(tiny_cohort / "adata" / "P1A.h5ad")
    write_sample(
        tiny_cohort / "other",
        "S",
        np.zeros((1, 224, 224, 3), np.uint8),
        [[-3, 5]],
        ["0x1"],
        adata,
        0.7,
    )
    with h5py.File(tiny_cohort / "other/patches/S.h5") as file:
        assert (
            file["coords"][:].tolist() == [[-3, 5]] and file["img"].attrs["patch_size_src"] == 160
        )
        assert file["img"].attrs["downsample"] == pytest.approx(
            0.5 / 0.7
        )  # HEST: slide px per tile px


def test_tables_of_an_earlier_build_go(tiny_cohort):
    write_cohort_tables(
        tiny_cohort, pd.DataFrame(index=["P1A", "P1B"]), [(["P1A"], ["P1B"])], ["G00"]
    )
    cohort = None
    with pytest.warns(UserWarning):
        cohort = open_cohort(tiny_cohort)
    assert cohort.genes == ["G00"] and len(cohort.splits) == 1 and len(cohort) == 24


def test_wrong_tile_shape_is_not_written(tiny_cohort):
    adata = ad.read_h5ad(tiny_cohort / "adata" / "P1A.h5ad")
    with pytest.raises(PekaError, match="NEW"):
        write_sample(
            tiny_cohort,
            "NEW",
            np.zeros((12, 256, 256, 3), np.uint8),
            None,
            adata.obs_names,
            adata,
            0.5,
        )
    assert not list(tiny_cohort.rglob("NEW*"))


# ---- warnings ------------------------------------------------------------------------------------------------------


def test_spots_without_tile_and_samples_in_no_split_are_counted(tiny_cohort):
    file = tiny_cohort / "patches" / "P2B.h5"
    with h5py.File(file) as h5:
        kept = {name: h5[name][:9] for name in ("img", "coords", "barcode")}
    edit_h5(file, **kept)
    for i in range(4):
        for side in ("train", "test"):
            csv = tiny_cohort / "splits" / f"{side}_{i}.csv"
            csv.write_text(
                "\n".join(line for line in csv.read_text().splitlines() if "P4B" not in line)
            )
    with pytest.warns(UserWarning) as caught:
        found = validate(tiny_cohort)
    assert len(open_cohort(tiny_cohort)) == 93 and len(caught) == len(found) == 2
    assert "P2B.h5: 3 spots" in found[0] and "1 of 8 samples are in no split: ['P4B']" in found[1]


def test_no_samples_csv_makes_samples_patients(tiny_cohort):
    (tiny_cohort / "samples.csv").unlink()
    with pytest.warns(UserWarning, match="each of 8 samples counts as its own patient"):
        cohort = open_cohort(tiny_cohort)
    assert list(cohort.samples.patient) == list(cohort.samples.index)
    assert cohort.samples.um_per_px.eq(0.5).all()  # from the patches


def test_bom_and_blank_patients_are_understood(tiny_cohort):
    text = "sample_id,patient,organ\n" + "".join(
        f"{s},{p},Breast\n" for s, p in [("P1A", ""), ("P1B", "   "), ("P2A", "x")]
    )
    (tiny_cohort / "samples.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    for file in (tiny_cohort / "splits").glob("*.csv"):
        file.unlink()
    with pytest.warns(UserWarning) as caught:
        cohort = open_cohort(tiny_cohort)
    assert (
        list(cohort.samples.patient) == ["P1A", "P1B", "x"]
        and cohort.samples.organ.eq("Breast").all()
    )
    said = [str(w.message) for w in caught]
    assert any("patient is blank for 2 of 3" in s for s in said) and any(
        "5 sections of adata/ have no row" in s for s in said
    )


# ---- errors --------------------------------------------------------------------------------------------------------


def test_missing_files_are_named(tiny_cohort, tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "not a cohort")
    (tiny_cohort / "patches" / "P1B.h5").unlink()
    refused(tiny_cohort, "P1B.h5", "missing")
    (tiny_cohort / "adata" / "P1A.h5ad").unlink()
    refused(tiny_cohort, "P1A.h5ad", "missing")


def test_half_a_file_is_named(tiny_cohort):
    file = tiny_cohort / "patches" / "P3A.h5"
    file.write_bytes(file.read_bytes()[:5000])
    refused(tiny_cohort, "P3A.h5", "not a readable HDF5 file")


def test_a_tile_without_spot_is_named(tiny_cohort):
    edit_h5ad(tiny_cohort / "adata" / "P1A.h5ad", lambda a: a[a.obs_names != "5x1"].copy())
    refused(tiny_cohort, "P1A.h5", "1 of 12 tile barcodes", "5x1", "P1A.h5ad")


@pytest.mark.parametrize(
    "value, word",
    [(np.nan, "NaN"), (-1, "negative"), (0.5, "not an integer"), (np.inf, "infinite")],
)
@pytest.mark.parametrize("dense", [False, True])
def test_counts_must_be_counts(tiny_cohort, value, word, dense):
    def spoil(adata):
        adata.X.data[7] = value
        if dense:
            adata.X = adata.X.toarray()

    edit_h5ad(tiny_cohort / "adata" / "P2A.h5ad", spoil)
    refused(tiny_cohort, "P2A.h5ad", "1 of ", word, "raw counts", call=validate)


@pytest.mark.parametrize(
    "tiles", [np.zeros((12, 256, 256, 3), np.uint8), np.zeros((12, 224, 224, 3), np.float32)]
)
def test_other_tile_sizes_and_dtypes_are_refused(tiny_cohort, tiles):
    edit_h5(tiny_cohort / "patches" / "P1A.h5", img=tiles)
    refused(
        tiny_cohort,
        "P1A.h5",
        str(tiles.shape[1:]),
        str(tiles.dtype),
        "expected uint8 (224, 224, 3)",
    )


def test_as_many_barcodes_as_tiles(tiny_cohort):
    edit_h5(tiny_cohort / "patches" / "P1A.h5", img=np.zeros((11, 224, 224, 3), np.uint8))
    refused(tiny_cohort, "P1A.h5", "11 tiles but 12 barcodes")


def test_duplicate_names_are_refused(tiny_cohort):
    def rename(axis):
        def change(adata):
            names = list(getattr(adata, axis))
            names[3] = names[4]
            setattr(adata, axis, names)

        return change

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edit_h5ad(tiny_cohort / "adata" / "P1B.h5ad", rename("var_names"))
        refused(tiny_cohort, "P1B.h5ad", "gene symbols occur more than once", "G04")
        edit_h5ad(tiny_cohort / "adata" / "P1A.h5ad", rename("obs_names"))
    refused(tiny_cohort, "P1A.h5ad", "barcodes occur more than once", "4x1")


def test_duplicate_tile_barcodes_are_refused(tiny_cohort):
    edit_h5(tiny_cohort / "patches" / "P1A.h5", barcode=np.array([b"0x1"] * 12).reshape(-1, 1))
    refused(tiny_cohort, "P1A.h5", "barcodes occur more than once")


def test_no_gene_in_common_is_refused(tiny_cohort):
    def ensembl(adata):
        adata.var_names = [f"ENSG{i:011d}" for i in range(30)]

    edit_h5ad(tiny_cohort / "adata" / "P3B.h5ad", ensembl)
    refused(tiny_cohort, "P3B.h5ad", "no gene in common", "Ensembl")


def test_tiles_of_other_spots_are_refused(tiny_cohort):
    file = tiny_cohort / "patches" / "P1A.h5"
    with h5py.File(file) as h5:
        swapped = h5["barcode"][:][::-1]
    edit_h5(file, barcode=swapped)
    refused(tiny_cohort, "P1A.h5", "12 of 12 tiles are not centred", call=validate)


def test_spatial_is_required(tiny_cohort):
    edit_h5ad(tiny_cohort / "adata" / "P1A.h5ad", lambda a: a.obsm.pop("spatial") is None)
    refused(tiny_cohort, "P1A.h5ad", 'obsm["spatial"]', call=lambda path: open_cohort(path).adata())


def test_bad_tables_are_named(tiny_cohort):
    genes = tiny_cohort / "var_20genes.json"
    genes.write_text("[]")
    refused(tiny_cohort, "var_20genes.json", "genes")
    genes.unlink()
    csv = tiny_cohort / "splits" / "test_1.csv"
    csv.write_text("sample_id\nP9Z\n")
    refused(tiny_cohort, "test_1.csv", "P9Z")
    csv.write_text("sample_id\nP1A\n")
    refused(tiny_cohort, "test_1.csv", "also stand in train_1.csv")
    csv.unlink()
    refused(tiny_cohort, "test_1.csv", "missing")
    edit_samples(tiny_cohort, um_per_px="half")
    refused(tiny_cohort, "samples.csv", "um_per_px")
    edit_samples(tiny_cohort, sample_id="P1A")
    refused(tiny_cohort, "samples.csv", "unique sample ids")


# ---- nothing is cast, and nothing passes because it is NaN -----------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t / 255,
        lambda t: t.astype(np.uint16) * 256,
        lambda t: t.astype(int),
        lambda t: t[..., 0],
        lambda t: t > 9,
    ],
)
def test_pixels_are_never_cast(tiny_cohort, change):
    tiles = open_cohort(tiny_cohort).tiles()[:12]
    adata = ad.read_h5ad(tiny_cohort / "adata" / "P1A.h5ad")
    with pytest.raises(PekaError, match="NEW"):
        write_sample(
            tiny_cohort, "NEW", change(tiles), np.zeros((12, 2)), adata.obs_names, adata, 0.5
        )
    assert not list(tiny_cohort.rglob("NEW*"))


@pytest.mark.parametrize(
    "corners, um_per_px",
    [
        (np.full((12, 2), np.nan), 0.5),
        (np.zeros((11, 2)), 0.5),
        (None, 0.5),
        (np.zeros((12, 2)), 0),
        (np.zeros((12, 2)), np.nan),
    ],
)
def test_corners_and_pixel_size_must_be_numbers(tiny_cohort, corners, um_per_px):
    adata = ad.read_h5ad(tiny_cohort / "adata" / "P1A.h5ad")
    with pytest.raises(PekaError, match="NEW"):
        write_sample(
            tiny_cohort,
            "NEW",
            np.zeros((12, 224, 224, 3), np.uint8),
            corners,
            adata.obs_names,
            adata,
            um_per_px,
        )


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden"])
def test_a_sample_id_stays_in_its_folder(tiny_cohort, name):
    adata = ad.read_h5ad(tiny_cohort / "adata" / "P1A.h5ad")
    refused(
        tiny_cohort,
        "cohort",
        call=lambda path: write_sample(path, name, None, None, adata.obs_names, adata, 0.5),
    )
    edit_samples(tiny_cohort, sample_id=[name, "P1B", "P2A", "P2B", "P3A", "P3B", "P4A", "P4B"])
    refused(tiny_cohort, "samples.csv")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_spot_without_a_place_is_named(tiny_cohort, value):
    edit_h5ad(
        tiny_cohort / "adata" / "P2A.h5ad", lambda a: a.obsm["spatial"].__setitem__((3, 1), value)
    )
    refused(tiny_cohort, "P2A.h5ad", "1 of 12", "3x1", call=validate)
    refused(tiny_cohort, "P2A.h5ad", "1 of 12", call=lambda path: open_cohort(path).adata())


def test_a_spot_without_a_place_and_without_a_tile_does_not_matter(tiny_cohort):
    edit_h5ad(
        tiny_cohort / "adata" / "P2A.h5ad", lambda a: a.obsm["spatial"].__setitem__((0, 1), np.nan)
    )
    with h5py.File(tiny_cohort / "patches" / "P2A.h5") as h5:
        kept = {
            name: h5[name][:11] for name in ("img", "coords", "barcode")
        }  # the first spot's tile is the last
    edit_h5(tiny_cohort / "patches" / "P2A.h5", **kept)
    with pytest.warns(UserWarning):
        cohort = open_cohort(tiny_cohort)
        assert len(cohort.validate()) == 1 and len(cohort.digest) == 64


def test_a_tile_without_a_place_is_named(tiny_cohort):
    with h5py.File(tiny_cohort / "patches" / "P1A.h5") as file:
        coords = file["coords"][:].astype(float)
    coords[0, 0] = np.nan
    edit_h5(tiny_cohort / "patches" / "P1A.h5", coords=coords)
    refused(tiny_cohort, "P1A.h5", "1 of 12 tiles", call=validate)
    edit_h5(tiny_cohort / "patches" / "P1A.h5", coords=coords[:5])
    refused(tiny_cohort, "P1A.h5", "(5, 2)", call=validate)


@pytest.mark.parametrize("value", ["0", "-0.5", "inf"])
def test_a_pixel_size_is_above_zero(tiny_cohort, value):
    edit_samples(tiny_cohort, um_per_px=value)
    refused(tiny_cohort, "samples.csv", "um_per_px", "P1A")


def test_log_cp10k_takes_an_adata_of_ones_own_and_no_broken_totals(tiny_cohort):
    adata = open_cohort(tiny_cohort).adata()
    own = ad.AnnData(adata.X.toarray(), pd.DataFrame(index=adata.obs_names), adata.var)
    np.testing.assert_allclose(
        log_cp10k(own), log_cp10k(adata)
    )  # here total_counts is over the same genes
    for value in (np.nan, np.inf, -1):
        adata.obs.iloc[3, adata.obs.columns.get_loc("total_counts")] = value
        with pytest.raises(PekaError, match="P1A:3x1"):
            log_cp10k(adata)
    with pytest.raises(PekaError, match="X"):
        log_cp10k(ad.AnnData(obs=adata.obs))


# ---- copies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate_of, expected", [
    ({"A": "", "B": "A", "C": "B"}, {"B": "A", "C": "A"}),
    ({"A": "B", "B": ""}, {"A": "B"}),  # the original, though it stands second
    ({"A": "B", "B": "A"}, {"B": "A"}),  # both ways
    ({"C": "A", "A": "B", "B": "C"}, {"A": "C", "B": "C"}),  # a ring
    ({"D": "A", "A": "B", "B": "A"}, {"A": "D", "B": "D"}),  # a copy of a ring
    ({"A": "A"}, {}),
    ({"A": "elsewhere"}, {}),
    ({"A": "elsewhere", "B": "elsewhere"}, {"B": "A"}),
])  # fmt: skip
def test_of_a_set_of_copies_one_is_kept(duplicate_of, expected):
    assert originals(pd.Series(duplicate_of)) == expected


def test_validate_names_the_copies_that_are_left_out(tiny_cohort):
    edit_samples(tiny_cohort, duplicate_of=["", "", "", "", "P3B", "P3A", "", ""])
    with pytest.warns(UserWarning, match=r"P3B \(12 spots\) is a copy of P3A"):
        assert len(validate(tiny_cohort)) == 1


# ---- HDF5 files as they come ---------------------------------------------------------------------------------------


def damage(path, name):
    """Store a data set compressed, then zero the middle of its first chunk: the file opens, the read fails."""
    with h5py.File(path, "r+") as file:
        values, attrs = file[name][()], dict(file[name].attrs)
        kind = file[name].dtype
        del file[name]
        stored = file.create_dataset(name, data=values, dtype=kind, chunks=True, compression="gzip")
        stored.attrs.update(attrs)
        chunk = stored.id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset + 2)
        file.write(b"\0" * max(4, chunk.size // 2))


@pytest.mark.parametrize("folder, name, read", [
    ("adata", "X/data", lambda c: c.adata()),
    ("adata", "obsm/spatial", lambda c: c.adata()),
    ("adata", "obs/_index", lambda c: c),
    ("adata", "var/_index", lambda c: c),
    ("patches", "img", lambda c: c.tiles()[:]),
    ("patches", "img", lambda c: c.digest),
    ("patches", "barcode", lambda c: c),
    ("patches", "coords", lambda c: c.validate()),
])  # fmt: skip
def test_a_damaged_data_set_is_named_with_its_file(tiny_cohort, folder, name, read):
    file = next((tiny_cohort / folder).glob("P2A.*"))
    damage(file, name)
    edit_samples(tiny_cohort, tiles_sha256="")
    refused(tiny_cohort, str(file), name.split("/")[0], call=lambda path: read(open_cohort(path)))


@pytest.mark.parametrize("dense", [True, False])
def test_a_missing_filter_is_named(tiny_cohort, dense):
    file = tiny_cohort / "adata" / "P2A.h5ad"
    if dense:
        edit_h5ad(file, lambda a: setattr(a, "X", a.X.toarray()))
    name = "X" if dense else "X/data"
    with h5py.File(file, "r+") as h5:
        values, attrs = h5[name][()], dict(h5[name].attrs)
        del h5[name]
        stored = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        stored.set_chunk(values.shape)
        stored.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, (3,))  # no filter that anybody has
        made = h5py.h5d.create(
            h5.id,
            name.encode(),
            h5py.h5t.py_create(values.dtype),
            h5py.h5s.create_simple(values.shape),
            stored,
        )
        h5py.Dataset(made).id.write_direct_chunk((0,) * values.ndim, bytes(44))
        h5[name].attrs.update(attrs)
    refused(tiny_cohort, "P2A.h5ad", "32999", call=lambda path: open_cohort(path).adata())


def test_what_nothing_needs_is_left_out_with_a_note(tiny_cohort):
    file = tiny_cohort / "adata" / "P1A.h5ad"

    def add(adata):
        adata.obsm["X_new"] = np.zeros((12, 2))
        adata.obs["depth"] = np.arange(12.0)
        adata.obs["kept"] = np.arange(12)

    before = open_cohort(tiny_cohort).adata()
    edit_h5ad(file, add)
    with h5py.File(file, "a") as h5:
        h5["obsm/X_new"].attrs["encoding-type"] = "of-tomorrow"
    damage(file, "obs/depth")
    cohort = open_cohort(tiny_cohort)
    with pytest.warns(UserWarning):
        found, after = cohort.validate(), cohort.adata(["P1A"])
    assert (
        len(found) == 2
        and all("P1A.h5ad" in text for text in found)
        and any("X_new" in t for t in found)
        and any("depth" in t for t in found)
    )
    assert (before.X[:12] != after.X).nnz == 0 and after.obs["tissue_type"].equals(
        before.obs["tissue_type"][:12]
    )
    kept = read_spots(cohort.sections[0]).obs
    assert list(kept["kept"]) == list(range(12)) and "depth" not in kept


def test_a_file_in_use_is_said_to_be_in_use(tiny_cohort):
    file = tiny_cohort / "adata" / "P1A.h5ad"
    code = f"import h5py, sys; h = h5py.File({str(file)!r}, 'r+'); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        writer.stdout.readline()
        with pytest.raises(PekaError, match="P1A.h5ad.*in use") as caught:
            open_cohort(tiny_cohort)
        writer.stdin.close()
    assert "elete" not in str(caught.value)


def test_an_h5ad_of_old_anndata_is_read(tiny_cohort):
    before = open_cohort(tiny_cohort)
    before, digest = before.adata(), before.digest
    file = tiny_cohort / "adata" / "P1A.h5ad"
    adata = ad.read_h5ad(file)
    x = adata.X.tocsr()
    file.unlink()
    with h5py.File(file, "w") as h5:
        group = h5.create_group("X")
        group["data"], group["indices"], group["indptr"] = x.data, x.indices, x.indptr
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", np.array(x.shape)
        for name, words in (("obs", adata.obs_names), ("var", adata.var_names)):
            table = np.zeros(len(words), dtype=[("index", "S20")])
            table["index"] = [word.encode() for word in words]
            h5[name] = table
        table = np.zeros(adata.n_obs, dtype=[("spatial", "f8", (2,))])
        table["spatial"] = adata.obsm["spatial"]
        h5["obsm"] = table
    cohort = open_cohort(tiny_cohort)
    assert cohort.validate() == [] and cohort.digest == digest
    assert (cohort.adata().X != before.X).nnz == 0 and np.array_equal(
        cohort.adata().obsm["spatial"], before.obsm["spatial"]
    )


@pytest.mark.parametrize("name", ["pixel_size", "downsample", "patch_size_src"])
@pytest.mark.parametrize("value", ["0.5 um", 0, np.nan, -1.0, np.array([0.5, 0.5])])
def test_attributes_of_foreign_writers(tiny_cohort, name, value):
    file = tiny_cohort / "patches" / "P1A.h5"
    with h5py.File(file, "a") as h5:
        for key, stored in dict(h5["img"].attrs).items():
            h5["img"].attrs[key] = np.array([stored])
    cohort = open_cohort(tiny_cohort)
    assert cohort.validate() == [] and cohort.sections[0].um_per_px == 0.5
    with h5py.File(file, "a") as h5:
        if name == "downsample":
            del h5["img"].attrs["pixel_size"]
        h5["img"].attrs[name] = value
    refused(tiny_cohort, "P1A.h5", name, call=validate)


# ---- tables as people save them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [
    "sample_id\nP1A\n".encode("utf-16"), "sample_id;x\nP1A;é\n".encode("latin-1"), b"", b"sample_id\n", b"sample_id\nP1A\nP1A\n",
    b"sample_id,x\nP1A,1\n,\n", b'sample_id\n"P1A\n', b"sample_id,sample_id \nP1A,P1B\n", b"sample_id\nP1A\nP9Z\n",
])  # fmt: skip
@pytest.mark.parametrize("name", ["splits/train_0.csv", "samples.csv"])
def test_a_table_that_cannot_be_right_is_named(tiny_cohort, content, name):
    (tiny_cohort / name).write_bytes(content)
    refused(tiny_cohort, "P9Z" if b"P9Z" in content else name)


def test_a_split_of_one_side_is_named(tiny_cohort):
    (tiny_cohort / "splits" / "train_1.csv").unlink()
    refused(tiny_cohort, "train_1.csv")


def test_files_that_are_no_split_are_left_out_with_a_note(tiny_cohort):
    for name in ("train_0 (1).csv", "train_00.csv", "notes.csv", "._train_0.csv"):
        (tiny_cohort / "splits" / name).write_bytes(b"\xff")
    with pytest.warns(UserWarning, match="train_0 \\(1\\).csv"):
        cohort = open_cohort(tiny_cohort)
    assert len(cohort.splits) == 4 and "._" not in cohort.notes[0]


@pytest.mark.parametrize(
    "content",
    ['{"genes": ["G00", "G01", "G00"]}', '{"genes": "G00"}', '{"genes": [1]}', "", "\udcff"],
)
def test_gene_lists_that_cannot_be_right_are_named(tiny_cohort, content):
    (tiny_cohort / "var_20genes.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    refused(tiny_cohort, "var_20genes.json", "G00" if "G01" in content else "genes")


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "n/a", "None", "NULL", "-", "#N/A", " "])
def test_words_for_missing_count_as_blank(tiny_cohort, word):
    edit_samples(
        tiny_cohort,
        patient=["P1", "P1", "P2", "P2", "P3", "P3", word, word],
        duplicate_of=word,
        um_per_px=word,
    )
    with pytest.warns(UserWarning, match="patient is blank for 2 of 8"):
        cohort = open_cohort(tiny_cohort)
    assert (
        list(cohort.samples.group[-2:]) == ["P4A", "P4B"]
        and cohort.samples.duplicate_of.eq("").all()
    )
    assert cohort.samples.um_per_px.eq(0.5).all()  # from the patches


def test_a_section_may_be_called_na(tiny_cohort):
    for folder, suffix in (("patches", "h5"), ("adata", "h5ad")):
        (tiny_cohort / folder / f"P1A.{suffix}").rename(tiny_cohort / folder / f"NA.{suffix}")
    edit_samples(tiny_cohort, sample_id=["NA", "P1B", "P2A", "P2B", "P3A", "P3B", "P4A", "P4B"])
    for file in (tiny_cohort / "splits").glob("*.csv"):
        file.write_text(file.read_text().replace("P1A", "NA"))
    assert open_cohort(tiny_cohort).samples.index[0] == "NA"


# ---- HEST's own files ----------------------------------------------------------------------------------------------


@pytest.fixture
def task(hest_files):
    with pytest.warns(UserWarning, match="no samples.csv"):
        return open_cohort(hest_files / "bench/FIXTASK")


def test_an_official_task_of_the_older_generation_opens(task, hest_files):
    golden = json.loads((hest_files / "golden/bench_FIXTASK.json").read_text())
    assert task.genes == golden["genes"] and [s.name for s in task.splits] == [
        "patients/0",
        "patients/1",
    ]
    adata = task.adata()
    for sample, expected in golden["samples"].items():
        mine = adata[adata.obs["sample"] == sample]
        assert sorted(mine.obs.barcode) == sorted(expected["barcodes_in_h5_order"])
        order = [f"{sample}:{b}" for b in expected["barcodes_in_h5_order"]]
        assert np.array_equal(
            mine[order, golden["genes"]].X.toarray(), np.array(expected["raw_counts"])
        )
    assert adata.obs.in_tissue.dtype == np.int64  # bool in two sections, 0/1 in the third


def test_official_tiles_are_joined_by_barcode(task, hest_files):
    tiles = task.tiles()
    for sample in task.samples.index:
        rows = json.loads((hest_files / f"golden/{sample}.json").read_text())["legacy_patches_h5"][
            "rows"
        ]
        expected = {row["barcode"]: row["sha256"] for row in rows}
        for spot in np.flatnonzero(task.obs["sample"] == sample):
            assert (
                hashlib.sha256(tiles[spot].tobytes()).hexdigest()
                == expected[task.obs.barcode.iloc[spot]]
            )


def test_both_generations_agree_with_their_spots(task, hest_files, tmp_path):
    with pytest.warns(UserWarning) as caught:
        older = task.validate()
    assert len(caught) == len(older)
    for kind, folder in (("adata", "st"), ("patches", "patches")):
        (tmp_path / kind).symlink_to(hest_files / "hest1k" / folder)
    with pytest.warns(UserWarning):
        current = open_cohort(tmp_path)
        current.validate()
    assert (len(task), len(current)) == (13, 19)
    assert np.allclose(current.samples.um_per_px, task.samples.um_per_px)


def test_the_old_name_of_the_barcodes_is_read(tiny_cohort):
    with h5py.File(tiny_cohort / "patches" / "P1A.h5", "a") as file:
        file.move("barcode", "barcodes")
    assert len(open_cohort(tiny_cohort)) == 96


def test_a_task_without_patches_opens_without_tiles():
    with pytest.warns(UserWarning):
        cohort = open_cohort(Path(__file__).parent / "fixtures/scores/task")
    assert (
        not cohort.has_tiles
        and len(cohort) == 800
        and len(cohort.splits) == 3
        and len(cohort.genes) == 12
    )
    assert sparse.issparse(cohort.adata().X)


def test_whose_tile_is_whose_is_part_of_the_digest(tiny_cohort):
    """Barcodes of a tile file that are corrected leave the pixels, and so tiles_sha256, as they were."""
    before = open_cohort(tiny_cohort).digest
    with h5py.File(tiny_cohort / "patches/P1A.h5", "r+") as file:
        file["barcode"][:] = np.roll(file["barcode"][:], 1, axis=0)
    assert open_cohort(tiny_cohort).digest != before
