"""The jobs of a run: groups of units that several processes, on several machines, can make.

    fetch -> cohort -> teacher -> align-bat-0 ... -> score-strict-bat ... -> tables
                    -> frozen-mini ...  -------->

`peka make PROFILE JOB` makes one of them, and finds units that are finished. The last job, tables,
is `peka run`: it executes the chapters, which find every unit of the jobs before.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import PekaError
from ..drawn.worlds import OFF, OWN, World
from ..models.encoder_files import BUNDLED
from ..protocols import PROTOCOLS, Protocol
from ..runner import stages
from ..runner.profile import Profile
from ..runner.run import Run
from ..runner.rungs import Rung, as_rung
from ..runner.units import Unit, digest_of
from ..studies import tables
from .needs import Work, size_of, work_of_alignment
from .plan import TEACHER_NETWORKS

FETCH, COHORT, TEACHER, TABLES = "fetch", "cohort", "teacher", "tables"
SCORED = ("peka_paper", "peka_official", "strict")  # chapter 4 scores variants of them itself
MOST_SPLITS = 100  # more than a cohort has


@dataclass(frozen=True)
class Job:
    """One group of units of a run.

    Attributes:
        name: `align-bat-0`; the first word is the kind of the job.
        needs: the jobs of the same run whose units it reads.
        make: makes its units in a run; None for `fetch` and `tables`, which are commands.
        units: how many units it makes.
        made_by: units with the fields that name its code (`runner.code.code_of`).
        work: its networks' work, for an estimate of its time; None if it has no large part.
        gpu: whether a GPU makes it much faster.
    """

    name: str
    needs: tuple[str, ...] = ()
    make: Callable[[Run], object] | None = None
    units: int = 0
    made_by: tuple[Unit, ...] = ()
    work: Work | None = None
    gpu: bool = False

    @property
    def kind(self) -> str:
        """What it makes: fetch, cohort, teacher, frozen, align, score or tables."""
        return self.name.split("-")[0]


def job_named(profile: Profile, name: str) -> Job:
    """A job of a run by its name.

    A plan that was made before the data were here may count more splits than there are. The job of
    such a split is found too, and makes nothing.

    Raises:
        PekaError: there is no such job.
    """
    for splits in (None, MOST_SPLITS):
        for job in jobs_of(profile, splits):
            if job.name == name:
                return job
    known = ", ".join(job.name for job in jobs_of(profile))
    raise PekaError(f"profile {profile.name} has no job {name!r}; it has {known}")


def jobs_of(profile: Profile, splits: int | None = None) -> list[Job]:
    """Every job of a run, each after the jobs that it needs.

    Args:
        splits: the number of the cohort's own splits; None for what `size_of` says.

    Raises:
        PekaError: the size of the cohort is not known yet (`size_of`).
    """
    size = size_of(profile)
    splits = size.splits if splits is None else splits
    begin = [Job(FETCH), _cohort(profile), _teacher(profile, splits)]
    frozen = [_frozen(name, size.spots) for name in dict.fromkeys([*profile.encoders, "random"])]
    aligned = _alignments(profile, size.spots, splits)
    scores = [
        job
        for name in SCORED
        if size.spots // 4 >= PROTOCOLS[name].min_spots // 2 or name != "peka_official"
        for job in _scores(profile, PROTOCOLS[name], splits)
    ]
    before = [*begin, *frozen, *aligned, *scores]
    return [*before, Job(TABLES, tuple(job.name for job in before))]


def _planned(profile: Profile, splits: int) -> list[tuple[Rung, str, World]]:
    """`Profile.alignments` of splits that have numbers for names, each student once."""
    numbers = [str(i) for i in range(splits)]
    found = profile.alignments(numbers, numbers)
    plain = ((_student(as_rung(rung)), split, world) for rung, split, world in found)
    return list(dict.fromkeys(plain))


def _student(rung: Rung) -> Rung:
    """A rung without what does not change its student."""
    return dataclasses.replace(rung, name="", space="encoder")


def _name(rung: Rung) -> str:
    """A student's part of a job's name; a digest tells apart what encoder and method do not."""
    student, words = _student(rung), [_slug(rung.encoder), rung.method]
    if student != Rung(rung.method, encoder=rung.encoder):
        words.append(digest_of(dataclasses.asdict(student))[:6])
    return "-".join(filter(None, words))


def _slug(text: str) -> str:
    """A text as part of a file's name; of a path the last part, and a digest of the whole."""
    short = re.sub(r"\W+", "-", Path(text).name).strip("-")
    return f"{short}-{digest_of({'path': text})[:6]}" if "/" in text else short


def _align_name(rung: Rung, split: str, world: World) -> str:
    return "-".join(["align", _name(rung), split.replace("/", "-")]) + (
        f"-{_slug(world.name)}" if world != OWN else ""
    )


