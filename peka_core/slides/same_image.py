"""Whether a small picture shows the same slide as the large image, and whether it is shifted."""

from pathlib import Path

import cv2
import numpy as np

from .image import Slide, open_slide

SIDE = 1000  # px of the longer side in which both are compared


def compare(slide: Slide, small: Path) -> tuple[np.ndarray, float]:
    """Shift a small picture over the large image until both fit.

    Args:
        slide: the large image.
        small: a picture of the whole of it, of the same shape and in the same orientation.

    Returns:
        The shift (x, y) in px of the large image by which its tissue lies off the picture's, and
        the correlation of the grey values of both once it is undone; NaN if one of them is blank.
        OpenCV's phase correlation finds the shift.

    Raises:
        PekaError: the picture cannot be read.
    """
    picture, _ = open_slide(small).thumbnail(SIDE)
    size = picture.shape[1::-1]  # (w, h)
    a, b = _grey(picture, size), _grey(slide.thumbnail(max(size))[0], size)  # (h, w)
    if not (a.any() and b.any()):
        return np.zeros(2), np.nan
    (x, y), _ = cv2.phaseCorrelate(a, b, cv2.createHanningWindow(size, cv2.CV_64F))
    back = np.array([[1, 0, -x], [0, 1, -y]])
    moved = cv2.warpAffine(b, back, size, borderMode=cv2.BORDER_REPLICATE)
    r = np.corrcoef(a.ravel(), moved.ravel())[0, 1]
    return np.array([x, y]) * slide.width / size[0], float(r)


def _grey(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Grey values float64 (h, w) around their mean; all 0 for a blank picture."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64)
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return grey - grey.mean()
