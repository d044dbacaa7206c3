"""The student of every method: what trains, what stays as it was, what comes back from disk."""

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
from peka_core.training.saved_student import count_parameters

TARGETS = ("attn.qkv", "mlp.fc1", "mlp.fc2")
RECIPE = Recipe(block=8, rank=4, alpha=4, hidden=24, targets=TARGETS)
CARD = {"encoder": "tiny", "digest": "abc", "revision": "r1", "split": "patients/0", "block": 8}
TRAINED = {"none": set(), "projector_only": {"projector"}}  # of the others: network and projector
every_method = pytest.mark.parametrize("method", METHODS)
every_adapter = pytest.mark.parametrize("method", ["bone", "bat", "lora", "adalora"])


def student_of(encoder, method, recipe=RECIPE, size=0.3):
    """A student with random numbers in everything that its adapter trains."""
    student, generator = Student(encoder, method, 6, recipe), torch.Generator().manual_seed(9)
    for name, p in student.named_parameters():
        if p.requires_grad and name.startswith("network."):
            p.data = p.data + torch.randn(p.shape, generator=generator) * size
    return student


def embedded(student, tiles):
    return embed_tiles(student, tiles, batch_size=2, progress=False)


@every_method
def test_every_method_starts_as_the_frozen_encoder(method):
    encoder, tiles = tiny_encoder(64), smooth_tiles(3, 64)
    student = Student(encoder, method, 6, RECIPE)
    features = embedded(student, tiles)
    np.testing.assert_allclose(features["encoder"], encoder.embed(tiles), atol=1e-5)
    assert features.keys() == ({"encoder"} if method == "none" else {"encoder", "projected"})
    with torch.no_grad():
        for output, expected in zip(student(tiles), features.values(), strict=True):
            np.testing.assert_allclose(output, expected, atol=1e-5)


@every_method
def test_gradients_reach_what_the_method_trains_and_nothing_else(method):
    encoder = tiny_encoder(64)
    before = {name: p.clone() for name, p in encoder.model.named_parameters()}
    student = student_of(encoder, method)
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    if trained:
        student.train()(smooth_tiles(2, 64))[1].square().sum().backward()
        torch.optim.SGD(trained.values(), lr=0.1).step()
    touched = {name for name, p in student.named_parameters() if p.grad is not None}
    parts = {name.split(".")[0] for name in touched}
    assert touched == trained.keys() and parts == TRAINED.get(method, {"network", "projector"})
    words = {"bone": ".blocks", "bat": ".blocks", "lora": "lora_", "adalora": "lora_"}
    assert all(words.get(method, "") in n for n in touched if n.startswith("network."))
    frozen = encoder.model.named_parameters()
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in frozen)
    if method in ("bat", "bone"):
        base, same = student.network.blocks[0].attn.qkv.base, encoder.model.blocks[0].attn.qkv
        assert base.weight.data_ptr() == same.weight.data_ptr(), "frozen tensors are not shared"


@every_adapter
def test_merged_equals_unmerged_and_the_frozen_encoder_stays(method):
    encoder, tiles = tiny_encoder(64), smooth_tiles(3, 64)
    frozen, student = encoder.embed(tiles), student_of(encoder, method)
    with torch.no_grad():
        before = student(tiles)[0]
        adapters.merge(student.network)
        after = student(tiles)[0]
    assert np.abs(before - frozen).max() > 1e-2, "the adapter does nothing: merging is no test"
    torch.testing.assert_close(after, before, atol=2e-4, rtol=2e-4)
    np.testing.assert_array_equal(encoder.embed(tiles), frozen)
    broken = student_of(encoder, method)
    named = [n for n, p in broken.named_parameters() if p.requires_grad]
    broken.get_parameter(next(n for n in named if n.startswith("network."))).data.fill_(torch.nan)
    with pytest.raises(PekaError, match="not finite"):
        adapters.merge(broken.network)


def test_training_mode_is_for_the_projector_only():
    encoder = tiny_encoder(64)
    encoder.model.norm = nn.Sequential(encoder.model.norm, nn.Dropout(0.5))
    encoder.model.patch_embed.norm = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    mean = encoder.model.patch_embed.norm[0].running_mean.clone()
    student = Student(encoder, "bat", 6, RECIPE).train()
    student(smooth_tiles(4, 64))
    assert student.projector.training
    assert not any(module.training for module in student.network.modules())
    assert torch.equal(encoder.model.patch_embed.norm[0].running_mean, mean)


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_the_adapters_dropout_works_in_training_alone(method):
    student = student_of(tiny_encoder(64), method, replace(RECIPE, adapter_dropout=0.5))
    same = lambda: torch.equal(student(smooth_tiles(3, 64))[0], student(smooth_tiles(3, 64))[0])
    assert same()
    student.train()
    assert not same()


