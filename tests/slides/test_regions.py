"""Outlines in GeoJSON against shapes counted by hand, and what is refused."""

import dataclasses
import json
import math

import numpy as np
import pytest

from peka_core.common.errors import PekaError
from peka_core.slides.image import slide_of
from peka_core.slides.regions import read_regions

SLIDE = slide_of(np.zeros((800, 1600, 3), dtype=np.uint8), 4.0, "slide.svs")  # a mask px: 2 px


def box(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(kind, coordinates):
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "properties": {"objectType": "annotation"}, "geometry": geometry}


WITH_HOLE = feature("Polygon", [box(100, 100, 500, 500), box(200, 200, 300, 300)])
TWO = feature("MultiPolygon", [[box(600, 100, 700, 200)], [box(1000, 0, 1100, 800)]])


def read(folder, content, slide=SLIDE):
    (folder / "mask.geojson").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return read_regions(folder / "mask.geojson", slide)


def test_the_inside_of_polygons_with_holes(tmp_path):
    mask = read(tmp_path, {"type": "FeatureCollection", "features": [WITH_HOLE, TWO]})
    assert mask.inside.shape == (400, 800) and mask.px == 2.0
    points = [[110, 110], [490, 310], [250, 250], [650, 150], [1050, 10], [550, 150], [850, 400]]
    assert mask.at(points).tolist() == [True, True, False, True, True, False, False]
    area = 400 * 400 - 100 * 100 + 100 * 100 + 100 * 800
    assert mask.share * 800 * 1600 == pytest.approx(area, rel=0.02)


@pytest.mark.parametrize("content", [
    {"type": "FeatureCollection", "features": [WITH_HOLE]}, [WITH_HOLE], WITH_HOLE,
    WITH_HOLE["geometry"], {"type": "GeometryCollection", "geometries": [WITH_HOLE["geometry"]]},
])  # fmt: skip
def test_every_form_gives_the_same_mask(tmp_path, content):
    assert np.array_equal(read(tmp_path, content).inside, read(tmp_path, WITH_HOLE).inside)


def test_qupath_counts_from_the_scanned_part(tmp_path):
    moved = read(tmp_path, WITH_HOLE, dataclasses.replace(SLIDE, bounds=(600, 200)))
    assert np.array_equal(moved.inside[100:, 300:], read(tmp_path, WITH_HOLE).inside[:-100, :-300])


@pytest.mark.parametrize("content", [
    "no json", "[]", "null", {"type": "FeatureCollection", "features": []},
    feature("Point", [3, 4]), feature("LineString", box(0, 0, 9, 9)), feature("Polygon", None),
    feature("Polygon", []), feature("Polygon", [[]]), feature("Polygon", [[[1, 2], [3, 4]]]),
    feature("Polygon", [[[1, 1], [5, 5], [9, 9]]]), feature("Polygon", [["ab", "cd", "ef"]]),
    feature("Polygon", [[[1, 1], [math.nan, 5], [9, 90]]]), feature("Polygon", [3]),
    feature("MultiPolygon", [box(0, 0, 9, 9)]), {"features": [{"geometry": None}]},
    feature("Polygon", [box(2000, 100, 3000, 300)]), feature("Polygon", [box(-500, 1, 90, 90)]),
    feature("Polygon", [box(0, 0, 1e9, 1e9)]),
])  # fmt: skip
def test_what_is_no_outline_or_lies_outside_is_refused(tmp_path, content):
    with pytest.raises(PekaError, match="mask.geojson"):
        read(tmp_path, content)


def test_swapped_coordinates_are_said(tmp_path):
    with pytest.raises(PekaError, match="mask.geojson.*swapped"):
        read(tmp_path, feature("Polygon", [[[y, x] for x, y in box(1000, 100, 1500, 300)]]))
    with pytest.raises(PekaError, match="missing.geojson"):
        read_regions(tmp_path / "missing.geojson", SLIDE)
