"""Tensors from a file of weights, by what its first bytes are and without running any code that it may hold."""

import os
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..errors import PekaError
from ..files import PICKLE, SAFETENSORS, ZIP, what_is


def load_safely(path: Path, mmap: bool = False):
    """What a file of weights holds: tensors by name from safetensors, else whatever PyTorch's safe loader takes.

    Args:
        path: the file; its suffix plays no part.
        mmap: read tensors only when they are used, where the file is a zip archive.

    Raises:
        PekaError: it is no file of weights, is damaged, or holds more than tensors, whose loading could run code.
    """
    kind = what_is(path)
    try:
        if kind == SAFETENSORS:
            return load_file(path)
        if kind == ZIP and mmap and Path(path).suffix != ".safetensors":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if kind in (ZIP, PICKLE):
            with open(path, "rb") as handle:  # of a path torch would look at the suffix first
                return torch.load(handle, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and torch each raise their own
        raise PekaError(_why(path, kind, error)) from error
    found = f"it is {kind}" if kind else "its first bytes are none of these"
    raise PekaError(
        f"{path} is not a file of weights that loads safely: expected safetensors, or tensors that torch.save wrote, "
        f"but {found}. Get the file again and compare its size with that of the original."
    )


def _why(path: Path, kind: str, error: Exception) -> str:
    """What is wrong with a file that begins as one of weights; torch's own advice, to load it unsafely, is not passed on."""
    begin = f"{path} is not a file of weights that loads safely: it is {kind}, "
    if "TorchScript" in str(error):
        return (
            begin
            + "but a program in TorchScript. Take its state_dict, saved by torch.save or as safetensors."
        )
    if (
        unsafe := re.search(r"(?:GLOBAL|class|function)\s+'?([\w.]+)", str(error))
        if "Weights only" in str(error)
        else None
    ):
        return begin + (
            f"but holds more than tensors ({unsafe[1]}), and loading that could run code. Where you trust its origin, open it "
            "there and save its state_dict alone, by torch.save or as safetensors."
        )
    return begin + (
        f"but damaged or cut off ({type(error).__name__}). Get the file again and compare its size with that of the original."
    )


def given_weights(name: str, path: str | Path) -> Path:
    """The user's file for an encoder; PekaError where it is not there or may not be read."""
    if not Path(path).is_file():
        raise PekaError(
            f"no weights for encoder {name!r} at {path}: give the file as --weights {name}=PATH"
        )
    if not os.access(path, os.R_OK):
        raise PekaError(
            f"{path}: weights for encoder {name!r} may not be read: ask their owner for the permission"
        )
    return Path(path)
