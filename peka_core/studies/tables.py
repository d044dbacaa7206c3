"""Tables of scores: what a profile scores, one long table of the results, and what made them."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..common import folders
from ..common.errors import PekaError
from ..common.files import write_whole
from ..controls import CONTROLS, REFERENCES
from ..evaluation import Evaluation
from ..models import own_file
from ..protocols import Protocol, Scope
from ..recipe import name_of_recipe
from ..runner import stages
from ..runner.code import code_of
from ..runner.provenance import maker, provenance
from ..runner.run import PUBLISHED, Run
from ..runner.rungs import Rung
from ..runner.units import Unit, codes_here
from ..statistics import paired, summarise
from . import paper_tables

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
SPACES = ("projected", "encoder", "concat")
OWN_SPACES = {"projector_only": ("projected", "concat")}  # its encoder is the frozen one
MADE = ("commit", "device", "versions", "code")  # columns that tell what made a row
Entry = tuple[str, Rung | str]  # kind (oracle, encoder, student, control, reference), predictor


def predictors(
    work: Run, protocol: Protocol, methods: tuple[str, ...] | None = None
) -> list[Entry]:
    """Every predictor that a profile scores under a protocol.

    `methods` are those of the aligned students. The default is the profile's `methods` if the scope
    is nested, else its `all_methods`. The profile's `others` are scored too: frozen encoders
    always, students if the scope is `all` and there are methods.
    """
    profile = work.profile
    if methods is None:
        methods = profile.methods if protocol.scope == "nested" else profile.all_methods
    entries: list[Entry] = [("oracle", "oracle")] if profile.source == "demo" else []
    entries += [("encoder", "frozen"), *students(methods)]
    entries += [("encoder", rung) for rung in profile.others if rung.method == "none"]
    if methods and protocol.scope == "all":
        entries += [("student", rung) for rung in profile.others if rung.method != "none"]
    entries += [("control", name) for name in ("random", "permuted_targets", *CONTROLS)]
    return entries + [("reference", name) for name in REFERENCES]


def students(methods: Iterable[str]) -> list[Entry]:
    """The aligned students of some methods, each in its spaces."""
    return [
        ("student", Rung(method, space))
        for method in methods
        for space in OWN_SPACES.get(method, SPACES)
    ]


def name_of(predictor: Rung | str) -> tuple[str, str, str]:
    """A predictor's name, its space and its label, as tables write them."""
    if isinstance(predictor, str):
        space = "encoder" if predictor in ("frozen", "random") else ""
        return predictor, space, LABELS.get(predictor, predictor.replace("_", " "))
    label = predictor.name or f"{predictor.method.replace('_', ' ')}, {predictor.space}"
    return predictor.method, predictor.space, label


def score_table(
    work: Run,
    protocol: Protocol,
    entries: list[Entry] | None = None,
    scope: Scope | str = "",
    splits: Sequence[str] = (),
) -> pd.DataFrame:
    """Score every predictor of `entries`; one row for each scheme, gene set, alpha and pooling.

    Every row has all that its number depends on: profile, protocol, scope, space, scheme, zero
    rule, n and its unit, seed, digests of encoder, adapters and cohort, and commit, device,
    versions and code of the unit that made it. A published value stands beside it.

    Args:
        work: a run.
        protocol: the rules of scoring.
        entries: what is scored, by default `predictors(work, protocol)`.
        scope: of the alignment, by default the protocol's.
        splits: names of the splits that are scored, by default all.
    """
    parts, recipe = [], name_of_recipe(work.profile.recipe)
    entries = predictors(work, protocol) if entries is None else entries
    for kind, predictor in tqdm(entries, desc=f"score {protocol.name}", unit="predictor"):
        scored = stages.score(work, predictor, protocol, scope, splits)
        name, space, label = name_of(predictor)
        encoder = "random" if name == "random" else getattr(predictor, "encoder", "")
        fields: dict[str, Any] = {
            "kind": kind, "predictor": name, "space": space, "label": label, "spots": 0,
            "adapters": "", "encoder": work.encoder_name(encoder),
            "method": paper_tables.method_of(predictor, recipe),
        }  # fmt: skip
        if kind == "student":
            fields["adapters"] = stages.adapters_of(work, predictor, protocol, scope, splits)
        for pooling in ("section", "pooled"):
            part = summarise(scored.scores, protocol, pooling)
            fields["spots"] = part["scheme"].map(_spots(scored.scores))
            parts.append(part.assign(**fields, **scored.made))
    table = pd.concat(parts, ignore_index=True)
    aligned, cohort = table["kind"] == "student", paper_tables.paper_cohort(work)
    table = table.assign(
        headline=table["pooling"] == protocol.pooling, profile=work.profile.name,
        world=work.world.name,
        protocol=protocol.name, zeros=protocol.zeros,
        scope=np.where(aligned, scope or protocol.scope, "none"),
        split=",".join(splits) or paper_tables.ALL_SPLITS, seed=work.profile.seed, recipe=recipe,
        batch_size=work.profile.recipe.batch_size, cohort=work.cohort().digest[:12],
        paper_cohort=cohort,
    )  # fmt: skip
    return paper_tables.beside_published(table, cohort)


