"""Bone and Bat from scratch: two block adapters for Linear layers.

A frozen weight W (out, in) is cut into squares W[j, i] of b x b values, where j counts squares of
outputs and i squares of inputs. All squares with the same j share one trainable matrix B[j] (b, b),
so a layer has out x b trainable values. The layer then multiplies by W' instead of W:

    bat    W'[j, i] = W[j, i] + W[j, i] B[j] + B[j]    Eq. 3, which the paper calls Bone
    bone   W'[j, i] = W[j, i] + B[j]                   what the authors' code runs

B starts at zero, so a new adapter changes nothing. peft has the same two functions: `MissConfig`
with `init_weights=True` (bone) and `"bat"` (bat). The class at the end gives the same
numbers and only saves memory, so a first reading can skip it.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .common.errors import PekaError


def bone_weight(weight: Tensor, blocks: Tensor) -> Tensor:
    """Return W' of bone: B[j] is added to each square W[j, i].

    Args:
        weight: W, (out, in).
        blocks: B, (out/b, b, b).
    """
    n_blocks, b, _ = blocks.shape
    grid = weight.reshape(n_blocks, b, -1, b)  # (out/b, b, in/b, b)
    return (grid + blocks[:, :, None, :]).reshape(weight.shape)  # (out, in)


def bat_weight(weight: Tensor, blocks: Tensor) -> Tensor:
    """Return W' of bat (Eq. 3): W[j, i] B[j] and B[j] are added to each square."""
    n_blocks, b, _ = blocks.shape
    rows = weight.reshape(n_blocks, -1, b)  # (out/b, b * in/b, b): the rows of all squares W[j, i]
    with_product = torch.baddbmm(rows, rows, blocks).reshape(weight.shape)  # W + W B, (out, in)
    return bone_weight(with_product, blocks)  # (W + W B) + B


WEIGHT_FUNCTIONS = {"bone": bone_weight, "bat": bat_weight}


def adapted_weight(weight: Tensor, blocks: Tensor, method: str) -> Tensor:
    """Return W' (out, in) in the type of `blocks`, also under autocast."""
    with torch.autocast(weight.device.type, enabled=False):
        return WEIGHT_FUNCTIONS[method](weight.to(blocks.dtype), blocks)


class BlockLinear(nn.Module):
    """A frozen Linear layer with trainable blocks B: y = x W'^T + bias.

    It has no attribute `weight` on purpose. Some networks read a layer's weight instead of calling
    the layer, as F.linear(x, layer.weight) does. Such a network would ignore the adapter without
    any message; without the attribute it stops with an error.

    Args:
        base: the Linear layer, which is frozen.
        block: side b of a block; it divides in- and out-features.
        method: `bone` or `bat`.
    """

    frozen_weight: Tensor | None  # the original W, kept while the layer is merged; None otherwise

    def __init__(self, base: nn.Linear, block: int, method: str):
        super().__init__()
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        shape = (base.out_features // block, block, block)
        self.base, self.method = base.requires_grad_(False), method
        self.blocks = nn.Parameter(torch.zeros(shape, dtype=dtype, device=base.weight.device))
        self.register_buffer("frozen_weight", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out), in the type of autocast where autocast is on."""
        if self.frozen_weight is not None:
            return self.base(x)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        bias = None if self.base.bias is None else self.base.bias.to(dtype)
        return _BlockProduct.apply(x.to(dtype), self.base.weight, bias, self.blocks, self.method)

    def extra_repr(self) -> str:
        return f"{self.method}, blocks={tuple(self.blocks.shape)}"


def inject(
    model: nn.Module, layers: tuple[str, ...], method: str, block: int, last_blocks: int = 0
) -> list[str]:
    """Replace the Linear layers whose names end in one of `layers` by `BlockLinear`, in place.

    Returns:
        The full names of the replaced layers.

    Raises:
        PekaError: the model has an adapter already, an end in `layers` fits no Linear layer, or
            `block` does not divide the features of a layer. Nothing is replaced then.
    """
    if any(isinstance(module, BlockLinear) for module in model.modules()):
        raise PekaError("this model already has a block adapter; load the encoder again")
    names = linear_layers(model, layers, last_blocks)
    found: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    for name, base in found.items():
        if base.in_features % block or base.out_features % block:
            raise PekaError(
                f"{name}: block size {block} does not divide {base.in_features} -> "
                f"{base.out_features} (in-features -> out-features): change `block` "
                "(on the command line -p block=... --run NAME) or `layers`"
            )
    for name, base in found.items():
        model.set_submodule(name, BlockLinear(base, block, method))
    return names


def linear_layers(model: nn.Module, layers: tuple[str, ...], last_blocks: int = 0) -> list[str]:
    """Full names of the Linear layers whose names end in one of `layers`.

    Whole parts between dots must match: `qkv` finds `blocks.0.attn.qkv`, but not `my_qkv`. Layers
    of other types, such as convolutions, are left out.

    Args:
        last_blocks: only layers of the last so many blocks of the transformer; 0 is all.

    Raises:
        PekaError: an end in `layers` fits no Linear layer, or there are fewer blocks.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    ends_in = lambda name, end: f".{name}".endswith(f".{end}")  # a dot begins a whole part
    for end in layers:
        if not any(ends_in(name, end) for name in linears):
            # A number between dots becomes *, so that equal layers of all depths are listed once.
            known = sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in linears})
            raise PekaError(
                f"no Linear layer of this model has a name that ends in {end!r}. It has: "
                f"{', '.join(known) or 'none'}. The method projector_only needs none."
            )
    names = [name for name in linears if any(ends_in(name, end) for end in layers)]
    if last_blocks:
        inside = {id(m) for block in last(model, last_blocks) for m in block.modules()}
        names = [name for name in names if id(model.get_submodule(name)) in inside]
    return names


