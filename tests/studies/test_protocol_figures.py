"""Chapter 4 and 4b: steps beside depth, the studies of one gain, and rows of another world."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from peka_core.common.errors import PekaError
from peka_core.protocols import PROTOCOLS
from peka_core.studies import paper_tables, protocol_figures, tables, worth, worth_figures
from peka_core.studies.story import story_gene

DEPTH = "slide_and_library_size"


@pytest.fixture
def steps() -> dict[str, pd.DataFrame]:
    names = {"demo": "demo", "her2st": "her2st"}
    read = lambda name: [tables.read_result(f"{name}_{part}") for part in ("steps", "scores")]
    return {key: protocol_figures.steps_with_depth(*read(name)) for key, name in names.items()}


def test_each_step_has_the_reference_of_its_own_rules(steps):
    demo = steps["demo"].set_index("step")
    summary = tables.read_result("demo_summary").query("label == 'slide + library size'")
    of = summary.set_index("protocol")["mean"]
    assert demo[DEPTH].iloc[0] == of["peka_official"] and demo[DEPTH].iloc[1] == of["peka_paper"]
    assert demo[DEPTH]["strict"] == of["strict"] and np.isnan(demo[DEPTH].iloc[3])
    assert demo[DEPTH]["per section"] < demo[DEPTH].iloc[1]  # the section is worth nothing there


@pytest.mark.parametrize("guess", [None, [0.9, 0.4, 0.3]])
def test_a_guess_is_drawn_beside_the_second_to_fourth_step(steps, guess):
    figure = protocol_figures.steps(steps, guess)
    lines = [line for line in figure.axes[-1].lines if line.get_label() == "you"]
    assert len(lines) == (guess is not None) and len(figure.axes) == 2
    if guess:
        assert list(lines[0].get_xdata()) == guess and list(lines[0].get_ydata()) == [3, 2, 1]
        assert figure.axes[0].get_xlim()[1] > 0.9
    plt.close(figure)


def test_a_gene_has_a_score_or_none_under_each_protocol(work):
    gene, four = story_gene(work), [paper_tables.authors_rules(work), PROTOCOLS["strict"]]
    found = protocol_figures.gene_scores(work, gene, four, ["frozen", "slide_one_hot"])
    assert four[0].name.startswith("peka_official_min_") and list(found.index)[1] == "strict"
    assert np.isfinite(found.loc["strict", "frozen"])
    assert np.isnan(found.loc["strict", "slide_one_hot"])
    assert protocol_figures.gene_scores(work, "no gene", four, ["frozen"]).isna().all().all()
    words = [text.get_text() for text in protocol_figures.of_gene(found, gene).texts]
    assert "undefined" in words
    plt.close()


def test_the_studies_of_one_gain_are_the_committed_ones():
    found = worth.studies_of_one_gain()
    demo = tables.read_result("demo_differences").query("rung == 'bat, encoder' and genes == 'all'")
    assert found["mean"].iloc[0] == demo.query("world == 'on'")["mean"].iloc[0]
    assert (found["low"] < found["mean"]).all() and (found["mean"] < found["high"]).all()
    on = found["cues"] == "on"
    assert found.loc[on, "low"].min() > 0 > found.loc[~on, "low"].max()
    assert len(worth_figures.one_gain(found).get_yticklabels()) == len(found) > 5
    plt.close()


def test_a_ruler_leaves_out_what_is_undefined():
    rows = {"all genes": {"frozen": 0.4, "oracle": np.nan, "ceiling": 0.8}}
    (ax,) = worth_figures.ruler(rows, {"frozen": "#0072B2"}).axes
    assert [text.get_text() for text in ax.texts] == ["frozen 0.40", "ceiling 0.80"]
    plt.close()


def test_rows_of_another_world_are_put_in_once_and_change_no_other(work):
    with pytest.raises(PekaError, match="missing"):
        tables.save_world(pd.DataFrame({"world": ["off"]}), work, "scores")
    own = tables.score_table(work, PROTOCOLS["strict"], [("encoder", "frozen")])
    path = tables.save_table(own, work.folder / "results", "scores")
    before = path.read_text()
    for _ in range(2):
        tables.save_world(own.assign(world="off"), work, "scores")
        after = path.read_text()
        assert after.startswith(before) and after.count("\n") == 2 * before.count("\n") - 1
    assert pd.read_csv(path)["mean"].iloc[-1] == pytest.approx(own["mean"].iloc[-1], abs=1e-6)
