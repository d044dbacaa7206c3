"""The index of HEST-1k: which slides make a cohort of the paper, how many they are, and whose they are.

The paper used index v1_1_0. It starts with a byte order mark, leaves `patient` blank (or three spaces) for most slides,
and of its pixel sizes only `pixel_size_um_estimated` can be trusted. Patients are curated in hest_groups.csv.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..downloads.fetch import fetch
from ..downloads.manifest import NAME as MANIFEST
from ..downloads.manifest import source_files
from ..downloads.record import verify
from ..errors import PekaError
from ..files import one_name, sha256
from ..layout.tables import read_csv
from .hest_files import home

NAME = "hest/HEST_v1_1_0.csv"  # in the manifest, and below PEKA_MIRROR
GROUPS = Path(__file__).with_name("hest_groups.csv")
WHOLE_ARRAY = 4992  # positions of a 6.5 mm Visium array


@dataclass(frozen=True)
class Filter:
    """A cohort of the paper: rows of the index by organ and cancer code (species human, technology Visium).

    Attributes:
        organ: column organ.
        slides: how many rows index v1_1_0 has.
        spots: their sum of column spots_under_tissue.
        n_paper: spots that the paper reports.
        authors_genes: file of the authors' target genes, used where a mirror has it.
        oncotree: column oncotree_code, any where empty.
    """

    organ: str
    slides: int
    spots: int
    n_paper: int
    authors_genes: str
    oncotree: str = ""


COHORTS = {
    "breast": Filter(
        "Breast", 8, 30_543, 30_414, "top_50_genes_Visium_Homo_sapien_Breast_Cancer.json"
    ),
    "kidney": Filter(
        "Kidney", 24, 74_220, 73_813, "top_50_genes_visium_homo_sapien_Kidney_cancer.json", "SCCRCC"
    ),
    "liver": Filter(
        "Liver", 14, 64_152, 37_168, "top_50_genes_visium_homo_sapien_Liver_cancer.json"
    ),
    "lung": Filter("Lung", 37, 69_643, 64_728, "top_50_genes_visium_homo_sapien_Lung_cancer.json"),
}


def slides(
    cohort: str, index: str = "", index_sha256: str = "", counts: tuple[int, int] | None = None
) -> pd.DataFrame:
    """Rows of a cohort in the index, in its order, index `sample_id`; text as it stands there, stripped.

    `spots` (int) is the column spots_under_tissue, `um_per_px` (float) the column pixel_size_um_estimated.

    Args:
        cohort: a name in `COHORTS`.
        index: another index file of the same form, absolute or below `PEKA_MIRROR`/hest; v1_1_0 where empty.
        index_sha256: its digest; anything is taken where empty.
        counts: (slides, spots) that it must have; those of `COHORTS` where None.

    Raises:
        PekaError: unknown cohort, no index, another digest, or other counts.
    """
    return read_slides(index_path(index, index_sha256), cohort, counts)


def read_slides(path: Path, cohort: str, counts: tuple[int, int] | None = None) -> pd.DataFrame:
    """`slides` of an index file that is at hand."""
    rules = rules_of(cohort)
    table = read_csv(path, "pixel_size_um_estimated").set_index("id").rename_axis("sample_id")
    found = (
        (table.species == "Homo sapiens")
        & (table.st_technology == "Visium")
        & (table.organ == rules.organ)
    )
    table = table[found & (table.oncotree_code == rules.oncotree if rules.oncotree else True)]
    table = table.assign(
        spots=pd.to_numeric(table.spots_under_tissue).astype(int),
        um_per_px=pd.to_numeric(table.pixel_size_um_estimated),
    )
    for sample in table.index:
        one_name(sample, f"{path}: id")
    expected = (rules.slides, rules.spots) if counts is None else tuple(counts)
    if (len(table), int(table.spots.sum())) != expected:
        raise PekaError(
            f"{path}: {cohort} has {len(table)} slides and {table.spots.sum()} spots; expected {expected[0]} and {expected[1]} "
            "of this index. Take index v1_1_0, or give the counts of yours."
        )
    return table


def rules_of(cohort: str) -> Filter:
    """The filter of a cohort by name; PekaError where there is none."""
    if cohort not in COHORTS:
        raise PekaError(f"hest: no cohort {cohort!r}; expected one of {', '.join(COHORTS)}.")
    return COHORTS[cohort]


def authors_list(cohort: str) -> list[str]:
    """The target genes that the authors published for a cohort; [] where neither mirror nor cache has their file.

    Raises:
        PekaError: unknown cohort, or a file that holds no list of genes.
    """
    path = home() / rules_of(cohort).authors_genes
    return gene_list(path) if path.is_file() else []


def gene_list(path: Path) -> list[str]:
    """The list `genes` of a JSON file in the authors' form, without repeats; PekaError where there is none."""
    try:
        genes = json.loads(path.read_text(encoding="utf-8-sig"))["genes"]
    except (ValueError, KeyError, TypeError) as error:
        raise PekaError(
            f'{path}: expected {{"genes": ["ABC", ...]}}, found something else ({error!r}). Take the file again.'
        ) from error
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
        raise PekaError(
            f'{path}: expected {{"genes": ["ABC", ...]}}, found genes that are no list of names. Take the file again.'
        )
    return list(dict.fromkeys(genes))


