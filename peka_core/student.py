"""The student S: encoder F + adapter (Eq. 2, 3) + projector, in memory and on disk."""

import copy
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import adapters
from .common.device import versions
from .common.errors import PekaError
from .common.files import sha256, write_json, write_whole
from .encoders import Encoder
from .models.weight_files import load_safely
from .recipe import METHODS, Recipe
from .training.batches import in_batches

# a transform that leaves pixels at 0..255
RAW = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "preprocess": None}
# the two files of a student, and how the names of their tensors begin
PARTS = {"adapter": "network.", "projector": "projector."}
# fields of the recipe that the card of a saved student holds
ON_CARD = (
    "block", "rank", "alpha", "targets", "hidden", "dropout", "projector", "reallocate", "pixels",
)  # fmt: skip


class Student(nn.Module):
    """An encoder with an adapter, and a projector from the encoder's space to the teacher's.

    Adapter and projector are trained; the encoder is frozen. All students of an encoder share its
    frozen tensors, so many of them need the memory of one, and the encoder itself never changes.

    Args:
        encoder: from `load_encoder`. The student takes over its transform (but for `pixels: raw`),
            pooling, precision and device.
        method: one of `METHODS`. `full` trains a copy of the encoder, `projector_only` has no
            adapter, and `none` has neither adapter nor projector: it is the frozen encoder.
        d_teacher: dimension d_t of the teacher's space.
        recipe: the fields of adapter and projector (`ON_CARD`, `adapter_dropout`) are read.
        seed: draws the projector's weights and LoRA's first factor.

    Raises:
        PekaError: unknown method, targets that name no Linear layer, or a block size that does not
            divide one.
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
        self.network = copy.deepcopy(encoder.model) if method == "full" else _share(encoder.model)
        raw: Any = RAW if recipe.pixels == "raw" else {}
        self.encoder = dataclasses.replace(encoder, model=self.network, **raw)
        self.allocation = adapters.add(self.network, method, recipe, seed)
        self.projector = None
        if method != "none":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.projector = _projector(encoder.dim, d_teacher, recipe).to(encoder.device)
        self.eval()

    @property
    def device(self) -> str:
        """The device of the encoder, where the student is too."""
        return self.encoder.device

    @property
    def keeps_features(self) -> bool:
        """Whether its features are those of the frozen encoder: no adapter, and the same pixels."""
        return self.method == "projector_only" and self.recipe.pixels == "normalised"

    def train(self, mode: bool = True) -> "Student":
        """Training mode for the projector and the adapter's dropout.

        BatchNorm and dropout of the frozen encoder always stay as in inference.
        """
        super().train(mode)
        self.network.eval()
        for name, module in self.network.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        return self

    def forward(self, tiles: np.ndarray | Tensor) -> tuple[Tensor, ...]:
        """Tiles uint8 (n, h, w, 3) -> features (n, d) and their projection (n, d_t).

        The method `none` gives features alone.
        """
        kind = torch.device(self.device).type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):  # a transform of the user's keeps its precision
            x = self.encoder.transform(tiles, dtype)  # (n, 3, size, size)
        return self.encode(x)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """As `forward`, for tiles that are transformed already: x (n, 3, size, size)."""
        features = self.encoder.encode(x)  # (n, d)
        return (features,) if self.projector is None else (features, self.projector(features))

    def save(self, folder: str | Path, extra: dict | None = None) -> None:
        """Write adapter.safetensors, projector.safetensors and card.json, without frozen weights.

        Args:
            extra: further entries of the card (split, seed, ...), of types that JSON has.
        """
        folder, digests = Path(folder), {}
        trained = {n: p.detach() for n, p in self.named_parameters() if p.requires_grad}
        for part, prefix in PARTS.items():
            own = {n.removeprefix(prefix): p for n, p in trained.items() if n.startswith(prefix)}
            tensors = {name: p.cpu().contiguous() for name, p in own.items()}
            path = folder / f"{part}.safetensors"
            write_whole(path, functools.partial(save_file, tensors))
            digests[part] = sha256(path)
        write_json(folder / "card.json", {**(extra or {}), **self._card(), "sha256": digests})

    def _card(self) -> dict:
        encoder = self.encoder
        return {
            "encoder": encoder.name, "revision": encoder.revision, "digest": encoder.digest,
            "precision": encoder.precision, "dim": encoder.dim, "method": self.method,
            "d_teacher": self.d_teacher, **{name: getattr(self.recipe, name) for name in ON_CARD},
            "parameters": count_parameters(self), "versions": versions(),
        }  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder) -> "Student":
        """Put a saved adapter and projector onto the encoder with which they were trained.

        Raises:
            PekaError: there is no card, the encoder or its weights are others, a file is damaged,
                or its tensors do not fit.
        """
        folder = Path(folder)
        card = _read_card(folder, encoder)
        recipe = Recipe(**{name: card[name] for name in ON_CARD if name in card})
        student = cls(encoder, card["method"], card["d_teacher"], recipe)
        state: dict[str, Tensor] = {}
        for part, prefix in PARTS.items():
            tensors = load_safely(folder / f"{part}.safetensors")
            state |= {prefix + name: tensor for name, tensor in tensors.items()}
        wanted = {name for name, p in student.named_parameters() if p.requires_grad}
        if state.keys() != wanted:
            odd = sorted(state.keys() ^ wanted)[:4]
            raise PekaError(f"{folder} does not hold the tensors of its card: {odd}; align again")
        student.load_state_dict(state, strict=False)
        return student


def _share(model: nn.Module) -> nn.Module:
    """New modules around the same tensors, which is safe because nobody writes to frozen ones."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo=shared).requires_grad_(False).eval()


