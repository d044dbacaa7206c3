"""scVI: the library's latent means, from training spots alone, and nothing else is changed."""

import dataclasses
import importlib.metadata
import logging
import os
import random
import signal

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from peka_core.commands.plan import plan
from peka_core.common.errors import PekaError
from peka_core.models import scvi as ours
from peka_core.protocols import PROTOCOLS
from peka_core.runner import stages
from peka_core.runner.profile import load_profile
from peka_core.teachers import embed_spots, load_teacher

N, EMPTY = 150, 7
FEW = {"n_latent": 4, "max_epochs": 4}
TRAIN = np.arange(N) % 8 != 0


@pytest.fixture(scope="module")
def library():
    """scvi-tools, which the extra `scvi` installs; without it, its tests are skipped."""
    return pytest.importorskip("scvi", reason="scvi-tools is not installed: make scvi")


def counts() -> anndata.AnnData:
    """Raw counts of three kinds of spots; one training spot has none."""
    rng = np.random.default_rng(0)
    mean = rng.gamma(2, 3, (3, 25))[rng.integers(0, 3, N)]
    x = rng.poisson(mean * rng.uniform(0.5, 2, (N, 1))).astype(np.float32)
    x[EMPTY] = 0
    names = [f"s{i}" for i in range(N)], [f"G{i}" for i in range(25)]
    return anndata.AnnData(sparse.csr_matrix(x), *(pd.DataFrame(index=part) for part in names))


def states() -> tuple:
    """What a fit must leave as it was."""
    cudnn = torch.backends.cudnn
    numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    switches = cudnn.benchmark, cudnn.deterministic, torch.get_num_threads(), dict(os.environ)
    return numbers, switches, signal.getsignal(signal.SIGINT)


@pytest.fixture
def restored(library, monkeypatch):
    """What the library's own seed changes is as before after the test."""
    for name in ("XLA_FLAGS", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0" * (name != "XLA_FLAGS"))
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, False)
    monkeypatch.setattr(library.settings, "_seed", None)


def test_the_embedding_is_the_librarys_posterior_mean_centred_and_scaled(library, restored):
    adata = counts()
    made = load_teacher("scvi", **FEW, scale=3.0, seed=5).fit(adata[TRAIN]).embed(adata)
    used = np.delete(np.arange(N), EMPTY)
    fitted = adata[TRAIN & (np.arange(N) != EMPTY)].copy()
    library.settings.seed = 5
    library.model.SCVI.setup_anndata(fitted)
    model = library.model.SCVI(fitted, n_latent=4)
    model.train(
        4, accelerator="cpu", train_size=1.0, shuffle_set_split=False, batch_size=130,
        enable_progress_bar=False, plan_kwargs={"lr": 3e-3, "n_epochs_kl_warmup": 2},
    )  # fmt: skip
    (z_train, z) = (model.get_latent_representation(a) for a in (fitted, adata[used].copy()))
    expected = (z - z_train.mean(0)) / z_train.std(0).max() * 3.0
    assert made.dtype == np.float32 and made.shape == (N, 4)
    np.testing.assert_allclose(made[used], expected, atol=1e-5)
    assert np.isnan(made[EMPTY]).all()


def test_training_spots_alone_decide_and_two_fits_are_equal(library):
    adata, other = counts(), counts()
    other.X = np.where(TRAIN[:, None], other.X.toarray(), other.X.toarray()[:, ::-1] * 7)
    made, again, moved = (
        embed_spots(a, TRAIN, load_teacher("scvi", **FEW), k=3) for a in (adata, adata, other)
    )
    x_teacher = made.obsm["X_teacher"]
    np.testing.assert_array_equal(x_teacher, again.obsm["X_teacher"])
    np.testing.assert_array_equal(x_teacher[TRAIN], moved.obsm["X_teacher"][TRAIN])
    assert not np.allclose(x_teacher[~TRAIN], moved.obsm["X_teacher"][~TRAIN], atol=0.1)
    assert (made.obs["pseudo_label"] == -1).tolist() == (np.arange(N) == EMPTY).tolist()
    assert np.nanstd(x_teacher[TRAIN], 0).max() == pytest.approx(2.0, abs=1e-4)
    facts = made.uns["teacher"]
    assert facts["n_usable"] == N - 1 and facts["scvi_tools"] == library.__version__
    seeded = load_teacher("scvi", **FEW, seed=1).fit(adata[TRAIN]).embed(adata)
    assert not np.allclose(seeded[TRAIN][1:], x_teacher[TRAIN][1:], atol=0.1, equal_nan=True)


