"""record.json in the cache: what each file was at its first use, and which files were verified.

The record has an entry for each path of a file: `size`, `sha256` and, where the manifest pins it,
`blob`; `revision` and `source` of its download; `verified`, the place and the time of change of the
file that was compared with them, so that a large file is hashed only once.
"""

import hashlib
import json
import os
from pathlib import Path

from ..errors import PekaError
from ..files import PLACEHOLDERS, alone, sha256, what_is, write_json
from ..places import cache_folder
from .manifest import Download, load_manifest

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
        entries = _read_json(self.path) if self.path.exists() else _earlier_records()
        if not all(_is_entry(entry) for entry in entries.values()):
            raise _damaged(self.path)
        self.entries = entries

    def expected(self, file: Download) -> dict:
        """Size and digests that a file must have; no digest where it was never used before.

        The manifest decides. Where it pins no digest, the first use does.
        """
        if file.facts.keys() & set(DIGESTS):
            return file.facts
        entry = self.entries.get(file.path, {})
        return file.facts | {name: entry[name] for name in ("size", "sha256") if name in entry}

    def knows(self, file: Download) -> bool:
        """Whether this very file was verified before and has not changed since."""
        entry = self.entries.get(file.path, {})
        same = self.expected(file).items() <= entry.items()
        return same and file.is_here and entry.get("verified") == _state(file, file.place.stat())

    def revision(self, repo: str) -> str:
        """The commit from which files of a repository were downloaded before; empty before that."""
        found = (e["revision"] for e in self.entries.values() if e.get("source") == repo)
        return next((revision for revision in found if revision), "")

    def add(self, file: Download, facts: dict, state: os.stat_result, **origin: str) -> None:
        """Write down a verified file.

        Args:
            facts: size and digests, as `verify` returns them.
            state: of the file, which may still be on its way to its place.
            origin: `revision` and `source`; what the record has of them where they are not given.
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
    """Compare a file with what it must be.

    Args:
        path: the file.
        expected: any of `size` (bytes), `blob` (git's SHA-1) and `sha256`.
        listed_in: where these stand, for the message.
        next_step: the last sentence of the message.

    Returns:
        its size, sha256 and, where one is expected, blob.

    Raises:
        PekaError: it differs, or it only stands in for a file, such as an HTML page.
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
    """A mapping that this package wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise PekaError(f"{path} cannot be read ({why}). {RECOVER}") from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> PekaError:
    return PekaError(f"{path} is damaged: expected the sha256 of each file. {RECOVER}")


def _earlier_records() -> dict[str, dict]:
    """Entries from encoders/*/pin.json and hest/pins.json, which earlier versions wrote."""
    entries, hest = {}, cache_folder() / "hest" / "pins.json"
    for path in sorted((cache_folder() / "encoders").glob("*/pin.json")):
        pin = _read_json(path)
        if not _is_entry(pin) or "file" not in pin:
            raise _damaged(path)
        entries[f"encoders/{path.parent.name}/{pin.pop('file')}"] = pin
    if hest.exists():
        pins, repo = _read_json(hest), load_manifest()["sources"]["hest"]["hub"]["repo"]
        files = pins.get("files")
        if not (isinstance(files, dict) and all(_is_entry(facts) for facts in files.values())):
            raise _damaged(hest)
        origin = {"revision": pins.get("revision", ""), "source": repo}
        entries |= {f"hest/{name}": facts | origin for name, facts in files.items()}
    return entries


def _is_entry(entry) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
