"""Losses against scipy and closed forms, and what the two phases of the authors' code compare."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from sklearn.metrics import mean_squared_error
from test_encoders import smooth_tiles, tiny_encoder

from peka_core import losses
from peka_core.classifier import fit_classifier
from peka_core.losses import batch_losses, distillation_loss, kd_loss
from peka_core.recipe import Recipe
from peka_core.student import Student


def divergence(teacher, student, tau):
    """Mean KL(softmax(T / tau) || softmax(S / tau)) by scipy."""
    return entropy(softmax(teacher / tau, axis=1), softmax(student / tau, axis=1), axis=1).mean()


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_kd_is_the_divergence_of_student_from_teacher_without_a_factor(tau):
    student, teacher = np.random.default_rng(1).normal(size=(2, 6, 5)) * [[[1]], [[3]]]
    given = torch.tensor(student), torch.tensor(teacher)
    expected = divergence(teacher, student, tau)
    assert kd_loss(*given, tau).item() == pytest.approx(expected, rel=1e-5)
    rounded = [x.bfloat16() for x in given]
    half, exact = kd_loss(*rounded, tau), kd_loss(*(x.float() for x in rounded), tau)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(exact.item(), rel=1e-6)
    shifted = given[0] + torch.arange(6.0)[:, None]  # a constant for each row
    assert kd_loss(shifted, given[0], tau).item() == pytest.approx(0, abs=1e-6)
    two = kd_loss(torch.zeros(1, 2), tau * torch.tensor([[np.log(3.0), 0.0]]), tau).item()
    assert two == pytest.approx(0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5), rel=1e-6)


def halves(x):
    return np.concatenate([np.where(x > 0, x, 0), np.where(x < 0, -x, 0)], axis=1)


INSTEAD = {  # kd of the recipe -> the same by numpy, scipy and scikit-learn
    "softmax": lambda s, t: 4 * divergence(t, s, 2.0),
    "signed": lambda s, t: 4 * divergence(halves(t), halves(s), 2.0),
    "mse": mean_squared_error,
    "cosine": lambda s, t: np.mean([cosine(*pair) for pair in zip(s, t)]),
}


@pytest.mark.parametrize("kd", INSTEAD)
def test_each_loss_in_place_of_eq_5_is_that_of_another_library(kd):
    student, teacher = np.random.default_rng(1).normal(size=(2, 6, 5)) * 3
    recipe = Recipe(kd=kd, tau=2.0, tau_squared=True)
    found = distillation_loss(torch.tensor(student), torch.tensor(teacher), recipe).item()
    assert found == pytest.approx(INSTEAD[kd](student, teacher), rel=1e-5)


def test_eq_5_hardly_sees_the_negative_entries_of_a_teacher_and_the_others_do():
    teacher = torch.tensor(np.random.default_rng(1).normal(size=(2000, 12)) * 2)
    for kd in INSTEAD:
        loss = lambda student, kd=kd: distillation_loss(student, teacher, Recipe(kd=kd)).item()
        no_negative, no_positive = loss(teacher.clamp(min=0)), loss(teacher.clamp(max=0))
        seen = no_negative / no_positive
        assert seen < 0.2 if kd == "softmax" else 0.9 < seen < 1.1, (kd, seen)


@pytest.mark.parametrize("classifier_epochs", [0, 2])
@pytest.mark.parametrize("tau_squared", [False, True])
def test_kd_compares_embeddings_or_in_two_phases_logits_of_one_classifier(
    monkeypatch, classifier_epochs, tau_squared
):
    monkeypatch.setattr(losses, "autocast", lambda _: contextlib.nullcontext())
    recipe = Recipe(block=8, hidden=24, k=3, tau=2.0, classifier_epochs=classifier_epochs)
    recipe, tiles = dataclasses.replace(recipe, tau_squared=tau_squared), smooth_tiles(10, 64)
    student, targets = Student(tiny_encoder(64), "bone", 4, recipe), torch.randn(10, 4)
    classifier = fit_classifier(targets, labels := torch.arange(10) % 3, recipe)
    found, projected = batch_losses(student, classifier, tiles, targets, labels, recipe)
    s, t, logits = (x.detach() for x in (projected, targets, classifier(projected)))
    kd = divergence(classifier(t), logits, 2.0) if classifier_epochs else divergence(t, s, 2.0)
    kd *= 4 if tau_squared else 1
    struct = -log_softmax(logits.numpy(), axis=1)[np.arange(10), labels].mean()
    expected = {"kd": kd, "struct": struct, "total": (kd + struct) / 2}
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(expected, rel=1e-4)


def test_the_classifier_learns_labels_from_the_teacher_and_is_frozen():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    labels = x[:, :3].argmax(1)
    recipe = Recipe(k=3, classifier_epochs=30, lr=1e-2, batch_size=8, hidden=32)
    model, again = (fit_classifier(x, labels, recipe) for _ in range(2))
    assert model(x).shape == (40, 3) and (model(x).argmax(1) == labels).float().mean() > 0.95
    assert not any(p.requires_grad for p in model.parameters())
    assert all(map(torch.equal, model.parameters(), again.parameters()))
