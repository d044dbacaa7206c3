"""Cohort files that are wrong, damaged, of another form, or written as people write them."""

import shutil

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
    write_old_anndata,
    zero_middle,
)

from peka_core.cohort import open_cohort, write_cohort_tables, write_sample
from peka_core.layout.tables import originals

pytestmark = pytest.mark.filterwarnings("error::UserWarning")
SAMPLES = ["P1A", "P1B", "P2A", "P2B", "P3A", "P3B", "P4A", "P4B"]


def read(path):
    """Read everything that a cohort holds."""
    cohort = open_cohort(path)
    return cohort.validate(), cohort.adata(), cohort.tiles()[:]


# ---- writing -----------------------------------------------------------------------------------


def test_written_files_have_hests_current_form(tiny_cohort):
    adata, tile = ad.read_h5ad(tiny_cohort / "adata/P1A.h5ad"), np.zeros((1, 224, 224, 3), np.uint8)
    write_sample(tiny_cohort / "other", "S", tile, [[-3, 5]], ["0x1"], adata, 0.7)
    with h5py.File(tiny_cohort / "other/patches/S.h5") as file:
        assert file["img"].chunks == (1, 224, 224, 3) and file["barcode"].shape == (1, 1)
        assert h5py.check_string_dtype(file["barcode"].dtype).length is None
        assert file["coords"][:].tolist() == [[-3, 5]]
        sizes = {"patch_size_src": 160, "patch_size_target": 224, "pixel_size": 0.7}
        scale = pytest.approx(0.5 / 0.7)  # px of the slide for each px of the tile
        assert dict(file["img"].attrs) == sizes | {"downsample": scale}


def test_tables_of_an_earlier_build_go_and_odd_files_are_left_out_with_a_warning(tiny_cohort):
    samples = pd.DataFrame(index=["P1A", "P1B"])
    write_cohort_tables(tiny_cohort, samples, [(["P1A"], ["P1B"])], ["G00"])
    for name in ("train_0 (1).csv", "train_00.csv", "notes.csv", "._train_0.csv"):
        (tiny_cohort / "splits" / name).write_bytes(b"\xff")
    with pytest.warns(UserWarning):
        cohort = open_cohort(tiny_cohort)
    assert cohort.genes == ["G00"] and len(cohort.splits) == 1 and len(cohort) == 24
    odd = " ".join(cohort.notes)
    assert "train_0 (1).csv" in odd and "train_00.csv" in odd and "._" not in odd


TILES = np.ones((12, 224, 224, 3), np.uint8)


@pytest.mark.parametrize("changed", [
    {"tiles": TILES / 255}, {"tiles": TILES.astype(np.uint16) * 256},
    {"tiles": np.ones((12, 256, 256, 3), np.uint8)}, {"um_per_px": 0}, {"um_per_px": np.nan},
    {"coords_xy_topleft": np.full((12, 2), np.nan)}, {"coords_xy_topleft": np.zeros((11, 2))},
])  # fmt: skip
def test_what_cannot_be_right_is_not_written(tiny_cohort, changed):
    adata = ad.read_h5ad(tiny_cohort / "adata/P1A.h5ad")
    before, right = set(tiny_cohort.parent.rglob("*")), {"barcodes": adata.obs_names}
    right |= {"tiles": TILES, "coords_xy_topleft": np.zeros((12, 2)), "um_per_px": 0.5}
    write = lambda name: write_sample(tiny_cohort, name, adata=adata, **right | changed)
    refused("NEW", call=write)
    assert set(tiny_cohort.parent.rglob("*")) == before


# ---- sections: damage -> what the error names --------------------------------------------------


def on_file(edit):
    """An edit of a file, called with all but the file."""
    return lambda *values, **named: lambda file: edit(file, *values, **named)


def set_attributes(path, **attributes):
    with h5py.File(path, "a") as file:
        if "downsample" in attributes:
            del file["img"].attrs["pixel_size"]
        file["img"].attrs.update(attributes)


