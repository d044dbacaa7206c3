"""`hest-breast` and `hest-breast-as-run` from a mirror to figures, with a copy that is not exact.

`mini` stands for H-optimus-0, and the teacher is a tiny scFoundation with drawn weights.
"""

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import FILES
from fake_hest import state
from test_notebooks import check_whole, fresh, start  # noqa: F401

from peka_core.commands.command_line import main
from peka_core.runner.profile import load_profile

TINY = Path(__file__).parents[1] / "fixtures/scfoundation/scfoundation_tiny.ckpt"
pytestmark = pytest.mark.parametrize("hest_files", FILES[-1:], indirect=True)  # HEST's own
SMALL = {"epochs": 2, "classifier_epochs": 1, "warmup": 1, "block": 16, "batch_size": 16, "k": 4}


@pytest.fixture(params=["hest-breast"])
def profile(request, fixture_mirror, hest_vocabulary, tmp_path):
    """The bundled profile on the test mirror, small enough for two cores."""
    teacher = {"min_genes": 0, "checkpoint": str(TINY), "vocabulary": str(hest_vocabulary)}
    values = {
        "base": request.param, "title": "a test mirror in the form of HEST-1k", "encoder": "mini",
        "recipe": SMALL, "teacher_options": load_profile(request.param).teacher_options | teacher,
        "source_options": {"cohort": "breast", **fixture_mirror[1]},
    }  # fmt: skip
    path = tmp_path / f"{request.param}-test.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_its_price_and_its_files_are_told_before_anything_is_done(profile, capsys, tmp_path):
    before = state(tmp_path)
    assert main(["run", profile, "--plan", "--gpu", "L4"]) == 0
    assert main(["fetch", profile, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "7 slides" in said and "align bat on all, mini" in said and "FIX1" in said
    assert state(tmp_path) == before


@pytest.mark.slow
@pytest.mark.weekly
@pytest.mark.parametrize(
    "profile, method",
    [("hest-breast", "bat"), ("hest-breast-as-run", "bone")],
    indirect=["profile"],
    ids=["as-written", "as-run"],
)
def test_the_bundled_profiles_of_hest_run_end_to_end(profile, method, fresh):
    folder = fresh(f"test-hest-{method}")
    check_whole(start(profile, folder), folder, timeout=900)
    assert (folder / "cohort/patches/FIX1.h5").is_symlink()
    copy = json.loads((folder / "cohort/source.json").read_text())["copies"]["TENX23"]
    assert (copy["of"], copy["shared_barcodes"], copy["identical"]) == ("TENX24", 11, 0)
    cells = nbformat.read(folder / "notebooks/01_data.ipynb", 4).cells
    said = next(str(cell.outputs) for cell in cells if "compare_tiles(" in cell.source)
    assert "TENX23', 'TENX24" in said and "sections with identical tiles: none" in said
    (alignment,) = folder.glob("units/alignment-*")  # nothing else is trained
    assert (alignment / "adapter.safetensors").exists()
    scores = pd.read_csv(folder / "results/scores.csv")
    assert set(scores["protocol"]) >= {"peka_paper", "hest_bench", "strict"}
    # so few spots have a rule, and a name, of their own
    official = scores[scores["protocol"].str.startswith("peka_official_min_")]
    assert {"frozen", method} <= set(official["predictor"])
    assert "peka_official" not in set(scores["protocol"])
    students = scores[scores["kind"] == "student"]
    assert set(students["predictor"]) == {method} and set(students["scope"]) == {"all"}
    assert students["adapters"].notna().all()
    published = scores[["published", "paper_cohort"]]
    assert published.isna().all(axis=None), "these are not the paper's slides"
    assert (folder / "figures/evaluation_official.png").exists()
    assert not (folder / "figures/figure_2_strict.png").exists()
