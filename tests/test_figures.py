"""Figures show what their data hold."""

import numpy as np
import pandas as pd
import pytest

from peka_core import figures
from peka_core.studies import ladder_figures


def texts(labels):
    return [label.get_text().strip() for label in labels]


def test_gene_pairs_counts_only_genes_defined_on_both_sides():
    values = {"frozen": [0.1, 0.3, 0.2, np.nan], "aligned": [0.2, 0.1, 0.4, 0.9]}
    ax = figures.gene_pairs(pd.DataFrame(values, index=list("ABCD")), method="bone")
    assert "2 of 3 genes" in ax.get_title()


def test_a_map_is_in_micrometres_with_y_downwards_and_its_bar_is_as_long_as_it_says():
    image, ax = figures.grid(2)
    image.set(xlim=(0, 400), ylim=(300, 0))
    figures.scale_bar(image, px_per_um=2.0, length_um=50)
    points = figures.tissue_map(ax, np.array([[0, 0], [200, 400]]), np.array([1.0, 2.0]), 0.5)
    assert np.allclose(points.get_offsets()[1], [100, 200])
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    lengths = {texts(one.texts)[0]: np.ptp(one.lines[0].get_xdata()) for one in (image, ax)}
    assert lengths == pytest.approx({"50 µm": 100, "500 µm": 500})


def test_a_ladder_shows_each_rung_in_order_with_its_interval():
    mean = np.array([0.1, 0.2, -0.4, 0.0])
    table = pd.DataFrame({"label": list("aabb"), "genes": ["all", "cue"] * 2, "mean": mean})
    table = table.assign(low=mean - 0.1, high=mean + [0.2, 0.1, 0.1, 0.1])
    ax = ladder_figures.rungs(table)
    assert texts(ax.get_yticklabels()) == ["b", "a"]
    segments = np.concatenate([np.array(c.get_segments())[:, :, 0] for c in ax.collections])
    expected = sorted(zip(table["low"], table["high"], strict=True))
    np.testing.assert_allclose(sorted(map(tuple, segments)), expected, atol=1e-12)
