"""Losses against scipy and closed forms, and what the two phases of the authors' code compare."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from test_encoders import tiny_encoder

from peka_core import losses
from peka_core.classifier import fit_classifier
from peka_core.losses import batch_losses, kd_loss, structure_loss, total_loss
from peka_core.recipe import Recipe
from peka_core.student import Student


@pytest.fixture
def batch():
    return np.random.default_rng(1).normal(size=(2, 6, 5)) * [[[1]], [[3]]]


def divergence(teacher, student, tau):
    """Mean KL(softmax(T / tau) || softmax(S / tau)) by scipy."""
    return entropy(softmax(teacher / tau, axis=1), softmax(student / tau, axis=1), axis=1).mean()


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_kd_is_the_divergence_of_student_from_teacher_without_a_factor(batch, tau):
    student, teacher = batch
    loss = kd_loss(*map(torch.tensor, batch), tau).item()
    assert loss == pytest.approx(divergence(teacher, student, tau), rel=1e-5)
    rounded = [torch.tensor(x).bfloat16() for x in batch]
    half, exact = kd_loss(*rounded, tau), kd_loss(*(x.float() for x in rounded), tau)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(exact.item(), rel=1e-6)


def test_kd_of_two_classes_in_closed_form_and_of_rows_shifted_by_a_constant(batch):
    loss = kd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[np.log(3.0), 0.0]])).item()
    assert loss == pytest.approx(0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5), rel=1e-6)
    student = torch.tensor(batch[0])
    shifted = student + torch.arange(6.0)[:, None]
    assert kd_loss(shifted, student).item() == pytest.approx(0, abs=1e-6)


def test_structure_loss_is_the_mean_negative_log_probability_and_total_the_weighted_sum(batch):
    logits, labels = batch[0], np.array([0, 4, 1, 1, 2, 3])
    expected = -log_softmax(logits, axis=1)[np.arange(6), labels].mean()
    struct = structure_loss(torch.tensor(logits), torch.tensor(labels))
    assert struct.item() == pytest.approx(expected, rel=1e-6)
    assert total_loss(torch.tensor(2.0), torch.tensor(5.0), 0.25, 0.5).item() == 3.0
    assert total_loss(torch.tensor(torch.nan), torch.tensor(5.0), 0.0, 1.0).item() == 5.0


@pytest.mark.parametrize("classifier_epochs", [0, 2])
def test_kd_compares_embeddings_or_in_two_phases_logits_of_one_classifier(
    monkeypatch, classifier_epochs
):
    monkeypatch.setattr(losses, "autocast", lambda _: contextlib.nullcontext())
    recipe = Recipe(block=8, hidden=24, k=3, tau=2.0, classifier_epochs=classifier_epochs)
    student, rng = Student(tiny_encoder(64), "bone", 4, recipe), np.random.default_rng(0)
    tiles = torch.from_numpy(rng.integers(0, 256, (10, 64, 64, 3), dtype=np.uint8))
    targets, labels = torch.randn(10, 4), torch.arange(10) % 3
    classifier = fit_classifier(targets, labels, recipe)
    parts, projected = batch_losses(student, classifier, tiles, targets, labels, recipe)
    with torch.no_grad():
        s, t = projected.detach(), targets
        logits = classifier(s).numpy()
        if classifier_epochs:
            s, t = classifier(s), classifier(t)
    kd = divergence(t.numpy(), s.numpy(), 2.0)
    struct = -log_softmax(logits, axis=1)[np.arange(10), labels].mean()
    assert parts["kd"].item() == pytest.approx(kd, rel=1e-4)
    assert parts["struct"].item() == pytest.approx(struct, rel=1e-4)
    assert parts["total"].item() == pytest.approx((kd + struct) / 2, rel=1e-4)
    squared = dataclasses.replace(recipe, tau_squared=True)
    parts, _ = batch_losses(student, classifier, tiles, targets, labels, squared)
    assert parts["kd"].item() == pytest.approx(4 * kd, rel=1e-4)


def test_the_classifier_learns_labels_from_the_teacher_and_is_frozen():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    labels, recipe = x[:, :3].argmax(1), Recipe(k=3, classifier_epochs=60, lr=1e-2, batch_size=8)
    model, again = (fit_classifier(x, labels, recipe) for _ in range(2))
    assert model(x).shape == (40, 3) and (model(x).argmax(1) == labels).float().mean() > 0.95
    assert not any(p.requires_grad for p in model.parameters())
    assert all(map(torch.equal, model.parameters(), again.parameters()))
