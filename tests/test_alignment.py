"""The loop: what it learns, keeps, repeats and refuses; orientations; the panel "did it align?"."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from test_encoders import tiny_encoder

from peka_core import alignment
from peka_core.alignment import Recipe, align, learning_rate
from peka_core.batches import batches, orient
from peka_core.errors import PekaError
from peka_core.quality import alignment_quality
from peka_core.student import Student, embed_tiles

RECIPE = Recipe(epochs=3, lr=3e-3, batch_size=8, warmup=2, k=3, block=8, hidden=24, validation_share=0.2)
N = 40


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Batches this small are slowed down by a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world():
    """Tiles of one colour; the teacher is a function of the colour. Five groups of eight."""
    rng = np.random.default_rng(0)
    colour = rng.integers(40, 216, (N, 3))
    tiles = (colour[:, None, None, :] + rng.integers(-9, 10, (N, 64, 64, 1))).astype(np.uint8)
    x_teacher = (colour / 64 - 2) @ rng.normal(size=(3, 4))
    labels = colour.argmax(1)
    return {
        "tiles": tiles,
        "targets": x_teacher.astype(np.float32),
        "labels": labels,
        "groups": np.arange(N) // 8,
    }


def train(world, method="bat", recipe=RECIPE, device="cpu", **options):
    student = Student(tiny_encoder(64, device=device), method, 4, recipe)
    return student, align(student, **world, recipe=recipe, progress=False, **options)


def trained(student):
    return {name: p.detach().clone() for name, p in student.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["bat", "bone", "projector_only"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_loop_learns_on_groups_that_it_did_not_train_on(world, monkeypatch, method, bfloat16):
    context = (
        (lambda _: torch.autocast("cpu", dtype=torch.bfloat16))
        if bfloat16
        else (lambda _: contextlib.nullcontext())
    )
    monkeypatch.setattr(alignment, "autocast", context)
    monkeypatch.setattr(alignment, "has_bfloat16", lambda device: bfloat16)
    recipe = Recipe(**{**vars(RECIPE), "epochs": 6, "lr": 1e-2})
    student, history = train(world, method, recipe)
    first, last = history.iloc[0], history.iloc[-1]
    assert last.validation_total < 0.95 * first.validation_total and last.validation_r2 > first.validation_r2
    assert last.total < 0.95 * first.total
    blocks = [p for name, p in student.named_parameters() if name.endswith(".blocks")]
    assert all(p.abs().max() > 0 for p in blocks) and len(blocks) == (
        0 if method == "projector_only" else 2
    )


def test_history_has_a_row_an_epoch_and_the_losses_of_the_kept_weights(world):
    student, history = train(
        world, "projector_only", Recipe(**{**vars(RECIPE), "lambda_struct": 0.0})
    )
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["kept"].sum() == 1 and (history["choice"] == "lowest validation_total").all()
    assert history.loc[history["kept"], "validation_total"].item() == history["validation_total"].min()
    np.testing.assert_allclose(history["total"], 0.5 * history["kd"], rtol=1e-5)

    generator = torch.Generator().manual_seed(0)
    group = torch.randperm(5, generator=generator)[0].item()  # the group that seed 0 sets aside
    aside = world["groups"] == group
    projected = embed_tiles(student, world["tiles"][aside], progress=False)["projected"].astype(
        float
    )
    log_s, log_t = (
        x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (projected, world["targets"][aside])
    )
    kept = history[history["kept"]].iloc[0]
    assert kept.validation_kd == pytest.approx((np.exp(log_t) * (log_t - log_s)).sum(1).mean(), rel=0.05)
    s, t = (x - x.mean(1, keepdims=True) for x in (projected, world["targets"][aside]))
    assert kept.validation_r2 == pytest.approx(
        1 - ((s - t) ** 2).sum() / ((t - t.mean(0)) ** 2).sum(), abs=0.03
    )


def test_best_epoch_is_kept_not_the_last(world, monkeypatch):
    scores, states = iter([3.0, 1.0, 2.0]), []

    def score(student, *_):
        states.append(trained(student))
        return {"validation_total": next(scores)}

    monkeypatch.setattr(alignment, "_score_aside", score)
    student, history = train(world)
    assert history["kept"].tolist() == [False, True, False]
    for name, value in trained(student).items():
        assert torch.equal(value, states[1][name]) and not torch.equal(value, states[2][name])


@pytest.mark.parametrize("change", [{"validation_share": 0.0}, {"groups": np.zeros(N, int)}])
def test_nothing_to_set_aside_keeps_the_last_epoch_and_says_so(world, change):
    recipe = Recipe(**{**vars(RECIPE), "validation_share": change.get("validation_share", RECIPE.validation_share)})
    _, history = train(
        world | {k: v for k, v in change.items() if k == "groups"}, "projector_only", recipe
    )
    assert history["kept"].tolist() == [False, False, True]
    assert history["choice"].iloc[0] == "last epoch, nothing set aside"
    assert history["validation_total"].isna().all()


def test_whole_groups_are_set_aside_and_never_read_for_training(world):
    class Reader:
        shape, seen = world["tiles"].shape, []

        def __len__(self):
            return N

        def __getitem__(self, rows):
            self.seen.append(np.asarray(rows))
            return world["tiles"][rows]

    rows = np.flatnonzero(world["groups"] != 4)
    train(
        world | {"tiles": Reader()},
        "projector_only",
        Recipe(**{**vars(RECIPE), "epochs": 1}),
        rows=rows,
    )
    *batches, aside = Reader.seen
    trained_on = np.concatenate(batches)
    assert len(trained_on) == len(set(trained_on)) == 24
    assert sorted([*trained_on, *aside]) == rows.tolist()
    assert len(set(world["groups"][aside])) == 1 and not set(world["groups"][aside]) & set(
        world["groups"][trained_on]
    )


def test_rows_outside_the_training_spots_change_nothing(world):
    rows = np.flatnonzero(world["groups"] != 4)
    other = {k: v.copy() for k, v in world.items()}
    other["tiles"][32:], other["targets"][32:], other["labels"][32:] = 0, np.nan, 99
    runs = [trained(train(w, rows=rows)[0]) for w in (world, other)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_mask_of_rows_is_its_numbers(world):
    mask = world["groups"] != 4
    runs = [
        trained(train(world, rows=rows)[0])
        for rows in (mask, np.flatnonzero(mask), list(np.flatnonzero(mask)))
    ]
    assert all(torch.equal(run[name], runs[0][name]) for run in runs for name in runs[0])


@pytest.mark.parametrize(
    "rows",
    [
        np.ones(N - 1, bool),
        np.zeros(N, bool),
        [0.0, 1.0],
        [-1, 2],
        [0, N],
        [3, 3, 4],
        np.ones((N, 1), bool),
        [[1, 2]],
        [],
    ],
)
def test_rows_that_are_no_spots_are_refused(world, rows):
    with pytest.raises(PekaError, match="rows"):
        train(world, rows=rows)


def test_reversed_views_of_tiles_are_their_copies(world):
    views = world | {"tiles": world["tiles"][:, ::-1, :, ::-1]}
    copies = views | {"tiles": views["tiles"].copy()}
    runs = [trained(train(w)[0]) for w in (views, copies)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_same_seed_same_weights_whatever_was_drawn_before(world):
    recipe, runs = Recipe(**{**vars(RECIPE), "epochs": 1, "dropout": 0.3}), []
    for seed, drawn in ((0, 0), (0, 5), (1, 0)):
        student = Student(tiny_encoder(64), "bat", 4, recipe)
        torch.rand(drawn)
        align(student, **world, recipe=recipe, progress=False, seed=seed)
        runs.append(trained(student))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not any(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_the_seed_draws_order_and_groups_set_aside(world, monkeypatch):
    seen = []
    monkeypatch.setattr(
        alignment,
        "batches",
        lambda tiles, rows, *a, **k: seen.append(rows) or batches(tiles, rows, *a, **k),
    )
    for seed in range(4):
        train(world, "projector_only", Recipe(**{**vars(RECIPE), "epochs": 1}), seed=seed)
    assert len({rows.tobytes() for rows in seen}) > 1
    orders = []
    for seed in (0, 0, 1):
        epoch = batches(world["tiles"], np.arange(N), 8, False, torch.Generator().manual_seed(seed))
        orders.append([row for rows, _ in epoch for row in rows])
    assert orders[0] == orders[1] != orders[2] and orders[0] != sorted(orders[0])


def test_the_frozen_encoder_is_as_before(world):
    encoder = tiny_encoder(64)
    before = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    align(Student(encoder, "bat", 4, RECIPE), **world, recipe=RECIPE, progress=False)
    assert all(torch.equal(before[k], v) for k, v in encoder.model.state_dict().items())


def test_three_steps_equal_adam_written_out(world, monkeypatch):
    monkeypatch.setattr(alignment, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(alignment, "autocast", lambda _: contextlib.nullcontext())
    change = {
        "epochs": 3,
        "batch_size": N,
        "warmup": 2,
        "schedule": "constant",
        "flips": False,
        "clip": 0.1,
        "validation_share": 0.0,
    }
    recipe = Recipe(**{**vars(RECIPE), **change})
    student, reference = (Student(tiny_encoder(64), "projector_only", 4, recipe) for _ in range(2))
    align(student, **world, recipe=recipe, progress=False, seed=7)

    torch.manual_seed(7)
    head = torch.nn.Linear(4, 3)
    x_teacher, labels = torch.tensor(world["targets"]), torch.tensor(world["labels"])
    features = reference.encoder.encode(reference.encoder.transform(world["tiles"]))
    values = [*reference.projector.parameters(), *head.parameters()]
    first, second = ([torch.zeros_like(v) for v in values] for _ in range(2))
    for step, lr in enumerate([1.5e-3, 3e-3, 3e-3], start=1):
        projected = reference.project(features)
        log_s, log_t = projected.log_softmax(1), x_teacher.log_softmax(1)
        kd = (log_t.exp() * (log_t - log_s)).sum(1).mean()
        struct = -head(projected).log_softmax(1)[torch.arange(N), labels].mean()
        slopes = torch.autograd.grad(0.5 * kd + 0.5 * struct, values)
        norm = torch.cat([g.flatten() for g in slopes]).norm()
        assert norm > 0.1
        for v, g, m, s in zip(values, slopes, first, second, strict=True):
            g = g * 0.1 / norm
            m.mul_(0.9).add_(0.1 * g)
            s.mul_(0.999).add_(0.001 * g**2)
            v.data -= lr * (m / (1 - 0.9**step)) / ((s / (1 - 0.999**step)).sqrt() + 1e-8)
    for ours, theirs in zip(student.projector.parameters(), values, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


def test_learning_rate_warms_up_then_falls_to_zero():
    recipe = Recipe(lr=2.0, warmup=4)
    rates = [learning_rate(step, 24, recipe) for step in range(24)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[14] == pytest.approx(1.0) and np.all(np.diff(rates[4:]) < 0) and rates[-1] < 0.02
    assert learning_rate(20, 24, Recipe(lr=2.0, warmup=4, schedule="constant")) == 2.0


def test_orientations_are_the_eight_of_a_square():
    tile = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    made = {orient(tile, turn).tobytes() for turn in range(8)}
    expected = {
        np.ascontiguousarray(np.rot90(t, k)).tobytes()
        for t, k in itertools.product((tile, tile[:, ::-1]), range(4))
    }
    assert made == expected and len(made) == 8
    assert np.array_equal(orient(tile, 0), tile)


def test_flips_show_each_tile_in_many_orientations_and_can_be_off():
    tiles = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
    for flips in (True, False):
        generator = torch.Generator().manual_seed(0)
        epoch = batches(tiles, np.arange(N), 8, flips, generator)
        pairs = [
            (row, tile)
            for rows, batch in epoch
            for row, tile in zip(rows, batch.numpy(), strict=True)
        ]
        assert sorted(row for row, _ in pairs) == list(range(N))
        same = [np.array_equal(tile, tiles[row]) for row, tile in pairs]
        assert sum(same) < N / 3 if flips else all(same)
        for row, tile in pairs:
            assert any(np.array_equal(tile, orient(tiles[row], turn)) for turn in range(8))


def test_diverging_loss_names_epoch_step_and_rate(world):
    student = Student(tiny_encoder(64), "projector_only", 4, RECIPE)
    student.projector[0].weight.data[0, 0] = torch.nan
    with pytest.raises(
        PekaError, match=r"loss is nan in epoch 1, step 0: lower the learning rate 0.003"
    ):
        align(student, **world, recipe=RECIPE, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(3, int)}, "one row a spot everywhere.*'labels': 3"),
        ({"labels": np.full(N, 3)}, "labels run from 3 to 3, the recipe has k = 3"),
        ({"targets": np.zeros((N, 7))}, "projects to 4 dimensions, the targets have 7"),
        ({"targets": np.full((N, 4), np.nan)}, "the targets have NaN"),
        ({"targets": np.zeros(N)}, "targets must be"),
        ({"labels": np.full(N, np.nan)}, "labels must be whole numbers"),
        ({"labels": np.full(N, 0.5)}, "labels must be whole numbers"),
        ({"labels": np.full(N, "0")}, "labels must be whole numbers"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(world, change, message):
    with pytest.raises(PekaError, match=message):
        train(world | change)


def test_a_method_that_trains_nothing_is_refused(world):
    with pytest.raises(PekaError, match="'none' trains nothing"):
        train(world, "none")


def test_reading_ahead_changes_nothing(world):
    runs = []
    for ahead in (False, True):
        generator = torch.Generator().manual_seed(0)
        runs.append(list(batches(world["tiles"], np.arange(N), 12, True, generator, ahead)))
    assert [len(rows) for rows, _ in runs[0]] == [12, 12, 12, 4]
    for (rows, batch), (rows_ahead, batch_ahead) in zip(*runs, strict=True):
        assert np.array_equal(rows, rows_ahead) and torch.equal(batch, batch_ahead)


@pytest.mark.parametrize("ahead", [False, True])
def test_failing_tile_reader_stops_the_loop(world, ahead):
    class Broken:
        def __len__(self):
            return N

        def __getitem__(self, rows):
            raise OSError("file truncated")

    with pytest.raises(OSError, match="file truncated"):
        list(batches(Broken(), np.arange(N), 8, True, torch.Generator(), ahead))
    with pytest.raises(OSError, match="file truncated"):
        train(world | {"tiles": Broken()})


def test_quality_is_one_for_a_rotated_teacher_and_chance_for_noise():
    rng = np.random.default_rng(0)
    x_teacher = rng.normal(size=(400, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    good = alignment_quality(
        x_teacher[:300] @ rotation, x_teacher[:300], x_teacher[300:] @ rotation, x_teacher[300:]
    )
    assert good["r2"] > 0.999 and good["neighbour_overlap"] > 0.8
    assert good["chance"] == pytest.approx(10 / 99) and (good["n_train"], good["n_test"]) == (
        300,
        100,
    )
    noise = rng.normal(size=(400, 5))
    bad = alignment_quality(noise[:300], x_teacher[:300], noise[300:], x_teacher[300:])
    assert abs(bad["r2"]) < 0.1 and bad["neighbour_overlap"] == pytest.approx(
        bad["chance"], abs=0.03
    )


def test_quality_is_unknown_where_the_teacher_read_no_held_out_spot():
    x = np.random.default_rng(0).normal(size=(40, 5))
    unread = np.full((10, 5), np.nan)
    found = alignment_quality(x[:30], x[:30], x[30:], unread)
    assert np.isnan([found["r2"], found["neighbour_overlap"]]).all() and (
        found["n_train"],
        found["n_test"],
    ) == (30, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_the_loop_learns_on_a_gpu(world):
    encoder = tiny_encoder(64, device="cuda")
    encoder.model.to("cuda")
    student = Student(encoder, "bat", 4, RECIPE)
    history = align(student, **world, recipe=RECIPE, progress=False)
    assert history["validation_total"].iloc[-1] < history["validation_total"].iloc[0]
