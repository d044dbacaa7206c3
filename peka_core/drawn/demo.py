"""The demo cohort: sections drawn by drawing.py, counts by law.py, written as any other source writes them.

One section is written a second time as sample X01 with a patient name of its own, as happened in public collections:
whoever does not notice tests on training spots. samples.csv says so (duplicate_of), and the splits keep both together.
"""

import json
import multiprocessing
import shutil
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from hashlib import sha256
from multiprocessing import resource_tracker
from pathlib import Path

import anndata as ad
import cv2
import numpy as np
import pandas as pd
from scipy import sparse
from tqdm.auto import tqdm

from ..code_digest import digest_of_code
from ..errors import PekaError
from ..files import link_whole, not_in_a_starting_worker, write_json, write_whole
from ..layout.writing import write_cohort_tables, write_sample, write_tiles
from . import drawing, law, painting

UM_PER_PX = 0.5  # of the slide that spatial coordinates refer to; drawn pixels are 1 µm
COPY = "X01"  # sample and patient name of the copied section
ONE_PROCESS = 300  # spots below which a second process costs more than it saves
N_GENES = 50  # target genes in var_50genes.json
DRAWING_1 = "f77c1c5770f5"  # digest of the code of drawing-1 (code.py)
TYPE_WEIGHTS = (1, 1, 1, 0.8, 1, 6)  # one fat cell fills the room of six others


def build(
    path,
    seed=11,
    patients=20,
    sections=2,
    spots=60,
    hidden=1.0,
    folds=4,
    tiles=True,
    counts_for=None,
    workers=2,
):
    """Draws a cohort into a directory: patients x sections x spots, and one copied section.

    A finished cohort of the same options is left alone; one that came without tiles gets them, and nothing else of it is written
    again; an interrupted one continues with the missing sections.

    Args:
        path: cohort directory.
        seed: names the whole world, images and law. Pre-training and probes of `mini` use 90001 and 90002.
        hidden: share of the cue genes' loading that stays on what `mini` half ignores; 0.0 switches it off.
        folds: held-out splits; patient i is tested in fold i mod folds.
        tiles: False writes counts and tables only.
        counts_for: a finished demo cohort with the same seed and sizes: what its tiles show is read, and only counts
            are drawn; the tiles stay there.
        workers: processes; 1 draws in this one.

    Returns:
        the path.

    Raises:
        PekaError: the directory holds something else, or `counts_for` shows other tissue.
    """
    path, tiles = Path(path), tiles and counts_for is None
    sizes = {"seed": seed, "patients": patients, "sections": sections, "spots": spots}
    options = sizes | {"hidden": float(hidden), "folds": folds}
    world = {"source": "demo", "drawing": drawing.VERSION, "law": law.VERSION, "options": options}
    jobs = {
        f"P{p:02d}{chr(64 + s)}": (seed, p, s, spots)
        for p in range(1, patients + 1)
        for s in range(1, sections + 1)
    }
    if _is_finished(path, world, jobs, tiles):
        return path
    if tiles and _is_finished(path, world, jobs, tiles=False):
        return _add_tiles(path, jobs, workers, copied_sample(patients))
    _claim(path, world)
    genes = law.draw_law(seed, hidden)
    missing = [name for name in jobs if not _is_written(path, name, tiles)]
    if counts_for is not None:
        source = Path(counts_for)
        _check_same_tissue(source, world)
        mean, sd = (np.load(source / "law.npz")[key] for key in ("z_mean", "z_sd"))
        for name in missing:
            recount_section(source, path, name, genes, jobs[name])
    else:
        with _pool(workers, len(jobs) * spots) as run:
            raw = dict(
                zip(jobs, list(run(measure_section, jobs.values(), "measuring")))
            )  # to the end, or the bar ends red
            stacked = np.concatenate(list(raw.values()))  # (spots, 8)
            mean, sd = stacked.mean(0), stacked.std(0) + 1e-9
            todo = [
                (path, name, genes, jobs[name], (raw[name] - mean) / sd, tiles) for name in missing
            ]
            list(run(write_section, todo, "drawing"))
    original = copied_sample(patients)
    _copy_section(path, original, tiles)
    _write_law(path, genes, jobs, mean, sd, original)
    _write_tables(path, world, jobs, original)
    write_json(path / "source.json", world)
    (path / "unfinished.json").unlink(missing_ok=True)
    return path


def copied_sample(patients):
    """The sample that COPY repeats."""
    return f"P{min(3, patients):02d}A"


# ---------------------------------------------------------------- one section (runs in worker processes)


