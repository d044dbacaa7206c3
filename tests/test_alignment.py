"""The loop: what it learns, keeps, repeats and refuses; ranks, batches, and alignment quality."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_encoders import tiny_encoder
from torch import nn

from peka_core import alignment, losses
from peka_core.alignment import align, learning_rate
from peka_core.common.errors import PekaError
from peka_core.quality import alignment_quality
from peka_core.recipe import Recipe
from peka_core.student import Student, embed_tiles
from peka_core.training_data import TrainingData
from peka_core.training_parts.batches import batches
from peka_core.training_parts.checkpoint import TrainingState

N = 40
SMALL = {"epochs": 3, "lr": 3e-3, "batch_size": 8, "warmup": 2, "k": 3, "block": 8, "hidden": 24}
RECIPE = Recipe(**SMALL, validation_share=0.2)


@pytest.fixture(scope="module")
def data():
    """Tiles of one colour; the teacher is a function of the colour. Five groups of eight."""
    rng = np.random.default_rng(0)
    colour = rng.integers(40, 216, (N, 3))
    tiles = (colour[:, None, None, :] + rng.integers(-9, 10, (N, 64, 64, 1))).astype(np.uint8)
    x_teacher = ((colour / 64 - 2) @ rng.normal(size=(3, 4))).astype(np.float32)
    return TrainingData(tiles, x_teacher, colour.argmax(1), np.arange(N) // 8)


def train(data, method="bat", recipe=RECIPE, **options):
    student = Student(tiny_encoder(64), method, 4, recipe)
    return student, align(student, data, recipe, progress=False, **options)


def trained(student):
    return {name: p.detach().clone() for name, p in student.named_parameters() if p.requires_grad}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def kill_in_epoch(number, monkeypatch):
    """Interrupt the loop in an epoch; return a list that gets one entry for each epoch."""
    started = []

    def until_killed(*arguments):
        started.append(1)
        for count, batch in enumerate(batches(*arguments)):
            if len(started) == number and count:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(alignment, "batches", until_killed)
    return started


@pytest.mark.parametrize("method", ["bat", "bone", "projector_only"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_loop_learns_and_its_table_has_the_losses_on_patients_that_it_did_not_train_on(
    data, monkeypatch, method, bfloat16
):
    context = lambda _: torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16)
    monkeypatch.setattr(losses, "autocast", context)
    change = {"epochs": 6, "lr": 1e-2, "lambda_struct": 0.0}
    student, history = train(data, method, replace(RECIPE, **change))
    (_, first), *_, (_, last) = history.iterrows()
    assert last.validation_total < 0.95 * first.validation_total
    assert last.validation_r2 > first.validation_r2 and last.total < 0.95 * first.total
    adapter = [p for name, p in student.named_parameters() if name.endswith(".blocks")]
    assert all(p.abs().max() > 0 for p in adapter)

    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6] and history["struct"].isna().all()
    np.testing.assert_allclose(history["total"], history.eval("0.5 * kd"), rtol=1e-5)
    kept = history[history["kept"]].squeeze()
    assert kept.validation_total == history["validation_total"].min()
    group = torch.randperm(5, generator=torch.Generator().manual_seed(0))[0].item()
    rows = data.groups == group  # which seed 0 draws
    s = embed_tiles(student, data.tiles[rows], progress=False)["projected"].astype(float)
    t = data.targets[rows]
    log_s, log_t = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (s, t))
    kd = (np.exp(log_t) * (log_t - log_s)).sum(1).mean()
    assert kept.validation_kd == pytest.approx(kd, rel=0.05)
    s, t = (x - x.mean(1, keepdims=True) for x in (s, t))
    r2 = 1 - ((s - t) ** 2).sum() / ((t - t.mean(0)) ** 2).sum()
    assert kept.validation_r2 == pytest.approx(r2, abs=0.03)


KEPT = {  # how it is chosen: the recipe, the scores of its epochs (None: computed), the kept one
    "lowest validation_total": ({}, [3.0, 1.0, 2.0], 1),
    "lowest validation_total: AdaLoRA within its budget": ({"epochs": 6}, [*range(6)], 4),
    "last epoch, by the recipe": ({"keep": "last"}, [3.0, 1.0, 2.0], 2),
    "last epoch, no validation spots": ({"validation_share": 0.0}, None, 2),
    "last epoch, no validation spots: one patient": ({}, None, 2),
    "last epoch, no epoch was eligible": ({}, [np.nan] * 3, 2),
    "last epoch, no epoch was eligible: AdaLoRA": ({"epochs": 1, "batch_size": N}, [1.0], 0),
}


@pytest.mark.parametrize("how", KEPT)
def test_the_best_eligible_epoch_is_kept_or_the_last_and_the_table_says_why(data, monkeypatch, how):
    (change, scores, expected), states, validate = KEPT[how], [], alignment.validate

    def score(student, *arguments):
        states.append(trained(student))
        given = {"validation_total": scores[len(states) - 1]} if scores else {}
        return given or validate(student, *arguments)

    monkeypatch.setattr(alignment, "validate", score)
    data = replace(data, groups=np.zeros(N, int)) if "one patient" in how else data
    method = "adalora" if "AdaLoRA" in how else "bat"
    student, history = train(data, method, replace(RECIPE, **change))
    ranks = student.rank_schedule.ranks().values()
    assert "within" not in how or sum(ranks) <= RECIPE.rank * len(ranks) + 2
    assert history["kept"].tolist() == [epoch == expected for epoch in range(len(states))]
    assert (history["choice"] == how.partition(":")[0]).all()
    assert [same(trained(student), state) for state in states] == history["kept"].tolist()


@pytest.mark.parametrize(("by", "clip"), [("norm", 0.1), ("value", 0.01), ("norm", 0.0)])
def test_three_steps_equal_adam_written_out(data, monkeypatch, by, clip):
    monkeypatch.setattr(losses, "autocast", lambda _: contextlib.nullcontext())
    change = {"batch_size": N, "schedule": "constant", "flips": False, "validation_share": 0.0}
    recipe = replace(RECIPE, clip=clip, clip_by=by, **change)
    student, reference = (Student(tiny_encoder(64), "projector_only", 4, recipe) for _ in range(2))
    align(student, data, recipe, seed=7, progress=False)

    torch.manual_seed(7)
    classifier = nn.Linear(4, 3)
    x_teacher, labels = torch.tensor(data.targets), torch.tensor(data.labels)
    features = reference.encoder.encode(reference.encoder.transform(data.tiles))
    values = [*reference.projector.parameters(), *classifier.parameters()]
    first, second = ([torch.zeros_like(v) for v in values] for _ in range(2))
    for step, lr in enumerate([1.5e-3, 3e-3, 3e-3], start=1):
        projected = reference.projector(features)
        log_s, log_t = projected.log_softmax(1), x_teacher.log_softmax(1)
        kd = (log_t.exp() * (log_t - log_s)).sum(1).mean()
        struct = -classifier(projected).log_softmax(1)[torch.arange(N), labels].mean()
        slopes = torch.autograd.grad(0.5 * kd + 0.5 * struct, values)
        norm = torch.cat([g.flatten() for g in slopes]).norm()
        assert norm > 0.1
        for v, g, m, s in zip(values, slopes, first, second, strict=True):
            if clip:
                g = g.clamp(-clip, clip) if by == "value" else g * clip / norm
            m.mul_(0.9).add_(0.1 * g)
            s.mul_(0.999).add_(0.001 * g**2)
            v.data -= lr * (m / (1 - 0.9**step)) / ((s / (1 - 0.999**step)).sqrt() + 1e-8)
    for ours, theirs in zip(student.projector.parameters(), values, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


def test_weights_depend_on_the_seed_and_the_training_spots_alone(data):
    recipe, mask = replace(RECIPE, epochs=1, dropout=0.3, keep="last"), data.groups != 4
    numbers, other = np.flatnonzero(mask), [data.tiles.copy(), data.targets.copy(), data.labels * 1]
    given = [replace(data, rows=rows) for rows in (mask, numbers, list(numbers), mask)]
    validates = given[0].draw_validation(recipe, torch.Generator().manual_seed(0))[1]
    for values, odd in zip(other, (0, np.nan, 99), strict=True):
        values[~mask], values[validates] = odd, 1
    given.insert(0, TrainingData(*other, data.groups, rows=mask))
    runs = []
    for number, one in enumerate(given):
        student = Student(tiny_encoder(64), "bat", 4, recipe)
        torch.rand(number)  # whatever was drawn before
        align(student, one, recipe, seed=number // 4, progress=False)
        runs.append(trained(student))
    assert [same(run, runs[0]) for run in runs] == [True] * 4 + [False]


@pytest.mark.parametrize(("method", "share"), [
    ("bat", 0.2), ("adalora", 0.2), ("adalora", 0.0), ("full", 0.2),
])  # fmt: skip
def test_a_killed_alignment_goes_on_from_the_last_epoch_with_the_same_result(
    data, tmp_path, monkeypatch, method, share
):
    recipe = replace(RECIPE, epochs=5, dropout=0.2, validation_share=share)
    undisturbed, history = train(data, method, recipe)
    started, path, load = (
        kill_in_epoch(4, monkeypatch),
        tmp_path / "progress.pt",
        TrainingState.load,
    )

    def load_and_compare(state, path):
        load(state, path)
        saved, loaded = torch.load(path)["ranks"], state.student.rank_schedule.state()
        torch.testing.assert_close(loaded, saved, rtol=0, atol=0)
        assert bool(saved) == (method == "adalora")

    monkeypatch.setattr(TrainingState, "load", load_and_compare)
    with pytest.raises(KeyboardInterrupt):
        train(data, method, recipe, checkpoint=path)
    for other in (("bone", recipe), (method, replace(recipe, tau=2.0))):
        with pytest.raises(PekaError, match="checkpoint of"):
            train(data, *other, checkpoint=path)
    changed = np.array(data.targets)
    changed[data.rows[0]] += 1e-3
    for other, seed in ((data, 1), (replace(data, targets=changed), 0)):
        student = Student(tiny_encoder(64), method, 4, recipe)
        with pytest.raises(PekaError, match="checkpoint of"):
            align(student, other, recipe, seed=seed, checkpoint=path, progress=False)
    torch.manual_seed(77)
    resumed, again = train(data, method, recipe, checkpoint=path)
    assert again.drop(columns="seconds").equals(history.drop(columns="seconds"))
    assert len(started) == 4 + 2, "finished epochs were trained again"
    assert same(trained(undisturbed), trained(resumed))


@pytest.mark.parametrize(("by", "count"), [("group", 8), ("spot", 6)])
def test_whole_patients_validate_or_single_spots_and_none_of_them_trains(data, by, count):
    given, recipe = replace(data, rows=data.groups != 4), replace(RECIPE, validation_by=by)
    train, validation = given.draw_validation(recipe, torch.Generator().manual_seed(0))
    assert sorted([*train, *validation]) == given.rows.tolist() and len(validation) == count
    patients, others = set(data.groups[validation]), set(data.groups[train])
    assert (by == "group") == (not patients & others) == (len(patients) == 1)


def test_data_that_do_not_fit_are_refused_and_a_diverging_loss_too(data):
    unfit = [("rows", [-1, 2]), ("rows", [3, 3]), ("rows", np.ones(N - 1, bool))]
    unfit += [("labels", bad) for bad in (np.full(N, 0.5), np.full(N, np.nan), np.full(N, 3))]
    unfit += [("targets", bad) for bad in (np.full((N, 4), np.nan), np.zeros((N, 7)), np.zeros(N))]
    unfit += [("labels", np.zeros(3, int))]
    for name, value in unfit:
        with pytest.raises(PekaError, match=name):
            train(replace(data, **{name: value}))
    student = Student(tiny_encoder(64), "projector_only", 4, RECIPE)
    student.projector[0].weight.data[0, 0] = torch.nan
    with pytest.raises(PekaError, match=r"step 1 of epoch 1.*\blr\b.*0\.003"):
        align(student, data, RECIPE, progress=False)


def test_adalora_moves_ranks_between_layers_unless_the_recipe_forbids_it(data):
    recipe = replace(RECIPE, layers=("attn.qkv", "mlp.fc1", "mlp.fc2"), rank=4, epochs=15)
    student, history = train(data, "adalora", recipe)
    ranks = history.filter(like="rank_").T  # (layers, epochs)
    assert (ranks.sum().diff().iloc[1:] <= 0).all(), "the budget grew again"
    assert ranks[0].sum() > ranks[14].sum() == pytest.approx(4 * len(ranks), abs=2)
    assert ranks[14].nunique() > 1, "every layer kept the same rank"
    assert student.rank_schedule.ranks() == ranks[14].to_dict(), "another epoch's ranks are in use"
    student, history = train(data, "adalora", replace(recipe, reallocate=False, epochs=2))
    fixed = {len(p) for name, p in trained(student).items() if "lora_A" in name}
    assert fixed == {4} and not history.columns.str.startswith("rank_").any()


def test_adalora_removes_the_same_ranks_as_peft(data):
    recipe = replace(RECIPE, layers=("attn.qkv", "mlp.fc1"), rank=4, epochs=4)
    found = []
    for theirs in (False, True):
        student = Student(tiny_encoder(64), "adalora", 4, recipe)
        allocator = student.rank_schedule.model.rankallocator
        for name in ("mask_to_budget", "mask_using_rank_pattern") if theirs else ():
            delattr(allocator, name)  # ours; peft's is that of the class
        align(student, data, recipe, progress=False)
        found.append(trained(student))
    assert same(*found)
    scales = [value for name, value in found[0].items() if "lora_E" in name]
    assert 0 < sum(int((value == 0).sum()) for value in scales) < sum(map(len, scales))


def test_learning_rate_warms_up_then_follows_its_schedule():
    recipe = Recipe(lr=2.0, warmup=4)
    rates = [learning_rate(step, 24, recipe) for step in (0, 1, 2, 3, 4, 14, 24)]
    np.testing.assert_allclose(rates, [0.5, 1.0, 1.5, 2.0, 2.0, 1.0, 0.0])
    recipe = Recipe(epochs=25, lr=1.0, warmup=0, schedule="step")
    rates = [learning_rate(step, 50, recipe) for step in range(0, 50, 2)]  # two steps an epoch
    np.testing.assert_allclose(rates, 0.1 ** (np.arange(25) // 10))


@pytest.mark.parametrize("flips", [True, False])
def test_an_epoch_shows_each_tile_once_in_random_order_and_orientation(flips):
    tiles = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)

    def epoch(seed, ahead=False):
        generator = torch.Generator().manual_seed(seed)
        made = batches(tiles, np.arange(N), 12, flips, generator, ahead)
        rows, shown, weights = zip(*made, strict=True)
        assert weights == (1, 1, 1, 1)  # without torchrun
        assert [len(b) for b in shown] == [12, 12, 12, 4]
        return np.concatenate(rows), torch.cat(shown).numpy()

    (order, shown), (other, _), ahead = epoch(0), epoch(1), epoch(0, ahead=True)
    assert sorted(order) == list(range(N)) != list(order) != list(other)
    assert np.array_equal(ahead[0], order) and np.array_equal(ahead[1], shown)
    sides = [(tile, tile[:, ::-1]) for tile in tiles[order]]
    turns = [[np.rot90(side, k) for side in pair for k in range(4)] for pair in sides]
    found = [[np.array_equal(x, y) for y in eight] for x, eight in zip(shown, turns, strict=True)]
    assert all(sum(row) == 1 for row in found) and np.any(found, 0).sum() == (8 if flips else 1)
    assert flips or np.array_equal(shown, tiles[order])
    with pytest.raises(IndexError):  # of a reader, also in a thread
        list(batches(tiles, np.arange(N + 1), 12, flips, torch.Generator(), ahead=flips))


def test_quality_is_one_for_a_rotated_teacher_chance_for_noise_and_unknown_without_spots():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 400, 5))
    unread = np.where(np.arange(400)[:, None] < 300, x, np.nan)
    quality = lambda t: alignment_quality(x[:300], t[:300], x[300:], t[300:])
    good, bad, unknown = map(quality, (x @ np.linalg.qr(rng.normal(size=(5, 5)))[0], noise, unread))
    assert good["r2"] > 0.999 and good["neighbour_overlap"] > 0.8 and abs(bad["r2"]) < 0.1
    assert bad["chance"] == pytest.approx(10 / 99)
    assert bad["neighbour_overlap"] == pytest.approx(bad["chance"], abs=0.03)
    assert (good["n_test"], unknown["n_test"]) == (100, 0) and np.isnan(unknown["r2"])
