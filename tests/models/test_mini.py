"""mini: shapes, the 2 x 2 averaging, the bundled weights, and what its features hold."""

import json

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from peka_core.common.files import sha256
from peka_core.drawn import drawing, painting
from peka_core.encoders import load_encoder
from peka_core.models.encoder_files import MINI_WEIGHTS
from peka_core.models.mini import MINI_MEAN, MINI_STD, build_mini


@pytest.fixture(scope="module")
def mini():
    return load_encoder("mini", device="cpu").model


def test_shapes_and_names_are_those_of_a_timm_vit(mini):
    assert isinstance(mini, VisionTransformer)
    assert mini(torch.zeros(2, 3, 224, 224)).shape == (2, 128)
    assert mini.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 49, 128)
    found = {name for name, _ in mini.named_modules() if name.endswith("attn.qkv")}
    assert found == {f"blocks.{i}.attn.qkv" for i in range(4)}


def test_network_sees_the_mean_of_four_pixels_only(mini):
    coarse = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    x = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(112, 112)
    torch.testing.assert_close(mini(x + 0.3 * checker), mini(x), atol=1e-4, rtol=1e-4)
    assert (mini(x + 0.3) - mini(x)).abs().max() > 1e-2


def test_weights_are_those_of_the_card():
    card = json.loads(MINI_WEIGHTS.with_suffix(".json").read_text())
    assert sha256(MINI_WEIGHTS) == card["sha256"]
    assert (tuple(card["mean"]), tuple(card["std"])) == (MINI_MEAN, MINI_STD)


def test_explicit_attention_equals_fused(mini):
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    fused = build_mini()
    fused.load_state_dict(mini.state_dict())
    for block in fused.eval().blocks:
        block.attn.fused_attn = True
    torch.testing.assert_close(mini(x), fused(x), atol=1e-4, rtol=1e-4)


def test_trained_features_know_cell_counts_better_than_untrained(mini):
    sections = [drawing.plan_section(6, patient, 1, 16) for patient in range(1, 7)]
    tiles = np.concatenate([painting.cut(painting.paint(s), s.centres) for s in sections])
    counts = np.concatenate([drawing.describe_tiles(s)[0] for s in sections])
    lymphocytes = np.sqrt(counts[:, drawing.LYMPHOCYTE])
    trained = held_out_correlation(features(mini, tiles), lymphocytes)
    untrained = held_out_correlation(features(build_mini(seed=0).eval(), tiles), lymphocytes)
    assert trained > 0.8 and trained > untrained


def held_out_correlation(x, y, n_train=64):
    """Ridge on the first four sections, tested on the last two."""
    x, y = x - x[:n_train].mean(0), y - y[:n_train].mean()
    gram = x[:n_train].T @ x[:n_train] + 0.5 * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[:n_train].T @ y[:n_train])
    return np.corrcoef(x[n_train:] @ weights, y[n_train:])[0, 1]


def features(model, half_size_tiles):
    """(n, 112, 112, 3) uint8 -> (n, 128)."""
    x = torch.from_numpy(half_size_tiles).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MINI_MEAN, MINI_STD))
    with torch.no_grad():
        return model((x.repeat_interleave(2, 2).repeat_interleave(2, 3) - mean) / std).numpy()
