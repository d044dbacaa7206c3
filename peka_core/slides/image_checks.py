"""What is looked at before a picture is read: its kind, its colours, its size in um, its end."""

import math
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, TiffImagePlugin

from ..common.errors import PekaError
from ..common.file_kinds import what_is
from ..common.files import not_readable

SMALLEST, LARGEST = 0.05, 4.0  # um per px of a slide at full resolution
AGREE = 0.03  # two statements about the pixel size may differ by this share
TAIL = 2**16  # bytes; some programs write more behind the end of an image
AS_TILED = "vips tiffsave FILE NEW.tif --tile --pyramid --bigtiff --compression deflate"
EXPORT = "Export the picture again as RGB with 8 bits a colour"
# TIFF tags
WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLES = 256, 257, 258, 262, 274, 277
STRIPS, STRIP_BYTES, TILES, TILE_BYTES = 273, 279, 324, 325
X_RESOLUTION, Y_RESOLUTION, UNIT, SAMPLE_FORMAT = 282, 283, 296, 339
COLOURS = {
    0: "grey", 1: "grey", 2: "RGB", 3: "a palette of colours", 5: "CMYK", 6: "RGB", 8: "CIE Lab"
}  # fmt: skip
UNIT_UM = {2: 25400.0, 3: 10000.0}  # inch and centimetre
MODES = {"L": "grey", "LA": "grey", "P": "a palette of colours", "1": "black and white"}


@dataclass(frozen=True)
class Header:
    """What the first bytes of a JPEG, PNG or TIFF say about it."""

    kind: str  # "jpeg", "png" or "tiff"
    width: int
    height: int
    alpha: bool
    tiled: bool = False
    mpp: tuple[float, float] = (math.nan, math.nan)  # um per px in x and y


def check_file(path: Path) -> None:
    """Refuse what is no file, is empty, or may not be read.

    Raises:
        PekaError: so.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "missing"
        raise PekaError(
            f"{path}: {found}; expected the picture of a slide (SVS, NDPI, MRXS, TIFF, JPEG or "
            "PNG). Correct the path."
        )
    if not os.access(path, os.R_OK):
        raise not_readable(path)
    if not path.stat().st_size:
        raise _not_a_slide(path)


def read_header(path: Path) -> Header:
    """Read the header of a JPEG, PNG or TIFF, and refuse pictures that could be misread.

    Raises:
        PekaError: the file is of another kind, is damaged or cut off, is not RGB with 8 bits a
            colour, or has an EXIF orientation that turns it.
    """
    kind = what_is(path)
    readers = {"a TIFF image": _tiff, "a PNG image": _png, "a JPEG image": _jpeg}
    if kind not in readers:
        raise _not_a_slide(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, which the user cannot act on
            return readers[kind](path)
    except KeyError as error:
        raise damaged(path, f"the header has no entry {error}") from error
    except (OSError, ValueError, TypeError, SyntaxError, struct.error) as error:
        raise damaged(path, str(error)) from error


def _tiff(path: Path) -> Header:
    with open(path, "rb") as file:
        begin = file.read(8)
        begin += file.read(8) if 43 in begin[2:4] else b""  # BigTIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(begin)
        file.seek(tags.next)
        tags.load(file)
    bits, formats = tags[BITS], tags.get(SAMPLE_FORMAT, (1,))
    samples = tags.get(SAMPLES, 1)
    colours = COLOURS.get(tags[PHOTOMETRIC], f"photometric {tags[PHOTOMETRIC]}")
    _check_colours(path, colours, max(bits), set(formats) == {1}, samples)
    _check_orientation(path, tags.get(ORIENTATION, 1))
    places = tags.get(TILES) or tags.get(STRIPS) or ()
    lengths = tags.get(TILE_BYTES) or tags.get(STRIP_BYTES) or ()
    end = max((place + length for place, length in zip(places, lengths)), default=0)
    if not places or end > path.stat().st_size:
        raise _cut_off(path)
    unit = UNIT_UM.get(tags.get(UNIT, 2), math.nan)
    x, y = (float(tags.get(tag, 0)) for tag in (X_RESOLUTION, Y_RESOLUTION))  # px per unit
    mpp = (unit / x, unit / y) if x > 0 and y > 0 else (math.nan, math.nan)
    said = mpp if all(SMALLEST <= size <= LARGEST for size in mpp) else (math.nan, math.nan)
    return Header("tiff", tags[WIDTH], tags[HEIGHT], samples == 4, TILES in tags, said)


def _png(path: Path) -> Header:
    with open(path, "rb") as file:
        width, height, bits, colour = struct.unpack(">IIBB", file.read(26)[16:])
    colours = {0: "grey", 2: "RGB", 3: "a palette of colours", 4: "grey", 6: "RGB"}[colour]
    _check_colours(path, colours, bits, True, 4 if colour == 6 else 3)
    _check_orientation(path, _with_pillow(path)[1])
    return Header("png", width, height, colour == 6)


def _jpeg(path: Path) -> Header:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        if b"\xff\xd9" not in file.read():  # OpenCV would fill the missing part with grey, silently
            raise _cut_off(path)
    (mode, width, height), orientation = _with_pillow(path)
    _check_colours(path, MODES.get(mode, mode), 8, True, 3)
    _check_orientation(path, orientation)
    return Header("jpeg", width, height, False)


def _with_pillow(path: Path) -> tuple[tuple[str, int, int], int]:
    """(mode, width, height) of an image, and its EXIF orientation. No pixel is read."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow's own, for headers too
    try:
        with Image.open(path) as image:
            return (image.mode, *image.size), image.getexif().get(ORIENTATION, 1)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_colours(path: Path, colours: str, bits: int, whole: bool, samples: int) -> None:
    if colours == "RGB" and bits == 8 and whole and samples in (3, 4):
        return
    numbers = "" if whole else ", which are not whole numbers from 0"
    raise PekaError(
        f"{path}: the picture is {colours} with {samples} channels of {bits} bits{numbers}. "
        f"Expected RGB with 8 bits a colour, as H&E slides have. {EXPORT}."
    )


