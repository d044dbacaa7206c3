"""Helpers of the training loop, which the paper does not describe: batches, checkpoints, memory.

The loop itself is in `alignment.py`.
"""
