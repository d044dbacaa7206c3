"""Two workers of torchrun give the adapter, losses, features and units of one process.

torchrun starts this file as a script; a task below is what each of its workers does.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL as SMALL_RUN
from test_alignment import SMALL, trained
from test_encoders import tiny_encoder

from peka_core import alignment, losses
from peka_core.alignment import align
from peka_core.commands.command_line import main
from peka_core.common import device, folders
from peka_core.common.errors import PekaError
from peka_core.encoders import load_encoder
from peka_core.protocols import PROTOCOLS
from peka_core.recipe import Recipe
from peka_core.runner import stages, units
from peka_core.runner.run import open_run
from peka_core.runner.units import Unit
from peka_core.student import Student, embed_tiles
from peka_core.training_data import TrainingData
from peka_core.training_parts import workers
from peka_core.training_parts.memory import advise_batch_size

N = 40  # spots, of which 32 are trained on: in batches of 31, so the second worker has no row of 1
RECIPE = Recipe(**{**SMALL, "batch_size": 31}, validation_share=0.2)
CASES = {
    "bat": {},
    "lora": {},
    "adalora": {},
    "full": {"lambda_struct": 0.0},
    "projector_only": {"classifier_epochs": 2, "batch_size": 7},
    "bone": {"last_blocks": 1},
}
WITH_DROPOUT = replace(RECIPE, batch_size=8, dropout=0.3)


def drawn_data() -> TrainingData:
    """The data of test_alignment.py."""
    rng = np.random.default_rng(0)
    colour = rng.integers(40, 216, (N, 3))
    tiles = (colour[:, None, None, :] + rng.integers(-9, 10, (N, 64, 64, 1))).astype(np.uint8)
    x_teacher = ((colour / 64 - 2) @ rng.normal(size=(3, 4))).astype(np.float32)
    return TrainingData(tiles, x_teacher, colour.argmax(1), np.arange(N) // 8)


def train(method, recipe, data=None, checkpoint=None, encoder=None):
    """Weights and losses of an alignment, and the student."""
    student = Student(encoder or tiny_encoder(64), method, 4, recipe)
    history = align(student, data or drawn_data(), recipe, 0, checkpoint, progress=False)
    numbers = history.drop(columns=["seconds", "choice"]).to_numpy(float)
    weights = {name: p.cpu().numpy() for name, p in trained(student).items()}
    return weights | {"history": numbers}, student


def learn(folder: Path) -> None:
    """Train each of `CASES`, embed 37 tiles and one, and make units of a run."""
    found = {}
    for method, change in CASES.items():
        checkpoint = folder / f"{method}-{workers.count()}.pt"  # the tokens' file is beside it
        weights, student = train(method, replace(RECIPE, **change), checkpoint=checkpoint)
        found |= {f"{method}: {name}": value for name, value in weights.items()}
        for n in (37, 1):
            made = embed_tiles(student, drawn_data().tiles[:n], progress=False)
            found |= {f"{method}: {space} of {n}": value for space, value in made.items()}

    root = folder / str(workers.count())
    folders.root = lambda: root
    work = open_run("smoke", "small", "cpu", {}, SMALL_RUN)
    found["adapted features"] = stages.features(work, "bat", "patients/0").obsm["X_encoder"]
    found["frozen features"] = stages.features(work).obsm["X_encoder"]
    # the first worker trains the students of this score alone
    found["scores"] = stages.score(work, "projector_only", PROTOCOLS["strict"]).scores["pcc"]

    def fail(_):
        raise PekaError("no such luck")

    with pytest.raises(PekaError, match="no such luck"):  # on each worker
        units.make(work.folder, Unit("hashes", "nowhere"), fail)
    np.savez(folder / f"{workers.count()}-{workers.rank()}.npz", **found)


def be_killed(folder: Path) -> None:
    """The second worker is killed in the second of three epochs."""
    batches = alignment.batches

    def deadly(*arguments):
        for count, batch in enumerate(batches(*arguments)):
            if workers.rank() and count and (folder / "progress.pt").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    alignment.batches = deadly
    train("bat", WITH_DROPOUT, checkpoint=folder / "progress.pt")


def go_on(folder: Path) -> None:
    """Go on where the killed worker was, do the same undisturbed, then `learn`, then fail."""
    print("epochs before:", len(torch.load(folder / "progress.pt")["history"]))
    for name, file in (("resumed", folder / "progress.pt"), ("undisturbed", None)):
        found, _ = train("bat", WITH_DROPOUT, checkpoint=file)
        np.savez(folder / f"{name}-{workers.rank()}.npz", **found)
    learn(folder)

    class Tiles:
        def __len__(self):
            return N

        def __getitem__(self, rows):
            if workers.rank():
                raise PekaError("this tile is damaged")
            return drawn_data().tiles[rows]

    train("bat", RECIPE, replace(drawn_data(), tiles=Tiles()))
    print("a worker went on without the other")


def learn_on_gpus(folder: Path) -> None:
    """Train with `mini` on the worker's GPU and embed; without a GPU on the CPU."""
    found, data = {}, drawn_data()
    data = replace(data, tiles=data.tiles[:, :56, :56].repeat(4, 1).repeat(4, 2))
    for method in ("bat", "lora", "adalora"):
        recipe, encoder = replace(RECIPE, block=16), load_encoder("mini")
        weights, student = train(method, recipe, data, encoder=encoder)
        found[f"{method}: history"] = weights["history"]
        found[f"{method}: features"] = embed_tiles(student, data.tiles, progress=False)["encoder"]
    np.savez(folder / f"gpu-{workers.count()}-{workers.rank()}.npz", **found)


