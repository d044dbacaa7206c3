"""The student: what trains, what stays as it was, and what comes back from disk."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_encoders import smooth_tiles, tiny_encoder
from torch import nn

from peka_core.alignment import Recipe
from peka_core.errors import PekaError
from peka_core.recipe import RECIPES
from peka_core.student import Student, count_parameters, embed_tiles

RECIPE = Recipe(block=8, hidden=24)
RECIPES = {name: replace(recipe, block=8) for name, recipe in RECIPES.items()}


def filled(encoder, method, seed=0):
    """A student whose adapter is no longer the identity."""
    student = Student(encoder, method, 6, RECIPE, seed)
    generator = torch.Generator().manual_seed(9)
    for name, p in student.named_parameters():
        if name.endswith(".blocks"):
            p.data = torch.randn(p.shape, generator=generator) / 10
    return student


@pytest.mark.parametrize("method", ["none", "bone", "bat", "projector_only"])
def test_fresh_student_sees_what_the_encoder_sees(method):
    encoder, tiles = tiny_encoder(), smooth_tiles(3)
    made = embed_tiles(Student(encoder, method, 6, RECIPE), tiles, progress=False)
    np.testing.assert_array_equal(made["encoder"], encoder.embed(tiles))
    assert made.keys() == ({"encoder"} if method == "none" else {"encoder", "projected"})


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("none", {}),
        ("projector_only", {"projector"}),
        ("bat", {"network", "projector"}),
        ("bone", {"network", "projector"}),
    ],
)
def test_gradients_reach_adapter_and_projector_and_nothing_else(method, parts):
    encoder = tiny_encoder()
    student = filled(encoder, method)
    outputs = student.train()(torch.randn(2, 3, 224, 224))
    if method != "none":
        outputs[1].square().sum().backward()
    touched = {name for name, p in student.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in touched} == set(parts)
    assert all(name.endswith(".blocks") for name in touched if name.startswith("network."))
    assert touched == {name for name, p in student.named_parameters() if p.requires_grad}
    assert all(p.grad is None for p in encoder.model.parameters())


def test_students_share_frozen_tensors_and_leave_the_encoder_alone():
    encoder, tiles = tiny_encoder(), smooth_tiles(3)
    before = encoder.embed(tiles)
    first, second = filled(encoder, "bat"), filled(encoder, "bone")
    embed_tiles(first, tiles, progress=False)
    np.testing.assert_array_equal(encoder.embed(tiles), before)
    weight = encoder.model.blocks[0].attn.qkv.weight
    for student in (first, second):
        assert student.network.blocks[0].attn.qkv.base.weight.data_ptr() == weight.data_ptr()
        assert not np.allclose(
            embed_tiles(student, tiles, progress=False)["encoder"], before, atol=1e-3
        )


def test_training_mode_is_for_the_projector_only():
    encoder = tiny_encoder()
    encoder.model.norm = nn.Sequential(encoder.model.norm, nn.Dropout(0.5))
    encoder.model.patch_embed.norm = nn.Sequential(nn.BatchNorm1d(49), nn.Dropout(0.5))
    student = Student(encoder, "bat", 6, RECIPE).train()
    assert student.projector.training
    assert not any(module.training for module in student.network.modules())
    mean = encoder.model.patch_embed.norm[0].running_mean.clone()
    student(torch.randn(4, 3, 224, 224))
    assert torch.equal(encoder.model.patch_embed.norm[0].running_mean, mean)


def test_projector_follows_the_seed_and_leaves_the_global_generator():
    encoder, state = tiny_encoder(), torch.random.get_rng_state()
    weights = [Student(encoder, "bat", 6, RECIPE, seed).projector[0].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), state)
    student = Student(encoder, "bat", 6, RECIPE)
    assert [tuple(p.shape) for p in student.projector.parameters()] == [
        (24, 32),
        (24,),
        (6, 24),
        (6,),
    ]


@pytest.mark.parametrize("method", ["none", "bone", "bat", "projector_only"])
def test_saved_student_comes_back_with_its_card(tmp_path, method):
    encoder, tiles = tiny_encoder(digest="abc", revision="r1"), smooth_tiles(3)
    student = filled(encoder, method, seed=5)
    student.save(tmp_path / "unit", extra={"split": "patients/0"})
    expected = embed_tiles(student, tiles, progress=False)
    back = embed_tiles(Student.load(tmp_path / "unit", encoder), tiles, progress=False)
    for space, values in expected.items():
        np.testing.assert_array_equal(back[space], values)
    card = json.loads((tmp_path / "unit" / "card.json").read_text())
    assert (card["encoder"], card["digest"], card["revision"], card["split"]) == (
        "tiny",
        "abc",
        "r1",
        "patients/0",
    )
    assert (card["method"], card["block"], card["targets"], card["d_teacher"]) == (
        method,
        8,
        ["attn.qkv"],
        6,
    )
    assert card["parameters"]["adapter"] == (2 * 96 * 8 if method in ("bone", "bat") else 0)
    names = sorted(path.name for path in (tmp_path / "unit").iterdir())
    assert names == ["adapter.safetensors", "card.json", "projector.safetensors"]


def test_loading_onto_another_encoder_names_both(tmp_path):
    filled(tiny_encoder(digest="aaaa"), "bat").save(tmp_path)
    with pytest.raises(PekaError, match="trained on encoder 'tiny', not on 'other'"):
        Student.load(tmp_path, tiny_encoder(name="other", digest="aaaa"))
    with pytest.raises(PekaError, match="other weights of 'tiny': digest aaaa.*has bbbb"):
        Student.load(tmp_path, tiny_encoder(digest="bbbb"))


def test_unfinished_or_mixed_folders_are_refused(tmp_path):
    encoder = tiny_encoder()
    with pytest.raises(PekaError, match="card.json is missing"):
        Student.load(tmp_path, encoder)
    filled(encoder, "bat").save(tmp_path / "bat")
    filled(encoder, "projector_only").save(tmp_path / "projector_only")
    (tmp_path / "projector_only" / "adapter.safetensors").replace(
        tmp_path / "bat" / "adapter.safetensors"
    )
    with pytest.raises(PekaError, match="does not hold the tensors of its card"):
        Student.load(tmp_path / "bat", encoder)


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(PekaError, match="'dora' is unknown; there are none, bat, bone, lora"):
        Student(tiny_encoder(), "dora", 6)


def test_parameters_are_counted_by_part():
    student = Student(tiny_encoder(), "bat", 6, RECIPE)
    frozen = sum(p.numel() for p in tiny_encoder().model.parameters())
    assert count_parameters(student) == {
        "adapter": 2 * 96 * 8,
        "projector": 32 * 24 + 24 + 24 * 6 + 6,
        "encoder": frozen,
    }


def test_embedding_an_encoder_gives_frozen_features_only():
    encoder, tiles = tiny_encoder(), smooth_tiles(3)
    made = embed_tiles(encoder, tiles, batch_size=2, progress=False)
    assert made.keys() == {"encoder"}
    np.testing.assert_allclose(made["encoder"], encoder.embed(tiles), atol=1e-5)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[..., ::-1],
        lambda t: t[::-1],
        lambda t: t[:, ::-1, ::-1],
        lambda t: t.transpose(0, 2, 1, 3),
        list,
    ],
)
@pytest.mark.parametrize("method", [None, "bat"])
def test_views_of_tiles_are_embedded_as_their_copies(view, method):
    encoder, tiles = tiny_encoder(), view(smooth_tiles(3))
    student = encoder if method is None else filled(encoder, method)
    made, expected = (
        embed_tiles(student, some, batch_size=2, progress=False)
        for some in (tiles, np.array(tiles))
    )
    np.testing.assert_array_equal(made["encoder"], expected["encoder"])


@pytest.mark.parametrize(
    "change", [lambda t: t / 255, lambda t: t.astype(np.uint16) * 256, lambda t: t[0]]
)
def test_tiles_of_other_pixels_are_not_embedded(change):
    with pytest.raises(PekaError, match="uint8"):
        embed_tiles(tiny_encoder(), change(smooth_tiles(3)), progress=False)


def test_the_authors_projector_is_linear_relu_linear_and_comes_back_so(tmp_path):
    kinds = lambda student: [type(module) for module in student.projector]
    assert kinds(Student(tiny_encoder(), "bone", 6, RECIPES["as_run"])) == [
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]
    assert kinds(Student(tiny_encoder(), "bone", 6, RECIPES["as_written"])) == [
        nn.Linear,
        nn.GELU,
        nn.Dropout,
        nn.Linear,
    ]
    recipe = replace(RECIPE, projector="relu", dropout=0.5)
    assert kinds(Student(tiny_encoder(), "bone", 6, recipe)) == [
        nn.Linear,
        nn.ReLU,
        nn.Dropout,
        nn.Linear,
    ], "dropout that is asked for is there"
    encoder, tiles = tiny_encoder(), smooth_tiles(3)
    student = Student(encoder, "projector_only", 6, replace(RECIPE, projector="relu"), seed=3)
    first, _, last = student.projector
    features = torch.as_tensor(encoder.embed(tiles))
    expected = torch.relu(features @ first.weight.T + first.bias) @ last.weight.T + last.bias
    student.save(tmp_path)
    back = embed_tiles(Student.load(tmp_path, encoder), tiles, progress=False)["projected"]
    np.testing.assert_allclose(back, expected.detach(), atol=1e-5)


def test_a_card_of_before_the_field_means_gelu(tmp_path):
    encoder, tiles = tiny_encoder(), smooth_tiles(3)
    student = filled(encoder, "bat")
    student.save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card.pop("projector") == "gelu"
    (tmp_path / "card.json").write_text(json.dumps(card))
    back = embed_tiles(Student.load(tmp_path, encoder), tiles, progress=False)
    np.testing.assert_array_equal(
        back["projected"], embed_tiles(student, tiles, progress=False)["projected"]
    )
