"""The index of HEST-1k: which slides make a cohort of the paper, and whose they are.

The paper used index v1_1_0. It starts with a byte order mark and leaves `patient` blank (or three
spaces) for most slides. Of its pixel sizes only `pixel_size_um_estimated` can be trusted. Patients
are curated in hest_groups.csv.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..common.errors import PekaError
from ..common.files import one_name, sha256
from ..downloads.fetch import fetch
from ..downloads.manifest import NAME as MANIFEST
from ..downloads.manifest import source_files
from ..downloads.record import verify
from ..layout.tables import read_csv, read_gene_list
from .hest_files import home

NAME = "hest/HEST_v1_1_0.csv"  # in the manifest, and below PEKA_MIRROR
GROUPS = Path(__file__).with_name("hest_groups.csv")
WHOLE_ARRAY = 4992  # positions of a 6.5 mm Visium array


@dataclass(frozen=True)
class Filter:
    """A cohort of the paper: human Visium slides in the index, by organ and cancer code."""

    organ: str  # column organ
    slides: int  # how many rows index v1_1_0 has
    spots: int  # their sum of column spots_under_tissue
    n_paper: int  # spots that the paper reports
    genes: str  # names the file of the authors' target genes, which is used if a mirror has it
    oncotree: str = ""  # column oncotree_code; empty takes every code

    @property
    def authors_genes(self) -> str:
        return f"top_50_genes_{self.genes}.json"


COHORTS = {
    "breast": Filter("Breast", 8, 30_543, 30_414, "Visium_Homo_sapien_Breast_Cancer"),
    "kidney": Filter("Kidney", 24, 74_220, 73_813, "visium_homo_sapien_Kidney_cancer", "SCCRCC"),
    "liver": Filter("Liver", 14, 64_152, 37_168, "visium_homo_sapien_Liver_cancer"),
    "lung": Filter("Lung", 37, 69_643, 64_728, "visium_homo_sapien_Lung_cancer"),
}


def slides(
    cohort: str, index: str = "", index_sha256: str = "", counts: tuple[int, int] | None = None
) -> pd.DataFrame:
    """Rows of a cohort in the index, in its order, as stripped text; index `sample_id`.

    `spots` (int) is the column spots_under_tissue, and `um_per_px` (float) is the column
    pixel_size_um_estimated.

    Args:
        cohort: a name in `COHORTS`.
        index: another index file of the same form, absolute or below `PEKA_MIRROR`/hest; if empty,
            v1_1_0.
        index_sha256: its digest; if empty, every file is accepted.
        counts: (slides, spots) that it must have; if None, those of `COHORTS`.

    Raises:
        PekaError: the cohort is unknown, or the index is missing, has another digest or other
            counts.
    """
    return read_slides(index_path(index, index_sha256), cohort, counts)


def read_slides(path: Path, cohort: str, counts: tuple[int, int] | None = None) -> pd.DataFrame:
    """`slides` of an index file that is at hand."""
    rules = rules_of(cohort)
    table = read_csv(path, "pixel_size_um_estimated").set_index("id").rename_axis("sample_id")
    human_visium = (table.species == "Homo sapiens") & (table.st_technology == "Visium")
    table = table[human_visium & (table.organ == rules.organ)]
    if rules.oncotree:
        table = table[table.oncotree_code == rules.oncotree]
    table = table.assign(
        spots=pd.to_numeric(table.spots_under_tissue).astype(int),
        um_per_px=pd.to_numeric(table.pixel_size_um_estimated),
    )
    for sample in table.index:
        one_name(sample, f"{path}: id")
    expected = (rules.slides, rules.spots) if counts is None else tuple(counts)
    if (len(table), int(table.spots.sum())) != expected:
        raise PekaError(
            f"{path}: {cohort} has {len(table)} slides and {table.spots.sum()} spots; expected "
            f"{expected[0]} and {expected[1]}. Take index v1_1_0, or set counts of your own index."
        )
    return table


def rules_of(cohort: str) -> Filter:
    """The filter of a cohort by name; raise PekaError if there is none."""
    if cohort not in COHORTS:
        raise PekaError(f"hest: no cohort {cohort!r}; expected one of {', '.join(COHORTS)}.")
    return COHORTS[cohort]


def authors_list(cohort: str) -> list[str]:
    """The target genes that the authors published for a cohort; [] if their file is not here.

    Raises:
        PekaError: the cohort is unknown, or the file holds no list of genes.
    """
    path = home() / rules_of(cohort).authors_genes
    return list(dict.fromkeys(read_gene_list(path))) if path.is_file() else []


def index_path(index: str = "", index_sha256: str = "", dry_run: bool = False) -> Path:
    """The path of the verified index; v1_1_0 is found in PEKA_MIRROR or downloaded.

    With `dry_run` the download is only listed, and the file may be missing.
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
    if index_sha256 and (digest := sha256(path)) != index_sha256:
        raise PekaError(
            f"{path}: sha256 is {digest}, expected {index_sha256}. Take the file with that digest."
        )
    return path


