"""The jobs of a grid: they make every unit that chapters read, and Snakemake runs them."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SMALL
from test_encoders import tiny_encoder

from peka_core.commands import command_line, grid, needs
from peka_core.commands import plan as cost
from peka_core.commands.grid import TABLES, job_named, jobs_of, make_units, planned, read_grid
from peka_core.common.errors import PekaError
from peka_core.drawn.worlds import OWN
from peka_core.encoders import Encoder
from peka_core.runner import stages, units
from peka_core.runner.profile import load_profile

ROOT = Path(__file__).parents[2]


def written(folder: Path, **values) -> Path:
    path = folder / "g.yaml"
    path.write_text(json.dumps({"profiles": ["smoke"]} | values))
    return path


def plan_of(folder: Path, **values) -> dict:
    return planned(read_grid(written(folder, **values)))


def tiny(_name: str) -> Encoder:
    """A small encoder on the meta device."""
    encoder = tiny_encoder(64)
    return replace(encoder, model=encoder.model.to("meta"), device="meta")


def made_by_peka(work) -> list:
    """The jobs of a run that are no commands of their own."""
    return [job for job in jobs_of(work.profile, 2).values() if job.kind not in ("fetch", TABLES)]


def units_of(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("units/[!.]*")}


@pytest.mark.parametrize("name", ["demo", "her2st", "her2st-real", "hest-lung-nested"])
def test_jobs_come_in_order_and_every_alignment_of_chapter_3_has_one(name):
    profile, seen = load_profile(name), set()
    jobs = list(jobs_of(profile, 3).values())
    for job in jobs:
        assert set(job.needs) <= seen
        seen.add(job.name)
    plan = [what for *what, world in profile.alignments(["0", "1", "2"]) if world == OWN]
    aligned = [(job.rung.method, job.split) for job in jobs if job.kind == "align"]
    assert aligned == [(getattr(rung, "method", rung), split) for rung, split in plan]
    assert set(jobs[-1].needs) == seen - {TABLES}


def test_the_jobs_make_whatever_the_tables_need(work, monkeypatch):
    for job in made_by_peka(work):
        before = units_of(work.folder)
        make_units(work, job_named(work.profile, job.name))
        assert len(units_of(work.folder) - before) == job.units
    make_units(work, job_named(work.profile, "align-bat-7"))  # the cohort has no such split
    monkeypatch.setattr(units, "_make", lambda *_: pytest.fail("a unit was missing"))
    for job in made_by_peka(work):
        make_units(work, job)  # finds everything
    own = [split.name for split in work.cohort().splits]
    for rung, split, world in work.profile.alignments(own):
        stages.align(work.at(world), rung, split)
        stages.features(work.at(world), rung, split)
    for split in (*own, "all"):
        stages.teacher(work, split)
    for encoder in ("frozen", "random"):
        stages.features(work, encoder)


def test_a_run_for_each_profile_encoder_and_seed_and_the_shared_work_once(tmp_path):
    changed = {"encoders": ["mini", "random"], "seeds": [3, 4], "gpu": "none"}
    plan = plan_of(tmp_path, **changed, values={"methods": ["bone"], "epochs": 2})
    assert list(dict.fromkeys(job["run"] for job in plan.values())) == [
        "g-smoke-mini-s3", "g-smoke-mini-s4", "g-smoke-random-s3", "g-smoke-random-s4",
    ]  # fmt: skip
    words = plan["g-smoke-random-s4/align-bone-1"]["command"]
    profile, _, run = command_line._named(command_line._parser().parse_args(words))
    assert (profile.seed, profile.encoder, profile.methods) == (4, "random", ("bone",))
    assert (profile.recipe.epochs, run) == (2, "g-smoke-random-s4")
    first, *others = (j["needs"] for name, j in plan.items() if name.endswith("/frozen-random"))
    made_once = "g-smoke-mini-s3/frozen-random"
    assert made_once not in first and all(made_once in needs for needs in others)
    assert all(set(job["needs"]) <= set(plan) for job in plan.values())


def test_a_finished_job_counts_until_its_values_or_the_code_change(tmp_path, monkeypatch):
    key = lambda **values: plan_of(tmp_path, **values)["g-smoke/align-bat-0"]["key"]
    before = key()
    assert key(threads=2) == before != key(values={"epochs": 2})
    of_file = lambda: plan_of(tmp_path, profiles=["a.yaml"])["g-a/teacher"]["key"]
    (tmp_path / "a.yaml").write_text("base: smoke\ntitle: a\n")
    old = of_file()
    (tmp_path / "a.yaml").write_text("base: smoke\ntitle: a\nrecipe: {k: 3}\n")
    assert of_file() != old
    monkeypatch.setattr(grid, "AT_START", {Path("losses.py"): "changed"})
    assert key() != before


def test_hours_of_jobs_are_those_of_the_plan_and_without_gpu_no_job_asks_for_one(
    tmp_path, monkeypatch
):
    for module in (needs, cost, grid):  # the real networks take half a minute
        monkeypatch.setattr(module, "meta_encoder", tiny)
    fresh = functools.cache(grid._student_cost.__wrapped__)
    monkeypatch.setattr(grid, "_student_cost", fresh)
    plan = plan_of(tmp_path, profiles=["her2st-real"], values={"block": 8}, gpu="A100")
    asked = {name.split("/")[1] for name, job in plan.items() if job["gpu"]}
    assert {"frozen-kaiko-vits16", "frozen-resnet50", "align-bat-0"} <= asked
    assert not asked & {"fetch", "frozen-random", TABLES}
    hours = sum(job["gpu_seconds"] for job in plan.values()) / 3600
    (line,) = (
        x
        for x in cost.plan(load_profile("her2st-real", {"block": 8})).splitlines()
        if "together" in x
    )
    assert float(line.split()[-2]) == pytest.approx(hours, rel=0.05) and hours > 0  # two digits
    text = "\n".join(grid.in_words(read_grid(tmp_path / "g.yaml"), plan))
    assert f"{hours:.3g}" in text.splitlines()[-1]
    without = plan_of(tmp_path, profiles=["her2st-real"], values={"block": 8}, gpu="none")
    assert not any(job["gpu"] for job in without.values())


@pytest.mark.parametrize("values", [
    {"profiles": []}, {"profiles": ["no-such"]}, {"profile": ["smoke"]}, {"seeds": [-1]},
    {"seeds": [1, 1]}, {"gpu": "abacus"}, {"values": {"methods": ["magic"]}},
    {"values": {"epoch": 1}}, {"threads": 0}, {"encoders": "mini"}, {"name": "a"},
])  # fmt: skip
def test_a_grid_that_cannot_be_run_is_refused(tmp_path, values):
    with pytest.raises(PekaError):
        plan_of(tmp_path, **values)


def test_an_unknown_job_is_refused(work):
    for name in ("align-lora-0", "train", "fetch", TABLES):
        with pytest.raises(PekaError, match=name):
            job_named(work.profile, name)


@pytest.mark.weekly
def test_processes_that_start_one_job_together_make_each_unit_once(tmp_path):
    (tmp_path / "data_manifest.yaml").write_text((ROOT / "data_manifest.yaml").read_text())
    words = [sys.executable, "-m", "peka_core", "make", "smoke", "align-bat-0", "--run", "r"]
    for name, value in SMALL.items():
        words += ["-p", f"{name}={value}"]
    options = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    jobs = [subprocess.Popen(words, stdout=-1, stderr=-2, text=True, **options) for _ in range(2)]
    told = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], told
    made = {name.split("-")[0] for name in units_of(tmp_path / "runs/r")}
    assert made == {"teacher", "alignment", "features"}
    hidden = {path.name for path in tmp_path.glob("runs/r/units/.*")}
    assert hidden == {".locks"}  # nothing is left half-made
    assert "another process" in "".join(told)
