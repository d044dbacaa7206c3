"""A run's cohort folder: built if it is missing, and built again if other code built it."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import PekaError
from ..common.files import alone, write_json, write_whole
from .code import code_of_source
from .profile_checks import source_of
from .provenance import commit

if TYPE_CHECKING:  # takes seconds to import, and not every command needs it
    from ..cohort import Cohort

# A folder that a source began to build holds one of these files.
BUILT = ("source.json", "building.json", "unfinished.json")


def build_cohort(
    path: Path,
    source: str,
    options: Callable[[], dict],
    tiles: bool = False,
    changes: tuple[tuple[str, Any], ...] = (),
) -> "Cohort":
    """Open a run's cohort; build it first if it is missing, or if other code or options built it.

    Args:
        source: name of the source.
        options: returns the source's options; it is called only if the cohort is built.
        tiles: whether its tiles are needed; if they are missing, the cohort is built again.
        changes: the options (name, value) in which it differs from the run's own cohort.

    Raises:
        PekaError: the folder holds files that no source built.
    """
    from ..cohort import open_cohort

    here = code_of_source(source) + "".join(f" {k}={v}" for k, v in changes)

    def is_ready() -> bool:
        finished = code_in(path) == here and (path / "source.json").exists()
        return finished and (not tiles or open_cohort(path).has_tiles)

    if not is_ready():
        values = options()
        with alone(path):
            if not is_ready():
                with _claimed(path, here):
                    source_of(source).build(path, **values)
    return open_cohort(path)


def has_cohort(folder: Path, source: str) -> bool:
    """Whether a run has its finished cohort, built by the code that is here."""
    path = folder / "cohort"
    return (path / "source.json").exists() and code_in(path) == code_of_source(source)


def claim_of(path: Path) -> Path:
    """The file beside a cohort's folder that names the code that built it."""
    return path.with_name(f"{path.name}.json")


def code_in(path: Path) -> str:
    """Digest of the code that built the cohort in a folder; empty if it is not known."""
    try:
        return json.loads(claim_of(path).read_text(encoding="utf-8"))["code"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextlib.contextmanager
def _claimed(path: Path, here: str):
    """Note that this code builds the cohort in a folder.

    A cohort of other code is moved aside first, and removed when the new one is finished. If the
    build fails, the old cohort comes back. After Ctrl-C the unfinished new one stays, and the next
    run continues it.
    """
    claim, before = claim_of(path), path.with_name(f"{path.name}.before")
    old_claim = claim.read_text(encoding="utf-8") if claim.exists() else ""
    is_other = path.exists() and code_in(path) != here
    if is_other:
        if not any((path / name).exists() for name in BUILT):
            raise PekaError(
                f"{path} contains files that this package did not write; expected the run's "
                "cohort, or no files. Move them elsewhere, or choose another --run NAME. To use a "
                "cohort of your own: peka run own --cohort DIR."
            )
        where = f"runs/{path.parent.name}/{path.name}"
        print(f"{where}: other code or options built it, so it is built again", flush=True)
        shutil.rmtree(before, ignore_errors=True)
        os.replace(path, before)
    if code_in(path) != here:
        write_json(claim, {"code": here, "commit": commit()})
    try:
        yield
    except Exception:
        if is_other and not (path / "source.json").exists():
            shutil.rmtree(path, ignore_errors=True)
            os.replace(before, path)
            if old_claim:
                write_whole(claim, lambda file: file.write_text(old_claim, encoding="utf-8"))
            else:
                claim.unlink()
        raise
    shutil.rmtree(before, ignore_errors=True)
