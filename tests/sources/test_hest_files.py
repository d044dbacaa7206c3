"""Files of HEST-1k slides: from a mirror, from a hub (a small local server), and `peka fetch`."""

import json
import shutil

import pytest
from damage import refused
from fake_hest import IDS, build, drawn_mirror, mirror, state  # noqa: F401
from fake_hub import hub, kept  # noqa: F401

from peka_core.cohort import open_cohort
from peka_core.commands.command_line import main
from peka_core.common import folders
from peka_core.common.files import sha256
from peka_core.downloads.record import Record
from peka_core.runner import run as workspace
from peka_core.sources import hest

SUFFIXES = {"st": "h5ad", "patches": "h5", "metadata": "json"}
NAMES = {f"hest/{folder}/{s}.{suffix}" for s in IDS for folder, suffix in SUFFIXES.items()}


def asked(ask):
    return lambda options: ask(**options)


def test_a_mirror_lacks_files_or_changes_them(mirror, tmp_path):
    home, options = mirror
    hest.fetch(**options)
    assert Record().entries.keys() == NAMES
    original = (home / "patches/D1.h5").read_bytes()
    (home / "patches/D1.h5").write_bytes(original + b"\0")
    refused(options, "patches/D1.h5", call=asked(hest.fetch))
    (home / "patches/D1.h5").unlink()
    (home / "st/D2.h5ad").unlink()
    for ask in (hest.fetch, hest.preflight):
        refused(options, "patches/D1.h5", "st/D2.h5ad", call=asked(ask))


@pytest.mark.parametrize("content", ["", "[]", "<html>", '{"pixel_size_um_estimated": "half"}'])
def test_damaged_metadata_are_named(mirror, content, tmp_path):
    (mirror[0] / "metadata/D1.json").write_text(content)
    refused(tmp_path / "cohort", "metadata/D1.json", call=lambda path: build(path, mirror[1]))


def test_a_dry_run_lists_and_touches_nothing(mirror, tmp_path, capsys):
    home, options = mirror
    (home / "patches/D2.h5").unlink()
    before = state(tmp_path)
    hest.fetch(dry_run=True, **options)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    size = (home / "patches/D1.h5").stat().st_size / 1e6
    assert ["hest/patches/D1.h5", f"{size:.2f}", "MB"] in [line[:3] for line in lines]
    guess = f"{14 * 150_528 / 1e6:.2f}"
    assert ["hest/patches/D2.h5", "about", guess, "MB", "MISSING"] in lines
    assert lines[-1][:3] == ["18", "files,", "about"]
    assert state(tmp_path) == before and not (tmp_path / "cache").exists()


def test_a_profile_of_hest_is_fetched_and_opened(mirror, tmp_path, capsys, monkeypatch):
    options, profile = {"cohort": "breast", **mirror[1], "folds": 3}, tmp_path / "hest-breast.yaml"
    facts = {"base": "demo", "source": "hest", "source_options": options}
    profile.write_text(json.dumps(facts | {"chapters": {"cues_off_splits": 0, "few": {}}}))
    assert main(["fetch", str(profile), "--dry-run"]) == 0
    assert "18 files" in capsys.readouterr().out and not (tmp_path / "runs").exists()
    monkeypatch.setattr(folders, "root", lambda: tmp_path)
    with pytest.warns(UserWarning, match="TENX23"):
        cohort = workspace.open_run(str(profile), device="cpu").cohort(tiles=True)
    assert cohort.path == tmp_path / "runs/hest-breast/cohort"
    assert len(cohort.splits) == 3 and len(cohort) == 72


# ---- the hub


@pytest.fixture
def options(drawn_mirror, hub):
    """The hub has the drawn slides, and two more whose names are the beginning or go on."""
    home, options = drawn_mirror
    shutil.copytree(home, hub.folder, dirs_exist_ok=True)
    for sample in ("TENX1", "TENX131"):
        shutil.copy(home / "patches/D1.h5", hub.folder / f"patches/{sample}.h5")
    return options | {"index": str(hub.folder / "index.csv")}


def test_the_hub_gives_just_those_slides_and_later_ones_of_the_same_commit(
    options, hub, tmp_path, capsys
):
    hest.fetch(dry_run=True, **options)
    assert "about" not in capsys.readouterr().out and not (tmp_path / "cache").exists()
    paths = hest.fetch(**options)
    assert str(tmp_path) not in capsys.readouterr().out  # it lands in notebooks
    assert set(kept(tmp_path / "cache")) == NAMES
    assert sha256(paths["D1"]["patches"]) == sha256(hub.folder / "patches/D1.h5")
    hub.newest, hub.asked = "b" * 40, []
    assert hest.fetch(**options) == paths and hub.asked == []
    paths["D1"]["st"].unlink()
    hest.fetch(**options)
    assert len(hub.got()) == 1 and "b" * 40 not in str(hub.asked)
    build(tmp_path / "cohort", options)
    assert len(open_cohort(tmp_path / "cohort")) == 72


def test_a_download_that_ended_goes_on_with_the_next_file(options, hub, tmp_path):
    options |= {"leave_out": IDS[1:]}
    hub.breaks = "patches/TENX13.h5"
    refused(options, "patches/TENX13.h5", "HF_TOKEN", call=asked(hest.fetch))
    assert kept(tmp_path / "cache") == ["hest/st/TENX13.h5ad"]
    hub.breaks, hub.asked = "", []
    hest.fetch(**options)
    assert {path.rsplit("/", 2)[1] for path in hub.got()} == {"patches", "metadata"}


def test_a_file_that_was_put_into_the_cache_by_hand_must_be_the_hubs(options, hub, tmp_path):
    options |= {"leave_out": IDS[1:]}
    original, place = hub.folder / "st/TENX13.h5ad", tmp_path / "cache/hest/st/TENX13.h5ad"
    place.parent.mkdir(parents=True)
    place.write_bytes(original.read_bytes() + b"\0")
    refused(options, "st/TENX13.h5ad", call=asked(hest.fetch))
    shutil.copyfile(original, place)
    hest.fetch(**options)
    assert Record().entries["hest/st/TENX13.h5ad"]["revision"] == hub.newest


def test_without_an_index_a_dry_run_says_what_the_filter_will_find(hub, tmp_path, capsys):
    assert hest.fetch("liver", dry_run=True) == {}
    assert "14 slides, 64152 spots" in capsys.readouterr().out and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("token", [None, "“hf_secret”"])
def test_slides_without_a_token_are_refused_before_any_work(options, hub, token, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    for named in (options, {}):  # there is no index yet where none is named
        assert "secret" not in refused(named, "HF_TOKEN", call=asked(hest.preflight))
    assert hub.asked == []
