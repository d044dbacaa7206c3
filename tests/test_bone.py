"""Bone and Bat against peft, Eq. 3 block by block, and the sizes of the paper's encoders."""

import copy
import itertools

import pytest
import torch
from peft import MissConfig, get_peft_model
from test_encoders import tiny_encoder
from torch import nn

from peka_core.bone import BlockLinear, adapted_weight, inject, merge, unmerge
from peka_core.common.errors import PekaError

both = pytest.mark.parametrize("method", ["bone", "bat"])


def filled(method, n_in=16, n_out=48, block=4, dtype=torch.float64):
    """The same layer from us and from peft, with the same random B, and peft's B."""
    torch.manual_seed(3)
    ours = nn.Sequential(nn.Linear(n_in, n_out, dtype=dtype))
    config = MissConfig(r=block, target_modules=["0"], init_weights=method == "bone" or "bat")
    theirs = get_peft_model(copy.deepcopy(ours), config)
    inject(ours, ("0",), method, block)
    ours[0].blocks.data = torch.randn(n_out // block, block, block, dtype=dtype) / 3
    layer = theirs.base_model.model[0].miss_block["default"]
    layer.data = as_in_peft(ours[0].blocks.data, method)
    return ours, theirs, layer


def as_in_peft(blocks, method):
    """(out/b, b, b) as it is for bat, (b, out) for bone."""
    return blocks if method == "bat" else blocks.permute(2, 0, 1).flatten(1)


def gradients(model, x, parameter):
    """The output, and the slopes of a sum of it by x and a parameter."""
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=x.dtype).view_as(y).cos()
    return y, *torch.autograd.grad((y * weights).sum(), (x, parameter))


@both
@pytest.mark.parametrize("shape", [(16, 48, 4), (48, 16, 8), (12, 12, 12), (16, 48, 1)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_forward_and_gradients_equal_peft(method, shape, dtype, close):
    ours, theirs, layer = filled(method, *shape, dtype)
    x = torch.randn(3, 5, shape[0], dtype=dtype, requires_grad=True)
    kept = []  # for the backward pass
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y, grad_x, grad_blocks = gradients(ours, x, ours[0].blocks)
    found, weight = (y, grad_x, as_in_peft(grad_blocks, method)), ours[0].base.weight
    for here, there in zip(found, gradients(theirs, x, layer), strict=True):
        assert (here - there).abs().max() <= close * there.abs().max()
    weights = [t for t in kept if t.shape == weight.shape]
    assert all(t.data_ptr() == weight.data_ptr() for t in weights), "W' is kept, not made again"


@both
def test_merging_gives_equation_3_block_by_block_and_unmerging_restores_every_bit(method):
    ours, _, _ = filled(method)
    weight, blocks, x = ours[0].base.weight, ours[0].blocks, torch.randn(5, 16).double()
    before, bits = ours(x), weight.detach().clone()
    merge(ours)
    assert torch.equal(weight, bits), "a tensor shared with another model was written to"
    merge(ours)  # once more changes nothing
    for j, n in itertools.product(range(12), range(4)):
        part = slice(4 * j, 4 * j + 4), slice(4 * n, 4 * n + 4)
        delta = blocks[j] + (weight[part] @ blocks[j] if method == "bat" else 0)
        torch.testing.assert_close(ours[0].base.weight[part], weight[part] + delta)
    torch.testing.assert_close(ours(x), before, rtol=1e-12, atol=1e-12)
    unmerge(ours)
    assert torch.equal(ours[0].base.weight, bits) and torch.equal(ours(x), before)


@both
def test_bfloat16_autocast_is_close_to_float32(method):
    ours, _, _ = filled(method, dtype=torch.float32)
    x, blocks = torch.randn(64, 16, requires_grad=True), ours[0].blocks
    exact, cast = gradients(ours, x, blocks), torch.autocast("cpu", dtype=torch.bfloat16)
    y, *slopes = gradients(cast(ours), x, blocks)
    weight = adapted_weight(ours[0].base.weight, blocks, method).bfloat16()
    once = nn.functional.linear(x.bfloat16(), weight, ours[0].base.bias.bfloat16())
    assert torch.equal(y, once), "W' is rounded before it is complete"
    assert [g.dtype for g in slopes] == [torch.float32, torch.float32]
    for here, there in zip((y, *slopes), exact, strict=True):
        assert (here.float() - there).norm() < 0.02 * there.norm()


def test_targets_are_whole_words_and_never_a_convolution():
    model = tiny_encoder(64).model
    for targets, block in ((("qkv", "kv"), 8), (("patch_embed.proj",), 8), (("qkv",), 12)):
        with pytest.raises(PekaError, match=f"'{targets[-1]}'|{block} does not divide 32"):
            inject(model, targets, "bat", block)
    assert not any(isinstance(module, BlockLinear) for module in model.modules())
    names = [f"blocks.{i}.attn.{name}" for i in range(2) for name in ("qkv", "proj")]
    assert inject(model, ("proj", "qkv"), "bone", 8) == names
    with pytest.raises(PekaError, match="already"):
        inject(model, ("qkv",), "bat", 8)
