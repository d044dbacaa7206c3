"""Tokens below the blocks that are trained, each computed once (`last_blocks` of the recipe).

If only the last blocks have an adapter, the blocks below them give the same tokens in each epoch.
The cache computes the tokens of a tile in one orientation when they are needed for the first time,
and keeps them in a temporary file.
"""

import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from torch import Tensor

from ..common.device import autocast
from ..common.errors import PekaError
from .batches import oriented

if TYPE_CHECKING:
    from ..student import Student


class TokenCache:
    """The tokens of n tiles, read like tiles: `cache[rows]` gives a tensor (m, t, d).

    Args:
        student: its frozen blocks compute the tokens.
        tiles: uint8 (n, h, w, 3), an array or a reader that takes an array of row numbers.
        flips: whether all eight orientations are asked for; the file has room for these.

    Raises:
        PekaError: the network is not a vision transformer of timm.
    """

    def __init__(self, student: "Student", tiles: Any, flips: bool):
        if not isinstance(student.network, timm.models.VisionTransformer):
            found = type(student.network).__name__
            raise PekaError(f"last_blocks needs a VisionTransformer of timm, not {found}")
        self.student, self.tiles = student, tiles
        self.known = np.zeros((len(tiles), 8 if flips else 1), bool)
        self.place = np.zeros(self.known.shape, np.int64)  # row of the file, in order of first use
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the cache)
        self.stored: np.memmap | None = None

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """Tokens (m, t, d) of different tiles (m,), neither turned nor flipped."""
        return self.oriented(np.asarray(rows), np.zeros(len(rows), np.int64))

    def oriented(self, rows: np.ndarray, turns: np.ndarray) -> Tensor:
        """Tokens (m, t, d) of tiles (m,) in their orientations (m,), on the student's device.

        No pair of tile and orientation may come twice in one call. The orientations are those of
        `batches.orient`, 0 to 7.
        """
        missing = np.flatnonzero(~self.known[rows, turns])
        if len(missing):
            images = oriented(self.tiles[rows[missing]], turns[missing])
            with torch.no_grad(), autocast(self.student.device):
                tokens = self.student.tokens(torch.from_numpy(images))  # (m, t, d)
            self._store(rows[missing], turns[missing], tokens)
        assert self.stored is not None
        found = torch.from_numpy(self.stored[self.place[rows, turns]])
        return self._as_stored(found).to(self.student.device)

    def _store(self, rows: np.ndarray, turns: np.ndarray, tokens: Tensor) -> None:
        """Append tokens to the file, bfloat16 as its 16 bits."""
        self.dtype = tokens.dtype
        bits = tokens.view(torch.int16) if tokens.dtype == torch.bfloat16 else tokens
        values = bits.cpu().numpy()
        if self.stored is None:
            shape = (self.known.size, *values.shape[1:])
            self.stored = np.memmap(self.file, values.dtype, "w+", shape=shape)
        first = int(self.known.sum())
        places = np.arange(first, first + len(values))
        self.stored[places] = values
        self.place[rows, turns], self.known[rows, turns] = places, True

    def _as_stored(self, found: Tensor) -> Tensor:
        return found.view(torch.bfloat16) if self.dtype == torch.bfloat16 else found