def _spots(scores: pd.DataFrame) -> pd.Series:
    """Test spots scored over all splits of each scheme, for the gene with an average number."""
    rows = scores.query("pooling == 'pooled' and genes == 'all' and alpha == 'chosen'")
    return rows.groupby("scheme")["n_spots"].sum()


def headline(table: pd.DataFrame, genes: str = "all") -> pd.DataFrame:
    """The rows that a protocol stands for: its own pooling, the chosen alpha, one gene set."""
    return table[table["headline"] & (table["alpha"] == "chosen") & (table["genes"] == genes)]


def difference_table(
    work: Run,
    protocol: Protocol,
    entries: Iterable[Entry],
    scheme: str | None = None,
    splits: Sequence[str] = (),
) -> pd.DataFrame:
    """Paired differences over patients, each predictor minus the frozen encoder, by gene set.

    Columns: label (with the gene set), rung (without it), predictor, space, genes, mean, low, high,
    p, n, values (a Series over patients), and commit, device, versions and code of both units.
    """
    frozen = stages.score(work, "frozen", protocol, splits=splits)
    rows = []
    for _, predictor in entries:
        scored = stages.score(work, predictor, protocol, splits=splits)
        name, space, label = name_of(predictor)
        for genes in frozen.scores["genes"].unique():
            row = {"label": f"{label} · {genes}", "rung": label, "predictor": name, "space": space}
            difference = paired(scored.scores, frozen.scores, genes, scheme)
            rows.append(row | {"genes": genes} | difference | made_by(scored, frozen))
    columns = ["label", "rung", "predictor", "space", "genes", "mean", "low", "high", "p", "n",
               "values", *MADE]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def made_by(*sources) -> dict[str, str]:
    """Commit, device, versions and code behind a number, each joined by ` + `.

    `sources` are evaluations, tables or dicts that have these columns, or a run, for numbers that
    this process computes itself.
    """
    parts: dict[str, list[str]] = {name: [] for name in MADE}
    for source in sources:
        made = made_here(source.device, source) if isinstance(source, Run) else source
        made = made.made if isinstance(made, Evaluation) else made
        for name in MADE:
            cells: Any = made.get(name, [])  # a table from before these columns lacks some
            for cell in [cells] if isinstance(cells, str) else cells:
                parts[name] += _parts(cell)
    return {name: " + ".join(dict.fromkeys(values)) for name, values in parts.items()}


def _parts(value) -> list[str]:
    """The entries of one cell that `made_by` wrote; an empty cell has none."""
    return [] if pd.isna(value) else list(filter(None, str(value).split(" + ")))


def made_here(device: str = "", work: Run | None = None) -> dict[str, str]:
    """What `made_by` gives for numbers that this process computes itself, on a device."""
    return maker(provenance(device) | {"unit": {"code": code_here(work)}})


def code_here(work: Run | None = None) -> str:
    """The digest of the code that aligns and scores a student, without a run `mini`'s with PCA."""
    names = {"encoder": "mini", "teacher": "pca", "method": "bat", "taught_by": "teacher"}
    if work:
        names["encoder"] = own_file.short(work.profile.encoder)
        names["teacher"] = work.profile.teacher
    return code_of(Unit("evaluation", "", **names))


