"""A unit: one finished piece of work on disk, found again by what it is made of.

`runs/<run>/units/<stage>-<id>/` holds the files of one unit, and `unit.json` with every field of
the unit. The id is a hash of these fields. A folder without `unit.json` is not a finished unit. One
field is the digest of the code (`code.py`), so code never finds a unit that other code made.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..common.device import versions
from ..common.errors import PekaError
from ..common.files import TEMPORARY, alone, link_whole, not_readable, told_when_full, write_json
from ..common.progress import say_once
from ..recipe import Recipe
from ..training_parts import workers
from .code import code_of
from .cost import Cost
from .provenance import provenance

AGAIN = "+"  # the end of a folder's name, if its unit was made again for a file that was missing
SHARED = ("teacher", "embedding", "hashes")  # runs share units of these stages, and frozen features

# The workers that torchrun starts make units of these stages together. The first worker makes
# all other units, and the others wait.
TOGETHER = ("alignment", "features")


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
        split: name of the split whose training spots were used; for an evaluation, names of the
            scored splits (empty for all). It is for readers only.
        rows: digest of the rows that were used. The id contains it instead of the split's name,
            because a changed protocol may keep the names of its splits.
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

        So a later version may add a field, and older units keep their names.
        """
        fields = changed_fields(self)
        if self.recipe:
            fields["recipe"] = changed_fields(self.recipe)
        if self.rows:
            fields.pop("split", None)
        return digest_of(fields)

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
    """Return the unit's folder; if the unit is not finished, `write(folder)` makes it first.

    The files are written into a temporary folder, which is renamed when it is whole, so a killed
    run leaves nothing that looks finished. A lock makes a second process wait for the first. A
    finished unit never changes. If it lacks the file `needs` (the repository leaves out large
    files), the unit is made again beside it, in a folder whose name ends with `AGAIN`. Units that
    runs share (`SHARED`) are linked from another run. Under torchrun, only the first worker writes
    into the run's folder; all workers call this function for the same units in the same order.

    Args:
        needs: a file that must be there.
        device: device of the run, for `unit.json`; empty for the best one.

    Raises:
        PekaError: the folder cannot be written, or the disk is full.
    """
    if workers.rank():
        return _follow(unit, write)
    with _leading(unit, write) as write:
        if (found := find(run, unit, needs)) is None:
            target = Path(run) / "units" / (unit.name + AGAIN * bool(find(run, unit)))
            with told_when_full(target), alone(target):
                found = (
                    find(run, unit, needs)
                    or _taken(run, unit, needs, target)
                    or _make(target, unit, write, device)
                )
    workers.told(found)
    here = versions()
    for name, then in facts_of(found)["packages"].items():
        if here.get(name, then) != then:
            text = f"{name} {then} made a unit that is read here, and {here[name]} is installed"
            say_once(f"{text}: numbers may differ in their last digits", notice=True)
    return found


@contextlib.contextmanager
def _leading(unit: Unit, write: Callable[[Path], None]):
    """The `write` of the first worker, which the others are told of. They are told of errors too.

    They are not told of an error in a unit that all make together, because they are at work then.
    This process ends with the error, and torchrun ends the others.
    """
    others_work = False

    def announced(folder: Path) -> None:
        nonlocal others_work
        workers.told("make it")
        others_work = unit.stage in TOGETHER
        with contextlib.nullcontext() if others_work else workers.alone():
            write(folder)
        others_work = False

    try:
        yield announced
    except Exception as error:
        if not others_work:
            workers.told(PekaError(f"the first worker failed: {error}"))
        raise


def _follow(unit: Unit, write: Callable[[Path], None]) -> Path:
    """What the other workers do in `make`: their part of a unit, or wait. Return its folder."""
    said = workers.told()
    if said == "make it":
        if unit.stage in TOGETHER:
            with tempfile.TemporaryDirectory() as folder:  # the first worker's files are kept
                write(Path(folder))
        said = workers.told()
    if isinstance(said, PekaError):
        raise said
    return said


@contextlib.contextmanager
def told_of_damage(path: Path):
    """Turn each error while a unit's file is read into a message that says how to make it again."""
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
            f"{path}: damaged ({why}); expected a file that this code wrote. Remove the folder "
            f"units/{path.parent.name} of this run, and of other runs that share it. Then run the "
            "same command again, which makes it again."
        ) from error


def facts_of(folder: Path) -> dict:
    """The content of `unit.json`: fields under `unit`, cost, commit, versions and device.

    Raises:
        PekaError: the file is damaged.
    """
    with told_of_damage(folder / "unit.json"):
        facts = json.loads((folder / "unit.json").read_text(encoding="utf-8"))
        groups = (facts, facts["unit"], facts["packages"]) if isinstance(facts, dict) else (facts,)
        if not all(isinstance(group, dict) for group in groups):
            raise ValueError("not the fields of a unit")
        return facts


def of_other_code(run: Path, names: Iterable[str] | None = None) -> list[str]:
    """Commits of a run's finished units that other code made.

    Args:
        names: folders of the units to look at; None for all units.
    """
    chosen = {
        name: facts for name, facts in _all_facts(run).items() if names is None or name in names
    }
    old = [f for f in chosen.values() if f["unit"].get("code", "") != code_of(_unit_of(f["unit"]))]
    return sorted({facts["commit"] for facts in old})


def codes_here(run: Path) -> set[str]:
    """The code digests that the finished units of a run would have if they were made now."""
    return {code_of(_unit_of(facts["unit"])) for facts in _all_facts(run).values()}


def _all_facts(run: Path) -> dict[str, dict]:
    """Name of each finished unit's folder -> content of its `unit.json`."""
    files = sorted(Path(run).glob("units/[!.]*/unit.json"))
    return {file.parent.name: facts_of(file.parent) for file in files}


def _unit_of(fields: dict) -> Unit:
    """A unit with the fields that `code_of` reads, from a `unit.json` of any version."""
    names = ("stage", "cohort", "encoder", "method", "teacher", "taught_by")
    return Unit(**{name: fields[name] for name in names if name in fields})


def _taken(run: Path, unit: Unit, needs: str, target: Path) -> Path | None:
    """Link the same unit from another run into this one; None if no run has it."""
    if unit.stage not in SHARED and (unit.stage, unit.method) != ("features", "none"):
        return None
    runs = [folder for folder in sorted(Path(run).parent.iterdir()) if folder != Path(run)]
    other = next(filter(None, (find(folder, unit, needs) for folder in runs)), None)
    if other is None:
        return None
    with _replacement(target) as folder:
        for path in other.iterdir():
            link_whole(path, folder / path.name)
    return target


def partial(run: Path, unit: Unit) -> Path:
    """Folder for a unit's checkpoint; it is removed once the unit is finished."""
    folder = Path(run) / "units" / f".{unit.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make(target: Path, unit: Unit, write: Callable[[Path], None], device: str) -> Path:
    for leftover in target.parent.glob(f"{TEMPORARY}{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    cost = Cost()
    # told_when_full looks at the disk, so it must end before the temporary files are removed
    with _replacement(target) as folder, told_when_full(target):
        with cost:
            write(folder)
        facts = {"unit": dataclasses.asdict(unit), **cost.facts(), **provenance(device)}
        if workers.count() > 1 and unit.stage in TOGETHER:
            facts["workers"] = workers.count()
        write_json(folder / "unit.json", facts)
    shutil.rmtree(target.with_name(f".{target.name}.partial"), ignore_errors=True)
    return target


@contextlib.contextmanager
def _replacement(target: Path):
    """A temporary folder that replaces `target` when it is whole; after an error it is removed."""
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
