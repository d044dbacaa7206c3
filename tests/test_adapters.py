"""All methods behind one student: identity at the start, what trains, merging, saving, counts, AdaLoRA's ranks, resuming."""

import dataclasses

import numpy as np
import pytest
import torch
from test_alignment import RECIPE as SHORT
from test_alignment import one_thread, train, trained, world  # noqa: F401
from test_encoders import smooth_tiles, tiny_encoder
from torch import nn

from peka_core import adapters, alignment
from peka_core.alignment import Recipe, align
from peka_core.errors import PekaError
from peka_core.recipe import METHODS
from peka_core.student import Student, count_parameters, embed_tiles

TARGETS = ("attn.qkv", "mlp.fc1", "mlp.fc2")
RECIPE = Recipe(block=8, rank=4, alpha=4, hidden=24, targets=TARGETS)
ADAPTED = ("bone", "bat", "lora", "adalora")
ALL = [method for method in METHODS if method != "none"]


def moved(student, size=0.3):
    """The student with random numbers in everything that its adapter trains."""
    generator = torch.Generator().manual_seed(9)
    for name, p in student.named_parameters():
        if p.requires_grad and name.startswith("network."):
            p.data = p.data + torch.randn(p.shape, generator=generator) * size
    return student


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_starts_as_the_frozen_encoder(method):
    encoder, tiles = tiny_encoder(), smooth_tiles(3)
    made = embed_tiles(Student(encoder, method, 6, RECIPE), tiles, progress=False)
    np.testing.assert_allclose(made["encoder"], encoder.embed(tiles), atol=1e-5)


@pytest.mark.parametrize("method", ALL)
def test_gradients_reach_what_the_method_trains_and_nothing_else(method):
    encoder = tiny_encoder()
    before = {name: p.clone() for name, p in encoder.model.named_parameters()}
    student = moved(Student(encoder, method, 6, RECIPE))
    optimiser = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    student.train()(torch.randn(2, 3, 224, 224))[1].square().sum().backward()
    touched = {name for name, p in student.named_parameters() if p.grad is not None}
    assert touched == {name for name, p in student.named_parameters() if p.requires_grad}
    words = {
        "bone": (".blocks",),
        "bat": (".blocks",),
        "lora": ("lora_",),
        "adalora": ("lora_",),
        "full": ("",),
    }
    assert all(
        any(word in name for word in words[method])
        for name in touched
        if name.startswith("network.")
    )
    optimiser.step()
    assert all(
        torch.equal(p, before[name]) and p.grad is None
        for name, p in encoder.model.named_parameters()
    )


@pytest.mark.parametrize("method", ADAPTED)
def test_merged_equals_unmerged_and_the_frozen_encoder_stays(method):
    encoder, tiles = tiny_encoder(), smooth_tiles(3)
    frozen = encoder.embed(tiles)
    student = moved(Student(encoder, method, 6, RECIPE))
    x = encoder.transform(tiles)
    with torch.no_grad():
        before = student(x)[0]
        adapters.merge(student.network)
        after = student(x)[0]
    assert (before - torch.as_tensor(frozen)).abs().max() > 1e-2, (
        "the adapter does nothing, so merging is no test"
    )
    torch.testing.assert_close(after, before, atol=2e-4, rtol=2e-4)
    np.testing.assert_array_equal(encoder.embed(tiles), frozen)


@pytest.mark.parametrize("method", ADAPTED)
def test_an_adapter_that_is_not_finite_is_not_merged(method):
    student = moved(Student(tiny_encoder(), method, 6, RECIPE))
    next(
        p for n, p in student.named_parameters() if p.requires_grad and n.startswith("network.")
    ).data.fill_(torch.nan)
    with pytest.raises(PekaError, match="not finite"):
        adapters.merge(student.network)


