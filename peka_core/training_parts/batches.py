"""Batches of tiles: in random order and orientation for training, in order for embedding."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.device import autocast
from ..common.errors import PekaError
from . import workers
from .speed import at_hardware_speed

if TYPE_CHECKING:
    from ..encoders import Encoder


def batches(
    tiles: Any,
    rows: np.ndarray,
    batch_size: int,
    flips: bool,
    generator: torch.Generator,
    ahead: bool = False,
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """One epoch of shuffled batches: row numbers (b,), tiles uint8 (b, h, w, 3), and a weight.

    Under torchrun, each worker gets its part of each batch, and the weight of that part's loss
    (`workers.part_of_batch`). Otherwise the weight is 1.

    Args:
        tiles: uint8 (n, h, w, 3), an array or a reader that takes an array of row numbers; or a
            `TokenCache`, and then the batches are tokens (b, t, d).
        rows: row numbers of the spots of this epoch, (m,).
        flips: show each tile in a random one of its eight orientations.
        generator: random generator for the order and the orientations.
        ahead: read the next batch in a thread during the training step. That helps a GPU; a CPU
            that trains with all its cores has none left for the thread.
    """
    order = rows[torch.randperm(len(rows), generator=generator).numpy()]
    turns = torch.randint(8 if flips else 1, (len(rows),), generator=generator).numpy()
    pin = ahead and torch.cuda.is_available()
    chunks = pieces(len(rows), batch_size)
    has_tokens = hasattr(tiles, "oriented")  # a `TokenCache`
    if has_tokens:  # it computes here what is missing, because `read` may run in a thread
        mine = np.concatenate([np.r_[workers.part_of_batch(whole)[0]] for whole in chunks])
        tiles.fill(order[mine], turns[mine])

    def read(whole: slice) -> tuple[Tensor, Tensor, float]:
        piece, weight = workers.part_of_batch(whole)
        rows = as_tensor(order[piece], pin)
        if has_tokens:
            return rows, tiles.oriented(order[piece], turns[piece]), weight
        return rows, as_tensor(oriented(tiles[order[piece]], turns[piece]), pin), weight

    yield from in_turn(read, chunks, ahead)


def pieces(n: int, size: int, start: int = 0) -> list[slice]:
    """Slices of at most `size` that cover `start`..n."""
    return [slice(first, min(first + size, n)) for first in range(start, n, max(1, size))]


def in_turn(read: Callable, chunks: list, ahead: bool) -> Iterator:
    """`read(chunk)` of each chunk in order; with `ahead`, a thread reads one chunk in advance."""
    if not ahead or not chunks:
        yield from map(read, chunks)
        return
    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(read, chunks[0])
        for following in [*chunks[1:], None]:
            batch = waiting.result()
            if following is not None:
                waiting = reader.submit(read, following)
            yield batch


def as_tensor(array: np.ndarray, page_locked: bool) -> Tensor:
    """An array as a tensor; page-locked memory is copied faster to a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))  # torch cannot read negative strides
    return tensor.pin_memory() if page_locked else tensor


def orient(tile: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight orientations of a square tile uint8 (h, h, 3).

    The highest bit of `turn` transposes the tile, the lower two flip it, each along one axis.
    """
    tile = cv2.transpose(tile) if turn & 4 else tile
    flip = {1: 1, 2: 0, 3: -1}.get(int(turn) & 3)
    return tile if flip is None else cv2.flip(tile, flip)


def oriented(tiles: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Tiles uint8 (m, h, h, 3), each in its orientation (m,)."""
    return np.stack([orient(tile, turn) for tile, turn in zip(tiles, turns, strict=True)])


def in_batches(
    encoder: "Encoder",
    tiles,
    forward: Callable[[Tensor], tuple[Tensor, ...]],
    batch_size: int,
    progress: bool,
) -> list[np.ndarray]:
    """Each output of `forward(x)` for all tiles, float32, computed without gradients.

    Under torchrun, each worker computes its part, and all of them get the whole.

    The encoder gives x and the precision of `forward`. If the GPU has too little memory for a
    batch, this batch and all later ones are halved without a message, because the outputs of a tile
    do not depend on its batch.

    Raises:
        PekaError: there are no tiles, or the memory is too small for a single one.
    """
    tiles = np.stack(tiles) if isinstance(tiles, (list, tuple)) and len(tiles) else tiles
    if len(tiles) == 0:
        raise PekaError("there are no tiles to embed")
    on_cpu = torch.device(encoder.device).type == "cpu"
    size = min(batch_size, 32) if on_cpu else batch_size  # small batches stay in a CPU's cache
    parts, title, n = [], f"embed with {encoder.name}", len(tiles)
    shared = n >= workers.count()  # otherwise each worker computes all of these few
    mine = workers.part(n) if shared else slice(0, n)
    hidden, length = not progress or workers.rank() > 0, mine.stop - mine.start
    bar = tqdm(total=length, desc=title, unit="tile", disable=hidden)
    of_mine = pieces(mine.stop, size, mine.start)
    pin = not on_cpu and torch.cuda.is_available()
    chunks = in_turn(lambda piece: as_tensor(tiles[piece], pin), of_mine, ahead=not on_cpu)
    network, choice = encoder.model, encoder.compile
    with at_hardware_speed(network, encoder.device, encoder.precision, length, choice) as compiled:
        for chunk in chunks:
            while len(chunk):
                batch, outputs = chunk[:size], []
                if compiled and len(batch) < size:  # compiled code is for batches of one size
                    batch = batch[np.arange(size) % len(batch)]  # repeats the tiles
                try:
                    x = encoder.transform(batch)
                    with torch.no_grad(), autocast(encoder.device, encoder.precision):
                        outputs = [output.float() for output in forward(x)]
                except torch.OutOfMemoryError:
                    pass  # what the attempt holds is free after this block
                if outputs:
                    parts.append([output[: len(chunk)] for output in outputs])
                    bar.update(len(parts[-1][0]))
                    chunk = chunk[size:]
                elif size > 1:
                    torch.cuda.empty_cache()
                    size = max(1, min(size, len(chunk)) // 2)
                else:
                    device = encoder.device
                    raise PekaError(
                        f"{device} has too little memory for a single tile: use another"
                    )
    bar.close()
    # Outputs stay on the device until the end, so that a GPU does not wait after each batch.
    mine_of_each = [torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)]
    return [workers.gathered(made, n) for made in mine_of_each] if shared else mine_of_each
