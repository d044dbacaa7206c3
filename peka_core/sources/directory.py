"""A cohort directory of one's own, in the HEST-Benchmark layout: linked into the run, never copied, never written to.

What a run reads are links to the user's files, so `source.json` keeps each file's digest: a file that has changed since is
noticed when the run is opened again.
"""

import json
import shutil
import warnings
from pathlib import Path

from ..cohort import Cohort, open_cohort
from ..errors import PekaError
from ..files import link_whole, sha256, write_json
from ..layout.checks import is_drawn
from . import building

PARTS = (
    "adata/*.h5ad",
    "patches/*.h5",
    "splits/*.csv",
    "var_*genes.json",
    "samples.csv",
)  # all that a cohort is read from


def build(into: str | Path, path: str | Path) -> Path:
    """Let a run's cohort show the files of a cohort directory.

    Args:
        into: the run's cohort directory, which gets the links.
        path: the user's directory.

    Raises:
        PekaError: as `preflight`.
    """
    into, path = Path(into), Path(path)
    cohort = preflight(path)
    if into.resolve() == path.resolve():
        raise PekaError(
            f"{path}: this is the run's own cohort; expected another directory. Choose another --run NAME."
        )
    for folder in building.FOLDERS:  # links of a build that was killed
        shutil.rmtree(into / folder, ignore_errors=True)
    files = {
        str(file.relative_to(path)): _state(file) | {"sha256": sha256(file)}
        for file in _files(path)
    }
    for name in files:
        (into / name).unlink(missing_ok=True)
        link_whole(path / name, into / name, symbolic=True)
    options = {"source": "directory", "path": str(path), "sections": list(cohort.samples.index)}
    building.mark_built(into, options, {}, files=files, drawn=is_drawn(path))
    return into


def preflight(path: str | Path) -> Cohort:
    """Open a cohort directory and refuse, before any work, one that the chapters cannot use; nothing is written.

    Raises:
        PekaError: as `open_cohort`; no tiles; no splits; no target genes that all sections have.
    """
    path = Path(path)
    if not path.is_dir():
        raise PekaError(
            f"{path}: no such directory; expected a cohort: adata/, patches/, splits/ (README, Your tissue)"
        )
    with warnings.catch_warnings(action="ignore"):  # chapter 1 prints them
        cohort = open_cohort(path)
    if not cohort.has_tiles:
        raise PekaError(
            f"{path / 'patches'}: no tiles; expected patches/<sample>.h5 for each section. write_sample writes them."
        )
    if not cohort.split_ids:
        whole = (
            "patients"
            if cohort.samples["group"].nunique() > 1
            else "sections"
            if len(cohort.samples) > 1
            else ""
        )
        step = (
            f"Hold out {whole}: write_cohort_tables writes such files"
            if whole
            else "With one section nothing can be held out: add another"
        )
        raise PekaError(
            f"{path / 'splits'}: no splits; expected train_0.csv and test_0.csv with a column sample_id. {step}."
        )
    absent = [
        gene
        for gene in cohort.genes
        if not all(gene in section.genes for section in cohort.sections)
    ]
    if absent or not cohort.genes:
        what = (
            f"{len(absent)} of its genes are not in every section ({', '.join(absent[:3])})"
            if absent
            else "no target genes"
        )
        raise PekaError(
            f'{path}/var_<k>genes.json: {what}; expected {{"genes": [...]}}, which hest_bench is scored on. Write or correct it.'
        )
    if cohort.samples["group"].nunique() == 1:
        print(
            f"{path}: one patient, so sections are held out: scores have no interval, and say nothing of new patients",
            flush=True,
        )
    return cohort


def check_unchanged(into: str | Path) -> None:
    """Refuse to go on with a run whose cohort directory is not what it was; files of other size or time are read again.

    Raises:
        PekaError: a file has changed, is gone or is new.
    """
    kept = _read(Path(into) / "source.json")
    path, before = Path(kept["options"]["path"]), kept["files"]
    there = {str(file.relative_to(path)): file for file in _files(path)}
    moved = {
        name: _state(there[name])
        for name in before
        if name in there and not _state(there[name]).items() <= before[name].items()
    }
    changed = sorted(
        set(before) ^ set(there)
        | {name for name in moved if sha256(there[name]) != before[name]["sha256"]}
    )
    if changed:
        raise PekaError(
            f"{path} has changed since {Path(into).parent} was started with it ({len(changed)} files: {', '.join(changed[:5])}); expected "
            "the same cohort. Put it back as it was, or start another run: --run NAME."
        )
    if moved:
        files = before | {
            name: state | {"sha256": before[name]["sha256"]} for name, state in moved.items()
        }
        write_json(Path(into) / "source.json", kept | {"files": files})


def _read(source: Path) -> dict:
    try:
        kept = json.loads(source.read_text(encoding="utf-8"))
        if not {"options", "files"} <= set(kept):
            raise ValueError("not what a run says of its cohort directory")
        return kept
    except (ValueError, TypeError) as error:
        raise PekaError(
            f"{source}: damaged; expected which files this run was started with. Choose another --run NAME; or, where you know that "
            "none of them has changed, delete this one file: the links are made again"
        ) from error


def _files(path: Path) -> list[Path]:
    return [
        file for part in PARTS for file in sorted(path.glob(part)) if not file.name.startswith(".")
    ]


def _state(file: Path) -> dict:
    state = file.stat()
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
