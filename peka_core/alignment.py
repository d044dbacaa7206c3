"""Alignment, "Knowledge Transfer" in Fig. 1: train a student to predict the teacher (Eq. 4 to 6).

What is trained: the student's adapter and projector and, in the paper's single phase, a linear
classifier of pseudo-labels, which is dropped afterwards. In the two phases of the authors' code,
the classifier is trained before the student and then frozen. What is frozen: the encoder, except
for the method `full`. The teacher is not here; its embeddings arrive as `data.targets`.
"""

import math
import time
from dataclasses import asdict, replace
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
from .training_data import TrainingData
from .training_parts import workers
from .training_parts.batches import batches, pieces
from .training_parts.checkpoint import TrainingState
from .training_parts.means import epoch_means, results_of_batch
from .training_parts.memory import advise_batch_size
from .training_parts.speed import trained_at_hardware_speed
from .training_parts.tokens import TokenCache

LOOK_EVERY = 50  # steps


@advise_batch_size
@trained_at_hardware_speed
def align(
    student: Student,
    data: TrainingData,
    recipe: Recipe,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train a student in place; afterwards it has the weights of the kept epoch.

    The kept epoch is the eligible one with the lowest loss on the validation spots. An epoch is
    eligible if this loss is finite and AdaLoRA's ranks are down to their target. The last epoch
    is kept if no epoch is eligible, if there are no validation spots, or if the recipe says
    `keep: last`.

    Under torchrun, each worker computes the gradients of its part of each batch, and their mean is
    that of the whole batch (`training_parts/workers.py`). So the result is the same as of one
    process with the same batch size, up to rounding. With dropout it is another draw.

    Args:
        seed: random seed for the draw of validation spots, the order and orientation of tiles, the
            classifier's first weights, and (by torch's global generator) dropout.
        checkpoint: file that is written after each epoch. If it exists, training continues from it.
            The result is the same as without the interruption: exactly on a CPU, up to rounding on
            a GPU.

    Returns:
        A table with one row for each epoch. Its columns are

        - epoch, lr, seconds.
        - kd, struct, total: losses averaged over the training spots; NaN if their weight is 0.
        - r2: of the projection and the targets, after the mean of each row is subtracted, because
          the softmax of Eq. 5 ignores that mean.
        - `validation_...`: the same of the validation spots; NaN if there are none.
        - `rank_<layer>`: AdaLoRA's ranks in use.
        - kept: True for the kept epoch.
        - choice: how that epoch was chosen, in words.

    Raises:
        PekaError: the data do not fit the student or the recipe, a training loss is not finite, or
            the checkpoint is of another method, recipe, seed or data. (Tiles are not compared.)
            If a GPU has too little memory, the message has a batch size that fits
            (training_parts/memory.py). A smaller batch would change the result, so the user
            decides. Trial steps have changed the student by then, so make a new one.
    """
    data.check(student, recipe)
    digest = data.digest()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    train, validation = data.draw_validation(recipe, generator)
    data = data.on(student.device)
    if recipe.last_blocks:  # the blocks below them give the same tokens in each epoch
        used = len(data.rows)
        tokens = TokenCache(student, data.tiles, recipe, used, checkpoint, progress)
        data = replace(data, tiles=tokens)

    classifier: nn.Module
    if recipe.classifier_epochs:  # two phases: it is trained now and then frozen
        classifier = fit_classifier(data.targets[train], data.labels[train], recipe, seed)
    else:  # single phase: it is trained together with the student
        classifier = nn.Linear(student.d_teacher, recipe.k).to(student.device)
        classifier.requires_grad_(recipe.lambda_struct > 0)  # else no loss moves it
    trained = [p for p in [*student.parameters(), *classifier.parameters()] if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=recipe.lr, fused=True)
    steps = recipe.epochs * math.ceil(len(train) / recipe.batch_size)
    student.rank_schedule.start(steps)

    made_for = {"method": student.method, "recipe": asdict(recipe), "seed": seed, "data": digest}
    state = TrainingState(student, classifier, optimiser, generator, made_for)
    if checkpoint is not None and Path(checkpoint).exists():
        state.load(checkpoint)
    name, disable_bar = f"align {student.method}", not progress or workers.rank() > 0
    bar = tqdm(total=steps, initial=state.step, desc=name, unit="step", disable=disable_bar)
    networks = workers.sharing_gradients(student), workers.sharing_gradients(classifier)
    read_ahead = torch.device(student.device).type == "cuda"

    for epoch in range(len(state.history) + 1, recipe.epochs + 1):
        # Train on every training spot once.
        started, batch_results = time.perf_counter(), []
        student.train()
        workers.own_random_numbers(seed, epoch)
        size, flips = recipe.batch_size, recipe.flips
        for rows, batch, weight in batches(data.tiles, train, size, flips, generator, read_ahead):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(state.step, steps, recipe)
            optimiser.zero_grad(set_to_none=True)
            rows = rows.to(student.device, non_blocking=True)
            targets, labels = data.targets[rows], data.labels[rows]
            losses, projected = batch_losses(*networks, batch, targets, labels, recipe)
            (weight * losses["total"] + student.rank_schedule.penalty()).backward()
            clip_gradients(trained, recipe)
            optimiser.step()
            student.rank_schedule.after_step(state.step)

            state.step += 1
            if weight:  # it is 0 for a worker that has no rows of a small batch
                batch_results.append(results_of_batch(losses, projected, targets))
            bar.update()
            if len(batch_results) % LOOK_EVERY == 0:  # a GPU waits at each look, so there are few
                look(batch_results, epoch, recipe, bar)
        look(batch_results, epoch, recipe, bar)

        # Compute the validation losses. Keep these weights if the loss is the lowest so far.
        row = {"epoch": epoch, "lr": optimiser.param_groups[0]["lr"]}
        row |= epoch_means(batch_results, data.targets[train])
        row |= validate(student, classifier, data, validation, recipe)
        row |= student.rank_schedule.ranks() | {"seconds": time.perf_counter() - started}
        state.history.append(row)
        eligible = recipe.keep == "best" and student.rank_schedule.ranks_are_final(state.step)
        if (
            eligible and row["validation_total"] < state.lowest
        ):  # a NaN is never lower, nor is infinity
            state.keep(epoch, row["validation_total"])
        if checkpoint is not None:
            state.save(checkpoint)
    bar.close()

    if recipe.keep == "last":
        choice = "last epoch, by the recipe"
    elif len(validation) == 0:
        choice = "last epoch, no validation spots"
    else:
        choice = "lowest validation_total" if state.kept else "last epoch, no epoch was eligible"
    if recipe.last_blocks:
        tokens.remove()
    kept = state.restore_kept()
    student.eval()
    return pd.DataFrame(state.history).assign(kept=lambda h: h["epoch"] == kept, choice=choice)


@torch.no_grad()
def validate(
    student: Student, classifier: nn.Module, data: TrainingData, rows: np.ndarray, recipe: Recipe
) -> dict[str, float]:
    """Losses and r2 of the validation spots as `validation_...`; NaN if there are none."""
    student.eval()
    batch_results, mine = [], rows[workers.part(len(rows))]
    for piece in pieces(len(mine), recipe.batch_size):
        tiles, targets, labels = (x[mine[piece]] for x in (data.tiles, data.targets, data.labels))
        losses, projected = batch_losses(student, classifier, tiles, targets, labels, recipe)
        batch_results.append(results_of_batch(losses, projected, targets))
    means = epoch_means(batch_results, data.targets[rows])
    return {f"validation_{name}": value for name, value in means.items()}


def look(batch_results: list[Tensor], epoch: int, recipe: Recipe, bar: tqdm) -> None:
    """Show the last loss of an epoch beside the bar, and refuse a loss that is not finite."""
    if not batch_results:
        return  # a worker without rows
    n, *_, total, _ = torch.stack(batch_results).T.tolist()  # one value for each batch
    losses = [t / count for t, count in zip(total, n, strict=True)]
    for number, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            raise PekaError(
                f"the loss is {loss} in step {number} of epoch {epoch}: lower the learning rate "
                f"lr, which is {recipe.lr}"
            )
    bar.set_postfix(epoch=epoch, loss=f"{losses[-1]:.3f}", refresh=False)


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Learning rate of `step` (counted from 0) of `steps`: a linear warm-up, then the schedule.

    `cosine` falls to 0 at the last step; `step` divides by ten every ten epochs.
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
