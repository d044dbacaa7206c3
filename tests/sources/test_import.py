"""`peka import`: samples into a cohort, whole or not at all; each bad input through the command."""

import argparse
import json
import re
import shutil

import anndata as ad
import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, write_tiny_cohort
from damage import edit_h5ad, keep_tiles, zero_middle
from draw_space_ranger import GENES, HEADER, SIZE, UM_PER_PX, draw, write_h5, write_positions
from fake_hest import state
from PIL import Image

from peka_core.cohort import open_cohort, write_cohort_tables
from peka_core.commands.command_line import main
from peka_core.common.errors import PekaError
from peka_core.slides.orientation import ORIENTATIONS, oriented
from peka_core.sources import directory, growing, importing, staging
from peka_core.sources.raw_sample import RawSample, checked, counts_table
from peka_core.tiles import cut_tiles

REAL = SHARED / "data/visium_1.0.0"


def peka(*words) -> int:
    """The command line; returns its exit code."""
    return main(list(map(str, words)))


def files(cohort) -> dict:
    """All files of a cohort but locks, with their content."""
    return {f: s for f, s in state(cohort).items() if ".locks" not in f.parts}


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A cohort with one imported sample, s1 of patient P1; not to be changed."""
    folder = tmp_path_factory.mktemp("once")
    assert peka(*draw(folder / "first").words(folder / "cohort")) == 0
    return folder / "cohort"


@pytest.fixture
def cohort(tmp_path, made_once):
    """A copy of it."""
    return shutil.copytree(made_once, tmp_path / "cohort")


# ---- what works -------------------------------------------------------------------------------


def test_two_patients_become_a_cohort_that_the_chapters_open(tmp_path, capsys):
    where = tmp_path / "cohort"
    a, b = draw(tmp_path / "a", 1, "mtx"), draw(tmp_path / "b", seed=1)
    a.image = a.image.rename(tmp_path / "CytAssist_FFPE_liver_tissue_image.png")  # as 10x names it
    assert peka(*a.words(where, organ="Liver")) == 0
    assert "missing" in capsys.readouterr().out
    with pytest.raises(PekaError, match="splits"):
        directory.preflight(where)
    assert peka(*b.words(where, "s2", "P2", um_per_px=2.01)) == 0
    assert "missing" not in capsys.readouterr().out
    opened = directory.preflight(where)
    assert opened.split_ids == ((["s2"], ["s1"]), (["s1"], ["s2"]))
    assert list(opened.samples.patient) == ["P1", "P2"] and opened.samples.organ.s1 == "Liver"
    assert opened.samples.um_per_px.s1 == pytest.approx(UM_PER_PX, abs=1e-3)
    assert len(opened.genes) == 50 and opened.validate() == []
    image = cv2.imread(str(a.image))[..., ::-1]
    adata = opened.adata(["s1"])
    assert np.array_equal(adata.X.toarray(), a.counts) and list(adata.obs.barcode) == a.barcodes
    size = float(opened.sections[0].um_per_px)
    tiles, _ = cut_tiles(image, adata.obsm["spatial"], size)
    assert np.array_equal(opened.tiles()[: len(tiles)], tiles)
    for sample in ("s1", "s2"):
        assert cv2.imread(str(where / f"ruler/{sample}.png")).std() > 10
    assert peka("check", where) == 0
    out = capsys.readouterr().out
    assert str(where / "ruler/s1.png") in out and "ready" in out
    (where / "ruler/s1.png").unlink()
    assert peka("check", where) == 0 and (where / "ruler/s1.png").exists()


def test_one_patient_holds_out_sections_and_more_than_ten_make_ten_folds():
    table = lambda patients: pd.DataFrame(
        {"patient": patients, "group": patients}, index=[f"s{i}" for i in range(len(patients))]
    )

    class Fake:
        def __init__(self, patients):
            self.samples = table(patients)
            sections = [(s, range(5)) for s in self.samples.index]
            self.sections = [argparse.Namespace(sample=s, barcodes=b) for s, b in sections]

    assert growing.make_splits(Fake(["P"])) == []
    assert growing.make_splits(Fake(["P", "P"])) == [(["s1"], ["s0"]), (["s0"], ["s1"])]
    assert growing.make_splits(Fake(["P", "Q", "P"]))[0] == (["s1"], ["s0", "s2"])
    folds = growing.make_splits(Fake([f"P{i}" for i in range(12)]))
    assert len(folds) == 10 and sorted(s for _, t in folds for s in t) == sorted(
        table("x" * 12).index
    )


def test_a_sample_is_replaced_only_when_asked(tmp_path, cohort):
    other = draw(tmp_path / "other", seed=3)
    before = files(cohort)
    assert peka(*other.words(cohort)) == 1 and files(cohort) == before
    assert peka(*other.words(cohort), "--replace") == 0
    made = open_cohort(cohort)
    assert np.array_equal(made.adata().X.toarray(), other.counts) and len(made.samples) == 1


@pytest.mark.parametrize("name", [name for name in ORIENTATIONS if name != "as_given"])
def test_a_turned_table_stops_and_orient_puts_it_right(tmp_path, capsys, name):
    drawn, where = draw(tmp_path / "a"), tmp_path / "cohort"
    xy = drawn.positions[HEADER[:3:-1]].to_numpy(float)  # (n, 2) x, y
    quarter = name in ("rot90", "rot270", "transpose", "transverse")
    turned = next(n for n in ORIENTATIONS if is_inverse(n, name))
    wrong = oriented(xy, turned, *(SIZE[::-1] if quarter else SIZE))
    table = drawn.positions.assign(pxl_col_in_fullres=wrong[:, 0], pxl_row_in_fullres=wrong[:, 1])
    write_positions(drawn.spatial, 2, "", table)
    assert peka(*drawn.words(where)) == 1 and not where.exists()
    assert "--orient" in capsys.readouterr().err
    assert peka(*drawn.words(where, orient=name)) == 0
    straight = open_cohort(where).adata().obsm["spatial"]
    kept = drawn.positions.in_tissue == 1
    assert np.allclose(straight, xy[kept])


def is_inverse(one: str, other: str) -> bool:
    """Whether two orientations undo each other, on an image that is not square."""
    xy = np.array([[10.0, 20.0], [30.0, 5.0]])
    quarter = other in ("rot90", "rot270", "transpose", "transverse")
    before = SIZE[::-1] if quarter else SIZE
    return np.allclose(oriented(oriented(xy, one, *before), other, *SIZE), xy)


def test_an_unclear_orientation_leaves_a_figure_beside_the_cohort(tmp_path, capsys, monkeypatch):
    drawn, where = draw(tmp_path / "a"), tmp_path / "cohort"
    positions = drawn.positions.assign(pxl_col_in_fullres=SIZE[0] - drawn.positions.iloc[:, 5])
    write_positions(drawn.spatial, 2, "", positions)
    assert peka(*drawn.words(where)) == 1
    err = capsys.readouterr().err
    figure = tmp_path / "cohort-s1-orientation.png"
    assert str(figure) in err and cv2.imread(str(figure)).std() > 10 and not where.exists()
    assert re.search(r"correlation.*\n +flip_x", err)  # the right one is ranked first

    def full(figure, path):
        raise PekaError(f"{path}: the disk is full.")

    monkeypatch.setattr(importing.ruler, "save_figure", full)  # the reason is said all the same
    assert peka(*drawn.words(where)) == 1 and "flip_x" in capsys.readouterr().err


def test_a_table_with_coordinates_gives_the_same_sample_as_its_folder(tmp_path, cohort):
    drawn = draw(tmp_path / "b", seed=1)
    raw = importing.read_visium(drawn.folder)
    importing.add_sample(cohort, raw, drawn.image, "whole", "P2")
    counts = pd.DataFrame(drawn.counts, drawn.barcodes, raw.adata.var_names)
    places = drawn.positions.set_index("barcode")[HEADER[:3:-1]].set_axis(["x", "y"], axis=1)
    places[drawn.positions.in_tissue.to_numpy() == 1].to_csv(tmp_path / "places.csv")
    counts.T.to_csv(tmp_path / "counts.tsv.gz", sep="\t")  # one column a spot
    counts.to_csv(tmp_path / "counts.csv")
    adata = ad.AnnData(counts.astype(np.float32))
    adata.obsm["spatial"] = raw.adata.obsm["spatial"]
    adata.write_h5ad(tmp_path / "counts.h5ad")
    adata.write_zarr(tmp_path / "store.zarr/tables/table")  # of a SpatialData store
    for name in ("counts.tsv.gz", "counts.csv", "counts.h5ad", "store.zarr"):
        with_places = ["--coordinates", tmp_path / "places.csv"] if "counts." in name else []
        with_places = [] if name.endswith("h5ad") else with_places
        words = ["import", "table", tmp_path / name, *with_places, *drawn.words("x")[3:]]
        alone = tmp_path / "alone" / name
        assert peka(*words, "--cohort", alone, "--um-per-px", UM_PER_PX) == 0
        made, wanted = open_cohort(alone).adata(), open_cohort(cohort).adata(["whole"])
        assert (made.X != wanted.X).nnz == 0 and list(made.var_names) == list(wanted.var_names)
        assert np.array_equal(made.obsm["spatial"], wanted.obsm["spatial"])


def test_a_directory_in_hests_layout_joins_the_cohort(tmp_path, capsys):
    theirs, where = write_tiny_cohort(tmp_path / "hest", patients=2), tmp_path / "cohort"
    before = state(theirs)
    assert peka("import", "hest", theirs, "--cohort", where) == 0
    made, old = directory.preflight(where), open_cohort(theirs)
    assert list(made.samples.index) == list(old.samples.index)
    assert list(made.samples.patient) == list(old.samples.patient) and len(made.splits) == 2
    assert (made.adata().X != old.adata().X).nnz == 0
    assert np.array_equal(made.tiles()[:], old.tiles()[:])
    (theirs / "samples.csv").unlink()
    shutil.rmtree(where)
    assert peka("import", "hest", theirs, "--cohort", where) == 1 and not where.exists()
    assert "patient" in capsys.readouterr().err
    assert peka("import", "hest", theirs, "--cohort", where, "--patient", "P") == 0
    assert {k: v for k, v in before.items() if k.name != "samples.csv"} == state(theirs)


def test_check_says_what_is_odd_and_what_is_missing(tmp_path, capsys):
    where = write_tiny_cohort(tmp_path / "own", patients=1)
    keep_tiles(where / "patches/P1A.h5", [0, 1, 2])
    write_cohort_tables(where, pd.read_csv(where / "samples.csv"), [(["P1A"], ["P1B"])], ["G01"])
    assert peka("check", where) == 0 and (where / "ruler/P1B.png").exists()
    assert "note     " + str(where / "patches/P1A.h5") in capsys.readouterr().out
    shutil.rmtree(where / "splits")
    assert peka("check", where) == 1 and "splits" in capsys.readouterr().out
    assert peka("check", tmp_path / "nothing") == 1


def test_mouse_genes_alone_are_a_note():
    for names in ([f"Gene{i}" for i in range(9)], [f"ENSMUSG{i:011d}" for i in range(9)]):
        adata = counts_table(np.ones((3, 9)), list("abc"), names)
        adata.obsm["spatial"] = np.zeros((3, 2))
        assert any("mouse" in note for note in checked(RawSample(adata, "x")).notes)


def test_what_a_user_wrote_into_the_tables_stays(tmp_path, cohort):
    table = pd.read_csv(cohort / "samples.csv", dtype=str, keep_default_na=False)
    table.assign(organ="Liver", mine="x").to_csv(cohort / "samples.csv", index=False)
    assert peka(*draw(tmp_path / "b", seed=1).words(cohort, "s2", "P2")) == 0
    table = pd.read_csv(cohort / "samples.csv", dtype=str, keep_default_na=False)
    assert list(table.mine) == ["x", ""] and list(table.organ) == ["Liver", ""]
    for file in cohort.glob("splits/*_1.csv"):
        file.unlink()
    (cohort / "var_50genes.json").unlink()
    (cohort / "var_2genes.json").write_text('{"genes": ["GENE1", "GENE2"]}')
    kept = [cohort / "var_2genes.json", *cohort.glob("splits/*.csv")]
    before = [file.read_bytes() for file in kept]
    assert peka(*draw(tmp_path / "c", seed=2).words(cohort, "s3", "P3")) == 0
    assert [file.read_bytes() for file in kept] == before
    made = open_cohort(cohort)
    assert made.genes == ["GENE1", "GENE2"] and len(made.splits) == 1 and len(made.samples) == 3


@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_a_killed_import_leaves_the_cohort_or_is_finished_by_the_next(
    tmp_path, cohort, monkeypatch, after
):
    before, moved, replace = files(cohort), [], staging.os.replace
    other = draw(tmp_path / "b", seed=1)

    def killed(source, target):
        inside = str(source).startswith(str(cohort / staging.READY))
        if staging.STAGE in str(source) and str(target).endswith(staging.READY) and after == 0:
            raise SystemExit
        if inside:
            if len(moved) == after - 1:
                raise SystemExit
            moved.append(target)
        return replace(source, target)

    monkeypatch.setattr(staging.os, "replace", killed)
    with pytest.raises(SystemExit):
        peka(*other.words(cohort, "s2", "P2"))
    monkeypatch.setattr(staging.os, "replace", replace)
    if after == 0:
        assert files(cohort) == before
        (cohort / staging.STAGE / "adata/s2.h5ad").mkdir(parents=True)  # as after kill -9
    else:  # half moved: it is not run, and a check finishes it
        with pytest.raises(PekaError, match="peka check"):
            directory.preflight(cohort)
        checked_copy = shutil.copytree(cohort, tmp_path / "copy")
        assert peka("check", checked_copy) == 0 and not list(checked_copy.glob(".peka*"))
    third = draw(tmp_path / "c", seed=2)
    assert peka(*third.words(cohort, "s3", "P3")) == 0
    made = directory.preflight(cohort)
    assert list(made.samples.index) == (["s1", "s3"] if after == 0 else ["s1", "s2", "s3"])
    assert not list(cohort.glob(".peka*")) and made.validate() == []


# ---- bad input, one by one --------------------------------------------------------------------

BAD = {}
BESIDE = (
    "mouse_beside_human", "ids_against_symbols", "no_gene_in_common", "a_copy_of_the_first",
    "a_patient_in_another_case", "a_sample_in_another_case",
)  # fmt: skip


def bad(*names):
    """Register a function that spoils a drawn sample; the message must name these."""

    def register(function):
        BAD[function.__name__] = function, names
        return function

    return register


def edited(drawn, **columns):
    write_positions(drawn.spatial, 2, "", drawn.positions.assign(**columns))


def counts(drawn, values, names=None):
    write_h5(drawn.folder / "outs/filtered_feature_bc_matrix", values, drawn.barcodes, names)


@bad("filtered_feature_bc_matrix.h5")
def truncated_h5(drawn, words):
    file = drawn.folder / "outs/filtered_feature_bc_matrix.h5"
    file.write_bytes(file.read_bytes()[:5000])


@bad("filtered_feature_bc_matrix")
def counts_missing(drawn, words):
    (drawn.folder / "outs/filtered_feature_bc_matrix.h5").unlink()


@bad("first", "nothing")
def folder_missing(drawn, words):
    words["folder"] = drawn.folder.parent / "first_nothing"


@bad("tissue_positions", "GSM9_")
def positions_of_another_prefix(drawn, words):
    file = drawn.spatial / "tissue_positions.csv"
    file.rename(drawn.spatial / f"GSM9_{file.name}")


@bad("scalefactors_json.json")
def scale_factors_cut_short(drawn, words):
    (drawn.spatial / "scalefactors_json.json").write_text('{"spot_diameter_fullres": ')


@bad("tissue_positions.csv")
def positions_without_columns(drawn, words):
    (drawn.spatial / "tissue_positions.csv").write_text("barcode,x,y\nA-1,1,2\n")


@bad("tissue_positions.csv", "-1")
def barcodes_of_another_sample(drawn, words):
    edited(drawn, barcode=drawn.positions.barcode.str.replace("-1", "-2"))


@bad("outs", "NaN")
def coordinates_nan(drawn, words):
    inside = drawn.positions.index[drawn.positions.in_tissue == 1]
    rows = drawn.positions.pxl_row_in_fullres
    edited(drawn, pxl_row_in_fullres=rows.mask(rows.index == inside[5]))


@bad("--orient", "transpose ", "slide.png")
def x_and_y_swapped(drawn, words):
    edited(drawn, pxl_row_in_fullres=drawn.positions.pxl_col_in_fullres * 1.0,
           pxl_col_in_fullres=drawn.positions.pxl_row_in_fullres)  # fmt: skip


@bad("--orient", "slide.png")
def mirrored_image(drawn, words):
    cv2.imwrite(str(drawn.image), cv2.imread(str(drawn.image))[:, ::-1])


@bad("--orient", "slide.png")
def image_of_another_sample(drawn, words):
    width, height = SIZE
    image = np.full((height, width, 3), 242, np.uint8)
    image[300:, 400:] = cv2.imread(str(drawn.image))[100:500, 100:460].repeat(1, 0)[: height - 300]
    cv2.imwrite(str(drawn.image), image)


@bad("slide.png", "no tissue")
def blank_image(drawn, words):
    cv2.imwrite(str(drawn.image), np.full((*SIZE[::-1], 3), 242, np.uint8))


@bad("tissue_hires_image.png", "--image")
def hires_png(drawn, words):
    words["image"] = drawn.spatial / "tissue_hires_image.png"


@bad("renamed.png", "tissue_hires_image.png")
def hires_png_under_another_name(drawn, words):
    words["image"] = drawn.folder / "renamed.png"
    shutil.copy(drawn.spatial / "tissue_hires_image.png", words["image"])


@bad("cytassist_image.png", "--cytaimage")
def cytassist_image(drawn, words):
    words["image"] = shutil.copy(drawn.image, drawn.folder / "cytassist_image.png")


@bad("slide.png", "760 x 700")
def image_saved_smaller(drawn, words):
    cv2.imwrite(str(drawn.image), cv2.resize(cv2.imread(str(drawn.image)), (570, 525)))


@bad("slide.png", "760 x 700")
def image_saved_a_little_smaller(drawn, words):
    """By 0.9 %: at its far end, spots would be off by 13 um, and on a whole slide by a tile."""
    image = cv2.imread(str(drawn.image))
    cv2.imwrite(str(drawn.image), cv2.resize(image, (753, 694)))


@bad("slide.png", "outside")
def spots_outside(drawn, words):
    for kind in ("hires", "lowres"):  # without them, the size of the image is unknown
        (drawn.spatial / f"tissue_{kind}_image.png").unlink()
    cv2.imwrite(str(drawn.image), cv2.imread(str(drawn.image))[:400, :500])


@bad("--um-per-px", "pitch of the array", "2.5000")
def wrong_scale(drawn, words):
    words["um_per_px"] = 2.5


@bad("65 um / spot_diameter_fullres", "pitch of the array")
def spot_diameter_of_55_um(drawn, words):
    file = drawn.spatial / "scalefactors_json.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"spot_diameter_fullres": 55 / UM_PER_PX})
    )


@bad("--um-per-px is 6.3")
def mpp_6(drawn, words):
    words["um_per_px"] = 6.3


@bad("--um-per-px is 0 ")
def mpp_0(drawn, words):
    words["um_per_px"] = 0


@bad("tissue_positions.csv", "array")
def rows_mixed_up(drawn, words):
    mixed = drawn.positions.pxl_row_in_fullres.sample(frac=1, random_state=0).to_numpy()
    edited(drawn, pxl_row_in_fullres=mixed)


@bad("outs", "whole numbers")
def log_normalised(drawn, words):
    counts(drawn, np.log1p(drawn.counts))


@bad("outs", "negative")
def negative_counts(drawn, words):
    counts(drawn, drawn.counts - 5)


@bad("outs", "0 of")
def every_spot_empty(drawn, words):
    counts(drawn, drawn.counts * 0)


@bad("scalefactors_json.json", "--bin-um")
def bins_of_a_sample_without_bins(drawn, words):
    words["bin_um"] = 56


@bad("tissue_positions.csv")
def positions_of_another_sample(drawn, words):
    """Barcodes are the same on every slide, and other spots are in tissue."""
    edited(drawn, in_tissue=np.roll(drawn.positions.in_tissue, 40))


@bad("tissue_positions.csv")
def no_spot_in_tissue(drawn, words):
    edited(drawn, in_tissue=0)


@bad("outs", "1 of")
def one_spot(drawn, words):
    drawn.counts[1:] = 0
    counts(drawn, drawn.counts)


@bad("mouse", "human")
def mouse_beside_human(drawn, words):
    counts(drawn, drawn.counts, [f"Gene{i}" for i in range(GENES)])


@bad("outs", "mouse", "human")
def mouse_and_human_in_one(drawn, words):
    counts(drawn, drawn.counts, [f"{'GENE' if i % 2 else 'Gene'}{i}" for i in range(GENES)])


@bad("s1.h5ad", "Ensembl")
def ids_against_symbols(drawn, words):
    counts(drawn, drawn.counts, [f"ENSG{i:011d}" for i in range(GENES)])


@bad("s1.h5ad", "no gene in common")
def no_gene_in_common(drawn, words):
    counts(drawn, drawn.counts, [f"OTHER{i}" for i in range(GENES)])


@bad("s1.h5ad", "copy")
def a_copy_of_the_first(drawn, words):
    twin = draw(drawn.folder.parent / "twin", seed=0)
    words |= {"folder": twin.folder, "image": twin.image}


@bad("--orient", "rot90")
def an_unknown_orientation(drawn, words):
    words["orient"] = "rot45"


@bad("sample")
def a_sample_with_a_slash(drawn, words):
    words["sample"] = "a/b"


@bad("patient")
def no_patient(drawn, words):
    words["patient"] = " "


@bad("patient")
def a_patient_that_means_unknown(drawn, words):
    words["patient"] = "NA"


@bad("patient", "P1")
def a_patient_in_another_case(drawn, words):
    words["patient"] = "p1"


@bad("sample", "s1")
def a_sample_in_another_case(drawn, words):
    words["sample"] = "S1"


@bad("missing.png")
def no_image(drawn, words):
    words["image"] = drawn.folder / "missing.png"


@bad("slide.png")
def image_is_a_text(drawn, words):
    drawn.image.write_text("not an image")


@bad("slide.png")
def image_of_16_bit(drawn, words):
    cv2.imwrite(str(drawn.image), cv2.imread(str(drawn.image)).astype(np.uint16) * 256)


@bad("slide.png", "grey")
def image_grey(drawn, words):
    cv2.imwrite(str(drawn.image), cv2.imread(str(drawn.image), cv2.IMREAD_GRAYSCALE))


@bad("slide.jpg", "CMYK")
def image_cmyk(drawn, words):
    words["image"] = drawn.folder / "slide.jpg"
    Image.open(drawn.image).convert("CMYK").save(words["image"])


@bad("slide.jpg", "EXIF")
def image_with_exif_rotation(drawn, words):
    words["image"], exif = drawn.folder / "slide.jpg", Image.Exif()
    exif[274] = 6
    Image.open(drawn.image).save(words["image"], exif=exif)


@bad("slide.jpg")
def image_cut_off(drawn, words):
    words["image"] = drawn.folder / "slide.jpg"
    Image.open(drawn.image).save(words["image"])
    words["image"].write_bytes(words["image"].read_bytes()[:20_000])


@bad("slide.tif", "2.3000 um/px", "+15.0%")
def image_with_another_pixel_size(drawn, words):
    words["image"] = drawn.folder / "slide.tif"
    Image.open(drawn.image).save(
        words["image"], resolution_unit=3, x_resolution=1e4 / 2.3, y_resolution=1e4 / 2.3
    )


@bad("shifted.png", "+40 px in x and -24 px in y", "tissue_hires_image.png")
def image_whose_tissue_lies_elsewhere(drawn, words):
    words["image"] = drawn.folder / "shifted.png"
    cv2.imwrite(str(words["image"]), np.roll(cv2.imread(str(drawn.image)), (-24, 40), (0, 1)))


@bad("other.png", "tissue_hires_image.png")
def image_of_another_section_of_the_same_shape(drawn, words):
    words["image"] = drawn.folder / "other.png"
    pixels = cv2.imread(str(drawn.image))
    tissue = np.ptp(pixels, axis=2) > 10  # glass is grey
    pixels[tissue] = np.random.default_rng(0).integers(0, 255, (tissue.sum(), 3))
    cv2.imwrite(str(words["image"]), pixels)


def test_a_disk_with_too_little_room_is_told_before_work_starts(tmp_path, monkeypatch, capsys):
    drawn = draw(tmp_path / "a")
    needed = len(drawn.barcodes) * 3 * 224**2 + 12 * np.count_nonzero(drawn.counts)
    monkeypatch.setattr(importing, "free_bytes", lambda path: needed - 1)
    assert peka(*drawn.words(tmp_path / "cohort")) == 1 and not (tmp_path / "cohort").exists()
    assert "GB free" in capsys.readouterr().err
    monkeypatch.setattr(importing, "free_bytes", lambda path: needed)
    assert peka(*drawn.words(tmp_path / "cohort")) == 0


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_message_and_the_cohort_is_as_before(
    tmp_path, made_once, capsys, name
):
    (spoil, names), cohort = BAD[name], made_once
    drawn, words = draw(tmp_path / "second", seed=1), {"sample": "s2", "patient": "P2"}
    spoil(drawn, words)
    drawn.folder = words.pop("folder", drawn.folder)
    before = files(cohort)
    capsys.readouterr()
    assert peka(*drawn.words(cohort, **words)) == 1, name
    err = capsys.readouterr().err
    assert err.count("peka: ") == 1 and all(n in err for n in names), err
    assert files(cohort) == before and not list(cohort.glob(".peka*"))
    if name not in BESIDE:  # also into a cohort that does not exist yet
        assert peka(*drawn.words(tmp_path / "new", **words)) == 1
        assert not (tmp_path / "new").exists()


# changes of the counts' text, of the places' text and of options, and what the error names
BAD_TABLES = {
    "barcodes differ": (str, lambda t: t.replace("-1,", "-2,"), {}, "places.csv"),
    "no columns x, y": (str, lambda t: t.replace("x,y", "u,v"), {}, "places.csv"),
    "decimal commas": (str, lambda t: "b,x,y\n" + "".join(
        f'{line.split(",")[0]},"1,5",2\n' for line in t.splitlines()[1:]), {}, "places.csv"),
    "semicolons": (str, lambda t: t.replace(",", ";"), {}, "places.csv"),
    "twice a barcode": (str, lambda t: t + t.splitlines()[1] + "\n", {}, "places.csv"),
    "no coordinates": (str, str, {"coordinates": None}, "--coordinates"),
    "no pixel size": (str, str, {"um_per_px": None}, "--um-per-px"),
    "pixel size of a magnification": (str, str, {"um_per_px": 20}, "--um-per-px is 20"),
    "a column of text": (lambda t: t.replace(",", ",kind,", 1).replace("-1,", "-1,a,"), str, {},
                         "counts.csv"),
    "fractions": (lambda t: t.replace("-1,", "-1,0.5", 1), str, {}, "whole numbers"),
    "empty": (lambda t: "", str, {}, "counts.csv"),
    "a page": (lambda t: "<html>log in</html>", str, {}, "counts.csv"),
    "counts are missing": (None, str, {}, "counts.csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_ends_in_one_message_and_makes_nothing(tmp_path, capsys, name):
    change, change_places, more, named = BAD_TABLES[name]
    drawn = draw(tmp_path / "a")
    counts = pd.DataFrame(drawn.counts, drawn.barcodes, [f"GENE{i}" for i in range(GENES)])
    places = drawn.positions.set_index("barcode").loc[drawn.barcodes, HEADER[:3:-1]]
    (tmp_path / "places.csv").write_text(
        change_places(places.set_axis(["x", "y"], axis=1).to_csv())
    )
    if change:
        (tmp_path / "counts.csv").write_text(change(counts.to_csv()))
    given = {"coordinates": tmp_path / "places.csv", "um_per_px": UM_PER_PX} | more
    words = drawn.words(tmp_path / "cohort", **given)[3:]
    assert peka("import", "table", tmp_path / "counts.csv", *words) == 1
    err = capsys.readouterr().err
    assert err.count("peka: ") == 1 and named in err, err
    assert not (tmp_path / "cohort").exists()


def log(adata):
    adata.X = adata.X.log1p()


BAD_FOLDERS = {  # what is done to a directory in HEST's layout, and what the error names
    "a section without tiles": (lambda d: (d / "patches/P2B.h5").unlink(), "P2B"),
    "log counts": (lambda d: edit_h5ad(d / "adata/P2B.h5ad", log), "P2B.h5ad"),
    "a copy": (lambda d: [shutil.copy(f, f.with_stem("P2B")) for f in d.rglob("P1A.h5*")], "copy"),
    "damaged tiles": (lambda d: zero_middle(d / "patches/P2B.h5", "coords"), "P2B.h5"),
    "no such directory": (lambda d: d.rename(d.with_name("gone")), "hest"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_section_keeps_the_whole_directory_out(tmp_path, capsys, name):
    change, named = BAD_FOLDERS[name]
    theirs = write_tiny_cohort(tmp_path / "hest", patients=2, spots=5)
    change(theirs)
    assert peka("import", "hest", theirs, "--cohort", tmp_path / "cohort") == 1
    err = capsys.readouterr().err
    assert err.count("peka: ") == 1 and named in err and ".peka" not in err, err
    assert not (tmp_path / "cohort").exists()


def test_a_full_disk_leaves_the_cohort_as_it_was(tmp_path, cohort, capsys, monkeypatch):
    drawn, before = draw(tmp_path / "second", seed=1), files(cohort)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing, "write_sample", full)
    assert peka(*drawn.words(cohort, "s2", "P2")) == 1
    assert str(cohort) in capsys.readouterr().err and files(cohort) == before


def test_a_cohort_of_another_source_is_left_alone(tmp_path, capsys):
    drawn, where = draw(tmp_path / "a"), tmp_path / "other"
    where.mkdir()
    (where / "notes.txt").write_text("mine")
    assert peka(*drawn.words(where)) == 1 and list(where.iterdir()) == [where / "notes.txt"]
    (where / "adata").mkdir()
    for record in ('{"options": {"source": "her2st"}}', '{"source": "demo", "options": {}}'):
        (where / "source.json").write_text(record)
        before = state(where)
        assert peka(*drawn.words(where)) == 1 and state(where) == before
        assert str(where) in capsys.readouterr().err


def test_empty_spots_are_left_out_and_said(tmp_path, capsys):
    drawn = draw(tmp_path / "a")
    drawn.counts[:3] = 0
    counts(drawn, drawn.counts)
    assert peka(*drawn.words(tmp_path / "cohort")) == 0
    assert f"3 of {len(drawn.counts)} spots" in capsys.readouterr().out
    assert list(open_cohort(tmp_path / "cohort").sections[0].barcodes) == drawn.barcodes[3:]


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared sample is not here")
@pytest.mark.parametrize("name", ["tissue_lowres_image.png", "slide.png"])
def test_the_real_sample_names_the_image_that_is_missing(tmp_path, capsys, name):
    image = shutil.copy(REAL / "spatial/tissue_lowres_image.png", tmp_path / name)
    words = ["import", "visium", REAL, "--image", image, "--sample", "s", "--patient", "p"]
    assert peka(*words, "--cohort", tmp_path / "cohort") == 1
    err = capsys.readouterr().err
    assert "13332 x 13332" in err and name in err and not (tmp_path / "cohort").exists()
