"""Real tissue without a token (`her2st-real`): refusals offline, and networks of real shapes."""

import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.torch import save_file
from test_backbones import hf_vit
from test_encoders import smooth_tiles

from peka_core.commands.command_line import main
from peka_core.common import folders
from peka_core.common.files import sha256
from peka_core.encoders import load_encoder
from peka_core.models import backbones, encoder_files, scfoundation
from peka_core.models.encoder_files import manifest_entries
from peka_core.protocols import PROTOCOLS
from peka_core.runner import run as workspace
from peka_core.runner import stages
from peka_core.runner.profile import load_profile
from peka_core.runner.rungs import Rung
from peka_core.sources import her2st
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


KIDNEY, OFFLINE = ["run", "hest-kidney"], [f"--weights {name}=PATH" for name in REAL]


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        (["run", "her2st-real"], "", OFFLINE),
        (KIDNEY, None, ["h-optimus-0", "https://", "HF_TOKEN", "phikon", "HEST-1k", "PEKA_MIRROR"]),
        ([*KIDNEY, "--weights", "h-optimus-0=/nowhere/x.bin"], "hf_x", ["/nowhere/x.bin"]),
        ([*KIDNEY, "--weights", "hoptimus=/nowhere/x.bin"], "hf_x", ["hoptimus"]),
        ([*KIDNEY, "-p", "encoder=nosuch", "--run", "x"], "hf_x", ["nosuch"]),
        ([*KIDNEY, "--encoder", "/nowhere/x.py:build", "--run", "x"], "hf_x", ["/nowhere/x.py"]),
    ],
)
def test_what_a_run_cannot_have_is_told_before_any_work(
    words, token, said, home, monkeypatch, capsys
):
    """From an empty mirror, online without a token, and online with one."""
    if token != "":
        monkeypatch.delenv("PEKA_MIRROR")
        monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    assert main(words) == 1 and not (home / "runs").exists()
    error = capsys.readouterr().err
    assert all(part in error for part in said)


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
    for name in REAL:
        path = home / "encoders" / name / manifest_entries()[name].files[0]
        path.parent.mkdir(parents=True)
        if manifest_entries()[name].layout == "hf_vit":
            hf_vit(path.parent, 768, 1e-12, layers=12)
        else:
            state = backbones.build(manifest_entries()[name], "cpu").state_dict()
            save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return home


@pytest.mark.parametrize("name", REAL)
def test_encoders_load_from_a_mirror_and_a_given_file(name, mirror, monkeypatch):
    monkeypatch.setenv("PEKA_MIRROR", str(mirror))
    row, tiles = manifest_entries()[name], smooth_tiles(2)
    encoder, how = load_encoder(name, device="cpu"), row.transform
    features = encoder.embed(tiles)
    assert features.shape == (2, row.dim) and np.isfinite(features).all() and features.std() > 0
    loaded = [encoder.resize, encoder.size, encoder.interpolation, list(encoder.mean)]
    assert loaded == [how[key] for key in ("resize", "crop", "interpolation", "mean")]
    assert (list(encoder.std), encoder.pool) == (how["std"], row.pooling)
    path = mirror / "encoders" / name / row.files[0]
    assert encoder.digest == sha256(path) == encoder_files.weights_digest(name)


@pytest.mark.weekly
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
    split, bench = work.cohort().splits[0].name, PROTOCOLS["hest_bench"]
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
