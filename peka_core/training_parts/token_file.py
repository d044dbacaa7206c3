"""The file of a `TokenCache`: tokens on a disk, mapped into memory, each with a checksum.

The file has one place for each tile and orientation. It is as long as all places together, but only
the written ones take space on the disk. It begins with one checksum for each place.
"""

import contextlib
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.errors import PekaError
from ..common.files import free_bytes, told_when_full

PAGE = 4096  # the tokens begin at a multiple of it


class TokenFile:
    """Places for tokens (t, d), numbered from 0.

    A checksum covers the pixels of the tile, its tokens, and `made_of`. So a place that was made of
    something else, that is damaged, or that was half written when the process was killed, is not
    taken for the tokens of a tile. Several processes of one machine may share a file.

    Args:
        path: the file, which is made if it is missing; None for a temporary file.
        made_of: names all that the tokens depend on, except the tile.
        count: number of places.
        expected: how many places will be written, for the check of the disk.
        shape: of the tokens of one tile, (t, d).
        dtype: in which they are stored.

    Raises:
        PekaError: the disk has too little space for the expected places, or it takes no files.
    """

    def __init__(
        self,
        path: Path | None,
        made_of: str,
        count: int,
        expected: int,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ):
        self.path, self.seed = path, zlib.crc32(f"{made_of} {shape} {dtype}".encode())
        self.on_disk = path or Path(tempfile.gettempdir()) / "tokens"
        size = shape[0] * shape[1] * dtype.itemsize
        self.start = -(-4 * count // PAGE) * PAGE
        self._check_space(self.start + expected * size)
        with contextlib.ExitStack() as stack, told_when_full(self.on_disk):
            if path is None:
                self.file = stack.enter_context(tempfile.TemporaryFile())
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                self.file = stack.enter_context(open(path, "r+b"))
            self.file.truncate(self.start + count * size)
            self.checksums = np.memmap(self.file, np.uint32, "r+", shape=(count,))
            self.bytes = np.memmap(self.file, np.uint8, "r+", self.start, (count, size))
            stack.pop_all()  # the file stays open
        self.tokens = torch.from_numpy(self.bytes).view(dtype).unflatten(1, shape)  # (count, t, d)

    def read(self, places: np.ndarray, page_locked: bool) -> Tensor:
        """Tokens (m, t, d) of places (m,), in page-locked memory if it is asked for."""
        shape = (len(places), *self.tokens.shape[1:])
        found = torch.empty(shape, dtype=self.tokens.dtype, pin_memory=page_locked)
        return torch.index_select(self.tokens, 0, torch.from_numpy(places), out=found)

    def write(self, places: np.ndarray, tiles: np.ndarray, tokens: Tensor) -> None:
        """Write tokens (m, t, d) of tiles uint8 (m, h, w, 3), then their checksums.

        They are written as to any file, not through the memory map: there, a full disk would end
        the process without a message.
        """
        values = tokens.cpu().contiguous().flatten(1).view(torch.uint8).numpy()  # (m, bytes)
        assert (tokens.dtype, tokens.shape[1:]) == (self.tokens.dtype, self.tokens.shape[1:])
        for place, record in zip(places.tolist(), values, strict=True):
            self._write_at(self.start + place * len(record), record.data)
        for place, tile, record in zip(places.tolist(), tiles, values, strict=True):
            self._write_at(4 * place, np.uint32(self._checksum(tile, record)).tobytes())
        self.file.flush()

    def is_written(self, places: np.ndarray) -> np.ndarray:
        """Whether something was written to each place (m,); `holds` says what."""
        return self.checksums[places] != 0

    def holds(self, place: int, tile: np.ndarray) -> bool:
        """Whether a place has undamaged tokens of this tile uint8 (h, w, 3)."""
        return bool(self.checksums[place] == self._checksum(tile, self.bytes[place]))

    def remove(self) -> None:
        """Close the file and delete it."""
        del self.tokens, self.bytes, self.checksums
        self.file.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _checksum(self, tile: np.ndarray, record: np.ndarray) -> int:
        return zlib.crc32(record.data, zlib.crc32(np.ascontiguousarray(tile).data, self.seed))

    def _write_at(self, start: int, content: memoryview | bytes) -> None:
        self.file.seek(start)
        self.file.write(content)

    def _check_space(self, needed: int) -> None:
        taken = 0
        if self.path is not None and self.path.exists():
            taken = 512 * getattr(self.path.stat(), "st_blocks", 0)  # Windows does not say
        free = free_bytes(self.on_disk.parent) + taken
        if needed > free:
            move = "set TMPDIR to a folder of another disk, or give `align` a checkpoint there"
            raise PekaError(
                f"{self.on_disk}: the tokens below the last blocks need {needed / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free on this disk. Free some space, or "
                f"{'put the run on another disk' if self.path else move}. Tiles without `flips` "
                "need least, and with `last_blocks: 0` no tokens are stored."
            )
