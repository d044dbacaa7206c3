"""Cohort files that are wrong, damaged, of another form, or written as people write them."""

import json
import subprocess
import sys

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from damage import (
    edit_h5,
    edit_h5ad,
    edit_samples,
    keep_tiles,
    refused,
    unknown_filter,
    validate,
    write_old_anndata,
    zero_middle,
)

from peka_core.cohort import open_cohort, write_cohort_tables, write_sample
from peka_core.common.errors import PekaError
from peka_core.layout.sections import read_spots
from peka_core.layout.tables import originals

pytestmark = pytest.mark.filterwarnings("error::UserWarning")
SAMPLES = ["P1A", "P1B", "P2A", "P2B", "P3A", "P3B", "P4A", "P4B"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))


def read_counts(path):
    return open_cohort(path).adata()


def read_tiles(path):
    return open_cohort(path).tiles()[:]


# ---- writing -----------------------------------------------------------------------------------


def test_written_files_have_hests_current_form(tiny_cohort):
    with h5py.File(tiny_cohort / "patches/P1A.h5") as file:
        assert file["img"].chunks == (1, 224, 224, 3) and file["barcode"].shape == (12, 1)
        assert h5py.check_string_dtype(file["barcode"].dtype).length is None
        sizes = {"patch_size_src": 224, "patch_size_target": 224}
        assert dict(file["img"].attrs) == sizes | {"downsample": 1, "pixel_size": 0.5}
    adata = ad.read_h5ad(tiny_cohort / "adata/P1A.h5ad")
    tile = np.zeros((1, 224, 224, 3), np.uint8)
    write_sample(tiny_cohort / "other", "S", tile, [[-3, 5]], ["0x1"], adata, 0.7)
    with h5py.File(tiny_cohort / "other/patches/S.h5") as file:
        assert file["coords"][:].tolist() == [[-3, 5]]
        assert file["img"].attrs["patch_size_src"] == 160
        assert file["img"].attrs["downsample"] == pytest.approx(0.5 / 0.7)  # slide px per tile px


def test_tables_of_an_earlier_build_go(tiny_cohort):
    samples = pd.DataFrame(index=["P1A", "P1B"])
    write_cohort_tables(tiny_cohort, samples, [(["P1A"], ["P1B"])], ["G00"])
    with pytest.warns(UserWarning):
        cohort = open_cohort(tiny_cohort)
    assert cohort.genes == ["G00"] and len(cohort.splits) == 1 and len(cohort) == 24


@pytest.mark.parametrize("changed", [
    {"tiles": lambda t: t / 255}, {"tiles": lambda t: t.astype(np.uint16) * 256},
    {"tiles": lambda t: t.astype(int)}, {"tiles": lambda t: t[..., 0]},
    {"tiles": lambda t: np.pad(t, ((0, 0), (16, 16), (16, 16), (0, 0)))},
    {"corners": np.full((12, 2), np.nan)}, {"corners": np.zeros((11, 2))}, {"corners": None},
    {"um_per_px": 0}, {"um_per_px": np.nan}, {"name": "../evil"}, {"name": "a/b"}, {"name": ""},
    {"name": ".hidden"},
])  # fmt: skip
def test_what_cannot_be_right_is_not_written(tiny_cohort, changed):
    adata = ad.read_h5ad(tiny_cohort / "adata/P1A.h5ad")
    before = set(tiny_cohort.parent.rglob("*"))
    tiles = changed.get("tiles", lambda t: t)(np.ones((12, 224, 224, 3), np.uint8))
    corners, um_per_px = changed.get("corners", np.zeros((12, 2))), changed.get("um_per_px", 0.5)
    name = changed.get("name", "NEW")
    with pytest.raises(PekaError, match="cohort" if "name" in changed else "NEW"):
        write_sample(tiny_cohort, name, tiles, corners, adata.obs_names, adata, um_per_px)
    assert set(tiny_cohort.parent.rglob("*")) == before


# ---- sections: damage -> what the error names --------------------------------------------------


def h5ad(change):
    return lambda file: edit_h5ad(file, change)


def counts(value, dense=False):
    def change(adata):
        adata.X.data[7] = value
        adata.X = adata.X.toarray() if dense else adata.X

    return h5ad(change)


