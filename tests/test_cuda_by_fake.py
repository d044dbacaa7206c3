"""What a GPU runs, without one: fake tensors have a device and a type, but no values."""

from dataclasses import replace

import pytest
import torch
from test_encoders import tiny_encoder
from test_scfoundation import CHECKPOINT
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from peka_core.alignment import clip_gradients, results_of_batch
from peka_core.common.device import autocast
from peka_core.encoders import load_encoder
from peka_core.losses import batch_losses
from peka_core.models import scfoundation_network as sc
from peka_core.models import scgpt_network
from peka_core.models.scfoundation import ScFoundation
from peka_core.recipe import RECIPES
from peka_core.student import Student
from peka_core.training_parts.ranks import AdaLoraRanks

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
N, D_TEACHER, TILES = 6, 8, torch.zeros((6, 224, 224, 3), dtype=torch.uint8)
SMALL = {"block": 16, "rank": 8, "alpha": 8.0, "hidden": 16, "k": 3, "batch_size": N}


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch):
    """Fake tensors, a torch that believes in their GPU, and no question for a value."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(nn.Module, "_apply", move)
    with FakeTensorMode(allow_non_fake_inputs=True), OneType():
        yield


class OneType(TorchDispatchMode):
    """Refuses a product of two types, as a GPU does; fake tensors let it pass."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            assert len({a.dtype for a in args}) == 1, func
        return func(*args, **kwargs or {})


def move(module, change):
    """nn.Module._apply with new parameters; torch's own writes to the old, which fakes refuse."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(change(p.detach()), p.requires_grad)
        part._buffers |= {name: change(b) for name, b in part._buffers.items() if b is not None}
    return module


def moved(make, *arguments, **options):
    """An encoder on the fake GPU, made of real tensors, since its makers ask for values."""
    with unset_fake_temporarily():
        encoder = make(*arguments, **options)
    return replace(encoder, model=encoder.model.to("cuda"), device="cuda")


def on_gpu(tensors, dtype=torch.float32):
    return {(t.device.type, t.dtype) for t in tensors} == {("cuda", dtype)}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("method", ["bat", "bone", "lora", "adalora", "full", "projector_only"])
def test_a_batch_of_every_method(method, recipe):
    recipe, seen = replace(RECIPES[recipe], **SMALL), []
    student = Student(moved(load_encoder, "random", device="cpu"), method, D_TEACHER, recipe)
    targets, labels = torch.zeros(N, D_TEACHER, device="cuda"), torch.zeros(N, device="cuda").long()
    classifier = nn.Linear(D_TEACHER, recipe.k).to("cuda")
    student.train().network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    losses, projected = batch_losses(student, classifier, TILES, targets, labels, recipe)
    assert len(seen) == 1 and on_gpu([*seen, projected], torch.bfloat16)
    assert on_gpu([losses["total"], results_of_batch(losses, projected, targets)])
    assert on_gpu([*student.parameters(), *classifier.parameters()])
    if method == "adalora":
        assert recipe.reallocate == isinstance(student.rank_schedule, AdaLoraRanks)
    student.rank_schedule.start(10)
    trained = [p for p in [*student.parameters(), *classifier.parameters()] if p.requires_grad]
    optimiser = torch.optim.Adam(trained, fused=True)
    assert torch.as_tensor(student.rank_schedule.penalty()).ndim == 0
    for p in trained:  # a backward pass needs a real GPU
        p.grad = torch.zeros_like(p)
    clip_gradients(trained, recipe)
    optimiser.step()
    for step in (0, 3, 7, 9):  # before, while and after ranks are removed: no value is asked for
        student.rank_schedule.after_step(step)


def test_an_encoder_embeds_in_bfloat16_and_ends_in_float32():
    facts = {"pool": "cls+mean", "dim": 64, "resize": 256, "interpolation": "bicubic"}
    encoder, inside = moved(tiny_encoder, **facts), []
    encoder.model.global_pool = ""
    last = encoder.model.blocks[1].mlp.fc1
    last.register_forward_hook(lambda module, given, out: inside.append(out))
    with torch.no_grad(), autocast("cuda"):
        features = encoder.encode(x := encoder.transform(TILES))
    assert on_gpu([x, features]) and features.shape == (N, encoder.dim)
    assert on_gpu(inside, torch.bfloat16)


def packed_batch(monkeypatch, module):
    """Values and ids of three spots, and their layout in a module of a network."""
    with unset_fake_temporarily():
        layout = sc.Layout(torch.tensor([9, 5, 3]), "cpu")  # made from values
    on_device = {name: v.to("cuda") for name, v in vars(layout).items() if name != "shape"}
    vars(layout).update(on_device)
    monkeypatch.setattr(module, "Layout", lambda lengths, device: layout)
    return torch.zeros(17, device="cuda"), torch.zeros(17, device="cuda").long()


@pytest.mark.parametrize(("pool", "width"), [("all", 4), ("max", 1)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_scfoundation_takes_a_packed_batch(monkeypatch, pool, width, precision):
    with unset_fake_temporarily():
        network = sc.build_network(sc.read_checkpoint(CHECKPOINT, "gene"), "")
    values, ids = packed_batch(monkeypatch, sc)
    teacher = ScFoundation(CHECKPOINT, CHECKPOINT, device="cuda", precision=precision)
    with torch.inference_mode(), teacher._autocast():
        vectors = network.to("cuda")(values, ids, torch.zeros(3).long(), pool)
        assert on_gpu([vectors, network.token_emb(values)])
    assert vectors.shape == (3, width * network.pos_emb.embedding_dim)


@pytest.mark.parametrize("half", [False, True])
def test_scgpt_takes_a_packed_batch(monkeypatch, half):
    with unset_fake_temporarily():
        network = scgpt_network.ScGptNetwork(tokens=9, dim=32, heads=4, hidden=48, depth=2)
    values, ids = packed_batch(monkeypatch, scgpt_network)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=half):
        vectors = network.to("cuda")(values, ids, torch.zeros(3).long())
    assert vectors.shape == (3, 32) and on_gpu([vectors])
