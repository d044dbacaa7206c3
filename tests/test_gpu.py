"""On an NVIDIA GPU: the loop under bf16 autocast, features back on the CPU."""

import numpy as np
import pytest
import torch
from test_encoders import smooth_tiles
from test_scfoundation import CHECKPOINT, LIMIT, cells, near_in_bfloat16
from test_scfoundation import vocabulary as vocabulary  # a fixture

from peka_core.alignment import Recipe, align
from peka_core.encoders import autocast, load_encoder
from peka_core.student import Student, embed_tiles
from peka_core.teachers import load_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can see"),
]
RECIPE = Recipe(epochs=8, lr=3e-3, batch_size=16, warmup=2, k=3, block=16, hidden=32, set_aside=0.25)


@pytest.fixture(scope="module")
def world():
    """48 tiles; the teacher follows their mean colour; four groups of twelve."""
    tiles = smooth_tiles(48, side=224)
    tiles = (tiles * np.linspace(0.3, 1.0, 48)[np.random.default_rng(0).permutation(48), None, None, None]).astype(np.uint8)
    colour = tiles.mean((1, 2)) / 64 - 2  # (n, 3)
    x_teacher = (colour @ np.random.default_rng(1).normal(size=(3, 4))).astype(np.float32)
    return tiles, x_teacher, x_teacher[:, :3].argmax(1), np.arange(48) // 12


@pytest.mark.parametrize("method", ["bat", "bone", "lora", "adalora", "full", "projector_only"])
def test_the_loss_falls_under_bf16_autocast(world, method):
    with autocast("cuda"):
        product = torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")
    if torch.cuda.is_bf16_supported():
        assert product.dtype == torch.bfloat16
    tiles, x_teacher, labels, groups = world
    student = Student(load_encoder("mini", device="cuda"), method, 4, RECIPE, seed=0)
    history = align(student, tiles, x_teacher, labels, groups, RECIPE, progress=False)
    assert history["total"].iloc[-1] < 0.9 * history["total"].iloc[0]
    assert all(parameter.is_cuda for parameter in student.parameters())


def test_features_on_gpu_equal_those_on_cpu(world):
    tiles = world[0]
    on_gpu = load_encoder("mini", device="cuda")
    ours, theirs = on_gpu.embed(tiles), load_encoder("mini", device="cpu").embed(tiles)
    assert ours.dtype == np.float32 and on_gpu.precision in ("float32", "bfloat16")
    limit = 2e-3 if on_gpu.precision == "float32" else 5e-2
    assert np.abs(ours - theirs).max() < limit * np.abs(theirs).max()


def test_a_student_embeds_on_gpu(world):
    student = Student(load_encoder("mini", device="cuda"), "bat", 4, RECIPE, seed=0)
    made = embed_tiles(student, world[0], progress=False)
    assert {name: values.shape for name, values in made.items()} == {"encoder": (48, 128), "projected": (48, 4)}
    assert all(isinstance(values, np.ndarray) and np.isfinite(values).all() for values in made.values())


def test_scfoundation_in_bfloat16_stays_near_float32(vocabulary):
    """Cosine above 0.9999 for each spot, no value off by more than 0.08 where values reach 4: bfloat16 has three digits."""
    options = {"checkpoint": CHECKPOINT, "vocabulary": vocabulary, "target": "f1"}
    exact = load_teacher("scfoundation", device="cpu", **options).embed(cells())
    same = load_teacher("scfoundation", device="cuda", **options).embed(cells())
    np.testing.assert_allclose(same, exact, **LIMIT)
    half = load_teacher("scfoundation", device="cuda", precision="bfloat16", **options).embed(cells())
    assert half.dtype == np.float32 and not np.array_equal(half, same)
    near_in_bfloat16(half, exact)