def test_random_states_environment_and_folder_stay_and_nothing_is_printed(
    library, restored, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    logged = []
    monkeypatch.setattr(logging.Logger, "handle", lambda _, record: logged.append(record))
    adata, teacher, before = counts(), load_teacher("scvi", **FEW), states()
    stored = len(library.model.SCVI._setup_adata_manager_store)
    teacher.fit(adata).embed(adata)
    assert states() == before
    assert not list(tmp_path.iterdir())
    assert list(capfd.readouterr()) == ["", ""] and logged == []
    assert len(library.model.SCVI._setup_adata_manager_store) == stored
    assert not adata.uns and not adata.obs.columns.size


def test_an_interrupt_stays_one(library, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(library.module.VAE, "loss", interrupted)
    before = states()
    with pytest.raises(KeyboardInterrupt):
        load_teacher("scvi", **FEW).fit(counts())
    assert states() == before


def test_no_last_batch_is_too_small_for_batch_norm(library):
    for n in range(3, 3_000):
        size = ours.batch_size(n)
        assert n % size == 0 or n % size > 2
        assert size == 128 or n % 128 in (1, 2)
    adata = counts()[np.arange(N) != EMPTY][:129]
    assert np.isfinite(load_teacher("scvi", **FEW).fit(adata).embed(adata)).all()


@pytest.mark.parametrize("wrong", [-1.0, 0.5, np.nan, np.inf])
def test_values_that_are_no_counts_are_refused(library, wrong):
    adata, teacher = counts(), load_teacher("scvi", **FEW)
    fitted = teacher.fit(counts())
    adata.X[3, 2] = wrong
    for act in (teacher.fit, fitted.embed):
        with pytest.raises(PekaError, match="counts|values"):
            act(adata)


def test_other_genes_too_few_spots_and_an_embedding_before_the_fit_are_refused(library):
    adata = counts()
    with pytest.raises(PekaError, match="not fitted"):
        load_teacher("scvi").embed(adata)
    with pytest.raises(PekaError, match="25 genes"):
        load_teacher("scvi", **FEW).fit(adata).embed(adata[:, ::-1])
    with pytest.raises(PekaError, match="three spots"):
        load_teacher("scvi").fit(adata[EMPTY - 2 : EMPTY + 1])


def test_a_plan_says_how_long_it_trains(library):
    said = lambda **values: plan(load_profile("demo", values)).splitlines()
    line = next(line for line in said(teacher="scvi", max_epochs=50) if "teacher scvi" in line)
    minutes = 2_400 * 50 * (35e-6 + 600 * 1.4e-7) / 60  # 2,400 spots, 600 genes
    assert "50 epochs" in line and f"{minutes:.1f} minutes" in line
    assert not any("teacher scvi" in line for line in said())


def test_without_the_library_the_extra_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(ours.importlib.metadata, "version", missing)
    with pytest.raises(PekaError, match=r"scvi-tools.*\[scvi\]"):
        load_profile("smoke", {"teacher": "scvi"})


def test_a_student_of_smoke_is_taught_and_the_version_names_the_unit(library, work, monkeypatch):
    def taught_with(**options):
        changes = {"teacher": "scvi", "teacher_options": FEW | options}
        return dataclasses.replace(work, profile=dataclasses.replace(work.profile, **changes))

    taught, split = taught_with(), work.cohort().splits[0].name
    assert stages.teacher(taught, split).obsm["X_teacher"].shape[1] == 4
    scores = stages.score(taught, "bat", PROTOCOLS["strict"], splits=(split,)).scores
    assert np.isfinite(scores["pcc"]).any()
    name = taught.teacher_name
    monkeypatch.setattr(ours, "version", lambda: "another")
    assert taught.teacher_name != name and taught_with(scale=1.0).teacher_name != name
