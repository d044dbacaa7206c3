"""Pictures of slides: windows, thumbnails and tiles against plain arrays, and what is refused."""

import importlib.util
import math
import os
import struct

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image
from slide import write_slide
from tiled_tiff import write_tiled

from peka_core.common.errors import PekaError
from peka_core.slides.image import Slide, open_slide, read_tiles, slide_of, tile_at
from peka_core.tiles import cut_tile, cut_tiles


@pytest.fixture(scope="module")
def pixels():
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    return cv2.resize(noise, (1000, 700), interpolation=cv2.INTER_CUBIC)  # (700, 1000, 3)


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def in_file(folder, pixels, kind, um_per_px=None):
    """The same pixels as a strip TIFF, a PNG, a tiled TIFF of two levels, or in memory."""
    if kind == "tiled":
        pytest.importorskip("openslide")
        levels = [pixels, cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)]
        return open_slide(write_tiled(folder / "slide.tif", levels, um_per_px), um_per_px)
    if kind == "memory":
        return slide_of(pixels, um_per_px)
    return open_slide(saved(folder / f"slide.{kind}", pixels), um_per_px)


KINDS = ["tif", "png", "tiled", "memory"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("um_per_px", [0.69, 0.5, 0.2501, 0.4586])
def test_tiles_are_those_of_cut_tile_on_the_whole_picture(tmp_path, pixels, kind, um_per_px):
    slide = in_file(tmp_path, pixels, kind, um_per_px)
    centres = [(500.0, 350.0), (111.5, 690.25), (20.5, -30.0), (-300, 100), (999, 0.5)]
    expected, there = cut_tiles(pixels, centres, um_per_px)
    tiles, corners = read_tiles(slide, np.array(centres))
    assert np.array_equal(tiles, expected) and np.array_equal(corners, there)
    tile, corner = tile_at(slide, np.array([500, 350]))  # whole numbers of numpy
    assert np.array_equal(tile, expected[0]) and corner == tuple(there[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_black_outside_the_slide(tmp_path, pixels, kind):
    slide = in_file(tmp_path, pixels, kind, 0.5)
    assert (slide.width, slide.height, slide.um_per_px, slide.bounds) == (1000, 700, 0.5, (0, 0))
    window = slide.read(-10, 690, 30, 20)
    assert np.array_equal(window[:10, 10:], pixels[690:, :20])
    assert not window[10:].any() and not window[:, :10].any()
    assert not slide.read(2000, 0, 5, 5).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [100, 77, 5000])
def test_a_thumbnail_px_is_the_mean_of_the_px_that_it_covers(tmp_path, kind, side, monkeypatch):
    monkeypatch.setattr("peka_core.slides.image.BAND", 20_000)  # several bands
    y, x = np.mgrid[:700, :1000]
    ramp = np.stack([x / 4, y / 4, 0 * x + 7], axis=2).astype(np.uint8)  # a px knows its place
    small, factor = in_file(tmp_path, ramp, kind, 0.5).thumbnail(side)
    assert factor == max(1000 / side, 1) and max(small.shape) <= side
    assert abs(small.shape[0] * factor - 700) <= factor
    middle = (np.mgrid[: small.shape[0], : small.shape[1]] + 0.5) * factor  # level-0 px
    wrong = np.abs(small[..., :2] - middle[::-1].transpose(1, 2, 0) / 4)
    assert wrong[1:-1, 1:-1].max() < 1.5 + factor / 40 and (small[..., 2] == 7).all()


@pytest.mark.parametrize("name", ["slide.png", "slide.tif", "tiled.tif"])
def test_transparent_px_become_white(tmp_path, pixels, name):
    alpha = np.full((700, 1000, 1), 255, dtype=np.uint8)
    alpha[:50], alpha[50:100] = 0, 128
    image = np.concatenate([pixels, alpha], axis=2)
    if name == "tiled.tif":
        pytest.importorskip("openslide")
        write_tiled(tmp_path / name, [image])
    else:
        saved(tmp_path / name, image)
    seen = open_slide(tmp_path / name, 0.5).read(0, 0, 1000, 700)
    assert (seen[:50] == 255).all() and np.array_equal(seen[100:], pixels[100:])
    half = 255 - (255.0 - pixels[50:100]) * 128 / 255
    assert np.abs(seen[50:100] - half).max() <= 2


def test_a_real_svs_says_its_pixel_size_and_gives_the_tiles_of_its_px(shared):
    openslide = pytest.importorskip("openslide")
    path = shared / "data/wsi/CMU-1-Small-Region.svs"
    slide = open_slide(path)
    assert (slide.width, slide.height, slide.um_per_px) == (2220, 2967, 0.499)
    whole = np.array(openslide.OpenSlide(path).read_region((0, 0), 0, (2220, 2967)))[..., :3]
    tile, corner = tile_at(slide, (2200, 900))
    expected, there = cut_tile(whole, (2200, 900), 0.499)
    assert np.array_equal(tile, expected) and corner == there


def test_a_slide_of_40000_px_is_read_in_windows_and_never_whole(tmp_path, pixels, monkeypatch):
    pytest.importorskip("openslide")
    saved(tmp_path / "tissue.png", np.tile(pixels, (3, 3, 1)))
    slide = open_slide(write_slide(tmp_path / "large.tif", tmp_path / "tissue.png"))
    assert (slide.width, slide.height, slide.um_per_px) == (40_000, 40_000, 0.5)
    tile, corner = tile_at(slide, (39_000.5, 39_000))
    again, _ = tile_at(slide, (39_000.5 - 18 * 2048, 39_000 - 18 * 2048))
    assert corner == (38_888, 38_888) and np.array_equal(tile, again)
    monkeypatch.setattr("peka_core.slides.image.BAND", 1_000_000)
    largest, inside = [], Slide._inside
    note = lambda *of: largest.append(of[4] * of[5]) or inside(*of)
    monkeypatch.setattr(Slide, "_inside", note)
    small, factor = slide.thumbnail(500)
    assert small.shape == (500, 500, 3) and factor == 80 and max(largest) <= 1_000_000


# ---- pixel size -------------------------------------------------------------------------------


def test_pixel_size_is_the_users_or_the_files_or_unknown(tmp_path, pixels):
    resolution = {"resolution_unit": 3, "x_resolution": 20_000.0, "y_resolution": 20_200.0}
    said = saved(tmp_path / "said.tif", pixels, **resolution)
    assert open_slide(said).um_per_px == pytest.approx((0.5 + 1 / 2.02) / 2)
    assert open_slide(said, 0.51).um_per_px == 0.51
    print_size = saved(tmp_path / "print.tif", pixels, dpi=(300, 300))  # 85 um per px
    assert math.isnan(open_slide(print_size).um_per_px)
    assert open_slide(print_size, 0.3).um_per_px == 0.3
    assert math.isnan(open_slide(saved(tmp_path / "none.png", pixels)).um_per_px)
    if importlib.util.find_spec("openslide"):
        assert math.isnan(open_slide(write_tiled(tmp_path / "print.tif", [pixels], 85.0)).um_per_px)
    with pytest.raises(PekaError, match="um_per_px"):
        tile_at(open_slide(print_size), (300, 300))


@pytest.mark.parametrize("file, given", [
    ((0.5, 0.5), 0.52), ((0.5, 0.5), 0.0), ((0.5, 0.5), -0.5), (None, 6.3), (None, 0.01),
    ((0.5, 0.52), None), ((0.5, 0.5), math.nan),
])  # fmt: skip
def test_pixel_sizes_that_contradict_or_cannot_be_are_refused(tmp_path, pixels, file, given):
    sizes = {} if file is None else {"x_resolution": 1e4 / file[0], "y_resolution": 1e4 / file[1]}
    path = saved(tmp_path / "slide.tif", pixels, resolution_unit=3, **sizes)
    with pytest.raises(PekaError, match="um_per_px|slide.tif"):
        open_slide(path, given)


@pytest.mark.parametrize("said", ["0", "6.3", "-1"])
def test_an_impossible_pixel_size_of_a_scanner_is_refused_unless_the_user_knows(
    shared, tmp_path, said
):
    pytest.importorskip("openslide")
    raw = (shared / "data/wsi/CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "scan.svs").write_bytes(raw.replace(b"MPP = 0.4990", f"MPP = {said:<6}".encode()))
    with pytest.raises(PekaError, match="scan.svs"):
        open_slide(tmp_path / "scan.svs")
    assert open_slide(tmp_path / "scan.svs", 0.499).um_per_px == 0.499


# ---- refused ----------------------------------------------------------------------------------


def _turned(path, pixels):
    exif = Image.Exif()
    exif[274] = 6
    return saved(path, pixels, exif=exif)


def _cut(path, share=0.9):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


BAD = {
    "grey.png": lambda path, pixels: saved(path, pixels[..., 0]),
    "grey.tif": lambda path, pixels: saved(path, pixels[..., 0]),
    "grey.jpg": lambda path, pixels: saved(path, pixels[..., 0]),
    "grey-tiled.tif": lambda path, pixels: write_tiled(path, [pixels[..., 0]], photometric=1),
    "16.png": lambda path, pixels: cv2.imwrite(str(path), pixels.astype(np.uint16) * 256),
    "16.tif": lambda path, pixels: cv2.imwrite(str(path), pixels.astype(np.uint16) * 256),
    "16-tiled.tif": lambda path, pixels: write_tiled(path, [pixels.astype(np.uint16)]),
    "signed-tiled.tif": lambda path, pixels: write_tiled(path, [pixels], tags={339: 2}),
    "float.tif": lambda path, pixels: cv2.imwrite(str(path), pixels.astype(np.float32)),
    "float-tiled.tif": lambda path, pixels: write_tiled(path, [pixels.astype(np.float32)]),
    "palette.png": lambda path, pixels: Image.fromarray(pixels).quantize(9).save(path),
    "cmyk.jpg": lambda path, pixels: Image.fromarray(pixels).convert("CMYK").save(path),
    "cmyk.tif": lambda path, pixels: Image.fromarray(pixels).convert("CMYK").save(path),
    "turned.jpg": _turned,
    "turned.png": _turned,
    "turned.tif": _turned,
    "turned-tiled.tif": lambda path, pixels: write_tiled(path, [pixels], tags={274: 3}),
    "cut.jpg": lambda path, pixels: _cut(saved(path, pixels)),
    "cut.png": lambda path, pixels: _cut(saved(path, pixels)),
    "cut.tif": lambda path, pixels: _cut(saved(path, pixels)),
    "cut-tiled.tif": lambda path, pixels: _cut(write_tiled(path, [pixels])),
    "cut-behind.tif": lambda path, pixels: _cut(write_tiled(path, [pixels, pixels]), 0.5),
    "beyond-tiled.tif": lambda path, pixels: path.write_bytes(
        write_tiled(path, [pixels, pixels[:90]])  # as if the last of 12 tiles lay behind the end
        .read_bytes()
        .replace(struct.pack("<L", 8 + 11 * 3 * 256**2), struct.pack("<L", 2**28))
    ),
    "begin.png": lambda path, pixels: _cut(saved(path, pixels), 0.0005),
    "text.svs": lambda path, pixels: path.write_text("no picture"),
    "text.ndpi": lambda path, pixels: path.write_text("no picture"),
    "alone.mrxs": lambda path, pixels: saved(path, pixels, format="jpeg"),
    "empty.tif": lambda path, pixels: path.touch(),
    "folder.tif": lambda path, pixels: path.mkdir(),
    "missing.tif": lambda path, pixels: None,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BAD)
def test_pictures_that_could_be_misread_are_refused_by_name(tmp_path, pixels, name):
    if name.endswith(("tiled.tif", "behind.tif", ".ndpi", ".mrxs")):
        pytest.importorskip("openslide")
    BAD[name](tmp_path / name, pixels)
    with pytest.raises(PekaError, match=name):
        open_slide(tmp_path / name, 0.5)


def test_a_picture_larger_than_the_free_memory_or_opencvs_limit_is_refused(
    tmp_path, pixels, monkeypatch
):
    path = saved(tmp_path / "slide.png", pixels)
    with monkeypatch.context() as patch:
        free = psutil.virtual_memory()._replace(available=4_000_000)
        patch.setattr(psutil, "virtual_memory", lambda: free)
        with pytest.raises(PekaError, match="slide.png.* memory"):
            open_slide(path, 0.5)
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "699999")
    with pytest.raises(PekaError, match="OPENCV_IO_MAX_IMAGE_PIXELS=700000"):
        open_slide(path, 0.5)


def test_a_closed_file_is_refused(tmp_path, pixels, monkeypatch):
    path = saved(tmp_path / "closed.png", pixels)
    monkeypatch.setattr(os, "access", lambda file, right: file != path)  # root may read all files
    with pytest.raises(PekaError, match="closed.png"):
        open_slide(path, 0.5)


def test_without_openslide_a_tiled_tiff_names_the_extra_and_a_png_opens(
    tmp_path, pixels, monkeypatch
):
    monkeypatch.setitem(__import__("sys").modules, "openslide", None)
    write_tiled(tmp_path / "tiled.tif", [pixels])
    with pytest.raises(PekaError, match="tiled.tif.*wsi"):
        open_slide(tmp_path / "tiled.tif", 0.5)
    assert open_slide(saved(tmp_path / "plain.png", pixels), 0.5).width == 1000


def test_damage_inside_a_tiled_file_is_said_when_the_window_is_read(tmp_path, pixels):
    pytest.importorskip("openslide")
    path = write_tiled(tmp_path / "damaged.tif", [pixels], jpeg=True)
    raw = bytearray(path.read_bytes())
    raw[2000:6000] = bytes(4000)
    path.write_bytes(raw)
    with pytest.raises(PekaError, match="damaged.tif"):
        open_slide(path, 0.5).read(0, 0, 1000, 700)
