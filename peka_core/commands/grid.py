"""A grid: the runs of several profiles, encoders and seeds, as jobs for many machines.

A grid file is a small YAML mapping (`workflow/grids/`); `Grid` lists what it may hold. `peka
plan-grid GRID` prints its units and GPU hours. The workflow in `workflow/Snakefile` reads the same
jobs as JSON and gives them to Snakemake, which starts them, here or on a cluster. Each job is one
command, `peka make PROFILE JOB`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from ..common import folders
from ..common.code_digest import AT_START
from ..common.errors import PekaError
from ..common.files import one_name, sha256
from ..common.typed_values import absolute, fitted_fields, prefixed_errors, read_mapping
from ..encoders import Encoder
from ..recipe import FROM_1
from ..runner.code import code_of, code_of_source
from ..runner.profile import Profile, load_profile
from ..runner.profile_checks import SEED, check_complete
from ..runner.run import run_folder
from ..runner.units import digest_of
from ..sources.hest_files import TILE_BYTES
from ..teachers import TEACHERS
from .jobs import COHORT, FETCH, TABLES, TEACHER, Job, jobs_of
from .needs import meta_encoder, needs, size_of, teacher_dim
from .notebooks import CHAPTERS
from .plan import (
    GPUS,
    MEASURED,
    SHARE,
    StudentCost,
    cost_of,
    cost_of_teacher,
    cost_of_work,
    scvi_seconds,
)

FORM = "a grid, with names and values as in workflow/grids"
KINDS = (FETCH, COHORT, TEACHER, "frozen", "align", "score", TABLES)
# Minutes that a job may take, on the safe side: an assumption, and no measurement. A job that ends
# for lack of time is started again with more (workflow/Snakefile).
LEAST_MINUTES = 30
SPOTS_A_MINUTE = 500  # of everything that no GPU does
GPU_MARGIN = 3  # over the hours of the plan, which training exceeds 1.3 to 1.7 times
FETCHING_GB = 2.0


@dataclass(frozen=True)
class Grid:
    """The values of a grid file. A run is made for each profile x encoder x seed.

    Attributes:
        name: the start of the runs' names; the file's name if it is not given.
        profiles: bundled profiles, or paths of profile files, relative to the grid file.
        encoders: encoders to align and score; empty for each profile's own.
        seeds: seeds of the alignments; empty for each profile's own.
        methods: methods that are aligned on each split's training spots; None for the profile's.
        all_methods: methods that are aligned once, on all spots; None for the profile's.
        values: further changes of every profile, as `peka run -p NAME=VALUE`.
        weights: encoder -> local file of its weights, relative to the grid file.
        device: as `peka run --device`. With `cpu`, no job asks for a GPU, and no hours are counted.
        gpu: GPU for the hours of the plan, a key of `plan.GPUS`.
        threads: CPU cores of a job.
    """

    profiles: tuple[str, ...]
    name: str = ""
    encoders: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    methods: tuple[str, ...] | None = None
    all_methods: tuple[str, ...] | None = None
    values: dict = field(default_factory=dict)
    weights: dict = field(default_factory=dict)
    device: str = "auto"
    gpu: str = "A100"
    threads: int = 1


CHECKS = {
    "profiles": ("one or more profiles", bool),
    "seeds": (f"whole numbers {SEED[0]}", lambda values: all(map(SEED[1], values))),
    "gpu": (f"one of {', '.join(GPUS)}", lambda value: value in GPUS),
    "threads": FROM_1,
}


@dataclass(frozen=True)
class GridRun:
    """One run of a grid: its name under `runs/`, its profile, and its options of `peka run`."""

    name: str
    profile: Profile
    options: tuple[str, ...]


@dataclass(frozen=True)
class PlannedJob:
    """A job of one run, with what a scheduler asks about it.

    Attributes:
        run: name of the run.
        job: what it makes.
        needs: `run/job` of each job that must be finished before.
        command: the words after `peka`.
        key: a digest of the values and the code behind it. A finished job whose key has changed
            runs again.
        seconds: its GPU seconds at `SHARE` of the peak.
        minutes: the time that it may take.
        memory_gb: the memory that it may take.
    """

    run: str
    job: Job
    needs: tuple[str, ...]
    command: tuple[str, ...]
    key: str
    seconds: float
    minutes: int
    memory_gb: float

    @property
    def done(self) -> Path:
        """The file that the workflow writes when the job is finished."""
        return folders.root() / "runs" / self.run / "grid" / f"{self.job.name}.done"


def read_grid(path: str | Path) -> Grid:
    """Read a grid file; each value is checked.

    Raises:
        PekaError: the file holds no grid, or a value is unknown or does not fit.
    """
    path = absolute(path)
    values = read_mapping(path, FORM)
    known = [f.name for f in dataclasses.fields(Grid)]
    with prefixed_errors(path):
        if unknown := sorted(set(values) - set(known)):
            names = ", ".join(known)
            raise PekaError(f"unknown value {', '.join(unknown)}; a grid may have {names}")
        grid = Grid(**{"profiles": ()} | values)
        grid = Grid(**fitted_fields(grid, CHECKS))
        near = lambda name: str(absolute(path.parent / Path(name).expanduser()))
        profiles = (near(n) if n.endswith((".yaml", ".yml")) else n for n in grid.profiles)
        weights = {name: near(file) for name, file in grid.weights.items()}
        name = one_name(grid.name or path.stem, "name")
    return dataclasses.replace(grid, name=name, profiles=tuple(profiles), weights=weights)


def runs_of(grid: Grid) -> list[GridRun]:
    """The runs of a grid, by profile, encoder and seed.

    Raises:
        PekaError: a profile or a value is unknown, or does not fit; or two runs have one name.
    """
    runs = [
        _run_of(grid, profile, encoder, seed)
        for profile, encoder, seed in product(
            grid.profiles, grid.encoders or (None,), grid.seeds or (None,)
        )
    ]
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PekaError(
            f"grid {grid.name}: two runs have the name {', '.join(twice)}. Write each profile, "
            "encoder and seed once, and give files different names."
        )
    return runs


def _run_of(grid: Grid, profile: str, encoder: str | None, seed: int | None) -> GridRun:
    methods = {"methods": grid.methods, "all_methods": grid.all_methods}
    changes = {"encoder": encoder, "seed": seed}
    changes |= {name: list(value) for name, value in methods.items() if value is not None}
    changes = grid.values | {name: value for name, value in changes.items() if value is not None}
    loaded = load_profile(profile, changes)
    check_complete(loaded)
    words = [grid.name, Path(profile).stem, Path(encoder or "").name.replace(":", "-")]
    name = "-".join(filter(None, [*words, "" if seed is None else f"s{seed}"]))
    run_folder(name, loaded)  # refuses what cannot be the name of a folder
    options = ["--run", name, "--device", grid.device]
    for key, value in changes.items():
        options += ["-p", f"{key}={json.dumps(value)}"]
    for key, value in grid.weights.items():
        options += ["--weights", f"{key}={value}"]
    return GridRun(name, loaded, tuple(options))


def planned_jobs(grid: Grid) -> list[PlannedJob]:
    """The jobs of all runs of a grid; a job comes after those that it needs.

    Runs share the teacher's embeddings and the frozen features of a cohort. Therefore the first run
    makes them, and the others wait and link them.

    Raises:
        PekaError: as `runs_of`, or the size of a cohort is not known yet (`needs.size_of`).
    """
    planned, costs = [], Costs(grid)
    first: dict[str, str] = {}  # what runs share -> the job that makes it
    for run in runs_of(grid):
        for job in jobs_of(run.profile):
            job = dataclasses.replace(job, gpu=job.gpu and grid.device != "cpu")
            name, shared = f"{run.name}/{job.name}", _shared(job, run.profile)
            waits = [f"{run.name}/{other}" for other in job.needs]
            linked = [first[shared]] if shared in first else []
            if shared:
                first.setdefault(shared, name)
            command = ("make", run.profile.file, job.name, *run.options)
            cost = costs.of(job, run.profile, is_linked=bool(linked))
            planned.append(
                PlannedJob(run.name, job, (*waits, *linked), command, _key(job, run), *cost)
            )
    return planned


def _shared(job: Job, profile: Profile) -> str:
    """What names a job whose units other runs of the same cohort link; "" for other jobs."""
    fixed = job.kind == TEACHER and not TEACHERS[profile.teacher].needs_fit
    if job.kind != "frozen" and not fixed:
        return ""
    teacher = [profile.teacher, profile.teacher_options] if fixed else []
    parts = [job.name, profile.source, profile.source_options, teacher]
    return json.dumps(parts, sort_keys=True, default=str)


def _key(job: Job, run: GridRun) -> str:
    """A digest of the profile's values, the options and the code of a job."""
    code = [code_of_source(run.profile.source), *map(code_of, job.made_by)]
    if job.name == TABLES:  # the chapters, and everything that they draw with
        books = (folders.bundled("notebooks") / f"{chapter}.ipynb" for chapter in CHAPTERS)
        texts = "".join(AT_START[path] for path in sorted(AT_START))
        code += [*map(sha256, books), hashlib.sha256(texts.encode()).hexdigest()]
    values = {name: str(value) for name, value in dataclasses.asdict(run.profile).items()}
    return digest_of({"values": values, "options": run.options, "code": code})


