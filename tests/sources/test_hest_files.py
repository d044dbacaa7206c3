"""Files of HEST-1k slides: from a mirror, from a hub (a small server that speaks its language), and `peka fetch`."""

import hashlib
import http.server
import json
import shutil
import threading
import time

import pytest
from fake_hest import IDS, build, drawn_mirror, mirror, state  # noqa: F401

from peka_core import places
from peka_core.cohort import open_cohort
from peka_core.commands.command_line import main
from peka_core.downloads import manifest
from peka_core.errors import PekaError
from peka_core.files import sha256
from peka_core.runner import run as workspace
from peka_core.runner.profile import FOLDER
from peka_core.sources import hest, hest_files
from peka_core.sources.hest_files import Pins


def test_a_mirror_lacks_files_or_changes_them(mirror, tmp_path):
    home, options = mirror
    hest.fetch(**options)
    suffixes = (("st", "h5ad"), ("patches", "h5"), ("metadata", "json"))
    assert set(Pins().files) == {
        f"{folder}/{s}.{suffix}" for s in IDS for folder, suffix in suffixes
    }
    with (home / "patches/D1.h5").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(
        PekaError, match=r"patches/D1.h5: size is \d+, expected \d+ .*pins.json.*delete the list"
    ):
        hest.fetch(**options)
    (home / "patches/D1.h5").unlink()
    with pytest.raises(PekaError, match=r"1 of 18 files are not in the mirror(.|\n)*patches/D1.h5"):
        hest.fetch(**options)


def test_a_dry_run_lists_and_touches_nothing(mirror, tmp_path, capsys, monkeypatch):
    home, options = mirror
    (home / "patches/D2.h5").unlink()
    before = state(tmp_path)
    hest.fetch(dry_run=True, **options)
    text = capsys.readouterr().out
    here = (
        sum((home / f).stat().st_size for f in ("st/D1.h5ad", "patches/D1.h5", "metadata/D1.json"))
        / 1e6
    )
    assert any(
        line.split() == ["D1", "14", "spots", f"{here:.1f}", "MB", "here"]
        for line in text.splitlines()
    )
    assert (
        "D2             14 spots  about" in text
        and "MISSING" in text
        and "18 files of 6 slides, about" in text
    )
    assert state(tmp_path) == before and not (tmp_path / "cache").exists()


def test_a_profile_of_hest_is_fetched_and_opened(mirror, tmp_path, capsys, monkeypatch):
    text = (FOLDER / "her2st.yaml").read_text()
    start, end = text.index("source: her2st"), text.index("cues_off_splits")
    own = json.dumps({"cohort": "breast", **mirror[1], "folds": 3})
    (tmp_path / "hest-breast.yaml").write_text(
        f"{text[:start]}source: hest\nsource_options: {own}\n{text[end:]}"
    )
    assert main(["fetch", str(tmp_path / "hest-breast.yaml"), "--dry-run"]) == 0
    assert "18 files of 6 slides" in capsys.readouterr().out and not (tmp_path / "runs").exists()
    monkeypatch.setattr(places, "root", lambda: tmp_path)
    with pytest.warns(UserWarning, match="TENX23"):
        cohort = workspace.open_run(str(tmp_path / "hest-breast.yaml"), device="cpu").cohort(
            tiles=True
        )
    assert (
        cohort.path == tmp_path / "runs/hest-breast/cohort"
        and len(cohort.splits) == 3
        and len(cohort) == 72
    )


