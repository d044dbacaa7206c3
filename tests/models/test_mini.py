"""What the features of the bundled weights of mini hold."""

import numpy as np
from sklearn.linear_model import Ridge

from peka_core.drawn import drawing, painting
from peka_core.encoders import load_encoder


def test_trained_features_know_cell_counts_better_than_untrained():
    """Ridge on the first four sections, tested on the last two."""
    sections = [drawing.plan_section(6, patient, 1, 16) for patient in range(1, 7)]
    tiles = np.concatenate([painting.cut(painting.paint(s), s.centres) for s in sections])
    counts = np.concatenate([drawing.describe_tiles(s)[0] for s in sections])
    y, found = np.sqrt(counts[:, drawing.LYMPHOCYTE]), []
    for name in ("mini", "random"):
        x = load_encoder(name, device="cpu").embed(tiles.repeat(2, 1).repeat(2, 2))  # half size
        ridge = Ridge(0.5).fit(x[:64], y[:64])
        found.append(np.corrcoef(ridge.predict(x[64:]), y[64:])[0, 1])
    assert found[0] > 0.8 and found[0] > found[1]
