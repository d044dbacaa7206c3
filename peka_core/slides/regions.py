"""Outlines from GeoJSON, as QuPath exports them: a mask, or a region of interest."""

import json
from pathlib import Path

import cv2
import numpy as np

from ..common.errors import PekaError
from .image import Slide
from .mask import Mask, grid_of

SHIFT = 8  # binary digits behind the point in coordinates for OpenCV
BEYOND = 0.02  # an outline may reach beyond the slide by this share of its side
EXPORT = "Export the outlines from QuPath (File, Export objects as GeoJSON)"


def read_regions(path: str | Path, slide: Slide, um_per_px: float | None = None) -> Mask:
    """The inside of all polygons of a GeoJSON file.

    The file has a FeatureCollection, a list of Features, a Feature or a geometry; geometries are
    Polygons and MultiPolygons, with holes. Coordinates are level-0 px as QuPath counts them: from
    the corner of the scanned part, so `slide.bounds` are added.

    Args:
        um_per_px: pixel size; the slide's own if None.

    Raises:
        PekaError: the file is no such GeoJSON; a polygon is empty, or lies outside the slide, for
            example because x and y are swapped; or nobody says the pixel size.
    """
    path = Path(path)
    shape, px = grid_of(slide, um_per_px)
    inside = np.zeros(shape, dtype=np.uint8)
    for number, rings in enumerate(_polygons(path, _read(path)), start=1):
        name = f"{path}, polygon {number}"
        outlines = [_ring(ring, name) + slide.bounds for ring in rings]  # each (k, 2)
        _check_place(outlines[0], slide, name)
        # the centre of OpenCV's px i is at i, and ours at i + 0.5
        points = [np.rint((ring / px - 0.5) * 2**SHIFT).astype(np.int32) for ring in outlines]
        filled = np.zeros_like(inside)
        cv2.fillPoly(filled, points, 1, shift=SHIFT)  # even-odd, so inner rings are holes
        inside |= filled
    if not inside.any():
        raise PekaError(
            f"{path}: its polygons cover no part of {slide.path.name} that is as large as {px:.0f} "
            f"px. Expected outlines in px of full resolution. {EXPORT}."
        )
    return Mask(inside > 0, px)


def _read(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PekaError(
            f"{path}: cannot be read ({error.strerror}); expected GeoJSON. Correct the path or "
            "its permissions."
        ) from error
    except ValueError as error:  # also of UTF-8
        raise PekaError(
            f"{path}: this is no JSON ({error}); expected GeoJSON. {EXPORT}."
        ) from error


def _polygons(path: Path, content) -> list[list]:
    """The rings of each polygon: the outline first, then holes."""
    polygons = []
    for item in _geometries(content):
        item = item if isinstance(item, dict) else {"type": type(item).__name__}
        kind, coordinates = str(item.get("type")), item.get("coordinates")
        parts = {"Polygon": [coordinates], "MultiPolygon": coordinates}.get(kind)
        if not isinstance(parts, list) or not all(
            part and isinstance(part, list) for part in parts
        ):
            raise PekaError(
                f"{path}: a geometry is {kind}; expected a Polygon or MultiPolygon with "
                f"coordinates. {EXPORT}, areas only."
            )
        polygons += parts
    if not polygons:
        raise PekaError(f"{path}: there is no polygon in it; expected at least one. {EXPORT}.")
    return polygons


def _geometries(content) -> list:
    """All geometries of a GeoJSON, in the order of the file."""
    if isinstance(content, list):
        return [geometry for item in content for geometry in _geometries(item)]
    if isinstance(content, dict):
        for name in ("features", "geometries", "geometry"):
            if name in content:
                return _geometries(content[name])
    return [content]


def _ring(ring, name: str) -> np.ndarray:
    """The points (k, 2) of a ring that encloses an area."""
    try:
        points = np.array([point[:2] for point in ring], dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, KeyError):
        points = np.empty((0, 2))
    area = 0.0
    if len(points) and np.isfinite(points).all():
        area = cv2.contourArea((points - points[0]).astype(np.float32))
    if area <= 0:
        raise PekaError(
            f"{name}: a ring encloses no area; expected at least three points [x, y] that are "
            f"numbers. {EXPORT}."
        )
    return points


def _check_place(outline: np.ndarray, slide: Slide, name: str) -> None:
    """Refuse an outline that reaches beyond the slide."""
    size = np.array([slide.width, slide.height])
    fits = lambda points: (points >= -BEYOND * size).all() and (points <= size * (1 + BEYOND)).all()
    if fits(outline):
        return
    (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
    swapped = fits((outline - slide.bounds)[:, ::-1] + slide.bounds)
    advice = (
        "With x and y swapped it lies inside, so they are probably swapped. Write x first"
        if swapped
        else "Is it of another picture, of a smaller copy of it, or in micrometres? Correct it"
    )
    raise PekaError(
        f"{name} reaches from x {x0:.0f}, y {y0:.0f} to x {x1:.0f}, y {y1:.0f}; expected it inside "
        f"{slide.path.name} ({slide.width} x {slide.height} px). {advice}."
    )
