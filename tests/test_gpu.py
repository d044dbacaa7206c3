"""On an NVIDIA GPU: the loop under bf16 autocast, features back on the CPU."""

import contextlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_alignment import kill_in_epoch
from test_encoders import smooth_tiles
from test_geneformer import cells as geneformer_cells
from test_geneformer import teacher as geneformer
from test_scfoundation import CHECKPOINT, LIMIT, cells, near_in_bfloat16
from test_scfoundation import vocabulary as vocabulary  # a fixture
from test_speed import aligned, near
from test_tokens import NoCache
from test_workers import learn_on_gpus, torchrun

from peka_core import alignment, losses
from peka_core.alignment import align
from peka_core.common.device import autocast
from peka_core.common.errors import PekaError
from peka_core.encoders import load_encoder
from peka_core.recipe import RECIPES, Recipe
from peka_core.student import Student, embed_tiles
from peka_core.teachers import load_teacher
from peka_core.training_data import TrainingData
from peka_core.training_parts.batches import batches
from peka_core.training_parts.tokens import TokenCache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can see"),
]
SMALL = {"epochs": 8, "lr": 3e-3, "batch_size": 16, "k": 3, "block": 16, "rank": 9, "hidden": 32}
RECIPE = Recipe(**SMALL, warmup=2, validation_share=0.25)


@contextlib.contextmanager
def memory_of(size: int):
    """A GPU on which torch gets so many bytes, and an error beyond."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(size / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture(scope="module")
def data():
    """48 tiles; the teacher follows their mean colour; four groups of twelve."""
    bright = np.linspace(0.3, 1.0, 48)[np.random.default_rng(0).permutation(48), None, None, None]
    tiles = (smooth_tiles(48, side=224) * bright).astype(np.uint8)
    colour = tiles.mean((1, 2)) / 64 - 2  # (n, 3)
    x_teacher = (colour @ np.random.default_rng(1).normal(size=(3, 4))).astype(np.float32)
    return TrainingData(tiles, x_teacher, x_teacher[:, :3].argmax(1), np.arange(48) // 12)


def student_of(method, recipe=RECIPE):
    return Student(load_encoder("mini", device="cuda"), method, 4, recipe, seed=0)


@pytest.mark.parametrize("name", ["ours", "as_written", "as_run"])
@pytest.mark.parametrize("method", ["bat", "bone", "lora", "adalora", "full", "projector_only"])
def test_the_loss_falls_under_bf16_autocast(data, method, name):
    with autocast("cuda"):
        product = torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")
    assert product.dtype == torch.bfloat16 or not torch.cuda.is_bf16_supported()
    recipe = RECIPE if name == "ours" else replace(RECIPES[name], **SMALL)
    student = student_of(method, recipe)
    total = align(student, data, recipe, progress=False)["total"]
    assert total.iloc[-1] < (0.9 if name == "ours" else 1.0) * total.iloc[0]
    assert all(parameter.is_cuda for parameter in student.parameters())


def test_a_batch_that_does_not_fit_ends_with_one_that_does(data):
    """On a GPU with 1 GB: the message has a batch size with which the same alignment runs."""
    many = TrainingData(*(np.concatenate([part] * 16) for part in list(vars(data).values())[:4]))
    one = replace(RECIPE, epochs=1, batch_size=768, validation_share=0.0)  # of 768 spots
    with memory_of(2**30):
        with pytest.raises(PekaError, match=r"768 tiles; \d+ fit: add -p batch_size") as error:
            align(student_of("full", one), many, one, progress=False)
        fits = int(re.search(r"(\d+) fit", str(error.value))[1])
        assert 1 <= fits <= 384
        del error  # which holds tensors
        torch.cuda.empty_cache()
        fitting = replace(one, batch_size=fits)
        align(student_of("full", fitting), many, fitting, progress=False)


def test_a_killed_alignment_goes_on_where_it_was(data, tmp_path, monkeypatch):
    """Three of five epochs, then from the file: dropout, orientations and Adam go on."""
    recipe = replace(RECIPE, epochs=5, dropout=0.2, validation_share=0.0)
    run = lambda path: align(student_of("bat", recipe), data, recipe, 0, path, False)["total"]
    undisturbed, started = run(None), kill_in_epoch(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "progress.pt")
    torch.manual_seed(77)
    resumed = run(tmp_path / "progress.pt")
    assert len(started) == 6
    np.testing.assert_allclose(resumed, undisturbed, rtol=1e-3)  # a GPU adds in any order
    assert resumed[4] != pytest.approx(resumed[3], rel=1e-3), "nothing moves: no test"


def test_features_and_students_on_a_gpu(data):
    """Also where a batch does not fit and is halved."""
    on_gpu, on_cpu = (load_encoder("mini", device=device) for device in ("cuda", "cpu"))
    tiles = np.concatenate([data.tiles] * 8)  # 384 tiles: 0.7 GB as x and pixels
    ours, theirs = on_gpu.embed(tiles, batch_size=384), on_cpu.embed(tiles)
    assert ours.dtype == np.float32 and on_gpu.precision == "float32"
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # with TF32 in its convolutions 1e-3
    with memory_of(2**29):
        np.testing.assert_allclose(on_gpu.embed(tiles, batch_size=384), ours, atol=1e-4)
    made = embed_tiles(student_of("bat"), data.tiles, progress=False)
    assert (made["encoder"].shape, made["projected"].shape) == ((48, 128), (48, 4))
    assert all(isinstance(v, np.ndarray) and np.isfinite(v).all() for v in made.values())


METHODS = ["bat", "bone", "lora", "adalora", "full", "projector_only"]


@pytest.mark.parametrize("method", METHODS)
def test_compiled_blocks_learn_and_embed_the_same(method):
    where = {"device": "cuda", "side": 64, "width": 64}
    near(*(aligned(compile, method, **where) for compile in ("never", "always")))


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_gpu(data, method, monkeypatch):
    """torch raises an error where the host would wait; the look at the losses comes afterwards."""

    def watched(*arguments):
        for batch in batches(*arguments):
            torch.cuda.set_sync_debug_mode("error")
            yield batch
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(alignment, "batches", watched)
    recipe = replace(RECIPE, epochs=12, validation_share=0.0)  # AdaLoRA removes ranks in the middle
    try:
        history = align(student_of(method, recipe), data, recipe, progress=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(history["total"]).all()


@pytest.mark.parametrize("series", ["V1", "V2"])
def test_geneformer_is_that_of_the_cpu(series):
    given = geneformer_cells()
    exact, same = (geneformer(series, device=at).embed(given) for at in ("cpu", "cuda"))
    np.testing.assert_allclose(same, exact, atol=1e-4)
    half = geneformer(series, device="cuda", precision="bfloat16").embed(given)
    assert 1e-3 < np.abs(half - exact).max() < 0.3


def test_scfoundation_in_bfloat16_stays_near_float32(vocabulary):
    """Cosine above .9999 for each spot, no value off by more than .08 where values reach 4."""
    options = {"checkpoint": CHECKPOINT, "vocabulary": vocabulary, "target": "f1"}
    load = lambda **more: load_teacher("scfoundation", **options, **more).embed(cells())
    exact, same = load(device="cpu"), load(device="cuda")
    np.testing.assert_allclose(same, exact, **LIMIT)
    half = load(device="cuda", precision="bfloat16")
    assert half.dtype == np.float32 and not np.array_equal(half, same)
    near_in_bfloat16(half, exact)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_two_gpus_learn_what_one_does(tmp_path, monkeypatch):
    """In float32. AdaLoRA's ranks may change places where sums are rounded in another order."""
    monkeypatch.setattr(losses, "autocast", lambda _: contextlib.nullcontext())
    learn_on_gpus(tmp_path)
    done = torchrun(learn_on_gpus, tmp_path)
    assert done.returncode == 0, done.stderr
    one, first, second = (np.load(tmp_path / f"gpu-{name}.npz") for name in ("1-0", "2-0", "2-1"))
    for name in one.files:
        np.testing.assert_array_equal(second[name], first[name], err_msg=name)
        if "adalora" not in name:
            np.testing.assert_allclose(first[name], one[name], atol=1e-3, err_msg=name)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("compile", ["never", "always"])
