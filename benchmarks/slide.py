"""A slide of 40,000 x 40,000 px that repeats real tissue: time and memory of reading it.

    python benchmarks/slide.py                        # writes it to a temporary folder, and reads
    python benchmarks/slide.py --keep slide.tif       # keeps the slide, for `peka predict`

Needs openslide (extra `wsi`) and ../shared, or another H&E picture of 0.5 um/px (`--tissue`). The
slide is a pyramid of three levels in JPEG tiles of 256 px, 0.5 um/px.
"""

import argparse
import functools
import resource
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from tiled_tiff import TILE, as_jpeg, write_by_tiles

from peka_core.slides.image import open_slide, read_tiles
from peka_core.slides.lattice import make_lattice
from peka_core.slides.tissue import find_tissue

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


def measure(path: Path, count: int) -> None:
    """Print seconds for mask and lattice, tiles per second, and the peak memory."""
    start = time.perf_counter()
    slide = open_slide(path)
    mask = find_tissue(slide)
    lattice = make_lattice(slide, mask)
    print(f"{slide.width} x {slide.height} px, {path.stat().st_size / 1e6:.0f} MB on disk")
    print(f"mask and lattice: {time.perf_counter() - start:.1f} s, share {mask.share:.2f}")
    start = time.perf_counter()
    centres = lattice.centres[:count]
    for first in range(0, len(centres), 256):
        read_tiles(slide, centres[first : first + 256])
    rate = len(centres) / (time.perf_counter() - start)
    print(f"{len(centres)} of {len(lattice.centres)} tiles: {rate:.0f} per s")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def main() -> None:
    """Parse the options, write the slide and read it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=40_000, help="of the slide, px")
    parser.add_argument("--tiles", type=int, default=2000, help="how many are read")
    parser.add_argument("--tissue", type=Path, default=CMU, help="an H&E picture of 0.5 um/px")
    parser.add_argument("--keep", type=Path, help="where the slide is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.keep or Path(folder) / "slide.tif"
        start = time.perf_counter()
        write_slide(path, options.tissue, options.side)
        print(f"written in {time.perf_counter() - start:.1f} s")
        measure(path, options.tiles)


if __name__ == "__main__":
    main()
