"""`peka doctor`: is this machine as the README expects it? Nothing is changed, and no secret is shown."""

import importlib.metadata
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .. import places
from ..device import best_device, device_name
from ..errors import PekaError
from ..files import TEMPORARY, free_bytes
from ..models.encoder_files import BUNDLED, lacks_token, reachable, rows, whereabouts
from ..places import cache_folder
from ..runner.profile import Profile, load_profile

PYTHONS = ((3, 11), (3, 13))
DISK_GB, MEMORY_GB = 2, 4  # what `demo` needs, with room to spare
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container under Linux
Line = tuple[str, str, str]  # "ok", "note" or "problem"; what was looked at; what was found


def examine(profile: str = "") -> Iterator[Line]:
    """All checks, one line each; those of a profile's encoder where one is named."""
    yield _python()
    yield from packages()
    yield ("ok", "device", f"{best_device()}: {device_name()}")
    yield _enough("memory", _memory_gb(), MEMORY_GB)
    for name, folder in (
        ("disk of runs", places.root() / "runs"),
        ("disk of downloads", cache_folder()),
    ):
        yield _disk(name, folder, "problem" if name == "disk of runs" else "note")
    yield _mirror()
    token = os.environ.get("HF_TOKEN")
    yield (
        ("ok", "HF_TOKEN", "set (not shown)")
        if token
        else ("note", "HF_TOKEN", "not set: needed for gated encoders and HEST-1k only")
    )
    if profile:
        yield _encoder(load_profile(profile).encoder)
        yield from room(load_profile(profile))


def _disk(name: str, folder: Path, if_refused: str) -> Line:
    """Free space, once a file could be written there: a folder that may only be read has room that nobody can use."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there, prefix=TEMPORARY):
            return _enough(name, _free_gb(folder), DISK_GB, f" at {folder}")
    except OSError as error:
        return (
            if_refused,
            name,
            f"{there} cannot be written ({error.strerror}): work in another folder, or change its permissions",
        )


def room(profile: Profile, weights: dict[str, str] | None = None) -> Iterator[Line]:
    """RAM and disk that a profile needs (`plan.needs`, an estimate) beside what this machine has.

    Args:
        weights: files that the user gives instead of an encoder's own, by encoder.
    """
    from .plan import GENES, TOKENS, needs  # torch: seconds to import

    try:
        need = needs(profile, weights)
    except PekaError as unknown:
        yield ("note", "profile: needs", f"cannot be told: {unknown}")
        return
    memory, runs, downloads = (
        _memory_gb(),
        places.root() / "runs",
        Path(os.environ.get("PEKA_MIRROR") or cache_folder()),
    )
    genes = GENES.get(profile.source, 18_000)
    state = "note" if memory is None else "ok" if memory >= need.ram else "problem"
    here = "cannot be told on this system" if memory is None else f"{memory:.0f} GB are here"
    yield (
        state,
        "profile: memory",
        f"about {need.ram:.1f} GB; {here} (an estimate, for {min(TOKENS, genes):,} counted of {genes:,} genes a spot)",
    )
    fetched = 0.0 if os.environ.get("PEKA_MIRROR") else need.downloads
    shared = _same_disk(runs, downloads)
    for name, folder, gb, other in (
        ("profile: runs", runs, need.runs, fetched),
        ("profile: downloads", downloads, fetched, need.runs),
    ):
        free, needed = _free_gb(folder), gb + other * shared
        also = (
            f" ({needed:.1f} with {'downloads' if folder == runs else 'runs'}, on the same disk)"
            if shared and other
            else ""
        )
        yield (
            "ok" if free >= needed or not gb else "problem",
            name,
            f"about {gb:.1f} GB{also}; {free:.0f} GB free at {folder}",
        )


def _same_disk(*folders: Path) -> bool:
    return (
        len(
            {
                next(place for place in (folder, *folder.parents) if place.exists()).stat().st_dev
                for folder in folders
            }
        )
        == 1
    )


def _encoder(name: str) -> Line:
    """Whether the weights of an encoder can be had here, and under which terms."""
    if name not in rows():
        return (
            "ok",
            "encoder",
            f"{name}, " + ("in the package" if name in BUNDLED else "from timm, on first use"),
        )
    row = rows()[name]
    (here, where), can_come = whereabouts(row), reachable(row)
    token = " (and it is not set)" if lacks_token(row) else ""
    state = "ok" if here else "note" if can_come else "problem"
    otherwise = "" if here or can_come else f"; or --weights {name}=PATH"
    return (state, "encoder", f"{name}, {where}; {row.terms}{token}; {row.marks}{otherwise}")


def _python() -> Line:
    version, (low, high) = sys.version_info[:2], PYTHONS
    fits = low <= version <= high
    return (
        "ok" if fits else "problem",
        "Python",
        platform.python_version() + ("" if fits else "; 3.11 to 3.13 are tried"),
    )


def packages(constraints: Path | None = None) -> Iterator[Line]:
    """What this package requires: installed or not, and in the version that constraints.txt pins or another.

    Another version is a note, not a problem: results were made with the pinned ones.
    """
    path = constraints or places.bundled("constraints.txt")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), re.M)) if path.exists() else {}
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    if not pins:
        yield ("note", "constraints.txt", f"not found at {path}: versions are not compared")
    differ, same = [], 0
    for line in importlib.metadata.requires("peka-core"):
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            here = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield (
                "problem",
                requirement.name,
                "not installed: run make, or pip install -c constraints.txt -e .",
            )
            continue
        if not requirement.specifier.contains(here, prereleases=True):
            yield (
                "problem",
                requirement.name,
                f"{here} is too old or too new: {requirement.specifier} is needed",
            )
        pinned = pins.get(canonicalize_name(requirement.name), here)
        if here.partition("+")[0] != pinned:
            differ.append(f"{requirement.name} {here} (pinned {pinned})")
        else:
            same += 1
    yield (
        "note" if differ else "ok",
        "packages",
        f"{same} as pinned" + (f"; others: {', '.join(differ)}" if differ else ""),
    )


def _enough(name: str, gb: float | None, needed: float, where: str = "") -> Line:
    if gb is None:
        return ("note", name, "cannot be told on this system")
    text = f"{gb:.0f} GB free{where}" if "disk" in name else f"{gb:.0f} GB"
    return (
        ("ok", name, text)
        if gb >= needed
        else ("problem", name, f"{text}; `peka run demo` needs {needed} GB")
    )


def _memory_gb() -> float | None:
    """Memory of this machine, or what its container may take of it."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError):
        return None
    limit = LIMIT.read_text().strip() if LIMIT.is_file() else "max"
    return min(whole, int(limit) / 2**30) if limit.isdigit() else whole


def _free_gb(folder: Path) -> float:
    return free_bytes(folder) / 2**30


def _mirror() -> Line:
    mirror = os.environ.get("PEKA_MIRROR")
    if not mirror:
        return ("ok", "PEKA_MIRROR", f"not set: downloads go to {cache_folder()}")
    there = Path(mirror).is_dir()
    return (
        "ok" if there else "problem",
        "PEKA_MIRROR",
        mirror if there else f"{mirror} is no folder: correct or unset it",
    )
