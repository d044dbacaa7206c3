"""Your own cohort directory in the HEST-Benchmark layout: linked into the run, never changed.

A run reads links to the user's files, so `source.json` keeps each file's digest. A file that has
changed since is noticed when the run is opened again.
"""

import json
import shutil
import warnings
from pathlib import Path

from ..cohort import Cohort, open_cohort
from ..common.errors import PekaError
from ..common.files import link_whole, sha256, write_json
from ..layout.checks import is_drawn
from . import building, staging

# all files of which a cohort consists
PARTS = ("adata/*.h5ad", "patches/*.h5", "splits/*.csv", "var_*genes.json", "samples.csv")


def build(into: str | Path, path: str | Path) -> Path:
    """Link the files of a user's cohort directory `path` into a run's cohort directory `into`.

    Raises:
        PekaError: as `preflight`.
    """
    into, path = Path(into), Path(path)
    cohort = preflight(path)
    if into.resolve() == path.resolve():
        raise PekaError(
            f"{path}: this is the run's own cohort; expected another directory. "
            "Choose another --run NAME."
        )
    for folder in building.FOLDERS:  # links of a build that was killed
        shutil.rmtree(into / folder, ignore_errors=True)
    files = {}
    for file in _files(path):
        name = str(file.relative_to(path))
        files[name] = _size_and_time(file) | {"sha256": sha256(file)}
        (into / name).unlink(missing_ok=True)
        link_whole(file, into / name, symbolic=True)
    options = {"source": "directory", "path": str(path), "sections": list(cohort.samples.index)}
    building.mark_built(into, options, {}, files=files, drawn=is_drawn(path))
    return into


def preflight(path: str | Path) -> Cohort:
    """Open a cohort directory and refuse one that the chapters cannot use; nothing is written.

    Raises:
        PekaError: as `open_cohort`; or tiles, splits, or target genes that all sections have are
            missing.
    """
    path = Path(path)
    if not path.is_dir():
        raise PekaError(
            f"{path}: no such directory; expected a cohort with adata/, patches/ and splits/ "
            "(README, Your tissue)."
        )
    if (path / staging.READY).exists():
        raise PekaError(
            f"{path}: an import into it was killed while its files were moved; expected a whole "
            f"cohort. `peka check {path}` finishes it."
        )
    with warnings.catch_warnings(action="ignore"):  # chapter 1 prints them
        cohort = open_cohort(path)
    if not cohort.has_tiles:
        raise PekaError(
            f"{path / 'patches'}: no tiles; expected patches/<sample>.h5 for each section. "
            "Write them with write_sample."
        )
    patients, sections = cohort.samples["group"].nunique(), len(cohort.samples)
    if not cohort.split_ids:
        held_out = "patients" if patients > 1 else "sections"
        step = f"Hold out {held_out}: write_cohort_tables writes such files."
        if sections == 1:
            step = "With one section nothing can be held out, so add another."
        raise PekaError(
            f"{path / 'splits'}: no splits; expected train_0.csv and test_0.csv with a column "
            f"sample_id. {step}"
        )
    absent = [g for g in cohort.genes if any(g not in s.genes for s in cohort.sections)]
    if absent or not cohort.genes:
        some = f"{len(absent)} of its genes are not in every section ({', '.join(absent[:3])})"
        raise PekaError(
            f"{path}/var_<k>genes.json: {some if absent else 'no target genes'}; expected "
            '{"genes": [...]}, on which hest_bench is scored. Write or correct it.'
        )
    if patients == 1:
        print(
            f"{path}: there is one patient, so sections are held out. The scores have no interval "
            "and say nothing about new patients.",
            flush=True,
        )
    return cohort


def check_unchanged(into: str | Path) -> None:
    """Refuse to go on with a run whose cohort directory has changed.

    Only files of another size or time are read again.

    Raises:
        PekaError: a file has changed, is gone or is new.
    """
    source = Path(into) / "source.json"
    try:
        record = json.loads(source.read_text(encoding="utf-8"))
        if not {"options", "files"} <= set(record):
            raise ValueError("options or files are missing")
    except (ValueError, TypeError) as error:
        raise PekaError(
            f"{source}: damaged; expected the list of files of this run. Choose "
            "another --run NAME. If you know that none of them has changed, delete this one file: "
            "the links are made again."
        ) from error
    path, before = Path(record["options"]["path"]), record["files"]
    there = {str(file.relative_to(path)): file for file in _files(path)}
    now = {name: _size_and_time(there[name]) for name in before if name in there}
    touched = {n: state for n, state in now.items() if not state.items() <= before[n].items()}
    changed = {name for name in touched if sha256(there[name]) != before[name]["sha256"]}
    changed = sorted(changed | (set(before) ^ set(there)))
    if changed:
        raise PekaError(
            f"{path} has changed since {Path(into).parent} was started with it ({len(changed)} "
            f"files: {', '.join(changed[:5])}); expected the same cohort. Restore it, or start "
            "another run: --run NAME."
        )
    if touched:
        files = {name: before[name] | state for name, state in touched.items()}
        write_json(source, record | {"files": before | files})


def _files(path: Path) -> list[Path]:
    files = [file for part in PARTS for file in sorted(path.glob(part))]
    return [file for file in files if not file.name.startswith(".")]


def _size_and_time(file: Path) -> dict:
    state = file.stat()
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
