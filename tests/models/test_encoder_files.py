"""Encoders of the manifest: the facts of each, its file of weights, and `her2st-real`."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import SMALL
from fake_hub import COMMIT, hub  # noqa: F401
from safetensors.torch import save_file
from test_backbones import hf_vit
from test_encoders import smooth_tiles

from peka_core.commands.command_line import main
from peka_core.common import folders
from peka_core.common.errors import PekaError
from peka_core.common.files import sha256
from peka_core.encoders import load_encoder
from peka_core.models import backbones, encoder_files, scfoundation
from peka_core.models.encoder_files import find_weights, known_digest, location, manifest_entries
from peka_core.protocols import PROTOCOLS
from peka_core.runner import run as workspace
from peka_core.runner import stages
from peka_core.runner.profile import load_profile
from peka_core.runner.rungs import Rung
from peka_core.studies import tables

REAL = ("kaiko-vits16", "resnet50", "phikon")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A checkout without runs."""
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    return tmp_path


def test_the_first_download_is_recorded_and_used_again(hub, tmp_path):
    (hub.folder / "model.safetensors").write_bytes(b"first")
    row = manifest_entries()["phikon"]
    assert known_digest(row) == "" and not location(row)[0] and row.hub_id in location(row)[1]
    path, revision, digest = find_weights(row)
    assert path == tmp_path / "cache/encoders/phikon/model.safetensors"
    assert (revision, digest) == (COMMIT, sha256(path)) == (COMMIT, known_digest(row))
    hub.asked.clear()
    assert find_weights(row) == (path, revision, digest) and hub.asked == []
    assert location(row) == (True, f"in the cache ({path})")
    work = workspace.open_run("smoke", "own", "cpu", {}, {"encoder": "phikon"})
    assert work.encoder_name().startswith(f"phikon@{digest[:12]}")  # no encoder was loaded
    path.unlink()
    (path.parent / "pytorch_model.bin").write_bytes(b"other")  # is not the recorded file
    assert find_weights(row)[0] == path
    pinned = dataclasses.replace(row, sha256="0" * 64)  # the manifest wins over the record
    with pytest.raises(PekaError, match=known_digest(pinned)):
        find_weights(pinned)


def test_given_weights_name_the_units_and_no_path_of_this_machine_is_shown(tmp_path, capsys):
    path, name = tmp_path / "vits.pth", "kaiko-vits16"
    torch.save(backbones.build(manifest_entries()[name], "cpu").state_dict(), path)
    work, digest = workspace.open_run("smoke", "own", "cpu", {name: str(path)}), sha256(path)
    assert work.encoder_name(name).startswith(f"{name}@{digest[:12]}")
    said = capsys.readouterr().out  # it lands in notebooks
    assert said.count(digest) == 1 and "vits.pth" in said and str(tmp_path) not in said


def test_rows_are_the_list_of_facts(shared):
    facts = json.loads((shared / "fixtures/backbones_facts.json").read_text())["models"]
    words = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
    for row in manifest_entries().values():
        assert row.pinned == (len(row.revision) == 40 and len(row.sha256) == 64)
        if row.name == "resnet50_a1":
            continue  # not in the list: timm's own settings
        entry = facts["kaiko-vit" if row.name == "kaiko-vits16" else row.name]
        theirs = {key: value["value"] for key, value in entry.items()}
        ours, how = row.transform, theirs["transform"]
        assert (ours["mean"], ours["std"]) == (how["mean"], how["std"])
        assert ours["resize"] == how["resize_short_side"]
        assert ours["crop"] in (how["center_crop"], 224)
        named = how["interpolation"] or "bilinear"
        assert named.startswith(ours["interpolation"] or "bilinear")
        assert row.hub_id == (theirs["hub_id"] or "") and row.gated == theirs["gated"]
        assert row.revision == theirs.get("revision_seen", "0.0.1" if row.url else "")
        if row.name not in ("resnet50", "ctranspath", "phikon", "kaiko-vits16"):
            expected = theirs["timm_kwargs"].items()
            expected = {k: words.get(k, v) for k, v in expected if v != "token"}
            expected = {k: v for k, v in expected.items() if k not in ("num_classes", "in_chans")}
            assert {k: v for k, v in row.network.items() if k in expected} == expected
            assert row.dim == theirs["embedding_dim"]


@pytest.mark.parametrize(("profile", "offline", "said"), [
    ("her2st-real", True, [f"--weights {name}=PATH" for name in REAL]),
    ("hest-kidney", False, ["h-optimus-0", "HF_TOKEN", "phikon", "HEST-1k", "PEKA_MIRROR"]),
])  # fmt: skip
def test_what_a_run_cannot_have_is_told_before_any_work(
    profile, offline, said, root, monkeypatch, capsys
):
    """From an empty mirror, and online without a token; the 1.4 GB of the teacher wait."""
    monkeypatch.setenv("PEKA_CACHE", str(root))
    monkeypatch.setenv("PEKA_MIRROR", str(root) if offline else "")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    asked = lambda *_: pytest.fail("1.4 GB were asked for first")
    monkeypatch.setattr(scfoundation.ScFoundation, "files", asked)
    assert main(["run", profile]) == 1 and not (root / "runs").exists()
    error = capsys.readouterr().err
    assert all(part in error for part in said)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """Weights of the three encoders of `her2st-real`, drawn, in the layouts of their files."""
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
