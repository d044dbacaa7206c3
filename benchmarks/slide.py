"""`peka predict` on a small real slide and on a large one: time, memory, and after SIGKILL.

    python benchmarks/slide.py MODEL        # a folder that `peka export` wrote

The large slide has 40,000 x 40,000 px and repeats the tissue of the small one. It is a pyramid of
three levels in JPEG tiles of 256 px, 0.5 um/px. Needs openslide (extra `wsi`) and ../shared, or
another H&E picture of 0.5 um/px (`--tissue`). LazySlide (extra `ecosystem`) is measured too if it
is installed.
"""

import argparse
import functools
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
from tiled_tiff import TILE, as_jpeg, write_by_tiles

from peka_core.common.device import device_name
from peka_core.common.files import sha256
from peka_core.runner.provenance import commit
from peka_core.slides.image import open_slide

TABLE = Path(__file__).with_suffix(".csv")
REPEAT = 2048  # px of the tissue that is repeated
DOWN = (1, 4, 16)  # of the levels
CMU = Path(__file__).parents[2] / "shared/data/wsi/CMU-1-Small-Region.svs"


def write_slide(path: Path, tissue: Path, side: int = 40_000) -> Path:
    """Write a pyramidal TIFF whose px at (x, y) is that of the tissue at (x, y) modulo 2048."""
    square = open_slide(tissue, 0.5).read(0, 0, REPEAT, REPEAT)
    size = lambda down: (REPEAT // down, REPEAT // down)
    small = [cv2.resize(square, size(down), interpolation=cv2.INTER_AREA) for down in DOWN]
    tiled = [np.tile(image, (max(1, 2 * TILE // len(image)),) * 2 + (1,)) for image in small]

    @functools.cache
    def piece(level: int, x: int, y: int) -> bytes:
        return as_jpeg(tiled[level][y : y + TILE, x : x + TILE])

    def tile(level: int, column: int, row: int) -> bytes:
        every = len(small[level])
        return piece(level, column * TILE % every, row * TILE % every)

    sizes = [(-(-side // down), -(-side // down)) for down in DOWN]
    return write_by_tiles(path, sizes, tile, square, um_per_px=0.5, jpeg=True)


def run(words: list[str], stop: Callable[[], bool] = lambda: False) -> tuple[float, float]:
    """Seconds and peak GB of a Python process; it is killed with SIGKILL when `stop` says so."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *words], stdout=said, stderr=said)
        while not (done := os.wait4(process.pid, os.WNOHANG))[0]:
            if stop():
                process.kill()
            time.sleep(0.05)
        _, status, usage = done
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{' '.join(words)} failed: {text[-2000:]}")
    if "No tissue is found" in text:  # by LazySlide, which goes on without tiles
        return np.nan, np.nan
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def files(folder: Path) -> dict[str, str]:
    """sha256 of each file that a prediction leaves."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and ".locks" not in p.parts)
    return {p.relative_to(folder).as_posix(): sha256(p) for p in found}


def measure(name: str, model: Path, slide: Path, folder: Path) -> dict:
    """Predict a slide, whole and killed half-way, and by LazySlide where it is installed."""
    words = ["-m", "peka_core", "predict", "--model", str(model), "--slide", str(slide), "--out"]
    whole, killed = folder / f"{name}-whole", folder / f"{name}-killed"
    seconds, peak = run([*words, str(whole)])
    parts = len(list((whole / "parts").glob("part_*.npz")))
    have = lambda: len(list((killed / "parts").glob("part_*.npz"))) >= (parts + 1) // 2
    first, second = run([*words, str(killed)], have), run([*words, str(killed)])
    row = {"what": name, "tiles": tiles(whole)}
    row |= {"seconds": round(seconds, 1), "peak_gb": round(peak, 2)}
    row |= {
        "resumed_s": round(first[0] + second[0], 1),
        "same_files": files(whole) == files(killed),
    }
    if importlib.util.find_spec("lazyslide"):
        plugin = Path(__file__).parents[1] / "examples/lazyslide_plugin.py"
        seconds, peak = run([str(plugin), str(model), str(slide)])
        row |= {"lazyslide_s": round(seconds, 1), "lazyslide_gb": round(peak, 2)}
    return row | {"device": device_name("cpu"), "commit": commit()}


def tiles(out: Path) -> int:
    """Number of tiles in the folder of a prediction."""
    with h5py.File(out / "predictions.h5ad") as file:
        return file["obsm/spatial"].shape[0]


def main() -> None:
    """Predict both slides and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder that `peka export` wrote")
    parser.add_argument("--side", type=int, default=40_000, help="of the large slide, px")
    parser.add_argument("--tissue", type=Path, default=CMU, help="an H&E picture of 0.5 um/px")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = write_slide(Path(folder) / "large.tif", options.tissue, options.side)
        slides = {options.tissue.stem: options.tissue, f"{options.side} x {options.side} px": large}
        rows = []
        for name, slide in slides.items():
            rows.append(measure(name, options.model, slide, Path(folder)))
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()
