"""A grid: the runs of several profiles, encoders and seeds, as jobs for many machines.

    fetch -> cohort -> teacher -> align-bat-0, align-bat-1 ... -> tables
                    -> frozen-mini, frozen-random ... -------->

Each job is one command. `peka make PROFILE JOB` makes a group of units, and finds those that are
finished. The first job is `peka fetch`. The last is `peka run`, whose chapters find all units.

A grid file is a small YAML mapping; `Grid` lists its values. `planned` gives every job of a grid
with the time and the memory that it may take. `workflow/Snakefile` reads them as JSON, and
Snakemake starts the jobs, here or on a cluster.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

from ..common import folders
from ..common.code_digest import AT_START
from ..common.errors import PekaError
from ..common.files import sha256
from ..common.typed_values import absolute, fitted_fields, prefixed_errors, read_mapping
from ..drawn.worlds import OWN
from ..models import own_file
from ..models.encoder_files import BUNDLED
from ..recipe import FROM_1, Recipe
from ..runner import stages
from ..runner.profile import Profile, load_profile
from ..runner.profile_checks import SEED, check_complete
from ..runner.run import Run, run_folder
from ..runner.rungs import Rung, as_rung
from ..runner.units import digest_of
from ..sources.hest_files import TILE_BYTES
from ..teachers import TEACHERS
from . import plan
from .needs import Work, meta_encoder, needs, size_of, teacher_dim, work_of_alignment

FORM = "a grid, with names and values as in workflow/grids"
FETCH, COHORT, TEACHER, FROZEN, ALIGN, TABLES = KINDS = (
    "fetch", "cohort", "teacher", "frozen", "align", "tables"
)  # fmt: skip
MOST_SPLITS = 100  # more than a cohort has; see `job_named`
# Minutes that a job may take: assumptions on the safe side. SLURM stops a job that takes longer,
# and Snakemake starts it again with more.
LEAST_MINUTES = 30
SPOTS_A_MINUTE = 500  # of everything that no GPU does
GPU_MARGIN = 2  # over the hours of the plan, which training exceeds 1.3 to 1.7 times


class Job(NamedTuple):
    """A group of units of one run.

    Attributes:
        name: `align-bat-0`; the first word is one of `KINDS`.
        needs: the jobs of the same run that make what it reads.
        units: how many units it makes.
        rung: what is embedded (frozen) or aligned.
        split: number of one of the cohort's own splits, or the name of another split.
        work: its networks' work, for the estimate of its time.
    """

    name: str
    needs: tuple[str, ...] = ()
    units: int = 0
    rung: Rung = Rung("none")
    split: str = ""
    work: Work | None = None

    @property
    def kind(self) -> str:
        """What it makes, one of `KINDS`."""
        return self.name.partition("-")[0]


def jobs_of(profile: Profile, splits: int) -> dict[str, Job]:
    """Every job of a run by its name, each after those that it needs.

    The demo's other worlds have no jobs: the last job makes their units.

    Args:
        splits: number of the cohort's own splits, which have numbers for names here.

    Raises:
        PekaError: the size of the cohort is not known yet (`size_of`).
    """
    spots, numbers = size_of(profile).spots, [str(i) for i in range(splits)]
    jobs = [Job(FETCH), Job(COHORT, (FETCH,), 1)]
    jobs.append(Job(TEACHER, (COHORT,), _teacher_units(profile, numbers)))
    for encoder in dict.fromkeys([*profile.encoders, "random"]):
        rung = Rung("none", encoder=encoder)
        work = Work("frozen features", encoder, "none", 0, spots)
        jobs.append(Job(f"{FROZEN}-{_words(rung)}", (COHORT,), 1, rung, "", work))
    for rung, split in _aligned(profile, numbers):
        student = dataclasses.replace(rung, name="", space="encoder")
        name = f"{ALIGN}-{_words(student)}-{split.replace('/', '-')}"
        work = work_of_alignment(profile, student, split, spots, splits)
        frozen = Rung("none", encoder=work.encoder)  # projector_only reads its features
        before = (TEACHER, f"{FROZEN}-{_words(frozen)}")
        jobs.append(Job(name, before, 2, student, split, work))
    return {job.name: job for job in [*jobs, Job(TABLES, tuple(job.name for job in jobs))]}


def job_named(profile: Profile, name: str) -> Job:
    """A job of `peka make` by its name.

    A plan that was made before the data were here may count more splits than there are. The job of
    such a split is found too, and makes nothing.

    Raises:
        PekaError: there is no such job.
    """
    splits = size_of(profile).splits
    jobs = jobs_of(profile, max(splits, MOST_SPLITS))
    if name in (FETCH, TABLES) or name not in jobs:
        known = ", ".join(list(jobs_of(profile, splits))[1:-1])
        raise PekaError(f"profile {profile.name} has no job {name!r}; it has {known}")
    return jobs[name]


def make_units(work: Run, job: Job) -> None:
    """Make the units of a job that `job_named` found; finished ones are kept."""
    own = [split.name for split in work.cohort(tiles=job.kind == COHORT).splits]
    if job.split.isdigit() and int(job.split) >= len(own):
        print(f"the cohort has {len(own)} splits, so there is nothing to do for {job.split}")
    elif job.kind == COHORT:
        stages.hashes(work)
    elif job.kind == TEACHER:
        for rung, split in _taught(work.profile, own):
            stages.teacher(work, split, rung)
    else:  # an aligned student is trained before it embeds
        stages.features(work, job.rung, own[int(job.split)] if job.split.isdigit() else job.split)


def _aligned(profile: Profile, own: Sequence[str]) -> list[tuple[Rung, str]]:
    """The students that chapter 3 aligns on the run's own cohort, and their splits."""
    return [(as_rung(rung), s) for rung, s, world in profile.alignments(own) if world == OWN]


