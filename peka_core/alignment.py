"""Alignment: train a student until its projection predicts the teacher (Eq. 4 to 6).

Trained are the adapter, the projector, and a linear classifier of pseudo-labels that is dropped
afterwards. The encoder stays frozen (but for the method `full`), and so does the teacher.
"""

import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .classifier import fit_classifier
from .common.errors import PekaError
from .losses import batch_losses
from .recipe import Recipe
from .student import Student
from .training.batches import batches, pieces
from .training.checkpoint import TrainingState
from .training.memory import advise_batch_size
from .training_data import TrainingData

LOSSES = ("kd", "struct", "mse", "total")


@advise_batch_size
def align(
    student: Student,
    data: TrainingData,
    recipe: Recipe,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train a student in place; afterwards it has the weights of the kept epoch.

    The kept epoch is the one with the lowest loss on the validation groups. Without validation
    groups, or if the recipe says `keep: last`, it is the last epoch.

    Args:
        seed: draws validation groups, order and orientation of tiles, the classifier's first
            weights, and (by torch's global generator) dropout.
        checkpoint: file that is written after each epoch. If it exists, training goes on from it
            and ends as without the interruption: bit by bit on a CPU, up to rounding on a GPU.

    Returns:
        One row for each epoch: epoch, lr, seconds; kd, struct, mse (NaN where the recipe gives it
        no weight), total and r2, averaged over the training batches; the same as `validation_...`
        (NaN without validation groups); AdaLoRA's ranks in use as `rank_<layer>`; kept (True for
        one epoch) and choice (how that epoch was chosen). r2 compares the projection with the
        targets up to a constant for each spot, which Eq. 5 cannot see.

    Raises:
        PekaError: data that do not fit the student or the recipe, a loss that is not finite, or too
            little memory for a batch (the message has a batch size that fits).
    """
    data.check(student, recipe)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    train, validation = data.draw_validation(recipe, generator)
    data = data.on(student.device)

    # What is trained: the student's adapter and projector, and (in a single phase) the classifier.
    classifier: nn.Module
    if recipe.classifier_epochs:  # the authors' two phases: it is trained now, and then frozen
        classifier = fit_classifier(data.targets[train], data.labels[train], recipe, seed)
    else:  # the paper's single phase: it is trained together with the student
        classifier = nn.Linear(student.d_teacher, recipe.k).to(student.device)
    trained = [p for p in [*student.parameters(), *classifier.parameters()] if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=recipe.lr)
    steps = recipe.epochs * math.ceil(len(train) / recipe.batch_size)
    student.allocation.start(steps)

    state = TrainingState(student, classifier, optimiser, generator)
    if checkpoint is not None and Path(checkpoint).exists():
        state.load(checkpoint)
    name, hidden = f"align {student.method}", not progress
    bar = tqdm(total=steps, initial=state.step, desc=name, unit="step", disable=hidden)
    read_ahead = torch.device(student.device).type == "cuda"

    for epoch in range(len(state.history) + 1, recipe.epochs + 1):
        # Train on every training spot once.
        started, sums = time.perf_counter(), []
        student.train()
        shuffled = batches(
            data.tiles, train, recipe.batch_size, recipe.flips, generator, read_ahead
        )
        for rows, tiles in shuffled:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(state.step, steps, recipe)
            optimiser.zero_grad(set_to_none=True)
            targets, labels = data.targets[rows], data.labels[rows]
            losses, projected = batch_losses(student, classifier, tiles, targets, labels, recipe)
            (losses["total"] + student.allocation.penalty()).backward()
            if not torch.isfinite(losses["total"]):
                raise PekaError(
                    f"the loss is {losses['total'].item()} in epoch {epoch}, step {state.step}: "
                    f"lower the learning rate lr, which is {recipe.lr}"
                )
            clip_gradients(trained, recipe)
            optimiser.step()
            student.allocation.after_step(state.step)

            state.step += 1
            sums.append(batch_sums(losses, projected, targets))
            bar.update()
            bar.set_postfix(epoch=epoch, loss=f"{losses['total'].item():.3f}", refresh=False)

        # Look at the validation spots, and keep these weights if no epoch was better.
        row = {"epoch": epoch, "lr": optimiser.param_groups[0]["lr"]}
        row |= epoch_means(sums, data.targets[train])
        row |= validate(student, classifier, data, validation, recipe)
        row |= student.allocation.ranks() | {"seconds": time.perf_counter() - started}
        state.history.append(row)
        may_be_kept = recipe.keep == "best" and student.allocation.within_budget(state.step)
        if may_be_kept and row["validation_total"] < state.lowest:  # NaN is never lower
            state.keep(epoch, row["validation_total"])
        if checkpoint is not None:
            state.save(checkpoint)
    bar.close()

    kept = state.restore_kept()
    student.eval()
    choice = "lowest validation_total" if len(validation) else "last epoch, no validation groups"
    if recipe.keep == "last":
        choice = "last epoch, by the recipe"
    return pd.DataFrame(state.history).assign(kept=lambda h: h["epoch"] == kept, choice=choice)


@torch.no_grad()
def validate(
    student: Student, classifier: nn.Module, data: TrainingData, rows: np.ndarray, recipe: Recipe
) -> dict[str, float]:
    """Losses and r2 on the validation rows, named `validation_...`; NaN where there are none."""
    student.eval()
    sums = []
    for piece in pieces(len(rows), recipe.batch_size):
        some = rows[piece]
        targets, labels = data.targets[some], data.labels[some]
        made = batch_losses(student, classifier, data.tiles[some], targets, labels, recipe)
        sums.append(batch_sums(*made, targets))
    means = epoch_means(sums, data.targets[rows])
    return {f"validation_{name}": value for name, value in means.items()}


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Learning rate of `step` (from 0) out of `steps`: a linear warm-up, then the schedule.

    `cosine` falls to 0 at the last step, `step` to a tenth every ten epochs.
    """
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "step":
        return recipe.lr * 0.1 ** (step * recipe.epochs // steps // 10)
    done = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


def clip_gradients(parameters: list[nn.Parameter], recipe: Recipe) -> None:
    """Limit the norm of all gradients together, or each value of them, to `recipe.clip`."""
    if recipe.clip and recipe.clip_by == "norm":
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
    elif recipe.clip:
        nn.utils.clip_grad_value_(parameters, recipe.clip)


def batch_sums(losses: dict[str, Tensor], projected: Tensor, targets: Tensor) -> Tensor:
    """Of one batch: n, n times each loss, and the squared error of r2; on the device, (6,)."""
    error = _centred(projected.detach().float() - targets).square().sum()
    n, unknown = len(targets), error * math.nan
    values = [n * losses[name].detach() if name in losses else unknown for name in LOSSES]
    return torch.stack([torch.full_like(error, n), *values, error])


def epoch_means(sums: list[Tensor], targets: Tensor) -> dict[str, float]:
    """Losses and r2 averaged over the spots of all batches; NaN where there was no batch."""
    if not sums:
        return dict.fromkeys((*LOSSES, "r2"), math.nan)
    n, *losses, error = torch.stack(sums).sum(0).tolist()
    centred = _centred(targets)
    spread = (centred - centred.mean(0)).square().sum().item()
    means = {name: loss / n for name, loss in zip(LOSSES, losses, strict=True)}
    return means | {"r2": 1 - error / spread if spread else math.nan}


def _centred(x: Tensor) -> Tensor:
    """Rows (n, d_t) without their own mean, as a softmax sees them."""
    return x - x.mean(1, keepdim=True)
