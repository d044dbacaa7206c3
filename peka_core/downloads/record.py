"""record.json in the cache: what each file was at its first use, and which files were verified.

An entry has `size`, `sha256` and, if the manifest pins it, `blob`; `revision` and `source` of the
download; and `verified`: place, size and time of the file that was compared with these digests. So
a large file is hashed only once.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..common.errors import PekaError
from ..common.file_kinds import PLACEHOLDERS, what_is
from ..common.files import alone, sha256, write_json
from ..common.folders import cache_folder
from .manifest import NAME, Download, load_manifest

DIGESTS = ("blob", "sha256")
RECOVER = (
    "Restore this file from a backup. If you remove it, each file that is here now is recorded "
    "anew as it is, so compare them first with copies that you trust."
)


class Record:
    """The record of the present cache folder, read anew for each object."""

    def __init__(self):
        self.path = cache_folder() / "record.json"
        self.read()

    def read(self) -> None:
        """Read the record; where there is none, take over the records of earlier versions."""
        if self.path.exists():
            self.entries = _checked(self.path, _read_json(self.path))
        else:
            self.entries = _earlier_entries()

    def expected(self, file: Download) -> dict:
        """Size and digests that a file must have, from the manifest or from its first use."""
        if file.is_pinned or file.path not in self.entries:
            return file.facts
        entry = self.entries[file.path]
        return file.facts | {name: entry[name] for name in ("size", "sha256") if name in entry}

    def authority(self, file: Download) -> str | Path:
        """Where the expected digest of a file is written, for messages."""
        if file.is_pinned:
            return NAME
        return self.path if file.path in self.entries else f"{file.address}, where it comes from"

    def knows(self, file: Download) -> bool:
        """Whether this very file was verified before and has not changed since."""
        entry = self.entries.get(file.path, {})
        same = self.expected(file).items() <= entry.items()
        return same and file.is_here and entry.get("verified") == _state(file, file.place.stat())

    def revision(self, repo: str) -> str:
        """The commit from which files of a repository were downloaded; empty if none was."""
        found = (e["revision"] for e in self.entries.values() if e.get("source") == repo)
        return next((revision for revision in found if revision), "")

    def add(self, file: Download, facts: dict, state: os.stat_result, **origin: str) -> None:
        """Write down a verified file.

        Args:
            facts: size and digests, as `verify` returns them.
            state: of the file, which may not be at its place yet.
            origin: `revision` and `source`; if they are not given, those of the record stay.
        """
        with alone(self.path):
            self.read()  # another process may have written meanwhile
            old = {"revision": "", "source": ""} | self.entries.get(file.path, {})
            new = facts | {"verified": _state(file, state)}
            self.entries[file.path] = old | new | origin
            write_json(self.path, self.entries)


def _state(file: Download, state: os.stat_result) -> list:
    return [str(file.place.resolve()), state.st_size, state.st_mtime_ns]


def verify(path: Path, expected: dict, listed_in: str | Path, next_step: str) -> dict:
    """Compare a file with what it must be; return its size, sha256 and, if expected, blob.

    Args:
        path: the file.
        expected: any of `size` (bytes), `blob` (git's SHA-1) and `sha256`.
        listed_in: where these values are written, for the message.
        next_step: the last sentence of the message.

    Raises:
        PekaError: the file differs, or it is a placeholder such as an HTML page.
    """
    found = {"size": path.stat().st_size, "sha256": sha256(path)}
    if "blob" in expected:
        found["blob"] = git_blob_sha1(path)
    different = [name for name in expected if found[name] != expected[name]]
    if (kind := what_is(path)) in PLACEHOLDERS:
        raise PekaError(f"{path} is {kind}, not the file itself. {next_step}")
    if different:
        name = different[0]
        raise PekaError(
            f"{path}: {name} is {found[name]}, expected {expected[name]} ({listed_in}). {next_step}"
        )
    return found


def git_blob_sha1(path: str | Path) -> str:
    """The SHA-1 that git gives to a file's contents: over `blob <size>\\0` and the bytes."""
    total = hashlib.sha1(b"blob %d\0" % Path(path).stat().st_size)
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise PekaError(f"{path} cannot be read ({why}). {RECOVER}") from error


def _checked(path: Path, entries: Any) -> dict[str, dict]:
    """Return the entries; each must have a sha256."""
    pairs = entries.items() if isinstance(entries, dict) else [(None, {})]
    if not all(isinstance(n, str) and isinstance(e, dict) and "sha256" in e for n, e in pairs):
        raise PekaError(f"{path} is damaged: expected the sha256 of each file. {RECOVER}")
    return entries


def _earlier_entries() -> dict[str, dict]:
    """Entries from encoders/*/pin.json and hest/pins.json, which earlier versions wrote."""
    entries, cache = {}, cache_folder()
    for path in (*cache.glob("encoders/*/pin.json"), *cache.glob("hest/pins.json")):
        folder, old = path.parent.relative_to(cache).as_posix(), _read_json(path)
        old = old if isinstance(old, dict) else {}
        # pin.json holds one file and its source, pins.json all files of HEST
        files = old.get("files") if folder == "hest" else {old.get("file"): old}
        hest = load_manifest()["sources"]["hest"]["hub"]["repo"]
        origin = {"revision": old.get("revision", ""), "source": old.get("source", hest)}
        for name, facts in _checked(path, files).items():
            entries[f"{folder}/{name}"] = origin | facts
    return entries
