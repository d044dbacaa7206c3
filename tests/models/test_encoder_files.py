"""Rows of the manifest, and the file of weights that belongs to a row."""

import dataclasses
import json

import pytest
import torch
from fake_hub import COMMIT, hub  # noqa: F401

from peka_core.commands import doctor
from peka_core.common import files, folders
from peka_core.common.errors import PekaError
from peka_core.common.files import sha256
from peka_core.models import backbones
from peka_core.models.encoder_files import find_weights, known_digest, location, manifest_entries
from peka_core.runner import run as workspace


@pytest.fixture(autouse=True)
def weights(hub, tmp_path, monkeypatch):
    """The hub has a file for every row that takes safetensors; runs go to a folder of their own."""
    (hub.folder / "model.safetensors").write_bytes(b"first")
    monkeypatch.setattr(folders, "root", lambda: tmp_path)


def test_the_first_download_is_recorded_and_used_again(hub, tmp_path):
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


def test_given_weights_are_hashed_once_and_recorded_in_the_run(tmp_path, monkeypatch, capsys):
    path, name = tmp_path / "vits.pth", "kaiko-vits16"
    torch.save(backbones.build(manifest_entries()[name], "cpu").state_dict(), path)
    work = workspace.open_run("smoke", "own", "cpu", {name: str(path)}, {"encoder": name})
    recorded, digest = json.loads((work.folder / "weights.json").read_text()), sha256(path)
    assert recorded == {name: {"path": str(path), "sha256": digest}}
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("hashed again"))
    assert work.encoder_name().startswith(f"{name}@{digest[:12]}")
    assert work.encoder().digest == digest
    said = capsys.readouterr().out  # it lands in notebooks, so no path of this machine
    assert said.count(digest) == 1 and "vits.pth" in said and str(tmp_path) not in said


def test_the_doctor_knows_the_profiles_encoder(tmp_path, monkeypatch):
    def line(encoder):
        (tmp_path / "own.yaml").write_text(f"base: smoke\nencoder: {encoder}\n")
        found = doctor.examine(str(tmp_path / "own.yaml"))
        return next((state, text) for state, what, text in found if what == "encoder")

    assert line("uni")[0] == line("ctranspath")[0] == "problem"
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    assert line("uni")[0] == "note" and "secret" not in line("uni")[1]
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    assert line("phikon")[0] == "problem"
    (tmp_path / "mirror/encoders/phikon").mkdir(parents=True)
    (tmp_path / "mirror/encoders/phikon/pytorch_model.bin").write_bytes(b"x")
    assert line("phikon")[0] == line("mini")[0] == "ok"


def test_rows_say_what_is_not_known_and_which_open_encoder_stands_for_a_gated_one():
    for row in manifest_entries().values():
        assert row.pinned == (len(row.revision) == 40 and len(row.sha256) == 64)
        assert not (row.tested and row.disagree.keys() & {"network", "layout", "pooling"})
        assert ("untested" in row.marks) != row.tested
        assert ("disagree" in row.marks) == bool(row.disagree)
        assert not manifest_entries()[row.instead].gated if row.gated else row.instead == ""


def test_rows_are_the_list_of_facts(shared):
    facts = json.loads((shared / "fixtures/backbones_facts.json").read_text())["models"]
    words = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
    for row in manifest_entries().values():
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
