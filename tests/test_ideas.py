"""The pictures of ideas: their numbers against torch and numpy, and no text outside the page."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from peka_core import ideas
from peka_core.ideas.softmax import cost
from peka_core.losses import kd_loss


def test_the_cost_of_a_guess_is_the_distillation_loss():
    truth, guess = np.random.default_rng(0).normal(0, 3, (2, 20, 12))
    expected = kd_loss(torch.tensor(guess), torch.tensor(truth), tau=1.0)
    assert cost(truth, guess).mean() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", ideas.__all__)
def test_words_lie_inside_the_page_and_are_large_enough_to_read(name):
    figure = getattr(ideas, name)()
    figure.canvas.draw()
    page = figure.bbox
    words = [t for t in figure.findobj(plt.Text) if t.get_text().strip() and t.get_visible()]
    assert len(words) > 10
    for word in words:
        box = word.get_window_extent()
        assert box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1, word.get_text()
        assert box.y0 >= page.y0 - 1 and box.y1 <= page.y1 + 1, word.get_text()
        assert word.get_fontsize() >= 8, word.get_text()
    plt.close(figure)


@pytest.mark.parametrize("name", ideas.__all__)
def test_words_do_not_lie_on_words(name):
    figure = getattr(ideas, name)()
    figure.canvas.draw()
    words = [t for t in figure.findobj(plt.Text) if t.get_text().strip() and t.get_visible()]
    boxes = [(word.get_text(), word.get_window_extent()) for word in words]
    for i, (one, a) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            wide = min(a.x1, b.x1) - max(a.x0, b.x0)
            high = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert wide < 2 or high < 2, (one, other)
    plt.close(figure)
