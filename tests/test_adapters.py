"""LoRA and AdaLoRA through peft: their formula, their targets, and how AdaLoRA moves its ranks."""

import math
from dataclasses import replace

import pytest
import torch
from test_alignment import RECIPE as SHORT
from test_alignment import data, train  # noqa: F401
from torch import nn

from peka_core import adapters
from peka_core.recipe import Recipe

RECIPE = replace(SHORT, layers=("attn.qkv", "mlp.fc1", "mlp.fc2"), rank=4, alpha=4.0)


def test_lora_equals_its_formula():
    network, x = nn.ModuleDict({"fc": nn.Linear(12, 8)}), torch.randn(5, 12)
    weight, bias = (p.detach().clone() for p in network["fc"].parameters())
    adapters.add(network, "lora", Recipe(layers=("fc",), rank=2, alpha=6))
    a, b = (p for p in network.parameters() if p.requires_grad)
    b.data = torch.randn(b.shape)
    expected = x @ (weight + 6 / 2 * b @ a).T + bias
    torch.testing.assert_close(network["fc"](x), expected, atol=1e-5, rtol=1e-5)


def test_adalora_moves_ranks_between_layers(data):
    student, history = train(data, "adalora", replace(RECIPE, epochs=15))
    ranks = history.filter(like="rank_").T  # (layers, epochs)
    assert (ranks.sum().diff().iloc[1:] <= 0).all(), "the budget grew again"
    assert ranks[0].sum() > ranks[14].sum() == pytest.approx(4 * len(ranks), abs=2)
    assert ranks[14].nunique() > 1, "every layer kept the same rank"
    assert student.rank_schedule.ranks() == ranks[14].to_dict(), "another epoch's ranks are in use"


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_adalora_of_very_few_steps_meets_its_budget(data, steps):
    few = {"epochs": 1, "batch_size": -(-40 // steps), "validation_share": 0.0}
    ranks = train(data, "adalora", replace(RECIPE, **few))[0].rank_schedule.ranks().values()
    assert sum(ranks) <= (4 if steps > 1 else 6) * len(ranks) + 2


def test_adalora_without_reallocation_keeps_its_ranks(data):
    student, history = train(data, "adalora", replace(RECIPE, reallocate=False, epochs=2))
    named = student.named_parameters()
    ranks = [len(p) for name, p in named if "lora_A" in name and p.requires_grad]
    assert ranks and set(ranks) == {4} and not history.columns.str.startswith("rank_").any()
    assert math.isfinite(history["total"].iloc[-1])
