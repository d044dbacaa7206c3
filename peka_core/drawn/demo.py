"""The demo cohort: sections from drawing.py, counts from law.py, written like any other cohort.

One section is written a second time as sample X01 under another patient's name, as it happened in
public collections. A reader who does not notice it tests on training spots. samples.csv marks the
copy (duplicate_of), and the splits keep both together.
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

from ..common.code_digest import digest_of_code
from ..common.errors import PekaError
from ..common.files import link_whole, not_in_a_starting_worker, write_json, write_whole
from ..layout.writing import write_cohort_tables, write_sample, write_tiles
from . import drawing, law, painting

UM_PER_PX = 0.5  # of the slide that spatial coordinates refer to; drawn pixels are 1 µm
COPY = "X01"  # sample and patient name of the copied section
ONE_PROCESS = 600  # spots below which a second process costs more than it saves
N_GENES = 50  # target genes in var_50genes.json
DRAWING_1 = "b0e4a2627cf9"  # digest of the code that draws drawing-1 (code_digest.py)
TYPE_WEIGHTS = (1, 1, 1, 0.8, 1, 6)  # one fat cell fills the room of six others


def build(
    path, seed=11, patients=20, sections=2, spots=60, hidden=1.0, folds=4, tiles=True,
    counts_for=None, workers=2,
):  # fmt: skip
    """Draw a cohort of patients x sections x spots and one copied section; return its path.

    A finished cohort of the same options is left alone. If it has no tiles, they are added and its
    other files stay. An interrupted build goes on with the missing sections.

    Args:
        path: cohort directory.
        seed: random seed of images and law. Training and tests of `mini` use 90001 and 90002.
        hidden: share of the cue genes' loading that stays on what `mini` half ignores; 0.0 moves
            all of it away.
        folds: number of held-out splits; patient i is tested in fold i mod folds.
        tiles: False writes counts and tables only.
        counts_for: a finished demo cohort with the same seed and sizes. What its tiles show is
            read, only counts are drawn, and no tiles are written.
        workers: number of processes; 1 draws in this process.

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
    original = copied_sample(patients)
    if _is_built(path, world, jobs, tiles):
        return path
    if tiles and _is_built(path, world, jobs, tiles=False):
        return _add_tiles(path, jobs, workers, original)
    _claim(path, world)
    genes = law.draw_law(seed, hidden)
    missing = [name for name in jobs if not _has_section(path, name, tiles)]
    if counts_for is not None:
        shown = Path(counts_for)
        _check_same_tissue(shown, world)
        mean, sd = (np.load(shown / "law.npz")[key] for key in ("z_mean", "z_sd"))
        for name in missing:
            recount_section(shown, path, name, genes, jobs[name])
    else:
        with _pool(workers, len(jobs) * spots) as run:
            measured = list(run(measure_section, jobs.values(), "measuring"))  # (spots, 8) each
            raw = dict(zip(jobs, measured, strict=True))
            stacked = np.concatenate(measured)  # (all spots, 8)
            mean, sd = stacked.mean(0), stacked.std(0) + 1e-9
            z = {name: (raw[name] - mean) / sd for name in missing}
            todo = [(path, name, genes, jobs[name], z[name], tiles) for name in missing]
            list(run(write_section, todo, "drawing"))
    _copy_section(path, original, tiles)
    _write_law(path, genes, jobs, mean, sd, original)
    _write_tables(path, world, jobs, original)
    write_json(path / "source.json", world)
    (path / "unfinished.json").unlink(missing_ok=True)
    return path


def copied_sample(patients):
    """The sample of which COPY is a copy."""
    return f"P{min(3, patients):02d}A"


# ---------------------------------------------------------------- one section, in worker processes


def measure_section(job):
    """What the tiles of a section will show, (n, 8), not yet painted.

    Args:
        job: seed, patient, section, spots.
    """
    cv2.setNumThreads(1)  # the parallel work is done by processes
    return law.measure(drawing.plan_section(*job))