def _taught(profile: Profile, own: Sequence[str]) -> list[tuple[Rung, str]]:
    """For whom a teacher is fitted: chapters show every split, and students have their own."""
    return [(Rung("bat"), split) for split in (*own, "all")] + _aligned(profile, own)


def _teacher_units(profile: Profile, own: Sequence[str]) -> int:
    plain = [(rung.change(profile.recipe), rung, split) for rung, split in _taught(profile, own)]
    fitted = {(recipe.k, recipe.labels, rung.share, split) for recipe, rung, split in plain}
    return len(fitted) + (not TEACHERS[profile.teacher].needs_fit)  # and the embedding of all spots


def _words(rung: Rung) -> str:
    """A rung as a part of a job's name, with a digest where encoder and method do not name it."""
    encoder = re.sub(r"[^\w.+-]+", "-", own_file.short(rung.encoder))
    words = [encoder, "" if rung.method == "none" else rung.method]
    if rung != Rung(rung.method, encoder=encoder):
        words.append(digest_of(dataclasses.asdict(rung))[:6])
    return "-".join(filter(None, words))


@dataclass(frozen=True)
class Grid:
    """The values of a grid file. Each profile x encoder x seed is a run.

    Attributes:
        profiles: bundled profiles, or paths of profile files relative to the grid file.
        encoders: encoders to align and score; empty for each profile's own.
        seeds: seeds of the alignments; empty for each profile's own.
        values: further changes of every profile, as `peka run -p NAME=VALUE`: methods, epochs, ...
        gpu: GPU for the hours of the plan, a key of `plan.GPUS`; `none` if no job may ask for one.
        threads: CPU cores of a job.
        name: the start of the runs' names: the grid file's name.
    """

    profiles: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    values: dict = field(default_factory=dict)
    gpu: str = "A100"
    threads: int = 1
    name: str = ""


NO_GPU = "none"
CHECKS = {
    "profiles": ("one or more profiles", bool),
    "seeds": (f"whole numbers {SEED[0]}", lambda values: all(map(SEED[1], values))),
    "gpu": (f"one of {', '.join(plan.GPUS)}, {NO_GPU}", lambda v: v in (*plan.GPUS, NO_GPU)),
    "threads": FROM_1,
}


