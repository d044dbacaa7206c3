"""Files of HEST-1k slides: from a mirror, from a hub (a small local server), and `peka fetch`."""

import json
import shutil

import pytest
from damage import refused
from fake_hest import IDS, build, state
from fake_hub import hub, kept  # noqa: F401

from peka_core.cohort import open_cohort
from peka_core.commands.command_line import main
from peka_core.common import folders
from peka_core.downloads.record import Record
from peka_core.runner import run as workspace
from peka_core.sources import hest

SUFFIXES = {"st": "h5ad", "patches": "h5", "metadata": "json"}
NAMES = {f"hest/{folder}/{s}.{suffix}" for s in IDS for folder, suffix in SUFFIXES.items()}


def asked(ask):
    return lambda options: ask(**options)


def test_a_mirror_lacks_files_or_changes_them(mirror):
    home, options = mirror
    hest.fetch(**options)
    assert Record().entries.keys() == NAMES
    (home / "patches/D1.h5").write_bytes((home / "patches/D1.h5").read_bytes() + b"\0")
    refused(options, "patches/D1.h5", call=asked(hest.fetch))
    (home / "patches/D1.h5").unlink()
    (home / "st/D2.h5ad").unlink()
    for ask in (hest.fetch, hest.preflight):
        refused(options, "patches/D1.h5", "st/D2.h5ad", call=asked(ask))


@pytest.mark.parametrize("content", ["", "[]", '{"pixel_size_um_estimated": "half"}'])
def test_damaged_metadata_are_named(mirror, content, tmp_path):
    (mirror[0] / "metadata/D1.json").write_text(content)
    refused(tmp_path / "cohort", "metadata/D1.json", call=lambda path: build(path, mirror[1]))


def test_a_profile_of_hest_is_listed_without_a_trace_and_opened(
    mirror, tmp_path, capsys, monkeypatch
):
    (home, options), profile = mirror, tmp_path / "hest-breast.yaml"
    facts = {"base": "demo", "source": "hest", "chapters": {"cues_off_splits": 0, "few": {}}}
    facts["source_options"] = {"cohort": "breast", **options, "folds": 3}
    profile.write_text(json.dumps(facts))
    (home / "patches/D2.h5").rename(tmp_path / "D2.h5")
    before = state(tmp_path)
    assert main(["fetch", str(profile), "--dry-run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    size = f"{(home / 'patches/D1.h5').stat().st_size / 1e6:.2f}"
    guess = f"{14 * 150_528 / 1e6:.2f}"
    assert ["hest/patches/D1.h5", size, "MB"] in [line[:3] for line in lines]
    assert ["hest/patches/D2.h5", "about", guess, "MB", "MISSING"] in lines
    assert ["18", "files,", "about"] in [line[:3] for line in lines]
    assert state(tmp_path) == before and not (tmp_path / "cache").exists()
    (tmp_path / "D2.h5").rename(home / "patches/D2.h5")
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
    hub.newest, hub.asked = "b" * 40, []
    assert hest.fetch(**options) == paths and hub.asked == []
    paths["D1"]["st"].unlink()
    hest.fetch(**options)
    assert len(hub.got()) == 1 and "b" * 40 not in str(hub.asked)
    build(tmp_path / "cohort", options)
    assert len(open_cohort(tmp_path / "cohort")) == 72


def test_a_download_that_ended_goes_on_and_a_file_put_there_by_hand_must_be_the_hubs(
    options, hub, tmp_path
):
    options |= {"leave_out": IDS[1:]}
    place = tmp_path / "cache/hest/st/TENX13.h5ad"
    place.parent.mkdir(parents=True)
    place.write_bytes((hub.folder / "st/TENX13.h5ad").read_bytes() + b"\0")
    refused(options, "st/TENX13.h5ad", call=asked(hest.fetch))
    shutil.copyfile(hub.folder / "st/TENX13.h5ad", place)
    hub.breaks = "patches/TENX13.h5"
    refused(options, "patches/TENX13.h5", "HF_TOKEN", call=asked(hest.fetch))
    assert kept(tmp_path / "cache") == ["hest/st/TENX13.h5ad"]
    hub.breaks, hub.asked = "", []
    hest.fetch(**options)
    got = {path.rsplit("/", 2)[1] for path in hub.got() if "/resolve/" in path}
    assert got == {"patches", "metadata"}
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