def test_cached_tokens_train_as_all_blocks_do_under_bf16(data, tmp_path, compile, flips):
    """Up to the rounding of tokens to bfloat16; killed, it goes on with the tokens of the file."""
    recipe = replace(RECIPE, last_blocks=2, flips=flips, epochs=4)
    encoder = replace(load_encoder("mini", device="cuda"), compile=compile)

    def train(path=None):
        student = Student(encoder, "bat", 4, recipe, seed=0)
        return align(student, data, recipe, checkpoint=path, progress=False)["total"]

    cached, path = train(), tmp_path / "progress.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "TokenCache", NoCache)
        np.testing.assert_allclose(cached, train(), rtol=0.01)
    with pytest.MonkeyPatch.context() as patch:
        kill_in_epoch(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train(path)
    assert path.with_suffix(".tokens").exists()
    np.testing.assert_allclose(train(path), cached, rtol=1e-3)
    assert not path.with_suffix(".tokens").exists()


def test_tokens_are_read_ahead_into_page_locked_memory(data, tmp_path):
    recipe = replace(RECIPE, last_blocks=2, flips=False)
    cache = TokenCache(student_of("bat", recipe), data.tiles, recipe, 48, tmp_path / "progress.pt")
    rows = np.arange(9)
    assert cache[rows].is_cuda and cache.file.tokens.dtype == torch.bfloat16
    assert cache.file.read(rows, page_locked=True).is_pinned()
    with torch.no_grad(), autocast("cuda"):
        expected = cache.student.tokens(torch.from_numpy(data.tiles[rows]))
    assert cache[rows].dtype == expected.dtype
    torch.testing.assert_close(cache[rows], expected, rtol=0.02, atol=0.02)
