"""The student of every method and its adapter: what trains, what stays, what is on disk."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_encoders import smooth_tiles, tiny_encoder
from torch import nn

from peka_core import adapters
from peka_core.common.errors import PekaError
from peka_core.recipe import METHODS, RECIPES, Recipe
from peka_core.student import Student, embed_tiles
from peka_core.training_parts.saved_student import count_parameters

LAYERS = ("attn.qkv", "proj", "mlp.fc1")  # `proj` is also the name of a convolution
RECIPE = Recipe(block=8, rank=4, alpha=4, hidden=24, layers=LAYERS)
TRAINED = {"none": set(), "projector_only": {"projector"}}  # of the others: network and projector
WORDS = {"bone": ".blocks", "bat": ".blocks", "lora": "lora_", "adalora": "lora_"}
TILES = smooth_tiles(3, 64)
N_OUT, N_IN = 2 * (96 + 32 + 128), 2 * 3 * 32  # of all adapted layers together
COUNTS = {"bone": 8 * N_OUT, "bat": 8 * N_OUT, "lora": 4 * (N_IN + N_OUT), "none": 0}
COUNTS |= {"adalora": 6 * (N_IN + N_OUT + 6), "projector_only": 0}  # at 1.5 times the rank


def trained(module):
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def student_of(encoder, method, recipe=RECIPE):
    """A student with random numbers in everything that its adapter trains."""
    student, generator = Student(encoder, method, 6, recipe), torch.Generator().manual_seed(9)
    for p in trained(student.network).values():
        p.data = p.data + torch.randn(p.shape, generator=generator) * 0.3
    return student


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_as_the_frozen_encoder_and_moves_what_the_method_trains_and_nothing_else(method):
    encoder = tiny_encoder(64)
    before = {name: p.clone() for name, p in encoder.model.named_parameters()}
    student = Student(encoder, method, 6, RECIPE)
    features = embed_tiles(student, TILES, 2, False)
    np.testing.assert_allclose(features["encoder"], encoder.embed(TILES), atol=1e-5)
    assert features.keys() == ({"encoder"} if method == "none" else {"encoder", "projected"})
    for output, expected in zip(student(TILES), features.values(), strict=True):
        np.testing.assert_allclose(output.detach(), expected, atol=1e-5)
    found, frozen = count_parameters(student), sum(map(torch.numel, before.values()))
    assert (found["adapter"], found["encoder"]) == (COUNTS.get(method, frozen), frozen)
    if moving := trained(student := student_of(encoder, method)):
        student.train()(TILES)[1].square().sum().backward()
        torch.optim.SGD(moving.values(), lr=0.1).step()
    touched = {name for name, p in student.named_parameters() if p.grad is not None}
    parts = {name.split(".")[0] for name in touched}
    assert touched == moving.keys() and parts == TRAINED.get(method, {"network", "projector"})
    if word := WORDS.get(method):
        changed = [name for name in touched if name.startswith("network.")]
        assert all(word in name and "patch_embed" not in name for name in changed)
    frozen = encoder.model.named_parameters()
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in frozen)
    if word == ".blocks":
        base, same = student.network.blocks[0].attn.qkv.base, encoder.model.blocks[0].attn.qkv
        assert base.weight.data_ptr() == same.weight.data_ptr(), "frozen tensors are not shared"


def test_lora_equals_its_formula():
    network, x = nn.ModuleDict({"fc": nn.Linear(12, 8)}), torch.randn(5, 12)
    weight, bias = network["fc"].weight, network["fc"].bias
    adapters.add(network, "lora", Recipe(layers=("fc",), rank=2, alpha=6))
    a, b = trained(network).values()
    b.data = torch.randn(b.shape)
    expected = x @ (weight + 6 / 2 * b @ a).T + bias
    torch.testing.assert_close(network["fc"](x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", WORDS)
def test_merged_equals_unmerged_and_nothing_merges_where_a_weight_is_not_finite(method):
    encoder = tiny_encoder(64)
    frozen, student, broken = encoder.embed(TILES), *(student_of(encoder, method) for _ in "ab")
    before = student(TILES)[0].detach()
    adapters.merge(student.network)
    assert np.abs(before.numpy() - frozen).max() > 1e-2, "the adapter does nothing: no test"
    torch.testing.assert_close(student(TILES)[0].detach(), before, atol=2e-4, rtol=2e-4)
    np.testing.assert_array_equal(encoder.embed(TILES), frozen)
    list(trained(broken.network).values())[-1].data.fill_(torch.nan)
    weights = {name: p.clone() for name, p in broken.network.named_parameters()}
    with pytest.raises(PekaError, match=r"blocks\.1.* not finite"):
        adapters.merge(broken.network)
    after = broken.network.named_parameters()
    assert all(torch.equal(p.nan_to_num(), weights[name].nan_to_num()) for name, p in after)


def test_training_mode_is_for_the_projector_and_the_adapters_dropout_only():
    encoder = tiny_encoder(64)
    encoder.model.patch_embed.norm = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    mean = encoder.model.patch_embed.norm[0].running_mean.clone()
    for method in ("bat", "lora"):
        student = student_of(encoder, method, replace(RECIPE, adapter_dropout=0.5))
        same = lambda student=student: torch.equal(student(TILES)[0], student(TILES)[0])
        assert same() and not student.projector.training
        assert student.train().projector.training and same() == (method == "bat")
    assert torch.equal(encoder.model.patch_embed.norm[0].running_mean, mean)


def test_the_seed_draws_the_projector_which_is_the_authors_in_their_recipe():
    encoder, recipe = tiny_encoder(64), replace(RECIPES["as_run"], block=8)
    students = [Student(encoder, "bone", 6, recipe, seed).projector for seed in (0, 0, 1)]
    first, again, other = (projector[0].weight for projector in students)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert [type(m) for m in students[0]] == [nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pixels", ["normalised", "raw"])
def test_a_saved_student_comes_back_with_its_card(tmp_path, method, pixels):
    encoder = tiny_encoder(64, digest="abc", revision="r1")
    student = student_of(encoder, method, replace(RECIPE, pixels=pixels, projector="relu"))
    student.save(tmp_path, extra={"split": "patients/0"})
    loaded = embed_tiles(Student.load(tmp_path, encoder), TILES, 2, False)
    for space, values in embed_tiles(student, TILES, 2, False).items():
        np.testing.assert_array_equal(loaded[space], values)
    card = json.loads((tmp_path / "card.json").read_text())
    facts = {"encoder": "tiny", "digest": "abc", "revision": "r1", "split": "patients/0"}
    assert card | facts | {"method": method, "pixels": pixels, "block": 8} == card
    assert card["parameters"] == count_parameters(student)
    if pixels == "raw":
        x = student.encoder.transform(TILES).permute(0, 2, 3, 1)
        np.testing.assert_allclose(x, TILES, atol=1e-4)
        assert encoder.transform(TILES).abs().max() < 10, "the frozen encoder has another one"


@pytest.mark.parametrize(("folder", "facts", "word"), [
    ("bat", {"digest": "bbbb"}, "'tiny'.*bbbb"),
    ("mixed", {"digest": "aaaa"}, "mixed do not match"),
])  # fmt: skip
def test_folders_of_other_encoders_and_mixed_ones_are_refused(tmp_path, folder, facts, word):
    encoder = tiny_encoder(64, digest="aaaa")
    for method, place in (("bat", "bat"), ("bat", "mixed"), ("projector_only", "other")):
        Student(encoder, method, 6, RECIPE).save(tmp_path / place)
    (tmp_path / "other/adapter.safetensors").replace(tmp_path / "mixed/adapter.safetensors")
    with pytest.raises(PekaError, match=word):
        Student.load(tmp_path / folder, tiny_encoder(64, **facts))
    for damaged in ("{", "{}", "[]"):
        (tmp_path / folder / "card.json").write_text(damaged)
        with pytest.raises(PekaError, match="card.json"):
            Student.load(tmp_path / folder, encoder)
