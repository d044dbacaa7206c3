"""Score predictors without pixels on 35 real sections; writes results/controls_her2st.csv.

    PEKA_MIRROR=../shared/data python scripts/controls_her2st.py        # two minutes

The sections have 13,442 spots of 8 patients. Only counts and spot positions are read. The protocols
are `peka_official` and three variants with names of their own: zeros kept, patients held out, and
both. Section C6 is left out, because the mirror that was used has no counts of it.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from peka_core import controls
from peka_core.cohort import Split
from peka_core.evaluation import evaluate
from peka_core.protocols import PROTOCOLS
from peka_core.sources import her2st
from peka_core.statistics import summarise
from peka_core.studies.tables import LABELS, made_here, save_table
from peka_core.tasks import make_tasks

ROOT = Path(__file__).parents[1]
OFFICIAL = PROTOCOLS["peka_official"]
HELD_OUT = replace(
    OFFICIAL,
    name="peka_official_held_out",
    splits_from="cohort",
    gene_folds=False,
    inner_holdout=False,
)
PREDICTORS = ("slide_one_hot", "library_size", "slide_and_library_size", "nearest_spots")


def counted() -> SimpleNamespace:
    """What scoring reads of a cohort: spots, patients' splits, and counts of all genes that any
    section measured.
    """
    adata = her2st.read_counts([section for section in her2st.section_names() if section != "C6"])
    patients = adata.obs["group"].to_numpy()
    splits = [
        Split(f"patients/{i}", patients != name, patients == name)
        for i, name in enumerate(np.unique(patients))
    ]
    samples = adata.obs["sample"]
    return SimpleNamespace(
        path="her2st",
        obs=adata.obs,
        splits=splits,
        adata=lambda join, genes: adata[:, genes].copy(),  # the outer join
        by_section=lambda join: (adata[samples == name].copy() for name in samples.unique()),
    )


def main() -> None:
    """Score all predictors, print the table and write it."""
    cohort, rows = counted(), []
    kept = lambda rule: replace(rule, name=f"{rule.name}_zeros_kept", zeros="keep")
    for rule in (OFFICIAL, kept(OFFICIAL), HELD_OUT, kept(HELD_OUT)):
        tasks = make_tasks(cohort, rule)
        for name in PREDICTORS:
            made = (controls.CONTROLS | controls.REFERENCES)[name](cohort)
            scores = evaluate(cohort, made, rule, tasks).scores.query("genes == 'all'")
            for pooling in ("pooled", "section"):
                row = (
                    summarise(scores, rule, pooling)
                    .drop(columns=["genes", "alpha", "values"])
                    .iloc[0]
                )
                genes = scores["n_genes"].iloc[0]
                what = {"genes": genes, "spots": len(cohort.obs), "protocol": rule.name}
                rows.append({"label": LABELS[name], "zeros": rule.zeros, **row, **what})
    table = pd.DataFrame(rows).assign(
        sections=cohort.obs["sample"].nunique(),
        patients=cohort.obs["group"].nunique(),
        **made_here("cpu"),
    )
    print(
        table.pivot_table(
            index="label", columns=["scheme", "zeros", "pooling"], values="mean", sort=False
        )
        .round(3)
        .to_string()
    )
    print(save_table(table, ROOT / "results", "controls_her2st"))


if __name__ == "__main__":
    main()
