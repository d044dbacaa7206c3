"""Micrometres per pixel, measured: from the pitch of the array, and checked against other values.

The spots of an array lie at known distances, so their positions in pixels give the pixel size. On
Visium, neighbouring spots are 100 um apart on a hexagonal lattice. `spot_diameter_fullres` of Space
Ranger is the diameter of a theoretical spot of 65 um, although a printed spot has 55 um. In Visium
HD it is the side of a bin. Therefore it only checks the pitch.
"""

from dataclasses import dataclass

import numpy as np

from ..common.errors import PekaError

# um between neighbours in array units: (along array_col, along array_row)
VISIUM_PITCH = (50.0, 100 * np.sqrt(3) / 2)
SPOT_DIAMETER_UM = 65.0  # of spot_diameter_fullres; the printed spot has 55 um
TOLERANCE = 0.03  # relative difference of two pixel sizes above which an import stops
LIMITS = (0.05, 4.0)  # um/px that a slide of tissue can have
OFF_ARRAY = 0.2  # pitches; with a larger rms, positions and array do not belong together


@dataclass(frozen=True, eq=False)
class ArrayFit:
    """The affine map from array units to pixels, by least squares."""

    um_per_px: float  # geometric mean of the two axes
    axes: tuple[float, float]  # um/px along array_col and along array_row
    rms: float  # distance of the positions from the fit, in rows of the array
    mirrored: bool  # the determinant is negative: the array is seen as in a mirror
    matrix: np.ndarray  # (2, 2), px per array unit
    offset: np.ndarray  # (2,), px

    def centres(self, array_xy: np.ndarray) -> np.ndarray:
        """Pixels (n, 2) of places (n, 2) in array units (col, row)."""
        return array_xy @ self.matrix.T + self.offset  # (n, 2) x (2, 2)


def fit_array(
    array_xy: np.ndarray, pixel_xy: np.ndarray, pitch_um: tuple[float, float]
) -> ArrayFit | None:
    """Fit pixels = matrix x array + offset by least squares.

    Args:
        array_xy: (n, 2) array_col and array_row of each position.
        pixel_xy: (n, 2) x and y of the same positions, px. Rows with NaN are left out.
        pitch_um: um between neighbouring columns, and between neighbouring rows.

    Returns:
        the fit, or None if the positions lie on one line (or are fewer than three), because then
        they do not determine it.
    """
    array_xy, pixel_xy = np.asarray(array_xy, float), np.asarray(pixel_xy, float)
    known = np.isfinite(array_xy).all(axis=1) & np.isfinite(pixel_xy).all(axis=1)  # (n,)
    array_xy, pixel_xy = array_xy[known], pixel_xy[known]
    ones = np.ones((len(array_xy), 1))
    design = np.hstack([array_xy, ones])  # (n, 3)
    solution, _, rank, _ = np.linalg.lstsq(design, pixel_xy, rcond=None)  # (3, 2)
    if rank < 3:
        return None
    matrix, offset = solution[:2].T, solution[2]  # (2, 2), (2,)
    residuals = pixel_xy - design @ solution  # (n, 2)
    px_per_unit = np.linalg.norm(matrix, axis=0)  # (2,) of a column, of a row
    if not (px_per_unit > 0).all():
        return None
    rms = float(np.sqrt((residuals**2).sum(1).mean()) / px_per_unit[1])
    axes = tuple((np.asarray(pitch_um) / px_per_unit).tolist())
    mirrored = bool(np.linalg.det(matrix) < 0)
    return ArrayFit(float(np.sqrt(axes[0] * axes[1])), axes, rms, mirrored, matrix, offset)


def check_fit(fit: ArrayFit, what: str) -> None:
    """Refuse positions that do not lie on their array.

    Raises:
        PekaError: the residuals are large, or both axes give different pixel sizes.
    """
    if fit.rms > OFF_ARRAY:
        raise PekaError(
            f"{what}: the positions in pixels are off the array by {fit.rms:.2f} of the distance "
            f"between its rows (rms; expected below {OFF_ARRAY:g}). Rows of the table are mixed "
            "up, or coordinates were edited. Take the file that Space Ranger wrote."
        )
    if abs(fit.axes[0] / fit.axes[1] - 1) > TOLERANCE:
        raise PekaError(
            f"{what}: the array's pitch gives {fit.axes[0]:.4f} um/px along the columns and "
            f"{fit.axes[1]:.4f} along the rows; expected the same within {TOLERANCE:.0%}. The "
            "image was stretched in one direction, or the array is of another kind."
        )


def agreed(sizes: dict[str, float], what: str) -> float:
    """The first known pixel size, after a check that all known ones agree.

    Args:
        sizes: um/px by where it comes from, the most trusted first; NaN where it is unknown.
        what: the sample, for messages.

    Raises:
        PekaError: no size is known, one is outside `LIMITS`, or two differ by more than
            `TOLERANCE`.
    """
    known = {name: size for name, size in sizes.items() if not np.isnan(size)}
    if not known:
        raise PekaError(
            f"{what}: the pixel size is unknown: neither the positions nor the image say it. Give "
            "--um-per-px, measured on the scanner or with a scale bar. A scan magnification such "
            "as 20x is not enough."
        )
    for name, size in known.items():
        if not LIMITS[0] <= size <= LIMITS[1]:
            raise PekaError(
                f"{what}: {name} is {size:g} um/px; expected {LIMITS[0]:g} to {LIMITS[1]:g}. "
                "Correct or leave out this number."
            )
    if max(known.values()) / min(known.values()) - 1 > TOLERANCE:
        raise PekaError(
            f"{what}: pixel sizes disagree by more than {TOLERANCE:.0%}. {table_of(known)}\n"
            "Each of them should describe the same image at full resolution. Usually the image was "
            "saved smaller than the one that Space Ranger was given, or a number is wrong. Take "
            "the image that the positions belong to, and correct or leave out the wrong number."
        )
    return next(iter(known.values()))


def table_of(sizes: dict[str, float]) -> str:
    """Pixel sizes as lines of text, each with its difference to the first."""
    first, width = next(iter(sizes.values())), max(map(len, sizes))
    lines = [
        f"  {name:<{width}}  {size:8.4f} um/px  {size / first - 1:+.1%}"
        for name, size in sizes.items()
    ]
    return "Found:\n" + "\n".join(lines)
