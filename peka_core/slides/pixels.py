"""Pictures that are read whole into memory, and transparent pixels."""

import os
from pathlib import Path

import cv2
import numpy as np
import psutil

from ..common.errors import PekaError
from .image_checks import AS_TILED, Header, damaged

OPENCV_PIXELS = 2**30  # of an image, unless OPENCV_IO_MAX_IMAGE_PIXELS was set before cv2 came
CHUNK = 2**20  # px converted at a time


def read_whole(path: Path, header: Header) -> np.ndarray:
    """All pixels uint8 (height, width, 3) RGB of a picture that OpenCV reads."""
    _check_memory(path, header)
    flags = cv2.IMREAD_UNCHANGED if header.alpha else cv2.IMREAD_COLOR
    try:
        image = cv2.imread(str(path), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except (cv2.error, MemoryError) as error:
        raise damaged(path, str(error)) from error
    if image is None:
        raise damaged(path, "OpenCV finds no picture in it")
    to_rgb = cv2.COLOR_BGRA2RGBA if header.alpha else cv2.COLOR_BGR2RGB
    for part in _in_parts(image):
        cv2.cvtColor(part, to_rgb, dst=part)
    return on_white(image, premultiplied=header.kind == "tiff")  # as libtiff returns colours


def _in_parts(image: np.ndarray) -> list[np.ndarray]:
    """Views of some rows at a time, so that no second copy of a large picture is made."""
    rows = max(1, CHUNK // image.shape[1])
    return [image[y : y + rows] for y in range(0, len(image), rows)]


def on_white(image: np.ndarray, premultiplied: bool) -> np.ndarray:
    """RGBA (h, w, 4) on a white ground: alpha 0 becomes white; returns RGB (h, w, 3)."""
    if image.shape[2] == 3 or image[..., 3].min(initial=255) == 255:
        return np.ascontiguousarray(image[..., :3])
    rgb = np.empty((*image.shape[:2], 3), dtype=np.uint8)
    for part, white in zip(_in_parts(image), _in_parts(rgb)):
        colours, alpha = part[..., :3].astype(np.float32), part[..., 3:] / np.float32(255)
        shown = colours if premultiplied else colours * alpha  # (rows, w, 3)
        white[:] = np.rint(shown + 255 * (1 - alpha)).clip(0, 255)
    return rgb


def _check_memory(path: Path, header: Header) -> None:
    """Refuse a picture that OpenCV would not read, or that does not fit into the free memory."""
    pixels = header.width * header.height
    size = f"{path}: a picture of {header.width} x {header.height} px"
    tiled = f"Or save it as a tiled TIFF, which is read in parts: {AS_TILED}"
    # while OpenCV reads, it holds every px twice (measured with 5.0 on JPEG, PNG and TIFF)
    needed, free = pixels * (8 if header.alpha else 6), psutil.virtual_memory().available
    if needed > free:
        raise PekaError(
            f"{size} must be read whole and needs {needed / 1e9:.1f} GB of memory, of which "
            f"{free / 1e9:.1f} GB are free. Free some memory. {tiled}"
        )
    own = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", "")
    limit = int(own) if own.isdigit() else OPENCV_PIXELS
    if pixels > limit:
        raise PekaError(
            f"{size}, and OpenCV reads {limit:,} pixels at most. Set "
            f"OPENCV_IO_MAX_IMAGE_PIXELS={pixels} in the environment before Python starts. {tiled}"
        )
