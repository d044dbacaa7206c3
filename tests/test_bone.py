"""Bone and Bat against peft, Eq. 3 written out block by block, and the shapes of the paper's encoders."""

import copy

import pytest
import torch
from peft import MissConfig, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from peka_core.bone import BlockLinear, bat_weight, bone_weight, inject, merge, unmerge
from peka_core.errors import PekaError

PEFT = {"bone": True, "bat": "bat"}


def filled(method, n_in=16, n_out=48, block=4, dtype=torch.float64, bias=True):
    """The same layer twice, ours and peft's, with the same random B; both unmerged."""
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(n_in, n_out, bias=bias, dtype=dtype))
    ours, theirs = copy.deepcopy(plain), copy.deepcopy(plain)
    inject(ours, ("0",), method, block)
    theirs = get_peft_model(
        theirs, MissConfig(r=block, target_modules=["0"], init_weights=PEFT[method])
    )
    blocks = torch.randn(n_out // block, block, block, dtype=dtype) / 3
    ours[0].blocks.data = blocks
    theirs.base_model.model[0].miss_block["default"].data = (
        blocks if method == "bat" else to_peft(blocks)
    )
    return ours, theirs


def to_peft(blocks):
    """(out/b, b, b) -> peft's additive layout (b, out)."""
    return blocks.permute(2, 0, 1).flatten(1)


def gradients(model, x, parameter):
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).cos()
    return y, *torch.autograd.grad((y * weights).sum(), (x, parameter))


@pytest.mark.parametrize("method", ["bone", "bat"])
@pytest.mark.parametrize("shape", [(16, 48, 4), (48, 16, 8), (12, 12, 12), (16, 48, 1)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_forward_and_gradients_equal_peft(method, shape, dtype, close):
    n_in, n_out, block = shape
    ours, theirs = filled(method, n_in, n_out, block, dtype)
    layer = theirs.base_model.model[0].miss_block["default"]
    x = torch.randn(3, 5, n_in, dtype=dtype, requires_grad=True)
    y, grad_x, grad_blocks = gradients(ours, x, ours[0].blocks)
    y_peft, grad_x_peft, grad_peft = gradients(theirs, x, layer)
    grad_blocks = grad_blocks if method == "bat" else to_peft(grad_blocks)
    for here, there in ((y, y_peft), (grad_x, grad_x_peft), (grad_blocks, grad_peft)):
        assert (here - there).abs().max() <= close * there.abs().max()


@pytest.mark.parametrize("method", ["bone", "bat"])
def test_weight_is_equation_3_block_by_block(method):
    torch.manual_seed(0)
    weight, blocks, b = torch.randn(12, 8), torch.randn(3, 4, 4), 4
    full = {"bone": bone_weight, "bat": bat_weight}[method](weight, blocks)
    for j in range(3):
        for n in range(2):
            w = weight[j * b : (j + 1) * b, n * b : (n + 1) * b]
            delta = blocks[j] + (w @ blocks[j] if method == "bat" else 0)
            torch.testing.assert_close(full[j * b : (j + 1) * b, n * b : (n + 1) * b], w + delta)


@pytest.mark.parametrize("method", ["bone", "bat"])
def test_gradients_equal_finite_differences(method):
    ours, _ = filled(method, 8, 12, 4)
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    call = lambda x, blocks: torch.func.functional_call(ours, {"0.blocks": blocks}, x)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, ours[0].blocks))


@pytest.mark.parametrize("method", ["bone", "bat"])
def test_fresh_adapter_is_the_identity(method):
    plain = nn.Sequential(nn.Linear(16, 48))
    ours = copy.deepcopy(plain)
    inject(ours, ("0",), method, 4)
    x = torch.randn(7, 16)
    assert torch.equal(ours(x), plain(x))


@pytest.mark.parametrize("method", ["bone", "bat"])
def test_merged_equals_unmerged_and_unmerge_restores_every_bit(method):
    ours, _ = filled(method, bias=False)
    weight, x = ours[0].base.weight, torch.randn(5, 16, dtype=torch.float64)
    before, bits = ours(x), weight.detach().clone()
    merge(ours)
    assert not torch.equal(ours[0].base.weight, bits)
    torch.testing.assert_close(ours(x), before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        nn.functional.linear(x, ours[0].base.weight), before, rtol=1e-12, atol=1e-12
    )
    assert torch.equal(weight, bits), "a tensor shared with another model was written to"
    merge(ours)
    unmerge(ours)
    assert torch.equal(ours[0].base.weight, bits)
    assert torch.equal(ours(x), before)


