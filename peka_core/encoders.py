"""Encoders: a pathology foundation model F with its transform, pooling and precision.

`load_encoder` takes the name of an encoder, or one that you built. `mini` and `random` (the same
network, untrained) come with the package. The rows of data_manifest.yaml are pathology models and
what they are compared with. `my_file.py:build` is a function of yours, and any other name is a
timm model.
"""

import dataclasses
import hashlib
import inspect
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
from .common.files import sha256
from .models import backbones, own_file
from .models.encoder_files import BUNDLED, MINI_WEIGHTS, Row, find_weights, rows, weights_digest
from .training.batches import in_batches, pieces

Preprocess = Callable[[np.ndarray], Tensor | np.ndarray]


@dataclass
class Encoder:
    """A frozen model that turns tiles into features, and all that its numbers depend on.

    Attributes:
        name: `mini`, `random`, a row's name, a timm name, or `my_file.py:build`.
        model: the network, in evaluation mode, every parameter frozen. It maps (n, 3, size, size)
            to (n, dim), or to all tokens (n, tokens, dim / 2) where pool is `cls+mean`.
        mean, std: normalisation per channel, for values in 0..1.
        dim: length d of a feature vector.
        size: side of the input in pixels.
        resize: length of the shorter side before the centre crop to `size`. With None, tiles enter
            as they are, and tiles of another size are refused.
        interpolation: `bilinear` or `bicubic`, with antialiasing.
        pool: how tokens become one vector; `token` and `avg` in the model, `cls+mean` in `encode`.
        precision: `float32` or `bfloat16` (autocast) in `embed`.
        revision, digest: which weights; the sha256 of their file, or of the parameters.
        device: where the model is.
        preprocess: a transform of your own in place of resize and normalisation: tiles uint8
            (n, h, w, 3) to x float (n, 3, size, size).
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

    def transform(self, tiles: np.ndarray | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Tiles uint8 (n, h, w, 3) -> x (n, 3, size, size), normalised, on the encoder's device.

        Args:
            tiles: an array or a tensor.
            dtype: of x. bfloat16 loses nothing under bfloat16 autocast, where the first layer
                rounds x to bfloat16 anyway.

        Raises:
            PekaError: tiles of another type or shape.
        """
        if isinstance(tiles, np.ndarray):
            tiles = np.ascontiguousarray(tiles)  # torch takes no reversed views
        tiles = torch.as_tensor(tiles)
        if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[-1] != 3:
            found = f"{tiles.dtype} {tuple(tiles.shape)}"
            raise PekaError(f"tiles must be uint8 (n, height, width, 3), not {found}")
        if self.preprocess is not None:
            return torch.as_tensor(self.preprocess(tiles.cpu().numpy())).to(self.device, dtype)
        pixels = self._resize(tiles.to(self.device, non_blocking=True))  # (n, size, size, 3)
        rows = pixels.flatten(2)  # (n, size, size * 3): long rows, the colours side by side
        mean, std = (
            torch.tensor(v).repeat(self.size).to(self.device, non_blocking=True)
            for v in (self.mean, self.std)
        )
        scale, shift = 1 / (255 * std), -mean / std  # (size * 3,)
        x = torch.empty(rows.shape, dtype=dtype, device=self.device)
        step = 4 if x.device.type == "cpu" else len(x)  # a few tiles fit the CPU's cache
        for some in pieces(len(x), step):
            x[some] = torch.addcmul(shift, rows[some].float(), scale)
        return x.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)  # (n, 3, size, size), channels last

    def _resize(self, pixels: Tensor) -> Tensor:
        """(n, h, w, 3) -> (n, size, size, 3), 0..255, by torchvision's Resize and CenterCrop."""
        height, width = pixels.shape[1:3]
        if height == width == self.size and self.resize in (self.size, None):
            return pixels
        if self.resize is None:
            wanted = f"{self.size} x {self.size} px"
            raise PekaError(f"{self.name} takes tiles of {wanted} only, not {height} x {width} px")
        how = v2.InterpolationMode(self.interpolation)
        resize = v2.Compose([v2.Resize(self.resize, how, antialias=True), v2.CenterCrop(self.size)])
        x = resize(pixels.permute(0, 3, 1, 2).float()).clamp(0, 255)  # bicubic overshoots
        return x.permute(0, 2, 3, 1).contiguous()

    def encode(self, x: Tensor) -> Tensor:
        """x float (n, 3, size, size), normalised -> features (n, d), in the caller's precision.

        Raises:
            PekaError: x of another shape.
        """
        if tuple(x.shape[1:]) != (3, self.size, self.size):
            wanted = f"(n, 3, {self.size}, {self.size})"
            raise PekaError(
                f"{self.name} expects x {wanted} from its transform, not {tuple(x.shape)}"
            )
        if self.pool == "cls+mean":
            prefix: Any = self.model.num_prefix_tokens
            return backbones.cls_and_mean(self.model(x), prefix)
        return self.model(x)

    def embed(self, tiles, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Tiles uint8 (n, h, w, 3) -> features float32 (n, d), batch by batch."""
        return in_batches(self, tiles, lambda x: (self.encode(x),), batch_size, progress)[0]


def load_encoder(
    name: str | Encoder | tuple[nn.Module, Preprocess],
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Encoder:
    """Load an encoder, frozen, on `device` (the best one where it is not given).

    Args:
        name: `mini`, `random` (untrained, drawn from `seed`), a row of data_manifest.yaml, any timm
            model name, or `my_file.py:build`. A row's name comes first: `resnet50` is the row with
            torchvision's weights, and timm's default is `resnet50.a1_in1k`. In a notebook it may be
            what such a function returns: an `Encoder`, or a pair (model, preprocess).
        weights: a local .safetensors, .bin or .pth file instead of the model's own weights.
        seed: draws the weights of `random`.

    Raises:
        PekaError: an unknown name, a device that is not here, weights that cannot be had or do not
            fit the model, or an encoder of your own that fails the checks of `_own`.
    """
    device = check_device(str(device or "auto"))
    if not isinstance(name, str) or own_file.is_own(name):
        if weights is not None:
            raise PekaError(
                f"encoder {name}: your code loads its weights itself, not from {weights}"
            )
        return _from_file(name, device) if isinstance(name, str) else _own(name, "", device)
    if name in BUNDLED:
        encoder = _bundled(name, seed, weights)
    else:
        encoder = _from_row(rows()[name], weights) if name in rows() else _from_timm(name, weights)
    _freeze(encoder, device)
    encoder.precision = precision_on(device, name, encoder.model)
    return encoder


def _freeze(encoder: Encoder, device: str) -> None:
    """Freeze the model, in evaluation mode, on a device."""
    encoder.model.requires_grad_(False).eval().to(device).to(memory_format=torch.channels_last)
    encoder.device = device


def _bundled(name: str, seed: int, weights: str | Path | None) -> Encoder:
    """`mini` with its weights or those of a file, or `random`: its network drawn from `seed`."""
    from .models.mini import MINI_MEAN, MINI_STD, build_mini

    model = build_mini(seed)
    if name == "mini":
        _load(model, weights or MINI_WEIGHTS, name)
    return Encoder(
        name, model, MINI_MEAN, MINI_STD, model.num_features,
        revision="" if name == "mini" else f"seed {seed}",
        digest=weights_digest(name, weights, seed),
    )  # fmt: skip


def _from_row(row: Row, weights: str | Path | None) -> Encoder:
    """A row's network with the user's weights, or the pinned ones of mirror, cache or hub."""
    path, revision, digest = find_weights(row) if weights is None else (Path(weights), "", "")
    model, how = backbones.build(row), row.transform
    _load(model, path, row.name, row.layout)
    return Encoder(
        row.name, model, tuple(how["mean"]), tuple(how["std"]), row.dim, how["crop"], how["resize"],
        how["interpolation"] or "bilinear", pool=row.pooling, revision=revision,
        digest=digest or weights_digest(row.name, path),
    )  # fmt: skip


def _from_timm(name: str, weights: str | Path | None) -> Encoder:
    """A timm model with the data settings that timm keeps beside its weights."""
    model: Any = backbones.build_timm(name, pretrained=weights is None)
    how, origin = timm.data.resolve_model_data_config(model), model.pretrained_cfg
    if weights is not None:
        _load(model, weights, name)
    size, bicubic = how["input_size"][-1], how["interpolation"] == "bicubic"
    return Encoder(
        name, model, tuple(how["mean"]), tuple(how["std"]), model.num_features, size,
        math.floor(size / how["crop_pct"]), "bicubic" if bicubic else "bilinear",
        pool=str(getattr(model, "global_pool", "avg")),
        revision="" if weights else str(origin.get("hf_hub_id") or origin.get("url") or ""),
        digest=weights_digest(name, weights) if weights else _state_digest(model),
    )  # fmt: skip


def _load(model: nn.Module, path: str | Path, name: str, layout: str = "timm") -> None:
    """Read a file of weights into `model`."""
    state = backbones.read_weights(Path(path), name)
    backbones.put_weights(model, backbones.LAYOUTS[layout](state), path, name)


def _state_digest(model: nn.Module) -> str:
    """sha256 over names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(key.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def precision_on(device: str, name: str, model: nn.Module) -> str:
    """Precision in which an encoder embeds on a device; on a CPU always `float32`."""
    on_gpu = device.startswith("cuda") and has_bfloat16(device)
    return "bfloat16" if on_gpu and embeds_in_bfloat16(name, model) else "float32"


def embeds_in_bfloat16(name: str, model: nn.Module) -> bool:
    """Whether an encoder embeds in bfloat16 on a GPU that has it: vision transformers do.

    `mini` and `random` do not: such small models gain nothing, and features would be off by 5 %.
    """
    return isinstance(model, timm.models.VisionTransformer) and name not in BUNDLED


# ---- encoders of your own ------------------------------------------------------------------------


def _from_file(name: str, device: str) -> Encoder:
    """What a function of the user's file builds; the digest covers its parameters and the file."""
    path, _ = own_file.split_name(name)
    build, code = own_file.load_function(name), sha256(path)
    options = {"device": device} if "device" in inspect.signature(build).parameters else {}
    with own_file.told(name):
        built = build(**options)
    encoder = _own(built, name, device)
    digest = hashlib.sha256(f"{_state_digest(encoder.model)} {code}".encode()).hexdigest()
    return dataclasses.replace(encoder, name=own_file.short(name), digest=digest)


def _own(built, name: str, device: str) -> Encoder:
    """An `Encoder` or a pair (model, preprocess) of the user's, frozen, and tried on two tiles.

    Raises:
        PekaError: it is neither; or what it makes of two different tiles is not two different
            rows of `dim` finite numbers.
    """
    pair = isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], nn.Module)
    if not isinstance(built, Encoder) and not (pair and callable(built[1])):
        expected = "an Encoder, or a pair (model, preprocess) of an nn.Module and a function"
        raise PekaError(f"{name or 'load_encoder'}: expected {expected}, found {built!r:.80}")
    if isinstance(built, Encoder):
        encoder = dataclasses.replace(built)
    else:
        zero, one = (0.0,) * 3, (1.0,) * 3
        encoder = Encoder(type(built[0]).__name__, built[0], zero, one, 0, preprocess=built[1])
    _freeze(encoder, device)
    encoder.digest = encoder.digest or _state_digest(encoder.model)
    who, tiles = name or encoder.name, np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3))
    with own_file.told(f"{who}, given two tiles,"), torch.no_grad():
        x = encoder.transform(tiles.astype(np.uint8))
        if pair:
            encoder.size = encoder.resize = x.shape[-1]
        _finite(f"{who}: its transform", x, (2, 3, encoder.size, encoder.size))
        features = encoder.encode(x)
        encoder.dim = encoder.dim or features.shape[-1]
        _finite(f"{who}: its model", features, (2, encoder.dim))
    if torch.equal(features[0], features[1]):
        raise PekaError(f"{who}: its model gives two different tiles the same features")
    return encoder


def _finite(who: str, found: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse what is not finite floats of a shape."""
    kind = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found)
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape != shape:
        raise PekaError(f"{who} must give floats {shape} for two tiles, not {kind}")
    if not found.isfinite().all():
        raise PekaError(f"{who} gives values that are not finite")
