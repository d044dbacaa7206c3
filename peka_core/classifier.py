"""Phase 1 of the authors' code: a classifier of pseudo-labels on teacher embeddings, through which phase 2 compares S with T."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recipe import Recipe


def fit_classifier(
    x_teacher: Tensor, labels: Tensor, recipe: Recipe, seed: int = 0
) -> nn.Sequential:
    """Train MLP d_t -> hidden -> hidden -> k to say the pseudo-label from X_teacher; returned frozen.

    Args:
        x_teacher, labels: of the training spots, (n, d_t) and (n,), on one device.
        recipe: k, hidden, batch_size, lr, and classifier_epochs for the number of passes.
        seed: draws weights and order.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _mlp(x_teacher.shape[1], recipe).to(x_teacher.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    for _ in range(recipe.classifier_epochs):
        for some in (
            torch.randperm(len(labels), generator=generator)
            .to(labels.device)
            .split(recipe.batch_size)
        ):
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(model(x_teacher[some]), labels[some]).backward()  # (b, k), (b,)
            optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return model.requires_grad_(False).eval()


def _mlp(d_teacher: int, recipe: Recipe) -> nn.Sequential:
    width = recipe.hidden
    return nn.Sequential(
        nn.Linear(d_teacher, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, recipe.k),
    )
