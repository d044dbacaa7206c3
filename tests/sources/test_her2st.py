import json
import os
import shutil
import subprocess
import sys

import anndata as ad
import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from peka_core.cohort import open_cohort
from peka_core.common.errors import PekaError
from peka_core.downloads import manifest, record
from peka_core.sources import her2st

PITCH = (290.0, 292.0)  # px per 200 um
GENES = [f"G{i:02d}" for i in range(70)]


def draw_section(folder, section, rng):
    """Three files as her2st has them: 12 spots, one without counts, one near empty."""
    spots = [(x, y) for x in range(2, 6) for y in range(2, 5)]
    new = np.array(spots) + rng.uniform(-0.2, 0.2, (12, 2))
    pixel = (new - 1) * PITCH
    table = pd.DataFrame(
        np.c_[np.array(spots), new, pixel],
        columns=["x", "y", "new_x", "new_y", "pixel_x", "pixel_y"],
    )
    table = table.astype({"x": int, "y": int}).assign(selected=1).sample(frac=1, random_state=1)
    counts = pd.DataFrame(
        rng.poisson(rng.gamma(2, 4, 70), (12, 70)), [f"{x}x{y}" for x, y in spots], GENES
    )
    counts.iloc[1] = 0
    counts.iloc[1, 0] = 2  # spot 2x3: near empty
    image = rng.integers(0, 256, (1200, 1500, 3), dtype=np.uint8)
    paths = {
        "counts": folder / f"her2st/data/ST-cnts/{section}.tsv.gz",
        "selection": folder / f"her2st/data/ST-spotfiles/{section}_selection.tsv",
        "image": folder / f"her2st/data/ST-imgs/{section[0]}/{section}/x.jpg",
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    counts.drop(index="5x4").drop(columns=f"G0{section[1]}").to_csv(paths["counts"], sep="\t")
    table.to_csv(paths["selection"], sep="\t", index=False)
    assert cv2.imwrite(str(paths["image"]), cv2.blur(image, (9, 9)))
    return paths, counts, table


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A mirror with sections K1, K2, L1 of the form of her2st, and a manifest that lists them."""
    rng, mirror = np.random.default_rng(3), tmp_path / "mirror"
    sections = {section: draw_section(mirror, section, rng) for section in ("K1", "K2", "L1")}
    files = {
        str(path.relative_to(mirror)): {"blob": record.git_blob_sha1(path)}
        for paths, _, _ in sections.values()
        for path in paths.values()
    }
    listed = {
        "sources": {"her2st": {"url": "https://nowhere/", "license": "drawn", "files": files}},
        "encoders": {},
    }
    monkeypatch.setattr(manifest, "load_manifest", lambda: listed)
    monkeypatch.setenv("PEKA_MIRROR", str(mirror))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    return sections


def build(tmp_path, sections="all", **options):
    return her2st.build(tmp_path / "cohort", sections, **options)


def test_spots_are_joined_by_name_and_poor_ones_dropped(drawn, tmp_path):
    cohort = open_cohort(build(tmp_path))
    assert cohort.validate() == [] and len(cohort) == 30
    assert not {"2x3", "5x4"} & set(cohort.obs.barcode)
    made = json.loads((cohort.path / "source.json").read_text())["sections"]["K2"]
    assert (made["spots"], made["without_counts"], made["below_min_umi"]) == (10, 1, 1)
    adata = cohort.adata()
    _, counts, table = drawn["L1"]
    rows = adata[adata.obs["sample"] == "L1"]
    assert np.array_equal(rows.X.toarray(), counts.loc[rows.obs.barcode, rows.var_names])
    place = table.set_index(table.x.astype(str) + "x" + table.y.astype(str)).loc[rows.obs.barcode]
    assert np.array_equal(rows.obsm["spatial"], place[["pixel_x", "pixel_y"]])
    assert rows.n_vars == 68 and "G01" not in rows.var_names and "G02" not in rows.var_names


def test_tiles_are_centred_on_their_spots(drawn, tmp_path):
    cohort = open_cohort(build(tmp_path, ["K1"]))
    um = np.mean([200 / p for p in PITCH])
    assert cohort.samples.um_per_px["K1"] == pytest.approx(um, rel=1e-9)
    paths, _, _ = drawn["K1"]
    image, tiles = np.asarray(Image.open(paths["image"])), cohort.tiles()
    half, centres = 56 / um, cohort.adata().obsm["spatial"]
    for spot in range(len(cohort)):
        x, y = centres[spot]
        box = (x - half, y - half, x + half, y + half)
        expected = Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR, box=box)
        assert (
            np.abs(np.asarray(expected).astype(int) - tiles[spot][0]).mean() < 4
        )  # the window's corner is whole px
    assert cohort.genes and cohort.splits == []


def test_exif_does_not_turn_an_image(tmp_path):
    pixels = np.arange(60 * 40 * 3, dtype=np.uint8).reshape(60, 40, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "plain.jpg")
    turned = her2st.read_image(tmp_path / "turned.jpg")
    assert turned.shape == (60, 40, 3) and np.array_equal(
        turned, her2st.read_image(tmp_path / "plain.jpg")
    )
    red = np.zeros((60, 40, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(tmp_path / "red.jpg")
    assert her2st.read_image(tmp_path / "red.jpg")[30, 20, 0] > 150
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(PekaError, match="bad.jpg"):
        her2st.read_image(tmp_path / "bad.jpg")


def test_pixel_size_ignores_misplaced_spots():
    rng = np.random.default_rng(0)
    new = rng.uniform(1, 33, (200, 2))
    pixel = np.rint(new * (216.3, 218.6) + (8, -13))
    pixel[:20] += rng.uniform(-500, 500, (20, 2))
    table = pd.DataFrame(np.c_[new, pixel], columns=["new_x", "new_y", "pixel_x", "pixel_y"])
    assert her2st.pixel_size(table) == pytest.approx((200 / 216.3 + 200 / 218.6) / 2, rel=2e-3)


def test_splits_are_by_section_in_one_patient_and_by_patient_otherwise():
    c = ["C2", "C3", "C4", "C5"]
    fixed = her2st.make_splits(["B4", *c])
    assert [test for _, test in fixed] == [["C2"], ["C3"], ["C4"], ["C5"], c, ["B4"]]
    assert fixed[1][0] == ["C2", "C4", "C5"] and fixed[4][0] == ["B4"] and fixed[5][0] == c
    assert her2st.make_splits(["A1", "A2", "B1"]) == [
        (["B1"], ["A1", "A2"]),
        (["A1", "A2"], ["B1"]),
    ]
    assert her2st.make_splits(["A1", "A2"]) == [(["A2"], ["A1"]), (["A1"], ["A2"])]
    assert her2st.make_splits(["A1"]) == []


def test_patients_are_left_out(drawn, tmp_path):
    cohort = open_cohort(build(tmp_path))
    assert list(cohort.samples.patient) == ["K", "K", "L"] and [s.name for s in cohort.splits] == [
        "patients/0",
        "patients/1",
    ]
    assert len(cohort.genes) == 50 and cohort.samples.technology.eq("Spatial Transcriptomics").all()


def test_a_finished_cohort_is_left_alone_and_missing_tiles_are_cut_again(drawn, tmp_path):
    path = build(tmp_path)
    digest, written = open_cohort(path).digest, {f: f.stat().st_mtime_ns for f in path.rglob("*.*")}
    build(tmp_path, ["L1", "K1", "K2"])  # the same sections, named in another order
    assert {f: f.stat().st_mtime_ns for f in path.rglob("*.*")} == written
    (path / "patches" / "K2.h5").unlink()
    build(tmp_path)
    again = {
        f.name
        for f, time in written.items()
        if f.suffix in (".h5", ".h5ad") and f.stat().st_mtime_ns != time
    }
    assert again == {"K2.h5", "K2.h5ad"} and open_cohort(path).digest == digest
    shutil.rmtree(path / "patches")
    build(tmp_path)
    assert open_cohort(path).has_tiles and open_cohort(path).digest == digest


def test_a_killed_build_goes_on_section_by_section(drawn, tmp_path, monkeypatch):
    whole = open_cohort(her2st.build(tmp_path / "whole", "all")).digest
    real, calls = her2st._build_section, []

    def dies_in_the_second(path, section, *rest):
        calls.append(section)
        if section == "K2":
            raise KeyboardInterrupt
        return real(path, section, *rest)

    monkeypatch.setattr(her2st, "_build_section", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path)
    assert not (tmp_path / "cohort/source.json").exists()
    leftover = tmp_path / "cohort/patches/.peka-tmp-0123abcd-K2.h5"
    leftover.write_bytes(b"half")
    monkeypatch.setattr(
        her2st,
        "_build_section",
        lambda path, section, *rest: calls.append(section) or real(path, section, *rest),
    )
    assert open_cohort(build(tmp_path)).digest == whole and calls == ["K1", "K2", "K2", "L1"]
    assert not leftover.exists() and not (tmp_path / "cohort/building.json").exists()


def test_other_options_build_anew_but_other_files_stay(drawn, tmp_path):
    build(tmp_path)
    cohort = open_cohort(build(tmp_path, ["K1", "K2"], min_umi=1))
    assert len(cohort) == 22 and not (cohort.path / "adata" / "L1.h5ad").exists()
    (tmp_path / "mine/adata").mkdir(parents=True)
    with pytest.raises(PekaError, match="mine"):
        her2st.build(tmp_path / "mine", "K1")


def test_unknown_sections_and_missing_images_are_named(drawn, tmp_path):
    with pytest.raises(PekaError, match=r"\['Z9'\].*K1, K2, L1"):
        build(tmp_path, "Z9")
    drawn["L1"][0]["image"].unlink()
    with pytest.raises(PekaError, match="L/L1/x.jpg"):
        build(tmp_path)


def test_real_section(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("PEKA_MIRROR", str(shared / "data"))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    cohort = open_cohort(build(tmp_path, "C3"))
    with pytest.warns(UserWarning, match="in no split"):
        assert len(cohort.validate()) == 1
    assert len(cohort) == 179  # 180 with counts, one of them near empty
    assert cohort.samples.um_per_px["C3"] == pytest.approx(
        (200 * 32 / 9270 + 200 * 34 / 9936) / 2, rel=1e-5
    )
    adata = cohort.adata()
    assert np.median(adata.obs.total_counts) == pytest.approx(9549, rel=0.01)
    raw = pd.read_csv(shared / "data/her2st/data/ST-cnts/C3.tsv.gz", sep="\t", index_col=0)
    assert np.array_equal(adata.X[7].toarray()[0], raw.loc[adata.obs.barcode.iloc[7]])
    tiles = cohort.tiles()[::10].astype(float)
    assert tiles.mean((1, 2, 3)).max() < 225  # glass is about 230: every tile shows tissue
    with h5py.File(cohort.path / "patches/C3.h5") as file:
        assert file["img"].attrs["patch_size_src"] == 163
    assert ad.read_h5ad(cohort.path / "adata/C3.h5ad").X.format == "csr"


def test_files_that_cannot_come_end_a_run_before_it_starts(drawn, tmp_path, monkeypatch):
    her2st.preflight("all")
    drawn["L1"][0]["image"].unlink()
    with pytest.raises(PekaError, match="L/L1/x.jpg"):
        her2st.preflight(["L1"])
    monkeypatch.delenv("PEKA_MIRROR")
    monkeypatch.setenv("CURL_CA_BUNDLE", "/nope.pem")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with pytest.raises(PekaError, match="CURL_CA_BUNDLE"):
        her2st.preflight(["K1"])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_an_image_that_is_cut_off_is_refused_not_filled_with_grey(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels) and her2st.read_image(path).shape == (300, 400, 3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PekaError, match=f"half.{suffix}"):
        her2st.read_image(path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "git-lfs"),
        (b"<html>", "HTML"),
        (b"", "empty"),
    ],
)
def test_what_stands_in_for_an_image_is_named(tmp_path, content, part):
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(PekaError, match=f"x.tif: .*{part}"):
        her2st.read_image(tmp_path / "x.tif")
    with pytest.raises(PekaError, match="absent.tif: missing"):
        her2st.read_image(tmp_path / "absent.tif")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_an_image_above_opencvs_limit_says_how_to_raise_it(tmp_path, suffix):
    """In a process of its own, since OpenCV reads its limit when it is imported."""
    path = tmp_path / f"big.{suffix}"
    assert cv2.imwrite(str(path), np.zeros((64, 60, 3), np.uint8))
    code = "import sys\nfrom peka_core.sources.her2st import read_image\n"
    code += "from peka_core.common.errors import PekaError\n"
    code += "try: print(read_image(sys.argv[1]).shape)\nexcept PekaError as e: print(e)"
    said = []
    for limit in ("1000", "3840"):
        env = os.environ | {"OPENCV_IO_MAX_IMAGE_PIXELS": limit}
        said.append(
            subprocess.run(
                [sys.executable, "-c", code, path],
                env=env,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    for part in (f"{path}: ", "3,840 pixels", "1,000 at most", "OPENCV_IO_MAX_IMAGE_PIXELS=3840"):
        assert part in said[0], said[0]
    assert said[1] == "(64, 60, 3)\n"
