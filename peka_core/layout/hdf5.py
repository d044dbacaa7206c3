"""Read HDF5 files; an error names the file, the data set, the cause and the next step."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from ..common.errors import PekaError
from ..common.file_kinds import PLACEHOLDERS, what_is
from ..common.files import not_readable


def open_h5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading; the caller closes it, as with `with`.

    Raises:
        PekaError: it is missing, may not be read, is locked by another process, or is no HDF5 file.
    """
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401  registers more compression filters where it is installed
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise _opening_error(Path(path), error) from error


def _opening_error(path: Path, error: OSError) -> PekaError:
    if error.errno == errno.ENOENT:
        return PekaError(f"{path}: missing. The cohort lists it; fetch or build the cohort again.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return not_readable(path)
    if error.errno == errno.EAGAIN or "unable to lock file" in str(error):
        return PekaError(
            f"{path}: another process holds a lock on it. Wait until it has finished writing. On a "
            "network disk without locks (NFS) set HDF5_USE_FILE_LOCKING=FALSE."
        )
    if (kind := what_is(path)) in PLACEHOLDERS:
        return PekaError(
            f"{path}: it is {kind}; expected an HDF5 file. Copy or fetch the file itself from its "
            "source."
        )
    return PekaError(
        f"{path}: not a readable HDF5 file ({_first_line(error)}). It is cut short, damaged, or of "
        "another kind. Copy or fetch it again from its source, or build it again."
    )


@contextlib.contextmanager
def reading(file: h5py.File, name: str) -> Iterator[h5py.Dataset | h5py.Group]:
    """Give the item `name` of an open file, and turn each error of reading it into a PekaError.

    Raises:
        PekaError: reading fails; the message names file and data set, and a missing filter.
    """
    try:
        yield file[name]
    except (PekaError, MemoryError):
        raise
    except Exception as error:  # HDF5 and anndata fail in many ways
        why = (
            f"cannot be read ({_first_line(error)}). It is damaged, or has a form that the "
            "installed anndata and h5py do not know. Copy or fetch the file again from its source, "
            "or write it again with this anndata."
        )
        if missing := _missing_filters(file, name):
            why = (
                f"is stored with the HDF5 filter {', '.join(missing)}, which is not installed "
                "here: pip install hdf5plugin, or write the file again with gzip."
            )
        raise PekaError(f"{file.filename}: `{name}` {why}") from error


def _missing_filters(file: h5py.File, name: str) -> list[str]:
    """Number and name of the filters that a data set, or one of a group, needs and HDF5 lacks."""
    missing = set()

    def look(_, item) -> None:
        if isinstance(item, h5py.Dataset):
            stored = item.id.get_create_plist()
            for code, _, _, label in map(stored.get_filter, range(stored.get_nfilters())):
                if not h5py.h5z.filter_avail(code):
                    missing.add(f"{code} {label.decode(errors='replace')}".strip())

    # a file may be so damaged that its filters cannot be read; then it is reported as damaged
    with contextlib.suppress(KeyError, OSError, RuntimeError):
        item = file[name]
        item.visititems(look) if isinstance(item, h5py.Group) else look(name, item)
    return sorted(missing)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def positive(item: h5py.Dataset, name: str) -> float:
    """A numeric attribute above 0, stored as one number or as an array of one (R, MATLAB).

    Raises:
        PekaError: it is text, 0, negative, NaN, infinite or several numbers.
    """
    stored = np.asarray(item.attrs[name]).reshape(-1)
    value = float(stored[0]) if stored.size == 1 and stored.dtype.kind in "iuf" else np.nan
    if not (np.isfinite(value) and value > 0):
        raise PekaError(
            f"{item.file.filename}: attribute {name} of `{item.name.strip('/')}` is "
            f"{item.attrs[name]!r}; expected one number above 0. Correct or remove the attribute."
        )
    return value
