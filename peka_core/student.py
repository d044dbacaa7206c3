"""The student: encoder F with an adapter (Eq. 2 and 3), then a projector to the teacher's space.

The adapter and the projector are trained; the encoder is frozen. (The method `full` has no adapter
and trains a copy of the encoder.) Eq. 2 has no projector. But F gives d values for a tile and the
teacher d_t, and L_KD compares the two, so the authors' code has a projector too.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import adapters
from .common.errors import PekaError
from .encoders import Encoder
from .recipe import METHODS, Recipe
from .training_parts import saved_student
from .training_parts.batches import in_batches

# `transform` divides pixels by 255 and by std: x / 255 / (1 / 255) is x. A user's own transform is
# not used for raw pixels.
RAW_PIXELS = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "preprocess": None}


class Student(nn.Module):
    """An encoder with an adapter, and a projector from the encoder's space to the teacher's.

    All students of an encoder share its frozen tensors. So they need little memory, and the
    encoder itself never changes.

    Args:
        encoder: from `load_encoder`. The student uses its transform (except for `pixels: raw`),
            pooling and device. `embed_tiles` uses its precision; training uses bfloat16 where the
            device has it.
        method: one of `METHODS`. `full` trains a copy of the encoder, `projector_only` has no
            adapter, and `none` has neither adapter nor projector: it is the frozen encoder.
        d_teacher: dimension d_t of the teacher's space.
        recipe: its fields for adapter, projector and pixels are used.
        seed: random seed for the projector's weights and LoRA's first factor.

    Raises:
        PekaError: unknown method, layers that the encoder does not have, or a block size that does
            not divide the features of such a layer.
    """

    projector: nn.Sequential | None

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
        copied = copy.deepcopy if method == "full" else _copy_sharing_tensors
        self.network = copied(encoder.model)
        raw: Any = RAW_PIXELS if recipe.pixels == "raw" else {}
        # The encoder of a student holds the same network, so it is adapted from here on.
        self.encoder = dataclasses.replace(encoder, model=self.network, **raw)
        self.rank_schedule = adapters.add(self.network, method, recipe, seed)
        self.projector = None
        if method != "none":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.projector = _projector(encoder.dim, d_teacher, recipe).to(encoder.device)
        self.eval()

    @property
    def device(self) -> str:
        """The device of the encoder and of the student."""
        return self.encoder.device

    @property
    def keeps_features(self) -> bool:
        """True if a trained student's features before the projector are the frozen encoder's."""
        return self.method == "projector_only" and self.recipe.pixels == "normalised"

    def train(self, mode: bool = True) -> "Student":
        """Switch the projector and the adapter's dropout to training mode.

        BatchNorm and dropout of the encoder always stay in inference mode.
        """
        super().train(mode)
        self.network.eval()
        for name, module in self.network.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        return self

    def forward(self, tiles: np.ndarray | Tensor) -> tuple[Tensor, ...]:
        """Map tiles uint8 (n, h, w, 3) to features (n, d) and their projection (n, d_t).

        A student of method `none` returns the features alone. Instead of tiles, the `tokens` (n, t,
        d) of tiles may be given.
        """
        if isinstance(tiles, Tensor) and tiles.is_floating_point():
            return self._with_projection(self._above(tiles))
        return self.encode(self._transformed(tiles))

    def _transformed(self, tiles: np.ndarray | Tensor) -> Tensor:
        kind = torch.device(self.device).type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):  # a user's own transform keeps its precision
            return self.encoder.transform(tiles, dtype)  # (n, 3, size, size)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what `forward` returns, from transformed tiles x (n, 3, size, size)."""
        return self._with_projection(self.encoder.encode(x))

    def tokens(self, tiles: np.ndarray | Tensor) -> Tensor:
        """Tokens (n, t, d) of tiles uint8 (n, h, w, 3) below the last blocks, the trained ones.

        These tokens do not change while the student is trained, so `TokenCache` keeps them.
        """
        net: Any = self.network
        x = net.patch_embed(self._transformed(tiles))
        x = net.norm_pre(net.patch_drop(net._pos_embed(x)))  # (n, t, d)
        for block in net.blocks[: len(net.blocks) - self.recipe.last_blocks]:
            x = block(x)
        return x

    def _above(self, tokens: Tensor) -> Tensor:
        """Features (n, d) of tokens (n, t, d), by the last blocks."""
        net: Any = self.network
        for block in net.blocks[len(net.blocks) - self.recipe.last_blocks :]:
            tokens = block(tokens)
        return self.encoder.pooled(net.forward_head(net.norm(tokens)))

    def _with_projection(self, features: Tensor) -> tuple[Tensor, ...]:
        return (features,) if self.projector is None else (features, self.projector(features))

    def save(self, folder: str | Path, extra: dict | None = None) -> None:
        """Write adapter.safetensors, projector.safetensors and card.json, without frozen weights.

        card.json says what the student is: encoder, method, recipe, and digests of the files.

        Args:
            extra: further entries of the card (split, seed, ...), of types that JSON has.
        """
        saved_student.save(self, folder, extra or {})

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder) -> "Student":
        """Put a saved adapter and projector onto the encoder with which they were trained.

        Raises:
            PekaError: card.json is missing, the encoder or its weights differ from those that it
                was trained with, a file is damaged, or the tensors do not match card.json.
        """
        make = lambda method, d_teacher, values: cls(encoder, method, d_teacher, Recipe(**values))
        return saved_student.load(make, folder, encoder)


def _copy_sharing_tensors(model: nn.Module) -> nn.Module:
    """Copy the modules but not the tensors. This is safe because frozen tensors never change."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo=shared).requires_grad_(False).eval()


def _projector(dim: int, d_teacher: int, recipe: Recipe) -> nn.Sequential:
    """MLP d -> hidden -> d_t; `relu` without dropout is the authors' Linear, ReLU, Linear."""
    between: list[nn.Module] = [nn.ReLU() if recipe.projector == "relu" else nn.GELU()]
    if recipe.projector == "gelu" or recipe.dropout:
        between.append(nn.Dropout(recipe.dropout))
    first, last = nn.Linear(dim, recipe.hidden), nn.Linear(recipe.hidden, d_teacher)
    return nn.Sequential(first, *between, last)


def project_features(student: Student, features: np.ndarray) -> np.ndarray:
    """Projection (n, d_t) of features (n, d) that were computed earlier."""
    assert student.projector is not None
    with torch.no_grad():
        x = torch.as_tensor(features, device=student.device)
        return student.projector(x).cpu().numpy()


def embed_tiles(
    student: Student | Encoder, tiles: Any, batch_size: int = 256, progress: bool = True
) -> dict[str, np.ndarray]:
    """Features of all tiles in one pass.

    A batch that does not fit into the GPU's memory is halved without a message, because the
    features of a tile do not depend on the batch.

    Under torchrun, each worker computes its part of the features, and then has all of them.

    Args:
        student: a student, or an encoder for frozen features.
        tiles: uint8 (n, h, w, 3), an array or a reader that takes slices.

    Returns:
        `encoder` (n, d), the features before the projector, which are adapted if the student has an
        adapter; and for a student with a projector `projected` (n, d_t). Both are float32.
    """
    if isinstance(student, Encoder):
        return {"encoder": student.embed(tiles, batch_size, progress)}
    student.eval()
    outputs = in_batches(student.encoder, tiles, student.encode, batch_size, progress)
    return dict(zip(("encoder", "projected"), outputs, strict=False))  # `none` has one output