def test_the_seed_draws_the_projector_and_leaves_the_global_generator():
    encoder, state = tiny_encoder(64), torch.random.get_rng_state()
    weights = [Student(encoder, "bat", 6, RECIPE, seed).projector[0].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@every_method
@pytest.mark.parametrize("pixels", ["normalised", "raw"])
def test_a_saved_student_comes_back_with_its_card(tmp_path, method, pixels):
    encoder, tiles = tiny_encoder(64, digest="abc", revision="r1"), smooth_tiles(3, 64)
    student = student_of(encoder, method, replace(RECIPE, pixels=pixels, projector="relu"))
    student.save(tmp_path, extra={"split": "patients/0"})
    expected, loaded = embedded(student, tiles), embedded(Student.load(tmp_path, encoder), tiles)
    for space, values in expected.items():
        np.testing.assert_array_equal(loaded[space], values)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card | CARD | {"method": method, "pixels": pixels} == card
    assert card["parameters"] == count_parameters(student)
    files = ["adapter.safetensors", "card.json", "projector.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    if pixels == "raw":
        x = student.encoder.transform(tiles).permute(0, 2, 3, 1)
        np.testing.assert_allclose(x, tiles, atol=1e-4)
        assert encoder.transform(tiles).abs().max() < 10, "the frozen encoder has another one"


def test_folders_of_other_encoders_and_mixed_ones_are_refused(tmp_path):
    encoder = tiny_encoder(64, digest="aaaa")
    with pytest.raises(PekaError, match=r"card\.json"):
        Student.load(tmp_path, encoder)
    for method in ("bat", "projector_only"):
        Student(encoder, method, 6, RECIPE).save(tmp_path / method)
    for other in ({"name": "other", "digest": "aaaa"}, {"digest": "bbbb"}):
        with pytest.raises(PekaError, match=f"'tiny'.*{next(iter(other.values()))}"):
            Student.load(tmp_path / "bat", tiny_encoder(64, **other))
    adapter = tmp_path / "projector_only" / "adapter.safetensors"
    adapter.replace(tmp_path / "bat" / "adapter.safetensors")
    with pytest.raises(PekaError, match=str(tmp_path / "bat")):
        Student.load(tmp_path / "bat", encoder)
    with pytest.raises(PekaError, match="'dora'"):
        Student(encoder, "dora", 6)


def test_parameter_counts_follow_their_formulas():
    encoder = tiny_encoder(64)
    named = encoder.model.named_modules()
    layers = [m for n, m in named if isinstance(m, nn.Linear) and n.endswith(TARGETS)]
    outs = sum(m.out_features for m in layers)
    ends = outs + sum(m.in_features for m in layers)
    frozen = sum(p.numel() for p in encoder.model.parameters())
    adapter = {
        "bone": 8 * outs, "bat": 8 * outs, "lora": 4 * ends, "full": frozen, "projector_only": 0,
        "adalora": 6 * (ends + len(layers)),  # 1.5 times the rank, and a value for each rank
    }  # fmt: skip
    for method, count in adapter.items():
        projector = 32 * 24 + 24 + 24 * 6 + 6
        expected = {"adapter": count, "projector": projector, "encoder": frozen}
        assert count_parameters(Student(encoder, method, 6, RECIPE)) == expected


VIEWS = [
    lambda t: t[..., ::-1],
    lambda t: t[:, ::-1, ::-1],
    lambda t: t.transpose(0, 2, 1, 3),
    list,
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("method", ["none", "bat"])
def test_views_of_tiles_are_embedded_as_their_copies(view, method):
    student, tiles = student_of(tiny_encoder(64), method), view(smooth_tiles(3, 64))
    features, expected = embedded(student, tiles), embedded(student, np.array(tiles))
    np.testing.assert_array_equal(features["encoder"], expected["encoder"])


def test_the_authors_projector_is_linear_relu_linear():
    kinds = lambda recipe: [type(m) for m in Student(tiny_encoder(64), "bone", 6, recipe).projector]
    run, written = (replace(RECIPES[name], block=8) for name in ("as_run", "as_written"))
    assert kinds(run) == [nn.Linear, nn.ReLU, nn.Linear]
    assert kinds(written) == [nn.Linear, nn.GELU, nn.Dropout, nn.Linear]
    assert kinds(replace(run, dropout=0.5)) == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
