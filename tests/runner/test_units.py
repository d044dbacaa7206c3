"""Units: found by content, written whole or not at all, made again where asked."""

import dataclasses
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from peka_core import device
from peka_core.alignment import Recipe
from peka_core.errors import PekaError
from peka_core.runner import cost
from peka_core.runner.cost import peak_can_be_reset
from peka_core.runner.units import Unit, find, make, partial

UNIT = Unit(
    stage="features",
    cohort="c0ffee",
    encoder="mini@1",
    method="bat",
    recipe=Recipe(),
    split="patients/0",
)


def things(run):
    """What lies in the folder of units, the locks aside."""
    return sorted(path.name for path in (run / "units").iterdir() if path.name != ".locks")


def write_one(folder):
    (folder / "numbers.txt").write_text("1")


def test_a_finished_unit_is_found_and_not_made_again(tmp_path):
    calls = []
    first = make(tmp_path, UNIT, lambda folder: (calls.append(1), write_one(folder)))
    second = make(tmp_path, dataclasses.replace(UNIT), lambda folder: calls.append(2))
    assert first == second == find(tmp_path, UNIT) and calls == [1]
    assert (first / "numbers.txt").read_text() == "1"


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Unit)])
def test_every_field_is_part_of_the_id(field):
    other = {"recipe": Recipe(epochs=11), "seed": 1}.get(field, "other")
    assert dataclasses.replace(UNIT, **{field: other}).id != UNIT.id


def test_unit_json_holds_fields_and_where_they_came_from(tmp_path):
    facts = json.loads((make(tmp_path, UNIT, write_one) / "unit.json").read_text())
    assert facts["unit"] == json.loads(json.dumps(dataclasses.asdict(UNIT)))
    assert {"seconds", "commit", "python", "packages", "device", "peka_core"} <= set(facts)


def test_a_failed_write_leaves_nothing(tmp_path):
    def write(folder):
        write_one(folder)
        raise ValueError("no more disk")

    with pytest.raises(ValueError, match="no more disk"):
        make(tmp_path, UNIT, write)
    assert find(tmp_path, UNIT) is None and things(tmp_path) == []


def test_leftovers_of_a_killed_run_are_not_taken_and_go_away(tmp_path):
    killed = tmp_path / "units" / f".peka-tmp-{UNIT.name}-0badc0de"
    half = tmp_path / "units" / UNIT.name
    for folder in (killed, half):
        folder.mkdir(parents=True)
        (folder / "numbers.txt").write_text("half")
    assert find(tmp_path, UNIT) is None
    made = make(tmp_path, UNIT, write_one)
    assert (made / "numbers.txt").read_text() == "1"
    assert things(tmp_path) == [UNIT.name]


def test_a_unit_without_the_file_that_is_needed_is_made_again(tmp_path):
    made = make(tmp_path, UNIT, write_one)
    (made / "numbers.txt").unlink()
    assert make(tmp_path, UNIT, lambda folder: pytest.fail("made again without need")) == made
    again = make(tmp_path, UNIT, write_one, needs="numbers.txt")
    assert sorted(path.name for path in again.iterdir()) == ["numbers.txt", "unit.json"]
    assert again != made and [path.name for path in made.iterdir()] == ["unit.json"], (
        "a finished unit was changed"
    )
    assert (
        make(
            tmp_path,
            UNIT,
            lambda folder: pytest.fail("made again without need"),
            needs="numbers.txt",
        )
        == again
    )


can_count_memory = pytest.mark.skipif(
    not peak_can_be_reset(),
    reason="this system does not let a process count its largest memory anew",
)


@can_count_memory
def test_unit_json_tells_the_largest_memory_of_that_unit(tmp_path):
    def write(folder):
        block = bytearray(200_000_000)
        write_one(folder)
        del block

    make(tmp_path, UNIT, write)
    big = json.loads((tmp_path / "units" / UNIT.name / "unit.json").read_text())["memory_mb"][
        "process"
    ]
    small_unit = dataclasses.replace(UNIT, seed=1)
    small = json.loads((make(tmp_path, small_unit, write_one) / "unit.json").read_text())[
        "memory_mb"
    ]["process"]
    assert big > small + 150, "the peak of one unit must not be carried over to the next"


