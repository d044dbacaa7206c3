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

from peka_core.common import device
from peka_core.common.errors import PekaError
from peka_core.recipe import Recipe
from peka_core.runner.units import Unit, find, make, partial

FIELDS = {"stage": "features", "cohort": "c0ffee", "encoder": "mini@1", "method": "bat"}
UNIT = Unit(**FIELDS, recipe=Recipe(), split="patients/0")
write_one = lambda folder: (folder / "numbers.txt").write_text("1")
write_nothing = lambda folder: pytest.fail("the unit was made again without need")
facts = lambda folder: json.loads((folder / "unit.json").read_text())


def things(run):
    """What lies in the folder of units, without the locks."""
    return sorted(path.name for path in (run / "units").iterdir() if path.name != ".locks")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Unit)])
def test_every_field_is_part_of_the_id(field):
    other = {"recipe": Recipe(epochs=11), "seed": 1}.get(field, "other")
    assert dataclasses.replace(UNIT, **{field: other}).id != UNIT.id


def test_rows_decide_and_not_the_name_of_their_split():
    one, other = (Unit(**FIELDS, split=name, rows="abc") for name in ("patients/0", "mine/7"))
    assert one.id == other.id != dataclasses.replace(one, rows="def").id


def test_a_finished_unit_says_where_it_came_from_and_is_not_made_again(tmp_path):
    made = make(tmp_path, UNIT, write_one)
    assert made == make(tmp_path, dataclasses.replace(UNIT), write_nothing) == find(tmp_path, UNIT)
    found = facts(made)
    assert found["unit"] == json.loads(json.dumps(dataclasses.asdict(UNIT)))
    assert {"seconds", "commit", "python", "packages", "device", "peka_core"} <= set(found)
    assert found["memory_mb"]["process"] > 10
    (made / "numbers.txt").unlink()
    assert make(tmp_path, UNIT, write_nothing) == made
    again = make(tmp_path, UNIT, write_one, needs="numbers.txt")
    assert again.name == f"{made.name}+" and [path.name for path in made.iterdir()] == ["unit.json"]
    assert make(tmp_path, UNIT, write_nothing, needs="numbers.txt") == again


def test_leftovers_of_a_killed_run_are_not_taken_and_go_away(tmp_path):
    for name in (f".peka-tmp-{UNIT.name}-0badc0de", UNIT.name):
        (tmp_path / "units" / name).mkdir(parents=True)
        (tmp_path / "units" / name / "numbers.txt").write_text("half")
    (partial(tmp_path, UNIT) / "progress.pt").write_text("half")
    assert find(tmp_path, UNIT) is None
    assert (make(tmp_path, UNIT, write_one) / "numbers.txt").read_text() == "1"
    assert things(tmp_path) == [UNIT.name]


def test_seconds_of_a_unit_inside_another_are_its_own(tmp_path):
    inner = dataclasses.replace(UNIT, seed=2)
    write_inner = lambda folder: time.sleep(0.5)
    outer = make(tmp_path, UNIT, lambda folder: make(tmp_path, inner, write_inner))
    seconds = [facts(folder)["seconds"] for folder in (outer, find(tmp_path, inner))]
    assert seconds[0] < 0.4 < seconds[1]


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
    """A process that makes one unit, and has started to."""
    words = [sys.executable, "-c", SLOW_WRITER, str(run), str(seconds)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while not (run / "started").exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    return process


def test_two_processes_never_make_the_same_unit(tmp_path):
    first, second = writer(tmp_path, 2.0), writer(tmp_path, 2.0)
    said = second.communicate(timeout=60)[1]
    assert first.wait(60) == second.returncode == 0 and said
    assert (tmp_path / "made").read_text() == "x", "both made it"


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    killed, unit = writer(tmp_path, 60), Unit("features", "c0ffee")
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=20)
    assert make(tmp_path, unit, write_one).exists() and things(tmp_path) == [unit.name]


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    """The process may write no file above 1 MB, so the kernel refuses in the middle of writing."""
    write = lambda folder: (folder / "numbers.txt").write_bytes(bytes(3_000_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(PekaError, match=UNIT.name):
            make(tmp_path, UNIT, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert things(tmp_path) == [] and make(tmp_path, UNIT, write).exists()


def test_errors_of_the_place_are_ours_and_others_keep_their_own_message(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        make(tmp_path, UNIT, lambda folder: (folder / "no" / "such" / "folder").read_text())
    assert find(tmp_path, UNIT) is None and things(tmp_path) == []

    def refuse(self, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(PekaError, match="units"):
        make(tmp_path / "other", UNIT, write_one)


def test_a_unit_made_on_the_cpu_of_a_machine_with_a_gpu_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "best_device", lambda: "cuda")
    device.device_name.cache_clear()
    folder = make(tmp_path, UNIT, write_one, device="cpu")  # asking for a GPU's name would fail
    assert facts(folder)["device"] == device.device_name("cpu")
    device.device_name.cache_clear()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"unit": 1, "packages": {}}'])
def test_a_damaged_unit_json_is_named(tmp_path, text):
    (make(tmp_path, UNIT, write_one) / "unit.json").write_text(text)
    with pytest.raises(PekaError, match="unit.json"):
        make(tmp_path, UNIT, write_one)
