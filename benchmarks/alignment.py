"""Speed and memory of an alignment, beside what `peka run --plan` says.

    python benchmarks/alignment.py                                      # mini, on what is here
    python benchmarks/alignment.py --encoders vit_base_patch16_224 \\
        --block 256 --tiles 64 --methods floor bat "peft bat" none      # on a CPU
    python benchmarks/alignment.py --gpu                                # what GPU lists, 8 minutes

The last line needs a GPU with 80 GB: H-optimus-0 and UNI, every method, compiled and not. It stops
before eight minutes are over, most important rows first. Networks have the real shape and drawn
weights, tiles are noise. One epoch over `--tiles` of them is measured, after a warm-up of two
batches, which compiles. Rows are appended to benchmarks/alignment.csv as they are made; a batch
that does not fit is a row without numbers. Methods are those of the package, and

    none                  embeds the tiles with the frozen encoder
    floor                 no adapter, but the loss's gradient flows through all blocks (only the
                          positions are trained): what a frozen network costs in the loop
    peft bat, peft bone   the same functions by peft's `MissConfig` in the same loop

    warm_up_s             seconds of the warm-up, with compiling
    tflop_per_s           of the plan's count; weights that peft computes again do not count
    share                 of what one large matrix product reaches in the same run, in the precision
                          of training, or of embedding for `none`
    peak_process_gb       largest memory of the process since it started, so rows only grow
"""

import argparse
import copy
import gc
import itertools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from teacher import product_flops
from torch import nn

from peka_core.alignment import align
from peka_core.commands.plan import StudentCost, cost_of
from peka_core.common.device import best_device, has_bfloat16
from peka_core.common.errors import PekaError
from peka_core.common.files import write_whole
from peka_core.encoders import Encoder, load_encoder, precision_on
from peka_core.models import backbones
from peka_core.models.encoder_files import BUNDLED, manifest_entries
from peka_core.recipe import Recipe
from peka_core.runner.cost import Cost
from peka_core.runner.provenance import provenance
from peka_core.student import Student, embed_tiles
from peka_core.training_data import TrainingData

TABLE = Path(__file__).with_suffix(".csv")
D_TEACHER = 3072
PEFT = {"peft bone": True, "peft bat": "bat"}
# encoder, batch, method, compile: of `--gpu`, in this order
GPU = [
    *itertools.product(["h-optimus-0"], [64], ["bat", "peft bat", "none"], ["always", "never"]),
    *itertools.product(["h-optimus-0"], [32, 128], ["bat"], ["always"]),
    *itertools.product(["uni"], [64], ["bat", "peft bat", "none"], ["always", "never"]),
    *itertools.product(
        ["h-optimus-0", "uni"], [32],
        ["bone", "lora", "adalora", "full", "projector_only", "floor"], ["always", "never"],
    ),
]  # fmt: skip
LIMIT = 450  # seconds after which `--gpu` starts no further row


def drawn_encoder(name: str, device: str) -> Encoder:
    """An encoder's network with drawn weights, in its precision."""
    if name in BUNDLED:
        return load_encoder(name, device=device)
    row = manifest_entries().get(name)
    if row is None:
        model, pool, size = timm.create_model(name, num_classes=0).eval().to(device), "token", 224
    else:
        model, pool, size = backbones.build(row, device), row.pooling, row.transform["crop"]
    model = model.requires_grad_(False)
    half, precision = (0.5,) * 3, precision_on(device, name, model)
    return Encoder(
        name, model, half, half, model.num_features if row is None else row.dim, size, size,
        pool=pool, precision=precision, device=device,
    )  # fmt: skip


def drawn_student(encoder: Encoder, method: str, recipe: Recipe) -> Student:
    """A student of a method, the floor, or a student with peft's layers in the place of ours."""
    if method not in (*PEFT, "floor"):
        return Student(encoder, method, D_TEACHER, recipe)
    student = Student(encoder, "projector_only", D_TEACHER, recipe)
    if method == "floor":
        positions = student.network.pos_embed.detach().clone()
        student.network.pos_embed = nn.Parameter(positions)
        return student
    from peft import MissConfig, inject_adapter_in_model

    layers, kind = list(recipe.layers), PEFT[method]
    config = MissConfig(r=recipe.block, target_modules=layers, init_weights=kind)
    inject_adapter_in_model(config, student.network)
    return student


