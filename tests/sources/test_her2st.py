"""her2st: sections drawn in its form, a real one, and its images."""

import cv2
import numpy as np
import pandas as pd
import pytest
from damage import refused
from fake_hest import state
from PIL import Image

from peka_core.cohort import open_cohort
from peka_core.downloads import manifest, record
from peka_core.sources import her2st

PITCH = (290.0, 292.0)  # px per 200 um


def draw_section(folder, section, rng):
    """Three files as her2st has them: 12 spots, one without counts, one near empty."""
    spots = [(x, y) for x in range(2, 6) for y in range(2, 5)]
    new = np.array(spots) + rng.uniform(-0.2, 0.2, (12, 2))
    columns = ["new_x", "new_y", "pixel_x", "pixel_y"]
    table = pd.DataFrame(np.c_[new, (new - 1) * PITCH], columns=columns)
    table = table.assign(x=[x for x, _ in spots], y=[y for _, y in spots])
    table = table.sample(frac=1, random_state=1)
    counts = rng.poisson(rng.gamma(2, 4, 70), (12, 70))
    counts[1] = np.arange(70) == 0  # spot 2x3: near empty
    counts = pd.DataFrame(counts, [f"{x}x{y}" for x, y in spots], [f"G{i:02d}" for i in range(70)])
    image = rng.integers(0, 256, (1200, 1500, 3), dtype=np.uint8)
    folder = folder / "her2st/data"
    names = (f"ST-cnts/{section}.tsv.gz", f"ST-spotfiles/{section}_selection.tsv",
             f"ST-imgs/{section[0]}/{section}/x.jpg")  # fmt: skip
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    counts.drop(index="5x4").drop(columns=f"G0{section[1]}").to_csv(paths[0], sep="\t")
    table.to_csv(paths[1], sep="\t", index=False)
    assert cv2.imwrite(str(paths[2]), cv2.blur(image, (9, 9)))
    return paths, counts, table


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A mirror with sections K1, K2, L1 of the form of her2st, and a manifest that lists them."""
    rng, mirror = np.random.default_rng(3), tmp_path / "mirror"
    sections = {section: draw_section(mirror, section, rng) for section in ("K1", "K2", "L1")}
    paths = [path for paths, _, _ in sections.values() for path in paths]
    files = {str(p.relative_to(mirror)): {"blob": record.git_blob_sha1(p)} for p in paths}
    source = {"url": "https://nowhere/", "license": "drawn", "files": files}
    listed = {"sources": {"her2st": source}, "encoders": {}}
    monkeypatch.setattr(manifest, "load_manifest", lambda: listed)
    monkeypatch.setenv("PEKA_MIRROR", str(mirror))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    return sections


def test_spots_are_joined_by_name_poor_ones_dropped_and_patients_left_out(drawn, tmp_path):
    cohort = open_cohort(her2st.build(tmp_path / "cohort", "all"))
    assert cohort.validate() == [] and len(cohort) == 30 and len(cohort.genes) == 50
    assert not {"2x3", "5x4"} & set(cohort.obs.barcode)
    adata = cohort.adata()
    _, counts, table = drawn["L1"]
    rows = adata[adata.obs["sample"] == "L1"]
    assert np.array_equal(rows.X.toarray(), counts.loc[rows.obs.barcode, rows.var_names])
    place = table.set_index(table.x.astype(str) + "x" + table.y.astype(str)).loc[rows.obs.barcode]
    assert np.array_equal(rows.obsm["spatial"], place[["pixel_x", "pixel_y"]])
    assert rows.n_vars == 68 and not {"G01", "G02"} & set(rows.var_names)
    assert list(cohort.samples.patient) == ["K", "K", "L"]
    assert [s.name for s in cohort.splits] == ["patients/0", "patients/1"]


def test_tiles_are_centred_on_their_spots(drawn, tmp_path):
    cohort = open_cohort(her2st.build(tmp_path / "cohort", "K1"))
    um = np.mean(200 / np.array(PITCH))
    assert cohort.samples.um_per_px["K1"] == pytest.approx(um, rel=1e-9) and cohort.splits == []
    image, tiles = Image.open(drawn["K1"][0][2]), cohort.tiles()
    for spot, (x, y) in enumerate(cohort.adata().obsm["spatial"]):
        box = (x - 56 / um, y - 56 / um, x + 56 / um, y + 56 / um)
        expected = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR, box=box))
        assert np.abs(expected.astype(int) - tiles[spot][0]).mean() < 4  # corners are whole px


def test_pixel_size_ignores_misplaced_spots():
    rng = np.random.default_rng(0)
    new = rng.uniform(1, 33, (200, 2))
    pixel = np.rint(new * (216.3, 218.6) + (8, -13))
    pixel[:20] += rng.uniform(-500, 500, (20, 2))
    table = pd.DataFrame(np.c_[new, pixel], columns=["new_x", "new_y", "pixel_x", "pixel_y"])
    assert her2st.pixel_size(table) == pytest.approx((200 / 216.3 + 200 / 218.6) / 2, rel=2e-3)


def test_splits_are_by_section_in_one_patient_and_by_patient_otherwise():
    c = ["C2", "C3", "C4", "C5"]
    fixed, a = her2st.make_splits(["B4", *c]), ["A1", "A2"]
    assert [test for _, test in fixed] == [["C2"], ["C3"], ["C4"], ["C5"], c, ["B4"]]
    assert fixed[1][0] == ["C2", "C4", "C5"] and fixed[4][0] == ["B4"] and fixed[5][0] == c
    assert her2st.make_splits([*a, "B1"]) == [(["B1"], a), (a, ["B1"])]
    assert her2st.make_splits(a) == [(["A2"], ["A1"]), (["A1"], ["A2"])]


def test_a_killed_build_goes_on_and_missing_tiles_are_cut_again(drawn, tmp_path, monkeypatch):
    whole = open_cohort(her2st.build(tmp_path / "whole", "all")).digest
    path, real, calls = tmp_path / "cohort", her2st._build_section, []

    def dies_once(path, section, *rest):
        calls.append(section)
        if calls == ["K1", "K2"]:
            raise KeyboardInterrupt
        return real(path, section, *rest)

    monkeypatch.setattr(her2st, "_build_section", dies_once)
    with pytest.raises(KeyboardInterrupt):
        her2st.build(path, "all")
    assert not (path / "source.json").exists()
    her2st.build(path, "all")
    (path / "patches/L1.h5").unlink()
    her2st.build(path, "all")
    written = state(path)
    her2st.build(path, ["L1", "K1", "K2"])  # the same sections, named in another order
    assert state(path) == written and open_cohort(path).digest == whole
    assert calls == ["K1", "K2", "K2", "L1", "L1"]
    cohort = open_cohort(her2st.build(path, ["K1", "K2"], min_umi=1))  # other options
    assert len(cohort) == 22 and not (path / "adata/L1.h5ad").exists()


def test_real_section(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("PEKA_MIRROR", str(shared / "data"))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    cohort = open_cohort(her2st.build(tmp_path / "cohort", "C3"))
    assert len(cohort) == 179  # 180 with counts, one of them near empty
    um = (200 * 32 / 9270 + 200 * 34 / 9936) / 2
    assert cohort.samples.um_per_px["C3"] == pytest.approx(um, rel=1e-5)
    raw = pd.read_csv(shared / "data/her2st/data/ST-cnts/C3.tsv.gz", sep="\t", index_col=0)
    assert np.array_equal(cohort.adata().X.toarray(), raw.loc[cohort.obs.barcode])
    tiles = cohort.tiles()[::10].astype(float)
    assert tiles.mean((1, 2, 3)).max() < 225  # glass is about 230: every tile shows tissue


def test_an_image_is_rgb_as_it_is_stored_and_a_part_of_one_is_refused(tmp_path):
    """EXIF does not turn it; OpenCV alone would fill the rest of a JPEG with grey."""
    pixels, exif, path = np.zeros((60, 40, 3), np.uint8), Image.Exif(), tmp_path / "turned.jpg"
    pixels[:30, :, 0], exif[0x0112] = 200, 6
    Image.fromarray(pixels).save(path, exif=exif)
    turned = her2st.read_image(path)
    assert turned.shape == (60, 40, 3) and np.abs(turned.astype(int) - pixels)[:20].max() < 20
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "turned.jpg", call=her2st.read_image)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refused(path, "turned.jpg", "git-lfs", call=her2st.read_image)
