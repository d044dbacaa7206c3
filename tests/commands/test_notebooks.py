"""Chapters two at a time: when each starts, what a failure does, and where there is room."""

import contextlib
import os
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
from conftest import SMALL

from peka_core.commands import needs, notebooks
from peka_core.common.errors import PekaError

PARAMETERS = {"profile": "smoke", "run": "small", "weights": {}, "overrides": SMALL}


@pytest.fixture
def chapters(tmp_path, monkeypatch):
    """Chapters that only say when they start and end, with their threads; `fails` names one."""
    said, fails, lock = [], set(), threading.Lock()

    def execute(book, _, parameters):
        for what in ("starts", "ends"):
            with lock:
                said.append((what, book.stem, os.environ.get("OMP_NUM_THREADS")))
            time.sleep(0.05 * (what == "starts") * (1 + len(book.stem) % 3))
        return book.stem not in fails

    two = lambda *_: contextlib.nullcontext(lambda: True)
    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(notebooks, "_room_for_two", two)
    monkeypatch.setattr(notebooks, "cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = lambda: notebooks.execute_chapters(SimpleNamespace(folder=tmp_path, device="cpu"), {})
    return SimpleNamespace(run=run, said=said, fails=fails)


def places(said):
    """Where each chapter starts and ends in what was said."""
    return {(what, name): place for place, (what, name, _) in enumerate(said)}


def test_two_chapters_run_at_a_time_and_each_after_the_tables_that_it_reads(chapters):
    assert chapters.run() and "OMP_NUM_THREADS" not in os.environ
    at, first = places(chapters.said), notebooks.CHAPTERS[0]
    assert (at["starts", first], at["ends", first]) == (0, 1)
    assert {name for _, name in at} == set(notebooks.CHAPTERS)
    for name, earlier in notebooks.TABLES_OF.items():
        assert all(at["ends", one] < at["starts", name] for one in earlier)
    running, most = set(), 0
    for what, name, threads in chapters.said:
        running = running | {name} if what == "starts" else running - {name}
        most = max(most, len(running))
        assert threads == (None if name == first else "3")
    assert most == 2


def test_after_a_failure_no_chapter_starts_and_the_one_beside_it_ends(chapters, capsys):
    chapters.fails.add("02_teacher_embeddings")
    assert not chapters.run()
    at = places(chapters.said)
    assert {name for _, name in at} == set(notebooks.CHAPTERS[:3])
    assert ("ends", notebooks.CHAPTERS[2]) in at
    assert "02_teacher_embeddings failed" in capsys.readouterr().err.splitlines()[-1]


def test_every_chapter_that_reads_a_table_waits_for_the_one_that_writes_it():
    """The source of a chapter tells that it reads a table of this run."""
    from peka_core.common.folders import bundled

    reads = {
        name
        for name in notebooks.CHAPTERS
        if "read_table(" in (bundled("notebooks") / f"{name}.ipynb").read_text(encoding="utf-8")
    }
    assert reads == set(notebooks.TABLES_OF)
    before = list(notebooks.CHAPTERS).index
    assert all(before(e) < before(n) for n, es in notebooks.TABLES_OF.items() for e in es)


@pytest.mark.parametrize("change", ["a GPU", "one core", "threads are set"])
def test_no_second_chapter_is_planned_where_it_would_not_help(monkeypatch, change):
    monkeypatch.setattr(notebooks, "cores", lambda: 1 if change == "one core" else 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if change == "threads are set":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(notebooks.subprocess, "Popen", lambda *_, **__: pytest.fail("planned"))
    with notebooks._room_for_two("cuda" if change == "a GPU" else "cpu", PARAMETERS) as has_room:
        assert not has_room()


@pytest.mark.parametrize("enough", [True, False])
def test_two_chapters_need_memory_for_two(monkeypatch, enough, capsys):
    monkeypatch.setattr(notebooks, "cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    needs.print_ram(notebooks.json.dumps(PARAMETERS))
    free = float(capsys.readouterr().out) * (2.1 if enough else 1.9) * 1e9
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    with notebooks._room_for_two("cpu", PARAMETERS) as has_room:
        assert has_room() == enough


def test_an_encoder_that_prints_does_not_hide_how_much_memory_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nprint('my own encoder')\n"
        "from torch import nn\ndef made():\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(150528, 4))\n"
        "    return net, lambda tiles: torch.as_tensor(tiles).permute(0, 3, 1, 2) / 255\n"
    )
    own = {**PARAMETERS, "overrides": {**SMALL, "encoder": f"{file}:made", "methods": [],
                                       "all_methods": []}}  # fmt: skip
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e15))
    with notebooks._room_for_two("cpu", own) as has_room:
        assert has_room()


def test_a_cohort_of_unknown_size_has_no_room(monkeypatch, capsys):
    def unknown(_):
        raise PekaError("known only after its cohort is built")

    monkeypatch.setitem(needs.SIZES, "demo", unknown)
    needs.print_ram(notebooks.json.dumps(PARAMETERS))
    assert float(capsys.readouterr().out) == float("inf")