def read_grid(path: str | Path) -> Grid:
    """Read a grid file; each value is checked.

    Raises:
        PekaError: the file holds no grid, or a value is unknown or does not fit.
    """
    path = absolute(path)
    values = read_mapping(path, FORM)
    known = [f.name for f in dataclasses.fields(Grid) if f.name != "name"]
    with prefixed_errors(path):
        if unknown := sorted(set(values) - set(known)):
            raise PekaError(f"unknown value {', '.join(unknown)}; known: {', '.join(known)}")
        grid = Grid(**values | {"name": path.stem})
        grid = Grid(**fitted_fields(grid, CHECKS))
        near = lambda name: str(absolute(path.parent / Path(name).expanduser()))
        profiles = (near(n) if n.endswith((".yaml", ".yml")) else n for n in grid.profiles)
    return dataclasses.replace(grid, profiles=tuple(profiles))


class GridRun(NamedTuple):
    """One run of a grid: its name under `runs/`, its profile, and options of its commands."""

    name: str
    profile: Profile
    changes: list[str]  # of the profile: -p NAME=VALUE ...
    place: list[str]  # --run NAME --device DEVICE

    def command(self, job: str) -> list[str]:
        """The words after `peka` that make one of its jobs."""
        file, options = self.profile.file, [*self.place, *self.changes]
        special = {FETCH: ["fetch", file, *self.changes], TABLES: ["run", file, *options]}
        return special.get(job, ["make", file, job, *options])


def runs_of(grid: Grid) -> list[GridRun]:
    """The runs of a grid, by profile, encoder and seed.

    Raises:
        PekaError: a profile or a value is unknown or does not fit, or two runs have one name.
    """
    axes = grid.profiles, grid.encoders or (None,), grid.seeds or (None,)
    runs = [_run_of(grid, *point) for point in product(*axes)]
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PekaError(
            f"grid {grid.name}: two runs have the name {', '.join(twice)}. Write each profile, "
            "encoder and seed once, and give files different names."
        )
    return runs


def _run_of(grid: Grid, profile: str, encoder: str | None, seed: int | None) -> GridRun:
    given = {"encoder": encoder, "seed": seed}
    changes = grid.values | {name: value for name, value in given.items() if value is not None}
    loaded = load_profile(profile, changes)
    check_complete(loaded)
    parts = [grid.name, Path(profile).stem, _words(Rung("none", encoder=encoder or ""))]
    name = "-".join(filter(None, [*parts, "" if seed is None else f"s{seed}"]))
    run_folder(name, loaded)  # refuses what cannot be the name of a folder
    words: list[str] = []
    for key, value in changes.items():
        words += ["-p", f"{key}={json.dumps(value)}"]
    device = "cpu" if grid.gpu == NO_GPU else "auto"
    return GridRun(name, loaded, words, ["--run", name, "--device", device])


def planned(grid: Grid) -> dict[str, dict]:
    """What Snakemake and the plan ask about every job of a grid, by `run/job`.

    `needs` are the jobs that must be finished before, `command` has the words after `peka`, and
    `gpu_seconds` are at `plan.SHARE` of the peak. A finished job whose `key` has changed starts
    again. Runs of one profile share the frozen features, and the embeddings of a teacher that is
    not fitted. The first run makes them, and the others wait and link them.

    Raises:
        PekaError: as `runs_of`, or the size of a cohort is not known yet (`size_of`).
    """
    jobs: dict[str, dict] = {}
    makers: dict[tuple[str, str], str] = {}  # what runs share -> the job that makes it
    for run in runs_of(grid):
        profile, key, size = run.profile, _key(run), size_of(run.profile)
        # of the whole run, and four batches of tiles
        gb = needs(profile).ram + 4 * profile.recipe.batch_size * TILE_BYTES / 1e9
        fixed = () if TEACHERS[profile.teacher].needs_fit else (TEACHER,)
        for job in jobs_of(profile, size.splits).values():
            name = f"{run.name}/{job.name}"
            is_shared = job.kind in (FROZEN, *fixed)
            maker = makers.setdefault((profile.file, job.name), name) if is_shared else name
            linked = [maker] if maker != name else []
            seconds = 0.0 if linked else _gpu_seconds(job, profile, size.spots, grid.gpu)
            on_cpu = job.units * plan.scvi_seconds(profile, size.spots) * (job.kind == TEACHER)
            minutes = size.spots / SPOTS_A_MINUTE + (GPU_MARGIN * seconds + on_cpu) / 60
            jobs[name] = {
                "run": run.name,
                "kind": job.kind,
                "needs": [*(f"{run.name}/{other}" for other in job.needs), *linked],
                "command": run.command(job.name),
                "key": key,
                "units": job.units,
                "gpu": int(seconds > 0),
                "gpu_seconds": seconds,
                "threads": grid.threads,
                "mem_mb": round(1000 * gb),
                "minutes": LEAST_MINUTES + round(minutes),
            }
    return jobs


