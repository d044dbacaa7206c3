"""`peka doctor`: does this machine have what the README asks for? It shows no secret."""

import importlib.metadata
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..common import folders
from ..common.device import best_device, device_name
from ..common.errors import PekaError
from ..common.files import TEMPORARY, free_bytes
from ..models import own_file
from ..models.encoder_files import (
    BUNDLED,
    can_download,
    check_names,
    location,
    manifest_entries,
    needs_token,
)
from ..runner.profile import Profile, load_profile

PYTHONS = ((3, 11), (3, 13))
DISK_GB, MEMORY_GB = 2, 4  # what `demo` needs, and some more
CGROUP = Path("/sys/fs/cgroup/memory.max")  # limit of a container under Linux
Line = tuple[str, str, str]  # "ok", "note" or "problem"; what was checked; what was found


def examine(profile: str = "") -> Iterator[Line]:
    """One line for each check; with a profile also its encoder and its needs."""
    yield _python()
    yield from packages()
    yield "ok", "device", f"{best_device()}: {device_name()}"
    yield _enough("memory", memory_gb(), MEMORY_GB)
    yield _disk("disk of runs", folders.root() / "runs", if_refused="problem")
    yield _disk("disk of downloads", folders.cache_folder(), if_refused="note")
    yield _mirror()
    if os.environ.get("HF_TOKEN"):
        yield "ok", "HF_TOKEN", "set (not shown)"
    else:
        yield "note", "HF_TOKEN", "not set: only gated encoders and HEST-1k need it"
    if profile:
        yield _encoder(load_profile(profile).encoder)
        yield from room(load_profile(profile))


def _python() -> Line:
    low, high = PYTHONS
    fits, version = low <= sys.version_info[:2] <= high, platform.python_version()
    return ("ok", "Python", version) if fits else ("problem", "Python", f"{version}; 3.11 to 3.13")


def packages(constraints: Path | None = None) -> Iterator[Line]:
    """Whether the required packages are installed, in the versions of constraints.txt.

    The results were made with these versions. Another version is a note, not a problem.
    """
    path = constraints or folders.bundled("constraints.txt")
    text = path.read_text() if path.exists() else ""
    pins = {canonicalize_name(name): v for name, v in re.findall(r"^([\w.-]+)==(\S+)$", text, re.M)}
    if not pins:
        yield "note", "constraints.txt", f"not found at {path}: versions are not compared"
    differ, same = [], 0
    for wanted in map(Requirement, importlib.metadata.requires("peka-core") or []):
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            here = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            missing = "not installed: run make, or pip install -c constraints.txt -e ."
            yield "problem", wanted.name, missing
            continue
        if not wanted.specifier.contains(here, prereleases=True):
            yield "problem", wanted.name, f"{here} does not fit: {wanted.specifier} is needed"
        pinned = pins.get(canonicalize_name(wanted.name), here)
        if here.partition("+")[0] == pinned:
            same += 1
        else:
            differ.append(f"{wanted.name} {here} (pinned {pinned})")
    others = f"; others: {', '.join(differ)}" if differ else ""
    yield "note" if differ else "ok", "packages", f"{same} as pinned{others}"


def memory_gb() -> float:
    """Memory of this machine in GB, or the limit of its container."""
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    whole = psutil.virtual_memory().total
    return min(whole, int(limit) if limit.isdigit() else whole) / 2**30


free_gb = lambda folder: free_bytes(folder) / 2**30


def _enough(name: str, gb: float, needed: float, where: str = "") -> Line:
    text = f"{gb:.0f} GB{where}"
    if gb >= needed:
        return "ok", name, text
    return "problem", name, f"{text}; `peka run demo` needs {needed} GB"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _disk(name: str, folder: Path, if_refused: str) -> Line:
    """Free space of a folder, if a test file can be written there."""
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place, prefix=TEMPORARY):
            return _enough(name, free_gb(folder), DISK_GB, f" free at {folder}")
    except OSError as error:
        advice = "work in another folder, or change its permissions"
        return if_refused, name, f"{place} cannot be written ({error.strerror}): {advice}"


def _mirror() -> Line:
    mirror = os.environ.get("PEKA_MIRROR")
    if mirror and not Path(mirror).is_dir():
        return "problem", "PEKA_MIRROR", f"{mirror} is no folder: correct or unset it"
    return "ok", "PEKA_MIRROR", mirror or f"not set: downloads go to {folders.cache_folder()}"


def _encoder(name: str) -> Line:
    """Whether the weights of an encoder are here or can be downloaded, and under which terms."""
    if name not in manifest_entries():
        place = "in the package" if name in BUNDLED else "from timm, on first use"
        if own_file.is_own(name):
            check_names([name], {})
            place = "your own file"
        return "ok", "encoder", f"{name}, {place}"
    row = manifest_entries()[name]
    (here, where), can_come = location(row), can_download(row)
    token = " (and it is not set)" if needs_token(row) else ""
    state = "ok" if here else "note" if can_come else "problem"
    otherwise = "" if here or can_come else f"; or --weights {name}=PATH"
    return state, "encoder", f"{name}, {where}; {row.terms}{token}; {row.marks}{otherwise}"


def room(profile: Profile, weights: dict[str, str] | None = None) -> Iterator[Line]:
    """RAM and disk that a profile needs and that this machine has; `weights` as in `needs`."""
    from .needs import needs  # imports torch, which takes seconds

    try:
        need = needs(profile, weights)
    except PekaError as unknown:
        yield "note", "profile: needs", f"unknown: {unknown}"
        return
    memory = memory_gb()
    found = f"about {need.ram:.1f} GB; {memory:.0f} GB are here ({need.counts})"
    yield "ok" if memory >= need.ram else "problem", "profile: memory", found
    mirror = os.environ.get("PEKA_MIRROR")
    runs, downloads = folders.root() / "runs", Path(mirror or folders.cache_folder())
    fetched = 0.0 if mirror else need.downloads
    shared = len({_existing(folder).stat().st_dev for folder in (runs, downloads)}) == 1
    for name, folder, gb, other, other_gb in (
        ("runs", runs, need.runs, "downloads", fetched),
        ("downloads", downloads, fetched, "runs", need.runs),
    ):
        together, free = gb + other_gb * shared, free_gb(folder)
        also = f" ({together:.1f} with {other}, on the same disk)" if together > gb else ""
        state = "ok" if free >= together or not gb else "problem"
        yield state, f"profile: {name}", f"about {gb:.1f} GB{also}; {free:.0f} GB free at {folder}"
