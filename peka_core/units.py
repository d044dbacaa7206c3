"""A unit: one finished piece of work on disk, found again by what it is made of.

`runs/<run>/units/<stage>-<id>/` holds the files of one unit and `unit.json` with every field that
made it. The id is a hash of the fields, so nobody parses names; a unit without `unit.json` does not exist.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .files import TEMPORARY, alone, told_when_full, write_json
from .provenance import Cost, provenance
from .recipe import Recipe


@dataclass(frozen=True)
class Unit:
    """What one piece of work depends on; fields that do not matter to a stage stay empty.

    Attributes:
        stage: `teacher`, `embedding`, `hashes`, `alignment`, `features`, `quality`, `umap` or `evaluation`.
        cohort: digest of the cohort directory.
        encoder: encoder name and digest, `name@digest`.
        method: what was trained (`ladder.METHODS`), or the name of a control.
        teacher: teacher name with its options.
        taught_by: `teacher`, `permuted_teacher` or `genes` (`ladder.Rung`).
        recipe: hyper-parameters of the alignment.
        split: the split whose training spots were used (`patients/0`, `spots/0`, `all`); empty for
            what no split touches, and for an evaluation over all splits of its protocol.
        space: `encoder`, `projected` or `concat`.
        protocol: name of the evaluation protocol.
        rules: digest of all of the protocol's rules, since a changed one may keep its name.
        zeros: `keep` or `drop`, the protocol's zero rule.
        scope: `nested` or `all`: which spots the alignment saw; of a `umap` the split whose pseudo-labels it shows.
        share: share of the split's training patients that were used.
        seed: seed of the alignment, or of a drawn control.
    """

    stage: str
    cohort: str
    encoder: str = ""
    method: str = ""
    teacher: str = ""
    taught_by: str = ""
    recipe: Recipe | None = None
    split: str = ""
    space: str = ""
    protocol: str = ""
    rules: str = ""
    zeros: str = ""
    scope: str = ""
    share: float = 1.0
    seed: int = 0

    @property
    def id(self) -> str:
        """Twelve hex digits of the sha256 over all fields that differ from their default.

        So a field that a later version adds, with what was done before as its default, leaves older units their names.
        """
        return digest_of(changed_fields(self) | ({"recipe": changed_fields(self.recipe)} if self.recipe else {}))

    @property
    def name(self) -> str:
        """Folder name, `<stage>-<id>`."""
        return f"{self.stage}-{self.id}"


def digest_of(fields: dict) -> str:
    """Twelve hex digits of the sha256 over values that JSON can hold."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def changed_fields(record) -> dict:
    """Fields of a dataclass that differ from their default."""
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if getattr(record, f.name) != f.default}


def find(run: Path, unit: Unit) -> Path | None:
    """Folder of the finished unit under `run`, or None."""
    folder = Path(run) / "units" / unit.name
    return folder if (folder / "unit.json").exists() else None


def make(run: Path, unit: Unit, write: Callable[[Path], None], needs: str = "unit.json", device: str = "") -> Path:
    """Return the unit's folder, filling it with `write(folder)` first where it is not finished.

    The files are written into a temporary folder that is renamed when it is whole, with fields, seconds, memory,
    versions and device in its `unit.json`; a killed run leaves nothing that looks finished. A lock sees to it that two
    processes never make the same unit: the second waits, and then finds it.

    Args:
        needs: a file that must be there; a unit without it (left out of the repository for its size) is made again.
        device: of the run, for `unit.json`; empty: the best one.

    Raises:
        PekaError: the folder cannot be written, or the disk is full.
    """
    finished = lambda: (found := find(run, unit)) and (found / needs).exists()
    target = Path(run) / "units" / unit.name
    if finished():
        return target
    with told_when_full(target), alone(target):
        return target if finished() else _make(target, unit, write, device)


def partial(run: Path, unit: Unit) -> Path:
    """Folder for what a unit needs to go on after it was killed; it goes away with the finished unit."""
    folder = Path(run) / "units" / f".{unit.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make(target: Path, unit: Unit, write: Callable[[Path], None], device: str) -> Path:
    for leftover in target.parent.glob(f"{TEMPORARY}{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = target.with_name(f"{TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}")
    folder.mkdir()
    cost = Cost()
    try:
        with told_when_full(target):  # asked while what filled the disk is still there
            with cost:
                write(folder)
            write_json(folder / "unit.json", {"unit": dataclasses.asdict(unit), **cost.facts(), **provenance(device)})
        _move_into_place(folder, target)
        shutil.rmtree(target.with_name(f".{target.name}.partial"), ignore_errors=True)
        return target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(folder: Path, target: Path) -> Path:
    """Rename a whole folder to its final name; an older or half-written one gives way."""
    old = target.with_name(f"{TEMPORARY}{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(folder, target)
    shutil.rmtree(old, ignore_errors=True)
    return target
