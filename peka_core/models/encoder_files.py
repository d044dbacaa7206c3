"""Entries of encoders in data_manifest.yaml, and the file of weights that belongs to each entry.

A file lies at `encoders/<entry>/<file>` in the mirror or in the cache (`downloads.fetch`).
"""

import functools
import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..common.errors import PekaError
from ..common.files import sha256, sha256_once
from ..common.progress import say_once
from ..downloads import fetch
from ..downloads.manifest import Download, load_manifest, mirror
from ..downloads.network import has_token
from ..downloads.record import Record
from . import own_file

BUNDLED = ("mini", "random")  # encoders that come with the package: no rows, no downloads
MINI_WEIGHTS = Path(__file__).parent / "weights" / "mini.safetensors"
MINI_NETWORK = "mini-1"  # the architecture of `mini` and `random`


@dataclass(frozen=True)
class ManifestEntry:
    """One encoder of the manifest. The manifest's head explains each entry."""

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
        """How far the entry can be trusted, for lists."""
        marks = ["pinned" if self.pinned else "unpinned"]
        marks += ["tested with drawn weights" if self.tested else "untested"]
        if self.disagree:
            marks += [f"sources disagree or are silent on {', '.join(self.disagree)}"]
        return ", ".join(marks)

    @property
    def downloads(self) -> list[Download]:
        """The entry's file under each of its possible names."""
        if self.gated:
            way = f"accept the terms on {self.page} and set HF_TOKEN to a token of that account, "
            way += f"or use {self.instead}, which needs no token"
        elif self.hub_id or self.url:
            way = "try again with a network (no token is needed)"
        else:
            way = f"fetch {self.files[0]} by hand from {self.page}"
        step = f"The encoder {self.name!r} has no weights here: {way}, "
        step += f"or give the file as --weights {self.name}=PATH."
        facts = {"sha256": self.sha256} if self.sha256 else {}
        any_name = Download("", repo=self.hub_id, revision=self.revision, facts=facts)
        any_name = replace(any_name, gated=self.gated, otherwise=step)
        folder, url = f"encoders/{self.name}", self.url
        return [
            replace(any_name, path=f"{folder}/{name}", url=url and url + name, name=name)
            for name in self.files
        ]


@functools.cache
def manifest_entries() -> dict[str, ManifestEntry]:
    """All rows of the manifest by name, in its order.

    Raises:
        PekaError: there is no manifest.
    """
    return {
        name: ManifestEntry(name=name, **facts)
        for name, facts in load_manifest()["encoders"].items()
    }


def known_digest(entry: ManifestEntry) -> str:
    """sha256 that the entry's file must have; empty where neither manifest nor record has one."""
    return entry.sha256 or Record().expected(fetch.choose(entry.downloads)).get("sha256", "")


def location(entry: ManifestEntry) -> tuple[bool, str]:
    """Whether the entry's file is on this machine, and where it is or comes from.

    Nothing is read or downloaded.
    """
    file, folder = fetch.choose(entry.downloads), "mirror" if mirror() else "cache"
    if file.is_here:
        return True, f"in the {folder} ({file.place})"
    if mirror():
        return False, f"not in the mirror ({file.place})"
    by_hand = f"to be fetched by hand from {entry.page}"
    return False, f"to be downloaded from {entry.hub_id or entry.url}" if file.address else by_hand


def can_download(entry: ManifestEntry) -> bool:
    """Whether a download of the entry's file may be tried."""
    return bool(entry.hub_id or entry.url) and not mirror() and not needs_token(entry)


def needs_token(entry: ManifestEntry) -> bool:
    """Whether the entry is gated and no token is set."""
    return entry.gated and not has_token()


def find_weights(entry: ManifestEntry) -> tuple[Path, str, str]:
    """The entry's file on this machine, verified; downloaded first where it is not here.

    Returns:
        path, revision (empty where it is unknown) and sha256.

    Raises:
        PekaError: the file cannot be had, or it has another digest.
    """
    file = fetch.choose(entry.downloads, ask_hub=True)
    (path,) = fetch.fetch([file])
    record = Record()  # after the download, which it records
    revision = entry.revision or record.entries.get(file.path, {}).get("revision", "")
    return path, revision, record.expected(file)["sha256"]


def preflight(names: list[str], given: dict[str, str]) -> None:
    """Refuse, before any work, encoders whose weights are not here and cannot be downloaded.

    Args:
        names: encoders that a run needs.
        given: files of weights that the user gave, by encoder.

    Raises:
        PekaError: as `check_names`, or it names all encoders that cannot be had.
    """
    check_names(names, given)
    known = manifest_entries()
    wanted = [known[name] for name in names if name in known and name not in given]
    fetch.preflight([fetch.choose(entry.downloads) for entry in wanted])


def given_weights(name: str, path: str | Path) -> Path:
    """The user's file for an encoder; PekaError if it does not exist or may not be read."""
    if not Path(path).is_file():
        raise PekaError(
            f"no weights for encoder {name!r} at {path}: give the file as --weights {name}=PATH"
        )
    if not os.access(path, os.R_OK):
        raise PekaError(
            f"{path}: you may not read these weights for encoder {name!r}; ask their owner"
        )
    return Path(path)


def check_names(names: list[str], given: dict[str, str]) -> None:
    """Refuse unknown encoders, and given weights that do not exist or that no encoder needs."""
    known = manifest_entries()
    for name in names:
        if own_file.is_own(name):
            own_file.split_name(name)  # refuses a file that does not exist
        elif name not in BUNDLED and name not in known and not _timm_has(name):
            raise PekaError(
                f"no encoder {name!r}: there are mini, random, {', '.join(known)}, the names of "
                f"timm.list_models(), and {own_file.FORM}"
            )
    for name, path in given.items():
        if name not in names:
            raise PekaError(
                f"--weights {name}={path}: this run has no encoder {name!r}; it has "
                f"{', '.join(names)}"
            )
        given_weights(name, path)


def _timm_has(name: str) -> bool:
    """Whether timm has a model of this name, or it is on a hub, which only a download can tell."""
    import timm  # takes seconds

    on_hub = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    return on_hub or (timm.models.is_model_pretrained(name) if "." in name else timm.is_model(name))


def weights_digest(name: str, weights: str | Path | None = None, seed: int = 0) -> str:
    """Digest of an encoder's weights where it is known without loading them, else empty.

    It is the sha256 of the user's file, which is printed too; the pinned or recorded one of the
    manifest's entry; for `random`, the digest of its network's name and seed.

    Raises:
        PekaError: the user's file does not exist.
    """
    if weights:
        digest = sha256_once(given_weights(name, weights))
        say_once(f"encoder {name}: weights {Path(weights).name}, sha256 {digest}")
        return digest
    if name == "mini":
        return sha256(MINI_WEIGHTS)
    if name == "random":
        return hashlib.sha256(f"{MINI_NETWORK}, untrained, seed {seed}".encode()).hexdigest()
    entry = manifest_entries().get(name)
    return known_digest(entry) if entry else ""
