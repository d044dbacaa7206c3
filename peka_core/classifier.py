"""The first phase of the authors' code: a classifier that predicts pseudo-labels from X_teacher.

In their second phase it is frozen. Both losses then use the logits that it computes from S and T.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recipe import Recipe


def fit_classifier(
    x_teacher: Tensor, labels: Tensor, recipe: Recipe, seed: int = 0
) -> nn.Sequential:
    """Train an MLP d_t -> hidden -> hidden -> k on the training spots, and return it frozen.

    Args:
        x_teacher, labels: (n, d_t) and (n,), on one device.
        recipe: its classifier_epochs, k, hidden, batch_size and lr are used.
        seed: random seed for the first weights and the order.
    """
    width, generator = recipe.hidden, torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(x_teacher.shape[1], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, recipe.k),
        ).to(x_teacher.device)  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    for _ in range(recipe.classifier_epochs):
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for rows in order.split(recipe.batch_size):
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(model(x_teacher[rows]), labels[rows]).backward()  # (b, k), (b,)
            optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return model.requires_grad_(False).eval()
