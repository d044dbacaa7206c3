"""Drawn Visium samples: the image, the table of positions and the counts belong together."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from peka_core.drawn import demo, drawing, law, new_tissue, painting
from peka_core.tiles import cut_tile


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    demo.build(folder / "cohort", seed=5, patients=2, sections=1, spots=4, tiles=False, folds=2)
    return folder / "cohort", new_tissue.draw_visium(folder / "new", folder / "cohort", 3, spots=60)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scanpy_reads_the_folder_and_each_spot_lies_on_its_tissue(world):
    cohort, sample = world
    adata = sc.read_visium(sample.folder / "outs")
    table = pd.read_csv(sample.folder / "outs/spatial/tissue_positions.csv", index_col="barcode")
    assert len(table) == 4992 and table.index.is_unique
    assert sorted(table.index[table["in_tissue"] == 1]) == sorted(adata.obs_names)
    image = cv2.imread(str(sample.image))[..., ::-1]
    x, y = adata.obsm["spatial"].astype(int).T
    assert (image[y, x].min(axis=1) < 242).all()  # no channel of glass is darker
    array = table[["array_col", "array_row"]] * [50, 100 * np.sqrt(0.75)]  # um
    pixels = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]]
    pitch = np.polyfit(array["array_col"], pixels["pxl_col_in_fullres"], 1)[0]
    assert pitch == pytest.approx(1 / demo.UM_PER_PX, rel=2e-3)
    factors = json.loads((sample.folder / "outs/spatial/scalefactors_json.json").read_text())
    assert factors["spot_diameter_fullres"] == 65 / demo.UM_PER_PX


def test_tiles_and_counts_are_those_of_the_planned_section(world):
    cohort, sample = world
    plan, tissue = new_tissue._island(drawing.plan_section(5, 3, 1, 60))
    image = cv2.imread(str(sample.image))[..., ::-1]
    inner = [tissue[y - 62 : y + 62, x - 62 : x + 62].all() for x, y in plan.centres.astype(int)]
    painted = painting.tiles(plan)[inner]  # of tissue without glass
    assert len(painted) > 3
    for centre, tile in zip(plan.centres[inner] / demo.UM_PER_PX, painted, strict=True):
        assert np.array_equal(cut_tile(image, tuple(centre), demo.UM_PER_PX)[0], tile)
    stored = np.load(cohort / "law.npz")
    the_law = law.Law(*(stored[k] for k in ("genes", "group", "baseline", "loading")))
    z = (law.measure(plan) - stored["z_mean"]) / stored["z_sd"]
    counts = law.draw_counts(the_law, z, 5, 3, 1)
    adata = sc.read_10x_h5(sample.folder / "outs/filtered_feature_bc_matrix.h5")
    on_tissue = new_tissue._in_tissue(plan, tissue)
    assert np.array_equal(np.asarray(adata.X.todense()), counts[on_tissue])
    table = pd.read_csv(sample.folder / "outs/spatial/tissue_positions.csv", index_col="barcode")
    xy = table.loc[adata.obs_names, ["pxl_col_in_fullres", "pxl_row_in_fullres"]]
    assert np.abs(xy - plan.centres[on_tissue] / demo.UM_PER_PX).max(axis=None) <= 1
