"""Fetch files from the mirror, from the cache or from their address, and verify them."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pooch

from ..common.errors import PekaError
from ..common.files import CANNOT_WRITE, alone, free_bytes, told_when_full
from ..common.folders import cache_folder
from .manifest import Download, mirror
from .network import check_network, has_token, variables_set, without_secrets
from .record import DIGESTS, Record, verify

pooch.get_logger().setLevel("WARNING")  # its notes name folders of this machine

COPY_INSTEAD = (
    "You can also copy files, at these relative paths, into a folder and name it in PEKA_MIRROR. "
    "Then run the same command again; finished files stay."
)


def fetch(files: list[Download], dry_run: bool = False) -> list[Path]:
    """Fetch and verify files, and return their paths; verified files are not read again.

    With `dry_run` print where each file is or would come from and its size, and change nothing.

    Raises:
        PekaError: files are not in the mirror, cannot be downloaded, or have other bytes.
    """
    if dry_run:
        print(_plan(files))
        return [file.place for file in files]
    record, offers = Record(), {}
    if missing := [file for file in files if not file.is_here]:
        _check_sources(missing)
        _check_variables(missing)
        offers = _ask_hub(missing, record)
        _check_room(missing, offers)
    # Only the hub can say whether a file that was put into the cache by hand is the right one.
    by_hand = [file for file in files if file.is_here and file.kind == "dataset" and not mirror()]
    if by_hand := [f for f in by_hand if not f.is_pinned and f.path not in record.entries]:
        _check_variables(by_hand)
        offers |= _ask_hub(by_hand, record)
    for file in files:
        _have(file, record, offers.get(file.path, {}))
    return [file.place for file in files]


def preflight(files: list[Download]) -> None:
    """Refuse, before any work, files that are not here and cannot come.

    Raises:
        PekaError: names the files that the mirror lacks, that need a token which is not set, or
            that have no address; or the variables of the network that are wrong.
    """
    if missing := [file for file in files if not file.is_here]:
        _check_sources(missing)
        check_access(missing)


def check_access(files: list[Download]) -> None:
    """Refuse gated files where no token is set, and variables of the network that are wrong."""
    if closed := [file for file in files if file.gated and not has_token()]:
        raise _refused(closed, "it is gated and no token is set")
    _check_variables(files)


def _check_sources(missing: list[Download]) -> None:
    """Refuse files that cannot be downloaded: a mirror is named, or they have no address."""
    if folder := mirror():
        lines = [f"{len(missing)} wanted files are not in the mirror PEKA_MIRROR={folder}:"]
        lines += [f"  {file.place}" for file in missing]
        lines += ["Copy them there, or unset PEKA_MIRROR to download them."]
        lines += dict.fromkeys(file.otherwise for file in missing if file.otherwise)
        raise PekaError("\n".join(lines))
    if no_address := [file for file in missing if not file.address]:
        raise _refused(no_address, "there is no address to download it from")


def _check_variables(files: list[Download]) -> None:
    for hub in {bool(file.repo) for file in files}:
        check_network(hub)


def _check_room(missing: list[Download], offers: dict[str, dict]) -> None:
    """Say what will be downloaded; refuse it where the disk has too little room."""
    sizes = [(offers.get(file.path, {}) | file.facts).get("size", 0) for file in missing]
    size, free = sum(sizes) / 1e9, free_bytes(cache_folder()) / 1e9
    sources = ", ".join(dict.fromkeys(f.repo or urlsplit(f.url).netloc for f in missing))
    print(f"{len(missing)} files, {size:.2f} GB, are downloaded from {sources}", flush=True)
    if size > free:
        raise PekaError(
            f"{cache_folder()}: {free:.1f} GB are free, but the download needs {size:.1f} GB. "
            "Make room, or name another folder in PEKA_CACHE."
        )


def _refused(files: list[Download], why: str) -> PekaError:
    """The error about files that cannot be downloaded, with what a user can do instead."""
    alike: dict[tuple, list[str]] = {}  # HEST has hundreds of files with one address
    for file in files:
        alike.setdefault((file.address, file.otherwise), []).append(file.path)
    lines = []
    for (address, otherwise), paths in alike.items():
        names = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        place = f" from {address}" if address else ""
        lines.append(f"{names} cannot be downloaded{place}: {why}. {otherwise}".rstrip())
    return PekaError(("\n" if len(lines) > 1 else " ").join([*lines, COPY_INSTEAD]))


# ---- one file ------------------------------------------------------------------------------------


def choose(candidates: list[Download], ask_hub: bool = False) -> Download:
    """Choose among a file's possible names: the recorded one, else the first that is here.

    If none is here, choose the first that the hub has if `ask_hub`, else the first.
    """
    record = Record()
    left = [file for file in candidates if file.path in record.entries] or candidates
    if here := [file for file in left if file.is_here]:
        return here[0]
    if ask_hub and len(left) > 1 and left[0].repo and not mirror():
        _check_variables(left)
        offers = _ask_hub(left, record, need_all=False)
        return next(file for file in left if file.path in offers)
    return left[0]


def _have(file: Download, record: Record, offer: dict) -> None:
    """Download one file if it is not here, verify it and record it."""
    if record.knows(file):
        return
    if file.terms and file.path not in record.entries:
        print(f"{file.place.name}: {file.terms}", file=sys.stderr)
    if file.is_here and (file.is_pinned or file.path in record.entries):
        facts = _verify_here(file, record)
        with contextlib.suppress(OSError, PekaError):  # the cache may be read-only
            record.add(file, facts, file.place.stat())
        return
    with alone(cache_folder() / file.path):
        record.read()  # another process may have fetched it meanwhile
        if not file.is_here:
            _download(file, record, offer)
        elif not record.knows(file):
            revision = offer.get("revision", file.revision)
            origin = {"revision": revision, "source": str(mirror() or "a file in the cache")}
            record.add(file, _verify_here(file, record, offer), file.place.stat(), **origin)


def _verify_here(file: Download, record: Record, offer: dict | None = None) -> dict:
    step = "Replace it in the mirror." if mirror() else "Move it away and run the command again."
    if not file.is_pinned and file.path in record.entries:
        step += f" To accept this file instead, remove its entry from {record.path.name}."
    return verify(file.place, _expected(file, record, offer or {}), record.authority(file), step)


def _expected(file: Download, record: Record, offer: dict) -> dict:
    """Size and digests that a file must have: of manifest or record, and what the hub says."""
    of_hub = {name: offer[name] for name in ("size", *DIGESTS) if name in offer}
    return of_hub | record.expected(file)


def _download(file: Download, record: Record, offer: dict) -> None:
    """Download a file into a folder beside its place, verify and record it, then move it."""
    path = file.place
    partial = path.with_name(f".{path.name}.partial")  # stays after a broken download, to resume it
    revision = offer.get("revision") or file.revision
    with _explained(file), told_when_full(path):
        partial.mkdir(parents=True, exist_ok=True)
        if file.repo:
            where = {"repo_type": file.kind, "revision": revision or None, "local_dir": partial}
            fresh = Path(_api().hf_hub_download(file.repo, file.name, **where))
        else:  # pooch could compare a sha256, but not git's digest; `verify` below compares all
            fresh = Path(pooch.retrieve(file.url, None, path.name, partial, progressbar=True))
        try:
            step = "It was not kept. Try again; if it stays, the address serves another file."
            facts = verify(fresh, _expected(file, record, offer), record.authority(file), step)
        except PekaError:
            shutil.rmtree(partial)
            raise
        record.add(file, facts, fresh.stat(), revision=revision, source=file.address)
        os.replace(fresh, path)
        shutil.rmtree(partial)


@contextlib.contextmanager
def _explained(file: Download) -> Iterator[None]:
    """Turn the errors of other libraries into one message, but pass on those of a full disk."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError, ImportError) as error:  # requests' are OSErrors
        if getattr(error, "errno", None) in CANNOT_WRITE:
            raise
        raise _refused([file], f"{without_secrets(error)}{variables_set()}") from error


