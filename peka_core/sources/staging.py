"""A cohort directory that grows by one import after the other, and is never half made.

An import writes into a hidden folder of the cohort, where it sees the old sections by links. When
everything is there, the hidden folder is renamed to `READY`, and its files are moved into place. An
import that fails deletes the hidden folder, and the cohort is as before. One that is killed while
files are moved is finished by the next import.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..common.errors import PekaError
from ..common.files import alone, link_whole, told_when_full, write_json
from ..layout.tables import read_csv

STAGE, READY = ".peka-tmp-import", ".peka-import-ready"
MOVES = "moves.json"  # in the hidden folder: files to move, and tables that stay
FILES = (("ruler", "png"), ("patches", "h5"), ("adata", "h5ad"))  # of a section, the h5ad last


@contextlib.contextmanager
def staged(cohort: Path) -> Iterator[Path]:
    """The hidden folder of a cohort for one import; its files are moved into place at the end.

    Raises:
        PekaError: the cohort belongs to another source or cannot be written, or the import fails;
            then the cohort is as before.
    """
    existed, done = cohort.is_dir(), False
    check_owner(cohort)
    try:
        with alone(cohort / "import"):
            finish(cohort)
            stage = cohort / STAGE
            shutil.rmtree(stage, ignore_errors=True)  # of a killed import
            try:
                with told_when_full(stage / MOVES):
                    stage.mkdir()
                    _link_sections(cohort, stage)
                    yield stage
                os.replace(stage, cohort / READY)
                finish(cohort)
                done = True
            except PekaError as error:
                raise PekaError(str(error).replace(str(stage), str(cohort))) from error
            finally:
                shutil.rmtree(stage, ignore_errors=True)
    finally:
        if not done and not existed:
            shutil.rmtree(cohort / ".locks", ignore_errors=True)
            with contextlib.suppress(OSError):  # it was never made, or is not empty
                cohort.rmdir()


def finish(cohort: Path) -> None:
    """Move the files of a complete import into place, also of one that was killed meanwhile."""
    ready = cohort / READY
    if not (ready / MOVES).is_file():
        shutil.rmtree(ready, ignore_errors=True)
        return
    plan = json.loads((ready / MOVES).read_text(encoding="utf-8"))
    for name in plan["move"]:
        if (ready / name).is_file():
            (cohort / name).parent.mkdir(exist_ok=True)
            os.replace(ready / name, cohort / name)
    for old in (*cohort.glob("splits/*.csv"), *cohort.glob("var_*genes.json")):
        if old.relative_to(cohort).as_posix() not in plan["move"] + plan["stay"]:
            old.unlink()
    shutil.rmtree(ready)


def finish_killed(cohort: Path) -> bool:
    """Finish an import that was killed while its files were moved; whether there was one."""
    if not (cohort / READY).exists():
        return False
    with alone(cohort / "import"):
        finish(cohort)
    return True


def check_owner(cohort: Path) -> None:
    """Refuse a directory that a source built, or that is no cohort.

    Raises:
        PekaError: it holds other things.
    """
    if not cohort.exists():
        return
    record = source_record(cohort)
    owner = record.get("source") or record.get("options", {}).get("source", "import")
    if owner != "import" or (cohort / "building.json").exists():
        raise PekaError(
            f"{cohort}: this directory was built by {owner}, which would build it again; expected "
            "a new directory or one of earlier imports. Choose another --cohort."
        )
    there = [] if cohort.is_dir() else [cohort.name]
    if cohort.is_dir() and not any((cohort / name).exists() for name in ("adata", READY)):
        there = [f.name for f in cohort.iterdir() if not f.name.startswith(".")]
    if there:
        raise PekaError(
            f"{cohort}: no cohort, but it holds {', '.join(sorted(there)[:3])}; expected a new "
            "directory or one of earlier imports. Choose another --cohort."
        )


def plan_moves(stage: Path, samples: list[str], stay: list[str]) -> None:
    """Write down which files of the hidden folder are moved, and which tables stay."""
    of_sections = [f"{folder}/{sample}.{end}" for sample in samples for folder, end in FILES]
    tables = [*sorted(stage.glob("splits/*.csv")), *stage.glob("var_*genes.json")]
    names = [file.relative_to(stage).as_posix() for file in tables]
    move = [*of_sections, *names, "samples.csv", "source.json"]
    write_json(stage / MOVES, {"move": move, "stay": stay})


def refuse_known(cohort: Path, sample: str, replace: bool) -> None:
    """Refuse the name of a sample that the cohort has, unless it is to be replaced."""
    known = known_samples(cohort)
    if sample in known and not replace:
        raise PekaError(
            f"{cohort}: it has a sample {sample} already; expected a new name. Choose another "
            "--sample, or give --replace to import this one anew."
        )
    alike = [name for name in known if name.lower() == sample.lower()]
    if alike and sample not in known:  # one file on a disk that ignores case
        raise PekaError(
            f"{cohort}: it has a sample {alike[0]}, which differs from {sample} in case only; "
            "expected a name that differs in letters. Choose another --sample."
        )


def known_samples(cohort: Path) -> list[str]:
    """Ids of the sections that a directory has."""
    if (cohort / "samples.csv").exists():
        return list(read_csv(cohort / "samples.csv", "sample_id").sample_id)
    return sorted(f.stem for f in cohort.glob("adata/*.h5ad") if not f.name.startswith("."))


def _link_sections(cohort: Path, stage: Path) -> None:
    for sample in known_samples(cohort):
        for name in (f"adata/{sample}.h5ad", f"patches/{sample}.h5"):
            if (cohort / name).is_file():
                link_whole(cohort / name, stage / name, symbolic=True)


def source_record(cohort: Path) -> dict:
    """What source.json says of the directory; empty if it says nothing."""
    try:
        return json.loads((cohort / "source.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
