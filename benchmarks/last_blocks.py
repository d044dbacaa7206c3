"""Training the last blocks on cached tokens, beside training all blocks, over 50 epochs.

    python benchmarks/last_blocks.py                            # 40 blocks of width 96, on a CPU
    python benchmarks/last_blocks.py --encoder h-optimus-0 --batch 64 --tiles 2048     # on a GPU

Weights are drawn and tiles are noise. The recipe is `as_written`, without and with flips; for the
narrow network, block, hidden width and teacher are narrower by the same factor of 16. A few epochs
of both alignments are measured in turn. From their medians, 50 epochs are computed:

    all_s      50 x an epoch of all blocks
    cached_s   passes x the first pass (the frozen blocks of each tile) + 50 x an epoch of the last
               blocks, which reads the file of tokens
    passes     1, or with flips the mean number of orientations in which a tile is seen, 7.99
    flops      the same quotient all_s / cached_s in FLOPs, as the plan counts them: what it would
               be if everything but products were free, and all products were equally fast. The
               first pass is faster than that, because it has no backward pass.

On a CPU, seconds are CPU time of this process with one thread, because the machine has other work.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from alignment import drawn_encoder, on_meta

from peka_core import alignment
from peka_core.commands.plan import cost_of
from peka_core.common.device import best_device, product_type
from peka_core.common.files import write_whole
from peka_core.encoders import Encoder
from peka_core.recipe import RECIPES, Recipe
from peka_core.runner.provenance import provenance
from peka_core.student import Student
from peka_core.training_data import TrainingData
from peka_core.training_parts.tokens import orientations_seen, shape_of_tokens

TABLE = Path(__file__).with_suffix(".csv")
EPOCHS, NARROW = 50, 16
NARROWED = {"block": 256 // NARROW, "hidden": 512 // NARROW}


def deep_encoder(device: str, depth: int = 40) -> Encoder:
    """H-optimus-0's 40 blocks, 16 times narrower, with 8 x 8 patches of 28 px."""
    model = timm.models.VisionTransformer(
        patch_size=28, embed_dim=1536 // NARROW, depth=depth, num_heads=6, num_classes=0
    )
    model, half = model.eval().requires_grad_(False).to(device), (0.5,) * 3
    return Encoder(f"{depth} blocks of width 96", model, half, half, 96, device=device)


def seconds_of_epochs(
    encoder: Encoder, recipe: Recipe, data: TrainingData, clock: Callable[[], float]
) -> np.ndarray:
    """Seconds of each epoch of an alignment with bat; the first one makes the tokens."""
    starts, batches = [], alignment.batches

    def noted(*arguments):
        starts.append(clock())
        yield from batches(*arguments)

    student = Student(encoder, "bat", data.targets.shape[1], recipe)
    alignment.batches = noted
    try:
        alignment.align(student, data, recipe, progress=False)
    finally:
        alignment.batches = batches
    return np.diff([*starts, clock()])


def measure(encoder: Encoder, recipe: Recipe, last_blocks: int, n: int, repeats: int) -> list[dict]:
    """Two rows, without and with flips."""
    rng, d_teacher = np.random.default_rng(0), 6 * recipe.hidden
    tiles = rng.integers(0, 256, (n, encoder.size, encoder.size, 3), dtype=np.uint8)
    targets = rng.normal(size=(n, d_teacher)).astype(np.float32)
    data = TrainingData(tiles, targets, np.arange(n) % recipe.k, np.zeros(n, int))
    clock = time.process_time if encoder.device == "cpu" else time.perf_counter
    recipes = {"all": replace(recipe, epochs=2), "last": replace(recipe, epochs=4)}
    recipes["last"] = replace(recipes["last"], last_blocks=last_blocks)
    few, made = replace(data, rows=np.arange(min(n, 2 * recipe.batch_size))), []
    for one in recipes.values():
        seconds_of_epochs(encoder, one, few, clock)  # a warm-up, which compiles on a GPU
    for _ in range(repeats):
        made.append(
            {name: seconds_of_epochs(encoder, r, data, clock) for name, r in recipes.items()}
        )
    first = np.median([epochs["last"][0] for epochs in made])
    last = np.median([epochs["last"][1:] for epochs in made])
    whole = np.median([epochs["all"] for epochs in made])

    bfloat16 = product_type(encoder.device) == torch.bfloat16
    meta = replace(encoder, model=on_meta(encoder.model), device="meta")
    costs = {name: cost_of(meta, "bat", r, d_teacher, bfloat16) for name, r in recipes.items()}
    flops = {name: cost.step + cost.batch / recipe.batch_size for name, cost in costs.items()}
    t, d = shape_of_tokens(encoder.model)
    rows = []
    for flips in (False, True):
        passes = orientations_seen(replace(recipe, epochs=EPOCHS, flips=flips))
        all_s, cached_s = EPOCHS * whole, passes * (first - last) + EPOCHS * last
        in_flops = EPOCHS * flops["last"] + passes * costs["last"].frozen
        rows.append({
            "encoder": encoder.name, "method": "bat", "block": recipe.block,
            "batch": recipe.batch_size, "compile": encoder.compile, "last_blocks": last_blocks,
            "tiles": n, "flips": flips, "epoch_all_s": whole, "epoch_last_s": last,
            "pass_s": first - last, "passes": passes, "all_s": all_s, "cached_s": cached_s,
            "ratio": all_s / cached_s, "flops": EPOCHS * flops["all"] / in_flops,
            "mb_a_tile": passes * t * d * product_type(encoder.device).itemsize / 1e6,
        })  # fmt: skip
    return rows


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="", help="of the manifest; without it, the narrow one")
    parser.add_argument("--last-blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tiles", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    device, facts = best_device(), provenance()
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(1)
    encoder = drawn_encoder(options.encoder, device) if options.encoder else deep_encoder(device)
    encoder = replace(encoder, compile="never" if device == "cpu" else "always")
    recipe = replace(RECIPES["as_written"], batch_size=options.batch)
    recipe = recipe if options.encoder else replace(recipe, **NARROWED)
    made = measure(encoder, recipe, options.last_blocks, options.tiles, options.repeats)
    here = {name: facts[name] for name in ("device", "commit")} | {"torch": torch.__version__}
    table = pd.DataFrame(made).assign(**here)
    print(table.T.to_string())
    table = pd.concat([pd.read_csv(TABLE), table]) if TABLE.exists() else table
    write_whole(TABLE, lambda path: table.to_csv(path, index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
