"""Figures say what their data say."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from peka_core import figures


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_gene_pairs_counts_only_genes_defined_on_both_sides():
    genes = pd.DataFrame(
        {"frozen": [0.1, 0.3, 0.2, np.nan], "aligned": [0.2, 0.1, 0.4, 0.9]}, index=list("ABCD")
    )
    assert "2 of 3 genes" in figures.gene_pairs(genes).get_title()
    drawn = figures.gene_pairs(genes, method="bone")
    assert (
        drawn.lines[1].get_color() == figures.PALETTE["bone"]
        and "bone" in drawn.get_legend().get_texts()[1].get_text()
    )


def test_scale_bar_is_as_long_as_it_says():
    ax = figures.grid(1)[0]
    ax.set(xlim=(0, 400), ylim=(300, 0))
    figures.scale_bar(ax, px_per_um=2.0, length_um=50)
    x = ax.lines[0].get_xdata()
    assert x[1] - x[0] == pytest.approx(100)
    assert ax.texts[0].get_text() == "50 µm"


def test_tissue_map_is_in_micrometres_with_y_downwards():
    ax = figures.grid(1)[0]
    drawn = figures.tissue_map(
        ax, np.array([[0, 0], [200, 400]]), np.array([1.0, 2.0]), um_per_px=0.5
    )
    assert np.allclose(drawn.get_offsets()[1], [100, 200])
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_paired_dots_show_every_patient_with_a_value():
    row = {
        "label": "bat",
        "predictor": "bat",
        "mean": 0.1,
        "low": 0.0,
        "high": 0.2,
        "values": pd.Series([0.1, np.nan, 0.2]),
    }
    ax = figures.paired_dots(pd.DataFrame([row]))
    assert len(ax.lines[0].get_xdata()) == 2


def test_score_dots_say_which_predictors_are_undefined():
    table = pd.DataFrame(
        {
            "label": ["a", "b"],
            "predictor": ["x", "y"],
            "kind": "control",
            "mean": [0.2, np.nan],
            "low": np.nan,
            "high": np.nan,
        }
    )
    ax = figures.score_dots(table)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["b", "a"]  # from below
    assert [(text.get_text().strip(), text.get_position()[1]) for text in ax.texts] == [
        ("undefined", 0)
    ]


def test_save_writes_a_whole_png(tmp_path):
    figures.grid(1)
    figures.save(plt.gcf(), tmp_path, "one")
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def test_a_ladder_shows_each_rung_once_in_order_with_its_interval():
    table = pd.DataFrame(
        {
            "label": ["a", "a", "b", "b"],
            "genes": ["all", "cue"] * 2,
            "mean": [0.1, 0.2, -0.1, 0.0],
            "low": [0.0, 0.1, -0.2, -0.1],
            "high": [0.3, 0.3, 0.0, 0.1],
        }
    )
    ax = figures.rungs(table)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["b", "a"]
    segments = np.concatenate([np.array(c.get_segments())[:, :, 0] for c in ax.collections])
    assert {tuple(np.round(s, 6)) for s in segments} == {
        (0.0, 0.3),
        (-0.2, 0.0),
        (0.1, 0.3),
        (-0.1, 0.1),
    }
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["all genes", "cue genes"]
    assert figures.rungs(table[table["genes"] == "all"].drop(columns="genes")).get_legend() is None


def test_curves_have_a_panel_each_and_keep_the_order_of_values():
    table = pd.DataFrame(
        {
            "curve": ["k", "k", "tau"],
            "value": ["8", "leiden", "1.0"],
            "genes": "all",
            "mean": [0.1, 0.2, 0.3],
            "low": [0, 0.1, 0.2],
            "high": [0.2, 0.3, 0.4],
        }
    )
    axes = figures.curves(table)
    assert [ax.get_title() for ax in axes] == ["k", "tau"]
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["8", "leiden"]


def test_a_rung_below_the_floor_is_told_as_a_number():
    table = pd.DataFrame(
        {"label": ["a", "b"], "mean": [0.1, -0.4], "low": [0.0, -0.5], "high": [0.2, -0.3]}
    )
    ax = figures.rungs(table, floor=-0.1)
    assert ax.get_xlim()[0] == -0.1 and [text.get_text().strip() for text in ax.texts] == [
        "◂ -0.400"
    ]
    assert not figures.rungs(table).texts


def test_a_method_has_its_colour_in_loss_curves_too():
    history = pd.DataFrame(
        {"epoch": [1, 2], "kd": [2.0, 1.0], "validation_kd": [2.0, 1.5], "kept": [False, True]}
    )
    ax = figures.loss_curves({"bat, patients/0": history, "bat, all": history}, "kd")
    drawn = {line.get_label(): line.get_color() for line in ax.lines}
    assert (
        drawn["bat, patients/0"] == figures.PALETTE["bat"]
        and drawn["bat, all"] == figures.PALETTE["all"]
    )
    assert ax.get_title() == "L_KD by epoch"
    ax = figures.loss_curves(
        {"bat, all": history, "bone, all": history, "UNI, PEKA, all": history}, "kd"
    )
    assert len({line.get_color() for line in ax.lines if line.get_label().endswith("all")}) == 3
    ax = figures.loss_curves(
        {"bat, patients/0": history, "bat, all": history, "bone, all": history}, "kd"
    )
    colours = [line.get_color() for line in ax.lines if ", " in str(line.get_label())]
    assert colours == [figures.PALETTE[name] for name in ("bat", "all", "bone")], (
        "no colour means two things"
    )


def test_a_key_says_what_each_colour_of_a_score_means():
    table = pd.DataFrame({"label": ["a", "b", "c"], "predictor": ["frozen", "colour", "bat"], "kind": ["encoder", "control", "student"],
                          "mean": [0.2, 0.1, 0.3], "low": np.nan, "high": np.nan})  # fmt: skip
    key = figures.score_dots(table).get_legend().get_texts()
    assert [text.get_text() for text in key] == [
        "aligned: bat",
        "frozen encoder",
        "control: no morphology",
    ]
    names = ["bat", "bone", "lora", "adalora", "full", "projector_only"]
    many = pd.DataFrame(
        {
            "label": names,
            "predictor": names,
            "kind": "student",
            "mean": 0.1,
            "low": np.nan,
            "high": np.nan,
        }
    )
    other = pd.DataFrame(
        {
            "label": ["UNI"],
            "predictor": "none",
            "kind": "encoder",
            "mean": 0.1,
            "low": np.nan,
            "high": np.nan,
        }
    )
    drawn = {
        line.get_label(): line.get_color()
        for line in figures.score_dots(pd.concat([table, many, other])).get_legend().get_lines()
    }
    assert len(set(drawn.values())) == len(drawn) == 9 and "another frozen encoder" in drawn