def name_first(path, axis, names):
    """Other names of the first spots or genes."""
    edit_h5ad(path, lambda a: setattr(a, axis, [*names, *getattr(a, axis)[len(names) :]]))


h5ad, replaced, zeroed = on_file(edit_h5ad), on_file(edit_h5), on_file(zero_middle)
attribute, named = on_file(set_attributes), on_file(name_first)
dense = lambda add: h5ad(lambda a: setattr(a, "X", a.X.toarray() + add))
place = lambda value, row=3: h5ad(lambda a: a.obsm["spatial"].__setitem__((row, 1), value))
FORWARD = np.array([[f"{i}x1".encode()] for i in range(12)])  # the file has them backwards
BAD_ADATA = [
    (h5ad(lambda a: a[a.obs_names != "5x1"].copy()), "5x1"), (zeroed("X/data"), "X"),
    (h5ad(lambda a: a.X.data.__setitem__(7, np.nan)), "1 of"),
    (h5ad(lambda a: a.X.data.__setitem__(7, -1)), "1 of"), (dense(0.5), "360 of"),
    (named("var_names", ["G04"]), "G04"), (named("obs_names", ["4x1"]), "4x1"),
    (named("var_names", [f"ENSG{i:011d}" for i in range(30)]), ""), (place(np.nan), "infinite"),
]  # fmt: skip
BAD_PATCHES = [
    (replaced(img=np.zeros((12, 256, 256, 3), np.uint8)), "256"), (zeroed("img"), "img"),
    (replaced(img=np.zeros((12, 224, 224, 3), "f4")), "float32"),
    (replaced(img=np.zeros((11, 224, 224, 3), np.uint8)), "11"),
    (replaced(barcode=FORWARD[[0] * 12]), "0x1"), (replaced(barcode=FORWARD), "12 of 12"),
    (replaced(coords=np.full((12, 2), np.nan)), "12 of 12"),
    (attribute(pixel_size=0), "pixel_size"), (attribute(downsample=np.inf), "downsample"),
    (attribute(patch_size_src=-1.0), "patch_size_src"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name, damage, part", [
    *[("adata/P2A.h5ad", *case) for case in BAD_ADATA],
    *[("patches/P2A.h5", *case) for case in BAD_PATCHES],
])  # fmt: skip
def test_a_section_that_cannot_be_right_is_named(tiny_cohort, name, damage, part):
    damage(tiny_cohort / name)
    refused(tiny_cohort, name.split("/")[1], part, call=read)


def test_forms_of_old_and_foreign_writers_are_read(tiny_cohort):
    """Old anndata, the other name of barcodes, and attributes stored as arrays of one number."""
    cohort = open_cohort(tiny_cohort)
    before, digest = cohort.adata(), cohort.digest
    write_old_anndata(tiny_cohort / "adata/P1A.h5ad")
    with h5py.File(tiny_cohort / "patches/P1A.h5", "a") as file:
        file.move("barcode", "barcodes")
        for key, stored in dict(file["img"].attrs).items():
            file["img"].attrs[key] = np.array([stored])
    cohort = open_cohort(tiny_cohort)
    assert cohort.validate() == [] and cohort.digest == digest
    assert cohort.sections[0].um_per_px == 0.5 and (cohort.adata().X != before.X).nnz == 0
    assert np.array_equal(cohort.adata().obsm["spatial"], before.obsm["spatial"])


def test_spots_without_tile_are_counted_and_need_no_place(tiny_cohort):
    place(np.nan, 0)(tiny_cohort / "adata/P2B.h5ad")
    keep_tiles(tiny_cohort / "patches/P2B.h5", np.arange(9))  # the first spot's tile is the last
    (tiny_cohort / "splits/test_3.csv").write_text("sample_id\nP4A\n")
    with pytest.warns(UserWarning):
        cohort = open_cohort(tiny_cohort)
        notes, digest = cohort.validate(), cohort.digest
    assert len(cohort) == 93 and len(digest) == 64 and "P2B.h5: 3 spots" in notes[0]