def _check_orientation(path: Path, orientation: int) -> None:
    """Refuse an orientation other than upright. 0 is not defined and means upright."""
    if orientation not in (0, 1):
        raise PekaError(
            f"{path}: its EXIF orientation is {orientation}, so programs show the picture turned "
            "or mirrored. Coordinates would then have two meanings. Expected orientation 1. Save "
            "it upright, for example with `magick FILE -auto-orient NEW`, and give coordinates "
            "in px of the new file."
        )


def agreed_pixel_size(path: Path, said: tuple[float, float], given: float | None) -> float:
    """Micrometres per pixel from what the file says and what the user says.

    A value of the file outside 0.05 to 4 um is no statement if the user gives one.

    Args:
        said: um per px in x and y from the file, NaN where it says nothing.
        given: um per px from the user, or None.

    Returns:
        The user's value, else the mean of x and y of the file, else NaN.

    Raises:
        PekaError: a value cannot be the pixel size of a slide, x and y differ by more than 3 %, or
            file and user differ by more than 3 %.
    """
    if given is not None:
        _check_plausible(f"um_per_px {given}", given, "Give the pixel size in micrometres")
    known = not any(math.isnan(size) for size in said)
    if known and (given is None or all(SMALLEST <= size <= LARGEST for size in said)):
        for axis, size in zip("xy", said):
            advice = "Give the right one as um_per_px (--um-per-px)"
            _check_plausible(f"{path}: the file says {size:g} um per px in {axis}", size, advice)
        if differ(*said):
            raise PekaError(
                f"{path}: the file says {said[0]:g} um per px in x and {said[1]:g} in y, which "
                "differ by more than 3 %. Expected square pixels. Resample the picture to one "
                "pixel size."
            )
        size = sum(said) / 2
        if given is not None and differ(size, given):
            raise PekaError(
                f"{path}: the file says {size:g} um per px, and um_per_px is {given:g}. They "
                "differ by more than 3 %. Find out which one is right. If it is the file's, leave "
                "um_per_px away. Otherwise correct the file, or save it without a pixel size."
            )
        return float(size if given is None else given)
    return float(math.nan if given is None else given)


def differ(a: float, b: float) -> bool:
    """Whether two pixel sizes differ by more than 3 % of the smaller one."""
    return max(a, b) > (1 + AGREE) * min(a, b)


def _check_plausible(what: str, size: float, advice: str) -> None:
    if not SMALLEST <= size <= LARGEST:
        raise PekaError(
            f"{what}. Expected {SMALLEST} to {LARGEST:g} um, as scanners make. {advice}."
        )


def damaged(path: Path, why: str) -> PekaError:
    """The error for a picture that begins well and cannot be read."""
    return PekaError(
        f"{path}: cannot be read as {what_is(path) or 'a slide'} ({why}). It is damaged, cut off, "
        "or stored in a way that this program does not read. Get this file again, or save it as a "
        f"tiled TIFF: {AS_TILED}"
    )


def _cut_off(path: Path) -> PekaError:
    return PekaError(
        f"{path}: {what_is(path)} whose end is missing; expected a whole file. The copy or "
        "download stopped early. Get this file again."
    )


def _not_a_slide(path: Path) -> PekaError:
    return PekaError(
        f"{path}: it is {what_is(path) or 'of an unknown kind'}; expected the picture of a slide "
        "(SVS, NDPI, MRXS, TIFF, JPEG or PNG). Correct the path, or export the slide as a TIFF."
    )
