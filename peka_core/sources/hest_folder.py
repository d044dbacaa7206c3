"""Import the sections of a directory in HEST's layout into a cohort: counts and tiles are there.

The directory has `adata/` or `st/` with h5ad files and `patches/` with tiles, and says who the
patients are in samples.csv (column patient) or in `metadata/<id>.json`.
"""

import json
import warnings
from pathlib import Path

import anndata as ad
import pandas as pd
from anndata.utils import make_index_unique

from ..common.errors import PekaError
from ..common.files import link_whole, write_whole
from ..layout.checks import validate
from ..layout.hdf5 import open_h5
from ..layout.sections import Section, names_of, open_section, read_counts
from ..layout.tables import COLUMNS, WORDS_FOR_MISSING, read_csv
from ..slides import ruler
from .growing import check_beside, quietly_open, refuse_copies, what_is_missing, write_tables
from .imported import Imported
from .raw_sample import counts_table
from .staging import check_owner, finish_killed, refuse_known, staged


def add_hest(
    cohort: str | Path, folder: str | Path, patient: str = "", replace: bool = False
) -> list[Imported]:
    """Add all sections of a directory in HEST's layout, all of them or none.

    Files are hard links where the disk allows it, and copies elsewhere. The directory's own splits
    and gene lists are not taken over.

    Args:
        cohort: the cohort directory; it is made if it does not exist.
        folder: the directory.
        patient: of all sections, where the directory does not say it.
        replace: import sections anew that the cohort has.

    Raises:
        PekaError: files or patients are missing, or a section is not what a cohort needs. The
            cohort is as before.
    """
    cohort, folder = Path(cohort), Path(folder)
    files = _pairs(folder)
    rows = _rows(folder, list(files), patient)
    check_owner(cohort)
    finish_killed(cohort)
    for sample in files:
        refuse_known(cohort, sample, replace)
    facts: dict[str, dict] = {}
    made, sections = list[Imported](), list[Section]()
    with staged(cohort) as stage:
        for sample, (h5ad, patches) in files.items():
            renamed = _take(stage, sample, h5ad, patches)
            section = open_section(
                sample, stage / "adata" / f"{sample}.h5ad", stage / "patches" / f"{sample}.h5"
            )
            adata = counts_table(read_counts(section), section.barcodes, section.genes)
            check_beside(cohort, sample, adata)
            if not rows.duplicate_of[sample]:  # a copy that is named as one may stay
                refuse_copies(sections, sample, adata)
            sections.append(section)
            figure = ruler.draw_tiles(section)
            ruler.save_figure(figure, stage / "ruler" / f"{sample}.png")
            place = cohort / "ruler" / f"{sample}.png"
            done = Imported(
                sample, len(section.barcodes), len(section.genes), section.um_per_px, place
            )
            done.notes += [f"{renamed} gene names were made unique in a copy"] if renamed else []
            facts[sample] = {"spots": done.spots, "genes": done.genes, "notes": done.notes}
            made.append(done)
        made[-1].notes += write_tables(stage, cohort, rows, facts)
        with warnings.catch_warnings(action="ignore"):
            made[-1].notes += validate(quietly_open(stage))
    made[-1].missing = what_is_missing(cohort)
    return made


def _pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Counts and tiles of each section."""
    home = folder / "st" if (folder / "st").is_dir() else folder / "adata"
    h5ads = {f.stem: f for f in sorted(home.glob("*.h5ad")) if not f.name.startswith(".")}
    tiles = {f.stem: f for f in (folder / "patches").glob("*.h5") if not f.name.startswith(".")}
    if not h5ads or set(h5ads) != set(tiles):
        alone = sorted(set(h5ads) ^ set(tiles))
        found = f"no counterpart for {', '.join(alone[:5])}" if alone else "no h5ad file"
        raise PekaError(
            f"{folder}: {found}; expected adata/<sample>.h5ad (or st/) and patches/<sample>.h5 for "
            "each section. For Space Ranger's folders use `peka import visium`."
        )
    return {sample: (h5ad, tiles[sample]) for sample, h5ad in h5ads.items()}


def _rows(folder: Path, samples: list[str], patient: str) -> pd.DataFrame:
    """Rows of samples.csv: from the directory's own, from metadata, or from the given patient."""
    rows = pd.DataFrame("", index=pd.Index(samples, name="sample_id"), columns=list(COLUMNS))
    if (folder / "samples.csv").exists():
        table = read_csv(folder / "samples.csv", "sample_id").set_index("sample_id")
        rows = table.reindex(samples).combine_first(rows).fillna("")
    for sample in samples:
        file = folder / "metadata" / f"{sample}.json"
        if file.is_file():
            _add_metadata(rows, sample, file)
    rows["patient"] = rows.patient.mask(rows.patient.str.lower().isin(WORDS_FOR_MISSING), "")
    if patient:
        rows["patient"] = rows.patient.mask(rows.patient == "", patient)
    if unknown := list(rows.index[rows.patient == ""]):
        raise PekaError(
            f"{folder}: the patients of {len(unknown)} sections are unknown ({unknown[0]} first); "
            "expected samples.csv with the columns sample_id and patient, because splits hold out "
            "patients. Write it, or give --patient if all sections are of one."
        )
    return rows.loc[samples]


def _add_metadata(rows: pd.DataFrame, sample: str, file: Path) -> None:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        for column, name in (
            ("patient", "patient"),
            ("organ", "organ"),
            ("disease", "disease_state"),
        ):
            if rows.loc[sample, column] == "" and isinstance(known.get(name), str):
                rows.loc[sample, column] = known[name]
    except (ValueError, AttributeError) as error:
        raise PekaError(
            f"{file}: not HEST's metadata ({error}); expected JSON with names and values. Copy it "
            "again, or remove it and write samples.csv."
        ) from error


def _take(stage: Path, sample: str, h5ad: Path, patches: Path) -> int:
    """Bring both files of a section into `stage`; return how many gene names were changed."""
    for name in (f"adata/{sample}.h5ad", f"patches/{sample}.h5"):
        (stage / name).unlink(missing_ok=True)  # links to files that are replaced
    link_whole(patches, stage / "patches" / f"{sample}.h5")
    with open_h5(h5ad) as file:
        old = names_of(file, "var", h5ad)
    new = make_index_unique(old)
    if not (changed := int((old != new).sum())):
        link_whole(h5ad, stage / "adata" / f"{sample}.h5ad")
        return 0
    with warnings.catch_warnings(action="ignore"):  # of the names that change here
        adata = ad.read_h5ad(h5ad)
    adata.var_names = new
    write_whole(stage / "adata" / f"{sample}.h5ad", adata.write_h5ad)
    return changed