def index_path(index: str = "", index_sha256: str = "", dry_run: bool = False) -> Path:
    """Where the index lies, verified; v1_1_0 is found in PEKA_MIRROR or downloaded.

    With `dry_run` the download is shown only, and the path may not be there yet.
    """
    if not index:
        (file,) = source_files("hest", [NAME])
        if dry_run and file.is_here:
            verify(file.place, file.facts, MANIFEST, "Replace it.")
        return fetch([file], dry_run)[0]
    path = index_place(index)
    if not path.is_file():
        raise PekaError(
            f"{path}: missing; expected an index of HEST-1k (CSV). Correct the path or PEKA_MIRROR."
        )
    if index_sha256 and (found := sha256(path)) != index_sha256:
        raise PekaError(
            f"{path}: sha256 is {found}, expected {index_sha256}. Take the file that the digest is of."
        )
    return path


def index_place(index: str = "") -> Path:
    """Where the index lies, or would lie: in PEKA_MIRROR or the cache; an absolute `index` stays."""
    return home() / (index or Path(NAME).name)


def counts_table() -> pd.DataFrame:
    """What index v1_1_0 has, beside the paper: one row a cohort.

    `whole arrays` are slides that list all 4,992 positions of a Visium array, so that spots on glass are counted too: 12 of
    liver's 14, whose count is furthest from the paper's.

    Raises:
        PekaError: as `slides`, so that every count shown was found in the index.
    """
    rows = []
    for name, rules in COHORTS.items():
        table = slides(name)
        rows.append({
            "cohort": name, "slides": len(table), "spots in index": int(table.spots.sum()), "n in paper": rules.n_paper,
            "difference": int(table.spots.sum()) - rules.n_paper, "whole arrays": int((table.spots == WHOLE_ARRAY).sum()),
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("cohort")


def groups(table: pd.DataFrame, unknown: str = "slide") -> pd.DataFrame:
    """Whose slides these are: patient, block, duplicate_of, basis, evidence, one row a slide of `table`.

    `basis`: `index` (its column patient), `derived` (from what else the index says), `reported` (by others, not checked in
    the paper), `precaution` (may be several patients, kept together), `unknown` (nothing known: the slide is its own group).

    Args:
        table: rows of `slides`.
        unknown: `slide` as above; `study` makes one group of every study that has an unknown slide.

    Raises:
        PekaError: another word for `unknown`.
    """
    if unknown not in ("slide", "study"):
        raise PekaError(f"hest: unknown is 'slide' or 'study', not {unknown!r}.")
    curated = read_csv(GROUPS, "sample_id").set_index("sample_id")
    rest = table[~table.index.isin(curated.index)]
    found = pd.concat([curated, _from_index(rest)]).loc[table.index]
    found.loc[~found.duplicate_of.isin(table.index), "duplicate_of"] = ""
    if unknown == "study":
        study, own = table.dataset_title, found.basis == "unknown"
        held = study.isin(set(study[own]))
        found.loc[held, "patient"] = study[held]
        found.loc[held, "evidence"] = (
            "kept together as one study, which has slides of unknown patients; "
            + found.evidence[held]
        )
    return found


def _from_index(table: pd.DataFrame) -> pd.DataFrame:
    """Groups of slides that nobody curated: the index's patient within its data set, else each slide by itself."""
    named = table.patient != ""
    return pd.DataFrame({
        "patient": (table.patient + " of " + table.dataset_title).where(named, table.index.to_series()),
        "block": "", "duplicate_of": "", "basis": named.map({True: "index", False: "unknown"}),
        "evidence": named.map({True: "column patient", False: "unknown: no patient in the index; each slide its own group"}),
    }, index=table.index)  # fmt: skip
