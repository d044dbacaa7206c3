"""Cached tokens: the same alignment as without a cache, killed, damaged, foreign, too large."""

import errno
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_alignment import RECIPE, N, kill_in_epoch, same, train, trained
from test_alignment import data as data  # a fixture
from test_encoders import tiny_encoder

from peka_core import alignment
from peka_core.alignment import align
from peka_core.common import device
from peka_core.common.errors import PekaError
from peka_core.student import Student
from peka_core.training_parts import token_file
from peka_core.training_parts.batches import batches, oriented
from peka_core.training_parts.tokens import TokenCache, orientations_seen

LAST = replace(RECIPE, last_blocks=1, flips=False, rank=2)


class NoCache:
    """Tiles in the place of a cache, so each batch passes all blocks."""

    def __init__(self, student, tiles, *_):
        self.tiles = tiles

    def __len__(self):
        return len(self.tiles)

    def __getitem__(self, rows):
        return self.tiles[rows]

    def remove(self):
        pass


def cache_of(data, path=None, recipe=LAST, dtype=torch.float32, moved=False, **facts):
    """A cache, and a list of how many tiles passed the frozen block at each call."""
    encoder, seen = tiny_encoder(64, **{"digest": "given"} | facts), []
    encoder.model.to(dtype).pos_embed.data += moved
    student = Student(encoder, "bat", 4, recipe)
    student.network.blocks[0].register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    return TokenCache(student, data.tiles, recipe, N, path), seen


def direct(cache, rows, turns):
    images = torch.from_numpy(oriented(cache.tiles[rows], turns))
    with torch.no_grad(), device.autocast("cpu"):
        return cache.student.tokens(images)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("method", ["bat", "lora", "full"])
@pytest.mark.parametrize("half", [False, True])
def test_the_last_blocks_learn_the_same_from_cached_tokens_as_from_tiles(
    data, monkeypatch, method, flips, half
):
    """Up to the rounding of tokens to bfloat16, where training is in bfloat16."""
    monkeypatch.setattr(device, "has_bfloat16", lambda _: half)
    recipe = replace(LAST, flips=flips)
    student, history = train(data, method, recipe)
    moved = {name for name in trained(student) if name.startswith("network.")}
    assert {name.split(".")[2] for name in moved} == {"1"}
    monkeypatch.setattr(alignment, "TokenCache", NoCache)
    uncached, expected = train(data, method, recipe)
    for name in ("total", "validation_total"):
        np.testing.assert_allclose(history[name], expected[name], rtol=5e-3 if half else 1e-4)
    for (name, p), q in zip(student.named_parameters(), uncached.parameters(), strict=True):
        assert half or torch.allclose(p, q, atol=1e-4), name
    with pytest.raises(PekaError, match="last_blocks is 3"):
        train(data, method, replace(recipe, last_blocks=3))


@pytest.mark.parametrize("killed_in", [2, 3])
@pytest.mark.parametrize("flips", [False, True])
def test_a_killed_alignment_goes_on_with_its_tokens(data, tmp_path, monkeypatch, flips, killed_in):
    recipe, path = replace(LAST, flips=flips), tmp_path / "unit" / "progress.pt"
    student, history = train(data, "bat", recipe)
    with monkeypatch.context() as patch:
        kill_in_epoch(killed_in, patch)
        with pytest.raises(KeyboardInterrupt):
            train(data, "bat", recipe, checkpoint=path)
    assert {p.name for p in path.parent.iterdir()} == {"progress.pt", "progress.tokens"}
    cost = []
    given = Student(tiny_encoder(64), "bat", 4, recipe)
    given.network.blocks[0].register_forward_hook(lambda _, x, __: cost.append(len(x[0])))
    again = align(given, data, recipe, checkpoint=path, progress=False)
    assert again.drop(columns="seconds").equals(history.drop(columns="seconds"))
    assert same(trained(given), trained(student))
    assert sum(cost) <= (N * (recipe.epochs - killed_in) if flips else 0), "computed again"
    assert [p.name for p in path.parent.iterdir()] == ["progress.pt"]


