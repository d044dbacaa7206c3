"""A cohort directory that is built section by section: claimed first, resumed after an end, left alone when finished.

`building.json` (while it is built) and `source.json` (when it is finished) hold the options and what is known of each section.
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from ..errors import PekaError
from ..files import TEMPORARY, one_name, write_json

FOLDERS = ("adata", "patches", "splits")


def written(path: Path, section: str) -> bool:
    """True where both files of a section are there; a link whose original is gone counts as missing."""
    return (path / "adata" / f"{section}.h5ad").exists() and (
        path / "patches" / f"{section}.h5"
    ).exists()


def finished(path: Path, options: dict) -> bool:
    """True where source.json has these options and every section's two files are there."""
    return _read(path / "source.json").get("options") == options and all(
        written(path, s) for s in options["sections"]
    )


def start(path: Path, options: dict) -> dict[str, dict]:
    """Claim the directory and return what is known of its sections that were built with the same options.

    Sections of other options give way; files of another source do not.

    Args:
        path: cohort directory.
        options: `source` (who builds), `sections` (names), and whatever else makes another cohort.

    Raises:
        PekaError: the directory holds files that this source did not write, or a section's name is not the name of a file.
    """
    for section in options["sections"]:
        one_name(section, f"{path}: section")
    before = _read(path / "building.json") or _read(path / "source.json")
    folders = [path / name for name in FOLDERS]
    if (
        any(folder.exists() for folder in folders)
        and before.get("options", {}).get("source") != options["source"]
    ):
        raise PekaError(
            f"{path}: holds files that {options['source']} did not write; expected an empty directory. Choose another path."
        )
    for leftover in path.rglob(f"{TEMPORARY}*"):  # of a killed build
        leftover.unlink()
    if before.get("options", options) != options:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        before = {}
    facts = before.get("sections", {})
    progress(path, options, facts)
    (path / "source.json").unlink(missing_ok=True)
    return facts


def progress(path: Path, options: dict, facts: dict[str, dict]) -> None:
    """Note what is known of the sections so far."""
    write_json(path / "building.json", {"options": options, "sections": facts})


def finish(path: Path, options: dict, facts: dict[str, dict], **more) -> None:
    """Write source.json, with versions and whatever `more` is to be kept; the directory is finished then."""
    versions = {name: version(name) for name in ("peka-core", "anndata", "scanpy")}
    versions["opencv"] = version("opencv-python-headless")
    write_json(
        path / "source.json", {"options": options, "sections": facts, **more, "versions": versions}
    )
    (path / "building.json").unlink(missing_ok=True)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
