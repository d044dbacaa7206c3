"""Units: found by content, written whole or not at all, made again where asked."""

import dataclasses
import errno
import json
import subprocess
import sys
import time

import pytest

from peka_core.common import device, files
from peka_core.common.errors import PekaError
from peka_core.recipe import Recipe
from peka_core.runner.units import Unit, find, make, partial

UNIT = Unit("features", "c0ffee", "mini@1", "bat", recipe=Recipe(), split="patients/0")
write_one = lambda folder: (folder / "numbers.txt").write_text("1")
write_nothing = lambda folder: pytest.fail("the unit was made again without need")
facts = lambda folder: json.loads((folder / "unit.json").read_text())


def things(run):
    """What lies in the folder of units, without the locks."""
    return sorted(path.name for path in (run / "units").iterdir() if path.name != ".locks")


def test_every_field_is_part_of_the_id_but_of_rows_not_the_name_of_their_split():
    for field in (f.name for f in dataclasses.fields(Unit)):
        other = {"recipe": Recipe(epochs=11), "seed": 1}.get(field, "other")
        assert dataclasses.replace(UNIT, **{field: other}).id != UNIT.id, field
    with_rows = dataclasses.replace(UNIT, rows="abc")
    assert dataclasses.replace(with_rows, split="mine/7").id == with_rows.id


def test_a_finished_unit_says_where_it_came_from_and_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "best_device", lambda: "cuda")
    device.device_name.cache_clear()
    made = make(tmp_path, UNIT, write_one, device="cpu")  # asking for a GPU's name would fail
    assert made == make(tmp_path, dataclasses.replace(UNIT), write_nothing) == find(tmp_path, UNIT)
    found = facts(made)
    assert found["device"] == device.device_name("cpu") and found["memory_mb"]["process"] > 10
    assert found["unit"] == json.loads(json.dumps(dataclasses.asdict(UNIT)))
    assert {"seconds", "commit", "python", "packages", "peka_core"} <= set(found)
    (made / "numbers.txt").unlink()
    assert make(tmp_path, UNIT, write_nothing) == made
    again = make(tmp_path, UNIT, write_one, needs="numbers.txt", device="cpu")
    assert again.name == f"{made.name}+" and [path.name for path in made.iterdir()] == ["unit.json"]
    assert make(tmp_path, UNIT, write_nothing, needs="numbers.txt") == again


def test_leftovers_of_a_killed_run_are_not_taken_and_go_away(tmp_path):
    for name in (f".peka-tmp-{UNIT.name}-0badc0de", UNIT.name):
        (tmp_path / "units" / name).mkdir(parents=True)
        (tmp_path / "units" / name / "numbers.txt").write_text("half")
    (partial(tmp_path, UNIT) / "progress.pt").write_text("half")
    assert find(tmp_path, UNIT) is find(tmp_path, UNIT, "numbers.txt") is None
    assert (make(tmp_path, UNIT, write_one) / "numbers.txt").read_text() == "1"
    assert things(tmp_path) == [UNIT.name]


def test_seconds_of_a_unit_inside_another_are_its_own(tmp_path):
    inner = dataclasses.replace(UNIT, seed=2)
    write_inner = lambda folder: time.sleep(0.5)
    outer = make(tmp_path, UNIT, lambda folder: make(tmp_path, inner, write_inner))
    assert facts(outer)["seconds"] < 0.4 < facts(find(tmp_path, inner))["seconds"]


WRITER = """
import sys, time
from pathlib import Path
from peka_core.runner.units import Unit, make
def write(folder):
    (folder / "numbers.txt").write_text("1")
    print("made", flush=True)
    time.sleep(float(sys.argv[2]))
make(Path(sys.argv[1]), Unit("features", "c0ffee"), write)
"""


def test_two_processes_never_make_the_same_unit_and_a_killed_one_frees_its_lock(tmp_path):
    def writer(seconds):
        words = [sys.executable, "-c", WRITER, str(tmp_path), str(seconds)]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True)

    killed = writer(60)
    assert killed.stdout.readline() == "made\n"
    killed.kill()
    killed.communicate(timeout=20)
    both = [writer(2), writer(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert sorted(out for out, _ in said) == ["", "made\n"] and any(err for _, err in said)
    assert things(tmp_path) == [Unit("features", "c0ffee").name]


@pytest.mark.parametrize(
    ("error", "free", "raised"),
    [
        (RuntimeError("HDF5: cannot write"), 0, PekaError),
        (OSError(errno.EACCES, "denied", "/elsewhere/input.h5"), 9e9, PermissionError),
    ],
)
def test_a_failed_unit_leaves_nothing_and_only_errors_of_the_place_are_ours(
    tmp_path, monkeypatch, error, free, raised
):
    monkeypatch.setattr(files, "free_bytes", lambda _: free)

    def write(folder):
        write_one(folder)
        raise error

    with pytest.raises(raised) as caught:
        make(tmp_path, UNIT, write)
    assert (UNIT.name in str(caught.value)) == (raised is PekaError)
    assert find(tmp_path, UNIT) is None and things(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{}"])
def test_a_damaged_unit_json_is_named(tmp_path, text):
    (make(tmp_path, UNIT, write_one) / "unit.json").write_text(text)
    with pytest.raises(PekaError, match="unit.json"):
        make(tmp_path, UNIT, write_one)
