"""The mask of tissue on drawn glass of several kinds, and on real sections."""

import cv2
import numpy as np
import pytest

from peka_core.common.errors import PekaError
from peka_core.slides.image import open_slide, read_tiles, slide_of
from peka_core.slides.mask import Mask, grid_of
from peka_core.slides.tissue import find_tissue, tissue_of
from peka_core.sources import her2st
from peka_core.tiles import cut_tiles

WHITE, PINK = (243, 242, 244), (225, 205, 222)
UM = 4.0  # per px of the drawn slides


def glass(colour=WHITE, noise=1.0):
    """Glass of 3.2 x 2.4 mm with the noise of a camera: uint8 (600, 800, 3)."""
    rng = np.random.default_rng(0)
    return (np.array(colour) + rng.normal(0, noise, (600, 800, 3))).clip(0, 255)


def ellipse():
    """An island of tissue: bool (600, 800)."""
    y, x = np.mgrid[:600, :800]
    return ((x - 300) / 180) ** 2 + ((y - 250) / 120) ** 2 < 1


def with_tissue(image, contrast=1.0):
    """Blots of eosin and haematoxylin, of 10 to 50 um, on the island."""
    rng = np.random.default_rng(1)
    eosin, nuclei = (
        cv2.GaussianBlur(rng.normal(0, 1, image.shape[:2]), (0, 0), sd) * sd * 2 for sd in (4, 1.5)
    )
    stain = np.abs(eosin)[..., None] * (0.05, 0.3, 0.1) + (nuclei > 0.5)[..., None] * (
        0.4,
        0.4,
        0.2,
    )
    inside = ellipse()[..., None] * contrast
    return np.rint(image * 10 ** (-stain * inside)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("colour", [WHITE, PINK])
@pytest.mark.parametrize("contrast", [1.0, 0.4])
def test_an_island_is_found_on_white_and_on_pink_glass(colour, contrast):
    slide = slide_of(with_tissue(glass(colour), contrast), UM)
    mask, truth = find_tissue(slide), ellipse()
    (shape, px), there = grid_of(slide), np.argwhere(np.ones((600, 800)))[:, ::-1] + 0.5  # x, y
    assert mask.inside.shape == shape and mask.px == px == 2.0
    found = mask.at(there).reshape(600, 800)
    assert (found & truth).sum() / (found | truth).sum() > 0.93
    assert mask.share == pytest.approx(truth.mean(), abs=0.02)


def test_a_smear_dust_pen_and_what_was_never_scanned_are_no_tissue():
    image = glass(PINK)
    y, x = np.mgrid[:600, :800]
    smear = np.exp(-(((x - 620) / 120) ** 2 + ((y - 400) / 90) ** 2))  # eosin, 1 mm wide
    image *= 10 ** (-smear[..., None] * (0.02, 0.25, 0.08))
    for place in range(60, 800, 60):  # printed dots, grey
        cv2.circle(image, (place, 40), 14, (150, 150, 150), -1)
    cv2.line(image, (50, 590), (780, 480), (40, 40, 40), 14)  # a pen
    image[:, :20], image[560:, 700:] = 0, 255  # black and white where nothing was scanned
    found = find_tissue(slide_of(with_tissue(image), UM)).inside
    truth = ellipse()[::2, ::2]
    assert (found & truth).sum() / (found | truth).sum() > 0.93


@pytest.mark.parametrize("image", [
    glass(), glass(PINK), glass((90, 90, 90)), glass(noise=8), 0 * glass(),
    np.where(ellipse()[..., None], glass(PINK), 255), np.abs(glass((0, 0, 0), 3) - 1),
], ids=["white", "pink", "grey", "noisy", "black", "a scanned part", "dark"])  # fmt: skip
def test_a_blank_slide_is_refused(image):
    with pytest.raises(PekaError, match="blank.svs"):
        find_tissue(slide_of(image.astype(np.uint8), UM, "blank.svs"))


def test_a_picture_full_of_tissue_is_tissue():
    full = with_tissue(glass())[180:320, 200:400]
    assert tissue_of(cv2.resize(full, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), 8).all()


def test_pieces_and_holes_smaller_than_a_tile_do_not_count():
    image = with_tissue(glass())
    image[245:265, 290:310] = WHITE  # a hole of 80 um
    image[500:515, 600:615] = image[240:255, 250:265]  # a piece of 60 um
    mask = find_tissue(slide_of(image, UM))
    assert mask.at([[300, 255]]).all() and not mask.at([[607, 507]]).any()
    assert tissue_of(image[::2, ::2], 8)[500 // 2 : 515 // 2, 600 // 2 : 615 // 2].any()


def test_the_pixel_size_is_needed():
    slide = slide_of(with_tissue(glass()), None, "scan.png")
    with pytest.raises(PekaError, match="scan.png.*um_per_px"):
        find_tissue(slide)
    assert find_tissue(slide, UM).share > 0.1


def test_points_and_shares_of_windows_are_those_of_the_px():
    inside = np.random.default_rng(2).random((6, 9)) < 0.5
    inside[5], inside[:, 8] = True, True
    mask, fine = Mask(inside, 4.0), inside.repeat(8, axis=0).repeat(8, axis=1)  # (48, 72), 0.5 px
    points = [[35.9, 23.9], [-0.1, 3], [3, -0.1], [3, 24], [36, 3], [4, 8]]
    assert mask.at(points).tolist() == [True, False, False, False, False, inside[2, 1]]
    corners = np.array([[3.5, 2.5], [0, 0], [30, 20], [-5, -2]])
    padded = np.pad(fine, 40)
    expected = [
        padded[y : y + 21, x : x + 21].mean()
        for x, y in (2 * corners + 40).astype(int)  # windows of 10.5 px
    ]
    assert mask.share_of(corners, 10.5) == pytest.approx(expected)


@pytest.mark.parametrize("section, share", [("B4", 0.99), ("C2", 0.99), ("C3", 0.98)])
def test_spots_of_her2st_lie_on_the_mask_and_their_tiles_are_the_cohorts(shared, section, share):
    data = shared / "data/her2st/data"
    path = next((data / f"ST-imgs/{section[0]}/{section}").glob("*.jpg"))
    counts = data / f"ST-cnts/{section}.tsv.gz"
    _, spots = her2st.read_spots(counts, data / f"ST-spotfiles/{section}_selection.tsv")
    slide = open_slide(path, her2st.pixel_size(spots))
    xy = spots[["pixel_x", "pixel_y"]].to_numpy()
    mask = find_tissue(slide)
    assert mask.at(xy).mean() > share
    assert mask.share < 0.28  # pink glass and the smear of C3 stay outside
    if section == "C2":
        whole = her2st.read_image(path)
        expected, corners = cut_tiles(whole, xy[::40], slide.um_per_px)
        tiles, there = read_tiles(slide, xy[::40])
        assert np.array_equal(tiles, expected) and np.array_equal(there, corners)
