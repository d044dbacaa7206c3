"""`hest-breast` from a mirror to tables, on slides of HEST's own code and drawn ones.

`mini` stands for H-optimus-0, and the teacher is a tiny scFoundation with drawn weights.
"""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import FILES
from fake_hest import fixture_mirror
from test_notebooks import ENV, check_whole, finish, fresh, start

from peka_core.commands.command_line import main
from peka_core.runner.profile import load_profile

TINY = Path(__file__).parents[1] / "fixtures/scfoundation/scfoundation_tiny.ckpt"
TEACHER = load_profile("hest-breast").teacher_options
SMALL = {"epochs": 2, "block": 16, "batch_size": 16, "k": 4}


@pytest.fixture
def profile(hest_files, hest_vocabulary, tmp_path, monkeypatch):
    """hest-breast on a mirror of its own: index, digest and counts come as options."""
    _, options = fixture_mirror(hest_files, tmp_path, monkeypatch, drawn=4)
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    teacher = {"min_genes": 0, "checkpoint": str(TINY), "vocabulary": str(hest_vocabulary)}
    values = {
        "base": "hest-breast", "title": "a test mirror in the form of HEST-1k", "encoder": "mini",
        "recipe": SMALL, "teacher_options": TEACHER | teacher,
        "source_options": {"cohort": "breast"} | options,
    }  # fmt: skip
    path = tmp_path / "hest-test.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_its_price_and_its_files_are_told_before_anything_is_done(profile, capsys, tmp_path):
    assert main(["run", profile, "--plan", "--gpu", "L4"]) == 0
    assert main(["fetch", profile, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "7 slides" in said and "align bat on all, mini" in said and "FIX1" in said
    assert not (tmp_path / "cache" / "hest").exists()


@pytest.mark.slow
@pytest.mark.parametrize("hest_files", FILES[-1:], indirect=True)  # HEST's own where they are
def test_hest_breast_runs_end_to_end(profile, monkeypatch):
    for name in ("PEKA_MIRROR", "PEKA_CACHE"):
        monkeypatch.setitem(ENV, name, os.environ[name])
    folder = fresh("test-hest")
    try:
        check_whole(folder, finish(start(profile, folder.name), timeout=900))
        scores = pd.read_csv(folder / "results/scores.csv")
        assert set(scores["protocol"]) >= {"peka_paper", "hest_bench", "strict"}
        # so few spots have a rule, and a name, of their own
        official = scores[scores["protocol"].str.startswith("peka_official_min_")]
        assert {"frozen", "bat"} <= set(official["predictor"])
        assert "peka_official" not in set(scores["protocol"])
        aligned = scores[scores["predictor"] == "bat"]
        assert set(aligned["scope"]) == {"all"} and aligned["adapters"].notna().all()
        published = scores[["published", "paper_cohort"]]
        assert published.isna().all(axis=None), "these are not the paper's slides"
        assert (folder / "cohort" / "patches" / "FIX1.h5").is_symlink()
        (alignment,) = folder.glob("units/alignment-*")  # nothing else is trained
        files = {"adapter.safetensors", "projector.safetensors", "card.json", "history.csv"}
        assert {path.name for path in alignment.iterdir()} == files | {"unit.json"}
        assert load_profile(profile).methods == ()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
