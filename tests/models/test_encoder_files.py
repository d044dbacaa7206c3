"""Rows of the manifest, and the file of weights that belongs to a row."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from fake_hub import COMMIT, hub, kept  # noqa: F401
from safetensors.torch import save_file
from test_backbones import cut, encoder_of, hf_vit, shallow
from test_encoders import smooth_tiles

from peka_core.commands import doctor
from peka_core.common import files, folders
from peka_core.common.errors import PekaError
from peka_core.common.files import sha256
from peka_core.encoders import load_encoder
from peka_core.models import backbones, encoder_files
from peka_core.models.encoder_files import (
    find_weights,
    known_digest,
    location,
    manifest_entries,
    preflight,
)
from peka_core.runner import run as workspace

PHIKON, UNI, CTRANSPATH = "phikon", "uni", "ctranspath"


@pytest.fixture(autouse=True)
def weights(hub):
    """The hub's file for every row that takes safetensors."""
    (hub.folder / "model.safetensors").write_bytes(b"first")


def test_the_first_download_is_recorded_and_used_again(hub, tmp_path):
    row = manifest_entries()[PHIKON]
    assert known_digest(row) == "" and not location(row)[0] and row.hub_id in location(row)[1]
    path, revision, digest = find_weights(row)
    assert path == tmp_path / "cache/encoders/phikon/model.safetensors"
    assert (revision, digest) == (COMMIT, sha256(path)) == (COMMIT, known_digest(row))
    hub.asked.clear()
    assert find_weights(row) == (path, revision, digest) and hub.asked == []
    assert location(row) == (True, f"in the cache ({path})")
    path.unlink()
    assert known_digest(row) == digest and not location(row)[0]
    (path.parent / "pytorch_model.bin").write_bytes(b"other")  # is not the recorded file
    assert find_weights(row)[0] == path


def test_the_manifest_wins_over_what_is_served(hub, tmp_path):
    row = dataclasses.replace(manifest_entries()[PHIKON], sha256="0" * 64, revision="a" * 40)
    assert known_digest(row) == "0" * 64
    with pytest.raises(PekaError, match="0" * 64):
        find_weights(row)
    assert all("a" * 40 in path for path in hub.got()) and kept(tmp_path / "cache") == []


def test_a_row_with_an_address_is_downloaded_from_it(hub):
    row = dataclasses.replace(manifest_entries()["kaiko-vits16"], url=hub.url)
    (hub.folder / "vits16.pth").write_bytes(b"first")
    path, revision, digest = find_weights(row)
    assert (path.name, revision, digest) == ("vits16.pth", "0.0.1", sha256(path))


@pytest.mark.parametrize("name", [UNI, PHIKON, CTRANSPATH])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_row_without_weights_says_what_to_do(name, mirrored, hub, tmp_path, monkeypatch):
    hub.status = 403
    if mirrored:
        monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(PekaError) as caught:
        load_encoder(name, device="cpu")
    said, file = str(caught.value), f"encoders/{name}/{manifest_entries()[name].files[0]}"
    assert f"--weights {name}=PATH" in said and file in said
    assert ("HF_TOKEN" in said) == (name == UNI)


def test_encoders_that_cannot_come_are_all_refused_before_any_work(hub, tmp_path, monkeypatch):
    with pytest.raises(PekaError, match=r"(?s)uni.*virchow2"):
        preflight([UNI, PHIKON, "virchow2"], {})
    with pytest.raises(PekaError, match=CTRANSPATH):
        preflight([PHIKON, CTRANSPATH], {})
    (tmp_path / "own.pth").write_bytes(b"x")
    preflight(["mini", PHIKON, CTRANSPATH], {CTRANSPATH: str(tmp_path / "own.pth")})
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    preflight([UNI], {})
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(PekaError, match=r"(?s)uni.*phikon"):
        preflight([UNI, PHIKON], {})
    assert hub.asked == []


def test_every_gated_row_names_one_that_is_open():
    for row in manifest_entries().values():
        assert not manifest_entries()[row.instead].gated if row.gated else row.instead == ""


STUDENTS = ["resnet50", "phikon", "kaiko-vits16"]  # real tissue without a token


def put_in_mirror(mirror, row):
    """A file of drawn weights in the layout of the row's own."""
    if row.layout == "hf_vit":
        hf_vit(row.dim, row.dim // 64, 1e-12, 12).save_pretrained(mirror / "encoders" / row.name)
        return
    torch.manual_seed(0)
    state = backbones.build(row, "cpu").state_dict()
    path = mirror / "encoders" / row.name / row.files[0]
    path.parent.mkdir(parents=True)
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


@pytest.mark.parametrize("name", STUDENTS)
def test_encoders_load_from_a_mirror_and_a_given_file(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    row, tiles = manifest_entries()[name], smooth_tiles(2)
    put_in_mirror(tmp_path / "mirror", row)
    encoder = load_encoder(name, device="cpu")
    features = encoder.embed(tiles)
    assert features.shape == (2, row.dim) and np.isfinite(features).all() and features.std() > 0
    loaded = [encoder.resize, encoder.size, encoder.interpolation, list(encoder.mean)]
    assert loaded == [row.transform[key] for key in ("resize", "crop", "interpolation", "mean")]
    assert (list(encoder.std), encoder.pool) == (row.transform["std"], row.pooling)
    path = tmp_path / "mirror/encoders" / name / row.files[0]
    assert encoder.digest == sha256(path) == encoder_files.weights_digest(name)
    assert "sha256" not in capsys.readouterr().out
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "nowhere"))
    given = load_encoder(name, weights=path, device="cpu")
    np.testing.assert_array_equal(given.embed(tiles), features)
    assert given.digest == encoder.digest and f"sha256 {given.digest}" in capsys.readouterr().out


