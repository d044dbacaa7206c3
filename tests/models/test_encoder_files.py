"""The file of weights that belongs to a row: mirror, cache, hub, first digest, and the one message where it cannot be had."""

import dataclasses
import errno
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from test_backbones import cut, encoder_of, hf_vit, shallow
from test_encoders import smooth_tiles

from peka_core import files, places
from peka_core.commands import doctor
from peka_core.encoders import load_encoder
from peka_core.errors import PekaError
from peka_core.files import sha256
from peka_core.models import backbones, encoder_files
from peka_core.models.encoder_files import (
    find_weights,
    known_digest,
    no_weights,
    read_pin,
    rows,
    whereabouts,
)
from peka_core.runner import run as workspace

COMMIT = "c0ffee" + "0" * 34


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """A cache of its own, no mirror, no token."""
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))
    for name in ("PEKA_MIRROR", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ.get("HF_TOKEN"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub in memory: `.files` by name, `.asked` what was asked for, `.error` what it raises instead, `.newest` its commit."""
    hub = SimpleNamespace(
        files={"model.safetensors": b"first"}, asked=[], error=None, newest=COMMIT
    )

    def metadata(url):
        file, revision = url
        hub.asked.append(("head", file, revision))
        if hub.error:
            raise hub.error
        if file not in hub.files:
            raise error_of(errors.RemoteEntryNotFoundError, 404)
        return SimpleNamespace(commit_hash=revision or hub.newest)

    def download(hub_id, file, revision, local_dir):
        hub.asked.append(("get", file, revision))
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / file).write_bytes(hub.files[file])
        return str(local_dir / file)

    monkeypatch.setattr(
        huggingface_hub, "hf_hub_url", lambda hub_id, file, revision: (file, revision)
    )
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return hub


def error_of(kind, status):
    response = SimpleNamespace(headers={}, status_code=status, request=None)
    return kind(f"{status} from the hub\nmore lines", response=response)


PHIKON, UNI, CTRANSPATH = "phikon", "uni", "ctranspath"


def test_the_first_download_is_recorded_and_used_again(hub, empty_cache):
    row = rows()[PHIKON]
    assert known_digest(row) == "" and whereabouts(row) == (
        False,
        "to be downloaded from owkin/phikon",
    )
    path, revision, digest = find_weights(row)
    assert (
        path == empty_cache / "encoders/phikon/model.safetensors" and path.read_bytes() == b"first"
    )
    assert (revision, digest) == (COMMIT, sha256(path)) == (COMMIT, known_digest(row))
    assert read_pin(row) == {
        "file": "model.safetensors",
        "revision": COMMIT,
        "sha256": digest,
        "source": "owkin/phikon",
    }
    assert hub.asked == [("head", "model.safetensors", None), ("get", "model.safetensors", COMMIT)]
    assert find_weights(row) == (path, revision, digest) and len(hub.asked) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.safetensors", "pin.json"]
    assert whereabouts(row)[0] and "in the cache" in whereabouts(row)[1]


def test_a_later_download_asks_for_the_recorded_revision_and_must_match(hub, empty_cache):
    row = rows()[PHIKON]
    path = find_weights(row)[0]
    path.unlink()
    hub.newest, hub.files["model.safetensors"] = "d00d" * 10, b"other"
    with pytest.raises(
        PekaError,
        match=r"sha256 is .*, expected .*pin.json, written at the first download.*thrown away",
    ):
        find_weights(row)
    assert hub.asked[-1] == ("get", "model.safetensors", COMMIT)
    assert [p.name for p in path.parent.iterdir()] == ["pin.json"]
    hub.files["model.safetensors"] = b"first"
    assert find_weights(row)[0].read_bytes() == b"first"


def test_a_changed_file_is_noticed_and_an_unchanged_one_is_not_hashed_again(hub, monkeypatch):
    row = rows()[PHIKON]
    path = find_weights(row)[0]
    with monkeypatch.context() as patch:
        patch.setattr(encoder_files, "sha256", lambda path: pytest.fail("hashed again"))
        find_weights(row)
    path.write_bytes(b"jello")
    with pytest.raises(PekaError, match="model.safetensors: sha256 is .*Delete it and start again"):
        find_weights(row)


def test_a_digest_of_the_manifest_wins(hub):
    row = dataclasses.replace(rows()[PHIKON], sha256="0" * 64, revision="a" * 40)
    with pytest.raises(PekaError, match=f"expected {'0' * 64} [(]data_manifest.yaml[)]"):
        find_weights(row)
    assert hub.asked == [
        ("head", "model.safetensors", "a" * 40),
        ("get", "model.safetensors", "a" * 40),
    ]
    assert read_pin(row) == {}


def test_the_second_name_is_taken_where_the_hub_lacks_the_first(hub):
    hub.files = {"pytorch_model.bin": b"pickled"}
    assert find_weights(rows()[PHIKON])[0].name == "pytorch_model.bin"
    assert read_pin(rows()[PHIKON])["file"] == "pytorch_model.bin"
    hub.files = {}
    with pytest.raises(
        PekaError, match="no model.safetensors and no pytorch_model.bin at revision 3158645804"
    ):
        find_weights(rows()["virchow2"])


def test_a_mirror_is_used_in_place_and_nothing_is_downloaded(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    row = rows()[UNI]
    with pytest.raises(
        PekaError, match=r"'uni'.*mirror/encoders/uni/pytorch_model.bin is not in the mirror"
    ):
        find_weights(row)
    path = tmp_path / "mirror/encoders/uni/pytorch_model.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"first")
    assert find_weights(row) == (path, "", sha256(path)) and hub.asked == []
    assert read_pin(row)["source"].startswith("mirror") and read_pin(row)["sha256"] == sha256(path)
    path.write_bytes(b"other")
    with pytest.raises(PekaError, match="expected .*pin.json.*Replace it in the mirror"):
        find_weights(row)


def gated(kind, status=403):
    return lambda: error_of(kind, status)


@pytest.mark.parametrize(
    "make",
    [
        gated(errors.GatedRepoError), gated(errors.GatedRepoError, 401), gated(errors.RepositoryNotFoundError, 401),
        gated(errors.HfHubHTTPError, 503), lambda: errors.LocalEntryNotFoundError("no connection"),
        lambda: errors.OfflineModeIsEnabled("offline"), lambda: errors.HTTPError("name not known"),
    ],
)  # fmt: skip
def test_a_gated_row_without_access_ends_in_one_message(hub, make, empty_cache):
    hub.error = make()
    with pytest.raises(PekaError) as caught:
        load_encoder(UNI, device="cpu")
    said = str(caught.value)
    steps = (
        "https://huggingface.co/MahmoodLab/UNI",
        "HF_TOKEN",
        "use phikon",
        "--weights uni=PATH",
        "PEKA_MIRROR",
    )
    for part in (*steps, "encoders/uni/pytorch_model.bin"):
        assert part in said, said
    assert type(hub.error).__name__ in said and "\n" not in said
    assert not list(empty_cache.rglob("pin.json"))


def test_other_errors_pass(hub):
    hub.error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        find_weights(rows()[PHIKON])


def test_ungated_rows_and_rows_without_a_hub_say_what_fits_them(hub):
    hub.error = errors.OfflineModeIsEnabled("offline")
    with pytest.raises(
        PekaError, match="'phikon'.*OfflineModeIsEnabled.*no token is needed.*--weights phikon=PATH"
    ) as caught:
        find_weights(rows()[PHIKON])
    assert "HF_TOKEN" not in str(caught.value)
    with pytest.raises(
        PekaError, match="'ctranspath'.*by hand from https://github.com/Xiyue-Wang/TransPath"
    ) as caught:
        find_weights(rows()[CTRANSPATH])
    assert "HF_TOKEN" not in str(caught.value)
    for row in rows().values():
        assert (
            row.instead == ""
            if not row.gated
            else not rows()[row.instead].gated and row.instead in str(no_weights(row, ""))
        )


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A local server of tmp_path/web."""
    (tmp_path / "web").mkdir()
    handler = lambda *words: http.server.SimpleHTTPRequestHandler(
        *words, directory=tmp_path / "web"
    )
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield f"http://127.0.0.1:{running.server_port}/", tmp_path / "web"
    running.shutdown()
    running.server_close()


def test_a_row_with_an_address_is_downloaded_from_it(web, empty_cache):
    url, folder = web
    row = dataclasses.replace(rows()["kaiko-vits16"], url=url)
    with pytest.raises(
        PekaError, match=r"vits16.pth gave nothing \(HTTPError: 404.*no token is needed"
    ):
        find_weights(row)
    (folder / "vits16.pth").write_bytes(b"first")
    path, revision, digest = find_weights(row)
    assert (path.name, path.read_bytes(), revision, digest) == (
        "vits16.pth",
        b"first",
        "0.0.1",
        sha256(folder / "vits16.pth"),
    )
    assert read_pin(row)["source"] == url


STUDENTS = [
    "resnet50",
    "phikon",
    "kaiko-vits16",
]  # what a profile on real tissue without a token can use


def put_in_mirror(mirror, row):
    """A file of drawn weights in the layout of the row's own."""
    if row.layout == "hf_vit":
        hf_vit(row.dim, row.dim // 64, 1e-12, 12).save_pretrained(mirror / "encoders" / row.name)
        return
    torch.manual_seed(0)
    state, path = (
        backbones.build(row, "cpu").state_dict(),
        mirror / "encoders" / row.name / row.files[0],
    )
    path.parent.mkdir(parents=True)
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


@pytest.mark.parametrize("name", STUDENTS)
def test_token_free_encoders_load_offline_from_a_mirror_and_from_a_given_file(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    row = rows()[name]
    put_in_mirror(tmp_path / "mirror", row)
    tiles = smooth_tiles(2)
    encoder = load_encoder(name, device="cpu")
    features = encoder.embed(tiles)
    assert features.shape == (2, row.dim) and np.isfinite(features).all() and features.std() > 0
    path = tmp_path / "mirror/encoders" / name / row.files[0]
    how = row.transform
    assert (encoder.resize, encoder.size, encoder.interpolation) == (
        how["resize"],
        how["crop"],
        how["interpolation"],
    )
    assert (list(encoder.mean), list(encoder.std), encoder.pool) == (
        how["mean"],
        how["std"],
        row.pooling,
    )
    assert (
        encoder.digest == sha256(path) == encoder_files.weights_digest(name)
        and encoder.name == name
    )
    assert "sha256" not in capsys.readouterr().out
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "nowhere"))
    given = load_encoder(name, weights=path, device="cpu")
    np.testing.assert_array_equal(given.embed(tiles), features)
    assert given.digest == encoder.digest and f"sha256 {given.digest}" in capsys.readouterr().out


def test_a_real_try_without_a_network_ends_quickly_in_one_message(tmp_path):
    """The hub's own client, in its offline mode: the message is the whole of what is said."""
    lines = "from peka_core.files import PekaError\nfrom peka_core.encoders import load_encoder\n"
    lines += "try:\n load_encoder('phikon', device='cpu')\nexcept PekaError as e:\n print(e)"
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PEKA_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, env=env, check=True
    )
    begin = "encoder 'phikon' has no weights here: owkin/phikon gave no model.safetensors (OfflineModeIsEnabled"
    assert done.stdout.startswith(begin)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


def test_given_weights_are_hashed_once_printed_and_recorded_in_the_run(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(places, "root", lambda: tmp_path)
    path = tmp_path / "vits.pth"
    torch.save(backbones.build(rows()["kaiko-vits16"], "cpu").state_dict(), path)
    with pytest.raises(PekaError, match="--weights kaiko-vits16=PATH"):
        workspace.open_run(
            "smoke",
            "own",
            "cpu",
            {"kaiko-vits16": tmp_path / "absent.pth"},
            {"encoder": "kaiko-vits16"},
        )
    assert not (tmp_path / "runs").exists()
    work = workspace.open_run(
        "smoke", "own", "cpu", {"kaiko-vits16": str(path)}, {"encoder": "kaiko-vits16"}
    )
    digest = sha256(path)
    assert json.loads((tmp_path / "runs/own/weights.json").read_text()) == {
        "kaiko-vits16": {"path": str(path), "sha256": digest}
    }
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("hashed again"))
    assert (
        work.encoder_name().startswith(f"kaiko-vits16@{digest[:12]}")
        and work.encoder().digest == digest
    )
    said = capsys.readouterr().out
    assert said.count(digest) == 1 and "vits.pth" in said and str(tmp_path) not in said, (
        "it lands in notebooks: no path of this machine"
    )


def test_the_name_of_a_unit_needs_no_loaded_encoder_once_the_digest_is_known(
    hub, tmp_path, monkeypatch
):
    monkeypatch.setattr(places, "root", lambda: tmp_path)
    digest = find_weights(rows()[PHIKON])[2]
    work = workspace.open_run("smoke", "own", "cpu", {}, {"encoder": PHIKON})
    assert work.encoder_name().startswith(f"phikon@{digest[:12]}")


def doctors_line(encoder, tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text(f"base: smoke\nencoder: {encoder}\n")
    (line,) = [line for line in doctor.examine(str(tmp_path / "own.yaml")) if line[1] == "encoder"]
    return line[0], line[2]


def test_the_doctor_knows_the_profiles_encoder(tmp_path, monkeypatch):
    state, text = doctors_line("uni", tmp_path, monkeypatch)
    parts = (
        "CC-BY-NC-ND",
        "accept https://",
        "not set",
        "--weights uni=PATH",
        "MahmoodLab/UNI",
        "unpinned",
    )
    assert state == "problem" and all(part in text for part in parts)
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    state, text = doctors_line("uni", tmp_path, monkeypatch)
    assert (
        state == "note"
        and "not set" not in text
        and "hf_very_secret" not in text
        and "to be downloaded" in text
    )
    assert doctors_line("ctranspath", tmp_path, monkeypatch)[0] == "problem"
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    assert doctors_line("phikon", tmp_path, monkeypatch)[0] == "problem"
    (tmp_path / "mirror/encoders/phikon").mkdir(parents=True)
    (tmp_path / "mirror/encoders/phikon/pytorch_model.bin").write_bytes(b"x")
    state, text = doctors_line("phikon", tmp_path, monkeypatch)
    assert state == "ok" and "in the mirror" in text and "Owkin" in text
    assert doctors_line("mini", tmp_path, monkeypatch) == ("ok", "mini, in the package")


def test_rows_say_what_is_not_known():
    wanted = {
        "resnet50",
        "resnet50_a1",
        "ctranspath",
        "uni",
        "h-optimus-0",
        "virchow",
        "virchow2",
        "prov-gigapath",
        "uni2-h",
    }
    wanted |= {"h-optimus-1", "phikon", "kaiko-vits16"}
    assert rows().keys() == wanted
    fields = {field.name for field in dataclasses.fields(encoder_files.Row)} | {"license"}
    for row in rows().values():
        assert row.pinned == (len(row.revision) == 40 and len(row.sha256) == 64)
        assert (
            row.layout in backbones.LAYOUTS
            and row.license
            and row.files
            and row.disagree.keys() <= fields
        )
        assert not (row.tested and row.disagree.keys() & {"network", "layout", "pooling"})
        assert bool(row.hub_id) + bool(row.url) + (row.name == "ctranspath") == 1
        assert ("untested" in row.marks) == (not row.tested) and ("disagree" in row.marks) == bool(
            row.disagree
        )
    assert "unpinned, untested, sources disagree" in rows()["h-optimus-1"].marks


def test_rows_are_the_list_of_facts(shared):
    facts = json.loads((shared / "fixtures/backbones_facts.json").read_text())["models"]
    for row in rows().values():
        if row.name == "resnet50_a1":
            continue  # not in the list: timm's own settings
        theirs = {
            k: v["value"]
            for k, v in facts["kaiko-vit" if row.name == "kaiko-vits16" else row.name].items()
        }
        how = theirs["transform"]
        assert (row.transform["mean"], row.transform["std"]) == (how["mean"], how["std"])
        assert row.transform["resize"] == how["resize_short_side"] and row.transform["crop"] in (
            how["center_crop"],
            224,
        )
        assert (how["interpolation"] or "bilinear").startswith(
            row.transform["interpolation"] or "bilinear"
        )
        assert row.hub_id == (theirs["hub_id"] or "") and row.gated == theirs["gated"]
        assert row.revision == theirs.get("revision_seen", "0.0.1" if row.url else "")
        if row.name not in ("resnet50", "ctranspath", "phikon", "kaiko-vits16"):
            expected = dict(theirs["timm_kwargs"])
            for name, ours in {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}.items():
                if name in expected:
                    expected[name] = ours
            for same in ("num_classes", "in_chans"):
                expected.pop(same, None)
            ours = {k: v for k, v in row.network.items() if k in expected}
            assert ours == {k: v for k, v in expected.items() if (k, v) != ("global_pool", "token")}
            assert row.dim == theirs["embedding_dim"]


def test_resnet50_a1_is_timms_own():
    import timm

    cfg, row = timm.get_pretrained_cfg("resnet50.a1_in1k"), rows()["resnet50_a1"]
    assert row.hub_id == cfg.hf_hub_id and row.transform["interpolation"] == cfg.interpolation
    assert (
        row.transform["resize"] == int(224 / cfg.crop_pct)
        and tuple(row.transform["mean"]) == cfg.mean
    )


def test_a_row_that_pools_two_vectors_loads_so(tmp_path, monkeypatch):
    row = cut(rows()["virchow2"], 1)
    monkeypatch.setattr("peka_core.encoders.rows", lambda: {"virchow2": row})
    model = shallow(row, 1)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    encoder, tiles = (
        load_encoder("virchow2", weights=tmp_path / "x.safetensors", device="cpu"),
        smooth_tiles(2),
    )
    theirs = encoder_of(row, model)
    assert encoder.embed(tiles).shape == (2, encoder.dim) == (2, 2560)
    np.testing.assert_allclose(encoder.embed(tiles), theirs.embed(tiles), atol=1e-5)


def test_h_optimus_takes_tiles_as_they_are(tmp_path):
    row = rows()["h-optimus-0"]
    encoder = encoder_of(row, backbones.build(cut(row, 1)))
    assert row.transform["resize"] is None and encoder.transform(smooth_tiles(1)).shape == (
        1,
        3,
        224,
        224,
    )
    with pytest.raises(
        PekaError, match="h-optimus-0 takes tiles of 224 x 224 px as they are, not 256 x 256"
    ):
        encoder.transform(smooth_tiles(1, 256))


# ---- reading needs no write access; damaged and false files; the network ------------------------------------------


@pytest.fixture
def in_mirror(tmp_path, monkeypatch):
    """Weights of phikon in a mirror, which is a folder of its own."""
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    path = tmp_path / "mirror/encoders/phikon/model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"first")
    return path


@pytest.fixture
def read_only(monkeypatch):
    """Call it: from then on no folder is made and no file renamed, as on a disk that is mounted read-only."""

    def refuse(self, *words, **named):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    def start():
        monkeypatch.setattr("pathlib.Path.mkdir", refuse)
        monkeypatch.setattr("os.replace", refuse)

    return start


def test_a_recorded_file_is_only_read(in_mirror, empty_cache, read_only):
    found = find_weights(rows()[PHIKON])
    shutil.rmtree(empty_cache / "encoders/.locks")
    read_only()
    assert find_weights(rows()[PHIKON]) == found and known_digest(rows()[PHIKON]) == found[2]
    (empty_cache / "verified.json").unlink()  # it is hashed again then
    assert find_weights(rows()[PHIKON]) == found
    assert sorted(p.name for p in empty_cache.rglob("*")) == ["encoders", "phikon", "pin.json"]


def test_a_first_use_that_cannot_be_recorded_names_the_place(in_mirror, empty_cache, read_only):
    read_only()
    with pytest.raises(
        PekaError, match=rf"{empty_cache}.* cannot be written .Read-only file system"
    ):
        find_weights(rows()[PHIKON])


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"file": "model.safetensors"}', '{"file": 1, "revision": "", "sha256": ""}'],
)
def test_a_damaged_pin_is_named_with_what_to_do(in_mirror, empty_cache, content):
    path = empty_cache / "encoders/phikon/pin.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    for ask in (find_weights, known_digest, whereabouts):
        with pytest.raises(PekaError, match=r"encoders/phikon/pin.json.*Delete it"):
            ask(rows()[PHIKON])
    path.unlink()
    assert find_weights(rows()[PHIKON])[0] == in_mirror


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n",
        b"\n<!DOCTYPE html><title>log in",
    ],
)
def test_what_stands_in_for_a_file_is_not_recorded(
    in_mirror, hub, content, empty_cache, monkeypatch
):
    in_mirror.write_bytes(content)
    with pytest.raises(
        PekaError,
        match="phikon/model.safetensors.*expected weights of encoder 'phikon'.*Replace it in the mirror",
    ):
        find_weights(rows()[PHIKON])
    monkeypatch.delenv("PEKA_MIRROR")
    hub.files["model.safetensors"] = content
    with pytest.raises(PekaError, match="expected weights of encoder 'phikon'"):
        find_weights(rows()[PHIKON])
    assert not list(empty_cache.rglob("pin.json")) and not list(empty_cache.rglob("*.safetensors"))
    hub.files["model.safetensors"] = b"first"
    assert find_weights(rows()[PHIKON])[0].read_bytes() == b"first"


@pytest.mark.parametrize(
    ("name", "value"),
    [("HF_TOKEN", "“hf_secret123”"), ("HF_ENDPOINT", "hub"), ("SSL_CERT_FILE", "/nope.pem")],
)
def test_a_network_set_up_wrongly_is_named_before_any_work_and_before_a_download(
    hub, name, value, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv(name, value)
    for ask in (lambda: encoder_files.preflight([UNI], {}), lambda: find_weights(rows()[UNI])):
        with pytest.raises(PekaError, match=name) as caught:
            ask()
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert hub.asked == []
    encoder_files.preflight(["mini"], {})  # nothing is to be downloaded
