"""Helpers of the training loop, which the paper does not describe: batches, means over an epoch,
checkpoints, memory, AdaLoRA's ranks, and a student's files.

The loop itself is in `alignment.py`.
"""
