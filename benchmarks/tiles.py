"""Milliseconds of a batch of tiles: from open files, through HDF5's selections, and from memory.

    python benchmarks/tiles.py

Draws 40 sections of 60 tiles into a temporary folder and writes benchmarks/tiles.csv.
"""

import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from peka_core.runner.provenance import provenance
from peka_core.tiles import TileReader

OUT = Path(__file__).with_suffix(".csv")
SECTIONS, TILES, BATCH, ROUNDS = 40, 60, 64, 20


def by_selection(files: list[Path], spots: np.ndarray) -> np.ndarray:
    """Tiles as h5py reads them, each file opened once for a batch."""
    tiles = np.empty((len(spots), 224, 224, 3), np.uint8)
    for i in np.unique(spots // TILES):
        places = np.flatnonzero(spots // TILES == i)
        with h5py.File(files[i]) as file:
            for place in places:
                file["img"].read_direct(tiles, np.s_[spots[place] % TILES], np.s_[place])
    return tiles


def milliseconds(read, orders: list[np.ndarray]) -> float:
    """Median time of a batch."""
    times = []
    for spots in orders:
        started = time.perf_counter()
        read(spots)
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


def main() -> None:
    """Measure random batches, as a training asks for them, and check that all ways agree."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.h5" for i in range(SECTIONS)]
        whole = rng.integers(0, 256, (SECTIONS * TILES, 224, 224, 3), dtype=np.uint8)
        for i, file in enumerate(files):
            with h5py.File(file, "w") as h5:
                images = whole[i * TILES : (i + 1) * TILES]
                h5.create_dataset("img", data=images, chunks=(1, 224, 224, 3))
        reader = TileReader([(file, np.arange(TILES)) for file in files])
        orders = [rng.integers(0, len(whole), BATCH) for _ in range(ROUNDS)]
        ways = {
            "open_files": lambda spots: reader[spots],
            "selections": lambda spots: by_selection(files, spots),
            "memory": lambda spots: whole[spots],
        }
        for read in ways.values():
            assert np.array_equal(read(orders[0]), whole[orders[0]])
        row = {f"{name}_ms": round(milliseconds(read, orders), 2) for name, read in ways.items()}
    facts = {name: provenance("cpu")[name] for name in ("device", "commit")}
    table = pd.DataFrame([{"batch": BATCH, "sections": SECTIONS, **row, **facts}])
    table.to_csv(OUT, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
