"""Values that the paper and HEST-Benchmark published, and our scores beside them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ..common import folders
from ..layout.gene_columns import joined_genes
from ..models import scfoundation
from ..protocols import PROTOCOLS, Protocol
from ..recipe import name_of_recipe
from ..runner.run import Run
from ..runner.rungs import Rung

ALL_SPLITS = "all of the protocol"
PEKA = {"as_written": "bat", "as_run": "bone", "beyond": ""}  # recipe -> the paper's PEKA, if any
TABLE_1_PEKA = {"liver": "uni"}  # the encoder of Table 1's PEKA; H-optimus-0 for other cohorts
TABLES = {  # protocol -> the published tables that its scores stand beside, the first one first
    "peka_paper": ("Table 2", "Table 1"),
    "peka_official": ("Table 2", "Table 1"),
    "peka_official_authors_list": ("Table 2", "Table 1"),
    "hest_bench": ("HEST-Benchmark",),
}
SAME_SLIDES = {"kidney": "CCRCC"}  # the paper's cohort -> HEST-Benchmark's task on its slides


def published() -> pd.DataFrame:
    """Published values: table, cohort, encoder, method, pcc, source (`results/published.csv`)."""
    return pd.read_csv(folders.results_folder() / "published.csv")


def method_of(predictor: Rung | str, recipe: str) -> str:
    """What the paper's tables call a predictor of a run with this recipe; "" for other rungs."""
    if isinstance(predictor, str):
        name = predictor
    elif predictor.recipe or predictor.share != 1 or predictor.taught_by != "teacher":
        return ""
    else:
        name = predictor.method
    return {"frozen": "none", PEKA.get(recipe, "bat"): "PEKA"}.get(name, name)


def paper_cohort(work: Run) -> str:
    """Which of the paper's cohorts a run scores, or "".

    Such a run has all HEST-1k slides of the index that the paper used, the pinned scFoundation as
    the authors use it, and one of the paper's two recipes (with any batch size).
    """
    profile, options = work.profile, work.profile.source_options
    as_the_paper = (
        profile.source == "hest"
        and not options.get("index")
        and not options.get("leave_out")
        and PEKA.get(name_of_recipe(profile.recipe))
        and profile.teacher == scfoundation.SOURCE
        and scfoundation.as_authors(profile.teacher_options)
    )
    return options.get("cohort", "breast") if as_the_paper else ""


def authors_rules(work: Run) -> Protocol:
    """`peka_official`; a cohort of few spots gets a lower `min_spots`, and the protocol a name."""
    official, quarter = PROTOCOLS["peka_official"], len(work.cohort()) // 4
    if quarter >= official.min_spots // 2:
        return official
    return replace(official, name=f"peka_official_min_{quarter}", min_spots=quarter)


def with_authors_list(work: Run, protocol: Protocol) -> tuple[Protocol | None, str]:
    """A protocol with the target genes that the authors published for a run's HEST-1k cohort.

    Genes that no slide measured are left out of the list.

    Returns:
        The protocol, under a name of its own (None where there is no such list), and a sentence.
    """
    if work.profile.source != "hest":
        return None, "This is no cohort of HEST-1k, so the authors published no target genes."
    from ..sources import hest_index

    name = work.profile.source_options.get("cohort", "breast")
    file, listed = hest_index.rules_of(name).authors_genes, hest_index.authors_list(name)
    measured = joined_genes([section.genes for section in work.cohort().sections], "outer")
    genes = tuple(gene for gene in listed if gene in measured)
    if not listed:
        return None, f"The authors' target genes are not scored: {hest_index.home()} has no {file}."
    if not genes:
        return None, f"The authors' target genes are not scored: no slide measured one of {file}."
    named = replace(protocol, name=f"{protocol.name}_authors_list", genes_from=genes)
    return named, f"Some slide measured {len(genes)} of the {len(listed)} target genes in {file}."


