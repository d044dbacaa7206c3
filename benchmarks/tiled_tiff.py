"""Write a tiled TIFF, with several levels if wanted: test slides, without a further package.

Equal tiles are stored once, so a drawn slide of 40,000 x 40,000 px that repeats some tissue takes
seconds and a few MB.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

TILE = 256  # px
SHORT, LONG, RATIONAL = 3, 4, 5
JPEG, NONE = 7, 1  # compression


def write_tiled(
    path: Path,
    levels: list[np.ndarray],
    um_per_px: float | None = None,
    jpeg: bool = False,
    photometric: int = 2,
    tags: dict[int, int] | None = None,
) -> Path:
    """Write levels (H, W, channels) or (H, W) of uint8, uint16 or float32, the largest first.

    Args:
        um_per_px: written as the resolution in px per cm of every level.
        photometric: 2 RGB, 1 grey, 5 CMYK.
        tags: further tags, each with one number below 65,536.
    """
    sizes = [(level.shape[1], level.shape[0]) for level in levels]

    def tile(level: int, column: int, row: int) -> bytes:
        pixels = levels[level][row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        whole = np.zeros((TILE, TILE, *pixels.shape[2:]), pixels.dtype)
        whole[: pixels.shape[0], : pixels.shape[1]] = pixels
        return as_jpeg(whole) if jpeg else whole.tobytes()

    return write_by_tiles(path, sizes, tile, levels[0], um_per_px, jpeg, photometric, tags)


def write_by_tiles(
    path: Path,
    sizes: list[tuple[int, int]],
    tile: Callable[[int, int, int], bytes],
    like: np.ndarray,
    um_per_px: float | None = None,
    jpeg: bool = False,
    photometric: int = 2,
    tags: dict[int, int] | None = None,
) -> Path:
    """`write_tiled` for levels of these sizes (width, height).

    Args:
        tile: gives the bytes of a tile of 256 x 256 px at (level, column, row), perhaps `as_jpeg`.
        like: pixels (H, W, channels) or (H, W) of the same type and colours.
    """
    places: dict[bytes, int] = {}
    channels = like.shape[2] if like.ndim == 3 else 1
    bits, kind = [8 * like.dtype.itemsize] * channels, 3 if like.dtype.kind == "f" else 1
    with open(path, "wb") as file:
        file.write(struct.pack("<2sHL", b"II", 42, 0))
        link = 4  # where the place of the next directory is written
        for level, (width, height) in enumerate(sizes):
            offsets, lengths = [], []
            for row in range(-(-height // TILE)):
                for column in range(-(-width // TILE)):
                    data = tile(level, column, row)
                    if data not in places:
                        places[data] = file.seek(0, 2)
                        file.write(data)
                    offsets.append(places[data])
                    lengths.append(len(data))
            entries = {
                254: (LONG, [int(level > 0)]), 256: (LONG, [width]), 257: (LONG, [height]),
                258: (SHORT, bits), 259: (SHORT, [JPEG if jpeg else NONE]),
                262: (SHORT, [6 if jpeg else photometric]), 277: (SHORT, [channels]),
                284: (SHORT, [1]), 322: (LONG, [TILE]), 323: (LONG, [TILE]),
                324: (LONG, offsets), 325: (LONG, lengths), 339: (SHORT, [kind] * channels),
            }  # fmt: skip
            if jpeg:
                entries[530] = (SHORT, [2, 2])
            if channels == 4 and photometric == 2:
                entries[338] = (SHORT, [2])  # alpha that the colours were not multiplied by
            if um_per_px is not None:
                resolution = (RATIONAL, [round(1e4 / um_per_px * 1e4), 10_000])  # px per cm
                entries |= {282: resolution, 283: resolution, 296: (SHORT, [3])}
            entries |= {tag: (SHORT, [value]) for tag, value in (tags or {}).items()}
            link = _write_directory(file, entries, link)
    return path


def as_jpeg(pixels: np.ndarray) -> bytes:
    """The bytes of an RGB tile."""
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def _write_directory(file, entries: dict[int, tuple[int, list[int]]], link: int) -> int:
    """Append a directory and write its place at `link`; returns where the next place goes."""
    start = file.seek(0, 2) + file.tell() % 2
    behind = start + 2 + 12 * len(entries) + 4  # values of more than four bytes
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, (kind, numbers) in sorted(entries.items()):
        code = "H" if kind == SHORT else "L"
        data = struct.pack(f"<{len(numbers)}{code}", *numbers)
        count = len(numbers) // (2 if kind == RATIONAL else 1)
        if len(data) > 4:
            place = struct.pack("<L", behind + len(values))
            values += data + b"\0" * (len(data) % 2)
        else:
            place = data.ljust(4, b"\0")
        directory += struct.pack("<HHL", tag, kind, count) + place
    file.seek(start)
    file.write(directory + b"\0" * 4 + values)
    file.seek(link)
    file.write(struct.pack("<L", start))
    return behind - 4
