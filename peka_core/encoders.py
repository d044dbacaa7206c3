"""Encoders: a pathology foundation model F together with its transform, pooling and precision.

`mini` and `random` (the same network, untrained) come with the package; the rows of data_manifest.yaml are pathology models
and what they are compared with; any other name is a timm model, with timm's own weights and data settings. All of these
take weights from a local file instead.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from .batches import in_turn, pieces
from .device import autocast, check_device, has_bfloat16
from .downloads.network import check_network, told
from .errors import PekaError
from .models import backbones
from .models.encoder_files import BUNDLED, MINI_WEIGHTS, Row, find_weights, rows, weights_digest


@dataclass
class Encoder:
    """A frozen model that turns tiles into features, and all that its numbers depend on.

    Attributes:
        name: `mini`, `random`, a row's or a timm name.
        model: the network, in evaluation mode, every parameter frozen; (n, 3, size, size) -> (n, dim), or all tokens
            (n, tokens, dim / 2) where pool is `cls+mean`.
        mean, std: normalisation per channel, for values in 0..1.
        dim: length d of a feature vector.
        size: side of the input in pixels.
        resize: shorter side before the centre crop to `size`; equal to `size` where nothing is cropped. None: tiles enter
            as they are, and any other than size x size are refused.
        interpolation: `bilinear` or `bicubic`, with antialiasing.
        pool: how tokens become one vector: `token` and `avg` inside the model, `cls+mean` in `encode`.
        precision: `float32` or `bfloat16` (autocast) in `embed`.
        revision, digest: which weights; sha256 of their file, or of the parameters where there is no file.
        device: where the model is.
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

    def transform(self, tiles: np.ndarray | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Tiles uint8 (n, h, w, 3) -> x (n, 3, size, size), normalised, on the encoder's device.

        Args:
            dtype: of x. Under bfloat16 autocast bfloat16 loses nothing, since the first layer rounds x to it anyway.

        Raises:
            PekaError: tiles of another type or shape.
        """
        tiles = (
            np.ascontiguousarray(tiles) if isinstance(tiles, np.ndarray) else tiles
        )  # torch takes no reversed views
        tiles = torch.as_tensor(tiles)
        if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[-1] != 3:
            raise PekaError(
                f"tiles must be uint8 (n, height, width, 3), not {tiles.dtype} {tuple(tiles.shape)}"
            )
        pixels = self._resize(
            tiles.to(self.device, non_blocking=True)
        )  # (n, size, size, 3), 0..255
        rows = pixels.flatten(2)  # (n, size, size * 3): long rows, the colours side by side
        mean, std = (
            torch.tensor(v).repeat(self.size).to(self.device, non_blocking=True)
            for v in (self.mean, self.std)
        )
        scale, shift = 1 / (255 * std), -mean / std  # (size * 3,)
        x = torch.empty(rows.shape, dtype=dtype, device=self.device)
        for some in pieces(
            len(x), 4 if x.device.type == "cpu" else len(x)
        ):  # a few tiles fit the CPU's cache
            x[some] = torch.addcmul(shift, rows[some].float(), scale)
        return x.unflatten(2, (-1, 3)).permute(
            0, 3, 1, 2
        )  # (n, 3, size, size), channels last in memory

    def _resize(self, pixels: Tensor) -> Tensor:
        """Shorter side to `resize`, then the centre `size` x `size`: (n, h, w, 3) -> (n, size, size, 3), 0..255."""
        height, width = pixels.shape[1:3]
        if height == width == self.size and self.resize in (self.size, None):
            return pixels
        if self.resize is None:
            wanted = f"{self.size} x {self.size}"
            raise PekaError(
                f"{self.name} takes tiles of {wanted} px as they are, not {height} x {width}: cut others"
            )
        scale = self.resize / min(height, width)
        sides = [int(height * scale + 1e-9), int(width * scale + 1e-9)]
        x = F.interpolate(
            pixels.permute(0, 3, 1, 2).float(), sides, mode=self.interpolation, antialias=True
        )
        top, left = (round((side - self.size) / 2) for side in sides)
        x = x[:, :, top : top + self.size, left : left + self.size].clamp(
            0, 255
        )  # bicubic overshoots
        return x.permute(0, 2, 3, 1).contiguous()

    def encode(self, x: Tensor) -> Tensor:
        """x float (n, 3, size, size), normalised -> features (n, d), in the precision around the call.

        Raises:
            PekaError: x of another shape.
        """
        if tuple(x.shape[1:]) != (3, self.size, self.size):
            wanted = f"(n, 3, {self.size}, {self.size})"
            raise PekaError(
                f"{self.name} expects x {wanted}, not {tuple(x.shape)}: see its transform"
            )
        if self.pool == "cls+mean":
            return backbones.cls_and_mean(self.model(x), self.model.num_prefix_tokens)
        return self.model(x)

    def embed(self, tiles, batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Tiles uint8 (n, h, w, 3) -> features float32 (n, d): transform, then encode, batch by batch."""
        return in_batches(self, tiles, lambda x: (self.encode(x),), batch_size, progress)[0]


def in_batches(
    encoder: Encoder,
    tiles,
    forward: Callable[[Tensor], tuple[Tensor, ...]],
    batch_size: int,
    progress: bool,
) -> list[np.ndarray]:
    """Each output of `forward(x)` for all tiles, float32, in the encoder's precision and without gradients.

    A batch that the device has no memory for is halved, for good.

    Raises:
        PekaError: no tiles, or no memory for a single one.
    """
    tiles = np.stack(tiles) if isinstance(tiles, (list, tuple)) and len(tiles) else tiles
    if len(tiles) == 0:
        raise PekaError("there are no tiles to embed")
    on_cpu = torch.device(encoder.device).type == "cpu"
    size = min(batch_size, 32) if on_cpu else batch_size  # small batches stay in a CPU's cache
    parts = []
    bar = tqdm(
        total=len(tiles), desc=f"embed with {encoder.name}", unit="tile", disable=not progress
    )
    for chunk in in_turn(lambda some: tiles[some], pieces(len(tiles), size), ahead=not on_cpu):
        while len(chunk):
            outputs = _outputs(encoder, chunk[:size], forward)
            if outputs is None and size == 1:
                raise PekaError(
                    f"no memory for a single tile on {encoder.device}: take a smaller encoder, or another device"
                )
            if outputs is None:  # no memory for so many
                torch.cuda.empty_cache()
                size = max(1, min(size, len(chunk)) // 2)
                continue
            parts.append(outputs)
            bar.update(len(chunk[:size]))
            chunk = chunk[size:]
    bar.close()
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _outputs(
    encoder: Encoder, tiles: np.ndarray, forward: Callable[[Tensor], tuple[Tensor, ...]]
) -> list[np.ndarray] | None:
    """Outputs of one batch, or None where the device has no memory for it."""
    try:
        x = encoder.transform(tiles)
        with torch.no_grad(), autocast(encoder.device, encoder.precision):
            return [output.float().cpu().numpy() for output in forward(x)]
    except torch.OutOfMemoryError:
        return None


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Encoder:
    """Load an encoder, frozen, on `device` (the best one where it is not given).

    Args:
        name: `mini`, `random` (untrained, drawn from `seed`), a row of data_manifest.yaml, or any timm model name. A
            row's name wins: `resnet50` is the row with torchvision's weights, and timm's default is `resnet50.a1_in1k`.
        weights: a local .safetensors, .bin or .pth file instead of the model's own weights.
        seed: draws the weights of `random`.

    Raises:
        PekaError: unknown name, weights that cannot be had, a file that does not fit the model, or a device that is not here.
    """
    device = check_device(device or "auto")
    if name in BUNDLED:
        encoder = _bundled(name, seed, weights)
    else:
        encoder = _from_row(rows()[name], weights) if name in rows() else _from_timm(name, weights)
    encoder.model.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
    encoder.device = device
    encoder.precision = precision_on(device, name, encoder.model)
    return encoder


def _bundled(name: str, seed: int, weights: str | Path | None) -> Encoder:
    """`mini` with the weights of the package or of a file, or `random`: its network as drawn from `seed`."""
    from .models.mini import MINI_MEAN, MINI_STD, build_mini

    model = build_mini(seed)
    if name == "mini":
        _load(model, weights or MINI_WEIGHTS, name)
    facts = {
        "digest": weights_digest(name, weights, seed),
        "revision": "" if name == "mini" else f"seed {seed}",
    }
    return Encoder(name, model, tuple(MINI_MEAN), tuple(MINI_STD), model.num_features, **facts)


def _from_row(row: Row, weights: str | Path | None) -> Encoder:
    """A row's network with the weights of a file: the user's, or the pinned one of mirror, cache or hub."""
    if weights is not None:
        path, revision, digest = Path(weights), "", ""
    else:
        path, revision, digest = find_weights(row)
    model, how = backbones.build(row), row.transform
    _load(model, path, row.name, row.layout)
    return Encoder(
        row.name, model, tuple(how["mean"]), tuple(how["std"]), row.dim, how["crop"], how["resize"],
        how["interpolation"] or "bilinear", pool=row.pooling, revision=revision, digest=digest or weights_digest(row.name, path),
    )  # fmt: skip


def _from_timm(name: str, weights: str | Path | None) -> Encoder:
    """A timm model with the data settings that timm keeps beside its weights."""
    try:
        model = timm.create_model(name, pretrained=weights is None, num_classes=0)
    except Exception as error:  # timm and the hub raise many kinds: no such name, no network, no access, no weights
        if weights is None:
            check_network(hub=True)
        raise PekaError(
            f"encoder {name!r} could not be made by timm ({told(error)}). "
            f"Names: mini, random, {', '.join(rows())}, or one of timm.list_models(pretrained=True). "
            f"Without a network give the weights as a file: --weights {name}=PATH. "
            "For a gated model accept the terms on its page and set HF_TOKEN."
        ) from error
    cfg = timm.data.resolve_model_data_config(model)
    if weights is not None:
        _load(model, weights, name)
    size = cfg["input_size"][-1]
    source = (
        ""
        if weights
        else str(model.pretrained_cfg.get("hf_hub_id") or model.pretrained_cfg.get("url") or "")
    )
    return Encoder(
        name, model, tuple(cfg["mean"]), tuple(cfg["std"]), model.num_features, size, math.floor(size / cfg["crop_pct"]),
        "bicubic" if cfg["interpolation"] == "bicubic" else "bilinear", pool=str(getattr(model, "global_pool", "avg")),
        revision=source, digest=weights_digest(name, weights) if weights else _state_digest(model),
    )  # fmt: skip


def _load(model: nn.Module, path: str | Path, name: str, layout: str = "timm") -> None:
    """Read a file of weights into `model`."""
    state = backbones.read_weights(Path(path), name)
    backbones.put_weights(model, backbones.LAYOUTS[layout](state), path, name)


def _state_digest(model: nn.Module) -> str:
    """sha256 over names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(
            key.encode()
            + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def precision_on(device: str, name: str, model: nn.Module) -> str:
    """Precision in which an encoder embeds on a device, `float32` or `bfloat16`; on a CPU always the former."""
    half = device.startswith("cuda") and has_bfloat16(device) and embeds_in_bfloat16(name, model)
    return "bfloat16" if half else "float32"


def embeds_in_bfloat16(name: str, model: nn.Module) -> bool:
    """Whether an encoder embeds in bfloat16 on a GPU that has it: vision transformers do, others stay in float32.

    `mini` and `random` stay in float32 too: they are so small that they would gain nothing, and features would be off by 5 %.
    """
    return isinstance(model, timm.models.VisionTransformer) and name not in BUNDLED
