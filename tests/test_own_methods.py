"""Chapters 4 and 5 show what a profile aligns, and align nothing themselves."""

import shutil

import pandas as pd
import pytest
import yaml
from test_notebooks import ROOT, fresh

from peka_core.commands.command_line import CHAPTERS, execute
from peka_core.runner.run import open_run
from peka_core.runner.rungs import first_adapter

AS_RUN = {"methods": [], "all_methods": ["bone"]}  # the form of hest-...-as-run
NESTED = {"methods": ["bone"], "all_methods": []}
FROZEN = {"methods": [], "all_methods": []}


def test_the_first_adapter_is_the_first_that_changes_the_encoder():
    assert first_adapter(("projector_only", "bone", "bat")) == "bone"
    assert first_adapter(("projector_only",)) == first_adapter(()) == ""


def alignments(folder):
    return {path.name for path in folder.glob("units/alignment-*")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "aligned, pictures",
    [
        pytest.param(AS_RUN, {"figure_2_peka_paper"}, id="as-run"),
        pytest.param(
            NESTED, {"figure_2_strict", "tissue_map"}, id="nested", marks=pytest.mark.weekly
        ),
        pytest.param(FROZEN, set(), id="frozen", marks=pytest.mark.weekly),
    ],
)
def test_chapters_4_and_5_align_nothing(tmp_path, monkeypatch, aligned, pictures):
    profile, folder = tmp_path / "own.yaml", fresh("test-own-methods")
    shown = {"lessons": False, "scope_effect": aligned is not AS_RUN}
    profile.write_text(
        yaml.safe_dump({"base": "smoke", "title": "a test", "chapters": shown, **aligned})
    )
    monkeypatch.chdir(ROOT)
    try:
        work = open_run(str(profile), folder.name, "cpu")
        parameters = {
            "profile": str(profile),
            "run": folder.name,
            "device": "cpu",
            "weights": {},
            "overrides": {},
        }
        for chapter in CHAPTERS:
            assert execute(
                ROOT / "notebooks" / f"{chapter}.ipynb", folder / "notebooks", parameters
            ), chapter
            if chapter.startswith("03"):
                planned = alignments(folder)
        splits = len(work.cohort().splits)
        assert alignments(folder) == planned and len(planned) == splits * len(
            work.profile.methods
        ) + len(work.profile.all_methods)
        students = pd.read_csv(folder / "results/scores.csv").query("kind == 'student'")
        assert set(students["predictor"]) == {*work.profile.methods, *work.profile.all_methods}
        drawn = {path.stem for path in (folder / "figures").glob("*.png")}
        assert drawn & {"figure_2_peka_paper", "figure_2_strict", "tissue_map"} == pictures
        if "figure_2_strict" in pictures:
            assert set(pd.read_csv(folder / "results/figure_2.csv")["method"]) == {"bone"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