@pytest.fixture
def outer_and_inner(tmp_path):
    """`unit.json` of a unit and of a larger, slower one that was made inside it."""
    inner = dataclasses.replace(UNIT, seed=2)

    def write_inner(folder):
        block = bytearray(200_000_000)
        time.sleep(0.5)
        write_one(folder)
        del block

    def write(folder):
        make(tmp_path, inner, write_inner)
        time.sleep(0.1)
        write_one(folder)

    return [
        json.loads((folder / "unit.json").read_text())
        for folder in (make(tmp_path, UNIT, write), make(tmp_path, inner, write_one))
    ]


def test_seconds_of_a_unit_inside_another_are_its_own(outer_and_inner):
    outer, inner = outer_and_inner
    assert outer["seconds"] < 0.4 < inner["seconds"]


@can_count_memory
def test_memory_of_a_unit_inside_another_is_its_own(outer_and_inner):
    outer, inner = outer_and_inner
    assert outer["memory_mb"]["process"] < inner["memory_mb"]["process"] - 150


@pytest.mark.parametrize("place", ["nowhere/clear_refs", "clear_refs"])
def test_memory_that_cannot_be_told_is_left_out(tmp_path, monkeypatch, place):
    """The second place takes the write and does nothing, as some containers do."""
    block = bytearray(200_000_000)
    del block
    monkeypatch.setattr(cost, "CLEAR_REFS", tmp_path / place)
    facts = json.loads((make(tmp_path, UNIT, write_one) / "unit.json").read_text())
    assert "process" not in facts["memory_mb"] and facts["seconds"] >= 0


def test_what_a_unit_kept_to_go_on_from_goes_away_with_it(tmp_path):
    (partial(tmp_path, UNIT) / "progress.pt").write_text("half")
    make(tmp_path, UNIT, write_one)
    assert things(tmp_path) == [UNIT.name]


SLOW_WRITER = """
import sys, time
from pathlib import Path
from peka_core.runner.units import Unit, make
def write(folder):
    Path(sys.argv[1], "started").touch()
    time.sleep(float(sys.argv[2]))
    with open(Path(sys.argv[1], "made"), "a") as log:
        log.write("x")
    (folder / "numbers.txt").write_text("1")
make(Path(sys.argv[1]), Unit("features", "c0ffee"), write)
"""


def writer(run, seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(run), str(seconds)],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 60
    while not (run / "started").exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    return process


def test_two_processes_never_make_the_same_unit(tmp_path):
    first = writer(tmp_path, 2.0)
    second = writer(tmp_path, 2.0)
    said = second.communicate(timeout=60)[1]
    assert first.wait(60) == second.returncode == 0
    assert (tmp_path / "made").read_text() == "x", "both made it"
    assert "being made by another process" in said


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    killed = writer(tmp_path, 60)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=20)
    assert make(tmp_path, Unit("features", "c0ffee"), write_one).exists()
    assert things(tmp_path) == [Unit("features", "c0ffee").name]


def test_a_full_disk_ends_in_one_message_and_leaves_nothing_half_written(tmp_path):
    """The process may write no file above 1 MB: the kernel refuses in the middle of writing, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(PekaError, match="cannot be written.*nothing half-written"):
            make(
                tmp_path,
                UNIT,
                lambda folder: (folder / "numbers.txt").write_bytes(bytes(3_000_000)),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert things(tmp_path) == []
    assert make(
        tmp_path, UNIT, lambda folder: (folder / "numbers.txt").write_bytes(bytes(3_000_000))
    ).exists()


def test_a_folder_that_cannot_be_written_ends_in_one_message(tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(PekaError, match="Read-only file system"):
        make(tmp_path, UNIT, write_one)


def test_other_errors_of_the_system_keep_their_own_message(tmp_path):
    with pytest.raises(FileNotFoundError):
        make(tmp_path, UNIT, lambda folder: (folder / "no" / "such" / "folder").read_text())


def test_a_unit_made_on_the_cpu_of_a_machine_with_a_gpu_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "best_device", lambda: "cuda")
    device.device_name.cache_clear()
    folder = make(
        tmp_path, UNIT, write_one, device="cpu"
    )  # asking torch for a GPU's name would fail here
    assert (
        json.loads((folder / "unit.json").read_text())["device"]
        == f"{device._cpu_model()}, {os.cpu_count()} cores"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"unit": 1, "packages": {}}'])
def test_a_damaged_unit_json_is_named(tmp_path, text):
    (make(tmp_path, UNIT, write_one) / "unit.json").write_text(text)
    with pytest.raises(PekaError, match="unit.json"):
        make(tmp_path, UNIT, write_one)
