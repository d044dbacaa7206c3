"""Networks of timm: build one, give a file's tensors the names that timm has, and load them."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import SwiGLUPacked
from torch import Tensor, nn

from ..common.errors import PekaError
from ..downloads.network import check_network, without_secrets
from .encoder_files import ManifestEntry, given_weights, manifest_entries
from .weight_files import load_safely

State = dict[str, Tensor]


class ConvStem(nn.Module):
    """CTransPath's patch embedding: three convolutions where Swin has one.

    After Wang et al. 2022 (Medical Image Analysis 81, 102559), with the arguments that timm passes
    to an `embed_layer`.

    Args:
        img_size: side of the input in pixels.
        embed_dim: width of a token.
        norm_layer: makes the LayerNorm of the tokens.
    """

    def __init__(
        self,
        img_size=224,
        patch_size=4,
        in_chans=3,
        embed_dim=96,
        norm_layer=nn.LayerNorm,
        device=None,
        dtype=None,
        **_,
    ):
        super().__init__()
        self.patch_size, self.grid_size = (
            (patch_size, patch_size),
            (img_size // patch_size, img_size // patch_size),
        )
        where, layers, width = {"device": device, "dtype": dtype}, [], in_chans
        for narrow in (embed_dim // 8, embed_dim // 4):
            layers.append(nn.Conv2d(width, narrow, 3, stride=2, padding=1, bias=False, **where))
            layers += [nn.BatchNorm2d(narrow, **where), nn.ReLU()]
            width = narrow
        self.proj = nn.Sequential(*layers, nn.Conv2d(width, embed_dim, 1, **where))
        self.norm = norm_layer(embed_dim, **where)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 3, 224, 224) -> tokens (n, 56, 56, 96): channels last, as in timm's Swin."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


LAYERS = {
    "ConvStem": ConvStem,
    "SwiGLUPacked": SwiGLUPacked,
    "LayerNorm 1e-12": partial(nn.LayerNorm, eps=1e-12),
}


def build(entry: ManifestEntry, device: str = "meta") -> nn.Module:
    """The network of an entry without a classifier, in evaluation mode and without its weights.

    Args:
        device: `meta` takes neither memory nor time, and `put_weights` fills it.
    """
    arguments: dict[str, Any] = {
        name: LAYERS.get(value, value) if isinstance(value, str) else value
        for name, value in entry.network.items()
    }
    with torch.device(device):
        model = timm.create_model(
            arguments.pop("model"), pretrained=False, num_classes=0, **arguments
        )
    if device == "meta" and model.state_dict().keys() < {
        name for name, _ in [*model.named_parameters(), *model.named_buffers()]
    }:
        return build(entry, "cpu")  # Swin computes tables that no file holds
    return model.eval()


def build_timm(name: str, pretrained: bool) -> nn.Module:
    """A model of timm by its name, without a classifier, with timm's own weights or untrained.

    Raises:
        PekaError: timm has no such model, or its weights cannot be had.
    """
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # timm and the hub raise many kinds: name, network, access, weights
        if pretrained:
            check_network(hub=True)
        known = ", ".join(manifest_entries())
        raise PekaError(
            f"timm could not make encoder {name!r} ({without_secrets(error)}). Encoders: mini, "
            f"random, {known}, the names of timm.list_models(pretrained=True), FILE.py:FUNCTION. "
            f"Without a network, give the weights as a file: --weights {name}=PATH. "
            "For a gated model, accept the terms on its page and set HF_TOKEN."
        ) from error


def cls_and_mean(tokens: Tensor, prefix: int) -> Tensor:
    """CLS token beside the mean of the patch tokens, as Virchow's card has it.

    Args:
        tokens: (n, prefix + patches, d); CLS comes first, then registers, then patches.
        prefix: CLS and registers.

    Returns:
        (n, 2 d).
    """
    return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], 1)  # (n, 2 d)


def from_ctranspath(state: State) -> State:
    """CTransPath's official tensors (timm 0.5.4) under the names of today's Swin.

    Today's stages begin with their down-sampling, and do not end with it. Tables that the
    constructor computes are dropped.
    """
    computed = ("attn_mask", "relative_position_index")
    later = lambda match: f"layers.{int(match[1]) + 1}.downsample."
    return {
        re.sub(r"^layers\.(\d)\.downsample\.", later, k): v
        for k, v in state.items()
        if not k.endswith(computed)
    }


HF_VIT = (  # a name in transformers' ViTModel -> in timm
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)


def from_hf_vit(state: State) -> State:
    """Tensors of transformers' ViTModel under timm's names; query, key and value become one `qkv`.

    The pooler and iBOT's mask token play no part in the CLS token and are dropped. A name that no
    rule knows stays, so that loading refuses it.
    """
    named = {}
    for name, value in state.items():
        name = name.removeprefix("vit.")
        if not name.startswith(("pooler.", "embeddings.mask_token")):
            for old, new in HF_VIT:
                name = re.sub(old, new, name)
            named[name] = value
    for query in [name for name in named if ".attn.query." in name]:
        parts = [query.replace("query", part) for part in ("query", "key", "value")]
        if all(part in named for part in parts):
            named[query.replace("query", "qkv")] = torch.cat(
                [named.pop(part) for part in parts]
            )  # (3 d, d) or (3 d,)
    return named


LAYOUTS = {"timm": lambda state: state, "ctranspath": from_ctranspath, "hf_vit": from_hf_vit}


def load_weights(model: nn.Module, path: str | Path, name: str, layout: str = "timm") -> None:
    """Read a file of weights, in one of `LAYOUTS`, into the model of an encoder."""
    put_weights(model, LAYOUTS[layout](read_weights(Path(path), name)), path, name)


def read_weights(path: Path, name: str) -> State:
    """The tensors of a file of weights, safetensors or PyTorch's; code in the file is not run.

    Args:
        name: of the encoder, for messages.

    Raises:
        PekaError: no such file, or none that loads safely.
    """
    given_weights(name, path)
    state = load_safely(path)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # as CTransPath's file has it
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        held = sorted(map(str, state))[:6] if isinstance(state, dict) else type(state).__name__
        expected = f"tensors by name for encoder {name!r}, or these inside 'model'"
        raise PekaError(f"{path} holds {held}, expected {expected}")
    return state


def put_weights(model: nn.Module, state: State, path: str | Path, name: str) -> None:
    """Load tensors into `model` in float32; every name must fit, but for a classifier's.

    A model on `meta` takes the tensors themselves, without a copy.

    Args:
        path, name: of the file and of the encoder, for messages.

    Raises:
        PekaError: missing or unknown tensors, or other shapes.
    """
    heads = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    state = {key: value for key, value in state.items() if key.rsplit(".", 1)[0] not in heads}
    state = {
        key: value.float() if value.is_floating_point() else value for key, value in state.items()
    }
    try:
        model.load_state_dict(state, strict=True, assign=next(model.parameters()).is_meta)
    except RuntimeError as error:
        wanted = model.state_dict().keys()
        missing, unknown = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
        lines = f"missing {len(missing)}: {missing[:3]}; unknown {len(unknown)}: {unknown[:3]}"
        shapes = "" if missing or unknown else f"; {str(error).splitlines()[1].strip()}"
        raise PekaError(f"{path} does not fit encoder {name!r}: {lines}{shapes}") from error
