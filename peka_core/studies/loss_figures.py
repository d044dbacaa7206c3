"""What L_KD (Eq. 5) sees of a teacher's vector, whose entries have both signs: figure and table."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from .. import figures
from ..losses import kd_loss

# the ends of the colour map that shows components on the tissue: purple is high, orange is low
HIGH, LOW = "#542788", "#B35806"


def guess_costs(truth: np.ndarray, guesses: np.ndarray, tau: float = 1.0) -> pd.DataFrame:
    """What a guess of the first component costs if the student has all others right.

    Args:
        truth: the teacher's vector of one spot, (d,).
        guesses: the student's values of the first component, (m,).
        tau: temperature of Eq. 5.

    Returns:
        One row a guess. Columns: guess; kd: L_KD, nats; mse: squared error, mean over d entries.
    """
    students = np.tile(truth, (len(guesses), 1))  # (m, d)
    students[:, 0] = guesses
    kd = [_kd(student[None], truth[None], tau) for student in students]
    return pd.DataFrame({"guess": guesses, "kd": kd, "mse": ((students - truth) ** 2).mean(1)})


def softmax_of_signs(size: float = 4.0, d: int = 12, tau: float = 1.0) -> list[plt.Axes]:
    """Two spots that are equally far from the average, in opposite directions, and their losses.

    Four panels: the vectors; their softmax; L_KD against the student's guess for component 1; the
    squared error of the same guesses. Dotted: the right guess. A dot: what a guess of 0 costs.

    Args:
        size: component 1 is `size` in one spot and -`size` in the other. All other entries are 0.
        d: number of components.
        tau: temperature of Eq. 5.
    """
    panels = figures.grid(4, 2, (3.8, 2.5))
    guesses, places = np.linspace(-1.5 * size, 1.5 * size, 121), np.arange(1, d + 1)
    for sign, color, name in ((1, HIGH, "high"), (-1, LOW, "low")):
        truth = sign * size * np.eye(d)[0]  # (d,)
        label = f"{name} spot, T₁ = {truth[0]:+g}".replace("-", "−")
        for ax, values in zip(panels, (truth, softmax(truth / tau))):
            ax.bar(places - 0.2 * sign, values, width=0.4, color=color, label=label)
        costs = guess_costs(truth, guesses, tau)
        for ax, column in zip(panels[2:], ("kd", "mse")):
            ax.plot(costs["guess"], costs[column], color=color)
            ax.axvline(truth[0], color=color, ls=":", lw=1)  # the right guess, which costs nothing
            of_zero = costs.set_index("guess")[column][0.0]
            ax.plot(0, of_zero, "o", ms=5, color=color)
            place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
            ax.annotate(f"{of_zero:.2f}", (0, of_zero), fontsize="small", **place)
    panels[0].set(title="the teacher's vectors T", ylabel="T")
    panels[1].set(title="what Eq. 5 compares: softmax(T)", ylabel="share", ylim=(0, 1))
    panels[2].set(title="L_KD (Eq. 5) of a guess", ylabel="nats")
    panels[3].set(title="squared error of the same guess", ylabel="mean over entries")
    for above, below in zip(panels[:2], panels[2:]):
        above.set(xlabel="component", xticks=range(1, d + 1, max(1, d // 6)))
        below.set(xlabel="the student's guess for component 1")
    panels[0].axhline(0, color="grey", lw=0.8)
    panels[0].legend(fontsize="x-small", loc="upper right")
    return panels


def cost_of_zeros(x_teacher: np.ndarray, tau: float = 1.0) -> pd.DataFrame:
    """L_KD of guesses that set some entries of the teacher's vectors to zero and keep the others.

    Args:
        x_teacher: embeddings (n, d_t) without NaN.
        tau: temperature of Eq. 5.

    Returns:
        One row each for all, the negative and the positive entries. Columns: set to zero; share of
        squares: how much of the sum of squares these entries hold; kd: L_KD, nats, mean over spots;
        share of kd: of the L_KD when all entries are zero.
    """
    chosen = {"all": np.full(x_teacher.shape, True), "negative": x_teacher < 0}
    chosen["positive"] = x_teacher > 0
    rows = []
    for name, entries in chosen.items():
        guess = np.where(entries, 0, x_teacher)
        squares = (x_teacher[entries] ** 2).sum() / (x_teacher**2).sum()
        rows.append((f"{name} entries", squares, _kd(guess, x_teacher, tau)))
    table = pd.DataFrame(rows, columns=["set to zero", "share of squares", "kd"])
    return table.assign(**{"share of kd": table["kd"] / table["kd"].iloc[0]})


def _kd(student: np.ndarray, teacher: np.ndarray, tau: float) -> float:
    """L_KD of arrays (n, d), averaged over the n spots."""
    return kd_loss(torch.as_tensor(student), torch.as_tensor(teacher), tau).item()
