"""Losses and r2 of an epoch, from the results of its batches."""

import math

import torch
from torch import Tensor

from . import workers

LOSSES = ("kd", "struct", "total")


def results_of_batch(losses: dict[str, Tensor], projected: Tensor, targets: Tensor) -> Tensor:
    """Return n, n times each loss, and the squared error of r2, as a tensor (5,) on the device."""
    error = _centred(projected.detach().float() - targets).square().sum()
    n, unknown = len(targets), error * math.nan  # a NaN on the device, so that nothing is copied
    values = [n * losses[name].detach() if name in losses else unknown for name in LOSSES]
    return torch.stack([torch.full_like(error, n), *values, error])


def epoch_means(batch_results: list[Tensor], targets: Tensor) -> dict[str, float]:
    """Losses and r2, averaged over the spots of all batches; NaN if there are no spots.

    Args:
        batch_results: of this worker's batches.
        targets: of the spots of all workers' batches, (n, d_t).
    """
    if not len(targets):
        return dict.fromkeys((*LOSSES, "r2"), math.nan)
    none = targets.new_zeros(len(LOSSES) + 2)  # for a worker that has no batch
    n, *losses, error = workers.summed(torch.stack([none, *batch_results]).sum(0)).tolist()
    centred = _centred(targets)
    spread = (centred - centred.mean(0)).square().sum().item()
    means = {name: loss / n for name, loss in zip(LOSSES, losses, strict=True)}
    return means | {"r2": 1 - error / spread if spread else math.nan}


def _centred(x: Tensor) -> Tensor:
    """Rows (n, d_t), each without its mean, because softmax ignores the mean."""
    return x - x.mean(1, keepdim=True)