def test_given_weights_are_hashed_once_and_recorded_in_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    path, name = tmp_path / "vits.pth", "kaiko-vits16"
    torch.save(backbones.build(manifest_entries()[name], "cpu").state_dict(), path)
    run = lambda file: workspace.open_run("smoke", "own", "cpu", {name: file}, {"encoder": name})
    with pytest.raises(PekaError, match="absent.pth"):
        run(tmp_path / "absent.pth")
    assert not (tmp_path / "runs").exists()
    work, digest = run(str(path)), sha256(path)
    recorded = json.loads((tmp_path / "runs/own/weights.json").read_text())
    assert recorded == {name: {"path": str(path), "sha256": digest}}
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("hashed again"))
    assert work.encoder_name().startswith(f"{name}@{digest[:12]}")
    assert work.encoder().digest == digest
    said = capsys.readouterr().out  # it lands in notebooks, so no path of this machine
    assert said.count(digest) == 1 and "vits.pth" in said and str(tmp_path) not in said


def test_the_name_of_a_unit_needs_no_loaded_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    digest = find_weights(manifest_entries()[PHIKON])[2]
    work = workspace.open_run("smoke", "own", "cpu", {}, {"encoder": PHIKON})
    assert work.encoder_name().startswith(f"phikon@{digest[:12]}")


def test_the_doctor_knows_the_profiles_encoder(tmp_path, monkeypatch):
    def line(encoder):
        (tmp_path / "own.yaml").write_text(f"base: smoke\nencoder: {encoder}\n")
        found = doctor.examine(str(tmp_path / "own.yaml"))
        return next((state, text) for state, what, text in found if what == "encoder")

    state, text = line("uni")
    assert state == "problem" and "not set" in text and manifest_entries()["uni"].terms in text
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    state, text = line("uni")
    assert state == "note" and "not set" not in text and "secret" not in text
    assert line("ctranspath")[0] == "problem"
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    assert line("phikon")[0] == "problem"
    (tmp_path / "mirror/encoders/phikon").mkdir(parents=True)
    (tmp_path / "mirror/encoders/phikon/pytorch_model.bin").write_bytes(b"x")
    assert line("phikon")[0] == line("mini")[0] == "ok"


def test_rows_say_what_is_not_known():
    fields = {field.name for field in dataclasses.fields(encoder_files.ManifestEntry)} | {"license"}
    for row in manifest_entries().values():
        assert row.pinned == (len(row.revision) == 40 and len(row.sha256) == 64)
        assert row.layout in backbones.LAYOUTS and row.license and row.files
        assert row.disagree.keys() <= fields
        assert not (row.tested and row.disagree.keys() & {"network", "layout", "pooling"})
        assert bool(row.hub_id) + bool(row.url) + (row.name == "ctranspath") == 1
        assert ("untested" in row.marks) != row.tested
        assert ("disagree" in row.marks) == bool(row.disagree)


def test_rows_are_the_list_of_facts(shared):
    facts = json.loads((shared / "fixtures/backbones_facts.json").read_text())["models"]
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
            expected = dict(theirs["timm_kwargs"])
            for name, text in {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}.items():
                if name in expected:
                    expected[name] = text
            for same in ("num_classes", "in_chans"):
                expected.pop(same, None)
            network = {k: v for k, v in row.network.items() if k in expected}
            assert network == {k: v for k, v in expected.items() if v != "token"}
            assert row.dim == theirs["embedding_dim"]


def test_a_row_that_pools_two_vectors_loads_so(tmp_path, monkeypatch):
    row, tiles = cut(manifest_entries()["virchow2"], 1), smooth_tiles(2)
    monkeypatch.setattr("peka_core.encoders.manifest_entries", lambda: {"virchow2": row})
    model = shallow(row, 1)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    encoder = load_encoder("virchow2", weights=tmp_path / "x.safetensors", device="cpu")
    assert encoder.embed(tiles).shape == (2, encoder.dim) == (2, 2560)
    theirs = encoder_of(row, model).embed(tiles)
    np.testing.assert_allclose(encoder.embed(tiles), theirs, atol=1e-5)


def test_h_optimus_takes_tiles_as_they_are():
    row = manifest_entries()["h-optimus-0"]
    encoder = encoder_of(row, backbones.build(cut(row, 1)))
    assert row.transform["resize"] is None
    assert encoder.transform(smooth_tiles(1)).shape == (1, 3, 224, 224)
    with pytest.raises(PekaError, match="h-optimus-0"):
        encoder.transform(smooth_tiles(1, 256))
