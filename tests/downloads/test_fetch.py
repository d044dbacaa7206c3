"""Files from the mirror, from the cache, from an address or from the hub: always the same bytes."""

import json

import pandas as pd
import pytest
from damage import refused
from fake_hub import COMMIT, hub, kept  # noqa: F401

from peka_core.downloads import record
from peka_core.downloads.fetch import choose, fetch, preflight
from peka_core.downloads.manifest import Download, load_manifest
from peka_core.downloads.record import Record

# git's own digest: `printf 'hello\n' | git hash-object --stdin`
HELLO = "ce013625030ba8dba906f756967f9e9ca394464a"
SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
FACTS = {"size": 6, "blob": HELLO, "sha256": SHA256}
# pinned by the manifest, or not pinned, from an address or from the hub
every_kind = pytest.mark.parametrize("kind", ["pinned", "web", "hub"])
web_and_hub = pytest.mark.parametrize("kind", ["web", "hub"])


@pytest.fixture
def file(hub):
    """Makes a download of a kind."""
    (hub.folder / "a.bin").write_bytes(b"hello\n")

    def make(kind, **facts):
        if kind == "hub":
            return Download("toy/a.bin", repo="me/toy", name="a.bin", **facts)
        pinned = {"facts": FACTS} if kind == "pinned" else {}
        return Download("toy/a.bin", hub.url + "a.bin", **(pinned | facts))

    return make


def refuses(files, *parts, ask=fetch):
    """Nothing that was refused is kept or recorded."""
    before, cache = Record().entries, record.cache_folder()
    here = kept(cache)
    said = refused(files, *parts, call=ask)
    assert Record().entries == before and set(kept(cache)) <= set(here)
    return said


@every_kind
def test_a_file_is_downloaded_and_hashed_once(kind, file, hub, tmp_path, monkeypatch, capsys):
    wanted = file(kind, terms="for research only")
    (path,) = fetch([wanted])
    assert path == tmp_path / "cache/toy/a.bin" and path.read_bytes() == b"hello\n"
    entry = Record().entries["toy/a.bin"]
    assert (entry["size"], entry["sha256"]) == (6, SHA256) and entry["source"] == wanted.address
    assert entry["revision"] == (COMMIT if kind == "hub" else "")
    assert kept(tmp_path / "cache") == ["toy/a.bin"]
    hub.asked.clear()
    for name in ("sha256", "write_json"):
        monkeypatch.setattr(record, name, lambda *_: pytest.fail("hashed or written again"))
    assert fetch([wanted]) == [path] and hub.asked == []
    assert capsys.readouterr().err.count("for research only") == 1


@every_kind
def test_later_bytes_have_to_be_the_same(kind, file, hub, tmp_path):
    (path,), digest = fetch([file(kind)]), SHA256 if kind != "pinned" else HELLO
    path.write_bytes(b"jello\n")
    refuses([file(kind)], path, digest)
    path.unlink()
    hub.newest, hub.asked = "d" * 40, []
    (hub.folder / "a.bin").write_bytes(b"jello\n")
    refuses([file(kind)], "a.bin", digest)
    assert not any("d" * 40 in path for path in hub.got())  # the recorded commit is asked for
    (hub.folder / "a.bin").write_bytes(b"hello\n")
    assert fetch([file(kind)]) == [path]


@pytest.mark.parametrize("facts", [{"sha256": "0" * 64}, {"size": 7}, {"blob": "0" * 40}])
@web_and_hub
def test_every_fact_is_enforced_and_a_pinned_one_wins_over_the_record(kind, facts, file, hub):
    refuses([file(kind, facts=FACTS | facts)], "a.bin", *facts.values())
    if kind == "hub":  # the digest that the hub states counts too
        hub.lies = True
        refuses([file(kind)], "a.bin", "0" * 64, SHA256)
        hub.lies = False
    fetch([file(kind)])
    refuses([file(kind, facts=FACTS | facts)], "a.bin", *facts.values())


