"""What happens when an alignment runs out of memory: the error says which batch size fits.

accelerate's `find_executable_batch_size` would go on with a smaller batch. Here a batch size is
part of the recipe and moves the result, so the user decides.
"""

import functools
import gc
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch

from ..common.errors import PekaError
from . import workers


def advise_batch_size(align: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """Decorate `align` so that it turns an out-of-memory error into a PekaError with advice."""

    @functools.wraps(align)
    def guarded(student, data, recipe, *arguments, **options) -> pd.DataFrame:
        try:
            return align(student, data, recipe, *arguments, **options)
        except torch.OutOfMemoryError:
            pass  # the failed attempt keeps its memory until this block is left
        size = min(recipe.batch_size, len(data.rows))
        no_memory = f"there is no memory on {student.device} for"
        if workers.count() > 1:  # a trial would wait for the other workers, which do not try
            raise PekaError(
                f"{no_memory} its part of a batch of {size} tiles: take more GPUs, or a smaller "
                "batch with -p batch_size=N --run NAME"
            )
        fits = _largest_that_fits(align, student, data, replace(recipe, batch_size=size))
        if not fits:
            raise PekaError(
                f"{no_memory} a single tile: take a smaller encoder, or a device with more memory"
            )
        raise PekaError(
            f"{no_memory} a batch of {size} tiles; {fits} fit: add -p batch_size={fits} --run NAME"
        )

    return guarded


def _largest_that_fits(align, student, data, recipe) -> int:
    """The first of half, a quarter, ... of the batch size with which one step runs; 0 for none.

    Each try is an alignment of a single step, which moves the student's weights.
    """
    size = recipe.batch_size // 2
    while size:
        gc.collect()
        torch.cuda.empty_cache()
        one_step = replace(recipe, epochs=1, batch_size=size, validation_share=0.0)
        try:
            align(student, replace(data, rows=data.rows[:size]), one_step, progress=False)
            return size
        except torch.OutOfMemoryError:
            size //= 2
    return 0
