"""data_manifest.yaml: what can be downloaded, pinned; fetch it, or find it in a mirror, and verify it.

A mirror is a directory with the manifest's relative paths, named by the environment variable PEKA_MIRROR; its
files are used in place. Otherwise files are downloaded once into PEKA_CACHE, or the user's cache folder.
"""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path

import pooch
import requests
import yaml

from ..errors import PekaError
from ..files import sha256, write_json, write_whole
from ..places import PACKAGE, cache_folder
from .network import check_network, told, told_by_name

NAME = "data_manifest.yaml"


def load_manifest(path: str | Path | None = None) -> dict:
    """The manifest as a mapping with `sources` and `encoders`.

    Args:
        path: a manifest file; by default the one that belongs to this code: around the package, else installed with it.

    Raises:
        PekaError: no such file.
    """
    found = [Path(path)] if path else [PACKAGE.parent / NAME, PACKAGE / "bundled" / NAME]
    for file in found:
        if file.is_file():
            return yaml.safe_load(file.read_text(encoding="utf-8"))
    raise PekaError(
        f"{found[0]}: missing; expected the list of pinned downloads. Install the package again, or work in a checkout."
    )


def git_blob_sha1(path: str | Path) -> str:
    """The SHA-1 that git gives a file's contents: over `blob <size>\\0` and the bytes."""
    total = hashlib.sha1(b"blob %d\0" % Path(path).stat().st_size)
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def fetch(
    source: str,
    files: list[str],
    folder: str | Path | None = None,
    dry_run: bool = False,
    manifest: dict | None = None,
) -> list[Path]:
    """Have files of a source on this machine, verified; finished ones are not downloaded again.

    Args:
        source: name in the manifest's `sources`.
        files: paths in the manifest, `her2st/data/ST-cnts/C3.tsv.gz`.
        folder: where downloads go, instead of the cache folder. Not used with a mirror.
        dry_run: print what would come from where, and touch nothing.
        manifest: the manifest; the checkout's where None.

    Returns:
        the files' paths, in the order of `files`.

    Raises:
        PekaError: unknown names, files absent from the mirror, a failed download, or a wrong digest.
    """
    entry = _entry(manifest or load_manifest(), source, files)
    mirror = os.environ.get("PEKA_MIRROR")
    home = Path(mirror) if mirror else Path(folder) if folder else cache_folder()
    paths = [home / file for file in files]
    if dry_run:
        print(_table(entry, files, paths, bool(mirror)))
        return paths
    if mirror:
        all_there(
            paths,
            home,
            "".join(_by_hand(entry["files"][file], path) for file, path in zip(files, paths)),
        )
    elif not all(path.exists() for path in paths):
        check_network(hub=False)
    seen = Verified((Path(folder) if folder and not mirror else cache_folder()) / "verified.json")
    for file, path in zip(files, paths):
        facts = entry["files"][file]
        if "terms" in facts and not (path.exists() and seen.knows(path, facts)):
            print(
                f"{path.name}: {facts['terms']}", file=sys.stderr
            )  # once: on the file's first use on this machine
        if not path.exists():
            _download(_url(entry, file), path, facts)
        elif not seen.knows(path, facts):
            verify(
                path, facts, "Replace it in the mirror." if mirror else "Delete it and fetch again."
            )
        seen.add(path, facts)
    seen.save()
    return paths


def _entry(manifest: dict, source: str, files: list[str]) -> dict:
    if source not in manifest["sources"]:
        raise PekaError(f"{NAME}: no source {source!r}; known: {', '.join(manifest['sources'])}.")
    entry = manifest["sources"][source]
    unknown = [file for file in files if file not in entry["files"]]
    if unknown:
        raise PekaError(
            f"{NAME}: source {source} has no file {unknown[0]} ({len(unknown)} unknown). Correct the name."
        )
    return entry


def _url(entry: dict, file: str) -> str:
    """The file's own `url`, or `url` of the source + the path without its first folder; "" where there is none."""
    own = entry["files"][file].get("url")
    return own if own is not None else entry["url"] + file.split("/", 1)[1]


def _by_hand(facts: dict, path: Path) -> str:
    """Where to get a file that cannot be downloaded from here, and where to put it."""
    return (
        f" By hand: {facts['by_hand']}; put it at {path}."
        if "by_hand" in facts and not path.exists()
        else ""
    )


