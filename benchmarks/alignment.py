"""Speed and memory of an alignment, beside what `peka run --plan` says.

    python benchmarks/alignment.py                        # mini, on whatever device is here
    python benchmarks/alignment.py --encoder h-optimus-0 --block 256 --methods bat "peft bat"

The second line needs a GPU with 80 GB. Networks have the real shape and drawn weights, tiles are
noise. One epoch over `--tiles` of them is measured, after a warm-up of two batches. Methods are
those of the package. `peft bat` and `peft bone` are the same functions by peft's `MissConfig` in
the same loop, and `none` embeds the tiles with the frozen encoder. Each method runs with each of
`--batches`; a batch that does not fit is a row without numbers. Rows are appended to
benchmarks/alignment.csv.

    tflop_per_s     of the plan's count; weights that peft computes again do not count
    share           of what one large matrix product reaches in the same run and precision
    peak_process_gb largest memory of the process since it started, so rows only grow
"""

import argparse
import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from teacher import product_flops

from peka_core.alignment import align
from peka_core.commands.plan import cost_of, meta_encoder
from peka_core.common.device import best_device, has_bfloat16
from peka_core.common.errors import PekaError
from peka_core.common.files import write_whole
from peka_core.encoders import Encoder, load_encoder, precision_on
from peka_core.models import backbones
from peka_core.models.encoder_files import manifest_entries
from peka_core.recipe import Recipe
from peka_core.runner.cost import Cost
from peka_core.runner.provenance import provenance
from peka_core.student import Student, embed_tiles
from peka_core.training_data import TrainingData

TABLE = Path(__file__).with_suffix(".csv")
D_TEACHER = 3072
PEFT = {"peft bone": True, "peft bat": "bat"}


def drawn_encoder(name: str, device: str) -> Encoder:
    """An encoder's network with drawn weights, in its precision."""
    if name not in manifest_entries():
        return load_encoder(name, device=device)
    row = manifest_entries()[name]
    model = backbones.build(row, device).requires_grad_(False)
    size, precision = row.transform["crop"], precision_on(device, name, model)
    return Encoder(
        name,
        model,
        (0.5,) * 3,
        (0.5,) * 3,
        row.dim,
        size,
        size,
        pool=row.pooling,
        precision=precision,
        device=device,
    )


def drawn_student(encoder: Encoder, method: str, recipe: Recipe) -> Student:
    """A student of a method, or one with peft's layers in the place of ours."""
    if method not in PEFT:
        return Student(encoder, method, D_TEACHER, recipe)
    from peft import MissConfig, inject_adapter_in_model

    student = Student(encoder, "projector_only", D_TEACHER, recipe)
    config = MissConfig(
        r=recipe.block, target_modules=list(recipe.layers), init_weights=PEFT[method]
    )
    inject_adapter_in_model(config, student.network)
    return student


def measure(encoder: Encoder, method: str, recipe: Recipe, n: int) -> dict:
    """One row: an epoch of `n` tiles, or a pass for `none`; without times where it does not fit."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)
    targets, labels, groups = (
        rng.normal(size=(n, D_TEACHER)).astype(np.float32),
        np.arange(n) % recipe.k,
        np.zeros(n, int),
    )
    student = drawn_student(encoder, method, recipe)
    cost, planned = (
        Cost(),
        cost_of(meta_encoder(encoder.name), method.removeprefix("peft "), recipe, D_TEACHER),
    )

    def work(rows: np.ndarray) -> None:
        if method == "none":
            embed_tiles(student, tiles[: len(rows)], recipe.batch_size, progress=False)
        else:
            data = TrainingData(tiles, targets, labels, groups, rows)
            align(student, data, recipe, progress=False)

    row = {
        "encoder": encoder.name,
        "method": method,
        "block": recipe.block,
        "batch": recipe.batch_size,
        "tiles": n,
    }
    try:
        work(np.arange(2 * recipe.batch_size) % n)
        with cost:
            work(np.arange(n))
    except PekaError as error:
        print(error)
        return row
    flops = (
        n * planned.forward
        if method == "none"
        else n * planned.step + n / recipe.batch_size * planned.batch
    )
    if method != "none":  # a plan has no memory of inference
        row["planned_gb"] = (planned.fixed + recipe.batch_size * planned.tile) / 1e9
    peaks = {f"peak_{name}_gb": mb * 2**20 / 1e9 for name, mb in cost.facts()["memory_mb"].items()}
    return (
        row
        | peaks
        | {
            "seconds": cost.seconds,
            "tiles_per_s": n / cost.seconds,
            "tflop_per_s": flops / cost.seconds / 1e12,
        }
    )


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="mini")
    parser.add_argument("--methods", nargs="+", default=["bat"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32])
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--tiles", type=int, default=512)
    options = parser.parse_args()
    one = Recipe(
        epochs=1,
        warmup=0,
        block=options.block,
        rank=options.block,
        alpha=options.block,
        k=16,
        validation_share=0.0,
    )
    torch.manual_seed(0)
    device, facts, made = best_device(), provenance(), []
    encoder, training = (
        drawn_encoder(options.encoder, device),
        "bfloat16" if has_bfloat16(device) else "float32",
    )
    side = 8_192 if device == "cuda" else 1_024
    product = product_flops(device, shape=(side,) * 3, dtype=getattr(torch, training))
    for batch in options.batches:
        for method in options.methods:
            row = measure(encoder, method, replace(one, batch_size=batch), options.tiles)
            row["share"] = row.get("tflop_per_s", np.nan) * 1e12 / product
            precision = {"training": training, "embedding": encoder.precision}
            here = {name: facts[name] for name in ("device", "commit")}
            made.append(row | precision | here | {"torch": torch.__version__})
            print(
                *(
                    f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in row.items()
                ),
                flush=True,
            )
            gc.collect()  # a student's memory is free before the next one's peak is counted
    table = pd.DataFrame(made)
    table = pd.concat([pd.read_csv(TABLE), table]) if TABLE.exists() else table
    write_whole(TABLE, lambda path: table.to_csv(path, index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
