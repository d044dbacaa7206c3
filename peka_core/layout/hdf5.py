"""HDF5 files of others: opened and read so that each failure names the file, the data set, the true cause and a next step."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from ..errors import PekaError
from ..files import PLACEHOLDERS, not_readable, what_is


@contextlib.contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        PekaError: it is missing, may not be read, is in use by another process, or is no HDF5 file.
    """
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401  registers its compression filters, where it is installed
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _not_opened(Path(path), error) from error
    with file:
        yield file


def _not_opened(path: Path, error: OSError) -> PekaError:
    if error.errno == errno.ENOENT:
        return PekaError(f"{path}: missing. The cohort lists it; fetch or build the cohort again.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return not_readable(path)
    if error.errno == errno.EAGAIN or "unable to lock file" in str(error):
        return PekaError(
            f"{path}: in use by another process, which holds its lock. Wait until it has finished writing; "
            "on a network disk that knows no locks (NFS) set HDF5_USE_FILE_LOCKING=FALSE."
        )
    if (found := what_is(path)) in PLACEHOLDERS:
        return PekaError(
            f"{path}: it is {found}; expected an HDF5 file. Copy or fetch the file itself from where it comes from."
        )
    return PekaError(
        f"{path}: not a readable HDF5 file ({_first_line(error)}): it is cut short, damaged, or of another kind. "
        "Copy or fetch it again from where it comes from, or build it again."
    )


@contextlib.contextmanager
def reading(file: h5py.File, name: str) -> Iterator[h5py.Dataset | h5py.Group]:
    """Hold what `name` is in an open file while it is read, for one call of a library: HDF5 and anndata fail in many ways.

    Raises:
        PekaError: reading fails; it names file and data set, and a compression filter that is missing.
    """
    try:
        yield file[name]
    except (PekaError, MemoryError):
        raise
    except Exception as error:
        raise PekaError(f"{file.filename}: `{name}` {_why_not_read(file, name, error)}") from error


def _why_not_read(file: h5py.File, name: str, error: Exception) -> str:
    if missing := _missing_filters(file, name):
        return (
            f"is stored with the HDF5 filter {', '.join(missing)}, which is not installed here: "
            "pip install hdf5plugin, or write the file again with gzip."
        )
    return (
        f"cannot be read ({_first_line(error)}): it is damaged, or of a form that the anndata and h5py installed here do not "
        "know. Copy or fetch the file again from where it comes from, or write it again with this anndata."
    )


def _missing_filters(file: h5py.File, name: str) -> list[str]:
    """Number and, where it is stored, name of the filters that a data set, or one of a group, needs and HDF5 lacks."""
    found = set()

    def look(_, item) -> None:
        if isinstance(item, h5py.Dataset):
            stored = item.id.get_create_plist()
            for code, _, _, label in map(stored.get_filter, range(stored.get_nfilters())):
                if not h5py.h5z.filter_avail(code):
                    found.add(f"{code} {label.decode(errors='replace')}".strip())

    with contextlib.suppress(
        KeyError, OSError, RuntimeError
    ):  # damaged beyond a look at its filters: said as damaged
        item = file[name]
        item.visititems(look) if isinstance(item, h5py.Group) else look(name, item)
    return sorted(found)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def positive(item: h5py.Dataset, name: str) -> float:
    """A numeric attribute above 0, stored as one number or, as R and MATLAB write, as an array of one.

    Raises:
        PekaError: it is text, 0, negative, NaN, infinite or several numbers.
    """
    stored = np.asarray(item.attrs[name]).reshape(-1)
    value = float(stored[0]) if stored.size == 1 and stored.dtype.kind in "iuf" else np.nan
    if not (np.isfinite(value) and value > 0):
        raise PekaError(
            f"{item.file.filename}: attribute {name} of `{item.name.strip('/')}` is {item.attrs[name]!r}; expected one number "
            f"above 0. Write the right number, or remove the attribute."
        )
    return value
