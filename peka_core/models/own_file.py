"""An encoder of the user's own, named by its file and the function in it: `my_file.py:build`.

torch is imported only when an encoder is tried, so a profile with such a name is read quickly.
"""

import contextlib
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import PekaError
from ..common.files import sha256
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
    """The function that a name says. Each call runs the file again.

    The file may import installed packages only. Edits of other files would not be noticed.

    Raises:
        PekaError: the file cannot be run, or has no such function.
    """
    path, function = split_name(name)
    module = types.ModuleType(f"own_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where Python looks for the module of a class
    with explain_errors(str(path)):
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    if not callable(build := getattr(module, function, None)):
        raise PekaError(f"{path} has no function {function!r}; expected `def {function}():`")
    return build


def build(name: str, device: str) -> tuple[Any, str]:
    """What the function of a name returns, and the sha256 of its file."""
    function, code = load_function(name), sha256(split_name(name)[0])
    options = {"device": device} if "device" in inspect.signature(function).parameters else {}
    with explain_errors(name):
        return function(**options), code


def is_pair(built) -> bool:
    """Whether this is a pair (model, preprocess)."""
    from torch import nn

    is_two = isinstance(built, tuple) and len(built) == 2
    return is_two and isinstance(built[0], nn.Module) and callable(built[1])


def try_on_two_tiles(encoder: Any, name: str) -> None:
    """Give an encoder of the user's two tiles, and set its `size` and `dim` if they are 0.

    Raises:
        PekaError: its code fails, or its features of two different tiles are not two different
            rows of `dim` finite numbers.
    """
    import torch

    tiles = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)
    with explain_errors(f"{name}, given two tiles,"), torch.no_grad():
        x = encoder.transform(tiles)
        if not encoder.size:
            encoder.size = encoder.resize = x.shape[-1]
        _check_floats(f"{name}: its transform", x, (2, 3, encoder.size, encoder.size))
        features = encoder.encode(x)
        encoder.dim = encoder.dim or features.shape[-1]
        _check_floats(f"{name}: its model", features, (2, encoder.dim))
    if torch.equal(features[0], features[1]):
        raise PekaError(f"{name}: its model gives two different tiles the same features")


def _check_floats(maker: str, values: Any, shape: tuple[int, ...]) -> None:
    """Refuse anything but finite floats of this shape."""
    import torch

    if not isinstance(values, torch.Tensor):
        raise PekaError(f"{maker} must give a tensor, not {type(values)}")
    if not values.is_floating_point() or values.shape != shape:
        found = f"{values.dtype} {tuple(values.shape)}"
        raise PekaError(f"{maker} must give floats {shape} for two tiles, not {found}")
    if not values.isfinite().all():
        raise PekaError(f"{maker} gives values that are not finite")


@contextlib.contextmanager
def explain_errors(source: str) -> Iterator[None]:
    """Turn whatever the user's code raises into a PekaError that names its source."""
    try:
        yield
    except PekaError:
        raise
    except Exception as error:
        raise PekaError(f"{source} raised {type(error).__name__}: {error}") from error
