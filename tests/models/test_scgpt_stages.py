"""scGPT in a run: its embeddings teach a student, and its options name a unit."""

import dataclasses
import json

import numpy as np
from test_scgpt import OWN, SPECIAL

from peka_core.protocols import PROTOCOLS
from peka_core.runner import stages


def scgpt_files(work, folder) -> dict[str, str]:
    """Options that name drawn weights and a vocabulary with the genes of a run."""
    genes, own = work.cohort().adata().var_names, folder / "vocab.json"
    names = [*genes, *(f"unnamed_{i}" for i in range(1_497 - len(genes))), *SPECIAL]
    own.write_text(json.dumps({name: i for i, name in enumerate(names)}))
    return {option: str(path) for option, path in (OWN | {"vocabulary": own}).items()}


def test_a_student_of_smoke_is_taught_and_scored(work, tmp_path):
    files = scgpt_files(work, tmp_path)

    def taught_with(**options):
        changes = {"teacher": "scgpt", "teacher_options": files | options}
        return dataclasses.replace(work, profile=dataclasses.replace(work.profile, **changes))

    taught, split = taught_with(), work.cohort().splits[0].name
    made = stages.teacher(taught, split)
    assert made.obsm["X_teacher"].shape[1] == 32 and made.uns["teacher"]["name"] == "scgpt"
    scores = stages.score(taught, "bat", PROTOCOLS["strict"], splits=(split,)).scores
    assert np.isfinite(scores["pcc"]).any()
    assert taught_with(draw_seed=1).teacher_name != taught.teacher_name
    assert taught_with(device="cpu", tokens=9).teacher_name == taught.teacher_name
    assert str(tmp_path) not in taught.teacher_name
