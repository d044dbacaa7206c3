"""What the alignment loop needs and a reader of the paper does not: batches, checkpoints, memory.

The loop itself is `alignment.py`."""
