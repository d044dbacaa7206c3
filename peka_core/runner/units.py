"""A unit: one finished piece of work on disk, found again by what it is made of.

`runs/<run>/units/<stage>-<id>/` holds the files of one unit, and `unit.json` with every field that
made it. The id is a hash of the fields. A unit without `unit.json` does not exist. One field is the
digest of the code (`code.py`), so code never finds what other code made.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..common.device import versions
from ..common.errors import PekaError
from ..common.files import TEMPORARY, alone, link_whole, not_readable, told_when_full, write_json
from ..common.progress import say_once
from ..recipe import Recipe
from .code import code_of
from .cost import Cost
from .provenance import provenance

AGAIN = "+"  # ends the name of the folder in which a unit is made again for a file that it lacks
SHARED = ("teacher", "embedding", "hashes")  # runs share units of these stages, and frozen features


@dataclass(frozen=True)
class Unit:
    """What one piece of work depends on; fields that do not matter to a stage stay empty.

    Attributes:
        stage: a key of `code.STAGES`.
        cohort: digest of the cohort directory.
        encoder: encoder name and digest, `name@digest`.
        method: what was trained (`recipe.METHODS`), or the name of a control.
        teacher: teacher name with its options.
        taught_by: `teacher`, `permuted_teacher` or `genes` (`rungs.Rung`).
        recipe: hyper-parameters of the alignment.
        split: for people: name of the split whose training spots were used, or of an evaluation the
            splits that were scored (empty for all). Empty for what no split touches.
        rows: digest of the rows that were used. It decides, because a changed protocol may keep the
            names of its splits.
        space: `encoder`, `projected` or `concat`.
        protocol: name of the evaluation protocol.
        rules: digest of all rules of the protocol, because a changed one may keep its name.
        scope: `nested` or `all`: which spots the alignment saw.
        seed: seed of the alignment, or of a drawn control.
        code: digest of the code that makes it.
    """

    stage: str
    cohort: str
    encoder: str = ""
    method: str = ""
    teacher: str = ""
    taught_by: str = ""
    recipe: Recipe | None = None
    split: str = ""
    rows: str = ""
    space: str = ""
    protocol: str = ""
    rules: str = ""
    scope: str = ""
    seed: int = 0
    code: str = ""

    @property
    def id(self) -> str:
        """Twelve hex digits of the sha256 over all fields that differ from their default.

        A later version may therefore add a field without renaming older units. The name of a split
        is left out where its rows are known.
        """
        fields = changed_fields(self) | (
            {"recipe": changed_fields(self.recipe)} if self.recipe else {}
        )
        return digest_of(
            {name: value for name, value in fields.items() if name != "split" or not self.rows}
        )

    @property
    def name(self) -> str:
        """Folder name, `<stage>-<id>`."""
        return f"{self.stage}-{self.id}"


def digest_of(fields: dict) -> str:
    """Twelve hex digits of the sha256 over values that JSON can hold."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def changed_fields(record) -> dict:
    """Fields of a dataclass that differ from their default."""
    return {
        f.name: getattr(record, f.name)
        for f in dataclasses.fields(record)
        if getattr(record, f.name) != f.default
    }


def find(run: Path, unit: Unit, needs: str = "unit.json") -> Path | None:
    """Folder of the finished unit under `run` that has the file `needs`, or None."""
    for name in (unit.name, unit.name + AGAIN):
        folder = Path(run) / "units" / name
        if (folder / "unit.json").exists() and (folder / needs).exists():
            return folder
    return None


def make(
    run: Path, unit: Unit, write: Callable[[Path], None], needs: str = "unit.json", device: str = ""
) -> Path:
    """Return the unit's folder, filling it with `write(folder)` first where it is not finished.

    The files are written into a temporary folder, which is renamed when it is whole, so a killed
    run leaves nothing that looks finished. A lock makes a second process wait for the first; then
    it finds the unit. A finished unit is never changed. Where it lacks a file, because the
    repository left that out for its size, the unit is made again beside it, in a folder whose name
    ends with `AGAIN`. Units that runs share (`SHARED`) are taken from a run beside this one.

    Args:
        needs: a file that must be there.
        device: of the run, for `unit.json`; empty: the best one.

    Raises:
        PekaError: the folder cannot be written, or the disk is full.
    """
    if (found := find(run, unit, needs)) is None:
        target = Path(run) / "units" / unit.name
        target = target.with_name(unit.name + AGAIN) if find(run, unit) else target
        with told_when_full(target), alone(target):
            found = (
                find(run, unit, needs)
                or _taken(run, unit, needs, target)
                or _make(target, unit, write, device)
            )
    _tell_other_versions(facts_of(found))
    return found