def planned(encoder: Encoder, method: str, recipe: Recipe) -> StudentCost:
    """What the plan says of a method; peft's are like ours, and the floor is like bone."""
    known = "bone" if method == "floor" else method.removeprefix("peft ")
    meta = replace(encoder, model=on_meta(encoder.model), device="meta")
    return cost_of(meta, known, recipe, D_TEACHER)


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a network without values."""
    shapes = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()
    }
    shapes |= {id(b): b.detach().to("meta") for b in model.buffers()}
    return copy.deepcopy(model, shapes)


def measure(
    encoder: Encoder, method: str, recipe: Recipe, n: int, plan: StudentCost | None = None
) -> dict:
    """One row: an epoch of `n` tiles, or a pass for `none`; without times where it does not fit."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)
    targets = rng.normal(size=(n, D_TEACHER)).astype(np.float32)
    labels, groups = np.arange(n) % recipe.k, np.zeros(n, int)
    plan = plan or planned(encoder, method, recipe)
    student, cost = drawn_student(encoder, method, recipe), Cost()

    def work(rows: np.ndarray) -> None:
        if method == "none":
            embed_tiles(student, tiles[: len(rows)], recipe.batch_size, progress=False)
        else:
            data = TrainingData(tiles, targets, labels, groups, rows)
            align(student, data, recipe, progress=False)

    row = {
        "encoder": encoder.name, "method": method, "compile": encoder.compile,
        "block": recipe.block, "batch": recipe.batch_size, "tiles": n,
    }  # fmt: skip
    try:
        started = time.perf_counter()
        work(np.arange(min(n, 2 * recipe.batch_size)))
        row["warm_up_s"] = time.perf_counter() - started
        with cost:
            work(np.arange(n))
    except PekaError as error:
        print(error)
        return row
    flops = n * plan.forward
    if method != "none":  # a plan has no memory of inference
        flops = n * plan.step + n / recipe.batch_size * plan.batch
        row["planned_gb"] = (plan.fixed + recipe.batch_size * plan.tile) / 1e9
    peaks = {f"peak_{name}_gb": mb * 2**20 / 1e9 for name, mb in cost.facts()["memory_mb"].items()}
    times = {"seconds": cost.seconds, "tiles_per_s": n / cost.seconds}
    return row | peaks | times | {"tflop_per_s": flops / cost.seconds / 1e12}


def append(row: dict) -> None:
    """Print one row, and append it to the table."""
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
    print(*(f"{name} {value}" for name, value in shown.items()), flush=True)
    table = pd.DataFrame([row])
    table = pd.concat([pd.read_csv(TABLE), table]) if TABLE.exists() else table
    write_whole(TABLE, lambda path: table.to_csv(path, index=False, float_format="%.4g"))


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoders", nargs="+", default=["mini"])
    parser.add_argument("--methods", nargs="+", default=["bat"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32])
    parser.add_argument("--compile", nargs="+", default=["never"], choices=["always", "never"])
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--tiles", type=int, default=512)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    cases = [
        (encoder, batch, method, compile)
        for encoder in options.encoders
        for batch in options.batches
        for method in options.methods
        for compile in options.compile
    ]
    cases, block = (GPU, 256) if options.gpu else (cases, options.block)
    torch.manual_seed(0)
    device, facts, began = best_device(), provenance(), time.perf_counter()
    here = {name: facts[name] for name in ("device", "commit")} | {"torch": torch.__version__}
    training = "bfloat16" if has_bfloat16(device) else "float32"
    side = 8_192 if device == "cuda" else 1_024
    rates = {
        precision: product_flops(device, shape=(side,) * 3, dtype=getattr(torch, precision))
        for precision in ("float32", "bfloat16")
    }
    one = Recipe(epochs=1, warmup=0, block=block, rank=block, alpha=block, validation_share=0.0)
    encoders, plans = {}, {}
    for name, batch, method, compile in cases:
        if options.gpu and time.perf_counter() - began > LIMIT:
            print(f"stopped after {LIMIT} s, before {name}, {batch}, {method}, {compile}")
            break
        if name not in encoders:
            encoders = {name: drawn_encoder(name, device)}  # one at a time is in memory
        encoder, recipe = replace(encoders[name], compile=compile), replace(one, batch_size=batch)
        if (name, method) not in plans:
            plans[name, method] = planned(encoder, method, recipe)
        row = measure(encoder, method, recipe, options.tiles, plans[name, method])
        rate = rates[encoder.precision if method == "none" else training]
        row["share"] = row.get("tflop_per_s", np.nan) * 1e12 / rate
        append(row | {"training": training, "embedding": encoder.precision} | here)
        gc.collect()  # a student's memory is free before the next one's peak is counted


if __name__ == "__main__":
    main()
