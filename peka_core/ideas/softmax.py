"""What a softmax and the KL divergence see of a vector with positive and negative entries."""

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import log_softmax, rel_entr, softmax

from .drawing import WIDTH

N = 12  # components, as many as the demo's teacher has
SPOTS = {"spot A: +4": (4.0, "#222222", "-"), "spot B: −4": (-4.0, "#777777", "--")}


def cost(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Eq. 5 at tau = 1, in nats: KL divergence of softmax(guess) from softmax(truth), `(n,)`."""
    share = softmax(truth, axis=-1)  # (n, d)
    return rel_entr(share, np.exp(log_softmax(guess, axis=-1))).sum(axis=-1)


def softmax_and_sign(x_teacher: np.ndarray | None = None) -> plt.Figure:
    """Two spots that differ from the average equally far, in opposite directions.

    Args:
        x_teacher: a teacher's vectors `(n, d)`; what a guess of zeros costs on them is then
            written into the title of the last panel.
    """
    figure = plt.figure(figsize=(WIDTH, 5.9), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=[1, 1, 1.5])
    figure.suptitle("The distillation loss weighs a high entry heavily and a low one hardly at all",
                    weight="bold", fontsize=10.5)  # fmt: skip
    for row, (name, (value, color, _)) in enumerate(SPOTS.items()):
        truth = np.eye(1, N)[0] * value
        left, right = (figure.add_subplot(grid[row, i]) for i in range(2))
        _bars(left, truth, color, (-5, 5), f"{name} in component 1", "teacher's vector T")
        share = softmax(truth)
        title = f"component 1 gets {share[0]:.1%}, each other {share[1]:.1%}"
        _bars(right, share, color, (0, 1), title, "softmax(T)")
    _costs(figure.add_subplot(grid[2, :]), x_teacher)
    return figure


def _bars(ax, heights, color, limits, title, ylabel) -> None:
    ax.bar(np.arange(1, N + 1), heights, color=[color] + ["#CCCCCC"] * (N - 1))
    ax.axhline(0, color="black", lw=0.8)
    ax.set(ylim=limits, xticks=(1, 4, 8, 12))
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("component", fontsize=8.5)
    ax.set_ylabel(ylabel, fontsize=8.5)
    ax.tick_params(labelsize=8)


def _costs(ax, x_teacher) -> None:
    guesses = np.linspace(-6, 6, 241)
    guess = np.eye(1, N)[0] * guesses[:, None]  # (241, 12)
    for name, (value, color, line) in SPOTS.items():
        ax.plot(guesses, cost(np.eye(1, N)[0] * value, guess), line, color=color, label=name)
        ax.plot(value, 0, "v", color=color, clip_on=False, markersize=8)
    ax.set(xlim=(-6.2, 6.2), xticks=range(-6, 7, 2), ylim=(0, 5))
    ax.set_xlabel("the student's guess of component 1 (triangle: the truth)", fontsize=8.5)
    ax.set_ylabel("loss, nats", fontsize=8.5)
    ax.tick_params(labelsize=8)
    ax.legend(fontsize=8.5, loc="upper center", frameon=False)
    nothing = [cost(np.eye(1, N) * value, np.zeros((1, N)))[0] for value in (4.0, -4.0)]
    said = f"to guess 0 costs {nothing[0]:.2f} nats for A and {nothing[1]:.2f} for B"
    if x_teacher is not None:
        zeros = np.zeros_like(x_teacher)
        low = cost(x_teacher, np.maximum(x_teacher, 0)).mean()
        high = cost(x_teacher, np.minimum(x_teacher, 0)).mean()
        said += (
            f"\nthis run's teacher, mean of {len(x_teacher):,} spots: all zeros cost "
            f"{cost(x_teacher, zeros).mean():.2f};\nzeros in place of the positive entries "
            f"{high:.2f}, in place of the negative ones {low:.2f}"
        )
    ax.set_title(said, fontsize=9)
