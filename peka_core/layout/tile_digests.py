"""What the pixels of patches files are, as sha256: each file is read for it once, and the record says so the next time."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import PekaError
from ..files import sha256, write_json
from .hdf5 import open_h5
from .patches import CHUNK, read_rows
from .sections import tile_barcodes

RECORD = "tile_digests.json"  # in the cache: a cohort's directory may belong to others


def by_barcode(patches: Path) -> str:
    """sha256 over the tiles' bytes in the order of their barcodes, however the file stores them."""
    return _once(patches, "by barcode", lambda: _hash(patches, np.argsort(_barcodes(patches))))


def is_digest(patches: Path, claimed: str) -> bool:
    """Whether a digest of samples.csv is that of the tiles as stored, as from `write_sample`, or of the whole file, as for HEST."""
    made = {
        "as stored": lambda: _hash(patches, np.arange(len(_barcodes(patches)))),
        "file": lambda: sha256(patches),
    }
    kinds = (
        ("file", "as stored") if patches.is_symlink() else ("as stored", "file")
    )  # HEST's files are linked
    return any(claimed == _once(patches, kind, made[kind]) for kind in kinds)


def _barcodes(patches: Path) -> np.ndarray:
    with open_h5(patches) as file:
        return tile_barcodes(file, patches).to_numpy(str)


def _hash(patches: Path, rows: np.ndarray) -> str:
    total = hashlib.sha256()
    for start in range(0, len(rows), CHUNK):
        total.update(read_rows(patches, rows[start : start + CHUNK]))
    return total.hexdigest()


def _once(patches: Path, kind: str, make: Callable[[], str]) -> str:
    """A digest of a file, made once as long as its place, size and time of change stay."""
    from ..downloads.manifest import cache_folder  # brings what downloads need

    state, record = patches.stat(), cache_folder() / RECORD
    key, now = f"{patches.resolve()} {kind}", [state.st_size, state.st_mtime_ns]
    if (known := _read(record).get(key, {})).get("state") == now:
        return known["sha256"]
    digest = make()
    with contextlib.suppress(
        OSError, PekaError
    ):  # a cache that takes no files: the record only saves time
        write_json(record, _read(record) | {key: {"state": now, "sha256": digest}})
    return digest


def _read(record: Path) -> dict:
    """What is recorded; nothing where there is no record, or a damaged one."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return (
        known
        if isinstance(known, dict) and all(isinstance(entry, dict) for entry in known.values())
        else {}
    )