def beside_published(table: pd.DataFrame, cohort: str) -> pd.DataFrame:
    """A score table with the columns published, published_in and minus_published.

    A headline score over all genes and splits of one of the paper's `cohort`s is compared with the
    published value of the same encoder and method; for all other rows the columns are empty. PEKA
    is aligned on all spots and scored in the projected space. HEST-Benchmark's CCRCC has the slides
    of the paper's kidney cohort, with genes and folds of its own.
    """
    values = {
        (row.table, row.cohort, row.encoder, row.method): (row.pcc, row.source)
        for row in published().itertuples()
    }

    def look_up(row: Any) -> tuple[float, str]:
        aligned_alike = row.space == "projected" and row.scope == "all"
        alike = row.kind == "encoder" or (row.kind == "student" and aligned_alike)
        whole = row.genes == "all" and row.split == ALL_SPLITS
        if not (row.headline and row.alpha == "chosen" and whole and alike):
            return np.nan, ""
        encoder = row.encoder.partition("@")[0]
        where = SAME_SLIDES.get(cohort) if row.protocol == "hest_bench" else cohort
        for name in TABLES.get(row.protocol, ()):
            if (name, where, encoder, row.method) in values:
                return values[name, where, encoder, row.method]
        return np.nan, ""

    pairs = [look_up(row) for row in table.itertuples()]
    pcc = np.array([value for value, _ in pairs])
    sources = [source for _, source in pairs]
    return table.assign(published=pcc, published_in=sources, minus_published=table["mean"] - pcc)


def beside_paper() -> pd.DataFrame:
    """Every cell of the paper's Tables 1 and 2 beside what finished runs under runs/ have of it.

    Columns: table, cohort, encoder, method, paper, ours, control (slide one-hot of the same run and
    protocol), run, and note: why ours differs, or why there is none.
    """
    theirs = published().query("table.isin(['Table 1', 'Table 2'])").reset_index(drop=True)
    theirs = theirs.rename(columns={"pcc": "paper"}).drop(columns="source")
    ours = _finished_scores()
    cells = pd.DataFrame([_our_cell(cell, ours) for cell in theirs.itertuples()])
    return pd.concat([theirs, cells], axis=1)


def _finished_scores() -> pd.DataFrame:
    """Headline scores under `peka_paper` of the runs that score one of the paper's cohorts."""
    tables = []
    for path in sorted((folders.root() / "runs").glob("*/results/scores.csv")):
        table = pd.read_csv(path)
        if "paper_cohort" in table:
            tables.append(table.assign(run=path.parents[1].name))
    if not tables:
        return pd.DataFrame()
    table = pd.concat([table[table["paper_cohort"].notna()] for table in tables])
    main = table["headline"].astype(bool) & (table["alpha"] == "chosen") & (table["genes"] == "all")
    return table[main & (table["protocol"] == "peka_paper")]


def _our_cell(cell: Any, ours: pd.DataFrame) -> dict[str, Any]:
    """ours, control, run and note for one cell of the paper's tables."""
    from ..models.encoder_files import manifest_entries

    encoder = cell.encoder
    if encoder == "PEKA":
        encoder = TABLE_1_PEKA.get(cell.cohort, "h-optimus-0")
    if len(ours):
        here = ours[ours["paper_cohort"] == cell.cohort]
        same_encoder = here["encoder"].str.split("@").str[0] == encoder
        same_method = here["method"] == cell.method
        same = here[same_encoder & same_method & here["published"].notna()]
        if len(same):
            first = same.iloc[0]
            one_hot = (here["run"] == first["run"]) & (here["predictor"] == "slide_one_hot")
            return {
                "ours": first["mean"], "control": here.loc[one_hot, "mean"].mean(),
                "run": first["run"], "note": _why_they_differ(same),
            }  # fmt: skip
    gated = encoder in manifest_entries() and manifest_entries()[encoder].gated
    note = "gated, not run" if gated else "slides gated, not run"
    return {"ours": np.nan, "control": np.nan, "run": "", "note": note}


def _why_they_differ(same: pd.DataFrame) -> str:
    """Why our score is not the paper's, from the rows of all runs that have this cell."""
    first = same.iloc[0]
    reasons = ["zeros kept, as the text has it", "one seed"]
    if first["kind"] == "student":
        if first["recipe"] == "as_run":
            reasons.append("bfloat16 or float32 instead of float16 without a loss scaler")
        batch = "" if first["batch_size"] == 32 else f", batch {first['batch_size']}"
        reasons.append(f"recipe {first['recipe']}{batch}")
    if len(same) > 1:
        reasons.append(f"the first of runs {', '.join(same['run'])}")
    return "; ".join(reasons)


def paper_form(beside: pd.DataFrame, table: str) -> pd.DataFrame:
    """One of the paper's tables in its own form.

    A cell is `paper | ours (slide one-hot)`, or `paper | why there is none`.
    """
    part = beside[beside["table"] == table]
    cells = [
        f"{cell.paper:.3f} | "
        + (cell.note if np.isnan(cell.ours) else f"{cell.ours:.3f} ({cell.control:.3f})")
        for cell in part.itertuples()
    ]
    wide = {"index": ["encoder", "method"], "columns": "cohort", "values": "cell"}
    return part.assign(cell=cells).pivot_table(**wide, aggfunc="first", sort=False)
