"""A model of `peka export` inside LazySlide (extra `ecosystem`), beside LazySlide's own steps.

    python examples/lazyslide_plugin.py MODEL SLIDE.svs

`peka predict` does the same without LazySlide, and keeps finished parts after a kill. LazySlide
refuses slides coarser than 0.5 um per px, keeps nothing after a kill, and its tissue mask with
default values takes pink glass for tissue, so look at the mask first. Its tiles are those of
training at 0.5 um per px; at other pixel sizes they are resized in another way.
"""

import sys

import lazyslide as zs
import numpy as np
import torch
from lazyslide_models.base import FeaturePredictionModel
from wsidata import open_wsi

from peka_core.predict import Model, load_model


class Features(torch.nn.Module):
    """Tiles uint8 (b, 224, 224, 3) -> the model's and the frozen encoder's features (b, d + d')."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, tiles):
        features = self.model.embed(tiles := tiles.cpu().numpy())
        return torch.from_numpy(np.hstack([features, self.model.frozen(tiles, features)]))


class Genes(FeaturePredictionModel):
    """Features (n, d) -> each gene's prediction (n,), and the distance to the training tiles."""

    name = "peka"

    def __init__(self, model: Model):
        self.peka, self.model = model, torch.nn.Identity()

    def predict(self, features, coords=None):
        features, frozen = np.split(np.asarray(features), [len(self.peka.head.mean)], axis=1)
        genes = dict(zip(self.peka.genes.index, self.peka.predict(features).T, strict=True))
        return genes | {"distance": self.peka.distance(frozen)}


def predict(slide: str, model: Model):
    """LazySlide's table of tiles with a column for each gene."""
    wsi = open_wsi(slide, store=None)
    zs.pp.find_tissues(wsi, to_hsv=True)
    zs.pp.tile_tissues(wsi, 224, mpp=0.5, background_fraction=0.5)
    steps = {"device": "cpu", "pbar": False}
    name = {"model_name": "features", "transform": torch.from_numpy}
    zs.tl.feature_extraction(wsi, Features(model), num_workers=0, **name, **steps)
    zs.tl.feature_prediction(wsi, Genes(model), feature_key="features", **steps)
    return wsi, wsi.tables["peka_tiles"]


if __name__ == "__main__":
    print(predict(sys.argv[2], load_model(sys.argv[1]))[1].to_df().describe())
