"""Tiles compared by their pixels: digests, perceptual hashes, a section beside its copy."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from ..common.errors import PekaError
from ..common.files import sha256, write_json
from ..common.folders import cache_folder
from .hdf5 import open_h5
from .patches import in_chunks, read_rows
from .sections import Section, tile_barcodes

RECORD = "tile_digests.json"  # lies in the cache, because a cohort's directory may belong to others
SIDE = 8  # of the grey picture that `difference_hash` looks at


def difference_hash(tiles) -> np.ndarray:
    """Perceptual hash of each tile, `(n,)` uint64.

    A tile becomes a grey picture of 9 x 8 pixels. Each of the 64 bits says whether a pixel is
    brighter than its right neighbour. Copies have equal hashes. Copies that were compressed again
    or slightly recoloured differ in a few bits. Blank tiles look alike.
    """
    parts = [np.zeros(0, np.uint64)]
    for images in in_chunks(tiles):
        grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
        small = [cv2.resize(g, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA) for g in grey]
        small = np.stack(small)  # (b, 8, 9)
        bits = (small[:, :, :-1] > small[:, :, 1:]).reshape(len(small), -1)  # (b, 64)
        parts.append(np.packbits(bits, axis=1).view(np.uint64).ravel())
    return np.concatenate(parts)


def tile_digests(cohort) -> pd.Series:
    """sha256 of each section's barcodes and tiles, index sample, whatever the order of the rows.

    Two sections with the same barcodes and the same pixels have the same digest.

    Raises:
        PekaError: a section has no tiles.
    """
    digests = {}
    for section in cohort.sections:
        names = section.barcodes.astype(str)
        order = np.argsort(names)
        digests[section.sample] = _digest(_tiles(section, order), "\n".join(names[order]).encode())
    return pd.Series(digests, dtype=object)


def _tiles(section: Section, spots: np.ndarray) -> Iterator[np.ndarray]:
    """Tiles of a section's spots in the order of `spots`, one chunk at a time."""
    if section.patches is None:
        raise PekaError(
            f"{section.sample}: no tiles here; expected patches/{section.sample}.h5. "
            "Build the cohort with its tiles."
        )
    return (read_rows(section.patches, rows) for rows in in_chunks(section.tile_rows[spots]))


def compare_tiles(cohort, sample: str, original: str, at_most: int | None = None) -> dict:
    """Compare the tiles of a section with those of the section that it is said to copy, by barcode.

    Args:
        at_most: number of tiles to compare, spread evenly over the shared barcodes; None takes all.

    Returns:
        of: the original; shared_barcodes: number of barcodes that both have; tiles_compared;
        identical: how many of these are the same, byte for byte; mean_difference: over the
        compared tiles, in grey levels (0 to 255), None where the sections share no barcode.
    """
    pair = [next(s for s in cohort.sections if s.sample == name) for name in (sample, original)]
    shared, *spots = np.intersect1d(*(s.barcodes.astype(str) for s in pair), return_indices=True)
    count = len(shared) if at_most is None else min(at_most, len(shared))
    pick = np.unique(np.linspace(0, len(shared) - 1, count).astype(int))
    chunks = zip(*(_tiles(section, rows[pick]) for section, rows in zip(pair, spots)))
    differences = [np.abs(a.astype(np.int16) - b).mean(axis=(1, 2, 3)) for a, b in chunks]
    grey_levels = np.concatenate([np.zeros(0), *differences])  # (m,)
    return {
        "of": original,
        "shared_barcodes": len(shared),
        "tiles_compared": len(pick),
        "identical": int((grey_levels == 0).sum()),
        "mean_difference": round(float(grey_levels.mean()), 3) if len(pick) else None,
    }


def digest_by_barcode(patches: Path) -> str:
    """sha256 of the tiles' bytes in the order of their barcodes, however the file stores them."""
    return _recorded(patches, "by barcode", lambda: _file_digest(patches, np.argsort))


def has_digest(patches: Path, claimed: str) -> bool:
    """Whether a digest in samples.csv belongs to this patches file.

    `write_sample` gives the digest of the tiles in their stored order. For HEST, samples.csv has
    the digest of the whole file.
    """
    make = {
        "as stored": lambda: _file_digest(patches, lambda names: np.arange(len(names))),
        "file": lambda: sha256(patches),
    }
    # HEST's files are links, so the file's own digest is tried first there
    kinds = ("file", "as stored") if patches.is_symlink() else ("as stored", "file")
    return any(claimed == _recorded(patches, kind, make[kind]) for kind in kinds)


def _file_digest(patches: Path, order: Callable[[np.ndarray], np.ndarray]) -> str:
    with open_h5(patches) as file:
        rows = order(tile_barcodes(file, patches).to_numpy(str))
    return _digest(read_rows(patches, chunk) for chunk in in_chunks(rows))


def _digest(chunks: Iterator[np.ndarray], start: bytes = b"") -> str:
    total = hashlib.sha256(start)
    for tiles in chunks:
        total.update(tiles)
    return total.hexdigest()


def _recorded(patches: Path, kind: str, make: Callable[[], str]) -> str:
    """A digest of a file; it is made again only if the file's path, size or time changed."""
    state, record = patches.stat(), cache_folder() / RECORD
    key, now = f"{patches.resolve()} {kind}", [state.st_size, state.st_mtime_ns]
    if (entry := _read_record(record).get(key, {})).get("state") == now:
        return entry["sha256"]
    digest = make()
    # the record only saves time, so a cache that cannot be written is no error
    with contextlib.suppress(OSError, PekaError):
        write_json(record, _read_record(record) | {key: {"state": now, "sha256": digest}})
    return digest


def _read_record(path: Path) -> dict:
    """The record; empty if there is none or if it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if all(isinstance(entry, dict) for entry in record.values()) else {}
    except (OSError, ValueError, AttributeError):
        return {}