@pytest.mark.parametrize(
    ("flips", "rows", "turns", "count"),
    [(False, [5, 3, 5, 0], [0, 0, 0, 0], 3), (True, [5, 3, 5, 5, 0], [0, 7, 0, 6, 1], 4)],
)
def test_a_tile_passes_the_frozen_blocks_once_in_each_orientation(data, flips, rows, turns, count):
    """Also where a pair of tile and orientation comes twice in one call."""
    cache, seen = cache_of(data, recipe=replace(LAST, flips=flips))
    rows, turns = np.array(rows), np.array(turns)
    np.testing.assert_allclose(
        first := cache.oriented(rows, turns), direct(cache, rows, turns), atol=0.02
    )
    cache.tiles = None  # which is not read again
    assert torch.equal(cache.oriented(rows, turns), first) and sum(seen) == count + len(rows)
    assert torch.equal(cache[rows[:1]], cache.oriented(rows[:1], np.zeros(1, int)))


CHANGES = {  # what the second cache differs in, or what happened to the file -> places made again
    "nothing": 0,
    "another tile": 1,
    "a changed byte": 1,
    "a checksum without tokens": 1,
    "tokens without a checksum": 1,
    "half a file": N // 2,
    "another digest": N,
    "other weights": N,  # of an encoder without a digest
    "another transform": N,
    "other blocks": 0,  # because no block is frozen
}


