"""Real tissue without a token (`her2st-real`): refusals offline, and networks of real shapes."""

import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.torch import save_file
from test_backbones import hf_names, hf_vit

from peka_core.commands.command_line import main
from peka_core.common import folders
from peka_core.models import backbones, encoder_files, scfoundation
from peka_core.models.encoder_files import manifest_entries
from peka_core.protocols import PROTOCOLS
from peka_core.runner import run as workspace
from peka_core.runner import stages
from peka_core.runner.profile import load_profile
from peka_core.runner.rungs import Rung
from peka_core.sources import her2st, hest
from peka_core.studies import tables

REAL = ("kaiko-vits16", "resnet50", "phikon")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A checkout without runs, and an empty mirror; 1.4 GB of teacher must not be asked for."""
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path))
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    asked = lambda *_: pytest.fail("1.4 GB were asked for first")
    monkeypatch.setattr(scfoundation.ScFoundation, "files", asked)
    return tmp_path


@pytest.fixture
def online(home, monkeypatch):
    """The same without a mirror, with a token for the hub."""
    monkeypatch.delenv("PEKA_MIRROR")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    return home


def refused(words: list[str], capsys, home) -> str:
    """What a command says that ends before any work."""
    assert main(words) == 1 and not (home / "runs").exists()
    return capsys.readouterr().err


def test_offline_a_run_names_all_encoders_without_weights(home, capsys):
    said = refused(["run", "her2st-real"], capsys, home)
    assert all(f"--weights {name}=PATH" in said for name in REAL)


def test_a_gated_encoder_without_a_token_is_refused_before_any_work(online, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    said = refused(["run", "hest-kidney"], capsys, online)
    for part in ("h-optimus-0", "https://", "HF_TOKEN", "phikon", "HEST-1k", "PEKA_MIRROR"):
        assert part in said


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--weights", "h-optimus-0=/nowhere/x.bin"], "/nowhere/x.bin"),
        (["--weights", "hoptimus=/nowhere/x.bin"], "hoptimus"),
        (["-p", "encoder=nosuch", "--run", "x"], "nosuch"),
        (["--encoder", "/nowhere/x.py:build", "--run", "x"], "/nowhere/x.py"),
    ],
)
def test_a_wrong_name_or_path_is_told_before_anything_is_fetched(more, word, online, capsys):
    assert word in refused(["run", "hest-kidney", *more], capsys, online)


def test_slides_that_a_mirror_lacks_end_a_run_before_it_starts(papers_index, home, capsys):
    run = ["run", "hest-breast", "-p", "encoder=mini", "--run", "x"]
    assert "HEST_v1_1_0.csv" in refused(run, capsys, home)  # not even the index
    (home / "hest").mkdir()
    shutil.copy(papers_index / "hest/HEST_v1_1_0.csv", home / "hest")
    said = refused(run, capsys, home)
    assert "st/" in said and "PEKA_MIRROR" in said


def test_a_refused_run_has_not_asked_for_the_teacher(online, monkeypatch, capsys):
    monkeypatch.setattr(encoder_files, "preflight", lambda *_: None)
    monkeypatch.setattr(hest, "preflight", lambda **_: None)
    assert "--run NAME" in refused(["run", "hest-kidney", "-p", "epochs=2"], capsys, online)


@pytest.mark.parametrize(
    ("name", "known"),
    [("resnet50", True), ("resnet50.nosuch", False), ("hf-hub:me/model", True), ("nosuch", False)],
)
def test_timm_is_asked_for_names_that_are_its_own(name, known):
    assert encoder_files._timm_has(name) == known


def test_a_fetch_brings_what_it_can_and_names_what_is_closed(home, monkeypatch, capsys):
    assert main(["fetch", "her2st-real", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(f"encoder {name}: not in the mirror" in said for name in REAL)
    monkeypatch.setattr(her2st, "fetch", lambda **_: print("sections are here"))
    assert main(["fetch", "her2st-real"]) == 1
    said = capsys.readouterr()
    assert "sections are here" in said.out and all(f"{name!r}" in said.err for name in REAL)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """Weights of the profile's three encoders, drawn, in the layouts of their real files."""
    home = tmp_path_factory.mktemp("mirror")
    torch.manual_seed(0)
    build = lambda name: backbones.build(manifest_entries()[name], "cpu").state_dict()
    states = {name: build(name) for name in ("kaiko-vits16", "resnet50")}
    states["phikon"] = hf_names(hf_vit(768, 12, 1e-12, 12))
    for name, state in states.items():
        path = home / "encoders" / name / manifest_entries()[name].files[0]
        path.parent.mkdir(parents=True)
        write = save_file if path.suffix == ".safetensors" else torch.save
        write({key: value.contiguous() for key, value in state.items()}, path)
    return home


@pytest.mark.slow
def test_students_of_real_shapes_are_aligned_and_scored(mirror, tmp_path, monkeypatch):
    """The demo's drawn tissue stands for her2st; encoders and rows are those of her2st-real."""
    monkeypatch.setenv("PEKA_MIRROR", str(mirror))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    real = load_profile("her2st-real")
    own = {name: getattr(real.recipe, name) for name in ("block", "hidden")}
    changes = SMALL | own | {"encoder": real.encoder, "patients": 2}
    work = workspace.open_run("smoke", "real", "cpu", {}, changes)
    work.profile = type(real)(**vars(work.profile) | {"others": real.others})
    split = work.cohort().splits[0].name
    bench = PROTOCOLS["hest_bench"]
    entries = [row for row in tables.predictors(work, bench, ()) if row[0] == "encoder"]
    table = tables.score_table(work, bench, entries=entries)
    named = table.groupby("label")["encoder"].first().str.partition("@")[0].to_dict()
    others = {"ResNet-50, frozen": "resnet50", "Phikon, frozen": "phikon"}
    assert named == {"frozen encoder": "kaiko-vits16"} | others
    widths = [stages.space_of(work, Rung("none", encoder=name)).shape[1] for name in REAL]
    assert widths == [384, 2048, 768]
    frozen, aligned = (stages.space_of(work, rung, split) for rung in ("frozen", "bat"))
    assert frozen.shape == aligned.shape and not np.allclose(frozen, aligned)
    student = stages.score(work, "bat", PROTOCOLS["strict"], splits=[split])
    assert np.isfinite(student.scores["pcc"]).any()