def torchrun(task, folder: Path) -> subprocess.CompletedProcess:
    """Let two workers do a task."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words, task.__name__, str(folder)]
    options = {"capture_output": True, "text": True, "timeout": 600}
    return subprocess.run(command, env=os.environ | paths, **options)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Folder of the files of `learn` in one process, then of two workers, and what these said."""
    folder = tmp_path_factory.mktemp("workers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "autocast", lambda _: contextlib.nullcontext())
        patch.setattr(folders, "root", folders.root)
        learn(folder)
    return folder, torchrun(be_killed, folder), torchrun(go_on, folder)


@pytest.mark.slow
def test_two_workers_learn_and_embed_what_one_process_does(ran):
    """In float32: losses and features within 1e-5 of the largest value, weights within 1e-4.

    Adam divides by the size of a gradient, so it enlarges the rounding of a sum in another order.
    The bias of keys has a gradient of 0 that only rounding moves; `full` trains it.
    """
    folder, _, said = ran
    one, *two = (np.load(folder / f"{name}.npz") for name in ("1-0", "2-0", "2-1"))
    for worker in two:
        assert one.files == worker.files, said.stderr
        for name in one.files:
            near = 1e-5 if "history" in name or "features" in name else 1e-4
            limit = near * np.nanmax(np.abs(one[name])) * (50 if "full" in name else 1)
            given = {"rtol": 0, "atol": limit, "err_msg": name}
            np.testing.assert_allclose(worker[name], one[name], **given)


def test_two_workers_store_the_units_of_one_process(ran):
    alone, together = (ran[0] / n / "runs/small/units" for n in ("1", "2"))
    assert sorted(p.name for p in together.iterdir()) == sorted(p.name for p in alone.iterdir())
    stored = [json.loads(p.read_text()) for p in together.glob("*/unit.json")]
    made = {(f["unit"]["stage"], f["unit"]["method"]): f.get("workers", 1) for f in stored}
    assert made["alignment", "bat"] == made["features", "none"] == 2
    assert made["alignment", "projector_only"] == made["teacher", ""] == 1


def test_a_killed_worker_ends_both_and_the_next_two_go_on_with_the_same_result(ran):
    """With dropout, of which each worker draws its own. Two workers sum in one order: equal."""
    folder, killed, resumed = ran
    assert killed.returncode and "SIGKILL" in killed.stderr
    assert resumed.stdout.count("epochs before: 1") == 2
    for rank in range(2):
        files = (folder / f"{name}-{rank}.npz" for name in ("resumed", "undisturbed"))
        resumed, undisturbed = map(np.load, files)
        for name in undisturbed.files:
            np.testing.assert_array_equal(resumed[name], undisturbed[name], err_msg=name)


def test_a_worker_that_fails_ends_both_with_its_message(ran):
    _, _, failed = ran
    assert failed.returncode and "this tile is damaged" in failed.stderr
    assert "went on without" not in failed.stdout


def test_the_parts_of_all_workers_are_the_whole_and_their_weights_are_its_mean(monkeypatch):
    for count, n in ((2, 31), (3, 7), (4, 2), (5, 1)):
        monkeypatch.setattr(workers, "count", lambda count=count: count)
        rows, mean, losses = [], 0.0, np.arange(100.0) ** 2
        for rank in range(count):
            monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
            rows += range(n)[workers.part(n)]
            piece, weight = workers.part_of_batch(slice(40, 40 + n))
            assert 40 <= piece.start < piece.stop <= 40 + n
            mean += weight * losses[piece].mean() / count  # DDP divides by their number
        assert rows == list(range(n)) and mean == pytest.approx(losses[40 : 40 + n].mean())


def test_each_worker_has_random_numbers_of_its_own_in_each_epoch_and_the_first_goes_on(monkeypatch):
    drawn = {}
    for rank, epoch in ((0, 1), (1, 1), (2, 1), (1, 2)):
        monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
        for before in (3, 4):
            torch.manual_seed(before)
            workers.own_random_numbers(0, epoch)
            drawn[rank, epoch, before] = torch.rand(1).item()
    assert all(drawn[1, e, 3] == drawn[1, e, 4] for e in (1, 2)), "a resumed epoch would differ"
    torch.manual_seed(3)
    assert drawn[0, 1, 3] == torch.rand(1).item()
    assert len(set(drawn.values())) == 5


def test_each_worker_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(device, "_has_gpu", lambda: True)
    monkeypatch.setattr(device, "_count_gpus", lambda: 2)
    assert device.check_device("auto") == device.check_device("cuda") == "cuda"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "drawn")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.check_device("auto") == device.check_device("cuda") == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(PekaError, match="2 GPU"):
        device.check_device("auto")


def test_no_worker_tries_smaller_batches_while_the_others_wait(monkeypatch):
    monkeypatch.setattr(workers, "count", lambda: 2)
    tried = []

    def align(student, data, recipe):
        tried.append(recipe.batch_size)
        raise torch.OutOfMemoryError

    with pytest.raises(PekaError, match="batch_size"):
        advise_batch_size(align)(Student(tiny_encoder(64), "bat", 4), drawn_data(), RECIPE)
    assert tried == [31]


def test_torchrun_does_not_execute_notebooks(monkeypatch, capsys):
    monkeypatch.setattr(workers, "count", lambda: 2)
    assert main(["run", "smoke"]) == 1 and "torchrun" in capsys.readouterr().err


if __name__ == "__main__":
    losses.autocast = lambda _: contextlib.nullcontext()
    tasks = {task.__name__: task for task in (be_killed, go_on, learn_on_gpus)}
    tasks[sys.argv[1]](Path(sys.argv[2]))
