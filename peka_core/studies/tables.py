"""Tables of scores: which predictors a profile scores, and one long tidy table of the results."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from .. import places
from ..controls import CONTROLS, REFERENCES
from ..errors import PekaError
from ..files import write_whole
from ..layout.gene_columns import joined_genes
from ..models import own_file, scfoundation
from ..protocols import Protocol, Scope
from ..recipe import name_of_recipe
from ..runner import stages
from ..runner.code import code_of
from ..runner.provenance import maker, provenance
from ..runner.run import PUBLISHED, Run
from ..runner.rungs import Rung
from ..runner.units import Unit, codes_here
from ..statistics import paired, summarise

STUDENT_SPACES = {
    "projector_only": ("projected", "concat")
}  # its encoder space is the frozen encoder's
LABELS = {
    "frozen": "frozen encoder",
    "random": "random encoder",
    "slide_one_hot": "slide one-hot",
    "colour": "tile colour",
    "permuted_targets": "permuted targets",
    "library_size": "library size",
    "nearest_spots": "nearest spots",
    "slide_and_library_size": "slide + library size",
    "teacher": "teacher → genes",
}
ALL_SPLITS = "all of the protocol"
PEKA = {
    "as_written": "bat",
    "as_run": "bone",
}  # recipe -> the method that the paper's tables call PEKA
TABLE_1_PEKA = {
    "liver": "uni"
}  # the encoder of Table 1's row PEKA; H-optimus-0 elsewhere, by its values in Table 2
THEIRS = (
    "peka_paper",
    "peka_official",
    "peka_official_authors_list",
)  # protocols whose scores stand beside the paper's
CCRCC = {"kidney": "CCRCC"}  # the paper's cohort -> HEST-Benchmark's task on the same slides
MADE = ("commit", "device", "versions", "code")  # columns that say what made a row
Row = tuple[
    str, Rung | str
]  # kind (oracle, encoder, student, control, reference) and what is scored


def predictors(work: Run, protocol: Protocol, methods: tuple[str, ...] | None = None) -> list[Row]:
    """All that a profile scores under a protocol.

    Args:
        methods: aligned students; by default the profile's `methods` where the scope is nested, else `all_methods`. The
            profile's `others` come along: frozen ones always, aligned ones where all spots were seen and methods are asked for.
    """
    if methods is None:
        methods = work.profile.methods if protocol.scope == "nested" else work.profile.all_methods
    rows = [("oracle", "oracle")] if work.profile.source == "demo" else []
    rows += [("encoder", "frozen")]
    rows += students(methods)
    rows += [("encoder", rung) for rung in work.profile.others if rung.method == "none"]
    rows += [
        ("student", rung)
        for rung in work.profile.others
        if rung.method != "none" and methods and protocol.scope == "all"
    ]
    rows += [("control", name) for name in ("random", "permuted_targets", *CONTROLS)]
    return rows + [("reference", name) for name in REFERENCES]


def students(methods: tuple[str, ...]) -> list[Row]:
    """The aligned students of some methods, in each space that is theirs."""
    return [
        ("student", Rung(m, space))
        for m in methods
        for space in STUDENT_SPACES.get(m, ("projected", "encoder", "concat"))
    ]


def name_of(predictor: Rung | str) -> tuple[str, str, str]:
    """(predictor, space, label) as they stand in tables: machine-readable name, space, readable name."""
    if isinstance(predictor, str):
        space = "encoder" if predictor in ("frozen", "random") else ""
        return predictor, space, LABELS.get(predictor, predictor.replace("_", " "))
    label = predictor.name or f"{predictor.method.replace('_', ' ')}, {predictor.space}"
    return predictor.method, predictor.space, label


def score_table(
    work: Run, protocol: Protocol, rows=None, scope: Scope | str = "", splits: Sequence[str] = ()
) -> pd.DataFrame:
    """Score every predictor of `rows` (default: `predictors`) and lay the results out, one row per
    scheme, gene set, alpha and pooling.

    Every row carries what makes the number mean something: profile, protocol, scope, space, split scheme,
    zero rule, n, unit of the interval, seed, digests of encoder, adapters and cohort, the commit, device, versions and code of
    the unit that made it, and the signed difference to a published value where there is one to compare with.
    """
    parts, recipe = [], name_of_recipe(work.profile.recipe)
    for kind, predictor in tqdm(
        rows or predictors(work, protocol), desc=f"score {protocol.name}", unit="predictor"
    ):
        scored = stages.score(work, predictor, protocol, scope, splits)
        name, space, label = name_of(predictor)
        for pooling in ("section", "pooled"):
            part = summarise(scored.scores, protocol, pooling)
            spots = part["scheme"].map(_spots(scored.scores))
            made = (
                stages.adapters_of(work, predictor, protocol, scope, splits)
                if kind == "student"
                else ""
            )
            who = work.encoder_name(
                "random" if name == "random" else getattr(predictor, "encoder", "")
            )
            plain = isinstance(predictor, str) or not (
                predictor.recipe or predictor.share != 1 or predictor.taught_by != "teacher"
            )
            own = {
                "adapters": made,
                "encoder": who,
                "method": _paper_method(name, recipe) if plain else "",
            } | scored.made
            parts.append(
                part.assign(kind=kind, predictor=name, space=space, label=label, spots=spots, **own)
            )
    table = pd.concat(parts, ignore_index=True)
    table = table.assign(
        headline=table["pooling"] == protocol.pooling, profile=work.profile.name, world=work.world.name, protocol=protocol.name,
        zeros=protocol.zeros, scope=np.where(table["kind"] == "student", scope or protocol.scope, "none"), split=",".join(splits) or ALL_SPLITS,
        seed=work.profile.seed, recipe=recipe, batch_size=work.profile.recipe.batch_size, cohort=work.cohort().digest[:12],
    )  # fmt: skip
    return beside_published(table.assign(paper_cohort=(name := paper_cohort(work))), name)


def _paper_method(predictor: str, recipe: str) -> str:
    """What the paper's tables call a predictor of a run with this recipe."""
    return (
        "none"
        if predictor == "frozen"
        else "PEKA"
        if predictor == PEKA.get(recipe, "bat")
        else predictor
    )