def index_place(index: str = "") -> Path:
    """The path of the index, in PEKA_MIRROR or the cache, even if it is missing."""
    return home() / (index or Path(NAME).name)


def counts_table() -> pd.DataFrame:
    """Slides and spots of index v1_1_0 beside those of the paper, one row for each cohort.

    `whole arrays` counts slides that list all 4,992 positions of a Visium array, so that spots on
    glass are counted too. Liver has 12 of them, and its count differs most from the paper's.
    """
    rows = []
    for name, rules in COHORTS.items():
        table = slides(name)
        rows.append({
            "cohort": name,
            "slides": len(table),
            "spots in index": int(table.spots.sum()),
            "n in paper": rules.n_paper,
            "difference": int(table.spots.sum()) - rules.n_paper,
            "whole arrays": int((table.spots == WHOLE_ARRAY).sum()),
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("cohort")


def groups(table: pd.DataFrame, unknown: str = "slide") -> pd.DataFrame:
    """The patient, block, duplicate_of, basis and evidence of each slide.

    `basis` is `index` (its column patient), `derived` (from other columns of the index), `reported`
    (by others, not checked in the paper), `precaution` (possibly several patients, kept together)
    or `unknown` (the slide is its own group).

    Args:
        table: rows of `slides`.
        unknown: `slide` as above; `study` makes one group of every study that has an unknown slide.

    Raises:
        PekaError: `unknown` is another word.
    """
    if unknown not in ("slide", "study"):
        raise PekaError(f"hest: option `unknown` must be 'slide' or 'study', not {unknown!r}.")
    curated = read_csv(GROUPS, "sample_id").set_index("sample_id")
    rest = table[~table.index.isin(curated.index)]
    whose = pd.concat([curated, _from_index(rest)]).loc[table.index]
    whose.loc[~whose.duplicate_of.isin(table.index), "duplicate_of"] = ""
    if unknown == "study":
        study = table.dataset_title
        held = study.isin(set(study[whose.basis == "unknown"]))
        why = "kept together as one study, which has slides of unknown patients; "
        whose.loc[held, "patient"] = study[held]
        whose.loc[held, "evidence"] = why + whose.evidence[held]
    return whose


def _from_index(table: pd.DataFrame) -> pd.DataFrame:
    """Groups of slides that are not curated: the index's patient, else each slide by itself."""
    named, nobody = (
        table.patient != "",
        "unknown: no patient in the index; each slide its own group",
    )
    patient = table.patient + " of " + table.dataset_title
    columns = {
        "patient": patient.where(named, table.index.to_series()),
        "block": "",
        "duplicate_of": "",
        "basis": named.map({True: "index", False: "unknown"}),
        "evidence": named.map({True: "column patient", False: nobody}),
    }
    return pd.DataFrame(columns, index=table.index)
