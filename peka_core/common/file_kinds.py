"""The kind of a file by its first bytes; its name does not matter."""

from pathlib import Path

EMPTY, PAGE = "an empty file", "an HTML page, such as a login or error page"
POINTER = "a git-lfs pointer (`git lfs pull` in its repository brings the file itself)"
PLACEHOLDERS = (EMPTY, POINTER, PAGE)  # never the file that was wanted
SAFETENSORS, HDF5 = "safetensors", "an HDF5 file"
ZIP, PICKLE = "a zip archive, as PyTorch writes", "a pickle, as PyTorch wrote until 2020"
BEGINNINGS = {
    b"version https://git-lfs": POINTER, b"PK\x03\x04": ZIP, b"\x89HDF\r\n\x1a\n": HDF5,
    b"\x80\x02": PICKLE, b"\x80\x03": PICKLE, b"\x80\x04": PICKLE, b"\x80\x05": PICKLE,
    b"\xff\xd8\xff": "a JPEG image", b"\x89PNG": "a PNG image",
    b"II*\0": "a TIFF image", b"MM\0*": "a TIFF image",
    b"II+\0": "a TIFF image", b"MM\0+": "a TIFF image",
    b"\x1f\x8b": "a gzip archive", b"%PDF": "a PDF",
}  # fmt: skip
HEADER_LIMIT = 100_000_000  # bytes of the JSON header of a safetensors file


def what_is(path: str | Path) -> str:
    """The kind of a file in words that fit after "it is"; empty if it is unknown."""
    with open(path, "rb") as handle:
        first = handle.read(512)
    if not first:
        return EMPTY
    if found := next((what for begin, what in BEGINNINGS.items() if first.startswith(begin)), ""):
        return found
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return PAGE
    # safetensors: the length of the header, then the header in JSON
    if first[8:9] == b"{" and 2 <= int.from_bytes(first[:8], "little") <= HEADER_LIMIT:
        return SAFETENSORS
    return "a text" if first.isascii() and b"\0" not in first else ""
