"""The jobs of a grid: they make every unit that chapters read, and Snakemake runs them."""

import json
from pathlib import Path

import pytest

from peka_core.commands import command_line, grid
from peka_core.commands.grid import planned_jobs, read_grid, runs_of
from peka_core.commands.jobs import FETCH, TABLES, job_named, jobs_of
from peka_core.common.errors import PekaError
from peka_core.protocols import PROTOCOLS
from peka_core.runner import stages, units
from peka_core.runner.profile import load_profile
from peka_core.studies import tables


def written(folder: Path, **values) -> Path:
    path = folder / "g.yaml"
    path.write_text(json.dumps({"profiles": ["smoke"]} | values))
    return path


def plan_of(folder: Path, **values) -> dict:
    planned = planned_jobs(read_grid(written(folder, **values)))
    return {f"{p.run}/{p.job.name}": p for p in planned}


@pytest.mark.parametrize("name", ["demo", "her2st", "her2st-real", "hest-lung-nested"])
def test_jobs_come_in_order_and_every_alignment_of_chapter_3_has_one(name):
    profile, seen = load_profile(name), set()
    jobs = jobs_of(profile, 3)
    for job in jobs:
        assert set(job.needs) <= seen and job.name not in seen
        seen.add(job.name)
    numbers = ["0", "1", "2"]
    plan = {(getattr(r, "method", r), s, w) for r, s, w in profile.alignments(numbers, numbers)}
    assert [job.kind for job in jobs].count("align") == len(plan)
    assert set(jobs[-1].needs) == seen - {TABLES}


def test_the_jobs_make_whatever_the_tables_need(work, monkeypatch):
    for job in jobs_of(work.profile):
        if job.make:
            before = set((work.folder / "units").glob("[!.]*"))
            job.make(work)
            made = set((work.folder / "units").glob("[!.]*")) - before
            stages_made = {path.name.split("-")[0] for path in made}
            assert stages_made <= {unit.stage for unit in job.made_by} and len(made) == job.units
    job_named(work.profile, "align-bat-7").make(work)  # of a split that the cohort does not have
    monkeypatch.setattr(units, "_make", lambda *_: pytest.fail("a unit was missing"))
    for job in filter(lambda job: job.make, jobs_of(work.profile)):
        job.make(work)  # finds everything
    own = [split.name for split in work.cohort().splits]
    for rung, split, world in work.profile.alignments(own):
        stages.align(work.at(world), rung, split)
    for split in (*own, "all"):
        stages.teacher(work, split)
    for name in ("peka_paper", "strict"):
        assert len(tables.score_table(work, PROTOCOLS[name]))


def test_a_run_for_each_profile_encoder_and_seed_and_the_shared_work_once(tmp_path):
    changed = {"encoders": ["mini", "random"], "seeds": [3, 4], "methods": ["bone"]}
    plan = plan_of(tmp_path, name="n", **changed, device="cpu", values={"epochs": 2})
    assert list(dict.fromkeys(p.run for p in plan.values())) == [
        "n-smoke-mini-s3", "n-smoke-mini-s4", "n-smoke-random-s3", "n-smoke-random-s4",
    ]  # fmt: skip
    words = plan["n-smoke-random-s4/align-bone-1"].command
    profile, _, run = command_line._named(command_line._parser().parse_args(words))
    assert (profile.seed, profile.encoder, profile.methods) == (4, "random", ("bone",))
    assert (profile.recipe.epochs, run) == (2, "n-smoke-random-s4")
    first, *others = (p.needs for name, p in plan.items() if name.endswith("/frozen-random"))
    made_once = "n-smoke-mini-s3/frozen-random"
    assert made_once not in first and all(made_once in needs for needs in others)
    assert all(set(p.needs) <= set(plan) for p in plan.values())


def test_a_finished_job_counts_until_its_values_or_its_code_change(tmp_path, monkeypatch):
    key = lambda **values: plan_of(tmp_path, **values)["g-smoke/align-bat-0"].key
    before = key()
    assert key(threads=2) == before != key(values={"epochs": 2})
    (tmp_path / "a.yaml").write_text("base: smoke\ntitle: a\n")
    old = plan_of(tmp_path, profiles=["a.yaml"])["g-a/teacher"].key
    (tmp_path / "a.yaml").write_text("base: smoke\ntitle: a\nrecipe: {k: 3}\n")
    assert plan_of(tmp_path, profiles=["a.yaml"])["g-a/teacher"].key != old
    monkeypatch.setattr(grid, "code_of", lambda unit: f"new {unit.stage}")
    assert key() != before


def test_hours_of_a_job_are_those_of_the_plan_and_a_device_without_gpu_asks_for_none(tmp_path):
    plan = plan_of(tmp_path, profiles=["her2st-real"], gpu="A100")
    asked = {p.job.name for p in plan.values() if p.job.gpu}
    assert {"frozen-kaiko-vits16", "frozen-resnet50", "align-bat-0"} <= asked
    assert not asked & {FETCH, "frozen-random", "score-strict-bat", TABLES}
    seconds = sum(p.seconds for p in plan.values())
    assert seconds > 0 and plan["g-her2st-real/align-bat-0"].minutes >= 30
    text = "\n".join(grid.in_words(read_grid(tmp_path / "g.yaml"), list(plan.values())))
    assert f"{seconds / 3600:.3g}" in text.splitlines()[-1]
    without = plan_of(tmp_path, profiles=["her2st-real"], device="cpu")
    assert not any(p.job.gpu for p in without.values())


@pytest.mark.parametrize("values", [
    {"profiles": []}, {"profiles": ["no-such"]}, {"profile": ["smoke"]}, {"seeds": [-1]},
    {"seeds": [1, 1]}, {"gpu": "abacus"}, {"methods": ["magic"]}, {"values": {"epoch": 1}},
    {"name": "a/b"}, {"threads": 0}, {"encoders": "mini"},
])  # fmt: skip
def test_a_grid_that_cannot_be_run_is_refused(tmp_path, values):
    with pytest.raises(PekaError):
        runs_of(read_grid(written(tmp_path, **values)))


def test_an_unknown_job_is_refused(work):
    for name in ("align-lora-0", "train"):
        with pytest.raises(PekaError, match=name):
            job_named(work.profile, name)
