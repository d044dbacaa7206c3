"""Predictions of a slide against a calculation by hand; going on after a kill; refusals."""

import json

import anndata as ad
import cv2
import numpy as np
import pandas as pd
import pytest
from fake_slide import ColourModel, drawn_slide

from peka_core.common.errors import PekaError
from peka_core.common.files import TEMPORARY
from peka_core.slides import parts
from peka_core.slides.image import open_slide, read_tiles
from peka_core.slides.orientation import oriented
from peka_core.slides.prediction import predict_slide
from peka_core.slides.tissue import find_tissue
from peka_core.tiles import cut_tiles

OUTPUTS = {"request.json", "parts", "predictions.h5ad", "detections.geojson.gz", "maps",
           "summary.csv", "index.html", ".locks"}  # fmt: skip
SPOTS = np.array([[500.0, 400.0], [333.25, 600.5], [5.0, 20.0]])


@pytest.fixture
def slide(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART", 6)
    drawn_slide(tmp_path / "slide.png")
    return open_slide(tmp_path / "slide.png", 1.0)


def contents(out):
    return {f.relative_to(out): f.read_bytes() for f in out.rglob("*")
            if f.is_file() and ".locks" not in f.parts}  # fmt: skip


def test_every_tile_of_the_lattice_has_the_values_of_its_pixels(slide, tmp_path):
    model, out = ColourModel(), tmp_path / "out"
    found = predict_slide(model, slide, out, batch_size=4)
    assert {path.name for path in out.iterdir()} == OUTPUTS
    columns = found.obs[["x", "y"]].to_numpy()
    assert np.array_equal(found.obsm["spatial"], columns * 112 + 56)  # 112 px of 1 um
    assert found.obs_names.tolist() == [f"{x}x{y}" for x, y in columns]
    pixels = slide.read(0, 0, slide.width, slide.height)
    tiles, corners = cut_tiles(pixels, found.obsm["spatial"], 1.0)
    features = tiles.reshape(len(tiles), -1, 3).mean(1) / 255  # (n, 3)
    np.testing.assert_allclose(found.obsm["X_features"], features, rtol=1e-6)
    np.testing.assert_allclose(found.X, features @ model.weights, rtol=1e-5)
    flagged = 2 * features[:, 0] > 1.22
    assert np.array_equal(found.obs["unfamiliar"], flagged) and 0 < flagged.sum() < len(flagged)
    assert found.uns["peka"]["share_unfamiliar"] == flagged.mean()
    inside = np.zeros(pixels.shape[:2])
    inside[100:700, 200:850] = 1  # where the tissue was drawn
    shares = [inside[y : y + 112, x : x + 112].mean() for x, y in corners]
    np.testing.assert_allclose(found.obs["tissue_share"], shares, atol=0.2)
    assert min(shares) > 0.3 and len(shares) >= 20
    again = ad.read_h5ad(out / "predictions.h5ad")
    pd.testing.assert_frame_equal(again.obs, found.obs)
    assert json.loads(again.uns["peka"]["card"]) == model.card
    assert np.array_equal(again.obsm["spatial_um"], again.obsm["spatial"] * 1.0)


def test_a_mask_and_a_region_choose_tiles(slide, tmp_path):
    def outline(name, x0, y0, x1, y1):
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        path = tmp_path / name
        path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
        return path

    mask, region = outline("mask.json", 0, 0, 560, 336), outline("region.json", 336, 0, 1000, 800)
    found = predict_slide(ColourModel(), slide, tmp_path / "out", mask=mask, region=region)
    assert found.obs_names.tolist() == ["3x0", "4x0", "3x1", "4x1", "3x2", "4x2"]
    assert found.var["mean_low_80"].isna().all()  # the interval is for a whole slide


def test_an_interrupted_run_goes_on_and_gives_the_same_files(slide, tmp_path):
    class Killed(ColourModel):
        def embed(self, tiles, *rest):
            if self.embedded >= 15:
                raise KeyboardInterrupt
            return super().embed(tiles, *rest)

    n = predict_slide(ColourModel(), slide, tmp_path / "whole", batch_size=3).n_obs
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_slide(Killed(), slide, out, batch_size=3)
    assert sorted(p.name for p in (out / "parts").iterdir()) == [
        f"part_0000{i}.npz" for i in range(2)
    ]
    assert not {"predictions.h5ad", "index.html"} & {path.name for path in out.iterdir()}
    (out / "parts" / f"{TEMPORARY}1-part_00007.npz").write_bytes(b"half")  # of a kill
    whole = (out / "parts/part_00001.npz").read_bytes()
    (out / "parts/part_00001.npz").write_bytes(whole[:100])  # of a damaged disk
    model = ColourModel()
    predict_slide(model, slide, out, batch_size=3)
    assert model.embedded == n - 6  # only the first part was whole
    assert contents(out) == contents(tmp_path / "whole")
    again = ColourModel()
    predict_slide(again, slide, out)
    assert again.embedded == 0 and contents(out) == contents(tmp_path / "whole")


def test_a_folder_of_another_request_is_refused(slide, tmp_path):
    out = tmp_path / "out"
    predict_slide(ColourModel(), slide, out, SPOTS)
    before, other = contents(out), ColourModel()
    other.digest = "d" * 64
    for model, picture, centres, word in (
        (ColourModel(), slide, SPOTS[::-1], "places"),
        (ColourModel(), open_slide(slide.path, 1.01), SPOTS, "um_per_px"),
        (other, slide, SPOTS, "model"),
    ):
        with pytest.raises(PekaError, match=word):
            predict_slide(model, picture, out, centres)
    full = tmp_path / "full"
    full.mkdir()
    (full / "index.html").write_text("mine")
    with pytest.raises(PekaError, match=r"index\.html"):
        predict_slide(ColourModel(), slide, full, SPOTS)
    assert contents(out) == before and (full / "index.html").read_text() == "mine"


@pytest.mark.parametrize("kind", ["csv", "h5ad", "array"])
def test_spots_keep_their_order_and_names(slide, tmp_path, kind):
    names, centres = ["c", "a", "b"], SPOTS
    if kind == "csv":
        centres = tmp_path / "spots.csv"
        table = pd.DataFrame(SPOTS[:, ::-1], columns=["y", "x"]).assign(barcode=names)
        table.to_csv(centres, index=False)
    elif kind == "h5ad":
        centres = tmp_path / "spots.h5ad"
        ad.AnnData(np.ones((3, 2)), pd.DataFrame(index=names), obsm={"spatial": SPOTS}).write(
            centres
        )
    found = predict_slide(ColourModel(), slide, tmp_path / "out", centres)
    assert found.obs_names.tolist() == (
        ["spot_1", "spot_2", "spot_3"] if kind == "array" else names
    )
    tiles, _ = cut_tiles(slide.read(0, 0, slide.width, slide.height), SPOTS, 1.0)
    assert np.array_equal(found.X, ColourModel().predict(ColourModel().embed(tiles)))
    assert found.obs["tissue_share"].round().tolist() == [1, 1, 0]


BAD_SPOTS = {
    "empty file": "", "no spot": "x,y\n", "other columns": "col,row\n1,2\n",
    "NaN": "x,y\n1,2\n,3\n",
    "text": "x,y\na,b\n", "outside": "x,y\n5,5\n1000,5\n", "infinite": "x,y\ninf,5\n",
    "twice": "x,y,barcode\n1,2,a\n3,4,a\n",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD_SPOTS.values(), ids=BAD_SPOTS)
def test_spots_that_cannot_be_predicted_are_refused_by_file(slide, tmp_path, text):
    path = tmp_path / "spots.csv"
    path.write_text(text)
    with pytest.raises(PekaError, match=r"spots\.csv"):
        predict_slide(ColourModel(), slide, tmp_path / "out", path)
    assert not (tmp_path / "out").exists()


def test_swapped_spots_and_spots_off_tissue_are_told(slide, tmp_path):
    wide = np.array([[900.0, 10.0], [20.0, 30.0]])
    with pytest.raises(PekaError, match="swap"):
        predict_slide(ColourModel(), slide, tmp_path / "out", wide[:, ::-1])
    found = predict_slide(ColourModel(), slide, tmp_path / "out", wide)
    assert "tissue" in found.uns["peka"]["warnings"]


def test_spots_that_fit_better_when_turned_are_told(slide, tmp_path):
    tissue = find_tissue(slide)
    row, column = np.argwhere(tissue.inside)[::7].T
    spots = (np.stack([column, row], axis=1) + 0.5) * tissue.px
    mirrored = oriented(spots, "flip_x", slide.width, slide.height)
    found = predict_slide(ColourModel(), slide, tmp_path / "mirrored", mirrored)
    assert "mirrored" in found.uns["peka"]["warnings"]
    found = predict_slide(ColourModel(), slide, tmp_path / "right", spots)
    assert not found.uns["peka"]["warnings"]


def test_what_cannot_end_well_does_not_begin(slide, tmp_path, monkeypatch):
    out, model = tmp_path / "out", ColourModel()
    blank = tmp_path / "blank.png"
    cv2.imwrite(str(blank), np.full((800, 1000, 3), 240, np.uint8))
    empty = ColourModel()
    empty.genes = model.genes[:0]
    file = tmp_path / "file"
    file.write_text("")
    for word, call in {
        "--um-per-px": lambda: predict_slide(model, open_slide(slide.path), out, SPOTS),
        r"blank\.png": lambda: predict_slide(model, open_slide(blank, 1.0), out),
        "colours": lambda: predict_slide(empty, slide, out),
        "--spots": lambda: predict_slide(model, slide, out, SPOTS, mask="mask.json"),
        "file is a file": lambda: predict_slide(model, slide, file),
        "file/": lambda: predict_slide(model, slide, file / "out", SPOTS),
    }.items():
        with pytest.raises(PekaError, match=word):
            call()
    monkeypatch.setattr(parts, "free_bytes", lambda path: 10**7)
    with pytest.raises(PekaError, match="disk"):
        predict_slide(model, slide, out)
    assert not out.exists() and file.read_text() == ""


def test_a_prediction_that_is_no_number_ends_without_a_part(slide, tmp_path):
    class Broken(ColourModel):
        def predict(self, features):
            return super().predict(features) * np.nan

    with pytest.raises(PekaError, match="finite"):
        predict_slide(Broken(), slide, tmp_path / "out", SPOTS)
    assert not list((tmp_path / "out/parts").glob("*")) and not (tmp_path / "out/maps").exists()


def test_a_slide_damaged_in_its_middle_leaves_whole_parts_and_no_output(
    slide, tmp_path, monkeypatch
):
    def damaged(slide, centres):
        if (centres[:, 1] > 500).any():
            raise PekaError("slide.png is damaged")
        return read_tiles(slide, centres)

    monkeypatch.setattr(parts, "read_tiles", damaged)
    with pytest.raises(PekaError, match="damaged"):
        predict_slide(ColourModel(), slide, tmp_path / "out", batch_size=3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "request.json",
        "parts",
        ".locks",
    }
    monkeypatch.undo()
    monkeypatch.setattr(parts, "PART", 6)
    model = ColourModel()
    found = predict_slide(model, slide, tmp_path / "out", batch_size=3)
    assert 0 < model.embedded < found.n_obs
