"""Pixel size from the array's pitch, and eight orientations of spots on a mask."""

import numpy as np
import pytest
from damage import refused

from peka_core.slides.mask import Mask
from peka_core.slides.orientation import ORIENTATIONS, inside, measure, oriented
from peka_core.slides.scale import VISIUM_PITCH, agreed, check_fit, fit_array

QUARTERS = ("rot90", "rot270", "transpose", "transverse")


def hexagon(um_per_px: float, angle: float, mirrored: bool = False):
    """Array units (n, 2) and px (n, 2) of an array that is turned by an angle in degrees."""
    row, column = np.mgrid[:20, :40].reshape(2, -1)
    even = (row + column) % 2 == 0
    array = np.stack([column, row], 1)[even].astype(float)
    um = array * [50, 86.6025403784]
    assert np.isclose(np.hypot(*(um[1] - um[0])), 100)  # neighbours
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    px = um @ np.array([[c, s], [-s, c]]) / um_per_px + [300, 900]
    return array, px * ([-1, 1] if mirrored else [1, 1])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [0, 90, 181, -37])
def test_the_pitch_gives_size_and_handedness_at_any_angle(angle, mirrored):
    array, px = hexagon(0.4273, angle, mirrored)
    fit = fit_array(array, px, VISIUM_PITCH)
    assert fit.um_per_px == pytest.approx(0.4273, rel=1e-9) and fit.rms < 1e-9
    assert fit.mirrored == mirrored and np.allclose(fit.centres(array), px)
    px[7] = np.nan  # such a row is left out
    assert fit_array(array, px, VISIUM_PITCH).um_per_px == pytest.approx(0.4273, rel=1e-9)


def test_a_line_of_spots_has_no_fit_and_a_stretched_or_mixed_array_is_refused():
    array, px = hexagon(0.5, 10)
    assert fit_array(array[:1], px[:1], VISIUM_PITCH) is None
    assert fit_array(array[:15], px[:15], VISIUM_PITCH) is None  # one row
    check_fit(fit_array(array, px, VISIUM_PITCH), "table")
    array, px = hexagon(0.5, 0)
    for changed in (px * [1, 1.05], np.random.default_rng(0).permutation(px)):
        refused(
            fit_array(array, changed, VISIUM_PITCH), "table", call=lambda f: check_fit(f, "table")
        )


def test_pixel_sizes_agree_within_three_percent_or_all_are_shown():
    nan = float("nan")
    assert agreed({"a": 0.5, "b": nan, "c": 0.5149}, "s") == 0.5
    assert agreed({"a": nan, "b": 0.25}, "s") == 0.25
    refused({"a": 0.5, "b": 0.5151}, "s1", "0.5000", "0.5151", call=lambda d: agreed(d, "s1"))
    refused({"a": nan}, "--um-per-px", call=lambda d: agreed(d, "s1"))
    for odd in (0.0, -0.5, 6.3, 0.01):
        refused({"a": odd}, "a is", call=lambda d: agreed(d, "s1"))


def test_orientations_are_the_symmetries_of_numpys_arrays():
    image = np.arange(12).reshape(3, 4)  # height 3, width 4
    y, x = np.mgrid[:3, :4].reshape(2, -1)
    centre = np.stack([x, y], 1) + 0.5
    oracle = {
        "as_given": image, "rot90": np.rot90(image, -1), "rot180": image[::-1, ::-1],
        "rot270": np.rot90(image), "flip_x": image[:, ::-1], "flip_y": image[::-1],
        "transpose": image.T, "transverse": image[::-1, ::-1].T,
    }  # fmt: skip
    assert list(oracle) == list(ORIENTATIONS)
    for name, wanted in oracle.items():
        xy = oriented(centre, name, wanted.shape[1], wanted.shape[0])
        assert inside(xy, *wanted.shape[::-1]).all()
        column, row = xy.astype(int).T
        assert np.array_equal(wanted[row, column], image[y, x]), name


def mask_of_an_l():
    inner = np.zeros((40, 50), bool)
    inner[5:35, 5:15] = inner[25:35, 5:45] = True
    return Mask(inner, 10.0)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_the_right_orientation_is_ahead_and_a_wrong_one_is_noticed(name):
    mask, rng = mask_of_an_l(), np.random.default_rng(0)
    xy = rng.uniform(0, [500, 400], (600, 2))
    on = mask.at(xy)
    for points, in_tissue in ((xy[on], None), (xy, on)):
        frame = (400, 500) if name in QUARTERS else (500, 400)
        wrong = oriented(points, {"rot90": "rot270", "rot270": "rot90"}.get(name, name), *frame)
        found = measure(wrong, mask, (500, 400), in_tissue)
        assert found.best == name and found.scores[name] == pytest.approx(1.0)
        assert found.is_clear == (name == "as_given")


def test_tissue_that_fills_the_frame_is_not_clear():
    full = Mask(np.ones((40, 50), bool), 10.0)
    xy = np.random.default_rng(0).uniform(0, 400, (50, 2))
    assert not measure(xy, full, (500, 400)).is_clear
    known = measure(xy, full, (500, 400), np.arange(50) < 25)
    assert not known.is_clear and np.isnan(known.lead) and known.best == "as_given"
