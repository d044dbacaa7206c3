"""Helpers of the training loop, which the paper does not describe: batches, means over an epoch,
checkpoints, memory, and AdaLoRA's ranks.

The loop itself is in `alignment.py`.
"""
