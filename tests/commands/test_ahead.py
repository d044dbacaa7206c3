"""The second process of `peka run` on a CPU: what it makes, when it is there, and its end."""

import os
import time

import psutil
import pytest
from conftest import SMALL

from peka_core.commands import ahead, needs
from peka_core.common.errors import PekaError
from peka_core.runner import stages, units

PARAMETERS = {"profile": "smoke", "run": "small", "device": "cpu", "overrides": SMALL}


def test_it_makes_what_chapters_3_and_4_need(work, monkeypatch):
    work.cohort()
    ahead.make_ahead(PARAMETERS)
    monkeypatch.setattr(units, "_make", lambda *_: pytest.fail("a unit was missing"))
    aligned = work.alignments()
    assert len(aligned) > len(work.cohort().splits)
    for rung, split, world in aligned:
        stages.align(work.at(world), rung, split)
        stages.features(work.at(world), rung, split)


def test_it_ends_with_the_chapters_and_leaves_no_setting(work, monkeypatch):
    monkeypatch.setattr(ahead, "_has_room", lambda work: True)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(ahead, "cores", lambda: 6)
    work.cohort()
    with (
        pytest.raises(PekaError, match="a chapter"),
        ahead.units_made_ahead(work, {"profile": "no such"}),
    ):
        (second,) = psutil.Process().children()
        assert second.is_running() and os.environ["OMP_NUM_THREADS"] == "3"
        time.sleep(0.2)
        raise PekaError("a chapter failed")
    assert not second.is_running() and "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    ("change", "room"),
    [
        ("nothing", True), ("a GPU", False), ("one core", False), ("little memory", False),
        ("threads are set", False), ("nothing is aligned", False), ("unknown size", False),
    ],
)  # fmt: skip
def test_it_is_there_only_where_cores_and_memory_are(work, monkeypatch, change, room):
    monkeypatch.setattr(ahead, "cores", lambda: 1 if change == "one core" else 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if change == "threads are set":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    if change == "a GPU":
        monkeypatch.setattr(work, "device", "cuda")
    if change == "nothing is aligned":
        for name in ("methods", "all_methods"):
            object.__setattr__(work.profile, name, ())
    free = needs.needs(work.profile).ram * (1.9 if change == "little memory" else 2.1) * 1e9
    if change == "unknown size":
        monkeypatch.setitem(needs.SIZES, "demo", lambda _: _raise())
    memory = type("memory", (), {"available": free})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert ahead._has_room(work) == room


def _raise():
    raise PekaError("known only after its cohort is built")
