"""Bone and Bat from scratch: the block adapters of Eq. 3.

A frozen weight W (out, in) is cut into b x b blocks W[j, n]; j counts blocks of outputs, n blocks
of inputs. All blocks of row j share one trainable matrix B[j] (b, b), so a layer trains out * b
values:

    bone   W'[j, n] = W[j, n] + B[j]                   what the authors' code uses
    bat    W'[j, n] = W[j, n] + W[j, n] B[j] + B[j]    the paper's Eq. 3

B starts at zero, so a new adapter changes nothing. peft has the same functions: `MissConfig` with
`init_weights=True` (bone) and `"bat"`. The last class of this file only saves memory.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .common.errors import PekaError


def bone_weight(weight: Tensor, blocks: Tensor) -> Tensor:
    """W' of bone: B[j] is added to each block W[j, n].

    Args:
        weight: W, (out, in).
        blocks: B, (out/b, b, b).
    """
    j, b, _ = blocks.shape
    grid = weight.reshape(j, b, -1, b)  # (out/b, b, in/b, b)
    return (grid + blocks[:, :, None, :]).reshape(weight.shape)  # (out, in)


def bat_weight(weight: Tensor, blocks: Tensor) -> Tensor:
    """W' of bat, Eq. 3: W[j, n] B[j] and B[j] are added to each block W[j, n]."""
    j, b, _ = blocks.shape
    rows = weight.reshape(j, -1, b)  # (out/b, b * in/b, b): the rows of W[j, 0], W[j, 1], ...
    product = torch.bmm(rows, blocks)  # (out/b, b * in/b, b)
    return bone_weight(weight + product.reshape(weight.shape), blocks)


WEIGHTS = {"bone": bone_weight, "bat": bat_weight}


