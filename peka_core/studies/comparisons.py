"""Comparisons: losses, how many blocks adapt, teachers, and the recipe `beyond`.

Each is a list of rungs (trained variants of a student), scored against the frozen encoder by
`compare`. `peka ladder` does it on the cohort of a profile, and `benchmarks/comparisons.py` on
freshly drawn ones. There a cohort is one value (`over_cohorts`), because its patients share a law,
a tissue and the training data.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from ..protocols import PROTOCOLS
from ..recipe import RECIPES, Recipe
from ..runner import stages
from ..runner.run import Run
from ..runner.rungs import Rung
from ..statistics import t_interval
from . import tables

LOSSES: dict[str, dict[str, Any]] = {  # how L_KD compares the vectors -> changes of the recipe
    "Eq. 5": {},
    "Eq. 5, tau = 4, times tau squared": {"tau": 4.0, "tau_squared": True},
    "Eq. 5 on signed halves": {"kd": "signed"},
    "squared error": {"kd": "mse"},
    "cosine": {"kd": "cosine"},
}
WITH, ALONE = " + Eq. 6", " alone"
PAPER, SQUARED = "Eq. 5" + WITH, "squared error" + ALONE
WITHOUT_CUES = (PAPER, "Eq. 5" + ALONE, SQUARED)  # compared without hidden cues, too
BLOCKS = (3, 2, 1)
SPACES = ("encoder", "projected", "concat")
TEACHERS: dict[str, dict[str, Any]] = {  # label -> changes of the profile
    "PCA": {},
    "scVI": {"teacher": "scvi"},
}


def losses(names: Sequence[str] = ()) -> list[Rung]:
    """One rung for each loss, with and without L_struct, in each space; `names` chooses some."""
    alone, changes = {"lambda_struct": 0.0}, {}
    for loss, change in LOSSES.items():
        changes |= {loss + WITH: change, loss + ALONE: change | alone}
    return [r for name in names or changes for r in _in_each_space(name, changes[name])]


def last_blocks() -> list[Rung]:
    """All four blocks of `mini` adapted, or the last k; by the paper's losses and squared error."""
    found = []
    for name in (PAPER, SQUARED):
        found += losses((name,))
        for k in BLOCKS:
            for rung in losses((name,)):
                recipe = tuple(sorted((dict(rung.recipe) | {"last_blocks": k}).items()))
                found.append(replace(rung, recipe=recipe, name=f"{name}, last {k}"))
    return found


def beyond(recipe: Recipe) -> list[Rung]:
    """The recipe `beyond` beside the paper's losses; `recipe` is the profile's."""
    changes = dict(asdict(RECIPES["beyond"]).items() - asdict(recipe).items())
    return losses((PAPER,)) + _in_each_space("beyond", changes)


def _in_each_space(name: str, changes: dict[str, Any]) -> list[Rung]:
    recipe = tuple(sorted(changes.items()))
    return [Rung("bat", space, recipe=recipe, name=name) for space in SPACES]


def compare(work: Run, predictors: Sequence[Rung | str], splits: Sequence[str]) -> pd.DataFrame:
    """Predictors minus the frozen encoder under `strict`; one row for each, its space and gene set.

    Args:
        predictors: rungs and names of predictors, such as `oracle` and `teacher`.
        splits: names of the scored splits; all of the cohort's own if it is empty. If some hold out
            sections and others patients (their scheme), those like the first one count.

    Returns:
        The columns of `tables.difference_table` without `values`, and: level, the frozen encoder's
        own mean PCC; seconds, what the rung's alignments took, over all splits (0 if nothing was
        trained); changed, the values of the recipe that the rung changes; and what the numbers
        depend on.
    """
    strict, scheme = PROTOCOLS["strict"], work.cohort().splits[0].scheme
    entries = [("student", entry) for entry in predictors]
    bar = tqdm(entries, desc="compare", unit="rung")
    table = tables.difference_table(work, strict, bar, scheme, splits)
    levels = tables.levels(stages.score(work, "frozen", strict, splits=splits).scores, scheme)
    sets, facts = table["genes"].nunique(), []
    for entry in predictors:
        fact = {"changed": "", "seconds": 0.0}
        if isinstance(entry, Rung) and entry.method != "none":
            scored = splits or [split.name for split in work.cohort().splits]
            history = [stages.history(work, entry, name) for name in scored]
            fact["seconds"] = sum(epochs["seconds"].sum() for epochs in history)
            fact["changed"] = " ".join(f"{name}={value}" for name, value in entry.recipe)
        facts += [fact] * sets
    table = table.drop(columns=["label", "values"])
    table = table.assign(level=table["genes"].map(levels), **pd.DataFrame(facts, table.index))
    names = ",".join(splits) or "all"
    table = table.assign(protocol="strict", scope="nested", scheme=scheme, split=names)
    return tables.named(work, table, teacher=work.teacher_name)


def over_cohorts(table: pd.DataFrame, against: str = "") -> pd.DataFrame:
    """Mean over cohorts with a t interval, by rung, space and gene set.

    Args:
        table: rows of `compare` of several cohorts, with a column cohort_seed.
        against: a rung that is subtracted in each cohort, space and gene set; empty for none.
    """
    keys = ["rung", "space", "genes"]
    table = table.fillna({"space": ""})  # the oracle has none
    wide = table.pivot_table("mean", "cohort_seed", keys, sort=False)  # (cohorts, rungs ...)
    rows = []
    for rung, space, genes in wide.columns:
        values = wide[rung, space, genes]
        if against:
            if rung == against or (against, space, genes) not in wide:
                continue
            values = values - wide[against, space, genes]
        row = {"rung": rung, "space": space, "genes": genes, "against": against or "frozen"}
        row |= t_interval(values.to_numpy())._asdict() | {"n": len(values)}
        rows.append(row | {"above_zero": int((values > 0).sum())})
    return pd.DataFrame(rows)