def last(model: nn.Module, n_blocks: int) -> list[nn.Module]:
    """The last blocks of a transformer, whose blocks are `model.blocks` as in timm.

    Raises:
        PekaError: the model has no such blocks, or fewer.
    """
    blocks = list(getattr(model, "blocks", []))
    if n_blocks > len(blocks):
        raise PekaError(f"last_blocks is {n_blocks}, and this model has {len(blocks)} `blocks`")
    return blocks[len(blocks) - n_blocks :]


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Put W' in the place of W in every adapted layer, and keep W for `unmerge`.

    A merged network costs as much as one without an adapter. The frozen tensors may be shared with
    other students, so this function replaces them and never changes them in place.

    Raises:
        PekaError: a weight W' is NaN or infinite. Nothing is merged then.
    """
    merged = []
    for name, layer in model.named_modules():
        if isinstance(layer, BlockLinear) and layer.frozen_weight is None:
            weight = adapted_weight(layer.base.weight, layer.blocks, layer.method)
            check_finite(name, weight)
            merged.append((layer, weight))
    for layer, weight in merged:
        layer.frozen_weight = layer.base.weight.data
        layer.base.weight = nn.Parameter(weight.to(layer.frozen_weight.dtype), requires_grad=False)


def unmerge(model: nn.Module) -> None:
    """Put W back exactly into every merged layer."""
    for layer in model.modules():
        if isinstance(layer, BlockLinear) and layer.frozen_weight is not None:
            layer.base.weight = nn.Parameter(layer.frozen_weight, requires_grad=False)
            layer.frozen_weight = None


def check_finite(name: str, weight: Tensor) -> None:
    """Refuse to merge a layer whose adapter is NaN or infinite."""
    if not torch.isfinite(weight).all():
        raise PekaError(
            f"the adapted weight of {name} is not finite, because the alignment diverged: align "
            "again with a lower learning rate"
        )


class _BlockProduct(torch.autograd.Function):
    """y = x W'^T + bias, with gradients for x and B.

    Plain autograd would store every W' for the backward pass. This function computes W' again
    instead. For bat it stores x. For bone, outputs j are sum_i W[j, i] x[i] + B[j] sum_i x[i], so
    it stores only the sum of the pieces x[i].
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Tensor, method: str
    ) -> Tensor:
        saved = x  # (..., in)
        if method == "bone":
            # Under CUDA's autocast, sum returns float32 by default. Backward multiplies this sum
            # with a bfloat16 gradient, and both must have one type.
            saved = x.unflatten(-1, (-1, blocks.shape[-1])).sum(-2, dtype=x.dtype)  # (..., b)
        ctx.save_for_backward(saved, weight, blocks)
        ctx.method = method
        return F.linear(x, adapted_weight(weight, blocks, method).to(x.dtype), bias)  # (..., out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        saved, weight, blocks = ctx.saved_tensors
        n_blocks, b, _ = blocks.shape
        grad_x = grad_blocks = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ adapted_weight(weight, blocks, ctx.method).to(grad.dtype)  # (..., in)
        if ctx.needs_input_grad[3]:
            outer = grad.flatten(0, -2).mT @ saved.flatten(0, -2)  # bone (out, b), bat (out, in)
            outer = outer.to(blocks.dtype)
            grad_blocks = outer.reshape(n_blocks, b, -1, b).sum(2)  # gradient of the term B
            if ctx.method == "bat":  # gradient of the term W B
                rows = weight.to(blocks.dtype).reshape(n_blocks, -1, b)  # (out/b, b * in/b, b)
                grad_blocks = grad_blocks + torch.bmm(rows.mT, outer.reshape(n_blocks, -1, b))
        return grad_x, None, None, grad_blocks, None
