"""Alignment: train adapter and projector so that the student meets the teacher (Eq. 4 to 6)."""

import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .batches import batches
from .checkpoint import Progress
from .classifier import fit_classifier
from .device import autocast, has_bfloat16
from .errors import PekaError
from .losses import kd_loss, structure_loss, total_loss
from .recipe import Recipe

LOSSES = ("kd", "struct", "mse", "total")


def align(
    student, tiles, targets: np.ndarray, labels: np.ndarray, groups: np.ndarray, recipe: Recipe, seed: int = 0,
    progress: bool = True, rows: np.ndarray | None = None, checkpoint: str | Path | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Train a student in place; it ends with the weights of the kept epoch.

    Args:
        student: a `Student`; what its method trains is trained, and its projector; all else stays frozen.
        tiles: uint8 (n, h, w, 3), an array or a reader that takes an array of row numbers.
        targets: teacher embeddings X_teacher (n, d_t), or whatever else the projector is to say.
        labels: pseudo-labels (n,), 0 to k - 1.
        groups: patient of each spot (n,), or section where there is one patient; whole groups are set aside to choose the
            epoch (`recipe.set_aside`; at 0, or with a single group, the last epoch is kept), or any spots (`set_aside_by`).
        seed: shuffling, orientations, the groups set aside, the structure head and (globally, in torch) dropout.
        rows: the training spots, as numbers or as a mask (n,); the others are never looked at. None: all n.
        checkpoint: file that holds everything after each epoch. Where it is there already, training goes on from it and
            ends as it would have without the interruption: to the last bit on a CPU of the same kind, up to rounding on a GPU.

    Returns:
        One row an epoch: epoch, lr, seconds; kd, struct, mse (NaN where its weight in the recipe is 0), total and r2 on
        training batches while they are trained on; the same with `aside_` on the groups set aside (NaN without any);
        for adalora the ranks in use (`rank_<layer>`); kept (True for the epoch whose weights the student has), choice
        (how that was chosen). r2 compares S and T row by row up to a constant, which Eq. 5 cannot see.

    Raises:
        PekaError: a student without anything to train, lengths that differ, a loss that is not finite, or too little
            memory for a batch (the message says which batch size fits).
    """
    rows = _numbers(rows, len(groups))
    _check(student, tiles, targets, labels, groups, rows, recipe)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    device = student.device
    on_gpu = torch.device(device).type == "cuda"
    apart = np.asarray(groups)[rows] if recipe.set_aside_by == "group" else rows
    train, aside = _set_aside(rows, apart, recipe.set_aside, generator)
    targets = torch.as_tensor(np.asarray(targets), dtype=torch.float32, device=device)  # (n, d_t)
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.long, device=device)  # (n,)

    if recipe.classifier_epochs:
        head = fit_classifier(
            targets[train], labels[train], recipe, seed
        )  # frozen: both losses look through it
    else:
        head = nn.Linear(targets.shape[1], recipe.k).to(
            device
        )  # serves L_struct only and is dropped afterwards
    parameters = [p for p in [*student.parameters(), *head.parameters()] if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=recipe.lr)
    steps = recipe.epochs * math.ceil(len(train) / recipe.batch_size)
    student.start(steps)
    past = Progress(
        student, head, optimiser, generator, checkpoint, keep_best=recipe.keep == "best"
    )
    past.resume()
    bar = tqdm(
        total=steps,
        initial=past.step,
        desc=f"align {student.method}",
        unit="step",
        disable=not progress,
    )

    for epoch in range(len(past.history) + 1, recipe.epochs + 1):
        started, losses = time.perf_counter(), []
        student.train()
        for some, batch in batches(
            tiles, train, recipe.batch_size, recipe.flips, generator, ahead=on_gpu
        ):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(past.step, steps, recipe)
            try:
                parts = _step(student, head, optimiser, batch, targets[some], labels[some], recipe)
            except torch.OutOfMemoryError:
                parts = None  # what failed holds memory until this block is left
            if parts is None:
                raise PekaError(
                    _what_fits(student, head, optimiser, batch, targets[some], labels[some], recipe)
                )
            if not torch.isfinite(parts["total"]):
                where = f"epoch {epoch}, step {past.step}"
                raise PekaError(
                    f"loss is {parts['total'].item()} in {where}: lower the learning rate {recipe.lr}"
                )
            student.after_step(past.step)

            losses.append(_sums(parts, targets[some]))
            past.step += 1
            bar.update()
            bar.set_postfix(epoch=epoch, loss=f"{parts['total'].item():.3f}", refresh=False)

        lr = optimiser.param_groups[0]["lr"]
        row = {"epoch": epoch, "lr": lr, **_means(losses, targets[train])}
        row |= _score_aside(student, head, tiles, targets, labels, aside, recipe) | student.ranks()
        past.finish_epoch(row | {"seconds": time.perf_counter() - started})
    bar.close()

    kept = past.restore_best()
    student.eval()
    choice = "lowest aside_total" if len(aside) else "last epoch, nothing set aside"
    choice = choice if recipe.keep == "best" else "last epoch, by the recipe"
    return pd.DataFrame(past.history).assign(kept=lambda h: h["epoch"] == kept, choice=choice)


def _step(
    student, head, optimiser, batch: Tensor, targets: Tensor, labels: Tensor, recipe: Recipe
) -> dict[str, Tensor]:
    """One optimiser step on one batch of tiles uint8; returns its losses. Nothing moves where the loss is not finite."""
    x_type = (
        torch.bfloat16 if has_bfloat16(student.device) else torch.float32
    )  # what autocast would make of x
    x = student.encoder.transform(batch, x_type)  # (b, 3, size, size)
    optimiser.zero_grad(set_to_none=True)
    parts = _losses(student, head, x, targets, labels, recipe)
    (parts["total"] + student.penalty()).backward()
    if torch.isfinite(parts["total"]):
        _clip([p for group in optimiser.param_groups for p in group["params"]], recipe)
        optimiser.step()
    return parts


def _clip(parameters: list[Tensor], recipe: Recipe) -> None:
    if recipe.clip and recipe.clip_by == "norm":
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
    elif recipe.clip:
        nn.utils.clip_grad_value_(parameters, recipe.clip)


def _losses(
    student, head, x: Tensor, targets: Tensor, labels: Tensor, recipe: Recipe
) -> dict[str, Tensor]:
    """Forward pass of one batch: the losses that the recipe weighs, their total (Eq. 4), and S, here `projected`."""
    with autocast(student.device):
        _, projected = student(x)  # (b, d_t)
        logits = head(projected)  # (b, k)
        said, heard = (logits, head(targets)) if recipe.classifier_epochs else (projected, targets)
    made = {"projected": projected}
    if recipe.lambda_kd:
        made["kd"] = kd_loss(said, heard, recipe.tau) * (
            recipe.tau**2 if recipe.tau_squared else 1.0
        )
    if recipe.lambda_struct:
        made["struct"] = structure_loss(logits, labels)
    if recipe.lambda_mse:
        made["mse"] = nn.functional.mse_loss(projected.float(), targets)
    total = total_loss(made.get("kd"), made.get("struct"), recipe.lambda_kd, recipe.lambda_struct)
    return made | {"total": total + recipe.lambda_mse * made["mse"] if recipe.lambda_mse else total}


def _what_fits(
    student, head, optimiser, batch: Tensor, targets: Tensor, labels: Tensor, recipe: Recipe
) -> str:
    """After running out of memory: the largest half, quarter ... of the batch that a whole step fits for, in words."""
    size = len(batch)
    while size > 1:
        size //= 2
        optimiser.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        try:
            _step(student, head, optimiser, batch[:size], targets[:size], labels[:size], recipe)
        except torch.OutOfMemoryError:
            continue
        return f"no memory for a batch of {len(batch)} tiles on {student.device}; {size} fit: add -p batch_size={size} --run NAME"
    return f"no memory for a single tile on {student.device}: take a smaller encoder, or a device with more memory"


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Learning rate of `step` (from 0) out of `steps`: linear warm-up, then cosine to 0, constant, or a tenth every ten epochs."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "step":
        return recipe.lr * 0.1 ** (step * recipe.epochs // steps // 10)
    done = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


def _numbers(rows: np.ndarray | None, n: int) -> np.ndarray:
    """Row numbers of the training spots, given as numbers, as a mask (n,), or as None for all n."""
    rows = np.arange(n) if rows is None else np.asarray(rows)
    if rows.dtype == bool and rows.shape == (n,):
        return np.flatnonzero(rows)
    if rows.ndim != 1 or (
        rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= n)
    ):
        given = f"{rows.dtype} {rows.shape}"
        raise PekaError(
            f"rows must be a mask ({n},) or whole numbers from 0 to {n - 1}, not {given}: give the spots of a split."
        )
    if len(np.unique(rows)) < len(rows):
        raise PekaError(
            f"rows names {len(rows) - len(np.unique(rows))} spots more than once; expected each training spot once."
        )
    return rows


def _check(student, tiles, targets, labels, groups, rows, recipe) -> None:
    lengths = {
        "tiles": len(tiles),
        "targets": len(targets),
        "labels": len(labels),
        "groups": len(groups),
    }
    if len(set(lengths.values())) > 1 or not len(rows):
        raise PekaError(
            f"align needs one row a spot everywhere, and training spots: got {lengths}, {len(rows)} rows"
        )
    if student.projector is None:
        raise PekaError(
            f"method {student.method!r} trains nothing; use the encoder's features, or projector_only"
        )
    if np.ndim(targets) != 2:
        raise PekaError(
            f"targets must be (n, {student.d_teacher}), one row a spot, not {np.shape(targets)}"
        )
    d = np.shape(targets)[1]
    if d != student.d_teacher:
        raise PekaError(
            f"the student projects to {student.d_teacher} dimensions, the targets have {d}"
        )
    if not np.isfinite(np.asarray(targets)[rows]).all():
        raise PekaError(
            "the targets have NaN or infinite values: look at the teacher's spots without counts"
        )
    used = np.asarray(labels)[rows]
    if used.dtype.kind not in "iuf" or not np.array_equal(used, np.rint(used)):
        wanted = f"whole numbers from 0 to {recipe.k - 1} on all training spots"
        raise PekaError(
            f"labels must be {wanted}, not {used.dtype} with other values: look at the spots without a label"
        )
    if used.min() < 0 or used.max() >= recipe.k:
        raise PekaError(
            f"labels run from {used.min()} to {used.max()}, the recipe has k = {recipe.k}"
        )
    if not (recipe.lambda_kd or recipe.lambda_struct or recipe.lambda_mse):
        raise PekaError(
            "the recipe weighs no loss: one of lambda_kd, lambda_struct and lambda_mse must not be 0"
        )


def _set_aside(
    rows: np.ndarray, groups: np.ndarray, share: float, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows set aside: whole groups, drawn, at least one where `share` > 0 and two exist.

    Args:
        rows, groups: number and group of each training spot, (m,).
    """
    names = np.unique(groups)
    n_aside = min(max(1, round(share * len(names))), len(names) - 1) if share > 0 else 0
    chosen = names[torch.randperm(len(names), generator=generator)[:n_aside].numpy()]
    mask = np.isin(groups, chosen)
    return rows[~mask], rows[mask]


@torch.no_grad()
def _score_aside(
    student, head, tiles, targets, labels, rows: np.ndarray, recipe: Recipe
) -> dict[str, float]:
    """Losses and r2 on the rows set aside, named `aside_...`; NaN where there are none."""
    student.eval()
    losses = []
    for start in range(0, len(rows), recipe.batch_size):
        some = rows[start : start + recipe.batch_size]
        x = student.encoder.transform(tiles[some])
        losses.append(
            _sums(_losses(student, head, x, targets[some], labels[some], recipe), targets[some])
        )
    return {f"aside_{name}": value for name, value in _means(losses, targets[rows]).items()}


def _sums(parts: dict[str, Tensor], targets: Tensor) -> Tensor:
    """Of one batch, still on the device: n, then sums over its spots of the losses and of (S - T)^2."""
    error = _centred(parts["projected"].detach().float() - targets).square().sum()
    n = len(targets)
    losses = [n * parts[name].detach() if name in parts else error * math.nan for name in LOSSES]
    return torch.stack([torch.full_like(error, n), *losses, error])


def _means(sums: list[Tensor], targets: Tensor) -> dict[str, float]:
    """Losses and r2 over all batches; NaN where there was none."""
    if not sums:
        return dict.fromkeys((*LOSSES, "r2"), math.nan)
    n, *losses, error = torch.stack(sums).sum(0).tolist()
    centred = _centred(targets)
    spread = (centred - centred.mean(0)).square().sum().item()
    means = {name: loss / n for name, loss in zip(LOSSES, losses, strict=True)}
    return means | {"r2": 1 - error / spread if spread else math.nan}


def _centred(x: Tensor) -> Tensor:
    """Rows without their mean: what a softmax sees of them."""
    return x - x.mean(1, keepdim=True)
