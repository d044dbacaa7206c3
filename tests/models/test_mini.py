"""mini: its network, the 2 x 2 averaging, and what the features of the bundled weights hold."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from peka_core.drawn import drawing, painting
from peka_core.encoders import load_encoder
from peka_core.models.mini import build_mini


@pytest.fixture(scope="module")
def mini():
    return load_encoder("mini", device="cpu")


def test_network_sees_the_mean_of_four_pixels_only(mini):
    coarse = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    x = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(112, 112)
    torch.testing.assert_close(mini.model(x + 0.3 * checker), mini.model(x), atol=1e-4, rtol=1e-4)
    assert (mini.model(x + 0.3) - mini.model(x)).abs().max() > 1e-2


def test_explicit_attention_equals_fused(mini):
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    fused = build_mini()
    fused.load_state_dict(mini.model.state_dict())
    for block in fused.eval().blocks:
        block.attn.fused_attn = True
    torch.testing.assert_close(mini.model(x), fused(x), atol=1e-4, rtol=1e-4)


def test_trained_features_know_cell_counts_better_than_untrained(mini):
    """Ridge on the first four sections, tested on the last two."""
    sections = [drawing.plan_section(6, patient, 1, 16) for patient in range(1, 7)]
    tiles = np.concatenate([painting.cut(painting.paint(s), s.centres) for s in sections])
    counts = np.concatenate([drawing.describe_tiles(s)[0] for s in sections])
    y, found = np.sqrt(counts[:, drawing.LYMPHOCYTE]), []
    for encoder in (mini, load_encoder("random", device="cpu")):
        x = encoder.embed(tiles.repeat(2, 1).repeat(2, 2))  # painted at half the size
        ridge = Ridge(0.5).fit(x[:64], y[:64])
        found.append(np.corrcoef(ridge.predict(x[64:]), y[64:])[0, 1])
    assert found[0] > 0.8 and found[0] > found[1]
