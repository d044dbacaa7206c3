"""A drawn slide, and a model whose predictions can be computed by hand."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd

GENES = ["RED", "HLA/DRA", "..", "</script>"]  # as a user's gene table may have them


def drawn_slide(path: Path, width: int = 1000, height: int = 800) -> np.ndarray:
    """Write a picture with a square of textured tissue on glass; returns its pixels."""
    rng = np.random.default_rng(0)
    pixels = np.full((height, width, 3), 243, dtype=np.uint8)
    tissue = pixels[100:700, 200:850]
    coarse = rng.integers(0, 256, (20, 22, 3), dtype=np.uint8)
    fine = rng.integers(0, 60, tissue.shape, dtype=np.uint8)
    stain = cv2.resize(coarse, tissue.shape[1::-1], interpolation=cv2.INTER_CUBIC) // 2
    tissue[:] = (stain + fine + np.array([60, 20, 50])).clip(0, 255)
    cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return pixels


class ColourModel:
    """Features are a tile's mean colours (n, 3); predictions are linear in them."""

    folder, digest, threshold = Path("colours"), "c" * 64, 1.22
    card: dict = {"cohort": {"name": "drawn"}, "none": None, "notes": ["Only drawn tissue."]}
    weights = np.array([[1, 0, 1, 2], [0, 1, 1, 0], [0, 0, 1, -1]], np.float32)
    genes = pd.DataFrame(
        {
            "pcc": [0.2, 0.4, 0.01, np.nan], "low": [0.1, 0.3, -0.1, np.nan],
            "high": [0.3, 0.5, 0.12, np.nan], "n": [4, 4, 4, 0], "unit": "patient",
            "pcc_colour": [0.1, 0.2, 0.05, np.nan], "supported": [True, True, False, False],
            "mean_half_width_80": [0.5, 0.25, np.nan, np.nan],
        },
        index=pd.Index(GENES, name="gene"),
    )  # fmt: skip
    head = SimpleNamespace(mean=np.zeros(3))
    embedded = 0  # tiles so far

    def embed(self, tiles, batch_size=256, progress=False):
        self.embedded += len(tiles)
        return tiles.mean((1, 2), dtype=np.float64).astype(np.float32) / 255

    def frozen(self, tiles, features, batch_size=256):
        return features

    def predict(self, features):
        return features @ self.weights

    def distance(self, features):
        return 2.0 * features[:, 0].astype(float)

    def scale_warning(self, um_per_px):
        return ""
