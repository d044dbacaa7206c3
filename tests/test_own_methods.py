"""Chapters 4 and 5 show what a profile aligns, and align nothing themselves."""

import shutil

import pandas as pd
import pytest
import yaml
from test_notebooks import ROOT, fresh  # noqa: F401

from peka_core.commands.notebooks import CHAPTERS, execute
from peka_core.runner.run import open_run


@pytest.mark.slow
@pytest.mark.weekly
@pytest.mark.parametrize(("nested", "on_all", "pictures"), [
    ([], ["bone"], set()),  # the form of hest-...-as-run
    (["bone"], [], {"figure_2_strict", "tissue_map"}),
], ids=["as-run", "nested"])  # fmt: skip
def test_chapters_4_and_5_align_nothing(tmp_path, monkeypatch, fresh, nested, on_all, pictures):
    profile, folder, planned = tmp_path / "own.yaml", fresh("test-own-methods"), None
    values = {"base": "smoke", "title": "a test", "methods": nested, "all_methods": on_all}
    values["chapters"] = {"lessons": False, "scope_effect": not on_all}
    profile.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(ROOT)
    try:
        work = open_run(str(profile), folder.name, "cpu")
        values = {"profile": str(profile), "run": folder.name, "device": "cpu"}
        for chapter in CHAPTERS:
            book = ROOT / f"notebooks/{chapter}.ipynb"
            assert execute(book, folder / "notebooks", values | {"weights": {}, "overrides": {}})
            if chapter.startswith("03"):
                planned = set(folder.glob("units/alignment-*"))
        assert set(folder.glob("units/alignment-*")) == planned
        assert len(planned) == len(work.cohort().splits) * len(nested) + len(on_all)
        students = pd.read_csv(folder / "results/scores.csv").query("kind == 'student'")
        assert set(students["predictor"]) == {*nested, *on_all}
        shown = {"figure_2_strict", "tissue_map"}
        assert shown & {path.stem for path in (folder / "figures").glob("*.png")} == pictures
        if nested:
            assert set(pd.read_csv(folder / "results/figure_2.csv")["method"]) == {"bone"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