@pytest.fixture
def hub(drawn_mirror, tmp_path, monkeypatch):
    """A server that speaks the hub's language; `.breaks`: once, or a file that never arrives; `.lies`: of digests."""
    home, options = drawn_mirror
    shutil.copytree(home, tmp_path / "hub")
    for sample in ("TENX1", "TENX131"):  # whose names start or go on as those of slides
        shutil.copy(home / "patches/D1.h5", tmp_path / f"hub/patches/{sample}.h5")
        (tmp_path / f"hub/st/{sample}.h5ad").write_bytes(b"other slide")
        (tmp_path / f"hub/metadata/{sample}.json").write_text("{}")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body=True):
            hub, path = self.server, self.path.partition("?")[0]
            hub.asked.append((self.command, path, self.headers.get("Range")))
            if hub.gated and "/api/" not in path:
                return self.answer(
                    403, b"no", {"X-Error-Code": "GatedRepo", "X-Error-Message": "accept the terms"}
                )
            if "/tree/" in path:
                folder = path.rsplit("/", 1)[1]
                listed = [self.listed(f) for f in sorted((tmp_path / "hub" / folder).iterdir())]
                return self.answer(200, json.dumps(listed).encode())
            if path.startswith("/api/"):
                return self.answer(
                    200, json.dumps({"id": "MahmoodLab/hest", "sha": hub.revision}).encode()
                )
            data = (tmp_path / "hub" / path.split("/resolve/")[1].split("/", 1)[1]).read_bytes()
            facts = {
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Repo-Commit": hub.revision,
                "Accept-Ranges": "bytes",
            }
            first = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            if body and (
                hub.breaks == "once" or (hub.breaks and path.endswith(hub.breaks))
            ):  # half of it, then nothing more
                hub.breaks = "" if hub.breaks == "once" else hub.breaks
                return self.answer(
                    206 if first else 200,
                    data[first:],
                    facts,
                    b"" if first else data[: len(data) // 2],
                )
            self.answer(206 if first else 200, data[first:], facts, None if body else b"")

        def listed(self, file):
            size, digest = file.stat().st_size, "0" * 64 if self.server.lies else sha256(file)
            facts = {
                "type": "file",
                "path": f"{file.parent.name}/{file.name}",
                "size": size,
                "oid": manifest.git_blob_sha1(file),
            }
            large = {"lfs": {"oid": digest, "size": size, "pointerSize": 130}}
            return facts | ({} if file.suffix == ".json" else large)

        def answer(self, code, data, headers=None, sent=None):
            self.send_response(code)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data if sent is None else sent)
            if self.command == "GET" and sent is not None:
                self.close_connection = True

        def log_message(self, *words):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.asked, running.revision, running.gated, running.breaks, running.lies = (
        [],
        "a" * 40,
        False,
        "",
        False,
    )
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("PEKA_MIRROR", raising=False)
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    running.options = options | {"index": str(tmp_path / "hub/index.csv")}
    yield running
    running.shutdown()
    running.server_close()


def test_the_hub_gives_just_those_slides_and_they_are_pinned(hub, tmp_path, capsys):
    hest.fetch(dry_run=True, **hub.options)
    text = capsys.readouterr().out
    assert (
        "18 files of 6 slides, 0." in text
        and "about" not in text
        and not (tmp_path / "cache").exists()
    )
    paths = hest.fetch(**hub.options)
    assert "18 files, " in capsys.readouterr().out
    got = {
        str(f.relative_to(tmp_path / "cache/hest"))
        for f in (tmp_path / "cache/hest").rglob("*.*")
        if ".cache" not in str(f)
    }
    assert got == set(Pins().files) | {"pins.json"} and not any(
        "TENX131" in name or "TENX1." in name for name in got
    )
    assert (
        sha256(paths["D1"]["patches"]) == sha256(tmp_path / "hub/patches/D1.h5")
        and Pins().revision == "a" * 40
    )
    hub.asked.clear()
    hest.fetch(**hub.options)
    assert hub.asked == []
    hub.revision = "b" * 40  # a later release: what is missing still comes from the first
    paths["D1"]["st"].unlink()
    hest.fetch(**hub.options)
    assert all("b" * 40 not in path for _, path, _ in hub.asked) and any(
        "a" * 40 in path for _, path, _ in hub.asked
    )
    build(tmp_path / "cohort", hub.options)
    assert len(open_cohort(tmp_path / "cohort")) == 72