def repeated(axis):
    def change(adata):
        names = list(getattr(adata, axis))
        setattr(adata, axis, [*names[:3], names[4], *names[4:]])

    return h5ad(change)


def changed(name, change):
    """Replace a data set of a patches file by a function of its values."""

    def edit(file):
        with h5py.File(file) as h5:
            values = h5[name][:]
        edit_h5(file, **{name: change(values)})

    return edit


def replaced(**datasets):
    return lambda file: edit_h5(file, **datasets)


def place(value, row=3):
    return h5ad(lambda a: a.obsm["spatial"].__setitem__((row, 1), value))


def zeroed(name):
    return lambda file: zero_middle(file, name)


def ensembl(adata):
    adata.var_names = [f"ENSG{i:011d}" for i in range(30)]


def nan_first(values):
    return np.vstack([[np.nan, 0], values[1:]])


ADATA, PATCHES = "adata/P2A.h5ad", "patches/P2A.h5"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name, damage, call, parts", [
    (ADATA, lambda file: file.unlink(), open_cohort, []),
    (PATCHES, lambda file: file.unlink(), open_cohort, []),
    (PATCHES, lambda file: file.write_bytes(file.read_bytes()[:5000]), open_cohort, []),
    (ADATA, h5ad(lambda a: a[a.obs_names != "5x1"].copy()), open_cohort, ["5x1"]),
    (ADATA, counts(np.nan), validate, ["1 of"]),
    (ADATA, counts(-1), validate, ["1 of"]),
    (ADATA, counts(0.5, dense=True), validate, ["1 of"]),
    (ADATA, counts(np.inf, dense=True), validate, ["1 of"]),
    (PATCHES, replaced(img=np.zeros((12, 256, 256, 3), np.uint8)), open_cohort, ["256"]),
    (PATCHES, replaced(img=np.zeros((12, 224, 224, 3), "f4")), open_cohort, ["float32"]),
    (PATCHES, replaced(img=np.zeros((11, 224, 224, 3), np.uint8)), open_cohort, ["11"]),
    (PATCHES, replaced(barcode=np.array([[b"0x1"]] * 12)), open_cohort, ["0x1"]),
    (ADATA, repeated("var_names"), open_cohort, ["G04"]),
    (ADATA, repeated("obs_names"), open_cohort, ["4x1"]),
    (ADATA, h5ad(ensembl), open_cohort, []),
    (PATCHES, changed("barcode", lambda names: names[::-1]), validate, ["12 of 12"]),
    (PATCHES, changed("coords", nan_first), validate, ["1 of 12"]),
    (PATCHES, changed("coords", lambda c: c[:5]), validate, ["(5, 2)"]),
    (ADATA, h5ad(lambda a: a.obsm.pop("spatial") is None), read_counts, ["spatial"]),
    (ADATA, place(np.nan), read_counts, ["3x1", "1 of 12"]),
    (ADATA, place(np.inf), validate, ["3x1", "1 of 12"]),
    (ADATA, zeroed("X/data"), read_counts, ["X"]),
    (ADATA, zeroed("obsm/spatial"), read_counts, ["obsm"]),
    (ADATA, zeroed("obs/_index"), open_cohort, ["obs"]),
    (PATCHES, zeroed("img"), read_tiles, ["img"]),
    (PATCHES, zeroed("barcode"), open_cohort, ["barcode"]),
    (PATCHES, zeroed("coords"), validate, ["coords"]),
    (ADATA, lambda file: unknown_filter(file, "X/data"), read_counts, ["32999"]),
])  # fmt: skip
def test_a_section_that_cannot_be_right_is_named(tiny_cohort, name, damage, call, parts):
    damage(tiny_cohort / name)
    refused(tiny_cohort, name.split("/")[1], *parts, call=call)


