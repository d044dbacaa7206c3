"""The losses of Eq. 4 to 6. Shapes: projected and x_teacher (n, d_t), logits (n, k), labels (n,)."""

from torch import Tensor
from torch.nn import functional as F


def kd_loss(projected: Tensor, x_teacher: Tensor, tau: float = 1.0) -> Tensor:
    """KL(softmax(T / tau) || softmax(S / tau)), mean over the batch: Eq. 5.

    Softmax forgets a constant added to a row, so S learns T up to one number a spot. Eq. 5 has no
    factor in front; the authors' code multiplies by tau^2, which is the same at tau = 1.
    """
    student = F.log_softmax(projected.float() / tau, dim=1)  # (n, d_t)
    teacher = F.log_softmax(x_teacher.float() / tau, dim=1)  # (n, d_t)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def structure_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the pseudo-labels, mean over the batch: Eq. 6."""
    return F.cross_entropy(logits.float(), labels)


def total_loss(
    kd: Tensor, struct: Tensor, lambda_kd: float = 0.5, lambda_struct: float = 0.5
) -> Tensor:
    """lambda_1 L_KD + lambda_2 L_struct: Eq. 4. A loss with weight 0 leaves the sum, so it cannot spoil it."""
    terms = [weight * loss for weight, loss in ((lambda_kd, kd), (lambda_struct, struct)) if weight]
    return sum(terms)
