"""Files of HEST-1k slides: found in a mirror, or downloaded from the hub, and always the same bytes.

HEST's own relative paths, below `PEKA_MIRROR`/hest or below hest/ in the cache:
st/<id>.h5ad, patches/<id>.h5, metadata/<id>.json, and wsis/<id>.tif where asked for.
The data set's revision is not pinned in the manifest yet. So the first use notes revision and digests in hest/pins.json in
the cache, and later files must be the same.
"""

import os
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
from huggingface_hub import HfApi, get_token, hf_hub_download
from huggingface_hub.errors import HTTPError

from .. import places
from ..downloads import manifest
from ..downloads.network import check_network, told, told_by_name
from ..errors import PekaError
from ..files import CANNOT_WRITE, PLACEHOLDERS, free_bytes, one_name, sha256, what_is, write_json

SUFFIXES = {
    "st": "h5ad",
    "patches": "h5",
    "metadata": "json",
    "wsis": "tif",
}  # folder -> what is in it
PAGE = "https://huggingface.co/datasets/"
TILE_BYTES, COUNT_BYTES, SLIDE_BYTES = (
    150_528,
    25_000,
    4,
)  # a spot's tile; roughly its counts; a pixel of a slide, at most


def home() -> Path:
    """The folder that holds st/, patches/ and metadata/."""
    return Path(os.environ.get("PEKA_MIRROR") or places.cache_folder()) / "hest"


def patterns(ids: list[str], folders: list[str]) -> list[str]:
    """One pattern for each slide and folder; the end of the id is part of it, so TENX1 is not TENX13."""
    return [f"{folder}/{id}[_.]*" for folder in folders for id in ids]


def fetch_slides(
    table: pd.DataFrame, wsis: bool = False, dry_run: bool = False
) -> dict[str, dict[str, Path]]:
    """Have the files of some slides on this machine, verified: `{id: {"st": path, "patches": path, …}}`.

    Args:
        table: slides as in `hest_index.slides`; ids, spots and image sizes (for the estimate) are read.
        wsis: also the whole slide images, which are many times larger.
        dry_run: print what would come from where and its size, and touch nothing.

    Raises:
        PekaError: files absent from the mirror, the hub cannot be reached or refuses, no room, or other bytes than before.
    """
    folders, files = _files(table, wsis)
    names, mirror = (
        [name for own in files.values() for name in own.values()],
        os.environ.get("PEKA_MIRROR"),
    )
    paths = {
        id: {folder: home() / name for folder, name in own.items()} for id, own in files.items()
    }
    if dry_run:
        print(_plan(table, names, folders, mirror))
        return paths
    pins = Pins()
    if mirror:
        manifest.all_there([home() / name for name in names], Path(mirror))
    elif missing := [
        name for name in names if name not in pins.files or not (home() / name).is_file()
    ]:
        _download(missing, patterns(list(table.index), folders), pins)
    pins.check(names)
    return paths


def preflight(table: pd.DataFrame | None, wsis: bool = False) -> None:
    """Refuse before any work slides that cannot come: not here, and neither a mirror nor a token to have them from.

    Args:
        table: slides as in `fetch_slides`; None where there is no index yet to know them from.
    """
    names = (
        []
        if table is None
        else [name for own in _files(table, wsis)[1].values() for name in own.values()]
    )
    if mirror := os.environ.get("PEKA_MIRROR"):
        manifest.all_there([home() / name for name in names], Path(mirror))
    elif table is None or not all((home() / name).is_file() for name in names):
        if get_token() is None:
            raise PekaError(_how_to_get_in("no token is set"))
        check_network(hub=True)


def _files(table: pd.DataFrame, wsis: bool) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Folders, and of each slide its file in each of them, by HEST's own relative path."""
    folders = [folder for folder in SUFFIXES if wsis or folder != "wsis"]
    return folders, {id: {f: f"{f}/{id}.{SUFFIXES[f]}" for f in folders} for id in table.index}


class Pins:
    """hest/pins.json in the cache: the revision and the digest of every file that was ever used."""

    def __init__(self):
        self.path = places.cache_folder() / "hest" / "pins.json"
        step = "Restore it; or delete it, and the files that are here are noted anew as they are."
        known = manifest.read_own(self.path, step)
        files = known.get("files", {})
        if not (
            isinstance(files, dict) and all(isinstance(facts, dict) for facts in files.values())
        ):
            raise PekaError(
                f"{self.path}: expected size and sha256 of every file under `files`. {step}"
            )
        pinned = manifest.load_manifest()["sources"].get("hest", {}).get("hub", {}).get("revision")
        self.revision, self.files = pinned or known.get("revision", ""), files

    def add(self, name: str, facts: dict) -> None:
        """Note what a file has to be from now on."""
        self.files[name] = facts
        write_json(self.path, {"revision": self.revision, "files": self.files})

    def check(self, names: list[str]) -> None:
        """Raise PekaError where a file is not what was noted; note the new ones. Large files are hashed once."""
        seen = manifest.Verified(places.cache_folder() / "verified.json")
        for name in names:
            path, facts = home() / name, self.files.get(name)
            if facts is None:
                if (found := what_is(path)) in PLACEHOLDERS:
                    raise PekaError(
                        f"{path}: expected a file of HEST-1k, but it is {found}. Replace it."
                    )
                facts = {"size": path.stat().st_size, "sha256": sha256(path)}
                self.add(name, facts)
            elif not seen.knows(path, facts):
                step = "Restore that file; or, to accept another release, delete the list and build the cohort anew."
                manifest.verify(path, facts, step, listed_in=self.path)
            seen.add(path, facts)
        seen.save()


# ---- the hub -----------------------------------------------------------------------------------------------------


