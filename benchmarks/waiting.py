"""Tiles per second of an alignment with sleeping and with spinning OpenMP threads.

    python benchmarks/waiting.py

Each is measured alone and beside a busy process. Writes benchmarks/waiting.csv. Each measurement is
a process of its own, because the policy is read once.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

OUT = Path(__file__).with_suffix(".csv")
TILES = 512


def measure() -> None:
    """One epoch of bat on random tiles; prints tiles per second."""
    import numpy as np

    from peka_core import Recipe, Student, TrainingData, align, load_encoder

    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 255, (TILES, 224, 224, 3), dtype=np.uint8)
    x_teacher, labels = rng.normal(size=(TILES, 12)), rng.integers(0, 16, TILES)
    student = Student(load_encoder("mini", device="cpu"), "bat", 12, Recipe())
    data = TrainingData(tiles, x_teacher, labels, np.zeros(TILES))
    recipe = Recipe(epochs=1, validation_share=0)
    align(student, data, recipe, progress=False)  # warm-up
    started = time.perf_counter()
    align(student, data, recipe, progress=False)
    print(TILES / (time.perf_counter() - started))


def run(policy: str) -> float:
    """Tiles per second under one waiting policy."""
    environment = {**os.environ, "OMP_WAIT_POLICY": policy}
    done = subprocess.run(
        [sys.executable, __file__, "one"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    """Measure the four combinations and write them."""
    from peka_core.runner.provenance import provenance

    facts = provenance("cpu")

    rows = []
    for beside in (0, 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
        try:
            speed = {policy: run(policy) for policy in ("PASSIVE", "ACTIVE")}
        finally:
            for process in busy:
                process.kill()
        rows.append(
            {
                "busy processes": beside,
                **{f"{k.lower()}, tiles/s": round(v) for k, v in speed.items()},
                "ratio": round(speed["PASSIVE"] / speed["ACTIVE"], 2),
                "device": facts["device"],
                "commit": facts["commit"],
            }
        )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    table.to_csv(OUT, index=False)


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["one"] else main()
