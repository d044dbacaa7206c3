"""Units: found by content, written whole or not at all, made again where asked."""

import dataclasses
import json

import pytest

from peka_core.alignment import Recipe
from peka_core.units import Unit, find, make

UNIT = Unit(stage="features", cohort="c0ffee", encoder="mini@1", method="bat", recipe=Recipe(), split="patients/0")


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
    assert find(tmp_path, UNIT) is None and list((tmp_path / "units").iterdir()) == []


def test_leftovers_of_a_killed_run_are_not_taken_and_go_away(tmp_path):
    killed = tmp_path / "units" / f".{UNIT.name}-0badc0de"
    half = tmp_path / "units" / UNIT.name
    for folder in (killed, half):
        folder.mkdir(parents=True)
        (folder / "numbers.txt").write_text("half")
    assert find(tmp_path, UNIT) is None
    made = make(tmp_path, UNIT, write_one)
    assert (made / "numbers.txt").read_text() == "1"
    assert [path.name for path in (tmp_path / "units").iterdir()] == [UNIT.name]


def test_a_unit_without_the_file_that_is_needed_is_made_again(tmp_path):
    made = make(tmp_path, UNIT, write_one)
    (made / "numbers.txt").unlink()
    assert make(tmp_path, UNIT, lambda folder: pytest.fail("made again without need")) == made
    make(tmp_path, UNIT, write_one, needs="numbers.txt")
    assert sorted(path.name for path in made.iterdir()) == ["numbers.txt", "unit.json"]