def _download(missing: list[str], wanted: list[str], pins: Pins) -> None:
    """Download what is missing, file by file: finished files are kept, and a broken connection goes on within a file."""
    with _told_how_to_get_in():
        pins.revision = pins.revision or _api().dataset_info(_repo(), expand=["sha"]).sha
        there = _listing(wanted, pins.revision)
    if absent := [name for name in missing if name not in there]:
        raise PekaError(
            f"{_repo()} at {pins.revision}: no {absent[0]} ({len(absent)} absent); expected it there. Use a mirror."
        )
    missing = [name for name in there if name in missing or not (home() / name).is_file()]
    size, free = sum(there[name]["size"] for name in missing), free_bytes(home())
    print(
        f"{len(missing)} files, {size / 1e9:.2f} GB, from {_repo()} at {pins.revision[:12]} to the cache",
        flush=True,
    )
    if size > free:
        raise PekaError(
            f"{home()}: {free / 1e9:.1f} GB free, {size / 1e9:.1f} GB needed. Make room, or set PEKA_CACHE."
        )
    for name in missing:
        with _told_how_to_get_in():
            where = {"local_dir": home(), "endpoint": os.environ.get("HF_ENDPOINT")}
            hf_hub_download(_repo(), name, repo_type="dataset", revision=pins.revision, **where)
        manifest.verify(
            home() / name,
            there[name],
            "Delete it and fetch again.",
            listed_in=f"{_repo()} on the hub",
        )
        pins.add(name, {"size": there[name]["size"], "sha256": sha256(home() / name)})


def _repo() -> str:
    return manifest.load_manifest()["sources"]["hest"]["hub"]["repo"]


def _api() -> HfApi:
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def _listing(wanted: list[str], revision: str) -> dict[str, dict]:
    """What the hub has of the wanted patterns: name -> size and sha256, or git blob where it is no large file."""
    found = {}
    for folder in dict.fromkeys(pattern.split("/")[0] for pattern in wanted):
        here = [pattern for pattern in wanted if pattern.startswith(folder + "/")]
        for file in _api().list_repo_tree(_repo(), folder, revision=revision, repo_type="dataset"):
            if any(fnmatchcase(file.path, pattern) for pattern in here):
                for part in file.path.split("/"):
                    one_name(part, f"{_repo()}, {file.path}:")
                large = getattr(file, "lfs", None)
                found[file.path] = {"size": file.size} | (
                    {"sha256": large.sha256} if large else {"blob": file.blob_id}
                )
    return found


@contextmanager
def _told_how_to_get_in():
    """Turn whatever the hub or the network says into one message with the three ways out."""
    check_network(hub=True)
    with told_by_name(_repo()):
        try:
            yield
        except (HTTPError, OSError) as error:
            if getattr(error, "errno", None) in CANNOT_WRITE:
                raise
            raise PekaError(_how_to_get_in(told(error))) from error


def _how_to_get_in(why: str) -> str:
    return (
        f"{_repo()} cannot be downloaded ({why}). HEST-1k is gated: accept its terms on "
        f"{PAGE}{_repo()} (granted at once) and put a token of that account into HF_TOKEN; then run the same command again, "
        "finished files stay. Without the hub: put st/, patches/ and metadata/ of these slides into a folder named hest and "
        "name the folder around it in PEKA_MIRROR."
    )


# ---- before a download -------------------------------------------------------------------------------------------


def _plan(table: pd.DataFrame, names: list[str], folders: list[str], mirror: str | None) -> str:
    """What a fetch would do: one line a slide and the sum, sizes from disk or hub, else an estimate that says so."""
    here = {name: (home() / name).stat().st_size for name in names if (home() / name).is_file()}
    known, why = here, ""
    if not mirror and len(here) < len(names):
        hub, why = _sizes_on_hub(patterns(list(table.index), folders))
        known = hub | here
    text, total = [], 0.0
    for id, row in table.iterrows():
        own = {folder: f"{folder}/{id}.{SUFFIXES[folder]}" for folder in folders}
        size = sum(known.get(name, _guess(row, folder)) for folder, name in own.items())
        state = "here" if set(own.values()) <= set(here) else "MISSING" if mirror else "to download"
        about = "" if set(own.values()) <= set(known) else "about"
        text.append(f"{id:<10} {row.spots:>6} spots  {about:>5} {size / 1e6:9.1f} MB  {state}")
        total += size
    about = "" if set(names) <= set(known) else "about "
    text.append(
        f"{len(names)} files of {len(table)} slides, {about}{total / 1e9:.2f} GB; {len(here)} of them are in {home()}"
    )
    if about:
        each = f"{TILE_BYTES / 1e3:.0f} kB a tile, {COUNT_BYTES / 1e3:.0f} kB of counts a spot"
        text.append(f"about: an estimate from the index ({each}){why}")
    return "\n".join(text)


def _sizes_on_hub(wanted: list[str]) -> tuple[dict[str, int], str]:
    """Sizes by name, or none and why; a dry run goes on without the hub."""
    try:
        with _told_how_to_get_in():
            newest = (
                _api().dataset_info(_repo(), expand=["sha"], timeout=10).sha
            )  # says at once where there is no way in
            return {
                name: facts["size"]
                for name, facts in _listing(wanted, Pins().revision or newest).items()
            }, ""
    except PekaError as error:
        return {}, f", since {error}"


def _guess(row: pd.Series, folder: str) -> float:
    """Bytes of a file: every spot has a tile, at most."""
    if folder == "wsis":
        return float(row.fullres_px_width) * float(row.fullres_px_height) * SLIDE_BYTES
    return (
        row.spots * {"patches": TILE_BYTES, "st": COUNT_BYTES}[folder]
        if folder in ("patches", "st")
        else 1000
    )
