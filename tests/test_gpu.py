"""On an NVIDIA GPU: the loop under bf16 autocast, features back on the CPU."""

import contextlib
import dataclasses
import re

import numpy as np
import pytest
import torch
from test_encoders import smooth_tiles
from test_scfoundation import CHECKPOINT, LIMIT, cells, near_in_bfloat16
from test_scfoundation import vocabulary as vocabulary  # a fixture

from peka_core import alignment
from peka_core.alignment import Recipe, align
from peka_core.bone import BlockLinear
from peka_core.device import autocast
from peka_core.encoders import load_encoder
from peka_core.errors import PekaError
from peka_core.recipe import RECIPES
from peka_core.student import Student, embed_tiles
from peka_core.teachers import load_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can see"),
]
RECIPE = Recipe(
    epochs=8, lr=3e-3, batch_size=16, warmup=2, k=3, block=16, hidden=32, validation_share=0.25
)


@contextlib.contextmanager
def at_most(size: int):
    """A GPU on which torch gets so many bytes, and an error beyond."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        size / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def world():
    """48 tiles; the teacher follows their mean colour; four groups of twelve."""
    tiles = smooth_tiles(48, side=224)
    tiles = (
        tiles
        * np.linspace(0.3, 1.0, 48)[np.random.default_rng(0).permutation(48), None, None, None]
    ).astype(np.uint8)
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


@pytest.mark.parametrize("name", ["as_written", "as_run"])
@pytest.mark.parametrize("method", ["bat", "bone", "adalora"])
def test_both_recipes_of_the_paper_learn(world, name, method):
    """As the paper has them, but for sizes that fit 48 tiles and a rate that fits a few steps."""
    small = {
        "epochs": 8,
        "lr": 3e-3,
        "batch_size": 16,
        "k": 3,
        "block": 16,
        "rank": 9,
        "hidden": 32,
    }
    student = Student(
        load_encoder("mini", device="cuda"),
        method,
        4,
        recipe := dataclasses.replace(RECIPES[name], **small),
    )
    history = align(student, *world, recipe, progress=False)
    assert history["total"].iloc[-1] < history["total"].iloc[0]


@pytest.mark.parametrize("method", ["bat", "bone"])
def test_gradients_under_autocast_are_near_those_in_float32(method):
    """Of x, with three digits, and of the blocks, which gather over 512 rows: cosine above .999."""
    torch.manual_seed(0)
    layer = BlockLinear(torch.nn.Linear(64, 128), 16, method).cuda()
    torch.nn.init.normal_(layer.blocks, std=0.1)
    x, weights = (
        torch.randn(4, 128, 64, device="cuda", requires_grad=True),
        torch.randn(4, 128, 128, device="cuda"),
    )

    def gradients() -> list[torch.Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad((y.float() * weights).sum(), (x, layer.blocks))]

    exact = gradients()
    with autocast("cuda"):
        rounded = gradients()
    assert [g.dtype for g in rounded] == [torch.bfloat16, torch.float32, torch.float32]
    for here, there in zip(rounded, exact, strict=True):
        assert not torch.equal(here.float(), there)
        assert (
            torch.nn.functional.cosine_similarity(here.float().flatten(), there.flatten(), dim=0)
            > 0.999
        )


def test_a_batch_that_does_not_fit_ends_with_one_that_does(world):
    """On a GPU with 1 GB: the message names a batch size, and with that the same alignment runs."""
    tiles, x_teacher, labels, groups = (np.concatenate([part] * 16) for part in world)  # 768 spots
    recipe = dataclasses.replace(RECIPE, epochs=1, batch_size=len(tiles), validation_share=0.0)

    def run(batch_size: int) -> None:
        student = Student(load_encoder("mini", device="cuda"), "full", 4, recipe)
        align(
            student,
            tiles,
            x_teacher,
            labels,
            groups,
            dataclasses.replace(recipe, batch_size=batch_size),
            progress=False,
        )

    with at_most(2**30):
        with pytest.raises(
            PekaError, match=r"batch of 768 tiles on cuda; \d+ fit: add -p batch_size"
        ) as error:
            run(len(tiles))
        fits = int(re.search(r"(\d+) fit", str(error.value))[1])
        assert 1 <= fits <= 384
        torch.cuda.empty_cache()
        run(fits)


def test_a_killed_alignment_goes_on_where_it_was(world, tmp_path, monkeypatch):
    """Three of five epochs, then from the file: dropout, orientations and Adam go on as if nothing had happened."""
    recipe = dataclasses.replace(RECIPE, epochs=5, dropout=0.2, validation_share=0.0)

    def run(**options):
        student = Student(load_encoder("mini", device="cuda"), "bat", 4, recipe, seed=0)
        return align(student, *world, recipe, progress=False, **options)

    undisturbed, counted, started = run(), alignment.batches, []

    def until_killed(*arguments, **options):
        started.append(1)
        if len(started) == 4:
            raise KeyboardInterrupt
        return counted(*arguments, **options)

    monkeypatch.setattr(alignment, "batches", until_killed)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "progress.pt")
    torch.manual_seed(77)
    resumed = run(checkpoint=tmp_path / "progress.pt")
    assert len(started) == 6
    np.testing.assert_allclose(
        resumed["total"], undisturbed["total"], rtol=1e-3
    )  # sums of a GPU come in any order
    assert resumed["total"].iloc[4] != pytest.approx(resumed["total"].iloc[3], rel=1e-3), (
        "nothing moves: the test would see nothing"
    )


def test_features_on_gpu_equal_those_on_cpu(world):
    on_gpu = load_encoder("mini", device="cuda")
    ours, theirs = on_gpu.embed(world[0]), load_encoder("mini", device="cpu").embed(world[0])
    assert ours.dtype == np.float32 and on_gpu.precision == "float32"
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # with TF32 in its convolutions 1e-3


def test_embedding_halves_a_batch_that_does_not_fit(world):
    encoder, tiles = (
        load_encoder("mini", device="cuda"),
        np.concatenate([world[0]] * 8),
    )  # 384 tiles: 0.7 GB as x and pixels
    whole = encoder.embed(tiles, batch_size=384)
    with at_most(2**29):
        halved = encoder.embed(tiles, batch_size=384)
    np.testing.assert_allclose(halved, whole, atol=1e-4)


def test_a_student_embeds_on_gpu(world):
    student = Student(load_encoder("mini", device="cuda"), "bat", 4, RECIPE, seed=0)
    made = embed_tiles(student, world[0], progress=False)
    assert {name: values.shape for name, values in made.items()} == {
        "encoder": (48, 128),
        "projected": (48, 4),
    }
    assert all(
        isinstance(values, np.ndarray) and np.isfinite(values).all() for values in made.values()
    )


def test_scfoundation_in_bfloat16_stays_near_float32(vocabulary):
    """Cosine above 0.9999 for each spot, no value off by more than 0.08 where values reach 4: bfloat16 has three digits."""
    options = {"checkpoint": CHECKPOINT, "vocabulary": vocabulary, "target": "f1"}
    exact = load_teacher("scfoundation", device="cpu", **options).embed(cells())
    same = load_teacher("scfoundation", device="cuda", **options).embed(cells())
    np.testing.assert_allclose(same, exact, **LIMIT)
    half = load_teacher("scfoundation", device="cuda", precision="bfloat16", **options).embed(
        cells()
    )
    assert half.dtype == np.float32 and not np.array_equal(half, same)
    near_in_bfloat16(half, exact)
