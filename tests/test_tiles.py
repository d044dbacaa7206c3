"""Tiles cut from a slide, against plain numpy and HEST's own files."""

import json

import anndata as ad
import cv2
import h5py
import numpy as np
import pytest

from peka_core import tiles as tiles_module
from peka_core.common.errors import PekaError
from peka_core.tiles import TileReader, cut_tile, cut_tiles


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)


def test_a_tile_is_the_pixels_with_corners_truncated_towards_zero_and_black_padding(image):
    tile, corner = cut_tile(image, (250.9, 200.2), 0.5)
    assert corner == (138, 88) and np.array_equal(tile, image[88:312, 138:362])
    tile, corner = cut_tile(image, (111.5, 398.0), 0.5)
    assert corner == (0, 286)  # -0.5 becomes 0, not -1
    assert np.array_equal(tile[:114], image[286:400, :224]) and not tile[114:].any()
    tile, corner = cut_tile(image, (20.5, -30.0), 0.5)
    assert corner == (-91, -142)  # -91.5 becomes -91, not -92
    assert np.array_equal(tile[142:, 91:], image[:82, :133])
    assert not tile[:142].any() and not tile[:, :91].any()


@pytest.mark.parametrize("sample", ["FIX1", "FIX2", "FIX3"])
def test_tiles_equal_hests_own_byte_for_byte(hest_files, sample):
    folder = hest_files / "hest1k"
    slide = cv2.imread(str(folder / f"wsis/{sample}.tif"), cv2.IMREAD_COLOR)[..., ::-1]
    metadata = json.loads((folder / f"metadata/{sample}.json").read_text())
    spots = ad.read_h5ad(folder / f"st/{sample}.h5ad")
    with h5py.File(folder / f"patches/{sample}.h5") as file:
        rows = spots.obs_names.get_indexer(file["barcode"].asstr()[:, 0])
        centres, pixel_size = spots.obsm["spatial"][rows], metadata["pixel_size_um_estimated"]
        tiles, corners = cut_tiles(slide, centres, pixel_size)
        assert np.array_equal(tiles, file["img"]) and np.array_equal(corners, file["coords"])


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_centres_of_any_number_give_the_same_tile(image, kind):
    expected, there = cut_tile(image, (20.0, 30.0), 0.5)
    assert there == (-92, -82)
    for centre in ([kind(20), kind(30)], np.array([20, 30], dtype=kind)):
        tiles, corners = cut_tiles(image, np.stack([centre, centre]), 0.5)
        assert (corners == there).all() and all(np.array_equal(t, expected) for t in tiles)
        assert cut_tile(image, centre, 0.5)[1] == there


@pytest.mark.parametrize("change, centre, named", [
    (lambda i: i / 255, (250, 200), "uint8"), (lambda i: np.dstack([i, i]), (250, 200), "uint8"),
    (np.copy, (np.nan, 3), "centre"),
])  # fmt: skip
def test_other_pixels_and_what_is_no_number_are_refused(image, change, centre, named):
    with pytest.raises(PekaError, match=named):
        cut_tile(change(image), centre, 0.5)


FORMS = {
    "a tile a chunk": {"chunks": (1, 224, 224, 3)},
    "two tiles a chunk": {"chunks": (2, 224, 224, 3)},
    "a part of a tile a chunk": {"chunks": (1, 112, 224, 3)},
    "in one piece": {},
    "compressed": {"chunks": (1, 224, 224, 3), "compression": "gzip"},
    "with checksums": {"chunks": (1, 224, 224, 3), "fletcher32": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_reader_gives_tiles_in_the_order_of_the_request_however_they_are_stored(
    tmp_path, monkeypatch, form
):
    monkeypatch.setattr(tiles_module, "OPEN_FILES", 2)
    rng, parts, expected = np.random.default_rng(1), [], []
    for i in range(4):
        images = rng.integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file.create_dataset("img", data=images, **FORMS[form])
        parts.append((tmp_path / f"{i}.h5", np.array([4, 0, 2])))
        expected.append(images[[4, 0, 2]])
    reader, whole = TileReader(parts), np.concatenate(expected)
    assert reader.shape == whole.shape and len(reader) == 12
    for which in ([7, 0, 7, 11, 3], slice(2, 9), np.arange(12) % 5 == 1, slice(None)):
        assert np.array_equal(reader[which], whole[which])
    assert np.array_equal(reader[-1], whole[-1:])


def test_a_tile_that_a_file_does_not_hold_is_named_with_its_file(tmp_path):
    for form in FORMS.values():
        with h5py.File(tmp_path / "few.h5", "w") as file:
            file.create_dataset("img", data=np.zeros((2, 224, 224, 3), np.uint8), **form)
        with pytest.raises(PekaError, match=r"few\.h5: `img` cannot be read"):
            TileReader([(tmp_path / "few.h5", np.array([0, 3]))])[:]
