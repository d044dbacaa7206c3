"""All chapters of smoke with scGPT and Geneformer of drawn weights as the teacher."""

import json

import pandas as pd
import pytest
from test_geneformer_stages import geneformer_files
from test_notebooks import ROOT, fresh  # noqa: F401
from test_scgpt_stages import scgpt_files

from peka_core.commands.notebooks import CHAPTERS, execute


@pytest.mark.slow
@pytest.mark.weekly
@pytest.mark.parametrize(("name", "files"), [
    ("scgpt", scgpt_files), ("geneformer", geneformer_files),
], ids=["scgpt", "geneformer"])  # fmt: skip
def test_smoke_runs_with_it(tmp_path, monkeypatch, work, fresh, name, files):
    monkeypatch.chdir(ROOT)
    folder = fresh(f"test-{name}")
    overrides = {"teacher": name} | files(work, tmp_path)
    values = {"profile": "smoke", "run": folder.name, "device": "cpu", "weights": {}}
    for chapter in CHAPTERS:
        book = ROOT / f"notebooks/{chapter}.ipynb"
        assert execute(book, folder / "notebooks", values | {"overrides": overrides})
    scores = pd.read_csv(folder / "results/scores.csv")
    assert scores.query("predictor == 'bat' and space == 'projected'")["mean"].notna().any()
    units = [json.loads(path.read_text()) for path in folder.glob("units/teacher-*/unit.json")]
    assert {unit["unit"]["teacher"].partition("{")[0] for unit in units} == {name}
