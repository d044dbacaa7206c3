"""scFoundation in a run: unusable spots teach nobody, and its embeddings are made once."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from peka_core import alignment
from peka_core.protocols import PROTOCOLS
from peka_core.quality import alignment_quality
from peka_core.runner import stages
from peka_core.runner.rungs import Rung
from peka_core.targets import teacher_as_features

CHECKPOINT = Path(__file__).parents[1] / "fixtures" / "scfoundation" / "scfoundation_tiny.ckpt"
SPLIT = "patients/0"


def with_options(work, **options):
    """The run, taught by scFoundation with these options beside those that it has."""
    if work.profile.teacher == "scfoundation":
        options = work.profile.teacher_options | options
    profile = dataclasses.replace(work.profile, teacher="scfoundation", teacher_options=options)
    return dataclasses.replace(work, profile=profile)


@pytest.fixture(scope="module")
def taught(work):
    """The small run with scFoundation's tiny weights, without the third with the fewest genes."""
    adata = work.cohort().adata()
    names = [*adata.var_names, *(f"unnamed_{i}" for i in range(19_264 - adata.n_vars))]
    vocabulary = work.folder / "vocabulary.tsv"
    table = pd.DataFrame({"gene_name": names, "index": range(19_264)})
    table.to_csv(vocabulary, sep="\t", index=False)
    fewest = int(np.quantile(np.asarray((adata.X > 0).sum(1)), 0.33))
    files = {"checkpoint": str(CHECKPOINT), "vocabulary": str(vocabulary)}
    return with_options(work, **files, unusable="drop", min_genes=fewest)


@pytest.fixture
def made(taught):
    return stages.teacher(taught, SPLIT)


@pytest.fixture
def usable(made):
    found = made.obs["teacher_usable"].to_numpy()
    assert 0 < (~found).sum() < 0.5 * len(found)
    return found


def test_embeddings_of_every_measured_gene_are_made_once_for_all_splits(
    taught, work, usable, made, monkeypatch
):
    other = stages.teacher(taught, "patients/1")
    np.testing.assert_array_equal(other.obsm["X_teacher"], made.obsm["X_teacher"])
    assert made.uns["teacher"]["n_train"] == (usable & taught.rows(SPLIT)[0]).sum()
    assert len(list((taught.folder / "units").glob("embedding-*"))) == 1
    asked, kind = [], type(work.cohort())
    real = kind.adata
    record = lambda self, some=None, join="inner": asked.append(join) or real(self, some, join)
    monkeypatch.setattr(kind, "adata", record)
    stages.teacher(with_options(taught, target="a1"), SPLIT)
    stages.teacher(work, "patients/1")
    assert asked == ["outer", "inner"]


@pytest.mark.parametrize("taught_by", ["teacher", "permuted_teacher", "genes"])
def test_a_student_is_taught_by_usable_training_spots_alone(taught, usable, taught_by, monkeypatch):
    seen, given, real = taught.rows(SPLIT)[0], [], alignment.align
    record = lambda student, data, *rest: given.append(data) or real(student, data, *rest)
    monkeypatch.setattr(alignment, "align", record)
    rung = Rung("projector_only", "projected", taught_by=taught_by)
    _, history = stages.train(taught, rung, SPLIT)
    assert np.array_equal(given[0].rows, np.flatnonzero(seen & usable))
    assert np.isfinite(history["total"]).all()
    x, labels = stages.targets_and_labels(taught, rung, SPLIT)
    assert np.array_equal(labels >= 0, usable) and np.isfinite(x[usable]).all()


def test_quality_scores_and_features_do_without_the_spots_that_are_left_out(taught, made, usable):
    seen, test = taught.rows(SPLIT)
    found = stages.quality(taught, "frozen", SPLIT)
    counts = found["n_train"], found["n_test"]
    assert counts == ((seen & usable).sum(), (test & usable).sum()) and np.isfinite(found["r2"])
    frozen, x = stages.space_of(taught, "frozen"), made.obsm["X_teacher"]
    a, b = seen & usable, test & usable
    expected = alignment_quality(frozen[a], x[a], frozen[b], x[b])
    assert expected.items() <= found.items()
    filled = teacher_as_features(made)  # the others get the mean of usable training spots
    np.testing.assert_array_equal(filled[usable], x[usable])
    assert np.allclose(filled[~usable], x[a].mean(0), rtol=1e-6)
    scores = stages.score(taught, "teacher", PROTOCOLS["strict"], splits=(SPLIT,)).scores
    assert np.isfinite(scores["pcc"]).any()


def test_other_weights_and_settings_are_other_units(taught, made, tmp_path):
    moved, other = tmp_path / "moved.ckpt", tmp_path / "other.ckpt"
    shutil.copy(CHECKPOINT, moved)
    weights = torch.load(CHECKPOINT, weights_only=True)
    weights["gene"]["state_dict"]["model.encoder.norm.bias"] += 1
    torch.save(weights, other)
    name = lambda file, **more: with_options(taught, checkpoint=str(file), **more).teacher_name
    assert name(moved, tokens=99, device="cpu") == name(CHECKPOINT) == taught.teacher_name
    assert len({name(other), name(moved), name(moved, target="t4")}) == 3
    assert str(tmp_path) not in name(moved)
    changed = stages.teacher(with_options(taught, checkpoint=str(other)), SPLIT)
    assert not np.array_equal(changed.obsm["X_teacher"], made.obsm["X_teacher"])