@pytest.mark.parametrize("method", ALL)
def test_saved_and_loaded_students_see_the_same(method, tmp_path):
    encoder, tiles = tiny_encoder(), smooth_tiles(3)
    student = moved(Student(encoder, method, 6, RECIPE, seed=3))
    student.save(tmp_path)
    loaded = Student.load(tmp_path, encoder)
    for space, values in embed_tiles(student, tiles, progress=False).items():
        np.testing.assert_array_equal(embed_tiles(loaded, tiles, progress=False)[space], values)


def test_parameter_counts_follow_their_formulas():
    encoder = tiny_encoder()
    layers = [
        m
        for n, m in encoder.model.named_modules()
        if isinstance(m, nn.Linear) and n.endswith(TARGETS)
    ]
    both = sum(m.in_features + m.out_features for m in layers)
    count = {
        method: count_parameters(Student(encoder, method, 6, RECIPE))["adapter"] for method in ALL
    }
    assert count["bone"] == count["bat"] == 8 * sum(m.out_features for m in layers)
    assert count["lora"] == 4 * both
    assert count["adalora"] == 6 * (
        both + len(layers)
    )  # 1.5 times the rank at the start, one value a rank between
    assert count["full"] == sum(p.numel() for p in encoder.model.parameters())
    assert count["projector_only"] == 0


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_a_convolution_of_the_same_name_is_never_hit(method):
    network = nn.ModuleDict(
        {
            "patch_embed": nn.ModuleDict({"proj": nn.Conv2d(3, 8, 4)}),
            "attn": nn.ModuleDict({"proj": nn.Linear(8, 8)}),
        }
    )
    adapters.add(network, method, Recipe(targets=("proj",), rank=2))
    hit = {name for name, p in network.named_parameters() if p.requires_grad}
    assert hit and all(name.startswith("attn.proj.lora_") for name in hit)
    with pytest.raises(PekaError, match="names no Linear layer"):
        adapters.add(nn.Sequential(nn.Conv2d(3, 8, 4)), method, Recipe(targets=("proj",)))


def test_lora_equals_its_formula():
    layer = nn.Linear(12, 8)
    network = nn.ModuleDict({"fc": layer})
    x, weight = torch.randn(5, 12), layer.weight.detach().clone()
    adapters.add(network, "lora", Recipe(targets=("fc",), rank=2, alpha=6))
    a, b = (
        next(p for n, p in network.named_parameters() if part in n) for part in ("lora_A", "lora_B")
    )
    b.data = torch.randn(b.shape)
    torch.testing.assert_close(
        network["fc"](x), x @ (weight + 6 / 2 * b @ a).T + layer.bias, atol=1e-5, rtol=1e-5
    )


def test_adalora_moves_ranks_between_layers(world):  # noqa: F811
    recipe = dataclasses.replace(SHORT, epochs=30, targets=TARGETS, rank=4, alpha=4.0)  # 120 steps
    student, history = train(world, "adalora", recipe)
    ranks = history.filter(like="rank_").T  # one row a layer, one column an epoch
    assert (ranks.sum().diff().iloc[1:] <= 0).all(), "the budget grew again"
    assert ranks[0].sum() > ranks[29].sum() == pytest.approx(4 * len(ranks), abs=2), (
        "the budget was not met"
    )
    assert ranks[29].nunique() > 1, "every layer kept the same rank: nothing was re-allocated"
    assert student.allocation.ranks() == {
        name.removeprefix("rank_"): rank for name, rank in ranks[29].items()
    }, "kept another"


