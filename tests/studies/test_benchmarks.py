"""Each benchmark still runs: its measurement on the smallest input, so that a changed signature is noticed here. No times are judged."""

import importlib
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL

from peka_core import Recipe, places

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """A script of benchmarks/ as a module, by name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def test_alignment(benchmark):
    alignment, recipe = benchmark("alignment"), Recipe(epochs=1, batch_size=16, k=4, validation_share=0.0)
    mini = alignment.drawn_encoder("mini", "cpu")
    for method in ("bat", "peft bat", "peft bone"):
        row = alignment.measure(mini, method, recipe, 32)
        assert row["tiles"] == 32 and row["tiles_per_s"] > 0 and row["planned_gb"] > 0
    assert alignment.measure(mini, "none", recipe, 32)["tflop_per_s"] > 0
    assert alignment.product_flops("cpu") > 1e8


def test_waiting(benchmark, monkeypatch, capsys):
    waiting = benchmark("waiting")
    monkeypatch.setattr(waiting, "TILES", 32)
    waiting.measure()
    assert float(capsys.readouterr().out) > 0


def test_head(benchmark):
    head = benchmark("head")
    assert head.measure(400, 300)["largest_difference"] < 1e-6
    assert head.memory(400, 300)["n"] == 400


def test_teacher(benchmark, tmp_path):
    row = benchmark("teacher").measure("small", 3, 30, 1, tmp_path)
    assert row["difference_plain"] < 1e-4 and row["cosine_bfloat16"] > 0.99


def test_drawn_cohorts(benchmark, tmp_path, monkeypatch):
    """Two seeds of one rung on one small cohort, as components.py has it; ladder.py asks another study of the same cohorts."""
    monkeypatch.setattr(places, "root", lambda: tmp_path)
    cohorts, components = benchmark("cohorts"), benchmark("components")
    study = lambda work: components.seeds(work, components.RUNGS[:1], cohorts.SPLIT, (0, 1))
    made = cohorts.in_each(Namespace(first=1001, cohorts=1), "tiny", study, SMALL)
    assert (
        list(made) == [1001]
        and made[1001]["seed"].nunique() == 2
        and np.isfinite(made[1001]["difference"]).all()
    )