def write_section(task):
    """Paint a section and write its two files; task: path, name, law, job, z (n, 8), tiles."""
    path, name, genes, job, z, tiles = task
    section = drawing.plan_section(*job)
    paint = tiles and not (path / "patches" / f"{name}.h5").exists()
    images = painting.tiles(section) if paint else None
    counts = law.draw_counts(genes, z, *job[:3])
    adata = ad.AnnData(
        sparse.csr_matrix(counts, dtype=np.float32),
        obs=pd.DataFrame({"tissue_type": tissue_type(section)}, index=section.barcodes),
        var=_gene_table(genes),
        obsm={"spatial": section.centres / UM_PER_PX, "z": z.astype(np.float32)},
    )
    write_sample(path, name, images, _corners(section), section.barcodes, adata, UM_PER_PX)


def write_tiles_of(task):
    """Paint a section and write its patches file alone; task: path, name, job."""
    path, name, job = task
    section = drawing.plan_section(*job)
    images = painting.tiles(section)
    write_tiles(path, name, images, _corners(section), section.barcodes, UM_PER_PX)


def recount_section(shown, path, name, genes, job):
    """Write counts of another law for a section of the cohort `shown`, which has its z."""
    adata = ad.read_h5ad(shown / "adata" / f"{name}.h5ad")
    counts = law.draw_counts(genes, adata.obsm["z"].astype(float), *job[:3])
    adata.X, adata.var = sparse.csr_matrix(counts, dtype=np.float32), _gene_table(genes)
    write_sample(path, name, None, None, adata.obs_names.to_numpy(), adata, UM_PER_PX)


def _gene_table(genes):
    return pd.DataFrame({"group": genes.group.astype(object)}, index=genes.genes.astype(object))


def _corners(section):
    """Top-left corners (n, 2) of the tiles, which are 2 x TILE px wide."""
    return (section.centres / UM_PER_PX).astype(int) - drawing.TILE


def tissue_type(section):
    """The type that fills most of each tile, (n,) str."""
    counts, _ = drawing.describe_tiles(section)
    return np.array(drawing.TYPES, object)[(counts * TYPE_WEIGHTS).argmax(1)]


@contextmanager
def _pool(workers, spots):
    """Yield run(function, tasks, title), which gives ordered results of `workers` processes.

    Few spots are done in this process. Results must be read to the end, or the bar ends red.
    """
    progress = lambda results, tasks, title: tqdm(
        results, total=len(tasks), desc=title, unit="section", disable=not tasks
    )
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
    """Start processes that ignore Ctrl-C; their parent ends them, without a traceback of each."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it starts with the first process and unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _why_lost(workers):
    """Why a worker ended. Exit code 1 means an error while it imported the user's script."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script and any(worker.exitcode == 1 for worker in workers):
        return (
            f"the worker processes ended while they started. Each of them runs {script} again, so "
            'put its work under `if __name__ == "__main__":`. If it is there, see the error above.'
        )
    step = "The cause may be printed above; otherwise free memory and run again"
    return f"a worker process was lost. {step}. Finished sections are kept."


# ---------------------------------------------------------------- the directory


def _has_section(path, name, tiles):
    """Whether a section is whole; its h5ad is written last."""
    patches = path / "patches" / f"{name}.h5"
    return (path / "adata" / f"{name}.h5ad").exists() and (not tiles or patches.exists())


def _is_built(path, world, jobs, tiles):
    file = path / "source.json"
    same = file.exists() and json.loads(file.read_text()) == world
    return same and all(_has_section(path, name, tiles) for name in [*jobs, COPY])


def _add_tiles(path, jobs, workers, original):
    """Draw the tiles of a finished cohort that has none.

    They are drawn into another folder first, so that an interrupted build has all of them or none.
    """
    drawn = path / "patches" / ".unfinished"
    files = lambda name: (folder / f"{name}.h5" for folder in (path / "patches", drawn / "patches"))
    todo = [(drawn, n, job) for n, job in jobs.items() if not any(f.exists() for f in files(n))]
    with _pool(workers, len(todo) * next(iter(jobs.values()))[-1]) as run:
        list(run(write_tiles_of, todo, "drawing"))
    for file in sorted((drawn / "patches").glob("[!.]*.h5")):
        file.replace(path / "patches" / file.name)
    shutil.rmtree(drawn, ignore_errors=True)
    _copy_section(path, original, tiles=True)
    return path


