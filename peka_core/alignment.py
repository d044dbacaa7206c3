"""Alignment: train adapter and projector so that the student meets the teacher (Eq. 4 to 6)."""

import math
import time

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm.auto import tqdm

from .batches import batches
from .encoders import autocast, has_bfloat16
from .files import PekaError
from .losses import kd_loss, structure_loss, total_loss
from .recipe import Recipe


def align(
    student,
    tiles,
    x_teacher: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    recipe: Recipe,
    hold_out: bool = True,
    seed: int = 0,
    progress: bool = True,
    rows: np.ndarray | None = None,
) -> pd.DataFrame:
    """Train a student in place; it ends with the weights of the kept epoch.

    Args:
        student: a `Student`; its adapter and projector are trained, the encoder stays frozen.
        tiles: uint8 (n, h, w, 3), an array or a reader that takes an array of row numbers.
        x_teacher: teacher embeddings (n, d_t).
        labels: pseudo-labels (n,), 0 to k - 1.
        groups: patient of each spot (n,), or section where there is one patient.
        hold_out: set groups aside to choose the epoch; with False, or a single group, the last epoch is kept.
        seed: shuffling, orientations, the groups set aside, the structure head and (globally, in torch) dropout.
        rows: numbers of the training spots; the others are never looked at. None: all n.

    Returns:
        One row an epoch: epoch, lr, seconds; kd, struct, total, r2 on training batches while they are
        trained on; the same with `aside_` on the groups set aside (NaN without any); kept (True for the
        epoch whose weights the student has), choice (how that was chosen). r2 compares S and T row by row up to a
        constant, which Eq. 5 cannot see.

    Raises:
        PekaError: a student without anything to train, lengths that differ, or a loss that is not finite.
    """
    rows = np.arange(len(groups)) if rows is None else np.asarray(rows)
    _check(student, tiles, x_teacher, labels, groups, rows, recipe)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    device = student.device
    on_gpu = torch.device(device).type == "cuda"
    x_type = torch.bfloat16 if has_bfloat16(device) else torch.float32  # what autocast would make of x
    train, aside = _set_aside(rows, np.asarray(groups)[rows], recipe.set_aside if hold_out else 0.0, generator)
    x_teacher = torch.as_tensor(np.asarray(x_teacher), dtype=torch.float32, device=device)  # (n, d_t)
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.long, device=device)  # (n,)

    head = nn.Linear(x_teacher.shape[1], recipe.k).to(device)  # serves L_struct only and is dropped afterwards
    parameters = [p for p in [*student.parameters(), *head.parameters()] if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=recipe.lr)
    steps = recipe.epochs * math.ceil(len(train) / recipe.batch_size)
    bar = tqdm(total=steps, desc=f"align {student.method}", unit="step", disable=not progress)
    history, step = [], 0
    lowest, kept, state = math.inf, recipe.epochs, None

    for epoch in range(1, recipe.epochs + 1):
        started, losses = time.perf_counter(), []
        student.train()
        for some, batch in batches(tiles, train, recipe.batch_size, recipe.flips, generator, ahead=on_gpu):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, recipe)
            x = student.encoder.transform(batch, x_type)  # (b, 3, size, size)
            with autocast(device):
                _, projected = student(x)  # (b, d_t)
                logits = head(projected)  # (b, k)
            kd = kd_loss(projected, x_teacher[some], recipe.tau)
            struct = structure_loss(logits, labels[some])
            total = total_loss(kd, struct, recipe.lambda_kd, recipe.lambda_struct)
            if not torch.isfinite(total):
                where = f"epoch {epoch}, step {step}"
                raise PekaError(f"loss is {total.item()} in {where}: lower the learning rate {recipe.lr}")

            optimiser.zero_grad(set_to_none=True)
            total.backward()
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimiser.step()

            losses.append(_sums(kd, struct, total, projected, x_teacher[some]))
            step += 1
            bar.update()
            bar.set_postfix(epoch=epoch, loss=f"{total.item():.3f}", refresh=False)

        lr = optimiser.param_groups[0]["lr"]
        row = {"epoch": epoch, "lr": lr, **_means(losses, x_teacher[train])}
        row |= _score_aside(student, head, tiles, x_teacher, labels, aside, recipe)
        history.append(row | {"seconds": time.perf_counter() - started})
        if row["aside_total"] < lowest:  # never true where nothing is set aside
            lowest, kept = row["aside_total"], epoch
            state = {name: p.detach().clone() for name, p in student.named_parameters() if p.requires_grad}
    bar.close()

    if state is not None:
        student.load_state_dict(state, strict=False)
    student.eval()
    choice = "lowest aside_total" if len(aside) else "last epoch, nothing set aside"
    return pd.DataFrame(history).assign(kept=lambda h: h["epoch"] == kept, choice=choice)


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Learning rate of `step` (from 0) out of `steps`: linear warm-up, then cosine to 0 or constant."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return recipe.lr
    done = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


