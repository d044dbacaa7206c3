import errno
import http.server
import json
import threading

import pandas as pd
import pytest

from peka_core.downloads import manifest
from peka_core.errors import PekaError

# git's own digests: `printf 'hello\n' | git hash-object --stdin`, and of nothing
HELLO, EMPTY = (
    "ce013625030ba8dba906f756967f9e9ca394464a",
    "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
)
SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local server of `tmp_path/web`; `.asked` lists the paths asked for, `.short` breaks off every answer."""
    (tmp_path / "web/data").mkdir(parents=True)
    (tmp_path / "web/data/a.txt").write_bytes(b"hello\n")
    (tmp_path / "web/data/b.txt").write_bytes(b"")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *words):
            super().__init__(*words, directory=tmp_path / "web")

        def do_GET(self):
            self.server.asked.append(self.path)
            if not self.server.short:
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"hel")

        def log_message(self, *words):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.asked, running.short = [], False
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.delenv("PEKA_MIRROR", raising=False)
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def listed(server):
    files = {
        "toy/data/a.txt": {"blob": HELLO, "size": 6, "sha256": SHA256},
        "toy/data/b.txt": {"blob": EMPTY},
    }
    return {
        "sources": {"toy": {"url": f"http://127.0.0.1:{server.server_port}/", "files": files}},
        "encoders": {},
    }


def fetch(listed, files=("toy/data/a.txt", "toy/data/b.txt"), **options):
    return manifest.fetch("toy", list(files), manifest=listed, **options)


def refused(listed, *parts, **options):
    with pytest.raises(PekaError) as caught:
        fetch(listed, **options)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def leftovers(folder):
    return [
        file.name for file in folder.rglob("*") if file.is_file() and file.name != "verified.json"
    ]


def test_blob_digest_is_gits(tmp_path):
    file = tmp_path / "x"
    for content, expected in ((b"hello\n", HELLO), (b"", EMPTY)):
        file.write_bytes(content)
        assert manifest.git_blob_sha1(file) == expected


def test_files_are_downloaded_once(listed, server, tmp_path):
    paths = fetch(listed)
    assert paths == [tmp_path / "cache/toy/data/a.txt", tmp_path / "cache/toy/data/b.txt"]
    assert paths[0].read_bytes() == b"hello\n" and server.asked == ["/data/a.txt", "/data/b.txt"]
    paths[1].unlink()
    assert fetch(listed) == paths and server.asked[2:] == ["/data/b.txt"]
    assert fetch(listed, folder=tmp_path / "other")[0] == tmp_path / "other/toy/data/a.txt"


def test_a_broken_download_leaves_nothing_and_is_redone(listed, server, tmp_path):
    server.short = True
    refused(listed, "/data/a.txt", "Start again", "PEKA_MIRROR")
    assert leftovers(tmp_path / "cache") == []
    server.short = False
    assert len(fetch(listed)) == 2


def test_a_server_that_is_gone_is_named(listed, server, tmp_path):
    (tmp_path / "web/data/a.txt").unlink()
    refused(listed, "404", "/data/a.txt", "download failed")


@pytest.mark.parametrize("content", [b"jello\n", b"hello"])
def test_a_wrong_digest_is_refused_with_both(listed, tmp_path, content):
    (tmp_path / "web/data/a.txt").write_bytes(content)
    refused(
        listed, "a.txt", "expected 6" if len(content) == 5 else f"expected {HELLO}", "Start again"
    )
    assert leftovers(tmp_path / "cache") == []


def test_sha256_is_checked_where_known(listed):
    listed["sources"]["toy"]["files"]["toy/data/a.txt"]["sha256"] = "0" * 64
    refused(listed, "a.txt", "sha256", SHA256, "0" * 64)


def test_a_changed_file_in_the_cache_is_noticed(listed, tmp_path):
    path = fetch(listed)[0]
    path.write_bytes(b"jello\n")
    refused(listed, str(path), HELLO, "Delete it")


def test_a_verified_file_is_not_hashed_again(listed, monkeypatch):
    fetch(listed)
    monkeypatch.setattr(manifest, "git_blob_sha1", lambda path: pytest.fail("hashed again"))
    fetch(listed)


def test_a_list_of_verified_files_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch):
    def refuse(old, new):
        raise OSError(errno.EROFS, "Read-only file system", str(new))

    (tmp_path / "a.txt").write_text("a")
    seen = manifest.Verified(tmp_path / "verified.json")
    seen.add(tmp_path / "a.txt", {})
    monkeypatch.setattr("os.replace", refuse)
    seen.save()
    assert not (tmp_path / "verified.json").exists()


def test_a_mirror_is_used_in_place_and_verified(listed, server, tmp_path, monkeypatch):
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    refused(
        listed,
        "2 of 2 files are not in the mirror",
        "toy/data/a.txt",
        "toy/data/b.txt",
        "unset PEKA_MIRROR",
    )
    (tmp_path / "mirror/toy").mkdir(parents=True)
    (tmp_path / "web/data").rename(tmp_path / "mirror/toy/data")
    assert fetch(listed)[0] == tmp_path / "mirror/toy/data/a.txt" and server.asked == []
    assert leftovers(tmp_path / "cache") == []
    (tmp_path / "mirror/toy/data/b.txt").write_text("no longer empty")
    refused(listed, "b.txt", EMPTY, "mirror")


def test_dry_run_lists_and_touches_nothing(listed, server, tmp_path, capsys):
    paths = fetch(listed, dry_run=True)
    text = capsys.readouterr().out
    assert (
        "0.00 MB" in text
        and "?" in text
        and f"{server.server_port}/data/b.txt" in text
        and "1 of unknown size" in text
    )
    assert not paths[0].exists() and server.asked == [] and not (tmp_path / "cache").exists()


@pytest.fixture
def weights(listed, server):
    """A file with an address and terms of its own, known by sha256 alone."""
    url = f"http://127.0.0.1:{server.server_port}/data/a.txt"
    facts = {
        "url": url,
        "size": 6,
        "sha256": SHA256,
        "terms": "for research only",
        "by_hand": "w.bin from its authors",
    }
    listed["sources"]["toy"]["files"]["toy/w.bin"] = facts
    return facts


def test_a_file_may_have_its_own_address_and_its_terms_are_shown_once(
    listed, weights, server, tmp_path, capsys
):
    path, other = fetch(listed, ["toy/w.bin", "toy/data/b.txt"])
    assert (
        path == tmp_path / "cache/toy/w.bin"
        and path.read_bytes() == b"hello\n"
        and server.asked == ["/data/a.txt", "/data/b.txt"]
    )
    assert capsys.readouterr().err.count("w.bin: for research only") == 1
    fetch(listed, ["toy/w.bin", "toy/data/b.txt"])
    assert "research" not in capsys.readouterr().err
    path.write_bytes(b"jello\n")
    refused(listed, SHA256, files=["toy/w.bin"])


def test_what_cannot_be_downloaded_says_where_to_get_it_and_where_to_put_it(
    listed, weights, tmp_path, monkeypatch
):
    by_hand = f"By hand: w.bin from its authors; put it at {tmp_path / 'cache/toy/w.bin'}"
    weights["url"] += ".gone"
    refused(listed, "download failed", by_hand, files=["toy/w.bin"])
    weights["url"] = ""
    refused(listed, "no address to download it from", by_hand, files=["toy/w.bin"])
    assert leftovers(tmp_path / "cache") == []
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    refused(
        listed,
        "not in the mirror",
        f"put it at {tmp_path / 'mirror/toy/w.bin'}",
        files=["toy/w.bin"],
    )


def test_unknown_names_are_refused(listed):
    refused(listed, "toy/data/c.txt", files=["toy/data/c.txt"])
    with pytest.raises(PekaError, match="no source 'tox'; known: toy"):
        manifest.fetch("tox", [], manifest=listed)
    with pytest.raises(PekaError, match="nowhere.yaml"):
        manifest.load_manifest("nowhere.yaml")


def test_the_manifest_pins_36_sections():
    source = manifest.load_manifest()["sources"]["her2st"]
    files = source["files"]
    assert len(source["url"].rstrip("/").split("/")[-1]) == 40 and len(files) == 118
    for part in ("/ST-cnts/", "/ST-spotfiles/", "/ST-imgs/"):
        assert sum(part in file for file in files) == 36
    for facts in files.values():
        assert (
            isinstance(facts["blob"], str)
            and len(int(facts["blob"], 16).to_bytes(20)) == 20
            and len(facts["blob"]) == 40
        )
        assert ("sha256" in facts) == ("size" in facts)


def test_the_manifest_is_the_list_of_facts(shared):
    facts = pd.read_csv(
        shared / "data/her2st/files.tsv", sep="\t", dtype=str, keep_default_na=False
    )
    files = manifest.load_manifest()["sources"]["her2st"]["files"]
    assert list(files) == [f"her2st/{path}" for path in facts.path]
    for row in facts.itertuples():
        mine = files[f"her2st/{row.path}"]
        assert (mine["blob"], str(mine.get("size", "")), mine.get("sha256", "")) == (
            row.git_blob_sha1,
            row.size,
            row.sha256,
        )


# ---- our own small files, and the network ------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'"x"', b'{"x": 3}'])
def test_a_damaged_list_of_verified_files_starts_anew(listed, tmp_path, content):
    paths = fetch(listed)
    (tmp_path / "cache/verified.json").write_bytes(content)
    assert fetch(listed) == paths
    assert str(paths[0].resolve()) in json.loads((tmp_path / "cache/verified.json").read_text())


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null"])
def test_a_damaged_file_of_our_own_is_named_with_the_next_step(tmp_path, content):
    path = tmp_path / "pin.json"
    assert manifest.read_own(path, "Delete it.") == {}
    path.write_bytes(content)
    with pytest.raises(PekaError, match=r"pin.json: .*Delete it."):
        manifest.read_own(path, "Delete it.")


def test_certificates_that_are_not_there_are_named_before_a_download_and_only_then(
    listed, server, tmp_path, monkeypatch
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nope.pem"))
    refused(listed, "REQUESTS_CA_BUNDLE", "nope.pem")
    assert server.asked == [] and leftovers(tmp_path / "cache") == []
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    paths = fetch(listed)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nope.pem"))
    assert fetch(listed) == paths


def test_an_error_outside_the_librarys_own_class_is_told_in_one_line(listed, monkeypatch):
    def refuse(*words):
        raise OSError("Could not find a suitable TLS CA certificate bundle")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", refuse)
    refused(listed, "/data/a.txt", "certificate bundle")


def test_reading_verified_files_writes_nothing(listed, tmp_path, monkeypatch):
    paths = fetch(listed)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*")}
    monkeypatch.setattr(manifest, "write_json", lambda *_: pytest.fail("written"))
    assert (
        fetch(listed) == paths
        and {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*")} == before
    )
