"""Files that are written whole or not at all, locks, and digests."""

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

# errors of the system that mean that a folder or disk takes no more files
CANNOT_WRITE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENOTDIR
)  # fmt: skip
TEMPORARY = ".peka-tmp-"  # the start of our temporary names; other hidden files stay


def one_name(name, what: str) -> str:
    """Check a name, from a user or a file, that becomes the name of a file or folder.

    Args:
        what: where the name comes from, for the message: `samples.csv: sample_id`.

    Raises:
        PekaError: the name is empty, hidden, too long, or more than one part of a path.
    """
    name = str(name)
    plain = name.strip() and not name.startswith(".") and len(name.encode()) <= 200
    if not plain or re.search(r"[/\\:\x00-\x1f]", name):
        raise PekaError(
            f"{what} {name!r} cannot be the name of a file. Expected a name without / and \\ that "
            "does not begin with a dot. Rename it."
        )
    return name


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary neighbour of `path`, then rename it into place.

    A reader sees the old file, the new file or none, but never half of one. The temporary name
    keeps the suffix of `path`, because many writers choose their format by it.
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
        with contextlib.suppress(OSError):  # its folder may be missing or closed
            temporary.unlink()
    return path


def write_json(path: str | Path, content) -> Path:
    """Write JSON, whole or not at all. JSON has no NaN and no infinity: they become null."""

    def with_null(content):
        if isinstance(content, dict):
            return {key: with_null(value) for key, value in content.items()}
        if isinstance(content, (list, tuple)):
            return [with_null(value) for value in content]
        return None if isinstance(content, float) and not math.isfinite(content) else content

    text = json.dumps(with_null(content), indent=1, allow_nan=False)
    return write_whole(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))


def link_whole(original: str | Path, path: str | Path, symbolic: bool = False) -> Path:
    """Make `path` a hard link to the original, or a copy of it, whole or not at all.

    Args:
        symbolic: make a symbolic link instead. A link whose original is gone is replaced.
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
    """Turn each error about a full disk or a closed folder into a PekaError; other errors pass."""
    try:
        yield
    except Exception as error:
        full = free_bytes(path) < 2**20  # HDF5 and torch have errors of their own for a full disk
        refused = getattr(error, "errno", None) in CANNOT_WRITE and _is_near(_file_of(error), path)
        if isinstance(error, PekaError) or not (full or refused):
            raise
        file = _file_of(error)
        if not full and file and _is_closed(file):
            raise not_readable(file) from error
        why = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise cannot_write(path, why) from error


def cannot_write(path: str | Path, why: str) -> PekaError:
    """The error for a file that cannot be written."""
    return PekaError(
        f"{path} cannot be written ({why}). Finished files stay, and no file is half written. Free "
        "some space or choose another disk. Then run the same command again."
    )


def not_readable(path: str | Path) -> PekaError:
    """The error for a file that exists and may not be read."""
    return PekaError(
        f"{path} may not be read (permission denied). Ask its owner for the right to read it, or "
        "use a copy of your own."
    )


def no_access(error: OSError) -> PekaError:
    """`not_readable` or `cannot_write` for an error of the system in `CANNOT_WRITE`."""
    file = _file_of(error)
    if file and _is_closed(file):
        return not_readable(file)
    return cannot_write(file or "the disk", error.strerror or str(error))


def _file_of(error: BaseException) -> str | None:
    """The file of an error; HDF5 names it only in the text of the error."""
    named = re.search(r"name = '(.+?)'", str(error))
    return getattr(error, "filename", None) or (named and named.group(1))


def _is_closed(file: str) -> bool:
    """Whether a file or folder exists and may not be read."""
    return os.path.exists(file) and not os.access(file, os.R_OK)


@contextlib.contextmanager
def alone(path: Path):
    """Hold the lock of a path, a file in `.locks/` beside it; wait if another process holds it.

    The system releases the lock of a process that ends or is killed.

    Raises:
        PekaError: as `not_in_a_starting_worker`.
    """
    not_in_a_starting_worker()
    locks = Path(path).parent / ".locks"
    lock = FileLock(locks / Path(path).name)
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        waiting = f"another process is making {Path(path).name}: this one waits for it"
        print(waiting, file=sys.stderr, flush=True)
        lock.acquire()
    except OSError as error:
        if error.errno in CANNOT_WRITE:
            raise cannot_write(locks, error.strerror or str(error)) from error
        raise
    try:
        yield
    finally:
        lock.release()


def not_in_a_starting_worker() -> None:
    """Refuse to work in a worker process that is still starting and runs its parent's script.

    Raises:
        PekaError: this process is such a worker.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise PekaError(
            'put the lines of your script under `if __name__ == "__main__":`, because each worker '
            "process that draws the cohort runs the script again"
        )


def _is_near(filename: str | None, path: Path) -> bool:
    """Whether an error is about the folder that is written, and not about a file that is read."""
    if filename is None:
        return True
    file = Path(str(filename))
    return path.parent in (file, *file.parents) or file in path.parents


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of a path, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_rows(*masks) -> str:
    """Twelve hex digits that name some spots: the start of the sha256 of their masks (n,)."""
    return hashlib.sha256(b"".join(mask.astype(bool).tobytes() for mask in masks)).hexdigest()[:12]


def sha256_once(path: str | Path) -> str:
    """`sha256`, which a process computes again only if the file's size or time has changed."""
    state = Path(path).stat()
    return _sha256_of(Path(path).resolve(), state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256_of(path: Path, size: int, changed: int) -> str:
    return sha256(path)