def _projector(dim: int, d_teacher: int, recipe: Recipe) -> nn.Sequential:
    """MLP d -> hidden -> d_t; `relu` without dropout is the authors' Linear, ReLU, Linear."""
    between: list[nn.Module] = [nn.ReLU() if recipe.projector == "relu" else nn.GELU()]
    if recipe.projector == "gelu" or recipe.dropout:
        between.append(nn.Dropout(recipe.dropout))
    first, last = nn.Linear(dim, recipe.hidden), nn.Linear(recipe.hidden, d_teacher)
    return nn.Sequential(first, *between, last)


def _read_card(folder: Path, encoder: Encoder) -> dict:
    """card.json, if it was written for this encoder."""
    path = folder / "card.json"
    if not path.exists():
        raise PekaError(f"{path} is missing: {folder} holds no finished student; run 03_alignment")
    card = json.loads(path.read_text())
    if card["encoder"] != encoder.name:
        raise PekaError(
            f"{folder} was trained on encoder {card['encoder']!r}, not on {encoder.name!r}: load "
            f"{card['encoder']!r}"
        )
    if card["digest"] != encoder.digest:
        raise PekaError(
            f"{folder} was trained on other weights of {encoder.name!r}: their digest is "
            f"{card['digest'][:12]}, that of the given encoder {encoder.digest[:12]}; use the same "
            "weights, or align again"
        )
    return card


def project_features(student: Student, features: np.ndarray) -> np.ndarray:
    """Projection (n, d_t) of features (n, d) that were computed before."""
    assert student.projector is not None
    with torch.no_grad():
        x = torch.as_tensor(features, device=student.device)
        return student.projector(x).cpu().numpy()


def in_space(embedded, space: str, frozen: np.ndarray | None = None) -> np.ndarray:
    """Features (n, d) of all spots in one space.

    Args:
        embedded: arrays by name, `X_encoder` and `X_projected`, as the obsm of a features table.
        space: `encoder`, `projected`, or `concat`: the frozen features beside the projected ones.
        frozen: features (n, d) of the frozen encoder, which only `concat` needs.
    """
    if space == "concat":
        return np.concatenate([frozen, embedded["X_projected"]], axis=1)  # (n, d + d_t)
    return embedded[f"X_{space}"]


def count_parameters(student: Student) -> dict[str, int]:
    """Trained values of `adapter` and `projector`, and all values of the frozen `encoder`.

    For `full` the encoder's are counted as adapter and as encoder.
    """
    counts = {"adapter": 0, "projector": 0, "encoder": 0}
    for name, p in student.named_parameters():
        trained = "adapter" if name.startswith("network.") else "projector"
        if ".ranknum." not in name:  # which is no weight: peft keeps the number of ranks there
            counts[trained if p.requires_grad else "encoder"] += p.numel()
    return counts if student.method != "full" else counts | {"encoder": counts["adapter"]}


def embed_tiles(
    student: Student | Encoder, tiles: Any, batch_size: int = 256, progress: bool = True
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
    outputs = in_batches(student.encoder, tiles, student.encode, batch_size, progress)
    return dict(zip(("encoder", "projected"), outputs, strict=False))
