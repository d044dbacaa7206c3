"""Tensors from a file of weights, read without running any code that it may hold."""

import hashlib
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ..common.errors import PekaError
from ..common.file_kinds import PICKLE, SAFETENSORS, ZIP, what_is


def load_safely(path: Path, mmap: bool = False):
    """Tensors by name from a safetensors file, else what PyTorch's safe loader reads.

    Args:
        path: the file. Its first bytes tell the format, not its suffix.
        mmap: read tensors only when they are used, where the file is a zip archive.

    Raises:
        PekaError: it is not a file of weights, it is damaged, or it holds more than tensors.
    """
    kind, begin = what_is(path), f"{path} is not a file of weights that loads safely:"
    try:
        if kind == SAFETENSORS:
            return load_file(path)
        if kind == ZIP and mmap and Path(path).suffix != ".safetensors":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if kind in (ZIP, PICKLE):
            with open(path, "rb") as handle:  # torch would judge a path by its suffix
                return torch.load(handle, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and torch each raise their own
        raise PekaError(f"{begin} it is {kind}, but {_why(error)}") from error
    raise PekaError(
        f"{begin} expected safetensors, or tensors that torch.save wrote, but it is "
        f"{kind or 'of an unknown format'}. Get the file again."
    )


def load_exactly(network: nn.Module, state: dict[str, torch.Tensor], begin: str, file: str) -> None:
    """Give a network on the meta device these tensors; names and shapes must be equal.

    Args:
        begin: the message's first words, with the file and what it does not fit.
        file: the name of the file to get again.

    Raises:
        PekaError: tensors are missing, unknown or of another shape.
    """
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    missing, unknown = sorted(wanted.keys() - given), sorted(given.keys() - wanted)
    other = [
        f"{key} {given[key]}, not {wanted[key]}"
        for key in wanted
        if key in given and given[key] != wanted[key]
    ]
    if missing or unknown or other:
        raise PekaError(
            f"{begin}: missing {len(missing)} {missing[:3]}; unknown {len(unknown)} {unknown[:3]}; "
            f"of another shape {len(other)} {other[:3]}. Get {file} again"
        )
    network.load_state_dict(state, strict=True, assign=True)


def _why(error: Exception) -> str:
    """Why a file of weights does not load. Torch's own advice, an unsafe load, is not repeated."""
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript program. Save its state_dict alone and give that file."
    unsafe = re.search(r"(?:GLOBAL|class|function)\s+'?([\w.]+)", text)
    if "Weights only" in text and unsafe:
        return (
            f"it holds more than tensors ({unsafe[1]}), and loading that could run code. If you "
            "trust its origin, open it there and save its state_dict alone."
        )
    return f"it is damaged or incomplete ({type(error).__name__}). Get the file again."


def state_digest(model: nn.Module) -> str:
    """sha256 over names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(key.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
