"""Losses compared: what Eq. 5 and four alternatives add to the frozen encoder on fresh cohorts.

A cohort is one value, because its patients share a law, a tissue and the training data. The cohorts
are drawn for this study alone, so nothing was chosen on them.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from ..protocols import PROTOCOLS
from ..runner import stages
from ..runner.run import Run
from ..runner.rungs import Rung
from ..statistics import summarise, t_interval
from . import tables

LOSSES: dict[str, dict[str, Any]] = {  # how L_KD compares the vectors -> changes of the recipe
    "Eq. 5": {},
    "Eq. 5, tau = 4, times tau squared": {"tau": 4.0, "tau_squared": True},
    "Eq. 5 on signed halves": {"kd": "signed"},
    "squared error": {"kd": "mse"},
    "cosine": {"kd": "cosine"},
}
WITH, ALONE = " + Eq. 6", " alone"
PAPER = "Eq. 5" + WITH
SPACES = ("encoder", "projected", "concat")
# those that are compared on tissue without hidden cues, too
WITHOUT_CUES = (PAPER, "Eq. 5" + ALONE, "squared error" + ALONE)


def rungs(names: Sequence[str] = ()) -> list[Rung]:
    """One rung for each loss, with and without L_struct, in each space; `names` chooses some."""
    made = []
    for loss, changes in LOSSES.items():
        for ending, more in ((WITH, {}), (ALONE, {"lambda_struct": 0.0})):
            recipe = tuple(sorted((changes | more).items()))
            if not names or loss + ending in names:
                made += [Rung("bat", s, recipe=recipe, name=loss + ending) for s in SPACES]
    return made


def compare(work: Run, splits: Sequence[str], names: Sequence[str] = ()) -> pd.DataFrame:
    """Each loss minus the frozen encoder under `strict`; one row for each loss, space, gene set.

    The columns are those of `difference_table` and `level`, the frozen encoder's own mean PCC. The
    oracle has rows, too.
    """
    strict = PROTOCOLS["strict"]
    entries = [("student", rung) for rung in rungs(names)] + [("oracle", "oracle")]
    bar = tqdm(entries, desc="losses", unit="rung")
    table = tables.difference_table(work, strict, bar, splits=splits)
    frozen = summarise(stages.score(work, "frozen", strict, splits=splits).scores, strict)
    levels = frozen[frozen["alpha"] == "chosen"].set_index("genes")["mean"]
    names_of = {"protocol": "strict", "scope": "nested", "split": ",".join(splits)}
    made = {"profile": work.profile.name, "seed": work.profile.seed}
    table = table.drop(columns=["label", "values"]).rename(columns={"rung": "loss"})
    return table.assign(level=table["genes"].map(levels), **names_of, **made)


def over_cohorts(table: pd.DataFrame, against: str = "") -> pd.DataFrame:
    """Mean over cohorts with a t interval, by loss, space and gene set.

    Args:
        table: rows of `compare` of several cohorts, with a column cohort_seed.
        against: a loss that is subtracted in each cohort, space and gene set; empty for none.
    """
    keys = ["loss", "space", "genes"]
    wide = table.pivot_table("mean", "cohort_seed", keys, sort=False)  # (cohorts, losses ...)
    rows = []
    for loss, space, genes in wide.columns:
        values = wide[loss, space, genes]
        if against and (loss == against or not space):
            continue  # the oracle has no space
        if against:
            values = values - wide[against, space, genes]
        interval = t_interval(values.to_numpy())
        above = int((values > 0).sum())
        row = {"loss": loss, "space": space, "genes": genes, "against": against or "frozen"}
        rows.append(row | interval._asdict() | {"n": len(values), "above_zero": above})
    return pd.DataFrame(rows)