def test_a_broken_download_goes_on_where_it_stopped(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.breaks = "once"
    paths = hest.fetch(leave_out=IDS[1:], **hub.options)
    again = [asked for method, path, asked in hub.asked if method == "GET" and asked]
    half = (tmp_path / "hub/st/TENX13.h5ad").stat().st_size // 2
    assert again == [f"bytes={half // 1000 * 1000}-"]
    for folder, path in paths["TENX13"].items():
        assert sha256(path) == sha256(tmp_path / "hub" / folder / path.name)


def test_a_download_that_ended_goes_on_with_the_next_file(hub, tmp_path, capsys):
    hub.breaks = "patches/TENX13.h5"
    with pytest.raises(
        PekaError, match="cannot be downloaded .*run the same command again, finished files stay"
    ):
        hest.fetch(leave_out=IDS[1:], **hub.options)
    assert not (tmp_path / "cache/hest/patches/TENX13.h5").exists() and list(Pins().files) == [
        "st/TENX13.h5ad"
    ]
    hub.breaks = ""
    hub.asked.clear()
    hest.fetch(leave_out=IDS[1:], **hub.options)
    got = {
        path.rsplit("/", 2)[1]
        for method, path, _ in hub.asked
        if method == "GET" and "/resolve/" in path
    }
    assert got == {"patches", "metadata"} and "\n2 files, " in capsys.readouterr().out


def test_other_bytes_than_the_hub_or_the_first_download_are_refused(hub, tmp_path, monkeypatch):
    hub.lies = True
    with pytest.raises(
        PekaError,
        match="st/TENX13.h5ad: sha256 is .*, expected 0000.*MahmoodLab/hest on the hub.*Delete it",
    ):
        hest.fetch(leave_out=IDS[1:], **hub.options)
    hub.lies = False
    hest.fetch(leave_out=IDS[1:], **hub.options)
    path = tmp_path / "cache/hest/st/TENX13.h5ad"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(PekaError, match="st/TENX13.h5ad: sha256 is .*pins.json"):
        hest.fetch(leave_out=IDS[1:], **hub.options)


def test_a_disk_without_room_is_said_before_the_download(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hest_files, "free_bytes", lambda path: 1000)
    with pytest.raises(PekaError, match="0.0 GB free, .* GB needed. Make room, or set PEKA_CACHE"):
        hest.fetch(**hub.options)
    assert not any("/resolve/" in path for _, path, _ in hub.asked)


def test_a_closed_gate_and_no_network_say_the_ways_out(hub, monkeypatch, capsys):
    hub.gated = True
    ways = r"accept its terms on .*datasets/MahmoodLab/hest .*HF_TOKEN.*PEKA_MIRROR"
    with pytest.raises(PekaError, match=rf"cannot be downloaded \(GatedRepoError.*{ways}"):
        hest.fetch(**hub.options)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PekaError, match=rf"cannot be downloaded \(ConnectError.*{ways}"):
        hest.fetch(**hub.options)
    capsys.readouterr()
    hest.fetch(dry_run=True, **hub.options)
    assert "an estimate from the index" in capsys.readouterr().out


def test_without_an_index_a_dry_run_says_what_the_filter_will_find(hub, tmp_path, capsys):
    assert hest.fetch("liver", dry_run=True) == {}
    assert "14 slides, 64152 spots" in capsys.readouterr().out and not (tmp_path / "cache").exists()


# ---- reading needs no write access; damaged and false files; the network ------------------------------------------


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"files": []}', '{"files": {"st/D1.h5ad": "x"}}']
)
def test_a_damaged_list_of_pins_is_named_with_what_to_do(mirror, content, tmp_path):
    hest.fetch(**mirror[1])
    (tmp_path / "cache/hest/pins.json").write_text(content)
    with pytest.raises(PekaError, match=r"hest/pins.json.*Restore it; or delete it"):
        hest.fetch(**mirror[1])


def test_files_that_are_noted_are_only_read(mirror, tmp_path, monkeypatch):
    paths = hest.fetch(**mirror[1])
    before = state(tmp_path)
    for module in (manifest, hest_files):
        monkeypatch.setattr(module, "write_json", lambda *_: pytest.fail("written"))
    assert hest.fetch(**mirror[1]) == paths and state(tmp_path) == before


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>"]
)
def test_what_stands_in_for_a_file_is_not_noted(mirror, content, tmp_path):
    path = mirror[0] / "patches/D1.h5"
    whole = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(PekaError, match="patches/D1.h5: expected a file of HEST-1k"):
        hest.fetch(**mirror[1])
    assert "patches/D1.h5" not in Pins().files
    path.write_bytes(whole)
    hest.fetch(**mirror[1])


@pytest.mark.parametrize("content", ["", "[]", "<html>", '{"pixel_size_um_estimated": "half"}'])
def test_damaged_metadata_are_named(mirror, content, tmp_path):
    (mirror[0] / "metadata/D1.json").write_text(content)
    with pytest.raises(PekaError, match="metadata/D1.json"):
        build(tmp_path / "cohort", mirror[1])


def test_a_network_set_up_wrongly_is_named_and_no_path_of_this_machine_is_printed(
    hub, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", "“hf_secret123”")
    monkeypatch.setattr(hest_files, "get_token", lambda: "“hf_secret123”")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "“hf_secret123”")
    for ask in (hest.fetch, hest.preflight):
        with pytest.raises(PekaError, match="HF_TOKEN") as caught:
            ask(**hub.options)
        assert "secret" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    hest.fetch(**hub.options)
    assert "18 files, " in (said := capsys.readouterr().out) and str(tmp_path) not in said