def test_adalora_keeps_an_epoch_within_its_budget_even_where_an_earlier_one_was_better(
    world, monkeypatch
):
    recipe = dataclasses.replace(SHORT, epochs=10, targets=TARGETS, rank=4, alpha=4.0)
    calls = iter(range(100))
    monkeypatch.setattr(
        alignment, "_score_aside", lambda *_: {"validation_total": float(next(calls))}
    )  # worse at every epoch
    student, history = train(world, "adalora", recipe)
    assert history.loc[history["kept"], "epoch"].item() == 8, (
        "the first epoch that ends within the budget"
    )
    assert sum(student.allocation.ranks().values()) <= 4 * len(student.allocation.ranks()) + 2
    assert train(world, "lora", recipe)[1]["kept"].iloc[0]


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_adalora_of_very_few_steps_meets_its_budget(world, steps):  # noqa: F811
    recipe = dataclasses.replace(
        SHORT,
        epochs=1,
        batch_size=-(-40 // steps),
        validation_share=0.0,
        targets=TARGETS,
        rank=4,
        alpha=4.0,
    )
    student, _ = train(world, "adalora", recipe)
    layers = len(student.allocation.ranks())
    assert sum(student.allocation.ranks().values()) <= (4 if steps > 1 else 6) * layers + 2


@pytest.mark.parametrize("method", ["bat", "adalora", "full", "projector_only"])
@pytest.mark.parametrize("validation_share", [0.2, 0.0])
def test_a_killed_alignment_goes_on_from_the_last_epoch_with_the_same_result(
    world, tmp_path, monkeypatch, method, validation_share
):
    recipe = dataclasses.replace(SHORT, epochs=5, targets=TARGETS, dropout=0.2, validation_share=validation_share)
    undisturbed, history = train(world, method, recipe)

    class Killed(BaseException):
        pass

    counted = alignment.batches

    def until_killed(*arguments, **options):
        if len(killed_in) == 3:
            yield next(counted(*arguments, **options))
            raise Killed
        killed_in.append(0)
        yield from counted(*arguments, **options)

    killed_in = []
    monkeypatch.setattr(alignment, "batches", until_killed)
    with pytest.raises(Killed):
        train(world, method, recipe, checkpoint=tmp_path / "progress.pt")
    epochs_after = []
    monkeypatch.setattr(
        alignment,
        "batches",
        lambda *a, **options: (epochs_after.append(1), counted(*a, **options))[1],
    )
    torch.manual_seed(77)
    resumed, again = train(world, method, recipe, checkpoint=tmp_path / "progress.pt")
    assert again.drop(columns="seconds").equals(history.drop(columns="seconds"))
    assert len(killed_in) == 3 and len(epochs_after) == 2, "finished epochs were trained again"
    assert all(torch.equal(p, trained(resumed)[name]) for name, p in trained(undisturbed).items())


@pytest.mark.parametrize("where", ["transform", "encode"])
def test_out_of_memory_ends_with_the_batch_size_that_fits(world, monkeypatch, where):  # noqa: F811
    student = Student(tiny_encoder(64), "bat", 4, SHORT)
    work = getattr(student.encoder, where)

    def small_device(x, *arguments):
        if len(x) > 3:
            raise torch.OutOfMemoryError
        return work(x, *arguments)

    monkeypatch.setattr(student.encoder, where, small_device)
    with pytest.raises(PekaError, match="batch of 8 tiles on cpu; 2 fit"):
        align(student, **world, recipe=SHORT, progress=False)


def test_losses_without_weight_are_not_computed_and_genes_can_teach(world):  # noqa: F811
    kd_only = dataclasses.replace(SHORT, lambda_struct=0.0)
    _, history = train(world, "bat", kd_only)
    assert history["struct"].isna().all() and np.allclose(history["total"], 0.5 * history["kd"])
    genes = dataclasses.replace(
        SHORT, lambda_kd=0.0, lambda_struct=0.0, lambda_mse=1.0, epochs=6, lr=1e-2
    )
    _, history = train(world, "bat", genes)
    assert (
        history["total"].equals(history["mse"])
        and history["validation_mse"].iloc[-1] < 0.9 * history["validation_mse"].iloc[0]
    )
    with pytest.raises(PekaError, match="weighs no loss"):
        train(world, "bat", dataclasses.replace(kd_only, lambda_kd=0.0))
