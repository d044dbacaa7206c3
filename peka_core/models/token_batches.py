"""Batches of spots whose numbers of tokens differ, for teachers with a transformer."""

import numpy as np

ALIKE = 0.9  # shortest spot of a batch, as a share of its longest


def budgeted(rows: np.ndarray, lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Batches of rows, at least one row each.

    Padded to its longest row, a batch has at most `tokens` tokens. No row is shorter than `ALIKE`
    of the longest, since attention's work on padding grows with the square of the length.

    Args:
        rows, lengths: (n,), longest first.
    """
    batches, start = [], 0
    while start < len(rows):
        alike = np.searchsorted(-lengths, -ALIKE * lengths[start], "right") - start
        size = max(1, min(int(tokens // lengths[start]), alike))
        batches.append(rows[start : start + size])
        start += size
    return batches