def test_a_file_that_another_process_writes_is_not_called_damaged(tiny_cohort):
    file = tiny_cohort / "adata/P1A.h5ad"
    code = f"import h5py, sys; h = h5py.File({str(file)!r}, 'r+'); print(1, flush=True)\n"
    command = [sys.executable, "-c", code + "sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        refused(tiny_cohort, "P1A.h5ad", "HDF5_USE_FILE_LOCKING")
        writer.stdin.close()


def test_what_is_not_needed_is_left_out_with_a_warning(tiny_cohort):
    file, before = tiny_cohort / "adata/P1A.h5ad", open_cohort(tiny_cohort).adata()

    def add(adata):
        adata.obsm["X_new"] = np.zeros((12, 2))
        adata.obs["depth"], adata.obs["kept"] = np.arange(12.0), np.arange(12)

    edit_h5ad(file, add)
    with h5py.File(file, "a") as h5:
        h5["obsm/X_new"].attrs["encoding-type"] = "of-tomorrow"
    zero_middle(file, "obs/depth")
    cohort = open_cohort(tiny_cohort)
    with pytest.warns(UserWarning):
        notes, after = cohort.validate(), cohort.adata(["P1A"])
    assert len(notes) == 2 and all("P1A.h5ad" in note for note in notes)
    assert "X_new" in "".join(notes) and "depth" in "".join(notes)
    assert (before.X[:12] != after.X).nnz == 0
    kept = read_spots(cohort.sections[0]).obs
    assert list(kept["kept"]) == list(range(12)) and "depth" not in kept


def test_an_h5ad_of_old_anndata_and_the_old_name_of_barcodes_are_read(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    before, digest = cohort.adata(), cohort.digest
    write_old_anndata(tiny_cohort / "adata/P1A.h5ad")
    with h5py.File(tiny_cohort / "patches/P1A.h5", "a") as file:
        file.move("barcode", "barcodes")
    cohort = open_cohort(tiny_cohort)
    assert cohort.validate() == [] and cohort.digest == digest
    assert (cohort.adata().X != before.X).nnz == 0
    assert np.array_equal(cohort.adata().obsm["spatial"], before.obsm["spatial"])


@pytest.mark.parametrize("name, value", [
    ("pixel_size", "0.5 um"), ("pixel_size", 0), ("downsample", np.nan), ("patch_size_src", -1.0),
    ("patch_size_src", np.array([0.5, 0.5])),
])  # fmt: skip
def test_attributes_of_foreign_writers(tiny_cohort, name, value):
    file = tiny_cohort / "patches/P1A.h5"
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


def test_spots_without_tile_are_counted_and_need_no_place(tiny_cohort):
    place(np.nan, 0)(tiny_cohort / "adata/P2B.h5ad")
    keep_tiles(tiny_cohort / "patches/P2B.h5", np.arange(9))  # the first spot's tile is the last
    for file in (tiny_cohort / "splits").glob("*.csv"):
        lines = [line for line in file.read_text().splitlines() if "P4B" not in line]
        file.write_text("\n".join(lines))
    with pytest.warns(UserWarning):
        cohort = open_cohort(tiny_cohort)
        notes, digest = cohort.validate(), cohort.digest
    assert len(cohort) == 93 and len(digest) == 64 and len(notes) == 2
    assert "P2B.h5: 3 spots" in notes[0] and "P4B" in notes[1]


# ---- tables --------------------------------------------------------------------------------------


def test_patients_are_read_or_assumed(tiny_cohort):
    edit_samples(tiny_cohort, patient=["P1", "P2", "P2", "P2", "P3", "P3", "P4", "P4"])
    with pytest.warns(UserWarning, match="P2"):
        assert len(validate(tiny_cohort)) == 2  # on both sides of two splits
    text = "sample_id,patient,organ\nP1A,,Breast\nP1B,   ,Breast\nP2A,x,Breast\n"
    (tiny_cohort / "samples.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    for file in (tiny_cohort / "splits").glob("*.csv"):
        file.unlink()
    with pytest.warns(UserWarning) as caught:
        samples = open_cohort(tiny_cohort).samples
    assert list(samples.patient) == ["P1A", "P1B", "x"] and samples.organ.eq("Breast").all()
    said = " ".join(str(warning.message) for warning in caught)
    assert "2 of 3" in said and "5 sections" in said
    (tiny_cohort / "samples.csv").unlink()
    with pytest.warns(UserWarning, match="8 samples"):
        samples = open_cohort(tiny_cohort).samples
    assert list(samples.patient) == SAMPLES and samples.um_per_px.eq(0.5).all()  # of the patches


@pytest.mark.parametrize("word", ["NaN", "NA", "n/a", "None", "NULL", "-", " "])
def test_words_for_missing_count_as_blank(tiny_cohort, word):
    patients = ["P1", "P1", "P2", "P2", "P3", "P3", word, word]
    edit_samples(tiny_cohort, patient=patients, duplicate_of=word, um_per_px=word)
    with pytest.warns(UserWarning, match="2 of 8"):
        samples = open_cohort(tiny_cohort).samples
    assert list(samples.group[-2:]) == ["P4A", "P4B"] and samples.duplicate_of.eq("").all()
    assert samples.um_per_px.eq(0.5).all()


def test_a_section_may_be_called_na(tiny_cohort):
    for file in (*tiny_cohort.glob("patches/P1A.*"), *tiny_cohort.glob("adata/P1A.*")):
        file.rename(file.with_stem("NA"))
    for file in (tiny_cohort / "samples.csv", *tiny_cohort.glob("splits/*.csv")):
        file.write_text(file.read_text().replace("P1A", "NA"))
    assert open_cohort(tiny_cohort).samples.index[0] == "NA"


@pytest.mark.parametrize("content", [
    "sample_id\nP1A\n".encode("utf-16"), "sample_id;x\nP1A;é\n".encode("latin-1"), b"",
    b"sample_id\n", b"sample_id\nP1A\nP1A\n", b"sample_id,x\nP1A,1\n,\n", b'sample_id\n"P1A\n',
    b"sample_id,sample_id \nP1A,P1B\n", b"sample_id\nP1A\nP9Z\n", b"sample_id\n../evil\n", None,
])  # fmt: skip
@pytest.mark.parametrize("name", ["splits/train_0.csv", "samples.csv"])
def test_a_table_that_cannot_be_right_is_named(tiny_cohort, content, name):
    if content is None:  # a split of one side
        name = "splits/test_0.csv"
        (tiny_cohort / name).unlink()
    else:
        (tiny_cohort / name).write_bytes(content)
    refused(tiny_cohort, "P9Z" if content and b"P9Z" in content else name)


@pytest.mark.parametrize("value", ["0", "-0.5", "inf", "half"])
def test_a_pixel_size_is_a_number_above_zero(tiny_cohort, value):
    edit_samples(tiny_cohort, um_per_px=value)
    refused(tiny_cohort, "samples.csv", "um_per_px")


def test_a_sample_on_both_sides_is_refused_and_an_odd_file_left_out(tiny_cohort):
    for name in ("train_0 (1).csv", "train_00.csv", "notes.csv", "._train_0.csv"):
        (tiny_cohort / "splits" / name).write_bytes(b"\xff")
    with pytest.warns(UserWarning, match="train_0 \\(1\\).csv"):
        cohort = open_cohort(tiny_cohort)
    assert len(cohort.splits) == 4 and "._" not in cohort.notes[0]
    (tiny_cohort / "splits/test_1.csv").write_text("sample_id\nP1A\n")
    with pytest.warns(UserWarning):
        refused(tiny_cohort, "test_1.csv", "P1A")


@pytest.mark.parametrize("content", [
    '{"genes": ["G00", "G01", "G00"]}', '{"genes": "G00"}', '{"genes": [1]}', "[]", "", "\udcff",
])  # fmt: skip
def test_gene_lists_that_cannot_be_right_are_named(tiny_cohort, content):
    (tiny_cohort / "var_20genes.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    refused(tiny_cohort, "var_20genes.json")
    (tiny_cohort / "var_20genes.json").write_text(json.dumps({"genes": ["G00"]}))
    (tiny_cohort / "var_1genes.json").write_text(json.dumps({"genes": ["G00"]}))
    refused(tiny_cohort, "var_1genes.json")


@pytest.mark.parametrize("duplicate_of, expected", [
    ({"A": "", "B": "A", "C": "B"}, {"B": "A", "C": "A"}),
    ({"A": "B", "B": ""}, {"A": "B"}),  # the original, though it is second
    ({"A": "B", "B": "A"}, {"B": "A"}),  # both ways
    ({"C": "A", "A": "B", "B": "C"}, {"A": "C", "B": "C"}),  # a ring
    ({"D": "A", "A": "B", "B": "A"}, {"A": "D", "B": "D"}),  # a copy of a ring
    ({"A": "A"}, {}),
    ({"A": "elsewhere"}, {}),
    ({"A": "elsewhere", "B": "elsewhere"}, {"B": "A"}),
])  # fmt: skip
def test_of_a_set_of_copies_one_is_kept(duplicate_of, expected):
    assert originals(pd.Series(duplicate_of)) == expected