def paper_cohort(work: Run) -> str:
    """Which of the paper's cohorts a run scores: all HEST-1k slides of the index that the paper used, the pinned scFoundation as the
    authors use it, a recipe of `RECIPES` (batch size aside)."""
    profile, options = work.profile, work.profile.source_options
    changed = (
        profile.source != "hest"
        or options.get("index")
        or options.get("leave_out")
        or not name_of_recipe(profile.recipe)
    )
    return (
        ""
        if changed
        or profile.teacher != scfoundation.SOURCE
        or not scfoundation.as_authors(profile.teacher_options)
        else options.get("cohort", "breast")
    )


def with_authors_list(work: Run, protocol: Protocol) -> tuple[Protocol | None, str]:
    """A protocol with the target genes that the authors published for a run's HEST-1k cohort, under a name of its own; and a
    sentence about them. None where there is no such list; genes that no slide measured are left out of it."""
    if work.profile.source != "hest":
        return None, "no cohort of HEST-1k, so the authors published no target genes for it"
    from ..sources import hest_index

    name = work.profile.source_options.get("cohort", "breast")
    file, listed = hest_index.rules_of(name).authors_genes, hest_index.authors_list(name)
    measured = joined_genes([section.genes for section in work.cohort().sections], "outer")
    genes = tuple(gene for gene in listed if gene in measured)
    if not genes:
        why = (
            f"of its {len(listed)} genes no slide measured one"
            if listed
            else f"not in {hest_index.home()}"
        )
        return None, f"the authors' target genes, {file}: {why}; not scored"
    named = replace(protocol, name=f"{protocol.name}_authors_list", genes_from=genes)
    return (
        named,
        f"the authors' target genes, {file}: {len(genes)} of {len(listed)} were measured in some slide",
    )


def _spots(scores: pd.DataFrame) -> pd.Series:
    """Test spots scored over all splits of each scheme, for the gene with the average number of them."""
    pooled = scores[
        (scores["pooling"] == "pooled") & (scores["genes"] == "all") & (scores["alpha"] == "chosen")
    ]
    return pooled.groupby("scheme")["n_spots"].sum()


def headline(table: pd.DataFrame, genes: str = "all") -> pd.DataFrame:
    """The rows that a protocol stands for: its own pooling, the chosen alpha, one gene set."""
    return table[table["headline"] & (table["alpha"] == "chosen") & (table["genes"] == genes)]


def difference_table(
    work: Run,
    protocol: Protocol,
    rows: list[Row],
    against: Rung | str = "frozen",
    scheme: str | None = None,
    splits: Sequence[str] = (),
) -> pd.DataFrame:
    """Paired differences over patients of each row's predictor to `against`, per gene set.

    Columns: label (with the gene set), rung (without), predictor, space, genes, mean, low, high, p, n, values (Series over patients),
    and commit, device, versions and code of both units (`made_by`).
    """
    base = stages.score(work, against, protocol, splits=splits)
    parts = []
    for _, predictor in rows:
        scored = stages.score(work, predictor, protocol, splits=splits)
        name, space, label = name_of(predictor)
        for genes in base.scores["genes"].unique():
            found = paired(scored.scores, base.scores, genes, scheme) | made_by(scored, base)
            parts.append(
                {
                    "label": f"{label} · {genes}",
                    "rung": label,
                    "predictor": name,
                    "space": space,
                    "genes": genes,
                    **found,
                }
            )
    columns = [
        "label",
        "rung",
        "predictor",
        "space",
        "genes",
        "mean",
        "low",
        "high",
        "p",
        "n",
        "values",
        *MADE,
    ]
    return pd.DataFrame(parts, columns=columns)


