"""Speed and memory of an alignment: tiles a second and peak memory, beside what `peka run --plan` says.

    python benchmarks/alignment.py                                 # mini, on whatever device is here
    python benchmarks/alignment.py --encoder h-optimus-0 --block 256 --batch 32      # a GPU with 32 GB

Networks have the real shape and drawn weights, tiles are noise: one epoch over `--tiles` of them, after a warm-up of two
batches. Appends a row to benchmarks/alignment.csv, with the hardware.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from peka_core import backbones
from peka_core.alignment import align
from peka_core.encoder_files import rows
from peka_core.encoders import Encoder, has_bfloat16, load_encoder
from peka_core.files import write_whole
from peka_core.plan import cost_of, meta_encoder
from peka_core.provenance import Cost, best_device, provenance
from peka_core.recipe import Recipe
from peka_core.student import Student

TABLE = Path(__file__).with_suffix(".csv")
D_TEACHER = 3072


def drawn_encoder(name: str, device: str) -> Encoder:
    """An encoder's network with drawn weights, in its precision."""
    if name not in rows():
        return load_encoder(name, device=device)
    row = rows()[name]
    model = backbones.build(row, device).requires_grad_(False)  # drawn on the GPU in no time
    precision = "bfloat16" if device == "cuda" and has_bfloat16(device) else "float32"
    size = row.transform["crop"]
    return Encoder(name, model, (0.5,) * 3, (0.5,) * 3, row.dim, size, size, pool=row.pooling, precision=precision, device=device)


def measure(name: str, method: str, recipe: Recipe, n: int, device: str) -> dict:
    """One row: an epoch of `n` tiles."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)
    targets, labels, groups = rng.normal(size=(n, D_TEACHER)).astype(np.float32), np.arange(n) % recipe.k, np.zeros(n, int)
    student = Student(drawn_encoder(name, device), method, D_TEACHER, recipe)
    warm = np.arange(2 * recipe.batch_size) % n
    align(student, tiles, targets, labels, groups, recipe, rows=warm, progress=False)
    with Cost() as cost:
        start = time.perf_counter()
        align(student, tiles, targets, labels, groups, recipe, progress=False)
        seconds = time.perf_counter() - start
    planned = cost_of(meta_encoder(name), method, recipe, D_TEACHER)
    flops = n * planned.step + n / recipe.batch_size * planned.batch
    return {
        "encoder": name, "method": method, "block": recipe.block, "batch": recipe.batch_size, "tiles": n, "seconds": seconds,
        "tiles_per_s": n / seconds, "tflop_per_s": flops / seconds / 1e12, **{f"peak_{k}_gb": v / 1024 for k, v in cost.facts()["memory_mb"].items()},
        "planned_gb": (planned.fixed + recipe.batch_size * planned.tile) / 1e9, "precision": student.encoder.precision,
    }  # fmt: skip


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="mini")
    parser.add_argument("--method", default="bat")
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tiles", type=int, default=512)
    options = parser.parse_args()
    recipe = Recipe(epochs=1, batch_size=options.batch, block=options.block, rank=options.block, alpha=options.block, k=16, set_aside=0.0)
    torch.manual_seed(0)
    facts = provenance()
    row = measure(options.encoder, options.method, recipe, options.tiles, best_device()) | {"device": facts["device"], "commit": facts["commit"]}
    print(pd.Series(row).to_string())
    table = pd.concat([pd.read_csv(TABLE), pd.DataFrame([row])]) if TABLE.exists() else pd.DataFrame([row])
    write_whole(TABLE, lambda path: table.to_csv(path, index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
