"""An encoder of the user's own, named by its file and the function in it: `my_file.py:build`.

Nothing here imports torch, so that a profile with such a name is read as fast as any other.
"""

import contextlib
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

from ..common.errors import PekaError
from ..common.typed_values import absolute

FORM = "FILE.py:FUNCTION"


def is_own(name: str) -> bool:
    """Whether the name of an encoder is a file and a function, as in `my_file.py:build`."""
    return bool(re.fullmatch(r".*\.py:[^\W\d]\w*", str(name)))


def split_name(name: str) -> tuple[Path, str]:
    """`my_file.py:build` -> the absolute path of the file, and `build`.

    Raises:
        PekaError: the file does not exist or may not be read.
    """
    file, _, function = name.rpartition(":")
    path = absolute(file)
    if not path.is_file():
        raise PekaError(f"encoder {name!r}: there is no file {path}; expected {FORM}")
    if not os.access(path, os.R_OK):
        raise PekaError(f"encoder {name!r}: you have no permission to read {path}")
    return path, function


def placed(name: str, folder: Path) -> str:
    """The name with an absolute path, relative paths starting from `folder`; others unchanged."""
    if not is_own(name):
        return name
    file, _, function = name.rpartition(":")
    return f"{absolute(folder / Path(file).expanduser())}:{function}"


def short(name: str) -> str:
    """The name without the folder of its file, as units and tables have it; others unchanged."""
    return re.split(r"[/\\]", name)[-1] if is_own(name) else name


def load_function(name: str) -> Callable:
    """The function that a name says, from its file, which is run once more at each call.

    The file stands alone: it may import installed packages, but no files beside it, whose edits
    would not be noticed.

    Raises:
        PekaError: the file cannot be run, or has no such function.
    """
    path, function = split_name(name)
    module = types.ModuleType(f"own_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where Python looks for the module of a class
    with told(f"{path}"):
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    if not callable(build := getattr(module, function, None)):
        raise PekaError(f"{path} has no function {function!r}; expected `def {function}():`")
    return build


@contextlib.contextmanager
def told(who: str) -> Iterator[None]:
    """Turn whatever the user's code raises into a PekaError that names it."""
    try:
        yield
    except PekaError:
        raise
    except Exception as error:
        raise PekaError(f"{who} raised {type(error).__name__}: {error}") from error
