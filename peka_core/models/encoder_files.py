"""Rows of encoders in data_manifest.yaml, and the file of weights that belongs to a row.

A file lies at `encoders/<row>/<file>` in the mirror (PEKA_MIRROR; then nothing is downloaded) or in the cache. It must have
the manifest's digest; where the manifest knows none, that of the first file that was seen here, which `pin.json` keeps.
"""

import functools
import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from ..downloads.manifest import NAME, Verified, load_manifest, read_own
from ..downloads.network import check_network, told, told_by_name
from ..errors import PekaError
from ..files import PLACEHOLDERS, alone, sha256, sha256_once, what_is, write_json, write_whole
from ..places import cache_folder
from ..progress import say_once
from . import own_file
from .weight_files import given_weights

BUNDLED = ("mini", "random")  # encoders that come with the package: no rows, no files to fetch


@dataclass(frozen=True)
class Row:
    """One encoder of the manifest, whose head says what each entry means."""

    name: str
    title: str
    files: list[str]
    network: dict
    layout: str
    transform: dict
    pooling: str
    dim: int
    license: str
    gated: bool
    tested: bool
    pinned: bool
    revision: str = ""
    sha256: str = ""
    hub_id: str = ""
    url: str = ""
    page: str = ""
    instead: str = ""
    note: str = ""
    disagree: dict = field(default_factory=dict)

    @property
    def terms(self) -> str:
        """Licence and gate, for lists."""
        gate = f"gated, accept {self.page} and set HF_TOKEN" if self.gated else "no gate"
        return f"licence {self.license}; {gate}"

    @property
    def marks(self) -> str:
        """How far the row can be trusted, for lists."""
        marks = [
            "pinned" if self.pinned else "unpinned",
            "tested with drawn weights" if self.tested else "untested",
        ]
        return ", ".join(
            marks
            + (
                [f"sources disagree or are silent on {', '.join(self.disagree)}"]
                if self.disagree
                else []
            )
        )


@functools.cache
def rows() -> dict[str, Row]:
    """All rows of the checkout's manifest by name, in its order.

    Raises:
        PekaError: no manifest.
    """
    return {name: Row(name=name, **facts) for name, facts in load_manifest()["encoders"].items()}


def known_digest(row: Row) -> str:
    """sha256 that the row's file must have: the manifest's, else that of the first file seen here, else empty."""
    return row.sha256 or read_pin(row).get("sha256", "")


def read_pin(row: Row) -> dict:
    """What was recorded of the first file of a row: `file`, `revision`, `sha256`, `source`; empty before that.

    Raises:
        PekaError: the record is damaged.
    """
    path = _pin(row)
    step = "Delete it, and the file of weights that is here is recorded anew: compare it with what you trust first."
    pin = read_own(path, step)
    if pin and not all(isinstance(pin.get(name), str) for name in ("file", "revision", "sha256")):
        raise PekaError(
            f"{path}: expected file, revision and sha256 as texts, found {', '.join(pin)}. {step}"
        )
    return pin


def whereabouts(row: Row) -> tuple[bool, str]:
    """Whether the row's file is on this machine, and where it is or would come from; nothing is read or fetched."""
    folder, mirrored = _folder(row)
    if path := _there(row, folder):
        return True, f"in the {'mirror' if mirrored else 'cache'} ({path})"
    if mirrored:
        return False, f"not in the mirror ({folder / row.files[0]})"
    origin = row.hub_id or row.url
    return (
        False,
        f"to be downloaded from {origin}" if origin else f"to be fetched by hand from {row.page}",
    )


def find_weights(row: Row) -> tuple[Path, str, str]:
    """The row's file on this machine, verified; downloaded first where it is not there.

    A file that is here and recorded is only read, so a shared cache may be read-only; a lock is taken where something is written.

    Returns:
        path, revision (empty where it cannot be known) and sha256.

    Raises:
        PekaError: no such file to be had, or one with another digest.
    """
    folder, mirrored = _folder(row)
    step = "Replace it in the mirror." if mirrored else "Delete it and start again."
    path = _there(row, folder)
    if path is None and mirrored:
        raise no_weights(
            row,
            f"{folder / row.files[0]} is not in the mirror, and with PEKA_MIRROR nothing is downloaded",
        )
    if path is None or not known_digest(row):
        with alone(_pin(row).parent):
            path = _there(row, folder) or _download(
                row, folder
            )  # another process may have brought it meanwhile
            digest = _verify(row, path, step)
            if not read_pin(row):
                _record(
                    row,
                    path.name,
                    row.revision,
                    digest,
                    f"mirror {folder}" if mirrored else "a file in the cache",
                )
    else:
        digest = _verify(row, path, step)
    return path, row.revision or read_pin(row).get("revision", ""), digest