def _key(run: GridRun) -> str:
    """A digest of a run's values and options, and of all code and chapters."""
    values = {name: str(value) for name, value in dataclasses.asdict(run.profile).items()}
    chapters = [sha256(path) for path in sorted(folders.bundled("notebooks").glob("*.ipynb"))]
    code = [AT_START[path] for path in sorted(AT_START)]
    return digest_of({"values": values, "place": run.place, "code": [*code, *chapters]})


def _gpu_seconds(job: Job, profile: Profile, spots: int, gpu: str) -> float:
    """Seconds of a job on a GPU at `plan.SHARE` of its peak; 0 if it does not ask for one."""
    if gpu == NO_GPU:
        return 0.0
    card = plan.GPUS[gpu]
    if job.kind == TEACHER:
        teacher = plan.cost_of_teacher(profile, spots, card)
        return teacher[2] / plan.SHARE if teacher else 0.0
    if job.work is None or job.work.encoder in BUNDLED:
        return 0.0
    name, half = job.work.encoder, card.bfloat16 > 0
    recipe = dataclasses.replace(profile.recipe, last_blocks=job.work.last_blocks)
    cost = _student_cost(name, job.work.method, recipe, teacher_dim(profile), half)
    found = plan.cost_of_work(job.work, recipe, meta_encoder(name), cost, card)
    return found[1] / plan.SHARE


@functools.cache
def _student_cost(
    encoder: str, method: str, recipe: Recipe, d_teacher: int, half: bool
) -> plan.StudentCost:
    return plan.cost_of(meta_encoder(encoder), method, recipe, d_teacher, half)


def in_words(grid: Grid, jobs: dict[str, dict]) -> Iterator[str]:
    """The plan as lines: jobs, units and GPU hours of each kind of job and of each run."""
    row = "{:<40} {:>6} {:>6} {:>9}".format

    def counted(title: str, some: Iterable[dict]) -> str:
        some = list(some)
        hours = sum(job["gpu_seconds"] for job in some) / 3600
        return row(title, len(some), sum(job["units"] for job in some), f"{hours:.3g}")

    runs = dict.fromkeys(job["run"] for job in jobs.values())
    yield f"grid {grid.name}: {len(runs)} runs, {len(jobs)} jobs"
    if grid.gpu != NO_GPU:
        yield f"hours at {plan.SHARE:.0%} of the peak of {grid.gpu}, one GPU for a job"
        yield f"({plan.MEASURED}: training takes 1.3 to 1.7 times these hours)"
    yield "the job tables makes further units, such as scores, which are not counted"
    yield ""
    yield row("jobs", "number", "units", "GPU hours")
    for kind in KINDS:
        yield counted(kind, (job for job in jobs.values() if job["kind"] == kind))
    yield ""
    yield row("run", "jobs", "units", "GPU hours")
    for run in runs:
        yield counted(run, (job for job in jobs.values() if job["run"] == run))
    yield counted("together", jobs.values())