def levels(scores: pd.DataFrame, scheme: str) -> pd.Series:
    """Mean PCC over patients, each the mean over its sections, by gene set, in one scheme."""
    of_scheme = scores[scores["scheme"] == scheme]
    rows = of_scheme.query("pooling == 'section' and alpha == 'chosen'")
    by_patient = rows.groupby(["genes", "patient"], sort=False)["pcc"].mean()
    return by_patient.groupby("genes", sort=False).mean()


def named(work: Run, table: pd.DataFrame, **names: str) -> pd.DataFrame:
    """The table with columns for what its numbers depend on: profile, cohort, encoder, seed, names.

    Args:
        names: further columns, such as protocol, scope and split.
    """
    made = {"profile": work.profile.name, "cohort": work.cohort().digest[:12]}
    made |= {"encoder": work.encoder_name(), "seed": work.profile.seed}
    return table.assign(**made, **names)


def save_table(table: pd.DataFrame, folder: str | Path, name: str, *sources) -> Path:
    """Write a table as `<folder>/<name>.csv` with six decimals.

    The columns of `MADE` are taken from `sources` (see `made_by`). Give no source if the table has
    these columns, or if it has no number of ours.
    """
    table = table.assign(**made_by(*sources)) if sources else table
    path = Path(folder) / f"{name}.csv"
    return write_whole(path, lambda part: table.to_csv(part, index=False, float_format="%.6f"))


def read_result(name: str) -> pd.DataFrame:
    """A committed table, `results/<name>.csv`; a line is printed if other code made its scores.

    Raises:
        PekaError: there is no such table.
    """
    path = folders.results_folder() / f"{name}.csv"
    if not path.is_file():
        raise PekaError(f"{path} is missing; it comes with the repository. Restore it from there.")
    table = pd.read_csv(path)
    if "mean" in table and code_here() not in codes_in(table):  # other tables hold no score
        print(f"For information: earlier code, commit {_commits(table)}, made results/{name}.csv.")
    return table


def read_table(work: Run, name: str) -> pd.DataFrame:
    """A table that an earlier chapter wrote, `runs/<run>/results/<name>.csv`.

    Of the published run it is the one in `results/`.

    Raises:
        PekaError: the table is missing, or other code made it.
    """
    path = work.folder / "results" / f"{name}.csv"
    if not path.exists() and (work.folder / PUBLISHED).exists():
        path = folders.results_folder() / f"{work.profile.name}_{name}.csv"
    if not path.exists():
        raise PekaError(
            f"{path} is missing; an earlier chapter writes this table. Run the chapters before "
            "this one first, in their order."
        )
    table = pd.read_csv(path)
    if not codes_in(table) or codes_in(table) - codes_here(work.folder):
        raise PekaError(
            f"{path} was made by other code than this (commit {_commits(table)}). Run notebooks "
            "04 and 04b of this run again."
        )
    return table


def save_world(table: pd.DataFrame, work: Run, name: str) -> Path:
    """Put the rows of another world into a table that an earlier chapter wrote (`read_table`).

    Rows of the same world are replaced, and all others stay as they are in the file.
    """
    read_table(work, name)  # refuses what other code made
    path = work.folder / "results" / f"{name}.csv"
    path = path if path.exists() else folders.results_folder() / f"{work.profile.name}_{name}.csv"
    text: dict[str, Any] = {"dtype": str, "keep_default_na": False}
    rows = pd.read_csv(io.StringIO(table.to_csv(index=False, float_format="%.6f")), **text)
    old = pd.read_csv(path, **text)
    old = old[~old["world"].isin(rows["world"])]
    return save_table(pd.concat([old, rows])[list(old)], work.folder / "results", name)


def codes_in(table: pd.DataFrame) -> set[str]:
    """The digests of code in a table; an old table without this column has none."""
    return {part for value in table.get("code", []) for part in _parts(value)}


def _commits(table: pd.DataFrame) -> str:
    return ", ".join(table.get("commit", pd.Series(["unknown"])).dropna().unique())
