"""Every switch between the paper as written and its code as run does what its name says."""

import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import SMALL
from test_alignment import RECIPE, train, world  # noqa: F401
from test_encoders import tiny_encoder
from torch import nn
from torch.nn import functional as F

from peka_core import alignment, places
from peka_core.alignment import learning_rate
from peka_core.classifier import fit_classifier
from peka_core.errors import PekaError
from peka_core.recipe import CHOICES, RANGES, RECIPES, Recipe
from peka_core.runner import run as workspace
from peka_core.runner import stages
from peka_core.runner.units import Unit
from peka_core.student import Student, embed_tiles


def changed(**values) -> Recipe:
    return dataclasses.replace(RECIPE, **values)


def test_the_two_recipes_differ_where_paper_and_code_do():
    written, run = (dataclasses.asdict(RECIPES[name]) for name in ("as_written", "as_run"))
    differ = {name for name in written if written[name] != run[name]}
    assert differ == {
        "epochs", "schedule", "tau", "tau_squared", "classifier_epochs", "reallocate", "adapter_dropout", "clip", "clip_by", "pixels",
        "validation_share", "validation_by", "projector",
    }  # fmt: skip
    assert (
        run["epochs"],
        run["tau"],
        run["k"],
        run["clip"],
        run["validation_share"],
        written["epochs"],
    ) == (10, 2.0, 100, 1.0, 0.2, 50)


def test_a_step_schedule_takes_a_tenth_every_ten_epochs():
    recipe = Recipe(epochs=25, lr=1.0, warmup=0, schedule="step")
    rates = [learning_rate(step, 50, recipe) for step in range(50)]  # two steps an epoch
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, expected = torch.optim.lr_scheduler.StepLR(optimiser, 10, 0.1), []
    for _ in range(25):
        expected += [schedule.get_last_lr()[0]] * 2
        optimiser.step()
        schedule.step()
    np.testing.assert_allclose(rates, expected)


@pytest.mark.parametrize("by, clip, expected", [
    ("norm", 1.0, [0.6, -0.8]), ("value", 1.0, [1.0, -1.0]), ("value", 3.5, [3.0, -3.5]), ("norm", 0.0, [3.0, -4.0]),
])  # fmt: skip
def test_gradients_are_clipped_by_norm_or_by_value(by, clip, expected):
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, -4.0])
    alignment._clip([p], changed(clip=clip, clip_by=by))
    np.testing.assert_allclose(p.grad, expected, rtol=1e-5)


def test_raw_pixels_are_what_a_student_sees_in_training_and_afterwards(world, tmp_path):  # noqa: F811
    encoder = tiny_encoder(64)
    student, _ = train(world, recipe=changed(pixels="raw"))
    tiles = world["tiles"][:3]
    np.testing.assert_allclose(
        student.encoder.transform(tiles).permute(0, 2, 3, 1), tiles, atol=1e-4
    )
    student.save(tmp_path)
    loaded = Student.load(tmp_path, encoder)
    again, plain = (embed_tiles(s, tiles, progress=False)["encoder"] for s in (loaded, student))
    np.testing.assert_allclose(again, plain, atol=1e-5)
    assert encoder.transform(tiles).abs().max() < 10, "the frozen encoder keeps its own transform"


def test_the_classifier_learns_labels_from_the_teacher_and_is_frozen(world):  # noqa: F811
    x, labels = torch.as_tensor(world["targets"]), torch.as_tensor(world["labels"])
    recipe = changed(classifier_epochs=60, lr=1e-2)
    model = fit_classifier(x, labels, recipe)
    assert (model(x).argmax(1) == labels).float().mean() > 0.95
    assert not any(p.requires_grad for p in model.parameters()) and model(x).shape == (40, 3)
    again = fit_classifier(x, labels, recipe)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_in_two_phases_both_losses_look_through_the_classifier(world, monkeypatch):  # noqa: F811
    monkeypatch.setattr(alignment, "autocast", lambda _: contextlib.nullcontext())
    recipe = changed(classifier_epochs=2, tau=2.0, tau_squared=True)
    targets, labels = torch.as_tensor(world["targets"]), torch.as_tensor(world["labels"])
    student, model = (
        Student(tiny_encoder(64), "bone", 4, recipe),
        fit_classifier(targets, labels, recipe),
    )
    x = student.encoder.transform(world["tiles"])
    parts = alignment._losses(student, model, x, targets, labels, recipe)
    with torch.no_grad():
        s, t = model(student(x)[1]), model(targets)
    p, q = F.softmax(t / 2, 1), F.softmax(s / 2, 1)
    assert parts["kd"].item() == pytest.approx(
        4 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-4
    )
    assert parts["struct"].item() == pytest.approx(
        -F.log_softmax(s, 1)[range(40), labels].mean().item(), rel=1e-4
    )
    assert parts["total"].item() == pytest.approx(
        (parts["kd"] + parts["struct"]).item() / 2, rel=1e-5
    )


