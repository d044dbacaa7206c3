"""Tokens below the blocks that are trained, each computed once (`last_blocks` of the recipe).

If only the last blocks have an adapter, the blocks below them give the same tokens in each epoch.
Before an epoch, `TokenCache` computes the tokens that this epoch needs and that no earlier epoch
needed, and writes them to a file (token_file.py). During the epoch, batches are only read from that
file. The file stays until the alignment is finished, so an alignment that was killed goes on with
its tokens.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..common.device import autocast, product_type
from ..common.errors import PekaError
from ..common.files import told_when_full
from ..common.progress import say_once
from ..models.weight_files import state_digest
from . import workers
from .batches import in_turn, oriented, pieces
from .token_file import TokenFile

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..student import Student


def orientations_seen(recipe: "Recipe") -> float:
    """In how many orientations an alignment shows a tile, on average: 1, or up to 8 with `flips`.

    With `flips`, each epoch draws one of eight orientations.
    """
    return 8 * (1 - (7 / 8) ** recipe.epochs) if recipe.flips else 1.0


def shape_of_tokens(network: nn.Module) -> tuple[int, int]:
    """Shape (t, d) of the tokens of a tile.

    Raises:
        PekaError: the network is not a vision transformer of timm.
    """
    if not isinstance(network, timm.models.VisionTransformer):
        found = type(network).__name__
        raise PekaError(f"last_blocks needs a VisionTransformer of timm, not {found}")
    return network.patch_embed.num_patches + network.num_prefix_tokens, network.embed_dim


class TokenCache:
    """The tokens of n tiles, read like tiles: `cache[rows]` gives a tensor (m, t, d).

    Under torchrun, each worker computes the tokens of its part of each batch. Workers of one
    machine share the file beside a checkpoint. Without one, each worker has a file of its own.

    They are stored in the type in which the student is trained, bfloat16 or float32. Between blocks
    bfloat16 is a rounding that training without a cache does not have, and half the disk.

    Args:
        student: its frozen blocks compute the tokens.
        tiles: uint8 (n, h, w, 3), an array or a reader that takes an array of row numbers.
        recipe: of the alignment; its flips, epochs and batch_size are used.
        used: how many of the tiles the alignment sees.
        checkpoint: of the alignment; the file of tokens is beside it and ends with `.tokens`. With
            None it is a temporary file.
        progress: show a bar while tokens are computed.

    Raises:
        PekaError: the network is not a vision transformer of timm, or the disk is too full.
    """

    def __init__(
        self,
        student: "Student",
        tiles: Any,
        recipe: "Recipe",
        used: int,
        checkpoint: str | Path | None = None,
        progress: bool = False,
    ):
        shape = shape_of_tokens(student.network)
        self.student, self.tiles, self.progress = student, tiles, progress
        self.batch_size, self.turns = recipe.batch_size, 8 if recipe.flips else 1
        self.on_gpu = torch.device(student.device).type == "cuda"
        path = None if checkpoint is None else Path(checkpoint).with_suffix(".tokens")
        count, expected = len(tiles) * self.turns, round(used * orientations_seen(recipe))
        dtype = product_type(student.device)
        # As the trained blocks would get them without a cache: their sum with the weights' type.
        self.given_as = torch.promote_types(dtype, next(student.network.parameters()).dtype)
        self.file = TokenFile(path, self._made_of(), count, expected, shape, dtype)
        self.known = np.zeros(count, bool)  # places that this process has computed or checked

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """Tokens (m, t, d) of tiles (m,), neither turned nor flipped."""
        return self.oriented(np.asarray(rows), np.zeros(len(rows), np.int64))

    def oriented(self, rows: np.ndarray, turns: np.ndarray) -> Tensor:
        """Tokens (m, t, d) of tiles (m,) in their orientations (m,), on the student's device.

        The orientations are those of `batches.orient`, 0 to 7.
        """
        self.fill(rows, turns)
        found = self.file.read(self._places(rows, turns), page_locked=self.on_gpu)
        return found.to(self.student.device, non_blocking=True).to(self.given_as)

    def fill(self, rows: np.ndarray, turns: np.ndarray) -> None:
        """Compute the tokens of tiles (m,) in orientations (m,), except those in the file.

        `batches` calls it before an epoch in the thread that trains. The thread that reads batches
        ahead must not compute tokens, because autocast and compiled code are set for one thread.
        """
        places = np.unique(self._places(rows, turns))
        missing = self._not_in_file(places[~self.known[places]])
        if not len(missing):
            return
        chunks = [missing[piece] for piece in pieces(len(missing), self.batch_size)]
        title = "tokens of the frozen blocks"
        hidden = not self.progress or workers.rank() > 0
        bar = tqdm(total=len(missing), desc=title, unit="tile", delay=2, disable=hidden)
        # One batch is written while the next one is computed.
        with bar, told_when_full(self.file.on_disk), ThreadPoolExecutor(1) as writer:
            writing = writer.submit(lambda: None)
            for chunk, tiles in in_turn(self._with_tiles, chunks, ahead=self.on_gpu):
                tokens = self._computed(oriented(tiles, chunk % self.turns))
                writing.result()
                writing = writer.submit(self.file.write, chunk, tiles, tokens)
                bar.update(len(chunk))
            writing.result()
        self.known[missing] = True

    def remove(self) -> None:
        """Delete the file: the alignment is finished."""
        self.file.remove()

    def _computed(self, images: np.ndarray) -> Tensor:
        """Tokens (m, t, d) of images uint8 (m, h, w, 3), on the student's device, to be stored."""
        whole = self.batch_size if self.on_gpu else len(images)
        padded = np.resize(images, (whole, *images.shape[1:]))  # compiled code is for one size
        with torch.no_grad(), autocast(self.student.device):
            tokens = self.student.tokens(torch.from_numpy(padded))[: len(images)]
        return tokens.to(self.file.tokens.dtype)

    def _not_in_file(self, places: np.ndarray) -> np.ndarray:
        """Those of different places (m,) that the file does not have, after a check of the rest."""
        written = places[self.file.is_written(places)]
        for piece in pieces(len(written), self.batch_size):
            chunk, tiles = self._with_tiles(written[piece])
            self.known[chunk] = [
                self.file.holds(place, tile) for place, tile in zip(chunk, tiles, strict=True)
            ]
        if wrong := int((~self.known[written]).sum()):
            say_once(
                f"{self.file.on_disk}: tokens of {wrong} tiles are damaged, or were made of other "
                "tiles or by another encoder. They are computed again.",
                notice=True,
            )
        return places[~self.known[places]]

    def _with_tiles(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places (m,) and their tiles uint8 (m, h, w, 3), which are read once each."""
        rows, which = np.unique(places // self.turns, return_inverse=True)
        return places, self.tiles[rows][which]

    def _places(self, rows: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Places (m,) of tiles and orientations in the file."""
        return np.asarray(rows) * self.turns + turns

    def _made_of(self) -> str:
        """What all tokens depend on; one transformed tile stands for the encoder's transform."""
        encoder, tile = self.student.encoder, self.tiles[np.array([0])]
        x = encoder.transform(tile).cpu().contiguous().numpy()
        digest = encoder.digest or state_digest(encoder.model)
        blocks = self.student.recipe.last_blocks
        return f"{encoder.name} {digest} {zlib.crc32(x.data)} {blocks}"
