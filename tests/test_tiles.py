import json
from pathlib import Path

import anndata as ad
import cv2
import h5py
import numpy as np
import pytest

from peka_core.common.errors import PekaError
from peka_core.tiles import cut_tile, cut_tiles


def bilinear(crop, size=224):
    """Half-pixel-centred bilinear resize in plain numpy, an oracle of the resampling."""
    n = len(crop)
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    low = np.minimum(at.astype(int), n - 2)
    part = at - low
    rows = crop[low] * (1 - part)[:, None, None] + crop[low + 1] * part[:, None, None]
    return rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)


def test_at_half_a_micrometre_a_tile_is_the_pixels(image):
    tile, corner = cut_tile(image, (250.9, 200.2), 0.5)
    assert corner == (138, 88) and np.array_equal(tile, image[88:312, 138:362])


def test_resampling_equals_plain_bilinear(image):
    tile, corner = cut_tile(image, (250.0, 200.0), 0.6877)  # s = 162.86: side 163, offset 81
    assert corner == (169, 119)
    expected = bilinear(image[119:282, 169:332].astype(float))
    assert np.abs(tile - expected).max() <= 1.0


def test_corners_are_truncated_towards_zero_and_padding_is_black(image):
    tile, corner = cut_tile(image, (111.5, 398.0), 0.5)
    assert corner == (0, 286)  # -0.5 becomes 0, not -1
    assert np.array_equal(tile[:114], image[286:400, :224]) and not tile[114:].any()
    tile, corner = cut_tile(image, (20.5, -30.0), 0.5)
    assert corner == (-91, -142)  # -91.5 becomes -91, not -92
    assert np.array_equal(tile[142:, 91:], image[:82, :133])
    assert not tile[:142].any() and not tile[:, :91].any()
    assert not cut_tile(image, (5000.0, 5000.0), 0.5)[0].any()


@pytest.mark.parametrize("sample", ["FIX1", "FIX2", "FIX3"])
def test_tiles_equal_hests_own_byte_for_byte(hest_files: Path, sample):
    folder = hest_files / "hest1k"
    slide = cv2.imread(str(folder / f"wsis/{sample}.tif"), cv2.IMREAD_COLOR)[..., ::-1]
    metadata = json.loads((folder / f"metadata/{sample}.json").read_text())
    um_per_px = metadata["pixel_size_um_estimated"]
    spots = ad.read_h5ad(folder / f"st/{sample}.h5ad")
    centres = dict(zip(spots.obs_names, spots.obsm["spatial"]))
    with h5py.File(folder / f"patches/{sample}.h5") as file:
        for name, image, coords in zip(file["barcode"][:, 0], file["img"][:], file["coords"][:]):
            tile, corner = cut_tile(slide, centres[name.decode()], um_per_px)
            assert np.array_equal(tile, image) and corner == tuple(coords)


@pytest.mark.parametrize("kind", [int, np.uint16, np.float32])
def test_centres_of_any_number_give_the_same_tile(image, kind):
    tile, corner = cut_tile(image, (250.0, 200.0), 0.5)
    for centre in ([kind(250), kind(200)], np.array([250, 200], dtype=kind)):
        other, there = cut_tile(image, centre, 0.5)
        assert there == corner and np.array_equal(other, tile)
    many, corners = cut_tiles(image, np.array([[250, 200], [20, 30]], dtype=kind), 0.5)
    assert np.array_equal(many[0], tile) and corners.tolist() == [list(corner), [-92, -82]]


@pytest.mark.parametrize("change", [
    lambda i: i / 255, lambda i: i.astype(np.uint16) * 257, lambda i: i[..., 0],
    lambda i: np.dstack([i, i]),
])  # fmt: skip
def test_an_image_of_other_pixels_is_refused(image, change):
    with pytest.raises(PekaError, match="uint8"):
        cut_tile(change(image), (250, 200), 0.5)


@pytest.mark.parametrize("centre, um_per_px", [
    ((np.nan, 3), 0.5), ((np.inf, 3), 0.5), ((1, 2, 3), 0.5), ((250, 200), 0), ((250, 200), np.nan),
])  # fmt: skip
def test_a_centre_and_a_pixel_size_must_be_numbers(image, centre, um_per_px):
    with pytest.raises(PekaError, match="centre"):
        cut_tile(image, centre, um_per_px)
    with pytest.raises(PekaError):
        cut_tiles(image, np.zeros((0, 2)), 0.5)