def alignment_quality(
    features_train: np.ndarray,
    x_teacher_train: np.ndarray,
    features_test: np.ndarray,
    x_teacher_test: np.ndarray,
    k: int = 10,
) -> dict[str, float]:
    """Did it align? How much of the teacher the features of held-out spots contain.

    Args:
        features_train, features_test: (n, d) and (m, d).
        x_teacher_train, x_teacher_test: (n, d_t) and (m, d_t).

    Returns:
        r2: held-out R2 of a ridge from standardised features to X_teacher, components weighted by their
        variance, penalty by leave-one-out on the training spots. neighbour_overlap: share of a held-out
        spot's k nearest neighbours in feature space that are among its k nearest in teacher space;
        chance: the same for random neighbours. n_train, n_test, k.
    """
    scaler = StandardScaler().fit(features_train)
    ridge = make_pipeline(scaler, RidgeCV(np.logspace(-1, 5, 13))).fit(features_train, x_teacher_train)
    r2 = r2_score(x_teacher_test, ridge.predict(features_test), multioutput="variance_weighted")
    m = len(features_test)
    k = min(k, m - 1)
    here = _neighbours(scaler.transform(features_test), k)  # (m, k)
    there = _neighbours(x_teacher_test, k)  # (m, k)
    shared = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(here, there, strict=True)])
    return {
        "r2": float(r2), "neighbour_overlap": float(shared), "chance": k / (m - 1),
        "n_train": len(features_train), "n_test": m, "k": k,
    }  # fmt: skip


def _neighbours(x: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k nearest other rows, (m, k)."""
    return NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)


def _check(student, tiles, x_teacher, labels, groups, rows, recipe) -> None:
    lengths = {"tiles": len(tiles), "x_teacher": len(x_teacher), "labels": len(labels), "groups": len(groups)}
    if len(set(lengths.values())) > 1 or not len(rows):
        raise PekaError(f"align needs one row a spot everywhere, and training spots: got {lengths}, {len(rows)} rows")
    if student.projector is None:
        raise PekaError(f"method {student.method!r} trains nothing; use the encoder's features, or projector_only")
    d = np.shape(x_teacher)[1]
    if d != student.d_teacher:
        raise PekaError(f"the student projects to {student.d_teacher} dimensions, x_teacher has {d}")
    if not np.isfinite(np.asarray(x_teacher)[rows]).all():
        raise PekaError("x_teacher has NaN or infinite values: look at the teacher's spots without counts")
    used = np.asarray(labels)[rows]
    if used.min() < 0 or used.max() >= recipe.k:
        raise PekaError(f"labels run from {used.min()} to {used.max()}, the recipe has k = {recipe.k}")
    if recipe.schedule not in ("cosine", "constant"):
        raise PekaError(f"schedule {recipe.schedule!r} is unknown: cosine or constant")


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
def _score_aside(student, head, tiles, x_teacher, labels, rows: np.ndarray, recipe: Recipe) -> dict[str, float]:
    """Losses and r2 on the rows set aside, named `aside_...`; NaN where there are none."""
    student.eval()
    losses = []
    for start in range(0, len(rows), 256):
        some = rows[start : start + 256]
        with autocast(student.device):
            _, projected = student(student.encoder.transform(tiles[some]))  # (b, d_t)
            logits = head(projected)  # (b, k)
        kd = kd_loss(projected, x_teacher[some], recipe.tau)
        struct = structure_loss(logits, labels[some])
        total = total_loss(kd, struct, recipe.lambda_kd, recipe.lambda_struct)
        losses.append(_sums(kd, struct, total, projected, x_teacher[some]))
    return {f"aside_{name}": value for name, value in _means(losses, x_teacher[rows]).items()}


def _sums(kd: Tensor, struct: Tensor, total: Tensor, projected: Tensor, x_teacher: Tensor) -> Tensor:
    """Of one batch, still on the device: n, then sums over its spots of the losses and of (S - T)^2."""
    error = _centred(projected.detach().float() - x_teacher).square().sum()
    n = len(projected)
    return torch.stack([torch.full_like(error, n), n * kd.detach(), n * struct.detach(), n * total.detach(), error])


def _means(sums: list[Tensor], x_teacher: Tensor) -> dict[str, float]:
    """kd, struct, total and r2 over all batches; NaN where there was none."""
    if not sums:
        return dict.fromkeys(("kd", "struct", "total", "r2"), math.nan)
    n, kd, struct, total, error = torch.stack(sums).sum(0).tolist()
    teacher = _centred(x_teacher)
    spread = (teacher - teacher.mean(0)).square().sum().item()
    return {"kd": kd / n, "struct": struct / n, "total": total / n, "r2": 1 - error / spread if spread else math.nan}


def _centred(x: Tensor) -> Tensor:
    """Rows without their mean: what a softmax sees of them."""
    return x - x.mean(1, keepdim=True)
