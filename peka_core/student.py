"""The student S: encoder F + adapter (Eq. 2, 3) + projector, and what is left of it on disk."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import adapters
from .batches import in_batches
from .device import versions
from .encoders import Encoder
from .errors import PekaError
from .files import sha256, write_json, write_whole
from .models.weight_files import load_safely
from .recipe import CHOICES, METHODS, Recipe

# a transform that leaves pixels at 0..255
RAW = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "preprocess": None}


class Student(nn.Module):
    """An encoder with an adapter, and a projector onto the teacher's space.

    The encoder that is passed in is left as it is: the student has its own modules around the *same*
    frozen tensors, so any number of students and the frozen encoder live side by side for the memory of one.

    Args:
        encoder: frozen, from `load_encoder`; its transform (but for `pixels: raw`), pooling, precision and device are the student's.
        method: `bat`, `bone`, `lora`, `adalora` (adapter and projector train), `full` (a copy of the encoder, and the
            projector), `projector_only` (no adapter), or `none` (nothing trains: the frozen encoder under the same
            interface, without a projector).
        d_teacher: dimension of the teacher's space.
        recipe: block, rank, alpha, reallocate, adapter_dropout, targets, hidden, dropout, projector and pixels are read from it.
        seed: draws the projector's weights and LoRA's first factor; every adapter starts as the identity.

    Raises:
        PekaError: unknown method, targets that name no Linear layer, or a block size that does not divide one.
    """

    def __init__(
        self,
        encoder: Encoder,
        method: str,
        d_teacher: int,
        recipe: Recipe | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if method not in METHODS:
            raise PekaError(f"method {method!r} is unknown; there are {', '.join(METHODS)}")
        recipe = recipe or Recipe()
        self.method, self.d_teacher, self.recipe = method, d_teacher, recipe
        self.network = copy.deepcopy(encoder.model) if method == "full" else _share(encoder.model)
        self.encoder = dataclasses.replace(
            encoder, model=self.network, **(RAW if recipe.pixels == "raw" else {})
        )
        self.allocation = adapters.add(self.network, method, recipe, seed)
        self.projector = None
        if method != "none":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.projector = _projector(encoder.dim, d_teacher, recipe).to(encoder.device)
        self.eval()

    @property
    def device(self) -> str:
        """Where the student lives: its encoder's device."""
        return self.encoder.device

    def train(self, mode: bool = True) -> "Student":
        """Training mode for the projector and LoRA's dropout only: BatchNorm and dropout of the frozen encoder stay as in inference."""
        super().train(mode)
        self.network.eval()
        for name, module in self.network.named_modules():
            if "lora_dropout" in name:  # the adapter's own, the frozen encoder's stays off
                module.train(mode)
        return self

    def start(self, steps: int) -> None:
        """Tell adalora how many optimiser steps there will be; nothing for the other methods."""
        if self.allocation is not None:
            self.allocation.start(steps)

    def after_step(self, step: int) -> None:
        """Let adalora move ranks after optimiser step `step` (from 0), while the gradients are still there."""
        if self.allocation is not None:
            self.allocation.after_step(step)

    def within_budget(self, steps_done: int) -> bool:
        """Whether a student of this many steps has its final size: adalora's only once its ranks are down to the budget."""
        return self.allocation is None or self.allocation.within_budget(steps_done)

    def penalty(self) -> Tensor | float:
        """What the method adds to the loss while training: adalora's regulariser, else 0."""
        return 0.0 if self.allocation is None else self.allocation.penalty()

    def ranks(self) -> dict[str, int]:
        """adalora's ranks in use as `rank_<layer>`, empty for the other methods."""
        return (
            {}
            if self.allocation is None
            else {f"rank_{name}": r for name, r in self.allocation.ranks().items()}
        )

    @property
    def keeps_features(self) -> bool:
        """Whether its encoder space is that of the frozen encoder: no adapter, and the same pixels."""
        return self.method == "projector_only" and self.recipe.pixels == "normalised"

    def project(self, features: Tensor) -> Tensor:
        """Features (n, d) -> teacher space (n, d_t)."""
        return self.projector(features)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | tuple[Tensor]:
        """x (n, 3, size, size) -> features (n, d) and, but for `none`, their projection (n, d_t)."""
        features = self.encoder.encode(
            x
        )  # (n, d); without an adapter nothing here asks for a gradient
        return (features,) if self.projector is None else (features, self.project(features))

    def save(self, folder: str | Path, extra: dict | None = None) -> None:
        """Write adapter.safetensors, projector.safetensors and card.json; frozen weights are not written.

        Args:
            extra: further entries of the card that JSON can hold (teacher, split, seed, ...).
        """
        folder = Path(folder)
        trained = {
            name: p.detach().cpu().contiguous()
            for name, p in self.named_parameters()
            if p.requires_grad
        }
        for part, prefix in (("adapter", "network."), ("projector", "projector.")):
            tensors = {
                name.removeprefix(prefix): t
                for name, t in trained.items()
                if name.startswith(prefix)
            }
            write_whole(
                folder / f"{part}.safetensors",
                lambda path, tensors=tensors: save_file(tensors, path),
            )
        digests = {
            part: sha256(folder / f"{part}.safetensors") for part in ("adapter", "projector")
        }
        write_json(folder / "card.json", {**(extra or {}), **self._card(), "sha256": digests})

    def _card(self) -> dict:
        encoder, recipe = self.encoder, self.recipe
        return {
            "encoder": encoder.name, "revision": encoder.revision, "digest": encoder.digest,
            "precision": encoder.precision, "dim": encoder.dim, "method": self.method, "d_teacher": self.d_teacher,
            "block": recipe.block, "rank": recipe.rank, "alpha": recipe.alpha, "targets": list(recipe.targets),
            "hidden": recipe.hidden, "dropout": recipe.dropout, "projector": recipe.projector, "reallocate": recipe.reallocate,
            "pixels": recipe.pixels, "parameters": count_parameters(self), "versions": versions(),
        }  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder) -> "Student":
        """Put a saved adapter and projector onto the encoder they were trained with.

        Raises:
            PekaError: no card, another encoder or other weights of it, damaged files, or tensors that do not fit.
        """
        folder = Path(folder)
        card = _read_card(folder, encoder)
        written = (
            "block",
            "rank",
            "alpha",
            "hidden",
            "dropout",
            "projector",
            "reallocate",
            "pixels",
        )
        options = {
            name: card[name] for name in written if name in card
        }  # older cards lack some: then the default was used
        recipe = Recipe(**options, targets=tuple(card["targets"]))
        student = cls(encoder, card["method"], card["d_teacher"], recipe)
        state = {}
        for part, prefix in (("adapter", "network."), ("projector", "projector.")):
            tensors = load_safely(folder / f"{part}.safetensors")
            state |= {prefix + name: tensor for name, tensor in tensors.items()}
        wanted = {name for name, p in student.named_parameters() if p.requires_grad}
        if state.keys() != wanted:
            odd = sorted(state.keys() ^ wanted)[:4]
            raise PekaError(f"{folder} does not hold the tensors of its card: {odd}; align again")
        student.load_state_dict(state, strict=False)
        return student