@every_kind
def test_a_mirror_is_used_in_place(kind, file, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    wanted, other = file(kind), Download("toy/b.bin", hub.url, otherwise="ask its authors")
    for ask in (fetch, preflight):
        refuses([wanted, other], "toy/a.bin", "toy/b.bin", "PEKA_MIRROR", "authors", ask=ask)
    wanted.place.parent.mkdir(parents=True)
    wanted.place.write_bytes(b"hello\n")
    preflight([wanted])
    assert fetch([wanted]) == [tmp_path / "mirror/toy/a.bin"] and hub.asked == []
    assert kept(tmp_path / "cache") == []
    wanted.place.write_bytes(b"jello\n")
    refuses([wanted], "mirror/toy/a.bin", HELLO if kind == "pinned" else SHA256)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs\noid", b"\n<!DOCTYPE html>"])
@pytest.mark.parametrize("kind", ["mirror", "web", "hub"])
def test_what_stands_in_for_a_file_is_not_taken(kind, content, file, hub, monkeypatch):
    if kind == "mirror":
        monkeypatch.setenv("PEKA_MIRROR", str(hub.folder))
    wanted = Download("a.bin") if kind == "mirror" else file(kind)
    (hub.folder / "a.bin").write_bytes(content)
    refuses([wanted], "a.bin")
    (hub.folder / "a.bin").write_bytes(b"hello\n")
    fetch([wanted])


@pytest.mark.parametrize("cause, part", [
    (404, "authors"), ("half", "authors"), (OSError("by hf_secret"), "OSError"),
    (OSError("http://me:password@proxy:1\nand more"), "https_proxy"),
], ids=str)  # fmt: skip
@web_and_hub
def test_a_failed_download_is_told_without_secrets_and_leaves_no_half_file(
    kind, cause, part, file, hub, monkeypatch
):
    def fail(*_, **__):
        raise cause

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("https_proxy", "http://me:password@proxy:1")
    hub.status, hub.breaks = (cause if isinstance(cause, int) else 200), cause == "half" and "a.bin"
    with monkeypatch.context() as patch:
        if isinstance(cause, Exception):
            patch.setattr("pooch.retrieve", fail)
            patch.setattr("huggingface_hub.HfApi.hf_hub_download", fail)
        said = refuses([file(kind, otherwise="ask its authors")], "toy/a.bin", part)
    assert "secret" not in said and "password" not in said
    hub.status, hub.breaks = 200, ""
    assert fetch([file(kind)])[0].read_bytes() == b"hello\n"


@pytest.mark.parametrize("name, value", [
    ("HF_TOKEN", "hf_secret 123"), ("https_proxy", "http://user:secret@proxy:port"),
])  # fmt: skip
def test_a_variable_that_ends_every_download_is_named_but_not_shown(
    name, value, file, hub, monkeypatch
):
    monkeypatch.setenv(name, value)
    assert "secret" not in refuses([file("hub")], name) and hub.asked == []


def test_of_several_names_the_first_that_the_hub_has_is_taken(file, hub):
    both = [Download(f"toy/{name}", repo="me/toy", name=name) for name in ("z.bin", "a.bin")]
    assert choose(both) == both[0] and choose(both, ask_hub=True) == both[1]
    fetch([both[1]])
    both[0].place.write_bytes(b"other")
    assert choose(both) == both[1], "it is the recorded one"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"x": {"size": 1}}'])
@pytest.mark.parametrize("name", ["record.json", "hest/pins.json"])
def test_a_damaged_record_is_never_taken_for_an_empty_one(content, name, file, tmp_path):
    path = tmp_path / "cache" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    refused([file("web")], name, call=fetch)
    path.unlink()
    fetch([file("web")])


def test_records_of_earlier_versions_are_taken_over(hub, tmp_path):
    uni, slide = Download("encoders/uni/model.bin"), Download("hest/st/X.h5ad")
    for wanted in (uni, slide):
        wanted.place.parent.mkdir(parents=True)
        wanted.place.write_bytes(b"hello\n")
    pin = {"file": "model.bin", "revision": "a" * 40, "sha256": SHA256, "source": "me/uni"}
    uni.place.with_name("pin.json").write_text(json.dumps(pin))
    pins = {"revision": "b" * 40, "files": {"st/X.h5ad": {"size": 6, "sha256": "0" * 64}}}
    (tmp_path / "cache/hest/pins.json").write_text(json.dumps(pins))
    assert Record().revision("me/uni") == "a" * 40
    assert Record().revision("MahmoodLab/hest") == "b" * 40
    refuses([slide], slide.place, "0" * 64)
    fetch([uni])
    (tmp_path / "cache/hest/pins.json").unlink()  # by now the new record has it
    refuses([slide], slide.place, "0" * 64)


def test_every_file_of_her2st_is_pinned_as_in_the_list_of_facts(shared):
    path = shared / "data/her2st/files.tsv"
    listed = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    files = load_manifest()["sources"]["her2st"]["files"]
    facts = [(m["blob"], str(m.get("size", "")), m.get("sha256", "")) for m in files.values()]
    assert [name.removeprefix("her2st/") for name in files] == list(listed.path)
    assert facts == list(zip(listed.git_blob_sha1, listed["size"], listed.sha256))
