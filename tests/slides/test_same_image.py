"""A small picture is found in the large image it was made of, and shows how far the image moved."""

import cv2
import numpy as np
import pytest
from fake_slide import drawn_slide

from peka_core.slides.image import open_slide
from peka_core.slides.same_image import compare


@pytest.fixture
def both(tmp_path):
    pixels = drawn_slide(tmp_path / "large.png")
    small = cv2.resize(pixels[:, :, ::-1], None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "small.png"), small)
    return tmp_path, pixels


@pytest.mark.parametrize("moved", [(0, 0), (40, -24), (-12, 60)])
def test_the_shift_is_that_of_the_tissue(both, moved):
    folder, pixels = both
    x, y = moved
    cv2.imwrite(str(folder / "moved.png"), np.roll(pixels[:, :, ::-1], (y, x), (0, 1)))
    shift, r = compare(open_slide(folder / "moved.png"), folder / "small.png")
    assert shift == pytest.approx(moved, abs=1)
    assert r > 0.95  # what was rolled over the edge differs


def test_a_mirrored_image_is_not_the_same_and_a_blank_one_cannot_be_compared(both):
    folder, pixels = both
    cv2.imwrite(str(folder / "mirrored.png"), pixels[:, ::-1, ::-1])
    assert compare(open_slide(folder / "mirrored.png"), folder / "small.png")[1] < 0.95
    cv2.imwrite(str(folder / "blank.png"), np.full((200, 250, 3), 255, np.uint8))
    assert np.isnan(compare(open_slide(folder / "large.png"), folder / "blank.png")[1])
