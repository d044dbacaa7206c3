"""Train `mini` on drawn tissue to predict which share of each cell type a crop shows.

    python scripts/pretrain_mini.py [--steps 900] [--threads 2] [--out mini.safetensors]

It takes about ten minutes on a CPU. The patients are in no demo cohort, because their seed is
another one, and no counts are used. Nuclear size and chromatin are never labels, and changes of
scale and stain make both unreliable. So the features contain only a part of them. We designed it in
this way, so that an alignment has something to teach.

It writes peka_core/models/weights/mini.safetensors (float16), and mini.json with its digest, its
probes and how it was made. Another run gives slightly different weights, because sums in bfloat16
depend on the machine and the number of threads.
"""

import argparse
import json
import math
import platform
import time
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from safetensors.torch import save as to_bytes
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm.auto import tqdm

from peka_core.common.files import sha256, write_whole
from peka_core.drawn import drawing, painting
from peka_core.models.encoder_files import MINI_WEIGHTS
from peka_core.models.mini import MINI_DIM, MINI_MEAN, MINI_STD, build_mini

RECIPE = {
    "seed": 90_001,  # of tissue, weights and batches; demo cohorts use small seeds
    "patients": 120,  # one section each
    "spots": 90,  # size of a section
    "steps": 900,
    "batch_size": 128,
    "group": 16,  # crops of one batch that share section and scale
    "scale": [0.6, 1.5],  # magnification, log-uniform
    "lr": 1e-3,
    "weight_decay": 0.05,
    "warmup": 60,  # steps
    "label_weights": [1, 1, 1, 0.8, 1, 6],  # tumour, gland, fibroblast, lymphocyte, macrophage, fat
    "label_offset": 0.3,  # cells added to each type before shares are taken
    "density_gain": [0.3, 0.15],  # sd of log gain of optical density, per image and per channel
    "density_gamma": 0.3,  # sd of log exponent of optical density
}
PROBE_SEED, PROBE_PATIENTS, PROBE_TRAIN = 90_002, 36, 24  # other patients again


def draw_tissue(seed, patients, spots):
    """One painted section of each patient: list of (Section, uint8 image)."""
    tissue = []
    for patient in tqdm(range(1, patients + 1), desc="drawing", mininterval=5):
        section = drawing.plan_section(seed, patient, 1, spots)
        tissue.append((section, painting.paint(section)))
    return tissue


def crop_with_label(rng, section, image, scale, recipe):
    """A random window resized to 112 px, and the shares of cell types in it."""
    side = drawing.TILE / scale  # µm
    height, width = image.shape[:2]
    centre = rng.uniform(side / 2, [width - side / 2, height - side / 2])
    shift = (np.array([drawing.TILE, drawing.TILE]) - 1) / 2 - scale * centre
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    crop = cv2.warpAffine(
        image, matrix, (drawing.TILE, drawing.TILE), borderMode=cv2.BORDER_REFLECT
    )
    kinds = section.cells.kind[drawing.inside_window(section, centre, side)]
    weight = (
        np.bincount(kinds, minlength=6) * np.array(recipe["label_weights"]) + recipe["label_offset"]
    )
    if rng.random() < 0.5:
        crop = crop.transpose(1, 0, 2)
    return np.rot90(crop, rng.integers(4)), weight / weight.sum()


def draw_batch(rng, tissue, recipe):
    """x (B, 3, 112, 112) in 0..1 and shares (B, 6)."""
    crops, shares = [], []
    while len(crops) < recipe["batch_size"]:
        section, image = tissue[rng.integers(len(tissue))]
        scale = math.exp(rng.uniform(*np.log(recipe["scale"])))
        for _ in range(recipe["group"]):
            crop, share = crop_with_label(rng, section, image, scale, recipe)
            crops.append(crop)
            shares.append(share)
    x = (
        torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    )  # (B, h, w, 3) -> (B, 3, h, w)
    return x, torch.tensor(np.array(shares), dtype=torch.float32)


def jitter_stain(x, recipe):
    """Gain and exponent of the optical density, another for each image. x (B, 3, h, w) in 0..1."""
    image_sd, channel_sd = recipe["density_gain"]
    gain = torch.exp(
        image_sd * torch.randn(len(x), 1, 1, 1) + channel_sd * torch.randn(len(x), 3, 1, 1)
    )
    gamma = torch.exp(recipe["density_gamma"] * torch.randn(len(x), 1, 1, 1))
    return torch.exp(-gain * (-torch.log(x.clamp(min=1 / 255))) ** gamma)


def normalise(x):
    """(B, 3, h, w) in 0..1 -> as the network takes it."""
    return (x - torch.tensor(MINI_MEAN).view(1, 3, 1, 1)) / torch.tensor(MINI_STD).view(1, 3, 1, 1)