def no_weights(row: Row, why: str) -> PekaError:
    """The one message that ends a try to load an encoder whose file cannot be had."""
    steps = []
    if row.gated:
        steps += [f"accept the terms on {row.page} and set HF_TOKEN to a token of that account"]
        steps += [f"use {row.instead}, whose weights need no token"]
    elif row.hub_id or row.url:
        steps += ["start again with a network (no token is needed)"]
    else:
        steps += [f"fetch {row.files[0]} by hand from {row.page}"]
    steps += [f"give the file as --weights {row.name}=PATH"]
    steps += [
        f"put it at encoders/{row.name}/{row.files[0]} of a folder and name that folder in PEKA_MIRROR"
    ]
    return PekaError(
        f"encoder {row.name!r} has no weights here: {why}. Either {', or '.join(steps)}."
    )


def preflight(names: list[str], given: dict[str, str]) -> None:
    """Refuse before any work encoders whose weights cannot come: nowhere here, and no way to download them.

    Args:
        names: encoders that a run needs.
        given: weights that the user gave, by encoder.

    Raises:
        PekaError: as `check_names`, all encoders that cannot be had, or a network that is set up wrongly for a download.
    """
    check_names(names, given)
    missing, to_come = [], []
    for row in [rows()[name] for name in names if name in rows() and name not in given]:
        here, where = whereabouts(row)
        if not here and not reachable(row):
            missing.append(
                no_weights(row, where + (", and no token is set" if lacks_token(row) else ""))
            )
        elif not here:
            to_come.append(row)
    if missing:
        raise PekaError("\n".join(map(str, missing)))
    for on_hub in {bool(row.hub_id) for row in to_come}:
        check_network(on_hub)


def check_names(names: list[str], given: dict[str, str]) -> None:
    """Refuse encoders that nobody knows, and given weights that are not there or of an encoder that is not asked for."""
    for name in names:
        if own_file.is_own(name):
            own_file.split_name(name)  # the file exists
        elif name not in BUNDLED and name not in rows() and not _timm_has(name):
            raise PekaError(
                f"no encoder {name!r}: there are mini, random, {', '.join(rows())}, "
                f"the names of timm.list_models(), and {own_file.FORM}"
            )
    for name, path in given.items():
        if name not in names:
            raise PekaError(
                f"--weights {name}={path}: this run has no encoder {name!r}; it has {', '.join(names)}"
            )
        given_weights(name, path)


def _timm_has(name: str) -> bool:
    """Whether timm may have a model: by name, by name and tag, or on a hub (which only a download can tell)."""
    import timm  # seconds to import

    on_hub = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    return on_hub or (timm.models.is_model_pretrained(name) if "." in name else timm.is_model(name))


def reachable(row: Row) -> bool:
    """Whether a download of the row's file may be tried: it has an address, its gate may open, no mirror stands for the hub."""
    return (
        bool(row.hub_id or row.url) and not os.environ.get("PEKA_MIRROR") and not lacks_token(row)
    )


def lacks_token(row: Row) -> bool:
    """Whether the row is gated and no token is set."""
    from huggingface_hub import get_token

    return row.gated and get_token() is None


def _pin(row: Row) -> Path:
    return cache_folder() / "encoders" / row.name / "pin.json"


def _folder(row: Row) -> tuple[Path, bool]:
    """The row's folder in the mirror, True; or in the cache, False."""
    mirror = os.environ.get("PEKA_MIRROR")
    return (Path(mirror) if mirror else cache_folder()) / "encoders" / row.name, bool(mirror)


def _there(row: Row, folder: Path) -> Path | None:
    """The first of the row's files that is in a folder; once one is recorded, that one."""
    known = read_pin(row).get("file")
    return next(
        (folder / file for file in ([known] if known else row.files) if (folder / file).is_file()),
        None,
    )