class Costs:
    """Time and memory of jobs; each cohort and each network is measured once."""

    def __init__(self, grid: Grid):
        self.card, self.weights = GPUS[grid.gpu], grid.weights
        self.spots: dict[tuple, int] = {}
        self.memory: dict[tuple, float] = {}
        self.encoders: dict[str, Encoder] = {}
        self.students: dict[tuple, StudentCost] = {}

    def of(self, job: Job, profile: Profile, is_linked: bool) -> tuple[float, int, float]:
        """GPU seconds, minutes and GB of a job, as in `PlannedJob`.

        Args:
            is_linked: whether another run makes its largest part.
        """
        if job.name == FETCH:
            return 0.0, LEAST_MINUTES, FETCHING_GB
        same = profile.file, profile.encoder
        if same not in self.spots:
            self.spots[same] = size_of(profile).spots
            self.memory[same] = needs(profile, self.weights).ram
        spots, gb = self.spots[same], self.memory[same]
        gb += 4 * profile.recipe.batch_size * TILE_BYTES / 1e9 if job.work else 0.0  # a batch
        seconds = 0.0 if is_linked else self._seconds(job, profile, spots) / SHARE
        on_cpu = job.units * scvi_seconds(profile, spots) if job.kind == TEACHER else 0.0
        minutes = spots / SPOTS_A_MINUTE + (GPU_MARGIN * seconds + on_cpu) / 60
        return seconds, LEAST_MINUTES + round(minutes), gb

    def _seconds(self, job: Job, profile: Profile, spots: int) -> float:
        """Seconds of a job at the whole peak of the GPU."""
        if job.kind == TEACHER:
            found = cost_of_teacher(profile, spots, self.card)
            return found[2] if found else 0.0
        if job.work is None or not job.gpu:
            return 0.0
        name, method, recipe = job.work.encoder, job.work.method, profile.recipe
        if name not in self.encoders:
            self.encoders[name] = meta_encoder(name)
        key = name, method, recipe, teacher_dim(profile)
        if key not in self.students:
            half = self.card.bfloat16 > 0
            self.students[key] = cost_of(self.encoders[name], method, recipe, key[-1], half)
        costs = {(name, method): self.students[key]}
        return cost_of_work(job.work, recipe, self.encoders, costs, self.card)[1]