def _cohort(profile: Profile) -> Job:
    worlds = dict.fromkeys(world for _, _, world in _planned(profile, 1))

    def make(work: Run) -> None:
        for world in (OWN, *worlds):
            work.at(world).cohort(tiles=True)
        stages.hashes(work)

    return Job(COHORT, (FETCH,), make, 1, (Unit("hashes", ""),))


def _teacher(profile: Profile, splits: int) -> Job:
    def make(work: Run) -> None:
        own = [split.name for split in work.cohort().splits]
        off = [split.name for split in work.at(OFF).cohort().splits] if _has_off(profile) else []
        shown = own if profile.methods else own[:1]
        plan = [
            (as_rung(rung), split, world) for rung, split, world in profile.alignments(own, off)
        ]
        for rung, split, world in [(Rung("bat"), s, OWN) for s in (*shown, "all")] + plan:
            stages.teacher(work.at(world), split, rung)

    read = {(split, world) for _, split, world in _planned(profile, splits)} | {("all", OWN)}
    made_by = (Unit("teacher", "", teacher=profile.teacher),)
    gpu = profile.teacher in TEACHER_NETWORKS
    return Job(TEACHER, (COHORT,), make, len(read | {("0", OWN)}) + gpu, made_by, gpu=gpu)


def _has_off(profile: Profile) -> bool:
    return any(world == OFF for _, _, world in _planned(profile, 1))


def _frozen(encoder: str, spots: int) -> Job:
    rung = Rung("none", encoder=encoder)
    work = Work("frozen features", encoder, "none", 0, spots)
    unit = Unit("features", "", encoder=encoder, method="none")
    name = f"frozen-{_slug(encoder)}"
    make = lambda run: stages.features(run, rung)
    return Job(name, (COHORT,), make, 1, (unit,), work, encoder not in BUNDLED)


def _alignments(profile: Profile, spots: int, splits: int) -> list[Job]:
    """A job for each student and split: it is trained, and embeds every spot."""
    jobs = []
    for rung, split, world in _planned(profile, splits):
        encoder = rung.encoder or profile.encoder
        fields = {"encoder": encoder, "method": rung.method, "teacher": profile.teacher}
        fields["taught_by"] = rung.taught_by
        units = tuple(Unit(stage, "", **fields) for stage in ("alignment", "features"))
        # projector_only reads the frozen features; for the others the order costs no time
        needs = (TEACHER, f"frozen-{_slug(encoder)}")
        work = work_of_alignment(profile, rung, split, spots, splits) if world == OWN else None
        name = _align_name(rung, split, world)
        make = _made_on(rung, split, world)
        jobs.append(Job(name, needs, make, 2, units, work, encoder not in BUNDLED))
    return jobs


def _made_on(rung: Rung, split: str, world: World) -> Callable[[Run], None]:
    def make(work: Run) -> None:
        there = work.at(world)
        own = [s.name for s in there.cohort().splits]
        if split.isdigit() and int(split) >= len(own):
            print(f"the cohort has {len(own)} splits, so there is nothing to do for {split}")
            return
        name = own[int(split)] if split.isdigit() else split
        stages.align(there, rung, name)
        stages.features(there, rung, name)

    return make


def _scores(profile: Profile, protocol: Protocol, splits: int) -> list[Job]:
    """A job for each student (in all its spaces) and frozen encoder, and one for all controls."""
    entries = tables.predictors(Run(Path(), profile, "cpu", {}), protocol)
    if protocol.name == "peka_official":  # as chapter 4
        entries = [entry for entry in entries if entry[1] != "permuted_targets"]
    groups: dict[str, list[Rung | str]] = {}
    for kind, predictor in entries:
        rung = as_rung(predictor) if kind in ("student", "encoder") else None
        frozen = rung and rung.method == "none" and f"frozen-{_slug(rung.encoder)}".strip("-")
        groups.setdefault(frozen or (_name(rung) if rung else "controls"), []).append(predictor)
    return [_score(profile, protocol, *group, splits) for group in groups.items()]


def _score(
    profile: Profile, protocol: Protocol, name: str, predictors: Iterable[Rung | str], splits: int
) -> Job:
    scored, units, needs = list(predictors), [], set()
    if name == "controls":
        needs.add("frozen-random")
    for predictor in scored:
        rung = as_rung(predictor) if name != "controls" else Rung("none")
        encoder = rung.encoder or profile.encoder
        taught = {"teacher": profile.teacher, "taught_by": rung.taught_by}
        fields = {"encoder": encoder, **(taught if rung.method != "none" else {})}
        method = rung.method if name != "controls" else str(predictor)
        units.append(Unit("evaluation", "", method=method, **fields))
        needs.add(f"frozen-{_slug(encoder)}")
        if rung.method != "none":
            seen = map(str, range(splits)) if protocol.scope == "nested" else ["all"]
            needs |= {_align_name(_student(rung), split, OWN) for split in seen}

    def make(work: Run) -> None:
        for predictor in scored:
            stages.score(work, predictor, protocol)

    made_by = tuple(dict.fromkeys(units))
    return Job(f"score-{protocol.name}-{name}", tuple(sorted(needs)), make, len(scored), made_by)
