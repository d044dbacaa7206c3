"""Files that are whole or absent, digests, and the one error type that users see."""

import contextlib
import errno
import functools
import hashlib
import json
import multiprocessing
import math
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

# errors of the system that mean: this place takes no (more) files
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENOTDIR)


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
        with told_when_full(path):
            write(temporary)
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, content) -> Path:
    """Write what JSON can hold, whole or not at all; NaN and infinity, which JSON does not know, as null."""
    text = json.dumps(_with_null(content), indent=1, allow_nan=False)
    return write_whole(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))


def _with_null(content):
    """The same lists and dicts with None for every number that is not finite."""
    if isinstance(content, dict):
        return {key: _with_null(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_with_null(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def link_whole(original: str | Path, path: str | Path, symbolic: bool = False) -> Path:
    """Let `path` show the original: a symbolic link where asked for, else a hard link, else a copy; whole or not at all.

    What is at `path` already stays, but for a link whose original is gone.
    """
    ways = (os.symlink, os.link, shutil.copyfile) if symbolic else (os.link, shutil.copyfile)

    def make(temporary: Path) -> None:
        for way in ways[:-1]:
            try:
                return way(Path(original).resolve(), temporary)
            except OSError:  # this system or disk has no such links
                continue
        ways[-1](original, temporary)

    return Path(path) if Path(path).exists() else write_whole(path, make)


@contextlib.contextmanager
def told_when_full(path: Path):
    """Turn whatever a library says when a disk is full or takes no files into one message; other errors pass."""
    try:
        yield
    except Exception as error:
        full = free_bytes(path) < 2**20  # HDF5 and torch have words of their own for it
        refused = getattr(error, "errno", None) in CANNOT_WRITE and _is_near(_file_of(error), path)
        if isinstance(error, PekaError) or not (full or refused):
            raise
        if not full and _is_closed(_file_of(error)):
            raise not_readable(_file_of(error)) from error
        raise cannot_write(path, "the disk is full" if full else error.strerror) from error


def cannot_write(path: str | Path, why: str) -> PekaError:
    """The one message about a place that takes no (more) files."""
    return PekaError(
        f"{path} cannot be written ({why}): nothing half-written is left and what is finished stays. Make room or choose "
        "another disk, then run the same command again."
    )


def not_readable(path: str | Path) -> PekaError:
    """The one message about a file that is there and may not be read."""
    return PekaError(f"{path} may not be read (permission denied). Ask its owner for the right to read it, or use a copy of your own.")


def no_access(error: OSError) -> PekaError:
    """What an error in `CANNOT_WRITE` means: a file that is there and may not be read, or a place that takes no files."""
    file = _file_of(error)
    return not_readable(file) if _is_closed(file) else cannot_write(file or "the disk", error.strerror)


def _file_of(error: BaseException) -> str | None:
    """The file that an error speaks of; HDF5 names it in its text alone."""
    named = re.search(r"name = '(.+?)'", str(error))
    return getattr(error, "filename", None) or (named and named.group(1))


def _is_closed(file: str | None) -> bool:
    """Whether a file, or folder, is there and may not be read."""
    return file is not None and os.path.exists(file) and not os.access(file, os.R_OK)


@contextlib.contextmanager
def alone(path: Path):
    """Hold the lock that belongs to a path (`.locks/` beside it); say so where another process has it, and wait.

    The system frees the lock of a process that ends, however it ends (filelock).

    Raises:
        PekaError: in a worker that is still starting: it runs its parent's script again, and would wait for its parent.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise PekaError('a script that draws a cohort needs its lines under `if __name__ == "__main__":` (it is run again by each worker)')
    locks = Path(path).parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / Path(path).name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{Path(path).name} is being made by another process: waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_near(filename, path: Path) -> bool:
    """Whether an error speaks of a file in the folder that is being written, not of one that could not be read."""
    return filename is None or path.parent in [Path(str(filename)), *Path(str(filename)).parents] or Path(str(filename)) in path.parents


def free_bytes(path: Path) -> int:
    """Free space of the disk that holds a path, whether that is there yet or not."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_once(path: str | Path) -> str:
    """`sha256`, taken once in a process as long as the file's size and time of change stay."""
    state = Path(path).stat()
    return _sha256_of(Path(path).resolve(), state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256_of(path: Path, size: int, changed: int) -> str:
    return sha256(path)