def _verify(row: Row, path: Path, next_step: str) -> str:
    """The file's sha256, which must be the known one; a file that was verified before is not hashed again."""
    expected, seen = known_digest(row), Verified(cache_folder() / "verified.json")
    if expected and seen.knows(path, {"sha256": expected}):
        return expected
    if (
        not expected and (found := what_is(path)) in PLACEHOLDERS
    ):  # its digest is not worth recording
        raise PekaError(
            f"{path}: expected weights of encoder {row.name!r}, but it is {found}. {next_step}"
        )
    digest = sha256(path)
    if expected and digest != expected:
        source = NAME if row.sha256 else f"{_pin(row)}, written at the first download"
        raise PekaError(f"{path}: sha256 is {digest}, expected {expected} ({source}). {next_step}")
    seen.add(path, {"sha256": digest})
    seen.save()
    return digest


def _record(row: Row, file: str, revision: str, digest: str, source: str) -> None:
    write_json(_pin(row), {"file": file, "revision": revision, "sha256": digest, "source": source})


def _download(row: Row, folder: Path) -> Path:
    """Fetch the file beside its place, verify it, record it, then move it into its place."""
    partial = folder / ".partial"  # kept after a broken download: the hub's client goes on from it
    fetch = _from_hub if row.hub_id else _from_url if row.url else None
    if fetch is None:
        raise no_weights(row, f"{row.title} is on no hub")
    check_network(hub=bool(row.hub_id))
    with told_by_name(row.hub_id or row.url):
        fresh, revision = fetch(row, partial)
    try:
        digest = _verify(row, fresh, "It was thrown away; what is served is not the pinned file.")
    except PekaError:
        shutil.rmtree(partial)
        raise
    if not read_pin(row):
        _record(row, fresh.name, revision, digest, row.hub_id or row.url)
    path = folder / fresh.name
    os.replace(fresh, path)
    shutil.rmtree(partial)
    return path


def _from_hub(row: Row, partial: Path) -> tuple[Path, str]:
    """Download the first of the row's files that the hub has, at the row's or the recorded revision, else the newest."""
    from huggingface_hub import (  # a second to import
        errors,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
    )

    pin = read_pin(row)
    revision = row.revision or pin.get("revision") or None
    refused = (
        errors.HTTPError,
        errors.EntryNotFoundError,
        errors.OfflineModeIsEnabled,
    )  # no access, no such file, no network
    for file in [pin["file"]] if pin else row.files:
        try:
            commit = get_hf_file_metadata(
                hf_hub_url(row.hub_id, file, revision=revision)
            ).commit_hash
            return Path(
                hf_hub_download(row.hub_id, file, revision=commit, local_dir=partial)
            ), commit
        except errors.RemoteEntryNotFoundError as error:
            absent = error
        except refused as error:
            raise no_weights(row, f"{row.hub_id} gave no {file} ({told(error)})") from error
    raise no_weights(
        row, f"{row.hub_id} has no {' and no '.join(row.files)} at revision {revision or 'main'}"
    ) from absent


def _from_url(row: Row, partial: Path) -> tuple[Path, str]:
    """Download the row's one file from its address."""
    import pooch
    import requests

    path, url = partial / row.files[0], row.url + row.files[0]
    try:
        write_whole(
            path,
            lambda temporary: pooch.HTTPDownloader(progressbar=True)(url, str(temporary), None),
        )
    except requests.RequestException as error:
        raise no_weights(row, f"{url} gave nothing ({told(error)})") from error
    return path, row.revision


MINI_WEIGHTS = Path(__file__).parent / "weights" / "mini.safetensors"


MINI_NETWORK = "mini-1"  # its architecture, which `random` has too


def weights_digest(name: str, weights: str | Path | None = None, seed: int = 0) -> str:
    """Digest of an encoder's weights where it is known without loading them, else empty.

    A file's own sha256, printed where the user gave the file; the pinned or recorded one of a row of data_manifest.yaml;
    for `random` the name of its network and seed.

    Raises:
        PekaError: the user's file is not there.
    """
    if weights:
        digest = sha256_once(given_weights(name, weights))
        say_once(f"encoder {name}: weights {Path(weights).name}, sha256 {digest}")
        return digest
    if name == "mini":
        return sha256(MINI_WEIGHTS)
    if name == "random":
        return hashlib.sha256(f"{MINI_NETWORK}, untrained, seed {seed}".encode()).hexdigest()
    from ..models.encoder_files import known_digest, rows

    return known_digest(rows()[name]) if name in rows() else ""