def as_json(grid: Grid, planned: list[PlannedJob]) -> dict:
    """What `workflow/Snakefile` reads: every job by `run/job`."""
    return {
        "grid": grid.name,
        "jobs": {
            f"{p.run}/{p.job.name}": {
                "run": p.run,
                "job": p.job.name,
                "needs": p.needs,
                "command": p.command,
                "key": p.key,
                "gpu": int(p.job.gpu),
                "threads": grid.threads,
                "mem_mb": round(1000 * p.memory_gb),
                "minutes": p.minutes,
            }
            for p in planned
        },
    }


def in_words(grid: Grid, planned: list[PlannedJob]) -> Iterator[str]:
    """The plan as lines: jobs, units and GPU hours of each kind of job and of each run."""
    runs = dict.fromkeys(p.run for p in planned)
    yield f"grid {grid.name}: {len(runs)} runs, {len(planned)} jobs"
    yield f"hours at {SHARE:.0%} of the peak of {grid.gpu}, one GPU for a job"
    yield f"({MEASURED}: training takes 1.3 to 1.7 times these hours)"
    yield "units of the job tables are not counted: chapters make what is missing"
    title = "{:<40} {:>6} {:>6} {:>6} {:>9}"
    yield ""
    yield title.format("jobs", "all", "done", "units", "GPU hours")
    for kind in KINDS:
        yield title.format(kind, *_counts([p for p in planned if p.job.kind == kind]))
    yield ""
    yield title.format("run", "jobs", "done", "units", "GPU hours")
    for run in runs:
        yield title.format(run, *_counts([p for p in planned if p.run == run]))
    yield title.format("together", *_counts(planned))


def _counts(jobs: list[PlannedJob]) -> tuple[int, int, int, str]:
    """Jobs, finished jobs, units and GPU hours."""
    hours = sum(p.seconds for p in jobs if p.job.gpu) / 3600
    done = sum(p.done.exists() for p in jobs)
    return len(jobs), done, sum(p.job.units for p in jobs), f"{hours:.3g}"