@pytest.mark.parametrize("change", CHANGES)
def test_tokens_of_something_else_and_damaged_tokens_are_made_again(data, tmp_path, change):
    path, rows, zero = tmp_path / "progress.pt", np.arange(N), np.zeros(N, int)
    facts = {"digest": ""} if change == "other weights" else {}
    first, seen = cache_of(data, path, **facts)
    first.fill(rows, zero)
    assert sum(seen) == N
    stored, start, size = tmp_path / "progress.tokens", first.file.start, first.file.bytes.shape[1]
    content, place = bytearray(stored.read_bytes()), start + 7 * size
    if change == "a changed byte":
        content[place + 100] ^= 1
    elif change == "a checksum without tokens":
        content[place : place + size] = bytes(size)
    elif change == "tokens without a checksum":
        content[4 * 7 : 4 * 8] = bytes(4)
    elif change == "half a file":
        content = content[: start + N // 2 * size]
    stored.write_bytes(content)
    if change == "another tile":
        data = replace(data, tiles=data.tiles.copy())
        data.tiles[7, 3, 4, 0] ^= 1
    facts |= {
        "another transform": {"std": (0.2,) * 3},
        "another digest": {"digest": "another"},
    }.get(change, {})
    recipe = replace(LAST, last_blocks=2) if change == "other blocks" else LAST
    cache, seen = cache_of(data, path, recipe, moved=change == "other weights", **facts)
    assert np.allclose(cache[rows], direct(cache, rows, zero), atol=0.02)
    assert sum(seen) == CHANGES[change] + (N if recipe is LAST else 0)  # and N directly


def test_two_workers_of_a_machine_share_a_file(data, tmp_path):
    """Both open it before either writes; each then takes the other's tokens."""
    both = [cache_of(data, tmp_path / "progress.pt") for _ in range(2)]
    rows, zero = np.arange(N), np.zeros(N, int)
    for (cache, _), mine in zip(both, np.array_split(rows, 2), strict=True):
        cache.fill(mine, zero[mine])
    assert torch.equal(both[0][0][rows], both[1][0][rows])
    assert [sum(seen) for _, seen in both] == [N // 2, N // 2]


def test_a_disk_that_is_too_full_is_refused_before_the_work(data, monkeypatch, tmp_path):
    size = 5 * 32 * device.product_type("cpu").itemsize  # of four patches and the class token
    for free, recipe, fits in (
        (N * size + 4096, LAST, True),
        (N * size - 1, LAST, False),
        (N * size + 4096, replace(LAST, flips=True, epochs=2), False),
        (2 * N * size + 4096, replace(LAST, flips=True, epochs=2), True),  # 15 / 8 of N
    ):
        monkeypatch.setattr(token_file, "free_bytes", lambda path, free=free: free)
        for path in (None, tmp_path / "folder" / "progress.pt"):
            if fits:
                cache_of(data, path, recipe)[0].remove()
            else:
                with pytest.raises(PekaError, match=r"flips.*last_blocks: 0"):
                    cache_of(data, path, recipe)
    taken, _ = cache_of(data, tmp_path / "progress.pt")
    taken.fill(np.arange(N), np.zeros(N, int))  # what it holds already needs no more space
    monkeypatch.setattr(token_file, "free_bytes", lambda path: 0)
    cache_of(data, tmp_path / "progress.pt")


def test_a_disk_that_fills_up_meanwhile_ends_the_alignment_which_then_goes_on(
    data, tmp_path, monkeypatch
):
    path, count, write = tmp_path / "progress.pt", [], token_file.TokenFile._write_at

    def until_full(file, start, content):
        count.append(1)
        if len(count) == 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, start, content)

    monkeypatch.setattr(token_file.TokenFile, "_write_at", until_full)
    with pytest.raises(PekaError, match=r"progress\.tokens cannot be written"):
        train(data, "bat", LAST, checkpoint=path)
    student, history = train(data, "bat", LAST, checkpoint=path)
    undisturbed, expected = train(data, "bat", LAST)
    assert history.drop(columns="seconds").equals(expected.drop(columns="seconds"))
    assert same(trained(student), trained(undisturbed))


def test_tokens_are_computed_in_the_thread_that_trains_also_where_batches_are_read_ahead(data):
    cache, seen = cache_of(data, recipe=replace(LAST, flips=True))
    threads = set()
    cache.student.network.blocks[0].register_forward_hook(
        lambda *_: threads.add(threading.current_thread())
    )
    for epoch in range(2):
        generator = torch.Generator().manual_seed(epoch)
        drawn = batches(cache, np.arange(N), 12, True, generator, ahead=True)
        _, found, _ = zip(*drawn, strict=True)
    assert threads == {threading.main_thread()} and N < sum(seen) < 2 * N
    generator = torch.Generator().manual_seed(epoch)
    for (_, tiles, _), given in zip(batches(data.tiles, np.arange(N), 12, True, generator), found):
        with torch.no_grad(), device.autocast("cpu"):
            np.testing.assert_allclose(cache.student.tokens(tiles), given, atol=0.02)


@pytest.mark.parametrize("half", ["nothing", "products", "products and weights"])
def test_tokens_are_stored_as_the_student_is_trained_and_come_back_as_its_blocks_expect(
    data, monkeypatch, half
):
    monkeypatch.setattr(device, "has_bfloat16", lambda _: half != "nothing")
    weights = torch.bfloat16 if "weights" in half else torch.float32
    (cache, _), rows = cache_of(data, dtype=weights), np.arange(9)
    with device.autocast("cpu"), torch.no_grad():
        expected = cache.student.tokens(torch.from_numpy(data.tiles[rows]))
    stored = torch.float32 if half == "nothing" else torch.bfloat16
    assert cache.file.tokens.dtype == stored and cache[rows].dtype == expected.dtype == weights
    step = 1e-5 if half == "nothing" else 0.02  # a batch of another size rounds differently
    assert torch.allclose(cache[rows], expected, atol=step)
    assert torch.equal(cache[rows], cache[rows].to(stored).to(weights))


def test_each_batch_of_a_gpu_is_whole_because_its_code_is_compiled_for_one_size(data):
    cache, seen = cache_of(data)
    cache.on_gpu = True
    cache.fill(rows := np.arange(2, 13), 0 * rows)
    cache.on_gpu = False  # here is none from which to read
    assert seen == [LAST.batch_size] * 2
    assert torch.allclose(cache[rows], direct(cache, rows, 0 * rows), atol=0.02)


def test_orientations_seen_is_the_mean_over_draws():
    recipe = replace(RECIPE, epochs=7)
    drawn = np.random.default_rng(0).integers(0, 8, (20_000, 7))
    mean = np.mean([len(set(row)) for row in drawn.tolist()])
    assert orientations_seen(recipe) == pytest.approx(mean, rel=0.01)
    assert orientations_seen(replace(recipe, flips=False)) == 1
