"""Tables of scores: which predictors a profile scores, and one long tidy table of the results."""

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from . import stages
from .controls import CONTROLS, REFERENCES
from .files import write_whole
from .ladder import Rung
from .protocols import Protocol
from .provenance import provenance
from .statistics import paired, summarise
from .workspace import Run, root

STUDENT_SPACES = {"projector_only": ("projected", "concat")}  # its encoder space is the frozen encoder's
LABELS = {
    "frozen": "frozen encoder", "random": "random encoder", "slide_one_hot": "slide one-hot", "colour": "tile colour",
    "permuted_targets": "permuted targets", "library_size": "library size", "nearest_spots": "nearest spots",
    "slide_and_library_size": "slide + library size", "teacher": "teacher → genes",
}
CCRCC = {"kidney": "CCRCC"}  # the paper's cohort -> HEST-Benchmark's task on the same slides
Row = tuple[str, Rung | str]  # kind (oracle, encoder, student, control, reference) and what is scored


def predictors(work: Run, protocol: Protocol, methods: tuple[str, ...] | None = None) -> list[Row]:
    """All that a profile scores under a protocol.

    Args:
        methods: aligned students; by default the profile's `methods` where the scope is nested, else `all_methods`.
    """
    if methods is None:
        methods = work.profile.methods if protocol.scope == "nested" else work.profile.all_methods
    rows = [("oracle", "oracle")] if work.profile.source == "demo" else []
    rows += [("encoder", "frozen")]
    rows += students(methods)
    rows += [("control", name) for name in ("random", "permuted_targets", *CONTROLS)]
    return rows + [("reference", name) for name in REFERENCES]


def students(methods: tuple[str, ...]) -> list[Row]:
    """The aligned students of some methods, in each space that is theirs."""
    return [("student", Rung(m, space)) for m in methods for space in STUDENT_SPACES.get(m, ("projected", "encoder", "concat"))]


def name_of(predictor: Rung | str) -> tuple[str, str, str]:
    """(predictor, space, label) as they stand in tables: machine-readable name, space, readable name."""
    if isinstance(predictor, str):
        space = "encoder" if predictor in ("frozen", "random") else ""
        return predictor, space, LABELS.get(predictor, predictor.replace("_", " "))
    label = predictor.name or f"{predictor.method.replace('_', ' ')}, {predictor.space}"
    return predictor.method, predictor.space, label


def score_table(work: Run, protocol: Protocol, world: str = "on", rows=None, scope: str = "", split: str = "") -> pd.DataFrame:
    """Score every predictor of `rows` (default: `predictors`) and lay the results out, one row per
    scheme, gene set, alpha and pooling.

    Every row carries what makes the number mean something: profile, protocol, scope, space, split scheme,
    zero rule, n, unit of the interval, seed, digests of encoder, adapters and cohort, versions, commit and device, and
    the signed difference to a published value where there is one to compare with.
    """
    parts = []
    for kind, predictor in tqdm(rows or predictors(work, protocol), desc=f"score {protocol.name}", unit="predictor"):
        scores = stages.score(work, predictor, protocol, scope, split, world).scores
        name, space, label = name_of(predictor)
        for pooling in ("section", "pooled"):
            part = summarise(scores, protocol, pooling)
            spots = part["scheme"].map(_spots(scores))
            made = stages.adapters_of(work, predictor, protocol, scope, split, world) if kind == "student" else ""
            parts.append(part.assign(kind=kind, predictor=name, space=space, label=label, spots=spots, adapters=made))
    table = pd.concat(parts, ignore_index=True)
    facts = provenance()
    table = table.assign(
        headline=table["pooling"] == protocol.pooling, profile=work.profile.name, world=world, protocol=protocol.name,
        zeros=protocol.zeros, scope=np.where(table["kind"] == "student", scope or protocol.scope, "none"), split=split or "all of the protocol",
        seed=work.profile.seed, encoder=work.encoder_name(), cohort=work.cohort(world).digest[:12],
        peka_core=facts["peka_core"], commit=facts["commit"], device=facts["device"],
        versions="; ".join(f"{name} {version}" for name, version in facts["packages"].items()),
    )  # fmt: skip
    return beside_published(table, work.profile.source_options.get("cohort", ""), work.profile.encoder)


def _spots(scores: pd.DataFrame) -> pd.Series:
    """Test spots scored over all splits of each scheme, for the gene with the average number of them."""
    pooled = scores[(scores["pooling"] == "pooled") & (scores["genes"] == "all") & (scores["alpha"] == "chosen")]
    return pooled.groupby("scheme")["n_spots"].sum()


def headline(table: pd.DataFrame, genes: str = "all") -> pd.DataFrame:
    """The rows that a protocol stands for: its own pooling, the chosen alpha, one gene set."""
    return table[table["headline"] & (table["alpha"] == "chosen") & (table["genes"] == genes)]


def difference_table(
    work: Run, protocol: Protocol, rows: list[Row], against: Rung | str = "frozen", world: str = "on",
    scheme: str | None = None, split: str = "",
) -> pd.DataFrame:
    """Paired differences over patients of each row's predictor to `against`, per gene set.

    Columns: label (with the gene set), rung (without), predictor, space, genes, mean, low, high, p, n, values (Series over patients).
    """
    base = stages.score(work, against, protocol, split=split, world=world).scores
    parts = []
    for _, predictor in rows:
        scores = stages.score(work, predictor, protocol, split=split, world=world).scores
        name, space, label = name_of(predictor)
        for genes in base["genes"].unique():
            found = paired(scores, base, genes, scheme)
            parts.append({"label": f"{label} · {genes}", "rung": label, "predictor": name, "space": space, "genes": genes, **found})
    return pd.DataFrame(parts)


def published() -> pd.DataFrame:
    """Values of the paper's tables: table, cohort, encoder, method, pcc, source (`results/published.csv`)."""
    return pd.read_csv(root() / "results" / "published.csv")


def beside_published(table: pd.DataFrame, cohort: str, encoder: str) -> pd.DataFrame:
    """A score table with columns published, published_in and minus_published, empty where nothing can be compared.

    Compared are headline scores over all genes of one of the paper's cohorts: peka_paper and peka_official with the paper's value
    of the same encoder and method (its PEKA is bat in the projected space); hest_bench of kidney with HEST-Benchmark's CCRCC,
    the same slides.
    """
    known = {(row.cohort, row.encoder, row.method, row.table): (row.pcc, row.source) for row in published().itertuples()}

    def look_up(row) -> tuple[float, str]:
        method = {"frozen": "none", "bat": "PEKA"}.get(row.predictor, row.predictor)
        scored_alike = row.kind == "encoder" or (row.kind == "student" and row.space == "projected")
        places = []
        if row.headline and row.genes == "all" and row.alpha == "chosen" and scored_alike:
            places = [(CCRCC.get(cohort), "HEST-Benchmark")] if row.protocol == "hest_bench" else []
            places = [(cohort, "Table 2"), (cohort, "Table 1")] if row.protocol in ("peka_paper", "peka_official") else places
        return next((known[key] for where, table in places if (key := (where, encoder, method, table)) in known), (np.nan, ""))

    found = [look_up(row) for row in table.itertuples()]
    values = np.array([value for value, _ in found])
    return table.assign(published=values, published_in=[source for _, source in found], minus_published=table["mean"] - values)


def save_table(table: pd.DataFrame, folder: str | Path, name: str) -> Path:
    """Write a table as `<folder>/<name>.csv` with six decimals, whole or not at all."""
    return write_whole(Path(folder) / f"{name}.csv", lambda path: table.to_csv(path, index=False, float_format="%.6f"))