@contextlib.contextmanager
def told_of_damage(path: Path):
    """Turn any error of reading a unit's file into one message that says how to make it again."""
    again = (
        f"Remove the folder units/{path.parent.name} of this run, and of runs beside it, which may "
        "share it: it is made again."
    )
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
            raise not_readable(path) from error
        if isinstance(error, OSError) and error.errno:  # the system's, not the content's
            raise PekaError(
                f"{path}: cannot be read now ({error.strerror}). Run the same command again."
            ) from error
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise PekaError(
            f"{path}: damaged ({why}); expected what this code wrote. {again}"
        ) from error


def facts_of(folder: Path) -> dict:
    """What a unit's `unit.json` says: its fields under `unit`, cost, commit, versions and device.

    Raises:
        PekaError: it is damaged.
    """
    with told_of_damage(folder / "unit.json"):
        facts = json.loads((folder / "unit.json").read_text(encoding="utf-8"))
        if (
            not isinstance(facts, dict)
            or not isinstance(facts["unit"], dict)
            or not isinstance(facts["packages"], dict)
        ):
            raise ValueError("not what a unit says of itself")
        return facts


def of_other_code(run: Path, names: Iterable[str] | None = None) -> list[str]:
    """Commits of a run's finished units that other code made; of all units, or of some by name."""
    names = None if names is None else set(names)
    asked = [facts for folder, facts in _all_facts(run).items() if names is None or folder in names]
    return sorted(
        {
            facts["commit"]
            for facts in asked
            if facts["unit"].get("code", "") != code_of(_unit_of(facts["unit"]))
        }
    )


def codes_here(run: Path) -> set[str]:
    """The code digests that the finished units of a run would have if they were made now."""
    return {code_of(_unit_of(facts["unit"])) for facts in _all_facts(run).values()}


def _all_facts(run: Path) -> dict[str, dict]:
    """What each finished unit says of itself, by the name of its folder."""
    found = (path.parent for path in sorted(Path(run).glob("units/*/unit.json")))
    return {folder.name: facts_of(folder) for folder in found if not folder.name.startswith(".")}


def _unit_of(fields: dict) -> Unit:
    """As much of a unit as its code depends on, from the fields of a `unit.json` of any age."""
    known = {
        name: fields[name]
        for name in ("stage", "cohort", "encoder", "method", "teacher", "taught_by")
        if name in fields
    }
    return Unit(**known)


def _taken(run: Path, unit: Unit, needs: str, target: Path) -> Path | None:
    """The same unit of a run beside this one, linked into this one; None where there is none."""
    if unit.stage not in SHARED and (unit.stage, unit.method) != ("features", "none"):
        return None
    others = (
        find(folder, unit, needs)
        for folder in sorted(Path(run).parent.iterdir())
        if folder != Path(run)
    )
    if (other := next(filter(None, others), None)) is None:
        return None
    with _replacement(target) as folder:
        for path in other.iterdir():
            link_whole(path, folder / path.name)
    return target


def _tell_other_versions(facts: dict) -> None:
    """Say it where a unit was made with another version of a library that can move a number."""
    here = versions()
    for name, then in facts["packages"].items():
        if here.get(name, then) != then:
            text = (
                f"{name} {then} made what is read here, and {here[name]} is installed: numbers may "
                "differ in their last digits"
            )
            say_once(text, notice=True)


def partial(run: Path, unit: Unit) -> Path:
    """Folder for the checkpoint of a unit; it goes away with the finished unit."""
    folder = Path(run) / "units" / f".{unit.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make(target: Path, unit: Unit, write: Callable[[Path], None], device: str) -> Path:
    for leftover in target.parent.glob(f"{TEMPORARY}{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    cost = Cost()
    # The disk is looked at while what filled it is still there, so told_when_full ends first.
    with _replacement(target) as folder, told_when_full(target):
        with cost:
            write(folder)
        facts = {"unit": dataclasses.asdict(unit), **cost.facts(), **provenance(device)}
        write_json(folder / "unit.json", facts)
    shutil.rmtree(target.with_name(f".{target.name}.partial"), ignore_errors=True)
    return target


@contextlib.contextmanager
def _replacement(target: Path):
    """A temporary folder that takes the place of `target` once it is whole, and else goes away."""
    folder = target.with_name(f"{TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}")
    old = target.with_name(f"{TEMPORARY}{target.name}-old")
    folder.mkdir()
    try:
        yield folder
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.replace(target, old)
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
