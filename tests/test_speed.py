"""Compiled blocks and rounded weights: the same losses and features, and nothing stays behind."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from peka_core.alignment import align
from peka_core.encoders import Encoder
from peka_core.recipe import Recipe
from peka_core.student import Student, embed_tiles
from peka_core.training_data import TrainingData
from peka_core.training_parts import speed
from peka_core.training_parts.speed import PAYS_FROM, at_hardware_speed

N, D = 20, 32
# One batch is one epoch, so the table has the loss of each step.
RECIPE = Recipe(epochs=20, lr=1e-3, batch_size=N, warmup=0, k=3, block=8, rank=4, hidden=16)
RECIPE = replace(RECIPE, layers=("attn.qkv", "mlp.fc1"), validation_share=0.0)


def encoder(compile, device="cpu", side=32, width=D):
    torch.manual_seed(0)
    size = {"img_size": side, "patch_size": 16, "embed_dim": width, "num_heads": 2, "depth": 2}
    network = timm.models.VisionTransformer(**size, num_classes=0, global_pool="avg")
    network = network.requires_grad_(False).eval().to(device)
    for p in network.blocks.parameters():
        p.mul_(8.0 if p.ndim > 1 else 1.0)  # timm's first weights are so small that errors hide
    settings = {"size": side, "resize": side, "device": device, "compile": compile}
    return Encoder("two blocks", network, (0.5,) * 3, (0.25,) * 3, width, **settings)


def drawn(side=32, n=N):
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    targets = rng.normal(size=(n, 4)).astype(np.float32)
    return TrainingData(tiles, targets, np.arange(n) % 3, np.zeros(n))


def aligned(compile, method, recipe=RECIPE, **options):
    """Losses of each step, and features of the tiles afterwards."""
    student, data = Student(encoder(compile, **options), method, 4, recipe), drawn()
    if "side" in options:
        data = drawn(options["side"])
    before = dict(student.network.state_dict())
    history = align(student, data, recipe, progress=False)
    after = student.network.state_dict()
    assert all(after[name].dtype == value.dtype for name, value in before.items())
    frozen = {name for name, p in student.network.named_parameters() if not p.requires_grad}
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in frozen)
    features = embed_tiles(student, data.tiles, progress=False)["encoder"]
    return history["total"].to_numpy(), features


def near(plain, compiled):
    """The losses of twenty steps, and the direction of each feature vector."""
    (losses, a), (same, b) = plain, compiled
    np.testing.assert_allclose(same, losses, atol=1e-3)
    assert losses[-1] < losses[0] - 1e-2, "nothing is learned: no test"
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.9999


@pytest.mark.slow
def test_compiled_blocks_learn_and_embed_the_same(monkeypatch):
    """In bfloat16 where this CPU has it, and then the frozen weights are rounded too."""
    if not speed.compiler_works("cpu"):
        pytest.skip("torch cannot compile here: no C++ compiler")
    compiled = []
    monkeypatch.setattr(speed.torch, "compile", counted := lambda f, **o: compiled.append(f) or f)
    assert counted and np.isfinite(aligned("always", "bat")[0]).all()
    assert len(compiled) == 4, "two blocks, for the alignment and for the features"
    monkeypatch.undo()
    near(aligned("never", "bat"), aligned("always", "bat"))


def test_auto_compiles_only_on_a_gpu_where_it_pays(monkeypatch):
    network = encoder("auto").model
    enough = PAYS_FROM / sum(p.numel() for p in network.parameters())
    works = []
    monkeypatch.setattr(speed, "compiler_works", lambda device: works.append(device) or True)
    monkeypatch.setattr(speed.torch, "compile", lambda forward, **_: forward)
    expected = {"cpu": (False, False), "cuda": (False, True)}
    for device, wanted in expected.items():
        for passes, compiles in zip((0.9 * enough, 1.1 * enough), wanted, strict=True):
            with at_hardware_speed(network, device, "float32", passes) as compiled:
                assert compiled == compiles
    assert works == ["cuda"]
    with at_hardware_speed(network, "cpu", "float32", 1, "always") as compiled:
        assert compiled
    assert "forward" not in vars(network.blocks[0])
    with at_hardware_speed(torch.nn.Linear(2, 2), "cuda", "float32", enough, "always") as compiled:
        assert not compiled  # it has no blocks


def test_a_compiler_that_fails_is_said_in_one_line(monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no C compiler\nand a long log")

    monkeypatch.setattr(speed.torch, "compile", fails)
    assert not speed.compiler_works.__wrapped__("cpu")
    assert capsys.readouterr().out.splitlines() == [
        "transformer blocks run uncompiled, because compiling fails here: no C compiler"
    ]
