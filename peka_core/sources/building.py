"""A cohort directory that is built section by section, so that a stopped build can be continued.

`building.json` (during the build) and `source.json` (after it) hold the options and what is known
of each section.
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from ..common.errors import PekaError
from ..common.files import TEMPORARY, one_name, write_json

FOLDERS = ("adata", "patches", "splits")


def has_section(path: Path, section: str) -> bool:
    """Whether both files of a section exist; a link whose target is gone does not count."""
    files = path / "adata" / f"{section}.h5ad", path / "patches" / f"{section}.h5"
    return all(file.exists() for file in files)


def is_built(path: Path, options: dict) -> bool:
    """Whether the directory was built to the end with these options and still has all its files."""
    same = _read(path / "source.json").get("options") == options
    return same and all(has_section(path, section) for section in options["sections"])


def claim(path: Path, options: dict) -> dict[str, dict]:
    """Take the directory for a build, and return what is known of sections that it already has.

    Sections that were built with other options are deleted. Files of another source are not.

    Args:
        path: cohort directory.
        options: `source`, `sections` (names), and every other option that changes the cohort.

    Raises:
        PekaError: the directory holds files that this source did not write, or the name of a
            section cannot be a file name.
    """
    for section in options["sections"]:
        one_name(section, f"{path}: section")
    before = _read(path / "building.json") or _read(path / "source.json")
    folders = [folder for name in FOLDERS if (folder := path / name).exists()]
    if folders and before.get("options", {}).get("source") != options["source"]:
        raise PekaError(
            f"{path}: holds files that {options['source']} did not write; "
            "expected an empty directory. Choose another path."
        )
    for leftover in path.rglob(f"{TEMPORARY}*"):  # of a build that was killed
        leftover.unlink()
    if before.get("options", options) != options:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        before = {}
    facts = before.get("sections", {})
    save_facts(path, options, facts)
    (path / "source.json").unlink(missing_ok=True)
    return facts


def save_facts(path: Path, options: dict, facts: dict[str, dict]) -> None:
    """Save what is known of the sections so far."""
    write_json(path / "building.json", {"options": options, "sections": facts})


def mark_built(path: Path, options: dict, facts: dict[str, dict], **more) -> None:
    """Write source.json, which says that the directory is complete, with versions and `more`."""
    versions = {name: version(name) for name in ("peka-core", "anndata", "scanpy")}
    versions["opencv"] = version("opencv-python-headless")
    record = {"options": options, "sections": facts, **more, "versions": versions}
    write_json(path / "source.json", record)
    (path / "building.json").unlink(missing_ok=True)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
