"""`hest-breast` and `hest-breast-as-run` from a mirror to figures, with a copy that is not exact.

The slides are drawn. `mini` stands for H-optimus-0, and the teacher is a tiny scFoundation with
drawn weights.
"""

import json
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from draw_hest import write_vocabulary
from fake_hest import GENES, copy_tiles, drawn_mirror, mirror, recompressed  # noqa: F401
from test_notebooks import ENV, check_whole, finish, fresh, start

from peka_core.runner.profile import load_profile

TINY = Path(__file__).parents[1] / "fixtures/scfoundation/scfoundation_tiny.ckpt"
SMALL = {"epochs": 1, "classifier_epochs": 1, "warmup": 1, "block": 16, "batch_size": 32, "k": 4}


def profile_of(base, options, folder):
    """The bundled profile on the test mirror, small enough for two cores."""
    vocabulary = write_vocabulary(folder / "vocabulary.tsv", GENES)
    teacher = {"min_genes": 0, "checkpoint": str(TINY), "vocabulary": str(vocabulary)}
    values = {
        "base": base, "title": "a test mirror in the form of HEST-1k", "encoder": "mini",
        "recipe": SMALL, "teacher_options": load_profile(base).teacher_options | teacher,
        "source_options": {"cohort": "breast", **options},
    }  # fmt: skip
    (folder / f"{base}-test.yaml").write_text(yaml.safe_dump(values))
    return str(folder / f"{base}-test.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("base, method", [("hest-breast", "bat"), ("hest-breast-as-run", "bone")])
def test_a_copy_that_is_not_byte_identical_stops_no_run(
    mirror, tmp_path, base, method, monkeypatch
):
    home, options = mirror
    monkeypatch.setitem(ENV, "PEKA_MIRROR", str(home.parent))
    monkeypatch.setitem(ENV, "PEKA_CACHE", str(tmp_path / "cache"))
    copy_tiles(home, "TENX24", "TENX23", recompressed, leave_out=1)
    folder = fresh(f"test-copies-{method}")
    try:
        run = start(profile_of(base, options, tmp_path), folder.name)
        check_whole(folder, finish(run, timeout=600))
        found = json.loads((folder / "cohort/source.json").read_text())["copies"]["TENX23"]
        assert (found["of"], found["shared_barcodes"], found["identical"]) == ("TENX24", 11, 0)
        cells = nbformat.read(folder / "notebooks/01_data.ipynb", 4).cells
        said = next(str(cell.outputs) for cell in cells if "compare_tiles(" in cell.source)
        assert "TENX23', 'TENX24" in said and "mean_difference" in said
        assert "sections with identical tiles: none" in said
        assert len(list(folder.glob("units/alignment-*"))) == 1, "nothing else is trained"
        students = pd.read_csv(folder / "results/scores.csv").query("kind == 'student'")
        assert set(students["predictor"]) == {method} and set(students["scope"]) == {"all"}
        assert (folder / "figures/figure_2_peka_paper.png").exists()
        assert not (folder / "figures/figure_2_strict.png").exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