# ---- tables --------------------------------------------------------------------------------------


def test_patients_are_read_or_assumed(tiny_cohort):
    edit_samples(tiny_cohort, patient=["P1", "P2", "P2", "P2", "P3", "P3", "P4", "P4"])
    with pytest.warns(UserWarning, match="P2"):
        assert len(open_cohort(tiny_cohort).validate()) == 2  # on both sides of two splits
    text = "sample_id,patient,organ\nP1A,,Breast\nP1B,   ,Breast\nP2A,x,Breast\n"
    (tiny_cohort / "samples.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    shutil.rmtree(tiny_cohort / "splits")
    with pytest.warns(UserWarning, match="2 of 3"), pytest.warns(UserWarning, match="5 sections"):
        samples = open_cohort(tiny_cohort).samples
    assert list(samples.patient) == ["P1A", "P1B", "x"] and samples.organ.eq("Breast").all()
    (tiny_cohort / "samples.csv").unlink()
    with pytest.warns(UserWarning, match="8 samples"):
        samples = open_cohort(tiny_cohort).samples
    assert list(samples.patient) == SAMPLES and samples.um_per_px.eq(0.5).all()  # of the patches


def test_words_for_missing_count_as_blank_but_a_section_may_be_called_na(tiny_cohort):
    words = ["NaN", "NA", "n/a", "None", "NULL", "-", " ", ""]
    edit_samples(tiny_cohort, patient=words, duplicate_of=words, um_per_px=words)
    for file in (*tiny_cohort.glob("patches/P1A.*"), *tiny_cohort.glob("adata/P1A.*")):
        file.rename(file.with_stem("NA"))
    for file in (tiny_cohort / "samples.csv", *tiny_cohort.glob("splits/*.csv")):
        file.write_text(file.read_text().replace("P1A", "NA"))
    with pytest.warns(UserWarning, match="8 of 8"):
        samples = open_cohort(tiny_cohort).samples
    assert list(samples.group) == list(samples.index) == ["NA", *SAMPLES[1:]]
    assert samples.duplicate_of.eq("").all() and samples.um_per_px.eq(0.5).all()


BAD_TABLES = [
    b"sample_id\n", b"sample_id\nP1A\nP1A\n", b"sample_id,x\nP1A,1\n,\n",
    b"sample_id,sample_id \nP1A,P1B\n", b"sample_id\n../evil\n",
]  # fmt: skip
BAD_SIZES = [f"sample_id,um_per_px\nP1A,{x}\n".encode() for x in ("0", "inf")]
BAD_GENES = [b'{"genes": ["G0", "G0"]}', b'{"genes": "G0"}', b'{"genes": [1]}']


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name, content, part", [
    *[("samples.csv", content, "samples.csv") for content in BAD_TABLES],
    *[("splits/train_0.csv", content, "train_0.csv") for content in BAD_TABLES],
    *[("samples.csv", content, "um_per_px") for content in BAD_SIZES],
    ("samples.csv", b"sample_id\nP1A\nP9Z\n", "P9Z"),
    ("splits/test_1.csv", b"sample_id\nP9Z\n", "test_1.csv"),
    ("splits/test_1.csv", b"sample_id\nP1A\n", "test_1.csv"),  # it is in train_1.csv too
    ("splits/test_9.csv", b"sample_id\nP1A\n", "train_9.csv"),  # a split of one side
    *[("var_20genes.json", content, "var_20genes.json") for content in BAD_GENES],
    ("var_1genes.json", b'{"genes": ["G00"]}', "var_1genes.json"),  # there are two lists
])  # fmt: skip
def test_a_table_that_cannot_be_right_is_named(tiny_cohort, name, content, part):
    (tiny_cohort / name).write_bytes(content)
    refused(tiny_cohort, part)


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
