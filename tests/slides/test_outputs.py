"""The files of a prediction: QuPath's GeoJSON, PNG maps, the table of genes, sentences of trust."""

import gzip
import json
import uuid
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from fake_slide import GENES, ColourModel, drawn_slide
from matplotlib import colormaps

from peka_core.slides import maps
from peka_core.slides.geojson import write_detections
from peka_core.slides.image import open_slide
from peka_core.slides.prediction import predict_slide
from peka_core.slides.trust import about_model, trust_sentences


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a prediction, what was found, and the slide."""
    folder = tmp_path_factory.mktemp("made")
    drawn_slide(folder / "slide.png")
    slide = replace(open_slide(folder / "slide.png", 1.0), bounds=(112, 0))
    return folder / "out", predict_slide(ColourModel(), slide, folder / "out"), slide


def test_detections_are_those_that_qupath_imports(made, tmp_path):
    out, found, _ = made
    content = json.loads(gzip.decompress((out / "detections.geojson.gz").read_bytes()))
    assert content["type"] == "FeatureCollection" and len(content["features"]) == found.n_obs
    assert len({uuid.UUID(feature["id"]) for feature in content["features"]}) == found.n_obs
    for i, feature in enumerate(content["features"]):
        x, y = found.obsm["spatial"][i] - [56, 56] - [112, 0]  # QuPath shows the scanned part
        (ring,) = feature["geometry"]["coordinates"]
        assert ring == [[x, y], [x + 112, y], [x + 112, y + 112], [x, y + 112], [x, y]]
        assert feature["properties"]["objectType"] == "detection"
        values = feature["properties"]["measurements"]
        np.testing.assert_allclose(values["RED"], found.X[i, 0], rtol=1e-5)
        np.testing.assert_allclose(values[".. (not above controls)"], found.X[i, 2], rtol=1e-5)
        assert values["unfamiliar"] == found.obs["unfamiliar"].iloc[i]
        assert ("classification" in feature["properties"]) == found.obs["unfamiliar"].iloc[i]
        assert all(type(value) is float for value in values.values()) and len(values) == 7
    spots = found.copy()
    spots.obs["tissue_share"] = np.nan
    again = write_detections(tmp_path / "again.geojson.gz", spots)
    first = json.loads(gzip.decompress(again.read_bytes()))["features"][0]
    assert "tissue share" not in first["properties"]["measurements"]  # JSON has no NaN
    write_detections(tmp_path / "same.geojson.gz", found)
    assert (tmp_path / "same.geojson.gz").read_bytes() == (
        out / "detections.geojson.gz"
    ).read_bytes()


def test_a_map_has_the_colours_of_the_values_and_lines_over_unfamiliar_tiles(
    made, tmp_path, monkeypatch
):
    out, found, slide = made
    table = pd.read_csv(out / "summary.csv", keep_default_na=False)
    assert table["map"].tolist() == [
        "maps/RED.png", "maps/HLA_DRA.png", "maps/gene.png", "maps/__script_.png",
    ]  # fmt: skip
    assert all((out / name).exists() for name in table["map"])
    monkeypatch.setattr(maps, "MARGIN", 10)  # the whole slide is seen
    maps.write_maps(tmp_path, found, *slide.thumbnail(2000))
    area, weak = (cv2.imread(str(tmp_path / name))[..., ::-1] for name in ("RED.png", "gene.png"))
    picture = cv2.resize(slide.thumbnail(2000)[0], None, fx=0.88, fy=0.88)
    grey = 255 - 0.6 * (255 - cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(float))
    left, top = _place(area, grey.astype(np.uint8))
    values = found.X[:, 0].astype(float)
    low, high = np.percentile(values, (1, 99))
    for i in range(found.n_obs):
        x, y = (found.obsm["spatial"][i] * 0.88).astype(int)
        tile = np.s_[top + y - 35 : top + y + 35, left + x - 35 : left + x + 35]
        color = np.array(colormaps["cividis"]((values[i] - low) / (high - low))[:3])
        expected = 0.2 * grey[y - 35 : y + 35, x - 35 : x + 35, None] / 255 + 0.8 * color
        off = np.abs(area[tile] / 255 - expected).max(2)  # (70, 70)
        hatched = (off > 0.2).mean()
        assert np.median(off) < 0.05
        assert (0.05 < hatched < 0.3) if found.obs["unfamiliar"].iloc[i] else hatched < 0.01
    inner = weak[top + 5 : top + 600, left + 5 : left + 600].astype(int)
    assert np.ptp(inner, axis=2).max() == 0 and np.ptp(area.astype(int), axis=2).max() > 50


def test_a_map_shows_the_part_of_the_slide_around_its_tiles():
    y, x = np.mgrid[:400, :600]
    picture = np.stack([x // 3] * 3, 2).astype(np.uint8)  # a px knows its x
    corners = np.array([[2000, 1000], [2100, 1000], [3000, 2000]])
    grey, inside, px = maps._around(picture, 10.0, corners, 100)
    start = corners[0] - inside[0]
    assert np.array_equal(start, [1900, 900]) and np.array_equal(inside, corners - start)
    assert np.isclose(grey.shape[1] * px, 1300, rtol=0.01)
    seen = (255 * (1 - (1 - grey) / 0.6)) * 3 * 10  # level-0 x of each px
    expected = start[0] + px * np.arange(grey.shape[1])
    assert np.abs(seen - expected).max() < 40
    corners = np.array([[0, 0], [5900, 3950]])
    grey, inside, px = maps._around(picture, 10.0, corners, 100)
    assert np.array_equal(inside, corners) and np.isclose(
        grey.shape[0] / grey.shape[1], 2 / 3, 0.01
    )


def _place(page, grey):
    """Where the slide lies on a map: by its part without tiles, its left edge in grey."""
    strip = cv2.cvtColor(page, cv2.COLOR_RGB2GRAY)
    match = cv2.matchTemplate(strip, grey[:, : int(0.19 * grey.shape[1])], cv2.TM_SQDIFF)
    return cv2.minMaxLoc(match)[2]


def test_names_of_maps_differ_on_every_disk():
    names = maps.file_names(pd.Index(["A/B", "A\\B", "a_b", "..", "", "CON", "x" * 300, "HLA-A"]))
    assert len({name.lower() for name in names}) == 8 and "HLA-A.png" in names
    assert all("/" not in name and not name.startswith(".") and len(name) < 120 for name in names)


@pytest.mark.parametrize("um, width, expected", [(1, 1000, 200), (0.5, 2220, 200), (9, 1600, 2000)])
def test_a_scale_bar_is_round(um, width, expected):
    assert maps.scale_bar(um, width) == expected


def test_the_table_of_genes_has_mean_spread_and_interval(made):
    out, found, _ = made
    table = pd.read_csv(
        out / "summary.csv", index_col="gene", keep_default_na=False, na_values=[""]
    )
    assert table.index.tolist() == GENES
    np.testing.assert_allclose(table["mean"], found.X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(table["sd"], found.X.std(0), rtol=1e-5)
    np.testing.assert_allclose(table["pcc"], ColourModel.genes["pcc"])
    half = (table["mean_high_80"] - table["mean_low_80"]) / 2
    np.testing.assert_allclose(half, [0.5, 0.25, np.nan, np.nan])


def test_an_unfamiliar_slide_has_no_interval_and_says_so(made, tmp_path):
    class Odd(ColourModel):
        threshold = 0.0

    class Unknown(ColourModel):
        threshold = np.nan

    assert not made[1].uns["peka"]["unfamiliar_slide"]
    found = predict_slide(Odd(), made[2], tmp_path / "odd")
    assert found.uns["peka"]["unfamiliar_slide"] and found.obs["unfamiliar"].all()
    assert found.var["mean_low_80"].isna().all()
    assert "as a whole is unfamiliar" in trust_sentences(found)[0]
    assert any("No interval" in line for line in about_model(found))
    assert not any("No interval" in line for line in about_model(made[1]))
    found = predict_slide(Unknown(), made[2], tmp_path / "unknown")
    assert not found.obs["unfamiliar"].any() and np.isnan(found.uns["peka"]["share_unfamiliar"])
    assert "no threshold" in trust_sentences(found)[0]
    assert trust_sentences(found)[-1].endswith("Not for diagnosis.")


def test_one_value_everywhere_and_a_single_tile_can_be_drawn(tmp_path, made):
    class Flat(ColourModel):
        def predict(self, features):
            return np.zeros((len(features), 4), np.float32)

    predict_slide(Flat(), made[2], tmp_path / "out", np.array([[500.0, 400.0]]))
    assert (tmp_path / "out/index.html").exists() and (tmp_path / "out/maps/RED.png").exists()