def test_merge_refuses_weights_that_are_not_finite_and_merges_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    inject(model, ("0", "1"), "bat", 2)
    model[1].blocks.data[0, 0, 0] = torch.inf
    with pytest.raises(PekaError, match="1 is not finite"):
        merge(model)
    assert model[0].unmerged is None


@pytest.mark.parametrize("method", ["bone", "bat"])
def test_bfloat16_autocast_is_close_to_float32(method):
    ours, _ = filled(method, dtype=torch.float32)
    x = torch.randn(64, 16, requires_grad=True)
    exact = gradients(ours, x, ours[0].blocks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(x)
    weight = {"bone": bone_weight, "bat": bat_weight}[method](ours[0].base.weight, ours[0].blocks)
    once = nn.functional.linear(x.bfloat16(), weight.bfloat16(), ours[0].base.bias.bfloat16())
    assert torch.equal(y, once), "W' is rounded before it is complete"
    weights = torch.linspace(-1, 1, y.numel()).view_as(y).cos()
    rounded = (y, *torch.autograd.grad((y.float() * weights).sum(), (x, ours[0].blocks)))
    for here, there in zip(rounded, exact, strict=True):
        assert here is y or here.dtype == torch.float32
        assert (here.float() - there).norm() < 0.02 * there.norm()


def test_backward_keeps_no_adapted_weight():
    ours, _ = filled("bat", 64, 64, 4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ours(torch.randn(2, 64, dtype=torch.float64, requires_grad=True))
    weights = [t for t in saved if t.shape == (64, 64)]
    assert [t.data_ptr() for t in weights] == [ours[0].base.weight.data_ptr()]


def test_only_blocks_train():
    ours, _ = filled("bat")
    ours(torch.randn(2, 16, dtype=torch.float64)).sum().backward()
    assert [name for name, p in ours.named_parameters() if p.grad is not None] == ["0.blocks"]


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "parameters"),
    [(1536, 40, 24, 47_185_920), (1024, 24, 16, 18_874_368)],
)
@pytest.mark.parametrize("method", ["bone", "bat"])
def test_parameters_for_h_optimus_0_and_uni_shapes(dim, depth, heads, parameters, method):
    with torch.device("meta"):
        model = nn.ModuleList(
            nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim)})})
            for _ in range(depth)
        )
        assert len(inject(model, ("attn.qkv",), method, 256)) == depth
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters


def tiny_vit():
    return VisionTransformer(
        img_size=64, patch_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )


def test_targets_are_whole_words_and_never_a_convolution():
    model = tiny_vit()
    assert inject(model, ("proj", "qkv"), "bone", 8) == [
        f"blocks.{i}.attn.{name}" for i in range(2) for name in ("qkv", "proj")
    ]
    assert isinstance(model.patch_embed.proj, nn.Conv2d)
    with pytest.raises(PekaError, match=r"'kv' names no Linear layer.*blocks\.\*\.attn\.qkv"):
        inject(tiny_vit(), ("qkv", "kv"), "bat", 8)
    with pytest.raises(PekaError, match="it has: none.*projector_only"):
        inject(nn.Sequential(nn.Conv2d(3, 4, 1)), ("qkv",), "bat", 8)


def test_block_that_does_not_divide_names_layer_and_numbers_and_changes_nothing():
    model = tiny_vit()
    with pytest.raises(
        ValueError, match=r"blocks\.0\.attn\.qkv: block size 12 does not divide 32 -> 96"
    ):
        inject(model, ("qkv",), "bat", 12)
    assert not any(isinstance(module, BlockLinear) for module in model.modules())


def test_a_second_adapter_is_refused():
    model = tiny_vit()
    inject(model, ("qkv",), "bat", 8)
    with pytest.raises(PekaError, match="already carries"):
        inject(model, ("qkv",), "bat", 8)
