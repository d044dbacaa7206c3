"""examples/lazyslide_plugin.py: tiles of LazySlide give the predictions of `predict_slide`."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from fake_slide import ColourModel, drawn_slide
from tiled_tiff import write_tiled

from peka_core.slides.image import open_slide
from peka_core.slides.prediction import predict_slide

PLUGIN = Path(__file__).parents[2] / "examples/lazyslide_plugin.py"


class Plain(ColourModel):
    genes = ColourModel.genes.set_axis(["RED", "GREEN", "ALL", "OTHER"])


def test_the_plug_in_predicts_what_we_predict(tmp_path):
    pytest.importorskip("lazyslide")
    path = write_tiled(tmp_path / "slide.tif", [drawn_slide(tmp_path / "drawn.png")], 0.5)
    wsi, table = runpy.run_path(str(PLUGIN))["predict"](str(path), Plain())
    corners = wsi.shapes["tiles"].bounds[["minx", "miny"]].to_numpy()  # (n, 2)
    assert len(corners) > 2
    found = predict_slide(Plain(), open_slide(path), tmp_path / "out", corners + 112)
    made = table.to_df()
    assert np.array_equal(made[list(Plain.genes.index)].to_numpy(), found.X)
    np.testing.assert_allclose(made["distance"], found.obs["distance"], rtol=1e-6)
