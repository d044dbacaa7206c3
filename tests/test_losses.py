"""Losses against scipy and closed forms."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from peka_core.losses import kd_loss, structure_loss, total_loss


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    return rng.normal(size=(6, 5)), rng.normal(size=(6, 5)) * 3


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_kd_is_the_divergence_of_student_from_teacher_without_a_factor(batch, tau):
    student, teacher = batch
    expected = entropy(
        softmax(teacher / tau, axis=1), softmax(student / tau, axis=1), axis=1
    ).mean()
    assert kd_loss(*map(torch.tensor, batch), tau).item() == pytest.approx(expected, rel=1e-5)


def test_kd_of_two_classes_in_closed_form():
    loss = kd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[np.log(3.0), 0.0]]))
    assert loss.item() == pytest.approx(
        0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5), rel=1e-6
    )


def test_kd_is_zero_for_rows_shifted_by_a_constant(batch):
    student, _ = map(torch.tensor, batch)
    assert kd_loss(student + torch.arange(6.0)[:, None], student).item() == pytest.approx(
        0, abs=1e-6
    )


def test_structure_loss_is_the_mean_negative_log_probability(batch):
    logits, labels = batch[0], np.array([0, 4, 1, 1, 2, 3])
    expected = -log_softmax(logits, axis=1)[np.arange(6), labels].mean()
    assert structure_loss(torch.tensor(logits), torch.tensor(labels)).item() == pytest.approx(
        expected, rel=1e-6
    )


def test_total_weighs_both_and_leaves_out_a_loss_of_weight_zero():
    kd, struct = torch.tensor(2.0), torch.tensor(5.0)
    assert total_loss(kd, struct, 0.25, 0.5).item() == 3.0
    assert total_loss(torch.tensor(torch.nan), struct, 0.0, 1.0).item() == 5.0


def test_losses_of_bfloat16_are_computed_in_float32(batch):
    student, teacher = (torch.tensor(x).bfloat16() for x in batch)
    assert kd_loss(student, teacher).dtype == torch.float32
    assert kd_loss(student, teacher).item() == pytest.approx(
        kd_loss(student.float(), teacher.float()).item(), rel=1e-6
    )