def made_by(*what) -> dict[str, str]:
    """Commit, device, versions and code of all that a number was made from, each said once, joined by ` + `.

    Args:
        what: evaluations, tables that have these columns, or a run, for what this process computes itself.
    """
    found = {name: [] for name in MADE}
    for one in what:
        made = (
            made_here(one.device, one)
            if isinstance(one, Run)
            else one.made
            if hasattr(one, "made")
            else one
        )
        for name in MADE:  # tables of before these columns lack some
            values = made.get(name, []) if isinstance(made, pd.DataFrame) else [made[name]]
            found[name] += [
                part
                for value in pd.Series(values).fillna("").astype(str)
                for part in value.split(" + ")
            ]
    return {name: " + ".join(filter(None, dict.fromkeys(values))) for name, values in found.items()}


def made_here(device: str = "", work: Run | None = None) -> dict[str, str]:
    """What `made_by` says of numbers that this process computes itself, on a device (the best one where none is given)."""
    return maker(provenance(device) | {"unit": {"code": code_here(work)}})


def code_here(work: Run | None = None) -> str:
    """The code that is here, as units name it: of a student that is aligned and scored, of a run or of `mini` and the PCA teacher."""
    encoder = own_file.short(work.profile.encoder) if work else "mini"
    teacher = work.profile.teacher if work else "pca"
    return code_of(
        Unit("evaluation", "", encoder=encoder, method="bat", teacher=teacher, taught_by="teacher")
    )


def read_result(name: str) -> pd.DataFrame:
    """A committed table, `results/<name>.csv`; where it was made by other code than what is here, one line says so.

    Raises:
        PekaError: there is no such table.
    """
    path = places.results_folder() / f"{name}.csv"
    if not path.is_file():
        raise PekaError(
            f"{path}: missing; expected a table that comes with the repository. Take it from there again."
        )
    table = pd.read_csv(path)
    if "mean" in table and code_here() not in codes_in(table):  # other tables hold no score
        commits = ", ".join(table.get("commit", pd.Series(["unknown"])).dropna().unique())
        print(f"results/{name}.csv was made by other code than what is here (commit {commits})")
    return table


def published() -> pd.DataFrame:
    """Values of the paper's tables: table, cohort, encoder, method, pcc, source (`results/published.csv`)."""
    return pd.read_csv(places.results_folder() / "published.csv")


def beside_published(table: pd.DataFrame, cohort: str) -> pd.DataFrame:
    """A score table with columns published, published_in and minus_published, empty where nothing can be compared.

    Compared are headline scores over all genes and splits of one of the paper's cohorts: those under `THEIRS` with the paper's
    value of the same encoder and method (its PEKA: see `PEKA`, aligned on all spots, in the projected space); hest_bench of kidney with HEST-Benchmark's CCRCC, which has the same slides but genes and folds of its own.
    """
    known = {
        (row.cohort, row.encoder, row.method, row.table): (row.pcc, row.source)
        for row in published().itertuples()
    }

    def look_up(row) -> tuple[float, str]:
        scored_alike = row.kind == "encoder" or (
            row.kind == "student" and row.space == "projected" and row.scope == "all"
        )
        scored_alike = scored_alike and row.split == ALL_SPLITS
        places = []
        if row.headline and row.genes == "all" and row.alpha == "chosen" and scored_alike:
            places = [(CCRCC.get(cohort), "HEST-Benchmark")] if row.protocol == "hest_bench" else []
            places = (
                [(cohort, "Table 2"), (cohort, "Table 1")] if row.protocol in THEIRS else places
            )
        name = row.encoder.partition("@")[0]
        return next(
            (
                known[key]
                for where, table in places
                if (key := (where, name, row.method, table)) in known
            ),
            (np.nan, ""),
        )

    found = [look_up(row) for row in table.itertuples()]
    values = np.array([value for value, _ in found])
    return table.assign(
        published=values,
        published_in=[source for _, source in found],
        minus_published=table["mean"] - values,
    )