class BlockLinear(nn.Module):
    """A frozen Linear layer with trainable blocks B: y = x W'^T + bias.

    It has no attribute `weight` on purpose. A network that reads a layer's weight, instead of
    calling the layer, would leave out the adapter; so it fails at once.

    Args:
        base: the Linear layer, which is frozen.
        block: side b of a block; it divides in- and out-features.
        method: `bone` or `bat`.
    """

    unmerged: Tensor | None  # W, while W' is in its place

    def __init__(self, base: nn.Linear, block: int, method: str):
        super().__init__()
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        shape = (base.out_features // block, block, block)
        self.base, self.method = base.requires_grad_(False), method
        self.blocks = nn.Parameter(torch.zeros(shape, dtype=dtype, device=base.weight.device))
        self.register_buffer("unmerged", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the type of autocast where autocast is on."""
        if self.unmerged is not None:
            return self.base(x)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        bias = None if self.base.bias is None else self.base.bias.to(dtype)
        return _BlockProduct.apply(x.to(dtype), self.base.weight, bias, self.blocks, self.method)

    def full_weight(self) -> Tensor:
        """W' (out, in), in the type of B."""
        return _full_weight(self.base.weight, self.blocks, self.method)

    def extra_repr(self) -> str:
        return f"{self.method}, blocks={tuple(self.blocks.shape)}"


def inject(model: nn.Module, targets: tuple[str, ...], method: str, block: int) -> list[str]:
    """Replace the Linear layers that `targets` name by `BlockLinear`, in place.

    Returns:
        The full names of the replaced layers.

    Raises:
        PekaError: the model has an adapter already, a target names no Linear layer, or `block` does
            not divide the features of a layer. Nothing is replaced then.
    """
    if any(isinstance(module, BlockLinear) for module in model.modules()):
        raise PekaError("this model already has a block adapter; load the encoder again")
    names = linear_targets(model, targets)
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    for name, base in layers.items():
        if base.in_features % block or base.out_features % block:
            raise PekaError(
                f"{name}: block size {block} does not divide {base.in_features} -> "
                f"{base.out_features} (in-features -> out-features): change the block "
                "(-p block=... --run NAME) or the targets"
            )
    for name, base in layers.items():
        model.set_submodule(name, BlockLinear(base, block, method))
    return names


def linear_targets(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Full names of the Linear layers whose names end with one of `targets`, in whole words.

    `attn.qkv` finds `blocks.0.attn.qkv`. A convolution that has such a name is not found.

    Raises:
        PekaError: a target names no Linear layer.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = {t: [name for name in linears if f".{name}".endswith(f".{t}")] for t in targets}
    for target, names in found.items():
        if not names:
            known = sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in linears})
            raise PekaError(
                f"target {target!r} names no Linear layer of this model. It has: "
                f"{', '.join(known) or 'none'}. The method projector_only needs none."
            )
    return [name for name in linears if any(name in names for names in found.values())]


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Put W' in the place of W in every adapted layer, so that inference costs what it cost before.

    W is kept for `unmerge`. Tensors that another model shares are exchanged, never written to.

    Raises:
        PekaError: a weight W' is NaN or infinite. Nothing is merged then.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, BlockLinear)}
    layers = {name: layer for name, layer in layers.items() if layer.unmerged is None}
    full = {name: layer.full_weight() for name, layer in layers.items()}
    for name, weight in full.items():
        check_finite(name, weight)
    for name, layer in layers.items():
        layer.unmerged = layer.base.weight.data
        layer.base.weight = nn.Parameter(full[name].to(layer.unmerged.dtype), requires_grad=False)


def unmerge(model: nn.Module) -> None:
    """Put W back into every merged layer, bit by bit."""
    for layer in model.modules():
        if isinstance(layer, BlockLinear) and layer.unmerged is not None:
            layer.base.weight = nn.Parameter(layer.unmerged, requires_grad=False)
            layer.unmerged = None


def check_finite(name: str, weight: Tensor) -> None:
    """Refuse to merge a layer whose adapter is NaN or infinite."""
    if not torch.isfinite(weight).all():
        raise PekaError(
            f"the adapted weight of {name} is not finite, because the alignment diverged: align "
            "again with a lower learning rate"
        )


def _full_weight(weight: Tensor, blocks: Tensor, method: str) -> Tensor:
    """W' (out, in) in the type of `blocks`, also under autocast."""
    with torch.autocast(weight.device.type, enabled=False):
        return WEIGHTS[method](weight.to(blocks.dtype), blocks)


class _BlockProduct(torch.autograd.Function):
    """y = x W'^T + bias, with gradients for x and B.

    Plain autograd would keep every W' for the backward pass. This function computes it again, and
    keeps only x (bat) or the sums of x over the blocks of inputs (bone).
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Tensor, method: str
    ) -> Tensor:
        kept = x  # (..., in)
        if method == "bone":
            # dtype: CUDA's autocast would make the sum float32, which backward could not multiply
            # with a bfloat16 gradient
            kept = x.unflatten(-1, (-1, blocks.shape[-1])).sum(-2, dtype=x.dtype)  # (..., b)
        ctx.save_for_backward(kept, weight, blocks)
        ctx.method = method
        return F.linear(x, _full_weight(weight, blocks, method).to(x.dtype), bias)  # (..., out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        kept, weight, blocks = ctx.saved_tensors
        j, b, _ = blocks.shape
        grad_x = grad_blocks = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ _full_weight(weight, blocks, ctx.method).to(grad.dtype)  # (..., in)
        if ctx.needs_input_grad[3]:
            outer = grad.flatten(0, -2).mT @ kept.flatten(0, -2)  # (out, b) or, for bat, (out, in)
            outer = outer.to(blocks.dtype)
            grad_blocks = outer.reshape(j, b, -1, b).sum(2)  # (out/b, b, b): through + B
            if ctx.method == "bat":  # and through + W B
                rows = weight.to(blocks.dtype).reshape(j, -1, b)  # (out/b, b * in/b, b)
                grad_blocks = grad_blocks + torch.bmm(rows.mT, outer.reshape(j, -1, b))
        return grad_x, None, None, grad_blocks, None
