"""Files that are whole or absent, digests, and the one error type that users see."""

import contextlib
import errno
import functools
import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import PekaError

# errors of the system that mean: this place takes no (more) files
CANNOT_WRITE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.ENOTDIR,
)

TEMPORARY = ".peka-tmp-"  # how names of our temporary files and folders begin: what else is hidden is not ours to remove


def one_name(name, what: str) -> str:
    """A name from outside that becomes the name of a file or folder, as text.

    Args:
        what: where it comes from, for the message: `samples.csv: sample_id`.

    Raises:
        PekaError: it is empty, hidden, too long, or more than one part of a path.
    """
    name = str(name)
    if (
        not name.strip()
        or name.startswith(".")
        or re.search(r"[/\\:\x00-\x1f]", name)
        or len(name.encode()) > 200
    ):
        raise PekaError(
            f"{what} {name!r} becomes the name of a file; expected one name without / and \\, and no dot in front. Rename it."
        )
    return name


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary neighbour of `path`, then rename it into place.

    A reader sees the old file, the new file or none, never half of one. The temporary name keeps the
    suffix of `path`, since many writers choose their format by it.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with told_when_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            with open(temporary, "rb+") as handle:  # Windows flushes only what is open for writing
                os.fsync(handle.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # its folder may not be there, or may not be entered
            temporary.unlink()
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
    return PekaError(
        f"{path} may not be read (permission denied). Ask its owner for the right to read it, or use a copy of your own."
    )


def no_access(error: OSError) -> PekaError:
    """What an error in `CANNOT_WRITE` means: a file that is there and may not be read, or a place that takes no files."""
    file = _file_of(error)
    return (
        not_readable(file) if _is_closed(file) else cannot_write(file or "the disk", error.strerror)
    )


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
    not_in_a_starting_worker()
    locks = Path(path).parent / ".locks"
    lock = FileLock(locks / Path(path).name)
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        print(
            f"{Path(path).name} is being made by another process: waiting for it",
            file=sys.stderr,
            flush=True,
        )
        lock.acquire()
    except OSError as error:
        if error.errno in CANNOT_WRITE:
            raise cannot_write(locks, error.strerror) from error
        raise
    try:
        yield
    finally:
        lock.release()


def not_in_a_starting_worker() -> None:
    """Refuse to work in a process that is still starting.

    Raises:
        PekaError: this is such a worker: it runs its parent's script again, and would start workers of its own or wait for its parent.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise PekaError(
            'a script that draws a cohort needs its lines under `if __name__ == "__main__":` (it is run again by each worker)'
        )


def _is_near(filename, path: Path) -> bool:
    """Whether an error speaks of a file in the folder that is being written, not of one that could not be read."""
    return (
        filename is None
        or path.parent in [Path(str(filename)), *Path(str(filename)).parents]
        or Path(str(filename)) in path.parents
    )


def free_bytes(path: Path) -> int:
    """Free space of the disk that holds a path, whether that is there yet or not."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_rows(*masks) -> str:
    """Twelve hex digits that name some spots: of the sha256 over boolean masks (n,)."""
    return hashlib.sha256(b"".join(mask.astype(bool).tobytes() for mask in masks)).hexdigest()[:12]


def sha256_once(path: str | Path) -> str:
    """`sha256`, taken once in a process as long as the file's size and time of change stay."""
    state = Path(path).stat()
    return _sha256_of(Path(path).resolve(), state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256_of(path: Path, size: int, changed: int) -> str:
    return sha256(path)


# what a file can be, by its first bytes; the first three are never the file that was meant
EMPTY, PAGE = "an empty file", "an HTML page, such as a login or error page"
POINTER = "a git-lfs pointer (`git lfs pull` in its repository brings the file itself)"
PLACEHOLDERS = (EMPTY, POINTER, PAGE)
SAFETENSORS, HDF5 = "safetensors", "an HDF5 file"
ZIP, PICKLE = "a zip archive, as PyTorch writes", "a pickle, as PyTorch wrote until 2020"
BEGINNINGS = {
    b"version https://git-lfs": POINTER, b"PK\x03\x04": ZIP, b"\x89HDF\r\n\x1a\n": HDF5, b"\x80\x02": PICKLE, b"\x80\x03": PICKLE,
    b"\x80\x04": PICKLE, b"\x80\x05": PICKLE, b"\xff\xd8\xff": "a JPEG image", b"\x89PNG": "a PNG image", b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image", b"II+\0": "a TIFF image", b"MM\0+": "a TIFF image", b"\x1f\x8b": "a gzip archive", b"%PDF": "a PDF",
}  # fmt: skip


def what_is(path: str | Path) -> str:
    """What a file is by its first bytes, whatever its name: in words that fit after "it is"; "" where they tell nothing."""
    with open(path, "rb") as handle:
        first = handle.read(512)
    if not first:
        return EMPTY
    if found := next((what for begin, what in BEGINNINGS.items() if first.startswith(begin)), ""):
        return found
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return PAGE
    if (
        first[8:9] == b"{" and 2 <= int.from_bytes(first[:8], "little") <= 100_000_000
    ):  # the header's length, then JSON
        return SAFETENSORS
    return "a text" if first.isascii() and b"\0" not in first else ""