def measure_section(job):
    """What the tiles of one section will show, (n, 8), without painting them. job: seed, patient, section, spots."""
    cv2.setNumThreads(1)  # the parallel work is done by processes
    return law.measure(drawing.plan_section(*job))


def write_section(task):
    """Paints one section and writes its two files. task: path, name, law, job, z (n, 8), whether with tiles."""
    path, name, genes, job, z, tiles = task
    section = drawing.plan_section(*job)
    centres = section.centres / UM_PER_PX
    draw = tiles and not (path / "patches" / f"{name}.h5").exists()
    images = painting.tiles(section) if draw else None
    adata = ad.AnnData(
        sparse.csr_matrix(law.draw_counts(genes, z, *job[:3]), dtype=np.float32),
        obs=pd.DataFrame({"tissue_type": tissue_type(section)}, index=section.barcodes),
        var=pd.DataFrame({"group": genes.group.astype(object)}, index=genes.genes.astype(object)),
        obsm={"spatial": centres, "z": z.astype(np.float32)},
    )
    corners = centres.astype(int) - drawing.TILE  # a tile is 2 x TILE px wide
    write_sample(path, name, images, corners, section.barcodes, adata, UM_PER_PX)


def write_tiles_of(task):
    """Paints one section and writes its patches file alone. task: path, name, job."""
    path, name, job = task
    section = drawing.plan_section(*job)
    corners = (section.centres / UM_PER_PX).astype(int) - drawing.TILE
    write_tiles(path, name, painting.tiles(section), corners, section.barcodes, UM_PER_PX)


def recount_section(source, path, name, genes, job):
    """Writes the counts of another law for a section that was drawn already; what the tiles show is read, not measured."""
    adata = ad.read_h5ad(source / "adata" / f"{name}.h5ad")
    adata.X = sparse.csr_matrix(
        law.draw_counts(genes, adata.obsm["z"].astype(float), *job[:3]), dtype=np.float32
    )
    adata.var = pd.DataFrame(
        {"group": genes.group.astype(object)}, index=genes.genes.astype(object)
    )
    write_sample(path, name, None, None, adata.obs_names.to_numpy(), adata, UM_PER_PX)


def tissue_type(section):
    """The type that fills most of each tile, (n,) str."""
    counts, _ = drawing.describe_tiles(section)
    return np.array(drawing.TYPES, object)[(counts * TYPE_WEIGHTS).argmax(1)]


@contextmanager
def _pool(workers, spots):
    """Yields run(function, tasks, title): ordered results, from `workers` processes or from this one."""

    def progress(results, tasks, title):
        return tqdm(results, total=len(tasks), desc=title, unit="section", disable=not tasks)

    if workers <= 1 or spots < ONE_PROCESS:
        yield lambda function, tasks, title: progress(map(function, tasks), tasks, title)
        return
    not_in_a_starting_worker()
    before, started = set(multiprocessing.active_children()), set()

    def run(function, tasks, title):
        with _no_interrupts():
            results = pool.map(function, tasks)  # starts the workers
        started.update(set(multiprocessing.active_children()) - before)
        return progress(results, tasks, title)

    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            yield run
    except BrokenProcessPool as error:
        raise PekaError(_why_lost(started)) from error


@contextmanager
def _no_interrupts():
    """Processes that start in here never see Ctrl-C, which reaches a whole group: their parent ends them, without a traceback each."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which starts with the first process, and lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _why_lost(workers):
    """Why a process that draws ended: one that ended by itself, not by a signal, did not come through its parent's script."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script and any(worker.exitcode == 1 for worker in workers):
        return (
            f"the processes that draw ended while they started: each of them runs {script} again, so what that does needs to stand "
            'under `if __name__ == "__main__":`. If it does, the cause is said above.'
        )
    return "a process that draws was lost: see above, or free memory and run again; finished sections are kept"


# ---------------------------------------------------------------- the directory


def _is_written(path, name, tiles):
    """h5ad last, so its presence means a whole section."""
    return (path / "adata" / f"{name}.h5ad").exists() and (
        not tiles or (path / "patches" / f"{name}.h5").exists()
    )


def _is_finished(path, world, jobs, tiles):
    file = path / "source.json"
    return file.exists() and json.loads(file.read_text()) == world and all(
        _is_written(path, name, tiles) for name in [*jobs, COPY]
    )  # fmt: skip


def _add_tiles(path, jobs, workers, original):
    """Draws the tiles that a finished cohort came without, aside first, so that an interrupted one has all of them or none."""
    aside = path / "patches" / ".unfinished"
    done = lambda name: any(
        (folder / f"{name}.h5").exists() for folder in (path / "patches", aside / "patches")
    )
    todo = [(aside, name, job) for name, job in jobs.items() if not done(name)]
    with _pool(workers, len(todo) * next(iter(jobs.values()))[-1]) as run:
        list(run(write_tiles_of, todo, "drawing"))
    for file in sorted((aside / "patches").glob("[!.]*.h5")):
        file.replace(path / "patches" / file.name)
    shutil.rmtree(aside, ignore_errors=True)
    _copy_section(path, original, tiles=True)
    return path


