"""Hyper-parameters of one alignment, and the two recipes behind the paper: as it is written, and as its code runs."""

from dataclasses import dataclass, replace

from .errors import PekaError
from .values import fitted_fields

METHODS = {
    "none": "frozen encoder",
    "bat": "block-affine adapter, W + W_g B_g + B_g (Eq. 3)",
    "bone": "the additive tiling alone, W + B_g",
    "lora": "low-rank adapter, W + (alpha / r) B A, by peft",
    "adalora": "low-rank adapter whose ranks move between layers while training, by peft",
    "full": "every weight of the encoder, no adapter",
    "projector_only": "adapter off, projector trained",
}


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one alignment.

    Defaults never change: what equals its default is no part of a unit's name (`units.Unit.id`). Every value is checked for its
    declared type, for `CHOICES` and `RANGES`; a whole number where a float is declared becomes one, so that a unit's name does
    not depend on how it was written.

    Attributes:
        epochs, lr, batch_size: Adam over all training spots, `epochs` times.
        warmup: steps in which the learning rate rises to `lr`.
        schedule: after the warm-up `cosine` (down to 0 at the last step), `constant`, or `step` (a tenth every ten epochs).
        tau: temperature of Eq. 5.
        tau_squared: multiply Eq. 5 by tau squared, so that the size of its gradient does not depend on tau.
        lambda_kd, lambda_struct: weights of Eq. 4.
        lambda_mse: weight of the squared error to the targets, not in the paper: for students taught by genes.
        k: number of pseudo-labels.
        labels: `kmeans` with k clusters, as the authors' code; or `leiden`, communities of the graph of nearest
            neighbours, at most k.
        classifier_epochs: 0: one joint stage, Eq. 5 between S and T, a linear layer for Eq. 6. Otherwise two phases: for so many
            epochs an MLP learns the labels from T (`classifier.py`); then it is frozen, and both losses compare its logits.
        block: side b of an adapter block.
        targets: ends of the names of the adapted Linear layers.
        rank, alpha: of LoRA and AdaLoRA, whose change is scaled by alpha / rank; 9 has the budget of `block` 16 on `mini`.
        reallocate: AdaLoRA moves its ranks while it trains; without, it keeps the ranks that it starts with.
        adapter_dropout: of what goes into LoRA's and AdaLoRA's factors, in training; bat and bone have none.
        hidden, dropout: the projector's hidden width and dropout.
        projector: its activation: `gelu`, or `relu` as in the authors' Linear, ReLU, Linear.
        clip: largest gradient, 0 for no limit; clip_by: its `norm`, or each `value`.
        pixels: what the student sees, in training and afterwards: `normalised` as the frozen encoder, or `raw`, 0 to 255.
        flips: show each tile in a random one of its eight orientations.
        set_aside: share of the training spots that choose the epoch and are not trained on; set_aside_by: whole `group`s, or
            any `spot`.
        keep: the `best` epoch on what was set aside, or the `last`.
    """

    epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 64
    warmup: int = 20
    schedule: str = "cosine"
    tau: float = 1.0
    tau_squared: bool = False
    lambda_kd: float = 0.5
    lambda_struct: float = 0.5
    lambda_mse: float = 0.0
    k: int = 16
    classifier_epochs: int = 0
    block: int = 16
    targets: tuple[str, ...] = ("attn.qkv",)
    rank: int = 9
    alpha: float = 9.0
    reallocate: bool = True
    adapter_dropout: float = 0.0
    labels: str = "kmeans"
    hidden: int = 512
    dropout: float = 0.0
    clip: float = 1.0
    clip_by: str = "norm"
    pixels: str = "normalised"
    flips: bool = True
    set_aside: float = 0.15
    set_aside_by: str = "group"
    keep: str = "best"
    projector: str = "gelu"

    def __post_init__(self):
        """Refuse values that no alignment could use.

        Raises:
            PekaError: another type, an unknown word, or a number out of its range; the message has the name.
        """
        for name, value in fitted_fields(self, RANGES).items():
            if name in CHOICES and value not in CHOICES[name]:
                raise PekaError(f"{name} {value!r} is unknown: {' or '.join(CHOICES[name])}")
            object.__setattr__(self, name, value)

    def for_split(self, mixed: bool) -> "Recipe":
        """This recipe on a split: no group is set aside where spots of tested sections train (`Split.mixes`), so that scopes
        nested and all differ in spots alone. A recipe that sets single spots aside does so everywhere."""
        return replace(self, set_aside=0.0) if mixed and self.set_aside_by == "group" else self


def mixes_patients(split: str) -> bool:
    """Whether a split of this name mixes patients: shuffled spots, or `all`. For plans, which have no spots to look at."""
    return split == "all" or split.startswith("spots/")


CHOICES = {  # fields that are one of a few words
    "schedule": ("cosine", "constant", "step"), "labels": ("kmeans", "leiden"), "clip_by": ("norm", "value"),
    "pixels": ("normalised", "raw"), "set_aside_by": ("group", "spot"), "keep": ("best", "last"),
    "projector": ("gelu", "relu"),
}  # fmt: skip

FROM_0, FROM_1, FROM_2 = ((f"{low} or more", lambda v, low=low: v >= low) for low in (0, 1, 2))
ABOVE_0, BELOW_1 = ("above 0", lambda v: v > 0), ("from 0 to below 1", lambda v: 0 <= v < 1)
NOT_EMPTY = ("one or more", lambda v: len(v) > 0)

RANGES = {  # what the others may be, in words and as a test
    "epochs": FROM_1, "lr": ABOVE_0, "batch_size": FROM_1, "warmup": FROM_0, "tau": ABOVE_0, "lambda_kd": FROM_0,
    "lambda_struct": FROM_0, "lambda_mse": FROM_0, "k": FROM_2, "classifier_epochs": FROM_0, "block": FROM_1, "targets": NOT_EMPTY,
    "rank": FROM_1, "alpha": ABOVE_0, "adapter_dropout": BELOW_1, "hidden": FROM_1, "dropout": BELOW_1, "clip": FROM_0,
    "set_aside": BELOW_1,
}  # fmt: skip

RECIPES = {
    # The paper's Methods. Not given there: tau, k, batch size, schedule, clipping, what chooses the epoch; taken from the
    # authors' code where it has them (k, batch size), else left out. "KNN clustering" is read as k-means, as the code does;
    # `labels: leiden` is the other reading. Dropout .1 is "for the low rank adaptation".
    "as_written": Recipe(
        epochs=50, lr=1e-4, batch_size=32, warmup=0, schedule="constant", k=100, block=256, rank=256, alpha=32.0, adapter_dropout=0.1,
        clip=0.0, flips=False, set_aside=0.0, keep="last",
    ),
    # The authors' code (RunningStone/PEKA bf9c6f5), whose method is the additive `bone`. Its "best" checkpoint is the last. One thing
    # is not repeated: its steps run under float16 autocast without a loss scaler, so that small gradients become 0; here bfloat16
    # where the GPU has it, else float32.
    "as_run": Recipe(
        epochs=10, lr=1e-4, batch_size=32, warmup=0, schedule="step", tau=2.0, tau_squared=True, k=100, classifier_epochs=20,
        block=256, rank=256, alpha=32.0, reallocate=False, clip=1.0, clip_by="value", pixels="raw", flips=False, set_aside=0.2,
        set_aside_by="spot", keep="last", projector="relu",
    ),
}  # fmt: skip


def name_of_recipe(recipe: Recipe) -> str:
    """`as_written` or `as_run` where a recipe is one of them but for its batch size, which memory decides; else empty."""
    same = (
        name
        for name, known in RECIPES.items()
        if replace(recipe, batch_size=known.batch_size) == known
    )
    return next(same, "")