# ---- the hub -------------------------------------------------------------------------------------


def _api():
    from huggingface_hub import HfApi  # takes a second

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def _ask_hub(files: list[Download], record: Record, need_all: bool = True) -> dict[str, dict]:
    """Ask the hub for `revision`, `size`, and `sha256` or, for small files, `blob` of files.

    Raises:
        PekaError: the hub does not answer, or it lacks all files of a repository (with `need_all`:
            one of them).
    """
    offers: dict[str, dict] = {}
    for repo in dict.fromkeys(file.repo for file in files if file.repo):
        own = {file.name: file for file in files if file.repo == repo}
        first = next(iter(own.values()))
        with _explained(first):
            revision = first.revision or record.revision(repo)
            if not revision:
                info = _api().repo_info(repo, repo_type=first.kind, expand=["sha"], timeout=10)
                revision = info.sha
            items = _api().get_paths_info(repo, [*own], revision=revision, repo_type=first.kind)
        for item in [item for item in items if item.path in own]:
            digest = {"sha256": item.lfs.sha256} if item.lfs else {"blob": item.blob_id}
            offers[own[item.path].path] = {"revision": revision, "size": item.size} | digest
        absent = [file for file in own.values() if file.path not in offers]
        if absent and (need_all or len(absent) == len(own)):
            raise _refused(absent, f"the repository has no such file at {revision}")
    return offers


# ---- dry runs ------------------------------------------------------------------------------------


def _plan(files: list[Download]) -> str:
    """One line for each file with its size and place, and the sum of the sizes."""
    sizes = {file.path: file.facts["size"] for file in files if "size" in file.facts}
    sizes |= {file.path: file.place.stat().st_size for file in files if file.is_here}
    unknown, why = [file for file in files if file.path not in sizes], ""
    if unknown and not mirror():
        try:
            _check_variables(unknown)
            sizes |= {path: offer["size"] for path, offer in _ask_hub(unknown, Record()).items()}
        except PekaError as error:
            why = f"\nSizes after `about` are estimates, because the hub gave none. {error}"
    lines, total, missing = [], 0.0, sum(not file.is_here for file in files)
    for file in files:
        size = sizes.get(file.path, file.estimate)
        total += size
        text = f"{'' if file.path in sizes else 'about '}{size / 1e6:.2f} MB" if size else "?"
        come = "MISSING" if mirror() else f"to be downloaded from {file.address or 'nowhere'}"
        state = f"here, {file.place}" if file.is_here else come
        lines.append(f"{file.path:<48} {text:>18}  {state}")
    about = "about " if len(sizes) < len(files) else ""
    size = f"{about}{total / 1e9:.2f} GB"
    return "\n".join([*lines, f"{len(files)} files, {size}; {missing} are not here yet{why}"])