def _claim(path, world):
    """Mark the directory as this cohort's, so that two cohorts never mix in one place."""
    marks = [file for name in ("source.json", "unfinished.json") if (file := path / name).exists()]
    for file in marks:
        if (other := json.loads(file.read_text())) != world:
            raise PekaError(
                f"{file}: holds another cohort, {other}; expected {world}. "
                "Build into another directory, or delete this one."
            )
    if (path / "adata").exists() and not marks:
        raise PekaError(
            f"{path}: holds a cohort that demo.build did not make. Build into another directory."
        )
    write_json(path / "unfinished.json", world)


def _check_same_tissue(shown, world):
    """Refuse a cohort whose tiles show other tissue."""
    file = shown / "source.json"
    if not file.exists():
        raise PekaError(f"{file}: missing; expected a finished demo cohort. Build it first.")
    tissue = lambda w: {k: v for k, v in w["options"].items() if k not in ("hidden", "folds")}
    other = json.loads(file.read_text())
    if tissue(other) != tissue(world) or other["drawing"] != world["drawing"]:
        raise PekaError(f"{file}: shows other tissue, {other}; expected {world}. Draw tiles anew.")


def _copy_section(path, original, tiles):
    for folder, suffix in (("patches", "h5"), ("adata", "h5ad"))[not tiles :]:
        link_whole(path / folder / f"{original}.{suffix}", path / folder / f"{COPY}.{suffix}")


def _write_law(path, genes, jobs, mean, sd, original):
    """Write everything that the oracle needs in addition to obsm["z"]."""
    effects = {name: law.section_effect(*job[:3], len(genes.genes)) for name, job in jobs.items()}
    effects[COPY] = effects[original]
    arrays = vars(genes) | {"z_mean": mean, "z_sd": sd, "factors": np.array(law.FACTORS)}
    arrays |= {"samples": np.array(list(effects)), "effect": np.stack(list(effects.values()))}
    write_whole(path / "law.npz", lambda file: np.savez_compressed(file, **arrays))


def _tissue_digest(world, job):
    """A digest of everything that determines a section's tiles, not of their pixels.

    Floating point differs in the last digit between processors, so a cohort that is drawn elsewhere
    may differ by a grey level and still counts as the same. Other drawing code gives another
    digest, even if VERSION was not raised.
    """
    code = digest_of_code(frozenset({"drawn.drawing", "drawn.painting"}))
    what = world["drawing"] if code == DRAWING_1 else f"{world['drawing']} {code}"
    return sha256(f"{what}:{job}".encode()).hexdigest()


def _write_tables(path, world, jobs, original):
    from ..cohort import open_cohort  # slow to import, and worker processes do without
    from ..genes import top_genes

    rows = [(name, name[:-1], "", "", _tissue_digest(world, job)) for name, job in jobs.items()]
    evidence = "byte-identical tiles and counts"
    rows.append((COPY, COPY, original, evidence, _tissue_digest(world, jobs[original])))
    columns = ["sample_id", "patient", "duplicate_of", "evidence", "tiles_sha256"]
    samples = pd.DataFrame(rows, columns=columns).set_index("sample_id")
    # the digest of a cohort covers these words, so the old name of this module stays
    source = f"peka_core.sources.demo, {world['drawing']}, {world['law']}"
    same = {"organ": "drawn", "disease": "drawn carcinoma", "technology": "drawn"}
    same |= {"um_per_px": UM_PER_PX, "license": "MIT"}
    samples = samples.assign(**same, source=f"{source}, seed {world['options']['seed']}")
    folds = world["options"]["folds"]
    fold = {name: jobs.get(name, jobs[original])[1] % folds for name in samples.index}
    splits = [
        ([s for s in fold if fold[s] != i], [s for s in fold if fold[s] == i]) for i in range(folds)
    ]
    write_cohort_tables(path, samples, splits, [])  # the genes are chosen on the opened cohort
    write_cohort_tables(path, samples, splits, top_genes(open_cohort(path), N_GENES))