def _share(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same tensors; safe because they are frozen and nobody writes to them."""
    tensors = [*model.parameters(), *model.buffers()]
    return (
        copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})
        .requires_grad_(False)
        .eval()
    )


def _projector(dim: int, d_teacher: int, recipe: Recipe) -> nn.Sequential:
    """MLP d -> hidden -> d_teacher; with `relu` and no dropout it is the authors' Linear, ReLU, Linear."""
    if recipe.projector not in CHOICES["projector"]:
        raise PekaError(
            f"projector {recipe.projector!r} is unknown: {' or '.join(CHOICES['projector'])}"
        )
    between: list[nn.Module] = [nn.GELU(), nn.Dropout(recipe.dropout)]
    if recipe.projector == "relu":
        between = [nn.ReLU(), nn.Dropout(recipe.dropout)] if recipe.dropout else [nn.ReLU()]
    return nn.Sequential(
        nn.Linear(dim, recipe.hidden), *between, nn.Linear(recipe.hidden, d_teacher)
    )


def _read_card(folder: Path, encoder: Encoder) -> dict:
    """card.json, if it was written for this encoder."""
    path = folder / "card.json"
    if not path.exists():
        raise PekaError(f"{path} is missing: {folder} holds no finished student; run 03_alignment")
    card = json.loads(path.read_text())
    if card["encoder"] != encoder.name:
        raise PekaError(
            f"{folder} was trained on encoder {card['encoder']!r}, not on {encoder.name!r}: load {card['encoder']!r}"
        )
    if card["digest"] != encoder.digest:
        raise PekaError(
            f"{folder} was trained on other weights of {encoder.name!r}: digest {card['digest'][:12]}, "
            f"the encoder at hand has {encoder.digest[:12]}; use the same weights or align again"
        )
    return card


def project_features(student: Student, features: np.ndarray) -> np.ndarray:
    """Projected space (n, d_t) of features (n, d) that are at hand already, for a student without an adapter."""
    with torch.no_grad():
        return student.project(torch.as_tensor(features, device=student.device)).cpu().numpy()


def in_space(embedded, space: str, frozen: np.ndarray | None = None) -> np.ndarray:
    """Features (n, d) of all spots in one space.

    Args:
        embedded: arrays by name, `X_encoder` and `X_projected`, such as the obsm of a features table.
        space: `encoder`, `projected`, or `concat`: the frozen features beside the projected ones.
        frozen: features (n, d) of the frozen encoder, which only `concat` needs.
    """
    if space == "concat":
        return np.concatenate([frozen, embedded["X_projected"]], axis=1)  # (n, d + d_t)
    return embedded[f"X_{space}"]


def count_parameters(student: Student) -> dict[str, int]:
    """Trainable values of adapter and projector, and those of the encoder (for `full` the same that are trained)."""
    counts = {"adapter": 0, "projector": 0, "encoder": 0}
    for name, p in student.named_parameters():
        part = (
            "encoder"
            if not p.requires_grad
            else "adapter"
            if name.startswith("network.")
            else "projector"
        )
        counts[part] += (
            p.numel() if "lora_ranknum" not in name else 0
        )  # peft keeps a rank's number as a parameter
    return counts if student.method != "full" else counts | {"encoder": counts["adapter"]}


def embed_tiles(
    student: Student | Encoder, tiles, batch_size: int = 256, progress: bool = True
) -> dict[str, np.ndarray]:
    """Features of all tiles in one pass.

    Args:
        student: a student, or an encoder for frozen features.
        tiles: uint8 (n, h, w, 3), an array or a reader that takes slices.

    Returns:
        `encoder` (n, d) and, for a student with a projector, `projected` (n, d_t); float32.
    """
    if isinstance(student, Encoder):
        return {"encoder": student.embed(tiles, batch_size, progress)}
    student.eval()
    outputs = in_batches(student.encoder, tiles, student, batch_size, progress)
    return dict(zip(("encoder", "projected"), outputs, strict=False))
