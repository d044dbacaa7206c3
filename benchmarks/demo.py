"""Minutes and memory of the demo with two chapters at a time, and with one.

    python benchmarks/demo.py          # both, one after the other: about 15 minutes on 2 cores
    python benchmarks/demo.py two      # or one of them

Writes benchmarks/demo.csv. Memory is that of the command and all its processes: shared pages are
divided among those that share them (PSS). A run in `runs/benchmark` is removed before each.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil

from peka_core.common.device import cores
from peka_core.common.folders import root
from peka_core.runner.provenance import provenance

OUT = Path(__file__).with_suffix(".csv")
THREADS = {"two": "", "one": str(cores())}  # OMP_NUM_THREADS, as docs/options.md says


def memory(command: psutil.Process) -> float:
    """GB of a process and all processes below it, now."""
    total = 0.0
    for process in (command, *command.children(recursive=True)):
        try:
            total += process.memory_full_info().pss / 1e9
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # it has ended since
    return total


def measure(chapters: str) -> dict:
    """Run the demo; returns its minutes, CPU minutes and peak memory."""
    shutil.rmtree(root() / "runs" / "benchmark", ignore_errors=True)
    words = [sys.executable, "-m", "peka_core", "run", "demo", "--run", "benchmark"]
    before, started, peak = os.times(), time.perf_counter(), 0.0
    environment = {**os.environ, "OMP_NUM_THREADS": THREADS[chapters]}
    with subprocess.Popen(words, env=environment, cwd=root()) as run:
        watched = psutil.Process(run.pid)
        while run.poll() is None:
            peak = max(peak, memory(watched))
            time.sleep(1)
    if run.returncode:
        sys.exit(run.returncode)
    seconds, after = time.perf_counter() - started, os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])  # of children that have ended
    return {
        "chapters": chapters,
        "minutes": round(seconds / 60, 2),
        "cpu_minutes": round(cpu / 60, 2),
        "peak_gb": round(peak, 2),
        **{name: provenance("cpu")[name] for name in ("device", "commit")},
    }


def main() -> None:
    """Measure what is asked for, and write it beside what is there."""
    asked = sys.argv[1:] or list(THREADS)
    for chapters in asked:
        old = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame({"chapters": []})
        rows = pd.concat([old[old["chapters"] != chapters], pd.DataFrame([measure(chapters)])])
        rows.to_csv(OUT, index=False)
        print(rows.to_string(index=False))


if __name__ == "__main__":
    main()
