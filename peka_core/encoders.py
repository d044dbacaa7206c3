"""Encoders: a pathology foundation model F with its transform, pooling and precision.

`load_encoder` takes the name of an encoder, or an encoder that you built. `mini` and `random` (the
same network, untrained) come with the package. data_manifest.yaml lists other models, one entry
each. `my_file.py:build` is a function of yours, and any other name is a timm model.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from .common.device import check_device, has_bfloat16
from .common.errors import PekaError
from .models import backbones, encoder_files, own_file
from .models.encoder_files import BUNDLED, ManifestEntry, manifest_entries, weights_digest
from .models.weight_files import state_digest
from .training_parts.batches import in_batches, pieces

Preprocess = Callable[[np.ndarray], Tensor | np.ndarray]


@dataclass
class Encoder:
    """A frozen model that turns tiles into features, with every setting that changes the features.

    Attributes:
        name: as in `load_encoder`.
        model: the network, in evaluation mode, every parameter frozen. It maps (n, 3, size, size)
            to (n, dim), or to all tokens (n, tokens, dim / 2) if pool is `cls+mean`.
        mean: mean of each channel, for values in 0..1.
        std: standard deviation of each channel.
        dim: length d of a feature vector.
        size: side of the input in pixels.
        resize: length of the shorter side before the centre crop to `size`. With None, tiles enter
            as they are, and tiles of another size are refused.
        interpolation: `bilinear` or `bicubic`, with antialiasing.
        pool: how tokens become one vector. The model does `token` and `avg`; `encode` does
            `cls+mean`.
        precision: `float32` or `bfloat16` (autocast) in `embed`.
        revision: version of the weights, if it is known.
        digest: sha256 of the file of weights, or of the parameters.
        device: where the model is.
        preprocess: your own transform, tiles uint8 (n, h, w, 3) -> x float (n, 3, size, size). It
            replaces resize and normalisation.
        compile: whether the blocks of a vision transformer are compiled, `auto`, `always` or
            `never` (training_parts/speed.py). It changes features by rounding only.
    """

    name: str
    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dim: int
    size: int = 224
    resize: int | None = 224
    interpolation: str = "bilinear"
    pool: str = "avg"
    precision: str = "float32"
    revision: str = ""
    digest: str = ""
    device: str = "cpu"
    preprocess: Preprocess | None = None
    compile: str = "auto"

    def transform(self, tiles: np.ndarray | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Tiles uint8 (n, h, w, 3) -> x (n, 3, size, size), normalised, on the encoder's device.

        Under bfloat16 autocast, the first layer rounds x to bfloat16. Then x in this `dtype` gives
        the same features and takes less memory.
        """
        if isinstance(tiles, np.ndarray):
            tiles = np.ascontiguousarray(tiles)  # torch cannot read negative strides
        tiles = torch.as_tensor(tiles)
        if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[-1] != 3:
            found = f"{tiles.dtype} {tuple(tiles.shape)}"
            raise PekaError(f"tiles must be uint8 (n, height, width, 3), not {found}")
        if self.preprocess is not None:
            return torch.as_tensor(self.preprocess(tiles.cpu().numpy())).to(self.device, dtype)
        pixels = self._resize(tiles.to(self.device, non_blocking=True))  # (n, size, size, 3)
        pixel_rows = pixels.flatten(2)  # (n, size, size * 3): the colours side by side
        mean, std = (
            torch.tensor(v).repeat(self.size).to(self.device, non_blocking=True)
            for v in (self.mean, self.std)
        )
        scale, shift = 1 / (255 * std), -mean / std  # (size * 3,)
        x = torch.empty(pixel_rows.shape, dtype=dtype, device=self.device)
        step = 4 if x.device.type == "cpu" else len(x)  # a few tiles fit the CPU's cache
        for piece in pieces(len(x), step):
            x[piece] = torch.addcmul(shift, pixel_rows[piece].float(), scale)
        return x.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)  # (n, 3, size, size), channels last

    def _resize(self, pixels: Tensor) -> Tensor:
        """(n, h, w, 3) -> (n, size, size, 3), 0..255, by torchvision's Resize and CenterCrop."""
        height, width = pixels.shape[1:3]
        if height == width == self.size and self.resize in (self.size, None):
            return pixels
        if self.resize is None:
            wanted = f"{self.size} x {self.size} px"
            raise PekaError(f"{self.name} takes tiles of {wanted} only, not {height} x {width} px")
        mode = v2.InterpolationMode(self.interpolation)
        resize = v2.Resize(self.resize, mode, antialias=True)
        crop = v2.Compose([resize, v2.CenterCrop(self.size)])
        x = crop(pixels.permute(0, 3, 1, 2).float()).clamp(0, 255)  # bicubic overshoots
        return x.permute(0, 2, 3, 1).contiguous()

    def encode(self, x: Tensor) -> Tensor:
        """x float (n, 3, size, size), normalised -> features (n, d), in the caller's precision."""
        if tuple(x.shape[1:]) != (3, self.size, self.size):
            wanted = f"(n, 3, {self.size}, {self.size})"
            raise PekaError(f"{self.name} expects x {wanted}, not {tuple(x.shape)}")
        return self.pooled(self.model(x))

    def pooled(self, output: Tensor) -> Tensor:
        """Features (n, d) of the model's output; only `cls+mean` has something left to pool."""
        if self.pool == "cls+mean":
            prefix: Any = self.model.num_prefix_tokens
            return backbones.cls_and_mean(output, prefix)
        return output

    def embed(self, tiles, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Tiles uint8 (n, h, w, 3) -> features float32 (n, d), batch by batch."""
        return in_batches(self, tiles, lambda x: (self.encode(x),), batch_size, progress)[0]


def load_encoder(
    name: str | Encoder | tuple[nn.Module, Preprocess],
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    compile: str = "auto",
) -> Encoder:
    """Load an encoder, frozen, on `device` (by default the best one).

    Args:
        name: `mini`, `random` (untrained, drawn from `seed`), an entry of data_manifest.yaml, any
            timm model name, or `my_file.py:build`. The manifest has priority: `resnet50` is its
            entry with torchvision's weights, and timm's default is `resnet50.a1_in1k`. In a
            notebook, `name` may be an `Encoder` or a pair (model, preprocess).
        weights: a local .safetensors, .bin or .pth file instead of the model's own weights.
        seed: random seed for the weights of `random`.
        compile: as in `Encoder`.

    Raises:
        PekaError: the name is unknown, the device is not here, the weights cannot be had or do not
            fit the model, or your own encoder fails the checks of `own_file.try_on_two_tiles`.
    """
    device = check_device(str(device or "auto"))
    if not isinstance(name, str) or own_file.is_own(name):
        if weights is not None:
            raise PekaError(f"encoder {name} loads its own weights and cannot take {weights}")
        return dataclasses.replace(_own(name, device), compile=compile)
    if name in BUNDLED:
        encoder = _bundled(name, seed, weights)
    elif name in manifest_entries():
        encoder = _from_manifest(manifest_entries()[name], weights)
    else:
        encoder = _from_timm(name, weights)
    _freeze(encoder, device)
    encoder.precision, encoder.compile = precision_on(device, name, encoder.model), compile
    return encoder


def _freeze(encoder: Encoder, device: str) -> None:
    """Freeze the model, put it in evaluation mode, and move it to a device."""
    encoder.model.requires_grad_(False).eval().to(device).to(memory_format=torch.channels_last)
    encoder.device = device


def _bundled(name: str, seed: int, weights: str | Path | None) -> Encoder:
    """`mini` with its weights or those of a file, or `random` with weights drawn from `seed`."""
    from .models.mini import MINI_MEAN, MINI_STD, build_mini

    model, revision = build_mini(seed), "" if name == "mini" else f"seed {seed}"
    if name == "mini":
        backbones.load_weights(model, weights or encoder_files.MINI_WEIGHTS, name)
    digest = weights_digest(name, weights, seed)
    settings = (MINI_MEAN, MINI_STD, model.num_features)
    return Encoder(name, model, *settings, revision=revision, digest=digest)


def _from_manifest(entry: ManifestEntry, weights: str | Path | None) -> Encoder:
    """An entry of the manifest, with the user's weights or those of mirror, cache or hub."""
    path, revision, digest = (
        encoder_files.find_weights(entry) if weights is None else (Path(weights), "", "")
    )
    model, settings = backbones.build(entry), entry.transform
    backbones.load_weights(model, path, entry.name, entry.layout)
    return Encoder(
        entry.name, model, tuple(settings["mean"]), tuple(settings["std"]), entry.dim,
        settings["crop"], settings["resize"], settings["interpolation"] or "bilinear",
        pool=entry.pooling, revision=revision, digest=digest or weights_digest(entry.name, path),
    )  # fmt: skip


def _from_timm(name: str, weights: str | Path | None) -> Encoder:
    """A timm model with the settings that timm keeps with its weights."""
    model: Any = backbones.build_timm(name, pretrained=weights is None)
    settings, source = timm.data.resolve_model_data_config(model), model.pretrained_cfg
    if weights is not None:
        backbones.load_weights(model, weights, name)
    size, bicubic = settings["input_size"][-1], settings["interpolation"] == "bicubic"
    return Encoder(
        name, model, tuple(settings["mean"]), tuple(settings["std"]), model.num_features, size,
        math.floor(size / settings["crop_pct"]), "bicubic" if bicubic else "bilinear",
        pool=str(getattr(model, "global_pool", "avg")),
        revision="" if weights else str(source.get("hf_hub_id") or source.get("url") or ""),
        digest=weights_digest(name, weights) if weights else state_digest(model),
    )  # fmt: skip


def precision_on(device: str, name: str, model: nn.Module) -> str:
    """Precision in which an encoder embeds on a device; on a CPU always `float32`."""
    on_gpu = device.startswith("cuda") and has_bfloat16(device)
    return "bfloat16" if on_gpu and embeds_in_bfloat16(name, model) else "float32"


def embeds_in_bfloat16(name: str, model: nn.Module) -> bool:
    """True for a vision transformer, which embeds in bfloat16 on a GPU that has it.

    It is False for `mini` and `random`: models this small gain nothing, and their features would
    change by 5 %.
    """
    return isinstance(model, timm.models.VisionTransformer) and name not in BUNDLED


def _own(given, device: str) -> Encoder:
    """An encoder of the user's file, or an `Encoder` or pair, frozen and tried on two tiles."""
    name = given if isinstance(given, str) else ""
    built, code = own_file.build(name, device) if name else (given, "")
    if isinstance(built, Encoder):
        encoder = dataclasses.replace(built)
    elif own_file.is_pair(built):
        (model, preprocess), zero, one = built, (0.0,) * 3, (1.0,) * 3
        class_name = type(model).__name__
        encoder = Encoder(class_name, model, zero, one, dim=0, size=0, preprocess=preprocess)
    else:
        expected = "an Encoder, or a pair (model, preprocess) of an nn.Module and a function"
        raise PekaError(f"{name or 'load_encoder'}: expected {expected}, found {built!r:.80}")
    _freeze(encoder, device)
    own_file.try_on_two_tiles(encoder, name or encoder.name)
    if name or not encoder.digest:
        encoder.digest = state_digest(encoder.model)
    if name:  # an edit of the file is another encoder
        encoder.name = own_file.short(name)
        encoder.digest = hashlib.sha256(f"{encoder.digest} {code}".encode()).hexdigest()
    return encoder