def all_there(paths: list[Path], mirror: Path, by_hand: str = "") -> None:
    """Raise PekaError with the names of all files that a mirror lacks, and `by_hand`, where to get some of them."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        names = "\n  ".join(str(path) for path in missing)
        raise PekaError(
            f"{len(missing)} of {len(paths)} files are not in the mirror PEKA_MIRROR={mirror}:\n  {names}\n"
            f"Copy them there, ask for other files, or unset PEKA_MIRROR to download them.{by_hand}"
        )


def _download(url: str, path: Path, facts: dict) -> None:
    """Download under a temporary name, verify, then rename: a broken download leaves nothing behind."""
    if not url:
        raise PekaError(
            f"{path}: missing, and there is no address to download it from.{_by_hand(facts, path)}"
        )

    def write(temporary: Path) -> None:
        pooch.HTTPDownloader(progressbar=True)(url, str(temporary), None)
        verify(
            temporary,
            facts,
            "Start again; if it stays, the address no longer serves the pinned file.",
            url,
        )

    with told_by_name(url):
        try:
            write_whole(path, write)
        except requests.RequestException as error:
            why = "no connection" if type(error) is requests.ConnectionError else told(error)
            raise PekaError(
                f"{url}: download failed ({why}); expected {path.name}. Start again (finished files are kept), or put the "
                f"files into a directory and name it in PEKA_MIRROR.{_by_hand(facts, path)}"
            ) from error


def read_own(path: Path, next_step: str) -> dict:
    """A small JSON file that this code wrote: a mapping, empty where there is none yet.

    Raises:
        PekaError: it may not be read, is empty or damaged, or holds no mapping; ends with `next_step`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        why = (
            error.strerror
            if isinstance(error, OSError)
            else "it is empty"
            if not path.stat().st_size
            else "it is damaged"
        )
        raise PekaError(
            f"{path}: cannot be read ({why}); expected JSON that this program wrote. {next_step}"
        ) from error
    if not isinstance(content, dict):
        raise PekaError(
            f"{path}: expected a mapping in JSON, found {type(content).__name__}. {next_step}"
        )
    return content


def verify(
    path: Path, facts: dict, next_step: str, name: str | Path = "", listed_in: str | Path = NAME
) -> None:
    """Compare a file with what is known of it.

    Args:
        path: the file.
        facts: any of `size` (bytes), `blob` (git's SHA-1), `sha256`.
        next_step: last sentence of the error.
        name: what the error calls the file, instead of its path.
        listed_in: where the facts stand.

    Raises:
        PekaError: the first that differs.
    """
    checks = (
        ("size", lambda: path.stat().st_size),
        ("blob", lambda: git_blob_sha1(path)),
        ("sha256", lambda: sha256(path)),
    )
    for what, measure in checks:
        if what in facts and (got := measure()) != facts[what]:
            kind = {"blob": "git blob SHA-1"}.get(what, what)
            raise PekaError(
                f"{name or path}: {kind} is {got}, expected {facts[what]} ({listed_in}). {next_step}"
            )


class Verified:
    """Which files were verified, by path, size, time of change and digest, so that large files are hashed once."""

    def __init__(self, path: Path):
        self.path = path
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # it only saves time, so a damaged list starts anew
            known = {}
        self._known, self._changed = known if isinstance(known, dict) else {}, False

    @staticmethod
    def _mark(path: Path, facts: dict) -> list:
        state = path.stat()
        return [state.st_size, state.st_mtime_ns, facts.get("blob", ""), facts.get("sha256", "")]

    def knows(self, path: Path, facts: dict) -> bool:
        """True where this very file was verified before."""
        return self._known.get(str(path.resolve())) == self._mark(path, facts)

    def add(self, path: Path, facts: dict) -> None:
        """Remember a verified file."""
        if not self.knows(path, facts):
            self._known[str(path.resolve())] = self._mark(path, facts)
            self._changed = True

    def save(self) -> None:
        """Write the list where it can be written; it only saves time."""
        if self._changed:
            with contextlib.suppress(OSError, PekaError):
                write_json(self.path, self._known)


def _table(entry: dict, files: list[str], paths: list[Path], mirror: bool) -> str:
    """What a fetch would do, one line a file, and the sum of the known sizes."""
    lines, known = [], 0
    for file, path in zip(files, paths):
        size = entry["files"][file].get("size")
        known += size or 0
        where = str(path) if path.exists() else f"{path} (MISSING)" if mirror else _url(entry, file)
        lines.append(f"{file:<48} {f'{size / 1e6:.2f} MB' if size else '?':>10}  {where}")
    unknown = sum("size" not in entry["files"][file] for file in files)
    lines.append(
        f"{len(files)} files, {known / 1e6:.1f} MB"
        + (f" and {unknown} of unknown size" if unknown else "")
    )
    return "\n".join(lines)
