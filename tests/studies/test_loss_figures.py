"""What L_KD sees of signs: against scipy's entropy, and the figure against its own curves."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from peka_core.studies import loss_figures


def test_costs_are_scipys_divergence_and_squared_error():
    truth, guesses = np.array([2.0, -1.0, 0.5]), np.array([-1.0, 0.0, 2.0])
    table = loss_figures.guess_costs(truth, guesses, tau=2.0)
    students = [[guess, -1.0, 0.5] for guess in guesses]
    kd = [entropy(softmax(truth / 2), softmax(np.divide(s, 2))) for s in students]
    assert table["kd"].to_numpy() == pytest.approx(kd, abs=1e-6) and kd[2] == 0 < kd[1] < kd[0]
    assert table["mse"].tolist() == pytest.approx([3, 4 / 3, 0])


def test_the_figure_shows_both_spots_and_their_curves_mirror_each_other_in_squared_error_alone():
    vectors, shares, kd, squared = loss_figures.softmax_of_signs(size=3.0, d=5)
    assert [bar.get_height() for bar in vectors.patches] == [3, 0, 0, 0, 0, -3, 0, 0, 0, 0]
    high = [bar.get_height() for bar in shares.patches][:5]
    assert high == pytest.approx(softmax([3.0, 0, 0, 0, 0]))
    curves = lambda ax: [line.get_ydata() for line in ax.lines if len(line.get_xdata()) > 2]
    high, low = curves(squared)
    assert high == pytest.approx(low[::-1]) and high.max() == pytest.approx(7.5**2 / 5)
    high, low = curves(kd)
    assert high.min() == pytest.approx(0, abs=1e-6) and low.min() == pytest.approx(0, abs=1e-6)
    assert low[60] < 0.2 * high[60]  # a guess of 0


def test_zeroed_entries_cost_their_divergence_and_hold_their_share_of_the_squares():
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    table = loss_figures.cost_of_zeros(x, tau=0.5).set_index("set to zero")
    guesses = np.zeros_like(x), x.clip(0), x.clip(max=0)
    kd = [entropy(softmax(x * 2, 1), softmax(g * 2, 1), axis=1).mean() for g in guesses]
    assert table["kd"].tolist() == pytest.approx(kd, rel=1e-4)
    lost = [((x - guess) ** 2).sum() / (x**2).sum() for guess in guesses]
    assert table["share of squares"].tolist() == pytest.approx(lost, rel=1e-5)
    assert table.loc["positive entries", "share of kd"] == pytest.approx(kd[2] / kd[0], rel=1e-4)