def test_two_phases_train_the_student_and_not_the_classifier(world, monkeypatch):  # noqa: F811
    made = []

    def spy(*given):
        made.append(fit_classifier(*given))
        made.append([p.clone() for p in made[0].parameters()])
        return made[0]

    monkeypatch.setattr(alignment, "fit_classifier", spy)
    _, history = train(
        world, "bone", changed(classifier_epochs=30, epochs=6, lr=1e-2, validation_share=0.0)
    )
    assert history["total"].iloc[-1] < history["total"].iloc[0]
    model, before = made
    assert all(
        torch.equal(p, q) and p.grad is None
        for p, q in zip(model.parameters(), before, strict=True)
    )


def test_spots_or_groups_are_set_aside(world):  # noqa: F811
    generator = lambda: torch.Generator().manual_seed(0)
    rows, groups = np.arange(40), world["groups"]
    _, spots = alignment._set_aside(rows, rows, 0.2, generator())
    _, whole = alignment._set_aside(rows, groups, 0.2, generator())
    assert len(spots) == len(whole) == 8 and len(np.unique(groups[whole])) == 1 < len(
        np.unique(groups[spots])
    )
    _, history = train(world, recipe=changed(validation_by="spot"))
    assert history["validation_total"].notna().all()


def test_the_last_epoch_is_kept_where_the_recipe_says_so(world):  # noqa: F811
    _, history = train(
        world, recipe=changed(keep="last", lr=0.5, clip=0.0)
    )  # far too fast: the first epoch is the best
    assert (
        history["kept"].tolist() == [False, False, True]
        and history["choice"].iloc[0] == "last epoch, by the recipe"
    )
    _, best = train(world, recipe=changed(lr=0.5, clip=0.0))
    assert best.loc[best["kept"], "validation_total"].item() == best["validation_total"].min()


def test_adalora_without_reallocation_keeps_its_ranks(world):  # noqa: F811
    student, history = train(world, "adalora", changed(reallocate=False, rank=2, alpha=2.0))
    factors = [
        p.shape for name, p in student.named_parameters() if "lora_A" in name and p.requires_grad
    ]
    assert factors and all(shape[0] == 2 for shape in factors)
    assert student.allocation is None and not [name for name in history if name.startswith("rank_")]
    assert math.isfinite(history["total"].iloc[-1])


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_the_adapters_dropout_works_in_training_alone(world, method):  # noqa: F811
    student, _ = train(world, method, changed(adapter_dropout=0.5, rank=2, alpha=2.0, lr=0.05))
    x = student.encoder.transform(world["tiles"][:4])
    twice = lambda: [student(x)[0].detach() for _ in range(2)]
    assert torch.equal(*twice())
    student.train()
    assert not torch.equal(*twice())


def test_a_projector_trained_on_raw_pixels_is_not_given_normalised_features(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "root", lambda: tmp_path)
    work = workspace.open_run("smoke", "raw", "cpu", {}, SMALL | {"pixels": "raw"})
    split = work.cohort().splits[0].name
    made = stages.features(work, "projector_only", split).obsm
    student = Student.load(stages.align(work, "projector_only", split), work.encoder())
    expected = embed_tiles(student, work.tiles(), progress=False)
    np.testing.assert_allclose(made["X_projected"], expected["projected"], atol=1e-4)
    assert np.abs(made["X_encoder"] - stages.space_of(work, "frozen", "")).max() > 0.01


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "labels"])
def test_a_word_that_does_not_exist_is_refused(world, name):  # noqa: F811
    with pytest.raises(PekaError, match=f"{name} 'other' is unknown: {CHOICES[name][0]}"):
        train(world, recipe=changed(**{name: "other"}))


FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_refuses_another_type(name):
    wrong = {str: 5, bool: 1, tuple: "attn.qkv"}.get(
        type(FIELDS[name].default), str(FIELDS[name].default)
    )
    for value in (wrong, None, [[]]):
        with pytest.raises(PekaError, match=name):
            Recipe(**{name: value})


@pytest.mark.parametrize(
    "name", [name for name, field in FIELDS.items() if type(field.default) in (int, float)]
)
def test_every_number_has_a_range(name):
    assert name in RANGES
    for value in (-1, float("nan"), float("inf")):
        with pytest.raises(PekaError, match=name):
            Recipe(**{name: value})


@pytest.mark.parametrize("change", [
    {"epochs": 0}, {"epochs": 1.0}, {"epochs": True}, {"batch_size": 0}, {"validation_share": 1}, {"validation_share": 2}, {"lr": 0}, {"tau": 0}, {"k": 1},
    {"block": 0}, {"rank": 0}, {"dropout": 1.0}, {"adapter_dropout": 1}, {"targets": ()}, {"targets": (1,)},
])  # fmt: skip
def test_a_value_out_of_its_range_is_refused_by_name(change):
    with pytest.raises(PekaError, match=next(iter(change))):
        dataclasses.replace(RECIPE, **change)


def test_a_whole_number_and_a_number_make_the_same_unit():
    whole, real = (
        Unit("alignment", "c0ffee", recipe=Recipe(tau=two, targets=names))
        for two, names in ((2, ["fc"]), (2.0, ("fc",)))
    )
    assert whole.recipe == real.recipe and whole.id == real.id and type(whole.recipe.tau) is float
    assert Recipe(validation_share=0, clip=0, lambda_mse=0, warmup=0, classifier_epochs=0) != Recipe()
