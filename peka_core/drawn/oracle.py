"""The best that any predictor could do on the demo's drawn tissue, whose law is known."""

from pathlib import Path

import numpy as np
import pandas as pd

from ..cohort import open_cohort
from ..evaluation import Predictor
from ..layout.gene_columns import columns_of
from ..tasks import Task
from . import law


def oracle(cohort, redraws: int = 32, seed: int = 0) -> Predictor:
    """Demo only: the mean target over redraws of counts and depth given the drawn tile.

    If patients are held out, the effects of patient and section are redrawn too; if spots are
    shuffled, these effects are kept. If zeros are dropped, the mean is over non-zero draws.
    """
    names, drawn = cohort.adata().var_names, {}

    def predict(task: Task, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        redraw = "nothing" if task.split.scheme == "spots" else "patients"
        if redraw not in drawn:
            drawn[redraw] = expected_targets(cohort.path, redraw, redraws, seed)
        of_all, of_positive = drawn[redraw]
        expected = of_positive if task.protocol.zeros == "drop" else of_all
        return expected[np.ix_(test, columns_of(names, task.genes))]

    return predict


def expected_targets(path, redraw="patients", redraws=64, seed=0):
    """The mean target given the drawn tile: no prediction from the image can be better on average.

    Args:
        path: a demo cohort; tiles are not needed.
        redraw: with "patients" the effects of patient and section are new in each redraw, as for a
            held-out patient; with "nothing" they are known, as where spots of the same section
            train. Counts and depth are always redrawn.
        redraws: how many; their noise adds variance of one spot's target / redraws.

    Returns:
        two float32 (n, G) in the order of the cohort's spots and of its adata().var_names: the mean
        over all redraws, and over those with a non-zero count, for protocols that drop zeros.
    """
    if redraw not in ("patients", "nothing"):
        raise ValueError(f'redraw is "patients" or "nothing", not {redraw!r}')
    stored = np.load(Path(path) / "law.npz")
    adata = open_cohort(path).adata()
    genes = pd.Index(stored["genes"]).get_indexer(adata.var_names)
    known = pd.DataFrame(stored["effect"], index=stored["samples"])
    effect = known.loc[adata.obs["sample"]].to_numpy() if redraw == "nothing" else None  # (n, G)
    the_law = law.Law(stored["genes"], stored["group"], stored["baseline"], stored["loading"])
    z = adata.obsm["z"]
    of_all, of_positive = law.expected_target(the_law, z, effect, redraws, seed)
    return of_all[:, genes], of_positive[:, genes]
