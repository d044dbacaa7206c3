"""What a GPU runs, on a machine without one: fake tensors have device and type, CUDA's autocast acts on them, but no values."""

from dataclasses import replace

import pytest
import torch
from test_encoders import tiny_encoder
from test_scfoundation import CHECKPOINT
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from peka_core.alignment import _step, _sums
from peka_core.classifier import fit_classifier
from peka_core.device import autocast
from peka_core.encoders import load_encoder
from peka_core.models import scfoundation_network as sc
from peka_core.models.scfoundation import ScFoundation
from peka_core.recipe import RECIPES
from peka_core.student import Student

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
N, D_TEACHER, TILES = 6, 8, torch.zeros((6, 224, 224, 3), dtype=torch.uint8)
SMALL = {"block": 16, "rank": 8, "alpha": 8.0, "hidden": 16, "k": 3, "batch_size": N}


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch):
    """Fake tensors, a torch that believes in their GPU, and no question for a value."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch, "isfinite", lambda x: True)
    monkeypatch.setattr(
        torch.optim, "Adam", torch.optim.SGD
    )  # Adam asks how many steps it has made
    monkeypatch.setattr(nn.Module, "_apply", move)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with FakeTensorMode(allow_non_fake_inputs=True), OneType():
        yield


class OneType(
    TorchDispatchMode
):  # refuses a product of two types, as a GPU does; the fake one lets it pass
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            assert len({a.dtype for a in args}) == 1, func
        return func(*args, **kwargs or {})


def move(module, change):
    """nn.Module._apply with new parameters; torch's own writes to the old ones, which fake ones refuse."""
    for part in module.modules():
        for name, p in part._parameters.items():
            part._parameters[name] = (
                p if p is None else nn.Parameter(change(p.detach()), p.requires_grad)
            )
        part._buffers |= {name: change(b) for name, b in part._buffers.items() if b is not None}
    return module


@torch.no_grad()
def backward(loss):
    """Tensor.backward, node by node: torch's engine asks the driver for its streams."""
    waiting = {loss.grad_fn: [torch.ones_like(loss)]}
    while waiting:
        grads = waiting.pop(
            node := max(waiting, key=lambda node: node._sequence_nr())
        )  # made last: has all its gradients
        if hasattr(node, "variable"):  # a parameter
            node.variable.grad = grads[0] + (
                0.0 if node.variable.grad is None else node.variable.grad
            )
            continue
        made = (
            node.apply(*grads)
            if isinstance(node, torch.autograd.function.BackwardCFunction)
            else node(*grads)
        )
        for (following, place), grad in zip(
            node.next_functions, made if isinstance(made, tuple) else (made,), strict=False
        ):
            if following is not None and grad is not None:
                wanted = following._input_metadata
                grads = waiting.setdefault(following, [None] * len(wanted))
                grad = grad.sum_to_size(wanted[place].shape).to(
                    wanted[place].dtype
                )  # as the engine does
                grads[place] = grad if grads[place] is None else grad + grads[place]


def on_gpu(tensors, dtype=torch.float32):
    return {(t.device.type, t.dtype) for t in tensors} == {("cuda", dtype)}


def moved(
    make, *arguments, **options
):  # an encoder, made of real tensors, since its makers ask for values
    with unset_fake_temporarily():
        encoder = make(*arguments, **options)
    return replace(encoder, model=encoder.model.to("cuda"), device="cuda")


@pytest.mark.parametrize(
    "recipe", [replace(recipe, **SMALL) for recipe in RECIPES.values()], ids=RECIPES
)
@pytest.mark.parametrize("method", ["bat", "bone", "lora", "adalora", "full", "projector_only"])
def test_a_step_of_every_method(method, recipe):
    student = Student(moved(load_encoder, "random", device="cpu"), method, D_TEACHER, recipe)
    targets, labels = (
        torch.zeros(N, D_TEACHER, device="cuda"),
        torch.zeros(N, dtype=torch.long, device="cuda"),
    )
    head = (
        fit_classifier(targets, labels, recipe)
        if recipe.classifier_epochs
        else nn.Linear(D_TEACHER, recipe.k).to("cuda")
    )
    trained = {
        n: p for n, p in [*student.named_parameters(), *head.named_parameters()] if p.requires_grad
    }
    student.train().start(steps=100)
    student.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    seen, optimiser = [], torch.optim.SGD(trained.values(), lr=recipe.lr)
    parts = _step(student, head, optimiser, TILES, targets, labels, recipe)
    student.after_step(0)
    assert (
        on_gpu([*seen, parts["projected"]], torch.bfloat16)
        and len(seen) == 1
        and on_gpu([parts["total"], _sums(parts, targets)])
    )
    assert on_gpu(
        [
            *student.parameters(),
            *head.parameters(),
            *(p.grad for name, p in trained.items() if "ranknum" not in name),
        ]
    )


@pytest.mark.parametrize(
    "facts", [{}, {"pool": "cls+mean", "dim": 64}, {"resize": 256, "interpolation": "bicubic"}]
)
def test_an_encoder_embeds_in_bfloat16_and_ends_in_float32(facts):
    encoder, inside = moved(tiny_encoder, **facts), []
    encoder.model.global_pool = "" if "pool" in facts else encoder.model.global_pool
    encoder.model.blocks[1].mlp.fc1.register_forward_hook(
        lambda module, given, out: inside.append(out)
    )
    with torch.no_grad(), autocast("cuda"):
        features = encoder.encode(x := encoder.transform(TILES))
    assert (
        on_gpu([x, features])
        and on_gpu(inside, torch.bfloat16)
        and features.shape == (N, encoder.dim)
    )


@pytest.mark.parametrize(("pool", "width"), [("all", 4), ("max", 1)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_scfoundation_takes_a_packed_batch(monkeypatch, pool, width, precision):
    with unset_fake_temporarily():
        network, layout = (
            sc.build_network(sc.read_checkpoint(CHECKPOINT, "gene"), ""),
            sc.Layout(torch.tensor([9, 5, 3]), "cpu"),
        )
    vars(layout).update(
        {name: value.to("cuda") for name, value in vars(layout).items() if name != "shape"}
    )  # made from values
    monkeypatch.setattr(sc, "Layout", lambda lengths, device: layout)
    values, ids, lengths = (
        torch.zeros(n, dtype=kind)
        for n, kind in ((17, torch.float32), (17, torch.long), (3, torch.long))
    )
    with (
        torch.inference_mode(),
        ScFoundation(CHECKPOINT, CHECKPOINT, device="cuda", precision=precision)._autocast(),
    ):
        vectors = network.to("cuda")(values.to("cuda"), ids.to("cuda"), lengths, pool)
        assert on_gpu([vectors, network.token_emb(values.to("cuda"))])
    assert vectors.shape == (3, width * network.pos_emb.embedding_dim)
