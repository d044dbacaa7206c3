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
@pytest.mark.weekly
@pytest.mark.parametrize(("aligned", "pictures"), [
    (AS_RUN, {"figure_2_peka_paper"}), (NESTED, {"figure_2_strict", "tissue_map"}), (FROZEN, set()),
], ids=["as-run", "nested", "frozen"])  # fmt: skip
def test_chapters_4_and_5_align_nothing(tmp_path, monkeypatch, aligned, pictures):
    profile, folder = tmp_path / "own.yaml", fresh("test-own-methods")
    shown = {"lessons": False, "scope_effect": aligned is not AS_RUN}
    profile.write_text(
        yaml.safe_dump({"base": "smoke", "title": "a test", "chapters": shown, **aligned})
    )
    monkeypatch.chdir(ROOT)
    try:
        work = open_run(str(profile), folder.name, "cpu")
        values = {"profile": str(profile), "run": folder.name, "device": "cpu"}
        for chapter in CHAPTERS:
            book = ROOT / f"notebooks/{chapter}.ipynb"
            assert execute(book, folder / "notebooks", values | {"weights": {}, "overrides": {}})
            if chapter.startswith("03"):
                planned = alignments(folder)
        nested, on_all = work.profile.methods, work.profile.all_methods
        assert alignments(folder) == planned
        assert len(planned) == len(work.cohort().splits) * len(nested) + len(on_all)
        students = pd.read_csv(folder / "results/scores.csv").query("kind == 'student'")
        assert set(students["predictor"]) == {*nested, *on_all}
        drawn = {path.stem for path in (folder / "figures").glob("*.png")}
        assert drawn & {"figure_2_peka_paper", "figure_2_strict", "tissue_map"} == pictures
        if "figure_2_strict" in pictures:
            assert set(pd.read_csv(folder / "results/figure_2.csv")["method"]) == {"bone"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
