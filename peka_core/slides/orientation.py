"""Whether spots lie on their image the right way round, measured as the share of spots on tissue.

A flip or a quarter turn between image and coordinates keeps every number plausible: tiles are cut,
and each belongs to another spot. So the spots are laid onto a mask of the tissue in all eight
orientations, and the given one must be the best by a margin. On the six samples where it was tried,
the right one was always the best. No threshold on the share itself separated right from wrong.
"""

from dataclasses import dataclass

import numpy as np

from .mask import Mask

# name -> (x, y) in an image of width w and height h, from the given (x, y)
ORIENTATIONS = {
    "as_given": lambda x, y, w, h: (x, y),
    "rot90": lambda x, y, w, h: (w - y, x),  # clockwise, as seen on the screen
    "rot180": lambda x, y, w, h: (w - x, h - y),
    "rot270": lambda x, y, w, h: (y, h - x),
    "flip_x": lambda x, y, w, h: (w - x, y),  # left becomes right
    "flip_y": lambda x, y, w, h: (x, h - y),  # top becomes bottom
    "transpose": lambda x, y, w, h: (y, x),  # x and y swapped
    "transverse": lambda x, y, w, h: (w - y, h - x),
}
# How far the given orientation must be ahead. Chosen on five sections of her2st (ahead by .19 to
# .28), a Visium sample (by .19 in the correlation) and round islands of drawn tissue (.08 to .12).
MARGIN = 0.05


def oriented(xy: np.ndarray, name: str, width: float, height: float) -> np.ndarray:
    """Spots (n, 2) in one of the `ORIENTATIONS` of an image of width x height px."""
    x, y = np.asarray(xy, float).T
    return np.stack(ORIENTATIONS[name](x, y, width, height), axis=1)  # (n, 2)


def inside(xy: np.ndarray, width: float, height: float) -> np.ndarray:
    """Which of the centres (n, 2) lie within the image, (n,) bool."""
    return np.all((xy >= 0) & (xy < (width, height)), axis=1)


@dataclass(frozen=True, eq=False)
class Orientation:
    """How well each orientation fits, and whether the given one is the best by the margin."""

    scores: dict[str, float]  # by the names of ORIENTATIONS; NaN where nothing can be said
    measure: str  # "share of spots on tissue" or "correlation of in_tissue with the mask"
    tissue: float  # share of the image that the mask calls tissue

    @property
    def lead(self) -> float:
        """The given orientation's score minus the best of the other seven."""
        others = [score for name, score in self.scores.items() if name != "as_given"]
        return self.scores["as_given"] - max(others)

    @property
    def is_clear(self) -> bool:
        """Whether the given orientation is ahead of the others by the margin."""
        return bool(self.lead >= MARGIN)  # False where it is NaN

    @property
    def best(self) -> str:
        """The orientation with the highest score."""
        known = {name: s for name, s in self.scores.items() if not np.isnan(s)}
        return max(known, key=known.__getitem__) if known else "as_given"

    def in_words(self) -> str:
        """All scores as lines of text, the best first."""
        ranked = sorted(self.scores.items(), key=lambda item: -np.nan_to_num(item[1], nan=-2))
        lines = [f"  {name:<10}  {score:6.3f}" for name, score in ranked]
        return f"{self.measure}:\n" + "\n".join(lines)


def measure(
    xy: np.ndarray, mask: Mask, size: tuple[int, int], in_tissue: np.ndarray | None = None
) -> Orientation:
    """Score the eight orientations of the spots on a mask of the tissue.

    Args:
        xy: (n, 2) centres, px of the slide. With `in_tissue`, those of every array position.
        mask: the tissue of the slide.
        size: width and height of the slide, px.
        in_tissue: (n,) bool, what Space Ranger calls tissue. If both values occur, the score is its
            correlation with the mask instead of the share of spots on tissue.
    """
    known = in_tissue if in_tissue is not None and 0 < np.mean(in_tissue) < 1 else None
    values = {}
    for name in ORIENTATIONS:
        hit = mask.at(oriented(xy, name, *size))  # (n,) bool, False outside the image
        values[name] = float(hit.mean()) if known is None else _correlation(known, hit)
    text = "share of spots on tissue"
    if known is not None:
        text = "correlation of in_tissue with the tissue mask"
    return Orientation(values, text, mask.share)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two masks (n,); NaN where one is constant."""
    if a.min() == a.max() or b.min() == b.max():
        return float("nan")
    return float(np.corrcoef(a.astype(float), b.astype(float))[0, 1])
