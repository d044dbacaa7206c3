"""Features, predictions and distances of a slide's tiles, kept in parts so that a run can go on.

A folder belongs to one request: a model, a slide, its pixel size and the centres of the tiles.
`request.json` in it says which. Each part is a file of 1,024 tiles that is written whole, so after
a kill the same request makes only the parts that are missing.
"""

import json
import sys
import zipfile
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..common.code_digest import digest_of_code
from ..common.errors import PekaError
from ..common.files import TEMPORARY, free_bytes, write_json, write_whole
from ..predict import Model
from ..training_parts.batches import in_turn
from .image import Slide, read_tiles

PART = 1024  # tiles
REQUEST = "request.json"
RESERVE = 100e6  # bytes of the disk that stay free
BYTES_OF_MAP = 1e6  # a PNG map has at most about this many


def code() -> str:
    """Twelve hex digits that name the code which reads tiles and predicts."""
    return digest_of_code(frozenset({"predict", "slides.parts"}))


def check_folder(out: Path, request: dict) -> None:
    """Refuse a folder that holds another request, or files that are not of a prediction."""
    if not out.exists():
        return
    if not out.is_dir():
        raise PekaError(f"{out} is a file; expected a folder. Give another --out.")
    path = out / REQUEST
    if not path.exists():
        if others := sorted(f.name for f in out.iterdir() if not f.name.startswith(".")):
            raise PekaError(
                f"{out} has other files in it (such as {others[0]}) and no {REQUEST}; expected a "
                "new or empty folder. Give another --out."
            )
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PekaError(f"{path} is damaged ({error}). Give another --out.") from error
    names = [*request, *sorted(before.keys() - request.keys())]
    if different := [name for name in names if before.get(name) != request.get(name)]:
        shown = lambda value: json.dumps(value)[:80]
        first = different[0]
        raise PekaError(
            f"{out} holds predictions of another request. Different: {', '.join(different)} "
            f"({first} was {shown(before.get(first))} and is {shown(request.get(first))}). "
            "Give another --out."
        )


def check_disk(out: Path, n: int, genes: int, features: int) -> None:
    """Refuse to begin if the disk has too little room for all files of n tiles."""
    twice = 2 * 4 * n * (genes + features)  # in the parts and in the h5ad
    needed = twice + 12 * n * genes + BYTES_OF_MAP * (genes + 2) + RESERVE
    if (free := free_bytes(out)) < needed:
        raise PekaError(
            f"{out}: the predictions of {n:,} tiles need {needed / 1e9:.2f} GB, and the disk has "
            f"{free / 1e9:.2f} GB free. Free some space, or give an --out on another disk."
        )


def begin(out: Path, request: dict) -> None:
    """Write the request, and remove what a killed process left half written."""
    if not (out / REQUEST).exists():
        write_json(out / REQUEST, request)
    for folder in (out, out / "parts", out / "maps"):
        for leftover in folder.glob(f"{TEMPORARY}*"):
            leftover.unlink(missing_ok=True)


def make_parts(
    model: Model, slide: Slide, centres: np.ndarray, out: Path, batch_size: int = 256
) -> dict[str, np.ndarray]:
    """Make the parts that are missing, and return `features`, `values`, `distance` of all tiles.

    A thread reads the next batch of tiles while the network works.

    Args:
        centres: (n, 2) in level-0 px.
        out: folder of the request; parts are `parts/part_00000.npz` and so on.

    Returns:
        features float32 (n, d), values float32 (n, g) in ln CP10K, distance float64 (n,).
    """
    n = len(centres)
    parts = {
        out / "parts" / f"part_{i:05d}.npz": range(start, min(start + PART, n))
        for i, start in enumerate(range(0, n, PART))
    }
    missing = {path: rows for path, rows in parts.items() if _read(path, len(rows)) is None}
    if done := n - sum(map(len, missing.values())):
        print(f"{done:,} of {n:,} tiles are predicted already", flush=True)
    batches = [
        (path, rows[i : i + batch_size])
        for path, rows in missing.items()
        for i in range(0, len(rows), batch_size)
    ]
    read = lambda batch: (batch[0], read_tiles(slide, centres[batch[1]])[0])
    often = {"mininterval": 0.2 if sys.stderr.isatty() else 10}  # seconds
    with tqdm(total=n, initial=done, desc="predict", unit="tile", **often) as bar:
        for path, group in groupby(in_turn(read, batches, ahead=True), lambda made: made[0]):
            embedded = [_embed(model, tiles, batch_size, bar) for _, tiles in group]
            features, distance = map(np.concatenate, zip(*embedded, strict=True))
            _write(path, model, features, distance)
    made = [_written(path, len(rows)) for path, rows in parts.items()]
    return {name: np.concatenate([part[name] for part in made]) for name in made[0]}


def _embed(model: Model, tiles: np.ndarray, batch_size: int, bar) -> tuple[np.ndarray, np.ndarray]:
    """Features (b, d) of a batch of tiles, and their distances (b,) to the training tiles."""
    features = model.embed(tiles, batch_size)
    distance = model.distance(model.frozen(tiles, features, batch_size))
    bar.update(len(tiles))
    return features, distance


def _written(path: Path, n: int) -> dict:
    """The arrays of a part that was just found or written."""
    if (part := _read(path, n)) is None:
        raise PekaError(f"{path} cannot be read back. Check the disk; then run the command again.")
    return part


def _write(path: Path, model: Model, features: np.ndarray, distance: np.ndarray) -> None:
    """Predict from features (m, d), and write them with the distances (m,) as one part."""
    values = model.predict(features)
    for name, array in (("feature", features), ("prediction", values), ("distance", distance)):
        if not np.isfinite(array).all():
            raise PekaError(
                f"the model gave a {name} that is no finite number, so {path.name} is not written. "
                "Use --device cpu, or another model."
            )

    def write(file: Path) -> None:
        np.savez(file, features=features, values=values, distance=distance)

    write_whole(path, write)


def _read(path: Path, n: int) -> dict | None:
    """The arrays of a part of n tiles, or None if it is missing, damaged or of another length."""
    try:
        with np.load(path) as file:
            part = {name: file[name] for name in ("features", "values", "distance")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        print(f"{path} is damaged, so it is made again", file=sys.stderr, flush=True)
        return None
    return part if all(len(array) == n for array in part.values()) else None
