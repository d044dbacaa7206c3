"""Files that are whole or absent, digests, and the one error type that users see."""

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path


class PekaError(Exception):
    """Bad input or a missing step: says which file, what was expected and what to do next."""


def write_whole(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary neighbour of `path`, then rename it into place.

    A reader sees the old file, the new file or none, never half of one. The temporary name keeps the
    suffix of `path`, since many writers choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
