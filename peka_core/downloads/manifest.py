"""data_manifest.yaml: which files can be downloaded, from where, and what their bytes must be."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..common.errors import PekaError
from ..common.folders import PACKAGE, cache_folder

NAME = "data_manifest.yaml"


@dataclass(frozen=True)
class Download:
    """One file that can be downloaded, from a hub repository or from a plain address."""

    path: str  # relative path in the mirror and in the cache
    url: str = ""  # plain address
    repo: str = ""  # repository on the Hugging Face hub
    kind: str = "model"  # or "dataset": the type of that repository
    name: str = ""  # the file's path inside that repository
    revision: str = ""  # commit or release; empty where the manifest does not pin it yet
    facts: dict = field(default_factory=dict)  # what the manifest pins: size, blob, sha256
    gated: bool = False  # whether the hub asks for a token
    terms: str = ""  # conditions of use, shown when the file is first used
    otherwise: str = ""  # whole sentences: what a user can do when the download fails
    estimate: float = 0.0  # bytes to expect where nothing states the size

    @property
    def is_pinned(self) -> bool:
        """Whether the manifest knows a digest of the file."""
        return "sha256" in self.facts or "blob" in self.facts  # blob: git's SHA-1

    @property
    def address(self) -> str:
        """Where it is downloaded from; empty if it has to be fetched by hand."""
        return self.repo or self.url

    @property
    def place(self) -> Path:
        """Its path on this machine, even if it is missing: in the mirror, else in the cache."""
        return (mirror() or cache_folder()) / self.path

    @property
    def is_here(self) -> bool:
        """Whether there is a file at `place`."""
        return self.place.is_file()


def mirror() -> Path | None:
    """The folder that PEKA_MIRROR names; its files are used in place and nothing is downloaded."""
    folder = os.environ.get("PEKA_MIRROR")
    return Path(folder) if folder else None


def load_manifest(path: str | Path | None = None) -> dict:
    """The manifest, which has `sources` and `encoders`, of the checkout or the installed package.

    Raises:
        PekaError: there is no such file.
    """
    found = [Path(path)] if path else [PACKAGE.parent / NAME, PACKAGE / "bundled" / NAME]
    for file in found:
        if file.is_file():
            return yaml.safe_load(file.read_text(encoding="utf-8"))
    raise PekaError(
        f"{found[0]} is missing; it lists the pinned downloads. Install the package again."
    )


def source_files(source: str, paths: list[str]) -> list[Download]:
    """Files that the manifest lists under one source.

    Args:
        source: a name in the manifest's `sources`.
        paths: paths as in the manifest, `her2st/data/ST-cnts/C3.tsv.gz`.

    Raises:
        PekaError: the manifest does not have such a source or file.
    """
    sources = load_manifest()["sources"]
    if source not in sources:
        raise PekaError(f"{NAME}: no source {source!r}; known: {', '.join(sources)}.")
    entry = sources[source]
    unknown = [path for path in paths if path not in entry["files"]]
    if unknown:
        raise PekaError(f"{NAME}: source {source} lists no {', '.join(unknown)}.")
    files = []
    for path in paths:
        facts = entry["files"][path]
        # the file's own address, or that of the source and the path without its first folder
        url = facts.get("url", entry["url"] + path.split("/", 1)[1])
        pinned = {name: facts[name] for name in ("size", "blob", "sha256") if name in facts}
        step = f"Otherwise fetch it by hand: {facts['by_hand']}." if "by_hand" in facts else ""
        terms = facts.get("terms", "")
        files.append(Download(path, url, facts=pinned, terms=terms, otherwise=step))
    return files