def _claim(path, world):
    """Marks the directory as this cohort before the first section, so that no two cohorts mix in one place."""
    for name in ("source.json", "unfinished.json"):
        if (path / name).exists() and (found := json.loads((path / name).read_text())) != world:
            raise PekaError(
                f"{path / name}: holds another cohort, {found}; expected {world}. "
                "Build into another directory, or delete this one."
            )
    if (path / "adata").exists() and not any(
        (path / n).exists() for n in ("source.json", "unfinished.json")
    ):
        raise PekaError(
            f"{path}: holds a cohort that demo.build did not make. Build into another directory."
        )
    write_json(path / "unfinished.json", world)


def _check_same_tissue(source, world):
    """Refuses to take sections from a cohort that shows other tissue."""
    file = source / "source.json"
    if not file.exists():
        raise PekaError(
            f"{file}: missing; expected a finished demo cohort to take sections from. Build it first."
        )
    other = json.loads(file.read_text())
    for key in ("seed", "patients", "sections", "spots"):
        if (
            other["options"].get(key) != world["options"][key]
            or other["drawing"] != world["drawing"]
        ):
            raise PekaError(
                f"{file}: shows other tissue ({key}, drawing version); expected {world}. Draw tiles anew."
            )


def _copy_section(path, original, tiles):
    for folder, suffix in (("patches", "h5"), ("adata", "h5ad")) if tiles else (("adata", "h5ad"),):
        link_whole(path / folder / f"{original}.{suffix}", path / folder / f"{COPY}.{suffix}")


def _write_law(path, genes, jobs, mean, sd, original):
    """Everything the oracle needs beside obsm["z"]."""
    effects = {name: law.section_effect(*job[:3], len(genes.genes)) for name, job in jobs.items()}
    effects[COPY] = effects[original]
    write_whole(
        path / "law.npz",
        lambda file: np.savez_compressed(
            file, genes=genes.genes, group=genes.group, baseline=genes.baseline, loading=genes.loading, z_mean=mean,
            z_sd=sd, factors=np.array(law.FACTORS), samples=np.array(list(effects)), effect=np.stack(list(effects.values())),
        ),
    )  # fmt: skip


def _tissue_digest(world, job):
    """Identity of a section's tiles: of what determines them, not of their pixels.

    Floating point differs in the last digit between processors, which may move a pixel by one grey level; a cohort
    redrawn elsewhere is still the same cohort. Other code that draws is another identity, whether VERSION was raised or not.
    """
    drawn_by = digest_of_code(frozenset({"drawn.drawing", "drawn.painting"}))
    what = world["drawing"] if drawn_by == DRAWING_1 else f"{world['drawing']} {drawn_by}"
    return sha256(f"{what}:{job}".encode()).hexdigest()


def _write_tables(path, world, jobs, original):
    from ..cohort import open_cohort  # slow to import, and worker processes do without
    from ..genes import top_genes

    rows = [
        {
            "sample_id": name,
            "patient": name[:-1],
            "duplicate_of": "",
            "evidence": "",
            "tiles_sha256": _tissue_digest(world, job),
        }
        for name, job in jobs.items()
    ]
    copied = next(row for row in rows if row["sample_id"] == original)
    same = {
        "patient": COPY,
        "duplicate_of": original,
        "evidence": "byte-identical tiles and counts",
    }
    rows.append(copied | {"sample_id": COPY} | same)
    samples = pd.DataFrame(rows).set_index("sample_id")
    samples = samples.assign(
        organ="drawn", disease="drawn carcinoma", technology="drawn", um_per_px=UM_PER_PX, license="MIT",
        source=f"peka_core.drawn.demo, {world['drawing']}, {world['law']}, seed {world['options']['seed']}",
    )  # fmt: skip
    folds = world["options"]["folds"]
    owner = {name: jobs.get(name, jobs[original])[1] for name in samples.index}
    splits = []
    for fold in range(folds):
        test = [name for name in samples.index if owner[name] % folds == fold]
        splits.append(([name for name in samples.index if name not in test], test))
    write_cohort_tables(
        path, samples, splits, []
    )  # first without genes, which are chosen on the opened cohort
    write_cohort_tables(path, samples, splits, top_genes(open_cohort(path), N_GENES))


# ---------------------------------------------------------------- the best prediction there is
