"""The paper's kidney at full size without its data: memory and time of every chapter and stage.

    python benchmarks/rehearsal.py DIR                                  74,000 spots, all chapters
    python benchmarks/rehearsal.py DIR --spots 4000                     the same, smaller
    python benchmarks/rehearsal.py DIR --stages all --spots 16000       single stages instead
    python benchmarks/rehearsal.py DIR --spots 206123 --stages features scores

A cohort is drawn below DIR: slides of 3,083 spots (at least 8 slides), 17,900 genes with 17 % of
entries not zero, and tiles from a pool of 64 with some noise. The encoder is `mini`, the teacher
`pca`, and there is one epoch. A row for each chapter or stage is appended to
benchmarks/rehearsal.csv as soon as it ends. Every chapter and stage is a process of its own, so its
peak memory is its own. What is finished stays below DIR and in runs/, so the same command goes on
where it was stopped; a chapter that was continued has `continued` in its row, and its seconds are
those of the last process.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from peka_core.cohort import write_cohort_tables, write_sample
from peka_core.commands.notebooks import CHAPTERS
from peka_core.common.device import device_name
from peka_core.common.files import write_whole
from peka_core.runner.provenance import commit

TABLE = Path(__file__).with_suffix(".csv")
GENES, NONZERO, FACTORS, POOL = 17_900, 0.17, 16, 64
SPOTS_OF_A_SLIDE, SLIDES, FOLDS = 3_083, 8, 6  # of the paper's kidney; at least so many slides
PITCH, UM_PER_PX, SIDE = 200.0, 0.5, 224  # px between spots, 100 um as on Visium; px of a tile
STAGES = ("cohort", "features", "hashes", "tasks", "teacher", "align", "student", "quality",
          "scores", "umap")  # fmt: skip
SPLIT = "patients/0"


def draw(folder: Path, spots: int) -> Path:
    """Draw a cohort directory slide by slide; slides that are there stay."""
    slides = max(SLIDES, round(spots / SPOTS_OF_A_SLIDE))
    names = [f"DRAWN{i:03d}" for i in range(slides)]
    sizes = [len(part) for part in np.array_split(np.arange(spots), slides)]
    law = np.random.default_rng(0)
    base, loadings = law.normal(0, 2.0, GENES), law.normal(0, 0.3, (FACTORS, GENES))
    loadings *= np.linspace(1, 0.3, FACTORS)[:, None]
    base += _level(base)
    pool = law.integers(0, 60, (POOL, 28, 28, 1)) + np.array([150, 90, 160])  # (64, 28, 28, 3)
    pool = pool + law.integers(-40, 40, (POOL, 1, 1, 3))
    genes = [f"GENE{i:05d}" for i in range(GENES)]
    digests = {}
    for i, (name, n) in enumerate(zip(names, sizes, strict=True)):
        digest = folder / "digests" / f"{name}.txt"  # written last
        if not digest.exists():
            print(f"draw {name}, {n} spots", flush=True)
            _draw_slide(folder, name, n, np.random.default_rng([1, i]), base, loadings, genes, pool)
        digests[name] = digest.read_text()
    patients = [f"P{i // 2:02d}" for i in range(slides)]  # two slides each
    table = pd.DataFrame({"patient": patients, "tiles_sha256": digests}, index=names)
    table = table.assign(um_per_px=UM_PER_PX, organ="Kidney", technology="drawn for a rehearsal")
    folds = pd.factorize(table["patient"])[0] % min(FOLDS, table["patient"].nunique())  # (slides,)
    sides = [(table.index[folds != fold], table.index[folds == fold]) for fold in np.unique(folds)]
    listed = [genes[i] for i in np.sort(np.argsort(-base)[:50])]
    write_cohort_tables(folder, table, sides, listed)
    return folder


def _level(base: np.ndarray) -> float:
    """What to add to log rates (G,) so that the share `NONZERO` of Poisson counts is not zero."""
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        share = (1 - np.exp(-np.exp(base + middle))).mean()
        low, high = (middle, high) if share < NONZERO else (low, middle)
    return low


def _draw_slide(folder, name: str, n: int, rng, base, loadings, genes: list[str], pool) -> None:
    """Draw one slide: factors that are smooth in space decide counts, and two of them the tile."""
    side = int(np.ceil(np.sqrt(n)))
    place = np.stack([np.arange(n) % side, np.arange(n) // side], axis=1).astype(float)  # (n, 2)
    waves = rng.normal(0, 6 / side, (2, FACTORS)), rng.uniform(0, 2 * np.pi, FACTORS)
    z = np.sin(place @ waves[0] + waves[1]) + rng.normal(0, 0.3, (n, FACTORS))  # (n, factors)
    depth = rng.normal(0, 0.3, (n, 1))
    blocks = []
    for start in range(0, n, 512):
        rows = slice(start, start + 512)
        log_rate = base + z[rows] @ loadings + depth[rows] - 0.2  # (b, G)
        blocks.append(sparse.csr_matrix(rng.poisson(np.exp(log_rate)).astype(np.float32)))
    barcodes = [f"SPOT{i:06d}" for i in range(n)]
    adata = ad.AnnData(
        sparse.vstack(blocks, format="csr"), pd.DataFrame(index=barcodes), pd.DataFrame(index=genes)
    )
    adata.obsm["spatial"] = place * PITCH + 1000
    cell = ((z[:, :2] + 1.5) / 3 * 8).astype(int).clip(0, 7) @ [8, 1]  # (n,) tile of the pool
    (folder / "patches").mkdir(parents=True, exist_ok=True)
    (folder / "digests").mkdir(exist_ok=True)
    total = hashlib.sha256()
    with h5py.File(folder / "patches" / f"{name}.h5", "w") as file:
        form = {"chunks": (1, SIDE, SIDE, 3), "compression": "lzf", "dtype": np.uint8}
        images = file.create_dataset("img", (n, SIDE, SIDE, 3), **form)
        for start in range(0, n, 256):
            small = pool[cell[start : start + 256]]  # (b, 28, 28, 3)
            small = (small + rng.integers(-9, 10, small.shape)).clip(0, 255).astype(np.uint8)
            tiles = small.repeat(8, axis=1).repeat(8, axis=2)  # (b, 224, 224, 3), LZF packs them
            images[start : start + 256] = tiles
            total.update(tiles)
        file["coords"] = (adata.obsm["spatial"] - SIDE / 2).astype(np.int64)
        file.create_dataset("barcode", data=np.array(barcodes, object)[:, None])
        images.attrs["patch_size_src"] = images.attrs["patch_size_target"] = SIDE
        images.attrs["downsample"], images.attrs["pixel_size"] = 1.0, UM_PER_PX
    write_sample(folder, name, None, None, barcodes, adata, UM_PER_PX)
    write_whole(folder / "digests" / f"{name}.txt", lambda p: p.write_text(total.hexdigest()))


def overrides(cohort: Path) -> dict:
    """What differs from the profile own."""
    return {"path": str(cohort), "epochs": 1}


def chapter(name: str, cohort: Path, run: str) -> None:
    """Execute one notebook of the run."""
    from peka_core.commands.notebooks import execute
    from peka_core.common import folders
    from peka_core.runner.run import open_run

    work = open_run("own", run, "cpu", overrides=overrides(cohort))
    parameters = {"profile": "own", "run": run, "device": "cpu", "overrides": overrides(cohort)}
    book = folders.bundled("notebooks") / f"{name}.ipynb"
    if not execute(book, work.folder / "notebooks", parameters):
        raise SystemExit(1)


def stage(name: str, cohort: Path, run: str) -> None:
    """Make one stage of the run; what it needs of other stages is there already."""
    from peka_core.protocols import PROTOCOLS
    from peka_core.runner import stages
    from peka_core.runner.run import open_run

    work = open_run("own", run, "cpu", overrides=overrides(cohort))
    protocols = PROTOCOLS["peka_paper"], PROTOCOLS["strict"]
    made = {
        "cohort": lambda: (work.cohort().digest, work.cohort().obs),
        "features": lambda: stages.features(work),
        "hashes": lambda: stages.hashes(work),
        "tasks": lambda: [work.tasks(protocol) for protocol in protocols],
        "teacher": lambda: stages.teacher(work, SPLIT),
        "align": lambda: stages.align(work, "bat", SPLIT),
        "student": lambda: stages.features(work, "bat", SPLIT),
        "quality": lambda: stages.quality(work, "bat", SPLIT),
        "scores": lambda: [stages.score(work, "frozen", protocol) for protocol in protocols],
        "umap": lambda: stages.umap(work, "none", SPLIT, SPLIT),
    }
    work.cohort().digest  # noqa: B018  links and digests are the stage cohort's
    started, used = time.perf_counter(), time.process_time()
    made[name]()
    found = {"seconds": time.perf_counter() - started, "stage_cpu": time.process_time() - used}
    print(json.dumps(found), flush=True)


def said_before(cohort: Path) -> dict:
    """What `peka run own --plan` and `peka doctor` say of the whole run, before it starts."""
    from peka_core.commands.needs import needs
    from peka_core.commands.plan import plan
    from peka_core.runner.profile import load_profile

    profile = load_profile("own", overrides(cohort))
    hours = re.search(r"on the CPU of this machine.* about (\S+) h", plan(profile))
    return {"planned_gb": round(needs(profile).ram, 2), "planned_hours": float(hours[1])}


def in_own_process(kind: str, name: str, cohort: Path, run: str) -> dict:
    """Seconds and peak GB of a chapter or a stage, with those of its own processes.

    `stage_cpu` is the CPU time of a stage alone, without the imports before it.
    """
    words = [sys.executable, __file__, str(cohort), "--one", kind, name, "--run", run]
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    print(said, end="", flush=True)
    if process.returncode:
        raise SystemExit(f"{kind} {name} failed; the same command goes on from here")
    lines = [line for line in said.splitlines() if line.startswith('{"seconds"')]
    inside = json.loads(lines[-1]) if lines else {"seconds": time.perf_counter() - started}
    found = {name: round(value, 1) for name, value in inside.items()}
    found["cpu_seconds"] = round(usage.ru_utime + usage.ru_stime, 1)
    return found | {"peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 3)}


def append(row: dict) -> None:
    """Append a row to the table."""
    rows = pd.DataFrame([row])
    before = [pd.read_csv(TABLE)] if TABLE.exists() else []
    rows = pd.concat([*before, rows], ignore_index=True)
    write_whole(TABLE, lambda path: rows.to_csv(path, index=False))


def main() -> None:
    """Draw what is missing, run what is asked for, and append a row for each."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("folder", type=Path, help="where the drawn cohort is")
    parser.add_argument("--spots", type=int, default=74_000)
    parser.add_argument("--stages", nargs="+", help="all, or some of " + ", ".join(STAGES))
    parser.add_argument("--run", default="", help="folder under runs/ (default: by spots)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        kind, name = asked.one
        {"chapter": chapter, "stage": stage}[kind](name, asked.folder, asked.run)
        return
    cohort = draw(asked.folder.resolve() / f"spots-{asked.spots}", asked.spots)
    run = asked.run or f"rehearsal-{asked.spots}"
    kind, names = "chapter", CHAPTERS
    if asked.stages:
        kind, names = "stage", STAGES if asked.stages == ["all"] else asked.stages
        in_own_process("stage", "cohort", cohort, run)  # links and digests, which are made once
    facts = {"spots": asked.spots, "cpu": device_name("cpu"), "commit": commit()}
    facts |= said_before(cohort)
    for name in names:
        done = asked.folder / f"{run}-{kind}-{name}.json"
        if done.exists() and kind == "chapter":
            continue
        begun = done.with_suffix(".begun")
        note, load = "continued" if begun.exists() else "", round(os.getloadavg()[0], 1)
        begun.touch()
        found = in_own_process(kind, name, cohort, run)
        row = {"what": name, **facts, **found, "load": load, "note": note}
        print(row, flush=True)
        append(row)
        done.write_text(json.dumps(row))
        begun.unlink()


if __name__ == "__main__":
    main()
