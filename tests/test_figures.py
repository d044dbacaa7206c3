"""Figures show what their data hold."""

import numpy as np
import pandas as pd
import pytest

from peka_core import figures
from peka_core.figures import PALETTE
from peka_core.studies import ladder_figures

NO_INTERVAL = {"low": np.nan, "high": np.nan}


def texts(labels):
    return [label.get_text().strip() for label in labels]


def legend(ax):
    return texts(ax.get_legend().get_texts())


def test_gene_pairs_counts_only_genes_defined_on_both_sides():
    values = {"frozen": [0.1, 0.3, 0.2, np.nan], "aligned": [0.2, 0.1, 0.4, 0.9]}
    ax = figures.gene_pairs(pd.DataFrame(values, index=list("ABCD")), method="bone")
    assert "2 of 3 genes" in ax.get_title() and "bone" in legend(ax)[1]
    assert ax.lines[1].get_color() == PALETTE["bone"]


def test_a_map_is_in_micrometres_with_y_downwards_and_its_bar_is_as_long_as_it_says():
    image, ax = figures.grid(2)
    image.set(xlim=(0, 400), ylim=(300, 0))
    figures.scale_bar(image, px_per_um=2.0, length_um=50)
    points = figures.tissue_map(ax, np.array([[0, 0], [200, 400]]), np.array([1.0, 2.0]), 0.5)
    assert np.allclose(points.get_offsets()[1], [100, 200])
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    lengths = {texts(one.texts)[0]: np.ptp(one.lines[0].get_xdata()) for one in (image, ax)}
    assert lengths == pytest.approx({"50 µm": 100, "500 µm": 500})


def test_score_dots_are_sorted_and_an_undefined_mean_is_written_out():
    table = pd.DataFrame({"label": ["a", "b"], "predictor": ["x", "y"], "mean": [0.2, np.nan]})
    ax = figures.score_dots(table.assign(kind="control", **NO_INTERVAL))
    assert texts(ax.get_yticklabels()) == ["b", "a"]  # from below
    assert texts(ax.texts) == ["undefined"] and ax.texts[0].get_position()[1] == 0


def test_a_ladder_shows_each_rung_in_order_with_its_interval_and_one_below_the_floor_as_a_number():
    mean = np.array([0.1, 0.2, -0.4, 0.0])
    table = pd.DataFrame({"label": list("aabb"), "genes": ["all", "cue"] * 2, "mean": mean})
    table = table.assign(low=mean - 0.1, high=mean + [0.2, 0.1, 0.1, 0.1])
    ax = ladder_figures.rungs(table)
    assert texts(ax.get_yticklabels()) == ["b", "a"] and legend(ax) == ["all genes", "cue genes"]
    segments = np.concatenate([np.array(c.get_segments())[:, :, 0] for c in ax.collections])
    expected = sorted(zip(table["low"], table["high"], strict=True))
    np.testing.assert_allclose(sorted(map(tuple, segments)), expected, atol=1e-12)
    alone = ladder_figures.rungs(table[table["genes"] == "all"].drop(columns="genes"), floor=-0.1)
    assert alone.get_legend() is None and alone.get_xlim()[0] == -0.1
    assert texts(alone.texts) == ["◂ -0.400"] and not ax.texts


@pytest.mark.parametrize("names", [
    {"bat, patients/0": "bat", "bat, all": "all"},
    {"bat, patients/0": "bat", "bat, all": "all", "bone, all": "bone"},
    {"bat, all": "bat", "bone, all": "bone", "UNI, PEKA, all": None},
])  # fmt: skip
def test_no_colour_has_two_meanings_in_loss_curves(names):
    history = pd.DataFrame({"epoch": [1, 2], "kd": [2.0, 1.0], "kept": [False, True]})
    ax = figures.loss_curves(dict.fromkeys(names, history), "kd")
    drawn = {line.get_label(): line.get_color() for line in ax.lines}
    assert len({drawn[name] for name in names}) == len(names) and "L_KD" in ax.get_title()
    assert all(drawn[name] == PALETTE[method] for name, method in names.items() if method)


def test_the_legend_has_one_meaning_for_each_colour():
    kinds = {"frozen": "encoder", "colour": "control", "none": "encoder"}
    methods = ["bat", "bone", "lora", "adalora", "full", "projector_only"]
    rows = (kinds | dict.fromkeys(methods, "student")).items()
    table = pd.DataFrame(rows, columns=["predictor", "kind"])
    ax = figures.score_dots(table.assign(label="a row", mean=0.1, **NO_INTERVAL))
    colours = {line.get_color() for line in ax.get_legend().get_lines()}
    assert len(colours) == len(set(legend(ax))) == len(table)
    assert {"aligned: bat", "frozen encoder", "control: no morphology"} <= set(legend(ax))