def beside_paper() -> pd.DataFrame:
    """Every cell of the paper's Tables 1 and 2 beside what finished runs under runs/ have of it.

    Columns: table, cohort, encoder, method, paper, ours, control (slide one-hot of the same run and protocol), run, note: why ours
    differs, or why there is none.
    """
    from ..models.encoder_files import rows

    theirs = (
        published().query("table.isin(['Table 1', 'Table 2'])").rename(columns={"pcc": "paper"})
    )
    files = sorted((places.root() / "runs").glob("*/results/scores.csv"))
    found = [
        pd.read_csv(path).assign(run=path.parents[1].name)
        for path in files
        if "paper_cohort" in pd.read_csv(path, nrows=0)
    ]
    ours = (
        pd.concat([table[table["paper_cohort"].notna()] for table in found])
        if found
        else pd.DataFrame()
    )
    made = []
    for cell in theirs.itertuples():
        encoder = (
            cell.encoder if cell.encoder != "PEKA" else TABLE_1_PEKA.get(cell.cohort, "h-optimus-0")
        )
        gate = encoder in rows() and rows()[encoder].gated
        row = {
            "ours": np.nan,
            "control": np.nan,
            "run": "",
            "note": "gated, not run" if gate else "slides gated, not run",
        }
        if len(ours):
            here = headline(ours).query("paper_cohort == @cell.cohort and protocol == 'peka_paper'")
            same = here[
                (here["encoder"].str.split("@").str[0] == encoder)
                & (here["method"] == cell.method)
                & here["published"].notna()
            ]
            if len(same):
                bar = here[
                    (here["run"] == same["run"].iloc[0]) & (here["predictor"] == "slide_one_hot")
                ]["mean"]
                row = {
                    "ours": same["mean"].iloc[0],
                    "control": bar.mean(),
                    "run": same["run"].iloc[0],
                    "note": _why_they_differ(same),
                }
        made.append(row)
    return pd.concat([theirs.reset_index(drop=True), pd.DataFrame(made)], axis=1).drop(
        columns="source"
    )


def _why_they_differ(same: pd.DataFrame) -> str:
    """Reasons why a finished run's score is not the paper's, from its rows, one a run that has this cell."""
    first = same.iloc[0]
    aligned = first["kind"] == "student"
    reasons = ["zeros kept, as the text has it", "one seed"]
    reasons += (
        ["their float16 steps without a loss scaler are bfloat16 or float32 here"]
        if aligned and first["recipe"] == "as_run"
        else []
    )
    reasons += (
        [
            f"recipe {first['recipe']}"
            + (f", batch {first['batch_size']}" if first["batch_size"] != 32 else "")
        ]
        if aligned
        else []
    )
    reasons += [f"the first of runs {', '.join(same['run'])}"] if len(same) > 1 else []
    return "; ".join(reasons)


def paper_form(beside: pd.DataFrame, table: str) -> pd.DataFrame:
    """One of the paper's tables as it prints it, each cell `paper | ours (slide one-hot)`, or `paper | why not`."""
    part = beside[beside["table"] == table]
    say = lambda c: (
        f"{c.paper:.3f} | " + (c.note if np.isnan(c.ours) else f"{c.ours:.3f} ({c.control:.3f})")
    )
    part = part.assign(cell=[say(cell) for cell in part.itertuples()])
    return part.pivot_table(
        index=["encoder", "method"], columns="cohort", values="cell", aggfunc="first", sort=False
    )


def read_table(work: Run, name: str) -> pd.DataFrame:
    """A table that an earlier chapter wrote, `runs/<run>/results/<name>.csv`; of the published run the one in `results/`.

    Raises:
        PekaError: it is not there, or other code made it.
    """
    path = work.folder / "results" / f"{name}.csv"
    if not path.exists() and (work.folder / PUBLISHED).exists():
        path = places.results_folder() / f"{work.profile.name}_{name}.csv"
    if not path.exists():
        raise PekaError(
            f"{path}: missing; expected the table of an earlier chapter. Run notebooks 01 to 04 of this run first."
        )
    table = pd.read_csv(path)
    if not codes_in(table) or codes_in(table) - codes_here(work.folder):
        commits = ", ".join(table.get("commit", pd.Series(["unknown"])).dropna().unique())
        raise PekaError(
            f"{path}: made by other code (commit {commits}) than what is here. Run notebook 04 of this run again."
        )
    return table


def codes_in(table: pd.DataFrame) -> set[str]:
    """The code digests that a table names; empty for a table of before they were kept."""
    return {
        part
        for text in table.get("code", pd.Series(dtype=str)).dropna().astype(str)
        for part in text.split(" + ")
    }


def save_table(table: pd.DataFrame, folder: str | Path, name: str, *made) -> Path:
    """Write a table as `<folder>/<name>.csv` with six decimals, whole or not at all.

    Args:
        made: from what its numbers were made (`made_by`), for the columns commit, device, versions and code; none where the table has
            these columns already, or holds no number of ours.
    """
    table = table.assign(**made_by(*made)) if made else table
    return write_whole(
        Path(folder) / f"{name}.csv",
        lambda path: table.to_csv(path, index=False, float_format="%.6f"),
    )
