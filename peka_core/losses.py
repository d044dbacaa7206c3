"""L_KD (Eq. 5), L_struct (Eq. 6), their weighted sum (Eq. 4), and all of them for one batch.

L_KD (Eq. 5) compares a vector of the student with a vector of the teacher for the same spots. The
paper compares the student's projection with the teacher's embedding. The authors' code has two
phases (`classifier_epochs` above 0): a classifier is trained first and then frozen. It turns
projection and embedding into logits, and L_KD compares these.
L_struct (Eq. 6) is the cross entropy between the spots' pseudo-labels and the logits that a
classifier computes from the projection. Eq. 6 names no classifier. The projection has d_t values
and there are k pseudo-labels, so one is needed.

The classifier is made in `alignment.py`, or in `classifier.py` for the two phases. `alignment.py`
adds AdaLoRA's penalty to the loss that is minimised; the column `total` of its table does not
contain it. The recipe's `kd` gives three more ways to compare the vectors, which the paper does not
have (`distillation_loss`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common.device import autocast
from .recipe import Recipe


def kd_loss(student_vectors: Tensor, teacher_vectors: Tensor, tau: float = 1.0) -> Tensor:
    """KL(softmax(T / tau) || softmax(S / tau)), averaged over the batch: Eq. 5.

    Softmax ignores a constant that is added to a row, so the loss is also 0 if S is T plus one
    constant per spot. Eq. 5 has no factor in front; the authors' code multiplies by tau squared.

    Args:
        student_vectors, teacher_vectors: S and T, embeddings (n, d_t) or logits (n, k).
    """
    student = F.log_softmax(student_vectors.float() / tau, dim=1)  # (n, d_t) or (n, k)
    teacher = F.log_softmax(teacher_vectors.float() / tau, dim=1)  # (n, d_t) or (n, k)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def distillation_loss(student_vectors: Tensor, teacher_vectors: Tensor, recipe: Recipe) -> Tensor:
    """L_KD as `recipe.kd` says: Eq. 5, or one of three alternatives that the paper does not have.

    A teacher's vector has entries of both signs. Its softmax gives nearly all weight to the large
    positive entries, so Eq. 5 hardly sees the negative ones. `signed` applies Eq. 5 to the halves
    [max(v, 0), max(-v, 0)], `mse` is the mean squared error over all entries, and `cosine` is 1 -
    the cosine of the two vectors, averaged over the batch.

    Args:
        student_vectors, teacher_vectors: (n, d_t), or logits (n, k).
    """
    student, teacher = student_vectors.float(), teacher_vectors.float()
    if recipe.kd == "mse":
        return F.mse_loss(student, teacher)
    if recipe.kd == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
    if recipe.kd == "signed":
        student, teacher = signed_halves(student), signed_halves(teacher)  # (n, 2 d_t)
    loss = kd_loss(student, teacher, recipe.tau)
    return loss * recipe.tau**2 if recipe.tau_squared else loss


def signed_halves(vectors: Tensor) -> Tensor:
    """Vectors v (n, d) -> [max(v, 0), max(-v, 0)], (n, 2 d)."""
    return torch.cat([vectors.clamp(min=0), (-vectors).clamp(min=0)], dim=1)


def structure_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits (n, k) and pseudo-labels (n,), averaged over the batch: Eq. 6."""
    return F.cross_entropy(logits.float(), labels)


def total_loss(
    kd: Tensor | None, struct: Tensor | None, lambda_kd: float = 0.5, lambda_struct: float = 0.5
) -> Tensor | float:
    """lambda_1 L_KD + lambda_2 L_struct: Eq. 4. A loss that is None or has weight 0 is left out."""
    total: Tensor | float = 0.0
    if lambda_kd and kd is not None:
        total = total + lambda_kd * kd
    if lambda_struct and struct is not None:
        total = total + lambda_struct * struct
    return total


def batch_losses(
    student: nn.Module,
    classifier: nn.Module,
    tiles: Tensor,
    targets: Tensor,
    labels: Tensor,
    recipe: Recipe,
) -> tuple[dict[str, Tensor], Tensor]:
    """Forward pass and losses of one batch. Training and validation both call this function.

    Args:
        classifier: computes logits (n, k) of the pseudo-labels from the student's projection.
        tiles: uint8 (n, h, w, 3); targets, labels: of the same spots, (n, d_t) and (n,).

    Returns:
        The losses `kd` and `struct`, each only if the recipe gives it a weight, with their weighted
        sum `total`; and the student's projection (n, d_t).
    """
    with autocast(student.device):
        _, projected = student(tiles)  # (n, d_t)
        logits = classifier(projected)  # (n, k)
        vectors = projected, targets  # the paper: embeddings, (n, d_t)
        if recipe.classifier_epochs:  # the authors' two phases: logits of one classifier, (n, k)
            vectors = logits, classifier(targets)
    losses: dict[str, Any] = {}
    if recipe.lambda_kd:
        losses["kd"] = distillation_loss(*vectors, recipe)
    if recipe.lambda_struct:
        losses["struct"] = structure_loss(logits, labels)
    kd, struct = losses.get("kd"), losses.get("struct")
    losses["total"] = total_loss(kd, struct, recipe.lambda_kd, recipe.lambda_struct)
    return losses, projected
