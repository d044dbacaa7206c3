"""A network at the speed of its hardware: compiled blocks, frozen weights in bfloat16, TF32.

Nothing of this changes a result by more than rounding, and nothing stays behind: after the context
the network is as before. benchmarks/README.md has the measurements.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import timm
import torch
from torch import nn

from ..common.device import product_type
from . import workers

# Compiling takes about 15 s on a GPU and saves a seventh to a quarter of the time. So it pays from
# this many tiles times parameters on: 13,000 passes of H-optimus-0, 50,000 of UNI.
PAYS_FROM = 1.5e13


@contextlib.contextmanager
def at_hardware_speed(
    network: nn.Module, device: str, precision: str, passes: int, choice: str = "auto"
) -> Iterator[bool]:
    """Compile the blocks of a vision transformer of timm while the context lasts.

    With them come, if the precision is bfloat16, frozen weights of products in bfloat16 (autocast
    would round them so in each step) and float32 products in TF32 (W' of an adapter).

    Args:
        precision: `float32` or `bfloat16`, as in `common.device.autocast`.
        passes: how many tiles pass the network; with few of them compiling does not pay.
        choice: `auto` compiles on a GPU if it pays and the compiler works. The others are `always`
            and `never`.

    Yields:
        Whether the blocks are compiled.
    """
    if not _compiles(network, device, passes, choice):
        yield False
        return
    blocks: Any = network.blocks
    half = product_type(device, precision) == torch.bfloat16
    # A block is compiled once for each method, batch size and mode, and torch's limit is 8.
    limits = {"recompile_limit": 64, "suppress_errors": choice == "auto"}
    tf32 = torch.backends.cuda.matmul.allow_tf32
    with torch._dynamo.config.patch(limits), _weights_in(network, torch.bfloat16, half):
        try:
            torch.backends.cuda.matmul.allow_tf32 = half or tf32
            for block in blocks:
                block.forward = torch.compile(block.forward, dynamic=False)
            yield True
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            for block in blocks:
                vars(block).pop("forward", None)  # the method of its class is seen again


def _compiles(network: nn.Module, device: str, passes: int, choice: str) -> bool:
    """Whether the blocks of a network should be compiled, and can be."""
    if choice == "never" or not isinstance(network, timm.models.VisionTransformer):
        return False
    if choice == "always":
        return True
    on_gpu = torch.device(device).type == "cuda"
    pays = passes * sum(p.numel() for p in network.parameters()) >= PAYS_FROM
    return on_gpu and pays and compiler_works(str(device))


@functools.cache
def compiler_works(device: str) -> bool:
    """Whether torch can compile for a device; if not, one line says why."""
    try:
        torch.compile(torch.cos)(torch.ones(1, device=device))
    except Exception as error:  # what is missing decides which error comes: compiler, headers, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"transformer blocks run uncompiled, because compiling fails here: {reason}")
        return False
    return True


@contextlib.contextmanager
def _weights_in(network: nn.Module, dtype: torch.dtype, wanted: bool) -> Iterator[None]:
    """Round the frozen weights of Linear layers and convolutions while the context lasts.

    They are replaced, not changed, because other students share them.
    """
    kept = []
    for module in network.modules() if wanted else ():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            for name, p in module.named_parameters(recurse=False):
                if not p.requires_grad:
                    kept.append((module, name, p))
                    setattr(module, name, nn.Parameter(p.detach().to(dtype), requires_grad=False))
    try:
        yield
    finally:
        for module, name, p in kept:
            setattr(module, name, p)


def trained_at_hardware_speed(align: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """Decorate `align` so that the student's network runs at the speed of its hardware."""

    @functools.wraps(align)
    def fast(student, data, recipe, *arguments, **options) -> pd.DataFrame:
        passes, encoder = recipe.epochs * len(data.rows) // workers.count(), student.encoder
        with at_hardware_speed(
            student.network, student.device, "bfloat16", passes, encoder.compile
        ):
            return align(student, data, recipe, *arguments, **options)

    return fast
