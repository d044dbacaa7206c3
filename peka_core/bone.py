"""Bone and Bat from scratch: the block adapters of Eq. 3, put into named Linear layers.

A frozen weight W (out, in) is cut into b x b blocks W[j, n]; j counts output blocks, n input blocks.
Each row of blocks j shares one trainable matrix B[j] (b, b), so a layer trains (out/b) b b = out b values:

    bone   W'[j, n] = W[j, n] + B[j]                   additive tiling, what the authors' code selects
    bat    W'[j, n] = W[j, n] + W[j, n] B[j] + B[j]    the paper's Eq. 3

B starts at zero, so a fresh adapter is the identity. Same functions as peft `MissConfig` with
`init_weights=True` (bone) and `"bat"`; peft keeps every W' for the backward pass, here it is computed again.
"""

import re

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .errors import PekaError


def bone_weight(weight: Tensor, blocks: Tensor) -> Tensor:
    """W with B[j] added to each of its blocks [j, n].

    Args:
        weight: frozen weight (out, in).
        blocks: trainable matrices (out/b, b, b).
    """
    j, b, _ = blocks.shape
    grid = weight.reshape(j, b, -1, b)  # (out/b, b, in/b, b)
    return (grid + blocks[:, :, None, :]).reshape(weight.shape)  # (out, in)


def bat_weight(weight: Tensor, blocks: Tensor) -> Tensor:
    """W + W_g B_g + B_g, Eq. 3; shapes as in `bone_weight`."""
    j, b, _ = blocks.shape
    rows = weight.reshape(
        j, -1, b
    )  # (out/b, b * in/b, b): the rows of all blocks [j, n], n = 0, 1, ...
    product = torch.bmm(rows, blocks)  # (out/b, b * in/b, b)
    return bone_weight(weight + product.reshape(weight.shape), blocks)


WEIGHTS = {"bone": bone_weight, "bat": bat_weight}


def _full_weight(weight: Tensor, blocks: Tensor, method: str) -> Tensor:
    """W' (out, in) in the precision of `blocks`, also under autocast."""
    with torch.autocast(weight.device.type, enabled=False):
        return WEIGHTS[method](weight.to(blocks.dtype), blocks)


class _BlockProduct(torch.autograd.Function):
    """y = x W'^T + bias with gradients for x and B; saves x (bat) or its block sums (bone), never W'."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Tensor, method: str
    ) -> Tensor:
        b = blocks.shape[-1]
        # dtype: CUDA's autocast would make a sum float32, and the product with a bfloat16 gradient would fail
        kept = (
            x.unflatten(-1, (-1, b)).sum(-2, dtype=x.dtype) if method == "bone" else x
        )  # (..., b) or (..., in)
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
            outer = grad.flatten(0, -2).mT @ kept.flatten(
                0, -2
            )  # (out, b) for bone, (out, in) for bat
            outer = outer.to(blocks.dtype)
            grad_blocks = outer.reshape(j, b, -1, b).sum(2)  # (out/b, b, b): through + B
            if ctx.method == "bat":  # and through + W B
                rows = weight.to(blocks.dtype).reshape(j, -1, b)  # (out/b, b * in/b, b)
                grad_blocks = grad_blocks + torch.bmm(rows.mT, outer.reshape(j, -1, b))
        return grad_x, None, None, grad_blocks, None


class BlockLinear(nn.Module):
    """A frozen Linear layer with trainable blocks B.

    It has no attribute `weight` on purpose: a network that reads its layers' weights instead of calling
    them would skip the adapter silently, and so fails at once.

    Args:
        base: the Linear layer; its parameters stay frozen.
        block: side b of a block.
        method: `bone` or `bat`.

    Raises:
        ValueError: `block` does not divide in- and out-features.
    """

    def __init__(self, base: nn.Linear, block: int, method: str):
        super().__init__()
        if base.in_features % block or base.out_features % block:
            raise ValueError(
                f"block size {block} does not divide {base.in_features} -> {base.out_features} "
                "(in-features -> out-features); choose a divisor of both"
            )
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        shape = (base.out_features // block, block, block)
        self.base, self.method = base.requires_grad_(False), method
        self.blocks = nn.Parameter(torch.zeros(shape, dtype=dtype, device=base.weight.device))
        self.register_buffer("unmerged", None, persistent=False)  # W while W' stands in its place

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out); computes in the autocast type where autocast is on."""
        if self.unmerged is not None:
            return self.base(x)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        bias = None if self.base.bias is None else self.base.bias.to(dtype)
        return _BlockProduct.apply(x.to(dtype), self.base.weight, bias, self.blocks, self.method)

    def extra_repr(self) -> str:
        return f"{self.method}, blocks={tuple(self.blocks.shape)}"


def inject(model: nn.Module, targets: tuple[str, ...], method: str, block: int) -> list[str]:
    """Replace the named Linear layers of `model` by `BlockLinear`, in place.

    Args:
        targets: ends of module names, whole words: `attn.qkv` hits `blocks.0.attn.qkv`. Only Linear
            layers are hit, never a convolution that happens to have the name.
        method: `bone` or `bat`.
        block: side of a block.

    Returns:
        The full names of the replaced layers.

    Raises:
        PekaError: a target that names no Linear layer, or a model that already has an adapter.
        ValueError: `block` does not divide the features of a layer.
    """
    if any(isinstance(module, BlockLinear) for module in model.modules()):
        raise PekaError("this model already carries a block adapter; load the encoder again")
    hits = linear_targets(model, targets)
    replacements = {}
    for name in hits:
        try:
            replacements[name] = BlockLinear(model.get_submodule(name), block, method)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for name, layer in replacements.items():
        model.set_submodule(name, layer)
    return hits


def linear_targets(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Full names of the Linear layers whose names end with one of `targets`, in whole words.

    Raises:
        PekaError: a target that names no Linear layer.
    """
    linears = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    hits = [name for name in linears if any(_ends_with(name, target) for target in targets)]
    for target in targets:
        if not any(_ends_with(name, target) for name in hits):
            known = sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in linears})
            raise PekaError(
                f"target {target!r} names no Linear layer of this model; it has: {', '.join(known) or 'none'} "
                "(a model without Linear layers takes the method projector_only)"
            )
    return hits


def _ends_with(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Put W' in the place of W in every adapted layer: inference at the cost of the frozen model.

    The old weight is kept, so `unmerge` restores it bit by bit; parameters shared with another
    model are exchanged, not written to.

    Raises:
        PekaError: an adapter makes a weight NaN or infinite (nothing is merged then).
    """
    layers = {
        n: m for n, m in model.named_modules() if isinstance(m, BlockLinear) and m.unmerged is None
    }
    full = {name: _full_weight(m.base.weight, m.blocks, m.method) for name, m in layers.items()}
    for name, weight in full.items():
        if not torch.isfinite(weight).all():
            raise PekaError(
                f"merged weight of {name} is not finite: the alignment diverged, lower its learning rate"
            )
    for name, layer in layers.items():
        layer.unmerged = layer.base.weight.data
        layer.base.weight = nn.Parameter(full[name].to(layer.unmerged.dtype), requires_grad=False)


def unmerge(model: nn.Module) -> None:
    """Put the kept W back into every merged layer."""
    for layer in model.modules():
        if isinstance(layer, BlockLinear) and layer.unmerged is not None:
            layer.base.weight = nn.Parameter(layer.unmerged, requires_grad=False)
            layer.unmerged = None