def half_size(model):
    """Remove the averaging at the start of the network, so that it takes tissue at 1 µm/px."""
    model.patch_embed.halve = nn.Identity()
    return model.to(memory_format=torch.channels_last)


def has_bf16():
    """Whether this CPU multiplies in bfloat16."""
    return (
        "avx512_bf16" in Path("/proc/cpuinfo").read_text()
        if Path("/proc/cpuinfo").exists()
        else False
    )


def train(tissue, recipe):
    """The whole training, top to bottom; the network and the mean loss of the last 50 steps."""
    torch.manual_seed(recipe["seed"])
    rng = np.random.default_rng(recipe["seed"])
    model, head = half_size(build_mini()).train(), nn.Linear(MINI_DIM, len(drawing.TYPES))
    parameters = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe["lr"], weight_decay=recipe["weight_decay"])

    def rate(step):
        ramp = min(1, (step + 1) / recipe["warmup"])
        return ramp * 0.5 * (1 + math.cos(math.pi * step / recipe["steps"]))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    losses, bf16 = [], has_bf16()
    for _ in (bar := tqdm(range(recipe["steps"]), desc="training", mininterval=10)):
        x, shares = draw_batch(rng, tissue, recipe)
        x = normalise(jitter_stain(x, recipe)).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = head(model(x))  # (B, 6)
        loss = nn.functional.kl_div(logits.float().log_softmax(1), shares, reduction="batchmean")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-50:]):.4f}")
    return model.eval(), float(np.mean(losses[-50:]))


@torch.no_grad()
def embed(model, tissue):
    """Features (n, 128) of all spots of all sections."""
    features = []
    for section, image in tissue:
        x = torch.from_numpy(painting.cut(image, section.centres)).permute(0, 3, 1, 2).float() / 255
        features.append(model(normalise(x).contiguous(memory_format=torch.channels_last)))
    return torch.cat(features).numpy()


def probe(model, tissue):
    """R2 on held-out drawn patients of a linear probe, per quantity: what do the features hold?"""
    described = [drawing.describe_tiles(section) for section, _ in tissue]
    counts = np.concatenate([c for c, _ in described])
    nuclei = np.concatenate([n for _, n in described])
    sure = np.minimum(1, counts[:, :1] / 15)  # no tumour cell, no information
    targets = np.hstack([np.sqrt(counts), np.nan_to_num(sure * (nuclei - [4.1, 1.5]))])
    patient = np.repeat(np.arange(len(tissue)), [len(c) for c, _ in described])
    train_rows = patient < PROBE_TRAIN
    features = embed(model, tissue)
    line = make_pipeline(StandardScaler(), Ridge(alpha=30)).fit(
        features[train_rows], targets[train_rows]
    )
    scores = r2_score(
        targets[~train_rows], line.predict(features[~train_rows]), multioutput="raw_values"
    )
    return dict(zip([*drawing.TYPES, "nuclear size", "chromatin"], scores.round(3).tolist()))


def processor():
    """Name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def save(model, facts, out):
    """Weights in float16, then the facts with their digest; both whole or not at all."""
    state = {
        name: v.half().contiguous() if v.is_floating_point() else v
        for name, v in model.state_dict().items()
    }
    write_whole(out, lambda path: path.write_bytes(to_bytes(state)))
    facts = {"sha256": sha256(out), **facts}
    write_whole(
        out.with_suffix(".json"), lambda path: path.write_text(json.dumps(facts, indent=1) + "\n")
    )
    print(json.dumps(facts, indent=1))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=RECIPE["steps"])
    parser.add_argument("--patients", type=int, default=RECIPE["patients"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=MINI_WEIGHTS)
    options = parser.parse_args()
    recipe = RECIPE | {"steps": options.steps, "patients": options.patients}
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    start = time.time()
    tissue = draw_tissue(recipe["seed"], recipe["patients"], recipe["spots"])
    drawn = time.time()
    model, loss = train(tissue, recipe)
    minutes = {
        "drawing": round((drawn - start) / 60, 2),
        "training": round((time.time() - drawn) / 60, 2),
    }
    others = draw_tissue(PROBE_SEED, PROBE_PATIENTS, 60)
    facts = {
        "made": str(date.today()),
        "minutes": minutes,
        "hardware": f"{processor()}, {options.threads} threads, bf16 {has_bf16()}",
        "final_kl": round(loss, 4),
        "held_out_r2": {
            "mini": probe(model, others),
            "random": probe(half_size(build_mini(seed=0)).eval(), others),
        },
        "versions": {
            "torch": torch.__version__,
            "timm": timm.__version__,
            "drawing": drawing.VERSION,
        },
        "mean": MINI_MEAN,
        "std": MINI_STD,
        "recipe": recipe,
    }
    save(model, facts, options.out)


if __name__ == "__main__":
    main()
