"""Hyper-parameters of one alignment."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one alignment.

    Defaults never change: what equals its default is no part of a unit's name (`units.Unit.id`).

    Attributes:
        epochs, lr, batch_size: Adam over all training spots, `epochs` times.
        warmup: steps in which the learning rate rises to `lr`.
        schedule: `cosine` (down to 0 at the last step) or `constant`, after the warm-up.
        tau: temperature of Eq. 5.
        lambda_kd, lambda_struct: weights of Eq. 4.
        lambda_mse: weight of the squared error to the targets, not in the paper: for students taught by genes.
        k: number of pseudo-labels.
        labels: `kmeans` with k clusters, as the authors' code; or `leiden`, communities of the graph of nearest
            neighbours, at most k.
        block: side b of an adapter block.
        targets: ends of the names of the adapted Linear layers.
        rank, alpha: of LoRA and AdaLoRA, whose change is scaled by alpha / rank; 9 has the budget of `block` 16 on `mini`.
        hidden, dropout: the projector's hidden width and dropout.
        clip: largest norm of the gradient.
        flips: show each tile in a random one of its eight orientations.
        set_aside: share of the training groups that choose the epoch and are not trained on.
    """

    epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 64
    warmup: int = 20
    schedule: str = "cosine"
    tau: float = 1.0
    lambda_kd: float = 0.5
    lambda_struct: float = 0.5
    lambda_mse: float = 0.0
    k: int = 16
    block: int = 16
    targets: tuple[str, ...] = ("attn.qkv",)
    rank: int = 9
    alpha: float = 9.0
    labels: str = "kmeans"
    hidden: int = 512
    dropout: float = 0.0
    clip: float = 1.0
    flips: bool = True
    set_aside: float = 0.15
