"""Three ways to ask a question of the same slides, as coloured spots."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from scipy.stats import pearsonr

from .drawing import LOSS, page, spot, text

ROWS = (  # title, names, question, how spots are held out, bar of the alignment, how r is taken
    (
        "Shuffled spots",
        "peka_paper, peka_official",
        "Asks: can holes in measured slides be filled? Scored spots have training neighbours.",
        "spots",
        "all",
        "pooled",
    ),
    (
        "Held-out patients, one r over all test slides",
        "hest_bench",
        "Asks about a new patient. Knowing that one slide is higher than another still pays.",
        "patients",
        "unsaid",
        "pooled",
    ),
    (
        "Held-out patients, r within each slide",
        "strict",
        "Asks: where on the slide of a new patient is the gene high?",
        "patients",
        "training",
        "within",
    ),
)


def protocols() -> plt.Figure:
    """Who trains and who is scored under the four protocols, and what one r is taken over.

    The points on the right are the same three times: two drawn slides with a weak relation within
    each and a large difference between them.
    """
    ax = page(6.6)  # 100 x 94.3 units
    text(ax, 1.5, 91.7, "What does a score mean? Look at who trains and who is tested",
         weight="bold", fontsize=10.5)  # fmt: skip
    spot(ax, 2.5, 87.7, scored=False)
    text(ax, 4.3, 87.7, "trains the head")
    spot(ax, 23.5, 87.7, scored=True)
    text(ax, 25.3, 87.7, "is scored")
    ax.add_patch(Rectangle((39, 87.2), 4.5, 1, color=LOSS))
    text(ax, 44.5, 87.7, "these slides were seen by the alignment")
    for i, row in enumerate(ROWS):
        _row(ax, 84.9 - 28.4 * i, *row)
    return ax.figure


def _row(ax, top, title, names, question, held_out, seen, taken) -> None:
    ax.plot([0, 100], [top, top], color="#BBBBBB", lw=0.8)
    text(ax, 1.5, top - 2.4, title, weight="bold", fontsize=9.5)
    text(ax, 98.5, top - 2.4, names, ha="right", family="monospace", fontsize=8)
    text(ax, 1.5, top - 5.6, question)
    rng = np.random.default_rng(1)
    for slide in range(4):
        corner = (1.5 + 13.2 * slide + slide // 2, top - 21)
        ax.add_patch(Rectangle(corner, 12.2, 13, facecolor="#F7F7F7", edgecolor="#777777", lw=0.8))
        lattice = [(c + 0.5 * (r % 2), r) for r in range(6) for c in range(5 - r % 2)]
        chosen = rng.permutation(len(lattice))[: len(lattice) // 4]
        for k, (c, r) in enumerate(lattice):
            scored = k in chosen if held_out == "spots" else slide >= 2
            spot(ax, corner[0] + 1.7 + 2.2 * c, corner[1] + 1.5 + 2 * r, scored)
        if seen == "all" or (seen == "training" and slide < 2):
            ax.add_patch(Rectangle((corner[0], top - 22.8), 12.2, 1, color=LOSS))
    if seen == "unsaid":
        text(ax, 1.5, top - 22.6, "alignment: the protocol does not say what it saw", color=LOSS,
             fontsize=8)  # fmt: skip
    for patient in range(2):
        text(ax, 14.1 + 27.4 * patient, top - 25.6, f"patient {patient + 1}", ha="center")
    _scatter(ax, 62, top - 21, taken)


def _scatter(ax, x, y, taken) -> None:
    """Measured against predicted values of two slides, with one line or two."""
    rng = np.random.default_rng(31)
    place = rng.normal(0, 1, (2, 2, 15))  # (measured or predicted, slide, spots)
    place[1] = 0.35 * place[0] + place[1]
    place += np.array([-1.9, 1.9])[None, :, None]
    place = (place - place.min((1, 2), keepdims=True)) / np.ptp(place, (1, 2)).reshape(2, 1, 1)
    ax.plot([x, x, x + 15], [y + 13, y, y], color="black", lw=1)
    text(ax, x + 7.5, y - 1.9, "measured", ha="center", fontsize=8)
    text(ax, x - 1.6, y + 6.5, "predicted", ha="center", rotation=90, fontsize=8)
    for slide, mark in enumerate(("o", "^")):
        color = ("#777777", "black")[slide]
        ax.plot(x + 0.8 + 13.5 * place[0, slide], y + 0.8 + 11.5 * place[1, slide], mark,
                color=color, markersize=3)  # fmt: skip
    groups = [place.reshape(2, -1)] if taken == "pooled" else [place[:, 0], place[:, 1]]
    for measured, predicted in groups:
        line = np.polyfit(measured, predicted, 1)
        ends = np.array([measured.min(), measured.max()])
        ax.plot(x + 0.8 + 13.5 * ends, y + 0.8 + 11.5 * np.polyval(line, ends), color="black", lw=2)
    r = np.mean([pearsonr(*group).statistic for group in groups])
    words = "one r over\nall slides:" if taken == "pooled" else "r in each slide,\nthen the mean:"
    text(ax, 79.5, y + 8.5, words, weight="bold")
    text(ax, 79.5, y + 3.6, f"{r:.2f}".lstrip("0"), weight="bold", fontsize=12)
